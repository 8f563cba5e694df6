"""Readers of interactions: synthetic files in the formats of the public data sets, and the real."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.tfrz.data import small_sources as sources
from tfrz.data.histories.spec import HistorySpec
from tfrz.data.records import open_source
from tfrz.data.sources.reader import read_table
from tfrz.errors import ConfigError, InputError

REAL = Path(__file__).resolve().parents[5] / "shared" / "data"


def _rows(data: str, features: str | None = None, tolerated: float = 0.0, **options):
    table, corrupt = read_table(open_source(data, features, "history", **options), tolerated)
    return table.to_pylist(), corrupt


def test_movielens(tmp_path):
    folder = sources.movielens_1m(tmp_path, sources.RATINGS_1M + "1::1::5::-3\n1::1::9::3\n1::x\n")
    rows, corrupt = _rows(f"movielens-1m:{folder}", tolerated=0.9)
    assert rows[0] == {"user": b"1", "item": b"1", "time": 978300760, "position": 1}
    assert [row["position"] for row in rows] == [1, 2, 3, 4]
    reasons = {(c.line, c.reason) for c in corrupt}
    assert reasons == {
        (5, "a negative time"),
        (6, "a rating outside 1 to 5"),
        (7, "2 fields instead of 4"),
    }
    rows, _ = _rows(f"movielens-1m:{folder}", tolerated=0.9, min_rating=4)
    assert [row["item"] for row in rows] == [b"1", b"3"]
    small = sources.movielens_100k(tmp_path / "small")
    rows, _ = _rows(f"movielens-100k:{small}")
    assert [(row["user"], row["time"]) for row in rows] == [(b"1", 881250949), (b"2", 891717742)]


def test_the_records_of_a_source_are_chosen(tmp_path):
    folder = sources.movielens_1m(tmp_path)
    assert open_source(f"movielens-1m:{folder}").record_type == "impression"
    assert open_source(f"movielens-1m:{folder}", None, "history").record_type == "history"
    assert isinstance(open_source("sessions:x").feature_spec(), HistorySpec)


def test_sessions_and_sequences(tmp_path):
    path = tmp_path / "s.txt"
    path.write_text("5 6 5\n\n7\n8\t9\n")
    rows, corrupt = _rows(f"sessions:{path}", tolerated=0.9)
    assert [(r["user"], r["item"], r["position"]) for r in rows] == [
        (b"1", b"5", 0),
        (b"1", b"6", 1),
        (b"1", b"5", 2),
        (b"3", b"7", 0),
    ]
    assert [c.line for c in corrupt] == [2, 4]
    path.write_text("u1 a b\nu2 c\nu3\n")
    rows, corrupt = _rows(f"amazon-seq:{path}", tolerated=0.9)
    assert [(r["user"], r["item"]) for r in rows] == [(b"u1", b"a"), (b"u1", b"b"), (b"u2", b"c")]
    assert [c.line for c in corrupt] == [3]
    with pytest.raises(ConfigError, match="must be one of diginetica, tmall, nowplaying"):
        open_source(f"sessions:{tmp_path}", None, "history", part="tmal")


def test_complete_journey(tmp_path):
    stamps = pa.array([1_483_228_800_000_000, None, -5_000_000], pa.timestamp("us"))
    table = pa.table(
        {
            "household_id": [7, 8, 9],
            "product_id": [70, 80, 90],
            "transaction_timestamp": stamps,
            "store_id": [1, 2, 3],
        }
    )
    pq.write_table(table, tmp_path / "transactions.parquet")
    rows, corrupt = _rows(f"completejourney:{tmp_path}", tolerated=0.9)
    assert rows == [
        {
            "user": b"7",
            "item": b"70",
            "time": 1_483_228_800,
            "position": 0,
            "store_id": b"1",
        }
    ]
    assert [c.line for c in corrupt] == [2, 3]
    pq.write_table(table.drop(["store_id"]), tmp_path / "transactions.parquet")
    with pytest.raises(InputError, match="has no column 'store_id'"):
        _rows(f"completejourney:{tmp_path}")


SPEC = """
user: customer
item: sku
time: bought_at
context:
  - {name: page}
  - {name: shop, dtype: int64}
  - {name: price, kind: numeric, dtype: float32}
"""


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_file_of_ones_own(tmp_path, kind):
    (tmp_path / "spec.yaml").write_text(SPEC)
    path = tmp_path / f"events.{kind}"
    if kind == "csv":
        path.write_text(
            "customer,sku,bought_at,page,shop,price\nc1,a,7,home,3,1.5\nc1,b,8,,,\nc2,a,9,home,x,1\n"
        )
    else:
        columns = {
            "customer": ["c1", "c1", "c2"],
            "sku": ["a", "b", "a"],
            "bought_at": [7, 8, 9],
            "page": ["home", None, "home"],
            "shop": ["3", None, "x"],
            "price": [1.5, None, 1.0],
        }
        pq.write_table(pa.table(columns), path)
    rows, corrupt = _rows(str(path), str(tmp_path / "spec.yaml"), 0.9)
    assert [(r["user"], r["item"], r["time"]) for r in rows] == [(b"c1", b"a", 7), (b"c1", b"b", 8)]
    assert (rows[0]["page"], rows[0]["shop"], rows[0]["price"]) == (b"home", 3, 1.5)
    assert (rows[1]["page"], rows[1]["shop"], rows[1]["price"]) == (None, None, None)
    assert len(corrupt) == 1 and "shop is not int64" in corrupt[0].reason


def test_a_spec_that_contradicts_itself_is_refused():
    with pytest.raises(ConfigError, match="column u: is named twice"):
        HistorySpec(user="u", item="u")
    from tfrz.data.spec import Feature

    with pytest.raises(ConfigError, match="context tags: cannot be multivalent"):
        HistorySpec(context=(Feature("tags", multivalent=True),))
    with pytest.raises(ConfigError, match="feature history: is defined twice"):
        HistorySpec(context=(Feature("history"),))


@pytest.mark.parametrize(
    ("source", "events", "users"),
    [
        ("movielens-100k:ml-100k/ml-100k.tar.xz", 100_000, 943),
        ("sessions:sessions", 906_140, 186_670),
        ("amazon-seq:amazon-seq", 198_502, 22_363),
        ("completejourney:completejourney", 1_469_307, 2_469),
    ],
)
def test_the_whole_of_the_real_sources(source, events, users):
    name, _, path = source.partition(":")
    if not (REAL / path).exists():
        pytest.skip(f"{name} is not here")
    table, corrupt = read_table(open_source(f"{name}:{REAL / path}", None, "history"), 0.0)
    assert not corrupt
    assert table.num_rows == events
    assert len(table["user"].unique()) == users
