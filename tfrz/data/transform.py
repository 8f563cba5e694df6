"""Shared parts of the transforms from raw features to model inputs.

Each record type defines its transform once, in its `transform` module. Statistics of the whole data
set (vocabularies, and moments of columns) come from an `Analyzers` object: in the pipeline from
TensorFlow Transform (`tfrz.data.tft_analyzers`), in process from a fitted `Preprocessor`.
"""

from __future__ import annotations

import abc
import types
from collections.abc import Callable, Collection, Mapping
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import tensorflow as tf
from numpy.typing import NDArray

from tfrz.data.columns import raw_sparse, to_sparse
from tfrz.data.spec import MISSING_INT, Feature, Spec, raw_feature_spec, transformed_name

SpecT = TypeVar("SpecT", bound=Spec)
ConfigT = TypeVar("ConfigT")


class Analyzers(Protocol):
    """Statistics of the whole data set."""

    def lookup(self, feature: Feature, tokens: tf.SparseTensor) -> Callable[[tf.Tensor], tf.Tensor]:
        """Returns a function from string terms of any shape to ids.

        The vocabulary consists of all `tokens`. Ids are 1..V by falling frequency, then the
        out-of-vocabulary buckets.
        """

    def moments(self, feature: Feature, values: tf.SparseTensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the mean and variance of the values."""


def closed_up(values: tf.SparseTensor) -> tf.SparseTensor:
    """Moves the values of each row to its first columns; TensorFlow Transform rejects gaps."""
    rows = values.indices[:, 0]
    starts = tf.searchsorted(rows, rows, side="left", out_type=tf.int64)
    columns = tf.range(tf.shape(rows, out_type=tf.int64)[0]) - starts
    indices = tf.stack([rows, columns], axis=1)
    return tf.SparseTensor(indices, values.values, values.dense_shape)


def first_value(values: tf.SparseTensor, default: str | int | float) -> tf.Tensor:
    """Returns the first value of each row, `[batch]`."""
    batch = values.dense_shape[0]
    rows = values.indices[:, 0]
    # Rows are sorted: a value is the first of its row if the value before is in another row.
    first = tf.concat([tf.ones([1], tf.bool), rows[1:] != rows[:-1]], axis=0)[: tf.shape(rows)[0]]
    rows, kept = tf.boolean_mask(rows, first), tf.boolean_mask(values.values, first)
    empty = tf.fill([batch], tf.cast(default, values.dtype))
    return tf.tensor_scatter_nd_update(empty, rows[:, tf.newaxis], kept)


def as_terms(feature: Feature, values: tf.Tensor) -> tf.Tensor:
    """Converts categorical values to strings; missing ones become empty."""
    if feature.dtype == "string":
        return values
    return tf.where(values == MISSING_INT, "", tf.strings.as_string(values))


def one_a_row(terms: list[tf.Tensor]) -> tf.SparseTensor:
    """Returns the non-empty terms, one per row, as input of a vocabulary."""
    flat = tf.concat(terms, axis=0)
    flat = tf.boolean_mask(flat, tf.not_equal(flat, ""))
    rows = tf.range(tf.shape(flat, out_type=tf.int64)[0])
    indices = tf.stack([rows, tf.zeros_like(rows)], axis=1)
    shape = tf.stack([tf.shape(flat, out_type=tf.int64)[0], tf.constant(1, tf.int64)])
    return tf.SparseTensor(indices, flat, shape)


def ids_of(lookup: Callable[[tf.Tensor], tf.Tensor], terms: tf.Tensor) -> tf.Tensor:
    """Returns the ids of terms of any shape; empty terms get 0."""
    ids = lookup(terms)
    return tf.where(tf.equal(terms, ""), tf.zeros_like(ids), ids)


def logarithms(feature: Feature, values: tf.Tensor) -> tf.Tensor:
    """Applies the logarithm of a dense numeric feature; undefined values become NaN."""
    if feature.log_offset is None:
        return values
    shifted = values + feature.log_offset
    return tf.where(shifted > 0, tf.math.log(tf.maximum(shifted, 1e-30)), np.float32("nan"))


def finite_rows(values: tf.Tensor) -> tf.SparseTensor:
    """Returns the finite values, one per row, as input of moments."""
    flat = tf.reshape(values, [-1])
    flat = tf.boolean_mask(flat, tf.math.is_finite(flat))
    rows = tf.range(tf.shape(flat, out_type=tf.int64)[0])
    indices = tf.stack([rows, tf.zeros_like(rows)], axis=1)
    shape = tf.stack([tf.shape(flat, out_type=tf.int64)[0], tf.constant(1, tf.int64)])
    return tf.SparseTensor(indices, flat, shape)


def numbers(feature: Feature, values: tf.SparseTensor) -> tf.SparseTensor:
    """Applies the logarithm to numeric values; drops those that have none."""
    values = tf.sparse.retain(values, tf.math.is_finite(values.values))
    if feature.log_offset is None:
        return values
    shifted = values.values + feature.log_offset
    present = shifted > 0
    logs = tf.math.log(tf.where(present, shifted, tf.ones_like(shifted)))
    return tf.sparse.retain(tf.SparseTensor(values.indices, logs, values.dense_shape), present)


def densify(features: Mapping[str, Any]) -> dict[str, tf.Tensor]:
    """Converts sparse ids to dense `[batch, values]`, padded with 0; keeps other tensors."""
    return {
        name: tf.sparse.to_dense(value) if isinstance(value, tf.SparseTensor) else value
        for name, value in features.items()
    }


class ValueCounts:
    """How often each value of columns occurs, counted part by part.

    Args:
      kind: Type of the values.
    """

    _AT_ONCE = 1 << 20

    def __init__(self, kind: pa.DataType) -> None:
        self._kind = kind
        self._counted = pa.table({"value": pa.array([], kind), "count": pa.array([], pa.int64())})
        self._parts: list[pa.Table] = []

    def add(self, values: pa.Array) -> None:
        """Counts further values."""
        counts = pc.value_counts(values)
        named = {"value": counts.field("values"), "count": counts.field("counts")}
        self._parts.append(pa.table(named))
        waiting = sum(part.num_rows for part in self._parts)
        if waiting > max(self._AT_ONCE, self._counted.num_rows):
            self._merge()

    def _merge(self) -> None:
        if len(self._parts) == 1 and not self._counted.num_rows:
            (self._counted,) = self._parts
        else:
            both = pa.concat_tables([self._counted, *self._parts])
            merged = both.group_by("value").aggregate([("count", "sum")])
            self._counted = pa.table({"value": merged["value"], "count": merged["count_sum"]})
        self._parts = []

    def table(self) -> pa.Table:
        """The distinct values and their counts, columns `value` and `count`, in no order."""
        if self._parts:
            self._merge()
        return self._counted


def ranked_terms(column: pa.ChunkedArray, feature: Feature) -> list[bytes]:
    """Sorts terms by falling frequency, then falling bytes, as TensorFlow Transform does."""
    counts = ValueCounts(pa.binary())
    for chunk in column.chunks:
        flat = chunk.flatten()
        if feature.dtype == "int64":
            flat = flat.filter(pc.not_equal(flat, MISSING_INT)).cast(pa.string())
        counts.add(flat.cast(pa.binary()).drop_null())
    table = counts.table()
    terms = table["value"]
    # TensorFlow Transform drops these too, because a vocabulary file has one term per line.
    kept = pc.and_(pc.greater_equal(table["count"], feature.min_count), pc.not_equal(terms, b""))
    for sign in ("\n", "\r"):
        kept = pc.and_(kept, pc.invert(pc.match_substring(terms, sign)))
    table = table.filter(kept)
    order = pc.sort_indices(table, [("count", "descending"), ("value", "descending")])
    ranked: list[bytes] = table["value"].take(order[: feature.vocabulary_size]).to_pylist()
    return ranked


def fitted_moments(table: pa.Table, feature: Feature) -> tuple[float, float]:
    """Returns the mean and variance of a numeric column; the order of the rows does not matter."""
    column = table.column(feature.name)
    parts = [numbers(feature, to_sparse(chunk)).values.numpy() for chunk in column.chunks]
    values = np.sort(np.concatenate([np.zeros(0, np.float32), *parts])).astype(np.float64)
    return (float(values.mean()), float(values.var())) if values.size else (0.0, 1.0)


class Preprocessor(tf.Module, Generic[SpecT, ConfigT]):
    """A transform with its statistics, fitted in this process and saved in a SavedModel.

    Args:
      spec: The raw features.
      vocabularies: Maps feature names to terms in the order of their ids, which start at 1.
      moments: Maps standardised features to their mean and variance.
      config: Configuration of the examples; None if the record type has none.
    """

    def __init__(
        self,
        spec: SpecT,
        vocabularies: Mapping[str, list[bytes]],
        moments: Mapping[str, tuple[float, float]],
        config: ConfigT,
    ) -> None:
        super().__init__()
        self._spec, self._config = spec, config
        # TensorFlow would track every term of a dictionary.
        self._terms = types.MappingProxyType({n: tuple(t) for n, t in vocabularies.items()})
        self._moments = dict(moments)
        self._tables = {}
        for feature in spec.vocabularies:
            terms = list(vocabularies[feature.name])
            # A lookup table must not be empty; the empty string is never looked up.
            keys = tf.constant(terms or [b""], tf.string)
            ids = tf.range(len(terms) or 1, dtype=tf.int64)
            self._tables[feature.name] = tf.lookup.StaticVocabularyTable(
                tf.lookup.KeyValueTensorInitializer(keys, ids), feature.oov_buckets
            )

    @property
    def vocabularies(self) -> dict[str, list[str]]:
        """Maps feature names to terms in the order of their ids, which start at 1."""
        # All at once is faster than each; as in TensorFlow Transform's files, none has a line end.
        return {
            name: b"\n".join(terms).decode("utf-8", "backslashreplace").split("\n") if terms else []
            for name, terms in self._terms.items()
        }

    @property
    def terms(self) -> Mapping[str, tuple[bytes, ...]]:
        """Maps feature names to raw terms in the order of their ids, which start at 1."""
        return self._terms

    @property
    def fitted_moments(self) -> dict[str, tuple[float, float]]:
        """Maps standardised features to their mean and variance."""
        return dict(self._moments)

    @property
    def vocabulary_sizes(self) -> dict[str, int]:
        """Maps transformed names to the number of ids: padding, vocabulary, OOV buckets."""
        return {
            transformed_name(f.name): 1 + max(len(self._terms[f.name]), 1) + f.oov_buckets
            for f in self._spec.vocabularies
        }

    def lookup(self, feature: Feature, tokens: tf.SparseTensor) -> Callable[[tf.Tensor], tf.Tensor]:
        """See `Analyzers`."""
        table = self._tables[feature.name]
        return lambda terms: table.lookup(terms) + 1

    def moments(self, feature: Feature, values: tf.SparseTensor) -> tuple[tf.Tensor, tf.Tensor]:
        """See `Analyzers`."""
        mean, variance = self._moments[feature.name]
        return tf.constant(mean, tf.float32), tf.constant(variance, tf.float32)

    @abc.abstractmethod
    def __call__(
        self, inputs: Mapping[str, tf.SparseTensor], with_label: bool = False
    ) -> dict[str, Any]:
        """Transforms a batch of raw features."""


class TableTransform:
    """Transforms tables, label included, to arrays; lists are padded with 0. It is traced once.

    Args:
      preprocessor: A fitted preprocessor.
      batch_size: Number of rows to transform at once.
      without: Transformed features to leave out.
    """

    def __init__(
        self,
        preprocessor: Preprocessor[Any, Any],
        batch_size: int = 131_072,
        without: Collection[str] = (),
    ) -> None:
        self._spec, self._batch_size = preprocessor._spec, batch_size
        self._dtypes = {name: one.dtype for name, one in raw_feature_spec(self._spec).items()}
        specs = {name: tf.SparseTensorSpec([None, None], d) for name, d in self._dtypes.items()}

        def transform(raw: dict[str, tf.SparseTensor]) -> dict[str, tf.Tensor]:
            outputs = preprocessor(raw, with_label=True)
            return densify({name: v for name, v in outputs.items() if name not in without})

        self._transform = tf.function(transform, input_signature=[specs])

    def __call__(self, table: pa.Table) -> dict[str, NDArray[Any]]:
        """Transforms a whole table."""
        parts: dict[str, list[NDArray[Any]]] = {}
        for start in range(0, max(table.num_rows, 1), self._batch_size):
            raw = raw_sparse(table.slice(start, self._batch_size), self._spec)
            batch = self._transform({n: tf.cast(v, self._dtypes[n]) for n, v in raw.items()})
            for name, value in batch.items():
                parts.setdefault(name, []).append(value.numpy())
        columns = {}
        for name, arrays in parts.items():
            if arrays[0].ndim == 2:
                width = max(1, *(a.shape[1] for a in arrays))
                arrays = [np.pad(a, ((0, 0), (0, width - a.shape[1]))) for a in arrays]
            columns[name] = np.concatenate(arrays)
        return columns


def transform_table(
    preprocessor: Preprocessor[Any, Any],
    table: pa.Table,
    batch_size: int = 131_072,
    without: Collection[str] = (),
) -> dict[str, NDArray[Any]]:
    """Transforms a whole table once; for the arguments see `TableTransform`."""
    return TableTransform(preprocessor, batch_size, without)(table)
