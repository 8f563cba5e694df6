"""The share of a catalogue that is listed, and how evenly."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfrz.metrics.directions import better
from tfrz.shapes import require_shapes


def _row(counts: NDArray[Any]) -> NDArray[np.float64]:
    row: NDArray[np.float64] = np.asarray(counts, np.float64)
    require_shapes(locals(), row="items")
    return row


def exposures(listed: NDArray[Any], num_items: int) -> NDArray[np.int64]:
    """How often each item is listed.

    Args:
      listed: ids 1..num_items, any shape; other values (0 for an empty place) do not count.
      num_items: size of the catalogue.

    Returns:
      int64 `[num_items]`.
    """
    flat = np.asarray(listed).ravel()
    flat = flat[(flat >= 1) & (flat <= num_items)]
    return np.bincount(flat - 1, minlength=num_items)


@better("max", "coverage")
def coverage(counts: NDArray[Any]) -> float:
    """The share of the items that are listed at least once.

    Args:
      counts: how often each item of the catalogue is listed, `[num_items]`.

    Raises:
      InputError: counts of another shape.

    Example:
      >>> coverage(np.array([3, 0, 1, 0]))
      0.5
    """
    counts = _row(counts)
    return float(np.mean(counts > 0)) if len(counts) else float("nan")


@better("min", "gini")
def gini(counts: NDArray[Any]) -> float:
    """How unevenly the items are listed: 0 for equal counts, near 1 if one item has all.

    Formula: `sum_i (2 i - n - 1) x_i / (n sum_i x_i)` over counts x in rising order, i from 1.

    Args:
      counts: how often each item of the catalogue is listed, `[num_items]`.

    Raises:
      InputError: counts of another shape.

    Example:
      >>> gini(np.array([1, 1, 1, 1])), gini(np.array([0, 0, 0, 8]))
      (0.0, 0.75)
    """
    x = np.sort(_row(counts))
    total, n = x.sum(), len(x)
    if not total:
        return float("nan")
    return float(((2 * np.arange(1, n + 1) - n - 1) * x).sum() / (n * total))
