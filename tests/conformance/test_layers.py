"""What every layer of the zoo must do, whatever it computes."""

from __future__ import annotations

import inspect

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.conformance.case import LAYER_CASES, LayerCase, each, first_of
from tfrz.zoo import registry


def _mask_of(case: LayerCase) -> str | None:
    """The argument by which a layer is told what to leave out, if it has one."""
    known = inspect.signature(registry.resolve(case.layer).call).parameters
    return next((name for name in ("mask", "valid", "missing") if name in known), None)


cases = each(LAYER_CASES)
first_cases_fast = each(LAYER_CASES, first_of(LAYER_CASES, "layer"))


def _weights(layer) -> dict[str, np.ndarray]:
    """By the last part of their path, in float64."""
    return {
        getattr(w, "path", w.name).split(":")[0].split("/")[-1]: np.asarray(
            tf.convert_to_tensor(w), "float64"
        )
        for w in layer.weights
    }


def _built(case: LayerCase, dtype: str = "float32"):
    keras.utils.set_random_seed(1)
    layer = case.make(dtype)
    layer(*[tf.constant(x, "float32") for x in case.batch(2)])
    rng = np.random.default_rng(2)
    layer.set_weights([rng.normal(0, 0.3, w.shape).astype("float32") for w in layer.get_weights()])
    return layer


@cases
@pytest.mark.parametrize("batch", [1, 5])
def test_the_output_has_the_shape_that_is_announced(case, batch):
    layer, inputs = _built(case), case.batch(batch, dtype="float32")
    output = layer(*map(tf.constant, inputs))
    announced = layer.compute_output_shape(*[x.shape for x in inputs])
    assert tuple(output.shape) == tuple(announced)


@cases
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [("float32", 1e-5), ("mixed_bfloat16", 2e-2)], ids=lambda v: str(v)
)
def test_it_computes_what_the_oracle_computes(case, dtype, tolerance):
    layer, inputs = _built(case, dtype), case.batch(6)
    output = layer(*[tf.constant(x, "float32") for x in inputs])
    expected = case.oracle(_weights(layer), *inputs)
    scale = max(1.0, float(np.abs(expected).max()))
    np.testing.assert_allclose(
        np.asarray(tf.cast(output, tf.float32)), expected, rtol=0, atol=tolerance * scale
    )


@cases
def test_a_layer_made_from_its_config_computes_the_same(case):
    layer, inputs = _built(case), [tf.constant(x) for x in case.batch(3, dtype="float32")]
    copy = type(layer).from_config(layer.get_config())
    copy(*inputs)
    copy.set_weights(layer.get_weights())
    np.testing.assert_array_equal(np.asarray(copy(*inputs)), np.asarray(layer(*inputs)))
    assert copy.get_config() == layer.get_config()


@cases
def test_a_saved_model_that_holds_it_is_equal_to_the_bit(case, tmp_path):
    arguments = [keras.Input(shape) for shape in case.inputs]
    layer = case.make("float32")
    model = keras.Model(arguments, layer(*arguments))
    inputs = case.batch(4, dtype="float32")
    path = str(tmp_path / "model.keras")
    model.save(path)
    copy = keras.models.load_model(path)
    given = inputs if len(inputs) > 1 else inputs[0]
    np.testing.assert_array_equal(model.predict(given, verbose=0), copy.predict(given, verbose=0))


@first_cases_fast
def test_xla_changes_nothing(case):
    layer, inputs = _built(case), [tf.constant(x) for x in case.batch(5, dtype="float32")]
    compiled = tf.function(lambda *a: layer(*a), jit_compile=True)(*inputs)
    np.testing.assert_allclose(np.asarray(compiled), np.asarray(layer(*inputs)), atol=1e-5)


@cases
def test_every_weight_gets_a_finite_gradient(case):
    layer, inputs = _built(case), [tf.constant(x) for x in case.batch(5, dtype="float32")]
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.square(layer(*inputs)))
    gradients = tape.gradient(loss, layer.trainable_variables)
    assert gradients
    for weight, gradient in zip(layer.trainable_variables, gradients, strict=True):
        assert gradient is not None, weight.name
        assert np.isfinite(np.asarray(tf.convert_to_tensor(gradient))).all()


@cases
def test_gradients_equal_central_differences_in_float64(case):
    keras.utils.set_random_seed(3)
    layer = case.make("float64")
    inputs = [tf.constant(x) for x in case.batch(2, seed=4)]
    layer(*inputs)
    rng = np.random.default_rng(5)
    layer.set_weights([rng.normal(0, 0.3, w.shape) for w in layer.get_weights()])
    target = rng.normal(size=layer(*inputs).shape)

    def loss() -> tf.Tensor:
        return tf.reduce_sum(target * tf.cast(layer(*inputs), tf.float64))

    with tf.GradientTape() as tape:
        value = loss()
    gradients = tape.gradient(value, layer.trainable_variables)
    for weight, gradient in zip(layer.trainable_variables, gradients, strict=True):
        start = np.asarray(tf.convert_to_tensor(weight))
        for flat in rng.choice(start.size, size=min(4, start.size), replace=False):
            position, values = np.unravel_index(flat, start.shape), []
            for step in (1e-5, -1e-5):
                moved = start.copy()
                moved[position] += step
                weight.assign(moved)
                values.append(float(loss()))
            weight.assign(start)
            difference = (values[0] - values[1]) / 2e-5
            assert float(np.asarray(tf.convert_to_tensor(gradient))[position]) == pytest.approx(
                difference, rel=1e-6, abs=1e-7
            )


@cases
def test_rows_of_a_batch_do_not_touch_each_other(case):
    layer, inputs = _built(case), case.batch(4, dtype="float32")
    together = np.asarray(layer(*map(tf.constant, inputs)))
    for row in range(4):
        alone = np.asarray(layer(*[tf.constant(x[row : row + 1]) for x in inputs]))
        np.testing.assert_allclose(alone[0], together[row], rtol=1e-5, atol=1e-6)


MASKED_CASES = [case for case in LAYER_CASES if _mask_of(case) is not None]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf], ids=str)
@pytest.mark.parametrize("case", MASKED_CASES, ids=lambda c: f"{c.layer}-{c.name}")
def test_masked_values_never_reach_an_output_or_a_gradient(case, value):
    layer, inputs, name = _built(case), case.batch(4, dtype="float32"), _mask_of(case)
    if name == "missing":
        real, inputs = inputs[1] == 0, inputs[:1]
        given = {name: tf.constant(~real)}
    else:
        # Padding on the left, on the right, in the middle and everywhere.
        real = np.ones(inputs[0].shape[:2], bool)
        real[0, :2] = real[1, -2:] = real[2, 2] = real[3] = False
        given = {name: tf.constant(real)}
    poisoned = [x.copy() for x in inputs]
    for x in poisoned:
        if x.shape[: real.ndim] == real.shape and x.ndim > real.ndim:
            x[~real] = value
    found = []
    for values in (inputs, poisoned):
        tensors = [tf.constant(x) for x in values]
        with tf.GradientTape() as tape:
            tape.watch(tensors)
            output = layer(*tensors, **given)
            loss = tf.reduce_sum(tf.square(output))
        gradients = tape.gradient(
            loss,
            [*layer.trainable_variables, *tensors],
            unconnected_gradients=tf.UnconnectedGradients.ZERO,
        )
        found.append([np.asarray(tf.convert_to_tensor(v)) for v in (output, *gradients)])
    for clean, other in zip(*found, strict=True):
        assert np.isfinite(clean).all()
        np.testing.assert_array_equal(other, clean)
