"""Streams the users of a bucket one after the other, in bounded memory.

Files of a bucket are sorted by user. At most a chunk of a user's events is held at a time, and all
of its sketches, which the cap on events bounds. Files that only this job reads are Arrow streams,
because the memory of their writers and readers, unlike Parquet's, does not grow with their length.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tfrz.data.columns import whole
from tfrz.data.timelines.slicing import CHUNK_EVENTS, Sketch, SliceSpecification, merge

SKETCHES = pa.schema(
    [
        ("user", pa.binary()),
        ("explicit", pa.bool_()),
        ("chunk", pa.int32()),
        ("table", pa.dictionary(pa.int32(), pa.string())),
        ("slice", pa.int16()),
        ("id", pa.binary()),
        ("weight", pa.int64()),
    ]
)

# Rows of a batch of a stream, the unit of decompression.
_BATCH_ROWS = 1024

# Whether the timeline is explicit, and the number of the chunk.
Chunk = tuple[bool, int]


class Grouped:
    """Regroups the rows of tables into groups of a fixed size.

    Args:
      writer: Writer that receives the groups.
      schema: Schema of the tables.
      rows: Number of rows of a group; the last may be smaller.
    """

    def __init__(
        self, writer: pq.ParquetWriter | pa.RecordBatchStreamWriter, schema: pa.Schema, rows: int
    ) -> None:
        self._writer, self._schema, self._limit = writer, schema, rows
        self._held: list[pa.Table] = []
        self._rows = 0

    def add(self, table: pa.Table) -> None:
        """Adds the next rows."""
        while table.num_rows:
            room = self._limit - self._rows
            part, table = table.slice(0, room), table.slice(room)
            self._held.append(part)
            self._rows += part.num_rows
            if self._rows == self._limit:
                self._flush()

    def _flush(self) -> None:
        if self._held:
            table = pa.concat_tables(self._held).cast(self._schema)
            self._writer.write_table(table.combine_chunks(), self._limit)
            self._held, self._rows = [], 0

    def __enter__(self) -> Grouped:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self._flush()


@contextlib.contextmanager
def writing_stream(path: Path, schema: pa.Schema, rows: int = _BATCH_ROWS) -> Iterator[Grouped]:
    """Opens an Arrow stream file for writing, in batches of `rows` rows."""
    options = pa.ipc.IpcWriteOptions(compression="zstd", use_threads=False)
    with (
        pa.OSFile(str(path), "wb") as file,
        pa.ipc.new_stream(file, schema, options=options) as writer,
        Grouped(writer, schema, rows) as groups,
    ):
        yield groups


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[pa.RecordBatchStreamReader]:
    options = pa.ipc.IpcReadOptions(use_threads=False)
    # Not memory-mapped: pages that were read would count as used memory.
    with pa.OSFile(str(path)) as file, pa.ipc.open_stream(file, options=options) as stream:
        yield stream


def stream_schema(path: Path) -> pa.Schema:
    """Returns the schema of an Arrow stream file."""
    with _opened(path) as stream:
        return stream.schema


def stream_batches(path: Path) -> Iterator[pa.Table]:
    """Yields the batches of an Arrow stream file; none if the file does not exist."""
    if path.exists():
        with _opened(path) as stream:
            for batch in stream:
                yield pa.Table.from_batches([batch])


def runs_of_users(tables: Iterable[pa.Table]) -> Iterator[tuple[bytes, pa.Table]]:
    """Splits sorted tables by user; a user may have several consecutive pieces."""
    for table in tables:
        if not table.num_rows:
            continue
        codes = whole(table["user"]).dictionary_encode()
        places = codes.indices.to_numpy(zero_copy_only=False)
        cuts = np.flatnonzero(np.diff(places)) + 1
        bounds = [0, *cuts.tolist(), len(places)]
        for start, end in itertools.pairwise(bounds):
            user = codes.dictionary[int(places[start])].as_py()
            yield user, table.slice(start, end - start)


def row_groups(path: Path) -> Iterator[pa.Table]:
    """Yields the row groups of a Parquet file; none if the file does not exist."""
    if path.exists():
        with pq.ParquetFile(path) as file:
            for number in range(file.num_row_groups):
                yield file.read_row_group(number)


def events_by_user(path: Path) -> Iterator[tuple[bytes, Iterator[pa.Table]]]:
    """Yields the users of a sorted file, each with its events in pieces of at most a chunk."""
    pieces = runs_of_users(stream_batches(path))
    for user, group in itertools.groupby(pieces, key=lambda piece: piece[0]):
        yield user, (table for _, table in group)


class ChunkGrid:
    """Cuts a stream of a user's events into the chunks of each timeline.

    Args:
      counts: Numbers of earlier events of the explicit and the implicit timeline.
    """

    def __init__(self, counts: tuple[int, int] = (0, 0)) -> None:
        self.counts = {True: counts[0], False: counts[1]}
        self._held: dict[bool, list[pa.Table]] = {True: [], False: []}
        self._rows = {True: 0, False: 0}

    def ranks(self, table: pa.Table) -> NDArray[Any]:
        """Returns the places of the next events in their timelines."""
        explicit = whole(table["explicit"]).to_numpy(zero_copy_only=False)
        found = np.empty(len(explicit), np.int64)
        for timeline in (True, False):
            mine = explicit == timeline
            start = self.counts[timeline] + self._rows[timeline]
            found[mine] = np.arange(start, start + np.count_nonzero(mine))
        return found

    def add(self, table: pa.Table) -> Iterator[tuple[Chunk, pa.Table]]:
        """Adds the next events; yields the chunks that are complete."""
        explicit = whole(table["explicit"]).to_numpy(zero_copy_only=False)
        for timeline in (True, False):
            mine = table.filter(pa.array(explicit == timeline))
            while mine.num_rows:
                # The first chunk may have events of an earlier run.
                room = CHUNK_EVENTS - self.counts[timeline] % CHUNK_EVENTS - self._rows[timeline]
                taken, mine = mine.slice(0, room), mine.slice(room)
                self._held[timeline].append(taken)
                self._rows[timeline] += taken.num_rows
                if taken.num_rows == room:
                    yield self._pop(timeline)

    def rest(self) -> Iterator[tuple[Chunk, pa.Table]]:
        """Yields the chunks that are not complete."""
        for timeline in (True, False):
            if self._rows[timeline]:
                yield self._pop(timeline)

    def _pop(self, timeline: bool) -> tuple[Chunk, pa.Table]:
        table = pa.concat_tables(self._held[timeline])
        number = self.counts[timeline] // CHUNK_EVENTS
        self.counts[timeline] += table.num_rows
        self._held[timeline], self._rows[timeline] = [], 0
        return (timeline, number), table


def sketch_rows(
    specification: SliceSpecification, user: bytes, chunk: Chunk, sketches: dict[str, Sketch]
) -> pa.Table:
    """Converts a chunk's sketches to rows of `SKETCHES`, without slices with a time bucket."""
    tables, slices, ids, weights = [], [], [], []
    for number, (table, rules) in enumerate(specification.tables.items()):
        if (one := sketches.get(table)) is not None:
            lasting = np.array([[specification.slices[rule].days is None] for rule in rules])
            places, terms = np.nonzero(one.weights * lasting)
            tables.append(np.full(len(places), number, np.int32))
            slices.append(places.astype(np.int16))
            ids.append(pa.array(one.terms, pa.binary()).take(pa.array(terms)))
            weights.append(one.weights[places, terms])
    if not tables:
        return SKETCHES.empty_table()
    rows = sum(map(len, tables))
    names = pa.array(list(specification.tables))
    coded = pa.DictionaryArray.from_arrays(pa.array(np.concatenate(tables)), names)
    return pa.table(
        {
            "user": pa.array([user] * rows, pa.binary()),
            "explicit": pa.array(np.full(rows, chunk[0])),
            "chunk": pa.array(np.full(rows, chunk[1], np.int32)),
            "table": coded,
            "slice": pa.array(np.concatenate(slices)),
            "id": pa.concat_arrays(ids),
            "weight": pa.array(np.concatenate(weights)),
        },
        schema=SKETCHES,
    )


def _sketches_of(
    specification: SliceSpecification, table: pa.Table
) -> dict[Chunk, dict[str, Sketch]]:
    """Inverts `sketch_rows`, for rows of several chunks."""
    explicit = whole(table["explicit"]).to_numpy(zero_copy_only=False)
    chunk = whole(table["chunk"]).to_numpy()
    coded = whole(table["table"].cast(pa.string())).to_numpy(zero_copy_only=False)
    slices, weights = whole(table["slice"]).to_numpy(), whole(table["weight"]).to_numpy()
    ids = np.array(whole(table["id"]).to_pylist(), object)
    found: dict[Chunk, dict[str, Sketch]] = {}
    for timeline in (True, False):
        for number in np.unique(chunk[explicit == timeline]):
            some = (explicit == timeline) & (chunk == number)
            parts: dict[str, Sketch] = {}
            for name, places in specification.tables.items():
                rows = np.flatnonzero(some & (coded == name))
                if len(rows):
                    terms, inverse = np.unique(ids[rows], return_inverse=True)
                    sums = np.zeros((len(places), len(terms)), np.int64)
                    np.add.at(sums, (slices[rows], inverse), weights[rows])
                    parts[name] = Sketch(terms, sums)
            found[timeline, int(number)] = parts
    return found


class StoredSketches:
    """Sketches of a bucket from several generations, for lookups in the order of users.

    Args:
      specification: The slices.
      paths: The bucket's file in each generation.
    """

    def __init__(self, specification: SliceSpecification, paths: Iterable[Path]) -> None:
        self._specification = specification
        rows = (runs_of_users(stream_batches(path)) for path in paths)
        merged = heapq.merge(*rows, key=lambda piece: piece[0])
        self._users = itertools.groupby(merged, key=lambda piece: piece[0])
        self._next = next(self._users, None)

    def of(self, user: bytes) -> dict[Chunk, dict[str, Sketch]]:
        """Returns a user's sketches by chunk; users must be looked up in order."""
        while self._next is not None and self._next[0] < user:
            self._next = next(self._users, None)
        if self._next is None or self._next[0] != user:
            return {}
        tables = [table for _, table in self._next[1]]
        self._next = next(self._users, None)
        parts = [_sketches_of(self._specification, table) for table in tables]
        return added(parts)


def added(
    parts: list[dict[Chunk, dict[str, Sketch]]],
) -> dict[Chunk, dict[str, Sketch]]:
    """Merges sketches of the same user, chunk by chunk."""
    chunks = sorted({chunk for part in parts for chunk in part}, key=lambda c: (not c[0], c[1]))
    return {chunk: merge([part[chunk] for part in parts if chunk in part]) for chunk in chunks}
