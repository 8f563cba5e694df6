"""Impressions on their way to a model: one pass over the source, a cache, sets beyond memory."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from tfrz.data.impressions import encoding
from tfrz.errors import InputError
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
