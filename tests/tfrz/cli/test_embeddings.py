"""`tfrz embeddings`: every action once, and bad input in one line."""

from __future__ import annotations

import contextlib
import json
import shutil
import sqlite3
from pathlib import Path

import pytest

from tests.tfrz.embeddings.hand_made import (
    D0,
    DAY,
    HOUR,
    embedding_files,
    everything,
    loaded_once,
    rows_of,
    trained_model,
)
from tfrz.cli.main import main
from tfrz.embeddings.store import Store, open_embeddings

pytestmark = pytest.mark.needs("apache_beam")

DATE = "2020-09-15"
AS_OF = 1_600_128_000
LINES = sorted(
    f"u{n % 5},{D0 - 9 * DAY + n * HOUR},{'like' if n % 3 else 'view'},item_{n},topic_{n % 4},"
    f"{'20' if n % 3 == 0 else ''},{n % 30 if n % 3 == 0 else ''},"
    for n in range(260)
)


def _source(folder: Path, lines: list[str]) -> list[str]:
    (folder / "features.yaml").write_text(
        "separator: ','\nids: [{name: item}, {name: topic}]\nactions: [view, like]\n"
        "implicit: [view]\nduration: duration\ndwell: dwell\nbinary: [liked]\n"
    )
    header = "user,time,action,item,topic,duration,dwell,liked"
    (folder / "events.csv").write_text("\n".join([header, *lines]) + "\n")
    return ["--data", str(folder / "events.csv"), "--features", str(folder / "features.yaml")]


@pytest.fixture(scope="module", autouse=True)
def models_are_loaded_once():
    with loaded_once():
        yield


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    """A folder with a source and a store of two generations, and what the second export said."""
    folder = tmp_path_factory.mktemp("embeddings")
    store = ["--store", str(folder / "store"), "--buckets", "3"]
    source = _source(folder, LINES)
    # The folder of versions, as `tfrz train` writes it.
    models = str(trained_model().parent)
    export = ["embeddings", "export", models, *source, *store]
    assert main([*export, "--as-of", str(AS_OF - 2 * DAY)]) == 0
    with (
        open(folder / "stdout.json", "w") as out,
        open(folder / "stderr.txt", "w") as err,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        assert main([*export, "--as-of", DATE, "--json"]) == 0
    return folder


@pytest.fixture
def copied(exported, tmp_path) -> Path:
    shutil.copytree(exported, tmp_path / "copy")
    return tmp_path / "copy"


def _fails(capsys, *arguments: str) -> str:
    """The one line of a command that ends with status 2."""
    capsys.readouterr()
    assert main(["embeddings", *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    lines = [line for line in printed.err.splitlines() if not line.endswith(" ...")]
    assert len(lines) == 1, printed.err
    assert lines[0].startswith("tfrz: ")
    return lines[0]


def _sqlite(path: Path) -> dict[bytes, bytes]:
    database = sqlite3.connect(path)
    rows = dict(database.execute("SELECT user, packed FROM embeddings").fetchall())
    database.close()
    return rows


def test_export(exported):
    printed = json.loads((exported / "stdout.json").read_text())
    assert (printed["number"], printed["as_of"], printed["users"]) == (2, AS_OF, 5)
    assert (printed["buckets"], printed["sketches"]) == (3, [1, 2])
    first = Store(exported / "store").manifest(1)
    assert (first.as_of, first.counts["in the future"] > 0) == (AS_OF - 2 * DAY, True)
    said = (exported / "stderr.txt").read_text()
    assert "reading events" in said
    assert "5 users to sqlite=" in said
    rows = rows_of(exported / "store")
    assert _sqlite(exported / "store" / "current.sqlite") == {
        u: r["packed"] for u, r in rows.items()
    }
    for name in ("CURRENT", "versions.json", "current.sqlite", "generations"):
        assert (exported / "store" / name).exists()
    assert not list((exported / "store").glob(".*"))


def test_export_as_a_table(copied, capsys):
    source = _source(copied, LINES)
    to = copied / "out"
    code = main(
        ["embeddings", "export", str(trained_model()), *source, "--store", str(copied / "store")]
        + ["--full", "--as-of", f"{DATE}T06:00:00", "--no-publish"]
    )
    printed = capsys.readouterr().out
    assert code == 0
    assert "generation 3 of" in printed
    assert "events_read" in printed
    assert Store(copied / "store").current() == 2
    assert Store(copied / "store").manifest(3).as_of == AS_OF + 6 * HOUR
    assert len(_sqlite(copied / "store" / "current.sqlite")) == 5
    assert not to.exists()
    # Published by hand, to places of one's own.
    code = main(
        ["embeddings", "publish", str(copied / "store"), "3"]
        + ["--to", f"sqlite={to}/users.sqlite", "--to", f"tfrecord={to}/users.tfrecord.gz"]
    )
    assert code == 0
    assert Store(copied / "store").current() == 3
    assert sorted(p.name for p in to.iterdir()) == ["users.sqlite", "users.tfrecord.gz"]
    assert _sqlite(to / "users.sqlite") == {
        u: r["packed"] for u, r in rows_of(copied / "store", 3).items()
    }


def test_report(exported, capsys):
    for more, version in (((), 2), (("--generation", "1"), 1)):
        assert main(["embeddings", "report", str(exported / "store"), "--json", *more]) == 0
        report = json.loads(capsys.readouterr().out)
        stored = Store(exported / "store").generation(version) / "health.json"
        assert report == json.loads(stored.read_text())
        assert report["users"] == 5
    assert main(["embeddings", "report", str(exported / "store")]) == 0
    printed = capsys.readouterr().out
    for word in ("liked_topics_3d", "100.0% with vectors", "cosine to version 1-", "norm of a"):
        assert word in printed


def test_show(exported, capsys):
    assert main(["embeddings", "show", str(exported / "store"), "u3", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    found = open_embeddings(exported / "store")
    assert (shown["user"], shown["version"]) == ("u3", found.version)
    assert shown["generated_at"] == AS_OF
    assert len(shown["vectors"]) == found.num_vectors
    assert all(len(vector) == found.dim for vector in shown["vectors"])
    assert main(["embeddings", "show", str(exported / "store"), "u3"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("user u3, version 1-")
    assert len(printed) == 1 + found.num_vectors


def test_forget(copied, capsys):
    (copied / "users.txt").write_bytes(b"u2\r\nstranger\n\n")
    store = copied / "store"
    event = LINES[0].split(",")
    arguments = ["--user", "u1", "--users", str(copied / "users.txt")]
    assert main(["embeddings", "forget", str(store), *arguments, "--event", f"u0@{event[1]}"]) == 0
    assert "4 rows removed" in capsys.readouterr().out
    assert set(rows_of(store)) == {b"u0", b"u3", b"u4"}
    assert set(_sqlite(store / "current.sqlite")) == {b"u0", b"u3", b"u4"}
    assert _fails(capsys, "show", str(store), "u1") == f"tfrz: {store} has no vectors for user 'u1'"
    model = str(trained_model())
    again = ["embeddings", "export", model, *_source(copied, LINES), "--as-of", "2020-09-17"]
    assert main([*again, "--store", str(store), "--json"]) == 0
    counts = json.loads(capsys.readouterr().out)["counts"]
    gone = [line for line in LINES if line.startswith(("u1,", "u2,"))]
    assert counts["forgotten"] == len(gone) + 1
    never = [line for line in LINES[1:] if line not in gone]
    fresh = ["embeddings", "export", model, *_source(copied, never), "--as-of", "2020-09-17"]
    assert main([*fresh, "--store", str(copied / "never"), "--buckets", "3"]) == 0
    assert embedding_files(store) == embedding_files(copied / "never")
    assert set(_sqlite(store / "current.sqlite")) == {b"u0", b"u3", b"u4"}


# Bad input.


def test_no_such_model(exported, tmp_path, capsys):
    source = _source(tmp_path, LINES)
    line = _fails(capsys, "export", str(tmp_path / "no"), *source, "--store", str(tmp_path / "s"))
    assert "is not a model" in line
    assert not (tmp_path / "s").exists()


def test_slices_that_nobody_has(exported, tmp_path, capsys):
    likes = [line for line in LINES if ",like," in line]
    arguments = [str(trained_model()), *_source(tmp_path, likes), "--store", str(tmp_path / "s")]
    line = _fails(capsys, "export", *arguments)
    assert "no user has an event in slice seen_topics_7d, watched, scored, skipped" in line
    assert "--allow-empty" in line
    assert Store(tmp_path / "s").numbers() == []
    assert Store(tmp_path / "s").current() is None
    assert not (tmp_path / "s" / "current.sqlite").exists()


def test_too_many_corrupt_lines(exported, tmp_path, capsys):
    source = _source(tmp_path, [*LINES, "u1,yesterday,view,i,t,1,1,"])
    line = _fails(capsys, "export", str(trained_model()), *source, "--store", str(tmp_path / "s"))
    assert f"events.csv:{len(LINES) + 2}: time is not a time" in line
    assert Store(tmp_path / "s").numbers() == []


def test_a_time_before_the_last_run(exported, capsys):
    before = everything(exported / "store")
    arguments = [str(trained_model()), "--data", str(exported / "events.csv")]
    arguments += ["--features", str(exported / "features.yaml"), "--store", str(exported / "store")]
    assert "is before the last run's" in _fails(
        capsys, "export", *arguments, "--as-of", "2020-09-14"
    )
    assert everything(exported / "store") == before


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--as-of", "soon"], "--as-of soon: write Unix seconds"),
        (["--as-of", "2020-13-01"], "--as-of 2020-13-01: write Unix seconds"),
        (["--as-of", "0"], "as_of"),
        (["--buckets", "0"], "buckets"),
        (["--to", "redis=x"], "--to redis=x: redis is not sqlite"),
        (["--to", "sqlite"], "write it as sqlite=FILE"),
        (["--option", "users=3"], "users"),
    ],
)
def test_options(exported, tmp_path, capsys, more, said):
    arguments = [str(trained_model()), *_source(tmp_path, LINES), "--store", str(tmp_path / "s")]
    assert said in _fails(capsys, "export", *arguments, *more)
    assert not (tmp_path / "s").exists()


def test_a_place_that_cannot_be_written_costs_no_job(exported, tmp_path, capsys):
    """`--to` is checked before the work; a file where a folder should be is bad input."""
    (tmp_path / "file").write_text("")
    arguments = [str(trained_model()), *_source(tmp_path, LINES), "--store", str(tmp_path / "s")]
    line = _fails(capsys, "export", *arguments, "--to", f"sqlite={tmp_path}/file/users.sqlite")
    assert f"{tmp_path}/file" in line


def test_sources_of_other_records(exported, tmp_path, capsys):
    arguments = ["export", str(trained_model()), "--data", "nonsense", "--store", str(tmp_path)]
    assert "nonsense" in _fails(capsys, *arguments)


def test_what_is_no_store(exported, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    for place in (tmp_path, tmp_path / "nothing", tmp_path / "file"):
        for action in (["report"], ["show"], ["publish"], ["forget"]):
            more = {"show": ["u1"], "publish": ["1"], "forget": ["--user", "u1"]}
            line = _fails(capsys, *action, str(place), *more.get(action[0], []))
            assert str(place) in line
    assert not (tmp_path / "nothing").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_no_such_generation(exported, capsys):
    store = str(exported / "store")
    assert "00009/manifest.json" in _fails(capsys, "report", store, "--generation", "9")
    assert "00009/manifest.json" in _fails(capsys, "publish", store, "9")
    assert Store(store).current() == 2


def test_nothing_to_forget(exported, tmp_path, capsys):
    before = everything(exported / "store")
    store = str(exported / "store")
    assert "nothing to forget" in _fails(capsys, "forget", store)
    assert "cannot read" in _fails(capsys, "forget", store, "--users", str(tmp_path / "no"))
    for event in ("u1", "u1@", "@5", "u1@noon", "u1@²"):
        assert f"--event {event}: write it as" in _fails(capsys, "forget", store, "--event", event)
    assert everything(exported / "store") == before
