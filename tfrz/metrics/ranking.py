"""Metrics of rankings: precision, recall, average precision and NDCG at n.

All are of a full ranking of the items that may be shown, never of a sample of them.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import tensorflow as tf


def _hits(ranking: Sequence[object], relevant: Collection[object], n: int) -> np.ndarray:
    return np.array([item in relevant for item in ranking[:n]], np.float64)


def precision_at(ranking: Sequence[object], relevant: Collection[object], n: int) -> float:
    """Share of the first n that is relevant: hits / n.

    Example:
      >>> precision_at([7, 3, 9, 1, 5], {3, 5, 8}, 5)
      0.4
    """
    return float(_hits(ranking, relevant, n).sum() / n)


def recall_at(ranking: Sequence[object], relevant: Collection[object], n: int) -> float:
    """Share of the relevant that is among the first n: hits / |relevant|; NaN if none is.

    Example:
      >>> round(recall_at([7, 3, 9, 1, 5], {3, 5, 8}, 5), 4)
      0.6667
    """
    found = _hits(ranking, relevant, n).sum()
    return float(found / len(relevant)) if relevant else float("nan")


def average_precision_at(ranking: Sequence[object], relevant: Collection[object], n: int) -> float:
    """Mean precision at the places of the hits: sum_k [hit at k] precision@k / min(|relevant|, n).

    Caser's own code divides by |relevant| and has no n; the two agree for one relevant item.

    Example:
      >>> round(average_precision_at([7, 3, 9, 1, 5], {3, 5, 8}, 5), 4)
      0.3
    """
    hits = _hits(ranking, relevant, n)
    if not relevant:
        return float("nan")
    precisions = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    return float((hits * precisions).sum() / min(len(relevant), n))


def ndcg_at(ranking: Sequence[object], relevant: Collection[object], n: int) -> float:
    """Discounted gain over the best possible: sum_k [hit at k] / log2(k + 1), normalised.

    Example:
      >>> round(ndcg_at(["a", "b"], {"b"}, 2), 4)
      0.6309
    """
    if not relevant:
        return float("nan")
    hits = _hits(ranking, relevant, n)
    discounts = 1.0 / np.log2(np.arange(2, n + 2))
    best = discounts[: min(len(relevant), n)].sum()
    return float((hits * discounts[: len(hits)]).sum() / best)


def at_rank(kind: str, ranks: np.ndarray, n: int) -> np.ndarray:
    """The metric of rankings with one relevant item each, from its rank.

    Args:
      kind: `map`, `precision`, `recall` or `ndcg`.
      ranks: from 1; 0 where the item is not in the ranking at all.
      n: cut.

    Returns:
      float64, as `ranks`.

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
    return gains[kind]


def parse(name: str) -> tuple[str, int]:
    """Kind and cut of a metric's name.

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
      int64 `[batch]`: 1 + items that score higher, or as high with a lower id, as `tf.math.top_k`
      breaks ties; 0 where the item may not be shown or is none of the candidates.
    """
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
