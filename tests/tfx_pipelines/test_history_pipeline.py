"""The pipeline on interactions: histories, a pushed model that recommends, slices, refusal."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tensorflow as tf

from tests.tfrz.zoo.test_history_task import SETTINGS, _write
from tests.tfx_pipelines import stored
from tfrz.cli.main import main
from tfrz.data.records import open_source
from tfrz.errors import InputError
from tfrz.zoo.run_config import load_run_config
from tfx_pipelines.local_runner import run_pipeline

PIPELINE = (
    *SETTINGS,
    "data.test_fraction=0",
    "trainer.epochs=40",
    "trainer.early_stopping_patience=null",
    "export.top_k=10",
    "evaluator.min_metrics={recall_at_10: 0.7}",
    "evaluator.slices=[[page], [history_length], [target_popularity]]",
)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("history-pipeline")
    return folder, *_write(folder, users=200, ring=40)


def _run(place, *overrides):
    folder, data, spec = place
    config = load_run_config("m3", "file", [*PIPELINE, *overrides])
    return run_pipeline(config, data, folder / "root", spec, progress=False)


@pytest.fixture(scope="module")
def first(place):
    return _run(place)


@pytest.mark.needs("tfx")
def test_interactions_become_a_pushed_model_that_recommends(first):
    names = {component.name for component in first.components}
    assert {"HistoryExampleGen", "Transform", "Trainer", "Evaluator", "Pusher"} <= names
    assert first.blessed, first.refusals
    assert first.metrics["recall_at_10"] > 0.7
    assert 0 < first.metrics["map_at_20"] <= first.metrics["recall_at_10"]
    signatures = tf.saved_model.load(first.pushed).signatures
    answer = signatures["recommend"](
        history=tf.constant([["item-3", "item-4"], ["", ""]]),
        history_time=tf.constant([[1_600_000_000, 1_600_000_060]] * 2, tf.int64),
        request_time=tf.constant([1_600_000_120] * 2, tf.int64),
        history_page=tf.constant([["home", "detail"], ["", ""]]),
        page=tf.constant(["home", "home"]),
    )
    items = answer["item_ids"].numpy()
    assert items[0, 0] == b"item-5"
    assert all(item.startswith(b"item-") for item in items[1])
    example = tf.train.Example()
    example.features.feature["history"].bytes_list.value.extend([b"item-3", b"item-4"])
    example.features.feature["history_page"].bytes_list.value.extend([b"home", b"detail"])
    times = example.features.feature["history_time"].int64_list.value
    times.extend([1_600_000_000, 1_600_000_060])
    example.features.feature["request_time"].int64_list.value.append(1_600_000_120)
    example.features.feature["page"].bytes_list.value.append(b"home")
    by_example = signatures["serving_default"](examples=tf.constant([example.SerializeToString()]))
    assert by_example["item_ids"].numpy()[0].tolist() == items[0].tolist()


@pytest.mark.needs("tfx")
def test_metrics_are_sliced_by_page_length_and_popularity(first):
    kinds = {name.partition("=")[0] for name in first.slices}
    assert kinds == {"page", "history_length", "target_popularity"}
    assert "target_popularity=top 100" in first.slices
    assert {"history_length=1-9"} <= set(first.slices)


@pytest.mark.needs("tfx")
def test_the_evaluators_metric_is_that_of_the_training_loop(place, first):
    """TFMA reads the served lists; the loop ranks in the graph. Both judge the last event."""
    folders = (place[0] / "root" / "artifacts" / "Trainer" / "model_run").glob("*/history.json")
    history = json.loads(max(folders, key=lambda p: int(p.parent.name)).read_text())
    best = max(history, key=lambda row: row["map_at_20"])
    assert first.metrics["recall_at_10"] == pytest.approx(best["recall_at_10"], abs=1e-6)


@pytest.mark.needs("tfx")
def test_a_model_below_its_threshold_is_not_pushed(place, first, tmp_path):
    """The same model, judged by events that it cannot foresee."""
    _, data, spec = place
    examples = stored.examples(first, "HistoryExampleGen")
    (file,) = (Path(examples.uri) / "Split-eval").iterdir()
    examples.uri = str(tmp_path / "examples")
    (tmp_path / "examples" / "Split-eval").mkdir(parents=True)
    judged = str(tmp_path / "examples" / "Split-eval" / "data-0.gz")
    with tf.io.TFRecordWriter(judged, "GZIP") as writer:
        for record in tf.data.TFRecordDataset(str(file), compression_type="GZIP"):
            example = tf.train.Example.FromString(record.numpy())
            example.features.feature["target"].bytes_list.value[:] = [b"item-0"]
            writer.write(example.SerializeToString())
    config = load_run_config("m3", "file", PIPELINE)
    reader = open_source(data, spec, "history")
    blessing, refusals = stored.evaluate(first, examples, config, reader.feature_spec(), tmp_path)
    assert not stored.blessed(blessing)
    (reason,) = refusals
    assert reason.startswith("recall_at_10 0.")
    assert reason.endswith(" misses its threshold on all examples")
    assert stored.push(stored.artifact(first, "Trainer", "model"), blessing, tmp_path) == []


def test_an_unknown_slice_is_told_before_anything_runs(place, tmp_path):
    _, data, spec = place
    config = load_run_config("m3", "file", [*PIPELINE, "evaluator.slices=[[country]]"])
    with pytest.raises(InputError, match="the data has no feature 'country'"):
        run_pipeline(config, data, tmp_path / "root", spec, progress=False)


@pytest.mark.needs("tfx")
def test_it_compiles_for_kubeflow(tmp_path, capsys):
    out = tmp_path / "m3.json"
    assert main(["pipeline", "compile", "m3", "--out", str(out)]) == 0, capsys.readouterr().err
    assert "HistoryExampleGen" in out.read_text()
