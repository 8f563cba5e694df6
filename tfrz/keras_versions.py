"""Where Keras 2 and Keras 3 differ: no other module asks which of them is installed."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from tfrz.errors import BackendError

_WANTED = (
    "tfrz needs TensorFlow as the backend of Keras, not {}: unset KERAS_BACKEND, or set it to "
)
if os.environ.get("KERAS_BACKEND", "tensorflow") != "tensorflow":
    # Before Keras looks for the other backend, which need not be installed.
    raise BackendError(_WANTED.format(os.environ["KERAS_BACKEND"]) + "tensorflow")

import keras  # noqa: E402
import tensorflow as tf  # noqa: E402

import tfrz.tracing  # noqa: E402, F401  (every package that is traced imports this module)

KERAS_3 = not keras.__version__.startswith("2.")
# The environment of tested versions that this one belongs to (docs/install.md).
LANE = "newest" if KERAS_3 else "reference"

if keras.backend.backend() != "tensorflow":
    # Keras 3 reads its backend from ~/.keras/keras.json too.
    raise BackendError(_WANTED.format(keras.backend.backend()) + "tensorflow")


def tf_variables(weights: Sequence[Any]) -> list[tf.Variable]:
    """The variables of TensorFlow behind the weights of a layer or model, which Keras 3 wraps."""
    return [weight.value for weight in weights] if KERAS_3 else list(weights)


@tf.autograph.experimental.do_not_convert  # Called within compiled steps; it is plain Python.
def layers_within(model: keras.layers.Layer) -> list[keras.layers.Layer]:
    """A model's layers at every depth, each once: those in lists and dictionaries too."""
    if not KERAS_3:
        return [part for part in model.submodules if isinstance(part, keras.layers.Layer)]
    found: dict[int, keras.layers.Layer] = {}

    def visit(value: Any) -> None:
        if isinstance(value, keras.layers.Layer):
            if id(value) not in found:
                found[id(value)] = value
                visit(vars(value))
        elif isinstance(value, Mapping):
            visit(list(value.values()))
        elif isinstance(value, (list, tuple)):
            for part in value:
                visit(part)

    visit(model)
    return list(found.values())[1:]


def exchange_layer(model: keras.Model, old: keras.layers.Layer, new: keras.layers.Layer) -> None:
    """Lets a layer have the place of another among a model's weights, where its attributes do.

    Keras 2 does so by itself. Keras 3 has no public way: what was an attribute once stays among
    its layers, and a saved model finds layers of one class by their order.
    """
    if KERAS_3:
        place = next(i for i, layer in enumerate(model._layers) if layer is old)
        for layer in (old, new):
            model._tracker.untrack(layer)
        model._tracker.track(new)
        model._layers.insert(place, model._layers.pop())


def make_optimizer(kind: type[keras.optimizers.Optimizer], **settings: Any) -> Any:
    """An optimiser whose update is not compiled on its own.

    Keras 2 would otherwise compile it on GPUs, and make the gradients of embeddings dense.
    """
    return kind(**settings) if KERAS_3 else kind(jit_compile=False, **settings)


def _divided(gradient: Any, by: float) -> Any:
    if isinstance(gradient, tf.IndexedSlices):
        return tf.IndexedSlices(gradient.values / by, gradient.indices, gradient.dense_shape)
    return gradient if gradient is None else gradient / by


def apply_summed_gradients(
    optimizer: Any, gradients: Sequence[Any], variables: Sequence[Any], replicas: int
) -> None:
    """Takes a step by gradients that are summed over the replicas already.

    Args:
      optimizer: of Keras.
      gradients: the sum over all replicas, the same on each; None where there is none.
      variables: of the optimiser, as many.
      replicas: how many take part; Keras 3 sums over them once more, so each brings its share.
    """
    if not KERAS_3:
        pairs = zip(gradients, variables, strict=True)
        optimizer.apply_gradients(pairs, skip_gradients_aggregation=True)
        return
    if replicas > 1:
        gradients = [_divided(gradient, float(replicas)) for gradient in gradients]
    optimizer.apply_gradients(list(zip(gradients, variables, strict=True)))


def lane() -> str:
    """Which of the two tested installations this is, or that it is neither."""
    known = f"{LANE} lane"
    if LANE == "reference" and not tf.__version__.startswith("2.15."):
        known = "no tested lane"
    return f"{known} (TensorFlow {tf.__version__}, Keras {keras.__version__})"
