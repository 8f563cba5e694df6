"""Cross layers and DCN-V2 in NumPy: loops over experts, nothing fused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

ACTIVATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "linear": lambda z: z,
    "tanh": np.tanh,
    "relu": lambda z: np.maximum(z, 0.0),
    "hard_tanh": lambda z: np.clip(z, -1.0, 1.0),
}


def softmax(scores: np.ndarray) -> np.ndarray:
    e = np.exp(scores - scores.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def sigmoid(z: np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-z))


def full(x0: np.ndarray, x: np.ndarray, W: np.ndarray, b: Any = 0.0) -> np.ndarray:
    """Equation 1."""
    return x0 * (x @ W.T + b) + x


def low_rank(
    x0: np.ndarray, x: np.ndarray, U: np.ndarray, V: np.ndarray, b: Any = 0.0
) -> np.ndarray:
    """Equation 2."""
    return x0 * ((x @ V) @ U.T + b) + x


def mixture(
    x0: np.ndarray,
    x: np.ndarray,
    U: np.ndarray,
    V: np.ndarray,
    b: Any = 0.0,
    C: np.ndarray | None = None,
    A: np.ndarray | None = None,
    activation: str = "linear",
    gate: str = "softmax",
    constant: float = 1.0,
) -> np.ndarray:
    """Equations 3 and 4. `U`, `V` `[K, dim, rank]`, `C` `[K, rank, rank]`, `A` `[K, dim]`."""
    g = ACTIVATIONS[activation]
    experts = len(U)
    if gate == "constant":
        gates = np.full((len(x), experts), constant)
    else:
        assert A is not None
        gates = softmax(x @ A.T) if gate == "softmax" else sigmoid(x @ A.T)
    total = np.zeros_like(x)
    for k in range(experts):
        z = g(x @ V[k])
        if C is not None:
            z = g(z @ C[k].T)
        total += gates[:, k : k + 1] * (x0 * (z @ U[k].T + b))
    return total + x


def split_experts(stored: np.ndarray, experts: int) -> np.ndarray:
    """The layer's `[dim, K * rank]` as `[K, dim, rank]`."""
    return np.stack(np.split(stored, experts, axis=1))
