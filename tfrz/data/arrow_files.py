"""Rows in Arrow files that are mapped into memory: sets in groups, and parts by a hash of a key."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tfrz.data.splits import shares_of_rows

# Parts of `Partitions`; one of them is in memory at a time.
PARTITIONS = 64
# Rows that wait in memory for the files of their parts.
_WAITING = 1 << 20


@dataclasses.dataclass(frozen=True)
class EncodedSet:
    """Encoded rows of a split, in memory or in a file that is mapped into it.

    Attributes:
      schema: Of the rows.
      batches: Groups of a fixed number of rows, the last possibly smaller.
      widths: Length of the longest list of each column of lists, at least 1.
      mapped: Whether they are in a file.
    """

    schema: pa.Schema
    batches: list[pa.RecordBatch]
    widths: Mapping[str, int]
    mapped: bool = False

    @property
    def num_examples(self) -> int:
        """Number of rows."""
        return sum(batch.num_rows for batch in self.batches)

    def table(self, groups: Sequence[int] | None = None) -> pa.Table:
        """The rows of some groups, by their numbers; of all by default."""
        some = self.batches if groups is None else [self.batches[group] for group in groups]
        return pa.Table.from_batches(some, self.schema)


class Sink:
    """Takes rows, and keeps them in groups of a fixed size.

    Args:
      schema: Of the rows.
      path: File to write to; None to keep all in memory.
      group_rows: Rows of a group.

    Attributes:
      widths: Length of the longest list of each column of lists, at least 1.
    """

    def __init__(self, schema: pa.Schema, path: Path | None, group_rows: int) -> None:
        self._schema, self._path, self._group_rows = schema, path, group_rows
        self._waiting: list[pa.RecordBatch] = []
        self._batches: list[pa.RecordBatch] = []
        self._writer: pa.RecordBatchFileWriter | None = None
        self.widths = {field.name: 1 for field in schema if pa.types.is_list(field.type)}

    def write(self, batch: pa.RecordBatch) -> None:
        """Takes rows."""
        for name in self.widths:
            longest = pc.max(pc.list_value_length(batch.column(name))).as_py() or 0
            self.widths[name] = max(self.widths[name], longest)
        self._waiting.append(batch)
        if sum(b.num_rows for b in self._waiting) >= self._group_rows:
            self._flush(self._group_rows)

    def _flush(self, least: int) -> None:
        if not self._waiting:
            return
        table = pa.Table.from_batches(self._waiting).combine_chunks()
        start = 0
        while table.num_rows - start >= least and start < table.num_rows:
            self._put(table.slice(start, self._group_rows))
            start += self._group_rows
        rest = table.slice(start)
        self._waiting = rest.to_batches() if rest.num_rows else []

    def _put(self, group: pa.Table) -> None:
        # A copy: a slice of a large table would keep all of it.
        group = group.take(pa.array(np.arange(group.num_rows)))
        (batch,) = group.combine_chunks().to_batches()
        if self._path is None:
            self._batches.append(batch)
        else:
            self._file().write_batch(batch)

    def _file(self) -> pa.RecordBatchFileWriter:
        if self._writer is None:
            self._writer = pa.ipc.new_file(str(self._path), self._schema)
        return self._writer

    def close(self) -> EncodedSet:
        """Ends the set and returns it."""
        self._flush(1)
        if self._path is None:
            return EncodedSet(self._schema, self._batches, self.widths)
        self._file().close()
        return mapped_set(self._path, self.widths)


def mapped_set(path: Path, widths: Mapping[str, int]) -> EncodedSet:
    """Opens what a `Sink` wrote to a file."""
    file = pa.ipc.open_file(pa.memory_map(str(path)))
    batches = [file.get_batch(i) for i in range(file.num_record_batches)]
    return EncodedSet(file.schema, batches, widths, mapped=True)


class Partitions:
    """Rows on disk in parts; rows with the same key are in the same part, in their order.

    Args:
      folder: To write to; it is made.
      schema: Of the rows.
      key: Column whose hash names the part of a row.
      count: Number of parts.
    """

    def __init__(self, folder: Path, schema: pa.Schema, key: str, count: int = PARTITIONS) -> None:
        folder.mkdir(parents=True)
        self.folder, self.schema, self.key = folder, schema, key
        self._paths = [folder / f"{part}.arrow" for part in range(count)]
        self._writers = [pa.ipc.new_file(str(path), schema) for path in self._paths]
        self._waiting: list[list[pa.RecordBatch]] = [[] for _ in self._paths]
        self._rows = 0

    def write(self, batch: pa.RecordBatch) -> None:
        """Takes rows."""
        shares = shares_of_rows(batch, 0, [self.key])
        parts = (shares * len(self._paths)).astype(np.int64)
        order = np.argsort(parts, kind="stable")
        counts = np.bincount(parts, minlength=len(self._paths))
        ends = np.cumsum(counts)
        batch = batch.take(pa.array(order))
        for waiting, end, count in zip(self._waiting, ends, counts, strict=True):
            if count:
                waiting.append(batch.slice(end - count, count))
        self._rows += batch.num_rows
        if self._rows >= _WAITING:
            self._flush()

    def _flush(self) -> None:
        for part, waiting in enumerate(self._waiting):
            self._append(part, pa.Table.from_batches(waiting, self.schema))
            waiting.clear()
        self._rows = 0

    def _append(self, part: int, table: pa.Table) -> None:
        for batch in table.combine_chunks().to_batches():
            self._writers[part].write_batch(batch)

    def close(self) -> None:
        """Ends the files; the rows can be read from then on."""
        self._flush()
        for writer in self._writers:
            writer.close()

    def __iter__(self) -> Iterator[pa.Table]:
        """Yields the rows of each part that has some."""
        for path in self._paths:
            table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
            if table.num_rows:
                yield table

    def changed(self, change: Callable[[pa.Table], pa.Table]) -> Partitions:
        """Returns the parts after a change of each; they take the place of these."""
        after = Partitions(
            self.folder.with_name(f"{self.folder.name}x"), self.schema, self.key, len(self._paths)
        )
        for part, table in enumerate(self):
            after._append(part, change(table))
        after.close()
        shutil.rmtree(self.folder)
        return after
