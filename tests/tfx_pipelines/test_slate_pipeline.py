"""The pipeline on lists: a pushed model that re-ranks, metrics and slices, a refusal."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tests.tfrz.zoo.test_slate_task import _write
from tfrz.cli.main import main
from tfrz.data.columns import to_examples
from tfrz.data.lists.elwc import to_elwc
from tfrz.data.lists.examples import build_lists
from tfrz.data.records import open_source
from tfrz.data.sources.reader import read_table
from tfrz.metrics.slates import of_slate
from tfrz.zoo import registry
from tfrz.zoo.run_config import load_run_config

pytestmark = [pytest.mark.slow, pytest.mark.needs("tfx")]

SETTINGS = (
    # Everything that is held out judges.
    "data.test_fraction=0",
    "data.validation_fraction=0.3",
    "model.units=8",
    "trainer.batch_size=32",
    "trainer.epochs=1",
    "trainer.tensorboard=false",
    "export.warmup_examples=2",
)
SIMULATED = (
    *SETTINGS,
    "data.options={queries: 200, length: 6}",
    "data.lists.length=6",
    "evaluator.min_metrics={ndcg_at_10: 0.3, map: 0.1}",
)
# Lists of 1 to 8 candidates, none longer than the model takes; a threshold out of reach.
OWN = (
    *SETTINGS,
    "data.lists.length=8",
    "evaluator.slices=[[list_length], [query_frequency], [page]]",
    "evaluator.min_metrics={ndcg_at_10: 0.999, map: 0.1}",
)


class Run:
    """What `tfrz pipeline run` did, and the lists that it judged by."""

    def __init__(self, root: Path, settings, data: str = "simulated", features=None) -> None:
        self.root = root
        command = ["pipeline", "run", "seq2slate", "--root", str(root), "--data", data]
        command += ["--features", features] if features else []
        command += [part for value in settings for part in ("--set", value)]
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            self.status = main([*command, "--json", "--quiet"])
        self.result = json.loads(printed.getvalue())
        config = load_run_config("seq2slate", data.partition(":")[0], settings)
        reader = open_source(data, features, "list", **config.data.options)
        self.spec, self.lists = reader.feature_spec(), config.data.lists
        self.parts = build_lists(
            read_table(reader)[0],
            self.spec,
            config.data.lists,
            (config.data.validation_fraction, 0.0),
            config.data.seed,
            with_test=False,
        )

    def slates(self, version: Path) -> list[np.ndarray]:
        """The labels of the eval split's lists in the order of their slates."""
        signature = tf.saved_model.load(str(version)).signatures["serving_default"]
        table = self.parts["validation"]
        answer = signature(examples=tf.constant(to_examples(table, self.spec, table.num_rows)))
        positions = answer["positions"].numpy()
        labels = table[self.spec.label].to_pylist()
        return [np.array(y)[p[p >= 0]] for y, p in zip(labels, positions, strict=True)]


@pytest.fixture(scope="module")
def pushed(tmp_path_factory) -> Run:
    return Run(tmp_path_factory.mktemp("slate-pipeline") / "root", SIMULATED)


@pytest.fixture(scope="module")
def refused(tmp_path_factory) -> Run:
    folder = tmp_path_factory.mktemp("own-pipeline")
    data, features = _write(folder, queries=150)
    return Run(folder / "root", OWN, data, features)


def _means(slates: list[np.ndarray], max_grade: float) -> dict[str, float]:
    return {
        name: float(np.nanmean([of_slate(name, slate, max_grade) for slate in slates]))
        for name in registry.SLATE.metrics
    }


def _trained(run: Run) -> Path:
    """The model that the Trainer wrote."""
    folders = (run.root / "artifacts" / "Trainer" / "model").glob("*/Format-Serving")
    return max(folders, key=lambda p: int(p.parent.name))


def test_documents_become_a_pushed_model_that_re_ranks(pushed):
    names = {component["name"] for component in pushed.result["components"]}
    assert {"ListExampleGen", "Transform", "Trainer", "Evaluator", "Pusher"} <= names
    assert pushed.status == 0 and pushed.result["blessed"], pushed.result["refusals"]
    version = Path(pushed.result["pushed"])
    assert version.parent == pushed.root.resolve() / "serving" / "seq2slate"
    assert (version / "assets.extra" / "tf_serving_warmup_requests").exists()
    signatures = tf.saved_model.load(str(version)).signatures
    rows = pushed.parts["validation"].slice(0, 5)
    ids = rows["candidates"].to_pylist()
    raw = {f.name: tf.constant(rows[f.name].to_pylist()) for f in pushed.spec.candidate}
    raw |= {"candidates": tf.constant(ids), "query": tf.constant(["never asked"] * 5)}
    answer = signatures["rerank"](**raw)
    for row in range(5):
        places = answer["positions"].numpy()[row]
        assert sorted(places) == list(range(6))
        assert answer["item_ids"].numpy()[row].tolist() == [ids[row][p] for p in places]
    elwc = tf.constant(to_elwc(rows, pushed.spec))
    examples = tf.constant(to_examples(rows, pushed.spec, 5))
    for other in (
        signatures["rerank_elwc"](elwc=elwc),
        signatures["serving_default"](examples=examples),
    ):
        np.testing.assert_array_equal(other["positions"], answer["positions"])


def test_the_evaluators_metrics_are_those_of_the_served_slates(pushed):
    slates = pushed.slates(Path(pushed.result["pushed"]))
    assert pushed.result["metrics"]["example_count"] == len(slates)
    for name, value in _means(slates, 1.0).items():
        assert pushed.result["metrics"][name] == pytest.approx(value, abs=1e-6), name


def test_the_evaluators_metrics_are_the_training_loops(pushed):
    folders = (pushed.root / "artifacts" / "Trainer" / "model_run").glob("*/history.json")
    history = json.loads(max(folders, key=lambda p: int(p.parent.name)).read_text())
    best = max(history, key=lambda row: row["ndcg_at_10"])
    for name in registry.SLATE.metrics:
        assert pushed.result["metrics"][name] == pytest.approx(best[name], abs=1e-6), name


def test_metrics_are_sliced_by_length_and_by_frequency(pushed):
    slices = pushed.result["slices"]
    # No query of the eval split was seen in training.
    assert set(slices) == {"list_length=2-9", "query_frequency=unknown"}
    for values in slices.values():
        for name in registry.SLATE.metrics:
            assert values[name] == pytest.approx(pushed.result["metrics"][name], abs=1e-9)


def test_a_model_below_its_threshold_is_not_pushed(refused):
    assert refused.status == 1
    assert not refused.result["blessed"] and refused.result["pushed"] is None
    assert len(refused.result["refusals"]) == 1
    assert refused.result["refusals"][0].startswith("ndcg_at_10 ")
    assert not list(refused.root.glob("serving/seq2slate/*"))


def test_metrics_of_lists_of_any_length_are_those_of_the_served_slates(refused):
    slates = refused.slates(_trained(refused))
    assert {len(slate) for slate in slates} == set(range(1, 9))
    assert refused.result["metrics"]["example_count"] == len(slates)
    for name, value in _means(slates, 4.0).items():
        assert refused.result["metrics"][name] == pytest.approx(value, abs=1e-6), name


def test_slices_are_the_metrics_of_their_lists(refused):
    slates = refused.slates(_trained(refused))
    pages = refused.parts["validation"]["page"].to_pylist()
    chosen = {
        "list_length=1": [s for s in slates if len(s) == 1],
        "list_length=2-9": [s for s in slates if len(s) > 1],
        "page=home": [s for s, page in zip(slates, pages) if page == [b"home"]],
        "page=search": [s for s, page in zip(slates, pages) if page == [b"search"]],
    }
    assert set(refused.result["slices"]) >= {*chosen, "query_frequency=unknown"}
    for key, some in chosen.items():
        found = refused.result["slices"][key]
        assert found["example_count"] == len(some)
        for name, value in _means(some, 4.0).items():
            assert found[name] == pytest.approx(value, abs=1e-6), (key, name)
