"""Every source becomes the same kind of records, and every unreadable line is named."""

from __future__ import annotations

import gzip
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tfrz.data import small_sources as sources
from tfrz.data.records import open_source
from tfrz.data.sources.files import TextSource
from tfrz.data.sources.reader import read_table
from tfrz.errors import ConfigError, InputError

REAL = Path(__file__).resolve().parents[5] / "shared" / "data"


def _rows(reader, max_corrupt_fraction=0.0):
    table, corrupt = read_table(reader, max_corrupt_fraction)
    return table.to_pylist(), [str(line) for line in corrupt]


@pytest.mark.parametrize("write", [sources.movielens_1m, sources.movielens_1m_zip])
def test_movielens_1m(tmp_path, write):
    rows, corrupt = _rows(open_source(f"movielens-1m:{write(tmp_path)}"))
    assert not corrupt
    assert [row["label"] for row in rows] == [[1.0], [0.0], [1.0]]  # the rating of 3 is out
    assert rows[0] == {
        "user_id": [b"1"],
        "movie_id": [b"1"],
        "gender": [b"F"],
        "age": [b"1"],
        "occupation": [b"10"],
        "zip_code": [b"48067"],
        "genres": [b"Comedy", b"Romance"],
        "label": [1.0],
    }


def test_movielens_options(tmp_path):
    data = f"movielens-1m:{sources.movielens_1m(tmp_path)}"
    rows, _ = _rows(open_source(data, genres=False, keep_neutral=True))
    assert [row["label"][0] for row in rows] == [1.0, 0.0, 0.0, 1.0]
    assert "genres" not in rows[0]
    with pytest.raises(ConfigError, match="movielens-1m has no option"):
        open_source(data, genre=False)


def test_movielens_100k(tmp_path):
    rows, _ = _rows(open_source(f"movielens-100k:{sources.movielens_100k(tmp_path)}"))
    assert rows[1] == {
        "user_id": [b"2"],
        "movie_id": [b"7"],
        "gender": [b"F"],
        "age": [b"53"],
        "occupation": [b"other"],
        "zip_code": [b"94043"],
        "genres": [b"Children's", b"Comedy"],
        "label": [0.0],
    }


def test_corrupt_ratings_are_named_and_the_rest_is_read(tmp_path):
    bad = "1::1::5\n1::x::5::9\n9::1::5::9\n1::9::5::9\n1::1::7::9\n1::1::5::9::9\n"
    folder = sources.movielens_1m(tmp_path, sources.RATINGS_1M + bad)
    reader = open_source(f"movielens-1m:{folder}")
    rows, corrupt = _rows(reader, 0.7)
    assert len(rows) == 3
    place = f"{folder}!ratings.dat"
    assert sorted(corrupt) == [
        f"{place}:10: 5 fields instead of 4",
        f"{place}:5: 3 fields instead of 4",
        f"{place}:6: a field is not a whole number",
        f"{place}:7: an unknown user",
        f"{place}:8: an unknown movie",
        f"{place}:9: a rating outside 1 to 5",
    ]
    with pytest.raises(InputError, match=r"ratings\.dat:5: 3 fields instead of 4 \(one of 6"):
        read_table(reader, 0.5)


def test_criteo(tmp_path):
    path = tmp_path / "train.txt"
    path.write_text(
        sources.criteo_line(1, ["3", "-2"], ["68fd1e64", "", "0b153874"])
        + sources.criteo_line(0, [""], [])
        + sources.criteo_line(2, [], [])
        + "1\t2\n"
        + sources.criteo_line(1, ["a"], [])
    )
    rows, corrupt = _rows(open_source(f"criteo:{path}"), 0.9)
    assert [row["label"] for row in rows] == [[1.0], [0.0]]
    assert (rows[0]["I1"], rows[0]["I2"], rows[0]["I3"]) == ([3.0], [-2.0], [])
    assert (rows[0]["C1"], rows[0]["C2"], rows[0]["C3"]) == ([b"68fd1e64"], [], [b"0b153874"])
    assert corrupt == [
        f"{path}:3: the label is neither 0 nor 1",
        f"{path}:4: 2 fields instead of 40",
        f"{path}:5: I1 is not a whole number",
    ]
    spec = open_source(f"criteo:{path}").feature_spec()
    offsets = {f.name: f.log_offset for f in spec.numeric}
    assert offsets.pop("I2") == 4.0
    assert set(offsets.values()) == {1.0}
    assert (len(offsets), len(spec.categorical)) == (12, 26)


@pytest.mark.parametrize("header", [True, False])
def test_avazu(tmp_path, header):
    path = tmp_path / "train.csv.gz"
    from tfrz.data.sources.click_logs import AVAZU_COLUMNS

    text = ",".join(AVAZU_COLUMNS) + "\n" if header else ""
    text += sources.avazu_line(0, "14102100") + sources.avazu_line(1, "14103023")
    with gzip.open(path, "wt") as file:
        file.write(text + sources.avazu_line(1, "141399"))
    rows, corrupt = _rows(open_source(f"avazu:{path}"), 0.5)
    # 21 October 2014 was a Tuesday, the 30th a Thursday.
    assert [(r["hour_of_day"], r["weekday"], r["label"]) for r in rows] == [
        ([b"0"], [b"1"], [0.0]),
        ([b"23"], [b"3"], [1.0]),
    ]
    assert (rows[0]["C1"], rows[0]["C21"]) == ([b"v0"], [b"v20"])
    assert corrupt == [f"{path}:{3 + header}: hour is not written as YYMMDDHH"]


SPEC = """
label: clicked
features:
  - {name: user}
  - {name: visits, dtype: int64}
  - {name: price, kind: numeric, dtype: float32, log_offset: 1.0}
  - {name: tags, multivalent: true}
"""
OWN = [
    {"user": "a,b", "visits": 3, "price": 1.5, "tags": ["x", "y"], "clicked": 1},
    {"user": None, "visits": None, "price": None, "tags": [], "clicked": 0},
]


def _own_file(folder: Path, kind: str) -> Path:
    path = folder / f"rows.{kind}"
    plain = kind.removesuffix(".gz")
    if plain in ("csv", "tsv"):
        comma = "," if plain == "csv" else "\t"
        lines = [comma.join(("clicked", "user", "visits", "price", "tags"))]
        for row in OWN:
            user = f'"{row["user"]}"' if row["user"] else ""
            cells = [row["clicked"], user, row["visits"], row["price"], "|".join(row["tags"])]
            lines.append(comma.join("" if c is None else str(c) for c in cells))
        text = "\r\n".join(lines) + "\r\n"
        data = text.encode()
        path.write_bytes(gzip.compress(data) if kind.endswith(".gz") else data)
    elif plain == "parquet":
        pq.write_table(pa.Table.from_pylist(OWN), path, row_group_size=1)
    else:
        with tf.io.TFRecordWriter(str(path)) as writer:
            for row in OWN:
                example = tf.train.Example()
                feature = example.features.feature
                feature["clicked"].int64_list.value.append(row["clicked"])
                if row["user"]:
                    feature["user"].bytes_list.value.append(row["user"].encode())
                    feature["visits"].int64_list.value.append(row["visits"])
                    feature["price"].float_list.value.append(row["price"])
                    feature["tags"].bytes_list.value.extend(t.encode() for t in row["tags"])
                writer.write(example.SerializeToString())
    return path


@pytest.mark.parametrize("kind", ["csv", "csv.gz", "tsv", "parquet", "tfrecord"])
def test_files_of_ones_own(tmp_path, kind):
    (tmp_path / "spec.yaml").write_text(SPEC)
    path = _own_file(tmp_path, kind)
    rows, _ = _rows(open_source(str(path), str(tmp_path / "spec.yaml")))
    assert rows == [
        {
            "user": [b"a,b"],
            "visits": [3],
            "price": [1.5],
            "tags": [b"x", b"y"],
            "clicked": [1.0],
        },
        {"user": [], "visits": [], "price": [], "tags": [], "clicked": [0.0]},
    ]


def test_corrupt_rows_of_ones_own(tmp_path):
    (tmp_path / "spec.yaml").write_text(SPEC)
    path = tmp_path / "rows.csv"
    path.write_text("user,visits,price,tags,clicked\na,1,2,x,1\na,one,2,x,1\na,1,2,x,yes\na,1\n")
    rows, corrupt = _rows(open_source(str(path), str(tmp_path / "spec.yaml")), 0.9)
    assert len(rows) == 1
    assert [c.partition(".csv")[2] for c in corrupt] == [
        ":3: visits is not int64: ['one']",
        ":4: clicked is neither 0 nor 1",
        ":5: 2 fields instead of 5",
    ]


@settings(max_examples=60, deadline=None)
@given(
    lines=st.lists(st.binary(max_size=12).map(lambda b: b.replace(b"\n", b"")), min_size=1),
    part=st.integers(1, 40),
    compressed=st.booleans(),
)
def test_shards_cover_a_file_once_and_know_their_lines(lines, part, compressed):
    data = b"".join(line + b"\n" for line in lines)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / ("f.gz" if compressed else "f.txt")
        path.write_bytes(gzip.compress(data) if compressed else data)
        source = TextSource(str(path))
        found, number = [], 1
        for shard in source.shards(part):
            assert shard.first_line == number
            read = list(source.lines(shard))
            found += read
            number += len(read)
            assert read == [line for _, chunk in source.chunks(shard, 3) for line in chunk]
    expected = [line[:-1] if line.endswith(b"\r") else line for line in lines]
    assert found == [expected[0].removeprefix(b"\xef\xbb\xbf"), *expected[1:]]


def test_a_fingerprint_follows_content_and_options(tmp_path):
    data = f"movielens-1m:{sources.movielens_1m(tmp_path)}"
    first = open_source(data).fingerprint()
    assert open_source(data).fingerprint() == first
    assert open_source(data, genres=False).fingerprint() != first
    sources.movielens_1m(tmp_path, sources.RATINGS_1M + "1::1::4::1\n")
    assert open_source(data).fingerprint() != first


BAD = {
    "missing": ("movielens-1m:{}/none.zip", None, "does not exist"),
    "empty": ("criteo:{}/empty.txt", None, "is empty"),
    "wrong delimiter": ("criteo:{}/commas.txt", None, "expected 40 fields between tabs, got 1"),
    "another file": ("movielens-1m:{}/commas.txt", None, "neither a folder nor an archive"),
    "damaged": ("movielens-1m:{}/broken.zip", None, "damaged, or its format does"),
    "no such member": ("movielens-1m:{}", None, "has no ratings.dat"),
    "no path": ("criteo", None, "needs a path: write criteo:PATH"),
    "unknown source": ("criteoo:{}", None, "did you mean"),
    "no spec": ("{}/commas.csv", None, "needs --features"),
    "missing column": ("{}/commas.csv", SPEC, "has no column 'user' (it has a, b"),
    "unknown ending": ("{}/commas.txt", SPEC, "must end in .csv"),
    "no Parquet": ("{}/fake.parquet", SPEC, "is not a Parquet file"),
    "no TFRecord": ("{}/fake.tfrecord", SPEC, "is not a TFRecord file"),
    "bad spec": ("{}/commas.csv", "features: [{nam: x}]", "unknown key"),
}


@pytest.mark.parametrize("case", BAD, ids=lambda c: c.replace(" ", "_"))
def test_bad_sources_are_told_in_one_line(tmp_path, case):
    for name in ("commas.txt", "commas.csv"):
        (tmp_path / name).write_text("a,b,c\n1,2,3\n")
    (tmp_path / "empty.txt").touch()
    for name in ("broken.zip", "fake.parquet", "fake.tfrecord"):
        (tmp_path / name).write_bytes(b"this is a text of no such format at all")
    data, spec, message = BAD[case]
    features = None
    if spec is not None:
        features = str(tmp_path / "spec.yaml")
        Path(features).write_text(spec)
    with pytest.raises(InputError) as caught:
        read_table(open_source(data.format(tmp_path), features), 0.0)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_whole_of_movielens_1m():
    path = REAL / "ml-1m" / "ml-1m.zip"
    if not path.exists():
        pytest.skip("MovieLens-1M is not here")
    table, corrupt = read_table(open_source(f"movielens-1m:{path}"), 0.0)
    assert not corrupt
    # 1,000,209 ratings, 261,197 of them 3; the DCN-V2 paper counts 740k examples.
    assert table.num_rows == 739_012
    labels = np.asarray(table.column("label").combine_chunks().values)
    assert int(labels.sum()) == 348_971 + 226_310
    assert len(table.column("user_id").combine_chunks().values.unique()) == 6_040
