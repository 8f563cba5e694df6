"""Numbers as words, for slices of the Evaluator."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf


def in_words(values: tf.Tensor, bounds: Sequence[int], words: Sequence[str]) -> tf.Tensor:
    """The word of each value: the first below `bounds[0]`, the last from `bounds[-1]` on.

    Example:
      >>> print(in_words(tf.constant([0, 3, 10]), [1, 10], ["none", "1-9", "10+"]).numpy())
      [b'none' b'1-9' b'10+']
    """
    places = tf.searchsorted(tf.constant(bounds, values.dtype), values, side="right")
    return tf.gather(tf.constant(words), places)


def rank_in_words(
    ids: tf.Tensor, known: int, bounds: Sequence[int], words: Sequence[str]
) -> tf.Tensor:
    """The word of each rank by frequency (an id from 1); ids beyond `known` have the first word."""
    return in_words(tf.where(ids > known, tf.zeros_like(ids), ids), bounds, words)
