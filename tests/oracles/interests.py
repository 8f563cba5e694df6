"""NumPy float64 oracles of multi-interest towers, their loss and density weighting."""

from __future__ import annotations

import numpy as np

from tests.oracles.temporal import softmax

Weights = dict[str, np.ndarray]


def scores(users: np.ndarray, items: np.ndarray) -> np.ndarray:
    """The best head of `[batch, heads, dim]` for each of `[items, dim]`, one pair at a time."""
    return np.array([[max(head @ item for head in user) for item in items] for user in users])


def _softmax_over(mask: np.ndarray | None, logits: np.ndarray) -> np.ndarray:
    """Over the last axis of `[queries, time]`; no real time at all gives zeros."""
    if mask is None:
        return softmax(logits)
    shares = np.zeros(logits.shape)
    if mask.any():
        shares[:, mask] = softmax(logits[:, mask])
    return shares


def _per_row(mask: np.ndarray | None, batch: int) -> list[np.ndarray | None]:
    return [None] * batch if mask is None else [np.asarray(row, bool) for row in mask]


def _attend(
    queries: np.ndarray,
    keys: np.ndarray,
    values: np.ndarray,
    scale: float,
    mask: np.ndarray | None,
) -> np.ndarray:
    """`softmax(scale queries keysᵀ) values` of `[batch, queries, dim]` and `[batch, time, dim]`."""
    return np.stack(
        [
            _softmax_over(m, scale * q @ k.T) @ v
            for q, k, v, m in zip(queries, keys, values, _per_row(mask, len(keys)), strict=True)
        ]
    )


def attention(weights: Weights, y: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
    """`U = softmax(c q yᵀ) y`."""
    y, q = np.asarray(y, "float64"), weights["q"]
    return _attend(np.broadcast_to(q, (len(y), *q.shape)), y, y, float(weights["c"]), mask)


def shallow_context(weights: Weights, x: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
    """`y = softmax(c x xᵀ) x`."""
    x = np.asarray(x, "float64")
    return _attend(x, x, x, float(weights["c"]), mask)


def shallow(weights: Weights, x: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
    """Unprojected self-attention, then the query attention, both with one c."""
    return attention(weights, shallow_context(weights, x, mask), mask)


def sinusoids(length: int, dim: int) -> np.ndarray:
    """Fixed codes, the last position that of 0."""
    codes = np.zeros((length, dim))
    for place in range(length):
        back = length - 1 - place
        for column in range(dim):
            angle = back / 10000 ** (2 * (column // 2) / dim)
            codes[place, column] = np.cos(angle) if column % 2 else np.sin(angle)
    return codes


def deep_context(
    weights: Weights,
    x: np.ndarray,
    mask: np.ndarray | None = None,
    num_layers: int = 1,
    num_heads: int = 1,
    positions: bool = False,
) -> np.ndarray:
    """A dense layer, then residual layers of multi-head self-attention behind an ELU."""
    x = np.asarray(x, "float64") @ weights["W"] + weights["b"]
    if positions:
        x = x + sinusoids(*x.shape[1:])
    width = x.shape[-1] // num_heads
    for layer in range(num_layers):
        q, k, v = (x @ weights[f"W_{m}_{layer}"] + weights[f"b_{m}_{layer}"] for m in "QKV")
        heads = []
        for head in range(num_heads):
            part = slice(head * width, (head + 1) * width)
            heads.append(
                _attend(q[..., part], k[..., part], v[..., part], 1 / np.sqrt(width), mask)
            )
        out = np.concatenate(heads, axis=-1) @ weights[f"W_O_{layer}"] + weights[f"b_O_{layer}"]
        x = x + np.where(out > 0, out, np.expm1(np.minimum(out, 0.0)))
    return x


def deep(
    weights: Weights,
    x: np.ndarray,
    mask: np.ndarray | None = None,
    num_layers: int = 1,
    num_heads: int = 1,
    positions: bool = False,
) -> np.ndarray:
    """The residual layers, then the query attention."""
    return attention(
        weights, deep_context(weights, x, mask, num_layers, num_heads, positions), mask
    )


def candidate_softmax(
    scores: np.ndarray,
    targets: np.ndarray,
    candidates: np.ndarray,
    log_q: np.ndarray | float = 0.0,
    allowed: np.ndarray | None = None,
) -> np.ndarray:
    """Each row's own column against those of other items that may be negatives."""
    logits = np.asarray(scores, "float64") - log_q
    losses = []
    for row, target in enumerate(targets):
        kept = [
            j
            for j, candidate in enumerate(candidates)
            if j == row or (candidate != target and (allowed is None or allowed[j]))
        ]
        top = logits[row, kept].max()
        total = top + np.log(np.exp(logits[row, kept] - top).sum())
        losses.append(total - logits[row, row])
    return np.array(losses)


def densities(embeddings: np.ndarray, weights: np.ndarray, sigma: float) -> np.ndarray:
    """`sum_j w_j N(e_i; e_j, sigma^2 I)`."""
    e = np.asarray(embeddings, "float64")
    squares = ((e[:, None] - e[None]) ** 2).sum(-1)
    norm = (2 * np.pi * sigma**2) ** (e.shape[1] / 2)
    return np.exp(-squares / (2 * sigma**2)) @ weights / norm


def updated_weights(
    embeddings: np.ndarray,
    weights: np.ndarray,
    sigma: float = 0.5,
    momentum: float = 0.8,
    floor: float = 1e-4,
) -> np.ndarray:
    """One step of iterative density weighting with the deterministic density."""
    inverse = 1 / (densities(embeddings, weights, sigma) + floor)
    return momentum * weights + (1 - momentum) * inverse / inverse.sum()
