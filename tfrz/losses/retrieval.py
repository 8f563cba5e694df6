"""Full and sampled softmax over items: the losses of next-item prediction.

Items have ids 1..V by falling frequency; id 0 is padding and never a candidate. All functions
raise `InputError` for shapes other than those that they document.
"""

from __future__ import annotations

import math
from typing import Any

import keras
import tensorflow as tf

from tfrz.config import require
from tfrz.layers.configured import ConfiguredLayer
from tfrz.layers.numerics import wide
from tfrz.shapes import require_shapes

DISTRIBUTIONS = ("uniform", "log_uniform")
CORRECTIONS = ("log_q", "partition")


def softmax_loss(
    hidden: tf.Tensor, items: tf.Tensor, bias: tf.Tensor, targets: tf.Tensor
) -> tf.Tensor:
    """Negative log-likelihood of the targets under the softmax over all items.

    Formula: `-log P(y) = logsumexp_i(<h, Q_i> + b_i) - (<h, Q_y> + b_y)`.

    Args:
      hidden: h, `[..., dim]`.
      items: Q of ids 1..V, `[V, dim]`.
      bias: b, `[V]`.
      targets: ids, `[...]`; the loss of an id outside 1..V is meaningless but finite.

    Returns:
      `[...]`, float32.

    Example:
      >>> h, Q = tf.constant([[1.0, 0.0]]), tf.constant([[0.0, 1.0], [0.0, 2.0]])
      >>> print(softmax_loss(h, Q, tf.zeros([2]), tf.constant([1])).numpy().round(4))
      [0.6931]

    Reference:
      M3 (arXiv 1902.08588); the training objective is recalled.
    """
    require_shapes(locals(), hidden="... dim", items="items dim", bias="items", targets="...")
    logits = wide(tf.tensordot(hidden, items, [[-1], [1]]))
    logits += tf.cast(bias, logits.dtype)
    count = tf.shape(items, out_type=targets.dtype)[0]
    return tf.nn.sparse_softmax_cross_entropy_with_logits(
        tf.clip_by_value(targets - 1, 0, count - 1), logits
    )


def sampled_softmax_loss(
    target_logits: tf.Tensor,
    negative_logits: tf.Tensor,
    hits: tf.Tensor,
    target_correction: Any = 0.0,
    negative_correction: Any = 0.0,
) -> tf.Tensor:
    """Negative log-likelihood of the targets against sampled negatives.

    Formula: with `o = logit - correction`,
    `l = -log [ exp(o_y) / (exp(o_y) + sum_{j in S, j != y} exp(o_j)) ]`.

    Args:
      target_logits: `[...]`.
      negative_logits: `[..., n]`.
      hits: boolean `[..., n]`, True where a negative is the target and is left out.
      target_correction: subtracted from the target's logit; `log(n q(y))`, or 0.
      negative_correction: subtracted from each negative's logit, `[n]` or `[..., n]`.

    Returns:
      `[...]`, float32.

    Reference:
      M3 specification, 3.6; logQ correction as in Bengio and Senecal (2008).
    """
    require_shapes(
        locals(),
        target_logits="...",
        negative_logits="... n",
        hits="... n?",
        target_correction="...?",
        negative_correction="... n?",
    )
    target = wide(target_logits)
    target -= tf.cast(target_correction, target.dtype)
    negative = tf.cast(negative_logits, target.dtype) - tf.cast(negative_correction, target.dtype)
    negative = tf.where(hits, tf.constant(-1e9, target.dtype), negative)
    together = tf.concat([target[..., None], negative], axis=-1)
    return tf.reduce_logsumexp(together, axis=-1) - target


def candidate_softmax_loss(
    scores: tf.Tensor,
    targets: tf.Tensor,
    candidates: tf.Tensor,
    log_q: tf.Tensor | float = 0.0,
    allowed: tf.Tensor | None = None,
) -> tf.Tensor:
    """Negative log-likelihood of each row's target among candidates that all rows share.

    The first candidates are the targets of the batch in its order; others may follow. With the
    targets alone this is the in-batch softmax, with other candidates mixed negative sampling.

    Formula: with `o_bj = S(u_b, i_j) - log q_j`,
    `l_b = -o_bb + logsumexp_j o_bj`. A candidate that is the row's target again (an accidental hit)
    is left out. If q is the expected count of a candidate, `sum_j exp(o_bj)` is an unbiased
    estimate of the sum of `exp(S)` over all items; the target is corrected like the others.

    Args:
      scores: S, `[batch, candidates]`.
      targets: ids, `[batch]`.
      candidates: ids, `[candidates]`, the first `batch` of them the targets.
      log_q: `[candidates]`, or 0 for no correction.
      allowed: boolean `[candidates]`, False for those that are never a negative; all if left out.

    Returns:
      `[batch]`, float32 (float64 for scores of float64).

    Example:
      >>> scores, ids = tf.constant([[2.0, 3.0], [1.0, 3.0]]), tf.constant([1, 2])
      >>> log_q = tf.math.log(tf.constant([0.8, 0.2]))
      >>> print(candidate_softmax_loss(scores, ids, ids, log_q).numpy().round(6))
      [2.474278 0.033274]

    Reference:
      Mehta et al. (arXiv 2308.01563), specification 3.4; mixed negatives as in Yang et al.,
      "Mixed Negative Sampling for Learning Two-tower Neural Networks in Recommendations" (2020).
    """
    logits = candidate_logits(scores, targets, candidates, log_q, allowed)
    own = tf.linalg.diag_part(logits[:, : tf.shape(logits)[0]])
    return tf.reduce_logsumexp(logits, axis=1) - own


def candidate_logits(
    scores: tf.Tensor,
    targets: tf.Tensor,
    candidates: tf.Tensor,
    log_q: tf.Tensor | float = 0.0,
    allowed: tf.Tensor | None = None,
) -> tf.Tensor:
    """The corrected scores of `candidate_softmax_loss`, -1e9 for candidates that are left out.

    The class of row b is b. Apply it to the scores of a teacher for the same candidates too.

    Args:
      scores: S, `[batch, candidates]`.
      targets: ids, `[batch]`.
      candidates: ids, `[candidates]`, the first `batch` of them the targets.
      log_q: `[candidates]`, or 0 for no correction.
      allowed: boolean `[candidates]`, False for those that are never a negative; all if left out.

    Returns:
      `[batch, candidates]`, float32 (float64 for scores of float64).

    Example:
      >>> scores, ids = tf.constant([[2.0, 3.0], [1.0, 3.0]]), tf.constant([1, 1])
      >>> print(candidate_logits(scores, ids, ids).numpy())
      [[ 2.e+00 -1.e+09]
       [-1.e+09  3.e+00]]
    """
    require_shapes(
        locals(),
        scores="batch candidates",
        targets="batch",
        candidates="candidates",
        log_q="candidates?",
        allowed="candidates",
    )
    logits = wide(scores)
    logits -= tf.cast(log_q, logits.dtype)
    rows, columns = tf.shape(logits)[0], tf.shape(logits)[1]
    own = tf.equal(tf.range(columns)[None, :], tf.range(rows)[:, None])
    out = tf.equal(candidates[None, :], targets[:, None])
    if allowed is not None:
        out |= ~allowed[None, :]
    return tf.where(out & ~own, tf.constant(-1e9, logits.dtype), logits)


def log_expected_counts(
    counts: tf.Tensor, batch_size: Any, num_uniform: int = 0, floor: float = 1e-6
) -> tf.Tensor:
    """The log of the expected count of each item, for `candidate_softmax_loss`.

    Formula: `log(B clip(p_i, floor, 1) + n / V)` with `p_i = counts_i / sum counts`: B targets
    drawn by frequency, n further candidates drawn uniformly from V items.

    Args:
      counts: how often each item is a target in training, `[V]`.
      batch_size: B.
      num_uniform: n.
      floor: lowest frequency.

    Returns:
      `[V]`, float32.
    """
    require_shapes(locals(), counts="items")
    counts = tf.cast(counts, tf.float32)
    p = counts / tf.maximum(tf.reduce_sum(counts), 1.0)
    uniform = num_uniform / tf.cast(tf.shape(counts)[0], tf.float32)
    return tf.math.log(tf.cast(batch_size, tf.float32) * tf.clip_by_value(p, floor, 1.0) + uniform)


def focal_loss(losses: tf.Tensor, gamma: float) -> tf.Tensor:
    """Losses with less weight for easy examples: `(1 - p)^gamma l` with `p = exp(-l)`.

    Args:
      losses: negative log-likelihoods, any shape.
      gamma: 0 changes nothing.

    Returns:
      Of the shape of `losses`.

    Example:
      >>> print(focal_loss(tf.constant([0.6931472, 4.0]), 2.0).numpy().round(4))
      [0.1733 3.8548]

    Reference:
      Lin et al., "Focal Loss for Dense Object Detection" (2017), equation 4.
    """
    if not gamma:
        return losses
    # Not 0, where a power below 1 has no finite slope.
    miss = tf.maximum(-tf.math.expm1(-losses), tf.constant(1e-12, losses.dtype))
    return miss**gamma * losses


@keras.saving.register_keras_serializable(package="tfrz")
class NegativeSampler(ConfiguredLayer):
    """Draws item ids for a whole batch, with their expected counts.

    Formula: uniform `q(i) = 1/V`; log-uniform over the rank of popularity k = i - 1:
    `q(i) = ln((k + 2)/(k + 1)) / ln(V + 1)`. Draws are with replacement, so that `n q(i)` is the
    expected count. They are a function of (seed, step), in operations that XLA compiles.

    Args:
      num_items: V.
      num_sampled: n.
      distribution: `uniform` or `log_uniform`.
      correction: `log_q` (logits of target and negatives less `log(n q)`: the best logits are
        those of the whole softmax, the loss is not on its scale), or `partition` (those of uniform
        negatives less `log(n' / (V - 1))`, n' being the negatives that are not the target: an
        estimate of the whole softmax, on its scale).
      seed: of the draws.

    Raises:
      ConfigError: an argument is out of its range.

    Example:
      >>> sampler = NegativeSampler(num_items=1000, num_sampled=1, distribution="log_uniform")
      >>> [round(float(q), 4) for q in tf.exp(sampler.log_expected_count(tf.constant([1, 2])))]
      [0.1003, 0.0587]

    Reference:
      M3 specification, 3.6 and 4.
    """

    def __init__(
        self,
        num_items: int,
        num_sampled: int,
        distribution: str = "log_uniform",
        correction: str = "log_q",
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        require(num_items >= 1, "num_items", "must be at least 1")
        require(num_sampled >= 1, "num_sampled", "must be at least 1")
        known = ", ".join(DISTRIBUTIONS)
        require(distribution in DISTRIBUTIONS, "distribution", f"must be one of {known}")
        known = ", ".join(CORRECTIONS)
        require(correction in CORRECTIONS, "correction", f"must be one of {known}")
        require(
            correction == "log_q" or distribution == "uniform",
            "correction",
            "partition goes with the uniform distribution",
        )
        self.num_items, self.num_sampled = num_items, num_sampled
        self.distribution, self.correction, self.seed = distribution, correction, seed
        self.draws = self.add_weight(
            name="draws", shape=(), dtype="int32", initializer="zeros", trainable=False
        )
        self.built = True

    def sample(self) -> tf.Tensor:
        """The next draw: ids int64 `[n]`."""
        draw = tf.convert_to_tensor(self.draws)
        self.draws.assign(draw + 1)
        seed = tf.stack([tf.constant(self.seed), draw])
        if self.distribution == "uniform":
            return tf.random.stateless_uniform(
                [self.num_sampled], seed, 1, self.num_items + 1, tf.int64, alg="philox"
            )
        # From integers: XLA computes other fractions from the same bits.
        bits = tf.random.stateless_uniform(
            [self.num_sampled], seed, 0, 1 << 24, tf.int64, alg="philox"
        )
        uniform = tf.cast(bits, tf.float32) / float(1 << 24)
        rank = tf.cast(tf.exp(uniform * math.log(self.num_items + 1.0)), tf.int64) - 1
        return 1 + tf.clip_by_value(rank, 0, self.num_items - 1)

    def log_expected_count(self, ids: tf.Tensor) -> tf.Tensor:
        """`log(n q(i))`, float32, for ids 1..V."""
        if self.distribution == "uniform":
            value = math.log(self.num_sampled / self.num_items)
            return tf.fill(tf.shape(ids), tf.constant(value, tf.float32))
        rank = tf.cast(tf.maximum(ids, 1), tf.float32) - 1.0
        share = tf.math.log1p(1.0 / (rank + 1.0)) / math.log(self.num_items + 1.0)
        return tf.math.log(self.num_sampled * share)

    def loss(
        self,
        target_logits: tf.Tensor,
        negative_logits: tf.Tensor,
        targets: tf.Tensor,
        negatives: tf.Tensor,
    ) -> tf.Tensor:
        """`sampled_softmax_loss` with this sampler's correction.

        Args:
          target_logits: `[...]`.
          negative_logits: `[..., n]`.
          targets: ids `[...]`.
          negatives: ids `[n]`.
        """
        hits = tf.equal(targets[..., None], negatives)
        if self.correction == "log_q":
            return sampled_softmax_loss(
                target_logits,
                negative_logits,
                hits,
                self.log_expected_count(targets),
                self.log_expected_count(negatives),
            )
        others = tf.reduce_sum(tf.cast(~hits, tf.float32), axis=-1, keepdims=True)
        scale = tf.math.log(tf.maximum(others, 1.0) / max(self.num_items - 1, 1))
        return sampled_softmax_loss(target_logits, negative_logits, hits, 0.0, scale)
