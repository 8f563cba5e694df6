"""Losses of ranked lists: TF-Ranking's values and gradients, padding, ties, and what is refused."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.lazy import lazy
from tfrz.errors import InputError
from tfrz.losses import ApproxNDCGLoss, LambdaRankLoss, SigmoidCrossEntropyLoss, SoftmaxLoss

tfr = lazy("tensorflow_ranking")

LOSSES = {
    "sigmoid": SigmoidCrossEntropyLoss,
    "softmax": SoftmaxLoss,
    "approx_ndcg": ApproxNDCGLoss,
    "lambda_rank": LambdaRankLoss,
}


def _theirs(kind: str):
    losses = tfr.keras.losses
    return {
        "sigmoid": losses.SigmoidCrossEntropyLoss,
        "softmax": losses.SoftmaxLoss,
        "approx_ndcg": losses.ApproxNDCGLoss,
        "lambda_rank": lambda: losses.PairwiseLogisticLoss(lambda_weight=losses.NDCGLambdaWeight()),
    }[kind]()


def _lists(case: str) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 5, (6, 9)).astype(np.float32)
    scores = rng.normal(0, 2, (6, 9)).astype(np.float32)
    if case == "binary":
        labels = np.minimum(labels, 1)
    elif case == "padded":
        for row, length in enumerate((1, 2, 9, 5, 7, 3)):
            labels[row, length:] = -1
    elif case == "zeros":
        labels[[0, 3]] = 0
        labels[3, 4:] = -1
    elif case == "ties":
        scores = np.round(scores)
        scores[1] = 0.5
    elif case == "fractions":
        labels = rng.random((6, 9)).astype(np.float32) * 3
    return labels, scores


def _value_and_gradient(loss, labels, scores, weights=None):
    scores = tf.constant(scores)
    with tf.GradientTape() as tape:
        tape.watch(scores)
        value = loss(tf.constant(labels), scores, weights)
    return float(value), tape.gradient(value, scores).numpy()


@pytest.mark.needs("tensorflow_ranking")
@pytest.mark.parametrize("case", ["grades", "binary", "padded", "zeros", "ties", "fractions"])
@pytest.mark.parametrize("kind", LOSSES)
def test_values_and_gradients_are_those_of_tf_ranking(kind, case, monkeypatch):
    if kind == "sigmoid" and case not in ("binary", "padded"):
        pytest.skip("labels of a sigmoid are 0 or 1")
    labels, scores = _lists(case)
    if kind == "sigmoid":
        labels = np.minimum(labels, 1)
    from tensorflow_ranking.python import utils

    # TF-Ranking breaks ties at random; here by position, as ours.
    sort = utils.sort_by_scores
    monkeypatch.setattr(
        utils,
        "sort_by_scores",
        lambda *args, shuffle_ties=True, **kwargs: sort(*args, shuffle_ties=False, **kwargs),
    )
    value, gradient = _value_and_gradient(LOSSES[kind](), labels, scores)
    expected, expected_gradient = _value_and_gradient(_theirs(kind), labels, scores)
    assert value == pytest.approx(expected, rel=1e-6, abs=1e-6)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-5, atol=1e-6)
    weights = np.array([1.0, 0.0, 2.0, 0.5, 1.0, 3.0], np.float32)
    value, gradient = _value_and_gradient(LOSSES[kind](), labels, scores, weights)
    expected, expected_gradient = _value_and_gradient(
        _theirs(kind), labels, scores, weights[:, None]
    )
    assert value == pytest.approx(expected, rel=1e-6, abs=1e-6)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-5, atol=1e-6)


def _by_hand(kind: str, y: list[float], s: list[float]) -> float:
    """The formula of a list without padding, item by item."""
    n = range(len(y))
    p = [1 / (1 + np.exp(-x)) for x in s]
    if kind == "sigmoid":
        return -np.mean([y[i] * np.log(p[i]) + (1 - y[i]) * np.log(1 - p[i]) for i in n])
    if kind == "softmax":
        total = sum(np.exp(x) for x in s)
        return -sum(y[i] * np.log(np.exp(s[i]) / total) for i in n)
    best = sorted(y, reverse=True)
    if kind == "approx_ndcg":
        ideal = sum((2 ** best[r] - 1) / np.log(2 + r) for r in n)
        rank = [1 + sum(1 / (1 + np.exp((s[i] - s[j]) / 0.1)) for j in n if j != i) for i in n]
        return -sum((2 ** y[i] - 1) / np.log(1 + rank[i]) for i in n) / ideal
    ideal = sum((2 ** best[r] - 1) / np.log2(2 + r) for r in n)
    rank = [1 + sum(s[j] > s[i] or (s[j] == s[i] and j < i) for j in n) for i in n]
    found = 0.0
    for i in n:
        for j in n:
            if y[i] > y[j]:
                d = abs(rank[i] - rank[j])
                w = (2 ** y[i] - 2 ** y[j]) / ideal * (1 / np.log2(1 + d) - 1 / np.log2(2 + d))
                found += w * np.log1p(np.exp(s[j] - s[i]))
    return found


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("padding", [0, 3])
def test_the_formula(kind, padding):
    y, s = [0.0, 1.0, 1.0, 0.0, 0.0], [0.3, -0.2, 0.9, 0.9, -1.4]
    expected = _by_hand(kind, y, s)
    if kind == "sigmoid":
        expected *= 5 / (5 + padding)
    labels = np.array([y + [-1.0] * padding], np.float32)
    scores = np.array([s + [50.0] * padding], np.float32)
    value, _ = _value_and_gradient(LOSSES[kind](), labels, scores)
    assert value == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", LOSSES)
def test_padding_reaches_nothing_whatever_it_is(kind):
    labels, scores = _lists("padded")
    labels = np.minimum(labels, 1)
    expected, gradient = _value_and_gradient(LOSSES[kind](), labels, scores)
    for junk in (np.nan, np.inf, -1e30):
        there = np.where(labels < 0, junk, scores).astype(np.float32)
        value, found = _value_and_gradient(LOSSES[kind](), labels, there)
        assert value == pytest.approx(expected, rel=1e-6)
        np.testing.assert_allclose(found, gradient, rtol=1e-6, atol=1e-8)
    assert not gradient[labels < 0].any()
    nothing = np.full((2, 3), -1.0, np.float32)
    value, gradient = _value_and_gradient(LOSSES[kind](), nothing, np.ones((2, 3), np.float32))
    assert (value, gradient.any()) == (0.0, False)


@pytest.mark.parametrize("kind", LOSSES)
def test_they_are_keras_losses(kind):
    labels, scores = _lists("padded")
    labels = np.minimum(labels, 1)
    loss = LOSSES[kind](temperature=0.7)
    again = keras.losses.deserialize(keras.losses.serialize(loss))
    assert type(again) is type(loss)
    assert again.temperature == 0.7
    assert float(again(labels, scores)) == float(loss(labels, scores))
    each = LOSSES[kind](reduction="none")(labels, scores)
    assert each.shape == (6,)
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.layers.Dense(9)])
    model.compile(keras.optimizers.SGD(0.02), loss)
    history = model.fit(scores, labels, epochs=20, verbose=0).history["loss"]
    assert history[-1] < history[0]


@pytest.mark.parametrize("kind", LOSSES)
def test_other_shapes_and_temperatures_are_refused(kind):
    with pytest.raises(InputError, match="y_pred: expected the shape"):
        LOSSES[kind]().call(np.zeros((2, 3), np.float32), np.zeros((2, 1), np.float32))
    with pytest.raises(InputError, match="temperature: must be above 0"):
        LOSSES[kind](temperature=0.0)


@pytest.mark.parametrize("kind", LOSSES)
def test_xla_gives_the_same(kind):
    labels, scores = _lists("padded")
    labels = np.minimum(labels, 1)
    loss = LOSSES[kind]()
    compiled = tf.function(loss.call, jit_compile=True)
    np.testing.assert_allclose(
        compiled(tf.constant(labels), tf.constant(scores)),
        loss.call(labels, scores),
        rtol=1e-5,
        atol=1e-6,
    )
