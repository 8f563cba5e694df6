"""Knowledge distillation: targets from the logits of a teacher, and losses of a student.

Logits of a teacher never receive a gradient. The targets of `distillation_loss` are the softened
probabilities of the teacher, or a distribution that keeps a part of their information
(`soft_targets`). The single logit of a click has a loss of its own (`binary_distillation_loss`).
lambda is the weight of the teacher's term: 0 is training without a teacher. Half of the literature
uses the letter for the other term. All functions raise `InputError` for shapes other than those
that they document.
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple, get_args

import tensorflow as tf

from tfrz.config import require
from tfrz.layers.numerics import wide
from tfrz.shapes import require_shapes

Kind = Literal["full", "label_smoothing", "partial", "similarity", "partial_similarity", "topk"]
KINDS: tuple[str, ...] = get_args(Kind)
Scale = Literal["squared", "one"]
SCALES: tuple[str, ...] = get_args(Scale)
_FAR = -1e9


def _checked_temperature(temperature: float) -> float:
    require(0 < temperature < math.inf, "temperature", f"must be above 0, not {temperature}")
    return float(temperature)


def _scale(weight: float, temperature: float, scale: str) -> float:
    """s_T, after checking the three arguments that all losses share."""
    _checked_temperature(temperature)
    require(0 <= weight <= 1, "weight", f"must be 0 to 1, not {weight}")
    require(scale in SCALES, "scale", f"must be one of {', '.join(SCALES)}, not {scale!r}")
    return float(temperature) ** 2 if scale == "squared" else 1.0


def _num_classes(values: tf.Tensor, where: str) -> int:
    classes = values.shape[-1] if values.shape.rank else None
    require(classes is not None, where, "the number of classes must be known")
    count = int(classes)
    require(
        count >= 2,
        where,
        f"needs at least 2 classes, not {count}: use binary_distillation_loss for one logit",
    )
    return count


def _own(labels: tf.Tensor, classes: int) -> tf.Tensor:
    """Whether a class is the true one, boolean `[..., classes]`."""
    labels = tf.convert_to_tensor(labels)
    return tf.equal(labels[..., None], tf.range(classes, dtype=labels.dtype))


def _placed(own: tf.Tensor, probabilities: tf.Tensor, shares: Any) -> tf.Tensor:
    """The probability of the true class, and that of all others split by the given shares."""
    others = tf.where(own, tf.zeros_like(probabilities), probabilities)
    missed = tf.reduce_sum(others, axis=-1, keepdims=True)
    return tf.where(own, probabilities, missed * shares)


def _alike(class_vectors: Any, sharpness: float | None, classes: int, dtype: Any) -> tf.Tensor:
    """Cosines of the classes' vectors over alpha, `[classes, classes]`."""
    require(
        class_vectors is not None,
        "class_vectors",
        "needed for class relations: the last layer of the teacher, one row for each class",
    )
    require(
        sharpness is not None and 0 < sharpness < math.inf,
        "sharpness",
        f"must be above 0 for class relations, not {sharpness}",
    )
    vectors = tf.convert_to_tensor(class_vectors)
    require(
        vectors.shape.rank == 2 and vectors.shape[0] in (None, classes),
        "class_vectors",
        f"must be [{classes}, dim], one row for each class, not {vectors.shape}",
    )
    vectors = tf.math.l2_normalize(tf.cast(vectors, dtype), axis=-1, epsilon=1e-30)
    return tf.matmul(vectors, vectors, transpose_b=True) / tf.constant(sharpness, dtype)


def _largest(values: tf.Tensor, k: int) -> tf.Tensor:
    """Whether a value is among the k largest; the first ones among equal values."""
    least = tf.math.top_k(values, k, sorted=True).values[..., -1:]
    above = values > least
    ties = tf.equal(values, least)
    room = k - tf.reduce_sum(tf.cast(above, tf.int32), axis=-1, keepdims=True)
    return above | (ties & (tf.cumsum(tf.cast(ties, tf.int32), axis=-1) <= room))


def soft_targets(
    kind: str,
    teacher_logits: tf.Tensor,
    labels: tf.Tensor,
    temperature: float = 1.0,
    k: int | None = None,
    class_vectors: Any = None,
    sharpness: float | None = None,
) -> tf.Tensor:
    """The distribution of a teacher, or one that keeps a part of its information.

    Formula, with q = softmax(v / T), t the true class and K classes:

        full                q
        label_smoothing     1 / K                                  none of the teacher's
        partial             q_t; (1 - q_t) / (K - 1) elsewhere     its confidence in the example
        similarity          sim_k = softmax_k(cos(w_t, w_k) / alpha)     relations of classes
        partial_similarity  q_t; (1 - q_t) sim_k / sum_{j != t} sim_j elsewhere
        topk                q on its k largest, equal shares of the rest elsewhere

    The temperature is applied to q, before the other formulas.

    Args:
      kind: one of the six.
      teacher_logits: v, `[..., classes]`.
      labels: t, integers `[...]`. With `topk`, a label outside the k largest has the shared rest.
      temperature: T.
      k: number of classes for `topk`, the first ones among equal values. With all classes, or all
        but one, it is `full`.
      class_vectors: w of the teacher, `[classes, dim]`: the transposed kernel of its last layer.
      sharpness: alpha of the two kinds with class relations.

    Returns:
      Probabilities `[..., classes]`, float32 (float64 for logits of float64), without a gradient.

    Raises:
      ConfigError: an unknown kind, a temperature or sharpness of 0 or less, k below 1 or above the
        number of classes, class relations without class vectors, or logits of a single class.

    Example:
      >>> logits = tf.constant([[2.5, 1.5, -1.0, 0.0]])
      >>> print(soft_targets("partial", logits, tf.constant([0])).numpy().round(4))
      [[0.6756 0.1081 0.1081 0.1081]]
      >>> print(soft_targets("topk", logits, tf.constant([0]), k=2).numpy().round(4))
      [[0.6756 0.2485 0.0379 0.0379]]

    Reference:
      Tang, Shivanna et al. (arXiv 2002.03532), specification c6: the parts are the paper's, their
      constants a reconstruction.
    """
    require(kind in KINDS, "kind", f"must be one of {', '.join(KINDS)}, not {kind!r}")
    _checked_temperature(temperature)
    logits = tf.stop_gradient(wide(tf.convert_to_tensor(teacher_logits)))
    classes = _num_classes(logits, "teacher_logits")
    require_shapes(locals(), logits="... classes", labels="...")
    if kind == "label_smoothing":
        return tf.ones_like(logits) / classes
    if kind == "similarity":
        alike = _alike(class_vectors, sharpness, classes, logits.dtype)
        return tf.stop_gradient(tf.gather(tf.nn.softmax(alike), labels))
    q = tf.nn.softmax(logits / temperature)
    if kind == "topk":
        require(
            k is not None and 1 <= k <= classes, "k", f"must be 1 to {classes} (classes), not {k}"
        )
        if int(k or 0) >= classes - 1:
            return q
        kept = _largest(q, int(k or 0))
        rest = tf.reduce_sum(tf.where(kept, tf.zeros_like(q), q), axis=-1, keepdims=True)
        return tf.where(kept, q, rest / (classes - int(k or 0)))
    if kind == "partial":
        return _placed(_own(labels, classes), q, 1.0 / (classes - 1))
    if kind == "partial_similarity":
        own = _own(labels, classes)
        alike = tf.gather(_alike(class_vectors, sharpness, classes, logits.dtype), labels)
        others = tf.nn.softmax(tf.where(own, tf.constant(_FAR, alike.dtype), alike))
        return tf.stop_gradient(_placed(own, q, others))
    return q


def distillation_loss(
    student_logits: tf.Tensor,
    labels: tf.Tensor,
    targets: tf.Tensor,
    weight: float,
    temperature: float = 1.0,
    scale: Scale = "squared",
) -> tf.Tensor:
    """Cross-entropy against the labels and against a teacher's soft targets.

    Formula: `(1 - lambda) CE(y, softmax(z)) + lambda s_T CE(rho, softmax(z / T))`.

    The gradient is `(1 - lambda)(p - y) + lambda (s_T / T)(softmax(z / T) - rho)`: with s_T = T^2
    the teacher's term keeps its size at high temperatures, with s_T = 1 it falls as 1 / T^2.

    Args:
      student_logits: z, `[..., classes]`.
      labels: whole numbers `[...]`.
      targets: rho, `[..., classes]`, from `soft_targets` at the same temperature.
      weight: lambda of the teacher's term, 0 to 1.
      temperature: T.
      scale: s_T: `squared` for T^2, or `one`.

    Returns:
      `[...]`, float32 (float64 for logits of float64): a loss for each example, not their mean.

    Raises:
      ConfigError: a temperature of 0 or less, a weight outside 0 to 1, an unknown scale.

    Example:
      >>> z, v = tf.constant([[1.0, 0.2, -0.5, 0.1]]), tf.constant([[2.5, 1.5, -1.0, 0.0]])
      >>> rho = soft_targets("full", v, tf.constant([0]), temperature=4.0)
      >>> print(distillation_loss(z, tf.constant([0]), rho, 0.7, 4.0).numpy().round(4))
      [15.3807]

    Reference:
      Hinton et al., "Distilling the Knowledge in a Neural Network" (2015); specification c1, c2.
    """
    factor = _scale(weight, temperature, scale)
    logits = wide(tf.convert_to_tensor(student_logits))
    require_shapes(locals(), logits="... classes", labels="...", targets="... classes")
    hard = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
    if weight == 0:  # Without a product: 0 times NaN is NaN.
        return hard
    rho = tf.stop_gradient(tf.cast(targets, logits.dtype))
    soft = -tf.reduce_sum(rho * tf.nn.log_softmax(logits / temperature), axis=-1)
    return (1 - weight) * hard + weight * factor * soft


def binary_distillation_loss(
    student_logits: tf.Tensor,
    labels: tf.Tensor,
    teacher_logits: tf.Tensor,
    weight: float,
    temperature: float = 1.0,
    scale: Scale = "squared",
) -> tf.Tensor:
    """Log loss of clicks against the labels and against a teacher's probabilities.

    Formula: `(1 - lambda) BCE(y, sigma(s)) + lambda s_T BCE(sigma(u / T), sigma(s / T))`.

    At T = 1 this is the log loss of the soft label `(1 - lambda) y + lambda sigma(u)`: the student
    inherits lambda times the bias of the teacher. Other temperatures do not calibrate it either.

    Args:
      student_logits: s, `[...]`, one logit an example.
      labels: y, `[...]`, 0 to 1, also fractions.
      teacher_logits: u, `[...]`, on the scale of s: if a model was trained on negatives sampled at
        rate w, add log w to its logits first.
      weight: lambda of the teacher's term, 0 to 1.
      temperature: T.
      scale: s_T: `squared` for T^2, or `one`.

    Returns:
      `[...]`, float32 (float64 for logits of float64).

    Raises:
      ConfigError: a temperature of 0 or less, a weight outside 0 to 1, an unknown scale.

    Example:
      >>> s, u, y = tf.constant([0.4]), tf.constant([-1.2]), tf.constant([1.0])
      >>> print(binary_distillation_loss(s, y, u, weight=0.5).numpy().round(4))
      [0.6667]

    Reference:
      Specification c8.
    """
    factor = _scale(weight, temperature, scale)
    logits = wide(tf.convert_to_tensor(student_logits))
    require_shapes(locals(), logits="...", labels="...", teacher_logits="...")
    hard = tf.nn.sigmoid_cross_entropy_with_logits(tf.cast(labels, logits.dtype), logits)
    if weight == 0:
        return hard
    taught = tf.stop_gradient(tf.cast(teacher_logits, logits.dtype))
    soft = tf.nn.sigmoid_cross_entropy_with_logits(
        tf.nn.sigmoid(taught / temperature), logits / temperature
    )
    return (1 - weight) * hard + weight * factor * soft


def _log_missed(logits: tf.Tensor, own: tf.Tensor) -> tf.Tensor:
    """`log(1 - p_t)` of softmax, exact also for p_t near 1."""
    logs = tf.nn.log_softmax(logits)
    return tf.reduce_logsumexp(tf.where(own, tf.constant(_FAR, logs.dtype), logs), axis=-1)


def rescaling_factor(
    student_logits: tf.Tensor,
    labels: tf.Tensor,
    targets: tf.Tensor,
    weight: float,
    temperature: float = 1.0,
    scale: Scale = "squared",
) -> tf.Tensor:
    """How much a teacher changes the gradient of the true class of each example.

    Formula: `omega = (1 - lambda) + lambda (s_T / T) (rho_t - softmax(z / T)_t) / (1 - p_t)`, the
    gradient of `distillation_loss` by z_t over that of the cross-entropy. At T = 1 it is
    `1 - lambda (1 - rho_t) / (1 - p_t)`: it rises with the confidence of the teacher, is 1 for full
    confidence, and negative if the teacher is much less confident than the student. Clip it before
    using it as a weight.

    Args:
      student_logits: z, `[..., classes]`.
      labels: whole numbers `[...]`.
      targets: rho, `[..., classes]`.
      weight: lambda.
      temperature: T.
      scale: s_T.

    Returns:
      omega, `[...]`, without a gradient.

    Raises:
      ConfigError: as in `distillation_loss`, and for logits of a single class.

    Example:
      >>> z, v = tf.constant([[1.0, 0.2, -0.5, 0.1]]), tf.constant([[2.5, 1.5, -1.0, 0.0]])
      >>> rho = soft_targets("partial", v, tf.constant([0]))
      >>> print(rescaling_factor(z, tf.constant([0]), rho, weight=0.7).numpy().round(4))
      [0.5625]

    Reference:
      Tang, Shivanna et al. (arXiv 2002.03532), specification c4.
    """
    factor = _scale(weight, temperature, scale)
    logits = tf.stop_gradient(wide(tf.convert_to_tensor(student_logits)))
    require_shapes(locals(), logits="... classes", labels="...", targets="... classes")
    rho = tf.stop_gradient(tf.cast(targets, logits.dtype))
    own = _own(labels, _num_classes(logits, "student_logits"))
    missed = _log_missed(logits, own)
    # From the other classes: 1 - p_t has no digits left for p_t near 1.
    taught = tf.math.log(tf.reduce_sum(tf.where(own, tf.zeros_like(rho), rho), axis=-1))
    relative = tf.exp(_log_missed(logits / temperature, own) - missed) - tf.exp(taught - missed)
    return (1 - weight) + weight * factor / temperature * relative


def binary_rescaling_factor(
    student_logits: tf.Tensor,
    labels: tf.Tensor,
    teacher_logits: tf.Tensor,
    weight: float,
    temperature: float = 1.0,
    scale: Scale = "squared",
) -> tf.Tensor:
    """`rescaling_factor` for models with one logit.

    Formula, at T = 1: `1 - lambda (1 - q) / (1 - p)` for clicks, `1 - lambda q / p` for others.

    Args:
      student_logits: s, `[...]`.
      labels: `[...]`, 0 or 1; above 0.5 is a click.
      teacher_logits: u, `[...]`.
      weight: lambda.
      temperature: T.
      scale: s_T.

    Returns:
      omega, `[...]`, without a gradient.

    Raises:
      ConfigError: as in `binary_distillation_loss`.

    Example:
      >>> s, u, y = tf.constant([0.4]), tf.constant([-1.2]), tf.constant([1.0])
      >>> print(binary_rescaling_factor(s, y, u, weight=0.5).numpy().round(4))
      [0.0425]

    Reference:
      Specification c8.
    """
    _scale(weight, temperature, scale)
    logits = wide(tf.convert_to_tensor(student_logits))
    require_shapes(locals(), logits="...", labels="...", teacher_logits="...")
    taught = tf.cast(teacher_logits, logits.dtype)
    clicked = tf.cast(tf.cast(labels, logits.dtype) > 0.5, tf.int32)
    pair = tf.stack([tf.zeros_like(logits), logits], axis=-1)
    q = tf.nn.softmax(tf.stack([tf.zeros_like(taught), taught], axis=-1) / temperature)
    return rescaling_factor(pair, clicked, q, weight, temperature, scale)


class SplitDivergence(NamedTuple):
    """The two parts of a divergence, each `[...]`; see `split_divergence`."""

    confidence: tf.Tensor
    relations: tf.Tensor


def split_divergence(
    student_logits: tf.Tensor, labels: tf.Tensor, targets: tf.Tensor
) -> SplitDivergence:
    """Splits KL(rho || p) into a part of the true class and a part of the other classes.

    Formula: `KL(rho || p) = KL((rho_t, 1 - rho_t) || (p_t, 1 - p_t)) + (1 - rho_t) KL(rho^ || p^)`
    with rho^ and p^ over the wrong classes alone. Label smoothing and re-weighting change the first
    part, relations of classes the second, which is weighted by the teacher's doubt.

    Args:
      student_logits: z, `[..., classes]`; both parts have a gradient by them.
      labels: whole numbers `[...]`.
      targets: rho, `[..., classes]`.

    Returns:
      `confidence` and `relations`, whose sum is KL(rho || softmax(z)).

    Raises:
      ConfigError: logits of a single class.

    Example:
      >>> z, v = tf.constant([[1.0, 0.2, -0.5, 0.1]]), tf.constant([[2.5, 1.5, -1.0, 0.0]])
      >>> rho = soft_targets("full", v, tf.constant([0]))
      >>> parts = split_divergence(z, tf.constant([0]), rho)
      >>> print(sum(parts).numpy().round(4))
      [0.1605]

    Reference:
      Specification c7; Zhao et al., "Decoupled Knowledge Distillation" (2022).
    """
    logits = wide(tf.convert_to_tensor(student_logits))
    require_shapes(locals(), logits="... classes", labels="...", targets="... classes")
    rho = tf.stop_gradient(tf.cast(targets, logits.dtype))
    own = _own(labels, _num_classes(logits, "student_logits"))
    logs, nothing = tf.nn.log_softmax(logits), tf.zeros_like(logits)
    log_missed = _log_missed(logits, own)
    sure = tf.reduce_sum(tf.where(own, rho, nothing), axis=-1)
    log_sure = tf.reduce_sum(tf.where(own, logs, nothing), axis=-1)
    wrong = tf.where(own, nothing, rho)
    doubt = tf.reduce_sum(wrong, axis=-1)
    apart = tf.math.xlogy(doubt, doubt) - doubt * log_missed
    among = tf.reduce_sum(tf.math.xlogy(wrong, wrong) - wrong * logs, axis=-1)
    return SplitDivergence(tf.math.xlogy(sure, sure) - sure * log_sure + apart, among - apart)


def position_weights(length: int, decay: float, dtype: Any = tf.float32) -> tf.Tensor:
    """Weights of the places of a teacher's list, falling from the first.

    Formula: `w_r = exp(-r / decay) / sum_s exp(-s / decay)`, r from 1.

    Args:
      length: places of the list.
      decay: lambda of the paper, above 0; large for nearly equal weights.
      dtype: dtype of the result.

    Returns:
      `[length]`, with sum 1.

    Raises:
      ConfigError: a length below 1, a decay of 0 or less.

    Example:
      >>> print(position_weights(5, 1.0).numpy().round(4))
      [0.6364 0.2341 0.0861 0.0317 0.0117]

    Reference:
      Tang and Wang, "Ranking Distillation" (KDD 2018), after its public code.
    """
    require(length >= 1, "length", "must be at least 1")
    require(0 < decay < math.inf, "decay", f"must be above 0, not {decay}")
    return tf.nn.softmax(-tf.cast(tf.range(1, length + 1), dtype) / tf.constant(decay, dtype))


def discrepancy_weights(
    candidate_scores: tf.Tensor, sampled_scores: tf.Tensor, num_items: int, sharpness: float
) -> tf.Tensor:
    """Weights of the places of a teacher's list by the distance of the student's ranks.

    Formula: `max(0, tanh(mu (rank_r - (r - 1))))` for the places r from 1, where
    `rank_r = floor((num_items - 1) * share of the sampled items that the student scores above r)`.
    The weight is 0 for an item that the student already ranks high enough.

    Args:
      candidate_scores: scores of the student for the teacher's list in its order,
        `[..., length]`.
      sampled_scores: scores of the student for items drawn at random, `[..., n]`.
      num_items: number of items in the catalogue.
      sharpness: mu.

    Returns:
      `[..., length]`, float32 or float64, 0 to 1, without a gradient. Multiply them by
      `position_weights`; the product is not normalised, so that the teacher's term shrinks as the
      student improves.

    Raises:
      ConfigError: fewer than 1 items, a sharpness of 0 or less.

    Example:
      >>> scores, others = tf.constant([[2.0, 0.0]]), tf.constant([[1.0, -1.0]])
      >>> print(discrepancy_weights(scores, others, num_items=11, sharpness=0.1).numpy().round(4))
      [[0.     0.3799]]

    Reference:
      Tang and Wang, "Ranking Distillation" (KDD 2018), after its public code, where places count
      from 0 here and from 1 in `position_weights`.
    """
    require(num_items >= 1, "num_items", "must be at least 1")
    require(0 < sharpness < math.inf, "sharpness", f"must be above 0, not {sharpness}")
    scores, others = wide(candidate_scores), wide(sampled_scores)
    require_shapes(locals(), scores="... length", others="... n")
    above = tf.cast(others[..., None, :] > scores[..., :, None], tf.int64)
    drawn = tf.shape(others, tf.int64)[-1]
    # In integers, so that floor never falls below an integer rank.
    rank = (num_items - 1) * tf.reduce_sum(above, axis=-1) // tf.maximum(drawn, 1)
    place = tf.range(tf.shape(scores, tf.int64)[-1])
    ahead = tf.cast(rank - place, scores.dtype)
    return tf.stop_gradient(tf.nn.relu(tf.tanh(tf.constant(sharpness, scores.dtype) * ahead)))


def ranking_distillation_loss(
    candidate_scores: tf.Tensor, weights: tf.Tensor, mask: tf.Tensor | None = None
) -> tf.Tensor:
    """Log loss with the items that a teacher ranks highest as weighted positives.

    Formula: `- sum_r w_r log sigma(s_r)`; add it, times alpha, to the loss of the labels.

    Args:
      candidate_scores: s, scores of the student for the teacher's best unobserved items in its
        order, `[..., length]`.
      weights: w, `[length]` or `[..., length]`: `position_weights`, multiplied by
        `discrepancy_weights` from some epoch on.
      mask: boolean `[..., length]`, False for padding.

    Returns:
      `[...]`, float32 or float64.

    Example:
      >>> scores = tf.constant([[0.0, 0.0]])
      >>> print(ranking_distillation_loss(scores, position_weights(2, 1.0)).numpy().round(4))
      [0.6931]

    Reference:
      Tang and Wang, "Ranking Distillation" (KDD 2018), after its public code.
    """
    scores = wide(candidate_scores)
    require_shapes(locals(), scores="... length", weights="... length?", mask="... length")
    if mask is not None:
        scores = tf.where(mask, scores, tf.zeros_like(scores))
    weighted = tf.stop_gradient(tf.cast(weights, scores.dtype)) * tf.nn.softplus(-scores)
    if mask is not None:
        weighted = tf.where(mask, weighted, tf.zeros_like(weighted))
    return tf.reduce_sum(weighted, axis=-1)


def relaxed_ranking_loss(
    interesting: tf.Tensor,
    uninteresting: tf.Tensor | None = None,
    mask: tf.Tensor | None = None,
    uninteresting_mask: tf.Tensor | None = None,
) -> tf.Tensor:
    """Negative log-likelihood of a teacher's order of interesting items before all others.

    Formula: `- sum_i [ S1_i - log( sum_{j >= i} exp S1_j + sum_l exp S2_l ) ]`: Plackett-Luce for
    the interesting items before all others, whose order does not count.

    Args:
      interesting: S1, scores of the student in the order of the teacher, `[..., length]`.
      uninteresting: S2, `[..., n]`; None or n = 0 for none.
      mask: boolean `[..., length]`, False for padding.
      uninteresting_mask: boolean `[..., n]`, False for padding.

    Returns:
      `[...]`, float32 or float64.

    Example:
      >>> best, others = tf.constant([[2.0, 1.0, 0.5]]), tf.constant([[0.3, -0.2]])
      >>> print(relaxed_ranking_loss(best, others).numpy().round(4))
      [2.3505]

    Reference:
      Kang et al., "DE-RRD" (CIKM 2020), in logarithms: its code overflows for scores from 88 on.
    """
    first = wide(tf.convert_to_tensor(interesting))
    far = tf.constant(_FAR, first.dtype)
    require_shapes(
        locals(),
        first="... length",
        uninteresting="... n",
        mask="... length",
        uninteresting_mask="... n",
    )
    if mask is not None:
        first = tf.where(mask, first, far)
    together = first
    if uninteresting is not None and uninteresting.shape[-1] != 0:
        last = tf.cast(uninteresting, first.dtype)
        if uninteresting_mask is not None:
            last = tf.where(uninteresting_mask, last, far)
        together = tf.concat([first, tf.reduce_logsumexp(last, -1, keepdims=True)], axis=-1)
    left = tf.math.cumulative_logsumexp(together, axis=-1, reverse=True)
    loss = left[..., : tf.shape(first)[-1]] - first
    if mask is not None:
        loss = tf.where(mask, loss, tf.zeros_like(loss))
    return tf.reduce_sum(loss, axis=-1)
