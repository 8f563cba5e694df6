"""LowRankDense: the battery's checks, and what the battery does not know to ask."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.conformance import test_layers as battery
from tests.conformance.cases.low_rank import LAYER_CASES
from tfrz.errors import ConfigError
from tfrz.layers import LowRankDense, spectral_factors

cases = pytest.mark.parametrize("case", LAYER_CASES, ids=lambda c: c.name)


@cases
@pytest.mark.parametrize(
    "check",
    [
        "a_layer_made_from_its_config_computes_the_same",
        "xla_changes_nothing",
        "every_weight_gets_a_finite_gradient",
        "gradients_equal_central_differences_in_float64",
        "rows_of_a_batch_do_not_touch_each_other",
    ],
)
def test_battery(case, check):
    getattr(battery, f"test_{check}")(case)


@cases
@pytest.mark.parametrize("batch", [1, 5])
def test_battery_shape(case, batch):
    battery.test_the_output_has_the_shape_that_is_announced(case, batch)


@cases
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("mixed_bfloat16", 2e-2)])
def test_battery_oracle(case, dtype, tolerance):
    battery.test_it_computes_what_the_oracle_computes(case, dtype, tolerance)


@cases
def test_battery_saved(case, tmp_path):
    battery.test_a_saved_model_that_holds_it_is_equal_to_the_bit(case, tmp_path)


def test_it_starts_from_the_best_approximation_of_the_dense_draw():
    drawn = keras.initializers.HeNormal(seed=3)
    dense = np.asarray(drawn((10, 6)), "float64")
    layer = LowRankDense(6, rank=2, kernel_initializer=keras.initializers.HeNormal(seed=3))
    layer.build((None, 10))
    U, V = (np.asarray(tf.convert_to_tensor(w)) for w in (layer.U, layer.V))
    values = np.linalg.svd(dense, compute_uv=False)
    assert np.linalg.norm(dense - U @ V.T) == pytest.approx(np.linalg.norm(values[2:]), rel=1e-5)
    np.testing.assert_allclose(U.T @ U, np.diag(values[:2]), atol=1e-5)
    np.testing.assert_allclose(V.T @ V, np.diag(values[:2]), atol=1e-5)


def test_full_rank_starts_as_the_dense_layer():
    dense = keras.layers.Dense(6, kernel_initializer=keras.initializers.HeNormal(seed=3))
    layer = LowRankDense(6, rank=6, kernel_initializer=keras.initializers.HeNormal(seed=3))
    x = tf.constant(np.random.default_rng(0).normal(size=(4, 10)).astype("float32"))
    np.testing.assert_allclose(np.asarray(layer(x)), np.asarray(dense(x)), atol=1e-5)


@pytest.mark.parametrize("inside_a_function", [False, True])
def test_the_penalty_is_half_lambda_times_the_squared_norm_of_the_product(inside_a_function):
    layer = LowRankDense(3, rank=2, use_bias=False, frobenius_decay=0.5)
    layer.build((None, 2))
    layer.set_weights([np.array([[1.0, 0], [2, -1]]), np.array([[0.5, 1], [0, 2], [1, -1]])])

    def losses():
        layer(tf.ones([1, 2]))
        return tf.add_n(layer.losses)

    found = tf.function(losses)() if inside_a_function else losses()
    # Half the squared norm is 7.125 (specification, invariant 8).
    assert float(found) == pytest.approx(0.5 * 7.125, rel=1e-6)
    assert float(layer.squared_norm()) == pytest.approx(14.25, rel=1e-6)


def test_it_is_built_inside_a_function():
    layer = LowRankDense(3, rank=1)

    @tf.function
    def call(x):
        return layer(x)

    assert call(tf.ones([2, 4])).shape == (2, 3)
    inputs = keras.Input((4,))
    model = keras.Model(inputs, LowRankDense(3, rank=1)(inputs))
    assert model.predict(np.ones((2, 4), "float32"), verbose=0).shape == (2, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"units": 0, "rank": 1}, "units: must be at least 1"),
        ({"units": 4, "rank": 0}, "rank: must be at least 1"),
        ({"units": 4, "rank": -2}, "rank: must be at least 1"),
        ({"units": 4, "rank": 5}, "rank: 5 is above 4, the layer's units"),
        (
            {"units": 9, "rank": 7, "name": "tower"},
            "rank: 7 is above 6, the width of tower's input",
        ),
        ({"units": 4, "rank": 1, "frobenius_decay": -0.1}, "must not be negative"),
    ],
)
def test_bad_arguments_are_one_line(arguments, message):
    with pytest.raises(ConfigError, match=message) as raised:
        LowRankDense(**arguments).build((None, 6))
    assert "\n" not in str(raised.value)


def test_the_last_dimension_must_be_known():
    with pytest.raises(ValueError, match="last dimension"):
        LowRankDense(4, rank=1).build((2, None))


@pytest.mark.parametrize("rank", [-1, 0, 4])
def test_factors_of_an_impossible_rank(rank):
    with pytest.raises(ConfigError, match="1 to 3, the full rank"):
        spectral_factors(np.ones((3, 5)), rank)
