"""A user's own file: CSV, Parquet, or TFRecords of `tf.Example`s, described by a feature spec.

The spec is a YAML file:

    label: clicked
    separator: "|"            # between the values of a multivalent feature in CSV; optional
    features:
      - {name: user, dtype: string}
      - {name: tags, multivalent: true}
      - {name: price, kind: numeric, dtype: float32, log_offset: 1.0}
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tfrz.config import from_mapping, read_yaml
from tfrz.data.columns import ARROW
from tfrz.data.impressions.spec import FeatureSpec
from tfrz.data.sources.files import CorruptLine, Shard, TextSource, corrupt
from tfrz.data.sources.reader import Reader
from tfrz.data.spec import Feature
from tfrz.errors import InputError

_ROWS_A_BATCH = 8192


class Tabular(Reader):
    """Rows of a file with a feature spec.

    Args:
      path: `*.csv[.gz]`, `*.tsv[.gz]`, `*.parquet` or `*.tfrecord[.gz]`.
      features: the spec's YAML file.
    """

    name = "file"
    spec: Any

    def __init__(self, path: str, features: str) -> None:
        mapping = read_yaml(features)
        self._open(path, str(mapping.pop("separator", "|")))
        self.spec = from_mapping(FeatureSpec, mapping, features)

    def _open(
        self, path: str, separator: str = "|", named: str = "the path given to --data"
    ) -> None:
        self.path, self.separator = path, separator
        if not Path(path).exists():
            raise InputError(f"{path} does not exist: check {named}")
        plain = path[:-3] if path.endswith(".gz") else path
        self.format = plain.rpartition(".")[2]
        if self.format not in ("csv", "tsv", "parquet", "tfrecord"):
            raise InputError(
                f"{path}: the name must end in .csv, .tsv, .parquet or .tfrecord to be read"
            )

    def feature_spec(self) -> Any:
        """See `Reader`."""
        return self.spec

    def files(self) -> list[str]:
        """See `Reader`."""
        return [self.path]

    @property
    def _multivalent(self) -> tuple[Feature, ...]:
        return self.spec.multivalent

    @property
    def _names(self) -> list[str]:
        return [f.name for f in self.spec.features] + [self.spec.label]

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
        if self.format == "tfrecord":
            rows = self._examples(shard)
        elif self.format == "parquet":
            rows = self._parquet_rows(shard)
        else:
            rows = self._csv_rows(shard)
        gathered: list[tuple[int, dict[str, Any]]] = []
        for row in rows:
            if isinstance(row, CorruptLine):
                yield row
                continue
            gathered.append(row)
            if len(gathered) == _ROWS_A_BATCH:
                yield self._batch(gathered)
                gathered = []
        if gathered:
            yield self._batch(gathered)

    def _batch(self, rows: list[tuple[int, dict[str, Any]]]) -> pa.RecordBatch:
        """Numbered rows as Arrow columns."""
        dtypes = {f.name: f.dtype for f in self.spec.features} | {self.spec.label: "float32"}
        return pa.RecordBatch.from_pydict(
            {
                name: pa.array([row[name] for _, row in rows], pa.list_(ARROW[dtypes[name]]))
                for name in self._names
            }
        )

    def _features(
        self, raw: dict[str, list[Any]], features: Iterable[Feature]
    ) -> dict[str, Any] | str:
        """The values of some features in their types, or what is wrong with them."""
        row: dict[str, Any] = {}
        for feature in features:
            try:
                row[feature.name] = [typed(feature.dtype, v) for v in raw[feature.name]]
            except (ValueError, TypeError):
                return f"{feature.name} is not {feature.dtype}: {raw[feature.name]!r:.40}"
            if len(row[feature.name]) > 1 and not feature.multivalent:
                return f"{feature.name} has {len(row[feature.name])} values but is not multivalent"
        return row

    def _row(self, raw: dict[str, list[Any]]) -> dict[str, Any] | str:
        """The values of a row in their types, or what is wrong with them."""
        row = self._features(raw, self.spec.features)
        if isinstance(row, str):
            return row
        try:
            label = [float(v) for v in raw[self.spec.label]]
        except (ValueError, TypeError):
            label = []
        if len(label) != 1 or label[0] not in (0.0, 1.0):
            return f"{self.spec.label} is neither 0 nor 1"
        row[self.spec.label] = label
        return row

    def _csv_rows(self, shard: Shard) -> Iterator[tuple[int, dict[str, Any]] | CorruptLine]:
        header = self._header()
        multivalent = {f.name for f in self._multivalent}
        for i, line in enumerate(TextSource(self.path).lines(shard)):
            if shard.first_line + i == 1:
                continue
            text = io.StringIO(line.decode("utf-8", "replace"))
            fields = next(csv.reader(text, delimiter=self._delimiter), [])
            if len(fields) != len(header):
                reason = f"{len(fields)} fields instead of {len(header)}"
                yield corrupt(shard, i, reason, line)
                continue
            cells = dict(zip(header, fields, strict=True))
            raw = {
                name: (
                    [v for v in cells[name].split(self.separator) if v]
                    if name in multivalent
                    else [cells[name]]
                    if cells[name]
                    else []
                )
                for name in self._names
            }
            row = self._row(raw)
            number = shard.first_line + i
            yield corrupt(shard, i, row, line) if isinstance(row, str) else (number, row)

    def _parquet_rows(self, shard: Shard) -> Iterator[tuple[int, dict[str, Any]] | CorruptLine]:
        file = pq.ParquetFile(self.path)
        before = sum(file.metadata.row_group(g).num_rows for g in range(shard.start))
        table = file.read_row_group(shard.start, columns=self._names)
        number = before
        for batch in table.to_batches(_ROWS_A_BATCH):
            for values in batch.to_pylist():
                number += 1
                raw = {
                    n: v if isinstance(v, list) else [] if v is None else [v]
                    for n, v in values.items()
                }
                row = self._row(raw)
                if isinstance(row, str):
                    yield CorruptLine(self.path, number, row, "")
                else:
                    yield number, row

    def _examples(self, shard: Shard) -> Iterator[tuple[int, dict[str, Any]] | CorruptLine]:
        import tensorflow as tf

        compression = "GZIP" if self.path.endswith(".gz") else ""
        records = tf.data.TFRecordDataset(shard.path, compression_type=compression)
        try:
            for number, record in enumerate(records, start=1):
                example = tf.train.Example()
                try:
                    example.ParseFromString(record.numpy())
                except Exception:  # protobuf's DecodeError has a home in each implementation
                    yield CorruptLine(self.path, number, "is not a tf.Example", "")
                    continue
                raw: dict[str, list[Any]] = {}
                for name in self._names:
                    stored = example.features.feature[name]
                    kind = stored.WhichOneof("kind")
                    raw[name] = list(getattr(stored, kind).value) if kind else []
                row = self._row(raw)
                if isinstance(row, str):
                    yield CorruptLine(self.path, number, row, "")
                else:
                    yield number, row
        except tf.errors.DataLossError as error:
            raise InputError(f"{self.path} is not a TFRecord file, or damaged") from error


def typed(dtype: str, value: Any) -> Any:
    """A raw value as `dtype`.

    Raises:
      ValueError: it is not one.
    """
    if dtype == "string":
        return value if isinstance(value, bytes) else str(value).encode()
    if dtype == "int64":
        return int(value)
    return float(np.float32(value))
