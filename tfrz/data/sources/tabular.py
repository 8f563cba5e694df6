"""Your own files: CSV, Parquet, or TFRecords of `tf.Example`s, described by a feature spec.

The spec is a YAML file:

    label: clicked
    separator: "|"            # between the values of a multivalent feature in CSV; optional
    features:
      - {name: user, dtype: string}
      - {name: tags, multivalent: true}
      - {name: price, kind: numeric, dtype: float32, log_offset: 1.0}
"""

from __future__ import annotations

import abc
import csv
import io
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tensorflow as tf
from google.protobuf.message import DecodeError
from typing_extensions import override

from tfrz.config import from_mapping, read_yaml
from tfrz.data.columns import ARROW
from tfrz.data.impressions.spec import FeatureSpec
from tfrz.data.sources.files import CorruptLine, Shard, TextSource, corrupt, row_group
from tfrz.data.sources.reader import Reader
from tfrz.data.spec import Feature
from tfrz.errors import InputError

_ROWS_A_BATCH = 8192
# Maps columns to the values of a row, as they are in the file.
RawValues = Mapping[str, list[Any]]
NumberedRow = tuple[int, dict[str, Any]]
SpecT = TypeVar("SpecT")
_Parsed = TypeVar("_Parsed")


class UnreadableError(ValueError):
    """Raised for a row that cannot be read; the message is the reason."""


class RawRow(NamedTuple):
    """A row whose values are not converted to their types yet.

    Attributes:
      line: Number of the line, from 1.
      values: Values of the row.
      text: First characters of the line.
      where: Part of the record that the row comes from, for messages.
      position: Position in the source; `line` if not given.
    """

    line: int
    values: RawValues
    text: str = ""
    where: str = ""
    position: int | None = None


class TabularFile(abc.ABC, Generic[SpecT]):
    """Reads a CSV, Parquet or TFRecord file row by row; a record type says what a row is."""

    name = "file"
    spec: SpecT

    def _open(
        self, path: str, separator: str = "|", named: str = "the path given to --data"
    ) -> None:
        self.path, self.separator = path, separator
        if not Path(path).exists():
            raise InputError(f"{path} does not exist: check {named}")
        plain = path[:-3] if path.endswith(".gz") else path
        self.format = plain.rpartition(".")[2]
        if self.format not in ("csv", "tsv", "parquet", "tfrecord"):
            raise InputError(f"{path}: the name must end in .csv, .tsv, .parquet or .tfrecord")

    def feature_spec(self) -> SpecT:
        """See `Reader`."""
        return self.spec

    def files(self) -> list[str]:
        """See `Reader`."""
        return [self.path]

    def _check_columns(self, present: list[str]) -> None:
        for name in self._names:
            if name not in present:
                raise InputError(
                    f"{self.path} has no column {name!r} (it has {', '.join(present[:12])}): "
                    "correct the file or the feature spec"
                )

    def _header(self) -> list[str]:
        with TextSource(self.path).open() as file:
            line = file.readline().decode("utf-8", "replace").rstrip("\r\n")
        return next(csv.reader([line], delimiter=self._delimiter), [])

    @property
    def _delimiter(self) -> str:
        return "\t" if self.format == "tsv" else ","

    def shards(self) -> list[Shard]:
        """See `Reader`."""
        if self.format in ("csv", "tsv"):
            shards = TextSource(self.path).shards()
            self._check_columns(self._header())
            return shards
        if self.format == "parquet":
            try:
                file = pq.ParquetFile(self.path)
            except (pa.ArrowException, OSError) as error:
                raise InputError(f"{self.path} is not a Parquet file: {error}") from error
            self._check_columns(file.schema_arrow.names)
            return [Shard(self.path, "", g, g + 1) for g in range(file.num_row_groups)]
        return [Shard(self.path)]

    def read(self, shard: Shard) -> Iterator[pa.RecordBatch | CorruptLine]:
        """See `Reader`."""
        read = {"tfrecord": self._examples, "parquet": self._parquet_rows}
        gathered: list[NumberedRow] = []
        for raw in read.get(self.format, self._csv_rows)(shard):
            if isinstance(raw, CorruptLine):
                yield raw
                continue
            try:
                gathered.append((raw.position or raw.line, self._row(raw.values)))
            except UnreadableError as error:
                yield CorruptLine(self.path, raw.line, f"{raw.where}{error}", raw.text)
                continue
            if len(gathered) == _ROWS_A_BATCH:
                yield self._batch(gathered)
                gathered = []
        if gathered:
            yield self._batch(gathered)

    @property
    @abc.abstractmethod
    def _names(self) -> list[str]:
        """Columns to read."""

    @property
    def _multivalent(self) -> tuple[Feature, ...]:
        """Columns whose CSV cells may contain several values."""
        return ()

    @abc.abstractmethod
    def _row(self, raw: RawValues) -> dict[str, Any]:
        """Converts the values of a row to their types.

        Raises:
          UnreadableError: A value is missing or invalid.
        """

    @abc.abstractmethod
    def _batch(self, rows: list[NumberedRow]) -> pa.RecordBatch:
        """Converts rows to a batch."""

    def _csv_rows(self, shard: Shard) -> Iterator[RawRow | CorruptLine]:
        header = self._header()
        multivalent = {f.name for f in self._multivalent}
        for i, line in enumerate(TextSource(self.path).lines(shard)):
            if shard.first_line + i == 1:
                continue
            decoded = line.decode("utf-8", "replace")
            fields = next(csv.reader(io.StringIO(decoded), delimiter=self._delimiter), [])
            if len(fields) != len(header):
                reason = f"{len(fields)} fields instead of {len(header)}"
                yield corrupt(shard, i, reason, line)
                continue
            cells = dict(zip(header, fields, strict=True))
            values = {
                name: [
                    value
                    for value in (
                        cells[name].split(self.separator) if name in multivalent else [cells[name]]
                    )
                    if value
                ]
                for name in self._names
            }
            yield RawRow(shard.first_line + i, values, line[:80].decode("utf-8", "replace"))

    def _parquet_rows(self, shard: Shard) -> Iterator[RawRow | CorruptLine]:
        table, number = row_group(shard, self._names)
        for batch in table.to_batches(_ROWS_A_BATCH):
            for values in batch.to_pylist():
                number += 1
                raw = {
                    n: v if isinstance(v, list) else [] if v is None else [v]
                    for n, v in values.items()
                }
                yield RawRow(number, raw)

    def _records(
        self, shard: Shard, parse: Callable[[bytes], _Parsed], named: str
    ) -> Iterator[tuple[int, _Parsed | CorruptLine]]:
        """Yields the parsed records of a TFRecord file with their numbers."""
        compression = "GZIP" if self.path.endswith(".gz") else ""
        records = tf.data.TFRecordDataset(shard.path, compression_type=compression)
        try:
            for number, record in enumerate(records, start=1):
                try:
                    yield number, parse(record.numpy())
                except DecodeError:
                    yield number, CorruptLine(self.path, number, f"is not {named}", "")
        except tf.errors.DataLossError as error:
            raise InputError(f"{self.path} is not a TFRecord file, or damaged") from error

    def _examples(self, shard: Shard) -> Iterator[RawRow | CorruptLine]:
        for number, example in self._records(shard, tf.train.Example.FromString, "a tf.Example"):
            if isinstance(example, CorruptLine):
                yield example
            else:
                yield RawRow(number, {name: stored_values(example, name) for name in self._names})


class Tabular(TabularFile[FeatureSpec], Reader):
    """Your own file with a row per impression.

    Args:
      path: Path `*.csv[.gz]`, `*.tsv[.gz]`, `*.parquet` or `*.tfrecord[.gz]`.
      features: Path of the feature spec, a YAML file.
    """

    def __init__(self, path: str, features: str) -> None:
        mapping = read_yaml(features)
        self._open(path, str(mapping.pop("separator", "|")))
        self.spec = from_mapping(FeatureSpec, mapping, features)

    @property
    @override
    def _names(self) -> list[str]:
        return [*(f.name for f in self.spec.features), self.spec.label]

    @property
    @override
    def _multivalent(self) -> tuple[Feature, ...]:
        return self.spec.multivalent

    @override
    def _row(self, raw: RawValues) -> dict[str, Any]:
        row: dict[str, Any] = {f.name: values_of(raw, f) for f in self.spec.features}
        try:
            label = [float(v) for v in raw[self.spec.label]]
        except (ValueError, TypeError):
            label = []
        if len(label) != 1 or label[0] not in (0.0, 1.0):
            raise UnreadableError(f"{self.spec.label} is neither 0 nor 1")
        return row | {self.spec.label: label}

    @override
    def _batch(self, rows: list[NumberedRow]) -> pa.RecordBatch:
        dtypes = {f.name: f.dtype for f in self.spec.features} | {self.spec.label: "float32"}
        return pa.RecordBatch.from_pydict(list_columns(rows, {n: dtypes[n] for n in self._names}))


def list_columns(rows: list[NumberedRow], dtypes: Mapping[str, str]) -> dict[str, pa.Array]:
    """Returns the columns of lists of rows, by their dtypes."""
    return {
        name: pa.array([row[name] for _, row in rows], pa.list_(ARROW[dtype]))
        for name, dtype in dtypes.items()
    }


def stored_values(example: tf.train.Example, name: str) -> list[Any]:
    """Returns the values of a feature of a `tf.train.Example`; empty if it is missing."""
    if name not in example.features.feature:
        return []
    stored = example.features.feature[name]
    kind = stored.WhichOneof("kind")
    return list(getattr(stored, kind).value) if kind else []


def typed(dtype: str, value: Any) -> Any:
    """Converts a raw value to `dtype`.

    Raises:
      ValueError: The value cannot be converted.
    """
    if dtype == "string":
        return value if isinstance(value, bytes) else str(value).encode()
    if dtype == "int64":
        return int(value)
    return float(np.float32(value))


def values_of(raw: RawValues, feature: Feature) -> list[Any]:
    """Returns the values of a feature, converted to its type.

    Raises:
      UnreadableError: A value has another type, or there are too many.
    """
    given = raw[feature.name]
    try:
        values = [typed(feature.dtype, value) for value in given]
    except (ValueError, TypeError):
        raise UnreadableError(f"{feature.name} is not {feature.dtype}: {given!r:.40}") from None
    if len(values) > 1 and not feature.multivalent:
        raise UnreadableError(f"{feature.name} has {len(values)} values but is not multivalent")
    return values


def first_of(raw: RawValues, feature: Feature) -> Any:
    """Returns the first value of a feature, converted to its type; None if there is none.

    Raises:
      UnreadableError: The value has another type.
    """
    given = raw[feature.name]
    try:
        return typed(feature.dtype, given[0]) if given else None
    except (ValueError, TypeError):
        raise UnreadableError(f"{feature.name} is not {feature.dtype}: {given!r:.40}") from None


def key_in(raw: RawValues, column: str) -> bytes:
    """Returns the value of a required column as bytes.

    Raises:
      UnreadableError: There is no value, or several.
    """
    values = [value for value in raw[column] if value not in ("", b"")]
    if len(values) != 1:
        raise UnreadableError(f"{column} {'has several values' if values else 'is missing'}")
    return values[0] if isinstance(values[0], bytes) else str(values[0]).encode()


def time_in(raw: RawValues, column: str, parse: Callable[[Any], int] = int) -> int:
    """Returns the value of a required column of times.

    Raises:
      UnreadableError: There is not exactly one value, or it is not a time.
    """
    try:
        (seconds,) = (parse(value) for value in raw[column])
    except (ValueError, TypeError, OverflowError):
        what = f"is not a time in whole Unix seconds: {raw[column]!r:.40}"
        raise UnreadableError(f"{column} {what}") from None
    if seconds < 0:
        raise UnreadableError(f"{column} is negative: {seconds}")
    return seconds
