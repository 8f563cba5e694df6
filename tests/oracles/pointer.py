"""The pointer network in NumPy, float64: a list, a step and a candidate at a time."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.oracles.temporal import sigmoid

Weights = dict[str, np.ndarray]


def lstm_step(x: np.ndarray, h: np.ndarray, c: np.ndarray, w: Weights) -> tuple[Any, Any]:
    """One step of one list; gates in the order i, f, c, o."""
    i, f, g, o = np.split(x @ w["kernel"] + h @ w["recurrent_kernel"] + w["bias"], 4, axis=-1)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    return sigmoid(o) * np.tanh(c), c


def encode(x: np.ndarray, w: Weights, valid: np.ndarray | None = None) -> tuple[Any, Any, Any]:
    """E of one list `[list, dim]` and the state after its last valid row."""
    units = w["recurrent_kernel"].shape[0]
    h, c, rows = np.zeros(units), np.zeros(units), []
    for i, row in enumerate(x):
        if valid is not None and not valid[i]:
            rows.append(np.zeros(units))
            continue
        h, c = lstm_step(row, h, c, w)
        rows.append(h)
    return np.stack(rows), h, c


def attention(e: np.ndarray, d: np.ndarray, w: Weights) -> np.ndarray:
    """The score of each candidate for a state."""
    return np.tanh(e @ w["W_enc"] + d @ w["W_dec"]) @ w["v"][:, 0]


def greedy_scores(
    x: np.ndarray, e: np.ndarray, h: np.ndarray, c: np.ndarray, w: Weights
) -> np.ndarray:
    """Scores of each step of a greedy decoding of one list, `[list, list]`."""
    given, left, steps = w["go"][0], np.ones(len(x), bool), []
    for _ in range(len(x)):
        h, c = lstm_step(given, h, c, w)
        steps.append(attention(e, h, w))
        chosen = int(np.argmax(np.where(left, steps[-1], -np.inf)))
        left[chosen], given = False, x[chosen]
    return np.stack(steps)
