"""The index of items from which recommendations are read.

Each vector of a user is a query. The lists of all queries are merged by the best score, items that
the user has seen are removed, and the first k are the answer. With the exact index the answer is
exact, because every list has at least k items more than can be removed.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from tfrz.config import check_range, require
from tfrz.errors import InputError
from tfrz.operations import scann_problem

logger = logging.getLogger(__name__)

# The score of an empty place, where fewer than k items may be shown.
NOTHING = -1e9
# ScaNN's compressed codes have 16 centres.
_SCANN_LEAST = 16


@dataclasses.dataclass(frozen=True)
class IndexConfig:
    """How items are found; for models that recommend from an index.

    Attributes:
      kind: brute_force (exact), or scann (approximate; the server needs ScaNN's operations; where
        it does not load, brute_force takes its place).
      num_leaves: partitions of the space; null for the square root of the number of items.
      leaves_to_search: partitions that a query searches; null for a tenth of them.
      dimensions_per_block: dimensions in one code of the compressed vectors.
      reorder: candidates whose exact scores are computed, as a multiple of the items in an answer.
      min_recall: share of the exact answer that the index must find; the pipeline refuses it
        otherwise.
      check_queries: number of requests of the evaluation set for this check.
    """

    kind: Literal["brute_force", "scann"] = "brute_force"
    num_leaves: int | None = None
    leaves_to_search: int | None = None
    dimensions_per_block: int = 2
    reorder: int = 4
    min_recall: float = 0.9
    check_queries: int = 1000

    def __post_init__(self) -> None:
        names = ("num_leaves", "leaves_to_search", "dimensions_per_block", "reorder")
        check_range(self, "export.index", *names, "check_queries", at_least=1)
        check_range(self, "export.index", "min_recall", at_least=0, at_most=1)

    def leaves(self, items: int) -> tuple[int, int]:
        """Partitions, and partitions that a query searches, for a number of items."""
        leaves = min(self.num_leaves or max(round(items**0.5), 1), items)
        return leaves, min(self.leaves_to_search or max(leaves // 10, 1), leaves)


@functools.cache
def usable(config: IndexConfig) -> IndexConfig:
    """The settings that hold here: brute force, with a line in the log, if ScaNN does not load."""
    problem = scann_problem() if config.kind == "scann" else None
    if problem is None:
        return config
    logger.warning("%s: the index is brute_force, exact and slower", problem)
    return dataclasses.replace(config, kind="brute_force")


# The operations that a server needs for each kind of index, and where to get them.
OPS_OF_KIND: dict[str, str] = {
    "scann": (
        "ScaNN's operations (namespace Scann, ops ScannSearchBatched and "
        "ScannSearcherCreate...): the stock TF Serving binary has none of them. Use the image "
        "google/tf-serving-scann, or link //scann/... into the server as described in "
        "google-research/scann/tf_serving; `pip install scann==1.3.0` for this package's server"
    )
}


def check_vectors(items: Sequence[bytes], vectors: NDArray[Any], k: int) -> None:
    """Refuses vectors that cannot be indexed.

    Raises:
      InputError: an item's vector is not finite, or k is above the size of the catalogue.
    """
    wrong = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if len(wrong):
        name = items[wrong[0]].decode("utf-8", "backslashreplace")
        more = f", and those of {len(wrong) - 1} others are not" if len(wrong) > 1 else ""
        raise InputError(f"the vector of item {name!r} is not finite{more}: the index is not built")
    if k > len(items):
        raise InputError(f"export.top_k is {k}, the catalogue has {len(items)} items: set it lower")


def _merged(
    rows: tf.Tensor, scores: tf.Tensor, seen: tf.Tensor, k: int
) -> tuple[tf.Tensor, tf.Tensor]:
    """The k best of lists of rows: each row once with its best score, none that was seen.

    Args:
      rows: int64 `[batch, n]`, negative for none.
      scores: `[batch, n]`.
      seen: int64 `[batch, any]`, negative for none.
      k: how many.

    Returns:
      Rows `[batch, k]`, -1 for none, and their scores.
    """
    # An approximate search fills empty places with row 0 and NaN.
    found = tf.math.is_finite(scores) & (rows >= 0)
    rows = tf.where(found, rows, tf.constant(-1, tf.int64))
    scores = tf.where(found, scores, tf.constant(NOTHING, scores.dtype))
    short = tf.maximum(k - tf.shape(rows)[1], 0)
    rows = tf.pad(rows, [[0, 0], [0, short]], constant_values=-1)
    scores = tf.pad(scores, [[0, 0], [0, short]], constant_values=NOTHING)
    order = tf.argsort(scores, axis=1, direction="DESCENDING", stable=True)
    rows, scores = (tf.gather(v, order, batch_dims=1) for v in (rows, scores))
    order = tf.argsort(rows, axis=1, stable=True)
    rows, scores = (tf.gather(v, order, batch_dims=1) for v in (rows, scores))
    again = tf.concat([tf.zeros_like(rows[:, :1], tf.bool), rows[:, 1:] == rows[:, :-1]], axis=1)
    seen = tf.sort(seen, axis=1)
    place = tf.searchsorted(seen, rows)
    padded = tf.pad(seen, [[0, 0], [0, 1]], constant_values=-2)
    known = tf.equal(tf.gather(padded, tf.cast(place, tf.int64), batch_dims=1), rows)
    out = again | known | (rows < 0)
    scores = tf.where(out, tf.constant(NOTHING, scores.dtype), scores)
    # Rows are ascending: the lower row comes first among equal scores.
    best, columns = tf.math.top_k(scores, k)
    listed = tf.gather(rows, columns, batch_dims=1)
    nothing = best <= NOTHING
    return tf.where(nothing, tf.constant(-1, tf.int64), listed), best


class RecommendationIndex(tf.Module):
    """Rows of a catalogue by inner product, all of them compared or found by ScaNN.

    Args:
      items: raw ids; among equal scores the first one is listed first.
      vectors: float32 `[items, dim]`.
      config: the settings.
      k: number of items in an answer.

    Raises:
      InputError: see `check_vectors`.
      ConfigError: there are too few items for ScaNN.

    Example:
      >>> index = RecommendationIndex([b"a", b"b", b"c"], np.eye(3, dtype=np.float32)[:, :2],
      ...                             IndexConfig(), k=2)
      >>> rows, scores = index.search(tf.constant([[[2.0, 0.0], [0.0, 1.0]]]))
      >>> print(rows.numpy(), scores.numpy())
      [[0 1]] [[2. 1.]]
    """

    def __init__(
        self, items: Sequence[bytes], vectors: NDArray[Any], config: IndexConfig, k: int
    ) -> None:
        super().__init__()
        vectors = np.asarray(vectors, np.float32)
        check_vectors(items, vectors, k)
        config = usable(config)
        self.k, self.count, self.kind = k, len(items), config.kind
        self._search = self._searcher(vectors, config)
        self._terms = tf.Variable(list(items), trainable=False, dtype=tf.string)
        rows = tf.range(len(items), dtype=tf.int64)
        self._rows = tf.lookup.StaticHashTable(
            tf.lookup.KeyValueTensorInitializer(tf.constant(list(items)), rows), -1
        )

    def _searcher(
        self, vectors: NDArray[Any], config: IndexConfig
    ) -> Callable[[tf.Tensor, tf.Tensor], tuple[tf.Tensor, tf.Tensor]]:
        """A function from queries `[queries, dim]` and k to scores and rows, `[queries, any]`."""
        if config.kind == "brute_force":
            self._vectors = tf.Variable(vectors, trainable=False)

            def compare(queries: tf.Tensor, k: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
                scores = tf.matmul(queries, self._vectors, transpose_b=True)
                best: tuple[tf.Tensor, tf.Tensor] = tf.math.top_k(scores, k)
                return best

            return compare
        require(
            len(vectors) >= _SCANN_LEAST,
            "export.index.kind",
            f"scann needs {_SCANN_LEAST} items, the catalogue has {len(vectors)}: use brute_force",
        )
        from scann import scann_ops

        leaves, searched = config.leaves(len(vectors))
        # Not the layer of TFRS: it re-orders a fixed number of candidates, but users who have seen
        # many items need more.
        builder = scann_ops.builder(vectors, self.k, "dot_product")
        builder = builder.tree(num_leaves=leaves, num_leaves_to_search=searched)
        builder = builder.score_ah(config.dimensions_per_block)
        builder = builder.reorder(min(config.reorder * self.k, len(vectors)))
        # Searchers with equal names would be shared.
        built = builder.build(shared_name=f"tfrz/{uuid.uuid4()}")
        self._layer = built.serialize_to_module()

        def search(queries: tf.Tensor, k: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            searcher = scann_ops.searcher_from_module(self._layer)
            found = searcher.search_batched_parallel(
                queries,
                final_num_neighbors=k,
                pre_reorder_num_neighbors=tf.minimum(config.reorder * k, self.count),
            )
            return found.distances, found.indices

        return search

    def rows_of(self, items: tf.Tensor) -> tf.Tensor:
        """The row of each raw id, -1 for those that are not in the catalogue."""
        return self._rows.lookup(items)

    def search(
        self, users: tf.Tensor, seen: tf.Tensor | None = None
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """The best k rows for each user.

        Args:
          users: `[batch, interests, dim]`.
          seen: rows to leave out, int64 `[batch, any]`, -1 for none.

        Returns:
          Rows int64 `[batch, k]`, the best first, -1 where there are fewer; scores float32 alike,
          `NOTHING` there.
        """
        shape = tf.shape(users)
        if seen is None:
            seen = tf.fill([shape[0], 1], tf.constant(-1, tf.int64))
        deep = tf.minimum(self.k + tf.shape(seen)[1], self.count)
        queries = tf.reshape(users, [-1, users.shape[-1]])
        scores, rows = self._search(queries, deep)
        together = tf.stack([shape[0], -1])
        return _merged(
            tf.reshape(tf.cast(rows, tf.int64), together),
            tf.reshape(scores, together),
            seen,
            self.k,
        )

    def recommend(self, users: tf.Tensor, seen: tf.Tensor | None = None) -> dict[str, tf.Tensor]:
        """`item_ids` string and `scores` float32 `[batch, k]`.

        Args:
          users: `[batch, interests, dim]`.
          seen: raw ids to leave out, string `[batch, any]`; "" for none.
        """
        rows, scores = self.search(users, None if seen is None else self.rows_of(seen))
        known = tf.gather(self._terms, tf.maximum(rows, 0))
        return {"item_ids": tf.where(rows < 0, "", known), "scores": scores}


def recommending(
    encode: Callable[..., Mapping[str, tf.Tensor]],
    index: RecommendationIndex,
    drop_seen: bool,
) -> Callable[..., dict[str, tf.Tensor]]:
    """A function from the inputs of `encode`, which returns `embedding` and `seen`, to answers."""

    def recommended(*args: Any, **kwargs: Any) -> dict[str, tf.Tensor]:
        encoded = encode(*args, **kwargs)
        return index.recommend(encoded["embedding"], encoded["seen"] if drop_seen else None)

    return recommended
