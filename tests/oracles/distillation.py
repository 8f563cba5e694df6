"""NumPy float64 oracles of knowledge distillation, written from the specification, one row a time."""

from __future__ import annotations

import itertools
import math

import numpy as np


def softmax(values: np.ndarray) -> np.ndarray:
    """Of one row."""
    shifted = np.exp(np.asarray(values, "float64") - np.max(values))
    return shifted / shifted.sum()


def sigmoid(value: float) -> float:
    """Of one number."""
    return 1 / (1 + math.exp(-value))


def cosines(vectors: np.ndarray) -> np.ndarray:
    """Of all pairs of rows."""
    return np.array([[a @ b / math.sqrt((a @ a) * (b @ b)) for b in vectors] for a in vectors])


def soft_targets(
    kind: str,
    v: np.ndarray,
    t: int,
    temperature: float = 1.0,
    k: int = 0,
    vectors: np.ndarray | None = None,
    alpha: float = 1.0,
) -> np.ndarray:
    """Section c6 for one example: v `[classes]`, t the true class."""
    q = softmax(np.asarray(v, "float64") / temperature)
    classes = len(q)
    wrong = [c for c in range(classes) if c != t]
    if kind == "full":
        return q
    if kind == "label_smoothing":
        return np.full(classes, 1 / classes)
    rho = np.zeros(classes)
    if kind == "partial":
        rho[wrong] = (1 - q[t]) / (classes - 1)
        rho[t] = q[t]
    elif kind == "similarity":
        rho = softmax(cosines(vectors)[t] / alpha)
    elif kind == "partial_similarity":
        sim = softmax(cosines(vectors)[t] / alpha)
        rho[wrong] = (1 - q[t]) * sim[wrong] / sum(sim[c] for c in wrong)
        rho[t] = q[t]
    elif kind == "topk":
        best = sorted(range(classes), key=lambda c: (-q[c], c))[:k]
        left = 1 - sum(q[c] for c in best)
        for c in range(classes):
            rho[c] = q[c] if c in best else left / (classes - k)
    return rho


def loss(
    z: np.ndarray, target: np.ndarray, rho: np.ndarray, weight: float, temperature: float, s: float
) -> float:
    """Section c1 for one example; `target` is the hard label as a distribution."""
    hard = -sum(target * np.log(softmax(z)))
    soft = -sum(rho * np.log(softmax(np.asarray(z) / temperature)))
    return (1 - weight) * hard + weight * s * soft


def gradient(
    z: np.ndarray, target: np.ndarray, rho: np.ndarray, weight: float, temperature: float, s: float
) -> np.ndarray:
    """Section c2 for one example."""
    soft = softmax(np.asarray(z) / temperature) - rho
    return (1 - weight) * (softmax(z) - target) + weight * s / temperature * soft


def omega(z: np.ndarray, t: int, rho: np.ndarray, weight: float, temperature: float, s: float):
    """Section c4 for one example."""
    p, soft = softmax(z)[t], softmax(np.asarray(z) / temperature)[t]
    return (1 - weight) + weight * s / temperature * (rho[t] - soft) / (1 - p)


def binary_loss(s: float, y: float, u: float, weight: float, temperature: float, scale: float):
    """Section c8 for one example."""

    def bce(target: float, p: float) -> float:
        return -target * math.log(p) - (1 - target) * math.log(1 - p)

    soft = bce(sigmoid(u / temperature), sigmoid(s / temperature))
    return (1 - weight) * bce(y, sigmoid(s)) + weight * scale * soft


def divergence(a: np.ndarray, b: np.ndarray) -> float:
    """KL(a || b)."""
    return sum(x * math.log(x / y) for x, y in zip(a, b, strict=True) if x > 0)


def relaxed_ranking(first: np.ndarray, last: np.ndarray) -> float:
    """Section c9, relaxed ranking distillation of one list."""
    total = 0.0
    for i in range(len(first)):
        below = sum(math.exp(x) for x in first[i:]) + sum(math.exp(x) for x in last)
        total -= first[i] - math.log(below)
    return total


def relaxed_probability(first: np.ndarray, last: np.ndarray) -> float:
    """The sum of Plackett-Luce probabilities of all lists that start with `first` in its order."""
    scores = np.concatenate([first, last])
    total = 0.0
    for rest in itertools.permutations(range(len(first), len(scores))):
        order, probability = [*range(len(first)), *rest], 1.0
        for i, item in enumerate(order):
            probability *= math.exp(scores[item]) / sum(math.exp(scores[o]) for o in order[i:])
        total += probability
    return total


def discrepancies(scores: np.ndarray, others: np.ndarray, items: int, mu: float) -> np.ndarray:
    """Section c9, the second factor of ranking distillation's weights."""
    found = []
    for r, score in enumerate(scores, start=1):
        above = sum(1 for o in others if o > score)
        rank = ((items - 1) * above) // len(others)
        found.append(max(0.0, math.tanh(mu * (rank - (r - 1)))))
    return np.array(found)


def slopes(function, at: np.ndarray, step: float = 1e-6) -> np.ndarray:
    """Central differences of a function of one row."""
    at = np.asarray(at, "float64")
    return np.array(
        [
            (function(at + step * unit) - function(at - step * unit)) / (2 * step)
            for unit in np.eye(len(at))
        ]
    )
