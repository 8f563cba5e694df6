"""Estimators of off-policy evaluation: by hand, against exact truth, and what their intervals cover."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from tfrz import metrics
from tfrz.data.simulators.bandits import BiasedLoggerBandit, ContextualSlates, PageOfTwoBandit
from tfrz.errors import InputError
from tfrz.metrics.off_policy import (
    Estimate,
    direct_method,
    doubly_robust,
    effective_sample_size,
    inverse_propensity,
    self_normalized,
    weight_summary,
)

REWARDS = [1.0, 0.0, 2.0, 5.0]
TARGET = [0.9, 0.1, 0.3, 0.2]
LOGGED = [0.3, 0.2, 0.5, 0.025]
# Weights 3, 0.5, 0.6, 8.


def _softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def _slates_policy(slates: ContextualSlates, sharpness: float) -> np.ndarray:
    """The logger, tilted towards clicks."""
    return _softmax(np.log(slates.logger) + sharpness * np.log(slates.click_probabilities))


def _model(slates: ContextualSlates) -> np.ndarray:
    """Expected clicks that are wrong, and wrong in different ways."""
    return 0.5 * slates.click_probabilities + np.linspace(0.0, 0.2, slates.num_items)


# By hand


def test_inverse_propensity_by_hand():
    found = inverse_propensity(REWARDS, TARGET, LOGGED)
    assert found.value == pytest.approx((3 * 1 + 0 + 0.6 * 2 + 8 * 5) / 4, abs=1e-12)
    assert found.count == 4
    weights = np.array([3, 0.5, 0.6, 8])
    assert found.effective_sample_size == pytest.approx(weights.sum() ** 2 / (weights**2).sum())
    capped = inverse_propensity(REWARDS, TARGET, LOGGED, cap=2.0)
    assert capped.value == pytest.approx((2 * 1 + 0.6 * 2 + 2 * 5) / 4, abs=1e-12)
    assert capped.effective_sample_size == pytest.approx(5.1**2 / (4 + 0.25 + 0.36 + 4))


def test_self_normalized_by_hand():
    found = self_normalized(REWARDS, TARGET, LOGGED)
    assert found.value == pytest.approx((3 * 1 + 0.6 * 2 + 8 * 5) / 12.1, abs=1e-12)
    capped = self_normalized(REWARDS, TARGET, LOGGED, cap=2.0)
    assert capped.value == pytest.approx((2 * 1 + 0.6 * 2 + 2 * 5) / 5.1, abs=1e-12)
    assert capped.count == 4


def test_direct_method_by_hand():
    expected = [[1.0, 2.0, 3.0], [0.0, 4.0, 8.0]]
    policy = [[0.5, 0.25, 0.25], [0.0, 0.5, 0.5]]
    found = direct_method(expected, policy)
    assert found.value == pytest.approx((1.75 + 6.0) / 2, abs=1e-12)
    assert (found.count, found.effective_sample_size) == (2, 2.0)


def test_doubly_robust_by_hand():
    policy = [[0.9, 0.1], [0.4, 0.6]]
    expected = [[1.0, 3.0], [2.0, 0.5]]
    # Rows: 1.2 + w (2 - 1) with w = 3, and 1.1 + w (0 - 0.5) with w = 0.75.
    found = doubly_robust([2.0, 0.0], [0, 1], policy, [0.3, 0.8], expected)
    assert found.value == pytest.approx((4.2 + 0.725) / 2, abs=1e-12)
    assert found.effective_sample_size == pytest.approx(3.75**2 / (9 + 0.5625))
    capped = doubly_robust([2.0, 0.0], [0, 1], policy, [0.3, 0.8], expected, cap=2.0)
    assert capped.value == pytest.approx((3.2 + 0.725) / 2, abs=1e-12)


def test_the_interval_by_hand():
    """Rows 1, 2, 6, mean 3: with 3 + 2 (6 - 3) = 9 and 3 + 2 (1 - 3) = -1 their mean is 3.4."""
    found = inverse_propensity([1.0, 2.0, 6.0], [0.5] * 3, [0.5] * 3)
    spread = math.sqrt(sum((x - 3.4) ** 2 for x in (1, 2, 6, 9, -1)) / 4)
    half = 4.302652729911275 * spread / math.sqrt(5)  # t of two degrees of freedom.
    assert found.value == 3.0
    assert found.low == pytest.approx(3.4 - half, rel=1e-6)
    assert found.high == pytest.approx(3.4 + half, rel=1e-6)


@pytest.mark.parametrize(
    ("n", "quantile"),
    [
        (2, 12.7062047),
        (6, 2.5705818),
        (7, 2.4469119),
        (11, 2.2281389),
        (31, 2.0422725),
        (500, 1.9647294),
    ],
)
def test_the_quantiles_of_t(n, quantile):
    rows = np.arange(n, dtype=np.float64)
    mean = rows.mean()
    more = np.r_[rows, 2 * rows[-1] - mean, 2 * rows[0] - mean]
    half = quantile * more.std(ddof=1) / math.sqrt(n + 2)
    found = inverse_propensity(rows, np.full(n, 0.5), np.full(n, 0.5))
    assert found.high - found.value == pytest.approx(half, rel=1e-3)
    assert found.value - found.low == pytest.approx(half, rel=1e-3)


def test_in_long_logs_the_interval_is_the_ordinary_one():
    bandit = BiasedLoggerBandit()
    log = bandit.sample(400_000, seed=3)
    weights = 0.1 / log["propensity"]
    found = inverse_propensity(log["reward"], np.full(400_000, 0.1), log["propensity"])
    terms = weights * log["reward"]
    half = 1.959964 * terms.std() / math.sqrt(400_000)
    assert found.low == pytest.approx(terms.mean() - half, abs=0.01 * half)
    assert found.high == pytest.approx(terms.mean() + half, abs=0.01 * half)
    ratio = self_normalized(log["reward"], np.full(400_000, 0.1), log["propensity"])
    residuals = weights * (log["reward"] - ratio.value)
    half = 1.959964 * residuals.std() / weights.mean() / math.sqrt(400_000)
    assert ratio.low == pytest.approx(ratio.value - half, abs=0.01 * half)
    assert ratio.high == pytest.approx(ratio.value + half, abs=0.01 * half)


def test_effective_sample_size_by_hand_and_at_its_ends():
    assert effective_sample_size([0.5, 2, 0.1, 1.4]) == pytest.approx(16 / 6.22)
    assert effective_sample_size(np.full(7, 0.3)) == pytest.approx(7)
    assert effective_sample_size([0, 0, 4, 0]) == pytest.approx(1)
    assert effective_sample_size([0, 0]) == 0.0
    assert effective_sample_size([1e200, 1e200]) == pytest.approx(2)


def test_weight_summary_by_hand():
    weights = np.arange(1.0, 102.0)
    found = weight_summary(weights, cap=91.0)
    assert set(found) == {
        "p50",
        "p90",
        "p99",
        "max",
        "share_capped",
        "effective_sample_size",
        "mean",
    }
    assert all(type(value) is float for value in found.values())
    assert (found["p50"], found["p90"], found["p99"], found["max"]) == (51, 91, 100, 101)
    assert found["share_capped"] == pytest.approx(10 / 101)  # A weight of 91 loses nothing.
    assert found["mean"] == 51
    assert found["effective_sample_size"] == pytest.approx(5151**2 / (weights**2).sum())
    assert weight_summary(weights)["share_capped"] == 0.0


def test_invariant_4_a_policy_that_is_the_logger_has_weights_of_one():
    log = BiasedLoggerBandit().sample(500, seed=0)
    beta = log["propensity"]
    summary = weight_summary(beta / beta, cap=1.0)
    assert (summary["max"], summary["share_capped"]) == (1.0, 0.0)
    for cap in (None, 1.0, math.e**3):
        for estimator in (inverse_propensity, self_normalized):
            found = estimator(log["reward"], beta, beta, cap)
            assert found.value == pytest.approx(log["reward"].mean(), abs=1e-12)
            assert found.effective_sample_size == pytest.approx(500)


def test_estimates_are_plain_and_frozen():
    found = inverse_propensity(REWARDS, TARGET, LOGGED)
    assert [f.name for f in dataclasses.fields(Estimate)] == [
        "value",
        "low",
        "high",
        "effective_sample_size",
        "count",
    ]
    assert all(type(v) in (float, int) for v in dataclasses.astuple(found))
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.value = 0.0


def test_clicks_and_single_precision_are_welcome():
    clicks = np.array([True, False, True, True])
    expected = inverse_propensity(clicks.astype("float64"), TARGET, LOGGED)
    assert inverse_propensity(clicks, TARGET, LOGGED) == expected
    single = inverse_propensity(clicks, np.float32(TARGET), np.float32(LOGGED))
    assert single.value == pytest.approx(expected.value, rel=1e-6)
    rounded = np.float32([1.0000001] * 4)  # What a softmax of one action may sum to.
    assert inverse_propensity(clicks, rounded, rounded).value == pytest.approx(0.75)


def test_the_package_exports_them():
    for name in (
        "Estimate",
        "inverse_propensity",
        "self_normalized",
        "direct_method",
        "doubly_robust",
        "effective_sample_size",
        "weight_summary",
    ):
        assert name in metrics.__all__ and hasattr(metrics, name)


# A log that has every action as often as it should: estimates are exact.


def _balanced() -> tuple[BiasedLoggerBandit, np.ndarray]:
    bandit = BiasedLoggerBandit()
    return bandit, np.repeat(np.arange(10), np.arange(10, 0, -1))


@pytest.mark.parametrize("policy", ["uniform", "naive", "reversed", "best"])
def test_worked_example_1_a_log_in_proportion_gives_the_exact_value(policy):
    bandit, actions = _balanced()
    assert len(actions) == 55
    pi = {
        "uniform": np.full(10, 0.1),
        "naive": bandit.naive_policy,
        "reversed": bandit.logger[::-1],
        "best": np.eye(10)[9],
    }[policy]
    value = {"uniform": 5.5, "naive": 5.5, "reversed": 7.0, "best": 10.0}[policy]
    rewards, beta = bandit.rewards[actions], bandit.logger[actions]
    wrong = np.broadcast_to(np.linspace(3, 0, 10), (55, 10))
    assert inverse_propensity(rewards, pi[actions], beta).value == pytest.approx(value, abs=1e-9)
    assert self_normalized(rewards, pi[actions], beta).value == pytest.approx(value, abs=1e-9)
    table = np.broadcast_to(pi, (55, 10))
    assert doubly_robust(rewards, actions, table, beta, wrong).value == pytest.approx(
        value, abs=1e-9
    )
    assert direct_method(np.broadcast_to(bandit.rewards, (55, 10)), table).value == pytest.approx(
        value, abs=1e-9
    )
    assert direct_method(wrong, table).value == pytest.approx(pi @ wrong[0], abs=1e-9)


def test_worked_example_2_the_value_of_a_page_from_a_log_of_single_items():
    bandit = PageOfTwoBandit()
    actions = np.arange(10)
    page = 1 - (1 - bandit.best_policy(2)) ** 2
    found = inverse_propensity(bandit.rewards, page[actions], bandit.logger)
    assert found.value == pytest.approx(5149 / 361, abs=1e-9)
    assert direct_method([bandit.rewards], [page]).value == pytest.approx(5149 / 361, abs=1e-9)


def test_the_doubly_robust_estimate_needs_only_one_of_the_two_to_be_right():
    bandit, actions = _balanced()
    pi = np.broadcast_to(bandit.naive_policy, (55, 10))
    truth = np.broadcast_to(bandit.rewards, (55, 10))
    rewards, beta = bandit.rewards[actions], bandit.logger[actions]
    wrong_beta = np.full(55, 0.37)
    found = doubly_robust(rewards, actions, pi, wrong_beta, truth)
    assert found.value == pytest.approx(5.5, abs=1e-9)
    none = np.zeros((55, 10))
    assert doubly_robust(rewards, actions, pi, beta, none).value == pytest.approx(
        inverse_propensity(rewards, pi[0][actions], beta).value, abs=1e-12
    )
    assert doubly_robust(rewards, actions, pi, wrong_beta, none).value != pytest.approx(
        5.5, abs=0.5
    )


# Against the exact truth of contexts, items and clicks: mean and variance are known, so z is.


def _moments(
    slates: ContextualSlates, terms: np.ndarray, click_terms: np.ndarray
) -> tuple[float, float]:
    """Mean and variance of `terms + click click_terms` over contexts, the logger and clicks."""
    beta, r = slates.logger / slates.num_contexts, slates.click_probabilities
    first = (beta * (terms + r * click_terms)).sum()
    second = (beta * (r * (terms + click_terms) ** 2 + (1 - r) * terms**2)).sum()
    return first, second - first**2


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("sharpness", [-1.0, 0.0, 1.0, 2.0])
def test_the_estimators_agree_with_brute_force_truth(seed, sharpness):
    n = 200_000
    slates = ContextualSlates(contexts=6, items=30, seed=seed)
    pi, q = _slates_policy(slates, sharpness), _model(slates)
    truth = (pi * slates.click_probabilities).sum(1).mean()
    assert slates.value(pi) == pytest.approx(truth, abs=1e-12)
    log = slates.sample(n, seed=seed + 100)
    x, a, click, beta = log["context"], log["action"], log["click"], log["propensity"]
    w = pi / slates.logger
    zero, mean_q = np.zeros_like(w), (pi * q).sum(1, keepdims=True)
    cases = {
        "ips": (inverse_propensity(click, pi[x, a], beta), zero, w),
        "snips": (self_normalized(click, pi[x, a], beta), truth - w * truth, w),
        "dr": (doubly_robust(click, a, pi[x], beta, q[x]), mean_q - w * q, w),
        "capped": (inverse_propensity(click, pi[x, a], beta, 1.5), zero, np.minimum(w, 1.5)),
        "capped dr": (
            doubly_robust(click, a, pi[x], beta, q[x], 1.5),
            mean_q - np.minimum(w, 1.5) * q,
            np.minimum(w, 1.5),
        ),
    }
    for name, (found, terms, click_terms) in cases.items():
        mean, variance = _moments(slates, terms, click_terms)
        if "capped" not in name:
            assert mean == pytest.approx(truth, abs=1e-12), name  # Unbiased, for any model.
        error = math.sqrt(variance / n)
        assert error < 0.04 * truth, name
        assert abs(found.value - mean) < 4 * error, name
        if sharpness >= 0:  # Else one weight of thousands still widens the interval.
            assert (found.high - found.low) / 2 == pytest.approx(1.96 * error, rel=0.1), name
    spread = np.square((pi * q).sum(1) - (pi * q).sum(1).mean()).mean()
    direct = direct_method(q[x], pi[x])
    assert abs(direct.value - (pi * q).sum(1).mean()) < 4 * math.sqrt(spread / n)


def test_a_cap_takes_from_clicks_what_the_truth_says():
    slates = ContextualSlates(seed=1)
    pi = _slates_policy(slates, 3.0)
    log = slates.sample(50_000, seed=2)
    target = pi[log["context"], log["action"]]
    values = [
        inverse_propensity(log["click"], target, log["propensity"], cap).value
        for cap in (1, math.e, math.e**3, None)
    ]
    assert values == sorted(values)
    for cap, value in zip((1.0, math.e), values):
        expected = (
            (slates.logger * np.minimum(pi / slates.logger, cap) * slates.click_probabilities)
            .sum(1)
            .mean()
        )
        assert value == pytest.approx(expected, rel=0.05)
    assert values[0] < 0.75 * values[-1]


# Coverage

REPETITIONS, ROWS = 400, 500


def _share(estimates: list[Estimate], truth: float) -> float:
    return float(np.mean([e.low <= truth <= e.high for e in estimates]))


@pytest.mark.parametrize("policy", ["uniform", "reversed", "naive", "greedy"])
def test_coverage_of_95_percent_intervals_in_a_bandit(policy):
    bandit = BiasedLoggerBandit()
    pi = {
        "uniform": np.full(10, 0.1),
        "reversed": bandit.logger[::-1],
        "naive": bandit.naive_policy,
        "greedy": 0.9 * np.eye(10)[9] + 0.01,
    }[policy]
    truth, table = float(pi @ bandit.rewards), np.broadcast_to(pi, (ROWS, 10))
    model = np.broadcast_to(np.linspace(4, 6, 10), (ROWS, 10))
    found: dict[str, list[Estimate]] = {"ips": [], "snips": [], "dr": []}
    for repetition in range(REPETITIONS):
        log = bandit.sample(ROWS, seed=repetition)
        r, a, beta = log["reward"], log["action"], log["propensity"]
        found["ips"].append(inverse_propensity(r, pi[a], beta))
        found["snips"].append(self_normalized(r, pi[a], beta))
        found["dr"].append(doubly_robust(r, a, table, beta, model))
    for name, estimates in found.items():
        assert 0.90 <= _share(estimates, truth) <= 0.99, name


@pytest.mark.parametrize("seed", [0, 3])
@pytest.mark.parametrize("policy", ["logger", "uniform", "tilted", "sharp", "best"])
def test_coverage_of_95_percent_intervals_in_contexts_with_clicks(policy, seed):
    """Also where 500 rows are worth 20 to 80: the best policy, and the uniform one."""
    slates = ContextualSlates(seed=seed)
    pi = {
        "logger": slates.logger,
        "uniform": np.full(slates.logger.shape, 1 / slates.num_items),
        "tilted": _slates_policy(slates, 1.0),
        "sharp": _slates_policy(slates, 3.0),
        "best": 0.5 * slates.best_policy(8) + 0.5 * slates.logger,
    }[policy]
    truth, model = slates.value(pi), _model(slates)
    found: dict[str, list[Estimate]] = {"ips": [], "snips": [], "dr": []}
    for repetition in range(REPETITIONS):
        log = slates.sample(ROWS, seed=repetition)
        x, a, click, beta = log["context"], log["action"], log["click"], log["propensity"]
        found["ips"].append(inverse_propensity(click, pi[x, a], beta))
        found["snips"].append(self_normalized(click, pi[x, a], beta))
        found["dr"].append(doubly_robust(click, a, pi[x], beta, model[x]))
    for name, estimates in found.items():
        assert 0.90 <= _share(estimates, truth) <= 0.99, name
        assert all(e.low <= e.value <= e.high for e in estimates)


# Bad input

ESTIMATORS = {
    "ips": lambda r, t, b: inverse_propensity(r, t, b),
    "snips": lambda r, t, b: self_normalized(r, t, b),
    "dr": lambda r, t, b: doubly_robust(r, [0, 1, 0, 1], np.full((4, 2), 0.5), b, np.ones((4, 2))),
}


def _refused(call) -> str:
    with pytest.raises(InputError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message and len(message) < 200
    return message


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("bad", [0.0, -0.1, 1.5, math.nan, math.inf, None])
def test_a_bad_propensity_is_refused_with_its_row(estimator, bad):
    message = _refused(lambda: ESTIMATORS[estimator](REWARDS, TARGET, [0.5, 0.5, bad, 0.5]))
    assert "logged" in message and "row 2" in message


def test_a_missing_propensity_may_be_masked_too():
    logged = np.ma.masked_array([0.5] * 4, mask=[False, True, False, True])
    message = _refused(lambda: inverse_propensity(REWARDS, TARGET, logged))
    assert "logged" in message and "row 1" in message and "missing" in message


@pytest.mark.parametrize("bad", [-0.1, 1.5, math.nan, None])
def test_a_bad_target_is_refused_with_its_row(bad):
    for estimator in ("ips", "snips"):
        message = _refused(lambda: ESTIMATORS[estimator](REWARDS, [0.1, 0.2, 0.3, bad], LOGGED))
        assert "target" in message and "row 3" in message
    policy = [[0.5, 0.5], [bad, 0.5], [0.5, 0.5], [0.5, 0.5]]
    for call in (
        lambda: doubly_robust(REWARDS, [0, 1, 0, 1], policy, LOGGED, np.ones((4, 2))),
        lambda: direct_method(np.ones((4, 2)), policy),
    ):
        message = _refused(call)
        assert "target_policy" in message and "row 1" in message


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, None])
def test_a_reward_that_is_no_number_is_refused_with_its_row(estimator, bad):
    message = _refused(lambda: ESTIMATORS[estimator]([1.0, bad, 2.0, 5.0], TARGET, LOGGED))
    assert "rewards" in message and "row 1" in message


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_lengths_that_differ_are_refused(estimator):
    message = _refused(lambda: ESTIMATORS[estimator](REWARDS, TARGET, LOGGED[:3]))
    assert "logged" in message and "3" in message and "4" in message


def test_tables_that_do_not_fit_are_refused():
    ones = np.ones((4, 2))
    message = _refused(lambda: doubly_robust(REWARDS, [0, 1, 0, 1], ones / 2, LOGGED, ones[:3]))
    assert "expected_rewards" in message
    message = _refused(lambda: doubly_robust(REWARDS, [0, 1, 0], ones / 2, LOGGED, ones))
    assert "actions" in message
    assert "target_policy" in _refused(lambda: direct_method(ones, np.full((4, 3), 0.3)))
    assert "expected_rewards" in _refused(lambda: direct_method([1.0, 2.0], [0.5, 0.5]))
    assert "expected_rewards" in _refused(lambda: direct_method([[1.0, math.nan]], [[0.5, 0.5]]))
    assert "target" in _refused(lambda: inverse_propensity(REWARDS, np.ones((4, 1)), LOGGED))


@pytest.mark.parametrize("bad", [-1, 2, 0.5, math.nan])
def test_an_action_that_is_no_column_is_refused_with_its_row(bad):
    ones = np.ones((4, 2))
    message = _refused(lambda: doubly_robust(REWARDS, [0, 1, bad, 1], ones / 2, LOGGED, ones))
    assert "actions" in message and "row 2" in message


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_an_empty_log_is_refused(estimator):
    assert "empty" in _refused(lambda: ESTIMATORS[estimator]([], [], []))
    assert "empty" in _refused(lambda: direct_method(np.ones((0, 2)), np.ones((0, 2))))
    assert "empty" in _refused(lambda: effective_sample_size([]))
    assert "empty" in _refused(lambda: weight_summary([], 1.0))


@pytest.mark.parametrize("cap", [0.0, -1.0, math.nan])
def test_a_cap_that_caps_everything_is_refused(cap):
    assert "cap" in _refused(lambda: inverse_propensity(REWARDS, TARGET, LOGGED, cap))
    assert "cap" in _refused(lambda: weight_summary([1.0], cap))


def test_what_is_missing_altogether_or_no_number_is_refused():
    assert "logged" in _refused(lambda: inverse_propensity(REWARDS, TARGET, None))
    assert "rewards" in _refused(lambda: inverse_propensity(["a", "b"], [0.5, 0.5], [0.5, 0.5]))
    assert "weights" in _refused(lambda: weight_summary([1.0, -1.0], 1.0))
    assert "row 1" in _refused(lambda: effective_sample_size([1.0, math.nan]))


def test_a_policy_that_is_never_logged_has_no_self_normalized_value():
    assert "target" in _refused(lambda: self_normalized(REWARDS, [0.0] * 4, LOGGED))
    found = inverse_propensity(REWARDS, [0.0] * 4, LOGGED)
    assert (found.value, found.effective_sample_size) == (0.0, 0.0)  # The latter tells.


def test_one_row_has_an_estimate_and_no_bounds():
    for found in (
        inverse_propensity([2.0], [0.5], [0.25]),
        self_normalized([2.0], [0.5], [0.25]),
        direct_method([[1.0, 3.0]], [[0.5, 0.5]]),
        doubly_robust([2.0], [1], [[0.5, 0.5]], [0.25], [[1.0, 3.0]]),
    ):
        assert math.isfinite(found.value)
        assert (found.low, found.high, found.count) == (-math.inf, math.inf, 1)


def test_a_log_without_any_reward_is_worth_nothing_and_says_no_more():
    for estimator in ESTIMATORS.values():
        found = estimator([0.0] * 4, TARGET, LOGGED)
        assert found.low <= found.value <= found.high
        assert all(math.isfinite(v) for v in dataclasses.astuple(found))
    assert inverse_propensity([0.0] * 4, TARGET, LOGGED).value == 0.0
