"""Losses and rewards of slates, for training a pointer network that re-ranks.

`scores` and `available` are those of `tfrz.layers.pointer.Slate`: `[batch, slate, list]`, a row of
scores for each step. The one-step decoder has a single step, at which all candidates are available.
All functions raise `InputError` for shapes other than those that they document.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tfrz.config import require
from tfrz.layers.numerics import wide
from tfrz.layers.pointer import masked
from tfrz.shapes import require_shapes

NORMALIZERS = ("remaining", "all")
_FAR = 1e9


_STEPS = {"scores": "batch slate list", "available": "batch slate list", "labels": "batch list"}


def _at_steps(labels: tf.Tensor, available: tf.Tensor) -> tf.Tensor:
    """The labels of the candidates available at each step, zero elsewhere."""
    labels = wide(labels)[:, None, :]
    return tf.where(available, labels, tf.zeros_like(labels))


def step_cross_entropy(
    scores: tf.Tensor, available: tf.Tensor, labels: tf.Tensor, normalizer: str = "remaining"
) -> tf.Tensor:
    """Cross-entropy of each step against the remaining labels.

    Formula: `l_j = - sum_{i in A_j} (y_i / Z) log p^j_i`, 0 if no positive remains.

    Args:
      scores: `[batch, slate, list]`.
      available: boolean A, `[batch, slate, list]`.
      labels: y at least 0, `[batch, list]`: clicks or grades.
      normalizer: Z is the sum of the labels `remaining` in A_j, or of `all` in the list.

    Returns:
      `[batch, slate]`, float32 or float64.

    Raises:
      ConfigError: an unknown normalizer.

    Example:
      >>> scores = tf.constant([[[0.0, 0.0]]])
      >>> free = tf.constant([[[True, True]]])
      >>> print(step_cross_entropy(scores, free, tf.constant([[1.0, 0.0]])).numpy().round(4))
      [[0.6931]]

    Reference:
      Seq2Slate (arXiv 1810.02019): the form is verified; normalising over the remaining positives
      is a choice.
    """
    require(normalizer in NORMALIZERS, "normalizer", f"must be one of {', '.join(NORMALIZERS)}")
    require_shapes(locals(), **_STEPS)
    positives = _at_steps(labels, available)
    logs = tf.nn.log_softmax(masked(scores, available))
    positives = tf.cast(positives, logs.dtype)
    loss = -tf.reduce_sum(tf.where(positives > 0, positives * logs, tf.zeros_like(logs)), axis=-1)
    total = left = tf.reduce_sum(positives, axis=-1)
    if normalizer == "all":
        total = tf.reduce_sum(tf.reduce_max(positives, axis=1), axis=-1, keepdims=True)
    return tf.where(left > 0, loss / tf.maximum(total, 1e-12), tf.zeros_like(loss))


def step_hinge(
    scores: tf.Tensor, available: tf.Tensor, labels: tf.Tensor, smooth: bool = False
) -> tf.Tensor:
    """Margin between the worst remaining positive and the best remaining negative at each step.

    Formula: `max(0, 1 - min_{y_i > 0} s_i + max_{y_i = 0} s_i)` over A_j, 0 where either is empty;
    smooth: `softplus(1 + logsumexp_{y_i > 0}(-s_i) + logsumexp_{y_i = 0}(s_i))`.

    Args:
      scores: `[batch, slate, list]`.
      available: boolean A, `[batch, slate, list]`.
      labels: `[batch, list]`; above 0 is positive.
      smooth: use the smooth form, in which every score of a step gets a gradient.

    Returns:
      `[batch, slate]`, float32 or float64.

    Example:
      >>> scores = tf.constant([[[0.5, 2.0]]])
      >>> free = tf.constant([[[True, True]]])
      >>> print(step_hinge(scores, free, tf.constant([[1.0, 0.0]])).numpy())
      [[2.5]]

    Reference:
      Seq2Slate (arXiv 1810.02019): that a hinge loss exists is verified, its form corroborated by
      a public re-implementation; the smooth variant is a choice.
    """
    require_shapes(locals(), **_STEPS)
    scores = wide(scores)
    clicked = (wide(labels) > 0)[:, None, :]
    positive, negative = available & clicked, available & ~clicked
    far = tf.constant(_FAR, scores.dtype)
    if smooth:
        least = -tf.reduce_logsumexp(tf.where(positive, -scores, -far), axis=-1)
        most = tf.reduce_logsumexp(tf.where(negative, scores, -far), axis=-1)
    else:
        least = tf.reduce_min(tf.where(positive, scores, far), axis=-1)
        most = tf.reduce_max(tf.where(negative, scores, -far), axis=-1)
    both = tf.reduce_any(positive, axis=-1) & tf.reduce_any(negative, axis=-1)
    nothing = tf.zeros_like(least)
    margin = 1.0 - tf.where(both, least, nothing) + tf.where(both, most, nothing)
    return tf.where(both, tf.nn.softplus(margin) if smooth else tf.nn.relu(margin), nothing)


def step_weights(slate: int, kind: str = "log", dtype: Any = tf.float32) -> tf.Tensor:
    """Weights of the positions, `[slate]`: `1 / ln(j + 1)` for j from 1 (`log`), or ones (`equal`).

    Example:
      >>> print(step_weights(3).numpy().round(4))
      [1.4427 0.9102 0.7213]

    Raises:
      ConfigError: an unknown kind.
    """
    require(kind in ("log", "equal"), "step_weights", "must be log or equal")
    place = tf.cast(tf.range(1, slate + 1), dtype)
    return 1.0 / tf.math.log(place + 1.0) if kind == "log" else tf.ones_like(place)


def in_slate_order(labels: tf.Tensor, positions: tf.Tensor) -> tf.Tensor:
    """Labels `[batch, list]` at the positions `[batch, slate]` of a slate, 0 where -1."""
    require_shapes(locals(), labels="batch list", positions="batch slate")
    taken = tf.gather(labels, tf.maximum(positions, 0), batch_dims=1)
    return tf.where(positions >= 0, taken, tf.zeros_like(taken))


def _discounts(ordered: tf.Tensor) -> tf.Tensor:
    """`1 / log2(r + 1)` of the positions r of `ordered` `[batch, positions]`."""
    place = tf.cast(tf.range(1, int(ordered.shape[1]) + 1), ordered.dtype)
    return tf.math.log(tf.constant(2.0, ordered.dtype)) / tf.math.log1p(place)


def ndcg_reward(labels: tf.Tensor, positions: tf.Tensor, n: int) -> tf.Tensor:
    """NDCG at n of slates, 0 for lists without a positive.

    Formula: `DCG@n = sum_{r <= n} (2^{y_r} - 1) / log2(r + 1)` over that of the best order.

    Args:
      labels: `[batch, list]`.
      positions: int32 `[batch, slate]`, -1 for an empty place.
      n: number of positions that count.

    Returns:
      `[batch]`.

    Example:
      >>> labels, slate = tf.constant([[1.0, 0.0, 1.0]]), tf.constant([[2, 1, 0]])
      >>> print(ndcg_reward(labels, slate, 3).numpy().round(4))
      [0.9197]
    """
    labels = wide(labels)

    def gained(ordered: tf.Tensor) -> tf.Tensor:
        ordered = ordered[:, :n]
        gain = tf.pow(tf.constant(2.0, ordered.dtype), ordered) - 1.0
        return tf.linalg.matvec(gain, _discounts(ordered))

    best = gained(tf.sort(labels, axis=1, direction="DESCENDING"))
    return tf.math.divide_no_nan(gained(in_slate_order(labels, positions)), best)


def average_precision_reward(labels: tf.Tensor, positions: tf.Tensor) -> tf.Tensor:
    """Average precision of slates, `[batch]`; labels above 0 are positive, 0 where none is.

    Formula: `AP = (1/P) sum_{r: y_r > 0} (positives among the first r) / r`.

    Example:
      >>> labels, slate = tf.constant([[0.0, 1.0, 0.0]]), tf.constant([[0, 1, 2]])
      >>> print(average_precision_reward(labels, slate).numpy())
      [0.5]
    """
    positive = tf.cast(wide(labels) > 0, tf.float32)
    hits = in_slate_order(positive, positions)
    place = tf.cast(tf.range(1, int(hits.shape[1]) + 1), hits.dtype)
    found = tf.reduce_sum(hits * tf.cumsum(hits, axis=1) / place, axis=1)
    return tf.math.divide_no_nan(found, tf.reduce_sum(positive, axis=1))


def clicks_reward(labels: tf.Tensor, positions: tf.Tensor, n: int) -> tf.Tensor:
    """Clicks among the first n positions of slates, each worth `1 / log2(position + 1)`.

    It is not normalised: lists with more clicks have more weight.

    Example:
      >>> labels, slate = tf.constant([[0.0, 1.0]]), tf.constant([[1, 0]])
      >>> print(clicks_reward(labels, slate, 1).numpy())
      [1.]
    """
    ordered = in_slate_order(wide(labels), positions)[:, :n]
    return tf.linalg.matvec(ordered, _discounts(ordered))


def policy_gradient_loss(
    log_probability: tf.Tensor, reward: tf.Tensor, baseline: tf.Tensor | float = 0.0
) -> tf.Tensor:
    """The loss whose gradient is the estimate of REINFORCE, for sampled slates.

    Formula: `-(R - b) log p(pi | x)`, without a gradient of R and b.

    Args:
      log_probability: of the sampled slates, `[batch]`.
      reward: R, `[batch]`.
      baseline: b, which must not depend on the slate itself; `[batch]` or a number.

    Returns:
      `[batch]`.

    Reference:
      Williams (1992); its use in Seq2Slate is recalled, not checked.
    """
    require_shapes(locals(), log_probability="batch", reward="batch", baseline="batch?")
    return -tf.stop_gradient(reward - baseline) * log_probability


def mean_of_others(reward: tf.Tensor) -> tf.Tensor:
    """For each row the mean reward of the other rows of the batch, an unbiased baseline.

    0 in a batch of one.

    Example:
      >>> print(mean_of_others(tf.constant([1.0, 2.0, 6.0])).numpy())
      [4.  3.5 1.5]
    """
    count = tf.cast(tf.size(reward), reward.dtype)
    return (tf.reduce_sum(reward) - reward) / tf.maximum(count - 1.0, 1.0)
