"""Impressions on their way to a model: one pass over the source, a cache, sets beyond memory."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from tfrz.data.impressions import encoding
from tfrz.errors import ConfigError, InputError
from tfrz.training.batches import ArrayBatches, GroupedBatches
from tfrz.zoo import train as training
from tfrz.zoo.run import open_run
from tfrz.zoo.run_config import load_run_config
from tfrz.zoo.tasks import click
from tfrz.zoo.train import train

SPEC = """
features:
  - {name: user}
  - {name: tags, multivalent: true}
  - {name: price, kind: numeric, dtype: float32, standardize: true}
"""
SMALL = ("model.num_cross_layers=1", "model.hidden_units=[4]", "trainer.batch_size=64")


@pytest.fixture
def source(tmp_path):
    """A folder of two Parquet files, and its spec."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "rows"
    folder.mkdir()
    for number in range(2):
        user = rng.integers(0, 40, 600)
        rows = {
            "user": [f"u{u}" for u in user],
            "tags": [[f"t{t}" for t in rng.integers(0, 9, rng.integers(0, 4))] for _ in user],
            "price": rng.normal(5, 2, 600),
            "label": (rng.random(600) < (user % 2 + 1) / 3).astype(int),
        }
        pd.DataFrame(rows).to_parquet(folder / f"part-{number}.parquet", row_group_size=250)
    (tmp_path / "spec.yaml").write_text(SPEC)
    return str(folder), str(tmp_path / "spec.yaml")


def _run(source, cache=None):
    return open_run(load_run_config("dcn_v2", "rows", SMALL), *source, cache)


def _columns(batches) -> dict[str, np.ndarray]:
    parts = [{name: value.numpy() for name, value in batch.items()} for batch in batches.once()]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _same(one, other) -> None:
    for name in ("train", "validation", "test"):
        found, expected = _columns(getattr(one, name)), _columns(getattr(other, name))
        assert found.keys() == expected.keys()
        for column, values in expected.items():
            np.testing.assert_allclose(found[column], values, rtol=1e-6, err_msg=column)
    assert one.vocabularies == other.vocabularies
    assert one.examples == other.examples


def test_a_cache_holds_what_memory_does_and_is_read_again(tmp_path, source, monkeypatch):
    memory = _run(source).prepare()
    first = _run(source, tmp_path / "cache").prepare()
    _same(first, memory)
    read = []
    monkeypatch.setattr(click, "encode", lambda *args, **_: read.append(args))
    _same(_run(source, tmp_path / "cache").prepare(), memory)
    assert not read
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_large_sets_are_read_by_groups(tmp_path, source, monkeypatch):
    memory = _run(source).prepare()
    assert isinstance(memory.train, ArrayBatches)
    monkeypatch.setattr(click, "_IN_MEMORY", 50)
    monkeypatch.setattr(encoding, "GROUP_ROWS", 100)
    grouped = _run(source, tmp_path / "cache").prepare()
    assert isinstance(grouped.train, GroupedBatches)
    assert isinstance(grouped.validation, GroupedBatches)
    _same(grouped, memory)
    metrics = train("dcn_v2", source[0], tmp_path / "run", source[1], SMALL, progress=False)
    assert 0.5 < metrics["metrics"]["test"]["auc"] <= 1
    assert (tmp_path / "run" / "model" / "1" / "saved_model.pb").exists()


def test_one_class_is_refused_before_training(tmp_path, source):
    folder = tmp_path / "rows"
    for path in folder.iterdir():
        pd.read_parquet(path).assign(label=1).to_parquet(path)
    for cache in (None, tmp_path / "cache"):
        with pytest.raises(InputError, match=r"label is 1 in all 9.. training examples: there is"):
            _run(source, cache).prepare()


def test_a_run_is_not_resumed_on_other_contents(tmp_path, source, monkeypatch):
    out = tmp_path / "run"
    settings = (*SMALL, "trainer.epochs=1")

    def stopped(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(training, "finish_run", stopped)
        with pytest.raises(KeyboardInterrupt):
            train("dcn_v2", source[0], out, source[1], settings, progress=False)
    path = tmp_path / "rows" / "part-1.parquet"
    rows = pd.read_parquet(path)
    rows.assign(user="u1").to_parquet(path)
    with pytest.raises(InputError, match=r"rows has changed since the run in .*run began"):
        train("dcn_v2", source[0], out, source[1], settings, progress=False)
    rows.to_parquet(path, row_group_size=250)
    train("dcn_v2", source[0], out, source[1], settings, progress=False)
    assert (out / "metrics.json").exists()


# Splits.

WORDS = ("train", "valid", "test")
TIMES = (1_600_000_000, 1_600_100_000, 1_600_200_000)


def _split_file(folder, count: int = 90):
    """A CSV file whose rows say where they belong, by a word and by a time."""
    rng = np.random.default_rng(0)
    place = rng.integers(0, 3, count)
    rows = pd.DataFrame(
        {
            "user": [f"{WORDS[p]}{i}" for i, p in enumerate(place)],
            "fold": [WORDS[p] for p in place],
            "at": [TIMES[p] + i for i, p in enumerate(place)],
            "label": rng.integers(0, 2, count),
        }
    )
    rows.to_csv(folder / "rows.csv", index=False)
    spec = "features: [{name: user}]\nsplit: fold\ntime: at\n"
    (folder / "spec.yaml").write_text(spec)
    return rows, str(folder / "rows.csv"), str(folder / "spec.yaml")


def _users(parts) -> dict[str, set[str]]:
    return {
        split: {user.decode() for (user,) in table["user"].to_pylist()}
        for split, table in parts.items()
    }


def _parts(data, spec, *settings):
    run = open_run(load_run_config("dcn_v2", "rows", (*SMALL, *settings)), data, spec)
    return _users(run.task.examples(run.source)[0])


@pytest.mark.parametrize(
    "settings",
    [
        (),
        ("data.split=column",),
        ("data.split=time", f"data.validation_start={TIMES[1]}", f"data.test_start={TIMES[2]}"),
    ],
    ids=["named in the spec", "column", "time"],
)
def test_a_column_or_the_time_splits(tmp_path, settings):
    rows, data, spec = _split_file(tmp_path)
    found = _parts(data, spec, *settings)
    for split, word in zip(("train", "validation", "test"), WORDS, strict=True):
        assert found[split] == {user for user in rows["user"] if user.startswith(word)}
    hashed = _parts(data, spec, "data.split=random")
    assert hashed["train"] != found["train"]


@pytest.mark.parametrize("given", [("validation", "test"), ("validation",), ("test",)])
def test_files_of_their_own(tmp_path, given):
    rows, data, _ = _split_file(tmp_path)
    (tmp_path / "spec.yaml").write_text("features: [{name: user}]\n")
    settings = []
    for split in given:
        others = rows.assign(user=[f"{split}-{user}" for user in rows["user"]])
        others.to_csv(tmp_path / f"{split}.csv", index=False)
        settings.append(f"data.{split}={tmp_path}/{split}.csv")
    found = _parts(data, str(tmp_path / "spec.yaml"), "data.validation_fraction=0.3", *settings)
    own = {user for split in ("train", "validation", "test") for user in found[split]}
    assert len(own) == 90 * (1 + len(given))
    for split in ("validation", "test"):
        if split in given:
            assert found[split] == {f"{split}-{user}" for user in rows["user"]}
        else:
            assert found[split] and found[split] < set(rows["user"])
    assert found["train"] <= set(rows["user"])
    if len(given) == 2:
        assert found["train"] == set(rows["user"])


def test_bad_splits_are_told(tmp_path):
    rows, data, spec = _split_file(tmp_path)
    rows.assign(fold="later").to_csv(data, index=False)
    with pytest.raises(InputError, match=r"rows.csv:2: fold is neither train, .* \['later'\]"):
        _parts(data, spec)
    (tmp_path / "spec.yaml").write_text("features: [{name: user}]\n")
    starts = ("data.validation_start=1", "data.test_start=2")
    for how in ("column", "time"):
        with pytest.raises(ConfigError, match=f"data.split: {how} needs '"):
            _parts(data, spec, f"data.split={how}", *starts)
    with pytest.raises(ConfigError, match="a split by time needs both"):
        _parts(data, spec, "data.split=time", "data.validation_start=1")
    with pytest.raises(InputError, match=r"none\.csv does not exist"):
        _parts(data, spec, f"data.test={tmp_path}/none.csv")
    with pytest.raises(ConfigError, match=r"data\.split: is for impressions"):
        open_run(load_run_config("m3", "simulated", ["data.split=random"]), "simulated")
    with pytest.raises(ConfigError, match="--validation and --test: are for impressions and lists"):
        open_run(load_run_config("m3", "simulated", ["data.test=simulated"]), "simulated")
