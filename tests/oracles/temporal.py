"""NumPy float64 oracles of M3's encoders, gate and mixture, written from the specification."""

from __future__ import annotations

import numpy as np


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-x))


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def relu(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0.0)


def gru(z: np.ndarray, kernel: np.ndarray, recurrent: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """Reset after the matrix product; gates in the order update, reset, candidate."""
    units = recurrent.shape[0]
    h, out = np.zeros((len(z), units)), []
    for t in range(z.shape[1]):
        a, b = z[:, t] @ kernel + bias[0], h @ recurrent + bias[1]
        u = sigmoid(a[:, :units] + b[:, :units])
        r = sigmoid(a[:, units : 2 * units] + b[:, units : 2 * units])
        n = np.tanh(a[:, 2 * units :] + r * b[:, 2 * units :])
        h = u * h + (1 - u) * n
        out.append(h)
    return np.stack(out, axis=1)


def lstm(z: np.ndarray, kernel: np.ndarray, recurrent: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """Gates in the order input, forget, candidate, output."""
    units = recurrent.shape[0]
    h, c, out = np.zeros((len(z), units)), np.zeros((len(z), units)), []
    for t in range(z.shape[1]):
        a = z[:, t] @ kernel + h @ recurrent + bias
        i, f, g, o = (a[:, k * units : (k + 1) * units] for k in range(4))
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        out.append(h)
    return np.stack(out, axis=1)


def convolution(z: np.ndarray, K: np.ndarray, b: np.ndarray, dilation: int = 1) -> np.ndarray:
    """`relu(sum_j z_{t-j} K_j + b)`, zeros before the first event."""
    out = np.zeros((*z.shape[:2], K.shape[-1])) + b
    for t in range(z.shape[1]):
        for j in range(len(K)):
            if t - j * dilation >= 0:
                out[:, t] += z[:, t - j * dilation] @ K[j]
    return relu(out)


def attention(
    z: np.ndarray, Q: np.ndarray | None, K: np.ndarray | None, V: np.ndarray | None
) -> np.ndarray:
    """Causal, one head, no positions; None is the identity."""
    q, k, v = (z if m is None else z @ m for m in (Q, K, V))
    out = []
    for t in range(z.shape[1]):
        scores = np.einsum("bd,bid->bi", q[:, t], k[:, : t + 1]) / np.sqrt(q.shape[-1])
        out.append(np.einsum("bi,bid->bd", softmax(scores), v[:, : t + 1]))
    return np.stack(out, axis=1)


def caser(z: np.ndarray, weights: dict[str, np.ndarray], window: int) -> np.ndarray:
    """Horizontal and vertical convolutions over the last `window` events."""
    batch, steps, dim = z.shape
    out = []
    for t in range(steps):
        E = np.zeros((batch, window, dim))
        for back in range(min(window, t + 1)):
            E[:, window - 1 - back] = z[:, t - back]
        parts = []
        for h in range(1, window + 1):
            places = [
                relu(
                    np.einsum("bjd,jdf->bf", E[:, i : i + h], weights[f"K_{h}"]) + weights[f"b_{h}"]
                )
                for i in range(window - h + 1)
            ]
            parts.append(np.max(places, axis=0))
        parts.append(np.einsum("bld,lv->bdv", E, weights["vertical"]).reshape(batch, -1))
        out.append(relu(np.concatenate(parts, axis=1) @ weights["W"] + weights["b"]))
    return np.stack(out, axis=1)


def normalized(x: np.ndarray, scale: np.ndarray, shift: np.ndarray) -> np.ndarray:
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + 1e-6) * scale + shift
