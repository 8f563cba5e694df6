"""Lists whose clicks depend on the other documents: a click model, and simulated lists.

The click model goes through a list from the top. An observed, relevant document is clicked unless
it is near a clicked document (diverse), only if it is near one (similar), or always (independent,
the control without interaction).
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tfrz.config import require

KINDS = ("diverse", "similar", "independent")
NUM_FEATURES = 16
_CENTRES = 5
_THRESHOLDS = (-0.6, 0.0, 0.5, 1.1)


def _distances(features: NDArray[Any]) -> NDArray[Any]:
    """Returns Euclidean distances, `[lists, length, length]`."""
    gaps = features[:, :, None, :] - features[:, None, :, :]
    return np.sqrt((gaps**2).sum(-1))


def _quantiles(distances: NDArray[Any], valid: NDArray[Any], quantile: float) -> NDArray[Any]:
    """Returns the quantile of the pairwise distances of each list; 0 without a pair."""
    bounds, counts = np.zeros(len(distances)), valid.sum(1)
    for count in np.unique(counts[counts >= 2]):
        rows = np.flatnonzero(counts == count)
        places = np.argsort(~valid[rows], axis=1, kind="stable")[:, :count]
        first, second = np.triu_indices(count, 1)
        pairs = distances[rows[:, None], places[:, first], places[:, second]]
        bounds[rows] = np.quantile(pairs, quantile, axis=1)
    return bounds


@dataclasses.dataclass(frozen=True)
class ClickModel:
    """Simulates clicks on lists of graded documents.

    Position r, from 1, is observed with probability `r^-eta`. Observed documents with a grade of at
    least `threshold` are candidates; `tau` is the `quantile` of the distances of the list's pairs.

    Attributes:
      kind: diverse (not within tau of a clicked document), similar (only within tau of one, the
        first candidate always) or independent (every candidate).
      eta: Decay of observation; with 0 everything is observed, and clicks are deterministic.
      threshold: Minimum grade of documents that can be clicked.
      quantile: Quantile of the pairwise distances below which documents are near.

    Reference:
      Seq2Slate (arXiv 1810.02019); diverse clicks as in allRank's `DiverseClicksModel`, similar
      clicks reconstructed from memory.
    """

    kind: Literal["diverse", "similar", "independent"] = "diverse"
    eta: float = 0.0
    threshold: float = 2.0
    quantile: float = 0.5

    def __post_init__(self) -> None:
        require(self.kind in KINDS, "clicks.kind", f"must be one of {', '.join(KINDS)}")
        require(self.eta >= 0, "clicks.eta", "must be at least 0")
        require(0 <= self.quantile <= 1, "clicks.quantile", "must be 0 to 1")

    def click(
        self,
        features: NDArray[Any],
        grades: NDArray[Any],
        seed: int = 0,
        valid: NDArray[Any] | None = None,
        order: NDArray[Any] | None = None,
        chances: NDArray[Any] | None = None,
    ) -> NDArray[Any]:
        """Returns the documents that are clicked.

        Args:
          features: Features `[lists, length, dim]`, of comparable scales.
          grades: Grades `[lists, length]`.
          seed: Seed of the observations.
          valid: Mask, boolean `[lists, length]`; by default all are valid.
          order: Rows in the order of display, `[lists, length]`, -1 for empty positions; by default
            the order of the lists.
          chances: Uniform draws, one per position, to compare with `r^-eta`; by default drawn with
            `seed`.

        Returns:
          Clicks, boolean `[lists, length]`, in the order of the inputs.

        Example:
          >>> features = np.array([[[0.0], [0.1], [5.0]]])
          >>> ClickModel().click(features, np.array([[3, 3, 3]])).astype(int).tolist()
          [[1, 0, 1]]
        """
        lists, length = grades.shape
        valid = np.ones((lists, length), bool) if valid is None else valid
        distances = _distances(np.asarray(features, np.float64))
        tau = _quantiles(distances, valid, self.quantile)[:, None]
        if order is None:
            order = np.broadcast_to(np.arange(length), grades.shape)
        if chances is None:
            chances = np.random.default_rng([seed, 1810]).random((lists, order.shape[1]))
        clicked, every = np.zeros((lists, length), bool), np.arange(lists)
        for place in range(order.shape[1]):
            row = order[:, place]
            shown, row = row >= 0, np.maximum(row, 0)
            candidate = shown & valid[every, row] & (grades[every, row] >= self.threshold)
            candidate &= chances[:, place] <= (place + 1.0) ** -self.eta
            near = ((distances[every, row] <= tau) & clicked).any(1)
            if self.kind == "diverse":
                candidate &= ~near
            elif self.kind == "similar":
                candidate &= near | ~clicked.any(1)
            clicked[every, row] |= candidate
        return clicked


class SlateSimulator:
    """Simulates lists of graded documents in the order of a noisy base ranker.

    Each list has five centres ~ N(0, I) in 16 dimensions; a document is one of them + 0.35 N(0, I).
    With one `w ~ N(0, I) / 4` for all lists, `s = x.w + 0.3 N(0, 1)`; the grade is the number of
    thresholds -0.6, 0, 0.5, 1.1 below s; the base ranker sorts by s + N(0, 1).

    Args:
      seed: Seed of `w`.

    Example:
      >>> drawn = SlateSimulator(seed=0).sample(lists=2, length=10, seed=1)
      >>> drawn["features"].shape, drawn["grade"].shape
      ((2, 10, 16), (2, 10))
    """

    def __init__(self, seed: int = 0) -> None:
        self.w = np.random.default_rng([seed, 2019]).normal(size=NUM_FEATURES) / 4.0

    def sample(self, lists: int, length: int, seed: int) -> dict[str, NDArray[Any]]:
        """Samples `features` float64 `[lists, length, 16]` and `grade` int64 `[lists, length]`."""
        rng = np.random.default_rng([seed, 2018])
        centres = rng.normal(size=(lists, _CENTRES, NUM_FEATURES))
        chosen = rng.integers(0, _CENTRES, (lists, length))
        features = np.take_along_axis(centres, chosen[:, :, None], axis=1)
        features = features + 0.35 * rng.normal(size=features.shape)
        score = features @ self.w + 0.3 * rng.normal(size=(lists, length))
        grade = (score[:, :, None] > np.array(_THRESHOLDS)).sum(-1)
        order = np.argsort(-(score + rng.normal(size=score.shape)), axis=1, kind="stable")
        return {
            "features": np.take_along_axis(features, order[:, :, None], axis=1),
            "grade": np.take_along_axis(grade, order, axis=1),
        }
