"""Streaming metrics of lists: TF-Ranking's values, padding, weights, and what is refused."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from tests.lazy import lazy
from tfrz.errors import InputError
from tfrz.metrics import MRRMetric, NDCGMetric

tfr = lazy("tensorflow_ranking")

METRICS = {"NDCGMetric": NDCGMetric, "MRRMetric": MRRMetric}


def _lists(padded: bool = True) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(5)
    labels = rng.integers(0, 4, (40, 8)).astype(np.float32)
    labels[rng.random(labels.shape) < 0.5] = 0
    labels[[2, 9]] = 0
    if padded:
        labels[np.arange(8) >= rng.integers(1, 9, 40)[:, None]] = -1
    return labels, rng.normal(size=(40, 8)).astype(np.float32)


@pytest.mark.needs("tensorflow_ranking")
@pytest.mark.parametrize("topn", [None, 1, 3, 20])
@pytest.mark.parametrize("name", METRICS)
def test_values_are_those_of_tf_ranking(name, topn):
    labels, scores = _lists()
    own, theirs = METRICS[name](topn), getattr(tfr.keras.metrics, name)(topn=topn)
    for part in (slice(0, 7), slice(7, 40)):
        own.update_state(labels[part], scores[part])
        theirs.update_state(labels[part], scores[part])
    assert float(own.result()) == pytest.approx(float(theirs.result()), abs=1e-6)


def _by_hand(name: str, y: np.ndarray, s: np.ndarray, topn: int | None) -> float:
    y, s = y[y >= 0], s[y >= 0]
    ordered = y[np.argsort(-s, kind="stable")][:topn]
    if name == "MRRMetric":
        return max((1 / (r + 1) for r, grade in enumerate(ordered) if grade >= 1), default=0.0)

    def dcg(grades):
        return sum((2**g - 1) / np.log2(2 + r) for r, g in enumerate(grades[:topn]))

    best = dcg(sorted(y, reverse=True))
    return dcg(ordered) / best if best else 0.0


@pytest.mark.parametrize("topn", [None, 2])
@pytest.mark.parametrize("name", METRICS)
def test_the_formula_with_ties_padding_and_weights(name, topn):
    labels, scores = _lists()
    scores = np.round(scores)
    weights = np.random.default_rng(0).random(40).astype(np.float32)
    values = [_by_hand(name, *pair, topn) for pair in zip(labels, scores, strict=True)]
    metric = METRICS[name](topn)
    metric.update_state(labels, np.where(labels < 0, np.nan, scores))
    assert float(metric.result()) == pytest.approx(np.mean(values), abs=1e-6)
    metric.reset_state()
    assert float(metric.result()) == 0
    metric.update_state(labels, scores, weights)
    assert float(metric.result()) == pytest.approx(np.average(values, weights=weights), abs=1e-6)


@pytest.mark.parametrize("name", METRICS)
def test_they_are_keras_metrics(name):
    metric = METRICS[name](topn=4)
    again = keras.metrics.deserialize(keras.metrics.serialize(metric))
    assert (type(again), again.topn) == (type(metric), 4)
    labels, scores = _lists()
    model = keras.Sequential([keras.layers.Dense(8)])
    model.compile("sgd", "mse", metrics=[METRICS[name](topn=4)])
    found = model.evaluate(scores, labels, verbose=0, return_dict=True)
    metric.update_state(labels, model.predict(scores, verbose=0))
    assert found[metric.name] == pytest.approx(float(metric.result()), abs=1e-6)


@pytest.mark.parametrize("name", METRICS)
def test_other_shapes_are_refused(name):
    with pytest.raises(InputError, match="topn: must be at least 1"):
        METRICS[name](topn=0)
    metric = METRICS[name]()
    with pytest.raises(InputError, match="y_pred: expected the shape"):
        metric.update_state(np.zeros((2, 3)), np.zeros((2, 1)))
    with pytest.raises(InputError, match="sample_weight: expected the shape"):
        metric.update_state(np.zeros((2, 3)), np.zeros((2, 3)), np.zeros((2, 3)))
