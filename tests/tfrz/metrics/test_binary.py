"""Metrics against definitions written another way, and against scikit-learn's."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfrz.metrics import Calibration, auc, calibration, log_loss

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
