"""Encodes impressions batch by batch, in memory or into Arrow files for data beyond it.

The first pass over a source writes codes in the order in which terms appear, and counts the terms
of the training set. The vocabularies follow from the counts; a table for each feature then turns
codes into ids. So a source is read once, whatever its size, and the result equals
`ImpressionPreprocessor` applied to all rows at once.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import tensorflow as tf
from numpy.typing import NDArray

from tfrz.data.arrow_files import EncodedSet, Sink, mapped_set
from tfrz.data.columns import first_values, record_batch, to_examples, whole
from tfrz.data.impressions.spec import FeatureSpec
from tfrz.data.impressions.transform import ImpressionPreprocessor
from tfrz.data.spec import MISSING_INT, Feature, transformed_name
from tfrz.data.splits import SPLITS
from tfrz.data.transform import ids_of
from tfrz.files import atomic_write

# Changes with the layout of the files that `encode` writes.
ENCODING_VERSION = 1
# Rows of a group; a set is shuffled by groups.
GROUP_ROWS = 1 << 16
_EXAMPLES = 1000
# Moments of fewer values are taken at once.
_AT_ONCE = 1 << 22
_DONE = "encoded.json"


def coded(table: pa.Table, spec: FeatureSpec) -> pa.Table:
    """The table with dictionaries in the lists of its categorical columns."""
    for feature in spec.categorical:
        column = whole(table.column(feature.name))
        if not pa.types.is_dictionary(column.type.value_type):
            offsets = column.offsets.to_numpy()
            values = column.values.slice(offsets[0], offsets[-1] - offsets[0])
            column = pa.ListArray.from_arrays(
                pa.array(offsets - offsets[0]), values.dictionary_encode()
            )
            place = table.schema.get_field_index(feature.name)
            table = table.set_column(place, feature.name, column)
    return table


def _present(values: pa.Array) -> NDArray[Any]:
    """Which values are neither null nor empty texts."""
    if pa.types.is_dictionary(values.type) and not values.null_count:
        return _present(values.dictionary)[values.indices.to_numpy()]
    if pa.types.is_binary(values.type) or pa.types.is_string(values.type):
        lengths = pc.binary_length(values).fill_null(0)
        return np.asarray(lengths.to_numpy(zero_copy_only=False)) > 0
    return np.asarray(values.is_valid())


def _flat(column: pa.ListArray, keep: Callable[[pa.Array], NDArray[Any]]) -> pa.ListArray:
    """The column without the values that are not to be kept."""
    offsets = column.offsets.to_numpy().astype(np.int64)
    values = column.values.slice(offsets[0], offsets[-1] - offsets[0])
    kept = keep(values)
    if not kept.all():
        values = values.filter(pa.array(kept))
        offsets = np.concatenate([[0], np.cumsum(kept)])[offsets - offsets[0]]
    else:
        offsets = offsets - offsets[0]
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), values)


class _Terms:
    """The terms of one feature, in the order in which they appeared, and their counts."""

    def __init__(self, feature: Feature) -> None:
        self.feature = feature
        self.known = pa.array([], pa.binary())
        self.counts: NDArray[Any] = np.zeros(0, np.int64)

    def codes(self, values: pa.Array) -> NDArray[Any]:
        """The place of each value among the known terms; new terms become known."""
        coded = values.dictionary_encode()
        terms = coded.dictionary
        if self.feature.dtype == "int64":
            terms = terms.cast(pa.string())
        terms = terms.cast(pa.binary())
        found = pc.index_in(terms, value_set=self.known)
        new = np.asarray(found.is_null())
        places = found.fill_null(0).to_numpy(zero_copy_only=False).astype(np.int32)
        places[new] = len(self.known) + np.arange(new.sum())
        if new.any():
            self.known = pa.concat_arrays([self.known, terms.filter(pa.array(new))])
            self.counts = np.append(self.counts, np.zeros(new.sum(), np.int64))
        codes: NDArray[Any] = places[coded.indices.to_numpy(zero_copy_only=False)]
        return codes

    def count(self, codes: NDArray[Any]) -> None:
        """Counts terms of the training set."""
        self.counts += np.bincount(codes[codes >= 0], minlength=len(self.known))

    def vocabulary(self) -> list[bytes]:
        """Terms by falling frequency, then falling bytes, as `ranked_terms` returns them."""
        feature = self.feature
        kept = self.counts >= max(feature.min_count, 1)
        for sign in ("\n", "\r"):
            kept &= ~np.asarray(pc.match_substring(self.known, sign), bool)
        if feature.dtype == "int64":
            missing = pa.scalar(str(MISSING_INT).encode(), pa.binary())
            kept &= ~np.asarray(pc.equal(self.known, missing), bool)
        table = pa.table({"term": self.known, "count": self.counts}).filter(pa.array(kept))
        order = pc.sort_indices(table, [("count", "descending"), ("term", "descending")])
        best = whole(table["term"].take(order[: feature.vocabulary_size]))
        ranked: list[bytes] = best.to_numpy(zero_copy_only=False).tolist()
        return ranked


class ImpressionEncoder:
    """Encodes impressions; see the docstring of the module.

    Args:
      spec: The raw features.
    """

    def __init__(self, spec: FeatureSpec) -> None:
        self.spec = spec
        self._terms = {f.name: _Terms(f) for f in spec.categorical}

    def add(self, table: pa.Table | pa.RecordBatch) -> pa.RecordBatch:
        """Encodes rows.

        Args:
          table: Raw features and label, columns of lists.

        Returns:
          A column for each feature, the label and each outcome: int32 codes (-1 for missing) or
          lists of them, float32 (NaN for missing), or texts.
        """
        columns: dict[str, pa.Array] = {}
        for feature in self.spec.features:
            column = whole(table.column(feature.name))
            if feature.kind == "numeric":
                columns[feature.name] = self._numbers(feature, column)
            elif feature.kind == "opaque":
                columns[feature.name] = first_values(column).cast(pa.binary()).fill_null(b"")
            else:
                columns[feature.name] = self._codes(feature, column)
        for name in (self.spec.label, *self.spec.outcomes):
            finite = _flat(whole(table.column(name)), _finite)
            columns[name] = pa.array(first_values(finite).to_numpy(zero_copy_only=False))
        return record_batch(_encoded_schema(self.spec), columns)

    def count(self, batch: pa.RecordBatch) -> None:
        """Counts the terms of encoded rows of the training set."""
        for name, terms in self._terms.items():
            column = batch.column(name)
            lists = pa.types.is_list(column.type)
            terms.count((column.flatten() if lists else column).to_numpy())

    def _codes(self, feature: Feature, column: pa.ListArray) -> pa.Array:
        lists = _flat(column, _present)
        codes = pa.array(self._terms[feature.name].codes(lists.values), pa.int32())
        lists = pa.ListArray.from_arrays(lists.offsets, codes)
        return lists if feature.multivalent else first_values(lists).fill_null(-1)

    @staticmethod
    def _numbers(feature: Feature, column: pa.ListArray) -> pa.Array:
        offset = feature.log_offset
        if offset is None:
            lists = _flat(column, _finite)
        else:
            lists = _flat(column, lambda values: _finite(values) & _above(values, -offset))
            # TensorFlow's logarithm, as in the served model.
            logs = tf.math.log(tf.constant(lists.values.to_numpy()) + offset).numpy()
            lists = pa.ListArray.from_arrays(lists.offsets, pa.array(logs, pa.float32()))
        return pa.array(first_values(lists).to_numpy(zero_copy_only=False).astype(np.float32))

    def fit(self, training: Iterable[pa.RecordBatch]) -> FittedImpressions:
        """The transform with the vocabularies and moments of the training set.

        Args:
          training: All that `add` returned for it.
        """
        standardized = [f.name for f in self.spec.numeric if f.standardize]
        moments = _moments(list(training), standardized) if standardized else {}
        vocabularies = {name: terms.vocabulary() for name, terms in self._terms.items()}
        transform = ImpressionPreprocessor(self.spec, vocabularies, moments, None)
        tables = {}
        for name, terms in self._terms.items():
            lookup = transform.lookup(terms.feature, None)
            ids = ids_of(lookup, tf.constant(terms.known.to_numpy(zero_copy_only=False), tf.string))
            tables[name] = np.concatenate([[0], ids.numpy()]) if len(terms.known) else np.zeros(1)
        return FittedImpressions(transform, {n: t.astype(np.int64) for n, t in tables.items()})

    def save(self, directory: Path) -> None:
        """Writes the terms for `load`."""
        for number, terms in enumerate(self._terms.values()):
            table = pa.table({"term": terms.known, "count": terms.counts})
            pq.write_table(table, directory / f"terms-{number}.parquet")

    def load(self, directory: Path) -> None:
        """Reads what `save` wrote."""
        for number, terms in enumerate(self._terms.values()):
            table = pq.read_table(directory / f"terms-{number}.parquet")
            terms.known = whole(table["term"]).cast(pa.binary())
            terms.counts = table["count"].to_numpy()


def _finite(values: pa.Array) -> NDArray[Any]:
    return np.isfinite(values.to_numpy(zero_copy_only=False))


def _above(values: pa.Array, bound: float) -> NDArray[Any]:
    shifted = values.to_numpy(zero_copy_only=False).astype(np.float32) + np.float32(-bound)
    above: NDArray[Any] = shifted > 0
    return above


def _moments(batches: list[pa.RecordBatch], names: list[str]) -> dict[str, tuple[float, float]]:
    """Mean and variance of numeric columns."""
    moments = {}
    rows = sum(batch.num_rows for batch in batches)
    for name in names:
        columns = [batch.column(name).to_numpy(zero_copy_only=False) for batch in batches]
        if rows <= _AT_ONCE:
            columns = [np.concatenate([np.zeros(0, np.float32), *columns])]

        def parts(columns: list[NDArray[Any]] = columns) -> Iterator[NDArray[Any]]:
            return (c[~np.isnan(c)].astype(np.float64) for c in columns)

        sizes = [len(part) for part in parts()]
        if not sum(sizes):
            moments[name] = (0.0, 1.0)
        elif len(sizes) == 1:
            (values,) = parts()
            moments[name] = (float(values.mean()), float(values.var()))
        else:
            mean = sum(float(part.sum()) for part in parts()) / sum(sizes)
            squares = sum(float(np.square(part - mean).sum()) for part in parts())
            moments[name] = (mean, squares / sum(sizes))
    return moments


@dataclasses.dataclass(frozen=True)
class FittedImpressions:
    """What turns encoded rows into the inputs of a model.

    Attributes:
      transform: The fitted transform of raw features, for the export.
      tables: Feature to the id of each code, the first of -1.
    """

    transform: ImpressionPreprocessor
    tables: Mapping[str, NDArray[Any]]

    def columns(
        self, batch: pa.RecordBatch | pa.Table, widths: Mapping[str, int]
    ) -> dict[str, NDArray[Any]]:
        """The inputs of a model, as `transform_table` returns them.

        Args:
          batch: Rows as `ImpressionEncoder.add` returns them.
          widths: Width of each multivalent feature.
        """
        columns = {}
        spec = self.transform._spec
        for feature in spec.features:
            column = whole(batch.column(feature.name))
            if feature.kind == "numeric":
                values = self._scaled(feature, column)
            elif feature.kind == "opaque":
                values = column.to_numpy(zero_copy_only=False)
            elif feature.multivalent:
                values = self._padded(feature.name, column, widths[feature.name])
            else:
                values = self.tables[feature.name][column.to_numpy(zero_copy_only=False) + 1]
            columns[transformed_name(feature.name)] = values
        for name in (spec.label, *spec.outcomes):
            values = whole(batch.column(name)).to_numpy(zero_copy_only=False).astype(np.float32)
            columns[transformed_name(name)] = np.nan_to_num(values, nan=0.0)
        return columns

    def _scaled(self, feature: Feature, column: pa.Array) -> NDArray[Any]:
        values = column.to_numpy(zero_copy_only=False)
        if feature.standardize:
            mean, variance = self.transform.moments(feature, None)
            scaled = (tf.constant(values) - mean) * tf.math.rsqrt(tf.maximum(variance, 1e-12))
            values = scaled.numpy()
        return np.where(np.isnan(values), np.float32(0), values)

    def _padded(self, name: str, column: pa.ListArray, width: int) -> NDArray[Any]:
        offsets = column.offsets.to_numpy().astype(np.int64)
        codes = column.values.slice(offsets[0], offsets[-1] - offsets[0]).to_numpy()
        lengths = np.diff(offsets)
        rows = np.repeat(np.arange(len(lengths)), lengths)
        places = np.arange(len(rows)) - np.repeat(offsets[:-1] - offsets[0], lengths)
        padded = np.zeros((len(lengths), width), np.int64)
        padded[rows, places] = self.tables[name][codes + 1]
        return padded


def _encoded_schema(spec: FeatureSpec) -> pa.Schema:
    fields = []
    for feature in spec.features:
        kind = {"numeric": pa.float32(), "opaque": pa.binary()}.get(feature.kind, pa.int32())
        fields.append((feature.name, pa.list_(kind) if feature.multivalent else kind))
    fields += [(name, pa.float32()) for name in (spec.label, *spec.outcomes)]
    return pa.schema(fields)


@dataclasses.dataclass(frozen=True)
class EncodedImpressions:
    """A source of impressions, encoded.

    Attributes:
      fitted: What turns encoded rows into the inputs of a model.
      sets: Split to its rows.
      examples: Some raw examples of the validation set, serialised.
      left_out: Number of corrupt lines.
    """

    fitted: FittedImpressions
    sets: Mapping[str, EncodedSet]
    examples: list[bytes]
    left_out: int = 0


def encode(
    spec: FeatureSpec,
    parts: Iterable[tuple[pa.Table, Mapping[str, NDArray[Any]]]],
    directory: Path | None = None,
    left_out: Callable[[], int] = lambda: 0,
) -> EncodedImpressions:
    """Encodes impressions.

    Args:
      spec: The raw features.
      parts: Rows, and the numbers of those that belong to each split.
      directory: Folder to write to, for `encoded_in`; None to keep all in memory.
      left_out: Returns the number of corrupt lines, once all rows were read.
    """
    encoder = ImpressionEncoder(spec)
    unfinished = None
    if directory is not None:
        unfinished = directory.with_name(f"{directory.name}.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
    schema = _encoded_schema(spec)
    sinks = {s: Sink(schema, unfinished and unfinished / f"{s}.arrow", GROUP_ROWS) for s in SPLITS}
    examples: list[bytes] = []
    for table, rows in parts:
        encoded = encoder.add(table)
        for split, some in rows.items():
            part = encoded
            if len(some) < table.num_rows:
                part = encoded.take(pa.array(some))
            if split == "train":
                encoder.count(part)
            elif split == "validation" and len(examples) < _EXAMPLES:
                wanted = pa.array(some[: _EXAMPLES - len(examples)])
                examples += to_examples(table.take(wanted), spec, limit=_EXAMPLES)
            if part.num_rows:
                sinks[split].write(part)
    sets = {split: sink.close() for split, sink in sinks.items()}
    if unfinished is not None and directory is not None:
        encoder.save(unfinished)
        described = {
            "widths": {split: dict(sink.widths) for split, sink in sinks.items()},
            "left_out": left_out(),
        }
        with tf.io.TFRecordWriter(str(unfinished / "examples.tfrecord")) as writer:
            for example in examples:
                writer.write(example)
        atomic_write(unfinished / _DONE, json.dumps(described) + "\n")
        shutil.rmtree(directory, ignore_errors=True)
        unfinished.rename(directory)
        found = encoded_in(directory, spec)
        assert found is not None
        return found
    fitted = encoder.fit(sets["train"].batches)
    return EncodedImpressions(fitted, sets, examples, left_out())


def encoded_in(directory: Path, spec: FeatureSpec) -> EncodedImpressions | None:
    """Returns what `encode` wrote to a folder; None if there is nothing whole."""
    if not (directory / _DONE).exists():
        return None
    described = json.loads((directory / _DONE).read_text())
    encoder = ImpressionEncoder(spec)
    encoder.load(directory)
    sets = {s: mapped_set(directory / f"{s}.arrow", described["widths"][s]) for s in SPLITS}
    records = tf.data.TFRecordDataset(str(directory / "examples.tfrecord"))
    return EncodedImpressions(
        encoder.fit(sets["train"].batches),
        sets,
        [record.numpy() for record in records],
        described["left_out"],
    )
