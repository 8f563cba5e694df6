"""Tables for the tests of one's own files: each record type reads the same columns.

A table has the columns `user`, `item`, `time`, `count` (int64), `price` (float32) and `label` (0 or
1); a record type reads those of `COLUMNS`. `read` gives back what it read as plain dictionaries.
"""

from __future__ import annotations

import bz2
import csv
import functools
import gzip
import inspect
import io
import json
import lzma
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import yaml

from tfrz.config import from_mapping
from tfrz.data.histories.readers import TabularCandidates
from tfrz.data.histories.spec import CandidateSpec
from tfrz.data.records import open_source
from tfrz.data.sources.files import CorruptLine
from tfrz.data.sources.raw import Dialect

COUNT = {"name": "count", "dtype": "int64"}
PRICE = {"name": "price", "kind": "numeric", "dtype": "float32"}
SPECS: dict[str, dict[str, Any]] = {
    "impression": {
        "label": "label",
        "features": [{"name": "user"}, {"name": "item"}, COUNT, PRICE],
    },
    "history": {"context": [COUNT, PRICE]},
    "logged_action": {"reward": "label", "context": [COUNT, PRICE]},
    "list": {"query": "user", "relevance": "label", "candidate": [COUNT, PRICE]},
    "timeline": {"action": None, "binary": ["label"], "value": "price"},
    "catalogue": {"item": "item", "features": [{"name": "user"}, COUNT, PRICE]},
}
COLUMNS: dict[str, tuple[str, ...]] = {
    "impression": ("user", "item", "count", "price", "label"),
    "history": ("user", "item", "time", "count", "price"),
    "logged_action": ("user", "item", "time", "count", "price", "label"),
    "list": ("user", "item", "count", "price", "label"),
    "timeline": ("user", "item", "time", "price", "label"),
    "catalogue": ("item", "user", "count", "price"),
}
# What a record type calls a column.
_CALLED = {
    "list": {"query": "user", "relevance": "label"},
    "timeline": {"value": "price", "label_label": "label"},
}
# Columns without which a row is corrupt.
REQUIRED: dict[str, tuple[str, ...]] = {
    "impression": ("label",),
    "history": ("user", "item", "time"),
    "logged_action": ("user", "item", "time", "label"),
    "list": ("user", "item", "label"),
    "timeline": ("user", "time"),
    "catalogue": ("item",),
}
RECORDS = tuple(SPECS)
ROW: dict[str, Any] = {
    "user": "u1",
    "item": "i1",
    "time": 1_600_000_000,
    "count": 3,
    "price": 1.5,
    "label": 1,
}
NAMES = tuple(ROW)


def each_record(*records: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Runs a test with each type of records (or some of them) as its argument `record`."""

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(test)

        @functools.wraps(test)
        def run(**given: Any) -> None:
            folder, failed = given["tmp_path"], []
            for record in records or RECORDS:
                (own := folder / record).mkdir()
                try:
                    test(**{**given, "tmp_path": own, "record": record})
                except Exception as error:
                    error.add_note(f"as records of type {record}")
                    failed.append(error)
            if failed:
                raise failed[0] if len(failed) == 1 else ExceptionGroup("records", failed)

        kept = [p for name, p in signature.parameters.items() if name != "record"]
        run.__signature__ = signature.replace(parameters=kept)  # type: ignore[attr-defined]
        return run

    return decorate


class Read(NamedTuple):
    """What a reader made of files: its rows, and `line: reason` for each corrupt one."""

    rows: list[dict[str, Any]]
    corrupt: list[str]


def read(record: str, path: Path | str, **dialect: Any) -> Read:
    """Reads files as records of a type."""
    spec = SPECS[record]
    folder = Path(path).parent if "://" not in str(path) else Path(dialect.pop("folder"))
    if record == "catalogue":
        described = from_mapping(CandidateSpec, {**spec, "file": str(path)}, "spec")
        reader: Any = TabularCandidates(described, from_mapping(Dialect, dialect, "spec"))
    else:
        file = folder / f"{record}.spec.yaml"
        file.write_text(yaml.safe_dump({**spec, **dialect}))
        reader = open_source(str(path), str(file), record)
    return read_all(record, reader)


def read_all(record: str, reader: Any) -> Read:
    """Reads all shards of a reader."""
    rows, corrupt = [], []
    for shard in reader.shards():
        for item in reader.read(shard):
            if isinstance(item, CorruptLine):
                assert "\n" not in str(item), f"{item} has several lines"
                corrupt.append(f"{item.line}: {item.reason}")
            else:
                rows += [_plain(record, row) for row in item.to_pylist()]
    return Read(rows, corrupt)


def _plain(record: str, row: Mapping[str, Any]) -> dict[str, Any]:
    called = _CALLED.get(record, {})
    out = {called.get(name, name): _one(value) for name, value in row.items()}
    return {name: out[name] for name in COLUMNS[record]}


def _one(value: Any) -> Any:
    """A cell: None if it is missing."""
    if isinstance(value, list):
        assert len(value) <= 1, value
        value = value[0] if value else None
    if isinstance(value, bytes):
        value = value.decode()
    return None if value == "" or value != value or value == -(2**63) else value


def expected(record: str, *rows: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What a record type should read from rows, each `ROW` with changes."""
    return [{name: {**ROW, **row}[name] for name in COLUMNS[record]} for row in rows]


def csv_text(
    rows: Sequence[Mapping[str, Any]], delimiter: str = ",", end: str = "\n", **options: Any
) -> str:
    """Rows as CSV with a header; a missing value is an empty cell."""
    out = io.StringIO(newline="")
    writer = csv.writer(out, delimiter=delimiter, lineterminator=end, **options)
    writer.writerow(NAMES)
    for row in rows:
        full = {**ROW, **row}
        writer.writerow(["" if full[name] is None else full[name] for name in NAMES])
    return out.getvalue()


def json_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as JSON lines."""
    return "".join(json.dumps({**ROW, **row}, ensure_ascii=False) + "\n" for row in rows)


def arrow_table(rows: int = 1, **columns: pa.Array) -> pa.Table:
    """A table of rows of `ROW` with other columns instead of some of its own."""
    own = {name: pa.array([value] * rows) for name, value in ROW.items()}
    return pa.table({**own, **columns})


def compressed(data: bytes, ending: str) -> bytes:
    """Compresses as an ending of a name says, `.gz` for instance."""
    compress = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": _zstd}
    return compress[ending](data) if ending else data


def _zstd(data: bytes) -> bytes:
    out = pa.BufferOutputStream()
    with pa.CompressedOutputStream(out, "zstd") as stream:
        stream.write(data)
    return out.getvalue().to_pybytes()
