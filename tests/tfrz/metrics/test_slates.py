"""Metrics of slates: worked values, TF-Ranking's values, and what has none."""

from __future__ import annotations

import numpy as np
import pytest

from tfrz.metrics.slates import (
    average_precision,
    expected_reciprocal_rank,
    ndcg,
    of_slate,
    rank_gain,
)


def test_5_2_the_specifications_worked_values():
    assert ndcg(np.array([1, 0, 1]), 3) == pytest.approx(0.9197207891, abs=1e-10)
    labels = np.array([0, 1, 0, 1, 1])
    assert ndcg(labels, 5) == pytest.approx(0.6797310500, abs=1e-10)
    assert ndcg(labels, 3) == pytest.approx(0.2960819110, abs=1e-10)
    assert average_precision(labels) == pytest.approx(0.5333333333, abs=1e-10)


def test_5_1_10_all_relevant_is_one_in_any_order():
    assert of_slate("ndcg_at_10", np.ones(4)) == of_slate("map", np.ones(4)) == 1.0


def test_lists_without_anything_relevant_have_no_metric():
    for name in ("ndcg_at_5", "map", "err_at_10"):
        assert np.isnan(of_slate(name, np.zeros(3)))
        assert np.isnan(of_slate(name, np.zeros(0)))
    assert np.isnan(rank_gain(np.zeros(2), np.array([1, 0])))


def test_err_by_hand():
    # Grades 3, 0, 4 of at most 4: satisfied with 7/16, 0, 15/16.
    expected = 7 / 16 + (1 - 7 / 16) * (15 / 16) / 3
    assert expected_reciprocal_rank(np.array([3, 0, 4])) == pytest.approx(expected)
    assert expected_reciprocal_rank(np.array([3, 0, 4]), 2) == pytest.approx(7 / 16)


def test_rank_gain_counts_places_upwards():
    assert rank_gain(np.array([0, 1, 0, 1]), np.array([3, 1, 0, 2, -1])) == 1.5


@pytest.mark.needs("tensorflow_ranking")
def test_tf_ranking_computes_the_same():
    import tensorflow_ranking as tfr

    rng = np.random.default_rng(0)
    labels = rng.integers(0, 5, (50, 8)).astype(np.float32)
    labels[rng.random(labels.shape) < 0.5] = 0
    labels = labels[(labels > 0).any(1)]
    scores = -np.broadcast_to(np.arange(8, dtype=np.float32), labels.shape)
    for kind, n, name in (("NDCG", 5, "ndcg_at_5"), ("MeanAveragePrecision", None, "map")):
        metric = getattr(tfr.keras.metrics, f"{kind}Metric")(topn=n)
        metric.update_state(labels, scores)
        own = np.mean([of_slate(name, row) for row in labels])
        assert float(metric.result()) == pytest.approx(own, abs=1e-6)
