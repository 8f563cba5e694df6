"""The zoo's own functions are traced as they are; those of its users are rewritten by AutoGraph."""

from __future__ import annotations

import dataclasses
import importlib
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfrz import tracing
from tfrz.keras_versions import KERAS_3
from tfrz.layers import LowRankCross
from tfrz.models import ClickModel


@keras.saving.register_keras_serializable(package="tests")
class Halved(keras.layers.Layer):
    """Halves its inputs until none is above 1: as many steps as they need."""

    def call(self, inputs):
        while tf.reduce_max(inputs) > 1.0:
            inputs = inputs / 2.0
        return inputs


@dataclasses.dataclass(frozen=True)
class BoundedConfig:
    """The shape of a `Bounded`."""

    dim: int = 2
    embedding_scale: float = 3.0


class Bounded(ClickModel):
    """A model whose own method branches by a tensor."""

    config_class = BoundedConfig

    def field_width(self):
        return self.config.dim

    def make_layers(self):
        pass

    def build_layers(self, dim):
        pass

    def interact(self, x0, training=False):
        logits = tf.reduce_sum(x0, axis=-1)
        if tf.reduce_sum(logits) < 0:
            logits = tf.zeros_like(logits)
        return logits


def test_modules_of_the_zoo_are_exempt():
    from tensorflow.python.autograph.impl import conversion

    assert conversion.is_allowlisted(LowRankCross.call)
    assert not conversion.is_allowlisted(Halved.call)
    for name in tracing._CONVERTED:
        module = importlib.import_module(name)
        classes = [k for k in vars(module).values() if isinstance(k, type)]
        classes = [k for k in classes if k.__module__ == name]
        functions = [f for k in classes for f in vars(k).values() if hasattr(f, "__code__")]
        assert functions and not any(conversion.is_allowlisted(f) for f in functions), name


@pytest.mark.skipif(KERAS_3, reason="Keras 3 does not rewrite the layers that it calls")
def test_a_layer_of_ones_own_beside_the_zoos():
    model = keras.Sequential([LowRankCross(2, kernel_initializer="zeros"), Halved()])
    traced = tf.function(model)
    for scale, expected in ((0.5, 0.5), (8.0, 1.0)):
        np.testing.assert_allclose(traced(tf.fill([2, 3], scale)), np.full((2, 3), expected))


def test_methods_of_a_model_of_ones_own():
    model = Bounded(BoundedConfig(), {"a_xf": 50, "b_xf": 40})

    @tf.function
    def scores(x0):  # As the step of a training calls them.
        return model.interact(x0)

    np.testing.assert_allclose(scores(tf.ones([2, 3])), [3, 3])
    np.testing.assert_allclose(scores(-tf.ones([2, 3])), [0, 0])


def test_a_tensorflow_without_rules_is_no_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow.python.autograph.core.config", None)
    monkeypatch.setattr(sys.modules["tensorflow.python.autograph.core"], "config", None)
    assert not tracing.add_rules()
