"""Training with weights: stages, what each leaves alone, a killed run, and what is refused."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tfrz.errors import ConfigError, InputError
from tfrz.training import fit as loop
from tfrz.training.batches import ArrayBatches
from tfrz.training.density_weighting import (
    WeightingConfig,
    example_weights,
    fit_weighted,
    inverse_frequency_weights,
    item_densities,
    updated_weights,
)
from tfrz.zoo import registry
from tfrz.zoo.run_config import load_run_config
from tfrz.zoo.tasks.retrieval import RetrievalInputs

ITEMS, LENGTH, BATCH = 20, 5, 32
SETTINGS = (
    "model={user_tower: shallow, num_interests: 2, dim: 4, item_layers: 1, num_negatives: 5}",
    "weighting={kind: density, iterations: 2, epochs: 2, samples: 300, components: null, "
    "tolerance: 1e-6, metric: recall_at_10_tail}",
    f"trainer.batch_size={BATCH}",
    "trainer.epochs=2",
    "trainer.learning_rate=0.02",
    "trainer.steps_per_call=4",
    "trainer.tensorboard=false",
    "export.drop_seen=false",
)


# Dropout and positions too: all that has a state.
DEEP = ("model.user_tower=deep", "model.dropout=0.1", "trainer.checkpoint_every_steps=7")


def _columns(rows: int, seed: int) -> dict[str, np.ndarray]:
    """Groups of five items, the first of each far more often; some targets are not known."""
    rng = np.random.default_rng(seed)
    places = rng.choice(5, (rows, LENGTH + 1), p=[0.6, 0.2, 0.1, 0.05, 0.05])
    items = 1 + 5 * rng.integers(0, 4, rows)[:, None] + places
    items[rng.random(items.shape) < 0.03] = ITEMS + 1
    history = np.where(np.arange(LENGTH) < rng.integers(0, 4, rows)[:, None], 0, items[:, 1:])
    return {"history_xf": history.astype(np.int64), "target_xf": items[:, 0].astype(np.int64)}


def _sets() -> tuple[ArrayBatches, ArrayBatches]:
    return ArrayBatches(_columns(10 * BATCH, 0), BATCH, seed=3), ArrayBatches(_columns(200, 1), 128)


def _task(*more: str):
    entry = registry.get("multi_interest")
    return entry.new_task(load_run_config("multi_interest", "none", [*SETTINGS, *more]))


def _model(task):
    inputs = RetrievalInputs(ITEMS, ITEMS + 2, LENGTH, {}, (), "left")
    return loop.build_model(lambda: task.build(inputs), task.config.trainer)


class _Run:
    """A run, and what the model was after each of its stages."""

    def __init__(self, *more: str, directory: Path | None = None, task=None, model=None) -> None:
        self.task = task or _task(*more)
        self.model = model or _model(self.task)
        self.train, validation = _sets()
        self.after: dict[str, list[np.ndarray]] = {}
        self.items: dict[str, list[np.ndarray]] = {}
        self.weights: dict[str, np.ndarray] = {}
        self.result = fit_weighted(
            self.model,
            self.task,
            self.train,
            validation,
            self.task.config.trainer,
            directory,
            progress=False,
            after_stage=self._look,
        )

    def _look(self, name, model) -> None:
        self.after[name] = model.get_weights()
        self.items[name] = [w.numpy() for layer in model.item_tower for w in layer.weights]
        self.weights[name] = model.target_weights.numpy()

    @property
    def counts(self) -> np.ndarray:
        """How often each item is a target."""
        targets = self.train.columns()["target_xf"][: 10 * BATCH]
        return np.bincount(targets, minlength=ITEMS + 2)[1 : ITEMS + 1]


def _same(first, second) -> None:
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)


def _differ(first, second) -> bool:
    return any(not np.array_equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.fixture(scope="module")
def density(tmp_path_factory):
    """A run with density weighting and calibration, and its folder."""
    folder = tmp_path_factory.mktemp("weighted")
    return _Run(*DEEP, directory=folder), folder


@pytest.fixture(scope="module")
def plain():
    """The same run without weights."""
    return _Run(*DEEP, "weighting.kind=none")


@pytest.fixture(scope="module")
def frequency(tmp_path_factory):
    """A run with weights by frequency, averaged, and its folder."""
    folder = tmp_path_factory.mktemp("frequency")
    settings = ("weighting.kind=frequency", "trainer.epochs=1", "trainer.ema_decay=0.9")
    return _Run(*settings, directory=folder), folder


STAGES = ["train", "density0", "density1", "calibrate"]


def test_the_stages_are_those_of_the_recipe(density, plain):
    assert list(density[0].after) == STAGES
    assert list(plain.after) == ["train"]
    for before, after in itertools.pairwise(STAGES):
        assert _differ(density[0].after[before], density[0].after[after])


def test_invariant_7_the_first_stage_is_the_unweighted_run_to_the_bit(density, plain):
    _same(density[0].after["train"], plain.after["train"])
    first = [row for row in density[0].result.history if row["stage"] == "train"]
    assert [{k: v for k, v in r.items() if k != "stage"} for r in first] == plain.result.history
    known = density[0].counts > 0
    np.testing.assert_array_equal(density[0].weights["train"][1 : ITEMS + 1], known.astype("f4"))


def test_without_weights_it_is_the_plain_loop_to_the_bit(plain):
    task = _task(*DEEP, "weighting.kind=none")
    model = _model(task)
    train, validation = _sets()
    task.start(model, train)
    loop.fit(model, task, train, validation, task.config.trainer, None, progress=False)
    _same(
        [w.numpy() for w in model.trainable_variables],
        [w.numpy() for w in plain.model.trainable_variables],
    )


def test_the_first_weights_of_a_model_that_brings_others_are_one(plain):
    """As after a warm start from a model that was trained with weights."""
    task = _task(*DEEP, "weighting.kind=none")
    model = _model(task)
    model.target_weights.assign(np.full(ITEMS + 2, 7, "f4"))
    model.target_counts.assign(np.full(ITEMS + 2, 7, "f4"))
    _same(_Run(task=task, model=model).after["train"], plain.after["train"])


@pytest.mark.parametrize("kind", ["density", "frequency"])
def test_invariant_10_calibration_moves_no_bit_of_the_item_tower(kind, request):
    run, _ = request.getfixturevalue(kind)
    before = list(run.after)[-2]
    assert list(run.after)[-1] == "calibrate"
    _same(run.items["calibrate"], run.items[before])
    assert len(run.items[before]) == 3  # The table, and kernel and bias of the MLP.
    item_weights = {id(w) for layer in run.model.item_tower for w in layer.weights}
    users = [id(w) not in item_weights and w.trainable for w in run.model.weights]
    moved = [
        not np.array_equal(a, b)
        for a, b, user in zip(run.after[before], run.after["calibrate"], users, strict=True)
        if user
    ]
    assert all(moved) and len(moved) >= 3


def test_the_item_tower_can_be_trained_again_afterwards(frequency):
    run = frequency[0]
    assert all(layer.trainable for layer in run.model.item_tower)
    assert len(run.model.trainable_variables) == len(_model(run.task).trainable_variables)
    task = _task("trainer.epochs=1", "weighting={kind: none}")
    before = [w.numpy() for layer in run.model.item_tower for w in layer.weights]
    model = _model(task)
    model.set_weights(run.model.get_weights())
    model.item_mlp[0].trainable = False
    again = _Run(task=task, model=model)
    assert _differ(again.items["train"][:1], before[:1])
    _same(again.items["train"][1:], before[1:])
    assert not model.item_mlp[0].trainable  # What was frozen stays so.


def test_a_calibration_that_ends_badly_leaves_the_item_tower_as_it_was():
    class Stopped(Exception):
        pass

    def stop(name, model):
        if name == "calibrate":
            assert not any(layer.trainable for layer in model.item_tower)
            raise Stopped

    task = _task("weighting.kind=frequency", "trainer.epochs=1")
    model = _model(task)
    with pytest.raises(Stopped):
        fit_weighted(model, task, *_sets(), task.config.trainer, None, False, stop)
    assert all(layer.trainable for layer in model.item_tower)


def test_the_run_is_the_recipe_written_out_by_hand(density):
    """One optimiser goes on through the iterations; the calibration has a new, slower one."""
    task = _task(*DEEP)
    model, config, weighting = _model(task), task.config.trainer, task.weighting
    train, validation = _sets()
    task.start(model, train)
    counts = model.target_counts.numpy()[1 : ITEMS + 1].astype("f8")
    np.testing.assert_array_equal(counts, density[0].counts)
    assert (counts > 0).all()

    def weigh(omega):
        model.target_weights.assign(np.concatenate([[0], omega, [0]]).astype("f4"))

    def run(settings, optimizer=None):
        done = loop.fit(model, task, train, validation, settings, None, False, optimizer=optimizer)
        return done.optimizer

    weigh(np.ones(ITEMS))
    optimizer = run(config)
    settings = dataclasses.replace(
        config, epochs=2, early_stopping_patience=1, early_stopping_metric="recall_at_10_tail"
    )
    weights = counts / counts.sum()
    for iteration in range(2):
        rho = item_densities(model.item_embeddings(), weights, weighting, iteration)
        weights = updated_weights(weights, rho, weighting.momentum)
        weigh(example_weights(weights, counts, weighting.max_weight))
        optimizer = run(settings, optimizer)
        _same(model.get_weights(), density[0].after[f"density{iteration}"])
    assert int(optimizer.iterations) == 60
    weigh(np.ones(ITEMS))
    for layer in model.item_tower:
        layer.trainable = False
    run(dataclasses.replace(config, learning_rate=0.002, early_stopping_patience=1))
    _same(model.get_weights(), density[0].after["calibrate"])


def test_weights_are_one_in_the_mean_and_unknown_targets_weigh_nothing(density):
    run = density[0]
    for stage in STAGES:
        weights = run.weights[stage]
        assert weights[0] == 0 and weights[ITEMS + 1] == 0
        mean = (weights[1 : ITEMS + 1] * run.counts).sum() / run.counts.sum()
        assert mean == pytest.approx(1.0, abs=1e-6)
    assert run.weights["density1"][1 : ITEMS + 1].std() > 0.1
    np.testing.assert_array_equal(run.weights["calibrate"], run.weights["train"])


def test_files_of_a_run(density):
    run, folder = density
    assert {"stages", "history.json", "weighting.json", "curves.png"} <= {
        p.name for p in folder.iterdir()
    }
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert [p.name for p in sorted((folder / "stages").iterdir())] == [
        f"{i}-{name}" for i, name in enumerate(STAGES)
    ]
    history = json.loads((folder / "history.json").read_text())
    assert history == run.result.history
    assert list(dict.fromkeys(row["stage"] for row in history)) == STAGES
    steps, epochs = ([row[name] for row in history] for name in ("step", "epoch"))
    assert steps == sorted(set(steps)) and epochs == sorted(set(epochs))
    assert run.result.steps_run == steps[-1] and run.result.epochs_run == epochs[-1]
    calibrated = [row for row in history if row["stage"] == "calibrate"]
    best = max(calibrated, key=lambda row: row["recall_at_50"])
    assert run.result.best["cross_entropy"] in [
        row["cross_entropy"] for row in calibrated if row["recall_at_50"] == best["recall_at_50"]
    ]
    moves = json.loads((folder / "weighting.json").read_text())
    assert [move["iteration"] for move in moves] == [0, 1]
    for i, move in enumerate(moves):
        assert move["largest_move"] > 1e-6
        largest = run.weights[f"density{i}"].max()
        assert move["largest_weight"] == pytest.approx(largest, rel=1e-6)
        omega = run.weights[f"density{i}"][1 : ITEMS + 1].astype("f8")
        size = (omega * run.counts).sum() ** 2 / (omega**2 * run.counts).sum()
        assert move["effective_sample_size"] == pytest.approx(size, rel=1e-5)


def test_by_frequency_every_item_weighs_the_same_in_all():
    run = _Run("weighting={kind: frequency, max_weight: null, calibrate: false}")
    assert list(run.after) == ["train"]
    weights = run.weights["train"][1 : ITEMS + 1]
    np.testing.assert_allclose(weights * run.counts, run.counts.sum() / ITEMS, rtol=1e-6)
    np.testing.assert_allclose(weights, inverse_frequency_weights(run.counts), rtol=1e-6)


def test_by_frequency_with_calibration_there_are_two_stages(frequency):
    run, folder = frequency
    assert list(run.after) == ["train", "calibrate"]
    assert json.loads((folder / "weighting.json").read_text()) == []
    np.testing.assert_array_equal(run.weights["calibrate"][1 : ITEMS + 1], run.counts > 0)
    expected = inverse_frequency_weights(run.counts, 20.0)
    np.testing.assert_allclose(run.weights["train"][1 : ITEMS + 1], expected, rtol=1e-6)


def test_the_loss_is_that_of_the_weighted_examples():
    """By hand: a weight of nothing leaves an example out, one of two counts it twice."""
    task = _task("model.num_negatives=0", "weighting.kind=none")
    model = _model(task)
    batch = {k: tf.constant(v[:BATCH]) for k, v in _columns(BATCH, 5).items()}
    equal, _ = task.dense_loss(model, task.lookup(model, batch))
    omega = np.linspace(0, 2, ITEMS + 2).astype("f4")
    model.target_weights.assign(omega)
    weighted, _ = task.dense_loss(model, task.lookup(model, batch))
    targets = batch["target_xf"].numpy()
    known = targets <= ITEMS
    assert 0 < known.sum() < BATCH
    expected = np.where(known, omega[targets], 0) * equal.numpy()
    np.testing.assert_allclose(weighted, expected, rtol=1e-5)
    assert not equal.numpy()[~known].any() and (equal.numpy()[known] > 0).all()


def test_weights_that_do_not_move_end_the_iterations(tmp_path):
    run = _Run("weighting.momentum=1", "trainer.epochs=1", directory=tmp_path)
    assert list(run.after) == ["train", "calibrate"]
    assert json.loads((tmp_path / "weighting.json").read_text()) == []


def test_an_iteration_ends_with_the_first_epoch_that_is_no_better():
    class Scripted(type(_task())):
        """Metrics that fall and rise as the test wants it."""

        script = iter(
            [(0.1, 9), (0.2, 9)]  # train: two epochs.
            + [(0, 0.5), (0, 0.6), (0, 0.6)]  # density0: the third is no better.
            + [(9, 0.4), (9, 0.3)]  # density1: the second.
            + [(0.5, 9), (0.4, 9)]  # calibrate: by the task's own metric.
        )

        def metrics(self, outputs):
            return dict(zip(("ndcg_at_20", "recall_at_10_tail"), next(self.script), strict=True))

    first = _task("weighting={epochs: 5, calibration_epochs: 4}")
    run = _Run(task=Scripted(first.entry, first.config))
    stages = [row["stage"] for row in run.result.history]
    assert stages == ["train"] * 2 + ["density0"] * 3 + ["density1"] * 2 + ["calibrate"] * 2
    assert run.result.best["ndcg_at_20"] == 0.5
    assert next(Scripted.script, None) is None


def test_a_schedule_that_ends_at_nothing_is_refused():
    with pytest.raises(ConfigError, match="learning_rate_schedule: cosine ends at 0"):
        _Run("trainer.learning_rate_schedule=cosine")


def test_a_bound_on_the_weights_holds():
    settings = "weighting={max_weight: 1.2, momentum: 0, iterations: 1, calibrate: false}"
    run = _Run(settings, "trainer.epochs=1")
    assert run.weights["density0"].max() == pytest.approx(1.2, rel=1e-6)


# Killed, and gone on with.


def _dying(die_at: int, die):
    """The loop's `run`, which ends once so many steps are done."""
    run, done = loop._Loop.run, [0]

    def dying(self, iterator, count):
        if done[0] >= die_at:
            die()
        done[0] += count
        return run(self, iterator, count)

    return dying


def main(directory: str, die_at: int) -> None:
    """Trains in this process, and kills it, without any clean-up, after so many steps."""
    loop._Loop.run = _dying(die_at, lambda: os.kill(os.getpid(), signal.SIGKILL))
    _Run(*DEEP, directory=Path(directory))


class _Died(Exception):
    pass


def _fail() -> None:
    raise _Died


@pytest.mark.slow
def test_a_run_killed_in_an_iteration_and_in_the_calibration_ends_with_the_same_bits(
    density, tmp_path, monkeypatch
):
    """Twenty steps a stage; whatever a run had not stored is done again by the next."""
    command = [sys.executable, "-m", "tests.tfrz.training.test_fit_weighted", str(tmp_path), "28"]
    env = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    killed = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    assert killed.returncode == -9, killed.stderr[-2000:]
    with monkeypatch.context() as patch, pytest.raises(_Died):
        patch.setattr(loop._Loop, "run", _dying(44, _fail))
        _Run(*DEEP, directory=tmp_path)
    resumed = _Run(*DEEP, directory=tmp_path)
    assert 60 < resumed.result.resumed_from < 80
    _same(resumed.model.get_weights(), density[0].model.get_weights())
    for name in ("history.json", "weighting.json"):
        assert (tmp_path / name).read_text() == (density[1] / name).read_text()


# What is refused.


def test_an_unknown_metric_is_named_with_those_there_are():
    with pytest.raises(ConfigError, match=r"trainer\.early_stopping_metric.*recall_at_10_tail"):
        _Run("trainer.early_stopping_metric=recall_at_7", "weighting.kind=none")


def test_an_unknown_metric_of_the_weighting_is_named_as_that_of_the_weighting():
    with pytest.raises(ConfigError, match=r"weighting\.metric.*recall_at_10_tail"):
        _Run("weighting.metric=recall_at_7", "trainer.epochs=1")


@pytest.mark.parametrize("kind", ["density", "frequency"])
@pytest.mark.parametrize("model", ["dcn_v2", "m3", "seq2slate"])
def test_models_without_an_item_tower_refuse_weights(model, kind):
    with pytest.raises(ConfigError, match=rf"weighting\.kind.*{model}"):
        load_run_config(model, "simulated", [f"weighting.kind={kind}"])
    assert load_run_config(model, "simulated").weighting == WeightingConfig()


def test_a_training_set_without_a_known_target_is_refused():
    task = _task()
    columns = _columns(BATCH, 0)
    columns["target_xf"][:] = ITEMS + 1
    batches = ArrayBatches(columns, BATCH)
    with pytest.raises(InputError, match="no training example has a known target"):
        fit_weighted(_model(task), task, batches, batches, task.config.trainer, None, False)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
