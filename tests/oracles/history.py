"""NumPy float64 oracles of pooled slices, their compression and the adapter; of 4-bit codes."""

from __future__ import annotations

import math

import numpy as np

from tests.oracles.temporal import softmax

Weights = dict[str, np.ndarray]


def pooled(
    weights: Weights, ids: np.ndarray, slices: np.ndarray, shares: np.ndarray, num_slices: int
) -> np.ndarray:
    """The weighted mean of each slice, one entry after the other."""
    table = weights["embeddings"]
    found = np.zeros((len(ids), num_slices, table.shape[1]))
    for row in range(len(ids)):
        for f in range(num_slices):
            total = 0.0
            for e in range(ids.shape[1]):
                if int(slices[row, e]) == f and int(ids[row, e]) != 0:
                    found[row, f] += shares[row, e] * table[int(ids[row, e])]
                    total += shares[row, e]
            if total:
                found[row, f] /= total
    return found


def _normalized(z: np.ndarray, gamma: np.ndarray, beta: np.ndarray) -> np.ndarray:
    centred = z - z.mean(-1, keepdims=True)
    return gamma * centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6) + beta


def _gelu(x: np.ndarray) -> np.ndarray:
    """`x Phi(x)`."""
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def _attention(weights: Weights, i: int, z: np.ndarray, num_heads: int) -> np.ndarray:
    """Of one sequence, `[length, width]`, one head after the other."""
    q, k, v = (z @ weights[f"W_{m}_{i}"] + weights[f"b_{m}_{i}"] for m in "QKV")
    size = max(1, z.shape[-1] // num_heads)
    parts = [slice(h * size, (h + 1) * size) for h in range(num_heads)]
    heads = [softmax(q[:, p] @ k[:, p].T / math.sqrt(size)) @ v[:, p] for p in parts]
    return np.concatenate(heads, axis=-1) @ weights[f"W_O_{i}"] + weights[f"b_O_{i}"]


def funnel(
    weights: Weights,
    x: np.ndarray,
    num_blocks: int = 2,
    layers_per_block: int = 1,
    num_heads: int = 4,
    stride: int = 2,
    attend_over: str = "dims",
) -> np.ndarray:
    """One example after the other, a pooling of the tokens after each block."""

    def normalized(kind: str, i: int, z: np.ndarray) -> np.ndarray:
        return _normalized(z, weights[f"gamma_{kind}_{i}"], weights[f"beta_{kind}_{i}"])

    rows = []
    for tokens in np.asarray(x, "float64"):
        for block in range(num_blocks):
            z = tokens.T if attend_over == "dims" else tokens
            for i in range(block * layers_per_block, (block + 1) * layers_per_block):
                z = z + _attention(weights, i, normalized("attention", i, z), num_heads)
                h = normalized("feed_forward", i, z) @ weights[f"W_1_{i}"] + weights[f"b_1_{i}"]
                z = z + _gelu(h) @ weights[f"W_2_{i}"] + weights[f"b_2_{i}"]
            tokens = z.T if attend_over == "dims" else z
            starts = range(0, len(tokens), stride)
            tokens = np.stack([tokens[s : s + stride].mean(axis=0) for s in starts])
        rows.append(tokens)
    return np.stack(rows)


def compression(weights: Weights, x: np.ndarray, compress: str = "tokens") -> np.ndarray:
    """`(Xᵀ W)ᵀ` or `X W`."""
    if compress == "tokens":
        return np.stack([(row.T @ weights["W"]).T for row in x])
    return np.stack([row @ weights["W"] for row in x])


def adapter(
    weights: Weights, vectors: np.ndarray, missing: np.ndarray, kind: str = "linear"
) -> np.ndarray:
    """A projection of the vectors side by side, or the stand-in."""
    rows = []
    for x, absent in zip(vectors, missing, strict=True):
        if absent:
            rows.append(weights["missing"])
            continue
        if kind == "gate":
            x = x / (1 + np.exp(-(x @ weights["G"] + weights["g"])))
        rows.append(np.ravel(x) @ weights["W"] + weights["b"])
    return np.stack(rows)


def codes(vector: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """q and what it stands for, of one vector."""
    low, scale = vector.min(), (vector.max() - vector.min()) / 15
    q = np.rint((vector - low) / scale) if scale else np.zeros(len(vector))
    return q.astype(int), low + scale * q
