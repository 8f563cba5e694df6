"""Computations that need float32 whatever the compute dtype is."""

from __future__ import annotations

from typing import Any

import tensorflow as tf


def wide(values: tf.Tensor) -> tf.Tensor:
    """The values in float32; float64 stays."""
    return values if values.dtype == tf.float64 else tf.cast(values, tf.float32)


def layer_norm(x: tf.Tensor, scale: Any, shift: Any) -> tf.Tensor:
    """`scale (x - mean) / sqrt(variance + 1e-6) + shift` over the last axis, in the dtype of `x`.

    Args:
      x: `[..., dim]`.
      scale: a variable `[dim]`.
      shift: a variable `[dim]`.
    """
    values = wide(x)
    mean, variance = tf.nn.moments(values, axes=[-1], keepdims=True)
    normalized = tf.cast((values - mean) * tf.math.rsqrt(variance + 1e-6), x.dtype)
    return normalized * tf.convert_to_tensor(scale) + shift
