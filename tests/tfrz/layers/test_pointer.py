"""Sections 5.1 (1 to 7), 5.2, 5.5 and 5.6 of the specification of seq2slate, on the layers."""

from __future__ import annotations

import itertools
import math
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfrz.errors import ConfigError
from tfrz.layers.pointer import (
    Beams,
    ListEncoder,
    PointerAttention,
    PointerDecoder,
    Slate,
    SlateConstraints,
    availability,
    beam_search,
    gumbel,
    rank,
    roll,
    step_log_probabilities,
)
from tfrz.losses.slate import step_cross_entropy, step_hinge

DIM, UNITS = 3, 6
# Every mask of five rows: all lengths, holes, and the empty list.
MASKS = np.array(list(itertools.product([True, False], repeat=5)))
SEED = tf.constant([3, 4])


class _Network:
    """An encoder and a decoder whose probabilities are far from uniform."""

    def __init__(self, seed: int = 3, **more) -> None:
        keras.utils.set_random_seed(seed)
        self.encoder = ListEncoder(UNITS, keras.initializers.RandomNormal(0, 1.0, 1), **more)
        self.decoder = PointerDecoder(UNITS, keras.initializers.RandomNormal(0, 1.5, 2), **more)
        self.decode(_random(1, 2, DIM))

    def decode(self, x, valid=None, **arguments) -> Slate:
        return self.decoder.decode(x, *self.encoder.encode(x, valid), valid, **arguments)

    def beams(self, x, valid=None, **arguments) -> Beams:
        return self.decoder.beams(x, *self.encoder.encode(x, valid), valid, **arguments)

    def first(self, x, valid=None) -> tf.Tensor:
        return self.decoder.first_scores(x, *self.encoder.encode(x, valid))

    @property
    def variables(self) -> list:
        return [*self.encoder.trainable_variables, *self.decoder.trainable_variables]


def _random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def _equal(one, other) -> None:
    """Bit for bit, every tensor of two slates or beams."""
    for a, b in zip(one, other):
        np.testing.assert_array_equal(a, b)


def _at_live_steps(made: Slate) -> Slate:
    """Without the scores of steps at which nothing is left."""
    live = tf.reduce_any(made.available, -1, keepdims=True)
    return made._replace(scores=tf.where(live, made.scores, 0))


def _losses(made: Slate, labels: tf.Tensor) -> list[tf.Tensor]:
    losses = [
        step_cross_entropy(made.scores, made.available, labels),
        step_hinge(made.scores, made.available, labels),
        step_hinge(made.scores, made.available, labels, smooth=True),
    ]
    assert all(np.isfinite(loss.numpy()).all() for loss in losses)
    return losses


def _is_slate(positions, valid, slate: int | None = None) -> None:
    """Each row of `positions` has valid rows, each once, as many as fit, and then -1."""
    positions, valid = np.asarray(positions), np.asarray(valid)
    assert positions.dtype == np.int32
    assert positions.shape == (len(valid), slate or valid.shape[1])
    for row, mask in zip(positions, valid):
        n = min(int(mask.sum()), len(row))
        assert (row[n:] == -1).all()
        assert len(set(row[:n])) == n
        assert set(row[:n]) <= set(np.flatnonzero(mask))


def _permutations(n: int) -> np.ndarray:
    return np.array(list(itertools.permutations(range(n))), "int32")


def _all_slates(network: _Network, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Every permutation of one list without padding, and its log-probability."""
    orders = _permutations(len(x))
    made = network.decode(
        np.repeat(x[None], len(orders), 0), method="forced", positions=tf.constant(orders)
    )
    return orders, made.log_probabilities.numpy().astype("float64").sum(1)


def _by_prefix(state, last):
    """Scores that depend on the row chosen last: the state is `[batch, 1 + list, list]`."""
    return state, tf.gather(state, last + 1, batch_dims=1)


# 5.1.1


@pytest.mark.parametrize("method", ["greedy", "sample"])
@pytest.mark.parametrize("slate", [None, 1, 3])
def test_5_1_1_a_slate_is_a_permutation_of_the_candidates(method, slate):
    made = _Network().decode(
        _random(len(MASKS), 5, DIM), MASKS, method=method, seed=SEED, slate=slate
    )
    _is_slate(made.positions, MASKS, slate)
    free = availability(made.positions, MASKS)
    np.testing.assert_array_equal(made.available, free)
    dead = made.positions.numpy() == -1
    assert dead.any()
    assert (made.log_probabilities.numpy()[dead] == 0).all()
    assert not made.available.numpy()[dead].any()
    assert (made.log_probabilities.numpy() <= 0).all()


def test_5_1_1_beams_are_permutations_of_the_candidates():
    beams = _Network().beams(_random(len(MASKS), 5, DIM), MASKS, width=3)
    assert beams.positions.shape == (len(MASKS), 3, 5)
    for k in range(3):
        there = beams.log_probability.numpy()[:, k] > -1e8
        _is_slate(beams.positions.numpy()[there, k], MASKS[there])
    assert (beams.log_probability.numpy()[:, 0] > -1e8).all()


@pytest.mark.parametrize("filling", [-1e30, 1e30, np.inf, np.nan], ids=str)
def test_5_1_1_what_padding_holds_changes_nothing(filling):
    network, x = _Network(), _random(len(MASKS), 5, DIM)
    padded = np.where(MASKS[..., None], x, 0).astype("float32")
    other = np.where(MASKS[..., None], x, filling).astype("float32")
    _equal(network.encoder.encode(padded, MASKS), network.encoder.encode(other, MASKS))
    forced = network.decode(padded, MASKS, method="sample", seed=[5, 6]).positions
    labels = tf.constant((_random(len(MASKS), 5, seed=1) > 0).astype("float32"))
    for arguments in (
        {"method": "greedy"},
        {"method": "sample", "seed": SEED},
        {"method": "forced", "positions": forced},
    ):
        before = network.decode(padded, MASKS, **arguments)
        after = network.decode(other, MASKS, **arguments)
        _equal(_at_live_steps(before), _at_live_steps(after))
        _equal(_losses(before, labels), _losses(after, labels))
    _equal(network.beams(padded, MASKS, width=3), network.beams(other, MASKS, width=3))
    np.testing.assert_array_equal(network.first(padded, MASKS), network.first(other, MASKS))


@pytest.mark.parametrize("filling", [1e30, np.nan], ids=str)
def test_5_1_1_what_padding_holds_changes_no_gradient(filling):
    network, x = _Network(), _random(len(MASKS), 5, DIM)
    labels = tf.constant((_random(len(MASKS), 5, seed=1) > 0).astype("float32"))
    found = []
    for value in (0, filling):
        padded = np.where(MASKS[..., None], x, value).astype("float32")
        with tf.GradientTape() as tape:
            made = network.decode(padded, MASKS)
            loss = tf.reduce_sum(step_cross_entropy(made.scores, made.available, labels))
            loss += tf.reduce_sum(made.log_probabilities)
        found.append(tape.gradient(loss, network.variables))
    for a, b in zip(*found):
        assert np.isfinite(a.numpy()).all()
        np.testing.assert_array_equal(a, b)


def test_the_encoder_passes_over_what_is_not_valid():
    network, x = _Network(), _random(2, 7, DIM)
    valid = np.tile([True, False, True, True, False, False, True], (2, 1))
    encoded, hidden, carry = network.encoder.encode(x, valid)
    alone, alone_hidden, alone_carry = network.encoder.encode(x[:, valid[0]])
    np.testing.assert_array_equal(encoded.numpy()[:, valid[0]], alone)
    np.testing.assert_array_equal(encoded.numpy()[:, ~valid[0]], 0)
    _equal((hidden, carry), (alone_hidden, alone_carry))
    np.testing.assert_array_equal(hidden, encoded[:, 6])
    np.testing.assert_array_equal(network.encoder(x, valid), encoded)


def test_the_encoder_does_not_look_ahead():
    encoder, x = _Network().encoder, _random(2, 5, DIM)
    changed = x.copy()
    changed[:, 3] += 1
    before, after = encoder(x).numpy(), encoder(changed).numpy()
    np.testing.assert_array_equal(before[:, :3], after[:, :3])
    assert (before[:, 3:] != after[:, 3:]).any(-1).all()


def test_an_empty_list_is_an_empty_slate():
    network, x = _Network(), _random(2, 4, DIM)
    valid = np.array([[False] * 4, [True] * 4])
    made, beams = network.decode(x, valid), network.beams(x, valid, width=3)
    np.testing.assert_array_equal(made.positions[0], -1)
    np.testing.assert_array_equal(made.log_probabilities[0], 0)
    np.testing.assert_array_equal(beams.positions[0], -1)
    assert float(beams.log_probability[0, 0]) == 0
    assert (beams.log_probability.numpy()[0, 1:] <= -1e9).all()


# 5.1.2


@pytest.mark.parametrize("method", ["greedy", "sample"])
def test_5_1_2_scoring_a_slate_again_gives_the_same_number(method):
    network, x = _Network(), _random(len(MASKS), 5, DIM)
    made = network.decode(x, MASKS, method=method, seed=SEED)
    again = network.decode(x, MASKS, method="forced", positions=made.positions)
    _equal(made, again)
    np.testing.assert_array_equal(
        made.log_probabilities,
        step_log_probabilities(made.scores, made.available, made.positions),
    )


def test_nothing_in_a_forced_slate_is_passed_over():
    made = _Network().decode(
        _random(1, 3, DIM), method="forced", positions=tf.constant([[2, -1, -1]])
    )
    assert made.positions.numpy().tolist() == [[2, -1, -1]]
    assert (made.log_probabilities.numpy()[0, 1:] == 0).all()


def test_5_1_2_beams_have_the_probability_of_their_slates():
    network, x = _Network(), _random(len(MASKS), 5, DIM)
    beams = network.beams(x, MASKS, width=4)
    for k in range(4):
        forced = network.decode(x, MASKS, method="forced", positions=beams.positions[:, k])
        there = beams.log_probability.numpy()[:, k] > -1e8
        np.testing.assert_allclose(
            beams.log_probability.numpy()[there, k],
            forced.log_probabilities.numpy().sum(1)[there],
            atol=1e-5,
        )


def test_step_log_probabilities_are_those_of_numpy():
    scores = _random(20, 4, 5)
    valid = MASKS[:20]
    positions = roll(_by_prefix, tf.constant(_random(20, 6, 5, seed=1)), valid, 4).positions
    found = step_log_probabilities(scores, availability(positions, valid), positions).numpy()
    for b, j in itertools.product(range(20), range(4)):
        row = positions.numpy()[b]
        left = [i for i in np.flatnonzero(valid[b]) if i not in row[:j]]
        expected = 0.0
        if left:
            expected = scores[b, j, row[j]] - np.log(np.exp(scores[b, j, left]).sum())
        assert found[b, j] == pytest.approx(expected, abs=1e-5)


def test_availability_is_what_is_valid_and_not_placed_before():
    valid = np.array([[True, True, False, True], [False] * 4])
    found = availability(tf.constant([[3, 0, 1, -1], [-1] * 4]), tf.constant(valid)).numpy()
    np.testing.assert_array_equal(
        found[0].astype(int), [[1, 1, 0, 1], [1, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]]
    )
    assert not found[1].any()


# 5.1.3 and 5.1.4


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5])
def test_5_1_3_probabilities_of_all_permutations_sum_to_one(n):
    network = _Network()
    for seed in range(3):
        _, logs = _all_slates(network, 2 * _random(n, DIM, seed=seed))
        assert np.exp(logs).sum() == pytest.approx(1, abs=1e-6)
        if n > 2:
            assert np.exp(logs).max() > 1.5 / math.factorial(n)  # not the uniform distribution


def test_5_1_3_probabilities_sum_to_one_with_holes_and_short_slates():
    network, x = _Network(), _random(6, DIM)
    valid = np.array([False, True, True, False, True, True])
    prefixes = np.array(list(itertools.permutations(np.flatnonzero(valid), 2)), "int32")
    tiled = (np.repeat(a[None], len(prefixes), 0) for a in (x, valid))
    made = network.decode(*tiled, method="forced", positions=prefixes, slate=2)
    assert np.exp(made.log_probabilities.numpy().sum(1)).sum() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("method", ["greedy", "sample"])
def test_5_1_4_the_last_candidate_is_certain(method):
    made = _Network().decode(10 * _random(len(MASKS), 5, DIM), MASKS, method=method, seed=SEED)
    logs = made.log_probabilities.numpy()
    for row, mask in zip(logs, MASKS):
        n = int(mask.sum())
        if n:
            assert row[n - 1] == 0
        if n > 1:
            assert (row[: n - 1] < 0).any()
    assert (logs[MASKS.sum(1) == 1] == 0).all()


# 5.1.5


def test_5_1_5_a_beam_of_one_is_greedy():
    network, x = _Network(), _random(len(MASKS), 5, DIM)
    made, beams = network.decode(x, MASKS), network.beams(x, MASKS, width=1)
    np.testing.assert_array_equal(beams.positions[:, 0], made.positions)
    # Added step by step, as a beam does.
    total = np.cumsum(made.log_probabilities.numpy(), 1, dtype="float32")[:, -1]
    np.testing.assert_array_equal(beams.log_probability[:, 0], total)


def test_5_1_5_ties_go_to_the_first_row():
    state = tf.zeros([len(MASKS), 6, 5])
    made = roll(_by_prefix, state, MASKS)
    expected = rank(tf.zeros([len(MASKS), 5]), MASKS).numpy()
    for row, mask in zip(expected, MASKS):
        assert row.tolist() == [*np.flatnonzero(mask), *[-1] * int((~mask).sum())]
    np.testing.assert_array_equal(made.positions, expected)
    beams = beam_search(_by_prefix, state, MASKS, 1)
    np.testing.assert_array_equal(beams.positions[:, 0], expected)
    pair = beam_search(_by_prefix, tf.zeros([1, 4, 3]), tf.ones([1, 3], tf.bool), 2)
    np.testing.assert_array_equal(pair.positions[0], [[0, 1, 2], [0, 2, 1]])


def test_5_1_5_ties_of_some_candidates():
    """Coarse scores, so that most steps have ties: greedy is the first of the best."""
    table = np.random.default_rng(0).integers(0, 3, (len(MASKS), 6, 5)).astype("float32")
    made = roll(_by_prefix, tf.constant(table), MASKS)
    for b, mask in enumerate(MASKS):
        last, left, expected = -1, list(np.flatnonzero(mask)), []
        while left:
            last = max(left, key=lambda i: (table[b, last + 1, i], -i))
            left.remove(last)
            expected.append(last)
        assert made.positions.numpy()[b].tolist() == expected + [-1] * (5 - len(expected))
    beams = beam_search(_by_prefix, tf.constant(table), MASKS, 1)
    np.testing.assert_array_equal(beams.positions[:, 0], made.positions)


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_5_1_5_a_wide_beam_finds_the_most_probable_permutation(n):
    network = _Network()
    for seed in range(3):
        x = 2 * _random(n, DIM, seed=seed)
        orders, logs = _all_slates(network, x)
        best = np.argsort(-logs)
        beams = network.beams(x[None], width=len(orders))
        np.testing.assert_array_equal(beams.positions[0, 0], orders[best[0]])
        np.testing.assert_allclose(beams.log_probability[0], logs[best], atol=1e-5)
        assert len({tuple(row) for row in beams.positions[0].numpy()}) == len(orders)


def test_5_1_5_beams_beyond_the_number_of_slates_are_none():
    network, x = _Network(), _random(2, 5, DIM)
    valid = np.array([[True, False, True, True, False], [False, True, False, False, False]])
    beams = network.beams(x, valid, width=20)
    logs, positions = beams.log_probability.numpy(), beams.positions.numpy()
    for b, slates in enumerate([6, 1]):
        assert np.exp(logs[b, :slates].astype("float64")).sum() == pytest.approx(1, abs=1e-6)
        _is_slate(positions[b, :slates], np.repeat(valid[b : b + 1], slates, 0))
        assert len({tuple(row) for row in positions[b, :slates]}) == slates
        assert (logs[b, slates:] <= -1e9).all()
        assert (positions[b, slates:] == -1).all()
    assert (np.diff(logs[0, :6]) <= 0).all()


def test_5_1_5_beams_of_short_slates():
    network, x = _Network(), _random(1, 4, DIM)
    beams = network.beams(x, width=12, slate=2)
    assert beams.positions.shape == (1, 12, 2)
    assert np.exp(beams.log_probability.numpy()).sum() == pytest.approx(1, abs=1e-6)
    assert len({tuple(row) for row in beams.positions[0].numpy()}) == 12


# 5.1.6


@pytest.mark.parametrize("shared", [0, 1, 2, 3])
def test_5_1_6_scores_depend_on_what_was_placed_before_only(shared):
    network, x = _Network(), _random(4, 6, DIM)
    one = np.tile(np.array([4, 1, 3, 0, 5, 2], "int32"), (4, 1))
    other = one.copy()
    other[:, shared:] = np.roll(one[:, shared:], 1, axis=1)
    first, second = (network.decode(x, method="forced", positions=p) for p in (one, other))
    np.testing.assert_array_equal(first.positions, one)
    np.testing.assert_array_equal(first.scores[:, : shared + 1], second.scores[:, : shared + 1])
    assert (first.scores.numpy() != second.scores.numpy())[:, shared + 1 :].any(-1).all()


def test_5_a_short_slate_is_the_start_of_the_whole_one():
    network, x = _Network(), _random(len(MASKS), 5, DIM)
    whole = network.decode(x, MASKS)
    for k in (1, 2, 4):
        _equal([part[:, :k] for part in whole], network.decode(x, MASKS, slate=k))


def test_the_first_step_reads_go_and_no_candidate():
    network, x = _Network(), _random(2, 4, DIM)
    first = network.first(x).numpy()
    np.testing.assert_array_equal(network.decode(x).scores[:, 0], first)
    np.testing.assert_array_equal(
        network.decoder(x, *network.encoder.encode(x)), network.decode(x).scores
    )
    go = network.decoder.go
    go.assign(np.ones(go.shape) + tf.convert_to_tensor(go))
    assert (network.first(x).numpy() != first).all()


# 5.1.7


def test_5_1_7_without_w_dec_a_slate_is_plackett_luce():
    network, x = _Network(), _random(len(MASKS), 5, DIM)
    w_enc, w_dec, v = network.decoder.attention.get_weights()
    assert w_enc.shape == w_dec.shape == (UNITS, UNITS)
    before = network.decode(x, MASKS)
    assert (before.positions.numpy() != rank(network.first(x, MASKS), MASKS).numpy()).any()
    network.decoder.attention.set_weights([w_enc, 0 * w_dec, v])
    first = network.first(x, MASKS)
    made = network.decode(x, MASKS)
    np.testing.assert_array_equal(made.scores, np.repeat(first[:, None], 5, 1))
    np.testing.assert_array_equal(made.positions, rank(first, MASKS))
    sampled = network.decode(x, MASKS, method="sample", seed=SEED)
    np.testing.assert_allclose(
        sampled.log_probabilities,
        step_log_probabilities(
            first[:, None], availability(sampled.positions, MASKS), sampled.positions
        ),
        atol=1e-6,
    )


def test_rank_is_a_stable_sort_of_what_is_valid():
    scores = np.random.default_rng(1).integers(-2, 2, (len(MASKS), 5)).astype("float32")
    scores[5:9] -= 1e6
    for slate in (None, 3):
        found = rank(tf.constant(scores), MASKS, slate).numpy()
        assert found.dtype == np.int32
        for row, values, mask in zip(found, scores, MASKS):
            order = sorted(np.flatnonzero(mask), key=lambda i: -values[i])
            assert row.tolist() == (order + [-1] * 5)[: slate or 5]


# 5.2, 5.5 and 5.6


def test_5_2_worked_example():
    attention = PointerAttention(2, dtype="float64")
    encoded = tf.constant([[[1.0, 0], [0, 1], [1, 1]]], tf.float64)
    states = tf.constant([[0.2, 0.4], [-0.3, 0.1], [0, -0.6]], tf.float64)
    attention(encoded, states[:1])
    attention.set_weights([np.diag([0.5, 1]), np.diag([1, -0.5]), np.array([[1.0], [2.0]])])

    def score(step, last):
        rows = tf.repeat(encoded, tf.shape(step)[0], 0)
        return step + 1, attention(rows, tf.gather(states, step))

    valid = tf.ones([1, 3], tf.bool)
    made = roll(score, tf.zeros([1], tf.int32), valid, dtype=tf.float64)
    np.testing.assert_allclose(
        made.scores[0],
        [
            [0.2096171367, 1.5254488608, 1.9324413177],
            [0.0974585703, 1.1882534901, 1.6769414228],
            [1.0447423822, 1.7234463186, 2.1855634759],
        ],
        atol=1e-9,
    )
    assert made.positions.numpy().tolist() == [[2, 1, 0]]
    np.testing.assert_allclose(
        made.log_probabilities[0], [-0.6120511954, -0.2896421513, 0], atol=1e-9
    )
    assert float(tf.reduce_sum(made.log_probabilities)) == pytest.approx(-0.9016933467, abs=1e-9)
    expected = [
        [0.0968225482, 0.3609399593, 0.5422374926],
        [0.2514686194, 0.7485313806, 0],
        [1, 0, 0],
    ]
    for i in range(3):
        chosen = tf.fill([1, 3], i)
        found = np.exp(step_log_probabilities(made.scores, made.available, chosen).numpy()[0])
        for j in range(3):
            if expected[j][i]:
                assert found[j] == pytest.approx(expected[j][i], abs=1e-9)
            else:
                assert not made.available.numpy()[0, j, i]


def test_5_2_keys_are_shared_by_all_steps():
    attention, encoded = PointerAttention(UNITS), _random(2, 4, UNITS)
    state = _random(2, UNITS, seed=1)
    scores = attention(encoded, state).numpy()
    np.testing.assert_allclose(attention.score(attention.keys(encoded), state), scores, atol=1e-6)
    w_enc, w_dec, v = attention.get_weights()
    expected = np.tanh(encoded @ w_enc + (state @ w_dec)[:, None]) @ v
    np.testing.assert_allclose(scores, expected[..., 0], atol=1e-5)


def test_5_5_greedy_versus_beam():
    with np.errstate(divide="ignore"):
        table = np.log(
            np.array([[[0.6, 0.4, 1e-30], [1e-30, 0.5, 0.5], [0.95, 1e-30, 0.05], [1, 1, 1]]])
        ).astype("float32")
    valid = tf.ones([1, 3], tf.bool)
    greedy = roll(_by_prefix, tf.constant(table), valid)
    assert greedy.positions.numpy().tolist() == [[0, 1, 2]]
    assert greedy.log_probabilities.numpy().sum() == pytest.approx(-1.2039728043, abs=1e-6)
    beams = beam_search(_by_prefix, tf.constant(table), valid, 2)
    assert beams.positions.numpy()[0, 0].tolist() == [1, 0, 2]
    assert float(beams.log_probability[0, 0]) == pytest.approx(-0.9675840263, abs=1e-6)
    one = beam_search(_by_prefix, tf.constant(table), valid, 1)
    assert one.positions.numpy()[0, 0].tolist() == [0, 1, 2]


def test_5_6_lstm_cell():
    encoder = ListEncoder(1, dtype="float64")
    x = tf.constant([[[1.0], [-2.0]]], tf.float64)
    encoder(x)
    encoder.set_weights(
        [np.array([[0.1, 0.2, 0.3, 0.4]]), np.array([[0.5, 0.6, 0.7, 0.8]]), np.array([0, 1, 0, 0])]
    )
    encoded, hidden, carry = encoder.encode(x)
    np.testing.assert_allclose(np.ravel(encoded), [0.0908519395, -0.0407009505], atol=1e-9)
    assert hidden.numpy().item() == pytest.approx(-0.0407009505, abs=1e-9)
    assert carry.numpy().item() == pytest.approx(-0.1255886730, abs=1e-9)
    _, hidden, carry = encoder.encode(x, tf.constant([[True, False]]))
    assert hidden.numpy().item() == pytest.approx(0.0908519395, abs=1e-9)
    assert carry.numpy().item() == pytest.approx(0.1529330586, abs=1e-9)


def test_3_2_forget_biases_start_at_one():
    network = _Network()
    expected = np.repeat([0, 1, 0, 0], UNITS)
    np.testing.assert_array_equal(network.encoder.get_weights()[2], expected)
    np.testing.assert_array_equal(network.decoder.cell.get_weights()[2], expected)


def test_3_2_the_decoder_by_hand():
    """An LSTM from the encoder's last state over go and the chosen candidates, in numpy."""
    network, x = _Network(), _random(1, 4, DIM)
    encoded, hidden, carry = (a.numpy().astype("float64") for a in network.encoder.encode(x))
    kernel, recurrent, bias = network.decoder.cell.get_weights()
    w_enc, w_dec, v = network.decoder.attention.get_weights()
    order = [2, 0, 3, 1]
    made = network.decode(x, method="forced", positions=tf.constant([order]))
    u, h, c = np.reshape(tf.convert_to_tensor(network.decoder.go), DIM), hidden[0], carry[0]

    def sigmoid(a):
        return 1 / (1 + np.exp(-a))

    for j, row in enumerate(order):
        i, f, g, o = np.split(u @ kernel + h @ recurrent + bias, 4)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        scores = np.tanh(encoded[0] @ w_enc + h @ w_dec) @ v[:, 0]
        np.testing.assert_allclose(made.scores[0, j], scores, atol=1e-4)
        u = x[0, row]


# Constraints


def _greedy_by_hand(table, mask, slate, fixed=None, categories=None, most=None) -> list[int]:
    """The rules of `SlateConstraints`, for one list and one kind of constraint."""
    last, chosen = -1, []
    for j in range(slate):
        left = [i for i in np.flatnonzero(mask) if i not in chosen]
        if not left:
            chosen.append(-1)
            continue
        allowed = left
        if fixed is not None:
            allowed = [i for i in left if i not in fixed[j + 1 :]]
            if fixed[j] in left:
                allowed = [fixed[j]]
        if categories is not None:
            counts = np.bincount([categories[i] for i in chosen], minlength=9)
            allowed = [i for i in left if counts[categories[i]] < most]
        last = max(allowed or left, key=lambda i: table[last + 1, i])
        chosen.append(last)
    return chosen


def _cases(seed: int, slate: int, lists: int = 200, length: int = 6):
    """Random lists with holes; fixed rows that differ, some padding or without a chance."""
    rng = np.random.default_rng(seed)
    table = rng.normal(size=(lists, length + 1, length)).astype("float32")
    valid = rng.random((lists, length)) < rng.choice([0.3, 0.7, 1.0], (lists, 1))
    fixed = np.argsort(rng.random((lists, length)), 1)[:, :slate]
    fixed[rng.random(fixed.shape) < 0.6] = -1
    categories = rng.integers(0, 3, (lists, length))
    return table, valid, fixed.astype("int32"), categories.astype("int32")


@pytest.mark.parametrize("slate", [6, 4])
def test_fixed_positions_hold_where_they_can(slate):
    table, valid, fixed, _ = _cases(0, slate)
    constraints = SlateConstraints(fixed=tf.constant(fixed))
    found = roll(_by_prefix, tf.constant(table), valid, slate, constraints=constraints)
    _is_slate(found.positions, valid, slate)
    for b in range(len(table)):
        expected = _greedy_by_hand(table[b], valid[b], slate, fixed=fixed[b].tolist())
        assert found.positions.numpy()[b].tolist() == expected, (valid[b], fixed[b])
    at = (fixed >= 0) & np.take_along_axis(valid, np.maximum(fixed, 0), 1)
    n = valid.sum(1, keepdims=True)
    at &= np.arange(slate) < n
    # A row that is kept for a position beyond the last candidate takes a place before it.
    at &= ~((fixed >= 0) & (np.arange(slate) >= n)).any(1, keepdims=True)
    assert at.sum() > 50
    np.testing.assert_array_equal(found.positions.numpy()[at], fixed[at])
    assert (found.log_probabilities.numpy()[at] == 0).all()


@pytest.mark.parametrize("slate", [6, 4])
@pytest.mark.parametrize("most", [1, 2, 3])
def test_at_most_n_of_a_category(most, slate):
    table, valid, _, categories = _cases(1, slate)
    constraints = SlateConstraints(categories=tf.constant(categories), max_per_category=most)
    found = roll(_by_prefix, tf.constant(table), valid, slate, constraints=constraints)
    _is_slate(found.positions, valid, slate)
    gave_way = 0
    for b in range(len(table)):
        expected = _greedy_by_hand(
            table[b], valid[b], slate, categories=categories[b].tolist(), most=most
        )
        assert found.positions.numpy()[b].tolist() == expected
        chosen = categories[b][[i for i in expected if i >= 0]]
        gave_way += bool(len(chosen) and np.bincount(chosen).max() > most)
    assert 0 < gave_way < len(table)


@pytest.mark.parametrize("method", ["greedy", "sample"])
@pytest.mark.parametrize("slate", [6, 4])
def test_all_constraints_at_once_leave_no_candidate_out(method, slate):
    table, valid, fixed, categories = _cases(2, slate)
    fixed[:40, 1] = fixed[:40, 0]  # the same row twice
    constraints = SlateConstraints(tf.constant(fixed), tf.constant(categories), 1)
    made = roll(
        _by_prefix,
        tf.constant(table),
        valid,
        slate,
        method=method,
        seed=SEED,
        constraints=constraints,
    )
    _is_slate(made.positions, valid, slate)
    free = availability(made.positions, valid).numpy()
    available = made.available.numpy()
    assert not (available & ~free).any()
    np.testing.assert_array_equal(available.any(-1), free.any(-1))
    np.testing.assert_array_equal(
        made.log_probabilities, step_log_probabilities(made.scores, available, made.positions)
    )
    beams = beam_search(_by_prefix, tf.constant(table), valid, 3, slate, constraints)
    for k in range(3):
        there = beams.log_probability.numpy()[:, k] > -1e8
        _is_slate(beams.positions.numpy()[there, k], valid[there], slate)
    if method == "greedy":
        one = beam_search(_by_prefix, tf.constant(table), valid, 1, slate, constraints)
        np.testing.assert_array_equal(one.positions[:, 0], made.positions)


def test_probabilities_under_constraints_sum_to_one():
    table, valid, fixed, _ = _cases(3, 4, lists=30, length=4)
    for constraints in (
        SlateConstraints(fixed=tf.constant(fixed)),
        SlateConstraints(categories=tf.constant([[0, 0, 1, 2]] * 30), max_per_category=1),
    ):
        beams = beam_search(_by_prefix, tf.constant(table), valid, 24, constraints=constraints)
        total = np.exp(beams.log_probability.numpy().astype("float64")).sum(1)
        np.testing.assert_allclose(total, 1, atol=1e-6)
        greedy = roll(_by_prefix, tf.constant(table), valid, constraints=constraints)
        assert (
            beams.log_probability.numpy()[:, 0]
            >= greedy.log_probabilities.numpy().sum(1).astype("float32") - 1e-5
        ).all()


def test_constraints_through_the_decoder():
    network, x = _Network(), _random(1, 4, DIM)
    free = network.decode(x).positions.numpy()[0]
    fixed = tf.constant([[int(free[3]), -1, -1, int(free[0])]])
    constraints = SlateConstraints(fixed=fixed)
    for positions in (
        network.decode(x, constraints=constraints).positions[0],
        network.beams(x, width=2, constraints=constraints).positions[0, 0],
        network.beams(x, width=2, constraints=constraints).positions[0, 1],
    ):
        _is_slate(positions[None], np.ones([1, 4], bool))
        assert (int(positions[0]), int(positions[3])) == (free[3], free[0])


# Samples


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_samples_have_the_probabilities_of_slates(seed):
    draws = 20_000
    network, x = _Network(), _random(3, DIM, seed=5)
    orders, logs = _all_slates(network, x)
    p = np.exp(logs)
    with_hole = np.insert(x, 1, np.nan, 0).astype("float32")
    valid = tf.constant([[True, False, True, True]])
    made = network.decode(
        tf.repeat(with_hole[None], draws, 0),
        tf.repeat(valid, draws, 0),
        method="sample",
        seed=tf.constant([seed, 7]),
    )
    found = made.positions.numpy()[:, :3]
    for order, probability in zip(np.array([0, 2, 3])[orders], p):
        count = (found == order).all(1).sum()
        sigma = np.sqrt(draws * probability * (1 - probability))
        assert abs(count - draws * probability) < 5 * sigma + 1, order
    assert p.max() - p.min() > 0.1


def test_the_same_seed_is_the_same_slate():
    network, x = _Network(), np.repeat(_random(1, 5, DIM), 50, 0)
    one, again, other, more = (
        network.decode(x, method="sample", seed=tf.constant(seed))
        for seed in ([1, 2], [1, 2], [1, 3], [2, 2])
    )
    _equal(one, again)
    assert (one.positions.numpy() != other.positions.numpy()).any()
    assert (one.positions.numpy() != more.positions.numpy()).any()


def test_gumbel_noise_is_standard_and_the_same_under_xla():
    noise = gumbel([200, 500], SEED).numpy()
    assert np.isfinite(noise).all()
    assert noise.mean() == pytest.approx(np.euler_gamma, abs=5 * 1.2826 / np.sqrt(1e5))
    assert noise.var() == pytest.approx(np.pi**2 / 6, abs=5 * 3.5 / np.sqrt(1e5))
    # P(G <= g) = exp(-exp(-g)).
    for g in (-1.0, 0.0, 2.0):
        assert (noise <= g).mean() == pytest.approx(np.exp(-np.exp(-g)), abs=5 * 0.5 / 1e5**0.5)
    compiled = tf.function(lambda s: gumbel([200, 500], s), jit_compile=True)
    np.testing.assert_allclose(compiled(SEED), noise, rtol=1e-5, atol=1e-5)
    assert (gumbel([200, 500], tf.constant([3, 5])).numpy() != noise).mean() > 0.99


# XLA


def test_xla_makes_the_same_slates_and_gradients():
    network, x = _Network(), tf.constant(_random(len(MASKS), 5, DIM))
    valid = tf.constant(MASKS)
    labels = tf.constant((_random(len(MASKS), 5, seed=1) > 0).astype("float32"))

    def everything(x, valid, seed):
        with tf.GradientTape() as tape:
            greedy = network.decode(x, valid)
            loss = tf.reduce_sum(step_cross_entropy(greedy.scores, greedy.available, labels))
        gradients = tape.gradient(loss, network.variables)
        sampled = network.decode(x, valid, method="sample", seed=seed)
        forced = network.decode(x, valid, method="forced", positions=sampled.positions)
        beams = network.beams(x, valid, width=3)
        return greedy, sampled, forced, beams, gradients

    plain = everything(x, valid, SEED)
    compiled = tf.function(everything, jit_compile=True)(x, valid, SEED)
    for one, other in zip(plain[:4], compiled[:4]):
        np.testing.assert_array_equal(one.positions, other.positions)
        for a, b in zip(one[1:], other[1:]):
            if a.dtype.is_floating:
                np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
            else:
                np.testing.assert_array_equal(a, b)
    assert len(plain[4]) == len(network.variables)
    for a, b in zip(plain[4], compiled[4]):
        assert np.abs(a.numpy()).max() > 0
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3)


_CHILD = """
import sys
import numpy as np
import tensorflow as tf
from tfrz.layers.pointer import ListEncoder, PointerDecoder
from tfrz.losses.slate import policy_gradient_loss

encoder, decoder = ListEncoder(4), PointerDecoder(4)
x = tf.constant(np.random.default_rng(0).normal(size=(3, 5, 2)), tf.float32)
valid = tf.constant([[True] * 5, [True, False, True, False, True], [False] * 5])
decoder(x, *encoder.encode(x))
traces = []

@tf.function(jit_compile=True)
def slate_step(x, valid, seed):
    traces.append(1)
    with tf.GradientTape() as tape:
        made = decoder.decode(x, *encoder.encode(x, valid), valid, method="sample", seed=seed)
        total = tf.reduce_sum(made.log_probabilities, 1)
        loss = tf.reduce_sum(policy_gradient_loss(total, tf.ones_like(total)))
    variables = [*encoder.trainable_variables, *decoder.trainable_variables]
    for variable, gradient in zip(variables, tape.gradient(loss, variables)):
        variable.assign(tf.convert_to_tensor(variable) - 0.1 * gradient)
    return made.positions, loss

losses = [float(slate_step(x, valid, tf.constant([i, 1]))[1]) for i in range(6)]
assert len(set(losses)) > 1 and np.isfinite(losses).all(), losses
print("traces", len(traces))
"""


@pytest.mark.slow
def test_one_trace_and_one_compilation_for_all_weights_and_seeds(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", _CHILD],
        capture_output=True,
        text=True,
        check=False,
        env={
            **os.environ,
            "XLA_FLAGS": f"--xla_dump_to={tmp_path} --xla_dump_hlo_as_text",
            "TF_CPP_MIN_LOG_LEVEL": "3",
        },
    )
    assert done.returncode == 0, done.stderr[-1500:]
    assert "traces 1" in done.stdout
    # XLA writes a module for each compilation, named after the compiled function.
    modules = [p.name for p in tmp_path.glob("*slate_step*before_optimizations.txt")]
    assert len(modules) == 1, sorted(p.name for p in tmp_path.glob("*before_optimizations.txt"))


# Dtypes, configurations and errors


def test_scores_are_float32_under_mixed_precision():
    network, x = _Network(dtype="mixed_float16"), _random(len(MASKS), 5, DIM)
    made = network.decode(x, MASKS)
    assert network.encoder(x).dtype == tf.float16
    assert made.scores.dtype == made.log_probabilities.dtype == tf.float32
    _is_slate(made.positions, MASKS)
    assert np.isfinite(made.log_probabilities.numpy()).all()
    sampled = network.decode(x, MASKS, method="sample", seed=SEED)
    _is_slate(sampled.positions, MASKS)


def test_float64_stays():
    network, x = _Network(dtype="float64"), _random(2, 4, DIM).astype("float64")
    made = network.decode(x)
    assert made.scores.dtype == made.log_probabilities.dtype == tf.float64


@pytest.mark.parametrize("layer", [ListEncoder, PointerAttention, PointerDecoder])
def test_configurations_round_trip(layer):
    made = layer(UNITS, kernel_initializer="ones", name="one")
    again = layer.from_config(made.get_config())
    assert again.get_config() == made.get_config()
    assert again.units == UNITS
    with pytest.raises(ConfigError):
        layer(0)


def test_a_wrong_width_is_an_error():
    with pytest.raises(ValueError, match=r".+"):
        PointerAttention(UNITS)(tf.zeros([1, 3, UNITS + 1]), tf.zeros([1, UNITS]))
    with pytest.raises(ValueError, match=r".+"):
        PointerDecoder(UNITS)(
            tf.zeros([1, 3, 2]),
            tf.zeros([1, 3, UNITS + 1]),
            tf.zeros([1, UNITS]),
            tf.zeros([1, UNITS]),
        )


def test_output_shapes():
    encoder, decoder = ListEncoder(UNITS), PointerDecoder(UNITS)
    assert tuple(encoder.compute_output_shape((None, 4, DIM))) == (None, 4, UNITS)
    state = (None, UNITS)
    assert tuple(decoder.compute_output_shape((None, 4, DIM), (None, 4, UNITS), state, state)) == (
        None,
        4,
        4,
    )
    shape = PointerAttention(UNITS).compute_output_shape((None, 4, UNITS), state)
    assert tuple(shape) == (None, 4)


def test_what_a_method_needs():
    state, valid = tf.zeros([1, 4, 3]), tf.ones([1, 3], tf.bool)
    for arguments in ({"method": "best"}, {"method": "sample"}, {"method": "forced"}):
        with pytest.raises(ConfigError):
            roll(_by_prefix, state, valid, **arguments)
    with pytest.raises(ConfigError):
        beam_search(_by_prefix, state, valid, 0)
