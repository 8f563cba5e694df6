"""Softmax over items: the whole of it, and samples of it."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from tfrz.errors import ConfigError
from tfrz.losses.retrieval import NegativeSampler, sampled_softmax_loss, softmax_loss

ITEMS, DIM = 30, 4


def _case(dtype: str = "float64") -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
    rng = np.random.default_rng(0)
    hidden = tf.constant(rng.normal(size=(3, 5, DIM)).astype(dtype))
    items = tf.constant(rng.normal(size=(ITEMS, DIM)).astype(dtype))
    bias = tf.constant(rng.normal(size=ITEMS).astype(dtype))
    targets = tf.constant(rng.integers(1, ITEMS + 1, (3, 5)), tf.int64)
    return hidden, items, bias, targets


def _logits(hidden, items, bias, targets, negatives):
    own = tf.reduce_sum(hidden * tf.gather(items, targets - 1), -1) + tf.gather(bias, targets - 1)
    others = tf.tensordot(hidden, tf.gather(items, negatives - 1), [[-1], [1]])
    return own, others + tf.gather(bias, negatives - 1)


def test_5_2_the_losses_of_the_worked_example():
    h = tf.constant(
        [[2.6399666997, 0.2524979187], [2.7435004277, 1.3211297978], [1.0030016276, 1.9371769574]],
        tf.float64,
    )
    items = tf.constant([[1.0, 0], [0, 1], [1, 1]], tf.float64)
    loss = softmax_loss(h, items, tf.zeros([3], tf.float64), tf.constant([3, 2, 1]))
    np.testing.assert_allclose(loss, [0.6142238121, 3.0295649790, 2.3498738960], atol=1e-9)
    assert float(tf.reduce_mean(loss)) == pytest.approx(1.9978875624, abs=1e-9)


def test_the_whole_softmax_is_that_of_numpy():
    hidden, items, bias, targets = _case()
    logits = hidden.numpy() @ items.numpy().T + bias.numpy()
    total = np.log(np.exp(logits).sum(-1))
    own = np.take_along_axis(logits, targets.numpy()[..., None] - 1, -1)[..., 0]
    np.testing.assert_allclose(softmax_loss(hidden, items, bias, targets), total - own, atol=1e-12)


def test_5_1_10_the_mean_loss_of_tiny_vectors_is_ln_v():
    hidden, items, _, targets = _case()
    loss = softmax_loss(hidden, 1e-6 * items, tf.zeros([ITEMS], tf.float64), targets)
    assert float(tf.reduce_mean(loss)) == pytest.approx(np.log(ITEMS), abs=1e-4)


def test_5_1_10_all_items_as_negatives_give_the_whole_loss():
    hidden, items, bias, targets = _case()
    negatives = tf.range(1, ITEMS + 1, dtype=tf.int64)
    own, others = _logits(hidden, items, bias, targets, negatives)
    expected = softmax_loss(hidden, items, bias, targets)
    for sampler in (
        NegativeSampler(ITEMS, ITEMS, "uniform", "log_q"),
        NegativeSampler(ITEMS, ITEMS, "uniform", "partition"),
    ):
        loss = sampler.loss(own, others, targets, negatives)
        np.testing.assert_allclose(loss, expected, atol=1e-6)
    # Without the target among them, n = V - 1 and the specification's second form.
    for row in range(3):
        y = targets[row, 0]
        rest = tf.boolean_mask(negatives, negatives != y)
        own, others = _logits(hidden[row, :1], items, bias, y[None], rest)
        sampler = NegativeSampler(ITEMS, ITEMS - 1, "uniform", "partition")
        loss = sampler.loss(own, others, y[None], rest)
        np.testing.assert_allclose(loss, expected[row, :1], atol=1e-6)


def test_hits_are_left_out_and_corrections_are_subtracted():
    own, others = tf.constant([1.0]), tf.constant([[1.0, 2.0]])
    hits = tf.constant([[True, False]])
    loss = float(sampled_softmax_loss(own, others, hits, 0.5, tf.constant([0.1, 0.25]))[0])
    assert loss == pytest.approx(np.log(np.exp(0.5) + np.exp(1.75)) - 0.5, rel=1e-6)


def test_5_4_log_uniform_probabilities_and_draws():
    sampler = NegativeSampler(1000, 200_000, "log_uniform", seed=3)
    share = np.exp(sampler.log_expected_count(tf.range(1, 1001)).numpy()) / 200_000
    np.testing.assert_allclose(share[:4], [0.100329, 0.058689, 0.041640, 0.032299], atol=5e-6)
    assert share.sum() == pytest.approx(1.0, rel=1e-4)
    drawn = np.bincount(sampler.sample().numpy(), minlength=1001)[1:] / 200_000
    assert drawn.sum() == pytest.approx(1.0)
    np.testing.assert_allclose(drawn[:50], share[:50], atol=5 * np.sqrt(share[0] / 200_000))


@pytest.mark.parametrize("distribution", ["uniform", "log_uniform"])
def test_draws_are_items_and_repeat_with_the_counter(distribution):
    sampler = NegativeSampler(7, 5000, distribution, seed=1)
    first, second = sampler.sample().numpy(), sampler.sample().numpy()
    assert set(first) == set(range(1, 8))
    assert (first != second).any()
    sampler.draws.assign(0)
    np.testing.assert_array_equal(sampler.sample(), first)
    compiled = tf.function(sampler.sample, jit_compile=True)
    sampler.draws.assign(1)
    np.testing.assert_array_equal(compiled(), second)


def test_the_sampled_loss_nears_the_whole_one():
    hidden, items, bias, targets = (tf.cast(x, tf.float32) for x in _case())
    targets = tf.cast(targets, tf.int64)
    whole = float(tf.reduce_mean(softmax_loss(hidden, items, bias, targets)))
    sampler = NegativeSampler(ITEMS, 4000, "uniform", "partition", seed=5)
    negatives = sampler.sample()
    own, others = _logits(hidden, items, bias, targets, negatives)
    loss = float(tf.reduce_mean(sampler.loss(own, others, targets, negatives)))
    assert loss == pytest.approx(whole, abs=0.05)


def test_log_q_has_its_optimum_at_the_true_distribution():
    """Counting what softmax over target and negatives gives each item, against how often it is it.

    At the logits log P the two agree in expectation; without the correction they would not.
    """
    rng = np.random.default_rng(0)
    truth = rng.dirichlet(np.ones(6))
    sampler = NegativeSampler(6, 3, "log_uniform", seed=2)
    gaps = {}
    for name, corrected in (("corrected", True), ("plain", False)):
        logits = tf.Variable(np.log(truth).astype("float32"))
        total = np.zeros(6)
        targets = tf.constant(1 + rng.choice(6, 400, p=truth), tf.int64)
        for _ in range(60):
            negatives = sampler.sample()
            with tf.GradientTape() as tape:
                own = tf.gather(logits, targets - 1)
                others = tf.broadcast_to(tf.gather(logits, negatives - 1), [400, 3])
                if corrected:
                    loss = sampler.loss(own, others, targets, negatives)
                else:
                    hits = tf.equal(targets[:, None], negatives)
                    loss = sampled_softmax_loss(own, others, hits)
                loss = tf.reduce_mean(loss)
            total += tf.convert_to_tensor(tape.gradient(loss, logits)).numpy() / 60
        gaps[name] = np.abs(total).max()
    assert gaps["corrected"] < 0.5 * gaps["plain"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_items": 0}, "num_items"),
        ({"num_sampled": 0}, "num_sampled"),
        ({"distribution": "zipf"}, "distribution"),
        ({"correction": "none"}, "correction"),
        ({"correction": "partition"}, "partition goes with the uniform"),
    ],
)
def test_arguments_out_of_range_are_named(arguments, message):
    with pytest.raises(ConfigError, match=message):
        NegativeSampler(**{"num_items": 3, "num_sampled": 2, **arguments})


def test_a_sampler_made_from_its_config_draws_the_same():
    sampler = NegativeSampler(50, 9, "uniform", "partition", seed=4)
    copy = NegativeSampler.from_config(sampler.get_config())
    np.testing.assert_array_equal(copy.sample(), sampler.sample())
