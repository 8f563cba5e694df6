"""The folder of generations, looking users up, and what writes them to servers."""

from __future__ import annotations

import json
import pickle
import shutil
import sqlite3
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf

from tests.tfrz.embeddings.hand_made import (
    D0,
    DAY,
    embedding_files,
    everything,
    manifest,
    packed,
    rows_of,
    write_generation,
)
from tfrz.embeddings.key_value import SqliteWriter, TFRecordWriter, open_writer, write_key_values
from tfrz.embeddings.store import Store, fingerprint_of, open_embeddings, row_bytes
from tfrz.errors import InputError

USERS = [b"user_%d" % i for i in range(9)]


def _rows(seed: int = 0, users=USERS) -> list[dict]:
    """`user_4` has no vectors."""
    return [
        {"user": u, "packed": packed(100 * seed + i), "present": u != b"user_4"}
        for i, u in enumerate(users)
    ]


@pytest.fixture
def store(tmp_path) -> Store:
    made = Store(tmp_path / "store")
    write_generation(made, manifest(1, users=9), _rows(1))
    made.publish(1)
    return made


def test_the_papers_shape_takes_7888_bytes():
    assert row_bytes(manifest(num_vectors=58, dim=256)) == 7888
    assert row_bytes(manifest()) == len(packed(0)) == 3 * 3 * 8
    assert len(packed(0, 58, 256)) == 7888


def test_looking_up_in_any_order(store):
    found = open_embeddings(store.directory)
    wanted = {row["user"]: row["packed"] if row["present"] else None for row in _rows(1)}
    asked = [b"user_7", b"nobody", b"user_4", b"user_0", b"user_7", b"", b"user_3"]
    assert found.packed(asked) == [wanted.get(user) for user in asked]
    assert found.packed(tuple(asked)) == [wanted.get(user) for user in asked]
    assert found.packed([]) == []
    assert found.packed([b"nobody"]) == [None]
    assert (found.num_vectors, found.dim) == (3, 20)
    assert (found.version, found.generated_at) == ("1-abcdef01", D0)


def test_looking_up_in_more_buckets_than_are_held(tmp_path):
    store = Store(tmp_path)
    users = [b"u%03d" % i for i in range(200)]
    rows = _rows(3, users)
    write_generation(store, manifest(1, buckets=20), rows)
    store.publish(1)
    found = open_embeddings(tmp_path)
    for _ in range(2):
        assert found.packed(users) == [row["packed"] for row in rows]
        for row in rows[::-7]:
            assert found.packed([row["user"]]) == [row["packed"]]


def test_embeddings_are_pickled(store):
    found = open_embeddings(store.directory)
    wanted = found.packed(USERS)
    for one in (found, open_embeddings(store.directory)):
        data = pickle.dumps(one)
        assert len(data) < 2000
        again = pickle.loads(data)
        assert again.packed(USERS) == wanted
        assert again.fingerprint() == found.fingerprint()


def test_a_reader_keeps_its_generation(store):
    old = open_embeddings(store.directory)
    write_generation(store, manifest(2, as_of=D0 + DAY), _rows(2))
    assert open_embeddings(store.directory).manifest.number == 1
    store.publish(2)
    new = open_embeddings(store.directory)
    assert old.packed([b"user_1"]) == [_rows(1)[1]["packed"]]
    assert new.packed([b"user_1"]) == [_rows(2)[1]["packed"]]
    assert new.fingerprint() != old.fingerprint()
    store.prune()
    fresh = pickle.loads(pickle.dumps(old))
    assert fresh.packed([b"user_2"]) == [_rows(1)[2]["packed"]]


def test_what_is_no_store(tmp_path, store):
    for place in (tmp_path / "nothing", tmp_path):
        with pytest.raises(InputError, match="has no current embeddings: name a folder"):
            open_embeddings(place)
    (tmp_path / "file").write_text("1")
    with pytest.raises(InputError, match="has no current embeddings"):
        open_embeddings(tmp_path / "file")
    with pytest.raises(InputError, match="is not a manifest of embeddings"):
        store.publish(2)
    assert store.current() == 1
    (store.directory / "CURRENT").write_text("one")
    with pytest.raises(InputError, match="CURRENT is damaged"):
        open_embeddings(store.directory)
    (store.directory / "CURRENT").write_text("7")
    with pytest.raises(InputError, match="is not a manifest of embeddings"):
        open_embeddings(store.directory)
    (store.directory / "CURRENT").write_text("1")
    path = store.generation(1) / "manifest.json"
    text = path.read_text()
    for damaged in (text[:40], "[]", "{}", text.replace('"dim"', '"dims"')):
        path.write_text(damaged)
        with pytest.raises(InputError, match=r"manifest\.json"):
            open_embeddings(store.directory)
    path.write_text(text)
    shutil.rmtree(store.generation(1) / "embeddings")
    with pytest.raises(InputError, match="damaged; export again"):
        open_embeddings(store.directory)


def test_generations_that_are_not_finished_are_not_there(store):
    store.partial(2).mkdir()
    (store.partial(2) / "manifest.json").write_text("{}")
    (store.directory / "generations" / "00003").mkdir()
    (store.directory / "generations" / "notes").mkdir()
    (store.directory / "generations" / "notes" / "manifest.json").write_text("{}")
    assert store.numbers() == [1]


def test_versions_count_models(tmp_path):
    store = Store(tmp_path)
    assert store.version_of("a" * 64) == "1-aaaaaaaa"
    assert store.version_of("b" * 64) == "2-bbbbbbbb"
    assert store.version_of("a" * 64) == "1-aaaaaaaa"
    assert Store(tmp_path).version_of("c" * 64) == "3-cccccccc"


@pytest.mark.parametrize(
    ("sketches", "current", "left"),
    [
        ((1, 2, 3, 4, 5), 5, [1, 2, 3, 4, 5]),
        ((5,), 5, [4, 5]),
        ((3, 4, 5), 5, [3, 4, 5]),
        ((2, 5), 5, [2, 4, 5]),
        ((5,), 3, [2, 3, 5]),
        ((4, 5), 1, [1, 4, 5]),
        ((5,), None, [5]),
    ],
)
def test_pruning_keeps_what_is_needed(tmp_path, sketches, current, left):
    """The current one and that before it, for readers; the newest and its sketches, for the next."""
    store = Store(tmp_path)
    for number in range(1, 6):
        own = sketches if number == 5 else (number,)
        write_generation(store, manifest(number, sketches=own), _rows(number))
    if current is not None:
        store.publish(current)
    store.prune()
    assert store.numbers() == left
    # Generations that are only added to keep their sketches alone.
    kept = {5, current, max((n for n in left if current and n < current), default=None)}
    for number in left:
        folder = store.generation(number)
        assert (folder / "embeddings").exists() == (number in kept)
        if number not in kept:
            with pytest.raises(InputError, match="no longer has embeddings"):
                store.publish(number)
    if current is not None:
        assert open_embeddings(tmp_path).packed([b"user_1"]) == [_rows(current)[1]["packed"]]


def test_pruning_nothing(tmp_path):
    Store(tmp_path).prune()
    assert Store(tmp_path).numbers() == []


def test_forgetting(store):
    nothing = store.forgotten()
    made = manifest(2, sketches=(1, 2), forgotten=fingerprint_of(nothing))
    write_generation(store, made, _rows(2))
    store.partial(3).mkdir()
    assert store.can_be_added_to(made, nothing)
    assert not store.can_be_added_to(made, {"users": ["00"], "events": []})
    assert store.forget([b"user_2", b"user_6", b"nobody"], [(b"user_1", D0)]) == 4
    assert not store.can_be_added_to(made, nothing)
    assert not store.partial(3).exists()
    for number in (1, 2):
        rows = rows_of(store.directory, number)
        assert set(rows) == set(USERS) - {b"user_2", b"user_6"}
        assert rows[b"user_1"]["packed"] == _rows(number)[1]["packed"]
        for part in ("sketches", "tail"):
            assert not (store.generation(number) / part).exists()
    assert not list(store.directory.rglob(".*"))
    assert store.forgotten() == {
        "users": [b"user_2".hex(), b"user_6".hex(), b"nobody".hex()],
        "events": [[b"user_1".hex(), D0]],
    }
    before = embedding_files(store.directory)
    assert store.forget([b"user_2"], [(b"user_1", D0), (b"user_1", D0 + 1)]) == 0
    assert embedding_files(store.directory) == before
    assert store.forgotten()["events"] == [[b"user_1".hex(), D0], [b"user_1".hex(), D0 + 1]]
    assert len(store.forgotten()["users"]) == 3


def test_forgetting_keeps_files_readable_and_in_order(store):
    store.forget([b"user_2"])
    for data in embedding_files(store.directory).values():
        table = pq.read_table(pa.BufferReader(data))
        users = table["user"].to_pylist()
        assert users == sorted(users)
        assert table.schema.field("version").type == pa.dictionary(pa.int32(), pa.string())


# Servers' stores.


def _sqlite(path: Path) -> tuple[dict[bytes, bytes], dict[str, str]]:
    database = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        rows = dict(database.execute("SELECT user, packed FROM embeddings").fetchall())
        about = dict(database.execute("SELECT name, value FROM about").fetchall())
    finally:
        database.close()
    return rows, about


def _present(seed: int) -> dict[bytes, bytes]:
    return {row["user"]: row["packed"] for row in _rows(seed) if row["present"]}


def test_sqlite(store, tmp_path):
    path = tmp_path / "deep" / "er" / "current.sqlite"
    assert write_key_values(store, 1, open_writer(f"sqlite={path}")) == 8
    rows, about = _sqlite(path)
    assert rows == _present(1)
    assert about == {
        "version": "1-abcdef01",
        "generated_at": str(D0),
        "num_vectors": "3",
        "dim": "20",
    }
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_sqlite_is_replaced_as_a_whole(store, tmp_path):
    path = tmp_path / "current.sqlite"
    write_key_values(store, 1, SqliteWriter(path))
    write_generation(store, manifest(2), _rows(2)[:5])
    reading = sqlite3.connect(path)
    cursor = reading.execute("SELECT user, packed FROM embeddings")
    seen = dict([cursor.fetchone()])
    writer = SqliteWriter(path)
    writer.begin(store.manifest(2))
    writer.put([(b"user_0", b"new")])
    assert _sqlite(path)[0] == _present(1)
    # Broken off; begun again by the next.
    del writer
    assert write_key_values(store, 2, SqliteWriter(path)) == 4
    seen |= dict(cursor.fetchall())
    reading.close()
    assert seen == _present(1)
    assert _sqlite(path)[0] == {r["user"]: r["packed"] for r in _rows(2)[:4]}
    assert sorted(p.name for p in tmp_path.glob("*sqlite*")) == ["current.sqlite"]
    assert not list(tmp_path.glob(".*"))


def test_tfrecord(store, tmp_path):
    path = tmp_path / "out" / "users.tfrecord.gz"
    assert write_key_values(store, 1, open_writer(f"tfrecord={path}")) == 8
    found = {}
    for data in tf.data.TFRecordDataset(str(path), "GZIP").as_numpy_iterator():
        features = tf.train.Example.FromString(data).features.feature
        assert features["long_history_version"].bytes_list.value == [b"1-abcdef01"]
        assert features["generated_at"].int64_list.value == [D0]
        assert sorted(features) == [
            "generated_at",
            "long_history",
            "long_history_version",
            "user",
        ]
        (user,), (vectors,) = (features[name].bytes_list.value for name in ("user", "long_history"))
        found[user] = vectors
    assert found == _present(1)


def test_tfrecord_is_replaced_as_a_whole(store, tmp_path):
    path = tmp_path / "users.tfrecord.gz"
    write_key_values(store, 1, TFRecordWriter(path))
    before = path.read_bytes()
    writer = TFRecordWriter(path)
    writer.begin(store.manifest(1))
    writer.put([(b"user_0", b"new")])
    assert path.read_bytes() == before
    writer.commit()
    assert path.read_bytes() != before
    assert not list(tmp_path.glob(".*"))


class Remembering:
    """A writer of one's own."""

    def __init__(self, destination: str) -> None:
        self.destination, self.calls = destination, []

    def begin(self, manifest) -> None:
        self.calls.append(("begin", manifest.number))

    def put(self, rows) -> None:
        self.calls.append(("put", dict(rows)))

    def commit(self) -> None:
        self.calls.append(("commit", None))


def test_a_writer_of_ones_own(store):
    writer = open_writer(f"{__name__}:Remembering=redis://host=1")
    assert write_key_values(store, 1, writer) == 8
    assert writer.destination == "redis://host=1"
    assert writer.calls[0] == ("begin", 1)
    assert writer.calls[-1] == ("commit", None)
    together: dict[bytes, bytes] = {}
    for name, rows in writer.calls[1:-1]:
        assert name == "put"
        assert not together.keys() & rows.keys()
        together |= rows
    assert together == _present(1)


@pytest.mark.parametrize(
    "text",
    [
        "sqlite",
        "sqlite=",
        "=x",
        "redis=x",
        "no.such.module:Class=x",
        f"{__name__}:Nothing=x",
        ":=x",
    ],
)
def test_writers_that_are_not_there(text):
    with pytest.raises(InputError, match=r"^--to "):
        open_writer(text)


def test_a_broken_writer_leaves_what_was_there(store, tmp_path):
    path = tmp_path / "current.sqlite"
    write_key_values(store, 1, SqliteWriter(path))
    before = everything(tmp_path)["current.sqlite"]
    (store.generation(1) / "embeddings" / "00001.parquet").unlink()
    with pytest.raises(Exception, match=r"00001\.parquet"):
        write_key_values(store, 1, SqliteWriter(path))
    assert everything(tmp_path)["current.sqlite"] == before


def test_the_schema_of_embeddings(store):
    """What the docs promise to who reads the Parquet files."""
    (path, *_) = sorted((store.generation(1) / "embeddings").iterdir())
    schema = pq.read_schema(path)
    # Newer releases of Arrow call the values of a list "element".
    found = {field.name: str(field.type).replace("<element: ", "<item: ") for field in schema}
    assert found == {
        "user": "binary",
        "present": "bool",
        "packed": "binary",
        "version": "dictionary<values=string, indices=int32, ordered=0>",
        "generated_at": "int64",
        "newest_event": "int64",
        "changes_at": "int64",
        "explicit_events": "int64",
        "implicit_events": "int64",
        "totals": "list<item: float>",
    }
    assert json.loads((store.generation(1) / "manifest.json").read_text())["number"] == 1
    assert np.isfinite(pq.read_table(path)["totals"].combine_chunks().flatten().to_numpy()).all()
