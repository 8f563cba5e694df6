"""Streaming Keras metrics of ranked lists, padded with labels below 0.

They have the values of TF-Ranking's metrics of the same names, but that ties are ranked by position
rather than at random.
"""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from tfrz.config import require
from tfrz.shapes import require_shapes


class _ListMetric(keras.metrics.Metric):
    """The weighted mean over lists of a value of each list."""

    def __init__(self, topn: int | None, name: str, **kwargs: Any) -> None:
        super().__init__(name=name, **kwargs)
        require(topn is None or topn >= 1, "topn", "must be at least 1")
        self.topn = topn
        self.total = self.add_weight(name="total", shape=(), initializer="zeros")
        self.weights_sum = self.add_weight(name="weights_sum", shape=(), initializer="zeros")

    def get_config(self) -> dict[str, Any]:
        """The arguments of the constructor."""
        return {**super().get_config(), "topn": self.topn}

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        """Adds a batch of lists.

        Raises:
          InputError: labels and scores are not of one shape `[batch, list]`, or the weights not
            `[batch]`.
        """
        y_true, y_pred = tf.convert_to_tensor(y_true), tf.convert_to_tensor(y_pred)
        require_shapes(locals(), y_true="batch list", y_pred="batch list", sample_weight="batch")
        labels, scores = tf.cast(y_true, self.dtype), tf.cast(y_pred, self.dtype)
        valid = labels >= 0
        lowest = tf.constant(-float("inf"), scores.dtype)
        order = tf.argsort(
            tf.where(valid, scores, lowest), axis=1, direction="DESCENDING", stable=True
        )
        labels = tf.where(valid, labels, tf.zeros_like(labels))
        values = self.of_lists(tf.gather(labels, order, batch_dims=1)[:, : self.topn], labels)
        weights = tf.ones_like(values)
        if sample_weight is not None:
            weights = tf.cast(sample_weight, self.dtype)
        self.total.assign_add(tf.reduce_sum(values * weights))
        self.weights_sum.assign_add(tf.reduce_sum(weights))

    def of_lists(self, ordered: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        """The values `[batch]` of lists, from their labels in the order of the scores."""
        raise NotImplementedError

    def result(self) -> Any:
        """The mean so far; 0 before any list."""
        return tf.math.divide_no_nan(
            tf.convert_to_tensor(self.total), tf.convert_to_tensor(self.weights_sum)
        )


@keras.saving.register_keras_serializable(package="tfrz")
class NDCGMetric(_ListMetric):
    """Normalised discounted cumulative gain, streaming.

    Formula: `sum_{r <= topn} (2^{y_r} - 1) / log2(1 + r)` of the order by score, divided by that of
    the best order; 0 for a list without anything relevant.

    Args:
      topn: how many places count; all by default.
      name: of the metric.
      **kwargs: of `keras.metrics.Metric`.

    Call arguments:
      y_true: graded relevance, below 0 for padding, `[batch, list]`.
      y_pred: scores, alike.
      sample_weight: of the lists, `[batch]`.

    Example:
      >>> metric = NDCGMetric()
      >>> metric.update_state([[0.0, 1.0, 1.0]], [[3.0, 1.0, 2.0]])
      >>> round(float(metric.result()), 4)
      0.6934

    Reference:
      TF-Ranking's `NDCGMetric`.
    """

    def __init__(self, topn: int | None = None, name: str = "ndcg_metric", **kwargs: Any) -> None:
        super().__init__(topn, name, **kwargs)

    def of_lists(self, ordered: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        """See the class."""
        best = tf.sort(labels, axis=1, direction="DESCENDING")[:, : self.topn]
        places = tf.cast(tf.range(1, tf.shape(ordered)[1] + 1), ordered.dtype)
        discounts = tf.math.log(tf.constant(2.0, ordered.dtype)) / tf.math.log1p(places)
        found, ideal = (
            tf.reduce_sum((tf.pow(tf.constant(2.0, y.dtype), y) - 1) * discounts, axis=1)
            for y in (ordered, best)
        )
        return tf.math.divide_no_nan(found, ideal)


@keras.saving.register_keras_serializable(package="tfrz")
class MRRMetric(_ListMetric):
    """Mean reciprocal rank of the first item with a label of 1 or more, streaming.

    Formula: `max_{r <= topn} [y_r >= 1] / r` of the order by score; 0 for a list without one.

    Args:
      topn: how many places count; all by default.
      name: of the metric.
      **kwargs: of `keras.metrics.Metric`.

    Call arguments:
      y_true: graded relevance, below 0 for padding, `[batch, list]`.
      y_pred: scores, alike.
      sample_weight: of the lists, `[batch]`.

    Example:
      >>> metric = MRRMetric()
      >>> metric.update_state([[0.0, 1.0, 1.0]], [[3.0, 1.0, 2.0]])
      >>> float(metric.result())
      0.5

    Reference:
      TF-Ranking's `MRRMetric`.
    """

    def __init__(self, topn: int | None = None, name: str = "mrr_metric", **kwargs: Any) -> None:
        super().__init__(topn, name, **kwargs)

    def of_lists(self, ordered: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        """See the class."""
        del labels
        places = tf.cast(tf.range(1, tf.shape(ordered)[1] + 1), ordered.dtype)
        return tf.reduce_max(tf.cast(ordered >= 1, ordered.dtype) / places, axis=1)
