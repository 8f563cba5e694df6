"""Metrics of one output an example: AUC, log loss, normalised entropy, calibration, error."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from tfrz.metrics.directions import better
from tfrz.shapes import require_shapes


def _pair(labels: Any, outputs: Any) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Labels and outputs as float64, one output for each label."""
    labels, outputs = np.asarray(labels, np.float64), np.asarray(outputs, np.float64)
    require_shapes(locals(), labels="...", outputs="...")
    return labels, outputs


@better("min", "log_loss")
def log_loss(labels: NDArray[np.float64], logits: NDArray[np.float64]) -> float:
    """Mean binary cross-entropy: mean of log(1 + e^z) - y z, in nats.

    Args:
      labels: `[batch]`, 0 or 1.
      logits: `[batch]`, log-odds z of the label 1.

    Returns:
      The mean; NaN for no rows.

    Raises:
      InputError: the two shapes differ.

    Example:
      >>> round(log_loss(np.array([1.0, 0.0]), np.array([0.0, 0.0])), 6)
      0.693147
    """
    labels, logits = _pair(labels, logits)
    if labels.size == 0:
        return float("nan")
    return float(np.mean(np.logaddexp(0.0, logits) - labels * logits))


@better("min", "normalized_entropy")
def normalized_entropy(labels: NDArray[np.float64], logits: NDArray[np.float64]) -> float:
    """Log loss divided by the log loss of predicting the mean label; 1 is as good as the mean.

    Formula: `log_loss / H(p)` with `H(p) = -(p ln p + (1 - p) ln(1 - p))`, p the mean label.

    Args:
      labels: `[batch]`, 0 or 1.
      logits: `[batch]`, log-odds of the label 1.

    Returns:
      The ratio; NaN unless both labels occur.

    Raises:
      InputError: the two shapes differ.

    Example:
      >>> normalized_entropy(np.array([1.0, 0.0]), np.array([0.0, 0.0]))
      1.0

    Reference:
      DV365 (arXiv 2506.00450), specification 3.9.
    """
    labels, logits = _pair(labels, logits)
    mean = labels.mean() if labels.size else 0.0
    if not 0 < mean < 1:
        return float("nan")
    entropy = -(mean * np.log(mean) + (1 - mean) * np.log1p(-mean))
    return float(log_loss(labels, logits) / entropy)


@better("max", "auc")
def auc(labels: NDArray[np.float64], scores: NDArray[np.float64]) -> float:
    """Area under the ROC curve: P(s+ > s-) + P(s+ = s-) / 2, exactly, by ranks.

    Args:
      labels: `[batch]`, 0 or 1.
      scores: `[batch]`, any increasing function of the probability.

    Returns:
      The area; NaN unless both labels occur.

    Raises:
      InputError: the two shapes differ.

    Example:
      >>> auc(np.array([0, 0, 1, 1]), np.array([0.1, 0.4, 0.35, 0.8]))
      0.75
    """
    labels, scores = _pair(labels, scores)
    labels = labels > 0.5
    positives, negatives = int(labels.sum()), int((~labels).sum())
    if not positives or not negatives:
        return float("nan")
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks = (last - (counts - 1) / 2.0)[inverse]
    rank_sum = float(ranks[labels].sum())
    return (rank_sum - positives * (positives + 1) / 2.0) / (positives * negatives)


@better(1.0, "calibration")
def calibration(labels: NDArray[np.float64], logits: NDArray[np.float64]) -> float:
    """Mean predicted probability over mean label; 1 is calibrated in the large.

    Args:
      labels: `[batch]`, 0 or 1.
      logits: `[batch]`, log-odds of the label 1.

    Returns:
      The ratio; NaN if no label is 1.

    Raises:
      InputError: the two shapes differ.

    Example:
      >>> calibration(np.array([1.0, 0.0]), np.array([0.0, 0.0]))
      1.0
    """
    labels, logits = _pair(labels, logits)
    if labels.sum() == 0:
        return float("nan")
    probabilities = np.exp(-np.logaddexp(0.0, -logits))
    return float(probabilities.sum() / labels.sum())


@better("min", "mse")
def mean_squared_error(labels: NDArray[np.float64], outputs: NDArray[np.float64]) -> float:
    """Mean of (y - z)^2.

    Args:
      labels: y `[batch]`, any numbers.
      outputs: z `[batch]`.

    Returns:
      The mean; NaN for no rows.

    Raises:
      InputError: the two shapes differ.

    Example:
      >>> mean_squared_error(np.array([1.0, 3.0]), np.array([1.0, 1.0]))
      2.0
    """
    labels, outputs = _pair(labels, outputs)
    return float(np.mean(np.square(labels - outputs))) if labels.size else float("nan")


@keras.saving.register_keras_serializable(package="tfrz")
class Calibration(keras.metrics.Metric):
    """Mean prediction over mean label, streaming.

    Formula: sum_i w_i p_i / sum_i w_i y_i.

    Call arguments:
      y_true: labels, any shape.
      y_pred: probabilities, the same shape.
      sample_weight: optional, the same shape.

    Example:
      >>> metric = Calibration()
      >>> metric.update_state([1.0, 0.0], [0.75, 0.75])
      >>> float(metric.result())
      1.5
    """

    def __init__(self, name: str = "calibration", **kwargs: Any) -> None:
        super().__init__(name=name, **kwargs)
        self.predicted = self.add_weight(name="predicted", shape=(), initializer="zeros")
        self.observed = self.add_weight(name="observed", shape=(), initializer="zeros")

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        """Adds a batch."""
        labels = tf.reshape(tf.cast(y_true, self.dtype), [-1])
        predictions = tf.reshape(tf.cast(y_pred, self.dtype), tf.shape(labels))
        if sample_weight is not None:
            weights = tf.reshape(tf.cast(sample_weight, self.dtype), tf.shape(labels))
            labels, predictions = labels * weights, predictions * weights
        self.predicted.assign_add(tf.reduce_sum(predictions))
        self.observed.assign_add(tf.reduce_sum(labels))

    def result(self) -> Any:
        """The ratio so far; 0 before any label of 1."""
        return tf.math.divide_no_nan(
            tf.convert_to_tensor(self.predicted), tf.convert_to_tensor(self.observed)
        )


@keras.saving.register_keras_serializable(package="tfrz")
class NormalizedEntropy(keras.metrics.Metric):
    """Log loss divided by the log loss of predicting the mean label, streaming.

    Formula: `-sum_i w_i (y_i ln p_i + (1 - y_i) ln(1 - p_i)) / (sum_i w_i H(p))`, p the weighted
    mean label, H the entropy of a coin.

    Call arguments:
      y_true: labels, any shape.
      y_pred: probabilities, the same shape; clipped to 1e-7 away from 0 and 1.
      sample_weight: optional, the same shape.

    Example:
      >>> metric = NormalizedEntropy()
      >>> metric.update_state([1.0, 0.0], [0.5, 0.5])
      >>> float(metric.result())
      1.0
    """

    def __init__(self, name: str = "normalized_entropy", **kwargs: Any) -> None:
        super().__init__(name=name, **kwargs)
        self.loss = self.add_weight(name="loss", shape=(), initializer="zeros")
        self.observed = self.add_weight(name="observed", shape=(), initializer="zeros")
        self.total = self.add_weight(name="total", shape=(), initializer="zeros")

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        """Adds a batch."""
        labels = tf.reshape(tf.cast(y_true, self.dtype), [-1])
        p = tf.reshape(tf.cast(y_pred, self.dtype), tf.shape(labels))
        p = tf.clip_by_value(p, 1e-7, 1 - 1e-7)
        weights = tf.ones_like(labels)
        if sample_weight is not None:
            weights = tf.reshape(tf.cast(sample_weight, self.dtype), tf.shape(labels))
        losses = -(labels * tf.math.log(p) + (1 - labels) * tf.math.log1p(-p))
        self.loss.assign_add(tf.reduce_sum(weights * losses))
        self.observed.assign_add(tf.reduce_sum(weights * labels))
        self.total.assign_add(tf.reduce_sum(weights))

    def result(self) -> Any:
        """The ratio so far; NaN, which passes no threshold, until both labels have occurred."""
        total = tf.convert_to_tensor(self.total)
        p = tf.math.divide_no_nan(tf.convert_to_tensor(self.observed), total)
        entropy = -(tf.math.xlogy(p, p) + tf.math.xlog1py(1 - p, -p))
        # 0 / 0 where only one label, or none, has occurred.
        return tf.where(
            entropy > 0,
            tf.math.divide_no_nan(tf.convert_to_tensor(self.loss), total * entropy),
            tf.constant(float("nan"), total.dtype),
        )
