"""Interactions, spectrum and conversion of cross layers, against plain NumPy."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tfrz.errors import ConfigError
from tfrz.layers import (
    Cross,
    LowRankCross,
    MixtureOfLowRankCross,
    cross_matrix,
    interaction_norms,
    numerical_rank,
    plot_interactions,
    singular_values,
    to_low_rank,
)

DIM, RANK, EXPERTS = 7, 2, 3
WIDTHS = [2, 4, 1]


def _built(kind, **options):
    layer = {
        "full": lambda: Cross(dtype="float64", **options),
        "low_rank": lambda: LowRankCross(RANK, dtype="float64", **options),
        "mixture": lambda: MixtureOfLowRankCross(EXPERTS, RANK, dtype="float64", **options),
    }[kind]()
    layer.build((None, DIM))
    return layer


def _jacobian_at_small_input(layer, x):
    """d(transform)/dx of `x0 * transform(x) + x` with x0 of ones, less the residual."""
    point = tf.constant(x)[None]
    with tf.GradientTape() as tape:
        tape.watch(point)
        out = layer(tf.ones([1, DIM], tf.float64), point)
    return tape.jacobian(out, point)[0, :, 0].numpy() - np.eye(DIM)


def _blocks(matrix):
    edges = np.cumsum([0, *WIDTHS])
    return np.array(
        [
            [np.linalg.norm(matrix[a:b, c:d]) for c, d in itertools.pairwise(edges)]
            for a, b in itertools.pairwise(edges)
        ]
    )


def test_block_norms_of_the_specification():
    layer = Cross(dtype="float64")
    layer.build((None, 4))
    layer.W.assign(np.arange(16.0).reshape(4, 4))
    expected = [[6.48074069840786, 9.899494936611665], [21.400934559032695, 25.337718918639855]]
    np.testing.assert_allclose(interaction_norms(layer, [2, 2]), expected, rtol=1e-14)


@pytest.mark.parametrize("kind", ["full", "low_rank", "mixture"])
def test_matrix_is_the_derivative_of_the_layer(kind):
    # The gates of x = 0 are those of equal scores, and so are the defaults.
    layer = _built(kind)
    found = _jacobian_at_small_input(layer, np.zeros(DIM))
    np.testing.assert_allclose(cross_matrix(layer), found, atol=1e-12)


@pytest.mark.parametrize("activation", [None, "tanh", "sigmoid"])
@pytest.mark.parametrize("inner_map", [True, False])
@pytest.mark.parametrize(("gate", "value"), [("softmax", 1 / EXPERTS), ("sigmoid", 0.5)])
def test_mixture_matrix_by_its_formula(activation, inner_map, gate, value):
    layer = _built("mixture", expert_activation=activation, use_inner_map=inner_map, gate=gate)
    slope = 0.25 if activation == "sigmoid" else 1.0
    U = layer.U.numpy().reshape(DIM, EXPERTS, RANK)
    V = layer.V.numpy().reshape(DIM, EXPERTS, RANK)
    expected = 0
    for i in range(EXPERTS):
        C = layer.C.numpy()[i] * slope if inner_map else np.eye(RANK)
        expected = expected + value * slope * U[:, i] @ C @ V[:, i].T
    np.testing.assert_allclose(cross_matrix(layer), expected, rtol=1e-5, atol=1e-5)


def test_given_gates_weigh_the_experts():
    layer = _built("mixture", use_inner_map=False)
    U, V = layer.U.numpy(), layer.V.numpy()
    only_second = cross_matrix(layer, gates=[0, 2, 0])
    columns = slice(RANK, 2 * RANK)
    np.testing.assert_allclose(only_second, 2 * U[:, columns] @ V[:, columns].T, atol=1e-12)
    with pytest.raises(ConfigError, match="gates"):
        cross_matrix(layer, gates=[1.0])


@pytest.mark.parametrize("kind", ["full", "low_rank", "mixture"])
def test_block_norms_equal_those_of_the_matrix(kind):
    layer = _built(kind)
    np.testing.assert_allclose(
        interaction_norms(layer, WIDTHS), _blocks(cross_matrix(layer)), atol=1e-12
    )


@pytest.mark.parametrize("kind", ["full", "low_rank", "mixture"])
def test_singular_values_equal_those_of_the_matrix(kind):
    layer = _built(kind)
    expected = np.linalg.svd(cross_matrix(layer), compute_uv=False)
    found = singular_values(layer)
    np.testing.assert_allclose(found, expected[: len(found)], atol=1e-12)
    assert np.all(expected[len(found) :] < 1e-12)


def test_widths_that_do_not_add_up_are_refused():
    with pytest.raises(ConfigError, match="add up to 7"):
        interaction_norms(_built("full"), [3, 3])


@pytest.mark.parametrize(("tolerance", "rank"), [(0.5, 3), (0.1, 4), (0.01, 5), (0.001, 5)])
def test_numerical_rank_of_the_specification(tolerance, rank):
    assert numerical_rank([1, 0.6, 0.2, 0.04, 0.009], tolerance) == rank


def test_numerical_rank_refuses_nonsense():
    with pytest.raises(ConfigError, match="values"):
        numerical_rank([], 0.1)
    with pytest.raises(ConfigError, match="tolerance"):
        numerical_rank([1.0], 0.0)


@settings(deadline=None, max_examples=15)
@given(rank=st.integers(1, DIM), seed=st.integers(0, 1000))
def test_invariant_2_conversion_error_is_the_tail_of_the_spectrum(rank, seed):
    layer = _built("full", bias_initializer="ones")
    W = np.random.default_rng(seed).normal(size=(DIM, DIM))
    layer.W.assign(W)
    result = to_low_rank(layer, rank)
    tail = np.linalg.svd(W, compute_uv=False)[rank:]
    np.testing.assert_allclose(result.error, np.sqrt(np.sum(tail**2)), atol=1e-12)
    np.testing.assert_allclose(
        np.linalg.norm(W - cross_matrix(result.layer)), result.error, atol=1e-12
    )
    np.testing.assert_allclose(result.relative_error, result.error / np.linalg.norm(W))
    np.testing.assert_array_equal(result.layer.b.numpy(), np.ones(DIM))


def test_conversion_at_full_rank_computes_the_same():
    layer = _built("full", use_bias=False)
    result = to_low_rank(layer, DIM)
    x = tf.constant(np.random.default_rng(0).normal(size=(5, DIM)))
    np.testing.assert_allclose(result.layer(x).numpy(), layer(x).numpy(), atol=1e-12)
    with pytest.raises(ConfigError, match="1 to 7"):
        to_low_rank(layer, DIM + 1)


@pytest.mark.needs("matplotlib")
def test_heat_map_is_a_picture(tmp_path):
    path = tmp_path / "interactions.png"
    plot_interactions(interaction_norms(_built("mixture"), WIDTHS), ["user", "item", "age"], path)
    assert path.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ConfigError, match="field_names"):
        plot_interactions(np.eye(3), ["user"], path)
