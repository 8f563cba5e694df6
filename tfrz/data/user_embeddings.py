"""Joining examples with the offline embeddings of their users' long histories."""

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

# An Arrow array holds 2 GiB of bytes, a user's embedding may have ten thousand.
_ROWS_AT_ONCE = 16_384


class Embeddings(Protocol):
    """A store of embeddings, one a user; it can be sent to a worker."""

    @property
    def version(self) -> str:
        """Of the model that made them."""

    @property
    def generated_at(self) -> int:
        """Unix seconds; they hold nothing at or after it."""

    @property
    def num_vectors(self) -> int:
        """Vectors of a user."""

    @property
    def dim(self) -> int:
        """Width of each."""

    def packed(self, users: Sequence[bytes]) -> list[bytes | None]:
        """The packed vectors of each user, None where there are none."""

    def fingerprint(self) -> str:
        """Changes when the embeddings may have."""


@dataclasses.dataclass(frozen=True)
class Found:
    """What a join found; two of them add up.

    Attributes:
      examples: in all.
      known: those whose user has an embedding.
      used: those of them whose embedding is older than the request.
      user: one of the users that were looked for, b"" where no example has a user.
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
    """Adds to each example the embedding of its user, and the version of the embeddings.

    Where the time of the request is known, an embedding that was generated after it is left out:
    it may have seen the answer.

    Args:
      embeddings: of the users.
      place: where they are, for messages.
      user: column of the users' keys, lists of strings or of whole numbers.
      time: column of the requests' times; None where there are none.
    """

    def __init__(
        self, embeddings: Embeddings, place: str, user: str, time: str | None = None
    ) -> None:
        self.embeddings, self.place = embeddings, place
        self.user, self.time = user, time

    def __call__(self, table: pa.Table) -> tuple[pa.Table, Found]:
        """The examples with two more columns, and what was found."""
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
        # Each user once, however many examples are theirs.
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
        """Says what share of the examples has an embedding.

        Raises:
          InputError: none has: the users' keys are others, or all requests are older.
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
            since = datetime.datetime.fromtimestamp(
                self.embeddings.generated_at, datetime.timezone.utc
            )
            raise InputError(
                f"every request is older than the embeddings in {self.place}, generated at "
                f"{self.embeddings.generated_at} ({since:%Y-%m-%d %H:%M} UTC): generate them with "
                "an earlier as-of time"
            )
        looked_for = found.user.decode("utf-8", "backslashreplace")
        raise InputError(
            f"{self.place} has an embedding of none of the {found.examples:,} examples' users: "
            f"{looked_for!r} was looked for, from the column {self.user!r}; the users' keys must "
            "be those that were encoded"
        )


def joined(join: EmbeddingJoin | None, parts: Sequence[pa.Table]) -> list[pa.Table]:
    """The parts of a data set with the embeddings of their users, if any are joined.

    Raises:
      InputError: as of `EmbeddingJoin.check`.
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
    """The first value of each row of lists, null where there is none."""
    lists = whole(column)
    lengths = lists.value_lengths().to_numpy()
    starts = np.cumsum(lengths) - lengths
    return lists.flatten().take(pa.array(starts, mask=lengths == 0))
