"""Long-range dependence of histories: how slowly the influence of past events fades.

For users with more than `L_max` events let `a_u` be the vector of the last item and `b_u` that of
the item L steps before. The trace of their cross-covariance, computed from inner products of
the same user minus those of different users, is

    D(L) = (M S - <A, B>) / (M (M - 1)),   S = sum_u <a_u, b_u>, A = sum_u a_u, B = sum_u b_u

over M users. Short-range dependence falls exponentially (log D over L is a straight line),
long-range dependence falls like a power (log D over log L is a straight line). A constant taste is
a floor, which the curve of shuffled histories shows.

Reference: M3 (arXiv 1902.08588) for the idea; the normalisation is that of the sample covariance.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tfrz.config import require
from tfrz.data.histories.examples import build_examples
from tfrz.data.histories.readers import InteractionReader
from tfrz.data.histories.spec import HistoryConfig
from tfrz.data.sources.reader import read_table
from tfrz.errors import InputError
from tfrz.files import atomic_write

LAGS = (1, 2, 5, 10, 20, 50, 100, 200)

_LEAST_USERS = 30


@dataclasses.dataclass(frozen=True)
class Dependence:
    """The dependence curve of a source.

    Attributes:
      users: Number of measured users, all with more events than the longest lag.
      learned_on: Number of other users, from which the item vectors are learned.
      lags: Lags in events.
      ordered: D at each lag.
      shuffled: D with every history in random order, the mean of several shuffles.
      standard_error: Standard error of a D that is zero, from shuffles of users.
    """

    users: int
    learned_on: int
    lags: tuple[int, ...]
    ordered: tuple[float, ...]
    shuffled: tuple[float, ...]
    standard_error: float

    @property
    def slope(self) -> float:
        """Slope of log D over log L above the shuffled floor; NaN for fewer than three lags."""
        above = np.array(self.ordered) - np.array(self.shuffled)
        seen = above > 2 * self.standard_error
        if seen.sum() < 3:
            return float("nan")
        return float(np.polyfit(np.log(np.array(self.lags)[seen]), np.log(above[seen]), 1)[0])


def cross_covariance_trace(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Computes D for one lag.

    Args:
      a: Vectors of the last items, `[users, dim]`.
      b: Vectors of the same users L steps before, `[users, dim]`.

    Returns:
      The trace of the sample cross-covariance; NaN for fewer than two users.

    Example:
      >>> a = np.array([[1, 0], [0, 1], [1, 1]])
      >>> cross_covariance_trace(a, np.array([[1, 1], [0, 2], [2, 0]]))
      0.5
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    users = len(a)
    if users < 2:
        return float("nan")
    same = float((a * b).sum())
    return float((users * same - a.sum(0) @ b.sum(0)) / (users * (users - 1)))


def lag_dependence(vectors: NDArray[Any], lags: Sequence[int]) -> NDArray[Any]:
    """Computes D at each lag.

    Args:
      vectors: Vectors of the newest events, the newest last, `[users, time, dim]`. All lags use
        the same users, because other users would have another curve.
      lags: Lags, each smaller than `time`.
    """
    last = vectors[:, -1]
    return np.array([cross_covariance_trace(last, vectors[:, -1 - lag]) for lag in lags])


def co_occurrence_vectors(
    histories: Sequence[NDArray[Any]], num_items: int, dim: int = 16, window: int = 5
) -> NDArray[Any]:
    """Computes unit vectors of items by a truncated SVD of positive mutual information.

    Args:
      histories: Arrays of item numbers, from 0.
      num_items: Number of items.
      dim: Width of the vectors.
      window: Maximum distance, in steps, of items that co-occur.

    Returns:
      Vectors `[num_items, dim]`; zeros for items that never co-occur.
    """
    import scipy.sparse
    import scipy.sparse.linalg

    first, second = [], []
    for items in histories:
        for step in range(1, min(window, len(items) - 1) + 1):
            first.append(items[:-step])
            second.append(items[step:])
    if not first:
        return np.zeros((num_items, dim))
    rows, columns = np.concatenate(first), np.concatenate(second)
    ones = np.ones(2 * len(rows))
    pairs = (np.concatenate([rows, columns]), np.concatenate([columns, rows]))
    counts = scipy.sparse.coo_matrix((ones, pairs), (num_items, num_items)).tocsr()
    totals = np.asarray(counts.sum(1)).ravel()
    present = counts.tocoo()
    expected = totals[present.row] * totals[present.col] / totals.sum()
    mutual = np.maximum(np.log(present.data / expected), 0.0)
    matrix = scipy.sparse.coo_matrix((mutual, (present.row, present.col)), counts.shape).tocsr()
    rank = min(dim, num_items - 1)
    start = np.full(num_items, num_items**-0.5)
    left, values, _ = scipy.sparse.linalg.svds(matrix, k=rank, v0=start)
    vectors = np.zeros((num_items, dim))
    vectors[:, :rank] = left * np.sqrt(np.maximum(values, 0.0))
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms > 1e-9)


def _item_numbers(reader: InteractionReader, max_corrupt_fraction: float) -> list[NDArray[Any]]:
    """Returns the items of each user in time order, as numbers from 0."""
    events, _ = read_table(reader, max_corrupt_fraction)
    column = events["item"].combine_chunks()
    column = pa.concat_arrays(column.chunks) if isinstance(column, pa.ChunkedArray) else column
    coded = column.dictionary_encode()
    position = events.schema.get_field_index("item")
    numbers = pa.array(coded.indices.to_numpy(zero_copy_only=False).astype("int64"))
    events = events.set_column(position, "item", numbers)
    config = HistoryConfig(length=int(events.num_rows), split="users")
    train = build_examples(events, reader.feature_spec(), config)["train"]
    histories = train["history"].combine_chunks()
    targets = train["target"].combine_chunks()
    return [
        np.array([*row, *last], np.int64)
        for row, last in zip(histories.to_pylist(), targets.to_pylist(), strict=True)
    ]


def measure_dependence(
    reader: InteractionReader,
    lags: Sequence[int] | None = None,
    dim: int = 16,
    seed: int = 0,
    max_corrupt_fraction: float = 0.001,
) -> Dependence:
    """Measures the long-range dependence of a source.

    Item vectors are learned from a random half of the users, the curve from the other half.

    Args:
      reader: Reader of interactions.
      lags: Lags to measure; by default those of 1, 2, 5, ..., 200 that enough users reach.
      dim: Width of the vectors.
      seed: Seed of the halves and the shuffles.
      max_corrupt_fraction: Tolerated share of corrupt lines.

    Raises:
      InputError: Too few users have enough events.
    """
    histories = _item_numbers(reader, max_corrupt_fraction)
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(histories))
    learning = [histories[i] for i in order[: len(order) // 2]]
    measured = [histories[i] for i in order[len(order) // 2 :]]

    def long_enough(lag: int) -> int:
        return sum(len(items) > lag for items in measured)

    if lags is None:
        lags = [lag for lag in LAGS if long_enough(lag) >= max(_LEAST_USERS, len(measured) // 5)]
    require(all(lag >= 1 for lag in lags), "lags", "must be at least 1")
    if not lags or long_enough(max(lags)) < 2:
        wanted = f"more than {max(lags)} events" if lags else "two events or more"
        raise InputError(
            f"{reader.name} has too few users with {wanted} to measure dependence: it needs "
            f"{_LEAST_USERS} among half of the users"
        )
    num_items = 1 + max(int(items.max()) for items in histories)
    vectors = co_occurrence_vectors(learning, num_items, dim)
    reach = max(lags) + 1
    cohort = [items for items in measured if len(items) >= reach]
    ordered = lag_dependence(vectors[np.stack([items[-reach:] for items in cohort])], lags)
    shuffles = [
        lag_dependence(
            vectors[np.stack([rng.permutation(items)[:reach] for items in cohort])], lags
        )
        for _ in range(5)
    ]
    last = vectors[[items[-1] for items in cohort]]
    none = [cross_covariance_trace(last, last[rng.permutation(len(last))]) for _ in range(50)]
    return Dependence(
        users=len(cohort),
        learned_on=len(learning),
        lags=tuple(int(lag) for lag in lags),
        ordered=tuple(map(float, ordered)),
        shuffled=tuple(map(float, np.mean(shuffles, axis=0))),
        standard_error=float(np.std(none)),
    )


def plot_dependence(found: Dependence, path: Path | str) -> None:
    """Plots D over L on logarithmic axes to a PNG file."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for values, label in ((found.ordered, "in order"), (found.shuffled, "histories shuffled")):
        curve = np.array(values)
        axes.plot(found.lags, np.where(curve > 0, curve, np.nan), marker="o", label=label)
    axes.axhline(2 * found.standard_error, linestyle=":", label="two standard errors of zero")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("lag L, events")
    axes.set_ylabel("D(L)")
    axes.set_title(f"long-range dependence, {found.users:,} users")
    axes.grid(alpha=0.3)
    axes.legend()
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=120)
    atomic_write(path, picture.getvalue())
