"""Low-rank factors: the specification's invariants by number, its worked examples, `factorize`."""

from __future__ import annotations

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.oracles import low_rank as oracle
from tfrz.errors import ConfigError
from tfrz.layers import LowRankCross, LowRankDense, singular_values
from tfrz.models.dcn_v2 import DCNv2, DCNv2Config
from tfrz.training import matrix_factors as factors_module
from tfrz.training.factorization import (
    activation_gain,
    balanced,
    bias_shift,
    break_even_rank,
    data_whitened,
    diagonal_weighted,
    factorizable_layers,
    factorize,
    frobenius_decay_gradients,
    function_aware,
    rank_for_ratio,
    refined,
    relu_error,
    relu_kernel,
    sampled,
    scheduled_ranks,
    spectral,
    weighted_cross_error,
    with_diagonal,
)

# The worked example of the specification.
W = np.array([[1.0, 0, 2, -1], [0, 1, 1, 1], [1, 1, 0, 2]])
CROSS = np.array([[2.0, 1.0], [1.0, 1.0]])
seeds = st.integers(0, 10_000)


def product(factors):
    return factors[0] @ factors[1].T


def drawn(seed, dim=6, units=9):
    return np.random.default_rng(seed).normal(size=(dim, units))


def cosines(matrix, rank):
    Q = np.linalg.svd(matrix)[0][:, :rank]
    return np.linalg.norm(Q.T @ matrix, axis=0) / np.linalg.norm(matrix, axis=0)


# The kernel (c2).


def test_kernel_values_of_the_specification():
    rho = [0.05, 0.1, 0.25, 0.3, 0.5, 0.75, 0.9]
    h = [
        0.3437078564969593,
        0.36990276590263577,
        0.4533098778445415,
        0.4827442838354876,
        0.6089977810442294,
        0.7880021075519342,
        0.9095383988446721,
    ]
    np.testing.assert_allclose(relu_kernel(np.array(rho)), h, rtol=0, atol=2e-16)
    np.testing.assert_allclose(
        relu_kernel(np.array([1.0, 0.0, -1.0])), [1, 1 / np.pi, 0], atol=1e-16
    )


@pytest.mark.parametrize("rho", [-0.999, -0.6, -0.1, 0.0, 0.2, 0.7, 0.99])
def test_kernel_is_the_expectation_it_stands_for(rho):
    assert float(relu_kernel(rho)) == pytest.approx(oracle.relu_kernel(rho), rel=1e-10)


@pytest.mark.parametrize("t", [1e-4, 1e-6, 1e-9, 1e-12])
def test_kernel_near_one_and_minus_one(t):
    """h(1 - t) = 1 - t + 2 sqrt(2) / (3 pi) t^(3/2) + ..., h(-1 + t) = the last term."""
    rho = 1.0 - t
    t = 1.0 - rho  # As it was rounded.
    last = 2 * np.sqrt(2) / (3 * np.pi) * t**1.5
    assert float(relu_kernel(-rho)) == pytest.approx(last, rel=t)
    assert float(relu_kernel(rho)) == pytest.approx(1 - t + last, rel=2e-16, abs=last * t)
    assert float(factors_module._excess(np.array(rho))) == pytest.approx(last, rel=t)


def test_kernel_joins_its_series_smoothly():
    angle = np.array([0.05 - 1e-9, 0.05 + 1e-9])
    below, above = factors_module._excess(np.cos(angle))
    assert above - below == pytest.approx(np.sin(0.05) * 0.05 * 2e-9 / np.pi, rel=1e-3)


def test_kernel_takes_cosines_beyond_one_by_rounding():
    np.testing.assert_array_equal(relu_kernel(np.array([1 + 1e-15, -1 - 1e-15])), [1, 0])


@given(st.floats(-1, 1))
def test_kernel_is_above_the_diagonal_and_increases(rho):
    assert relu_kernel(rho) >= rho
    assert 0 <= factors_module._slope(np.array(rho)) <= 1


@pytest.mark.parametrize(
    ("rho", "square"),
    [(0.05, 0.0863), (0.1, 0.0728), (0.25, 0.0413), (0.5, 0.0119), (0.75, 0.0014)],
)
def test_gap_by_cosine_of_the_specification(rho, square):
    assert (float(relu_kernel(rho)) - rho) ** 2 == pytest.approx(square, abs=5e-5)


# Section (e).


@given(seeds)
@settings(max_examples=20, deadline=None)
def test_invariant_1_full_rank_reproduces_the_matrix(seed):
    low = drawn(seed, 6, 3) @ drawn(seed + 1, 3, 9)
    sigma = np.cov(drawn(seed, 6, 40))
    for rank in (3, 6):
        for found in (
            spectral(low, rank),
            function_aware(low, rank),
            function_aware(low, rank, sigma),
            refined(low, rank, 10),
            data_whitened(low, rank, sigma),
        ):
            np.testing.assert_allclose(product(found), low, atol=1e-10)
            assert relu_error(low, product(found)) < 1e-10


@given(seeds, st.integers(1, 6))
@settings(max_examples=30, deadline=None)
def test_invariant_2_the_gap_to_spectral(seed, rank):
    matrix = drawn(seed)
    gap = relu_error(matrix, product(spectral(matrix, rank))) - relu_error(
        matrix, product(function_aware(matrix, rank))
    )
    rho = np.minimum(cosines(matrix, rank), 1)
    expected = 0.5 * np.sum(np.square(matrix).sum(axis=0) * np.square(relu_kernel(rho) - rho))
    assert gap == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert gap >= -1e-12


def test_invariant_3_scales_are_at_least_one_and_tend_to_it():
    matrix = drawn(3)
    for rank in range(1, 7):
        Y, linear = product(function_aware(matrix, rank)), product(spectral(matrix, rank))
        beta = np.linalg.norm(Y, axis=0) / np.linalg.norm(linear, axis=0)
        assert (beta >= 1 - 1e-12).all()
        np.testing.assert_allclose(beta, relu_kernel(cosines(matrix, rank)) / cosines(matrix, rank))
    near = 1 - np.array([1e-2, 1e-4, 1e-6])
    beta = relu_kernel(near) / near
    np.testing.assert_allclose(
        beta - 1, 2 * np.sqrt(2) / (3 * np.pi) * (1 - near) ** 1.5, rtol=0.02
    )


def test_invariant_4_the_basis_and_the_split_do_not_matter():
    matrix, rng = drawn(4), np.random.default_rng(0)
    Q = np.linalg.qr(rng.normal(size=(6, 2)))[0]
    turn = np.linalg.qr(rng.normal(size=(2, 2)))[0]
    first, second = (refined(matrix, 2, 0, start) for start in (Q, Q @ turn))
    np.testing.assert_allclose(product(first), product(second), atol=1e-12)
    U, V = first
    A = rng.normal(size=(2, 2))
    assert relu_error(matrix, (U @ A) @ (V @ np.linalg.inv(A).T).T) == pytest.approx(
        relu_error(matrix, U @ V.T), rel=1e-10
    )
    again = balanced(U @ A, V @ np.linalg.inv(A).T)
    np.testing.assert_allclose(product(again), U @ V.T, atol=1e-12)
    np.testing.assert_allclose(again[0].T @ again[0], again[1].T @ again[1], atol=1e-12)


@given(seeds, st.floats(1e-3, 1e3))
@settings(max_examples=20, deadline=None)
def test_invariant_5_scaling_a_column_scales_its_approximation(seed, scale):
    matrix = drawn(seed)
    Q = np.linalg.qr(drawn(seed + 1, 6, 2))[0]
    scaled = matrix.copy()
    scaled[:, 4] *= scale
    Y, after = (product(refined(m, 2, 0, Q)) for m in (matrix, scaled))
    np.testing.assert_allclose(after[:, 4], scale * Y[:, 4], rtol=1e-9, atol=1e-12)
    others = np.arange(9) != 4
    np.testing.assert_allclose(after[:, others], Y[:, others], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("rank", [1, 2])
def test_invariant_6_the_error_is_the_expectation(rank):
    for make in (spectral, function_aware):
        Y = product(make(W, rank))
        mean, error = oracle.sampled_relu_error(W, Y, 400_000, seed=rank)
        assert abs(mean - relu_error(W, Y)) < 3 * error
    opposite = -W + 0.1 * drawn(1, 3, 4)
    mean, error = oracle.sampled_relu_error(W, opposite, 400_000, seed=7)
    assert abs(mean - relu_error(W, opposite)) < 3 * error


@given(seeds)
@settings(max_examples=10, deadline=None)
def test_invariant_6_of_nothing_it_is_half_the_squared_norm(seed):
    matrix = drawn(seed)
    assert relu_error(matrix, 0 * matrix) == pytest.approx(0.5 * np.square(matrix).sum())
    assert relu_error(3 * matrix, 0 * matrix) == pytest.approx(4.5 * np.square(matrix).sum())


def test_invariant_7_batch_norm_cancels_the_scales():
    x = np.random.default_rng(0).normal(size=(500, 6))
    matrix = drawn(7)
    outputs = []
    for make in (spectral, function_aware):
        z = x @ product(make(matrix, 2))
        outputs.append((z - z.mean(axis=0)) / z.std(axis=0))
    np.testing.assert_allclose(*outputs, atol=1e-9)


def test_invariant_8_frobenius_decay():
    U = np.array([[1.0, 0], [2, -1]])
    V = np.array([[0.5, 1], [0, 2], [1, -1]])
    np.testing.assert_array_equal(U @ V.T, [[0.5, 0, 1], [0, -2, 3]])
    assert 0.5 * np.trace((U.T @ U) @ (V.T @ V)) == 7.125
    dU, dV = frobenius_decay_gradients(U, V, 1.0)
    np.testing.assert_array_equal(dU, [[1.25, -0.5], [3, -7]])
    np.testing.assert_array_equal(dV, [[0.5, 0], [-4, 2], [7, -3]])

    def penalty(u, v):
        return 0.5 * 0.3 * np.square(u @ v.T).sum()

    for found, expected in zip(
        frobenius_decay_gradients(U, V, 0.3),
        (
            oracle.central_differences(lambda u: penalty(u, V), U),
            oracle.central_differences(lambda v: penalty(U, v), V),
        ),
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-7, atol=1e-7)


def test_invariant_8_the_layer_has_these_gradients():
    layer = LowRankDense(3, rank=2, use_bias=False, frobenius_decay=0.3, dtype="float64")
    layer.build((None, 2))
    U, V = drawn(1, 2, 2), drawn(2, 3, 2)
    layer.U.assign(U)
    layer.V.assign(V)
    with tf.GradientTape() as tape:
        layer(tf.ones([1, 2], tf.float64))
        loss = tf.add_n(layer.losses)
    weights = layer.trainable_variables
    found = tape.gradient(loss, weights)
    for gradient, expected in zip(found, frobenius_decay_gradients(U, V, 0.3)):
        np.testing.assert_allclose(np.asarray(gradient), expected, rtol=1e-12)


def test_invariant_9_the_cross_error_is_the_expectation():
    delta = drawn(9, 4, 4)
    mean, error = oracle.sampled_cross_error(delta, 400_000, seed=1)
    assert abs(mean - weighted_cross_error(delta)) < 3 * error


@pytest.mark.parametrize("share", [1 / 3, 0.0])
def test_invariant_9_expectation_maximisation_never_rises(share):
    for seed in range(5):
        matrix = drawn(seed, 7, 7)
        start = product(spectral(matrix, 2))
        _, errors = factors_module._expectation_maximisation(matrix, 2, 300, share, start)
        assert len(errors) > 3
        assert (np.diff(errors) <= 0).all()


@given(seeds, st.integers(1, 6))
@settings(max_examples=20, deadline=None)
def test_invariant_10_factors_are_balanced(seed, rank):
    matrix = drawn(seed)
    values = np.linalg.svd(matrix, compute_uv=False)[:rank]
    U, V = spectral(matrix, rank)
    np.testing.assert_allclose(U.T @ U, np.diag(values), atol=1e-10)
    np.testing.assert_allclose(V.T @ V, np.diag(values), atol=1e-10)
    sigma = np.cov(drawn(seed, 6, 40))
    for U, V in (
        function_aware(matrix, rank),
        refined(matrix, rank, 5),
        data_whitened(matrix, rank, sigma),
    ):
        np.testing.assert_allclose(U.T @ U, V.T @ V, atol=1e-9)
        np.testing.assert_allclose(U.T @ U, np.diag(np.diag(U.T @ U)), atol=1e-9)


# The worked example.


def test_worked_example():
    np.testing.assert_allclose(
        np.linalg.svd(W, compute_uv=False),
        [2.813986957925218, 2.509913166430665, 0.884202068310622],
        rtol=1e-14,
    )
    expected = {
        1: (3.351656616189283, 3.115490250424997, 3.064820190490707, 1e-9),
        2: (0.354245609925032, 0.353847616173315, 0.352763888397, 1e-12),
    }
    for rank, (linear, closed, best, tolerance) in expected.items():
        assert relu_error(W, product(spectral(W, rank))) == pytest.approx(linear, rel=1e-13)
        assert relu_error(W, product(function_aware(W, rank))) == pytest.approx(closed, rel=1e-12)
        rng = np.random.default_rng(0)
        found = min(
            relu_error(W, product(refined(W, rank, 500, rng.normal(size=(3, rank)))))
            for _ in range(20)
        )
        assert found == pytest.approx(best, abs=tolerance)
    for make in (spectral, function_aware, refined):
        assert relu_error(W, product(make(W, 3))) < 1e-10


def test_worked_example_in_detail():
    u = np.linalg.svd(W)[0][:, 0]
    u *= np.sign(u[2])
    np.testing.assert_allclose(
        u, [-0.19432896925764784, 0.48169596164537154, 0.8545204808790726], rtol=1e-13
    )
    np.testing.assert_allclose(
        cosines(W, 1),
        [0.4668258947493068, 0.944847707641999, 0.041607868842209475, 0.9736990733225879],
        rtol=1e-12,
    )
    np.testing.assert_allclose(
        u @ product(spectral(W, 1)),
        [0.6601915116, 1.3362164425, 0.0930380231, 2.3850658927],
        rtol=2e-9,
    )
    np.testing.assert_allclose(
        u @ product(function_aware(W, 1)),
        [0.8302600586, 1.3417288449, 0.7588977508, 2.3882055282],
        rtol=1e-9,
    )


def test_worked_example_best_direction():
    """The specification's is a fixed point to 1e-5; its error, 2.6e-10 above the one found."""
    best = np.array([[-0.4046279447], [0.3860766027], [0.8289879873]])
    U, _ = refined(W, 1, 500, best)
    u = U[:, 0] / np.linalg.norm(U) * np.sign(U[2, 0])
    np.testing.assert_allclose(u, best[:, 0], atol=1e-5)
    given = relu_error(W, product(refined(W, 1, 0, best)))
    assert 0 <= given - relu_error(W, product(refined(W, 1, 500, best))) < 1e-9
    sphere = np.random.default_rng(0).normal(size=(20_000, 3))
    sphere /= np.linalg.norm(sphere, axis=1, keepdims=True)
    rho = np.abs(sphere @ W) / np.linalg.norm(W, axis=0)
    energy = np.square(np.linalg.norm(W, axis=0))
    errors = 0.5 * (energy * (1 - np.square(relu_kernel(rho)))).sum(axis=1)
    assert errors.min() > 3.06482
    assert errors.min() == pytest.approx(3.06482, abs=1e-3)


def test_counterexample_no_choice_of_singular_directions_is_the_best():
    P = np.linalg.svd(W)[0]
    of_one = [relu_error(W, product(refined(W, 1, 0, P[:, [i]]))) for i in range(3)]
    np.testing.assert_allclose(of_one, [3.1155, 3.7051, 6.2066], atol=5e-5)
    of_two = [
        relu_error(W, product(refined(W, 2, 0, P[:, pair]))) for pair in ([0, 1], [0, 2], [1, 2])
    ]
    assert min(of_two) == pytest.approx(0.353848, abs=5e-7)
    assert relu_error(W, product(refined(W, 1))) < min(of_one) - 0.04
    assert relu_error(W, product(refined(W, 2))) < min(of_two) - 0.001


def test_cross_example():
    linear = product(spectral(CROSS, 1))
    np.testing.assert_allclose(
        linear,
        [[1.8944271909999155, 1.1708203932499368], [1.1708203932499368, 0.7236067977499789]],
        rtol=1e-13,
    )
    assert weighted_cross_error(CROSS - linear) == pytest.approx(0.32097567425069423, rel=1e-12)
    weighted = product(diagonal_weighted(CROSS, 1))
    np.testing.assert_allclose(
        weighted, [[1.93631222436, 1.28737427919], [1.28737427919, 0.85592215650]], atol=2e-8
    )
    assert weighted_cross_error(CROSS - weighted) == pytest.approx(0.23961162594584537, rel=1e-12)
    U, V, c = with_diagonal(CROSS, 1)
    np.testing.assert_allclose(U @ V.T + np.diag(c), CROSS, atol=1e-6)


# What the functions promise beyond.


@given(seeds, st.integers(1, 5))
@settings(max_examples=15, deadline=None)
def test_refinement_is_monotone_and_never_worse_than_the_closed_form(seed, rank):
    matrix = drawn(seed)
    errors = [relu_error(matrix, product(refined(matrix, rank, n))) for n in (0, 1, 2, 5, 20)]
    assert errors[0] == pytest.approx(relu_error(matrix, product(function_aware(matrix, rank))))
    assert (np.diff(errors) <= 1e-12).all()


@pytest.mark.parametrize("rank", [1, 2])
def test_refinement_ends_where_the_gradient_is_none(rank):
    matrix = drawn(5)
    Y = product(refined(matrix, rank, 2000))
    value = relu_error(matrix, Y)
    Q = np.linalg.svd(Y)[0][:, :rank]
    rng = np.random.default_rng(0)
    for _ in range(20):
        near = np.linalg.qr(Q + 1e-3 * rng.normal(size=Q.shape))[0]
        assert relu_error(matrix, product(refined(matrix, rank, 0, near))) >= value - 1e-9


def test_a_column_that_the_subspace_misses_gets_a_length():
    matrix = np.diag([3.0, 1.0])
    Y = product(function_aware(matrix, 1))
    np.testing.assert_allclose(np.linalg.norm(Y, axis=0), [3, 1 / np.pi])
    # 1 - 1 / pi^2 of the half squared length, not all of it.
    assert relu_error(matrix, Y) == pytest.approx(0.5 * (1 - 1 / np.pi**2))
    assert np.isfinite(product(refined(matrix, 1))).all()


def test_columns_of_zero_stay_zero():
    matrix = drawn(1)
    matrix[:, 3] = 0
    for found in (function_aware(matrix, 2), refined(matrix, 2, 5)):
        np.testing.assert_allclose(product(found)[:, 3], 0, atol=1e-14)
    assert np.isfinite(product(function_aware(0 * matrix, 2))).all()
    assert relu_error(0 * matrix, 0 * matrix) == 0


def test_a_second_moment_is_a_change_of_variables():
    """c6: of x = Sigma^(1/2) z, the error is that of Sigma^(1/2) W under z ~ N(0, I)."""
    matrix, A = drawn(2), drawn(3, 6, 6)
    sigma = A @ A.T
    values, vectors = np.linalg.eigh(sigma)
    root = (vectors * np.sqrt(values)) @ vectors.T

    def error(Y):
        return relu_error(root @ matrix, root @ Y)

    aware = error(product(function_aware(matrix, 2, sigma)))
    rho = cosines(root @ matrix, 2)
    energy = np.square(root @ matrix).sum(axis=0)
    assert aware == pytest.approx(0.5 * np.sum(energy * (1 - np.square(relu_kernel(rho)))))
    for other in (function_aware(matrix, 2), data_whitened(matrix, 2, sigma)):
        assert aware < error(product(other))
    np.testing.assert_allclose(
        product(function_aware(matrix, 2, 3 * np.eye(6))), product(function_aware(matrix, 2))
    )


def test_inputs_that_span_no_full_space():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(50, 3)) @ rng.normal(size=(3, 6))
    sigma = x.T @ x / len(x)
    for found in (data_whitened(drawn(1), 3, sigma), function_aware(drawn(1), 3, sigma)):
        np.testing.assert_allclose(x @ product(found), x @ drawn(1), atol=1e-8)


@given(seeds, st.integers(1, 5))
@settings(max_examples=15, deadline=None)
def test_the_whitened_decomposition_is_the_best_on_the_data(seed, rank):
    rng = np.random.default_rng(seed)
    matrix = drawn(seed)
    x = rng.normal(size=(300, 6)) @ rng.normal(size=(6, 6)) + rng.normal(size=6)
    sigma, mean = x.T @ x / len(x), x.mean(axis=0)

    def error(Y, shift=0.0):
        return np.square(x @ matrix - x @ Y - shift).sum(axis=1).mean()

    best = error(product(data_whitened(matrix, rank, sigma)))
    # By the theorem of Eckart and Young, in the metric of the data.
    values = np.linalg.svd(x @ matrix / np.sqrt(len(x)), compute_uv=False)
    assert best == pytest.approx(np.square(values[rank:]).sum(), rel=1e-8)
    assert best <= error(product(spectral(matrix, rank))) + 1e-9
    U, V = data_whitened(matrix, rank, sigma, mean)
    assert error(U @ V.T, bias_shift(matrix, U, V, mean)) <= best + 1e-9
    np.testing.assert_allclose(bias_shift(matrix, U, V, mean), (x @ (matrix - U @ V.T)).mean(0))


@given(seeds, st.integers(1, 5))
@settings(max_examples=15, deadline=None)
def test_weights_of_units_are_part_of_the_metric(seed, rank):
    rng = np.random.default_rng(seed)
    matrix, weights = drawn(seed), rng.uniform(0.01, 1, 9)
    x = rng.normal(size=(300, 6)) @ rng.normal(size=(6, 6))
    sigma = x.T @ x / len(x)
    Y = product(data_whitened(matrix, rank, sigma, unit_weights=weights))
    found = (weights * np.square(x @ (matrix - Y))).sum(axis=1).mean()
    values = np.linalg.svd(x @ matrix * np.sqrt(weights / len(x)), compute_uv=False)
    assert found == pytest.approx(np.square(values[rank:]).sum(), rel=1e-8)


def test_units_that_count_for_nothing_are_kept_at_full_rank():
    weights = np.array([1, 0, 0.5, 1, 0, 1, 1, 1, 1])
    Y = product(data_whitened(drawn(1), 6, np.eye(6), unit_weights=weights))
    np.testing.assert_allclose(Y, drawn(1), atol=1e-9)
    Y = product(data_whitened(drawn(1), 2, np.eye(6), unit_weights=np.zeros(9)))
    np.testing.assert_allclose(Y, product(spectral(drawn(1), 2)), atol=1e-9)


@pytest.mark.parametrize("activation", ["relu", "tanh", "sigmoid", "linear"])
def test_samples_make_it_better_and_never_worse(activation):
    rng = np.random.default_rng(1)
    x = np.maximum(rng.normal(size=(2000, 6)) @ rng.normal(size=(6, 6)), 0)
    matrix, b = drawn(1), rng.normal(size=9)
    act = {**oracle.ACTIVATIONS, "sigmoid": lambda z: 1 / (1 + np.exp(-z))}[activation]

    def error(found):
        return np.square(act(x @ matrix + b) - act(x @ product(found) + b)).mean()

    z = x @ matrix + b
    slopes = {
        "relu": lambda: z > 0,
        "tanh": lambda: 1 - np.tanh(z) ** 2,
        "sigmoid": lambda: act(z) * (1 - act(z)),
        "linear": lambda: np.ones_like(z),
    }[activation]()
    weights = np.square(slopes.astype(float)).mean(axis=0)
    first = data_whitened(matrix, 2, x.T @ x / len(x), unit_weights=weights)
    start = error(first)
    found = sampled(matrix, b, 2, x, activation, steps=400)
    assert error(found) <= start + 1e-12
    if activation != "linear":
        assert error(found) < 0.95 * start
    again = sampled(matrix, b, 2, x, activation, steps=400)
    np.testing.assert_array_equal(product(found), product(again))
    np.testing.assert_allclose(
        product(sampled(matrix, b, 2, x, activation, steps=0)),
        product(first),
        atol=1e-9,
    )


@pytest.mark.parametrize("rank", [1, 3])
def test_weighted_and_with_a_diagonal_err_less(rank):
    for seed in range(5):
        matrix = drawn(seed, 6, 6)
        U, V, c = with_diagonal(matrix, rank)
        kept = U @ V.T + np.diag(c)
        np.testing.assert_allclose(np.diag(kept), np.diag(matrix), atol=1e-12)
        errors = [
            weighted_cross_error(matrix - Y)
            for Y in (
                kept,
                product(diagonal_weighted(matrix, rank)),
                product(spectral(matrix, rank)),
            )
        ]
        assert errors[0] < errors[1] < errors[2]


@pytest.mark.parametrize("activation", ["relu", "linear"])
def test_the_gain_restores_the_size_of_the_output(activation):
    rng = np.random.default_rng(0)
    x, matrix = rng.normal(size=(500, 40)), drawn(1, 40, 60) * np.sqrt(2 / 40)
    U, V = spectral(matrix, 2)
    gain = activation_gain(matrix, U, V, x, activation=activation)
    assert gain > 2
    act = oracle.ACTIVATIONS[activation]
    assert np.square(act(gain * (x @ U @ V.T))).mean() == pytest.approx(
        np.square(act(x @ matrix)).mean()
    )
    assert activation_gain(matrix, 0 * U, V, x) == 1.0


# Ranks.


def test_break_even():
    assert break_even_rank(64, 64) == 32
    assert break_even_rank(100, 300) == 75
    for dim, units in ((64, 64), (48, 128), (7, 1000)):
        for ratio in (0.1, 0.5, 0.9):
            try:
                rank = rank_for_ratio(dim, units, ratio)
            except ConfigError:
                assert dim + units > ratio * dim * units
                continue
            assert rank * (dim + units) <= ratio * dim * units < (rank + 1) * (dim + units)
    with pytest.raises(ConfigError, match="ratio"):
        rank_for_ratio(4, 4, 1.0)
    with pytest.raises(ConfigError, match="rank 1 of 4 x 4"):
        rank_for_ratio(4, 4, 0.1)


def test_the_schedule_uses_its_budget():
    shapes = {"first": (1024, 256), "second": (256, 256), "third": (256, 8)}
    dense = sum(d * m for d, m in shapes.values())
    for share in (0.05, 0.1, 0.3, 0.6, 0.95):
        found = scheduled_ranks(shapes, int(share * dense))
        counted = sum(
            found.ranks[n] * (d + m) if n in found.ranks else d * m for n, (d, m) in shapes.items()
        )
        assert counted == found.parameters <= share * dense
        # One step of the widest layer would be over it.
        assert found.parameters > share * dense - 2 * (1024 + 256) - 256 * 8
        for name, rank in found.ranks.items():
            assert rank == max(1, round(found.rank_scale * min(shapes[name])))
            assert rank < break_even_rank(*shapes[name])
    assert scheduled_ranks(shapes, dense).ranks == {}
    with pytest.raises(ConfigError, match="fewer than the 2056 of rank 1"):
        scheduled_ranks(shapes, 2055)
    assert set(scheduled_ranks(shapes, 2056).ranks.values()) == {1}
    with pytest.raises(ConfigError, match="no layer"):
        scheduled_ranks({}, 100)


# Models.

FIELDS = {"a": 20, "b": 30, "c": 10}


def columns(rows, seed):
    rng = np.random.default_rng(seed)
    found = {name: rng.integers(0, size, rows) for name, size in FIELDS.items()}
    return {**found, "n": rng.normal(size=rows).astype("float32")}


@pytest.fixture(scope="module", params=["stacked", "parallel"])
def trained(request):
    keras.utils.set_random_seed(0)
    config = DCNv2Config(
        structure=request.param,
        cross="full",
        num_cross_layers=2,
        hidden_units=(32, 24, 3),
        embedding_dim=6,
        embedding_scale=0.3,
        deep_decay=1e-4,
        dropout=0.2,
        logit_bias=True,
    )
    model = DCNv2(config, FIELDS, numeric=["n"])
    x = columns(4000, 1)
    click = ((x["a"] + x["b"] * (x["c"] > 4) + x["n"]) % 5 > 2).astype("float32")
    optimizer = keras.optimizers.Adam(0.01)
    optimizer.build(model.trainable_variables)

    @tf.function
    def step(batch, label):
        with tf.GradientTape() as tape:
            logits = model(batch, training=True)
            loss = tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(label, logits))
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables))

    for i in range(120):
        rows = np.random.default_rng(i).integers(0, 4000, 256)
        step({k: tf.constant(v[rows]) for k, v in x.items()}, tf.constant(click[rows]))
    return model


def logits(model, batch):
    return np.asarray(model({k: tf.constant(v) for k, v in batch.items()}))


INITS = ["spectral", "function", "data"]


@pytest.mark.parametrize("init", INITS)
def test_factors_of_full_rank_give_the_same_logits(trained, init):
    full = {name: min(shape) for name, shape in factorizable_layers(trained).items()}
    new, reports = factorize(trained, full, init, inputs=columns(2000, 2), beyond_break_even=True)
    assert all(isinstance(layer, LowRankDense) for layer in new.hidden_layers)
    assert all(isinstance(layer, LowRankCross) for layer in new.cross_layers)
    fresh = columns(500, 3)
    before = logits(trained, fresh)
    np.testing.assert_allclose(logits(new, fresh), before, atol=1e-5 * max(1, abs(before).max()))
    for report in reports:
        assert not report.skipped
        assert report.output_error < 1e-5
        # Directions that no input has are left out by the one that knows inputs alone.
        assert report.frobenius_error < 1e-5 or init == "function"


@pytest.mark.parametrize("init", INITS)
def test_the_report_says_what_was_done(trained, init):
    new, reports = factorize(trained, 4, init, inputs=columns(2000, 2))
    assert [r.name for r in reports] == ["cross_0", "cross_1", "hidden_0", "hidden_1", "hidden_2"]
    assert [r.kind for r in reports] == ["cross"] * 2 + ["dense"] * 3
    by_name = {r.name: r for r in reports}
    hidden = by_name["hidden_1"]
    assert (hidden.shape, hidden.rank, hidden.skipped) == ((32, 24), 4, "")
    assert (hidden.parameters_before, hidden.parameters_after) == (32 * 24 + 24, 4 * 56 + 24)
    assert by_name["cross_0"].parameters_after == 2 * 19 * 4 + 19
    old, made = trained.hidden_layers[1], new.hidden_layers[1]
    kernel = old.kernel.numpy()
    difference = kernel - made.U.numpy() @ made.V.numpy().T
    assert hidden.frobenius_error == pytest.approx(
        np.linalg.norm(difference) / np.linalg.norm(kernel), rel=1e-4
    )
    last = by_name["hidden_2"]
    assert last.skipped == "rank 4 is above 3, the full rank"
    assert (last.rank, last.output_error, last.frobenius_error) == (0, None, 0.0)
    assert last.parameters_before == last.parameters_after == 24 * 3 + 3
    # What the logit and the embeddings were, they are.
    np.testing.assert_array_equal(new.logit.get_weights()[0], trained.logit.get_weights()[0])
    for name in FIELDS:
        np.testing.assert_array_equal(
            new.embeddings[name].get_weights()[0], trained.embeddings[name].get_weights()[0]
        )
    assert new.count_params() == trained.count_params() - sum(
        r.parameters_before - r.parameters_after for r in reports
    )
    assert new.config == dataclasses.replace(
        trained.config, cross="low_rank", rank=4, hidden_rank=(4, 4, 0)
    )


def test_the_output_error_is_measured_on_the_layers_own_inputs(trained):
    batch = columns(300, 5)
    new, reports = factorize(trained, {"hidden_0": 3}, inputs=batch)
    x0 = x = trained.embed({k: tf.constant(v) for k, v in batch.items()})
    for layer in trained.cross_layers:
        x = layer(x0, x)
    h = (x0 if trained.config.structure == "parallel" else x).numpy()
    before, after = (np.asarray(m.hidden_layers[0](h)) for m in (trained, new))
    report = next(r for r in reports if r.name == "hidden_0")
    assert report.output_error == pytest.approx(
        np.linalg.norm(after - before) / np.linalg.norm(before), rel=1e-4
    )
    assert {r.name: r.skipped for r in reports}["hidden_1"] == "no rank was asked for"


def test_measured_inputs_beat_the_spectrum_in_every_layer(trained):
    inputs = columns(4000, 1)
    for rank in (2, 5, 8):
        found = {
            init: {r.name: r for r in factorize(trained, rank, init, inputs)[1]} for init in INITS
        }
        for name in ("cross_0", "cross_1", "hidden_0", "hidden_1"):
            data, linear = (found[init][name] for init in ("data", "spectral"))
            assert data.output_error < linear.output_error
            if name != "cross_0":
                assert data.frobenius_error >= linear.frobenius_error - 1e-6


def test_the_bias_keeps_the_mean_of_what_was_measured(trained):
    batch = columns(1000, 1)
    new, _ = factorize(trained, {"hidden_1": 2}, "data", batch)
    x0 = x = trained.embed({k: tf.constant(v) for k, v in batch.items()})
    for layer in trained.cross_layers:
        x = layer(x0, x)
    h = trained.hidden_layers[0](x0 if trained.config.structure == "parallel" else x).numpy()
    old, made = trained.hidden_layers[1], new.hidden_layers[1]
    before = (h @ old.kernel.numpy() + old.bias.numpy()).mean(axis=0)
    after = (h @ made.U.numpy() @ made.V.numpy().T + made.b.numpy()).mean(axis=0)
    np.testing.assert_allclose(after, before, atol=1e-4 * abs(before).max())
    assert abs(made.b.numpy() - old.bias.numpy()).max() > 1e-4


def test_the_first_cross_layer_has_its_diagonal_weighted(trained):
    new, _ = factorize(trained, 4)
    for layer, old, make in zip(
        new.cross_layers, trained.cross_layers, (diagonal_weighted, spectral)
    ):
        made = layer.U.numpy() @ layer.V.numpy().T
        np.testing.assert_allclose(made, product(make(old.W.numpy(), 4)), atol=1e-5)
        assert len(singular_values(layer)) == 4


def test_scales_are_repaired(trained):
    inputs = columns(2000, 2)
    new, reports = factorize(trained, {"hidden_0": 1, "hidden_1": 1}, "spectral", inputs, True)
    plain, _ = factorize(trained, {"hidden_0": 1, "hidden_1": 1})
    for layer, bare in list(zip(new.hidden_layers, plain.hidden_layers))[:2]:
        ratio = np.linalg.norm(layer.U.numpy() @ layer.V.numpy().T) / np.linalg.norm(
            bare.U.numpy() @ bare.V.numpy().T
        )
        assert ratio != pytest.approx(1, abs=1e-3)
    assert all(r.output_error is not None for r in reports if r.rank)


def test_a_factorised_model_is_saved_and_trained_like_any(trained, tmp_path):
    new, _ = factorize(trained, 4)
    fresh = columns(50, 3)
    copy = DCNv2.from_config(new.get_config())
    copy.set_weights(new.get_weights())
    np.testing.assert_array_equal(logits(copy, fresh), logits(new, fresh))
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(new({k: tf.constant(v) for k, v in fresh.items()}))
    gradients = tape.gradient(loss, new.trainable_variables)
    assert all(g is not None for g in gradients)
    # Twice the L2 weight: the layer's penalty has a factor of a half.
    assert [layer.frobenius_decay for layer in new.hidden_layers[:2]] == [2e-4, 2e-4]


def test_layers_that_do_not_get_smaller_are_skipped_and_listed(trained):
    said = []
    new, reports = factorize(trained, 10, say=said.append)
    skipped = {r.name: r.skipped for r in reports if r.skipped}
    assert skipped["cross_0"] == "rank 10 is not below break-even, 9.5"
    assert skipped["hidden_2"] == "rank 10 is above 3, the full rank"
    assert set(skipped) == {"cross_0", "cross_1", "hidden_2"}
    assert said == [f"{name} stays full: {why}" for name, why in skipped.items()]
    assert new.config.cross == "full"
    again, reports = factorize(new, 4)
    skipped = {r.name: r.skipped for r in reports if r.skipped}
    assert skipped["hidden_0"] == skipped["hidden_1"] == "is of low rank already"
    assert again.config.hidden_rank == (10, 10, 0)
    fresh = columns(50, 3)
    untouched, _ = factorize(trained, 19)
    np.testing.assert_array_equal(logits(untouched, fresh), logits(trained, fresh))
    assert untouched.config == trained.config


def test_a_schedule_of_ranks_reaches_its_target(trained):
    shapes = factorizable_layers(trained)
    assert shapes["cross_0"] == (19, 19)
    target = sum(d * m for d, m in shapes.values()) // 2
    _, reports = factorize(trained, scheduled_ranks(shapes, target).ranks)
    units = {name: shape[1] for name, shape in shapes.items()}
    assert sum(r.parameters_after - units[r.name] for r in reports) <= target


def test_a_mixture_is_skipped():
    model = DCNv2(DCNv2Config(hidden_units=(16,), embedding_dim=6), FIELDS)
    new, reports = factorize(model, 4)
    assert [r.skipped for r in reports] == ["is of low rank already"] * 2 + [""]
    assert new.config.cross == "mixture"
    assert new.config.rank == model.config.rank


@pytest.mark.parametrize(
    ("ranks", "options", "message"),
    [
        (0, {}, "rank: 0 is not 1 to 24, the full rank"),
        (-3, {}, "rank: -3 is not 1 to 24, the full rank"),
        (25, {}, "rank: 25 is not 1 to 24, the full rank"),
        ({"hidden_0": 0}, {}, "ranks.hidden_0: 0 is not 1 to 19, the full rank"),
        ({"hidden_2": 4}, {}, "ranks.hidden_2: 4 is not 1 to 3, the full rank"),
        ({"hiden_0": 4}, {}, "ranks.hiden_0: no such layer; did you mean 'hidden_0'?"),
        ({"logit": 1}, {}, "ranks.logit: no such layer"),
        ({"cross_0": 4}, {}, "the cross layers of a DCN-V2 share one rank"),
        ({"cross_0": 4, "cross_1": 3}, {}, "the cross layers of a DCN-V2 share one rank"),
        (4, {"init": "magic"}, "init: 'magic' is none of spectral, function, data"),
        (4, {"init": "data"}, "init: data needs inputs to measure"),
        (4, {"repair_scale": True}, "repair_scale: needs inputs to measure"),
    ],
)
def test_bad_input_is_one_line(trained, ranks, options, message):
    with pytest.raises(ConfigError) as raised:
        factorize(trained, ranks, **options)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_another_model_is_refused():
    with pytest.raises(ConfigError, match="a Sequential cannot be factorised"):
        factorize(keras.Sequential([keras.layers.Dense(2)]), 1)


@pytest.mark.parametrize(
    ("hidden_rank", "message"),
    [
        (-1, "-1 is not 1 to 16"),
        (9, "9 is not 1 to 8, the layer's units"),
        ((4,), "1 ranks for 2 hidden layers"),
        ((17, 0), "17 is not 1 to 16"),
    ],
)
def test_ranks_of_a_configuration_are_checked(hidden_rank, message):
    with pytest.raises(ConfigError, match=message):
        DCNv2Config(hidden_units=(16, 8), hidden_rank=hidden_rank)


def test_a_rank_above_the_width_of_the_input_is_named():
    with pytest.raises(ConfigError, match="10 is above 6, the width of hidden_0's input"):
        DCNv2(DCNv2Config(hidden_units=(16,), hidden_rank=10, embedding_dim=2), FIELDS)


@pytest.mark.parametrize("hidden_rank", [None, 0, (0, 0)])
def test_without_ranks_the_model_is_what_it_was(hidden_rank):
    def made(**options):
        keras.utils.set_random_seed(3)
        return DCNv2(DCNv2Config(hidden_units=(16, 8), embedding_dim=4, **options), FIELDS)

    model = made(hidden_rank=hidden_rank)
    assert all(type(layer) is keras.layers.Dense for layer in model.hidden_layers)
    for a, b in zip(model.get_weights(), made().get_weights()):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    "call",
    [
        lambda: spectral(W, 0),
        lambda: function_aware(W, 4),
        lambda: refined(W, -1),
        lambda: refined(W, 2, start=np.ones((3, 1))),
        lambda: data_whitened(W, 1, np.eye(4)),
        lambda: data_whitened(W, 1, np.eye(3), unit_weights=np.ones(3)),
        lambda: data_whitened(W, 1, np.eye(3), unit_weights=-np.ones(4)),
        lambda: sampled(W, 0.0, 1, np.ones((5, 4))),
        lambda: sampled(W, 0.0, 1, np.ones((5, 3)), "gelu"),
        lambda: diagonal_weighted(W, 1),
        lambda: with_diagonal(W, 1),
        lambda: relu_error(W, W.T),
    ],
)
def test_bad_arguments(call):
    with pytest.raises(ConfigError) as raised:
        call()
    assert "\n" not in str(raised.value)
