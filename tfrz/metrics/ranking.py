"""Metrics of rankings: precision, recall, average precision and NDCG at n.

They are computed from a full ranking of the items that may be shown, not from a sample. An item
that is listed or relevant more than once counts once.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from tfrz.config import require
from tfrz.metrics.directions import better
from tfrz.shapes import require_shapes


def _hits(
    ranking: Sequence[object], relevant: Collection[object], n: int
) -> tuple[NDArray[Any], int]:
    """Where relevant items are found first among the first n, and how many items are relevant."""
    require(n >= 1, "n", f"must be at least 1, not {n}")
    left = set(relevant)
    count, hits = len(left), np.zeros(len(ranking[:n]))
    for place, item in enumerate(ranking[:n]):
        hits[place] = item in left
        left.discard(item)
    return hits, count


@better("max", "precision")
def precision_at(ranking: Sequence[object], relevant: Collection[object], n: int) -> float:
    """Share of the first n items that is relevant: hits / n.

    Example:
      >>> precision_at([7, 3, 9, 1, 5], {3, 5, 8}, 5)
      0.4
    """
    return float(_hits(ranking, relevant, n)[0].sum() / n)


@better("max", "recall")
def recall_at(ranking: Sequence[object], relevant: Collection[object], n: int) -> float:
    """Share of the relevant items among the first n: hits / |relevant|; NaN if there are none.

    Example:
      >>> round(recall_at([7, 3, 9, 1, 5], {3, 5, 8}, 5), 4)
      0.6667
    """
    hits, count = _hits(ranking, relevant, n)
    return float(hits.sum() / count) if count else float("nan")


@better("max", "map")
def average_precision_at(ranking: Sequence[object], relevant: Collection[object], n: int) -> float:
    """Mean precision at the hits: sum_k [hit at k] precision@k / min(|relevant|, n).

    Caser's own code divides by |relevant| and has no n; the two agree for one relevant item.

    Example:
      >>> round(average_precision_at([7, 3, 9, 1, 5], {3, 5, 8}, 5), 4)
      0.3
    """
    hits, count = _hits(ranking, relevant, n)
    if not count:
        return float("nan")
    precisions = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    return float((hits * precisions).sum() / min(count, n))


@better("max", "ndcg")
def ndcg_at(ranking: Sequence[object], relevant: Collection[object], n: int) -> float:
    """Discounted gain, sum_k [hit at k] / log2(k + 1), divided by the best possible one.

    Example:
      >>> round(ndcg_at(["a", "b"], {"b"}, 2), 4)
      0.6309
    """
    hits, count = _hits(ranking, relevant, n)
    if not count:
        return float("nan")
    discounts = 1.0 / np.log2(np.arange(2, n + 2))
    best = discounts[: min(count, n)].sum()
    return float((hits * discounts[: len(hits)]).sum() / best)


def at_rank(kind: str, ranks: NDArray[Any], n: int) -> NDArray[Any]:
    """A metric of rankings with one relevant item each, from the rank of this item.

    Args:
      kind: `map`, `precision`, `recall` or `ndcg`.
      ranks: from 1; 0 if the item is not in the ranking.
      n: number of items that count.

    Returns:
      float64, of the shape of `ranks`.

    Example:
      >>> print(at_rank("map", np.array([1, 2, 30, 0]), 20))
      [1.  0.5 0.  0. ]
    """
    ranks = np.asarray(ranks)
    hit = ((ranks >= 1) & (ranks <= n)).astype(np.float64)
    safe = np.maximum(ranks, 1)
    gains = {
        "map": hit / safe,
        "precision": hit / n,
        "recall": hit,
        "ndcg": hit / np.log2(safe + 1.0),
    }
    return np.asarray(gains[kind])


def parse(name: str) -> tuple[str, int]:
    """The kind and the n in the name of a metric.

    Example:
      >>> parse("recall_at_20")
      ('recall', 20)
    """
    kind, _, n = name.partition("_at_")
    return kind, int(n)


def rank_of(scores: tf.Tensor, ids: tf.Tensor) -> tf.Tensor:
    """The rank of one item in each row.

    Args:
      scores: `[batch, items]`, of the ids 1..items; -inf for what may not be shown.
      ids: `[batch]`.

    Returns:
      int64 `[batch]`: 1 + the number of items with a higher score, or an equal score and a lower id
      as in `tf.math.top_k`; 0 if the item may not be shown or is not a candidate.

    Raises:
      InputError: scores or ids of another shape.
    """
    require_shapes(locals(), scores="batch items", ids="batch")
    count = tf.shape(scores, out_type=tf.int64)[1]
    ids = tf.cast(ids, tf.int64)
    known = (ids >= 1) & (ids <= count)
    column = tf.clip_by_value(ids - 1, 0, count - 1)
    own = tf.gather(scores, column, batch_dims=1)[:, None]
    before = tf.range(count)[None, :] < column[:, None]
    ahead = (scores > own) | (tf.equal(scores, own) & before)
    rank = 1 + tf.reduce_sum(tf.cast(ahead, tf.int64), axis=1)
    shown = known & tf.math.is_finite(own[:, 0])
    return tf.where(shown, rank, tf.zeros_like(rank))
