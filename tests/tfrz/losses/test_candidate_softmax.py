"""The softmax over shared candidates: worked example, oracle, TFRS, and what sampling costs."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import tensorflow as tf

from tests.oracles import interests as oracle
from tfrz.layers.interests import interest_scores
from tfrz.losses.retrieval import candidate_softmax_loss, focal_loss, log_expected_counts


def _case(batch: int = 6, more: int = 5, seed: int = 0, items: int = 8):
    """Scores, targets with repetitions, candidates that begin with them, log q."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(1, items + 1, batch)
    candidates = np.concatenate([targets, rng.integers(1, items + 1, more)])
    scores = rng.normal(size=(batch, batch + more))
    log_q = np.log(rng.dirichlet(np.ones(items)))[candidates - 1]
    return scores, targets, candidates, log_q


def _loss(scores, targets, candidates, log_q=0.0, allowed=None) -> np.ndarray:
    return candidate_softmax_loss(
        tf.constant(scores),
        tf.constant(targets),
        tf.constant(candidates),
        log_q if np.isscalar(log_q) else tf.constant(log_q, scores.dtype),
        None if allowed is None else tf.constant(allowed),
    ).numpy()


def test_worked_example_2_loss():
    scores, ids = np.array([[2.0, 3.0], [1.0, 3.0]]), np.array([1, 2])
    log_q = np.log([0.8, 0.2])
    logits = scores - log_q
    np.testing.assert_allclose(logits, [[2.223144, 4.609438], [1.223144, 4.609438]], atol=5e-7)
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(shares, [[0.084224, 0.915776], [0.032727, 0.967273]], atol=5e-7)
    expected = [2.474278, 0.033274]
    np.testing.assert_allclose(_loss(scores, ids, ids, log_q), expected, atol=5e-7)
    np.testing.assert_allclose(
        oracle.candidate_softmax(scores, ids, ids, log_q), expected, atol=5e-7
    )
    single = _loss(scores.astype("float32"), ids, ids, log_q)
    assert single.dtype == np.float32
    np.testing.assert_allclose(single, expected, atol=2e-6)


@pytest.mark.parametrize("more", [0, 5])
@pytest.mark.parametrize("corrected", [False, True])
@pytest.mark.parametrize("some_allowed", [False, True])
def test_it_computes_what_the_oracle_computes(more, corrected, some_allowed):
    for seed in range(5):
        scores, targets, candidates, log_q = _case(more=more, seed=seed)
        q = log_q if corrected else 0.0
        allowed = None
        if some_allowed:
            allowed = np.random.default_rng(seed).random(len(candidates)) < 0.6
        found = _loss(scores, targets, candidates, q, allowed)
        assert found.dtype == np.float64
        expected = oracle.candidate_softmax(scores, targets, candidates, q, allowed)
        np.testing.assert_allclose(found, expected, atol=1e-12)


def test_accidental_hits_are_left_out_wherever_they_stand():
    targets, candidates = np.array([5, 7, 5]), np.array([5, 7, 5, 5, 7, 9])
    scores = np.random.default_rng(0).normal(size=(3, 6))
    found = _loss(scores, targets, candidates)
    kept = {0: [0, 1, 4, 5], 1: [0, 1, 2, 3, 5], 2: [1, 2, 4, 5]}
    for row, columns in kept.items():
        expected = np.log(np.exp(scores[row, columns]).sum()) - scores[row, row]
        assert found[row] == pytest.approx(expected, abs=1e-12)
    moved = scores.copy()
    moved[0, [2, 3]] += 100
    assert _loss(moved, targets, candidates)[0] == found[0]


def test_a_candidate_that_is_not_allowed_is_no_negative_but_stays_its_own_rows_target():
    targets = np.array([1, 2, 3])
    candidates = np.array([1, 2, 3, 0, 4])
    scores = np.random.default_rng(1).normal(size=(3, 5))
    allowed = np.array([True, False, True, False, True])
    found = _loss(scores, targets, candidates, 0.0, allowed)
    for row, columns in {0: [0, 2, 4], 1: [0, 1, 2, 4], 2: [0, 2, 4]}.items():
        expected = np.log(np.exp(scores[row, columns]).sum()) - scores[row, row]
        assert found[row] == pytest.approx(expected, abs=1e-12)


def test_without_any_negative_the_loss_is_nothing():
    scores = np.array([[3.0, -1.0], [0.5, 2.0]])
    np.testing.assert_array_equal(_loss(scores, np.array([4, 4]), np.array([4, 4])), [0, 0])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_huge_scores_and_rows_with_hits_have_finite_losses_and_gradients(dtype):
    scores = tf.constant([[1e4, -1e4, 1e4], [-1e4, 1e4, 0.0], [1e4, 1e4, -1e4]], dtype)
    ids = tf.constant([1, 2, 1])
    with tf.GradientTape() as tape:
        tape.watch(scores)
        loss = candidate_softmax_loss(scores, ids, ids)
    gradient = tape.gradient(loss, scores).numpy()
    assert np.isfinite(loss.numpy()).all() and np.isfinite(gradient).all()
    assert gradient[0, 2] == 0 and gradient[2, 0] == 0
    np.testing.assert_allclose(loss.numpy(), [0, 0, 2e4], rtol=1e-6)


def test_scores_of_half_precision_give_losses_of_float32():
    scores, targets, candidates, log_q = _case()
    found = candidate_softmax_loss(
        tf.constant(scores, tf.bfloat16),
        tf.constant(targets),
        tf.constant(candidates),
        tf.constant(log_q, tf.float32),
    )
    assert found.dtype == tf.float32
    rounded = tf.cast(tf.constant(scores, tf.bfloat16), tf.float64).numpy()
    expected = oracle.candidate_softmax(rounded, targets, candidates, log_q)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_invariant_12_a_uniform_correction_is_a_constant_and_leaves_the_gradients():
    scores, targets, candidates, _ = _case(more=0)
    results = []
    for log_q in (0.0, tf.fill([len(candidates)], tf.constant(np.log(1 / 8), tf.float64))):
        s = tf.constant(scores)
        with tf.GradientTape() as tape:
            tape.watch(s)
            loss = candidate_softmax_loss(s, tf.constant(targets), tf.constant(candidates), log_q)
        results.append((loss.numpy(), tape.gradient(loss, s).numpy()))
    np.testing.assert_allclose(results[0][0], results[1][0], atol=1e-12)
    np.testing.assert_allclose(results[0][1], results[1][1], atol=1e-12)


@pytest.mark.needs("tensorflow_recommenders")
def test_invariant_1_one_head_gives_the_loss_and_gradients_of_tensorflow_recommenders():
    import tensorflow_recommenders as tfrs

    rng = np.random.default_rng(3)
    batch, dim, items = 12, 5, 6
    targets = rng.integers(1, items + 1, batch)
    p = rng.dirichlet(np.ones(items))
    p[targets[0] - 1] = 1e-9  # Below the floor, which both must apply.
    users = tf.constant(rng.normal(size=(batch, dim)).astype("float32"))
    vectors = tf.constant(rng.normal(size=(batch, dim)).astype("float32"))
    omega = tf.constant(rng.uniform(0.5, 2, batch).astype("float32"))
    assert len(set(targets)) < batch
    drawn = tf.constant(p[targets - 1].astype("float32"))
    ids = tf.constant(targets, tf.int64)

    with tf.GradientTape() as tape:
        tape.watch([users, vectors])
        scores = interest_scores(users[:, None], vectors)
        log_q = tf.math.log(tf.clip_by_value(drawn, 1e-6, 1.0))
        ours = tf.reduce_sum(omega * candidate_softmax_loss(scores, ids, ids, log_q))
    own = tape.gradient(ours, [users, vectors])
    task = tfrs.tasks.Retrieval(remove_accidental_hits=True)
    with tf.GradientTape() as tape:
        tape.watch([users, vectors])
        theirs = task(
            users,
            vectors,
            sample_weight=omega,
            candidate_sampling_probability=drawn,
            candidate_ids=ids,
        )
    np.testing.assert_allclose(ours.numpy(), theirs.numpy(), rtol=1e-5)
    for a, b in zip(own, tape.gradient(theirs, [users, vectors]), strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-4, atol=1e-5)


def test_log_expected_counts_follow_their_formula():
    counts = np.array([70, 20, 10, 0])
    for batch, uniform in ((8, 0), (8, 6), (1, 0)):
        found = log_expected_counts(tf.constant(counts), batch, uniform, floor=1e-3).numpy()
        p = np.clip(counts / counts.sum(), 1e-3, 1)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, np.log(batch * p + uniform / 4), atol=1e-5)
    default = log_expected_counts(tf.constant(counts), 1).numpy()
    np.testing.assert_allclose(default[-1], np.log(1e-6), rtol=1e-5)
    in_graph = tf.function(lambda size: log_expected_counts(tf.constant(counts), size, 6))
    np.testing.assert_allclose(
        in_graph(tf.constant(8)), log_expected_counts(tf.constant(counts), 8, 6), atol=1e-6
    )


WORLD_ITEMS = 300


def _world():
    """Frequencies with a long tail, scores of one user that have nothing to do with them."""
    rng = np.random.default_rng(11)
    counts = np.maximum((2000 / np.arange(1, WORLD_ITEMS + 1) ** 0.8).astype(int), 5)
    scores = rng.normal(0, 0.7, WORLD_ITEMS)
    return counts, scores


@pytest.mark.parametrize("uniform", [0, 16])
def test_the_weighted_candidates_estimate_the_whole_partition_without_bias(uniform):
    counts, scores = _world()
    batch, draws = 32, 20_000
    rng = np.random.default_rng(5)
    p = counts / counts.sum()
    drawn = rng.choice(WORLD_ITEMS, (draws, batch), p=p)
    if uniform:
        drawn = np.concatenate([drawn, rng.integers(0, WORLD_ITEMS, (draws, uniform))], axis=1)
    log_q = log_expected_counts(tf.constant(counts), batch, uniform).numpy().astype("float64")
    estimates = np.exp(scores[drawn] - log_q[drawn]).sum(1)
    whole = np.exp(scores).sum()
    error = estimates.std() / np.sqrt(draws)
    assert abs(estimates.mean() - whole) < 3.5 * error
    assert error < 0.01 * whole
    plain = np.exp(scores[drawn]).sum(1).mean() * WORLD_ITEMS / drawn.shape[1]
    # The test would notice: without the correction the estimate leans on what is frequent.
    uncorrected = np.exp(scores[drawn]).sum(1).std() * WORLD_ITEMS / drawn.shape[1]
    assert abs(plain - whole) > 3.5 * uncorrected / np.sqrt(draws)


def test_the_bias_of_the_loss_falls_as_the_negatives_double():
    counts, scores = _world()
    p, whole = counts / counts.sum(), np.log(np.exp(scores).sum())
    rng = np.random.default_rng(6)
    biases = []
    for batch in (4, 8, 16, 32):
        log_q = tf.constant(log_expected_counts(tf.constant(counts), batch).numpy(), tf.float64)

        @tf.function(input_signature=[tf.TensorSpec([batch], tf.int64)])
        def estimate(ids, log_q=log_q, batch=batch):
            own = tf.gather(tf.constant(scores), ids)
            q = tf.gather(log_q, ids)
            loss = candidate_softmax_loss(tf.tile(own[None], [batch, 1]), ids, ids, q)
            # What the whole softmax would have in its place is log sum exp(S).
            return tf.reduce_mean(loss + own - q)

        drawn = tf.constant(rng.choice(WORLD_ITEMS, (3000, batch), p=p))
        found = tf.map_fn(estimate, drawn, fn_output_signature=tf.float64).numpy()
        biases.append(abs(found.mean() - whole))
    for fewer, more in itertools.pairwise(biases):
        assert more < 0.8 * fewer, biases


def test_focal_loss_follows_its_formula():
    losses = np.array([0.0, 0.01, np.log(2), 4.0, 60.0])
    for gamma in (0.0, 0.5, 1.0, 2.0):
        expected = (1 - np.exp(-losses)) ** gamma * losses
        found = focal_loss(tf.constant(losses), gamma).numpy()
        np.testing.assert_allclose(found, expected, atol=1e-9)
    np.testing.assert_array_equal(focal_loss(tf.constant(losses), 0.0), losses)
    np.testing.assert_allclose(
        focal_loss(tf.constant([[0.6931472], [4.0]]), 2.0).numpy().ravel(),
        [0.1733, 3.8548],
        atol=1e-4,
    )


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_the_gradient_of_the_focal_loss_is_that_of_its_formula(gamma):
    losses = tf.constant([0.0, 0.05, 0.7, 3.0], tf.float64)
    with tf.GradientTape() as tape:
        tape.watch(losses)
        focal = focal_loss(losses, gamma)
    found = tape.gradient(focal, losses).numpy()
    assert np.isfinite(found).all()
    x, step = losses.numpy()[1:], 1e-6

    def value(at):
        return (1 - np.exp(-at)) ** gamma * at

    expected = (value(x + step) - value(x - step)) / (2 * step)
    np.testing.assert_allclose(found[1:], expected, atol=1e-6)
