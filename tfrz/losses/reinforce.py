"""REINFORCE from logs of other policies: returns, importance weights, top-K multiplier.

All functions raise `InputError` for shapes other than those that they document.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import keras
import tensorflow as tf

from tfrz.config import require
from tfrz.shapes import require_shapes

# e^3, as in the paper.
DEFAULT_CAP = math.exp(3.0)


def discounted_returns(
    rewards: tf.Tensor, gamma: float, mask: tf.Tensor | None = None
) -> tf.Tensor:
    """The discounted sum of rewards from each step on.

    Formula: `R_t = sum_{t' >= t} gamma^(t' - t) r_t'`.

    Args:
      rewards: r, `[batch, time]`.
      gamma: discount, 0 to 1.
      mask: boolean `[batch, time]`, False for padding, whose rewards do not count.

    Returns:
      `[batch, time]`, without a gradient.

    Example:
      >>> print(discounted_returns(tf.constant([[1.0, 0.0, 2.0, 0.0, 3.0]]), 0.9).numpy().round(4))
      [[4.5883 3.987  4.43   2.7    3.    ]]

    Reference:
      Chen et al. (arXiv 1812.02353), equation 2.
    """
    require(0 <= gamma <= 1, "gamma", "must be 0 to 1")
    require_shapes(locals(), rewards="batch time", mask="batch time")
    if mask is not None:
        rewards = tf.where(mask, rewards, tf.zeros_like(rewards))
    backwards = tf.transpose(tf.reverse(rewards, [1]))
    summed = tf.scan(lambda after, r: r + gamma * after, backwards)
    return tf.stop_gradient(tf.reverse(tf.transpose(summed), [1]))


def top_k_multiplier(log_pi: tf.Tensor, k: int) -> tf.Tensor:
    """The factor from the gradient of one draw to the gradient of a page of K draws.

    Formula: `lambda_K = d alpha / d pi = K (1 - pi)^(K - 1)` with `alpha = 1 - (1 - pi)^K`.

    Args:
      log_pi: log-probability of the action, any shape.
      k: K.

    Returns:
      Of the shape of `log_pi`; ones for K = 1.

    Example:
      >>> log_pi = tf.math.log(tf.constant([0.01, 0.1, 0.5]))
      >>> print(top_k_multiplier(log_pi, 8).numpy().round(4))
      [7.4565 3.8264 0.0625]

    Reference:
      Chen et al. (arXiv 1812.02353), equation 8.
    """
    require(k >= 1, "k", "must be at least 1")
    if k == 1:
        return tf.ones_like(log_pi)
    # (1 - pi)^(K - 1) from its logarithm: it is far below the smallest float for pi near 1.
    miss = -tf.math.expm1(tf.minimum(log_pi, 0.0))
    power = (k - 1) * tf.math.log(tf.maximum(miss, tf.constant(1e-30, log_pi.dtype)))
    return tf.where(miss > 0, k * tf.exp(power), tf.zeros_like(power))


def importance_weights(
    log_pi: tf.Tensor, log_beta: tf.Tensor, cap: float | None = None
) -> tf.Tensor:
    """The probability of the logged action under the policy, divided by that of the logger.

    Formula: `omega = min(pi / beta, c)`.

    Args:
      log_pi: log-probability of the action under the policy, any shape.
      log_beta: the same under the logger.
      cap: c; None for no cap.

    Returns:
      Of the shape of `log_pi`, without a gradient.

    Example:
      >>> pi, beta = tf.math.log([0.05, 0.2]), tf.math.log([0.001, 0.4])
      >>> print(importance_weights(pi, beta, cap=20.0).numpy().round(4))
      [20.   0.5]

    Reference:
      Chen et al. (arXiv 1812.02353), equations 4 and 9.
    """
    require(cap is None or cap > 0, "cap", "must be above 0, or None")
    require_shapes(locals(), log_pi="...", log_beta="...")
    ratio = tf.exp(tf.stop_gradient(log_pi - log_beta))
    return ratio if cap is None else tf.minimum(ratio, tf.constant(cap, ratio.dtype))


def normalized_weights(weights: tf.Tensor, mask: tf.Tensor | None = None) -> tf.Tensor:
    """Normalised importance weights, which sum to 1 over the batch.

    Formula: `omega_i / sum_j omega_j`.

    Args:
      weights: omega, any shape.
      mask: boolean, of the shape of `weights`; False for weights that do not count.

    Returns:
      Of the shape of `weights`.

    Example:
      >>> print(normalized_weights(tf.constant([0.5, 2.0, 0.1, 1.4])).numpy().round(4))
      [0.125 0.5   0.025 0.35 ]
    """
    require_shapes(locals(), weights="...", mask="...")
    if mask is not None:
        weights = tf.where(mask, weights, tf.zeros_like(weights))
    return tf.math.divide_no_nan(weights, tf.reduce_sum(weights))


def _corrected(negative_logits: tf.Tensor, log_expected: Any, hits: tf.Tensor | None) -> tf.Tensor:
    corrected = negative_logits - tf.cast(log_expected, negative_logits.dtype)
    if hits is None:
        return corrected
    return tf.where(hits, tf.constant(-1e9, corrected.dtype), corrected)


def sampled_log_prob(
    positive_logit: tf.Tensor,
    negative_logits: tf.Tensor,
    log_expected: Any = 0.0,
    hits: tf.Tensor | None = None,
) -> tf.Tensor:
    """The log-probability of an action by a sampled softmax, for importance weights.

    Formula: `log pi^ = l_a - log(exp(l_a) + sum_j exp(l_j - log(S q_j)))`: the positive is not
    corrected, so that the sum estimates the full partition function. With few negatives pi is
    over-estimated. (`sampled_policy_loss`, taken as a probability, is many times too large.)

    Args:
      positive_logit: l_a, `[...]`.
      negative_logits: l_j, `[..., S]`.
      log_expected: `log(S q_j)`, the log of the expected count of each negative, `[S]` or
        `[..., S]`.
      hits: boolean `[..., S]`, True where a negative is the action itself.

    Returns:
      `[...]`.

    Example:
      >>> logits = tf.constant([[1.0, 0.0]])
      >>> print(tf.exp(sampled_log_prob(tf.constant([2.0]), logits)).numpy().round(6))
      [0.665241]

    Reference:
      Specification 3.5, the probability form.
    """
    require_shapes(
        locals(),
        positive_logit="...",
        negative_logits="... n",
        log_expected="... n?",
        hits="... n?",
    )
    others = _corrected(negative_logits, log_expected, hits)
    together = tf.concat([positive_logit[..., None], others], axis=-1)
    return positive_logit - tf.reduce_logsumexp(together, axis=-1)


def sampled_policy_loss(
    positive_logit: tf.Tensor,
    negative_logits: tf.Tensor,
    log_expected_positive: Any = 0.0,
    log_expected: Any = 0.0,
    hits: tf.Tensor | None = None,
) -> tf.Tensor:
    """The negative log-likelihood of an action by a sampled softmax, for training a head.

    Formula: with `o = l - log(S q)` for the action and for the negatives alike,
    `-o_a + log(exp(o_a) + sum_j exp(o_j))`. It is not the logarithm of a probability.

    Args:
      positive_logit: l_a, `[...]`.
      negative_logits: l_j, `[..., S]`.
      log_expected_positive: `log(S q_a)`, `[...]`.
      log_expected: `log(S q_j)`, `[S]` or `[..., S]`.
      hits: boolean `[..., S]`, True where a negative is the action itself.

    Returns:
      `[...]`.

    Reference:
      Specification 3.5, the loss form.
    """
    require_shapes(
        locals(),
        positive_logit="...",
        negative_logits="... n",
        log_expected_positive="...?",
        log_expected="... n?",
        hits="... n?",
    )
    positive = positive_logit - tf.cast(log_expected_positive, positive_logit.dtype)
    others = _corrected(negative_logits, log_expected, hits)
    together = tf.concat([positive[..., None], others], axis=-1)
    return tf.reduce_logsumexp(together, axis=-1) - positive


@keras.saving.register_keras_serializable(package="tfrz")
class TopKOffPolicyReinforce:
    """The top-K off-policy-corrected policy gradient as a loss.

    Formula: with `sg` stopping the gradient,

        coef = sg(min(pi / beta, c) K (1 - pi)^(K - 1) R)
        L_pi = -coef log pi(a | s)

    Its gradient is that of the expected reward of a page of K draws, to first order in the distance
    of the policy from the logger. The head of the logger gets no gradient from it.

    Args:
      k: K, draws of a page; 1 for one recommendation.
      cap: c; None for none.
      weights: `capped` (pi / beta, capped), `normalized` (the same divided by their sum and times
        the number of steps), or `none` (the naive gradient of the logs, biased).
      multiplier: `lambda`, or `alpha` (alpha / pi as in public code, which is not the gradient of
        the reward of the page).
      cap_after: cap the product of weight and multiplier instead of the weight.

    Raises:
      ConfigError: an argument is out of its range.

    Example:
      >>> loss = TopKOffPolicyReinforce(k=16)
      >>> log_pi, log_beta = tf.math.log([[0.05]]), tf.math.log([[0.001]])
      >>> print(loss.coefficients(log_pi, log_beta, tf.constant([[4.0]])).numpy().round(2))
      [[595.55]]

    Reference:
      Chen et al. (arXiv 1812.02353), equations 4, 8 and 9.
    """

    def __init__(
        self,
        k: int = 1,
        cap: float | None = DEFAULT_CAP,
        weights: Literal["capped", "normalized", "none"] = "capped",
        multiplier: Literal["lambda", "alpha"] = "lambda",
        cap_after: bool = False,
    ) -> None:
        require(k >= 1, "k", "must be at least 1")
        require(cap is None or cap > 0, "cap", "must be above 0, or null")
        known = ("capped", "normalized", "none")
        require(weights in known, "weights", f"must be one of {', '.join(known)}")
        require(multiplier in ("lambda", "alpha"), "multiplier", "must be lambda or alpha")
        self.k, self.cap, self.weights = k, cap, weights
        self.multiplier, self.cap_after = multiplier, cap_after

    def coefficients(
        self,
        log_pi: tf.Tensor,
        log_beta: tf.Tensor,
        returns: tf.Tensor,
        mask: tf.Tensor | None = None,
    ) -> tf.Tensor:
        """The coefficients of the gradients of log-probabilities, without a gradient.

        Args:
          log_pi: log-probability of the logged actions, `[batch, time]`.
          log_beta: the same under the logger, from a head or from logged propensities.
          returns: R, `[batch, time]`.
          mask: boolean `[batch, time]`, True for steps that count; all if left out.
        """
        require_shapes(locals(), log_pi="...", log_beta="...", returns="...", mask="...")
        log_pi, returns = tf.stop_gradient(log_pi), tf.stop_gradient(returns)
        log_beta = tf.stop_gradient(log_beta)
        cap = None if self.cap_after else self.cap
        if self.weights == "none":
            omega = tf.ones_like(log_pi)
        else:
            omega = importance_weights(log_pi, log_beta, cap)
        if self.weights == "normalized":
            steps = tf.ones_like(omega) if mask is None else tf.cast(mask, omega.dtype)
            omega = normalized_weights(omega, mask) * tf.reduce_sum(steps)
        factor = top_k_multiplier(log_pi, self.k)
        if self.multiplier == "alpha" and self.k > 1:
            pi = tf.exp(tf.minimum(log_pi, 0.0))
            hit = -tf.math.expm1(self.k * tf.math.log1p(-tf.minimum(pi, 1.0 - 1e-7)))
            rare = pi < 1e-30
            limit = tf.fill(tf.shape(pi), tf.constant(self.k, pi.dtype))
            factor = tf.where(rare, limit, hit / tf.where(rare, tf.ones_like(pi), pi))
        # An uncapped weight may be infinite where the factor is 0.
        omega = tf.math.multiply_no_nan(omega, factor)
        if self.cap_after and self.cap is not None:
            omega = tf.minimum(omega, tf.constant(self.cap, omega.dtype))
        coefficients = tf.math.multiply_no_nan(omega, returns)
        if mask is not None:
            coefficients = tf.where(mask, coefficients, tf.zeros_like(coefficients))
        return coefficients

    def __call__(
        self,
        log_pi: tf.Tensor,
        log_beta: tf.Tensor,
        returns: tf.Tensor,
        mask: tf.Tensor | None = None,
        losses: tf.Tensor | None = None,
    ) -> tf.Tensor:
        """The loss of each step, `[batch, time]`.

        Args:
          log_pi: log-probability of the logged actions under the policy, `[batch, time]`.
          log_beta: the same under the logger.
          returns: R, `[batch, time]`.
          mask: boolean `[batch, time]`, True for steps that count; all if left out.
          losses: the losses to multiply by the coefficients; `-log pi` by default. Pass
            `sampled_policy_loss` for a sampled softmax.
        """
        require_shapes(locals(), log_pi="...", losses="...")
        coefficients = self.coefficients(log_pi, log_beta, returns, mask)
        losses = -log_pi if losses is None else losses
        # A loss without weight, for example -inf at a padded step, must not become 0 times -inf.
        counted = tf.not_equal(coefficients, 0)
        safe = tf.where(counted, losses, tf.zeros_like(losses))
        return coefficients * safe

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {
            "k": self.k,
            "cap": self.cap,
            "weights": self.weights,
            "multiplier": self.multiplier,
            "cap_after": self.cap_after,
        }


def behavior_loss(log_beta: tf.Tensor, mask: tf.Tensor | None = None) -> tf.Tensor:
    """Negative log-likelihood of every logged action, rewarded or not, `[batch, time]`.

    Args:
      log_beta: log-probability under the head of the logger, which stops the gradient of its state.
      mask: boolean `[batch, time]`, True for real steps; all if left out.

    Reference:
      Chen et al. (arXiv 1812.02353), section 4.2.
    """
    require_shapes(locals(), log_beta="...", mask="...")
    return -log_beta if mask is None else tf.where(mask, -log_beta, tf.zeros_like(log_beta))
