"""The loop: it learns, averages, stops, resumes to the bit, and distributes without a change."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import weakref

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.tfrz.training.toy import ToyTask, toy_columns, toy_sets
from tfrz.errors import ConfigError, InputError
from tfrz.keras_versions import tf_variables
from tfrz.training import fit as loop
from tfrz.training.batches import ArrayBatches
from tfrz.training.config import TrainerConfig

SMALL = TrainerConfig(
    epochs=3, batch_size=32, learning_rate=0.02, steps_per_call=5, tensorboard=False
)


def _fit(config=SMALL, directory=None, task=None):
    task = task or ToyTask()
    model = loop.build_model(task.build, config)
    train, validation = toy_sets(config.batch_size)
    result = loop.fit(model, task, train, validation, config, directory, progress=False)
    return model, task, validation, result


def _replace(**values):
    import dataclasses

    return dataclasses.replace(SMALL, **values)


def test_it_learns_and_returns_the_best_weights():
    model, task, validation, result = _fit()
    assert result.best["auc"] > 0.75
    assert result.best["log_loss"] == min(row["log_loss"] for row in result.history)
    again = loop.evaluate(model, task, validation)
    assert again["log_loss"] == pytest.approx(result.best["log_loss"], abs=1e-9)


def test_equal_seeds_give_equal_bits_and_others_do_not():
    first, second = _fit()[0], _fit()[0]
    for a, b in zip(first.get_weights(), second.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    other = _fit(_replace(seed=1))[0]
    assert not np.array_equal(first.get_weights()[0], other.get_weights()[0])


def test_averaged_weights_follow_their_recursion():
    """One step at a time: a_t = a_(t-1) + (1 - d_t)(w_t - a_(t-1)), d_t = min(d, t / (9 + t))."""
    task = ToyTask()
    config = _replace(ema_decay=0.5)
    model = loop.build_model(task.build, config)
    train, _ = toy_sets()
    run = loop._Loop(model, task, config, 10)
    iterator = run.iterator(train.epoch(0))
    expected = [v.numpy().astype("float64") for v in run.variables]
    for step in range(1, 6):
        run.run(iterator, 1)
        decay = min(0.5, step / (9 + step))
        for i, variable in enumerate(run.variables):
            expected[i] += (1 - decay) * (variable.numpy() - expected[i])
    for average, value in zip(run.averages, expected, strict=True):
        np.testing.assert_allclose(average.numpy(), value, rtol=1e-5, atol=1e-6)


def test_early_stopping_waits_as_long_as_told():
    class Worsening(ToyTask):
        values = iter([0.5, 0.4, 0.6, 0.7, 0.8, 0.9, 1.0])

        def metrics(self, outputs):
            return {"log_loss": next(self.values)}

    result = _fit(_replace(epochs=7, early_stopping_patience=2), task=Worsening())[3]
    assert [row["log_loss"] for row in result.history] == [0.5, 0.4, 0.6, 0.7]
    assert result.best["log_loss"] == 0.4


class Scripted(ToyTask):
    """Reports the given values of one metric, one at each evaluation."""

    def __init__(self, name, values):
        self.name, self.values = name, iter(values)

    def metrics(self, outputs):
        return {self.name: next(self.values)}


@pytest.mark.parametrize(
    ("name", "best"),
    [
        ("mse", 0.2),
        ("mse_watch_time", 0.2),
        ("normalized_entropy_like", 0.2),
        ("gini_at_20", 0.2),
        ("cross_entropy", 0.2),
        ("auc_like", 1.9),
        ("recall_at_50_tail", 1.9),
        ("calibration", 1.1),
    ],
)
def test_weights_are_chosen_by_any_metric_in_its_direction(name, best):
    config = _replace(epochs=4, early_stopping_patience=None, early_stopping_metric=name)
    result = _fit(config, task=Scripted(name, [1.3, 0.2, 1.9, 1.1]))[3]
    assert result.best[name] == best


def test_an_undefined_metric_is_never_the_best():
    values = [np.nan, 0.4, np.nan, np.inf, 0.6]
    result = _fit(_replace(epochs=5), task=Scripted("log_loss", values))[3]
    assert result.best["log_loss"] == 0.4
    result = _fit(_replace(epochs=2), task=Scripted("log_loss", [np.nan] * 2))[3]
    assert result.best["step"] == result.steps_run


def test_a_metric_without_a_direction_is_refused_before_the_first_step():
    task = Scripted("entropy", [])
    with pytest.raises(ConfigError, match="entropy: no metric of this name declares"):
        _fit(_replace(early_stopping_metric="entropy"), task=task)


def test_evaluations_of_one_model_are_traced_once():
    class Counting(ToyTask):
        traces = 0

        def predict(self, model, batch):
            type(self).traces += 1
            return super().predict(model, batch)

    model, task, validation, result = _fit(_replace(epochs=2), task=Counting())
    traces, found = task.traces, loop.evaluate(model, task, validation)
    assert task.traces == traces <= 2  # The last batch is smaller.
    assert found["log_loss"] == pytest.approx(result.best["log_loss"], abs=1e-9)
    model.out.kernel.assign(tf.zeros_like(model.out.kernel))
    model.out.bias.assign([1.0])
    assert loop.evaluate(model, task, validation)["auc"] == 0.5
    alive = weakref.ref(model)
    del model, result
    gc.collect()
    assert alive() is None


def test_max_steps_ends_with_an_evaluation():
    result = _fit(_replace(max_steps=17))[3]
    assert result.steps_run == 17
    assert [row["step"] for row in result.history] == [17]


def test_the_gradient_norm_is_clipped():
    values = {"clip_norm": 1e-3, "optimizer": "sgd", "learning_rate": 1.0, "ema_decay": None}
    task, config = ToyTask(), _replace(**values, max_steps=1)
    model = loop.build_model(task.build, config)
    before = model.get_weights()
    train, validation = toy_sets()
    loop.fit(model, task, train, validation, config, None, progress=False)
    pairs = zip(before, model.get_weights(), strict=True)
    moved = np.sqrt(sum(float(((a - b) ** 2).sum()) for a, b in pairs))
    assert moved == pytest.approx(1e-3, rel=1e-2)


def test_a_diverging_run_is_told_in_one_line():
    columns = toy_columns(200, 0)
    columns["label"][0] = np.nan
    task = ToyTask()
    model = loop.build_model(task.build, SMALL)
    batches = ArrayBatches(columns, 32)
    with pytest.raises(InputError, match="the loss is nan at step"):
        loop.fit(model, task, batches, batches, SMALL, None, progress=False)


def _process(directory, die_at):
    env = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, "-m", "tests.tfrz.training.killed_run", str(directory), str(die_at)]
    return subprocess.run(command, capture_output=True, text=True, env=env, check=False)


@pytest.mark.slow
def test_a_run_killed_twice_ends_with_the_same_bits(tmp_path):
    whole = _process(tmp_path / "whole", 0)
    assert whole.returncode == 0, whole.stderr
    for die_at in (40, 25):
        assert _process(tmp_path / "killed", die_at).returncode == -9
    resumed = _process(tmp_path / "killed", 0)
    assert resumed.returncode == 0, resumed.stderr
    assert int(resumed.stdout) > 40
    with np.load(tmp_path / "whole" / "weights.npz") as a:
        with np.load(tmp_path / "killed" / "weights.npz") as b:
            assert len(a.files) == len(b.files) == 5
            for name in a.files:
                np.testing.assert_array_equal(a[name], b[name])
    histories = [
        json.loads((tmp_path / run / "history.json").read_text()) for run in ("whole", "killed")
    ]
    assert histories[0] == histories[1]


@pytest.mark.slow
def test_two_mirrored_devices_compute_the_same_losses():
    """In a process of its own: logical devices must be set before TensorFlow starts."""
    code = """
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
from tests.tfrz.training.test_fit import _fit, _replace
assert len(tf.config.list_logical_devices("CPU")) == 2
for name in ("one_device", "mirrored"):
    model, _, _, result = _fit(_replace(strategy=name, max_steps=12))
    print(model.distribute_strategy.num_replicas_in_sync, result.history[0]["loss"],
          result.history[0]["log_loss"])
"""
    env = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=env, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    one, two = (line.split() for line in done.stdout.strip().splitlines()[-2:])
    assert (one[0], two[0]) == ("1", "2")
    np.testing.assert_allclose([float(v) for v in one[1:]], [float(v) for v in two[1:]], rtol=1e-4)


@pytest.mark.parametrize("xla", ["on", "off"])
def test_the_log_says_what_was_compiled(caplog, xla):
    with caplog.at_level("INFO", logger="tfrz"):
        result = _fit(_replace(xla=xla, max_steps=10))[3]
    wanted = "the dense part of the step is compiled" if xla == "on" else "nothing is compiled"
    assert wanted in caplog.text
    assert result.history[0]["loss"] < 0.72


@pytest.mark.slow
def test_xla_leaves_the_losses_as_they_are():
    on, off = (_fit(_replace(xla=x, max_steps=20))[3].history[0] for x in ("on", "off"))
    assert on["loss"] == pytest.approx(off["loss"], rel=1e-4)
    assert on["log_loss"] == pytest.approx(off["log_loss"], rel=1e-4)


def test_auto_compiles_on_accelerators_only(monkeypatch):
    from tfrz.training import compilation

    for device, compiled in (("GPU", True), ("TPU", True), ("CPU", False)):
        monkeypatch.setattr(compilation, "accelerator", lambda device=device: device)
        assert compilation.use_xla("auto") is compiled


def test_embedding_lookups_stay_outside_the_compiled_part():
    """The gradient of the embedding must stay sparse: XLA would make it as large as the table."""
    task, config = ToyTask(), _replace(xla="on")
    model = loop.build_model(task.build, config)
    batch = {"item": tf.constant([1, 2], tf.int64), "label": tf.constant([0.0, 1.0])}
    both = {}
    for xla in ("on", "off"):
        run = loop._Loop(model, task, _replace(xla=xla), 10)
        loss, gradients = run._gradients()(batch)
        both[xla] = [loss, *map(tf.convert_to_tensor, gradients)]
        found = {id(v): g for v, g in zip(run.variables, gradients, strict=True)}
        (table,) = tf_variables([model.embedding.embeddings])
        assert isinstance(found[id(table)], tf.IndexedSlices)
    for on, off in zip(both["on"], both["off"], strict=True):
        np.testing.assert_allclose(on, off, rtol=1e-5, atol=1e-7)


@pytest.mark.slow
def test_a_recurrent_network_compiles_once_and_its_gradients_too():
    """What a loop keeps for its backward pass cannot cross the border of a compiled function."""
    from tfrz.training.compilation import compiled_value_and_gradients

    network = keras.layers.RNN(keras.layers.GRUCell(3), return_sequences=True)
    x = tf.random.stateless_normal([2, 5, 4], [1, 2])
    network(x)
    traces = []

    def loss_of(given):
        traces.append(1)
        return tf.reduce_sum(tf.square(network(given["x"])))

    compiled = compiled_value_and_gradients(loss_of, network.trainable_variables)
    for _ in range(4):
        loss, dense, inner = compiled({"x": x})
        for variable, gradient in zip(network.trainable_variables, dense, strict=True):
            variable.assign_sub(0.01 * gradient)
    assert len(traces) == 1
    with tf.GradientTape() as tape:
        tape.watch(x)
        expected = tf.reduce_sum(tf.square(network(x)))
    loss, _, inner = compiled({"x": x})
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_allclose(inner["x"], tape.gradient(expected, x), atol=1e-5)


def test_files_of_a_run(tmp_path):
    _fit(_replace(tensorboard=True, checkpoint_every_steps=10), tmp_path)
    names = {p.name for p in tmp_path.iterdir()}
    assert names == {"checkpoints", "tensorboard", "history.json", "curves.png"}
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert list((tmp_path / "tensorboard").iterdir())


@pytest.mark.parametrize(
    "values",
    [
        {"epochs": 0},
        {"batch_size": 0},
        {"learning_rate": 0.0},
        {"ema_decay": 1.0},
        {"clip_norm": 0.0},
        {"early_stopping_patience": 0},
        {"max_steps": 0},
        {"embedding_l2": -1.0},
    ],
)
def test_values_out_of_range_are_named(values):
    with pytest.raises(ConfigError, match=f"trainer.{next(iter(values))}"):
        TrainerConfig(**values)
