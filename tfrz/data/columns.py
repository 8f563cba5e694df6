"""Helpers that build Arrow columns of lists and convert them to sparse tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import tensorflow as tf
from numpy.typing import NDArray

from tfrz.data.spec import MISSING, Spec

ARROW = {"string": pa.binary(), "int64": pa.int64(), "float32": pa.float32()}


def whole(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    """Returns a column as a single array."""
    if isinstance(column, pa.ChunkedArray) and column.num_chunks == 1:
        return column.chunk(0)
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    return pa.concat_arrays(array.chunks) if isinstance(array, pa.ChunkedArray) else array


def codes_of(column: pa.ChunkedArray | pa.Array) -> NDArray[Any]:
    """Numbers the distinct values of a column from 0; equal values get equal numbers."""
    return whole(column).dictionary_encode().indices.to_numpy(zero_copy_only=False)


def runs(column: pa.Array, first: NDArray[Any], end: NDArray[Any]) -> pa.ListArray:
    """Returns one list for each pair: the values of rows [first, end)."""
    lengths = end - first
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    rows = np.arange(offsets[-1]) + np.repeat(first - offsets[:-1], lengths)
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), column.take(pa.array(rows)))


def first_of_each(column: pa.ChunkedArray | pa.ListArray, count: int) -> pa.ListArray:
    """Truncates each row to its first `count` values."""
    lists = whole(column)
    offsets = lists.offsets.to_numpy().astype(np.int64)
    return runs(lists.values, offsets[:-1], np.minimum(offsets[1:], offsets[:-1] + count))


def first_values(lists: pa.ListArray) -> pa.Array:
    """Returns the first value of each list; null for an empty one."""
    offsets = lists.offsets.to_numpy().astype(np.int64)
    if np.array_equal(offsets, np.arange(offsets[0], offsets[0] + len(offsets))):
        return lists.values[offsets[0] : offsets[-1]]
    first, empty = offsets[:-1], offsets[:-1] == offsets[1:]
    return lists.values.take(pa.array(np.where(empty, 0, first), mask=empty))


def filled(column: pa.ChunkedArray | pa.Array, dtype: str) -> pa.Array:
    """Replaces missing values with "", NaN or the smallest int64."""
    values = whole(column)
    return values.fill_null(pa.scalar(MISSING[dtype], values.type))


def record_batch(schema: pa.Schema, columns: Mapping[str, Any]) -> pa.RecordBatch:
    """Builds a batch of the schema from Arrow arrays or Python values."""
    arrays = [
        values.cast(field.type) if isinstance(values, pa.Array) else pa.array(values, field.type)
        for field, values in ((field, columns[field.name]) for field in schema)
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def one_each(values: pa.Array | NDArray[Any] | Sequence[Any], dtype: str) -> pa.ListArray:
    """Returns a column of one-element lists; null (for floats also NaN) becomes an empty list."""
    flat = values if isinstance(values, pa.Array) else pa.array(values)
    if dtype == "float32" and pa.types.is_floating(flat.type):
        flat = pa.array(
            np.asarray(flat.to_numpy(zero_copy_only=False), np.float32), from_pandas=True
        )
    flat = flat.cast(ARROW[dtype])
    present = np.asarray(flat.is_valid())
    offsets = np.concatenate([[0], np.cumsum(present)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), flat.drop_null())


def to_sparse(column: pa.ListArray | pa.ChunkedArray) -> tf.SparseTensor:
    """Converts a column of lists to the sparse tensor that `tf.io.parse_example` would return."""
    column = whole(column)
    offsets = column.offsets.to_numpy().astype(np.int64)
    lengths = np.diff(offsets)
    values = column.values.slice(offsets[0], offsets[-1] - offsets[0])
    rows = np.repeat(np.arange(len(lengths)), lengths)
    positions = np.arange(len(rows)) - np.repeat(offsets[:-1] - offsets[0], lengths)
    if pa.types.is_binary(values.type):
        # Each distinct text becomes a Python object once, however often it occurs.
        coded = values.fill_null(b"").dictionary_encode()
        terms = tf.constant(coded.dictionary.to_numpy(zero_copy_only=False), tf.string)
        flat = tf.gather(terms, coded.indices.to_numpy())
    else:
        flat = tf.constant(values.to_numpy(zero_copy_only=False))
    return tf.SparseTensor(
        np.stack([rows, positions], axis=1).astype(np.int64),
        flat,
        (len(lengths), max(1, int(lengths.max(initial=0)))),
    )


def raw_sparse(table: pa.Table, spec: Spec, label: bool = True) -> dict[str, tf.SparseTensor]:
    """Returns all raw features of `table` as sparse tensors."""
    names = [f.name for f in spec.features]
    if label:
        names += [spec.label, *spec.outcome_features]
    return {name: to_sparse(table.column(name)) for name in names}


def to_examples(table: pa.Table, spec: Spec, limit: int, label: bool = False) -> list[bytes]:
    """Serialises the first `limit` rows as `tf.Example`s, with label and outcomes if asked for."""
    columns = {feature.name: feature.dtype for feature in spec.features}
    if label:
        columns[spec.label] = "string" if spec.label_dtype == tf.string else "float32"
        columns |= dict.fromkeys(spec.outcome_features, "float32")
    rows: list[Mapping[str, Any]] = table.slice(0, limit).to_pylist()
    serialized = []
    for row in rows:
        example = tf.train.Example()
        for name, dtype in columns.items():
            values = row[name]
            if not values:  # Parsers that expect zero or one value reject an empty list.
                continue
            stored = example.features.feature[name]
            if dtype == "string":
                stored.bytes_list.value.extend(values)
            elif dtype == "int64":
                stored.int64_list.value.extend(values)
            else:
                stored.float_list.value.extend(values)
        serialized.append(example.SerializeToString(deterministic=True))
    return serialized
