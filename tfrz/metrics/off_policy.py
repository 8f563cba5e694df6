"""The value of a policy, estimated from the log of another one, with intervals.

Row i of a log has a context x_i, an action a_i drawn by the logger with probability
beta(a_i | x_i), and its reward r_i. The weight of a row is `w_i = pi(a_i | x_i) / beta(a_i | x_i)`.

Every interval is a Student t interval of 95 %, taken over the estimator's rows and two more: one
twice as far above their mean as the highest of them, one twice as far below it as the lowest. The
two represent rare rows with a large weight that are missing from this log. `tfrz reproduce
topk_reinforce/estimators` prints how often the interval covers the truth in simulated logs; a plain
t interval is narrower and covers less. For large logs the two are the same. The middle of the
interval is not the estimate if the rows are skewed. A log with equal rows, for example without any
reward, has an interval of width 0.

Reference:
  Agresti and Coull (1998), for shares; Emerson and Owen (2009), two extreme points for a mean.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfrz.errors import InputError
from tfrz.metrics.directions import better

# Distance of the two additional rows from the mean, as a multiple of the farthest real row's.
_REACH = 2.0
_NORMAL = 1.959963984540054
_FEW = (12.706205, 4.302653, 3.182446, 2.776445, 2.570582)
# Rounding of a probability of 1 in single precision.
_ROUNDING = 1e-6


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A policy's value with its interval.

    Attributes:
      value: the estimate: expected reward of one action.
      low: lower end of the 95 % interval; -inf for a log of one row.
      high: upper end; inf for a log of one row.
      effective_sample_size: of the weights; the number of rows if there are no weights.
      count: number of rows.
    """

    value: float
    low: float
    high: float
    effective_sample_size: float
    count: int


@better("max", "ips")
def inverse_propensity(
    rewards: Any, target: Any, logged: Any, cap: float | None = None
) -> Estimate:
    """Inverse propensity scoring: unbiased if the logger can take every action of the target.

    Formula: `1/n sum_i min(w_i, c) r_i`.

    The interval is that of the module, for the capped mean: it does not include the bias of a cap.

    Args:
      rewards: r `[n]`.
      target: pi(a|x) of the logged action `[n]`: a policy's, or a page's probability to have a.
      logged: beta(a|x) of the logged action `[n]`.
      cap: c, None for none.

    Returns:
      An `Estimate`.

    Raises:
      InputError: an empty log, lengths that differ, a reward that is no number, a propensity that
        is missing, 0 or above 1.

    Example:
      >>> round(inverse_propensity([1, 0, 2, 0], [0.9, 0.1, 0.3, 0.2], [0.5] * 4).value, 6)
      0.75

    Reference:
      Horvitz and Thompson (1952); capped: Chen et al. (arXiv 1812.02353), equation 9.
    """
    rewards = _rewards(rewards)
    weights = _capped(_weights(target, logged, len(rewards)), cap)
    return _estimate(weights * rewards, weights)


@better("max", "snips")
def self_normalized(rewards: Any, target: Any, logged: Any, cap: float | None = None) -> Estimate:
    """Self-normalised inverse propensity scoring: within the range of the logged rewards.

    Formula: `v = sum_i min(w_i, c) r_i / sum_i min(w_i, c)`. Its bias shrinks as 1 / n.

    The interval is that of the module over `v + w_i (r_i - v) / mean(w)`, the delta method's rows.

    Args:
      rewards: r `[n]`.
      target: pi(a|x) of the logged action `[n]`.
      logged: beta(a|x) of the logged action `[n]`.
      cap: c, None for none.

    Returns:
      An `Estimate`.

    Raises:
      InputError: as `inverse_propensity`, and if the target gives every logged action
        probability 0.

    Example:
      >>> round(self_normalized([1, 0, 2, 0], [0.9, 0.1, 0.3, 0.2], [0.5] * 4).value, 6)
      1.0

    Reference:
      Swaminathan and Joachims (NIPS 2015).
    """
    rewards = _rewards(rewards)
    weights = _capped(_weights(target, logged, len(rewards)), cap)
    total = weights.sum()
    if not total:
        raise InputError(
            "target: 0 for every logged action, so this log has no information about the policy; "
            "use a log that contains the actions of the policy"
        )
    value = (weights * rewards).sum() / total
    return _estimate(value + weights * (rewards - value) * (len(rewards) / total), weights, value)


def direct_method(expected_rewards: Any, target_policy: Any) -> Estimate:
    """The mean of a reward model under the policy: as biased as the model.

    Formula: `1/n sum_i sum_a pi(a|x_i) q(x_i, a)`.

    The interval is that of the module, for the spread of the contexts alone.

    Args:
      expected_rewards: q `[n, actions]`.
      target_policy: pi `[n, actions]`.

    Returns:
      An `Estimate`, its effective sample size that of the rows.

    Raises:
      InputError: an empty log, shapes that differ, a number that is missing or out of its range.

    Example:
      >>> direct_method([[1.0, 0.0], [2.0, 4.0]], [[0.5, 0.5], [1.0, 0.0]]).value
      1.25

    Reference:
      Dudík, Langford and Li (ICML 2011).
    """
    expected = _table("expected_rewards", expected_rewards)
    policy = _policy(target_policy, expected.shape)
    return _estimate((policy * expected).sum(axis=1), np.ones(len(expected)))


def doubly_robust(
    rewards: Any,
    actions: Any,
    target_policy: Any,
    logged: Any,
    expected_rewards: Any,
    cap: float | None = None,
) -> Estimate:
    """A reward model corrected by weighted residuals: right if the model or the propensities are.

    Formula: `1/n sum_i [sum_a pi(a|x_i) q(x_i, a) + min(w_i, c) (r_i - q(x_i, a_i))]`.

    The interval is that of the module over the terms of the sum. Fit the model to other data.

    Args:
      rewards: r `[n]`.
      actions: a, columns of the tables, from 0 `[n]`.
      target_policy: pi `[n, actions]`.
      logged: beta(a|x) of the logged action `[n]`.
      expected_rewards: q `[n, actions]`.
      cap: c, None for none.

    Returns:
      An `Estimate`.

    Raises:
      InputError: as `inverse_propensity` and `direct_method`, or an action that is no column.

    Example:
      >>> q, pi = [[0.5, 0.5], [0.5, 0.5]], [[0.9, 0.1], [0.2, 0.8]]
      >>> round(doubly_robust([1, 0], [0, 1], pi, [0.5, 0.5], q).value, 6)
      0.55

    Reference:
      Dudík, Langford and Li (ICML 2011).
    """
    rewards = _rewards(rewards)
    n = len(rewards)
    expected = _table("expected_rewards", expected_rewards, n)
    policy = _policy(target_policy, expected.shape)
    columns = _actions(actions, n, expected.shape[1])
    rows = np.arange(n)
    weights = _capped(_weights(policy[rows, columns], logged, n), cap)
    residuals = rewards - expected[rows, columns]
    return _estimate((policy * expected).sum(axis=1) + weights * residuals, weights)


@better("max", "effective_sample_size")
def effective_sample_size(weights: Any) -> float:
    """The equivalent number of equal weights: `(sum w)^2 / sum w^2`; 0 if all are 0.

    Args:
      weights: w `[n]`.

    Raises:
      InputError: no weight, or one that is negative or no number.

    Example:
      >>> effective_sample_size([1, 1, 1, 1]), effective_sample_size([2, 1])
      (4.0, 1.8)

    Reference:
      Kish (1965).
    """
    return _kish(_plain_weights(weights))


def weight_summary(weights: Any, cap: float | None = None) -> dict[str, float]:
    """Statistics of importance weights, to check before trusting an estimate.

    Args:
      weights: w `[n]`, before any cap.
      cap: c, None for none.

    Returns:
      `p50`, `p90`, `p99` and `max` of w, `share_capped` (above c), `effective_sample_size` and
      `mean`, which is near 1 if the propensities are right.

    Raises:
      InputError: no weight, one that is negative or no number, or a cap that is not positive.

    Example:
      >>> summary = weight_summary([0.5, 0.5, 1.0, 6.0], cap=5.0)
      >>> summary["mean"], summary["share_capped"], summary["p50"]
      (2.0, 0.25, 0.75)

    Reference:
      Specification of top-K REINFORCE (Chen et al., arXiv 1812.02353), section (h), guardrails.
    """
    w = _plain_weights(weights)
    return {
        **{f"p{share}": float(np.percentile(w, share)) for share in (50, 90, 99)},
        "max": float(w.max()),
        "share_capped": float((_capped(w, cap) < w).mean()),
        "effective_sample_size": _kish(w),
        "mean": float(w.mean()),
    }


def _estimate(
    rows: NDArray[np.float64], weights: NDArray[np.float64], value: float | None = None
) -> Estimate:
    low, high = _interval(rows)
    value = float(rows.mean() if value is None else value)
    # Equal rows differ from their mean by rounding.
    return Estimate(value, min(low, value), max(high, value), _kish(weights), len(rows))


def _interval(rows: NDArray[np.float64]) -> tuple[float, float]:
    n = len(rows)
    if n == 1:
        return -np.inf, np.inf
    mean = rows.mean()
    far = [mean + _REACH * (end - mean) for end in (rows.min(), rows.max())]
    rows = np.concatenate([rows, far])
    half = _student(n - 1) * rows.std(ddof=1) / np.sqrt(n + 2)
    return float(rows.mean() - half), float(rows.mean() + half)


def _student(freedom: int) -> float:
    """The 97.5 % quantile of Student's t: a table, then the expansion in 1 / freedom."""
    if freedom <= len(_FEW):
        return _FEW[freedom - 1]
    z = _NORMAL
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return float(sum(term / freedom**power for power, term in enumerate(terms)))


def _kish(weights: NDArray[np.float64]) -> float:
    largest = weights.max()
    if not largest:
        return 0.0
    w = weights / largest  # So that the squares do not overflow.
    return float(w.sum() ** 2 / (w**2).sum())


def _capped(weights: NDArray[np.float64], cap: float | None) -> NDArray[np.float64]:
    if cap is None:
        return weights
    if not cap > 0:
        raise InputError(f"cap: must be positive, got {cap}; None leaves the weights as they are")
    return np.asarray(np.minimum(weights, cap))


def _weights(target: Any, logged: Any, n: int) -> NDArray[np.float64]:
    pi, beta = _vector("target", target, n), _vector("logged", logged, n)
    _require("target", pi, (pi >= 0) & (pi <= 1 + _ROUNDING), "a probability is 0 to 1")
    _require(
        "logged",
        beta,
        (beta > 0) & (beta <= 1 + _ROUNDING),
        "the propensity of an action that was taken is above 0 and at most 1",
    )
    return pi / beta


def _rewards(rewards: Any) -> NDArray[np.float64]:
    values = _vector("rewards", rewards)
    _require("rewards", values, np.isfinite(values), "every row needs a reward, 0 if it had none")
    return values


def _plain_weights(weights: Any) -> NDArray[np.float64]:
    values = _vector("weights", weights)
    good = np.isfinite(values) & (values >= 0)
    _require("weights", values, good, "a weight is finite and not negative")
    return values


def _policy(policy: Any, shape: tuple[int, ...]) -> NDArray[np.float64]:
    values = _array("target_policy", policy)
    if values.shape != shape:
        raise InputError(
            f"target_policy: expected the shape {shape} of expected_rewards, got {values.shape}"
        )
    good = ((values >= 0) & (values <= 1 + _ROUNDING)).all(axis=1)
    _require("target_policy", values, good, "a probability is 0 to 1")
    return values


def _table(name: str, values: Any, n: int | None = None) -> NDArray[np.float64]:
    table = _array(name, values)
    if table.ndim != 2 or not table.shape[1]:
        raise InputError(f"{name}: expected the shape [n, actions], got {table.shape}")
    _require_length(name, table, n)
    _require(name, table, np.isfinite(table).all(axis=1), "every action needs a finite value")
    return table


def _actions(actions: Any, n: int, num_actions: int) -> NDArray[np.int64]:
    values = _vector("actions", actions, n)
    good = (values >= 0) & (values < num_actions) & (values == np.floor(values))
    _require("actions", values, good, f"an action is a whole number, 0 to {num_actions - 1}")
    return values.astype(np.int64)


def _vector(name: str, values: Any, n: int | None = None) -> NDArray[np.float64]:
    vector = _array(name, values)
    if vector.ndim != 1:
        raise InputError(f"{name}: expected one number a row, got the shape {vector.shape}")
    _require_length(name, vector, n)
    return vector


def _require_length(name: str, values: NDArray[np.float64], n: int | None) -> None:
    if not len(values):
        raise InputError(f"{name}: empty; an estimate needs at least one row of a log")
    if n is not None and len(values) != n:
        raise InputError(f"{name}: has {len(values)} rows, the rewards have {n}; give one a row")


def _array(name: str, values: Any) -> NDArray[np.float64]:
    """Float64, with NaN for missing (None or masked) values, which the range check then names."""
    if values is None:
        raise InputError(f"{name}: missing; give one number for each row of the log")
    try:
        if isinstance(values, np.ma.MaskedArray):
            return np.asarray(values.astype(np.float64).filled(np.nan))
        return np.asarray(values, np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name}: expected numbers in rows of one length ({error})") from error


def _require(name: str, values: NDArray[np.float64], good: NDArray[np.bool_], rule: str) -> None:
    if good.all():
        return
    row = int(np.argmin(good))
    if values.ndim > 1:
        found = "has one that is not"
    else:
        found = "is missing or NaN" if np.isnan(values[row]) else f"is {values[row]:g}"
    raise InputError(f"{name}: row {row} {found}; {rule} ({int((~good).sum())} such rows)")
