"""Dirty files: the right values, a corrupt row with its reason, or one line; for all records."""

from __future__ import annotations

import datetime
import decimal
import json
import re

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf

from tests.tfrz.data.sources.tables import (
    COLUMNS,
    NAMES,
    REQUIRED,
    ROW,
    arrow_table,
    compressed,
    csv_text,
    each_record,
    expected,
    json_text,
    read,
)
from tfrz.data.sources import raw
from tfrz.errors import InputError

BEFORE, AFTER = {"user": "before"}, {"user": "after"}
BIG = 2**63
TIMED = ("history", "logged_action", "timeline")


def _write(path, data: bytes | str):
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def _check(record, path, rows, corrupt=(), **dialect):
    """Compares what was read with rows and patterns of corrupt rows."""
    found = read(record, path, **dialect)
    assert found.rows == expected(record, *rows)
    assert len(found.corrupt) == len(corrupt), found.corrupt
    for line, pattern in zip(sorted(found.corrupt), sorted(corrupt), strict=True):
        assert re.match(pattern, line), (line, pattern)


def _refused(record, path, message, **dialect):
    with pytest.raises(InputError, match=message) as caught:
        read(record, path, **dialect)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


# Compression, dialects and line ends of CSV.


@pytest.mark.parametrize("ending", ["", ".gz", ".bz2", ".zst", ".xz"])
@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl"])
@each_record()
def test_compressions(tmp_path, record, ending, kind):
    rows = [BEFORE, {"user": "ü"}]
    text = json_text(rows) if kind == "jsonl" else csv_text(rows, {"csv": ",", "tsv": "\t"}[kind])
    path = _write(tmp_path / f"t.{kind}{ending}", compressed(text.encode(), ending))
    _check(record, path, rows)


@pytest.mark.parametrize("ending", ["", ".gz", ".bz2", ".zst", ".xz"])
@each_record()
def test_damaged_files(tmp_path, record, ending):
    data = compressed(csv_text([BEFORE] * 3000).encode(), ending)
    cut = _write(tmp_path / f"t.csv{ending}", data[: len(data) // 2])
    if ending:
        _refused(record, cut, "damaged|cannot read")
    _refused(
        record, _write(tmp_path / f"z.csv{ending or '.gz'}", b"no such format"), "damaged|read"
    )


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("delimiter", [",", ";", "|", "\t"])
@each_record()
def test_line_ends_marks_and_delimiters(tmp_path, record, end, mark, delimiter):
    text = csv_text([BEFORE, {"user": 'a"b'}, {"user": f"a{delimiter}b"}], delimiter, end)
    path = _write(tmp_path / "t.csv", mark + text.encode())
    _check(record, path, [BEFORE, {"user": 'a"b'}, {"user": f"a{delimiter}b"}])


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@each_record()
def test_blank_lines_are_no_rows(tmp_path, record, end):
    lines = csv_text([BEFORE, AFTER]).split("\n")
    path = _write(tmp_path / "t.csv", (end * 2).join(["", *lines, "", ""]))
    _check(record, path, [BEFORE, AFTER])
    lines = json_text([BEFORE, AFTER]).split("\n")
    path = _write(tmp_path / "t.jsonl", "\n \n".join(["", *lines, ""]))
    _check(record, path, [BEFORE, AFTER])


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@each_record()
def test_a_bare_carriage_return_makes_no_row(tmp_path, record, end):
    rows = [BEFORE, {"user": "cut"}, {"user": "quoted"}, AFTER]
    text = csv_text(rows, end=end).replace("cut", "c\rut").replace("quoted", '"quo\rted"')
    path = _write(tmp_path / "t.csv", text)
    _check(
        record,
        path,
        [BEFORE, {"user": "quo\rted"}, AFTER],
        ["3: has a carriage return that is no line end"],
    )
    # Rows with Mac line ends in the middle of others are not two users in one row.
    row = csv_text([{"user": "x"}]).split("\n")[1]
    path = _write(tmp_path / "t.csv", csv_text([BEFORE]) + f"{row}\r{row}\n" + f"{row}\r\n")
    _check(record, path, [BEFORE, {"user": "x"}], ["3: has a carriage return"])


@pytest.mark.parametrize("column", ["user", "count", "price"])
@each_record()
def test_nul_bytes(tmp_path, record, column):
    text = csv_text([BEFORE, {column: "1\x002"}, AFTER])
    bad = [rf"3: .*{column} (contains a NUL byte|is not)"] if column in COLUMNS[record] else []
    rows = [BEFORE, AFTER] if bad else [BEFORE, {}, AFTER]
    _check(record, _write(tmp_path / "t.csv", text), rows, bad)
    bad = [b.replace("3: ", "2: ") for b in bad]
    _check(
        record,
        _write(tmp_path / "t.jsonl", json_text([BEFORE, {column: "1\x002"}, AFTER])),
        rows,
        bad,
    )


@each_record()
def test_a_file_of_nul_bytes(tmp_path, record):
    _refused(record, _write(tmp_path / "t.csv", b"\x00" * 5000), "no column|is empty")
    _refused(record, _write(tmp_path / "t.jsonl", b"\x00" * 5000), "no JSON objects")


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
@each_record()
def test_long_fields(tmp_path, record, kind):
    rows = [BEFORE, {"user": "x" * 200_000}, AFTER]
    text = csv_text(rows) if kind == "csv" else json_text(rows)
    _check(record, _write(tmp_path / f"t.{kind}", text), rows)


@each_record()
def test_rows_beyond_a_block(tmp_path, record, monkeypatch):
    monkeypatch.setattr(raw, "_BLOCK_BYTES", 1 << 16)
    monkeypatch.setattr(raw, "_READ_BYTES", 1 << 16)
    rows = [BEFORE, {"user": "x" * 300_000}, AFTER]
    _refused(record, _write(tmp_path / "t.csv", csv_text(rows)), "has a row of more than")
    _check(record, _write(tmp_path / "t.jsonl", json_text(rows)), rows)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "latin-1", "cp1252"])
@pytest.mark.parametrize("kind", ["csv", "jsonl"])
@each_record()
def test_encodings(tmp_path, record, encoding, kind):
    rows = [BEFORE, {"user": "süß"}, {"user": "a\nb"}, {"user": "ਊ" if "16" in encoding else "é"}]
    text = csv_text(rows) if kind == "csv" else json_text(rows)
    path = _write(tmp_path / f"t.{kind}", text.encode(encoding))
    _check(record, path, rows, encoding=encoding)
    if encoding == "utf-16":
        _refused(record, path, "is UTF-16: write 'encoding: utf-16'")


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
@each_record()
def test_text_that_is_not_utf8(tmp_path, record, kind):
    rows = [BEFORE, {"user": "süd"}, {"user": "sød"}, AFTER]
    text = csv_text(rows) if kind == "csv" else json_text(rows)
    path = _write(tmp_path / f"t.{kind}", text.encode("latin-1"))
    first = 3 if kind == "csv" else 2
    _check(
        record,
        path,
        [BEFORE, AFTER],
        [f"{n}: .*not UTF-8.*encoding: latin-1" for n in (first, first + 1)],
    )
    _refused(record, path, "is not ascii: correct 'encoding'", encoding="ascii")


@each_record()
def test_unknown_encodings(tmp_path, record):
    path = _write(tmp_path / "t.csv", csv_text([BEFORE]))
    for encoding in ("utf-99", "base64", "rot13"):
        _refused(record, path, "encoding", encoding=encoding)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@each_record()
def test_quoted_line_breaks_and_delimiters_are_one_value(tmp_path, record, end):
    rows = [BEFORE, {"user": f"a{end}b"}, {"user": 'a,"b"\n,1,2\n'}, AFTER]
    _check(record, _write(tmp_path / "t.csv", csv_text(rows, end=end)), rows)


@each_record()
def test_quotes_left_open(tmp_path, record):
    lines = csv_text([BEFORE, {"user": '"open'}, {"user": "x"}, {"user": '"y"'}, AFTER])
    text = lines.replace('"""open"', '"open').replace('"""y"""', '"y"')
    _check(record, _write(tmp_path / "t.csv", text), [BEFORE, AFTER], ["3: .*quote"])
    # Where nothing closes it.
    for last in ("", "\n", "x\n"):
        path = _write(tmp_path / "t.csv", csv_text([BEFORE]) + '"open,i,5,3,1.5,1' + last)
        _refused(record, path, "a quote is opened and not closed")
    text = csv_text([BEFORE, {"label": 0}]).rstrip("\n")
    path = _write(tmp_path / "t.csv", text[:-1] + '"1')
    _refused(record, path, "a quote is opened and not closed")
    # Text after a quote.
    path = _write(tmp_path / "t.csv", csv_text([BEFORE, {"user": "XX"}]).replace("XX", '"a"b'))
    _check(record, path, [BEFORE], ["3: .*quote"])


@each_record()
def test_quotes_in_values_that_are_not_quoted(tmp_path, record):
    rows = [{"user": '5" pipe'}, {"user": 'a"'}, AFTER]
    text = csv_text([{"user": "XX"}, {"user": "YY"}, AFTER])
    path = _write(tmp_path / "t.csv", text.replace("XX", '5" pipe').replace("YY", 'a"'))
    _check(record, path, rows)
    path = _write(tmp_path / "t.csv", text.replace("XX", '"5').replace("YY", 'a"'))
    _check(record, path, [{"user": '"5'}, {"user": 'a"'}, AFTER], quote="")


@each_record()
def test_other_quotes(tmp_path, record):
    rows = [{"user": "it's, here"}, {"user": 'a"b'}]
    path = _write(tmp_path / "t.csv", csv_text(rows, quotechar="'"))
    _check(record, path, rows, quote="'")


@each_record()
def test_ragged_rows(tmp_path, record):
    text = csv_text([BEFORE]) + "a,b\n" + "a,b,c,d,e,f,g,h\n" + csv_text([AFTER]).split("\n")[1]
    path = _write(tmp_path / "t.csv", text)
    bad = ["3: 2 fields instead of 6", "4: 8 fields instead of 6"]
    _check(record, path, [BEFORE, AFTER], bad)


@each_record()
def test_all_rows_are_ragged(tmp_path, record):
    path = _write(tmp_path / "t.csv", csv_text([]) + "a,b\n" * 3)
    _check(record, path, [], [f"{n}: 2 fields instead of 6" for n in (2, 3, 4)])


@pytest.mark.parametrize("kind", ["csv", "csv.gz", "parquet"])
@each_record()
def test_columns_of_one_name(tmp_path, record, kind):
    for column in ("item", "other"):
        if kind == "parquet":
            table = arrow_table(2)
            table = table.append_column("other", table["item"]).append_column(column, table["item"])
            pq.write_table(table, path := tmp_path / f"{column}.parquet")
        else:
            text = csv_text([{}, {}]).replace("\n", ",i1,i1\n")
            text = text.replace("i1,i1", f"other,{column}", 1)
            path = _write(tmp_path / f"t.{kind}", compressed(text.encode(), kind[3:]))
        if column == "item":
            _refused(record, path, "has two columns named 'item'")
        else:
            _check(record, path, [{}, {}])


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet", "tfrecord", "csv.gz"])
@each_record()
def test_empty_files(tmp_path, record, kind):
    path = _write(tmp_path / f"t.{kind}", compressed(b"", ".gz") if "gz" in kind else b"")
    if kind == "tfrecord":
        _check(record, path, [])
    else:
        _refused(record, path, "is empty|has no|is not a Parquet file")


@pytest.mark.parametrize("kind", ["csv", "csv.gz", "parquet"])
@pytest.mark.parametrize("end", ["", "\n"])
@each_record()
def test_only_a_header(tmp_path, record, kind, end):
    path = tmp_path / f"t.{kind}"
    if kind == "parquet":
        pq.write_table(arrow_table(0), path)
    else:
        _write(path, compressed((csv_text([])[:-1] + end).encode(), kind[3:]))
    _check(record, path, [])


@each_record()
def test_null_words(tmp_path, record):
    optional = [c for c in ("count", "price") if c in COLUMNS[record]]
    words = dict.fromkeys(optional, "\\N")
    missing = dict.fromkeys(optional)
    text = csv_text([BEFORE, words, dict.fromkeys(optional, "NA"), missing, AFTER])
    path = _write(tmp_path / "t.csv", text)
    _check(record, path, [BEFORE, missing, missing, missing, AFTER], null=["\\N", "NA"])
    path = _write(tmp_path / "t.jsonl", json_text([BEFORE, words, missing, AFTER]))
    _check(record, path, [BEFORE, missing, missing, AFTER], null=["\\N", "NA"])


@pytest.mark.parametrize("column", ["user", "item", "time", "count", "price", "label"])
@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet", "json without the key"])
@each_record()
def test_missing_values(tmp_path, record, column, kind):
    rows = [BEFORE, {column: None}, AFTER]
    path = tmp_path / f"t.{kind.split()[0]}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist([{**ROW, **row} for row in rows]), path)
    elif kind == "csv":
        _write(path, csv_text(rows))
    else:
        text = json_text(rows)
        if kind != "jsonl":
            full = {**ROW}
            del full[column]
            text = text.replace(text.split("\n")[1], json.dumps(full))
        _write(path, text)
    number = 3 if kind == "csv" else 2
    if column in REQUIRED[record]:
        _check(record, path, [BEFORE, AFTER], [f"{number}: .*{column}|{number}: the reward"])
    else:
        _check(record, path, rows)


@each_record()
def test_decimal_commas(tmp_path, record):
    rows = [{"price": "1,5"}, {"price": "-0,25"} if record != "timeline" else {"price": "0,25"}]
    path = _write(tmp_path / "t.csv", csv_text(rows, ";"))
    read_as = [{}, {"price": 0.25 if record == "timeline" else -0.25}]
    _check(record, path, read_as, decimal=",")
    # Thousands are not taken for parts.
    path = _write(tmp_path / "t.csv", csv_text([BEFORE, {"price": "1.234"}], ";"))
    _check(record, path, [{**BEFORE, "price": None}][:0], ["2: .*price", "3: .*price"], decimal=",")
    path = _write(tmp_path / "t.csv", csv_text([BEFORE, {"price": "1,5"}], ";"))
    _check(record, path, [BEFORE], ["3: .*price is not (a number|float32)"])


# Numbers and ids.


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet", "uint64", "double", "decimal"])
@pytest.mark.parametrize("column", ["count", "time"])
@each_record()
def test_integers_beyond_64_bits(tmp_path, record, kind, column):
    if column not in COLUMNS[record]:
        return
    values = [BIG - 1, -BIG + 1, BIG, 10**30, 2]
    if column == "time":
        values = [2, 5, BIG, 10**30, 2]
    path = tmp_path / ("t.parquet" if kind not in ("csv", "jsonl") else f"t.{kind}")
    first = 2 if kind == "csv" else 1
    bad, kept = [2, 3], [0, 1, 4]
    if kind == "csv":
        _write(path, csv_text([{column: value} for value in values]))
    elif kind == "jsonl":
        _write(path, json_text([{column: value} for value in values]))
    else:
        values = {
            "parquet": [2, 5, 2, 2, 2],
            "uint64": [2, 5, BIG, BIG + 5, 7],
            "double": [2, 5, 2.0**63, 1e30, 2],
            "decimal": [2, 5, BIG, 10**30, 2],
        }[kind]
        types = {"uint64": pa.uint64(), "double": pa.float64(), "decimal": pa.decimal128(38, 2)}
        array = pa.array(
            [decimal.Decimal(v) for v in values] if kind == "decimal" else values, types.get(kind)
        )
        pq.write_table(arrow_table(5, **{column: array}), path)
        if kind == "parquet":
            bad, kept = [], [0, 1, 2, 3, 4]
    _check(
        record,
        path,
        [{column: values[k]} for k in kept],
        [f"{first + b}: .*{column} is not" for b in bad],
    )


FLOATS = {
    "18.0": "18",
    "18.5": None,
    "nan": "",
    "1e300": None,
    "-0.0": "0",
}


@pytest.mark.parametrize("column", ["user", "item", "count"])
@pytest.mark.parametrize("kind", ["double", "float", "half", "decimal", "jsonl"])
@each_record()
def test_floats_as_ids(tmp_path, record, column, kind):
    if column not in COLUMNS[record]:
        return
    values = [18.0, 18.5, 3.2, 3.9, -7.0]
    names = ["18", None, None, None, "-7"]
    if kind == "jsonl":
        path = _write(tmp_path / "t.jsonl", json_text([{column: value} for value in values]))
    else:
        types = {"double": pa.float64(), "float": pa.float32(), "half": pa.float16()}
        if kind == "decimal":
            array = pa.array([decimal.Decimal(str(v)) for v in values], pa.decimal128(9, 1))
        else:
            array = pa.array(np.array(values, types[kind].to_pandas_dtype()), types[kind])
        if kind == "half" and int(pa.__version__.split(".")[0]) < 15:
            return  # it writes no half floats
        pq.write_table(arrow_table(5, **{column: array}), path := tmp_path / "t.parquet")
    rows = [{column: int(n) if column == "count" else n} for n in names if n is not None]
    _check(record, path, rows, [f"{n}: .*{column} is" for n in (2, 3, 4)])


@each_record()
def test_a_nullable_column_of_integers(tmp_path, record):
    frame = pd.DataFrame([{**ROW, "user": 18, "item": 7}] * 2 + [{**ROW, "user": None, "item": 7}])
    assert frame["user"].dtype == np.float64
    frame.to_parquet(path := tmp_path / "t.parquet")
    found = read(record, path)
    wanted = expected(record, {"user": "18", "item": "7"})[0]
    assert found.rows[:2] == [wanted, wanted]
    assert len(found.corrupt) == ("user" in REQUIRED[record])


PARQUET_IDS = {
    "bool": (pa.array([True, False]), ["True", "False"]),
    "int8": (pa.array([1, -2], pa.int8()), ["1", "-2"]),
    "uint64": (pa.array([1, 2**64 - 1], pa.uint64()), ["1", str(2**64 - 1)]),
    "decimal": (pa.array([decimal.Decimal(1), decimal.Decimal(2)]), ["1", "2"]),
    "decimal256": (pa.array([decimal.Decimal(1), 2], pa.decimal256(60, 0)), ["1", "2"]),
    "dictionary": (pa.array(["a", "b"]).dictionary_encode(), ["a", "b"]),
    "dictionary of int": (pa.array([1, 2]).dictionary_encode(), ["1", "2"]),
    "dictionary of float": (pa.array([1.0, 2.0]).dictionary_encode(), ["1", "2"]),
    "large string": (pa.array(["a", "b"], pa.large_string()), ["a", "b"]),
    "binary": (pa.array([b"a", b"b"]), ["a", "b"]),
    "large binary": (pa.array([b"a", b"b"], pa.large_binary()), ["a", "b"]),
    "fixed size binary": (pa.array([b"ab", b"cd"], pa.binary(2)), ["ab", "cd"]),
    "date": (pa.array([datetime.date(2026, 11, 1)] * 2), ["2026-11-01"] * 2),
    "list of one": (pa.array([["a"], ["b"]]), ["a", "b"]),
    "large list": (pa.array([["a"], ["b"]], pa.large_list(pa.string())), ["a", "b"]),
    "fixed list": (pa.array([["a"], ["b"]], pa.list_(pa.string(), 1)), ["a", "b"]),
}
PARQUET_NO_IDS = {
    "struct": pa.array([{"a": 1}, {"a": 2}]),
    "map": pa.array([[("a", 1)], [("b", 2)]], pa.map_(pa.string(), pa.int64())),
    "list of lists": pa.array([[["a"]], [["b"]]]),
    "list of two": pa.array([["a", "b"], ["c", "d"]]),
    "fixed list of two": pa.array([["a", "b"], ["c", "d"]], pa.list_(pa.string(), 2)),
    "duration": pa.array([1, 2], pa.duration("s")),
}


@pytest.mark.parametrize("kind", PARQUET_IDS)
@each_record()
def test_ids_of_parquet(tmp_path, record, kind):
    array, names = PARQUET_IDS[kind]
    pq.write_table(arrow_table(2, item=array, user=array), path := tmp_path / "t.parquet")
    _check(record, path, [{"item": n, "user": n} for n in names])


@pytest.mark.parametrize("kind", PARQUET_NO_IDS)
@each_record()
def test_what_is_no_id_in_parquet(tmp_path, record, kind):
    table = arrow_table(2, item=PARQUET_NO_IDS[kind])
    pq.write_table(table, path := tmp_path / "t.parquet")
    _check(record, path, [], [f"{n}: .*item (is not|has)" for n in (1, 2)])


@pytest.mark.parametrize("kind", ["null", "list of null", "dictionary of null", "nan"])
@each_record()
def test_columns_without_values(tmp_path, record, kind):
    column = {
        "null": pa.nulls(2),
        "list of null": pa.array([[], None], pa.list_(pa.null())),
        "dictionary of null": pa.array([None, None], pa.string()).dictionary_encode(),
        "nan": pa.array([np.nan, np.nan]),
    }[kind]
    pq.write_table(arrow_table(2, item=column), path := tmp_path / "t.parquet")
    if "item" in REQUIRED[record]:
        _check(record, path, [], ["1: item is missing", "2: item is missing"])
    else:
        _check(record, path, [{"item": None}] * 2)


NUMBERS = {
    "int8": pa.array([1, 0], pa.int8()),
    "uint64": pa.array([1, 0], pa.uint64()),
    "double": pa.array([1.0, 0.0]),
    "bool": pa.array([True, False]),
    "decimal": pa.array([decimal.Decimal(1), decimal.Decimal(0)]),
    "decimal256": pa.array([decimal.Decimal(1), 0], pa.decimal256(60, 2)),
    "text": pa.array(["1", "0.0"]),
    "large text": pa.array(["1", "0"], pa.large_string()),
    "bytes": pa.array([b"1", b"0"]),
    "dictionary": pa.array(["1", "0"]).dictionary_encode(),
    "list": pa.array([[1], [0]]),
}


@pytest.mark.parametrize("kind", NUMBERS)
@pytest.mark.parametrize("column", ["count", "price", "label"])
@each_record()
def test_numbers_of_parquet(tmp_path, record, kind, column):
    pq.write_table(arrow_table(2, **{column: NUMBERS[kind]}), path := tmp_path / "t.parquet")
    _check(record, path, [{column: 1}, {column: 0}])


@pytest.mark.parametrize("kind", [*PARQUET_NO_IDS, "date", "timestamp"])
@pytest.mark.parametrize("column", ["count", "price", "label"])
@each_record()
def test_what_is_no_number_in_parquet(tmp_path, record, kind, column):
    array = {
        **PARQUET_NO_IDS,
        "date": pa.array([datetime.date(2026, 11, 1)] * 2),
        "timestamp": pa.array([datetime.datetime(2026, 11, 1)] * 2),
    }[kind]
    pq.write_table(arrow_table(2, **{column: array}), path := tmp_path / "t.parquet")
    if column in COLUMNS[record]:
        _check(record, path, [], [f"{n}: .*" for n in (1, 2)])
    else:
        _check(record, path, [{}, {}])


# Times.

SECOND = 1_793_491_200  # 1 November 2026
MOMENT = datetime.datetime(2026, 11, 1)
TIMES = {
    "seconds": SECOND,
    "milliseconds": SECOND * 1000 + 7,
    "microseconds": SECOND * 10**6 + 7,
    "nanoseconds": SECOND * 10**9 + 7,
    "float seconds": SECOND + 0.25,
    "float milliseconds": SECOND * 1000.0,
    "date": "2026-11-01",
    "naive": "2026-11-01 00:00:00",
    "ISO": "2026-11-01T00:00:00.123456Z",
    "zone": "2026-11-01T05:30:00+05:30",
    "zone behind": "2026-10-31 17:00:00-0700",
    "text": str(SECOND),
}


@pytest.mark.parametrize("kind", TIMES)
@each_record(*TIMED)
def test_times(tmp_path, record, kind):
    rows = [{"time": TIMES[kind]}] * 2
    read_as = [{"time": SECOND}] * 2
    _check(record, _write(tmp_path / "t.csv", csv_text(rows)), read_as)
    _check(record, _write(tmp_path / "t.jsonl", json_text(rows)), read_as)
    pq.write_table(arrow_table(2, time=pa.array([TIMES[kind]] * 2)), path := tmp_path / "t.parquet")
    _check(record, path, read_as)


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize("zone", [None, "UTC", "Asia/Kolkata", "+02:00"])
@each_record(*TIMED)
def test_timestamps(tmp_path, record, unit, zone):
    per = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[unit]
    array = pa.array([SECOND * per, None, -per], pa.timestamp(unit, zone))
    table = arrow_table(3, time=array)
    pq.write_table(table, path := tmp_path / "t.parquet", version="2.6")
    _check(record, path, [{"time": SECOND}], ["2: time is not a time", "3: time is negative"])


@pytest.mark.parametrize(
    "array",
    [
        pa.array([20758], pa.date32()),
        pa.array([20758 * 86_400_000], pa.date64()),
        pa.array([SECOND], pa.uint64()),
        pa.array([decimal.Decimal(SECOND)]),
        pa.array([MOMENT]).dictionary_encode(),
        pa.array([MOMENT.isoformat()]).dictionary_encode(),
        pa.array([MOMENT.isoformat().encode()]),
        pa.array([[SECOND]]),
    ],
    ids=lambda array: str(array.type).replace(" ", "")[:24],
)
@each_record(*TIMED)
def test_times_of_other_types(tmp_path, record, array):
    pq.write_table(arrow_table(1, time=array), path := tmp_path / "t.parquet")
    _check(record, path, [{"time": SECOND}])


@pytest.mark.parametrize(
    "value",
    ["-5", "soon", "2026-13-01", "2026-02-30", "nan", "inf", "1e40", "0x10", "1.5", "11/01/2026"],
)
@each_record(*TIMED)
def test_what_is_no_time(tmp_path, record, value):
    rows = [BEFORE, {"time": value}, AFTER]
    _check(record, _write(tmp_path / "t.csv", csv_text(rows)), [BEFORE, AFTER], ["3: time is"])
    _check(record, _write(tmp_path / "t.jsonl", json_text(rows)), [BEFORE, AFTER], ["2: time is"])


@pytest.mark.parametrize(
    "array", [pa.array([5], pa.duration("s")), pa.array([{"a": 1}]), pa.array([np.inf])]
)
@each_record(*TIMED)
def test_what_is_no_time_in_parquet(tmp_path, record, array):
    pq.write_table(arrow_table(1, time=array), path := tmp_path / "t.parquet")
    _check(record, path, [], ["1: time is not a time"])


# JSON lines.


@each_record()
def test_mixed_types_of_json(tmp_path, record):
    ids = [7, "7", 7.0, 2**53 + 1, "x", 7.5, True, [7], ["7"], {"a": 1}, [1, 2], None, 2**70]
    path = _write(tmp_path / "t.jsonl", json_text([{"item": value} for value in ids]))
    known = ["7", "7", "7", str(2**53 + 1), "x", "True", "7", "7"]
    bad = [6, 10, 11, 13]
    if "item" in REQUIRED[record]:
        bad = [6, 10, 11, 12, 13]
    else:
        known.append(None)
    found = read(record, path)
    assert sorted(map(str, [row["item"] for row in found.rows])) == sorted(map(str, known))
    assert sorted(int(line.split(":")[0]) for line in found.corrupt) == bad


@each_record()
def test_mixed_types_of_json_are_read_in_order(tmp_path, record):
    rows = [{"item": str(n) if n % 3 else n, "user": f"u{n}"} for n in range(500)]
    path = _write(tmp_path / "t.jsonl", json_text(rows))
    _check(record, path, [{"item": str(n), "user": f"u{n}"} for n in range(500)])


@each_record()
def test_lines_that_are_no_json(tmp_path, record):
    good = json_text([BEFORE]), json_text([AFTER])
    bad = ["no JSON", "{", '{"user": "u1"', "[1, 2]", "7", '"text"', "null", '{"user": "a"} {}']
    path = _write(tmp_path / "t.jsonl", good[0] + "\n".join(bad) + "\n" + good[1])
    lines = [f"{n}: is not one JSON object" for n in range(2, 2 + len(bad))]
    _check(record, path, [BEFORE, AFTER], lines)


@each_record()
def test_one_json_document(tmp_path, record):
    document = [{**ROW}, {**ROW}]
    path = _write(tmp_path / "t.json", json.dumps(document))
    _refused(record, path, "is one JSON document: write an object a line")
    path = _write(tmp_path / "t.json", json.dumps(document, indent=2))
    _refused(record, path, "is one JSON document: write an object a line")
    path = _write(tmp_path / "t.json", json.dumps({"rows": document}, indent=2))
    _refused(record, path, "no JSON objects, one a line")
    path = _write(tmp_path / "t.json", json.dumps({"rows": document}))
    _refused(record, path, "has no column")


@each_record()
def test_json_with_a_mark_crlf_and_dates_as_ids(tmp_path, record):
    rows = [{"user": "2026-11-01"}, {"user": "2026-11-01 00:00:00"}, {"user": '"\\ \n'}]
    path = _write(
        tmp_path / "t.jsonl", b"\xef\xbb\xbf" + json_text(rows).replace("\n", "\r\n").encode()
    )
    _check(record, path, rows)
    rows = [{"item": ["2026-11-01"]}]
    path = _write(tmp_path / "t.jsonl", json_text(rows))
    _check(record, path, [{"item": "2026-11-01"}])


@each_record()
def test_json_numbers_that_are_nan(tmp_path, record):
    path = _write(tmp_path / "t.jsonl", json_text([BEFORE, {"price": float("nan")}, AFTER]))
    found = read(record, path)
    assert found.rows[0] == expected(record, BEFORE)[0]
    assert found.rows[-1] == expected(record, AFTER)[0]
    assert len(found.rows) + len(found.corrupt) == 3


# TFRecords.


def _tfrecord(path, rows, options=None):
    with tf.io.TFRecordWriter(str(path), options) as writer:
        for row in rows:
            if isinstance(row, bytes):
                writer.write(row)
                continue
            example = tf.train.Example()
            for name, value in row.items():
                feature = example.features.feature[name]
                for one in value if isinstance(value, list) else [value]:
                    if isinstance(one, str | bytes):
                        feature.bytes_list.value.append(
                            one.encode() if isinstance(one, str) else one
                        )
                    elif isinstance(one, float):
                        feature.float_list.value.append(one)
                    elif one is not None:
                        feature.int64_list.value.append(one)
            writer.write(example.SerializeToString())
    return path


def _lists_of(rows):
    """The rows as `ExampleListWithContext`s, one candidate each."""
    from tensorflow_serving.apis import input_pb2

    out = []
    for row in rows:
        if not isinstance(row, bytes):
            lists = input_pb2.ExampleListWithContext()
            for name, value in row.items():
                to = (
                    lists.context
                    if name == "user"
                    else (lists.examples or [lists.examples.add()])[0]
                )
                feature = to.features.feature[name]
                for one in value if isinstance(value, list) else [value]:
                    if isinstance(one, str | bytes):
                        feature.bytes_list.value.append(
                            one.encode() if isinstance(one, str) else one
                        )
                    elif isinstance(one, float):
                        feature.float_list.value.append(one)
                    elif one is not None:
                        feature.int64_list.value.append(one)
            row = lists.SerializeToString()
        out.append(row)
    return out


def _records(record, rows):
    return _lists_of(rows) if record == "list" else rows


@pytest.mark.parametrize("ending", ["", ".gz"])
@each_record()
def test_tfrecords(tmp_path, record, ending):
    rows = [{**ROW}, {**ROW, "user": "ü", "item": 7}, {**ROW, "item": 18.0}, {**ROW, "item": "7"}]
    path = tmp_path / f"t.tfrecord{ending}"
    _tfrecord(path, _records(record, rows), "GZIP" if ending else None)
    _check(record, path, [{}, {"user": "ü", "item": "7"}, {"item": "18"}, {"item": "7"}])


@each_record()
def test_dirty_tfrecords(tmp_path, record):
    rows = [
        {**ROW},
        {**ROW, "item": 18.5},
        b"this is no record of any kind",
        {**ROW, "item": ["a", "b"]},
        {**ROW, "count": 3.0},
        {**ROW, "count": "3"},
        {**ROW, "price": 2},
        {**ROW},
    ]
    path = _tfrecord(tmp_path / "t.tfrecord", _records(record, rows))
    _check(
        record,
        path,
        [{}, {}, {}, {"price": 2.0}, {}],
        ["2: .*item is", "3: is not an? ", "4: .*item has"],
    )


@each_record()
def test_a_feature_that_no_record_has(tmp_path, record):
    row = {name: value for name, value in ROW.items() if name != "price"}
    path = _tfrecord(tmp_path / "t.tfrecord", _records(record, [row] * 3))
    _refused(record, path, "no record with a feature 'price'")


@each_record()
def test_tfrecords_that_are_none(tmp_path, record):
    path = _write(tmp_path / "t.tfrecord", b"no such format at all, and long enough")
    _refused(record, path, "is not a TFRecord file, or damaged")
    _refused(record, _write(tmp_path / "t.tfrecord.gz", b"no such format"), "not|damaged")
    good = _tfrecord(tmp_path / "u.tfrecord", _records(record, [{**ROW}] * 9)).read_bytes()
    _refused(record, _write(tmp_path / "t.tfrecord", good[:-7]), "TFRecord file, or damaged")


# Parts of large files.


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("quoted", [False, True])
@each_record()
def test_parts_of_a_file_are_cut_between_rows(tmp_path, record, end, quoted, monkeypatch):
    monkeypatch.setattr(raw, "_PART_BYTES", 1000)
    monkeypatch.setattr(raw, "_BLOCK_BYTES", 2000)
    monkeypatch.setattr(raw, "_READ_BYTES", 700)
    monkeypatch.setattr(raw, "_PARSED_BYTES", 2000)
    rows = [{"user": f"user {n}"} for n in range(300)]
    if quoted:
        rows[150] = {"user": f"a{end}b"}
    text = csv_text(rows, end=end)
    lines = text.split(end)
    lines[200] = lines[200].replace(",", ";")
    if not quoted:
        lines[10] = ""
    path = _write(tmp_path / "t.csv", end.join(lines))
    bad = ["200: 1 fields instead of 6"]
    gone = (199, 9) if not quoted else (198,)
    _check(record, path, [r for n, r in enumerate(rows) if n not in gone], bad)


@each_record()
def test_row_groups_of_parquet(tmp_path, record):
    table = arrow_table(7, user=pa.array([f"u{n}" for n in range(7)]), count=pa.array([1.5] * 7))
    pq.write_table(table, path := tmp_path / "t.parquet", row_group_size=2)
    if "count" in COLUMNS[record]:
        _check(record, path, [], [f"{n}: .*count is not" for n in range(1, 8)])
    else:
        _check(record, path, [{"user": f"u{n}"} for n in range(7)])


def test_names_cover_what_the_specs_read():
    assert {name for columns in COLUMNS.values() for name in columns} == set(NAMES)
