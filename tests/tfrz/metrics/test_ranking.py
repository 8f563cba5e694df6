"""Ranking metrics on the specification's worked example and against each other."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from tfrz.errors import ConfigError
from tfrz.metrics.ranking import (
    at_rank,
    average_precision_at,
    ndcg_at,
    parse,
    precision_at,
    rank_of,
    recall_at,
)

RANKING, RELEVANT = [7, 3, 9, 1, 5], {3, 5, 8}


def test_5_4_the_worked_example():
    assert average_precision_at(RANKING, RELEVANT, 5) == pytest.approx(0.3)
    assert precision_at(RANKING, RELEVANT, 5) == pytest.approx(0.4)
    assert recall_at(RANKING, RELEVANT, 5) == pytest.approx(2 / 3)
    assert average_precision_at(RANKING, RELEVANT, 3) == pytest.approx(1 / 6)
    assert average_precision_at(RANKING, {3}, 5) == pytest.approx(0.5)


def test_a_perfect_ranking_has_ndcg_one_and_none_has_nan():
    assert ndcg_at([1, 2, 9], {1, 2}, 3) == pytest.approx(1.0)
    assert ndcg_at([9, 1, 2], {1, 2}, 1) == 0.0
    assert np.isnan(recall_at([1], set(), 1)) and np.isnan(ndcg_at([1], set(), 1))


@pytest.mark.parametrize("n", [1, 5, 20])
def test_metrics_of_one_target_follow_from_its_rank(n):
    ranking = list(range(1, 31))
    whole = {
        "map": average_precision_at,
        "precision": precision_at,
        "recall": recall_at,
        "ndcg": ndcg_at,
    }
    for kind, metric in whole.items():
        expected = [metric(ranking, {rank}, n) for rank in range(1, 31)]
        np.testing.assert_allclose(at_rank(kind, np.arange(1, 31), n), expected)
        assert at_rank(kind, np.array([0]), n)[0] == 0.0
    assert parse("ndcg_at_20") == ("ndcg", 20)


def test_ranks_break_ties_as_top_k_does_and_know_what_may_not_be_shown():
    scores = tf.constant([[0.5, 0.9, 0.5, -np.inf], [0.1, 0.1, 0.1, 0.1]], tf.float32)
    order = tf.math.top_k(scores, 4).indices.numpy() + 1
    for row in range(2):
        for item in range(1, 5):
            rank = int(rank_of(scores[row : row + 1], tf.constant([item]))[0])
            shown = bool(np.isfinite(scores[row, item - 1]))
            assert rank == (int(np.flatnonzero(order[row] == item)[0]) + 1 if shown else 0)
    assert rank_of(scores, tf.constant([0, 5])).numpy().tolist() == [0, 0]


@pytest.mark.parametrize("metric", [precision_at, recall_at, average_precision_at, ndcg_at])
def test_an_item_that_is_listed_or_relevant_twice_counts_once(metric):
    assert metric([3, 3, 3], {3}, 3) == metric([3, 8, 9], {3}, 3) <= 1
    assert metric([3, 5], [3, 3, 7, 7], 2) == metric([3, 5], {3, 7}, 2)
    assert np.isnan(recall_at([3], [], 1))
    with pytest.raises(ConfigError, match="n: must be at least 1"):
        metric([3], {3}, 0)
