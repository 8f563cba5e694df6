"""Sections 5.1 (8 to 10), 5.2 and 5.3 of the specification of seq2slate, on losses and rewards."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import tensorflow as tf

from tfrz.errors import ConfigError
from tfrz.layers.pointer import availability, roll, step_log_probabilities
from tfrz.losses.slate import (
    average_precision_reward,
    clicks_reward,
    in_slate_order,
    mean_of_others,
    ndcg_reward,
    policy_gradient_loss,
    step_cross_entropy,
    step_hinge,
    step_weights,
)

# Worked example A: scores by step, the greedy slate (2, 1, 0), labels.
SCORES = tf.constant(
    [
        [
            [0.2096171367, 1.5254488608, 1.9324413177],
            [0.0974585703, 1.1882534901, 1.6769414228],
            [1.0447423822, 1.7234463186, 2.1855634759],
        ]
    ],
    tf.float64,
)
FREE = tf.constant([[[True, True, True], [True, True, False], [True, False, False]]])
LABELS = tf.constant([[1.0, 0, 1]], tf.float64)


def _losses(scores, available, labels) -> dict[str, tf.Tensor]:
    return {
        "remaining": step_cross_entropy(scores, available, labels),
        "all": step_cross_entropy(scores, available, labels, "all"),
        "hinge": step_hinge(scores, available, labels),
        "smooth": step_hinge(scores, available, labels, smooth=True),
    }


def _random_case(lists: int = 200, length: int = 5):
    """Random scores, labels and slates of lists with padding, some of them empty."""
    rng = np.random.default_rng(0)
    valid = rng.random((lists, length)) < rng.choice([0.3, 0.7, 1.0], (lists, 1))
    scores = tf.constant(rng.normal(size=(lists, length, length)))
    order = np.argsort(np.where(valid, rng.random((lists, length)), 2), 1)
    order = np.where(np.arange(length) < valid.sum(1, keepdims=True), order, -1)
    labels = np.where(valid, rng.integers(0, 3, (lists, length)), 0) * rng.integers(
        0, 2, (lists, 1)
    )
    positions = tf.constant(order, tf.int32)
    return scores, availability(positions, tf.constant(valid)), tf.constant(labels * 1.0), positions


# 5.2


def test_5_2_weights():
    np.testing.assert_allclose(
        step_weights(3, dtype=tf.float64), [1.4426950409, 0.9102392266, 0.7213475204], atol=1e-9
    )
    assert step_weights(4).dtype == tf.float32
    np.testing.assert_array_equal(step_weights(4, "equal"), np.ones(4))
    with pytest.raises(ConfigError):
        step_weights(3, "linear")


@pytest.mark.parametrize(
    ("normalizer", "expected", "weighted"),
    [
        ("remaining", [1.4734632859, 1.3804370711, 0], 3.3822861474),
        ("all", [1.4734632859, 0.6902185355, 0], 2.7540221614),
    ],
)
def test_5_2_cross_entropy(normalizer, expected, weighted):
    found = step_cross_entropy(SCORES, FREE, LABELS, normalizer)
    np.testing.assert_allclose(found[0], expected, atol=1e-9)
    total = tf.reduce_sum(found[0] * step_weights(3, dtype=tf.float64))
    assert float(total) == pytest.approx(weighted, abs=1e-8)


def test_5_2_hinge():
    found = step_hinge(SCORES, FREE, LABELS)
    np.testing.assert_allclose(found[0], [2.3158317241, 2.0907949198, 0], atol=1e-9)
    total = tf.reduce_sum(found[0] * step_weights(3, dtype=tf.float64))
    assert float(total) == pytest.approx(5.2441624947, abs=1e-8)


def test_5_2_rewards():
    slate = tf.constant([[2, 1, 0]])
    np.testing.assert_array_equal(in_slate_order(LABELS, slate), [[1, 0, 1]])
    assert float(ndcg_reward(LABELS, slate, 3)[0]) == pytest.approx(0.9197207891, abs=1e-6)
    labels, order = tf.constant([[0.0, 1, 0, 1, 1]]), tf.constant([[0, 1, 2, 3, 4]])
    assert float(ndcg_reward(labels, order, 5)[0]) == pytest.approx(0.6797310500, abs=1e-6)
    assert float(ndcg_reward(labels, order, 3)[0]) == pytest.approx(0.2960819110, abs=1e-6)
    assert float(average_precision_reward(labels, order)[0]) == pytest.approx(
        0.5333333333, abs=1e-6
    )


def test_an_unknown_normalizer_is_an_error():
    with pytest.raises(ConfigError):
        step_cross_entropy(SCORES, FREE, LABELS, "some")


# 5.1.8


def test_5_1_8_a_constant_changes_nothing():
    scores, free, labels, positions = _random_case()
    moved = scores + tf.constant(np.random.default_rng(1).normal(0, 5, (200, 5, 1)))
    after = _losses(moved, free, labels)
    for name, value in _losses(scores, free, labels).items():
        np.testing.assert_allclose(after[name], value, atol=1e-9, err_msg=name)
    np.testing.assert_allclose(
        step_log_probabilities(moved, free, positions),
        step_log_probabilities(scores, free, positions),
        atol=1e-9,
    )


# 5.1.9


@pytest.mark.parametrize("normalizer", ["remaining", "all"])
def test_5_1_9_cross_entropy_is_that_of_numpy(normalizer):
    scores, free, labels, _ = (np.asarray(a) for a in _random_case())
    found = step_cross_entropy(scores, free, labels, normalizer).numpy()
    assert (found >= 0).all()
    alone = 0
    for b, j in itertools.product(range(len(scores)), range(5)):
        left = np.flatnonzero(free[b, j])
        y = labels[b, left]
        expected = 0.0
        if y.sum():
            log_p = scores[b, j, left] - np.log(np.exp(scores[b, j, left]).sum())
            expected = -(y * log_p).sum() / (y if normalizer == "remaining" else labels[b]).sum()
            if (y > 0).sum() == 1 and normalizer == "remaining":
                alone += 1
                assert expected == pytest.approx(-log_p[y > 0].item())
        assert found[b, j] == pytest.approx(expected, abs=1e-9)
    assert alone > 20 or normalizer == "all"


def test_5_1_9_hinge_is_that_of_numpy_and_0_where_all_positives_win_by_one():
    scores, free, labels, _ = (np.asarray(a) for a in _random_case())
    scores = 4 * scores
    found = step_hinge(scores, free, labels).numpy()
    zeros = 0
    for b, j in itertools.product(range(len(scores)), range(5)):
        positive = scores[b, j, free[b, j] & (labels[b] > 0)]
        negative = scores[b, j, free[b, j] & (labels[b] == 0)]
        margins = positive[:, None] - negative[None]
        assert (found[b, j] == 0) == bool((margins >= 1).all())
        if margins.size:
            assert found[b, j] == pytest.approx(max(0, 1 - margins.min()), abs=1e-9)
            zeros += found[b, j] == 0
    assert zeros > 10


def test_5_1_9_two_scores_of_a_step_have_a_gradient_and_all_if_smooth():
    scores, free = tf.constant([[[0.5, 2.0, 0.1, 0.2, 9.0]]]), tf.constant([[[True] * 4 + [False]]])
    labels = tf.constant([[1.0, 0, 1, 0, 0]])
    for smooth, expected in ((False, [0, 1, -1, 0, 0]), (True, None)):
        with tf.GradientTape() as tape:
            tape.watch(scores)
            loss = step_hinge(scores, free, labels, smooth)
        found = tape.gradient(loss, scores).numpy()[0, 0]
        if smooth:
            assert (np.sign(found) == [-1, 1, -1, 1, 0]).all()
        else:
            np.testing.assert_array_equal(found, expected)


def test_5_1_9_steps_without_positives_give_exactly_nothing():
    scores, free, labels, _ = _random_case()
    scores = 3 * tf.cast(scores, tf.float32)
    labels = tf.cast(labels, tf.float32)
    none = ~np.any(np.asarray(free) & (labels.numpy() > 0)[:, None], -1)
    assert 300 < none.sum() < none.size
    one_side = none | ~np.any(np.asarray(free) & (labels.numpy() == 0)[:, None], -1)
    for name, skipped in {
        "remaining": none,
        "all": none,
        "hinge": one_side,
        "smooth": one_side,
    }.items():
        with tf.GradientTape() as tape:
            tape.watch(scores)
            loss = _losses(scores, free, labels)[name]
        gradient = tape.gradient(loss, scores).numpy()
        assert np.isfinite(loss.numpy()).all()
        assert np.isfinite(gradient).all(), name
        assert (loss.numpy()[skipped] == 0).all(), name
        assert (gradient[skipped] == 0).all(), name
        assert (gradient[~np.asarray(free)] == 0).all(), name
        assert (gradient[~skipped] != 0).any(), name


def test_the_smooth_hinge_bounds_the_hinge_from_above():
    scores, free, labels, _ = _random_case()
    for scale in (0.1, 1, 10, 100):
        losses = _losses(scale * scores, free, labels)
        assert (losses["smooth"] >= losses["hinge"]).numpy().all()
        # softplus(a) <= max(0, a) + ln 2, and logsumexp of n is at most ln n above the largest.
        assert (losses["smooth"] <= losses["hinge"] + np.log(2) + np.log(6)).numpy().all()


def test_the_smooth_hinge_is_its_formula():
    found = step_hinge(SCORES, FREE, LABELS, smooth=True).numpy()[0]
    s = SCORES.numpy()[0]
    first = 1 + np.log(np.exp(-s[0, 0]) + np.exp(-s[0, 2])) + s[0, 1]
    second = 1 - s[1, 0] + s[1, 1]
    np.testing.assert_allclose(
        found, [np.log1p(np.exp(first)), np.log1p(np.exp(second)), 0], atol=1e-9
    )


# 5.1.10


def test_5_1_10_when_all_are_clicked_every_order_is_perfect():
    orders = np.array(list(itertools.permutations(range(4))), "int32")
    labels, valid = tf.ones([24, 4]), tf.ones([24, 4], tf.bool)
    scores = tf.constant(np.random.default_rng(0).normal(size=(24, 4, 4)), tf.float32)
    free = availability(tf.constant(orders), valid)
    np.testing.assert_array_equal(step_hinge(scores, free, labels), 0)
    np.testing.assert_array_equal(step_hinge(scores, free, labels, smooth=True), 0)
    for n in (1, 3, 4, 9):
        np.testing.assert_allclose(ndcg_reward(labels, orders, n), 1, atol=1e-6)
    np.testing.assert_allclose(average_precision_reward(labels, orders), 1, atol=1e-6)


# Rewards


def _dcg(labels, n):
    return sum((2.0**y - 1) / np.log2(r + 2) for r, y in enumerate(labels[:n]))


@pytest.mark.parametrize("slate", [5, 3])
@pytest.mark.parametrize("n", [1, 2, 3, 10])
def test_3_9_rewards_are_those_of_numpy(n, slate):
    _, _, labels, positions = (np.asarray(a) for a in _random_case())
    positions = positions[:, :slate]
    tensors = tf.constant(labels), tf.constant(positions)
    ndcg, clicks = ndcg_reward(*tensors, n).numpy(), clicks_reward(*tensors, n).numpy()
    precision = average_precision_reward(*tensors).numpy()
    for b, row in enumerate(positions):
        shown = [labels[b, i] if i >= 0 else 0 for i in row]
        ideal = _dcg(sorted(labels[b], reverse=True), n)
        assert ndcg[b] == pytest.approx(_dcg(shown, n) / ideal if ideal else 0, abs=1e-6)
        hits = np.array(shown) > 0
        if slate == 5:
            ranks = np.flatnonzero(hits) + 1
            expected = np.mean(np.arange(1, len(ranks) + 1) / ranks) if len(ranks) else 0
            assert precision[b] == pytest.approx(expected, abs=1e-6)
        if labels[b].max() <= 1:
            worth = sum(h / np.log2(r + 2) for r, h in enumerate(hits[:n]))
            assert clicks[b] == pytest.approx(worth, abs=1e-6)
    assert (ndcg >= 0).all()
    assert (ndcg <= 1 + 1e-6).all()


# 5.3

THETA = [0.3, -0.2, 0.5]
PERMUTATIONS = np.array(list(itertools.permutations(range(3))), "int32")


def _every(theta, labels, orders):
    """Log-probability and reward of every order under Plackett-Luce, with the library."""
    count, n = orders.shape
    free = availability(tf.constant(orders), tf.ones([count, n], tf.bool))
    scores = tf.repeat(theta[None, None], count, 0)
    logs = tf.reduce_sum(step_log_probabilities(scores, free, tf.constant(orders)), 1)
    reward = ndcg_reward(tf.repeat(tf.constant([labels], tf.float64), count, 0), orders, n)
    return logs, reward


def test_5_3_probabilities_and_rewards():
    logs, reward = _every(tf.constant(THETA, tf.float64), [0.0, 1, 1], PERMUTATIONS)
    expected = [
        [0.1173338190, 0.2362812957, 0.0965508880, 0.1179275209, 0.2688442165, 0.1630622600],
        [0.6934264036, 0.6934264036, 0.9197207891, 1, 0.9197207891, 1],
    ]
    np.testing.assert_allclose(np.exp(logs), expected[0], atol=1e-9)
    np.testing.assert_allclose(reward, expected[1], atol=1e-6)
    assert np.exp(logs).sum() == pytest.approx(1, abs=1e-12)
    assert np.exp(logs) @ np.asarray(reward) == pytest.approx(0.8622573119, abs=1e-6)


@pytest.mark.parametrize("baseline", [0.0, 0.37, -20.0])
def test_5_3_reinforce_is_unbiased_whatever_the_baseline(baseline):
    theta = tf.Variable(THETA, dtype=tf.float64)
    with tf.GradientTape(persistent=True) as tape:
        logs, reward = _every(theta, [0.0, 1, 1], PERMUTATIONS)
        p = tf.exp(logs)
        reward = tf.cast(reward, tf.float64)
        expected_reward = tf.reduce_sum(p * reward)
        estimate = tf.reduce_sum(tf.stop_gradient(p) * policy_gradient_loss(logs, reward, baseline))
    found = -tape.gradient(estimate, theta).numpy()
    np.testing.assert_allclose(found, [-0.0721112501, 0.0299401133, 0.0421711368], atol=1e-6)
    np.testing.assert_allclose(found, tape.gradient(expected_reward, theta), atol=1e-12)


def test_5_3_the_gradient_is_that_of_finite_differences():
    def expected(theta):
        logs, reward = _every(tf.constant(theta), [0.0, 1, 1], PERMUTATIONS)
        return float(np.exp(logs) @ np.asarray(reward))

    theta, step = np.array(THETA), 1e-4
    for i, derivative in enumerate([-0.0721112501, 0.0299401133, 0.0421711368]):
        up, down = theta.copy(), theta.copy()
        up[i] += step
        down[i] -= step
        found = (expected(up) - expected(down)) / (2 * step)
        assert found == pytest.approx(derivative, abs=1e-6)


def test_nothing_passes_through_reward_and_baseline():
    logs, reward, baseline = (tf.Variable([float(i), 2.0]) for i in range(3))
    with tf.GradientTape() as tape:
        loss = policy_gradient_loss(tf.identity(logs), tf.identity(reward), tf.identity(baseline))
    np.testing.assert_array_equal(loss, -(reward - baseline) * logs)
    gradients = tape.gradient(loss, [logs, reward, baseline], unconnected_gradients="zero")
    np.testing.assert_array_equal(gradients[0], -(reward - baseline))
    np.testing.assert_array_equal(gradients[1], 0)
    np.testing.assert_array_equal(gradients[2], 0)


def test_mean_of_others_leaves_the_own_reward_out():
    reward = np.random.default_rng(0).random(7)
    found = mean_of_others(tf.constant(reward)).numpy()
    for i in range(7):
        assert found[i] == pytest.approx(np.delete(reward, i).mean())


def test_mean_of_others_is_unbiased():
    """Every pair of slates of a batch of two; the mean of both would be biased."""
    thetas = tf.Variable([THETA, [1.0, 0.0, -1.0]], dtype=tf.float64)
    labels = ([0.0, 1, 1], [0.0, 0, 1])
    with tf.GradientTape(persistent=True) as tape:
        (logs, rewards) = zip(*(_every(thetas[b], labels[b], PERMUTATIONS) for b in (0, 1)))
        rewards = [tf.cast(r, tf.float64) for r in rewards]
        exact = sum(tf.reduce_sum(tf.exp(logs[b]) * rewards[b]) for b in (0, 1))
        estimates = {"others": 0.0, "all": 0.0}
        for i, j in itertools.product(range(6), range(6)):
            log_p = tf.stack([logs[0][i], logs[1][j]])
            reward = tf.stack([rewards[0][i], rewards[1][j]])
            p = tf.stop_gradient(tf.exp(tf.reduce_sum(log_p)))
            for name, baseline in (
                ("others", mean_of_others(reward)),
                ("all", tf.reduce_mean(reward)),
            ):
                loss = policy_gradient_loss(log_p, reward, baseline)
                estimates[name] += p * tf.reduce_sum(loss)
    expected = tape.gradient(exact, thetas).numpy()
    found = -tape.gradient(estimates["others"], thetas).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-10)
    biased = -tape.gradient(estimates["all"], thetas).numpy()
    assert np.abs(biased - expected).max() > 0.01


@pytest.mark.parametrize("baseline", ["none", "constant", "others"])
def test_5_3_the_estimate_from_samples_agrees_with_the_exact_gradient(baseline):
    draws, labels = 40_000, [0.0, 1, 0, 1]
    theta = tf.constant([0.8, -0.5, 0.3, -0.2], tf.float64)
    with tf.GradientTape() as tape:
        tape.watch(theta)
        orders = np.array(list(itertools.permutations(range(4))), "int32")
        logs, reward = _every(theta, labels, orders)
        exact = tf.reduce_sum(tf.exp(logs) * tf.cast(reward, tf.float64))
    expected = tape.gradient(exact, theta).numpy()
    # One copy of the scores for each list: its gradient is that list's estimate.
    rows = tf.repeat(theta[None], draws, 0)
    with tf.GradientTape() as tape:
        tape.watch(rows)
        made = roll(
            lambda state, last: (state, state),
            rows,
            tf.ones([draws, 4], tf.bool),
            method="sample",
            seed=tf.constant([1, 2]),
            dtype=tf.float64,
        )
        reward = tf.cast(
            ndcg_reward(tf.tile(tf.constant([labels], tf.float64), [draws, 1]), made.positions, 4),
            tf.float64,
        )
        value = {"none": 0.0, "constant": 0.8, "others": mean_of_others(reward)}[baseline]
        loss = tf.reduce_sum(
            policy_gradient_loss(tf.reduce_sum(made.log_probabilities, 1), reward, value)
        )
    estimates = -tape.gradient(loss, rows).numpy()
    sigma = estimates.std(0) / np.sqrt(draws)
    assert (np.abs(estimates.mean(0) - expected) < 5 * sigma).all()
    # The bound is far below the gradient itself, and baselines make it smaller.
    assert (5 * sigma < np.abs(expected).max() / (1 if baseline == "none" else 4)).all()
