"""Transformed examples in Arrow files, from which a model is trained where memory is too small.

A column with an axis of values is stored without the zeros at the end of each row, which are
padding, and padded again when it is read.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tfrz.data.arrow_files import EncodedSet, Sink, mapped_set
from tfrz.data.columns import record_batch, whole

# Bytes of a group, as arrays; a set is shuffled by groups.
GROUP_BYTES = 1 << 22
_FEWEST, _MOST = 64, 1 << 16


def _stored(column: NDArray[Any]) -> pa.Array:
    """A column as an Arrow array, without padding."""
    if column.ndim == 1:
        return pa.array(column, pa.binary()) if column.dtype == object else pa.array(column)
    flat = column.reshape(len(column), math.prod(column.shape[1:]))
    places = 1 + np.arange(flat.shape[1])
    lengths = np.where(flat != 0, places, 0).max(axis=1, initial=0)
    values = flat[places <= lengths[:, None]]
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values))


def _padded(column: pa.ListArray, shape: Sequence[int]) -> NDArray[Any]:
    """A stored column as an array."""
    offsets = column.offsets.to_numpy().astype(np.int64)
    values = column.values.slice(offsets[0], offsets[-1] - offsets[0]).to_numpy()
    lengths = np.diff(offsets)
    padded = np.zeros((len(lengths), math.prod(shape)), values.dtype)
    padded[np.arange(padded.shape[1]) < lengths[:, None]] = values
    return padded.reshape(len(lengths), *shape)


@dataclasses.dataclass(frozen=True)
class TransformedSet:
    """Transformed examples of a split.

    Attributes:
      rows: In a file.
      shapes: Column to the shape of its values in an example.
    """

    rows: EncodedSet
    shapes: Mapping[str, Sequence[int]]

    @property
    def num_bytes(self) -> int:
        """Size of all columns as arrays; a text counts 8 bytes."""
        return self.rows.num_examples * sum(8 * math.prod(s) for s in self.shapes.values())

    def columns(self, groups: Sequence[int] | None = None) -> dict[str, NDArray[Any]]:
        """The columns of some groups, by their numbers; of all by default."""
        table = self.rows.table(groups)
        columns = {}
        for name, shape in self.shapes.items():
            column = whole(table.column(name))
            flat = not pa.types.is_list(column.type)
            columns[name] = (
                column.to_numpy(zero_copy_only=False) if flat else _padded(column, shape)
            )
        return columns


class TransformedSink:
    """Takes transformed columns, and keeps them in a file.

    Args:
      path: The file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._sink: Sink | None = None
        self._schema = pa.schema([])
        self.shapes: dict[str, list[int]] = {}

    def write(self, columns: Mapping[str, NDArray[Any]]) -> None:
        """Takes examples: columns of equal length, lists padded with 0."""
        arrays = {name: _stored(column) for name, column in columns.items()}
        if self._sink is None:
            self._schema = pa.schema([(name, array.type) for name, array in arrays.items()])
            row = sum(8 * math.prod(column.shape[1:]) for column in columns.values())
            group = min(max(GROUP_BYTES // max(row, 1), _FEWEST), _MOST)
            self._sink = Sink(self._schema, self._path, group)
            self.shapes = {name: list(column.shape[1:]) for name, column in columns.items()}
        for name, column in columns.items():
            # Only the number of values may differ, as between batches of unequal lists.
            if column.ndim > 1:
                self.shapes[name][0] = max(self.shapes[name][0], column.shape[1])
        batch = record_batch(self._schema, arrays)
        if batch.num_rows:
            self._sink.write(batch)

    def close(self) -> TransformedSet:
        """Ends the set and returns it; some columns must have been written, be it without rows."""
        assert self._sink is not None
        return TransformedSet(self._sink.close(), self.shapes)


def transformed_set(path: Path, shapes: Mapping[str, Sequence[int]]) -> TransformedSet:
    """Opens what a `TransformedSink` wrote to a file."""
    return TransformedSet(mapped_set(path, {}), shapes)
