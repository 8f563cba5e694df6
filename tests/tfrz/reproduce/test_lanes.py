"""The comparison of the lanes: what it judges, what it refuses, and one model on both."""

from __future__ import annotations

import dataclasses
import math
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

import tfrz
from tfrz.cli.main import main
from tfrz.errors import InputError
from tfrz.keras_versions import LANE
from tfrz.reproduce.experiment import Context, experiments, select
from tfrz.reproduce.lanes import lane, losses, metrics, saved_models, worker
from tfrz.reproduce.runs import Runs
from tfrz.training.batches import ArrayBatches
from tfrz.training.config import TrainerConfig
from tfrz.training.fit import build_model, fit, step_losses
from tfrz.zoo import registry
from tfrz.zoo.run_config import load_run_config

NAMES = ["reference", "newest"]


def other_lane() -> str | None:
    """The Python of the other lane: beside this environment, in this checkout, or named."""
    roots = (Path(tfrz.__file__).resolve().parent.parent, Path(sys.prefix).parent)
    named = os.environ.get("TFRZ_OTHER_LANE")
    folder = ".venv-newest" if LANE == "reference" else ".venv"
    places = [Path(named)] if named else [root / folder / "bin" / "python" for root in roots]
    return next((str(path) for path in places if path.is_file()), None)


# Digests.


def columns():
    return {
        "x": tf.constant([[1.0, 2.0], [3.0, 4.0]]),
        "r": tf.ragged.constant([[1, 2], [3]], dtype=tf.int64),
        "s": tf.constant(["a", "bc"]),
    }


def test_a_digest_depends_on_every_part_of_the_batches():
    same = worker.digest([columns()])
    assert same == worker.digest([dict(reversed(columns().items()))])
    others = {
        "value": {"x": tf.constant([[1.0, 2.0], [3.0, 4.000001]])},
        "dtype": {"x": tf.constant([[1.0, 2.0], [3.0, 4.0]], tf.float64)},
        "shape": {"x": tf.constant([[1.0, 2.0, 3.0, 4.0]])},
        "rows of ragged": {"r": tf.ragged.constant([[1], [2, 3]], dtype=tf.int64)},
        "strings": {"s": tf.constant(["ab", "c"])},
        "name": {"y": tf.constant(0)},
    }
    digests = {name: worker.digest([{**columns(), **change}]) for name, change in others.items()}
    assert len({same, *digests.values()}) == 1 + len(others), digests
    assert worker.digest([columns()] * 2) != same


def test_first_batches_are_those_of_the_epochs_in_order():
    batches = ArrayBatches({"x": np.arange(10)}, 3, seed=1)
    found = [batch["x"].numpy().tolist() for batch in worker.first_batches(batches, 5)]
    wanted = [b["x"].numpy().tolist() for e in (0, 1) for b in batches.epoch(e)]
    assert found == wanted[:5]


# The loss of each step.


class Line:
    """Fits y = a x: the smallest task of the loop."""

    objective = "mse"

    def lookup(self, model, batch):
        return batch

    def dense_loss(self, model, batch):
        return tf.square(model(batch["x"])[:, 0] - batch["y"]), tf.constant(0.0)

    def predict(self, model, batch):
        return {"error": tf.square(model(batch["x"])[:, 0] - batch["y"])}

    def metrics(self, outputs):
        return {"mse": float(np.mean(outputs["error"]))}


def test_step_losses_are_those_of_fit():
    import keras

    x = np.random.default_rng(0).normal(size=(12, 1)).astype(np.float32)
    config = TrainerConfig(epochs=3, batch_size=4, learning_rate=0.1, steps_per_call=3)
    config = TrainerConfig(**{**vars(config), "learning_rate_schedule": "cosine"})
    batches = ArrayBatches({"x": x, "y": 2 * x[:, 0]}, 4)

    def build():
        return build_model(
            lambda: keras.Sequential([keras.layers.Input((1,)), keras.layers.Dense(1)]), config
        )

    found = step_losses(build(), Line(), batches, config, 8)
    assert len(found) == 8
    history = fit(build(), Line(), batches, batches, config, None, False).history
    # The history has the mean of each epoch of three steps.
    np.testing.assert_allclose(
        np.reshape(found[:6], (2, 3)).mean(1), [row["loss"] for row in history[:2]], rtol=1e-5
    )


# What is judged.


def test_largest_difference_of_losses():
    assert losses.largest_difference([1.0, 2.0], [1.0, 2.0]) == (0.0, 1)
    difference, step = losses.largest_difference([1.0, 2.0, 4.0], [1.0, 2.2, 4.1])
    assert (round(difference, 4), step) == (0.0909, 2)
    assert losses.largest_difference([0.0], [0.0]) == (0.0, 1)
    assert losses.largest_difference([1.0], [1.0, 2.0])[0] == math.inf
    assert losses.largest_difference([1.0, math.nan], [1.0, math.nan]) == (math.inf, 2)


def loss_rows(**changed):
    rows = {
        name: {"losses": [2.0, 1.0], "digest": "d", "key": {"do": "losses", "lane": name}}
        for name in NAMES
    }
    rows["newest"].update(changed)
    return {"m3": rows}


@pytest.mark.parametrize(
    ("changed", "held"),
    [
        ({}, [True, True]),
        ({"losses": [2.0, 1.0009]}, [True, True]),
        ({"losses": [2.0, 1.002]}, [True, False]),
        ({"digest": "e"}, [False, True]),
        ({"unfinished": "stopped after 9 s"}, [False, False]),
    ],
)
def test_losses_are_judged(changed, held):
    outcome = losses.judge(loss_rows(**changed), 2, NAMES)
    assert [check.held for check in outcome.checks] == held
    assert all(len(row) == len(outcome.columns) for row in outcome.rows)
    if "unfinished" in changed:
        assert "newest lane: stopped after 9 s" in outcome.checks[1].line


def test_difference_of_means():
    found = metrics.difference([1.0, 3.0], [4.0, 6.0])
    assert found.means == (2.0, 5.0) and found.errors == (1.0, 1.0)
    assert found.errors_apart == pytest.approx(3 / math.sqrt(2))
    assert metrics.difference([1.0, 1.0], [1.0, 1.0]).errors_apart == 0.0
    assert metrics.difference([1.0, 1.0], [2.0, 2.0]).errors_apart == math.inf
    assert not metrics.difference([1.0, math.nan], [1.0, 1.0]).errors_apart <= 3


def metric_rows(shift, **changed):
    rows = [
        {
            "key": {"do": "metrics", "model": "m3", "lane": name},
            "objective": "map",
            "metrics": {"map": 0.5 + 0.01 * seed + (shift if name == "newest" else 0.0)},
        }
        for name in NAMES
        for seed in range(5)
    ]
    rows[0].update(changed)
    return rows


@pytest.mark.parametrize(
    ("shift", "changed", "held"),
    [
        (0.0, {}, True),
        (0.02, {}, True),
        (0.04, {}, False),
        (math.nan, {}, False),
        (0.0, {"unfinished": "stopped after 9 s"}, False),
    ],
)
def test_metrics_are_judged(shift, changed, held):
    outcome = metrics.judge(metric_rows(shift, **changed), NAMES)
    assert [check.held for check in outcome.checks] == [held]
    assert all(len(row) == len(outcome.columns) for row in outcome.rows)


def test_differences_of_answers():
    home = {
        "scores": np.array([1.0, -2.0, -np.inf], np.float32),
        "ids": np.array([b"a", b"b"]),
    }

    def away(**changed):
        return saved_models.answer_difference(home, {**home, **changed})

    assert away() == (0.0, True)
    difference, equal = away(scores=np.array([1.0, -2.1, -np.inf], np.float32))
    assert difference == pytest.approx(0.05, rel=1e-3) and equal
    assert away(ids=np.array([b"b", b"a"])) == (0.0, False)
    assert away(scores=np.array([1.0, -2.0, 0.0], np.float32))[0] == math.inf
    assert away(scores=np.array([1.0, -2.0], np.float32))[0] == math.inf
    assert away(more=np.zeros(1))[0] == math.inf


GOOD = {"difference": 1e-7, "ids_equal": True}


@pytest.mark.parametrize("source", NAMES)
def test_saved_models_that_load_are_judged_in_both_directions(source):
    assert saved_models.check_direction(source, {"m3": GOOD}).held is True
    far, ids = {**GOOD, "difference": 1e-4}, {**GOOD, "ids_equal": False}
    for wrong in (far, ids):
        check = saved_models.check_direction(source, {"m3": GOOD, "dcn_v2": wrong})
        assert check.held is False and "other answers: dcn_v2" in check.line
        # An error elsewhere does not excuse it.
        both = {"m3": {"failed": "no such op"}, "dcn_v2": wrong}
        assert saved_models.check_direction(source, both).held is False


def test_a_saved_model_that_does_not_load_fails_only_where_tensorflow_promises_it():
    found = {"m3": {"failed": "no such op"}, "dcn_v2": GOOD}
    older = saved_models.check_direction("reference", found)
    newer = saved_models.check_direction("newest", found)
    assert (older.held, newer.held) == (False, None)
    assert "promises that they load" in older.line and "m3: no such op" in older.line
    assert newer.line.startswith("not judged") and "does not promise" in newer.line


def test_keras_files_are_judged_where_keras_loads_them():
    found = {"Cross": {"error": 1e-7}, "Dense": {"refused": "TypeError: batch_shape"}}
    check = saved_models.check_keras_files("newest", found)
    assert check.held is True and "Keras refuses Dense" in check.line
    wrong = {**found, "Cross": {"error": 0.1}}
    assert saved_models.check_keras_files("newest", wrong).held is False
    refused = {"Dense": found["Dense"]}
    assert saved_models.check_keras_files("newest", refused).held is None
    table = saved_models.table({n: {"m3": GOOD} for n in NAMES}, dict.fromkeys(NAMES, found))
    assert len(table) == 6 and all(len(row) == 6 for row in table)


# Tasks of the worker.


def test_every_model_has_a_size_that_is_an_option_of_its_data():
    size = {**metrics.EXPERIMENT.full}
    for model in registry.names():
        overrides = metrics.overrides(model, size)
        assert len(overrides) == 2, model
        config = load_run_config(model, "simulated", overrides)
        assert config.trainer.max_steps == size["steps"]


def test_raw_features_of_examples():
    example = tf.train.Example()
    example.features.feature["item"].bytes_list.value.extend([b"a", b"b"])
    example.features.feature["time"].int64_list.value.append(7)
    signature = {
        "item": tf.TensorSpec([None, None], tf.string),
        "time": tf.TensorSpec([None], tf.int64),
        "age": tf.TensorSpec([None], tf.float32),
    }
    empty = tf.train.Example()
    examples = [example.SerializeToString(), empty.SerializeToString()]
    found = worker.raw_features(examples, signature)
    assert found["item"].numpy().tolist() == [[b"a", b"b"], [b"", b""]]
    assert found["time"].numpy().tolist() == [7, np.iinfo(np.int64).min]
    assert np.isnan(found["age"].numpy()).all() and found["age"].shape == (2,)


def test_keras_files_of_this_lane_load_on_it(tmp_path):
    names = worker.keras_save(str(tmp_path))["names"]
    found = worker.keras_load(str(tmp_path))["models"]
    assert list(found) == names
    assert all(row.get("error", 1.0) <= saved_models.BOUND for row in found.values()), found


# Options.


def test_a_group_alone_names_all_its_experiments():
    names = [experiment.name for experiment in select(["lanes"])]
    assert names == ["lanes/losses", "lanes/metrics", "lanes/saved_models"]
    groups = {name.partition("/")[0] for name in experiments()}
    for group in groups:
        assert select([group]) == select([f"{group}/*"])
    with pytest.raises(InputError, match="did you mean 'lanes'"):
        select(["lane"])


def made_python(folder: Path) -> Path:
    path = folder / "bin" / "python"
    path.parent.mkdir(parents=True)
    path.write_text("#!/bin/sh\nexit 3\n")
    path.chmod(0o755)
    return path


def test_the_other_python_is_the_environment_that_is_not_this_one(tmp_path):
    with pytest.raises(InputError, match="--other-lane"):
        lane.other_python(None, "reference", tmp_path, sys.prefix)
    old, new = made_python(tmp_path / ".venv"), made_python(tmp_path / ".venv-newest")
    for this, wanted in (("reference", new), ("newest", old)):
        own = str((old if this == "reference" else new).parent.parent)
        assert lane.other_python(None, this, tmp_path, own) == str(wanted)
        assert lane.other_python(None, this, tmp_path, sys.prefix) == str(wanted)
    assert lane.other_python(str(new), "newest", tmp_path, sys.prefix) == str(new)
    with pytest.raises(InputError, match="no such file"):
        lane.other_python(str(tmp_path / "none"), "reference", tmp_path, sys.prefix)


def lanes_of(first, second, source="s"):
    versions = {"keras": "1"}
    return lane.Lane(first, "a", versions, "s"), lane.Lane(second, "b", versions, source)


def test_lanes_must_differ_in_keras_and_in_nothing_of_ours():
    assert list(lane.checked(*lanes_of("newest", "reference"))) == NAMES
    with pytest.raises(InputError, match="--other-lane"):
        lane.checked(*lanes_of("newest", "newest"))
    with pytest.raises(InputError, match="another tfrz"):
        lane.checked(*lanes_of("newest", "reference", "t"))


@pytest.mark.slow
def test_bad_other_lanes_are_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = ["reproduce", "lanes/losses", "--quick", "--work", str(tmp_path / "work")]
    broken = str(made_python(tmp_path / "broken"))
    for more, says in (
        ([], "--other-lane PYTHON"),
        (["--other-lane", "nowhere"], "no such file"),
        (["--other-lane", broken], "cannot run tfrz"),
        (["--other-lane", sys.executable], "name a Python of the other lane"),
    ):
        assert main([*arguments, *more]) == 2
        lines = [x for x in capsys.readouterr().err.splitlines() if says in x]
        assert len(lines) == 1, more


@pytest.mark.slow
def test_a_task_that_is_stopped_is_recorded_and_tried_again(tmp_path):
    path, calls = tmp_path / "runs.jsonl", []
    key = {"do": "about", "lane": "newest", "versions": {}, "source": "s"}

    def run(key):
        calls.append(key)
        return lane.capped({"newest": sys.executable}, 0.05 if len(calls) == 1 else 60, key)

    (row,) = Runs(path).all(run, [key], 1, lambda line: None)
    assert row["unfinished"] == "stopped after 0.05 s"
    assert lane.unfinished([row]) == "about of layers on the newest lane: stopped after 0.05 s"
    for _ in range(2):
        (row,) = Runs(path).all(run, [key], 1, lambda line: None)
        assert row["lane"] == LANE and lane.unfinished([row]) == ""
    assert len(calls) == 2


def test_a_task_that_fails_says_why():
    task = {
        "do": "losses",
        "model": "nothing",
        "overrides": [],
        "steps": 1,
        "weights": "",
        "write": True,
    }
    with pytest.raises(lane.TaskError, match="unknown model 'nothing'"):
        lane.run_task(sys.executable, task, 120)


# The other lane itself.


@pytest.mark.slow
def test_one_model_has_the_same_losses_on_both_lanes(tmp_path, monkeypatch):
    python = other_lane()
    if python is None:
        pytest.skip("there is no environment of the other lane")
    sizes = {"steps": 3, "models": ("dcn_v2",), "cap_s": 240}
    experiment = dataclasses.replace(losses.EXPERIMENT, full=sizes, quick={})
    says = []
    context = Context(False, 3, None, tmp_path, says.append, other_lane=python)
    outcome = experiment.run(context)
    assert outcome.held and len(outcome.rows) == 1, outcome
    assert len(outcome.details["losses"]["dcn_v2"]["newest"]) == 3
    assert any(line.startswith("newest: Python") for line in says)


@pytest.mark.slow
def test_one_model_answers_alike_on_both_lanes(tmp_path):
    python = other_lane()
    if python is None:
        pytest.skip("there is no environment of the other lane")
    full = {**saved_models.EXPERIMENT.full, "steps": 2, "models": ("dcn_v2",)}
    experiment = dataclasses.replace(saved_models.EXPERIMENT, full=full, quick={})
    outcome = experiment.run(Context(False, 0, None, tmp_path, print, other_lane=python))
    saved = [row for row in outcome.rows if row[0] == "SavedModel, dcn_v2"]
    assert [row[1] for row in saved] == NAMES and [row[-1] for row in saved] == ["", ""]
    assert outcome.held, [check.line for check in outcome.checks]
