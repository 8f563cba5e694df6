"""Section (e) of the DCN-V2 specification: every numbered invariant and worked example."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.oracles import cross as oracle
from tfrz.errors import ConfigError
from tfrz.layers import Cross, LowRankCross, MixtureOfLowRankCross

X0 = np.array([[1.0, -2.0, 0.5]])
X1 = np.array([[1.65, 0.2, 0.6]])
B = np.array([0.1, -0.2, 0.05])
seeds = st.integers(0, 2**16)


def _set(layer, x0, **weights):
    """Builds a float64 layer and gives it weights by name."""
    layer(tf.constant(x0), tf.constant(x0))
    names = [getattr(w, "path", w.name).split(":")[0].split("/")[-1] for w in layer.weights]
    assert set(names) == set(weights)
    layer.set_weights([weights[name] for name in names])
    return layer


def _full(W, b, **options):
    return _set(Cross(dtype="float64", **options), np.zeros((1, len(W))), W=W, b=b)


def _low_rank(U, V, b):
    layer = LowRankCross(U.shape[1], dtype="float64")
    return _set(layer, np.zeros((1, len(U))), U=U, V=V, b=b)


def _side_by_side(stacked):
    """`[K, dim, rank]` as the layer stores it."""
    return np.concatenate(list(stacked), axis=1)


def _mixture(U, V, b, C=None, A=None, **options):
    layer = MixtureOfLowRankCross(
        len(U), U.shape[2], use_inner_map=C is not None, dtype="float64", **options
    )
    weights = {"U": _side_by_side(U), "V": _side_by_side(V), "b": b}
    weights |= {} if C is None else {"C": C}
    weights |= {} if A is None else {"A": A}
    return _set(layer, np.zeros((1, U.shape[1])), **weights)


def _call(layer, x0, x):
    return np.asarray(layer(tf.constant(x0), tf.constant(x)))


def _random(seed, dim=6, rank=3, experts=2, batch=4):
    rng = np.random.default_rng(seed)
    return {
        "x0": rng.normal(size=(batch, dim)),
        "x": rng.normal(size=(batch, dim)),
        "W": rng.normal(size=(dim, dim)),
        "U": rng.normal(size=(experts, dim, rank)),
        "V": rng.normal(size=(experts, dim, rank)),
        "C": rng.normal(size=(experts, rank, rank)),
        "A": rng.normal(size=(experts, dim)),
        "b": rng.normal(size=dim),
    }


@settings(max_examples=10, deadline=None)
@given(seeds)
def test_invariant_01_a_product_of_factors_is_the_full_layer(seed):
    r = _random(seed)
    U, V = r["U"][0], r["V"][0]
    layers = (_full(U @ V.T, r["b"]), _low_rank(U, V, r["b"]))
    outputs, gradients = [], []
    for layer in layers:
        x0, x = tf.constant(r["x0"]), tf.constant(r["x"])
        with tf.GradientTape() as tape:
            tape.watch([x0, x])
            y = layer(x0, x)
        outputs.append(y)
        gradients.append(tape.gradient(y, [x0, x]))
    np.testing.assert_allclose(outputs[0], outputs[1], atol=1e-12, rtol=1e-12)
    for a, b in zip(*gradients, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-12, rtol=1e-12)


def test_invariant_02_full_rank_factors_reproduce_any_matrix():
    r = _random(0)
    full = _call(_full(r["W"], r["b"]), r["x0"], r["x"])
    factored = _call(_low_rank(r["W"], np.eye(6), r["b"]), r["x0"], r["x"])
    np.testing.assert_allclose(full, factored, atol=1e-12)


@pytest.mark.parametrize("gate", ["softmax", "constant"])
def test_invariant_03_one_expert_is_the_low_rank_layer(gate):
    r = _random(1, experts=1)
    A = r["A"] if gate == "softmax" else None
    mixture = _mixture(r["U"], r["V"], r["b"], A=A, gate=gate)
    plain = _low_rank(r["U"][0], r["V"][0], r["b"])
    np.testing.assert_allclose(
        _call(mixture, r["x0"], r["x"]), _call(plain, r["x0"], r["x"]), atol=1e-12
    )


def test_invariant_04_constant_gates_add_the_bias_once_per_expert():
    r = _random(2, experts=3)
    mixture = _mixture(r["U"], r["V"], r["b"], gate="constant")
    merged = _low_rank(_side_by_side(r["U"]), _side_by_side(r["V"]), 3 * r["b"])
    np.testing.assert_allclose(
        _call(mixture, r["x0"], r["x"]), _call(merged, r["x0"], r["x"]), atol=1e-12
    )


@settings(max_examples=10, deadline=None)
@given(seeds)
def test_invariant_05_identical_experts_make_softmax_gates_irrelevant(seed):
    r = _random(seed)
    U, V = np.stack([r["U"][0]] * 3), np.stack([r["V"][0]] * 3)
    A = np.random.default_rng(seed).normal(size=(3, 6)) * 5
    mixture = _mixture(U, V, r["b"], A=A, gate="softmax")
    np.testing.assert_allclose(
        _call(mixture, r["x0"], r["x"]),
        _call(_low_rank(U[0], V[0], r["b"]), r["x0"], r["x"]),
        atol=1e-11,
    )


def test_invariant_06_an_identity_inside_is_equation_3():
    r = _random(3)
    identity = np.stack([np.eye(3)] * 2)
    inner = _mixture(r["U"], r["V"], r["b"], C=identity, A=r["A"], expert_activation="linear")
    plain = _mixture(r["U"], r["V"], r["b"], A=r["A"])
    np.testing.assert_allclose(
        _call(inner, r["x0"], r["x"]), _call(plain, r["x0"], r["x"]), atol=1e-12
    )


def test_invariant_07_zeros():
    r = _random(4)
    zero = np.zeros_like(r["x0"])
    for layer in (
        _full(r["W"], r["b"]),
        _low_rank(r["U"][0], r["V"][0], r["b"]),
        _mixture(r["U"], r["V"], r["b"], C=r["C"], A=r["A"], expert_activation="tanh"),
    ):
        np.testing.assert_array_equal(_call(layer, zero, r["x"]), r["x"])
    nothing = _full(np.zeros((6, 6)), np.zeros(6))
    np.testing.assert_array_equal(_call(nothing, r["x0"], r["x"]), r["x"])
    minus = _full(np.zeros((6, 6)), -np.ones(6))
    np.testing.assert_array_equal(_call(minus, r["x0"], r["x0"]), np.zeros_like(r["x0"]))


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_invariant_08_a_stack_is_a_polynomial_of_degree_layers_plus_one(layers):
    rng = np.random.default_rng(5)
    x0 = rng.normal(size=(1, 4))
    stack = [_full(rng.normal(size=(4, 4)), rng.normal(size=4)) for _ in range(layers)]

    def total(t: float) -> float:
        x = tf.constant(t * x0)
        base = x
        for layer in stack:
            x = layer(base, x)
        return float(tf.reduce_sum(x))

    values = np.array([total(t) for t in range(layers + 4)])
    scale = np.abs(values).max()
    assert np.abs(np.diff(values, layers + 2)).max() < 1e-11 * scale
    assert np.abs(np.diff(values, layers + 1)).max() > 1e-6 * scale


def test_invariant_09_a_permutation_goes_through():
    r = _random(6)
    P = np.eye(6)[np.random.default_rng(6).permutation(6)]
    plain = _call(_full(r["W"], r["b"]), r["x0"], r["x"])
    moved = _call(_full(P @ r["W"] @ P.T, P @ r["b"]), r["x0"] @ P.T, r["x"] @ P.T)
    np.testing.assert_allclose(moved, plain @ P.T, atol=1e-12)


def test_invariant_10_dcn_v1_only_without_a_bias():
    r = _random(7)
    w = r["W"][0]
    rows = np.ones((6, 1)) @ w[None]

    def first_version(b):
        return r["x0"] * (r["x"] @ w)[:, None] + b + r["x"]

    zero = np.zeros(6)
    np.testing.assert_allclose(
        _call(_full(rows, zero), r["x0"], r["x"]), first_version(zero), atol=1e-12
    )
    assert np.abs(_call(_full(rows, r["b"]), r["x0"], r["x"]) - first_version(r["b"])).max() > 0.1


def test_invariant_11_factorization_machines_are_one_layer():
    rng = np.random.default_rng(8)
    fields, width = 3, 2
    x, beta = rng.normal(size=6), rng.normal(size=6)
    pair = np.triu(rng.normal(size=(fields, fields)), 1)
    W = np.kron(pair, np.eye(width))
    layer = _full(W, beta, use_residual=False)
    value = _call(layer, x[None], x[None]).sum()
    parts = x.reshape(fields, width)
    expected = x @ beta + sum(
        pair[i, j] * (parts[i] @ parts[j]) for i in range(fields) for j in range(i + 1, fields)
    )
    assert value == pytest.approx(expected, abs=1e-12)


def test_invariant_12_factors_may_change_their_basis():
    r = _random(9)
    U, V = r["U"][0], r["V"][0]
    change = np.random.default_rng(9).normal(size=(3, 3))
    other = _low_rank(U @ change, V @ np.linalg.inv(change).T, r["b"])
    np.testing.assert_allclose(
        _call(other, r["x0"], r["x"]), _call(_low_rank(U, V, r["b"]), r["x0"], r["x"]), atol=1e-10
    )


@pytest.mark.parametrize(
    ("layer", "count"),
    [
        (Cross(), 20 * 20 + 20),
        (LowRankCross(3), 2 * 20 * 3 + 20),
        (MixtureOfLowRankCross(4, 3, use_inner_map=False), 2 * 20 * 3 * 4 + 20 + 4 * 20),
        (MixtureOfLowRankCross(4, 3), 2 * 20 * 3 * 4 + 20 + 4 * 20 + 4 * 9),
        (MixtureOfLowRankCross(4, 3, gate="constant"), 2 * 20 * 3 * 4 + 20 + 4 * 9),
    ],
    ids=lambda v: getattr(v, "name", str(v)),
)
def test_invariant_13_parameter_counts_of_the_layers(layer, count):
    layer(tf.zeros([1, 20]))
    assert sum(int(np.prod(w.shape)) for w in layer.weights) == count


def test_worked_example_a_full_rank_with_gradients():
    W0 = np.array([[0.2, -0.1, 0.3], [0, 0.4, -0.2], [0.5, 0.1, -0.3]])
    W1 = np.array([[-0.3, 0.2, 0.1], [0.25, -0.15, 0.05], [0, 0.6, -0.4]])
    first, second = _full(W0, B), _full(W1, np.array([0, 0.3, -0.1]))
    x0 = tf.constant(X0)
    with tf.GradientTape() as tape:
        tape.watch(x0)
        x1 = first(x0)
        x2 = second(x0, x1)
        s = tf.reduce_sum(x2)
    np.testing.assert_allclose(x1, [[1.65, 0.2, 0.6]], atol=1e-12)
    np.testing.assert_allclose(x2, [[1.255, -1.225, 0.49]], atol=1e-12)
    assert float(s) == pytest.approx(0.52, abs=1e-12)
    wanted = {
        "W1": [[1.65, 0.2, 0.6], [-3.3, -0.4, -1.2], [0.825, 0.1, 0.3]],
        "b1": [1, -2, 0.5],
        "W0": [[0.2, -0.4, 0.1], [-3.6, 7.2, -1.8], [0.4, -0.8, 0.2]],
        "b0": [0.2, -3.6, 0.4],
        "x0": [[0.175, -0.8875, 1.4]],
    }
    variables = [
        *second.trainable_variables,
        *first.trainable_variables,
    ]
    gradients = tape.gradient(s, [*variables, x0])
    for gradient, value in zip(gradients, wanted.values(), strict=True):
        np.testing.assert_allclose(np.asarray(gradient), value, atol=1e-12)


def test_worked_example_b_low_rank_with_gradients():
    U, V = np.array([[1.0, 0], [0, 1], [1, -1]]), np.array([[1.0, 2], [0, 1], [-1, 0]])
    layer = _low_rank(U, V, B)
    x0, x = tf.constant(X0), tf.constant(X1)
    with tf.GradientTape() as tape:
        tape.watch([x0, x])
        y = layer(x0, x)
        s = tf.reduce_sum(y)
    np.testing.assert_allclose(y, [[2.8, -6.4, -0.6]], atol=1e-12)
    gradients = tape.gradient(s, [layer.U, layer.V, x, x0])
    wanted = (
        [[1.05, 3.5], [-2.1, -7], [0.525, 1.75]],
        [[2.475, -4.125], [0.3, -0.5], [0.9, -1.5]],
        [[-2.5, -1.5, -0.5]],
        [[1.15, 3.3, -2.4]],
    )
    for gradient, value in zip(gradients, wanted, strict=True):
        np.testing.assert_allclose(np.asarray(gradient), value, atol=1e-12)


_C_U = np.array([[[0.5], [-1], [0.25]], [[0.1], [0.3], [-0.6]]])
_C_V = np.array([[[0.2], [0.4], [-0.5]], [[-0.3], [0.1], [0.7]]])
_C_C = np.array([[[1.5]], [[-0.8]]])
_C_A = np.array([[0.3, -0.1, 0.2], [-0.2, 0.4, 0.1]])


@pytest.mark.parametrize(
    ("equation", "gate", "wanted"),
    [
        (4, "softmax", [1.8073034374415866, 0.8154537872474353, 0.6348538715417502]),
        (4, "sigmoid", [1.814190852817712, 0.8368800083741428, 0.6345856072629986]),
        (3, "softmax", [1.786048781961956, 0.76142350788241, 0.6396114190017292]),
        (3, "constant", [1.8995, 1.253, 0.68025]),
    ],
)
def test_worked_example_c_mixtures(equation, gate, wanted):
    layer = _mixture(
        _C_U,
        _C_V,
        B,
        C=_C_C if equation == 4 else None,
        A=None if gate == "constant" else _C_A,
        gate=gate,
        expert_activation="tanh" if equation == 4 else None,
    )
    np.testing.assert_allclose(_call(layer, X0, X1), [wanted], atol=1e-14)


def test_worked_example_c_gates():
    layer = _mixture(_C_U, _C_V, B, A=_C_A)
    np.testing.assert_allclose(
        layer.gates(tf.constant(X1)), [[0.6867567266439017, 0.3132432733560983]], atol=1e-15
    )


def test_small_vectors_that_other_libraries_test_too():
    x0, x = np.array([[0.1, 0.2, 0.3]]), np.array([[0.4, 0.5, 0.6]])
    ones, zero = np.ones((3, 3)), np.zeros(3)
    np.testing.assert_allclose(_call(_full(ones, zero), x0, x), [[0.55, 0.8, 1.05]])
    np.testing.assert_allclose(
        _call(_low_rank(np.ones((3, 1)), np.ones((3, 1)), zero), x0, x), [[0.55, 0.8, 1.05]]
    )
    np.testing.assert_allclose(_call(_full(ones, np.ones(3)), x0, x), [[0.65, 1.0, 1.35]])
    alone = _full(ones, zero)(tf.constant(x0))
    np.testing.assert_allclose(alone, [[0.16, 0.32, 0.48]])


@settings(max_examples=15, deadline=None)
@given(
    seeds,
    st.sampled_from(["softmax", "sigmoid", "constant"]),
    st.booleans(),
    st.sampled_from(["linear", "tanh", "relu"]),
)
def test_the_fused_mixture_equals_a_loop_over_experts(seed, gate, inner, activation):
    r = _random(seed, experts=3)
    options = {
        "C": r["C"] if inner else None,
        "A": None if gate == "constant" else r["A"],
        "gate": gate,
    }
    layer = _mixture(r["U"], r["V"], r["b"], expert_activation=activation, **options)
    expected = oracle.mixture(
        r["x0"], r["x"], r["U"], r["V"], r["b"], activation=activation, **options
    )
    np.testing.assert_allclose(_call(layer, r["x0"], r["x"]), expected, atol=1e-11)


def test_any_callable_may_stand_inside_the_subspace():
    def hard_tanh(z):
        return tf.clip_by_value(z, -1.0, 1.0)

    r = _random(10)
    layer = _mixture(r["U"], r["V"], r["b"], C=r["C"], A=r["A"], expert_activation=hard_tanh)
    expected = oracle.mixture(
        r["x0"], r["x"], r["U"], r["V"], r["b"], C=r["C"], A=r["A"], activation="hard_tanh"
    )
    np.testing.assert_allclose(_call(layer, r["x0"], r["x"]), expected, atol=1e-12)


def test_no_intermediate_has_a_row_for_each_expert_and_feature():
    layer = MixtureOfLowRankCross(5, 3, expert_activation="tanh")
    layer(tf.zeros([2, 7]))
    function = tf.function(layer).get_concrete_function(tf.TensorSpec([11, 7]))
    shapes = [
        tuple(o.shape)
        for op in function.graph.get_operations()
        for o in op.outputs
        if o.shape.rank is not None
    ]
    assert (11, 15) in shapes
    assert not [s for s in shapes if len(s) == 3 and s[0] == 11 and s[-1] == 7]


@pytest.mark.parametrize("initializer", ["he_normal", "glorot_uniform"])
def test_every_expert_starts_with_the_fans_of_one_expert(initializer):
    keras.utils.set_random_seed(0)
    dim, rank, experts = 400, 50, 4
    layer = MixtureOfLowRankCross(experts, rank, kernel_initializer=initializer)
    layer(tf.zeros([1, dim]))
    into, out = (2 / dim, 2 / rank) if initializer == "he_normal" else (2 / (dim + rank),) * 2
    for k in range(experts):
        part = slice(k * rank, (k + 1) * rank)
        assert np.asarray(layer.V)[:, part].var() == pytest.approx(into, rel=0.05)
        assert np.asarray(layer.U)[:, part].var() == pytest.approx(out, rel=0.05)
        assert np.asarray(layer.C)[k].var() == pytest.approx(2 / rank, rel=0.15)


def test_experts_of_a_seeded_initialiser_differ():
    initializer = keras.initializers.HeNormal(seed=3)
    layer = MixtureOfLowRankCross(2, 4, kernel_initializer=initializer)
    layer(tf.zeros([1, 8]))
    V, U = np.asarray(layer.V), np.asarray(layer.U)
    assert not np.allclose(V[:, :4], V[:, 4:])
    assert not np.allclose(U, V)


def test_frobenius_penalties():
    r = _random(11)
    U, V = r["U"], r["V"]
    cases = [
        (_full(r["W"], r["b"]), (r["W"] ** 2).sum()),
        (_low_rank(U[0], V[0], r["b"]), ((U[0] @ V[0].T) ** 2).sum()),
        (
            _mixture(U, V, r["b"], A=r["A"]),
            sum(((u @ v.T) ** 2).sum() for u, v in zip(U, V, strict=True)),
        ),
    ]
    for layer, expected in cases:
        assert float(layer.squared_norm()) == pytest.approx(expected, rel=1e-12)
        layer.frobenius_decay = 0.1
        layer(tf.constant(r["x0"]))
        assert float(sum(layer.losses)) == pytest.approx(0.1 * expected, rel=1e-6)


@pytest.mark.parametrize(
    "make",
    [
        lambda: LowRankCross(0),
        lambda: MixtureOfLowRankCross(0, 2),
        lambda: MixtureOfLowRankCross(2, 0),
        lambda: MixtureOfLowRankCross(2, 2, gate="soft"),
        lambda: Cross(frobenius_decay=-1.0),
    ],
)
def test_bad_arguments_are_refused(make):
    with pytest.raises(ConfigError):
        make()


def test_inputs_of_different_width_are_refused():
    with pytest.raises(ValueError, match="must be equal"):
        Cross().build((None, 3), (None, 4))
