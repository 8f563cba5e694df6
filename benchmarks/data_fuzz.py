"""Random tables in every dialect and type, read back through every type of records.

A case is a table of a few rows with awkward values, written by Arrow, pandas, Polars, DuckDB or
Python's own modules as CSV, JSON lines or Parquet. Python's csv and json modules and Arrow's
`to_pylist` read it back; `Oracle` says, value by value and by the rules of docs/data.md, what a
reader of the zoo should make of it. The reader must return the right values, count a corrupt row
where the oracle finds one, or refuse the file in one line.
"""

from __future__ import annotations

import bz2
import collections
import csv
import datetime
import decimal
import gzip
import io
import json
import lzma
import math
import re
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pcsv
import pyarrow.parquet as pq
import yaml
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from tfrz.config import from_mapping
from tfrz.data.histories.readers import TabularCandidates
from tfrz.data.histories.spec import CandidateSpec
from tfrz.data.records import open_source
from tfrz.data.sources.files import CorruptLine
from tfrz.data.sources.raw import Dialect
from tfrz.errors import InputError

NAMES = ("user", "item", "time", "count", "price", "label")
_COUNT = {"name": "count", "dtype": "int64"}
_PRICE = {"name": "price", "kind": "numeric", "dtype": "float32"}
SPECS: dict[str, dict[str, Any]] = {
    "impression": {
        "label": "label",
        "features": [{"name": "user"}, {"name": "item"}, _COUNT, _PRICE],
    },
    "history": {"context": [_COUNT, _PRICE]},
    "logged_action": {"reward": "label", "context": [_COUNT, _PRICE]},
    "list": {"query": "user", "relevance": "label", "candidate": [_COUNT, _PRICE]},
    "timeline": {"action": None, "binary": ["label"], "value": "price"},
    "catalogue": {"item": "item", "features": [{"name": "user"}, _COUNT, _PRICE]},
}
# What a type of records calls a column, and the columns without which a row is corrupt.
_CALLED = {
    "list": {"query": "user", "relevance": "label"},
    "timeline": {"value": "price", "label_label": "label"},
}
_COLUMNS: dict[str, tuple[str, ...]] = {
    "impression": ("user", "item", "count", "price", "label"),
    "history": ("user", "item", "time", "count", "price"),
    "logged_action": ("user", "item", "time", "count", "price", "label"),
    "list": ("user", "item", "count", "price", "label"),
    "timeline": ("user", "item", "time", "price", "label"),
    "catalogue": ("item", "user", "count", "price"),
}
_REQUIRED: dict[str, tuple[str, ...]] = {
    "impression": ("label",),
    "history": ("user", "item", "time"),
    "logged_action": ("user", "item", "time", "label"),
    "list": ("user", "item", "label"),
    "timeline": ("user", "time"),
    "catalogue": ("item",),
}

# Values.

_TEXTS = [
    "u1", "u2", "007", "7", " 7", "18.0", "1e5", "nan", "NULL", "NA", "-", "", "a,b", "a;b",
    "a\tb", "a|b", 'say "x"', '"', "'", "''", "a\nb", "a\r\nb", "a\rb", "\n", "x\x00y", "\ufeffu",
    "é", "日本", "🎈", "0x1F", "true", "False", "9223372036854775808", "\\", "\\N", "#", "{}",
    "[1]", " ", "x" * 300,
]  # fmt: skip
_WHOLE_TEXTS = [
    "3", "-7", "+5", " 4 ", "5.", "6.0", "6.5", "1e3", "007", "-0", "9223372036854775807",
    "9223372036854775808", "-9223372036854775809", "", "x", "0x10", "1_000", "١", "NULL", "3,0",
]  # fmt: skip
_NUMBER_TEXTS = [
    "1.5", "-2", "", "nan", "1e3", "1E-3", ".5", "5.", "x", "1,5", "0x1p3", "1_0", " 2 ", "--1",
    "NA", "1.5.2", "٣", "+.5e+2", "1e", "007",
]  # fmt: skip
_TIME_TEXTS = [
    "1600000000", "1600000000000", "1600000000000000", "1600000000000000000", "2020-09-13",
    "2020-09-13 12:26:40", "2020-09-13T12:26:40Z", "2020-09-13T12:26:40+02:00",
    "2020-09-13 12:26:40.123456", "2020-09-13 12:26:40.5 UTC", "2020-09-13 12:26", "2020-13-13",
    "2020-02-30", "1600000000.5", "1600000000.0", "-5", "", "x", "12.5", "99999999999999999999",
    "13/09/2020", "0",
]  # fmt: skip
_LABEL_TEXTS = ["0", "1", "1", "0", "1.0", "true", "False", "", "2", "x", " 1", "-1", "0.5"]
_WHOLES = [0, 1, 7, -7, 2**31, 2**53, 2**53 + 1, 2**63 - 1, None]
_FLOATS = [0.0, -0.0, 1.0, 18.0, 1.5, -3.25, 2.0**53, 2.0**60, 1e300, math.nan, None]
_SECONDS = [0, 1, 1_600_000_000, 1_700_000_001, 4_000_000_000]
_Forms = Mapping[str, tuple[Sequence[Any], pa.DataType]]


def _decimals(values: Sequence[str]) -> list[decimal.Decimal]:
    return [decimal.Decimal(value) for value in values]


def _moments(zone: datetime.tzinfo | None) -> list[datetime.datetime | None]:
    some = [datetime.datetime.fromtimestamp(s, datetime.UTC) for s in _SECONDS]
    return [*(m if zone else m.replace(tzinfo=None) for m in some), None]


_IDS: _Forms = {
    "text": ([*_TEXTS, None], pa.string()),
    "large text": ([*_TEXTS, None], pa.large_string()),
    "words": (["a", "b", "", None, "é"], pa.dictionary(pa.int8(), pa.string())),
    "bytes": ([b"a", b"\xff", b"", None], pa.binary()),
    "whole": (_WHOLES, pa.int64()),
    "small": ([1, -2, None], pa.int16()),
    "unsigned": ([1, 2**63 - 1, None], pa.uint64()),
    "float": (_FLOATS, pa.float64()),
    "truth": ([True, False, None], pa.bool_()),
    "decimal": ([*_decimals(["7.00", "7.50", "-3.00"]), None], pa.decimal128(10, 2)),
}
_COUNTS: _Forms = {
    "text": ([*_WHOLE_TEXTS, None], pa.string()),
    "whole": (_WHOLES, pa.int64()),
    "small": ([1, -2, None], pa.int8()),
    "unsigned": ([1, 2**63 - 1, 2**63, 2**64 - 1, None], pa.uint64()),
    "float": (_FLOATS, pa.float64()),
    "single": ([1.0, 2.5, None], pa.float32()),
    "truth": ([True, False, None], pa.bool_()),
    "decimal": ([*_decimals(["7.00", "7.50", "-3.00"]), None], pa.decimal128(10, 2)),
}
_PRICES: _Forms = {
    "text": ([*_NUMBER_TEXTS, None], pa.string()),
    "whole": ([0, 3, -4, None], pa.int32()),
    "float": ([0.0, 1.5, -3.25, 1e10, math.nan, None], pa.float64()),
    "single": ([1.0, 2.5, None], pa.float32()),
    "decimal": ([*_decimals(["7.00", "7.50", "-3.00"]), None], pa.decimal128(10, 2)),
}
_TIMES: _Forms = {
    "text": ([*_TIME_TEXTS, None], pa.string()),
    "seconds": ([*_SECONDS, -1, None], pa.int64()),
    "milliseconds": ([s * 1000 + 1 for s in _SECONDS[2:]], pa.int64()),
    "microseconds": ([s * 10**6 + 1 for s in _SECONDS[2:]], pa.int64()),
    "nanoseconds": ([s * 10**9 + 1 for s in _SECONDS[2:]], pa.int64()),
    "float": ([1.6e9, 1.6e9 + 0.5, 12.5, -1.0, math.nan, None], pa.float64()),
    "timestamp": (_moments(None), pa.timestamp("us")),
    "timestamp, ms": (_moments(None), pa.timestamp("ms")),
    "timestamp, zone": (_moments(datetime.UTC), pa.timestamp("us", "UTC")),
    "timestamp, Paris": (_moments(datetime.UTC), pa.timestamp("ns", "Europe/Paris")),
    "date": ([datetime.date(2020, 9, 13), datetime.date(1970, 1, 1), None], pa.date32()),
}
_LABELS: _Forms = {
    "text": ([*_LABEL_TEXTS, None], pa.string()),
    "whole": ([0, 1, 1, 0, 2, None], pa.int64()),
    "small": ([0, 1], pa.int8()),
    "truth": ([True, False, None], pa.bool_()),
    "float": ([0.0, 1.0, 0.5, math.nan, None], pa.float64()),
}
_FORMS: Mapping[str, _Forms] = {
    "user": _IDS,
    "item": _IDS,
    "time": _TIMES,
    "count": _COUNTS,
    "price": _PRICES,
    "label": _LABELS,
}


# What a value should become.

CORRUPT = "corrupt"
_WHOLE = re.compile(r"\s*([+-]?[0-9]+)(\.0*)?\s*")
_NUMBER = re.compile(r"\s*[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?\s*")


class Oracle:
    """The rules of docs/data.md, one value at a time.

    Args:
      record: The type of the records.
      textual: Whether the file is a text file.
      null: Words that stand for a missing value in it.
    """

    def __init__(self, record: str, textual: bool, null: Sequence[str]) -> None:
        self.record, self._null = record, tuple(null) if textual else ()

    def row(self, values: Mapping[str, Any]) -> dict[str, Any] | str:
        """What a row should be read as, or `CORRUPT`."""
        read: dict[str, Callable[[Any], Any]] = {
            "user": self._id,
            "item": self._id,
            "time": self._time,
            "count": self._whole,
            "price": self._price,
            "label": self._label,
        }
        row = {name: read[name](self._present(values[name])) for name in _COLUMNS[self.record]}
        missing = any(row[name] is None for name in _REQUIRED[self.record])
        return CORRUPT if missing or CORRUPT in map(str, row.values()) else row

    def _present(self, value: Any) -> Any:
        """The value; None if it is missing."""
        if isinstance(value, float) and math.isnan(value):
            return None
        absent = value in ("", b"") or (isinstance(value, str) and value in self._null)
        return None if absent else value

    def _id(self, value: Any) -> Any:
        if value is None or isinstance(value, bytes):
            return value
        if isinstance(value, str):
            return CORRUPT if "\x00" in value else value.encode()
        if isinstance(value, float):
            exact = value.is_integer() and abs(value) <= 2**53
            return str(int(value)).encode() if exact else CORRUPT
        if isinstance(value, decimal.Decimal):
            return str(int(value)).encode() if value == int(value) else CORRUPT
        if isinstance(value, int) and not -(2**63) <= value < 2**64:
            return CORRUPT
        return str(value).encode()

    def _whole(self, value: Any) -> Any:
        if isinstance(value, str):
            found = _WHOLE.fullmatch(value)
            value = int(found[1]) if found else CORRUPT
        elif isinstance(value, float):
            value = int(value) if value.is_integer() and abs(value) <= 2**53 else CORRUPT
        elif isinstance(value, decimal.Decimal):
            value = int(value) if value == int(value) else CORRUPT
        if value is None or value == CORRUPT:
            return value
        return int(value) if -(2**63) <= value < 2**63 else CORRUPT

    def _number(self, value: Any) -> Any:
        if isinstance(value, str):
            if value.strip().lower() == "nan":
                return None
            value = float(value) if _NUMBER.fullmatch(value) else CORRUPT
        return value if value is None or value == CORRUPT else float(np.float32(value))

    def _price(self, value: Any) -> Any:
        found = self._number(value)
        if self.record == "timeline" and isinstance(found, float) and found < 0:
            return CORRUPT
        return found

    def _label(self, value: Any) -> Any:
        words = {"true": 1.0, "false": 0.0}
        if self.record == "impression" and isinstance(value, str) and value.lower() in words:
            return words[value.lower()]
        found = self._number(value)
        if found is None or found == CORRUPT:
            return found
        if self.record in ("impression", "timeline"):
            return found if found in (0.0, 1.0) else CORRUPT
        return CORRUPT if self.record == "list" and found < 0 else found

    def _time(self, value: Any) -> Any:
        if value is None:
            return None
        if isinstance(value, datetime.datetime):
            aware = value if value.tzinfo else value.replace(tzinfo=datetime.UTC)
            value = math.floor(aware.timestamp())
            return value if value >= 0 else CORRUPT
        if isinstance(value, datetime.date):
            return (value - datetime.date(1970, 1, 1)).days * 86_400
        if isinstance(value, str):
            if found := _WHOLE.fullmatch(value):
                value = int(found[1])
            elif _NUMBER.fullmatch(value):
                value = float(value)
            else:
                return self._moment(value)
        if isinstance(value, float) and not value.is_integer() and abs(value) < 10**8:
            return CORRUPT
        if not 0 <= value < 2**63:
            return CORRUPT
        units = ((10**11, 1), (10**14, 10**3), (10**17, 10**6), (2**63, 10**9))
        divisor = next(by for below, by in units if value < below)
        return int(value // divisor)

    @staticmethod
    def _moment(text: str) -> Any:
        text = text.strip().replace(" UTC", "+00:00")
        try:
            moment = datetime.datetime.fromisoformat(text)
        except ValueError:
            return CORRUPT
        aware = moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)
        return math.floor(aware.timestamp())


# Writers.


class Case:
    """A table, how it is written, and as what it is read.

    Args:
      record: Type of the records.
      writer: As in `WRITERS`.
      table: The rows.
      dialect: Keys of a spec that say how a text file is written.
      ending: Of the file's name, for its compression.
      number: Chooses among the options of a writer.
    """

    def __init__(
        self,
        record: str,
        writer: str,
        table: pa.Table,
        dialect: Mapping[str, Any],
        ending: str,
        number: int,
    ) -> None:
        self.record, self.writer, self.table = record, writer, table
        self.dialect, self.ending, self.number = dict(dialect), ending, number

    @property
    def form(self) -> str:
        """csv, json or parquet."""
        return self.writer.partition(" by ")[0]

    def __repr__(self) -> str:
        rows = "\n  ".join(map(str, self.table.to_pylist()))
        kinds = {field.name: str(field.type) for field in self.table.schema}
        return (
            f"{self.record} from {self.writer}{self.ending}, {self.dialect}, number {self.number}\n"
            f"  {kinds}\n  {rows}"
        )


def _cells(case: Case) -> list[list[str]]:
    def text(value: Any) -> str:
        if value is None:
            return ""
        return value.isoformat() if isinstance(value, datetime.date) else str(value)

    return [[text(row[name]) for name in NAMES] for row in case.table.to_pylist()]


def _by_csv(case: Case) -> str:
    out = io.StringIO(newline="")
    writer = csv.writer(
        out,
        delimiter=case.dialect.get("delimiter", ","),
        quotechar=case.dialect.get("quote", '"'),
        lineterminator=("\n", "\r\n", "\r")[case.number % 3],
        quoting=(csv.QUOTE_MINIMAL, csv.QUOTE_ALL)[case.number // 3 % 2],
    )
    writer.writerows([NAMES, *_cells(case)])
    return out.getvalue()


def _csv_by_pandas(case: Case) -> str:
    return str(
        case.table.to_pandas().to_csv(
            index=False,
            sep=case.dialect.get("delimiter", ","),
            quotechar=case.dialect.get("quote", '"'),
            lineterminator=("\n", "\r\n")[case.number % 2],
            na_rep=case.dialect["null"][0] if case.dialect.get("null") else "",
        )
    )


def _csv_by_arrow(case: Case) -> str:
    columns = {
        name: column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column
        for name, column in zip(NAMES, case.table.columns, strict=True)
    }
    out = pa.BufferOutputStream()
    pcsv.write_csv(pa.table(columns), out)
    return str(out.getvalue().to_pybytes().decode())


def _csv_by_polars(case: Case) -> str:
    import polars

    return str(
        polars.from_arrow(case.table).write_csv(
            separator=case.dialect.get("delimiter", ","),
            quote_char=case.dialect.get("quote", '"'),
            quote_style=("necessary", "always", "non_numeric")[case.number % 3],
        )
    )


def _by_duckdb(case: Case, path: Path, options: str) -> None:
    import duckdb

    with duckdb.connect() as connection:
        # It does not take tables of older Arrows.
        connection.register("rows_of_case", case.table.to_pandas())
        connection.execute(f"COPY (SELECT * FROM rows_of_case) TO '{path}' ({options})")


def _csv_by_duckdb(case: Case, path: Path) -> None:
    quote = case.dialect.get("quote", '"').replace("'", "''")
    delimiter = case.dialect.get("delimiter", ",")
    _by_duckdb(case, path, f"FORMAT csv, HEADER, DELIMITER '{delimiter}', QUOTE '{quote}'")


def _by_json(case: Case) -> str:
    def shown(value: Any) -> Any:
        if isinstance(value, decimal.Decimal):
            return float(value)
        return value.isoformat() if isinstance(value, datetime.date) else value

    ascii_only = bool(case.number % 2)
    lines = []
    for row in case.table.to_pylist():
        plain = {name: shown(value) for name, value in row.items()}
        if case.number % 3 == 0:
            plain = {name: value for name, value in plain.items() if value is not None}
        lines.append(json.dumps(plain, ensure_ascii=ascii_only))
    return "\n".join(lines) + "\n" * (case.number % 5)


def _json_by_pandas(case: Case) -> str:
    frame = case.table.to_pandas()
    return str(frame.to_json(orient="records", lines=True, force_ascii=bool(case.number % 2)))


def _json_by_polars(case: Case) -> str:
    import polars

    return str(polars.from_arrow(case.table).write_ndjson())


def _parquet_by_arrow(case: Case, path: Path) -> None:
    pq.write_table(
        case.table,
        path,
        row_group_size=1 + case.number % 4,
        use_dictionary=bool(case.number % 2),
        compression=("snappy", "zstd", "gzip", "none")[case.number % 4],
        version=("1.0", "2.6")[case.number // 2 % 2],
    )


def _parquet_by_pandas(case: Case, path: Path) -> None:
    case.table.to_pandas().to_parquet(path, index=bool(case.number % 2))


def _parquet_by_polars(case: Case, path: Path) -> None:
    import polars

    polars.from_arrow(case.table).write_parquet(path, use_pyarrow=False)


def _parquet_by_duckdb(case: Case, path: Path) -> None:
    _by_duckdb(case, path, "FORMAT parquet")


def _json_by_duckdb(case: Case, path: Path) -> None:
    _by_duckdb(case, path, "FORMAT json")


# Those that return a text, and those that write a file.
_TEXT_WRITERS: Mapping[str, Callable[[Case], str]] = {
    "csv by csv": _by_csv,
    "csv by pandas": _csv_by_pandas,
    "csv by pyarrow": _csv_by_arrow,
    "csv by polars": _csv_by_polars,
    "json by json": _by_json,
    "json by pandas": _json_by_pandas,
    "json by polars": _json_by_polars,
}
_FILE_WRITERS: Mapping[str, Callable[[Case, Path], None]] = {
    "csv by duckdb": _csv_by_duckdb,
    "json by duckdb": _json_by_duckdb,
    "parquet by pyarrow": _parquet_by_arrow,
    "parquet by pandas": _parquet_by_pandas,
    "parquet by polars": _parquet_by_polars,
    "parquet by duckdb": _parquet_by_duckdb,
}
WRITERS = (*_TEXT_WRITERS, *_FILE_WRITERS)
_COMPRESS: Mapping[str, Callable[[bytes], bytes]] = {
    "": lambda data: data,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
}


def write(case: Case, folder: Path) -> Path:
    """Writes the table of a case.

    Returns:
      The path of the file.
    """
    path = folder / f"table.{case.form.replace('json', 'jsonl')}"
    if case.writer in _FILE_WRITERS:
        _FILE_WRITERS[case.writer](case, path)
        if case.form == "parquet":
            return path
        data = path.read_bytes()
    else:
        encoding = case.dialect.get("encoding") or ("utf-8", "utf-8-sig")[case.number % 2]
        text = _TEXT_WRITERS[case.writer](case)
        data = text.encode(encoding if case.form == "csv" else "utf-8", "replace")
    compressed = Path(f"{path}{case.ending}")
    compressed.write_bytes(_COMPRESS[case.ending](data))
    return compressed


def read_plainly(case: Case, path: Path) -> list[dict[str, Any]] | None:
    """The rows of a file, by other means than the zoo's; None if it is not what was meant."""
    if case.form == "parquet":
        rows = pq.read_table(path).to_pylist()
    else:
        decompress = {".gz": gzip, ".bz2": bz2, ".xz": lzma}.get(case.ending)
        data = path.read_bytes() if decompress is None else decompress.open(path).read()
        if case.form == "json":
            lines = data.decode("utf-8").split("\n")
            rows = [json.loads(line) for line in lines if line.strip()]
        else:
            text = data.decode(case.dialect.get("encoding") or "utf-8-sig")
            quote = case.dialect.get("quote", '"')
            delimiter = case.dialect.get("delimiter", ",")
            source = io.StringIO(text, newline="")
            cells = [r for r in csv.reader(source, delimiter=delimiter, quotechar=quote) if r]
            if any(len(row) != len(NAMES) for row in cells):
                return None
            rows = [dict(zip(cells[0], row, strict=True)) for row in cells[1:]]
    if len(rows) != case.table.num_rows:
        return None
    return [{name: row.get(name) for name in NAMES} for row in rows]


# Reading.


def _value(value: Any) -> Any:
    if isinstance(value, list):
        assert len(value) <= 1, value
        value = value[0] if value else None
    return None if value in ("", b"") or value != value or value == -(2**63) else value


def read(case: Case, path: Path) -> tuple[list[dict[str, Any]], list[int]]:
    """Reads a file as records of the case's type.

    Returns:
      The rows, and the numbers of the corrupt ones.

    Raises:
      InputError: The file is refused.
    """
    record, spec = case.record, SPECS[case.record]
    dialect = case.dialect if case.form != "parquet" else {}
    if record == "catalogue":
        described = from_mapping(CandidateSpec, {**spec, "file": str(path)}, "spec")
        reader: Any = TabularCandidates(described, from_mapping(Dialect, dialect, "spec"))
    else:
        features = path.with_name("spec.yaml")
        features.write_text(yaml.safe_dump({**spec, **dialect}))
        reader = open_source(str(path), str(features), record)
        if case.number % 2:
            reader = reader.with_dictionaries()
    called, rows, corrupt = _CALLED.get(record, {}), [], []
    for shard in reader.shards():
        for item in reader.read(shard):
            if isinstance(item, CorruptLine):
                assert "\n" not in str(item), f"{item} has several lines"
                corrupt.append(item.line)
                continue
            for row in item.to_pylist():
                named = {called.get(name, name): _value(value) for name, value in row.items()}
                rows.append({name: named[name] for name in _COLUMNS[record]})
    return rows, sorted(corrupt)


def judge(case: Case) -> str:
    """Writes a table and reads it back.

    Returns:
      right, corrupt (some rows are, and were found to be), refused, or not written, if the writer
      refused the table or wrote something else.

    Raises:
      AssertionError: What was read is wrong.
    """
    with tempfile.TemporaryDirectory(prefix="tfrz-fuzz-") as folder:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                path = write(case, Path(folder))
                given = read_plainly(case, path)
        except Exception:  # Any library may refuse any table.
            return "not written"
        if given is None:
            return "not written"
        oracle = Oracle(case.record, case.form != "parquet", case.dialect.get("null", ()))
        wanted = [oracle.row(row) for row in given]
        refused = ""
        try:
            rows, corrupt = read(case, path)
        except InputError as error:
            refused = str(error)
        assert "\n" not in refused, f"{refused} has several lines"
        if refused:
            return "refused"
    first = 2 if case.form == "csv" else 1
    expected = [number + first for number, row in enumerate(wanted) if row == CORRUPT]
    assert corrupt == expected, f"corrupt rows {corrupt} instead of {expected}\n{case!r}\n{given}"
    right = [row for row in wanted if row != CORRUPT]
    assert rows == right, f"\nread   {rows}\nwanted {right}\n{case!r}\n{given}"
    return "corrupt" if corrupt else "right"


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Draws a case."""
    writer = draw(st.sampled_from(WRITERS))
    form = writer.partition(" by ")[0]
    count = draw(st.integers(1, 6))
    columns = {}
    for name, forms in _FORMS.items():
        fit = [kind for kind in forms if kind != "bytes" or form == "parquet"]
        values, kind = forms[draw(st.sampled_from(fit))]
        if draw(st.booleans()):
            values = values[:3]
        drawn = draw(st.lists(st.sampled_from(values), min_size=count, max_size=count))
        columns[name] = pa.array(drawn, kind)
    dialect: dict[str, Any] = {}
    ending = ""
    if form != "parquet":
        ending = draw(st.sampled_from(["", "", "", *_COMPRESS]))
    if form == "csv":
        delimiter = draw(st.sampled_from([",", ";", "\t", "|"]))
        if writer == "csv by pyarrow":
            delimiter = ","
        dialect["delimiter"] = delimiter
        if writer in ("csv by csv", "csv by pandas", "csv by duckdb"):
            dialect |= draw(st.sampled_from([{}, {}, {"quote": "'"}]))
        if writer in ("csv by csv", "csv by pandas"):
            names = ["utf-16", "utf-16-le", "latin-1", "cp1252"]
            dialect |= draw(st.sampled_from([{}, {}, *({"encoding": name} for name in names)]))
    if form != "parquet":
        dialect |= draw(st.sampled_from([{}, {}, {"null": ["NULL"]}, {"null": ["NA", "-"]}]))
    record = draw(st.sampled_from(tuple(SPECS)))
    return Case(record, writer, pa.table(columns), dialect, ending, draw(st.integers(0, 11)))


def fuzz(count: int, number: int) -> collections.Counter[str]:
    """Runs cases.

    Args:
      count: How many.
      number: Seed of the draws.

    Returns:
      How many had which outcome, see `judge`, by writer.

    Raises:
      AssertionError: What was read is wrong; the message has the smallest such case.
    """
    outcomes: collections.Counter[str] = collections.Counter()

    @seed(number)
    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(cases())
    def run(case: Case) -> None:
        outcomes[f"{case.writer}: {judge(case)}"] += 1

    run()
    return outcomes
