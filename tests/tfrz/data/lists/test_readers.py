"""Readers of documents: LETOR's format, files of one's own, lists as TF-Ranking writes them."""

from __future__ import annotations

import gzip
import lzma
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf

from tfrz.data.columns import raw_sparse
from tfrz.data.lists.elwc import parse_elwc, to_elwc
from tfrz.data.lists.examples import build_lists
from tfrz.data.lists.spec import ListConfig, ListSpec
from tfrz.data.records import open_source
from tfrz.data.sources.reader import read_table
from tfrz.data.spec import MISSING_INT, Feature, numeric
from tfrz.errors import ConfigError, InputError

REAL = Path(__file__).resolve().parents[5] / "shared" / "data"

LINES = """\
2 qid:10 1:0.5 2:1 3:-2.5 #docid = GX001 inc = 1 prob = 0.2
0 qid:10 3:7 1:1e-3
1 qid:query_b 2:4 # docid=GX003

# only a comment
0 qid:10
"""


def _open(data: str, features: str | None = None, **options):
    return open_source(data, features, "list", **options)


def _rows(data: str, features: str | None = None, tolerated: float = 0.0, **options):
    table, corrupt = read_table(_open(data, features, **options), tolerated)
    return table.to_pylist(), corrupt


def test_lines_of_letor(tmp_path):
    (tmp_path / "ranked.txt").write_text(LINES)
    rows, corrupt = _rows(f"letor:{tmp_path}/ranked.txt")
    assert not corrupt
    assert [row["query"] for row in rows] == [b"10", b"10", b"query_b", b"10"]
    # A document's own id, or its query and line.
    assert [row["item"] for row in rows] == [b"GX001", b"10-2", b"GX003", b"10-6"]
    assert [row["relevance"] for row in rows] == [2, 0, 1, 0]
    assert [row["position"] for row in rows] == [1, 2, 3, 6]
    assert [(r["split"], r["score"]) for r in rows] == [(b"", 0.0)] * 4
    features = [[row[f"f{i}"] for i in (1, 2, 3)] for row in rows]
    # Sparse: what a line leaves out is 0.
    expected = [[0.5, 1, -2.5], [1e-3, 0, 7], [0, 4, 0], [0, 0, 0]]
    np.testing.assert_allclose(features, expected, rtol=1e-6)


def test_plain_and_compressed_files_are_the_same(tmp_path):
    (tmp_path / "a.txt").write_text(LINES)
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(LINES.encode()))
    (tmp_path / "a.txt.xz").write_bytes(lzma.compress(LINES.encode()))
    (tmp_path / "dos.txt").write_bytes(LINES.replace("\n", "\r\n").encode())
    plain = _rows(f"letor:{tmp_path}/a.txt")[0]
    for name in ("a.txt.gz", "a.txt.xz", "dos.txt"):
        assert _rows(f"letor:{tmp_path}/{name}")[0] == plain


def test_a_folder_has_its_own_splits_the_shortest_names_first(tmp_path):
    names = {
        "train.txt": "1 qid:1 1:1\n",
        "train_with_comments.txt": "1 qid:bad 1:1\n",
        "vali.txt.gz": "1 qid:2 1:1\n",
        "test_original_format.txt.gz": "1 qid:bad 1:1\n",
        "test.txt.gz": "1 qid:3 1:1\n",
        "README.md": "nothing to read",
    }
    for name, text in names.items():
        data = text.encode()
        (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    (tmp_path / "tests").mkdir()
    rows, _ = _rows(f"letor:{tmp_path}")
    found = {(row["split"], row["query"]) for row in rows}
    assert found == {(b"train", b"1"), (b"validation", b"2"), (b"test", b"3")}


@pytest.mark.parametrize("name", ["vali.txt", "valid.txt", "valid-1.txt"])
def test_validation_files_by_either_name(tmp_path, name):
    (tmp_path / "train.txt").write_text("1 qid:1 1:1\n")
    (tmp_path / name).write_text("1 qid:2 1:1\n")
    found = {(r["split"], r["query"]) for r in _rows(f"letor:{tmp_path}")[0]}
    assert found == {(b"train", b"1"), (b"validation", b"2")}


def test_features_are_counted_in_the_training_set(tmp_path):
    """Lines are sparse: the small file of another set may lack the last features."""
    (tmp_path / "train.txt").write_text("1 qid:1 1:1 3:1\n")
    (tmp_path / "vali.txt").write_text("1 qid:2 1:1\n")
    (tmp_path / "test.txt").write_text("1 qid:3 2:1\n")
    assert _open(f"letor:{tmp_path}").num_features == 3
    assert len(_rows(f"letor:{tmp_path}")[0]) == 3


def test_numbers_of_features_given_and_counted(tmp_path):
    (tmp_path / "a.txt").write_text("1 qid:1 2:1 # 9:1\n0 qid:1 4:5\n")
    data = f"letor:{tmp_path}/a.txt"
    assert [f.name for f in _open(data).feature_spec().candidate] == ["f1", "f2", "f3", "f4"]
    assert len(_open(data, num_features=6).feature_spec().candidate) == 6
    rows, corrupt = _rows(data, tolerated=0.9, num_features=3)
    assert len(rows) == 1 and corrupt[0].line == 2
    with pytest.raises(ConfigError, match=r"data\.options\.num_features: must be at least 1"):
        _open(data, num_features=-1)
    (tmp_path / "none.txt").write_text("1 qid:1\n")
    with pytest.raises(InputError, match=r"none\.txt has no features in its first 1,000 lines"):
        _open(f"letor:{tmp_path}/none.txt")


def test_order_by_is_the_base_rankers_score(tmp_path):
    (tmp_path / "a.txt").write_text("0 qid:1 1:3 2:1\n1 qid:1 1:1 2:9\n0 qid:1 1:2\n")
    data = f"letor:{tmp_path}/a.txt"

    def ordered(**options) -> list[bytes]:
        reader = _open(data, **options)
        documents, _ = read_table(reader)
        lists = build_lists(documents, reader.feature_spec(), ListConfig())
        return lists["train"]["candidates"].to_pylist()[0]

    assert ordered() == [b"1-1", b"1-2", b"1-3"]
    assert ordered(order_by=1) == [b"1-1", b"1-3", b"1-2"]
    assert ordered(order_by=2) == [b"1-2", b"1-1", b"1-3"]
    for wrong in (0, 3):
        with pytest.raises(ConfigError, match=r"data\.options\.order_by: .* 1 to 2"):
            _open(data, order_by=wrong)


def test_another_order_is_another_fingerprint(tmp_path):
    (tmp_path / "a.txt").write_text("0 qid:1 1:3 2:1\n")
    data = f"letor:{tmp_path}/a.txt"
    first = _open(data, order_by=1).fingerprint()
    assert first == _open(data, order_by=1).fingerprint()
    assert first != _open(data, order_by=2).fingerprint()


CORRUPT = {
    "no qid": ("1 1:0.5", "is not 'grade qid:N 1:v 2:v ...'"),
    "no grade": ("qid:7 1:0.5", "is not 'grade qid:N 1:v 2:v ...'"),
    "no number of a feature": ("1 qid:7 f1:0.5", "is not 'grade qid:N 1:v 2:v ...'"),
    "a grade that is a word": ("good qid:7 1:0.5", "the grade is not a number: good"),
    "a negative grade": ("-1 qid:7 1:0.5", "the grade is negative or not finite: -1"),
    "an infinite grade": ("inf qid:7 1:0.5", "the grade is negative or not finite"),
    "a grade that is nan": ("nan qid:7 1:0.5", "the grade is negative or not finite"),
    "a grade beyond float32": ("1e39 qid:7 1:0.5", "the grade is negative or not finite"),
    "nan": ("1 qid:7 1:0.5 2:nan", "query 7: feature 2 is not finite: nan"),
    "infinite": ("1 qid:7 1:-inf", "query 7: feature 1 is not finite: -inf"),
    "beyond float32": ("1 qid:7 1:1e39", "query 7: feature 1 is not finite: 1e39"),
    "a word": ("1 qid:7 1:0.5 3:high", "query 7: feature 3 is not a number: high"),
    "beyond the number": ("1 qid:7 4:1", "query 7: feature 4 is beyond the 3 of data.options"),
    "feature 0": ("1 qid:7 0:1", "query 7: feature 0 is beyond the 3 of data.options"),
    "bytes that are no text": ("1 qid:\udcff 1:x", "query \ufffd: feature 1 is not a number: x"),
}


@pytest.mark.parametrize("case", CORRUPT)
def test_corrupt_lines_are_named_with_query_and_feature(tmp_path, case):
    line, message = CORRUPT[case]
    lines = f"0 qid:1 1:1 2:2 3:3\n1 qid:1 1:1\n{line}\n1 qid:1 2:5\n"
    (tmp_path / "a.txt").write_bytes(lines.encode("utf-8", "surrogateescape"))
    data = f"letor:{tmp_path}/a.txt"
    rows, corrupt = _rows(data, tolerated=0.5, num_features=3)
    assert len(rows) == 3
    assert len(corrupt) == 1 and message in corrupt[0].reason
    assert corrupt[0].line == 3
    with pytest.raises(InputError) as told:
        _rows(data, num_features=3)
    assert f"a.txt:3: {corrupt[0].reason}" in str(told.value)


def test_the_lines_of_a_compressed_folder_are_named(tmp_path):
    (tmp_path / "train.txt").write_text("1 qid:1 1:1\n")
    (tmp_path / "vali.txt.gz").write_bytes(gzip.compress(b"1 qid:2 1:1\n1 qid:2 1:x\n"))
    with pytest.raises(InputError, match=r"vali\.txt\.gz:2: query 2: feature 1 is not a number"):
        _rows(f"letor:{tmp_path}")


def test_missing_files_and_folders(tmp_path):
    with pytest.raises(InputError, match="none does not exist: check the path"):
        _open(f"letor:{tmp_path}/none")
    (tmp_path / "test.txt").write_text("1 qid:1 1:1\n")
    with pytest.raises(InputError, match="has no file whose name begins with train"):
        _open(f"letor:{tmp_path}")
    with pytest.raises(InputError, match="needs a path: write letor:PATH"):
        _open("letor")
    (tmp_path / "damaged.txt.gz").write_text("no gzip")
    with pytest.raises(InputError, match="is damaged, or its format does"):
        _open(f"letor:{tmp_path}/damaged.txt.gz")
    with pytest.raises(ConfigError, match="letor has no option 'fold'"):
        _open(f"letor:{tmp_path}/test.txt", fold=1)
    with pytest.raises(InputError, match="has list records, not history records"):
        open_source(f"letor:{tmp_path}", None, "history")


# Files of one's own.

SPEC = """
query: search
item: sku
relevance: bought
score: bm25
candidate:
  - {name: price, kind: numeric, dtype: float32}
  - {name: brand}
  - {name: shop, dtype: int64}
context:
  - {name: page}
  - {name: hour, kind: numeric, dtype: float32}
"""
COLUMNS = {
    "search": ["s1", "s1", "s2", "s1"],
    "sku": ["a", "b", "a", "c"],
    "bought": [0.0, 2.0, 1.0, 0.0],
    "bm25": [1.5, 7.25, 0.0, 7.25],
    "price": [10.5, None, 3.0, -1.0],
    "brand": ["x", None, "y", "x"],
    "shop": [3, 7, None, 3],
    "page": ["home", "home", None, "home"],
    "hour": [5.0, 5.0, None, 5.0],
}


def _write(folder: Path, kind: str, columns=COLUMNS, spec: str = SPEC) -> tuple[str, str]:
    path = folder / f"lists.{kind}"
    (folder / "spec.yaml").write_text(spec)
    rows = [dict(zip(columns, values)) for values in zip(*columns.values())]
    if kind == "parquet":
        pq.write_table(pa.table(columns), path, row_group_size=3)
    elif kind.startswith("tfrecord"):
        from tensorflow_serving.apis import input_pb2

        spec_of_file = ListSpec.from_yaml(folder / "spec.yaml")
        queries = dict.fromkeys(row["search"] for row in rows)
        compression = "GZIP" if kind.endswith(".gz") else ""
        with tf.io.TFRecordWriter(str(path), compression) as writer:
            for query in queries:
                elwc = input_pb2.ExampleListWithContext()
                mine = [row for row in rows if row["search"] == query]
                for name in ("search", *(f.name for f in spec_of_file.context)):
                    _put(elwc.context, name, mine[0][name])
                for row in mine:
                    example = elwc.examples.add()
                    for name in set(row) - {"search", "page", "hour"}:
                        _put(example, name, row[name])
                writer.write(elwc.SerializeToString())
    else:
        separator = "\t" if kind == "tsv" else ","
        lines = [columns, *([("" if v is None else str(v)) for v in r.values()] for r in rows)]
        path.write_text("".join(separator.join(line) + "\n" for line in lines))
    return str(path), str(folder / "spec.yaml")


def _put(example, name: str, value) -> None:
    if value is None:
        return
    feature = example.features.feature[name]
    if isinstance(value, str):
        feature.bytes_list.value.append(value.encode())
    elif isinstance(value, int):
        feature.int64_list.value.append(value)
    else:
        feature.float_list.value.append(value)


def _lists(data: str, features: str, config=ListConfig(), **more) -> list[dict]:
    reader = _open(data, features)
    documents, corrupt = read_table(reader, 0.0)
    assert not corrupt
    lists = build_lists(documents, reader.feature_spec(), config, **more)
    return sorted(lists["train"].to_pylist(), key=lambda row: row["query"])


@pytest.mark.parametrize("kind", ["csv", "tsv", "parquet", "tfrecord", "tfrecord.gz"])
def test_a_file_of_ones_own(tmp_path, kind):
    rows, corrupt = _rows(*_write(tmp_path, kind))
    assert not corrupt
    rows.sort(key=lambda row: (row["query"], row["item"]))
    assert [row.pop("position") for row in sorted(rows, key=lambda r: r["position"])]
    keys = ("query", "item", "split", "score", "relevance")
    keys += ("price", "brand", "shop", "page", "hour")
    assert [tuple(row[key] for key in keys) for row in rows] == [
        (b"s1", b"a", b"", 1.5, 0.0, 10.5, b"x", 3, b"home", 5.0),
        (b"s1", b"b", b"", 7.25, 2.0, None, None, 7, b"home", 5.0),
        (b"s1", b"c", b"", 7.25, 0.0, -1.0, b"x", 3, b"home", 5.0),
        (b"s2", b"a", b"", 0.0, 1.0, 3.0, b"y", None, None, None),
    ]


def test_all_formats_give_the_same_lists(tmp_path):
    found = [_lists(*_write(tmp_path, k)) for k in ("csv", "tsv", "parquet", "tfrecord")]
    assert [row["candidates"] for row in found[0]] == [[b"b", b"c", b"a"], [b"a"]]
    assert found[0][0]["brand"] == [b"", b"x", b"x"]
    assert found[0][1]["shop"] == [MISSING_INT]
    for other in found[1:]:
        assert repr(other) == repr(found[0])


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_rows_are_numbered_where_there_are_no_ids(tmp_path, kind):
    columns = {name: values for name, values in COLUMNS.items() if name != "sku"}
    rows, _ = _rows(*_write(tmp_path, kind, columns, SPEC.replace("item: sku", "item: null")))
    items = [row["item"] for row in rows]
    assert len(set(items)) == 4 and all(item.isdigit() for item in items)


WRONG = {
    "no query": ("search", None, "search is missing"),
    "no id": ("sku", None, "sku is missing"),
    "no grade": ("bought", None, "bought is not a number"),
    "a negative grade": ("bought", -2.0, "bought is -2"),
    "a grade that is nan": ("bought", float("nan"), "bought is nan"),
    "an infinite score": ("bm25", float("inf"), "bm25 is inf"),
    "a grade beyond float32": ("bought", 1e39, "bought is"),
    "infinite": ("price", float("inf"), "query s1: price is not finite: inf"),
}


@pytest.mark.parametrize("kind", ["csv", "parquet"])
@pytest.mark.parametrize("case", WRONG)
def test_corrupt_rows_are_named(tmp_path, kind, case):
    name, value, message = WRONG[case]
    columns = {**COLUMNS, name: [COLUMNS[name][0], value, *COLUMNS[name][2:]]}
    data, features = _write(tmp_path, kind, columns)
    rows, corrupt = _rows(data, features, 0.5)
    assert len(rows) == 3
    (one,) = corrupt
    assert one.line == (3 if kind == "csv" else 2) and message in one.reason
    with pytest.raises(InputError, match=rf"lists\.{kind}:{one.line}: "):
        _rows(data, features)


def test_words_where_numbers_belong(tmp_path):
    data, features = _write(tmp_path, "csv")
    text = Path(data).read_text().splitlines()
    text[1] = text[1].replace("10.5", "cheap")
    text[4] = text[4].replace(",3,", ",third,")
    Path(data).write_text("\n".join(text) + "\n")
    _, corrupt = _rows(data, features, 0.9)
    assert [(c.line, c.reason) for c in corrupt] == [
        (2, "query s1: price is not float32: ['cheap']"),
        (5, "query s1: shop is not int64: ['third']"),
    ]


def test_a_missing_column_is_named(tmp_path):
    for kind in ("csv", "parquet"):
        columns = {name: values for name, values in COLUMNS.items() if name != "brand"}
        data, features = _write(tmp_path, kind, columns)
        with pytest.raises(InputError, match=r"has no column 'brand'"):
            _rows(data, features)


@pytest.mark.parametrize("name", ["position", "split", "score"])
def test_a_feature_with_a_name_of_our_own_is_refused_or_kept_apart(tmp_path, name):
    """Columns of a source may be called anything; they must not become the order or the split."""
    columns = {"query": ["q", "q"], "item": ["first", "second"], "relevance": [1.0, 0.0]}
    columns[name] = ["train", "test"] if name == "split" else [1.0, 2.0]
    if name == "position":
        columns[name] = [2.0, 1.0]
    kind = "" if name == "split" else ", kind: numeric, dtype: float32"
    spec = f"candidate:\n  - {{name: {name}{kind}}}\n"
    (tmp_path / "spec.yaml").write_text(spec)
    pq.write_table(pa.table(columns), tmp_path / "lists.parquet")
    try:
        lists = _lists(str(tmp_path / "lists.parquet"), str(tmp_path / "spec.yaml"))
    except ConfigError as refused:
        assert name in str(refused)
        return
    assert lists[0]["candidates"] == [b"first", b"second"]


@pytest.mark.parametrize("name", ["mask", "features", "context", "query", "candidates"])
def test_a_feature_whose_transformed_name_is_an_input_of_the_model_is_refused(name):
    with pytest.raises(ConfigError, match=name):
        ListSpec(
            query="search", candidate=(Feature(name), numeric("f1")), context=(numeric("hour"),)
        )


# Lists as TF-Ranking writes them.


def _random_lists(folder: Path) -> tuple[ListSpec, pa.Table]:
    rng = np.random.default_rng(0)
    columns: dict[str, list] = {name: [] for name in COLUMNS}
    for query in range(30):
        page, hour = [None, "home"][int(rng.integers(2))], float(rng.integers(24))
        for i in range(int(rng.integers(1, 8))):
            row = [f"s{query}", f"d{query}-{i}", float(rng.integers(0, 5)), 0.0]
            row += [None if rng.random() < 0.2 else float(np.float32(rng.normal()))]
            row += [[None, "x", "y"][int(rng.integers(3))], [None, 0, 7][int(rng.integers(3))]]
            for name, value in zip(columns, [*row, page, hour]):
                columns[name].append(value)
    spec = SPEC.replace("score: bm25", "score: null")
    reader = _open(*_write(folder, "parquet", columns, spec))
    config = ListConfig(drop_empty=False)
    lists = build_lists(read_table(reader)[0], reader.feature_spec(), config)["train"]
    return reader.feature_spec(), lists


@pytest.mark.parametrize("suffix", ["tfrecord", "tfrecord.gz"])
def test_a_round_trip_through_tf_rankings_format_changes_nothing(tmp_path, suffix):
    spec, lists = _random_lists(tmp_path)
    path = tmp_path / f"there.{suffix}"
    compression = "GZIP" if suffix.endswith(".gz") else ""
    with tf.io.TFRecordWriter(str(path), compression) as writer:
        for record in to_elwc(lists, spec):
            writer.write(record)
    again = _lists(str(path), str(tmp_path / "spec.yaml"), ListConfig(drop_empty=False))
    expected = sorted(lists.to_pylist(), key=lambda row: row["query"])
    assert repr(again) == repr(expected)


def test_the_parser_gives_the_raw_tensors(tmp_path):
    spec, lists = _random_lists(tmp_path)
    parsed = parse_elwc(tf.constant(to_elwc(lists, spec, label=False)), spec)
    missing = {"string": "", "int64": MISSING_INT, "float32": float("nan")}
    raw = raw_sparse(lists, spec, label=False)
    assert parsed.keys() == raw.keys()
    for feature in spec.features:
        expected = tf.sparse.to_dense(raw[feature.name], missing[feature.dtype])
        if not feature.multivalent:
            expected = expected[:, 0]
        assert parsed[feature.name].dtype == expected.dtype
        np.testing.assert_array_equal(parsed[feature.name].numpy(), expected.numpy())


def test_the_parser_takes_lists_without_candidates(tmp_path):
    spec, lists = _random_lists(tmp_path)
    some = to_elwc(lists.slice(0, 1), spec, label=False)
    parsed = parse_elwc(tf.constant([some[0], b""]), spec)
    assert (parsed["candidates"].numpy()[1] == b"").all()
    assert parsed["query"].numpy()[1] == b""
    only = parse_elwc(tf.constant([b""]), spec)
    assert (only["candidates"].numpy() == b"").all() and only["candidates"].shape[0] == 1


def test_a_record_that_is_no_list_is_named_by_its_number(tmp_path):
    data, features = _write(tmp_path, "tfrecord")
    records = [r.numpy() for r in tf.data.TFRecordDataset(data)]
    with tf.io.TFRecordWriter(data) as writer:
        for record in (records[0], b"\xff\xffnot a message", records[1]):
            writer.write(record)
    rows, corrupt = _rows(data, features, 0.9)
    assert len(rows) == 4
    assert [(c.line, c.reason) for c in corrupt] == [(2, "is not an ExampleListWithContext")]
    with pytest.raises(InputError, match=r"lists\.tfrecord:2: is not an ExampleListWithContext"):
        _rows(data, features)


def test_a_corrupt_candidate_is_named_by_list_and_place(tmp_path):
    columns = {**COLUMNS, "bought": [0.0, -1.0, 1.0, 0.0]}
    data, features = _write(tmp_path, "tfrecord", columns)
    rows, corrupt = _rows(data, features, 0.9)
    assert len(rows) == 3
    assert [(c.line, c.reason) for c in corrupt] == [(1, "candidate 2: bought is -1")]


def test_a_damaged_tfrecord_is_told(tmp_path):
    data, features = _write(tmp_path, "tfrecord")
    content = bytearray(Path(data).read_bytes())
    flipped = bytearray(content)
    flipped[-6] ^= 0xFF
    text = b"search,sku,bought\n" * 20
    for damaged in (flipped, content[:-5], content[:-1], content + b"x" * 20, text):
        Path(data).write_bytes(damaged)
        with pytest.raises(InputError, match="is not a TFRecord file, or damaged"):
            _rows(data, features)


def test_specs_that_contradict_themselves_are_refused():
    with pytest.raises(ConfigError, match="must not be empty: name the columns"):
        ListSpec()
    with pytest.raises(ConfigError, match="feature tags: cannot be multivalent"):
        ListSpec(candidate=(Feature("tags", multivalent=True),))
    with pytest.raises(ConfigError, match="feature relevance: is the relevance"):
        ListSpec(candidate=(numeric("relevance"),))
    with pytest.raises(ConfigError, match="feature page: is defined twice"):
        ListSpec(candidate=(Feature("page"),), context=(Feature("page"),))
    with pytest.raises(ConfigError, match="query_vocabulary: must be at least 1"):
        ListSpec(candidate=(numeric("f1"),), query_vocabulary=0)


def test_simulated_lists_are_the_same_in_any_number_of_parts():
    reader = _open("simulated", queries=2500, length=3, seed=4)
    assert len(reader.shards()) == 2
    table, _ = read_table(reader)
    assert table.num_rows == 7500 and len(table["query"].unique()) == 2500
    again = [read_table(_open("simulated", queries=2500, length=3, seed=s))[0] for s in (4, 5)]
    assert table.equals(again[0]) and not table.equals(again[1])
    for wrong in ({"queries": 0}, {"length": 1.5}):
        with pytest.raises(ConfigError, match=r"(must be|expected) a whole number"):
            _open("simulated", **wrong)


# The public data sets.


def _real(name: str) -> Path:
    if not (REAL / name).exists():
        pytest.skip(f"{name} is not here")
    return REAL / name


def test_the_whole_of_mq2008():
    table, corrupt = read_table(_open(f"letor:{_real('letor-mq2008')}", order_by=25), 0.0)
    assert not corrupt
    counts = {}
    for split in (b"train", b"validation", b"test"):
        part = table.filter(pa.compute.equal(table["split"], split))
        counts[split] = (len(part["query"].unique()), part.num_rows)
    assert counts == {b"train": (471, 9630), b"validation": (157, 2707), b"test": (156, 2874)}
    assert set(table["relevance"].to_pylist()) == {0.0, 1.0, 2.0}
    assert table["score"].equals(table["f25"])


def test_a_part_of_mslr():
    (file,) = _real("letor-mslr").glob("*.txt.gz")
    reader = _open(f"letor:{file}", order_by=110)
    assert reader.num_features == 136
    table, corrupt = read_table(reader, 0.0)
    assert not corrupt
    assert len(table["query"].unique()) == 43
