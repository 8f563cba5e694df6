"""Readers of timelines: synthetic files in the formats of the public data sets, and the real."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import tensorflow as tf

from tests.tfrz.data import small_sources as sources
from tfrz.cli.main import main
from tfrz.data.records import open_source
from tfrz.data.sources.files import CorruptLine
from tfrz.data.sources.reader import read_table
from tfrz.data.timelines.examples import clean
from tfrz.data.timelines.readers import TimelineReader, check_timelines
from tfrz.data.timelines.slicing import load_slices
from tfrz.data.timelines.spec import TimelineConfig, TimelineSpec
from tfrz.errors import ConfigError, InputError

ROOT = Path(__file__).resolve().parents[4]
REAL = ROOT.parent / "shared" / "data"
DAY = 86_400


def _open(data: object, features: object = None, **options) -> TimelineReader:
    named = None if features is None else str(features)
    return check_timelines(open_source(str(data), named, "timeline", **options))


def _rows(data: object, features: object = None, tolerated: float = 0.0, **options):
    table, corrupt = read_table(_open(data, features, **options), tolerated)
    return table.to_pylist(), corrupt


def _reasons(corrupt: list[CorruptLine]) -> list[tuple[int, str]]:
    return sorted((line.line, line.reason) for line in corrupt)


def _fails(call, *words: str, kind: type[Exception] = InputError) -> None:
    with pytest.raises(kind) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


# Simulated.


def _simulated(**options) -> TimelineReader:
    return _open("simulated", **{"users": 230, "days": 3, "impressions": 4, **options})


def _batches(reader: TimelineReader, shard) -> list[dict]:
    found = list(reader.read(shard))
    assert not any(isinstance(one, CorruptLine) for one in found)
    return [row for batch in found for row in batch.to_pylist()]


def test_simulated_events_are_views_and_likes_of_the_same_impression():
    reader = _simulated()
    spec = reader.feature_spec()
    assert (spec.actions, spec.implicit) == (("view", "like"), ("view",))
    assert (spec.binary, spec.regression) == (("like",), ("watch",))
    table, _ = read_table(reader, 0.0)
    assert table.schema == reader.schema
    rows = table.to_pylist()
    views = [row for row in rows if row["action"] == b"view"]
    likes = [row for row in rows if row["action"] == b"like"]
    assert len(views) == 230 * 3 * 4
    assert len(views) + len(likes) == len(rows)
    assert len({row["user"] for row in rows}) == 230
    for row in views:
        assert not row["explicit"]
        assert row["duration"] > 0
        assert row["dwell"] >= 0
        assert row["label_like"] in (0.0, 1.0)
        assert row["label_watch"] == pytest.approx(math.log1p(row["dwell"]), rel=1e-5)
    for row in likes:
        assert row["explicit"]
        for name in ("duration", "dwell", "value", "label_like", "label_watch"):
            assert row[name] is None
    # An impression that was liked is a like as well, at the same time, of the same ids.
    names = ("user", "time", "item", "topic")
    of_views = [tuple(row[n] for n in names) for row in views if row["label_like"] == 1.0]
    assert sorted(of_views) == sorted(tuple(row[n] for n in names) for row in likes)
    assert 0 < len(likes) < len(views)
    # An item has one topic.
    assert len({(r["item"], r["topic"]) for r in rows}) == len({r["item"] for r in rows})


def test_simulated_times_are_so_many_a_day():
    rows, _ = _rows("simulated", users=3, days=5, impressions=7)
    start = min(row["time"] for row in rows) // DAY
    for user in (b"user_0", b"user_1", b"user_2"):
        mine = [row for row in rows if row["user"] == user and row["action"] == b"view"]
        days = [row["time"] // DAY - start for row in mine]
        assert [days.count(day) for day in range(5)] == [7] * 5


def test_simulated_events_are_the_same_again_and_others_with_another_seed():
    first, again = (read_table(_simulated(), 0.0)[0] for _ in range(2))
    assert first.equals(again)
    assert not first.equals(read_table(_simulated(seed=1), 0.0)[0])


def test_simulated_shards_do_not_depend_on_each_other():
    reader = _simulated()
    shards = reader.shards()
    assert [(s.start, s.end) for s in shards] == [(0, 100), (100, 200), (200, 230)]
    forwards = [_batches(reader, shard) for shard in shards]
    backwards = [_batches(_simulated(), shard) for shard in reversed(shards)]
    assert repr(forwards) == repr(backwards[::-1])
    # Users are what they are, however many others there are.
    few = _simulated(users=110)
    mine = [row for row in forwards[1] if row["user"] in {b"user_%d" % u for u in range(100, 110)}]
    assert repr(sorted(_batches(few, few.shards()[1]), key=repr)) == repr(sorted(mine, key=repr))


def test_simulated_places_in_the_source_are_of_one_event_each():
    rows, _ = _rows("simulated", users=130, days=2, impressions=3)
    places = [row["position"] for row in rows]
    assert len(set(places)) == len(places)


@pytest.mark.parametrize("name", ["users", "days", "impressions"])
@pytest.mark.parametrize("value", [0, -1, 1.5, "many"])
def test_simulated_options_are_checked(name, value):
    _fails(lambda: _open("simulated", **{name: value}), f"data.options.{name}", kind=ConfigError)


def test_unknown_options_are_named():
    _fails(lambda: _open("simulated", persons=3), "persons", kind=ConfigError)
    _fails(lambda: _open("vcs-edits:x", min_event=3), "min_event", kind=ConfigError)


# MovieLens.


def test_movielens(tmp_path):
    bad = "1::1::5::-3\n1::1::9::3\n1::x\n1::1::y::3\n"
    folder = sources.movielens_1m(tmp_path, sources.RATINGS_1M + bad)
    reader = _open(f"movielens-1m:{folder}")
    table, corrupt = read_table(reader, 0.9)
    assert table.schema == reader.schema
    rows = table.to_pylist()
    assert rows[0] == {
        "user": b"1",
        "time": 978300760,
        "position": 1,
        "explicit": True,
        "action": b"rated",
        "movie": b"1",
        "genre": [b"Comedy", b"Romance"],
        "decade": b"2000s",
        "duration": None,
        "dwell": None,
        "value": 5.0,
        "label_liked": 1.0,
        "label_rating": 5.0,
    }
    assert [row["position"] for row in rows] == [1, 2, 3, 4]
    assert [row["value"] for row in rows] == [5.0, 3.0, 2.0, 4.0]
    assert [row["label_rating"] for row in rows] == [5.0, 3.0, 2.0, 4.0]
    assert [row["label_liked"] for row in rows] == [1.0, 0.0, 0.0, 1.0]
    assert [row["genre"] for row in rows[1:]] == [[b"Crime"], [b"Comedy", b"Romance"], [b"Crime"]]
    assert [row["decade"] for row in rows] == [b"2000s", b"1990s", b"2000s", b"1990s"]
    assert _reasons(corrupt) == [
        (5, "a negative time"),
        (6, "a rating outside 1 to 5"),
        (7, "2 fields instead of 4"),
        (8, "a field is not a whole number"),
    ]
    spec = reader.feature_spec()
    assert [(f.name, f.multivalent) for f in spec.ids] == [
        ("movie", False),
        ("genre", True),
        ("decade", False),
    ]
    assert (spec.value, spec.binary, spec.regression) == ("rating", ("liked",), ("rating",))


def test_movielens_from_the_archive_and_the_small_release(tmp_path):
    folder = sources.movielens_1m(tmp_path / "a")
    zipped = sources.movielens_1m_zip(tmp_path / "b")
    assert _rows(f"movielens-1m:{folder}") == _rows(f"movielens-1m:{zipped}")
    small = sources.movielens_100k(tmp_path / "small")
    rows, _ = _rows(f"movielens-100k:{small}")
    assert [(r["user"], r["movie"], r["genre"], r["decade"], r["value"]) for r in rows] == [
        (b"1", b"7", [b"Children's", b"Comedy"], b"1990s", 5.0),
        (b"2", b"7", [b"Children's", b"Comedy"], b"1990s", 1.0),
    ]


def test_a_movie_that_is_not_listed_has_no_genre_and_no_decade(tmp_path):
    rows, _ = _rows(f"movielens-1m:{sources.movielens_1m(tmp_path, '1::2::4::9')}")
    assert [(row["movie"], row["genre"]) for row in rows] == [(b"2", [])]
    assert not rows[0]["decade"]


# Version histories.

EVENTS = {
    "user": pa.int32(),
    "item": pa.int32(),
    "project": pa.int8(),
    "ts": pa.int64(),
    "commit": pa.int32(),
    "action": pa.int8(),
}
ITEMS = {
    "item": pa.int32(),
    "project": pa.large_string(),
    "path": pa.large_string(),
    "ext": pa.large_string(),
    "dir": pa.large_string(),
}
FILES = [(0, "samba", "docs/a.txt", ".txt", "docs"), (1, "git", "README", "", "")]
EDITS = [(7, 1, 1, 100, 0, 1), (7, 0, 0, 100, 0, 0), (7, 1, 1, 300, 1, 2), (8, 0, 0, 50, 2, 1)]


def _columns(rows: list[tuple], types: dict[str, pa.DataType]) -> pa.Table:
    return pa.table(
        {name: pa.array([r[i] for r in rows], kind) for i, (name, kind) in enumerate(types.items())}
    )


def _vcs_edits(folder: Path, edits=EDITS, files=FILES, group: int = 3) -> str:
    """A folder in the format of vcs-edits."""
    folder.mkdir(exist_ok=True)
    pq.write_table(_columns(edits, EVENTS), folder / "events.parquet", row_group_size=group)
    pq.write_table(_columns(files, ITEMS), folder / "items.parquet")
    return f"vcs-edits:{folder}"


def test_version_histories(tmp_path):
    reader = _open(_vcs_edits(tmp_path))
    assert len(reader.shards()) == 2
    table, corrupt = read_table(reader, 0.0)
    assert not corrupt
    assert table.schema == reader.schema
    rows = table.to_pylist()
    assert rows[0] == {
        "user": b"7",
        "time": 100,
        "position": 0,
        "explicit": True,
        "action": b"changed",
        "file": b"1",
        "directory": b"git:",
        "extension": b"none",
        "duration": None,
        "dwell": None,
        "value": None,
        "label_edited": 1.0,
    }
    got = [(r["user"], r["file"], r["directory"], r["extension"], r["action"]) for r in rows]
    assert got == [
        (b"7", b"1", b"git:", b"none", b"changed"),
        (b"7", b"0", b"samba:docs", b".txt", b"added"),
        (b"7", b"1", b"git:", b"none", b"deleted"),
        (b"8", b"0", b"samba:docs", b".txt", b"changed"),
    ]
    assert [row["position"] for row in rows] == [0, 1, 2, 3]
    spec = reader.feature_spec()
    assert (spec.binary, spec.tasks) == (("edited",), ("edited",))
    assert [f.name for f in spec.described] == ["directory", "extension"]


@pytest.mark.parametrize(
    ("least", "users"), [(1, [b"7", b"8"]), (2, [b"7"]), (3, [b"7"]), (4, None)]
)
def test_users_with_few_edits_are_left_out(tmp_path, least, users):
    path = _vcs_edits(tmp_path, group=1)
    if users is None:
        _fails(lambda: _rows(path, min_events=least), "no records")
        return
    rows, _ = _rows(path, min_events=least)
    assert sorted({row["user"] for row in rows}) == users
    whole, _ = _rows(path)
    assert rows == [row for row in whole if row["user"] in users]


@pytest.mark.parametrize("value", [0, -1, 2.5, "all"])
def test_the_least_number_of_edits_is_checked(value):
    _fails(lambda: _open("vcs-edits:x", min_events=value), "min_events", kind=ConfigError)


def test_files_may_be_listed_in_any_order(tmp_path):
    assert _rows(_vcs_edits(tmp_path / "a")) == _rows(_vcs_edits(tmp_path / "b", files=FILES[::-1]))


def test_numbers_of_files_may_have_gaps(tmp_path):
    """Part of the real files is in their format too."""
    files = [(0, *FILES[0][1:]), (2, *FILES[1][1:]), (3, "perl5", "t/x.t", ".t", "t")]
    rows, _ = _rows(_vcs_edits(tmp_path, [(7, 2, 1, 100, 0, 1)], files))
    assert [(r["file"], r["directory"], r["extension"]) for r in rows] == [(b"2", b"git:", b"none")]


@pytest.mark.parametrize(
    "edit",
    [
        (7, 9, 1, 100, 0, 1),
        (7, 0, 0, 100, 0, 3),
        (7, 0, 0, 100, 0, -1),
        (7, None, 0, 100, 0, 1),
        (None, 0, 0, 100, 0, 1),
        (7, 0, 0, None, 0, 1),
        (7, 0, 0, -5, 0, 1),
        (7, 0, 0, 100, 0, None),
    ],
    ids=[
        "file that is not listed",
        "unknown action",
        "negative action",
        "no file",
        "no user",
        "no time",
        "negative time",
        "no action",
    ],
)
def test_a_bad_edit_is_named_or_left_out(tmp_path, edit):
    """Refused in a line, a corrupt line, or left out by `clean`: never an event, nor a crash."""
    reader = _open(_vcs_edits(tmp_path, [*EDITS, edit]))
    try:
        table, corrupt = read_table(reader, 0.9)
    except InputError as error:
        assert "\n" not in str(error)
        return
    events, left_out = clean(table, reader.feature_spec())
    assert events.num_rows == len(EDITS)
    assert len(corrupt) + sum(left_out.values()) == 1


def test_version_histories_that_are_not_there_are_named(tmp_path):
    path = _vcs_edits(tmp_path)
    pq.write_table(_columns(EDITS, EVENTS).drop(["ts"]), tmp_path / "events.parquet")
    _fails(lambda: _rows(path), "events.parquet", "'ts'")
    _vcs_edits(tmp_path)
    pq.write_table(_columns(FILES, ITEMS).drop(["dir"]), tmp_path / "items.parquet")
    _fails(lambda: _rows(path), "items.parquet", "'dir'")
    (tmp_path / "items.parquet").write_text("no Parquet")
    _fails(lambda: _rows(path), "items.parquet", "not a Parquet file")
    (tmp_path / "items.parquet").unlink()
    _fails(lambda: _rows(path), "items.parquet", "does not exist")
    _fails(lambda: _rows(f"vcs-edits:{tmp_path}/nowhere"), "nowhere", "does not exist")


# Groceries.

PRODUCTS = pa.table(
    {
        "product_id": [70, 80, 90],
        "manufacturer_id": [2, 69, 5],
        "department": ["GROCERY", "PASTRY", None],
        "brand": ["National", "Private", "Private"],
        "product_category": ["FRZN ICE", "ROLLS", None],
    }
)
# 2017-01-01, and what a cast from nanoseconds must not refuse.
NOON = 1_483_272_000


def _journey(folder: Path, group: int = 100, **columns) -> str:
    """A folder in the format of The Complete Journey; the columns say how many rows."""
    count = len(next(iter(columns.values())))
    rows = {
        "household_id": [7] * count,
        "store_id": [1] * count,
        "product_id": [70] * count,
        "sales_value": [2.5] * count,
        "retail_disc": [0.0] * count,
        "coupon_disc": [0.0] * count,
        "coupon_match_disc": [0.0] * count,
        "transaction_timestamp": [NOON * 10**9 + 7] * count,
        **columns,
    }
    rows["transaction_timestamp"] = pa.array(rows["transaction_timestamp"], pa.timestamp("ns"))
    path = folder / "transactions.parquet"
    pq.write_table(pa.table(rows), path, row_group_size=group, version="2.6")
    pq.write_table(PRODUCTS, folder / "products.parquet")
    return f"completejourney:{folder}"


def test_groceries(tmp_path):
    path = _journey(
        tmp_path,
        group=2,
        household_id=[7, 7, 8, 9],
        product_id=[70, 80, 90, 99],
        retail_disc=[0.0, 0.5, 0.5, 0.0],
        coupon_disc=[0.0, 0.0, 1.0, 0.0],
        coupon_match_disc=[0.0, 0.0, 0.0, 0.3],
        sales_value=[2.5, 0.0, 3.0, 1.0],
    )
    reader = _open(path)
    table, corrupt = read_table(reader, 0.0)
    assert not corrupt
    assert table.schema == reader.schema
    rows = table.to_pylist()
    assert rows[0] == {
        "user": b"7",
        "time": NOON,
        "position": 0,
        "explicit": True,
        "action": b"bought",
        "product": b"70",
        "category": b"FRZN ICE",
        "department": b"GROCERY",
        "manufacturer": b"2",
        "duration": None,
        "dwell": None,
        "value": 2.5,
        "label_bought": 1.0,
    }
    assert [row["action"] for row in rows] == [
        b"bought",
        b"bought_on_offer",
        b"bought_with_coupon",
        b"bought_with_coupon",
    ]
    assert [row["position"] for row in rows] == [0, 1, 2, 3]
    assert [row["value"] for row in rows] == [2.5, 0.0, 3.0, 1.0]
    assert [(row["category"], row["department"], row["manufacturer"]) for row in rows[1:]] == [
        (b"ROLLS", b"PASTRY", b"69"),
        (None, None, b"5"),
        (None, None, None),
    ]
    assert clean(table, reader.feature_spec()) == (table, {})


def test_bad_purchases_are_named_with_their_row(tmp_path):
    path = _journey(
        tmp_path,
        group=2,
        household_id=[7, None, 8, 9, 7],
        product_id=[70, 70, None, 70, 70],
        transaction_timestamp=[NOON * 10**9] * 3 + [None, -5 * 10**9],
    )
    rows, corrupt = _rows(path, tolerated=0.9)
    assert [(row["user"], row["position"]) for row in rows] == [(b"7", 0)]
    assert [line.line for line in corrupt] == [2, 3, 4, 5]
    assert all("household, product or time is missing" in line.reason for line in corrupt)
    _fails(lambda: _rows(path), "transactions.parquet:2", "one of 4 corrupt lines among 5")


def test_a_purchase_without_an_amount_has_no_value(tmp_path):
    """An event without the number is outside of every range, which 0 is not."""
    rows, _ = _rows(_journey(tmp_path, sales_value=pa.array([None, 2.0], pa.float64())))
    assert [row["value"] for row in rows] == [None, 2.0]


@pytest.mark.parametrize("name", ["retail_disc", "coupon_disc", "coupon_match_disc"])
def test_a_purchase_without_a_discount_is_a_plain_one(tmp_path, name):
    reader = _open(_journey(tmp_path, **{name: pa.array([None, 0.0], pa.float64())}))
    events, left_out = clean(read_table(reader, 0.0)[0], reader.feature_spec())
    assert not left_out
    assert events["action"].to_pylist() == [b"bought"] * 2


def test_groceries_that_are_not_there_are_named(tmp_path):
    path = _journey(tmp_path, household_id=[1])
    file = tmp_path / "transactions.parquet"
    pq.write_table(pq.read_table(file).drop(["sales_value"]), file, version="2.6")
    _fails(lambda: _rows(path), "transactions.parquet", "'sales_value'")
    (tmp_path / "products.parquet").unlink()
    _fails(lambda: _rows(path), "products.parquet", "does not exist")


# The real files.


@pytest.mark.parametrize(
    ("source", "events", "users", "longest", "long"),
    [
        ("movielens-100k:ml-100k/ml-100k.tar.xz", 100_000, 943, 737, 0),
        ("completejourney:completejourney", 1_469_307, 2_469, 4_193, 0),
        ("vcs-edits:vcs-edits", 1_634_961, 13_863, 82_077, 34),
    ],
)
def test_the_whole_of_the_real_sources(source, events, users, longest, long):
    name, _, path = source.partition(":")
    if not (REAL / path).exists():
        pytest.skip(f"{name} is not here")
    reader = _open(f"{name}:{REAL / path}")
    table, corrupt = read_table(reader, 0.0)
    assert not corrupt
    assert table.num_rows == events
    of_users = pc.value_counts(table["user"]).field("counts").to_numpy()
    assert (len(of_users), of_users.max(), (of_users >= 10_000).sum()) == (users, longest, long)
    known = {action.encode() for action in reader.feature_spec().actions}
    assert set(table["action"].unique().to_pylist()) == known
    for name in ("user", "time", *(f"label_{task}" for task in reader.feature_spec().tasks)):
        assert table[name].null_count == 0
    assert (np.sort(table["position"].to_numpy()) == table["position"].to_numpy()).all()
    assert pc.min(table["time"]).as_py() > 0


def test_long_users_of_the_real_version_histories_are_all_that_is_left():
    if not (REAL / "vcs-edits").exists():
        pytest.skip("vcs-edits is not here")
    table, _ = read_table(_open(f"vcs-edits:{REAL / 'vcs-edits'}", min_events=10_000), 0.0)
    counts = pc.value_counts(table["user"]).field("counts").to_numpy()
    assert len(counts) == 34
    assert sorted(counts.tolist())[-3:] == [58_318, 71_331, 82_077]
    assert counts.min() >= 10_000


# Files of one's own.

SPEC = """
user: viewer
time: at
ids:
  - {name: video}
  - {name: topic, multivalent: true}
action: what
actions: [view, like, share]
implicit: [view]
duration: length
dwell: watched
value: amount
binary: [liked]
regression: [watch_time]
candidate: [video]
"""
NAMES = "viewer,at,video,topic,what,length,watched,amount,liked,watch_time".split(",")
# As they stand in CSV.
CELLS = [
    "u1,100,v1,a|b,view,30,12.5,2,1,0.25",
    "u1,200,v2,a,like,,,,,",
    "u2,150,,,view,0,0,0,0,",
    "u2,160,v3,|b||c|,share,,,,,3",
    "u3,170,v1,b,forward,,,,,",
]
EVENT = {"position": 0, "duration": None, "dwell": None, "value": None}
READ = [
    {
        "user": b"u1",
        "time": 100,
        "explicit": False,
        "action": b"view",
        "video": b"v1",
        "topic": [b"a", b"b"],
        "duration": 30.0,
        "dwell": 12.5,
        "value": 2.0,
        "label_liked": 1.0,
        "label_watch_time": 0.25,
    },
    {
        "user": b"u1",
        "time": 200,
        "explicit": True,
        "action": b"like",
        "video": b"v2",
        "topic": [b"a"],
        "duration": None,
        "dwell": None,
        "value": None,
        "label_liked": None,
        "label_watch_time": None,
    },
    {
        "user": b"u2",
        "time": 150,
        "explicit": False,
        "action": b"view",
        "video": None,
        "topic": [],
        "duration": 0.0,
        "dwell": 0.0,
        "value": 0.0,
        "label_liked": 0.0,
        "label_watch_time": None,
    },
    {
        "user": b"u2",
        "time": 160,
        "explicit": True,
        "action": b"share",
        "video": b"v3",
        "topic": [b"b", b"c"],
        "duration": None,
        "dwell": None,
        "value": None,
        "label_liked": None,
        "label_watch_time": 3.0,
    },
    {
        "user": b"u3",
        "time": 170,
        "explicit": True,
        "action": b"forward",
        "video": b"v1",
        "topic": [b"b"],
        "duration": None,
        "dwell": None,
        "value": None,
        "label_liked": None,
        "label_watch_time": None,
    },
]
KINDS = ("csv", "tsv", "csv.gz", "parquet", "tfrecord", "tfrecord.gz")


def _values(cells: str) -> dict[str, list | None]:
    """A line of CSV as typed values; null for none."""
    row: dict = dict(zip(NAMES, cells.split(","), strict=True))
    for name in row:
        if name == "topic":
            row[name] = [one for one in row[name].split("|") if one]
        elif not row[name]:
            row[name] = None
        elif name not in ("viewer", "video", "what"):
            row[name] = int(row[name]) if name == "at" else float(row[name])
    return row


def _spec(folder: Path, text: str = SPEC) -> Path:
    path = folder / "spec.yaml"
    path.write_text(text)
    return path


def _example(row: dict) -> bytes:
    example = tf.train.Example()
    for name, value in row.items():
        values = value if isinstance(value, list) else [] if value is None else [value]
        stored = example.features.feature[name]
        for one in values:
            if isinstance(one, str):
                stored.bytes_list.value.append(one.encode())
            elif isinstance(one, int):
                stored.int64_list.value.append(one)
            else:
                stored.float_list.value.append(one)
    return example.SerializeToString()


def _write(folder: Path, kind: str = "csv", cells: list[str] = CELLS) -> Path:
    """The same events in each format."""
    import gzip

    path = folder / f"events.{kind}"
    plain = kind.partition(".")[0]
    if plain == "parquet":
        rows = [_values(line) for line in cells]
        pq.write_table(pa.table({n: pa.array([r[n] for r in rows]) for n in NAMES}), path)
        return path
    if plain == "tfrecord":
        options = tf.io.TFRecordOptions(compression_type="GZIP" if kind.endswith("gz") else "")
        with tf.io.TFRecordWriter(str(path), options) as file:
            for line in cells:
                file.write(_example(_values(line)))
        return path
    text = "\n".join([",".join(NAMES), *cells]) + "\n"
    text = text.replace(",", "\t") if plain == "tsv" else text
    path.write_bytes(gzip.compress(text.encode()) if kind.endswith("gz") else text.encode())
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_of_ones_own(tmp_path, kind):
    reader = _open(_write(tmp_path, kind), _spec(tmp_path))
    assert reader.record_type == "timeline"
    table, corrupt = read_table(reader, 0.0)
    assert not corrupt
    assert table.schema == reader.schema
    rows = table.to_pylist()
    places = [row.pop("position") for row in rows]
    assert places == sorted(set(places))
    assert rows == READ
    # Unknown actions are kept to be counted and named; only then they are left out.
    events, left_out = clean(table, reader.feature_spec())
    assert left_out == {"unknown action forward": 1}
    assert events.num_rows == 4


def test_the_spec_of_the_page_on_long_histories_is_one(tmp_path):
    text = (ROOT / "docs" / "long_histories.md").read_text().split("```yaml\n")[1].split("```")[0]
    spec = TimelineSpec.from_yaml(_spec(tmp_path, text))
    columns = ["viewer", "at", "what", "length", "watched", "video", "topic", "liked", "watch_time"]
    path = tmp_path / "events.csv"
    path.write_text(",".join(columns) + "\n" + "u,5,like,3,2,v,a|b,1,0.5\n")
    (row,), _ = _rows(path, _spec(tmp_path, text))
    assert (row["topic"], row["dwell"], row["value"]) == ([b"a", b"b"], 2.0, None)
    assert (spec.implicit, spec.candidate) == (("view",), ("video", "topic"))
    assert spec.ids[0].min_count == 5


def test_a_file_with_one_action_needs_no_column_for_it(tmp_path):
    spec = _spec(tmp_path, "user: u\ntime: at\naction: null\nids: [{name: item}]\nbinary: [y]\n")
    path = tmp_path / "e.csv"
    path.write_text("u,at,item,y\na,5,i,1\n")
    (row,), _ = _rows(path, spec)
    assert (row["action"], row["explicit"]) == (b"event", True)
    # Of which the implicit timeline may be made as well.
    _spec(tmp_path, spec.read_text() + "implicit: [event]\n")
    assert not _rows(path, spec)[0][0]["explicit"]


def test_another_separator_of_lists(tmp_path):
    path = _write(tmp_path, cells=["u1,100,v1,a b,view,,,,,"])
    (row,), _ = _rows(path, _spec(tmp_path, SPEC + 'separator: " "\n'))
    assert row["topic"] == [b"a", b"b"]


def test_a_column_may_be_value_and_outcome_at_once(tmp_path):
    text = SPEC.replace("regression: [watch_time]", "regression: [amount]")
    for kind in ("csv", "parquet", "tfrecord"):
        rows, _ = _rows(_write(tmp_path, kind), _spec(tmp_path, text))
        assert [r["value"] for r in rows] == [2.0, None, 0.0, None, None]
        assert [r["label_amount"] for r in rows] == [2.0, None, 0.0, None, None]


BAD = {
    "no user": (",100,v1,,view,,,,,", "viewer is missing"),
    "no time": ("u,,v1,,view,,,,,", "at is not a time in whole Unix seconds"),
    "a word for a time": ("u,noon,v1,,view,,,,,", "at is not a time in whole Unix seconds"),
    "a part of a second": ("u,1.5,v1,,view,,,,,", "at is not a time in whole Unix seconds"),
    "a negative time": ("u,-100,v1,,view,,,,,", "at is negative: -100"),
    "a time beyond all": ("u,99999999999999999999,v1,,view,,,,,", "at is"),
    "no action": ("u,100,v1,,,,,,,", "what is missing"),
    "a word for a length": ("u,100,v1,,view,long,,,,", "length is not a number"),
    "a negative length": ("u,100,v1,,view,-3,,,,", "length is negative: -3.0"),
    "a negative dwell time": ("u,100,v1,,view,3,-0.5,,,", "watched is negative: -0.5"),
    "a negative amount": ("u,100,v1,,view,,,-2,,", "amount is negative: -2.0"),
    "a grade for a label": ("u,100,v1,,view,,,,4,", "liked is neither 0 nor 1"),
    "a word for a label": ("u,100,v1,,view,,,,yes,", "liked is not a number"),
    "a word for an outcome": ("u,100,v1,,view,,,,,much", "watch_time is not a number"),
    "too few fields": ("u,100", "2 fields instead of 10"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_events_are_named_with_their_line(tmp_path, case):
    line, reason = BAD[case]
    path = _write(tmp_path, cells=[CELLS[0], line, CELLS[1]])
    rows, corrupt = _rows(path, _spec(tmp_path), tolerated=0.9)
    assert [row["time"] for row in rows] == [100, 200]
    assert [one.line for one in corrupt] == [3]
    assert reason in corrupt[0].reason
    _fails(lambda: _rows(path, _spec(tmp_path)), f"{path}:3: {reason}")


@pytest.mark.parametrize(
    "times",
    [[1.5, 2.0], [float("nan"), 2.0], [float("inf"), 2.0], ["1.5", "2"], [[1, 2], [2]], [[], [2]]],
    ids=repr,
)
def test_bad_times_of_parquet_are_named(tmp_path, times):
    spec = _spec(tmp_path, "user: u\ntime: at\naction: null\nids: [{name: item}]\nbinary: [y]\n")
    path = tmp_path / "e.parquet"
    columns = {"u": ["a", "b"], "at": times, "item": ["i", "j"], "y": [1.0, None]}
    pq.write_table(pa.table(columns), path)
    rows, corrupt = _rows(path, spec, tolerated=0.9)
    assert [(row["user"], row["time"]) for row in rows] == [(b"b", 2)]
    assert _reasons(corrupt)[0][0] == 1
    assert corrupt[0].reason.startswith("at is not a time")


def test_a_single_id_with_several_values_is_corrupt(tmp_path):
    rows = [{**_values(CELLS[0]), "video": ["v1", "v2"]}, _values(CELLS[1])]
    path = tmp_path / "e.tfrecord"
    with tf.io.TFRecordWriter(str(path)) as file:
        for row in rows:
            file.write(_example(row))
        file.write(b"\xff\xff no example")
    read, corrupt = _rows(path, _spec(tmp_path), tolerated=0.9)
    assert [row["video"] for row in read] == [b"v2"]
    assert _reasons(corrupt) == [
        (1, "video has 2 values but is not multivalent"),
        (3, "is not a tf.Example"),
    ]


@pytest.mark.parametrize("kind", ["csv", "parquet"])
@pytest.mark.parametrize("name", ["viewer", "at", "topic", "what", "watched", "liked"])
def test_missing_columns_are_named(tmp_path, kind, name):
    path = _write(tmp_path, kind)
    spec = _spec(tmp_path)
    if kind == "parquet":
        pq.write_table(pq.read_table(path).drop([name]), path)
    else:
        path.write_text(path.read_text().replace(name, "other", 1))
    _fails(lambda: _rows(path, spec), f"has no column {name!r}", str(path))


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("dwell:", "dwel:", ["dwel", "did you mean 'dwell'"]),
        ("implicit: [view]", "implicit: [watch]", ["implicit watch"]),
        ("candidate: [video]", "candidate: [author]", ["candidate author", "video, topic"]),
        ("binary: [liked]", "binary: liked", ["binary", "a list"]),
        ("{name: video}", "{name: video, kind: numeric, dtype: float32}", ["video"]),
        ("{name: video}", "{name: video, multi: true}", ["multi"]),
        ("{name: video}", "{name: topic}", ["topic", "twice"]),
        ("regression: [watch_time]", "regression: [liked]", ["liked", "twice"]),
    ],
)
def test_errors_of_a_spec_are_one_line(tmp_path, old, new, words):
    spec = _spec(tmp_path, SPEC.replace(old, new))
    assert spec.read_text() != SPEC
    _fails(lambda: _open(_write(tmp_path), spec), *words, kind=ConfigError)


@pytest.mark.parametrize(
    "name", ["user", "position", "explicit", "action", "duration", "dwell", "value", "label_y"]
)
def test_an_id_cannot_have_the_name_of_what_all_events_have(tmp_path, name):
    """It is refused by its name, or read as any other column."""
    text = f"user: u\ntime: at\naction: null\nids: [{{name: {name}}}, {{name: b}}]\nbinary: [y]\n"
    path = tmp_path / "e.csv"
    path.write_text(f"u,at,{name},b,y\nsomebody,5,something,else,1\n")
    try:
        (row,), _ = _rows(path, _spec(tmp_path, text))
    except InputError as error:
        assert name in str(error)
        assert "\n" not in str(error)
    else:
        assert row[name] == b"something"


def test_a_file_of_ones_own_needs_a_spec(tmp_path):
    _fails(lambda: _open(_write(tmp_path)), "--features")
    _fails(lambda: _open(tmp_path / "e.csv", _spec(tmp_path)), "does not exist")
    _fails(lambda: _open(_write(tmp_path), tmp_path / "none.yaml"), "none.yaml", kind=ConfigError)


def test_only_readers_of_timelines_pass():
    reader = open_source("simulated", None, "history")
    _fails(lambda: check_timelines(reader), "history", "timelines")
    assert check_timelines(_simulated()).record_type == "timeline"
    _fails(lambda: _open("criteo:x"), "criteo:x", "impression", "timeline")


# What is after a time.


def _sources(folder: Path) -> dict[str, TimelineReader]:
    for name in ("ml", "vcs", "cj"):
        (folder / name).mkdir()
    stamps = [10**9 * (NOON + 60 * minute) for minute in range(5)]
    return {
        "simulated": _open("simulated", users=3, days=4, impressions=3),
        "movielens": _open(f"movielens-1m:{sources.movielens_1m(folder / 'ml')}"),
        "vcs-edits": _open(_vcs_edits(folder / "vcs")),
        "completejourney": _open(_journey(folder / "cj", transaction_timestamp=stamps)),
        **{kind: _open(_write(folder, kind), _spec(folder)) for kind in KINDS},
    }


def test_from_a_time_on_are_the_events_that_are_not_before_it(tmp_path):
    for name, reader in _sources(tmp_path).items():
        whole, _ = read_table(reader, 0.0)
        times = sorted(set(whole["time"].to_pylist()))
        for since in (0, times[0], times[0] + 1, times[len(times) // 2], times[-1]):
            table, _ = read_table(reader.from_time(since), 0.0)
            kept = whole.filter(pc.greater_equal(whole["time"], since))
            assert table.equals(kept), (name, since)
        late = reader.from_time(times[-1] + 1)
        assert [row for shard in late.shards() for row in late.read(shard)] == []
        assert read_table(late.from_time(None), 0.0)[0].equals(whole)
        # The reader itself stays as it is.
        assert reader.since is None
        assert read_table(reader, 0.0)[0].equals(whole)


def test_corrupt_lines_are_told_whatever_the_time(tmp_path):
    path = _write(tmp_path, cells=[CELLS[0], "u,noon,v1,,view,,,,,", CELLS[1]])
    reader = _open(path, _spec(tmp_path)).from_time(150)
    table, corrupt = read_table(reader, 0.9)
    assert table["time"].to_pylist() == [200]
    assert [line.line for line in corrupt] == [3]


TIMES = [100, 101, 200, 201, 300, 301, 150, 302]
PLAIN = "user: u\ntime: at\naction: null\nids: [{name: item}]\nbinary: [y]\n"


def _grouped(folder: Path, before: dict | None = None, times: list = TIMES) -> TimelineReader:
    """Parquet with two events in each row group; further columns come first."""
    count = len(times)
    columns = {"u": ["a"] * count, "at": times, "item": ["i"] * count, "y": [1.0] * count}
    path = folder / "groups.parquet"
    pq.write_table(pa.table({**(before or {}), **columns}), path, row_group_size=2)
    return _open(path, _spec(folder, PLAIN))


@pytest.mark.parametrize(
    ("since", "groups"),
    [
        (0, [0, 1, 2, 3]),
        (101, [0, 1, 2, 3]),
        (102, [1, 2, 3]),
        (202, [2, 3]),
        (302, [3]),
        (400, []),
    ],
)
def test_row_groups_that_end_before_the_time_are_not_read(tmp_path, since, groups):
    reader = _grouped(tmp_path).from_time(since)
    assert [shard.start for shard in reader.shards()] == groups
    if groups:
        table, _ = read_table(reader, 0.0)
        assert table["time"].to_pylist() == [time for time in TIMES if time >= since]
        # Places are those in the whole file.
        whole, _ = read_table(_grouped(tmp_path), 0.0)
        late = [p for p, t in zip(whole["position"].to_pylist(), TIMES, strict=True) if t >= since]
        assert table["position"].to_pylist() == late


@pytest.mark.parametrize(("since", "groups"), [(101, 4), (102, 3), (202, 2), (302, 1)])
def test_row_groups_are_read_whole_where_that_is_asked_for(tmp_path, since, groups):
    late = _grouped(tmp_path).from_time(since, whole_shards=True)
    assert read_table(late, 0.0)[0]["time"].to_pylist() == TIMES[8 - 2 * groups :]
    # Once more, without.
    assert min(read_table(late.from_time(since), 0.0)[0]["time"].to_pylist()) >= since


def test_row_groups_without_statistics_are_read(tmp_path):
    _grouped(tmp_path)
    path = tmp_path / "groups.parquet"
    pq.write_table(pq.read_table(path), path, row_group_size=2, write_statistics=False)
    reader = _open(path, _spec(tmp_path, PLAIN)).from_time(250)
    assert len(reader.shards()) == 4
    assert read_table(reader, 0.0)[0]["time"].to_pylist() == [300, 301, 302]


@pytest.mark.parametrize(
    "column",
    [
        pa.array([{"a": 1, "b": 2, "c": 3}] * len(TIMES)),
        pa.array([{"a": 1, "b": 10**9, "c": 10**9}] * len(TIMES)),
        pa.array([["x", "y"]] * len(TIMES)),
    ],
    ids=["struct of small numbers", "struct of large numbers", "list"],
)
def test_from_a_time_on_next_to_a_column_with_parts(tmp_path, column):
    reader = _grouped(tmp_path, {"extra": column})
    late = reader.from_time(202)
    assert [shard.start for shard in late.shards()] == [2, 3]
    assert read_table(late, 0.0)[0]["time"].to_pylist() == [300, 301, 302]


def test_from_a_time_on_where_times_are_text(tmp_path):
    """They are read as whole numbers, so they are compared as such."""
    texts = ["99", "100", "1000", "1001"]
    late = _grouped(tmp_path, times=texts).from_time(500)
    assert read_table(late, 0.0)[0]["time"].to_pylist() == [1000, 1001]


# Fingerprints.


def test_fingerprints_change_with_the_contents(tmp_path):
    first = {name: reader.fingerprint() for name, reader in _sources(tmp_path).items()}
    again = tmp_path / "again"
    again.mkdir()
    assert len(set(first.values())) == len(first)
    found = _sources(again)
    assert found["simulated"].fingerprint() == first["simulated"]
    for name, reader in found.items():
        before = reader.fingerprint()
        for path in reader.files():
            stat, content = os.stat(path), Path(path).read_bytes()
            Path(path).write_bytes(content + b"\n")
            os.utime(path, (stat.st_atime, stat.st_mtime))
            assert reader.fingerprint() != before, (name, path)
            Path(path).write_bytes(content)
        assert reader.fingerprint() == before


def test_fingerprints_change_with_the_options(tmp_path):
    path = _vcs_edits(tmp_path)
    assert _open(path).fingerprint() == _open(path, min_events=1).fingerprint()
    assert _open(path).fingerprint() != _open(path, min_events=2).fingerprint()
    of_worlds = {
        _simulated(**change).fingerprint()
        for change in ({}, {"users": 3}, {"days": 4}, {"impressions": 5}, {"seed": 6})
    }
    assert len(of_worlds) == 5
    events = _write(tmp_path)
    specs = (SPEC, SPEC.replace("amount", "length"), SPEC + 'separator: ";"\n')
    of_specs = {_open(events, _spec(tmp_path, text)).fingerprint() for text in specs}
    assert len(of_specs) == 3


# The command.


def _described(capsys, *arguments: str) -> dict:
    assert main(["data", "describe", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_describe_a_file(tmp_path, capsys):
    path, spec = _write(tmp_path), _spec(tmp_path)
    arguments = [str(path), "--features", str(spec), "--records", "timeline"]
    described = _described(capsys, *arguments)
    assert (described["record_type"], described["rows"], described["corrupt"]) == ("timeline", 5, 0)
    features = {one["name"]: one for one in described["features"]}
    assert list(features) == [
        "user",
        "time",
        "action",
        "video",
        "topic",
        "duration",
        "dwell",
        "value",
        "label_liked",
        "label_watch_time",
    ]
    assert features["user"]["distinct"] == 3
    assert features["user"]["top"][0] == ["u1", 2]
    assert (features["time"]["minimum"], features["time"]["maximum"]) == (100, 200)
    assert features["action"]["top"][0] == ["view", 2]
    assert features["action"]["distinct"] == 4
    assert (features["video"]["rows"], features["video"]["missing"]) == (4, 1)
    assert (features["topic"]["kind"], features["topic"]["values"]) == ("multivalent", 6)
    assert features["topic"]["top"] == [["b", 3], ["a", 2], ["c", 1]]
    assert (features["dwell"]["rows"], features["dwell"]["maximum"]) == (2, 12.5)
    assert (features["label_liked"]["rows"], features["label_liked"]["mean"]) == (2, 0.5)
    assert features["label_watch_time"]["missing"] == 3
    assert main(["data", "describe", *arguments]) == 0
    shown = capsys.readouterr().out
    assert "5 timeline records" in shown
    assert "label_watch_time" in shown


def test_describe_sources_that_have_timelines(tmp_path, capsys):
    described = _described(capsys, "simulated", "--records", "timeline", "--option", "users=20")
    assert described["rows"] > 20 * 40 * 20
    folder = sources.movielens_1m(tmp_path)
    described = _described(capsys, f"movielens-1m:{folder}", "--records", "timeline")
    features = {one["name"]: one for one in described["features"]}
    assert features["genre"]["top"] == [["Comedy", 2], ["Crime", 2], ["Romance", 2]]
    # A source that has nothing else needs no --records.
    path = _vcs_edits(tmp_path / "vcs")
    assert _described(capsys, path)["record_type"] == "timeline"
    limited = ["--limit", "3", "--option", "min_events=2"]
    assert _described(capsys, path, *limited)["rows"] == 3


def test_describe_bad_input_in_one_line(tmp_path, capsys):
    spec = _spec(tmp_path)
    for arguments, word in (
        (["criteo:x", "--records", "timeline"], "criteo:x has impression records"),
        (["vcs-edits:nowhere"], "nowhere"),
        ([str(tmp_path / "x.csv"), "--features", str(spec), "--records", "timeline"], "x.csv"),
        (["simulated", "--records", "timeline", "--option", "users=0"], "data.options.users"),
    ):
        assert main(["data", "describe", *arguments]) == 2
        captured = capsys.readouterr()
        assert captured.err.count("\n") == 1
        assert word in captured.err
        assert captured.out == ""


# Slices that a source cannot have.

READY = ("simulated", "movielens", "completejourney", "vcs-edits")


def test_ready_made_slices_go_with_their_source_and_no_other(tmp_path):
    readers = {name: one for name, one in _sources(tmp_path).items() if not name.startswith(KINDS)}
    assert set(readers) == set(READY)
    for name, reader in readers.items():
        for other in READY:
            slices = load_slices(other)
            config = TimelineConfig(slices=slices)
            if other == name:
                config.check(reader.feature_spec())
                continue
            first = slices.slices[0].name
            with pytest.raises(ConfigError) as caught:
                config.check(reader.feature_spec())
            assert f"slice {first}: " in str(caught.value)
            assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"id": "author"}, ["author", "video, topic"]),
        ({"actions": ["lke"]}, ["lke", "view, like, share"]),
        ({"actions": ["view"]}, ["view", "explicit"]),
        ({"timeline": "implicit", "actions": ["like"]}, ["like", "implicit"]),
    ],
)
def test_slices_are_checked_against_a_spec_of_ones_own(tmp_path, change, words):
    spec = TimelineSpec.from_yaml(_spec(tmp_path))
    one = {"name": "mine", "timeline": "explicit", "id": "topic", "table": "t", **change}
    path = tmp_path / "slices.yaml"
    path.write_text(json.dumps({"version": 1, "slices": [one]}))
    config = TimelineConfig(slices=load_slices(str(path)))
    _fails(lambda: config.check(spec), "slice mine", *words, kind=ConfigError)


@pytest.mark.parametrize(
    ("change", "without", "words"),
    [
        ({"dwell": [3, None]}, ["dwell"], ["no dwell"]),
        ({"value": [3, None]}, ["value"], ["no value"]),
        ({"weight": "value"}, ["value"], ["no value"]),
        ({"ratio": [0.5, None]}, ["duration"], ["no dwell time and duration"]),
        ({"score": [0.5, None]}, ["dwell"], ["no dwell time and duration"]),
        ({"weight": "watch_score"}, ["duration"], ["no dwell time and duration"]),
        ({}, ["implicit"], ["no implicit timeline"]),
    ],
)
def test_slices_of_numbers_that_a_spec_does_not_have(tmp_path, change, without, words):
    spec = TimelineSpec.from_yaml(_spec(tmp_path))
    one = {"name": "mine", "timeline": "implicit", "id": "topic", "table": "t", **change}
    path = tmp_path / "slices.yaml"
    path.write_text(json.dumps({"version": 1, "slices": [one]}))
    config = TimelineConfig(slices=load_slices(str(path)))
    config.check(spec)
    gone = {name: () if name == "implicit" else None for name in without}
    poorer = dataclasses.replace(spec, **gone)
    _fails(lambda: config.check(poorer), "slice mine", *words, kind=ConfigError)
