"""Impressions are the same whether their texts are read as dictionaries or not."""

from __future__ import annotations

import csv
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tfrz.data.records import open_source
from tfrz.data.sources.files import CorruptLines
from tfrz.data.sources.reader import Reader
from tfrz.data.splits import shares_of_rows

SPEC = """
"null": ["NULL"]
separator: "|"
split: part
features:
  - {name: user}
  - {name: tags, multivalent: true}
  - {name: age, dtype: int64}
  - {name: price, kind: numeric, dtype: float32}
"""
NAMES = ("user", "tags", "age", "price", "part", "label")
ROWS = [
    ("u1", "a|b", "3", "1.5", "train", "1"),
    ("u2", "", "4", "2.5", "test", "0"),
    ("NULL", "b", "5", "NULL", "train", "1"),
    ("", "a", "", "0.5", "dev", "0"),
    ("u1", "c|a|c", "6", "x", "train", "1"),
    ("u\x00", "c", "7", "1", "train", "1"),
    ("ü2", "NULL", "8", "1", "train", "0"),
    ('say "u"\nagain', "a", "9", "1", "train", "0"),
]


def _csv(folder: Path) -> Path:
    with open(path := folder / "rows.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([NAMES, *ROWS])
    return path


def _parquet(folder: Path, kind: pa.DataType) -> Path:
    columns = {
        name: list(values) for name, values in zip(NAMES, zip(*ROWS, strict=True), strict=True)
    }
    columns["tags"] = [text.split("|") if text else None for text in columns["tags"]]
    columns["user"] = pa.array([text or None for text in columns["user"]], pa.string()).cast(kind)
    pq.write_table(pa.table(columns), path := folder / "rows.parquet", row_group_size=3)
    return path


def _read(reader: Reader) -> tuple[pa.Table, list[str]]:
    corrupt = CorruptLines()
    table = pa.Table.from_batches(list(reader.batches(corrupt)))
    return table, [str(line) for line in corrupt]


# A text that is no number, a NUL byte in a text, and what is a missing value in text files only.
@pytest.mark.parametrize(
    ("form", "bad"), [("csv", 2), ("string", 3), ("binary", 2), ("large_string", 3)]
)
def test_rows_and_their_splits_are_the_same(tmp_path, form, bad):
    path = _csv(tmp_path) if form == "csv" else _parquet(tmp_path, getattr(pa, form)())
    (tmp_path / "spec.yaml").write_text(SPEC)
    reader = open_source(str(path), str(tmp_path / "spec.yaml"), "impression")
    plain, refused = _read(reader)
    coded, refused_coded = _read(reader.with_dictionaries())
    assert (plain.num_rows, len(refused)) == (len(ROWS) - bad, bad)
    assert refused_coded == refused
    assert coded.to_pylist() == plain.to_pylist()
    if form != "large_string":
        assert pa.types.is_dictionary(coded["user"].type.value_type)
    assert not pa.types.is_dictionary(plain["user"].type.value_type)
    features = ["user", "tags", "age", "price"]
    assert (
        shares_of_rows(coded, 3, features).tolist() == shares_of_rows(plain, 3, features).tolist()
    )
