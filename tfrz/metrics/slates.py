"""Metrics of slates, from the relevance of their items in order of position.

Lists without a relevant candidate have the metric NaN and are left out of means. All functions
raise `InputError` unless the labels are one row.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tfrz.metrics.directions import better
from tfrz.shapes import require_shapes


def parse(name: str) -> tuple[str, int | None]:
    """The kind and the n in the name of a metric.

    Example:
      >>> parse("ndcg_at_10"), parse("map")
      (('ndcg', 10), ('map', None))
    """
    kind, _, n = name.partition("_at_")
    return kind, int(n) if n else None


def _row(labels: NDArray[np.float64]) -> NDArray[np.float64]:
    row: NDArray[np.float64] = np.asarray(labels, np.float64)
    require_shapes(locals(), row="slate")
    return row


@better("max", "ndcg")
def ndcg(labels: NDArray[np.float64], n: int | None = None) -> float:
    """NDCG at n of one slate: `sum_r (2^{y_r} - 1) / log2(r + 1)` divided by the best order's.

    Example:
      >>> round(ndcg(np.array([0, 1, 0, 1, 1]), 3), 4)
      0.2961
    """
    labels = _row(labels)
    discounts = 1.0 / np.log2(np.arange(2, len(labels) + 2))[:n]
    gains = 2.0**labels - 1.0
    best = (np.sort(gains)[::-1][:n] * discounts).sum()
    return float((gains[:n] * discounts).sum() / best) if best > 0 else float("nan")


@better("max", "map")
def average_precision(labels: NDArray[np.float64], n: int | None = None) -> float:
    """Mean precision at the positions of relevant items, with 0 beyond n.

    Example:
      >>> round(average_precision(np.array([0, 1, 0, 1, 1])), 4)
      0.5333
    """
    hits = _row(labels) > 0
    if not hits.any():
        return float("nan")
    precisions = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    return float((hits * precisions)[:n].sum() / hits.sum())


@better("max", "err")
def expected_reciprocal_rank(
    labels: NDArray[np.float64], n: int | None = None, max_grade: float = 4.0
) -> float:
    """ERR: `sum_r (1/r) R_r prod_{i<r} (1 - R_i)` with `R = (2^y - 1) / 2^max_grade`.

    Example:
      >>> expected_reciprocal_rank(np.array([0, 1]), max_grade=1)
      0.25

    Reference:
      Chapelle et al., CIKM 2009.
    """
    labels = _row(labels)
    if not (labels > 0).any():
        return float("nan")
    satisfied = (2.0 ** np.minimum(labels, max_grade) - 1.0) / 2.0**max_grade
    still = np.concatenate([[1.0], np.cumprod(1.0 - satisfied)[:-1]])
    return float((satisfied * still / np.arange(1, len(labels) + 1))[:n].sum())


def of_slate(name: str, labels: NDArray[np.float64], max_grade: float = 4.0) -> float:
    """The metric called `name` (`ndcg_at_10`, `map`, `err_at_10`) of one slate; NaN for none.

    Args:
      name: the kind, followed by `_at_n` for the first n items only.
      labels: relevance in the order of the slate, `[slate]`.
      max_grade: the highest possible grade, for ERR.
    """
    kind, n = parse(name)
    if kind == "err":
        return expected_reciprocal_rank(labels, n, max_grade)
    return ndcg(labels, n) if kind == "ndcg" else average_precision(labels, n)


@better("max", "rank_gain")
def rank_gain(labels: NDArray[np.float64], positions: NDArray[np.float64]) -> float:
    """How far relevant candidates moved up on average: place before minus place after.

    The paper reports a "rank-gain" without a definition.

    Args:
      labels: relevance of each row of the list, `[list]`.
      positions: row at each place, `[slate]`, -1 for an empty place.

    Example:
      >>> rank_gain(np.array([0, 0, 1]), np.array([2, 0, 1]))
      2.0
    """
    positions = np.asarray(positions)
    require_shapes(locals(), positions="slate")
    rows = positions[positions >= 0]
    relevant = _row(labels)[rows] > 0
    if not relevant.any():
        return float("nan")
    return float((rows - np.arange(len(rows)))[relevant].mean())
