"""Where Keras 2 and Keras 3 differ: what the helpers do on either."""

from __future__ import annotations

import logging

import keras
import tensorflow as tf

from tfrz.keras_versions import layers_within


def test_layers_are_found_within_a_compiled_step_without_a_warning():
    model = keras.Sequential([keras.layers.Input((2,)), keras.layers.Dense(1, name="one")])
    found, warnings = [], []
    handler = logging.Handler()
    handler.emit = lambda record: warnings.append(record.getMessage())
    logger = logging.getLogger("tensorflow")
    logger.addHandler(handler)

    @tf.function
    def step(x):
        found.extend(layer.name for layer in layers_within(model))
        return x

    try:
        step(tf.constant(1.0))
    finally:
        logger.removeHandler(handler)
    assert "one" in found
    assert not [line for line in warnings if "AutoGraph could not transform" in line]
