"""Catalogues of items: rows, ids, features, and the sources that bring them."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf

from tests.tfrz.data import small_sources as sources
from tfrz.data.histories.catalogue import CandidateFeatures, Catalogue
from tfrz.data.histories.spec import CandidateSpec, HistorySpec
from tfrz.data.records import open_source
from tfrz.data.sources.reader import read_table
from tfrz.data.spec import Feature, numeric
from tfrz.errors import ConfigError, InputError

REAL = Path(__file__).resolve().parents[5] / "shared" / "data"
SPEC = CandidateSpec(
    item="sku",
    features=(
        Feature("brand"),
        Feature("tags", multivalent=True),
        numeric("price", standardize=True),
    ),
)


def _catalogue(rows: list[tuple]) -> Catalogue:
    ids, brands, tags, prices = zip(*rows, strict=True)
    return Catalogue(
        SPEC,
        pa.table(
            {
                "sku": pa.array(ids, pa.binary()),
                "brand": pa.array(brands, pa.list_(pa.binary())),
                "tags": pa.array(tags, pa.list_(pa.binary())),
                "price": pa.array(prices, pa.list_(pa.float32())),
            }
        ),
    )


ROWS = [
    (b"x", [b"b1"], [b"t1", b"t2", b"t3"], [1.0]),
    (b"y", [b"b1"], [], [3.0]),
    (b"z", [], [b"t2"], []),
    (b"\xffw", [b"b2"], [b"t2", b"t1"], [5.0]),
]


def test_rows_are_found_by_their_raw_ids():
    catalogue = _catalogue(ROWS)
    assert catalogue.items == [b"x", b"y", b"z", b"\xffw"]
    rows = catalogue.rows_of([b"z", b"?", b"x", b"", b"\xffw", b"z"])
    assert isinstance(rows, np.ndarray)
    assert rows.tolist() == [2, -1, 0, -1, 3, 2]
    assert catalogue.rows_of([]).tolist() == []


def test_a_catalogue_may_have_ids_alone():
    catalogue = Catalogue.of_items([b"b", b"a"])
    assert catalogue.items == [b"b", b"a"]
    assert catalogue.spec.features == ()
    assert catalogue.rows_of([b"a", b"c"]).tolist() == [1, -1]
    with pytest.raises(InputError):
        CandidateFeatures(catalogue)


def test_an_item_that_is_there_twice_is_named():
    with pytest.raises(InputError, match=r"'sku-7'.*twice"):
        _catalogue([*ROWS, (b"sku-7", [], [], []), (b"sku-7", [], [], [])])
    with pytest.raises(InputError, match=r"'q'.*twice"):
        Catalogue.of_items([b"q", b"r", b"q"])


@pytest.mark.parametrize("missing", [None, b""])
def test_an_item_without_an_id_is_refused_with_its_row(missing):
    with pytest.raises(InputError, match="row 3"):
        _catalogue([*ROWS[:2], (missing, [], [], [])])


@pytest.mark.parametrize(
    ("listed", "bound", "refused"),
    [
        ([b"7.0", b"8.0"], 0.1, True),
        ([b"007", b"008", b"9"], 0.5, True),
        ([b"007", b"008", b"9"], 0.1, False),
        ([b"7", b"8", b"10"], 0.5, False),
        ([b"1"], 0.0, False),
    ],
)
def test_a_catalogue_of_other_ids_is_refused_with_both_kinds(listed, bound, refused):
    spec = CandidateSpec(min_match=bound)
    catalogue = Catalogue(spec, pa.table({"item": pa.array(listed, pa.binary())}))
    catalogue.check_match([])
    if not refused:
        catalogue.check_match(["7", "8", "9"])
        return
    with pytest.raises(InputError) as told:
        catalogue.check_match(["7", "8", "9"])
    share = "0.0%" if b"7.0" in listed else "33.3%"
    assert f"lists {share} of the 3 items" in str(told.value)
    assert f"ids such as {listed[0].decode()!r}" in str(told.value)
    assert "the events have '7', '8'" in str(told.value)


def test_a_bound_outside_0_to_1_is_refused():
    with pytest.raises(ConfigError, match=r"candidates\.min_match: must be 0 to 1"):
        CandidateSpec(min_match=2.0)


def test_a_catalogue_is_the_same_after_it_was_written(tmp_path):
    catalogue = _catalogue(ROWS)
    path = tmp_path / "catalogue.parquet"
    catalogue.write(path)
    copy = Catalogue.read(path)
    assert copy.spec == catalogue.spec
    assert copy.table.equals(catalogue.table)
    bare = Catalogue.of_items([b"a"])
    bare.write(path)
    assert Catalogue.read(str(path)).items == [b"a"]


def test_a_file_of_another_is_refused(tmp_path):
    other = tmp_path / "other.parquet"
    pq.write_table(pa.table({"sku": pa.array([b"x"], pa.binary())}), other)
    with pytest.raises(InputError, match=r"other\.parquet"):
        Catalogue.read(other)


def test_a_file_that_is_no_parquet_is_refused(tmp_path):
    text = tmp_path / "items.csv"
    text.write_text("sku\nx\n")
    with pytest.raises(InputError, match=r"items\.csv"):
        Catalogue.read(text)


def test_what_models_read_of_the_features():
    features = CandidateFeatures(_catalogue(ROWS))
    shapes = features.shapes
    assert sorted(shapes["categorical"]) == ["brand_xf", "tags_xf"]
    # Missing, the terms, one bucket for terms that are not known.
    assert shapes["categorical"] == {"brand_xf": 4, "tags_xf": 5}
    assert shapes["multivalent"] == {"tags_xf": 3}
    assert list(shapes["numeric"]) == ["price_xf"]
    columns = features.columns(np.arange(4))
    assert columns["brand_xf"].tolist()[0] == columns["brand_xf"].tolist()[1] != 0
    assert columns["brand_xf"].tolist()[2] == 0
    assert columns["tags_xf"].shape == (4, 3)
    assert (columns["tags_xf"] > 0).sum(1).tolist() == [3, 0, 1, 2]
    (shared,) = set(columns["tags_xf"][2]) - {0}
    assert shared in columns["tags_xf"][0] and shared in columns["tags_xf"][3]
    np.testing.assert_allclose(
        columns["price_xf"], np.array([-2, 0, 0, 2]) / np.sqrt(8 / 3), atol=1e-5
    )
    for name, size in shapes["categorical"].items():
        assert columns[name].max() < size


def test_rows_may_come_in_any_order_and_unknown_items_are_as_if_missing():
    features = CandidateFeatures(_catalogue(ROWS))
    whole = features.columns(np.arange(4))
    picked = features.columns(np.array([3, -1, 0, 0]))
    for name, values in picked.items():
        np.testing.assert_array_equal(values[0], whole[name][3])
        np.testing.assert_array_equal(values[2], whole[name][0])
        np.testing.assert_array_equal(values[3], whole[name][0])
        assert not np.any(values[1])
    for values in features.columns(np.array([-1, -1])).values():
        assert len(values) == 2 and not np.any(values)


def test_a_catalogue_without_any_tag_has_features_too():
    rows = [(b"x", [b"b"], [], [1.0]), (b"y", [b"b"], [], [2.0])]
    columns = CandidateFeatures(_catalogue(rows)).columns(np.array([0, 1, -1]))
    assert len(columns["tags_xf"]) == 3 and not np.any(columns["tags_xf"])


@pytest.mark.parametrize(
    "features",
    [
        (Feature("sku"),),
        (Feature("a"), Feature("a")),
        (Feature("when", kind="time", dtype="int64"),),
    ],
)
def test_a_spec_that_contradicts_itself_is_refused(features):
    with pytest.raises(ConfigError, match=features[0].name):
        CandidateSpec(item="sku", features=features)


# A file of one's own.

YAML = """
user: customer
item: sku
time: bought_at
candidates:
  item: sku
  file: {file}
  separator: ";"
  features:
    - {{name: brand}}
    - {{name: size, dtype: int64}}
    - {{name: tags, multivalent: true}}
    - {{name: price, kind: numeric, dtype: float32}}
"""
HEADER = "sku,brand,size,tags,price\n"


def _own(folder: Path, text: str | None, name: str = "items.csv"):
    (folder / "events.csv").write_text("customer,sku,bought_at\nc1,x,7\nc1,y,8\nc2,x,9\n")
    (folder / "spec.yaml").write_text(YAML.format(file=folder / name))
    if text is not None:
        (folder / name).write_text(text)
    return open_source(str(folder / "events.csv"), str(folder / "spec.yaml"), "history")


EXPECTED = [
    {"sku": b"x", "brand": [b"b1"], "size": [3], "tags": [b"t1", b"t2"], "price": [1.5]},
    {"sku": b"y", "brand": [], "size": [], "tags": [], "price": []},
    {"sku": b"z", "brand": [b"b2"], "size": [-4], "tags": [b"t2"], "price": [0.25]},
]


def _write_parquet(path: Path) -> None:
    pq.write_table(
        pa.table(
            {
                "sku": ["x", "y", "z"],
                "brand": ["b1", None, "b2"],
                "size": pa.array([3, None, -4], pa.int64()),
                "tags": [["t1", "t2"], [], ["t2"]],
                "price": pa.array([1.5, None, 0.25], pa.float32()),
                "not asked for": [1, 2, 3],
            }
        ),
        path,
    )


def _write_tfrecord(path: Path) -> None:
    with tf.io.TFRecordWriter(str(path)) as writer:
        for row in EXPECTED:
            feature = {"sku": tf.train.Feature(bytes_list=tf.train.BytesList(value=[row["sku"]]))}
            for name in ("brand", "tags"):
                value = tf.train.BytesList(value=row[name])
                feature[name] = tf.train.Feature(bytes_list=value)
            feature["size"] = tf.train.Feature(int64_list=tf.train.Int64List(value=row["size"]))
            feature["price"] = tf.train.Feature(float_list=tf.train.FloatList(value=row["price"]))
            example = tf.train.Example(features=tf.train.Features(feature=feature))
            writer.write(example.SerializeToString())


@pytest.mark.parametrize("kind", ["csv", "csv.gz", "parquet", "tfrecord"])
def test_a_catalogue_of_ones_own(tmp_path, kind):
    reader, path = _own(tmp_path, None, f"items.{kind}"), tmp_path / f"items.{kind}"
    text = HEADER + "x,b1,3,t1;t2,1.5\ny,,,,\nz,b2,-4,t2,0.25\n"
    if kind == "csv":
        path.write_text(text)
    elif kind == "csv.gz":
        path.write_bytes(gzip.compress(text.encode()))
    elif kind == "parquet":
        _write_parquet(path)
    else:
        _write_tfrecord(path)
    table = reader.candidates()
    assert table.to_pylist() == EXPECTED
    catalogue = Catalogue(reader.feature_spec().candidates, table)
    assert catalogue.items == [b"x", b"y", b"z"]
    assert CandidateFeatures(catalogue).shapes["multivalent"] == {"tags_xf": 2}
    rows, corrupt = read_table(reader)
    assert rows["item"].to_pylist() == [b"x", b"y", b"x"] and not corrupt


def test_the_fingerprint_and_the_files_know_the_catalogue(tmp_path):
    reader = _own(tmp_path, HEADER + "x,b1,3,t1,1.5\n")
    assert str(tmp_path / "items.csv") in reader.files()
    before = reader.fingerprint()
    assert _own(tmp_path, HEADER + "x,b1,3,t1,1.5\n").fingerprint() == before
    assert _own(tmp_path, HEADER + "x,b2,3,t1,1.5\n").fingerprint() != before


@pytest.mark.parametrize(
    ("lines", "place", "reason"),
    [
        ("x,b1,3,t1,1.5\ny,b1,3,t1,dear\n", 3, "price"),
        ("x,b1,many,t1,1.5\n", 2, "size"),
        ("x,b1,3,t1,1.5\ny,b1,3,t1,1\n,b1,3,t1,1\n", 4, "sku"),
        ("x,b1,3,t1,1.5\ny,b1\n", 3, "2 fields"),
        ("x,b1,3,t1,1.5,more\n", 2, "6 fields"),
    ],
)
def test_a_row_that_cannot_be_read_is_named(tmp_path, lines, place, reason):
    with pytest.raises(InputError, match=rf"items\.csv:{place}: .*{reason}"):
        _own(tmp_path, HEADER + lines).candidates()


def test_a_duplicate_in_a_file_of_ones_own_is_named(tmp_path):
    reader = _own(tmp_path, HEADER + "x,b1,3,t1,1.5\nsku-9,,,,\nsku-9,,,,\n")
    with pytest.raises(InputError, match="'sku-9'"):
        Catalogue(reader.feature_spec().candidates, reader.candidates())


def test_a_catalogue_that_is_not_there_or_lacks_a_column_is_named(tmp_path):
    with pytest.raises(InputError, match=r"items\.csv"):
        _own(tmp_path, None).candidates()
    with pytest.raises(InputError, match=r"items\.csv.*'tags'"):
        _own(tmp_path, "sku,brand,size,price\nx,b1,3,1\n").candidates()
    with pytest.raises(InputError, match=r"items\.csv"):
        _own(tmp_path, HEADER).candidates()


def test_a_message_on_the_catalogue_does_not_send_the_reader_to_the_events(tmp_path):
    with pytest.raises(InputError) as caught:
        _own(tmp_path, None).candidates()
    assert "--data" not in str(caught.value)


def test_a_spec_without_candidates_has_no_catalogue(tmp_path):
    (tmp_path / "events.csv").write_text("customer,sku,bought_at\nc1,x,7\n")
    (tmp_path / "spec.yaml").write_text("user: customer\nitem: sku\ntime: bought_at\n")
    reader = open_source(str(tmp_path / "events.csv"), str(tmp_path / "spec.yaml"), "history")
    assert reader.candidates() is None
    assert HistorySpec.from_yaml(tmp_path / "spec.yaml").candidates is None


@pytest.mark.parametrize(
    ("candidates", "message"),
    [
        ("{item: sku, fil: a.csv}", "fil"),
        ("{item: sku, features: [{name: a}]}", "file"),
        ("{item: sku, file: a.csv, features: [{name: sku}]}", "sku"),
        ("7", "candidates"),
    ],
)
def test_a_wrong_candidates_section_is_refused(tmp_path, candidates, message):
    (tmp_path / "events.csv").write_text("customer,sku,bought_at\nc1,x,7\n")
    (tmp_path / "spec.yaml").write_text(
        f"user: customer\nitem: sku\ntime: bought_at\ncandidates: {candidates}\n"
    )
    with pytest.raises(ConfigError, match=message):
        open_source(
            str(tmp_path / "events.csv"), str(tmp_path / "spec.yaml"), "history"
        ).candidates()


# The public data sets.


def _rows_by_id(reader) -> dict[bytes, dict]:
    catalogue = Catalogue(reader.feature_spec().candidates, reader.candidates())
    assert reader.feature_spec().candidates.item == catalogue.table.column_names[0]
    return dict(zip(catalogue.items, catalogue.table.to_pylist(), strict=True))


@pytest.mark.parametrize("packed", [False, True])
def test_movielens_knows_the_genres(tmp_path, packed):
    path = (sources.movielens_1m_zip if packed else sources.movielens_1m)(tmp_path)
    rows = _rows_by_id(open_source(f"movielens-1m:{path}", None, "history"))
    assert {k: v["genres"] for k, v in rows.items()} == {
        b"1": [b"Comedy", b"Romance"],
        b"3": [b"Crime"],
    }
    small = sources.movielens_100k(tmp_path / "small")
    rows = _rows_by_id(open_source(f"movielens-100k:{small}", None, "history"))
    assert list(rows) == [b"7"] and len(rows[b"7"]["genres"]) == 2


def _amazon(folder: Path, attributes=None, raw: bytes | None = None):
    (folder / "Own.txt").write_text("u1 a b c\nu2 c\n")
    data = raw if raw is not None else json.dumps(attributes).encode()
    if attributes is not None or raw is not None:
        (folder / "Own_item2attributes.json.gz").write_bytes(gzip.compress(data))
    return open_source(f"amazon-seq:{folder / 'Own.txt'}", None, "history")


def test_amazon_knows_the_attributes(tmp_path):
    reader = _amazon(tmp_path, {"a": [3, 1], "b": [], "c": [1]})
    rows = _rows_by_id(reader)
    assert {k: v["attributes"] for k, v in rows.items()} == {
        b"a": [b"3", b"1"],
        b"b": [],
        b"c": [b"1"],
    }
    assert str(tmp_path / "Own_item2attributes.json.gz") in reader.files()
    before = reader.fingerprint()
    assert _amazon(tmp_path, {"a": [3, 2], "b": [], "c": [1]}).fingerprint() != before
    table, corrupt = read_table(reader)
    assert table.num_rows == 4 and not corrupt


def test_amazon_without_the_attributes_has_no_catalogue(tmp_path):
    reader = _amazon(tmp_path)
    assert reader.candidates() is None
    assert reader.feature_spec().candidates is None
    assert reader.files() == [str(tmp_path / "Own.txt")]


@pytest.mark.parametrize(
    "raw", [b'{"a": [1', b"[1, 2]", b'{"a": 3}', b'{"a": ["x"], "b": [[1]]}', b"7"], ids=str
)
def test_corrupt_attributes_of_amazon_are_refused(tmp_path, raw):
    with pytest.raises(InputError, match="Own_item2attributes"):
        _amazon(tmp_path, raw=raw).candidates()


def test_attributes_of_amazon_that_are_not_packed_are_refused(tmp_path):
    (tmp_path / "Own_item2attributes.json.gz").write_bytes(b'{"a": [1]}')
    with pytest.raises(InputError, match="Own_item2attributes"):
        _amazon(tmp_path).candidates()


def _journey(folder: Path, products: pa.Table | None):
    stamps = pa.array([1_483_228_800_000_000], pa.timestamp("us"))
    events = {
        "household_id": [7],
        "product_id": [70],
        "transaction_timestamp": stamps,
        "store_id": [1],
    }
    pq.write_table(pa.table(events), folder / "transactions.parquet")
    if products is not None:
        pq.write_table(products, folder / "products.parquet")
    return open_source(f"completejourney:{folder}", None, "history")


PRODUCTS = {
    "product_id": [70, 80],
    "manufacturer_id": [1, 2],
    "department": ["GROCERY", None],
    "brand": ["National", "Private"],
    "product_category": ["ICE", None],
    "product_type": [None, "CUBES"],
    "package_size": ["2 LB", None],
}


def test_complete_journey_knows_the_products(tmp_path):
    reader = _journey(tmp_path, pa.table(PRODUCTS))
    rows = _rows_by_id(reader)
    assert list(rows) == [b"70", b"80"]
    assert rows[b"70"]["department"] == [b"GROCERY"] and rows[b"80"]["department"] == []
    assert rows[b"80"]["brand"] == [b"Private"] and rows[b"70"]["product_type"] == []
    assert str(tmp_path / "products.parquet") in reader.files()


def test_complete_journey_without_its_products_has_no_catalogue(tmp_path):
    reader = _journey(tmp_path, None)
    assert reader.candidates() is None and reader.feature_spec().candidates is None


def test_products_of_complete_journey_that_lack_a_column_are_refused(tmp_path):
    with pytest.raises(InputError, match="brand"):
        _journey(tmp_path, pa.table(PRODUCTS).drop(["brand"])).candidates()


def test_a_product_of_complete_journey_that_is_there_twice_is_named(tmp_path):
    twice = pa.concat_tables([pa.table(PRODUCTS)] * 2)
    reader = _journey(tmp_path, twice)
    with pytest.raises(InputError, match="'70'"):
        Catalogue(reader.feature_spec().candidates, reader.candidates())


# Gowalla.


def _gowalla(folder: Path, train: str, test: str, **options):
    for name, text in (("train", train), ("test", test)):
        (folder / f"{name}.txt.gz").write_bytes(gzip.compress(text.encode()))
    return open_source(f"gowalla:{folder}", None, "history", **options)


TRAIN, TEST = "0 10 11 12 13 14 15 16 17\n1 20 21\n2 10\n", "0 18 19 20\n2 11 12\n"


def _ordered(reader) -> dict[bytes, list[bytes]]:
    table, corrupt = read_table(reader)
    assert not corrupt
    users: dict[bytes, list[bytes]] = {}
    for row in sorted(table.to_pylist(), key=lambda row: row["position"]):
        users.setdefault(row["user"], []).append(row["item"])
    return users


@pytest.mark.parametrize(
    ("part", "lines"), [("train", [TRAIN]), ("test", [TEST]), ("both", [TRAIN, TEST])]
)
def test_gowalla_has_the_pairs_of_its_parts(tmp_path, part, lines):
    expected: dict[bytes, set[bytes]] = {}
    for text in lines:
        for line in text.encode().splitlines():
            user, *items = line.split()
            expected.setdefault(user, set()).update(items)
    found = _ordered(_gowalla(tmp_path, TRAIN, TEST, part=part))
    assert {user: set(items) for user, items in found.items()} == expected
    assert all(len(items) == len(set(items)) for items in found.values())


def test_gowalla_puts_the_training_places_before_those_of_the_test(tmp_path):
    for seed in range(5):
        found = _ordered(_gowalla(tmp_path, TRAIN, TEST, part="both", seed=seed))
        assert set(found[b"0"][-3:]) == {b"18", b"19", b"20"}
        assert set(found[b"2"][-2:]) == {b"11", b"12"}


def test_gowallas_order_is_a_function_of_the_seed(tmp_path):
    first, again, other = (
        _ordered(_gowalla(tmp_path, TRAIN, TEST, part="both", seed=seed)) for seed in (1, 1, 2)
    )
    assert first == again and first[b"0"] != other[b"0"]
    in_file = [b"%d" % i for i in range(10, 18)]
    orders = [_ordered(_gowalla(tmp_path, TRAIN, TEST, seed=s))[b"0"] for s in range(8)]
    assert sum(order == in_file for order in orders) < 2
    places = np.mean([[order.index(item) for item in in_file] for order in orders], axis=0)
    assert len({tuple(order) for order in orders}) == 8 and np.ptp(places) < 6


def test_gowallas_positions_tell_a_users_events_apart(tmp_path):
    table, _ = read_table(_gowalla(tmp_path, TRAIN, TEST, part="both"))
    pairs = list(zip(table["user"].to_pylist(), table["position"].to_pylist(), strict=True))
    assert len(pairs) == len(set(pairs)) == 16


def test_gowallas_fingerprint_knows_part_and_seed(tmp_path):
    prints = {
        _gowalla(tmp_path, TRAIN, TEST, **options).fingerprint()
        for options in ({}, {"part": "both"}, {"part": "test"}, {"seed": 1})
    }
    assert len(prints) == 4


def test_gowallas_lines_without_a_place_are_told(tmp_path):
    reader = _gowalla(tmp_path, "0 1 2\n3\n\n4 5\n", TEST)
    table, corrupt = read_table(reader, 0.9)
    assert sorted(set(table["user"].to_pylist())) == [b"0", b"4"]
    assert [c.line for c in corrupt] == [2, 3]


def test_gowallas_part_is_one_of_three(tmp_path):
    with pytest.raises(ConfigError, match="part"):
        _gowalla(tmp_path, TRAIN, TEST, part="tset")
    with pytest.raises(InputError, match="test"):
        (tmp_path / "test.txt.gz").unlink()
        reader = open_source(f"gowalla:{tmp_path}", None, "history", part="both")
        read_table(reader)


# The files themselves.


@pytest.mark.parametrize(
    ("source", "options", "items", "name"),
    [
        ("movielens-100k:ml-100k/ml-100k.tar.xz", {}, 1682, "genres"),
        ("movielens-1m:ml-1m/ml-1m.zip", {}, 3883, "genres"),
        ("amazon-seq:amazon-seq", {}, 12101, "attributes"),
        ("amazon-seq:amazon-seq", {"part": "LastFM"}, 3646, "attributes"),
        ("completejourney:completejourney", {}, 92331, "department"),
    ],
    ids=str,
)
def test_the_real_catalogues(source, options, items, name):
    kind, _, path = source.partition(":")
    if not (REAL / path).exists():
        pytest.skip(f"{kind} is not here")
    reader = open_source(f"{kind}:{REAL / path}", None, "history", **options)
    catalogue = Catalogue(reader.feature_spec().candidates, reader.candidates())
    assert len(catalogue.items) == items
    features = CandidateFeatures(catalogue)
    columns = features.columns(np.arange(items))
    assert np.mean(columns[f"{name}_xf"].reshape(items, -1).any(1)) > 0.9
    if kind != "completejourney":
        table, _ = read_table(reader)
        taken = table["item"].unique().to_pylist()
        assert (catalogue.rows_of(taken) >= 0).all()


@pytest.mark.parametrize(
    ("part", "pairs"), [("train", 810_128), ("test", 217_242), ("both", 1_027_370)]
)
def test_the_whole_of_the_real_gowalla(part, pairs):
    if not (REAL / "gowalla").exists():
        pytest.skip("gowalla is not here")
    reader = open_source(f"gowalla:{REAL / 'gowalla'}", None, "history", part=part)
    table, corrupt = read_table(reader, 0.0)
    assert not corrupt and table.num_rows == pairs
    assert len(table["user"].unique()) == 29_858
    if part == "both":
        assert len(table["item"].unique()) == 40_981
