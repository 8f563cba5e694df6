"""The pipeline end to end on a small file: pushed, cached, refused, started warm."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import yaml

from tests.tfx_pipelines import stored
from tfrz.cli.main import main
from tfrz.data.records import open_source
from tfrz.errors import InputError
from tfrz.zoo.run_config import load_run_config
from tfx_pipelines.local_runner import run_pipeline

pytestmark = pytest.mark.needs("tfx")

SPEC = """
label: clicked
features:
  - {name: user}
  - {name: item, dtype: int64}
  - {name: group}
  - {name: tags, multivalent: true}
  - {name: price, kind: numeric, dtype: float32, log_offset: 1.0, standardize: true}
"""
SETTINGS = (
    "model.embedding_dim=4",
    "model.rank=2",
    "model.hidden_units=[8]",
    "trainer.epochs=6",
    "trainer.batch_size=64",
    "trainer.learning_rate=0.02",
    "trainer.ema_decay=null",
    "evaluator.slices=[[group]]",
    "evaluator.min_auc=0.6",
    "evaluator.min_slice_auc=0.2",
    "export.warmup_examples=2",
    # Enough rows that the AUC of the slice without a signal cannot be good by chance.
    "data.validation_fraction=0.3",
    "data.test_fraction=0",
)


def _write(path: Path, rows: int, items: int, seed: int) -> None:
    """Clicks that depend on item and price in group a, on nothing in group b; none in group c."""
    rng = np.random.default_rng(seed)
    effect = np.random.default_rng(99).normal(0, 2.0, 200)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["user", "item", "group", "tags", "price", "clicked"])
        for row in range(rows):
            item, price = int(rng.integers(items)), float(rng.exponential(5.0))
            group = "b" if rng.random() < 0.25 else "a"
            logit = effect[item] + 0.8 * (np.log1p(price) - 1.5) if group == "a" else 0.0
            tags = "|".join(f"t{t}" for t in rng.integers(0, 5, rng.integers(0, 3)))
            clicked = int(rng.random() < 1 / (1 + np.exp(-logit)))
            if row % 50 == 0:
                group, clicked = "c", 0
            user = f"u{rng.integers(30)}" if rng.random() > 0.05 else ""
            writer.writerow([user, item, group, tags, f"{price:.3f}", clicked])


class Place:
    """A pipeline root with its data."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.root = folder, folder / "root"
        self.data, self.features = folder / "clicks.csv", folder / "features.yaml"
        self.features.write_text(SPEC)
        _write(self.data, 3000, 30, seed=0)

    def run(self, *overrides: str):
        config = load_run_config("dcn_v2", "file", [*SETTINGS, *overrides])
        return run_pipeline(config, str(self.data), self.root, str(self.features), progress=False)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return Place(tmp_path_factory.mktemp("pipeline"))


@pytest.fixture(scope="module")
def first(place):
    return place.run()


def test_every_component_runs_and_the_model_is_pushed(place, first):
    names = [c.name for c in first.components]
    wanted = (
        "ReaderExampleGen StatisticsGen SchemaGen ExampleValidator Transform Resolver Trainer "
        "Evaluator Pusher"
    ).split()
    assert sorted(names) == sorted(wanted)
    assert {c.outcome for c in first.components if c.name != "Resolver"} == {"ran"}
    assert first.blessed, first.refusals
    assert first.refusals == []
    assert first.metrics["auc"] > 0.65
    assert set(first.slices) == {"group=a", "group=b", "group=c"}
    # A slice without a click has no AUC: it blocks no push, and is named.
    assert first.undefined == ["auc on group=c: all labels are equal"]
    assert np.isnan(first.slices["group=c"]["auc"])
    assert first.slices["group=a"]["auc"] > first.slices["group=b"]["auc"] + 0.1
    version = Path(first.pushed)
    assert version.name.isdigit()
    assert version.parent == place.root.resolve() / "serving" / "dcn_v2"
    assert (version / "assets" / "card.md").read_text().startswith("# dcn_v2")
    assert (version / "assets.extra" / "tf_serving_warmup_requests").exists()


def test_the_pushed_model_answers_raw_examples_and_raw_values_alike(first):
    signatures = tf.saved_model.load(first.pushed).signatures
    example = tf.train.Example()
    example.features.feature["user"].bytes_list.value.append(b"u3")
    example.features.feature["item"].int64_list.value.append(7)
    example.features.feature["group"].bytes_list.value.append(b"a")
    example.features.feature["tags"].bytes_list.value.extend([b"t1", b"t4"])
    example.features.feature["price"].float_list.value.append(2.5)
    sent = tf.constant([example.SerializeToString(), b""])
    by_example = signatures["serving_default"](examples=sent)["scores"].numpy()
    by_value = signatures["serving_raw"](
        user=tf.constant(["u3", ""]),
        item=tf.constant([7, np.iinfo(np.int64).min], tf.int64),
        group=tf.constant(["a", ""]),
        tags=tf.constant([["t1", "t4"], ["", ""]]),
        price=tf.constant([2.5, np.nan]),
    )["scores"].numpy()
    np.testing.assert_allclose(by_example, by_value, atol=1e-6)
    classes = signatures["classify"](inputs=sent)
    np.testing.assert_allclose(classes["scores"][:, 1], by_example, atol=1e-6)
    assert classes["classes"].numpy()[0].tolist() == [b"0", b"1"]
    np.testing.assert_allclose(signatures["regress"](inputs=sent)["outputs"], by_example, atol=1e-6)
    transformed = signatures["transform_features"](examples=sent)
    assert transformed["tags_xf"].shape[0] == 2
    assert transformed["user_xf"].numpy()[1] == 0
    assert 0 not in transformed["tags_xf"].numpy()[0]


@pytest.mark.slow
def test_the_same_input_again_comes_from_the_cache(place, first):
    again = place.run()
    outcomes = {c.name: c.outcome for c in again.components}
    for name in ("ReaderExampleGen", "StatisticsGen", "SchemaGen", "Transform", "Trainer"):
        assert outcomes[name] == "cached", name
    # The Evaluator runs: it now has a blessed model to compare with.
    assert again.blessed
    assert again.metrics["auc"] == pytest.approx(first.metrics["auc"], abs=1e-6)


def _judge(place, first, folder: Path, *overrides: str):
    config = load_run_config("dcn_v2", "file", [*SETTINGS, *overrides])
    reader = open_source(str(place.data), str(place.features), "impression")
    examples = stored.examples(first, "ReaderExampleGen")
    return stored.evaluate(first, examples, config, reader.feature_spec(), folder)


def test_a_model_below_its_threshold_is_not_pushed(place, first, tmp_path):
    blessing, refusals = _judge(place, first, tmp_path, "evaluator.min_auc=0.99")
    assert not stored.blessed(blessing)
    assert refusals == [
        f"auc {first.metrics['auc']:.4f} misses its threshold on all examples",
    ]
    assert stored.push(stored.artifact(first, "Trainer", "model"), blessing, tmp_path) == []


def test_a_model_above_its_threshold_is_pushed(place, first, tmp_path):
    blessing, refusals = _judge(place, first, tmp_path)
    assert stored.blessed(blessing) and refusals == []
    assert len(stored.push(stored.artifact(first, "Trainer", "model"), blessing, tmp_path)) == 1


@pytest.mark.slow
def test_an_undertrained_model_is_refused(place, first):
    pushed = sorted(p.name for p in Path(first.pushed).parent.iterdir())
    result = place.run("trainer.max_steps=1", "trainer.learning_rate=1e-6")
    outcomes = {c.name: c.outcome for c in result.components}
    # Transform reads nothing of the section `trainer`.
    assert outcomes["Transform"] == "cached" and outcomes["Trainer"] == "ran"
    assert not result.blessed
    assert result.pushed is None
    assert any(r.startswith("auc ") and "all examples" in r for r in result.refusals)
    assert sorted(p.name for p in Path(first.pushed).parent.iterdir()) == pushed


def test_a_model_that_is_bad_on_one_slice_only_is_refused(place, first, tmp_path):
    assert first.metrics["auc"] > 0.64
    blessing, refusals = _judge(place, first, tmp_path, "evaluator.min_slice_auc=0.64")
    assert not stored.blessed(blessing)
    assert [r.rpartition(" on ")[2] for r in refusals] == ["group=b"]


@pytest.mark.slow
def test_a_retrain_starts_from_the_blessed_model_with_a_grown_vocabulary(place, first):
    _write(place.data, 3000, 60, seed=1)
    result = place.run(
        "trainer.warm_start=latest_blessed",
        "trainer.max_steps=1",
        "trainer.learning_rate=1e-7",
        "evaluator.min_auc=0.5",
        "evaluator.max_auc_drop=0.5",
    )
    outcomes = {c.name: c.outcome for c in result.components}
    assert outcomes["ReaderExampleGen"] == "ran"  # the file has changed
    assert result.pushed and result.pushed != first.pushed
    old = json.loads((Path(first.pushed) / "assets" / "vocabularies.json").read_text())["item_xf"]
    new = json.loads((Path(result.pushed) / "assets" / "vocabularies.json").read_text())["item_xf"]
    assert set(old) < set(new)

    def rows(pushed: str) -> np.ndarray:
        reader = tf.train.load_checkpoint(f"{pushed}/variables/variables")
        name = "weights/embedding_item_xf-embeddings/.ATTRIBUTES/VARIABLE_VALUE"
        return reader.get_tensor(name)

    before, after = rows(first.pushed), rows(result.pushed)
    for term in old:
        np.testing.assert_allclose(
            after[1 + new.index(term)], before[1 + old.index(term)], atol=1e-5
        )
    unseen = next(term for term in new if term not in old)
    np.testing.assert_allclose(after[1 + new.index(unseen)], before[1 + len(old)], atol=1e-5)


@pytest.mark.slow
def test_too_many_corrupt_lines_end_the_run_with_file_and_line(place, tmp_path):
    broken = tmp_path / "broken.csv"
    lines = place.data.read_text().splitlines()
    for i in range(100, 140):
        lines[i] = "x,1,a"
    broken.write_text("\n".join(lines) + "\n")
    config = load_run_config("dcn_v2", "file", SETTINGS)
    with pytest.raises(InputError) as error:
        run_pipeline(config, str(broken), tmp_path / "root", str(place.features), progress=False)
    assert "broken.csv:101: 3 fields instead of 6 (one of 40 corrupt lines" in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "root" / "serving").exists()


def _trials(place) -> list[dict]:
    """The trials of the Tuner's last run."""
    stored = sorted((place.root / "artifacts" / "Tuner" / "tuner_results").glob("*/*"))
    return json.loads(stored[-1].read_text())


@pytest.mark.slow
def test_the_tuner_finds_a_configuration_of_the_space(place, first):
    config = load_run_config(
        "dcn_v2",
        "file",
        [
            *SETTINGS,
            "tuner.enabled=true",
            "tuner.max_trials=2",
            "trainer.epochs=1",
            "tuner.search_space={model.rank: [1, 3], model.hidden_units: [[8], [8, 4]],"
            " low_rank.rank: [2, 3]}",
            "low_rank.init=data",
        ],
    )
    result = run_pipeline(config, str(place.data), place.root, str(place.features), progress=False)
    assert "Tuner" in [c.name for c in result.components]
    stored = sorted((place.root / "artifacts" / "Tuner" / "best_hyperparameters").glob("*/*"))
    values = json.loads(stored[-1].read_text())["values"]
    assert values["model.rank"] in (1, 3)
    units = json.loads(values["model.hidden_units"])  # keras-tuner knows no lists.
    assert units in ([8], [8, 4])
    assert len(_trials(place)) == 2
    trained = sorted(
        (place.root / "artifacts" / "Trainer" / "model").glob("*"), key=lambda p: int(p.name)
    )
    used = (trained[-1] / "Format-Serving" / "assets" / "run_config.yaml").read_text()
    assert f"rank: {values['model.rank']}" in used
    assert yaml.safe_load(used)["model"]["hidden_units"] == units
    # The Trainer factorised the hidden layer at the rank that the Tuner found.
    weights = tf.train.load_checkpoint(str(trained[-1] / "Format-Serving/variables/variables"))
    factor = weights.get_tensor("weights/hidden_0-U/.ATTRIBUTES/VARIABLE_VALUE")
    assert factor.shape[1] == values["low_rank.rank"]
    reports = json.loads(next((place.root / "artifacts").rglob("low_rank.json")).read_text())
    ranks = {report["name"]: report["rank"] for report in reports}
    assert ranks["hidden_0"] == values["low_rank.rank"]


def test_a_search_of_what_the_examples_are_made_with_is_refused(place):
    space = "tuner.search_space={data.seed: [0, 1]}"
    with pytest.raises(InputError, match=r"data\.seed: the examples are made before the Tuner"):
        place.run("tuner.enabled=true", space)


def test_the_pipeline_compiles_for_kubeflow(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "dcn_v2.json"
    assert main(["pipeline", "compile", "dcn_v2", "--out", str(out)]) == 0, capsys.readouterr().err
    text = out.read_text()
    assert "gs://your-bucket/tfrz/serving/dcn_v2" in text
    spec = json.loads(text)
    tasks = (
        spec["pipelineSpec"]["root"]["dag"]["tasks"]
        if "pipelineSpec" in spec
        else spec["root"]["dag"]["tasks"]
    )
    assert {"Trainer", "Evaluator", "Pusher", "Transform"} <= set(tasks)
    assert [p.name for p in tmp_path.iterdir()] == ["dcn_v2.json"]
