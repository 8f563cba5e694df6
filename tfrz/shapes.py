"""Checks of shapes, where broadcasting would otherwise compute something else without a word."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfrz.errors import InputError


def shape_of(value: Any) -> tf.TensorShape:
    """The shape of a tensor, an array or nested lists, as far as it is known."""
    return tf.TensorShape(value.shape if hasattr(value, "shape") else np.shape(value))


def require_shape(expected: tf.TensorShape | Sequence[int | None], **values: Any) -> None:
    """Checks that values have a shape; dimensions that are not known pass, and so does None.

    Args:
      expected: the shape; None for any size of a dimension.
      **values: arrays or tensors by the names of the caller's arguments.

    Raises:
      InputError: a value has another shape.

    Example:
      >>> require_shape([3], labels=np.zeros(3), logits=np.zeros([3, 1]))
      Traceback (most recent call last):
      tfrz.errors.InputError: logits: expected the shape (3,), got (3, 1)
    """
    expected = tf.TensorShape(expected)
    for name, value in values.items():
        if value is not None and not expected.is_compatible_with(shape_of(value)):
            raise InputError(f"{name}: expected the shape {expected}, got {shape_of(value)}")


def require_fit(expected: tf.TensorShape | Sequence[int | None], **values: Any) -> None:
    """Checks that values broadcast to a shape and do not enlarge it.

    Args:
      expected: the shape.
      **values: as in `require_shape`.

    Raises:
      InputError: a value does not broadcast to the shape.

    Example:
      >>> require_fit([3, 4], correction=np.zeros(4))
      >>> require_fit([3], correction=np.zeros([3, 1]))
      Traceback (most recent call last):
      tfrz.errors.InputError: correction: does not fit the shape (3,), got (3, 1)
    """
    expected = tf.TensorShape(expected)
    for name, value in values.items():
        shape = tf.TensorShape(None) if value is None else shape_of(value)
        try:
            fits = expected.is_compatible_with(tf.broadcast_static_shape(shape, expected))
        except ValueError:
            fits = False
        if not fits:
            raise InputError(f"{name}: does not fit the shape {expected}, got {shape}")
