"""Density weighting without a model: invariants 6 to 9, the worked example, SciPy's estimate."""

from __future__ import annotations

import numpy as np
import pytest

from tests.oracles import interests as oracle
from tfrz.config import from_mapping
from tfrz.errors import ConfigError, InputError
from tfrz.training.density_weighting import (
    WeightingConfig,
    effective_sample_size,
    example_weights,
    inverse_frequency_weights,
    item_densities,
    scott_covariance,
    updated_weights,
    weighted_kernel_density,
)

E = np.array([[0.0], [0.1], [3.0]])
COUNTS = np.array([80, 15, 5])
W = COUNTS / 100
SIGMA, FLOOR = 0.5, 1e-4


def _config(**values) -> WeightingConfig:
    return from_mapping(WeightingConfig, {"kind": "density", **values}, "model.weighting")


def _step(weights: np.ndarray, embeddings: np.ndarray = E, momentum: float = 0.8) -> np.ndarray:
    rho = weighted_kernel_density(embeddings, embeddings, SIGMA**2, weights) + FLOOR
    return updated_weights(weights, rho, momentum)


def _items(count: int = 60, dim: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Vectors in two clumps, and skewed weights that sum to 1."""
    rng = np.random.default_rng(seed)
    e = rng.normal(size=(count, dim)) + 3 * (np.arange(count) % 2)[:, None]
    w = rng.dirichlet(np.full(count, 0.5))
    return e, w


def test_worked_example_1():
    rho = weighted_kernel_density(E, E, SIGMA**2, W) + FLOOR
    np.testing.assert_allclose(rho, [0.755720, 0.745451, 0.039994], atol=5e-7)
    np.testing.assert_allclose(
        updated_weights(W, rho, 0.0), [0.047825, 0.048484, 0.903691], atol=5e-7
    )
    new = updated_weights(W, rho, 0.8)
    np.testing.assert_allclose(new, [0.649565, 0.129697, 0.220738], atol=5e-7)
    assert np.abs(new - W).max() == pytest.approx(0.170738, abs=5e-7)
    np.testing.assert_allclose(
        example_weights(new, COUNTS), [0.811956, 0.864645, 4.414764], atol=5e-6
    )
    np.testing.assert_allclose(
        inverse_frequency_weights(COUNTS), [0.416667, 2.222222, 6.666667], atol=5e-7
    )
    np.testing.assert_allclose(oracle.updated_weights(E, W), new, atol=1e-12)


def test_worked_example_1_converges_to_its_fixed_point():
    w = W
    for _ in range(500):
        w = _step(w)
    np.testing.assert_allclose(w, [0.293502, 0.293502, 0.412996], atol=2e-6)
    rho = weighted_kernel_density(E, E, SIGMA**2, w) + FLOOR
    np.testing.assert_allclose(w * rho / (w * rho).sum(), 1 / 3, atol=1e-6)


@pytest.mark.parametrize("momentum", [0.0, 0.3, 0.8, 1.0])
def test_a_step_is_that_of_the_oracle(momentum):
    e, w = _items()
    for _ in range(4):
        expected = oracle.updated_weights(e, w, SIGMA, momentum, FLOOR)
        w = _step(w, e, momentum)
        np.testing.assert_allclose(w, expected, atol=1e-12)


@pytest.mark.parametrize("momentum", [0.0, 0.8, 1.0])
def test_invariant_6_weights_sum_to_one_after_every_update(momentum):
    e, w = _items()
    for iteration in range(5):
        rho = item_densities(e, w, _config(samples=500), iteration)
        w = updated_weights(w, rho, momentum)
        assert w.sum() == pytest.approx(1.0, abs=1e-12)
        assert (w >= 0).all()


@pytest.mark.parametrize("max_weight", [None, 3.0, 1.2])
def test_invariant_6_the_mean_weight_of_an_example_is_one(max_weight):
    rng = np.random.default_rng(0)
    for _ in range(20):
        counts = rng.integers(1, 200, 40)
        w = rng.dirichlet(np.full(40, 0.3))
        for omega in (
            example_weights(w, counts, max_weight),
            inverse_frequency_weights(counts, max_weight),
        ):
            assert omega.dtype == np.float64
            assert (counts * omega).sum() / counts.sum() == pytest.approx(1.0, abs=1e-12)


def test_invariant_6_the_mean_is_one_where_items_that_are_no_target_have_weight():
    counts, w = np.array([80, 0, 15, 5, 0]), np.array([0.4, 0.2, 0.2, 0.1, 0.1])
    for omega in (example_weights(w, counts), inverse_frequency_weights(counts)):
        assert omega[1] == omega[4] == 0
        assert (counts * omega).sum() / counts.sum() == pytest.approx(1.0, abs=1e-12)
    omega = example_weights(w, counts)
    np.testing.assert_allclose(omega[[2, 3]] / omega[0], [0.2 / 15 / 0.005, 0.02 / 0.005])
    np.testing.assert_allclose(
        inverse_frequency_weights(counts)[[0, 2, 3]], 100 / 3 / counts[[0, 2, 3]]
    )


def test_invariant_7_the_first_weights_are_one_to_the_bit_of_float32():
    rng = np.random.default_rng(1)
    for _ in range(50):
        counts = rng.integers(1, 10_000, 300)
        omega = example_weights(counts / counts.sum(), counts)
        np.testing.assert_array_equal(omega.astype("float32"), np.ones(300, "float32"))


def test_invariant_8_momentum_one_never_moves_the_weights():
    e, w = _items()
    rho = item_densities(e, w, _config(samples=500))
    np.testing.assert_array_equal(updated_weights(w, rho, 1.0), w)


def test_invariant_8_momentum_nothing_gives_the_inverse_densities():
    e, w = _items()
    rho = item_densities(e, w, _config(samples=500))
    np.testing.assert_allclose(
        updated_weights(w, rho, 0.0), (1 / rho) / (1 / rho).sum(), rtol=1e-12
    )


def test_invariant_8_equal_densities_without_momentum_are_the_inverse_frequency():
    rng = np.random.default_rng(2)
    counts = rng.integers(1, 100, 30)
    w = updated_weights(counts / counts.sum(), np.full(30, 0.37), 0.0)
    np.testing.assert_allclose(w, 1 / 30, rtol=1e-12)
    np.testing.assert_allclose(
        example_weights(w, counts), inverse_frequency_weights(counts), rtol=1e-12
    )


def test_invariant_9_items_at_one_place_have_one_density_whatever_their_counts():
    e, w = _items()
    e[7] = e[20] = e[33]
    w[7], w[20] = 0.5, 1e-6
    w /= w.sum()
    rho = item_densities(e, w, _config(samples=500, block_size=8))
    np.testing.assert_allclose(rho[[7, 20]], rho[33], rtol=1e-13)
    g = updated_weights(w, rho, 0.0)
    np.testing.assert_allclose(g[[7, 20]], g[33], rtol=1e-13)
    deterministic = weighted_kernel_density(e, e, 0.25, w, block_size=8)
    np.testing.assert_allclose(deterministic[[7, 20]], deterministic[33], rtol=1e-12)


@pytest.mark.parametrize("dim", [1, 2, 5])
def test_scipys_estimate_is_the_oracle(dim):
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(dim)
    points = rng.normal(size=(300, dim)) @ rng.normal(size=(dim, dim))
    queries = rng.normal(size=(70, dim)) @ rng.normal(size=(dim, dim))
    theirs = stats.gaussian_kde(points.T)
    covariance = scott_covariance(points)
    assert covariance.shape == (dim, dim)
    np.testing.assert_allclose(covariance, theirs.covariance, rtol=1e-10)
    found = weighted_kernel_density(points, queries, covariance)
    np.testing.assert_allclose(found, theirs(queries.T), rtol=1e-9, atol=1e-300)
    weights = rng.dirichlet(np.ones(300))
    weighted = stats.gaussian_kde(points.T, weights=weights)
    np.testing.assert_allclose(
        weighted_kernel_density(points, queries, weighted.covariance, weights),
        weighted(queries.T),
        rtol=1e-9,
        atol=1e-300,
    )


def test_a_variance_is_a_covariance_of_that_on_the_diagonal():
    e, w = _items()
    for variance in (0.25, 2.0):
        np.testing.assert_allclose(
            weighted_kernel_density(e, e, variance, w),
            weighted_kernel_density(e, e, variance * np.eye(3), w),
            rtol=1e-12,
        )
        np.testing.assert_allclose(
            weighted_kernel_density(e, e, variance, w),
            oracle.densities(e, w, np.sqrt(variance)),
            rtol=1e-10,
        )


def test_a_density_integrates_to_one():
    e, w = _items(20, 2)
    axis = np.linspace(-8, 12, 161)
    grid = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
    covariance = np.array([[0.5, 0.2], [0.2, 0.3]])
    total = weighted_kernel_density(e, grid, covariance, w).sum() * (axis[1] - axis[0]) ** 2
    assert total == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("block_size", [1, 7, 64, 10_000])
def test_blocks_change_nothing(block_size):
    e, w = _items(130)
    queries = np.random.default_rng(3).normal(size=(101, 3))
    covariance = scott_covariance(e)
    whole = weighted_kernel_density(e, queries, covariance, w, block_size=101)
    found = weighted_kernel_density(e, queries, covariance, w, block_size=block_size)
    assert found.dtype == np.float64 and found.shape == (101,)
    np.testing.assert_allclose(found, whole, rtol=1e-12)
    sampled = [
        item_densities(e, w, _config(samples=300, block_size=size)) for size in (130, block_size)
    ]
    np.testing.assert_allclose(sampled[1], sampled[0], rtol=1e-12)


def test_points_far_from_the_origin_lose_no_digits():
    e, w = _items()
    near = weighted_kernel_density(e, e, 0.25, w)
    np.testing.assert_allclose(weighted_kernel_density(e + 1e4, e + 1e4, 0.25, w), near, rtol=1e-6)


def test_the_drawn_density_nears_that_of_its_distribution():
    e, w = _items(40, 2)
    config = _config(samples=40_000, noise=0.5, floor=0.01)
    mean = w @ e
    cloud = ((e - mean).T * w) @ (e - mean) + 0.25 * np.eye(2)
    kernel = 40_000 ** (-2 / 6) * cloud + 0.25 * np.eye(2)
    expected = weighted_kernel_density(e, e, kernel, w) + 0.01
    np.testing.assert_allclose(item_densities(e, w, config), expected, rtol=0.1)


def test_items_without_weight_are_not_drawn_but_have_a_density():
    e = np.array([[0.0, 0.0], [0.1, 0.0], [50.0, 50.0]])
    rho = item_densities(e, np.array([0.5, 0.5, 0.0]), _config(samples=2000))
    assert rho.shape == (3,)
    assert rho[2] == pytest.approx(1e-4, rel=1e-9)
    assert (rho[:2] > 0.1).all()


def test_the_draws_are_a_function_of_seed_and_iteration():
    e, w = _items()
    first = item_densities(e, w, _config(samples=500, seed=3), 1)
    np.testing.assert_array_equal(item_densities(e, w, _config(samples=500, seed=3), 1), first)
    assert (item_densities(e, w, _config(samples=500, seed=3), 2) != first).any()
    assert (item_densities(e, w, _config(samples=500, seed=4), 1) != first).any()


def test_relative_noise_scales_with_the_vectors():
    e, w = _items(60, 2)
    config = _config(samples=500, relative_noise=True, floor=1e-12)
    unit, scaled = item_densities(e, w, config), item_densities(1000 * e, w, config)
    np.testing.assert_allclose(scaled * 1e6, unit, rtol=1e-2)
    fixed = _config(samples=500, floor=1e-12)
    assert np.abs(item_densities(1000 * e, w, fixed) * 1e6 / unit - 1).max() > 1e-2


def test_principal_components_find_the_plane_that_the_items_lie_in():
    e, w = _items(60, 2)
    axes, _ = np.linalg.qr(np.random.default_rng(4).normal(size=(12, 2)))
    expected = item_densities(e, w, _config(samples=30_000, noise=0.3))
    found = item_densities(e @ axes.T + 5.0, w, _config(samples=30_000, noise=0.3, components=2))
    np.testing.assert_allclose(found, expected, rtol=0.12)


def test_more_components_than_dimensions_are_all_of_them():
    e, w = _items(60, 3)
    found = item_densities(e, w, _config(samples=20_000, noise=0.5, components=8))
    expected = item_densities(e, w, _config(samples=20_000, noise=0.5))
    np.testing.assert_allclose(found, expected, rtol=0.2)


def test_an_item_alone_outweighs_one_in_a_crowd():
    e = np.concatenate([np.random.default_rng(0).normal(0, 0.1, (20, 2)), [[5.0, 5.0]]])
    w = np.full(21, 1 / 21)
    g = updated_weights(w, item_densities(e, w, _config(samples=5000)), 0.0)
    assert g[-1] > 3 * g[:-1].max()


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("components", [None, 2])
def test_vectors_that_are_no_numbers_are_refused(value, components):
    e, w = _items()
    e[5, 1] = value
    with pytest.raises(InputError):
        item_densities(e, w, _config(samples=500, components=components))


@pytest.mark.parametrize(
    "vectors",
    [np.zeros([10, 2]), np.outer(np.arange(10.0), [1.0, 2.0]), np.outer(np.arange(10), [0.1, 0.3])],
    ids=["a point", "a line", "a line with rounding"],
)
@pytest.mark.parametrize("relative", [False, True])
def test_vectors_without_a_density_are_refused(vectors, relative):
    config = _config(samples=200, noise=0.0, relative_noise=relative)
    with pytest.raises(InputError):
        item_densities(vectors, np.full(10, 0.1), config)


def test_collapsed_vectors_have_a_density_once_there_is_noise():
    rho = item_densities(np.zeros([10, 2]), np.full(10, 0.1), _config(samples=2000))
    assert np.isfinite(rho).all()
    np.testing.assert_allclose(rho, rho[0], rtol=1e-13)


def test_without_a_floor_an_item_far_from_all_others_has_a_finite_weight_or_is_refused():
    e, w = np.array([[0.0], [0.1], [1e4]]), np.array([0.5, 0.5, 0.0])
    try:
        g = updated_weights(w, item_densities(e, w, _config(samples=200, floor=0.0)), 0.0)
    except InputError:
        return
    assert np.isfinite(g).all() and g.sum() == pytest.approx(1.0)


@pytest.mark.parametrize(
    "covariance", [0.0, np.zeros([2, 2]), np.ones([2, 2]), np.array([[1.0, 2.0], [2.0, 1.0]])]
)
def test_a_singular_covariance_is_refused(covariance):
    with pytest.raises(InputError):
        weighted_kernel_density(np.eye(2), np.eye(2), covariance)


def test_the_bound_on_weights_holds_and_leaves_the_order():
    counts, w = np.array([900, 60, 30, 9, 1]), np.full(5, 0.2)
    free = example_weights(w, counts)
    assert free.max() > 100
    for bound in (50.0, 5.0, 1.5):
        for omega in (
            example_weights(w, counts, bound),
            inverse_frequency_weights(counts, bound),
        ):
            assert (counts * omega).sum() / counts.sum() == pytest.approx(1.0, abs=1e-12)
            assert omega.max() <= bound * (1 + 1e-9)
            assert (np.diff(omega) >= -1e-12).all()
    np.testing.assert_allclose(example_weights(w, counts, 1e6), free, rtol=1e-12)


def test_the_effective_sample_size_counts_examples():
    counts = np.array([80, 15, 5, 0])
    assert effective_sample_size(np.array([1.0, 1.0, 1.0, 0.0]), counts) == pytest.approx(100)
    assert effective_sample_size(np.array([0.3, 0.3, 0.3, 9.0]), counts) == pytest.approx(100)
    omega = np.array([0.5, 2.0, 6.0, 0.0])
    every = np.repeat(omega, counts)
    expected = every.sum() ** 2 / (every**2).sum()
    assert effective_sample_size(omega, counts) == pytest.approx(expected)
    assert effective_sample_size(np.array([0.0, 0.0, 7.0, 0.0]), counts) == pytest.approx(5)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("kind", "idw"),
        ("iterations", -1),
        ("momentum", 1.5),
        ("momentum", -0.1),
        ("tolerance", -1.0),
        ("epochs", 0),
        ("samples", 0),
        ("noise", -0.1),
        ("floor", -1e-4),
        ("components", 0),
        ("max_weight", 0.5),
        ("block_size", 0),
        ("calibration_rate", 0.0),
        ("calibration_epochs", 0),
    ],
)
def test_settings_out_of_range_name_themselves(name, value):
    with pytest.raises(ConfigError, match=name):
        _config(**{name: value})


@pytest.mark.parametrize("momentum", [0.0, 1.0])
def test_both_ends_of_the_momentum_are_allowed(momentum):
    assert _config(momentum=momentum).momentum == momentum
