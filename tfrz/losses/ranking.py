"""Losses of ranked lists: pointwise, listwise and pairwise, over lists padded with labels below 0.

All take labels and scores `[batch, list]`, as TF-Ranking's losses of the same names do, and have
their values and gradients to 1e-6, but for three differences: ties are ranked by position rather
than at random, a padded place has no part at all in a softmax, and whatever stands at a padded
place, NaN included, reaches neither a loss nor a gradient.

`sample_weight` of a call is a weight for each list, `[batch]`.
"""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from tfrz.config import require
from tfrz.layers.numerics import wide
from tfrz.shapes import require_shapes


def ranks_of(scores: tf.Tensor, valid: tf.Tensor) -> tf.Tensor:
    """The place of each score in its list, from 1; ties in the order of position.

    Args:
      scores: `[batch, list]`.
      valid: which of them count, bool `[batch, list]`; the others stand after these.

    Returns:
      int32 `[batch, list]`.

    Example:
      >>> print(ranks_of(tf.constant([[1.0, 3.0, 3.0]]), tf.constant([[True, True, True]])).numpy())
      [[3 1 2]]
    """
    key = tf.where(valid, scores, tf.constant(-float("inf"), scores.dtype))
    order = tf.argsort(key, axis=1, direction="DESCENDING", stable=True)
    return tf.argsort(order, axis=1) + 1


def ideal_dcg(gains: tf.Tensor, discounts: tf.Tensor) -> tf.Tensor:
    """DCG of the best order, `sum_r gain_(r) discount_r` with gains from the largest, `[batch, 1]`.

    Args:
      gains: not negative, 0 at padded places, `[batch, list]`.
      discounts: of the ranks 1 to list, `[list]`.
    """
    best = tf.sort(gains, axis=1, direction="DESCENDING")
    return tf.reduce_sum(best * discounts, axis=1, keepdims=True)


def _places(scores: tf.Tensor) -> tf.Tensor:
    """1 to the length of the lists, `[list]`."""
    return tf.cast(tf.range(1, tf.shape(scores)[1] + 1), scores.dtype)


class _ListLoss(keras.losses.Loss):
    """A loss of one value a list; the batch has their mean."""

    def __init__(self, temperature: float, name: str, **kwargs: Any) -> None:
        super().__init__(name=name, **kwargs)
        require(temperature > 0, "temperature", "must be above 0")
        self.temperature = temperature

    def get_config(self) -> dict[str, Any]:
        """The arguments of the constructor."""
        return {**super().get_config(), "temperature": self.temperature}

    def call(self, y_true: Any, y_pred: Any) -> tf.Tensor:
        """The losses of the lists, `[batch]`.

        Raises:
          InputError: labels and scores are not of one shape `[batch, list]`.
        """
        y_true, y_pred = tf.convert_to_tensor(y_true), tf.convert_to_tensor(y_pred)
        require_shapes(locals(), y_true="batch list", y_pred="batch list")
        scores = wide(y_pred)
        labels = tf.cast(y_true, scores.dtype)
        valid = labels >= 0
        scores = tf.where(valid, scores, tf.zeros_like(scores)) / self.temperature
        return self.of_lists(tf.where(valid, labels, tf.zeros_like(labels)), scores, valid)

    def of_lists(self, labels: tf.Tensor, scores: tf.Tensor, valid: tf.Tensor) -> tf.Tensor:
        """The losses, `[batch]`; labels and scores are 0 at places that are not valid."""
        raise NotImplementedError


@keras.saving.register_keras_serializable(package="tfrz")
class SigmoidCrossEntropyLoss(_ListLoss):
    """Pointwise: whether each item is relevant, by itself.

    Formula: `-1/n sum_i (y_i ln sigmoid(s_i) + (1 - y_i) ln(1 - sigmoid(s_i)))` over the items of
    a list, n its padded length.

    Args:
      temperature: scores are divided by it.
      name: of the loss.
      **kwargs: of `keras.losses.Loss`.

    Example:
      >>> loss = SigmoidCrossEntropyLoss()
      >>> round(float(loss(tf.constant([[1.0, 0.0, -1.0]]), tf.constant([[0.0, 0.0, 9.0]]))), 4)
      0.4621

    Reference:
      TF-Ranking's `SigmoidCrossEntropyLoss`.
    """

    def __init__(
        self, temperature: float = 1.0, name: str = "sigmoid_cross_entropy_loss", **kwargs: Any
    ) -> None:
        super().__init__(temperature, name, **kwargs)

    def of_lists(self, labels: tf.Tensor, scores: tf.Tensor, valid: tf.Tensor) -> tf.Tensor:
        """See the class."""
        losses = tf.nn.sigmoid_cross_entropy_with_logits(labels=labels, logits=scores)
        return tf.reduce_mean(tf.where(valid, losses, tf.zeros_like(losses)), axis=1)


@keras.saving.register_keras_serializable(package="tfrz")
class SoftmaxLoss(_ListLoss):
    """Listwise: the cross entropy of the labels under the softmax of the scores.

    Formula: `-sum_i y_i ln(exp(s_i) / sum_j exp(s_j))`; a list of zeros has a loss of 0.

    Args:
      temperature: scores are divided by it.
      name: of the loss.
      **kwargs: of `keras.losses.Loss`.

    Example:
      >>> loss = SoftmaxLoss()
      >>> round(float(loss(tf.constant([[1.0, 0.0, -1.0]]), tf.constant([[0.0, 0.0, 9.0]]))), 4)
      0.6931

    Reference:
      TF-Ranking's `SoftmaxLoss`.
    """

    def __init__(self, temperature: float = 1.0, name: str = "softmax_loss", **kwargs: Any) -> None:
        super().__init__(temperature, name, **kwargs)

    def of_lists(self, labels: tf.Tensor, scores: tf.Tensor, valid: tf.Tensor) -> tf.Tensor:
        """See the class."""
        # A finite number, for a list of nothing but padding to have finite gradients.
        scores = tf.where(valid, scores, tf.constant(scores.dtype.min / 2, scores.dtype))
        log_p = tf.nn.log_softmax(scores, axis=1)
        return -tf.reduce_sum(tf.where(labels > 0, labels * log_p, tf.zeros_like(log_p)), axis=1)


@keras.saving.register_keras_serializable(package="tfrz")
class ApproxNDCGLoss(_ListLoss):
    """Listwise: NDCG with sigmoids in place of the steps of ranks, below 0.

    Formula: `-(sum_i (2^{y_i} - 1) / ln(1 + r_i)) / max DCG` with
    `r_i = 1 + sum_{j != i} sigmoid((s_j - s_i) / temperature)`; 0 for a list of zeros.

    Args:
      temperature: how soft the ranks are.
      name: of the loss.
      **kwargs: of `keras.losses.Loss`.

    Example:
      >>> loss = ApproxNDCGLoss()
      >>> round(float(loss(tf.constant([[1.0, 0.0]]), tf.constant([[0.6, 0.8]]))), 4)
      -0.6551

    Reference:
      Qin, Liu, Li, "A general approximation framework for direct optimization of information
      retrieval measures", 2010; TF-Ranking's `ApproxNDCGLoss`.
    """

    def __init__(
        self, temperature: float = 0.1, name: str = "approx_ndcg_loss", **kwargs: Any
    ) -> None:
        super().__init__(temperature, name, **kwargs)

    def of_lists(self, labels: tf.Tensor, scores: tf.Tensor, valid: tf.Tensor) -> tf.Tensor:
        """See the class."""
        ahead = tf.sigmoid(scores[:, None, :] - scores[:, :, None])
        ahead = tf.where(valid[:, None, :], ahead, tf.zeros_like(ahead))
        # An item is ahead of itself by a half.
        ranks = tf.reduce_sum(ahead, axis=2) + 0.5
        # Divided by 2^max, which cancels, so that no label overflows.
        most = tf.reduce_max(labels, axis=1, keepdims=True)
        gains = tf.pow(2.0, labels - most) - tf.pow(2.0, -most)
        dcg = tf.reduce_sum(gains / tf.math.log1p(ranks), axis=1, keepdims=True)
        best = ideal_dcg(gains, 1 / tf.math.log1p(_places(scores)))
        return -tf.math.divide_no_nan(dcg, best)[:, 0]


@keras.saving.register_keras_serializable(package="tfrz")
class LambdaRankLoss(_ListLoss):
    """Pairwise: logistic losses of pairs, each weighted by the NDCG that its order decides.

    Formula: `sum_{y_i > y_j} w_ij ln(1 + exp(s_j - s_i))` with
    `w_ij = |2^{y_i} - 2^{y_j}| / max DCG * |D(d) - D(d + 1)|`, d the distance between the ranks of
    the two, `D(r) = 1 / log2(1 + r)`; no gradient goes through the weights.
    A pair of equal scores has the gradient 0, as in TF-Ranking.

    Args:
      temperature: scores are divided by it.
      name: of the loss.
      **kwargs: of `keras.losses.Loss`.

    Example:
      >>> loss = LambdaRankLoss()
      >>> round(float(loss(tf.constant([[1.0, 0.0]]), tf.constant([[0.6, 0.8]]))), 4)
      0.2946

    Reference:
      Wang et al., "The LambdaLoss framework for ranking metric optimization", CIKM 2018;
      TF-Ranking's `PairwiseLogisticLoss(lambda_weight=NDCGLambdaWeight())`.
    """

    def __init__(
        self, temperature: float = 1.0, name: str = "lambda_rank_loss", **kwargs: Any
    ) -> None:
        super().__init__(temperature, name, **kwargs)

    def of_lists(self, labels: tf.Tensor, scores: tf.Tensor, valid: tf.Tensor) -> tf.Tensor:
        """See the class."""

        def discount(rank: tf.Tensor) -> tf.Tensor:
            return tf.math.log(2.0) / tf.math.log1p(rank)

        gains = tf.pow(2.0, labels) - 1
        gains = tf.math.divide_no_nan(gains, ideal_dcg(gains, discount(_places(scores))))
        ranks = tf.cast(ranks_of(scores, valid), scores.dtype)
        apart = tf.abs(ranks[:, :, None] - ranks[:, None, :])
        # An item is no pair with itself; 1 keeps its discount finite.
        apart = tf.maximum(apart, 1.0)
        weights = tf.abs(gains[:, :, None] - gains[:, None, :])
        weights *= discount(apart) - discount(apart + 1)
        decided = labels[:, :, None] > labels[:, None, :]
        decided &= valid[:, :, None] & valid[:, None, :]
        weights = tf.stop_gradient(tf.where(decided, weights, tf.zeros_like(weights)))
        behind = scores[:, None, :] - scores[:, :, None]
        # Not softplus, which has the gradient 1/2 where the scores of a pair are equal.
        losses = tf.nn.relu(behind) + tf.math.log1p(tf.exp(-tf.abs(behind)))
        return tf.reduce_sum(weights * losses, axis=[1, 2])
