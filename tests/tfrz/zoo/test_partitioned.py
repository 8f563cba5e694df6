"""Records in parts on disk give the examples that a table in memory gives."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tfrz.data import arrow_files, transformed
from tfrz.data.arrow_files import Partitions
from tfrz.data.histories.examples import drop_rare
from tfrz.data.histories.partitions import without_rare
from tfrz.data.histories.spec import HistoryConfig
from tfrz.data.transformed import TransformedSink, transformed_set
from tfrz.errors import InputError
from tfrz.training.batches import ArrayBatches, GroupedBatches
from tfrz.zoo import partitioned
from tfrz.zoo.run import open_run
from tfrz.zoo.run_config import load_run_config
from tfrz.zoo.train import train

SPEC = """
user: user
item: item
time: time
context:
  - {name: page, oov_buckets: 2}
  - {name: price, kind: numeric, dtype: float32, standardize: true}
"""
HISTORY = [
    "trainer.batch_size=32",
    "data.history.length=8",
    "data.history.min_item_count=5",
    "data.history.min_user_count=4",
    "data.history.min_count_passes=fixed_point",
    "data.history.drop_duplicates=true",
    "data.history.train_targets=2",
    "data.history.keep=20",
]


@pytest.fixture(scope="module")
def events(tmp_path_factory):
    """Interactions with rare users and items, duplicates, ties and missing values."""
    rng = np.random.default_rng(0)
    count = 4000
    users, items = rng.zipf(1.3, count) % 300, rng.zipf(1.4, count) % 200
    times = 1_600_000_000 + rng.integers(0, 400, count)
    pages = pa.array(["home", "shop", None, "cart"]).take(pa.array(rng.integers(0, 4, count)))
    table = pa.table(
        {
            "user": [f"u{u}" for u in users],
            "item": [f"i{i}" for i in items],
            "time": times,
            "page": pages,
            "price": np.where(rng.random(count) < 0.1, np.nan, rng.lognormal(1, 1, count)),
        }
    )
    folder = tmp_path_factory.mktemp("events")
    pq.write_table(table, folder / "events.parquet", row_group_size=700)
    (folder / "spec.yaml").write_text(SPEC)
    return folder


def _prepared(folder, cache=None, settings=(), model="m3"):
    config = load_run_config(model, "own", [*HISTORY, *settings])
    data, spec = str(folder / "events.parquet"), str(folder / "spec.yaml")
    return open_run(config, data, spec, cache).prepare()


def _rows(batches):
    """The examples in an order of their own: each as bytes."""
    parts = [{name: v.numpy() for name, v in batch.items()} for batch in batches.once()]
    names = sorted(parts[0])
    widths = {n: max(p[n].shape[1] for p in parts) for n in names if parts[0][n].ndim == 2}
    found = []
    for part in parts:
        for name, width in widths.items():
            part[name] = np.pad(part[name], ((0, 0), (0, width - part[name].shape[1])))
        found += [b"".join(part[n][i].tobytes() for n in names) for i in range(len(part[names[0]]))]
    return names, widths, sorted(found)


@pytest.fixture
def beyond(monkeypatch):
    """Every source counts as beyond memory, in small groups."""
    monkeypatch.setattr(partitioned, "IN_MEMORY_RECORDS", 100)
    monkeypatch.setattr(partitioned, "IN_MEMORY_BYTES", 0)
    monkeypatch.setattr(arrow_files, "_WAITING", 1000)
    monkeypatch.setattr(partitioned, "_AT_ONCE", 50)
    monkeypatch.setattr(transformed, "GROUP_BYTES", 1)


@pytest.mark.parametrize(
    "settings",
    [
        (),
        ("data.history.split=users", "data.validation_fraction=0.2", "data.test_fraction=0.2"),
        (
            "data.history.split=time",
            "data.history.validation_start=1600000200",
            "data.history.test_start=1600000300",
            "data.history.min_count_passes=1",
        ),
        ("data.test_fraction=0", "data.history.drop_duplicates=false"),
    ],
    ids=["last", "users", "time", "no_test"],
)
def test_examples_equal_those_in_memory(events, tmp_path, monkeypatch, beyond, settings):
    read = _prepared(events, tmp_path / "cache", settings)
    again = _prepared(events, tmp_path / "cache", settings)
    monkeypatch.undo()
    expected = _prepared(events, None, settings)
    assert isinstance(read.train, GroupedBatches)
    assert isinstance(expected.train, ArrayBatches)
    assert read.vocabularies == again.vocabularies == expected.vocabularies
    assert read.transform.fitted_moments == expected.transform.fitted_moments
    assert again.transform.fitted_moments == expected.transform.fitted_moments
    assert read.inputs == again.inputs == expected.inputs
    assert read.corrupt_lines == again.corrupt_lines == expected.corrupt_lines
    assert (read.test is None) == (expected.test is None)
    for split in ("train", "validation", "test"):
        wanted = getattr(expected, split)
        if wanted is not None:
            names, _, rows = _rows(wanted)
            assert names
            assert "seen_xf" not in names or split != "train"
            for one in (read, again):
                assert _rows(getattr(one, split)) == (names, _, rows)
    assert sorted(expected.examples) == sorted(read.examples) == sorted(again.examples)


def test_the_next_run_reads_the_cache(events, tmp_path, monkeypatch, beyond):
    cache = tmp_path / "cache"
    _prepared(events, cache)
    (folder,) = cache.iterdir()
    assert {p.name for p in folder.iterdir()} == {
        "train.arrow",
        "validation.arrow",
        "test.arrow",
        "examples.json",
        "examples.tfrecord",
    }

    def read(*_):
        raise AssertionError("the source is read again")

    monkeypatch.setattr(partitioned, "_read", read)
    _prepared(events, cache)
    with pytest.raises(AssertionError, match="read again"):
        _prepared(events, cache, ["data.history.length=9"])
    (folder / "examples.json").unlink()
    with pytest.raises(AssertionError, match="read again"):
        _prepared(events, cache)


def test_few_records_leave_no_cache(events, tmp_path):
    cache = tmp_path / "cache"
    assert isinstance(_prepared(events, cache).train, ArrayBatches)
    assert not cache.exists()


def test_a_refused_source_leaves_nothing(events, tmp_path, beyond):
    cache = tmp_path / "cache"
    with pytest.raises(InputError, match="no user has 4 events"):
        _prepared(events, cache, ["data.history.min_item_count=100000"])
    assert not list(cache.iterdir())
    with pytest.raises(InputError, match="did not settle in 1 passes"):
        _prepared(events, cache, ["data.history.max_passes=1"])
    assert not list(cache.iterdir())


@pytest.mark.parametrize("passes", ["fixed_point", 1])
def test_rare_users_and_items_are_those_of_all_parts(tmp_path, passes):
    rng = np.random.default_rng(1)
    events = pa.table(
        {
            "user": pa.array([b"u%d" % u for u in rng.zipf(1.5, 3000) % 400], pa.binary()),
            "item": pa.array([b"i%d" % i for i in rng.zipf(1.5, 3000) % 300], pa.binary()),
            "position": np.arange(3000),
        }
    )
    config = HistoryConfig(
        min_item_count=4, min_user_count=3, min_count_passes=passes, max_passes=50
    )
    parts = Partitions(tmp_path / "parts", events.schema, "user", 7)
    for batch in events.to_batches(max_chunksize=256):
        parts.write(batch)
    parts.close()
    assert sum(part.num_rows for part in parts) == 3000
    users = [set(part["user"].to_pylist()) for part in parts]
    assert len(users) > 1
    assert sum(map(len, users)) == len(set().union(*users))
    for part in parts:
        assert part["position"].to_pylist() == sorted(part["position"].to_pylist())
    found = pa.concat_tables(without_rare(parts, config)).sort_by("position")
    expected = drop_rare(events, config)
    assert 0 < expected.num_rows < 3000
    assert found.to_pydict() == expected.to_pydict()
    assert [path.name.startswith("parts") for path in tmp_path.iterdir()] == [True]


def test_columns_come_back_from_the_file(tmp_path):
    rng = np.random.default_rng(2)
    batches = [
        {
            "ids": rng.integers(0, 3, (rows, width)),
            "matrix": rng.integers(0, 2, (rows, width, 2)).astype(np.float32),
            "one": rng.random(rows).astype(np.float32),
            "text": np.array([b"x" * k for k in range(rows)], object),
            "nothing": np.zeros((rows, 4, 0), np.float32),
        }
        for rows, width in ((30, 5), (200, 2), (0, 1), (70, 9))
    ]
    batches[0]["matrix"][0, 0, 0] = np.nan
    sink = TransformedSink(tmp_path / "set.arrow")
    for batch in batches:
        sink.write(batch)
    written = sink.close()
    for some in (written, transformed_set(tmp_path / "set.arrow", written.shapes)):
        columns = some.columns()
        assert columns.keys() == batches[0].keys()
        for name, column in columns.items():
            parts = [batch[name] for batch in batches]
            if name in ("ids", "matrix"):
                parts = [
                    np.pad(p, [(0, 0), (0, 9 - p.shape[1])] + [(0, 0)] * (p.ndim - 2))
                    for p in parts
                ]
            assert column.dtype == parts[0].dtype
            np.testing.assert_array_equal(column, np.concatenate(parts), err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["m3", "multi_interest"])
def test_a_model_trains_from_the_cache(events, tmp_path, beyond, model):
    settings = [*HISTORY, "trainer.epochs=2", "export.top_k=5"]
    data, spec = str(events / "events.parquet"), str(events / "spec.yaml")
    first = train(model, data, tmp_path / "a", spec, settings, False, None, tmp_path / "cache")
    second = train(model, data, tmp_path / "b", spec, settings, False, None, tmp_path / "cache")
    assert first["metrics"] == second["metrics"]
    assert (tmp_path / "a" / "model" / "1" / "saved_model.pb").exists()


def test_lists_equal_those_in_memory(tmp_path, monkeypatch, beyond):
    rng = np.random.default_rng(4)
    count = 3000
    table = pa.table(
        {
            "query": [f"q{q}" for q in rng.integers(0, 250, count)],
            "item": [f"i{i}" for i in rng.integers(0, 400, count)],
            "brand": pa.array(["a", "b", None, "d"]).take(pa.array(rng.integers(0, 4, count))),
            "price": rng.lognormal(1, 1, count),
            "score": rng.integers(0, 20, count).astype(np.float32),
            "relevance": (rng.random(count) < 0.2).astype(np.float32),
        }
    )
    pq.write_table(table, tmp_path / "lists.parquet", row_group_size=500)
    (tmp_path / "spec.yaml").write_text(
        "score: score\ncandidate:\n  - {name: brand}\n"
        "  - {name: price, kind: numeric, dtype: float32, standardize: true}\n"
    )

    def prepared(cache):
        config = load_run_config("seq2slate", "own", ["trainer.batch_size=32"])
        place, spec = str(tmp_path / "lists.parquet"), str(tmp_path / "spec.yaml")
        return open_run(config, place, spec, cache).prepare()

    read, again = prepared(tmp_path / "cache"), prepared(tmp_path / "cache")
    monkeypatch.undo()
    expected = prepared(None)
    assert isinstance(read.train, GroupedBatches)
    assert read.vocabularies == again.vocabularies == expected.vocabularies
    assert read.transform.fitted_moments == expected.transform.fitted_moments
    for split in ("train", "validation", "test"):
        wanted = _rows(getattr(expected, split))
        assert _rows(getattr(read, split)) == _rows(getattr(again, split)) == wanted


def test_logs_equal_those_in_memory(tmp_path, monkeypatch, beyond):
    rng = np.random.default_rng(5)
    count = 2000
    table = pa.table(
        {
            "user": [f"u{u}" for u in rng.integers(0, 150, count)],
            "item": [f"i{i}" for i in rng.integers(0, 60, count)],
            "time": 1_600_000_000 + rng.integers(0, 500, count),
            "reward": (rng.random(count) < 0.3).astype(np.float32),
            "propensity": rng.uniform(0.01, 0.9, count).astype(np.float32),
        }
    )
    pq.write_table(table, tmp_path / "log.parquet", row_group_size=300)
    (tmp_path / "spec.yaml").write_text("reward: reward\npropensity: propensity\n")

    def prepared(cache):
        config = load_run_config("topk_reinforce", "own", ["trainer.batch_size=32"])
        place, spec = str(tmp_path / "log.parquet"), str(tmp_path / "spec.yaml")
        return open_run(config, place, spec, cache).prepare()

    read = prepared(tmp_path / "cache")
    monkeypatch.undo()
    expected = prepared(None)
    assert isinstance(read.train, GroupedBatches)
    assert read.vocabularies == expected.vocabularies
    for split in ("train", "validation", "test"):
        assert _rows(getattr(read, split)) == _rows(getattr(expected, split))
