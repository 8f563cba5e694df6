"""A check of shapes, where broadcasting would otherwise compute something else without a word."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tfrz.errors import InputError


def require_shapes(values: Mapping[str, Any], **patterns: str) -> None:
    """Checks the shapes of arguments; dimensions that are not known pass, and so does None.

    Args:
      values: arrays, tensors or nested lists by name: `locals()` of the caller.
      **patterns: names of `values` to their dimensions. Dimensions of one name must be equal; `...`
        at the start is any number of dimensions, the same for all. `?` at the end of a pattern
        admits every shape that broadcasts to this one without enlarging it.

    Raises:
      InputError: a value has another shape.

    Example:
      >>> scores, targets = np.zeros([3, 4]), np.zeros([3, 1])
      >>> require_shapes(locals(), scores="batch items", targets="batch")
      Traceback (most recent call last):
      tfrz.errors.InputError: targets: expected the shape [batch] = (3,), got (3, 1)
    """
    lead: tf.TensorShape | None = None
    sizes: dict[str, int] = {}
    for name, pattern in patterns.items():
        value, names = values[name], pattern.rstrip("?").split()
        if value is None:
            continue
        shape = tf.TensorShape(value.shape if hasattr(value, "shape") else np.shape(value))
        tail = [one for one in names if one != "..."]
        expected = tf.TensorShape([sizes.get(one) for one in tail])
        if names != tail:
            if lead is None and shape.rank is not None:
                lead = shape[: max(shape.rank - len(tail), 0)]
            expected = tf.TensorShape(None) if lead is None else lead.concatenate(expected)
        try:
            reached = tf.broadcast_static_shape(shape, expected) if "?" in pattern else shape
        except ValueError:
            reached = tf.TensorShape([None] * 9)
        if not expected.is_compatible_with(reached):
            wanted = f"[{', '.join(names)}] = {expected}"
            raise InputError(f"{name}: expected the shape {wanted}, got {shape}")
        if shape.rank is not None and "?" not in pattern:
            found = zip(tail, shape[shape.rank - len(tail) :], strict=True)
            sizes.update({one: size for one, size in found if size is not None})
