"""Towers of several interests: the specification's invariants 1 to 5 and its worked examples."""

from __future__ import annotations

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.oracles import interests as oracle
from tfrz.errors import ConfigError
from tfrz.layers.interests import (
    DeepInterestEncoder,
    MultiInterestAttention,
    ShallowInterestEncoder,
    interest_scores,
)
from tfrz.losses.retrieval import candidate_softmax_loss

BATCH, TIME, DIM, HEADS, ITEMS = 4, 6, 4, 3, 9
DEEP = {"units": 8, "num_layers": 2, "num_heads": 2}


def _random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def _array(tensor) -> np.ndarray:
    return np.asarray(tf.convert_to_tensor(tensor))


def _short(weight) -> str:
    return getattr(weight, "path", weight.name).split(":")[0].split("/")[-1]


def _weights(layer) -> dict[str, np.ndarray]:
    return {_short(w): _array(w).astype("float64") for w in layer.weights}


def _filled(layer, dim: int = DIM, seed: int = 5, **values):
    """The layer built for vectors of `dim`, with weights of moderate size or those given."""
    layer(tf.zeros([1, 2, dim]))
    rng = np.random.default_rng(seed)
    layer.set_weights(
        [
            np.asarray(values.get(_short(w), rng.normal(0, 0.6, w.shape)), "float32")
            for w in layer.weights
        ]
    )
    return layer


ENCODERS = {
    "attention": lambda: MultiInterestAttention(HEADS),
    "shallow": lambda: ShallowInterestEncoder(HEADS),
    "deep": lambda: DeepInterestEncoder(HEADS, **DEEP),
    "deep with positions": lambda: DeepInterestEncoder(HEADS, positions=True, **DEEP),
}
ORACLES = {
    "attention": oracle.attention,
    "shallow": oracle.shallow,
    "deep": lambda w, x, m=None: oracle.deep(w, x, m, 2, 2),
    "deep with positions": lambda w, x, m=None: oracle.deep(w, x, m, 2, 2, True),
}
encoders = pytest.mark.parametrize("name", ENCODERS)


def _context(layer, x, mask=None) -> np.ndarray:
    if isinstance(layer, MultiInterestAttention):
        return _array(x)
    return _array(layer.contextualized(tf.constant(x), mask))


def test_worked_example_2_scores():
    users = tf.constant([[[1.0, 0.0], [0.0, 1.0]], [[0.5, 0.5], [-1.0, 1.0]]])
    items = tf.constant([[2.0, 0.0], [0.0, 3.0]])
    np.testing.assert_allclose(interest_scores(users, items), [[2, 3], [1, 3]], atol=1e-6)
    np.testing.assert_array_equal(oracle.scores(users.numpy(), items.numpy()), [[2, 3], [1, 3]])


def test_worked_example_2_query_attention():
    layer = _filled(MultiInterestAttention(2), 2, q=np.eye(2), c=1.0)
    y = np.array([[[1, 0], [0, 1], [1, 1]]], "float32")
    mask = np.array([[True, True, False]])
    expected = [[[0.731059, 0.268941], [0.268941, 0.731059]]]
    np.testing.assert_allclose(layer(tf.constant(y), mask=tf.constant(mask)), expected, atol=1e-6)
    np.testing.assert_allclose(oracle.attention(_weights(layer), y, mask), expected, atol=1e-6)


def test_scores_are_those_of_the_oracle():
    users, items = _random(BATCH, HEADS, DIM), _random(ITEMS, DIM, seed=1)
    found = interest_scores(tf.constant(users), tf.constant(items))
    np.testing.assert_allclose(found, oracle.scores(users, items), atol=1e-5)


def test_invariant_1_one_head_is_the_ordinary_two_tower_with_its_loss_and_gradients():
    users, items = tf.constant(_random(BATCH, DIM)), tf.constant(_random(BATCH, DIM, seed=1))
    ids = tf.constant([3, 1, 4, 2])
    log_q = tf.math.log(tf.constant([0.4, 0.3, 0.2, 0.1]))

    def several():
        return interest_scores(users[:, None], items)

    def ordinary():
        return tf.matmul(users, items, transpose_b=True)

    found = []
    for scores in (several, ordinary):
        with tf.GradientTape() as tape:
            tape.watch([users, items])
            s = scores()
            if scores is several:
                loss = tf.reduce_sum(candidate_softmax_loss(s, ids, ids, log_q))
            else:
                loss = tf.reduce_sum(
                    tf.nn.sparse_softmax_cross_entropy_with_logits(tf.range(BATCH), s - log_q)
                )
        found.append([s, loss, *tape.gradient(loss, [users, items])])
    for ours, theirs in zip(*found, strict=True):
        np.testing.assert_allclose(_array(ours), _array(theirs), rtol=1e-5, atol=1e-6)


def test_invariant_2_equal_heads_score_like_one_head():
    users, items = _random(BATCH, 1, DIM), tf.constant(_random(ITEMS, DIM, seed=1))
    one = interest_scores(tf.constant(users), items)
    three = interest_scores(tf.constant(np.repeat(users, 3, axis=1)), items)
    np.testing.assert_allclose(three, one, atol=1e-6)


@encoders
def test_invariant_2_equal_queries_give_equal_interests(name):
    layer = ENCODERS[name]()
    width = DEEP["units"] if "deep" in name else DIM
    _filled(layer, q=np.repeat(_random(1, width), HEADS, axis=0))
    found = _array(layer(tf.constant(_random(BATCH, TIME, DIM, seed=2))))
    np.testing.assert_allclose(found, np.repeat(found[:, :1], HEADS, axis=1), atol=1e-6)


@encoders
def test_invariant_2_permuting_heads_permutes_interests_and_changes_no_score(name):
    layer = _filled(ENCODERS[name]())
    x = tf.constant(_random(BATCH, TIME, DIM, seed=2))
    before = _array(layer(x))
    order, q = [2, 0, 1], _weights(layer)["q"]
    layer.set_weights(
        [q[order] if _short(w) == "q" else _array(w) for w in layer.weights],
    )
    after = _array(layer(x))
    np.testing.assert_allclose(after, before[:, order], atol=1e-6)
    items = tf.constant(_random(ITEMS, before.shape[-1], seed=3))
    np.testing.assert_allclose(
        interest_scores(tf.constant(after), items),
        interest_scores(tf.constant(before), items),
        atol=1e-5,
    )


def test_invariant_2_another_head_never_lowers_a_score():
    users, items = _random(20, 5, DIM), tf.constant(_random(ITEMS, DIM, seed=1))
    found = [_array(interest_scores(tf.constant(users[:, :heads]), items)) for heads in range(1, 6)]
    for fewer, more in itertools.pairwise(found):
        assert (more >= fewer - 1e-6).all()
    assert (found[-1] > found[0] + 1e-3).any()


@pytest.mark.parametrize("compiled", [False, True])
def test_invariant_3_the_gradient_of_a_score_flows_into_its_best_head_alone(compiled):
    users, items = _random(BATCH, HEADS, DIM), _random(ITEMS, DIM, seed=1)
    upstream = _random(BATCH, ITEMS, seed=2)

    def gradients(u, v):
        with tf.GradientTape() as tape:
            tape.watch([u, v])
            total = tf.reduce_sum(interest_scores(u, v) * upstream)
        return tape.gradient(total, [u, v])

    best = np.einsum("bhd,jd->bhj", users, items).argmax(1)
    du, dv = np.zeros(users.shape), np.zeros(items.shape)
    for b in range(BATCH):
        for j in range(ITEMS):
            du[b, best[b, j]] += upstream[b, j] * items[j]
            dv[j] += upstream[b, j] * users[b, best[b, j]]
    run = tf.function(gradients) if compiled else gradients
    for found, expected in zip(run(tf.constant(users), tf.constant(items)), (du, dv), strict=True):
        np.testing.assert_allclose(_array(found), expected, atol=1e-5)


def test_invariant_3_of_heads_that_tie_the_first_has_the_whole_gradient():
    users = tf.constant([[[-3.0, 0.0], [1.0, 5.0], [1.0, -5.0], [1.0, 5.0]]])
    items = tf.constant([[2.0, 0.0]])
    with tf.GradientTape() as tape:
        tape.watch([users, items])
        score = interest_scores(users, items)
    du, dv = tape.gradient(score, [users, items])
    np.testing.assert_array_equal(_array(du), [[[0, 0], [2, 0], [0, 0], [0, 0]]])
    np.testing.assert_array_equal(_array(dv), [[1, 5]])


@encoders
@pytest.mark.parametrize("masked", [False, True])
def test_invariant_4_interests_lie_in_the_convex_hull_of_the_contextualized_events(name, masked):
    layer = _filled(ENCODERS[name]())
    x = _random(BATCH, TIME, DIM, seed=2)
    mask = np.ones([BATCH, TIME], bool)
    if masked:
        mask[:, :2] = False
        x[:, :2] = 50.0
    given = tf.constant(mask) if masked else None
    interests, y = _array(layer(tf.constant(x), mask=given)), _context(layer, x, given)
    directions = _random(2000, y.shape[-1], seed=3)
    along = np.einsum("btd,kd->bkt", y, directions)
    low = np.where(mask[:, None], along, np.inf).min(-1)[..., None]
    high = np.where(mask[:, None], along, -np.inf).max(-1)[..., None]
    found = np.einsum("bhd,kd->bkh", interests, directions)
    assert (found > low - 1e-4).all() and (found < high + 1e-4).all()


@pytest.mark.parametrize("masked", [False, True])
def test_invariant_4_shallow_contexts_lie_in_the_convex_hull_of_the_events(masked):
    layer = _filled(ShallowInterestEncoder(HEADS), c=1.5)
    x = _random(BATCH, TIME, DIM, seed=2)
    given = tf.constant(np.arange(TIME) > 1)[None] if masked else None
    given = tf.repeat(given, BATCH, 0) if masked else None
    y = _context(layer, x, given)
    real = slice(2, None) if masked else slice(None)
    directions = _random(500, DIM, seed=3)
    along = x[:, real] @ directions.T
    found = y[:, real] @ directions.T
    assert (found >= along.min(1, keepdims=True) - 1e-4).all()
    assert (found <= along.max(1, keepdims=True) + 1e-4).all()


@encoders
@pytest.mark.parametrize("extra", [1, 5])
def test_invariant_5_padding_before_the_history_changes_nothing(name, extra):
    layer = _filled(ENCODERS[name]())
    x = _random(BATCH, TIME, DIM, seed=2)
    padded = np.pad(x, [(0, 0), (extra, 0), (0, 0)], constant_values=9.0)
    mask = np.pad(np.ones([BATCH, TIME], bool), [(0, 0), (extra, 0)])
    found = layer(tf.constant(padded), mask=tf.constant(mask))
    np.testing.assert_allclose(found, layer(tf.constant(x)), atol=1e-5)
    contexts = _context(layer, padded, tf.constant(mask))[:, extra:]
    np.testing.assert_allclose(contexts, _context(layer, x), atol=1e-5)


@pytest.mark.parametrize("name", ["attention", "shallow", "deep"])
def test_invariant_5_without_positions_padding_may_be_anywhere(name):
    layer = _filled(ENCODERS[name]())
    x = _random(BATCH, TIME, DIM, seed=2)
    places = [0, 2, 3, 5, 7, 8]
    padded, mask = np.full([BATCH, 10, DIM], -7.0, "float32"), np.zeros([BATCH, 10], bool)
    padded[:, places], mask[:, places] = x, True
    found = layer(tf.constant(padded), mask=tf.constant(mask))
    np.testing.assert_allclose(found, layer(tf.constant(x)), atol=1e-5)


@encoders
def test_a_history_without_events_gives_zeros_and_finite_gradients(name):
    layer = _filled(ENCODERS[name]())
    x = tf.constant(_random(3, TIME, DIM, seed=2))
    mask = tf.constant(np.array([[True] * TIME, [False] * TIME, [False] * TIME]))
    with tf.GradientTape() as tape:
        tape.watch(x)
        interests = layer(x, mask=mask)
        total = tf.reduce_sum(interests**2)
    dx = _array(tape.gradient(total, x))
    assert not _array(interests)[1:].any() and _array(interests)[0].any()
    assert np.isfinite(dx).all() and not dx[1:].any()


@encoders
@pytest.mark.parametrize("masked", [False, True])
def test_the_encoders_compute_what_their_oracles_compute(name, masked):
    layer = _filled(ENCODERS[name]())
    x = _random(BATCH, TIME, DIM, seed=2)
    mask = np.random.default_rng(1).random([BATCH, TIME]) < 0.6 if masked else None
    if masked:
        mask[0], mask[1] = False, True
    found = layer(tf.constant(x), mask=tf.constant(mask) if masked else None)
    expected = ORACLES[name](_weights(layer), x, mask)
    np.testing.assert_allclose(found, expected, atol=2e-5)


@pytest.mark.parametrize(
    ("layers", "heads", "positions"), [(0, 1, False), (1, 1, True), (1, 4, False), (3, 2, True)]
)
def test_the_deep_tower_is_that_of_the_oracle_whatever_its_depth(layers, heads, positions):
    if layers == 0:
        layer = _filled(MultiInterestAttention(HEADS))
        x = _random(BATCH, TIME, DIM)
        weights = _weights(layer) | {"W": np.eye(DIM), "b": np.zeros(DIM)}
        np.testing.assert_allclose(
            layer(tf.constant(x)), oracle.deep(weights, x, None, 0), atol=1e-5
        )
        return
    layer = _filled(
        DeepInterestEncoder(2, units=8, num_layers=layers, num_heads=heads, positions=positions)
    )
    x = _random(BATCH, TIME, DIM, seed=2)
    expected = oracle.deep(_weights(layer), x, None, layers, heads, positions)
    np.testing.assert_allclose(layer(tf.constant(x)), expected, rtol=1e-4, atol=2e-5)
    context = oracle.deep_context(_weights(layer), x, None, layers, heads, positions)
    np.testing.assert_allclose(_context(layer, x), context, rtol=1e-4, atol=2e-5)


def test_the_shallow_tower_has_one_scale_for_both_of_its_attentions():
    layer = _filled(ShallowInterestEncoder(HEADS), c=0.7)
    assert sorted(_weights(layer)) == ["c", "q"]
    x = _random(BATCH, TIME, DIM, seed=2)
    context = oracle.shallow_context(_weights(layer), x)
    np.testing.assert_allclose(_context(layer, x), context, atol=1e-5)
    layer.set_weights([np.zeros([]) if _short(w) == "c" else _array(w) for w in layer.weights])
    mean = np.repeat(x.mean(1, keepdims=True), HEADS, axis=1)
    np.testing.assert_allclose(layer(tf.constant(x)), mean, atol=1e-5)


def test_the_order_of_events_matters_with_positions_alone():
    x = _random(2, TIME, DIM)
    turned = tf.constant(x[:, ::-1].copy())
    plain = _filled(DeepInterestEncoder(2, **DEEP))
    np.testing.assert_allclose(plain(turned), plain(tf.constant(x)), atol=1e-5)
    placed = _filled(DeepInterestEncoder(2, positions=True, **DEEP))
    assert np.abs(_array(placed(turned)) - _array(placed(tf.constant(x)))).max() > 1e-3


def test_any_queries_may_attend():
    layer = _filled(MultiInterestAttention(HEADS), c=1.3)
    queries, y = _random(BATCH, 5, DIM, seed=3), _random(BATCH, TIME, DIM, seed=2)
    mask = np.random.default_rng(4).random([BATCH, TIME]) < 0.7
    found = layer.attend(tf.constant(queries), tf.constant(y), tf.constant(mask))
    for row in range(BATCH):
        weights = {"q": queries[row], "c": _weights(layer)["c"]}
        expected = oracle.attention(weights, y[row : row + 1], mask[row : row + 1])
        np.testing.assert_allclose(found[row : row + 1], expected, atol=1e-5)


def test_disagreement_is_the_sum_of_cosines_with_the_norm_a_constant_to_the_gradient():
    layer = _filled(MultiInterestAttention(HEADS))
    with tf.GradientTape() as tape:
        penalty = layer.disagreement()
    index = [_short(w) for w in layer.trainable_weights].index("q")
    gradient = _array(tape.gradient(penalty, layer.trainable_weights)[index])
    q = _weights(layer)["q"]
    norms = np.linalg.norm(q, axis=1, keepdims=True)
    unit = q / norms
    cosines = unit @ unit.T
    assert _array(penalty).shape == ()
    np.testing.assert_allclose(_array(penalty), cosines.sum() - np.trace(cosines), atol=1e-5)
    np.testing.assert_allclose(gradient, 2 * (unit.sum(0) - unit) / norms, atol=1e-5)


def test_disagreement_of_one_head_is_nothing_and_of_equal_heads_the_most():
    one = _filled(MultiInterestAttention(1))
    np.testing.assert_allclose(_array(one.disagreement()), 0.0, atol=1e-6)
    equal = _filled(MultiInterestAttention(3), q=np.repeat(_random(1, DIM), 3, axis=0))
    np.testing.assert_allclose(_array(equal.disagreement()), 6.0, atol=1e-5)


def test_heads_differ_from_the_start():
    keras.utils.set_random_seed(0)
    layer = MultiInterestAttention(4)
    layer(tf.zeros([1, 2, DIM]))
    assert len(np.unique(_weights(layer)["q"].round(6), axis=0)) == 4


def test_dropout_is_on_in_training_alone():
    keras.utils.set_random_seed(0)
    layer = _filled(DeepInterestEncoder(HEADS, dropout=0.5, **DEEP))
    x = tf.constant(_random(BATCH, TIME, DIM, seed=2))
    expected = oracle.deep(_weights(layer), _array(x), None, 2, 2)
    np.testing.assert_allclose(layer(x), expected, atol=2e-5)
    assert np.abs(_array(layer(x, training=True)) - expected).max() > 1e-3


def test_all_weights_learn():
    for name, make in ENCODERS.items():
        layer = _filled(make())
        x = tf.constant(_random(BATCH, TIME, DIM, seed=2))
        goal = tf.constant(_random(*_array(layer(x)).shape, seed=3))
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(layer(x) * goal)
        for weight, gradient in zip(
            layer.trainable_weights, tape.gradient(loss, layer.trainable_weights), strict=True
        ):
            assert gradient is not None, f"{name}: {_short(weight)}"
            # A bias common to all keys moves every logit alike.
            if not _short(weight).startswith("b_K"):
                assert np.abs(_array(gradient)).max() > 1e-6, f"{name}: {_short(weight)}"


@pytest.mark.parametrize("name", ENCODERS)
def test_a_layer_of_its_config_computes_the_same(name):
    layer = _filled(ENCODERS[name]())
    copy = type(layer).from_config(layer.get_config())
    x = tf.constant(_random(BATCH, TIME, DIM, seed=2))
    copy(x)
    copy.set_weights(layer.get_weights())
    np.testing.assert_array_equal(_array(copy(x)), _array(layer(x)))
    announced = tuple(layer.compute_output_shape((BATCH, TIME, DIM)))
    assert announced == tuple(_array(layer(x)).shape)


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: MultiInterestAttention(0), "num_interests"),
        (lambda: ShallowInterestEncoder(0), "num_interests"),
        (lambda: DeepInterestEncoder(0, units=8), "num_interests"),
        (lambda: DeepInterestEncoder(2, units=0), "units"),
        (lambda: DeepInterestEncoder(2, units=8, num_layers=-1), "num_layers"),
        (lambda: DeepInterestEncoder(2, units=8, num_heads=0), "num_heads"),
        (lambda: DeepInterestEncoder(2, units=8, num_heads=3), "num_heads|units"),
        (lambda: DeepInterestEncoder(2, units=8, dropout=1.0), "dropout"),
        (lambda: DeepInterestEncoder(2, units=8, dropout=-0.1), "dropout"),
    ],
)
def test_arguments_out_of_range_name_themselves(make, word):
    with pytest.raises(ConfigError, match=word):
        make()


@encoders
def test_an_unknown_width_is_refused(name):
    with pytest.raises(ValueError):
        ENCODERS[name]().build((None, None, None))
