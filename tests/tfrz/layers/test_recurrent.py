"""The chaos-free network: invariants 11 and 12, worked example, and states before each action."""

from __future__ import annotations

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.oracles import reinforce as oracle
from tfrz.errors import ConfigError
from tfrz.layers.recurrent import ChaosFreeCell, ChaosFreeRNN

BATCH, TIME, DIM, UNITS = 3, 5, 4, 6
NAMES = {"U_z", "W_z", "b_z", "U_i", "W_i", "b_i", "W_a"}

# The example of invariant 11, in the paper's orientation.
EXAMPLE = {
    "U_z": np.array([[0.5, 0], [0, -0.5]]),
    "W_z": np.eye(2),
    "b_z": np.zeros(2),
    "U_i": np.array([[0, 0.25], [0.25, 0]]),
    "W_i": np.array([[0.0, 1], [1, 0]]),
    "b_i": np.ones(2),
    "W_a": np.array([[1.0, -1], [0.5, 2]]),
}
STEPS = np.array([[[1.0, 0], [0, 1], [0, 0]]])
STATES = [[0, 0], [0.556770, 0.407031], [-0.390887, 0.996286], [-0.167938, 0.287274]]


def _array(tensor) -> np.ndarray:
    return np.asarray(tf.convert_to_tensor(tensor))


def _short(weight) -> str:
    return getattr(weight, "path", weight.name).split(":")[0].split("/")[-1]


def _random(*shape: int, seed: int = 0, scale: float = 1.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, scale, shape)


def _weights(units: int = UNITS, dim: int = DIM, scale: float = 0.7) -> oracle.Weights:
    """Of the oracle, in the paper's orientation."""
    shapes = {"U": (units, units), "W": (units, dim), "b": (units,)}
    return {n: _random(*shapes[n[0]], seed=i, scale=scale) for i, n in enumerate(sorted(NAMES))}


def _filled(layer, weights: oracle.Weights):
    """The built layer with the oracle's weights; a layer's matrices stand right of its rows."""
    layer.set_weights([weights[_short(w)].T for w in layer.weights])
    return layer


def _rnn(weights: oracle.Weights | None = None, dtype: str = "float64", **more) -> ChaosFreeRNN:
    weights = weights or _weights()
    units, dim = weights["W_z"].shape
    layer = ChaosFreeRNN(units, dtype=dtype, **more)
    layer(tf.zeros([1, 2, dim], dtype))
    return _filled(layer, weights)


def _cell(weights: oracle.Weights | None = None, dtype: str = "float64") -> ChaosFreeCell:
    weights = weights or _weights()
    units, dim = weights["W_z"].shape
    cell = ChaosFreeCell(units, dtype=dtype)
    cell(tf.zeros([1, dim], dtype), [tf.zeros([1, units], dtype)])
    return _filled(cell, weights)


# Invariant 11


def test_invariant_11_the_oracle_computes_the_example():
    found = oracle.chaos_free_states(EXAMPLE, STEPS)
    np.testing.assert_allclose(found[0], STATES, atol=5e-7)


@pytest.mark.parametrize(("dtype", "atol"), [("float64", 5e-7), ("float32", 1e-6)])
def test_invariant_11_the_layer_computes_the_example(dtype, atol):
    found = _rnn(EXAMPLE, dtype)(tf.constant(STEPS, dtype))
    assert found.dtype == dtype
    np.testing.assert_allclose(found[0], STATES, atol=atol)


def test_invariant_11_the_cell_computes_the_example():
    cell, s = _cell(EXAMPLE), tf.zeros([1, 2], tf.float64)
    for u, expected in zip(STEPS[0], STATES[1:]):
        output, states = cell(tf.constant(u[None]), [s])
        s = states[0]
        np.testing.assert_array_equal(output, s)
        np.testing.assert_allclose(s[0], expected, atol=5e-7)


@pytest.mark.parametrize("scale", [0.5, 3.0])
def test_invariant_11_without_input_the_state_decays(scale):
    cell = _cell(_weights(scale=scale))
    s = tf.constant(_random(200, UNITS, seed=9, scale=2.0))
    nothing = tf.zeros([200, DIM], tf.float64)
    for _ in range(5):
        _, [after] = cell(nothing, [s])
        assert (np.abs(after) <= np.abs(np.tanh(s)) + 1e-14).all()  # Two tanh differ so much.
        assert (np.abs(after) < np.abs(s)).all()
        s = after


def test_invariant_11_what_the_candidate_does_not_see_lets_the_state_decay_too():
    """W_a u = 0 with u that is not 0: the gates still move, the state still shrinks."""
    weights = _weights()
    weights["W_a"][:, 0] = 0
    cell = _cell(weights)
    u = np.zeros((50, DIM))
    u[:, 0] = _random(50, seed=4, scale=3.0)
    s = _random(50, UNITS, seed=5)
    _, [after] = cell(tf.constant(u), [tf.constant(s)])
    assert (np.abs(after) <= np.abs(np.tanh(s)) + 1e-14).all()


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_invariant_11_states_stay_below_two_from_the_first_step_on(dtype):
    layer = _rnn(_weights(scale=5.0), dtype)
    inputs = _random(50, 40, DIM, seed=1, scale=20.0)
    start = _random(50, UNITS, seed=2, scale=100.0)
    states = _array(layer(tf.constant(inputs, dtype), initial_state=tf.constant(start, dtype)))
    assert np.isfinite(states).all()
    assert (np.abs(states[:, 1:]) <= 2).all()  # 2 itself only by rounding.
    assert np.abs(states[:, 1:]).max() > 1


# Against the oracle


@pytest.mark.parametrize(("dtype", "atol"), [("float64", 1e-12), ("float32", 1e-5)])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("started", [False, True])
def test_states_are_those_of_the_oracle(dtype, atol, masked, started):
    inputs = _random(BATCH, TIME, DIM)
    mask = np.random.default_rng(3).random((BATCH, TIME)) < 0.6 if masked else None
    start = _random(BATCH, UNITS, seed=8) if started else None
    found = _rnn(dtype=dtype)(
        tf.constant(inputs, dtype),
        mask=None if mask is None else tf.constant(mask),
        initial_state=None if start is None else tf.constant(start, dtype),
    )
    assert found.shape == (BATCH, TIME + 1, UNITS) and found.dtype == dtype
    expected = oracle.chaos_free_states(_weights(), inputs, mask, start)
    np.testing.assert_allclose(found, expected, atol=atol)


def test_weights_are_the_papers_and_no_others():
    layer = _rnn()
    assert {_short(w) for w in layer.weights} == NAMES
    assert {_short(w): tuple(w.shape) for w in layer.weights} == {
        **{f"U_{g}": (UNITS, UNITS) for g in "zi"},
        **{f"W_{g}": (DIM, UNITS) for g in "zia"},
        **{f"b_{g}": (UNITS,) for g in "zi"},
    }
    assert len(layer.trainable_variables) == 7


def test_a_keras_rnn_of_the_cell_has_the_layers_states():
    inputs = _random(BATCH, TIME, DIM)
    mask = np.array([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1], [1, 0, 1, 1, 0]], bool)
    rnn = keras.layers.RNN(
        ChaosFreeCell(UNITS, dtype="float64"), return_sequences=True, dtype="float64"
    )
    rnn(tf.constant(inputs))
    _filled(rnn, _weights())
    ours = _array(_rnn()(tf.constant(inputs)))
    np.testing.assert_allclose(rnn(tf.constant(inputs)), ours[:, 1:], atol=1e-12)
    ours = _array(_rnn()(tf.constant(inputs), mask=tf.constant(mask)))
    theirs = _array(rnn(tf.constant(inputs), mask=tf.constant(mask)))
    np.testing.assert_allclose(theirs[mask], ours[:, 1:][mask], atol=1e-12)


# States stand before their actions


def test_the_state_before_an_action_has_not_seen_it():
    layer, inputs = _rnn(), tf.constant(_random(BATCH, TIME, DIM))
    for t in range(TIME + 1):
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            state = layer(inputs)[:, t]
        gradient = tape.gradient(state, inputs)
        seen = np.zeros((BATCH, TIME)) if gradient is None else np.abs(gradient).sum(-1)
        assert (seen[:, t:] == 0).all()
        assert (seen[:, :t] > 0).all()


def test_the_first_state_is_zero_or_the_one_given():
    layer, inputs = _rnn(), tf.constant(_random(BATCH, TIME, DIM))
    np.testing.assert_array_equal(layer(inputs)[:, 0], 0)
    start = tf.constant(_random(BATCH, UNITS, seed=6))
    np.testing.assert_array_equal(layer(inputs, initial_state=start)[:, 0], start)


def test_states_can_be_taken_up_where_they_were_left():
    """What batch serving relies on: one step for each new event."""
    layer, inputs = _rnn(), tf.constant(_random(BATCH, TIME, DIM))
    whole = _array(layer(inputs))
    first = layer(inputs[:, :2])
    rest = layer(inputs[:, 2:], initial_state=first[:, -1])
    np.testing.assert_allclose(rest, whole[:, 2:], atol=1e-13)
    cell = _cell()
    output, _ = cell(inputs[:, 4], [tf.constant(whole[:, 4])])
    np.testing.assert_allclose(output, whole[:, 5], atol=1e-13)


# Invariant 12


def test_invariant_12_padded_steps_carry_the_state_unchanged():
    layer, inputs = _rnn(), _random(BATCH, TIME, DIM)
    for pattern in itertools.product([True, False], repeat=TIME):
        mask = np.tile(pattern, (BATCH, 1))
        states = _array(layer(tf.constant(inputs), mask=tf.constant(mask)))
        for t in np.flatnonzero(~mask[0]):
            np.testing.assert_array_equal(states[:, t + 1], states[:, t])
        real = (
            _array(layer(tf.constant(inputs[:, mask[0]])))
            if mask[0].any()
            else np.zeros((BATCH, 1, UNITS))
        )
        np.testing.assert_allclose(states[:, -1], real[:, -1], atol=1e-13)


@pytest.mark.parametrize("garbage", [np.inf, np.nan])
def test_invariant_12_padding_that_is_no_number_does_not_reach_the_states(garbage):
    inputs = _random(BATCH, TIME, DIM)
    mask = np.array([[0, 0, 1, 1, 1], [1, 1, 1, 0, 0], [0, 0, 0, 0, 0]], bool)
    layer = _rnn()
    zero, more = (
        layer(tf.constant(np.where(mask[..., None], inputs, value)), mask=tf.constant(mask))
        for value in (0.0, garbage)
    )
    np.testing.assert_array_equal(zero, more)


@pytest.mark.parametrize("garbage", [1.0, 1e3])
def test_invariant_12_what_padding_holds_changes_neither_states_nor_gradients(garbage):
    inputs = _random(BATCH, TIME, DIM)
    mask = np.array([[0, 0, 1, 1, 1], [1, 1, 1, 0, 0], [0, 0, 0, 0, 0]], bool)
    layer, found = _rnn(), []
    for value in (0.0, garbage):
        x = tf.constant(np.where(mask[..., None], inputs, value))
        with tf.GradientTape() as tape:
            tape.watch(x)
            states = layer(x, mask=tf.constant(mask))
            loss = tf.reduce_sum(states**2)
        found.append([states, *tape.gradient(loss, [x, *layer.trainable_variables])])
    for one, other in zip(*found):
        np.testing.assert_array_equal(one, other)
    assert (_array(found[0][1])[~mask] == 0).all()
    np.testing.assert_array_equal(found[0][0][2], 0)


@pytest.mark.parametrize("side", ["left", "right"])
def test_invariant_12_appended_padding_changes_nothing(side):
    inputs = _random(BATCH, TIME, DIM)
    more, real = np.full((BATCH, 3, DIM), 7.0), np.ones((BATCH, TIME), bool)
    parts = [(inputs, real), (more, np.zeros((BATCH, 3), bool))]
    x, mask = (np.concatenate(p, axis=1) for p in zip(*(parts if side == "right" else parts[::-1])))
    layer = _rnn()
    with tf.GradientTape(persistent=True) as tape:
        short, padded = layer(tf.constant(inputs)), layer(tf.constant(x), mask=tf.constant(mask))
        losses = [tf.reduce_sum(s[:, -1] ** 2) for s in (short, padded)]
    np.testing.assert_array_equal(short[:, -1], padded[:, -1])
    for one, other in zip(*(tape.gradient(loss, layer.trainable_variables) for loss in losses)):
        np.testing.assert_allclose(one, other, atol=1e-14)


def test_invariant_12_rows_do_not_see_each_other():
    layer, inputs = _rnn(), _random(BATCH, TIME, DIM)
    mask = np.random.default_rng(1).random((BATCH, TIME)) < 0.7
    states = _array(layer(tf.constant(inputs), mask=tf.constant(mask)))
    order = [2, 0, 1]
    moved = layer(tf.constant(inputs[order]), mask=tf.constant(mask[order]))
    np.testing.assert_allclose(moved, states[order], atol=1e-14)
    for row in range(BATCH):
        alone = layer(tf.constant(inputs[row : row + 1]), mask=tf.constant(mask[row : row + 1]))
        np.testing.assert_allclose(alone[0], states[row], atol=1e-14)


# A Keras layer


def test_gradients_are_those_of_central_differences():
    weights, inputs = _weights(), _random(2, 3, DIM)
    mask = np.array([[True, False, True], [True, True, True]])
    slope = _random(2, 4, UNITS, seed=7)
    layer, x = _rnn(weights), tf.constant(inputs)
    with tf.GradientTape() as tape:
        tape.watch(x)
        loss = tf.reduce_sum(slope * layer(x, mask=tf.constant(mask)))
    found = tape.gradient(loss, [x, *layer.trainable_variables])

    def value(w, u):
        return (slope * oracle.chaos_free_states(w, u, mask)).sum()

    rng, h = np.random.default_rng(0), 1e-6
    for gradient, name in zip(found, [None, *map(_short, layer.trainable_variables)]):
        gradient = _array(gradient).T if name else _array(gradient)
        source = weights[name] if name else inputs
        for _ in range(10):
            place = tuple(rng.integers(0, size) for size in source.shape)
            ends = []
            for sign in (h, -h):
                moved = source.copy()
                moved[place] += sign
                ends.append(
                    value({**weights, name: moved} if name else weights, inputs if name else moved)
                )
            assert gradient[place] == pytest.approx((ends[0] - ends[1]) / (2 * h), abs=1e-7)


def test_unknown_lengths_and_graphs():
    layer, inputs = _rnn(dtype="float32"), _random(BATCH, TIME, DIM).astype("float32")
    traced = tf.function(
        lambda u, m: layer(u, mask=m),
        input_signature=[tf.TensorSpec([None, None, DIM]), tf.TensorSpec([None, None], tf.bool)],
    )
    for time in (1, TIME):
        mask = np.ones((BATCH, time), bool)
        found = traced(tf.constant(inputs[:, :time]), tf.constant(mask))
        assert found.shape == (BATCH, time + 1, UNITS)
        np.testing.assert_allclose(found, layer(tf.constant(inputs[:, :time])), atol=1e-6)


def test_a_history_without_any_step_has_the_first_state():
    layer = _rnn(dtype="float32")
    found = layer(tf.zeros([BATCH, 0, DIM]))
    assert found.shape == (BATCH, 1, UNITS)
    np.testing.assert_array_equal(found, 0)


def test_the_layer_in_a_functional_model_with_a_mask():
    inputs = keras.Input([None, DIM])
    mask = keras.Input([None], dtype="bool")
    model = keras.Model([inputs, mask], ChaosFreeRNN(UNITS)(inputs, mask=mask))
    assert model.output.shape[-1] == UNITS
    x = _random(BATCH, TIME, DIM).astype("float32")
    real = np.array([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1], [0, 0, 0, 0, 0]], bool)
    found = _array(model([tf.constant(x), tf.constant(real)]))
    assert found.shape == (BATCH, TIME + 1, UNITS)
    np.testing.assert_array_equal(found[2], 0)
    np.testing.assert_array_equal(found[1, 2], 0)


def test_the_mask_of_an_embedding_is_used():
    table = keras.layers.Embedding(5, DIM, mask_zero=True)
    layer = ChaosFreeRNN(UNITS)
    ids = tf.constant([[0, 0, 3], [2, 4, 0]])
    found = _array(layer(table(ids)))
    np.testing.assert_array_equal(found[0, :3], 0)
    np.testing.assert_array_equal(found[1, 3], found[1, 2])
    assert np.abs(found[0, 3]).max() > 0
    assert keras.layers.Dense(2)(layer(table(ids))).shape == (2, 4, 2)


def test_half_precision_is_near():
    inputs = _random(BATCH, TIME, DIM, scale=0.5)
    expected = oracle.chaos_free_states(_weights(scale=0.3), inputs)
    layer = ChaosFreeRNN(UNITS, dtype="mixed_bfloat16")
    layer(tf.zeros([1, 2, DIM]))
    _filled(layer, _weights(scale=0.3))
    found = layer(tf.constant(inputs, tf.float32))
    assert found.dtype == tf.bfloat16
    np.testing.assert_allclose(_array(tf.cast(found, tf.float32)), expected, atol=2e-2)


@pytest.mark.parametrize("kind", [ChaosFreeCell, ChaosFreeRNN])
def test_configurations_come_back(kind):
    layer = kind(
        UNITS,
        kernel_initializer=keras.initializers.RandomNormal(0, 0.2),
        recurrent_initializer="zeros",
        bias_initializer="ones",
        name="state",
    )
    config = layer.get_config()
    again = kind.from_config(config)
    assert again.get_config() == config
    arguments = (
        (tf.zeros([1, DIM]), [tf.zeros([1, UNITS])])
        if kind is ChaosFreeCell
        else (tf.zeros([1, 2, DIM]),)
    )
    again(*arguments)
    values = {_short(w): _array(w) for w in again.weights}
    for gate in "zi":
        np.testing.assert_array_equal(values[f"U_{gate}"], 0)
        np.testing.assert_array_equal(values[f"b_{gate}"], 1)
    assert 0 < np.abs(values["W_a"]).max() < 2


@pytest.mark.parametrize("kind", [ChaosFreeCell, ChaosFreeRNN])
@pytest.mark.parametrize("units", [0, -3])
def test_no_units_are_refused(kind, units):
    with pytest.raises(ConfigError, match="units"):
        kind(units)
