"""The pipeline on timelines: a pushed model, everybody's embeddings, checks that hold them back."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tfrz.embeddings.store import Store, open_embeddings
from tfrz.errors import ConfigError
from tfrz.zoo.run_config import load_run_config
from tfx_pipelines.local_runner import run_pipeline

pytestmark = [pytest.mark.slow, pytest.mark.needs("tfx")]

PIPELINE = (
    # Everything that is held out judges.
    "data.test_fraction=0",
    "data.options={users: 60, days: 12, impressions: 15}",
    "data.timeline.targets=10",
    "data.timeline.min_visible=20",
    "model.dim=8",
    "trainer.epochs=2",
    "trainer.batch_size=32",
    "evaluator.max_normalized_entropy.like=3.0",
    "evaluator.max_rise=9.0",
    "export.embeddings.buckets=3",
)


def _run(root, *overrides):
    config = load_run_config("dv365", "simulated", [*PIPELINE, *overrides])
    return run_pipeline(config, "simulated", root, None, progress=False)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("timeline-pipeline") / "root"


@pytest.fixture(scope="module")
def first(root):
    return _run(root)


@pytest.fixture(scope="module")
def refused(root, first):
    """The same, of another model, held to its predecessor's coordinates."""
    return _run(root, "trainer.seed=1", "evaluator.min_cosine=0.999")


def test_events_become_a_pushed_model_and_published_embeddings(root, first):
    names = [component.name for component in first.components]
    last = ["Evaluator", "EmbeddingExport", "EmbeddingCheck", "EmbeddingPublisher", "Pusher"]
    assert [name for name in names if name in last] == last
    assert "TimelineExampleGen" in names
    assert first.blessed, first.refusals
    assert 0 < first.metrics["normalized_entropy_like"] < 3
    assert first.metrics["mse_watch"] > 0
    assert any(name.startswith("history_events=") for name in first.slices)
    assert first.checks["EmbeddingCheck"]["coverage"] == 1.0
    embeddings = open_embeddings(root / "embeddings")
    known = embeddings.packed([b"user_0", b"user_59", b"user_60"])
    assert [one is not None for one in known] == [True, True, False]
    assert (root / "embeddings" / "current.sqlite").exists()
    health = json.loads((embeddings.folder / "health.json").read_text())
    assert health["users"] == 60


def test_the_pushed_model_is_that_of_the_embeddings(root, first):
    manifest = open_embeddings(root / "embeddings").manifest
    for name in ("variables.index", "variables.data-00000-of-00001"):
        pushed, exported = (
            (Path(place) / "variables" / name).read_bytes()
            for place in (first.pushed, manifest.model)
        )
        assert pushed == exported
    signatures = tf.saved_model.load(first.pushed).signatures
    answer = signatures["serving_default"](examples=tf.constant([b""]))
    assert not answer["present"].numpy()[0]
    np.testing.assert_array_equal(answer["embedding"].numpy(), np.zeros((1, 8, 8)))


def test_the_evaluators_metric_is_that_of_the_training_loop(root, first):
    folders = (root / "artifacts" / "Trainer" / "model_run").glob("*/history.json")
    history = json.loads(min(folders, key=lambda p: int(p.parent.name)).read_text())
    best = min(history, key=lambda row: row["normalized_entropy"])
    for name in ("normalized_entropy_like", "mse_watch"):
        assert first.metrics[name] == pytest.approx(best[name], rel=1e-4)


def test_embeddings_in_other_coordinates_are_neither_published_nor_their_model_pushed(
    root, first, refused
):
    assert {"Transform": "cached", "Trainer": "ran"}.items() <= {
        (component.name, component.outcome) for component in refused.components
    }
    assert refused.evaluated and not refused.blessed and refused.pushed is None
    assert any("evaluator.min_cosine is 0.999" in line for line in refused.refusals)
    store = Store(root / "embeddings")
    assert store.numbers() == [1, 2]
    assert store.current() == 1
    assert store.manifest(2).version.startswith("2-")
    assert [p.name for p in Path(first.pushed).parent.iterdir()] == [Path(first.pushed).name]


def test_a_model_that_is_not_blessed_exports_nothing(root, refused):
    result = _run(root, "trainer.seed=2", "evaluator.max_normalized_entropy.like=0.001")
    assert not result.evaluated and result.pushed is None
    assert Store(root / "embeddings").numbers() == [1, 2]


def test_a_threshold_of_a_task_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"max_normalized_entropy\.shares: is none of like"):
        _run(tmp_path / "root", "evaluator.max_normalized_entropy.shares=0.9")


def test_it_compiles_for_kubeflow(tmp_path):
    out = tmp_path / "dv365.json"
    command = [sys.executable, "-m", "tfrz", "pipeline", "compile", "dv365", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-1500:]
    for name in ("TimelineExampleGen", "EmbeddingExport", "EmbeddingPublisher"):
        assert name in out.read_text()
