"""What the transforms of all record types share: one definition for TFT and in process.

The `transform` module of a record type says what happens to each feature. What it needs to know of
the whole data set, a vocabulary or the moments of a column, it asks an `Analyzers`: TensorFlow
Transform's in the pipeline (`tfrz.data.tft_analyzers`), a `Preprocessor` in process.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Collection, Mapping
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import tensorflow as tf
from numpy.typing import NDArray

from tfrz.data.columns import raw_sparse, to_sparse
from tfrz.data.spec import MISSING_INT, Feature, Spec, transformed_name

SpecT = TypeVar("SpecT", bound=Spec)
ConfigT = TypeVar("ConfigT")


class Analyzers(Protocol):
    """What must be known of the whole data set."""

    def lookup(self, feature: Feature, tokens: tf.SparseTensor) -> Callable[[tf.Tensor], tf.Tensor]:
        """From string terms, of any shape, to ids; the vocabulary is that of all `tokens`.

        Ids are 1..V by falling frequency, then the out-of-vocabulary buckets.
        """

    def moments(self, feature: Feature, values: tf.SparseTensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Mean and variance of the values that are there."""


def closed_up(values: tf.SparseTensor) -> tf.SparseTensor:
    """The values of each row moved to its first columns; TensorFlow Transform takes no gaps."""
    rows = values.indices[:, 0]
    starts = tf.searchsorted(rows, rows, side="left", out_type=tf.int64)
    columns = tf.range(tf.shape(rows, out_type=tf.int64)[0]) - starts
    indices = tf.stack([rows, columns], axis=1)
    return tf.SparseTensor(indices, values.values, values.dense_shape)


def first_value(values: tf.SparseTensor, default: Any) -> tf.Tensor:
    """The first value of each row, `[batch]`."""
    batch = values.dense_shape[0]
    rows = values.indices[:, 0]
    # Rows come in order: a value is its row's first if the row before it is another.
    first = tf.concat([tf.ones([1], tf.bool), rows[1:] != rows[:-1]], axis=0)[: tf.shape(rows)[0]]
    rows, kept = tf.boolean_mask(rows, first), tf.boolean_mask(values.values, first)
    empty = tf.fill([batch], tf.cast(default, values.dtype))
    return tf.tensor_scatter_nd_update(empty, rows[:, tf.newaxis], kept)


def as_terms(feature: Feature, values: tf.Tensor) -> tf.Tensor:
    """Categorical values as strings, missing ones empty."""
    if feature.dtype == "string":
        return values
    return tf.where(values == MISSING_INT, "", tf.strings.as_string(values))


def one_a_row(terms: list[tf.Tensor]) -> tf.SparseTensor:
    """Terms that a vocabulary is made of, one a row, missing ones left out."""
    flat = tf.concat(terms, axis=0)
    flat = tf.boolean_mask(flat, tf.not_equal(flat, ""))
    rows = tf.range(tf.shape(flat, out_type=tf.int64)[0])
    indices = tf.stack([rows, tf.zeros_like(rows)], axis=1)
    shape = tf.stack([tf.shape(flat, out_type=tf.int64)[0], tf.constant(1, tf.int64)])
    return tf.SparseTensor(indices, flat, shape)


def ids_of(lookup: Callable[[tf.Tensor], tf.Tensor], terms: tf.Tensor) -> tf.Tensor:
    """Ids of terms of any shape, 0 for empty ones."""
    ids = lookup(terms)
    return tf.where(tf.equal(terms, ""), tf.zeros_like(ids), ids)


def logarithms(feature: Feature, values: tf.Tensor) -> tf.Tensor:
    """A dense numeric feature after its logarithm, NaN where there is none."""
    if feature.log_offset is None:
        return values
    shifted = values + feature.log_offset
    return tf.where(shifted > 0, tf.math.log(tf.maximum(shifted, 1e-30)), np.float32("nan"))


def finite_rows(values: tf.Tensor) -> tf.SparseTensor:
    """The finite ones of dense values of any shape, one a row: what moments are made of."""
    flat = tf.reshape(values, [-1])
    flat = tf.boolean_mask(flat, tf.math.is_finite(flat))
    rows = tf.range(tf.shape(flat, out_type=tf.int64)[0])
    indices = tf.stack([rows, tf.zeros_like(rows)], axis=1)
    shape = tf.stack([tf.shape(flat, out_type=tf.int64)[0], tf.constant(1, tf.int64)])
    return tf.SparseTensor(indices, flat, shape)


def numbers(feature: Feature, values: tf.SparseTensor) -> tf.SparseTensor:
    """Numeric values after the logarithm, those without one left out as missing."""
    values = tf.sparse.retain(values, tf.math.is_finite(values.values))
    if feature.log_offset is None:
        return values
    shifted = values.values + feature.log_offset
    present = shifted > 0
    logs = tf.math.log(tf.where(present, shifted, tf.ones_like(shifted)))
    return tf.sparse.retain(tf.SparseTensor(values.indices, logs, values.dense_shape), present)


def densify(features: Mapping[str, Any]) -> dict[str, tf.Tensor]:
    """Sparse ids padded with 0 to `[batch, values]`; the rest as it is."""
    return {
        name: tf.sparse.to_dense(value) if isinstance(value, tf.SparseTensor) else value
        for name, value in features.items()
    }


def ranked_terms(column: pa.ChunkedArray, feature: Feature) -> list[bytes]:
    """Terms by falling frequency, ties by falling bytes: TensorFlow Transform's order."""
    flat = pc.list_flatten(column)
    if feature.dtype == "int64":
        flat = flat.filter(pc.not_equal(flat, MISSING_INT)).cast(pa.string())
    counts = pc.value_counts(flat.cast(pa.binary()).drop_null())
    pairs = [
        (count, term)
        for term, count in zip(
            counts.field("values").to_pylist(), counts.field("counts").to_pylist(), strict=True
        )
        # TensorFlow Transform leaves these out: a vocabulary file has a term a line.
        if count >= feature.min_count and term and b"\n" not in term and b"\r" not in term
    ]
    pairs.sort(reverse=True)
    return [term for _, term in pairs[: feature.vocabulary_size]]


def fitted_moments(table: pa.Table, feature: Feature) -> tuple[float, float]:
    """Mean and variance of a numeric column."""
    column = to_sparse(table.column(feature.name))
    values = numbers(feature, column).values.numpy().astype(np.float64)
    return (float(values.mean()), float(values.var())) if values.size else (0.0, 1.0)


class Preprocessor(tf.Module, Generic[SpecT, ConfigT]):
    """The transform, fitted to a table in this process; saved along in a SavedModel.

    Args:
      spec: the raw features.
      vocabularies: feature name to terms in the order of their ids from 1.
      moments: name of each standardised feature to its mean and variance.
      config: how rows become examples, where there is such a section.
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
        self._terms = {name: tuple(terms) for name, terms in vocabularies.items()}
        self._moments = dict(moments)
        self._tables = {}
        for feature in spec.vocabularies:
            terms = list(vocabularies[feature.name])
            # A table may not be empty; the empty string is never looked up.
            keys = tf.constant(terms or [b""], tf.string)
            ids = tf.range(len(terms) or 1, dtype=tf.int64)
            self._tables[feature.name] = tf.lookup.StaticVocabularyTable(
                tf.lookup.KeyValueTensorInitializer(keys, ids), feature.oov_buckets
            )

    @property
    def vocabularies(self) -> dict[str, list[str]]:
        """Feature name to terms in the order of their ids from 1."""
        return {
            name: [term.decode("utf-8", "backslashreplace") for term in terms]
            for name, terms in self._terms.items()
        }

    @property
    def vocabulary_sizes(self) -> dict[str, int]:
        """Transformed name to ids in all: padding, vocabulary, out-of-vocabulary buckets."""
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
        """Transforms a batch with what was fitted."""


def transform_table(
    preprocessor: Preprocessor[Any, Any],
    table: pa.Table,
    batch_size: int = 131_072,
    without: Collection[str] = (),
) -> dict[str, NDArray[Any]]:
    """All rows of `table`, label included, as arrays; lists padded with 0 to the longest.

    Args:
      preprocessor: fitted.
      table: raw features.
      batch_size: rows at a time.
      without: transformed features that are not wanted.
    """
    spec = preprocessor._spec
    parts: dict[str, list[NDArray[Any]]] = {}
    transform = tf.function(
        lambda raw: densify(
            {k: v for k, v in preprocessor(raw, with_label=True).items() if k not in without}
        ),
        reduce_retracing=True,
    )
    for start in range(0, max(table.num_rows, 1), batch_size):
        batch = transform(raw_sparse(table.slice(start, batch_size), spec))
        for name, value in batch.items():
            parts.setdefault(name, []).append(value.numpy())
    columns = {}
    for name, arrays in parts.items():
        if arrays[0].ndim == 2:
            width = max(1, *(a.shape[1] for a in arrays))
            arrays = [np.pad(a, ((0, 0), (0, width - a.shape[1]))) for a in arrays]
        columns[name] = np.concatenate(arrays)
    return columns
