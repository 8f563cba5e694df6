"""Pooling of vectors with padding."""

from __future__ import annotations

import tensorflow as tf


def mean_of_real(vectors: tf.Tensor, ids: tf.Tensor) -> tf.Tensor:
    """The mean of the vectors with an id other than 0 in each row; zeros if there are none.

    Args:
      vectors: `[batch, values, dim]`.
      ids: `[batch, values]`.

    Returns:
      `[batch, dim]`.

    Example:
      >>> vectors = tf.constant([[[2.0], [4.0], [9.0]]])
      >>> print(mean_of_real(vectors, tf.constant([[7, 8, 0]])).numpy())
      [[3.]]
    """
    real = tf.not_equal(ids, 0)[:, :, None]
    # Not a product with 0 and 1: NaN times 0 is NaN.
    sums = tf.reduce_sum(tf.where(real, vectors, tf.zeros_like(vectors)), axis=1)
    return tf.math.divide_no_nan(sums, tf.reduce_sum(tf.cast(real, vectors.dtype), axis=1))
