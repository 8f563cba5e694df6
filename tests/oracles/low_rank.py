"""Low-rank layers in NumPy, and expectations by drawing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

ACTIVATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "linear": lambda z: z,
    "relu": lambda z: np.maximum(z, 0.0),
    "tanh": np.tanh,
}


def dense(
    x: np.ndarray, U: np.ndarray, V: np.ndarray, b: Any = 0.0, activation: str = "linear"
) -> np.ndarray:
    """The product is formed, which the layer never does."""
    return ACTIVATIONS[activation](np.einsum("...d,du->...u", x, U @ V.T) + b)


def relu_kernel(rho: float) -> float:
    """c2 by its integral over the angle: E relu(a) relu(b) of two unit Gaussians, times two.

    h(rho) = (1 / pi) * integral over t of relu(cos t) relu(cos(t - theta)), in polar coordinates
    (the radius gives E r^2 / 2 = 1).
    """
    from scipy.integrate import quad

    theta = float(np.arccos(rho))
    low, high = theta - np.pi / 2, np.pi / 2
    return 2 / np.pi * quad(lambda t: np.cos(t) * np.cos(t - theta), low, high)[0]


def sampled_relu_error(W: np.ndarray, Y: np.ndarray, rows: int, seed: int) -> tuple[float, float]:
    """c1 by Monte Carlo: the mean and its standard error."""
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(10):
        x = rng.standard_normal((rows // 10, len(W)))
        difference = np.maximum(x @ W, 0) - np.maximum(x @ Y, 0)
        values.append(np.square(difference).sum(axis=1))
    drawn = np.concatenate(values)
    return float(drawn.mean()), float(drawn.std(ddof=1) / np.sqrt(len(drawn)))


def sampled_cross_error(delta: np.ndarray, rows: int, seed: int) -> tuple[float, float]:
    """c10 by Monte Carlo: E || x * (Delta x) ||^2 of x ~ N(0, I), and its standard error."""
    x = np.random.default_rng(seed).standard_normal((rows, len(delta)))
    drawn = np.square(x * (x @ delta.T)).sum(axis=1)
    return float(drawn.mean()), float(drawn.std(ddof=1) / np.sqrt(rows))


def central_differences(
    function: Callable[[np.ndarray], float], at: np.ndarray, step: float = 1e-6
) -> np.ndarray:
    """The gradient of `function`."""
    gradient = np.zeros_like(at)
    for place in np.ndindex(at.shape):
        moved = at.copy()
        moved[place] += step
        above = function(moved)
        moved[place] -= 2 * step
        gradient[place] = (above - function(moved)) / (2 * step)
    return gradient
