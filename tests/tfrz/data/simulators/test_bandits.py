"""Bandits with known truth: worked examples 1 and 2, and contextual slates (S4)."""

from __future__ import annotations

import itertools
import math
import time

import numpy as np
import pytest

from tfrz.data.simulators.bandits import (
    BiasedLoggerBandit,
    ContextualSlates,
    PageOfTwoBandit,
    best_policy,
    inclusion,
)
from tfrz.errors import ConfigError


def _frequencies_fit(actions: np.ndarray, probabilities: np.ndarray) -> None:
    """Every share within 4.5 standard errors."""
    n = len(actions)
    shares = np.bincount(actions, minlength=len(probabilities)) / n
    errors = np.sqrt(probabilities * (1 - probabilities) / n)
    assert (np.abs(shares - probabilities) < 4.5 * errors + 1e-9).all()


# Worked example 1


def test_worked_example_1_numbers():
    bandit = BiasedLoggerBandit()
    np.testing.assert_array_equal(bandit.rewards, np.arange(1, 11))
    np.testing.assert_allclose(bandit.logger, [(11 - i) / 55 for i in range(1, 11)], atol=1e-15)
    assert bandit.value(bandit.logger) == pytest.approx(4.0, abs=1e-12)
    np.testing.assert_allclose(
        bandit.naive_policy,
        [
            0.045455,
            0.081818,
            0.109091,
            0.127273,
            0.136364,
            0.136364,
            0.127273,
            0.109091,
            0.081818,
            0.045455,
        ],
        atol=5e-7,
    )
    np.testing.assert_allclose(
        bandit.naive_policy, [i * (11 - i) / 220 for i in range(1, 11)], atol=1e-15
    )
    assert bandit.value(bandit.naive_policy) == pytest.approx(5.5, abs=1e-12)
    assert bandit.value(np.eye(10)[9]) == 10.0


def test_worked_example_1_the_naive_policy_is_where_the_naive_gradient_vanishes():
    bandit = BiasedLoggerBandit(items=7)
    gains = bandit.logger * bandit.rewards
    gradient = gains - gains.sum() * bandit.naive_policy  # Of sum beta r log pi, by logits.
    np.testing.assert_allclose(gradient, 0, atol=1e-15)


def test_worked_example_1_logs():
    bandit = BiasedLoggerBandit()
    log = bandit.sample(100_000, seed=0)
    assert set(log) == {"action", "propensity", "reward"}
    assert all(v.shape == (100_000,) for v in log.values())
    assert log["action"].dtype == np.int64 and log["propensity"].dtype == np.float64
    _frequencies_fit(log["action"], bandit.logger)
    np.testing.assert_array_equal(log["propensity"], bandit.logger[log["action"]])
    np.testing.assert_array_equal(log["reward"], log["action"] + 1.0)


# Worked example 2


def test_worked_example_2_numbers():
    bandit = PageOfTwoBandit()
    np.testing.assert_array_equal(bandit.rewards, [10, 9, 1, 1, 1, 1, 1, 1, 1, 1])
    np.testing.assert_allclose(bandit.logger, 0.1)
    best = bandit.best_policy(draws=2)
    np.testing.assert_allclose(best, [10 / 19, 9 / 19, 0, 0, 0, 0, 0, 0, 0, 0], atol=1e-12)
    assert bandit.page_value(best, draws=2) == pytest.approx(5149 / 361, abs=1e-12)
    assert bandit.page_value(best, draws=2) == pytest.approx(14.263158, abs=5e-7)
    assert bandit.page_value(np.eye(10)[0], draws=2) == 10.0
    assert bandit.value(np.eye(10)[0]) == 10.0
    np.testing.assert_array_equal(bandit.best_policy(draws=1), np.eye(10)[0])
    alpha = np.array([11 / 19, 8 / 19, *[0] * 8])  # What alpha / beta converges to.
    assert bandit.page_value(alpha, draws=2) == pytest.approx(5130 / 361, abs=1e-12)


@pytest.mark.parametrize(
    ("draws", "first", "second", "others"),
    [
        (3, 0.513167, 0.486833, 0.0),
        (4, 0.508779, 0.491221, 0.0),
        (8, 0.314606, 0.304212, 0.047648),
        (16, 0.205955, 0.200358, 0.074211),
    ],
)
def test_worked_example_2_more_draws_flatten_the_policy(draws, first, second, others):
    found = PageOfTwoBandit().best_policy(draws)
    np.testing.assert_allclose(found, [first, second, *[others] * 8], atol=5e-7)
    assert found.sum() == pytest.approx(1, abs=1e-12)


def test_worked_example_2_logs():
    bandit = PageOfTwoBandit()
    log = bandit.sample(50_000, seed=1)
    _frequencies_fit(log["action"], bandit.logger)
    np.testing.assert_array_equal(log["propensity"], 0.1)
    np.testing.assert_array_equal(log["reward"], bandit.rewards[log["action"]])


def test_page_value_is_the_value_of_every_possible_page():
    bandit = PageOfTwoBandit(items=4)
    policy = np.array([0.4, 0.3, 0.2, 0.1])
    for draws in (1, 2, 3):
        expected = sum(
            math.prod(policy[a] for a in drawn) * sum(bandit.rewards[a] for a in set(drawn))
            for drawn in itertools.product(range(4), repeat=draws)
        )
        assert bandit.page_value(policy, draws) == pytest.approx(expected, abs=1e-12)


# Closed forms


def test_inclusion_keeps_the_digits_of_rare_items():
    assert inclusion(np.array([1e-18]), 4)[0] == pytest.approx(4e-18, rel=1e-12)
    np.testing.assert_array_equal(inclusion(np.array([0.0, 1.0]), 5), [0, 1])
    np.testing.assert_allclose(inclusion(np.array([0.25]), 3), 1 - 0.75**3, atol=1e-15)


@pytest.mark.parametrize("draws", [2, 3, 5, 20])
@pytest.mark.parametrize("items", [2, 5, 40])
def test_the_best_policy_is_stationary_and_nothing_near_is_better(items, draws):
    rng = np.random.default_rng(items * 100 + draws)
    rewards = rng.gamma(0.7, size=(6, items)) + 1e-3
    found = best_policy(rewards, draws)
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-12)
    assert (found >= 0).all()
    slope = rewards * draws * (1 - found) ** (draws - 1)
    for row in range(6):
        inside = found[row] > 0
        level = slope[row][inside].mean()
        np.testing.assert_allclose(slope[row][inside], level, rtol=1e-9)
        assert (slope[row][~inside] <= level * (1 + 1e-9)).all()
    best = (rewards * inclusion(found, draws)).sum(1)
    for _ in range(200):
        other = 0.9 * found + 0.1 * rng.dirichlet(np.full(items, 0.3), size=6)
        assert ((rewards * inclusion(other, draws)).sum(1) <= best + 1e-12).all()


def test_the_best_policy_is_the_same_at_any_scale_of_the_rewards():
    rewards = np.array([3.0, 2.0, 1.0])
    np.testing.assert_allclose(
        best_policy(rewards * 1e-200, 2), best_policy(rewards, 2), atol=1e-12
    )
    np.testing.assert_allclose(
        best_policy(rewards[::-1], 2), best_policy(rewards, 2)[::-1], atol=1e-12
    )
    np.testing.assert_allclose(best_policy(np.ones(8), 3), 1 / 8, atol=1e-12)


# Contextual slates


def test_s4_click_probabilities_and_logger_follow_their_formulas():
    slates = ContextualSlates(contexts=4, items=9, dim=8, seed=5)
    for c in range(4):
        weights = []
        for i in range(9):
            dot = float(slates.context_features[c] @ slates.item_features[i]) / math.sqrt(8)
            click = 1 / (1 + math.exp(-(1.8 * dot - 3)))
            assert slates.click_probabilities[c, i] == pytest.approx(click, abs=1e-12)
            weights.append(math.exp(0.5 * dot + 1.5 * slates.popularity[i]))
        np.testing.assert_allclose(slates.logger[c], np.array(weights) / sum(weights), atol=1e-12)
    assert (slates.num_contexts, slates.num_items) == (4, 9)


def test_s4_features_are_standard_normal():
    slates = ContextualSlates(contexts=300, items=2000, seed=0)
    for values in (slates.context_features, slates.item_features, slates.popularity):
        n = values.size
        assert abs(values.mean()) < 4.5 / math.sqrt(n)
        assert abs(values.var() - 1) < 4.5 * math.sqrt(2 / n)


def test_s4_truths_are_those_of_the_specification():
    """Means over seeds within 3.5 standard errors of the table's means over 5 of its own."""
    rows = []
    for seed in range(30):
        s = ContextualSlates(seed=seed)
        assert s.logger.shape == (20, 200)
        rows.append(
            [
                s.top_value(s.logger, 1),
                s.top_value(s.logger, 5),
                s.page_value(s.logger, 5),
                s.entropy(s.logger),
                s.oracle_value(1),
                s.oracle_value(5),
            ]
        )
    found = np.array(rows)
    table = np.array([0.193, 1.143, 0.824, 4.26, 0.770, 3.305])
    errors = found.std(axis=0, ddof=1) * math.sqrt(1 / 30 + 1 / 5)
    assert (np.abs(found.mean(axis=0) - table) < 3.5 * errors).all()


def test_s4_exact_values_by_enumeration():
    slates = ContextualSlates(contexts=3, items=4, seed=2)
    rng = np.random.default_rng(0)
    policy, r = rng.dirichlet(np.ones(4), size=3), slates.click_probabilities
    one = np.mean([sum(policy[c, i] * r[c, i] for i in range(4)) for c in range(3)])
    assert slates.value(policy) == pytest.approx(one, abs=1e-12)
    assert slates.logger_value == slates.value(slates.logger)
    for draws in (1, 2, 3):
        expected = np.mean(
            [
                sum(
                    math.prod(policy[c, i] for i in drawn) * sum(r[c, i] for i in set(drawn))
                    for drawn in itertools.product(range(4), repeat=draws)
                )
                for c in range(3)
            ]
        )
        assert slates.page_value(policy, draws) == pytest.approx(expected, abs=1e-12)
    for k in (1, 2, 4):
        best = np.mean(
            [
                max(sum(r[c, i] for i in page) for page in itertools.combinations(range(4), k))
                for c in range(3)
            ]
        )
        assert slates.oracle_value(k) == pytest.approx(best, abs=1e-12)
        top = np.mean(
            [
                sum(r[c, i] for i in sorted(range(4), key=lambda i: -policy[c, i])[:k])
                for c in range(3)
            ]
        )
        assert slates.top_value(policy, k) == pytest.approx(top, abs=1e-12)
        assert slates.top_value(np.log(policy), k) == pytest.approx(top, abs=1e-12)
    entropy = np.mean([-sum(p * math.log(p) for p in policy[c]) for c in range(3)])
    assert slates.entropy(policy) == pytest.approx(entropy, abs=1e-12)
    assert slates.entropy(np.eye(4)[:3]) == 0.0
    assert slates.entropy(np.full((3, 4), 0.25)) == pytest.approx(math.log(4))


def test_s4_of_equal_scores_the_first_are_shown():
    slates = ContextualSlates(contexts=2, items=5, seed=0)
    expected = slates.click_probabilities[:, :2].sum(1).mean()
    assert slates.top_value(np.zeros((2, 5)), 2) == pytest.approx(expected, abs=1e-12)


def test_s4_no_policy_beats_the_best_and_no_page_beats_the_oracle():
    slates = ContextualSlates(seed=3)
    assert slates.value(slates.best_policy(1)) == pytest.approx(slates.oracle_value(1), abs=1e-12)
    rng = np.random.default_rng(0)
    for draws in (2, 5):
        best = slates.page_value(slates.best_policy(draws), draws)
        assert best < slates.oracle_value(draws)
        for sharpness in (0.1, 0.3, 1.0):
            others = rng.dirichlet(np.full(200, sharpness), size=20)
            assert slates.page_value(others, draws) < best


def test_s4_logs_are_drawn_from_the_logger_and_clicked_with_the_probabilities():
    slates = ContextualSlates(contexts=5, items=12, seed=1)
    n = 200_000
    log = slates.sample(n, seed=4)
    assert set(log) == {"context", "action", "propensity", "click"}
    assert all(v.shape == (n,) for v in log.values())
    assert log["context"].dtype == log["action"].dtype == np.int64
    _frequencies_fit(log["context"], np.full(5, 0.2))
    for c in range(5):
        rows = log["context"] == c
        _frequencies_fit(log["action"][rows], slates.logger[c])
    np.testing.assert_array_equal(log["propensity"], slates.logger[log["context"], log["action"]])
    assert set(np.unique(log["click"])) == {0.0, 1.0}
    chance = slates.click_probabilities[log["context"], log["action"]]
    z = (log["click"] - chance).sum() / math.sqrt((chance * (1 - chance)).sum())
    assert abs(z) < 4
    cells = log["context"] * 12 + log["action"]
    for cell in range(60):
        clicks = log["click"][cells == cell]
        p = slates.click_probabilities.ravel()[cell]
        assert abs(clicks.mean() - p) < 4.5 * math.sqrt(p * (1 - p) / len(clicks)) + 4.5 / len(
            clicks
        )


def test_seeds_make_logs_and_worlds():
    for bandit in (BiasedLoggerBandit(), PageOfTwoBandit(), ContextualSlates(seed=0)):
        one, same, other = bandit.sample(50, 1), bandit.sample(50, 1), bandit.sample(50, 2)
        for name in one:
            np.testing.assert_array_equal(one[name], same[name])
        assert (one["action"] != other["action"]).any()
    a, b, c = ContextualSlates(seed=0), ContextualSlates(seed=0), ContextualSlates(seed=1)
    np.testing.assert_array_equal(a.logger, b.logger)
    assert (a.logger != c.logger).any()


def test_a_large_catalogue_is_quick():
    start = time.perf_counter()
    slates = ContextualSlates(contexts=50, items=1000, seed=0)
    log = slates.sample(200_000, seed=0)
    slates.page_value(slates.best_policy(16), 16)
    slates.oracle_value(5)
    assert time.perf_counter() - start < 5
    assert log["action"].max() < 1000 and (log["propensity"] > 0).all()
    assert slates.value(slates.logger) == pytest.approx(
        log["click"].mean(), abs=4.5 * 0.5 / math.sqrt(200_000)
    )


def test_bad_arguments_are_refused():
    for call, word in (
        (lambda: ContextualSlates(contexts=0), "contexts"),
        (lambda: ContextualSlates(items=1), "items"),
        (lambda: ContextualSlates(dim=0), "dim"),
        (lambda: BiasedLoggerBandit(items=1), "items"),
        (lambda: PageOfTwoBandit(items=2), "items"),
        (lambda: ContextualSlates().sample(0, seed=0), "n"),
        (lambda: BiasedLoggerBandit().sample(0, seed=0), "n"),
        (lambda: ContextualSlates().value(np.ones(200)), "policy"),
        (lambda: BiasedLoggerBandit().value(np.ones(9)), "policy"),
        (lambda: ContextualSlates().top_value(np.ones((20, 200)), 201), "k"),
        (lambda: ContextualSlates().oracle_value(0), "k"),
        (lambda: PageOfTwoBandit().page_value(np.full(10, 0.1), 0), "draws"),
        (lambda: best_policy(np.array([1.0, 0.0]), 2), "rewards"),
    ):
        with pytest.raises(ConfigError, match=word) as caught:
            call()
        assert "\n" not in str(caught.value)
