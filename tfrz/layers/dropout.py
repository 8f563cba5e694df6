"""Dropout that a resumed run repeats."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from tfrz.layers.configured import ConfiguredLayer


@keras.saving.register_keras_serializable(package="tfrz")
class SeededDropout(ConfiguredLayer):
    """Dropout whose draws are a function of (seed, step), so that a resumed run repeats them.

    The layer of Keras keeps the state of its generator outside the checkpoint.

    Args:
      rate: share of the values that are dropped; the others are divided by `1 - rate`.
      seed: seed of the draws.

    Call arguments:
      inputs: any shape.
      training: whether values are dropped.
    """

    def __init__(self, rate: float, seed: int = 0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.rate, self.seed = rate, seed

    def build(self, input_shape: Any) -> None:
        """Makes the counter of draws."""
        self.draws = self.add_weight(
            name="draws", shape=(), dtype="int32", initializer="zeros", trainable=False
        )
        self.built = True

    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Drops in training, does nothing otherwise."""
        if not training or not self.rate:
            return inputs
        draw = tf.convert_to_tensor(self.draws)
        self.draws.assign(draw + 1)
        return tf.nn.experimental.stateless_dropout(
            inputs, self.rate, seed=tf.stack([tf.constant(self.seed), draw])
        )

    def compute_output_shape(self, input_shape: Any) -> Any:
        """The shape of the input."""
        return input_shape
