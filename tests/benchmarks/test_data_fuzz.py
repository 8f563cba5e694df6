"""Random tables in every dialect and type, read back through every type of records."""

from __future__ import annotations

import datetime
import decimal
import math

import pyarrow as pa
import pytest

from benchmarks import data, data_fuzz
from benchmarks.data_fuzz import CORRUPT, NAMES, WRITERS, Case, Oracle, judge
from benchmarks.runner import Options
from tfrz.data.sources import values

pytestmark = pytest.mark.needs("hypothesis", "pandas", "polars", "duckdb")
ROW = {"user": "u1", "item": "i1", "time": 1_600_000_000, "count": 3, "price": 1.5, "label": 1}


@pytest.mark.parametrize(
    ("column", "value", "expected"),
    [
        ("user", 18.0, b"18"),
        ("user", 3.2, CORRUPT),
        ("user", "18.0", b"18.0"),
        ("user", "x\x00", CORRUPT),
        ("user", math.nan, CORRUPT),
        ("user", decimal.Decimal("7.00"), b"7"),
        ("time", 1_600_000_000_123, 1_600_000_000),
        ("time", "2020-09-13 12:26:40+02:00", 1_599_992_800),
        ("time", datetime.date(1970, 1, 2), 86_400),
        ("time", "1600000000.5", 1_600_000_000),
        ("time", 12.5, CORRUPT),
        ("count", "6.0", 6),
        ("count", 2**63, CORRUPT),
        ("count", "", None),
        ("price", "1e3", 1000.0),
        ("price", "1,5", CORRUPT),
        ("price", math.nan, None),
    ],
)
def test_the_oracle_knows_the_rules(column, value, expected):
    found = Oracle("history", True, ()).row({**ROW, column: value})
    assert found == CORRUPT if expected == CORRUPT else found[column] == expected


@pytest.mark.parametrize("writer", WRITERS)
def test_every_writer_writes_and_is_read(writer):
    table = pa.table({name: [value, value] for name, value in ROW.items()})
    assert table.column_names == list(NAMES)
    for record in data_fuzz.SPECS:
        assert judge(Case(record, writer, table, {}, "", 1)) == "right"


@pytest.mark.slow
def test_a_fault_of_a_reader_is_found(monkeypatch):
    monkeypatch.setattr(values, "_LIKE_A_TIME", 0)  # A counter of 12.5 becomes the second 12.
    with pytest.raises(AssertionError, match="corrupt rows"):
        data_fuzz.fuzz(300, 1)


def test_a_few_tables():
    section = data.measure_fuzz(Options(quick=True))
    assert section.details["wrong"] == []
    assert sum(section.details["outcomes"].values()) == 40


@pytest.mark.slow
def test_five_hundred_tables():
    outcomes = data_fuzz.fuzz(500, 7)
    by_outcome = {name.rpartition(": ")[2] for name in outcomes}
    assert {"right", "corrupt"} <= by_outcome
    unwritten = sum(n for name, n in outcomes.items() if name.endswith("not written"))
    assert sum(outcomes.values()) == 500 and unwritten < 50
