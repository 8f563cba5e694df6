"""The join of examples with the stored embeddings of their users."""

from __future__ import annotations

import dataclasses
import datetime
import logging
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tfrz.data.columns import one_each, whole
from tfrz.data.spec import USER_EMBEDDING, USER_EMBEDDING_VERSION
from tfrz.errors import InputError

logger = logging.getLogger(__name__)

# An Arrow array holds at most 2 GiB, and an embedding may take ten thousand bytes.
_ROWS_AT_ONCE = 16_384


class Embeddings(Protocol):
    """A store with one embedding per user; it can be pickled."""

    @property
    def version(self) -> str:
        """Version of the model that produced the embeddings."""

    @property
    def generated_at(self) -> int:
        """Unix seconds; the embeddings contain no event at or after this time."""

    @property
    def num_vectors(self) -> int:
        """Number of vectors per user."""

    @property
    def dim(self) -> int:
        """Width of each vector."""

    def packed(self, users: Sequence[bytes]) -> list[bytes | None]:
        """Returns the packed vectors of each user; None for users without an embedding."""

    def fingerprint(self) -> str:
        """Returns a string that changes when the embeddings change."""


@dataclasses.dataclass(frozen=True)
class Found:
    """Counts of a join; counts of two joins can be added.

    Attributes:
      examples: Number of examples.
      known: Number of examples whose user has an embedding.
      used: Number of these whose embedding is older than the request.
      user: One of the users that were looked up; b"" if no example has a user.
    """

    examples: int = 0
    known: int = 0
    used: int = 0
    user: bytes = b""

    def __add__(self, other: Found) -> Found:
        return Found(
            self.examples + other.examples,
            self.known + other.known,
            self.used + other.used,
            self.user or other.user,
        )


class EmbeddingJoin:
    """Adds to each example the embedding of its user and the version of the embeddings.

    If the time of the request is known, embeddings generated after it are left out, because they
    may contain the answer.

    Args:
      embeddings: Store of the embeddings.
      place: Location of the store, for messages.
      user: Column of the user keys, lists of strings or of whole numbers.
      time: Column of the request times; None if there is none.
    """

    def __init__(
        self, embeddings: Embeddings, place: str, user: str, time: str | None = None
    ) -> None:
        self.embeddings, self.place = embeddings, place
        self.user, self.time = user, time

    def __call__(self, table: pa.Table) -> tuple[pa.Table, Found]:
        """Returns the examples with two more columns, and the counts of the join."""
        parts, found = [], Found()
        for start in range(0, max(table.num_rows, 1), _ROWS_AT_ONCE):
            part, count = self._joined(table.slice(start, _ROWS_AT_ONCE))
            parts.append(part)
            found += count
        return pa.concat_tables(parts), found

    def _joined(self, table: pa.Table) -> tuple[pa.Table, Found]:
        users = _first(table[self.user])
        coded = users.cast(pa.string() if pa.types.is_integer(users.type) else users.type)
        coded = coded.cast(pa.binary()).dictionary_encode()
        keys = coded.dictionary.to_pylist()
        # Look up each user once, however many examples they have.
        vectors = pa.array(self.embeddings.packed(keys), pa.binary()).take(coded.indices)
        known = int(pc.sum(vectors.is_valid()).as_py() or 0)
        if self.time is not None:
            past = pc.less_equal(self.embeddings.generated_at, _first(table[self.time]))
            vectors = pc.if_else(past, vectors, pa.scalar(None, pa.binary()))
        used = vectors.is_valid()
        version = pa.scalar(self.embeddings.version.encode(), pa.binary())
        versions = pc.if_else(used, version, pa.scalar(None, pa.binary()))
        table = table.append_column(USER_EMBEDDING, one_each(vectors, "string"))
        table = table.append_column(USER_EMBEDDING_VERSION, one_each(versions, "string"))
        user = keys[0] if keys else b""
        return table, Found(table.num_rows, known, int(pc.sum(used).as_py() or 0), user)

    def check(self, found: Found) -> None:
        """Logs the share of examples with an embedding.

        Raises:
          InputError: No example has one: the user keys differ, or all requests are older.
        """
        logger.info(
            "long history: %s of %s examples (%.1f %%) found an embedding of version %s in %s",
            f"{found.used:,}",
            f"{found.examples:,}",
            100.0 * found.used / max(found.examples, 1),
            self.embeddings.version,
            self.place,
        )
        if found.used or not found.examples:
            return
        if found.known:
            since = datetime.datetime.fromtimestamp(self.embeddings.generated_at, datetime.UTC)
            raise InputError(
                f"every request is older than the embeddings in {self.place}, generated at "
                f"{self.embeddings.generated_at} ({since:%Y-%m-%d %H:%M} UTC): generate them with "
                "an earlier as-of time"
            )
        looked_for = found.user.decode("utf-8", "backslashreplace")
        raise InputError(
            f"{self.place} has no embedding for any user of the {found.examples:,} examples: "
            f"{looked_for!r} was looked up, from the column {self.user!r}; the user keys must "
            "equal those of the export"
        )


def joined(join: EmbeddingJoin | None, parts: Sequence[pa.Table]) -> list[pa.Table]:
    """Joins the parts of a data set with the embeddings of their users.

    Without a join, returns the parts unchanged.

    Raises:
      InputError: No example has an embedding, see `EmbeddingJoin.check`.
    """
    if join is None:
        return list(parts)
    tables, found = [], Found()
    for part in parts:
        table, count = join(part)
        tables.append(table)
        found += count
    join.check(found)
    return tables


def _first(column: pa.ChunkedArray) -> pa.Array:
    """Returns the first value of each row of lists; null for empty rows."""
    lists = whole(column)
    lengths = lists.value_lengths().to_numpy()
    starts = np.cumsum(lengths) - lengths
    return lists.flatten().take(pa.array(starts, mask=lengths == 0))
