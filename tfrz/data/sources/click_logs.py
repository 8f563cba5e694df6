"""Click logs in the formats of Criteo (Kaggle) and Avazu (Kaggle)."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
from typing_extensions import override

from tfrz.data.columns import one_each
from tfrz.data.impressions.spec import FeatureSpec
from tfrz.data.sources.files import CorruptLine, Shard, TextSource, corrupt
from tfrz.data.sources.reader import Reader
from tfrz.data.spec import Feature, numeric
from tfrz.errors import InputError

CRITEO_NUMERIC = tuple(f"I{i}" for i in range(1, 14))

CRITEO_CATEGORICAL = tuple(f"C{i}" for i in range(1, 27))

AVAZU_COLUMNS = [
    "id",
    "click",
    "hour",
    "C1",
    "banner_pos",
    "site_id",
    "site_domain",
    "site_category",
    "app_id",
    "app_domain",
    "app_category",
    "device_id",
    "device_ip",
    "device_model",
    "device_type",
    "device_conn_type",
    "C14",
    "C15",
    "C16",
    "C17",
    "C18",
    "C19",
    "C20",
    "C21",
]

_AVAZU_FEATURES = AVAZU_COLUMNS[3:]


class ClickLog(Reader):
    """Click logs with one impression per line.

    Criteo: tab-separated `label, I1..I13, C1..C26`; empty fields are missing. Numbers get the log
    transform of the DCN-V2 paper: log(x + 4) for I2, log(x + 1) for the others.
    Avazu: comma-separated, 24 columns, with or without a header; `hour` (YYMMDDHH) becomes
    `hour_of_day` and `weekday`, `id` is not a feature.

    Args:
      path: A file, or a folder whose `*train*` files are read.
      layout: "criteo" or "avazu".
      min_count: Categorical values that occur less often are out of vocabulary.
    """

    def __init__(self, path: str, layout: str, min_count: int = 1) -> None:
        self.name, self.path, self.layout, self.min_count = layout, path, layout, min_count

    @override
    def feature_spec(self) -> FeatureSpec:
        if self.layout == "criteo":
            features = [numeric(n, 4.0 if n == "I2" else 1.0) for n in CRITEO_NUMERIC]
            names: tuple[str, ...] = CRITEO_CATEGORICAL
        else:
            features, names = [], ("hour_of_day", "weekday", *_AVAZU_FEATURES)
        features += [Feature(name, min_count=self.min_count) for name in names]
        return FeatureSpec(tuple(features))

    @override
    def files(self) -> list[str]:
        path = Path(self.path)
        if path.is_dir():
            found = sorted(str(p) for p in path.iterdir() if "train" in p.name and p.is_file())
            if not found:
                raise InputError(f"{path} has no file with 'train' in its name: name the file")
            return found
        return [self.path]

    @property
    def _separator(self) -> bytes:
        return b"\t" if self.layout == "criteo" else b","

    @property
    def _width(self) -> int:
        return 40 if self.layout == "criteo" else len(AVAZU_COLUMNS)

    @override
    def shards(self) -> list[Shard]:
        shards = []
        for path in self.files():
            source = TextSource(path)
            parts = source.shards()
            first = next(source.lines(parts[0]))
            if len(first.split(self._separator)) != self._width:
                separator = "tabs" if self.layout == "criteo" else "commas"
                raise InputError(
                    f"{path}:1: expected {self._width} fields between {separator}, got "
                    f"{len(first.split(self._separator))}: is it a {self.layout} file?"
                )
            shards += parts
        return shards

    @override
    def read(self, shard: Shard) -> Iterator[pa.RecordBatch | CorruptLine]:
        for part, lines in TextSource(shard.path).chunks(shard):
            yield from self._rows(part, lines)

    def _rows(self, shard: Shard, lines: list[bytes]) -> Iterator[pa.RecordBatch | CorruptLine]:
        parse = _criteo if self.layout == "criteo" else _avazu
        columns: dict[str, list[bytes | float | None]] = {}
        for i, line in enumerate(lines):
            if self.layout == "avazu" and shard.first_line + i == 1 and line.startswith(b"id,"):
                continue
            fields = line.split(self._separator)
            if len(fields) != self._width:
                reason = f"{len(fields)} fields instead of {self._width}"
                yield corrupt(shard, i, reason, line)
                continue
            row = parse(fields)
            if isinstance(row, str):
                yield corrupt(shard, i, row, line)
                continue
            for name, value in row.items():
                columns.setdefault(name, []).append(value)
        if columns:
            spec = self.feature_spec()
            dtypes = {f.name: f.dtype for f in spec.features} | {"label": "float32"}
            yield pa.RecordBatch.from_pydict(
                {name: one_each(values, dtypes[name]) for name, values in columns.items()}
            )


def _label(field: bytes) -> float | None:
    return {b"0": 0.0, b"1": 1.0}.get(field)


def _criteo(fields: list[bytes]) -> dict[str, bytes | float | None] | str:
    label = _label(fields[0])
    if label is None:
        return "the label is neither 0 nor 1"
    row: dict[str, bytes | float | None] = {"label": label}
    for name, field in zip(CRITEO_NUMERIC, fields[1:14], strict=True):
        try:
            row[name] = float(int(field)) if field else np.nan
        except ValueError:
            return f"{name} is not a whole number"
    for name, field in zip(CRITEO_CATEGORICAL, fields[14:], strict=True):
        row[name] = field or None
    return row


def _avazu(fields: list[bytes]) -> dict[str, bytes | float | None] | str:
    label = _label(fields[1])
    if label is None:
        return "click is neither 0 nor 1"
    try:
        hour = datetime.datetime.strptime(fields[2].decode(), "%y%m%d%H")
    except (ValueError, UnicodeDecodeError):
        return "hour is not written as YYMMDDHH"
    row: dict[str, bytes | float | None] = {"label": label}
    row["hour_of_day"], row["weekday"] = b"%d" % hour.hour, b"%d" % hour.weekday()
    for name, field in zip(_AVAZU_FEATURES, fields[3:], strict=True):
        row[name] = field or None
    return row
