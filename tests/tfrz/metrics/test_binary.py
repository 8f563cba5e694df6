"""Metrics against definitions written another way, and against scikit-learn's."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfrz.metrics import (
    Calibration,
    NormalizedEntropy,
    auc,
    calibration,
    log_loss,
    normalized_entropy,
)

rows = st.lists(st.tuples(st.booleans(), st.integers(-6, 6)), min_size=1, max_size=40)


@given(rows)
def test_auc_is_the_share_of_ordered_pairs(values):
    labels = np.array([y for y, _ in values], float)
    scores = np.array([s for _, s in values], float)
    pairs = [
        1.0 if p > n else 0.5 if p == n else 0.0
        for p in scores[labels == 1]
        for n in scores[labels == 0]
    ]
    if pairs:
        assert auc(labels, scores) == pytest.approx(np.mean(pairs), abs=1e-12)
    else:
        assert np.isnan(auc(labels, scores))


@given(rows)
def test_log_loss_and_calibration_by_their_definitions(values):
    labels = np.array([y for y, _ in values], float)
    logits = np.array([s for _, s in values], float)
    p = 1 / (1 + np.exp(-logits))
    expected = -np.mean(labels * np.log(p) + (1 - labels) * np.log(1 - p))
    assert log_loss(labels, logits) == pytest.approx(expected, rel=1e-9)
    if labels.sum():
        assert calibration(labels, logits) == pytest.approx(p.sum() / labels.sum(), rel=1e-9)


def test_log_loss_is_finite_for_extreme_logits():
    assert log_loss(np.array([0.0, 1.0]), np.array([1e4, -1e4])) == pytest.approx(1e4)


def test_streaming_calibration_equals_the_exact_one():
    rng = np.random.default_rng(0)
    labels = (rng.random(100) < 0.3).astype("float32")
    logits = rng.normal(size=100).astype("float32")
    metric = Calibration()
    for part in np.array_split(np.arange(100), 7):
        metric.update_state(labels[part], 1 / (1 + np.exp(-logits[part])))
    assert float(metric.result()) == pytest.approx(calibration(labels, logits), rel=1e-5)
    metric.reset_state()
    assert float(metric.result()) == 0.0


def test_streaming_calibration_weights_rows():
    metric = Calibration()
    metric.update_state([1.0, 0.0], [0.5, 0.75], sample_weight=[1.0, 2.0])
    assert float(metric.result()) == 2.0
    copy = keras.metrics.deserialize(keras.metrics.serialize(metric))
    assert isinstance(copy, Calibration)


# DV365's worked example, invariant 12.
LABELS, PROBABILITIES = np.array([1.0, 0, 0, 1, 0]), np.array([0.8, 0.1, 0.3, 0.6, 0.2])
NE = 0.42173063426891527


def _logits(p: np.ndarray) -> np.ndarray:
    return np.log(p / (1 - p))


def test_invariant_12_normalized_entropy_of_the_worked_example():
    assert log_loss(LABELS, _logits(PROBABILITIES)) == pytest.approx(0.28382963719819376, abs=1e-15)
    assert normalized_entropy(LABELS, _logits(PROBABILITIES)) == pytest.approx(NE, abs=1e-15)
    metric = NormalizedEntropy()
    metric.update_state(LABELS, PROBABILITIES)
    assert float(metric.result()) == pytest.approx(NE, rel=1e-6)


@pytest.mark.parametrize("share", [0.01, 0.3, 0.5, 0.99])
def test_invariant_12_the_mean_label_has_a_normalized_entropy_of_one(share):
    labels = (np.arange(100) < 100 * share).astype(float)
    mean = np.full(100, labels.mean())
    assert normalized_entropy(labels, _logits(mean)) == pytest.approx(1.0, abs=1e-12)
    metric = NormalizedEntropy()
    metric.update_state(labels, mean)
    assert float(metric.result()) == pytest.approx(1.0, rel=1e-5)


def test_normalized_entropy_of_one_label_alone_is_not_a_number():
    for labels in ([], [0.0, 0.0], [1.0, 1.0]):
        labels = np.array(labels)
        assert np.isnan(normalized_entropy(labels, np.zeros(len(labels))))
        metric = NormalizedEntropy()
        if len(labels):
            metric.update_state(labels, np.full(len(labels), 0.5))
        assert np.isnan(float(metric.result()))


def test_streaming_normalized_entropy_equals_the_exact_one():
    rng = np.random.default_rng(0)
    labels, p = (rng.random(100) < 0.3).astype("float32"), rng.random(100).astype("float32")
    metric = NormalizedEntropy()
    for part in np.array_split(np.arange(100), 7):
        metric.update_state(labels[part], p[part])
    exact = normalized_entropy(labels, _logits(p.astype("float64")))
    assert float(metric.result()) == pytest.approx(exact, rel=1e-5)
    metric.reset_state()
    assert np.isnan(float(metric.result()))
    copy = keras.metrics.deserialize(keras.metrics.serialize(metric))
    assert isinstance(copy, NormalizedEntropy)


def test_streaming_normalized_entropy_weights_rows_and_bears_certainty():
    metric = NormalizedEntropy()
    metric.update_state(LABELS, PROBABILITIES, sample_weight=[2, 1, 1, 0, 3])
    kept = np.repeat(np.arange(5), [2, 1, 1, 0, 3])
    expected = normalized_entropy(LABELS[kept], _logits(PROBABILITIES[kept]))
    assert float(metric.result()) == pytest.approx(expected, rel=1e-5)
    metric.reset_state()
    metric.update_state([1.0, 0.0], [0.0, 1.0])
    assert float(metric.result()) == pytest.approx(-np.log(1e-7) / np.log(2), rel=0.02)
