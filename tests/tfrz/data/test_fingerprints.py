"""A reader's fingerprint: the same in every process, another for other contents or options."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.tfrz.data import small_sources
from tfrz.data.records import RECORD_TYPES, SOURCES, open_source
from tfrz.data.sources import locations
from tfrz.errors import ConfigError

SPECS = {
    "impression": "label: y\nfeatures: [{name: a}]\n",
    "history": "time: null\ncandidates: {features: [{name: brand}], file: items.csv}\n",
    "list": "candidate: [{name: x, kind: numeric, dtype: float32}]\n",
    "logged_action": "time: null\npropensity: p\n",
    "timeline": "action: null\n",
}
# The process that computes them again: another hash seed, another address for every object.
AGAIN = """
import json, sys
from tfrz.data.records import open_source
cases = json.load(sys.stdin)
print(json.dumps([open_source(*case).fingerprint() for case in cases]))
"""


def _files(folder: Path) -> dict[str, str]:
    """A path for each known source, with a file of its name's format."""
    lines = {
        "criteo/train.txt": small_sources.criteo_line(1, [], []),
        "avazu/train.csv": small_sources.avazu_line(1, "14102100"),
        "sessions/diginetica_train.txt.gz": "a b\n",
        "amazon-seq/Beauty.txt.gz": "u a b\n",
        "amazon-seq/Beauty_item2attributes.json.gz": "{}",
        "gowalla/train.txt.gz": "u a b\n",
        "gowalla/test.txt.gz": "u c\n",
        "letor/train.txt": "1 qid:1 1:0.5\n",
        "obd/random/all/all.csv.gz": "item_id\n",
    }
    for name, text in lines.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    for name in ("completejourney/transactions", "completejourney/products", "vcs-edits/events"):
        path = folder / f"{name}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"x": [1]}), path)
    pq.write_table(pa.table({"x": [2]}), folder / "vcs-edits" / "items.parquet")
    small_sources.movielens_1m(folder / "movielens-1m")
    small_sources.movielens_100k(folder / "movielens-100k")
    return {name: str(folder / name) for name in SOURCES}


def _cases(folder: Path) -> list[tuple[str, str | None, str]]:
    """`open_source`'s arguments for every reader that there is."""
    places = _files(folder)
    cases = [
        (name if name == "simulated" else f"{name}:{places[name]}", None, kind)
        for name, source in SOURCES.items()
        for kind in source.readers
    ]
    (folder / "rows.csv").write_text("user,item,a,y\nu,i,b,1\n")
    (folder / "items.csv").write_text("item,brand\ni,b\n")
    for kind in RECORD_TYPES:
        (folder / f"{kind}.yaml").write_text(SPECS[kind])
        cases.append((str(folder / "rows.csv"), str(folder / f"{kind}.yaml"), kind))
    return cases


def test_every_reader_has_the_same_fingerprint_in_another_process(tmp_path):
    cases = _cases(tmp_path)
    assert len(cases) == sum(len(s.readers) for s in SOURCES.values()) + len(RECORD_TYPES)
    here = [open_source(*case).fingerprint() for case in cases]
    found = subprocess.run(
        [sys.executable, "-c", AGAIN],
        input=json.dumps(cases),
        env={**os.environ, "PYTHONHASHSEED": "7"},
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stderr
    there = json.loads(found.stdout.splitlines()[-1])
    assert dict(zip(map(tuple, cases), there, strict=True)) == dict(zip(cases, here, strict=True))
    assert len(set(here)) == len(here)


def test_every_reader_has_another_fingerprint_when_a_file_changes(tmp_path):
    for case in _cases(tmp_path):
        reader = open_source(*case)
        assert case[0] == "simulated" or reader.files()
        for file in reader.files():
            before, content = reader.fingerprint(), Path(file).read_bytes()
            Path(file).write_bytes(content + b"\n")
            assert reader.fingerprint() != before, (case, file)
            Path(file).write_bytes(content)
            assert reader.fingerprint() == before, (case, file)


def test_a_file_is_hashed_once_however_often_it_is_asked(tmp_path, monkeypatch):
    path = small_sources.movielens_1m(tmp_path)
    opened = []

    def counted(file, mode="r"):
        opened.append(file)
        return open(file, mode)

    monkeypatch.setattr(locations, "open", counted, raising=False)
    prints = {open_source(f"movielens-1m:{path}").fingerprint() for _ in range(3)}
    open_source(f"movielens-1m:{path}", None, "history").fingerprint()
    assert len(prints) == 1
    assert len(opened) == len(set(opened)) == 3


@pytest.mark.parametrize(
    ("kind", "option", "value", "message"),
    [
        ("history", "min_rating", "abc", "data.options.min_rating: expected a whole number"),
        ("logged_action", "good", 2.5, "data.options.good: expected a whole number"),
        ("impression", "genres", "yes", "data.options.genres: expected bool, got 'yes'"),
        ("impression", "genre", True, "movielens-1m has no option 'genre'; did you mean 'genres'?"),
        ("impression", "release", "100k", "movielens-1m has no option 'release'"),
        ("history", "path", "x", "movielens-1m has no option 'path'"),
        ("history", "features", "x", "movielens-1m has no option 'features'"),
        ("timeline", "records", "x", "movielens-1m has no option 'records'"),
    ],
)
def test_options_are_held_to_the_readers_signature(tmp_path, kind, option, value, message):
    path = small_sources.movielens_1m(tmp_path)
    with pytest.raises(ConfigError) as refused:
        open_source(f"movielens-1m:{path}", None, kind, **{option: value})
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("kind", list(RECORD_TYPES))
def test_no_simulated_option_takes_a_word_for_a_number(kind):
    with pytest.raises(ConfigError, match=r"data\.options\.seed: expected a whole number"):
        open_source("simulated", None, kind, seed="abc")


def test_a_file_of_ones_own_has_no_options(tmp_path):
    data, features, kind = _cases(tmp_path)[-1]
    with pytest.raises(ConfigError, match="has no option 'rows'"):
        open_source(data, features, kind, rows=3)


def test_an_error_of_a_reader_is_not_taken_for_an_unknown_option(tmp_path, monkeypatch):
    from tfrz.data.sources.movielens import MovieLens

    def broken(self, path: str, release: str = "1m"):
        raise TypeError("unsupported operand, argument x")

    monkeypatch.setattr(MovieLens, "__init__", broken)
    with pytest.raises(TypeError, match="unsupported operand"):
        open_source(f"movielens-1m:{tmp_path}")
