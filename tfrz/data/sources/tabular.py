"""Your own files: CSV, JSON lines, Parquet or TFRecords of `tf.Example`s, described by a spec.

The spec is a YAML file:

    label: clicked
    separator: "|"            # between the values of a multivalent feature in CSV; optional
    features:
      - {name: user, dtype: string}
      - {name: tags, multivalent: true}
      - {name: price, kind: numeric, dtype: float32, log_offset: 1.0}

The fields of `Dialect` say how text files are written.
"""

from __future__ import annotations

import abc
import copy
from collections.abc import Iterator, Sequence
from typing import Any, Generic, Self, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from typing_extensions import override

from tfrz.config import from_mapping, read_yaml
from tfrz.data.impressions.spec import FeatureSpec
from tfrz.data.sources.files import CorruptLine, Shard
from tfrz.data.sources.raw import Dialect, Raw, RawFiles, pop_dialect
from tfrz.data.sources.reader import Reader
from tfrz.data.sources.values import Rows
from tfrz.data.spec import Feature
from tfrz.data.splits import SPLIT_COLUMN, TIME_COLUMN

SpecT = TypeVar("SpecT")
# Before the name of a column that is copied from a file as it is.
COPIED = "copied:"


class TabularFile(abc.ABC, Generic[SpecT]):
    """Reads your own files batch by batch; a record type says what a row is."""

    name = "file"
    # Whether labels and outcomes are read; data to be predicted need not have them.
    labelled = True
    # Whether texts are read as dictionaries.
    coded = False
    spec: SpecT
    raw: RawFiles

    def _open(self, path: str, dialect: Dialect, named: str = "the path given to --data") -> None:
        """Finds the files; `spec` is set before."""
        self.path = path
        columns = self._columns
        exact = [feature.name for feature in columns if feature.dtype != "float32"]
        coded = [
            f.name for f in columns if self.coded and f.dtype == "string" and not f.multivalent
        ]
        self.raw = RawFiles(path, [f.name for f in columns], dialect, named, exact, coded)

    def unlabelled(self) -> Self:
        """Returns a reader of the same files that does not read labels and outcomes."""
        reader = copy.copy(self)
        reader.labelled = False
        reader._open(self.path, self.raw.dialect)
        return reader

    @property
    def format(self) -> str:
        """The format of the files: csv, json, parquet or tfrecord."""
        return self.raw.format

    def feature_spec(self) -> SpecT:
        """See `Reader`."""
        return self.spec

    def files(self) -> list[str]:
        """See `Reader`."""
        return [file.path for file in self.raw.files]

    def shards(self) -> list[Shard]:
        """See `Reader`."""
        return self.raw.shards()

    def parts(self) -> list[Shard]:
        """See `Reader`."""
        return self.raw.shards(split=False)

    def read(self, shard: Shard) -> Iterator[pa.RecordBatch | CorruptLine]:
        """See `Reader`."""
        file = self.raw.files[shard.number]
        for item in self._raw_batches(shard):
            if isinstance(item, CorruptLine):
                yield item
                continue
            rows = Rows(item, file, self.raw.dialect, shard.number, self.coded)
            batch = self._batch(rows)
            yield from rows.corrupt()
            batch = rows.kept(batch)
            if batch.num_rows:
                yield batch

    def _raw_batches(self, shard: Shard) -> Iterator[Raw]:
        return self.raw.read(shard)

    @property
    @abc.abstractmethod
    def _columns(self) -> list[Feature]:
        """Columns to read, each once; what is no feature is a column of strings."""

    @abc.abstractmethod
    def _batch(self, rows: Rows) -> pa.RecordBatch:
        """Converts rows to a batch of all of them, and says which are corrupt."""


class Tabular(TabularFile[FeatureSpec], Reader):
    """Your own files with a row per impression.

    Args:
      path: A file, a folder, a glob or a list of them: CSV, JSON lines, Parquet or TFRecords.
      features: Path of the feature spec, a YAML file.
    """

    copied: tuple[str, ...] = ()

    def __init__(self, path: str, features: str) -> None:
        mapping = read_yaml(features)
        dialect = pop_dialect(mapping, features)
        self.spec = from_mapping(FeatureSpec, mapping, features)
        self._open(path, dialect)

    @override
    def with_dictionaries(self) -> Self:
        reader = copy.copy(self)
        reader.coded = True
        reader._open(self.path, self.raw.dialect)
        return reader

    def copying(self, names: Sequence[str]) -> Self:
        """Returns a reader whose batches also have columns of the files, as `COPIED + name`."""
        reader = copy.copy(self)
        reader.copied = tuple(dict.fromkeys(names))
        reader._open(self.path, self.raw.dialect)
        return reader

    @property
    @override
    def _columns(self) -> list[Feature]:
        spec, columns = self.spec, list(self.spec.features)
        if self.labelled:
            columns.append(Feature(spec.label))
            added = (name for name in (spec.split, spec.time) if name is not None)
            named = [feature.name for feature in columns]
            columns += [Feature(name) for name in dict.fromkeys(added) if name not in named]
        named = [feature.name for feature in columns]
        return [*columns, *(Feature(name) for name in self.copied if name not in named)]

    @override
    def _batch(self, rows: Rows) -> pa.RecordBatch:
        columns = {feature.name: rows.lists(feature) for feature in self.spec.features}
        if self.labelled:
            columns[self.spec.label] = _as_lists(binary_label(rows, self.spec.label))
        if self.labelled and self.spec.split is not None:
            columns[SPLIT_COLUMN] = rows.splits(self.spec.split)
        if self.labelled and self.spec.time is not None:
            columns[TIME_COLUMN] = rows.times(self.spec.time)
        columns |= {COPIED + name: rows.as_written(name) for name in self.copied}
        return pa.RecordBatch.from_pydict(columns)


def binary_label(rows: Rows, column: str) -> pa.Array:
    """A column of numbers that are 0 or 1, float32; truth values and their names count too."""
    found = rows.labels(column)
    wrong = ~np.isin(found, (0.0, 1.0))
    if wrong.any():
        rows.refuse(np.flatnonzero(wrong), lambda row: f"{column} is neither 0 nor 1")
    return pa.array(np.where(wrong, np.float32(0), found).astype(np.float32))


def _as_lists(column: pa.Array) -> pa.ListArray:
    offsets: NDArray[Any] = np.arange(len(column) + 1, dtype=np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), column)
