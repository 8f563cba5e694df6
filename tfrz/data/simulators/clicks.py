"""Clicks with known probabilities: linear and bilinear effects of six categorical fields."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

FIELDS = {
    "user": 50,
    "item": 50,
    "genre": 30,
    "hour": 20,
    "country": 10,
    "device": 5,
}


class ClickSimulator:
    """Draws impressions and clicks.

    With one-hot fields `i` of category `c_i`:

        logit = sum_i a_i[c_i] + sum_{i<j, (i+j) mod 3 = 0} <u_ij[c_i], v_ij[c_j]>

    `a_i` is normal with deviation 0.5; `u` and `v` have four normal coordinates, scaled so that
    each product has deviation 0.6. Categories are drawn uniformly.

    Args:
      seed: Seed of the effects.

    Example:
      >>> world = ClickSimulator(seed=0)
      >>> rows = world.sample(1000, seed=1)
      >>> sorted(rows)[:3]
      ['click', 'country', 'device']
    """

    def __init__(self, seed: int = 0) -> None:
        rng = np.random.default_rng([seed, 2020])
        sizes = list(FIELDS.values())
        self._linear = [rng.normal(0, 0.5, n) for n in sizes]
        self.pairs = [
            (i, j) for i in range(len(sizes)) for j in range(i + 1, len(sizes)) if (i + j) % 3 == 0
        ]
        scale = (0.6 / 2.0) ** 0.5
        self._bilinear = {
            (i, j): (rng.normal(0, scale, (sizes[i], 4)), rng.normal(0, scale, (sizes[j], 4)))
            for i, j in self.pairs
        }

    def logits(self, categories: NDArray[Any]) -> NDArray[Any]:
        """Returns log-odds of a click, `[batch]`, for categories `[batch, 6]`."""
        total = sum(a[categories[:, i]] for i, a in enumerate(self._linear))
        for (i, j), (u, v) in self._bilinear.items():
            total = total + np.sum(u[categories[:, i]] * v[categories[:, j]], axis=1)
        return np.asarray(total)

    def sample(self, rows: int, seed: int) -> dict[str, NDArray[Any]]:
        """Samples categories `[rows]` of each field, `probability`, and `click` (0 or 1)."""
        rng = np.random.default_rng([seed, 13535])
        sizes = np.array(list(FIELDS.values()))
        categories = (rng.random((rows, len(sizes))) * sizes).astype(np.int64)
        probability = 1.0 / (1.0 + np.exp(-self.logits(categories)))
        columns = {name: categories[:, i] for i, name in enumerate(FIELDS)}
        columns["probability"] = probability
        columns["click"] = (rng.random(rows) < probability).astype(np.float32)
        return columns

    @staticmethod
    def bayes_log_loss(rows: dict[str, NDArray[Any]]) -> float:
        """Returns the expected log loss of the true probabilities, a lower bound for models."""
        p = rows["probability"]
        return float(np.mean(-p * np.log(p) - (1 - p) * np.log1p(-p)))
