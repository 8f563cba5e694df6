"""`low_rank.*` of a run's configuration: every model of the zoo, trained with thin matrices."""

from __future__ import annotations

import json
import math
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.conformance.case import dense_settings
from tfrz.cli.main import main
from tfrz.config import read_yaml
from tfrz.data.records import open_source
from tfrz.errors import ConfigError
from tfrz.keras_versions import layers_within, tf_variables
from tfrz.layers import LowRankCross, LowRankDense
from tfrz.models.factorizable import low_rank_layers, with_low_rank
from tfrz.training import fit as loop
from tfrz.training.batches import ArrayBatches
from tfrz.training.config import LowRankConfig
from tfrz.training.factorization import data_whitened, factorize, first_examples
from tfrz.training.warm_start import warm_start
from tfrz.zoo import registry
from tfrz.zoo.building import build_for_training
from tfrz.zoo.run_config import load_run_config, run_config_from_mapping
from tfrz.zoo.train import train

SIZES = {
    "impression": "data.options={rows: 1000}",
    "history": "data.options={users: 200}",
    "list": "data.options={queries: 200}",
    "logged_action": "data.options={users: 200}",
    "timeline": "data.options={users: 40}",
}
MODELS = [name for name in registry.names() if dense_settings(name) is not None]
NOTHING = [name for name in registry.names() if dense_settings(name) is None]
RANK = 4


def overrides(name, *more):
    settings = (SIZES[registry.get(name).record_type], *(dense_settings(name) or ()))
    steps = ("trainer.batch_size=32", "trainer.max_steps=4", "trainer.tensorboard=false")
    return [*settings, *steps, f"low_rank.rank={RANK}", "low_rank.init=data", *more]


def prepared_run(config):
    entry = registry.get(config.name)
    task = entry.new_task(config)
    reader = open_source("simulated", None, entry.record_type, **config.data.options)
    return task, task.prepare(reader)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a model's run, made once."""
    made: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name) / "run"
            train(name, out=made[name], overrides=overrides(name), progress=False)
        return made[name]

    return get


@pytest.fixture(scope="module")
def reloaded(trained):
    """The task, the data, and the model built anew that starts from a run's SavedModel."""
    made = {}

    def get(name: str):
        if name not in made:
            version = trained(name) / "model" / "1"
            config = run_config_from_mapping(read_yaml(version / "assets" / "run_config.yaml"))
            task, prepared = prepared_run(config)
            model, _ = build_for_training(task, prepared.inputs, config, prepared.train)
            report = warm_start(model, task, prepared.vocabularies, version)
            made[name] = task, prepared, model, report
        return made[name]

    return get


def of_low_rank(model):
    return {m.name: m for m in layers_within(model) if isinstance(m, LowRankDense | LowRankCross)}


@pytest.mark.parametrize("name", MODELS)
def test_a_run_says_what_became_of_each_layer(name, trained, reloaded):
    out = trained(name)
    layers = json.loads((out / "low_rank.json").read_text())
    assert json.loads((out / "metrics.json").read_text())["low_rank"] == layers
    thin = {layer["name"] for layer in layers if layer["rank"]}
    assert thin
    for layer in layers:
        assert bool(layer["rank"]) != bool(layer["skipped"])
        if layer["rank"]:
            assert layer["rank"] == RANK
            assert layer["parameters_after"] < layer["parameters_before"]
            assert 0 < layer["output_error"] < 1
        else:
            assert layer["parameters_after"] == layer["parameters_before"]
    card = (out / "card.md").read_text()
    assert card == (out / "model" / "1" / "assets" / "card.md").read_text()
    assert all(f"| {layer['name']} | " in card for layer in layers)
    found = of_low_rank(reloaded(name)[2])
    assert set(found) == thin
    assert {int(layer.rank) for layer in found.values()} == {RANK}


@pytest.mark.parametrize("name", MODELS)
def test_a_warm_start_finds_every_weight_and_the_saved_model_answers_alike(name, trained, reloaded):
    task, prepared, model, report = reloaded(name)
    assert not report.fresh
    assert all(new == 0 for _, new in report.remapped.values())
    served = tf.saved_model.load(str(trained(name) / "model" / "1"))
    own = task.signatures(model, prepared.transform, prepared.spec, prepared.vocabularies)
    examples = tf.constant(prepared.examples[:16])
    expected = own["serving_default"](examples)
    answer = served.signatures["serving_default"](examples=examples)
    assert set(answer) == set(expected)
    for output, value in answer.items():
        if value.dtype == tf.float32:
            np.testing.assert_allclose(value, expected[output], rtol=1e-6, atol=1e-6)
        else:
            np.testing.assert_array_equal(value, expected[output])


@pytest.mark.parametrize("name", MODELS)
def test_the_whole_model_is_saved_and_loaded(name, reloaded, tmp_path):
    _, prepared, model, _ = reloaded(name)
    batch = first_examples(prepared.train)[0]
    model.save(tmp_path / "model.keras")
    copy = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(copy(batch), model(batch))
    assert set(of_low_rank(copy)) == set(of_low_rank(model))
    assert copy.get_config() == model.get_config()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dcn_v2", "m3", "multi_interest"])
def test_a_killed_run_goes_on_to_the_same_bits(name, trained, tmp_path, monkeypatch):
    more = ("trainer.steps_per_call=1", "trainer.checkpoint_every_steps=1")
    run, done = loop._Loop.run, []

    def interrupted(self, iterator, count):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(count)
        return run(self, iterator, count)

    with monkeypatch.context() as patch:
        patch.setattr(loop._Loop, "run", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(name, out=tmp_path, overrides=overrides(name, *more), progress=False)
    again = train(name, out=tmp_path, overrides=overrides(name, *more), progress=False)
    assert again["resumed_from"] == 2
    whole = json.loads((trained(name) / "metrics.json").read_text())
    assert again["metrics"] == whole["metrics"]


@pytest.mark.parametrize("name", NOTHING)
def test_a_model_without_dense_layers_is_one_line(name, tmp_path, capsys):
    arguments = [a for o in overrides(name) for a in ("--set", o)]
    assert main(["train", name, "--out", str(tmp_path / "run"), *arguments, "--quiet"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    kind = registry.get(name).model.partition(":")[2]
    assert f"low_rank: no layer of this {kind} becomes smaller (it has no dense" in said
    # At most encoded examples, which the next run reads.
    assert [path.name for path in (tmp_path / "run").iterdir()] in ([], ["cache"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("low_rank.rank=85", "rank: 85 is not 1 to 84, the full rank"),
        ("low_rank.rank=50", "(cross_0: rank 50 is not below break-even, 42; cross_1: "),
        ("low_rank={rank: null, layers: {hiden_0: 3}}", "did you mean 'hidden_0'?"),
        ("low_rank={rank: null, target_parameters: 20}", "20 parameters are fewer than the"),
        ("low_rank.frobenius_decay=0.1", "model.deep_decay means the same"),
        ("low_rank.rank=0", "low_rank.rank: must be at least 1"),
        ("low_rank.target_parameters=100", "one of rank, target_parameters and layers"),
        ("low_rank.init=datum", "did you mean 'data'?"),
    ],
)
def test_bad_input_is_one_line_and_the_folder_stays_free(override, message, tmp_path, capsys):
    more = ("model.hidden_units=[64]", "model.embedding_dim=14", "model.deep_decay=0.01", override)
    arguments = [a for o in overrides("dcn_v2", *more) for a in ("--set", o)]
    assert main(["train", "dcn_v2", "--out", str(tmp_path), *arguments, "--quiet"]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    # At most encoded examples, which the next run reads.
    assert [path.name for path in tmp_path.iterdir()] in ([], ["cache"])


def built(name, *more):
    config = load_run_config(name, "simulated", overrides(name, *more))
    task, prepared = prepared_run(config)
    model, reports = build_for_training(task, prepared.inputs, config, prepared.train)
    return task, prepared, model, reports


@pytest.mark.parametrize("name", MODELS)
def test_frobenius_decay_is_part_of_the_loss(name):
    decay = 0.3
    task, prepared, model, _ = built(name, f"low_rank.frobenius_decay={decay}")
    dense = [m for m in of_low_rank(model).values() if isinstance(m, LowRankDense)]
    assert dense
    batch = next(iter(prepared.train.epoch(0)))
    _, penalty = task.dense_loss(model, task.lookup(model, batch))
    squares = [np.square(m.U.numpy() @ m.V.numpy().T).sum() for m in dense]
    assert float(penalty) == pytest.approx(decay / 2 * sum(squares), rel=1e-4)


def test_a_target_gives_each_layer_a_rank_of_its_own():
    *_, reports = built("dv365", "low_rank={rank: null, target_parameters: 2500, init: spectral}")
    ranks = {r.name: r.rank for r in reports if r.rank}
    assert len(set(ranks.values())) > 1
    matrices = [r.parameters_after - r.shape[1] for r in reports if r.name not in ("logits",)]
    # The layer without a bias has no units to take off.
    assert sum(matrices) + 8 <= 2500
    *_, again = built("dv365", f"low_rank={{rank: null, layers: {ranks}}}")
    assert {r.name: r.rank for r in again if r.rank} == ranks


def test_without_the_switch_nothing_changes():
    *_, reports = built("dcn_v2", "low_rank.rank=null")
    assert reports == ()
    assert not LowRankConfig(init="data").enabled


# A class that is not of the zoo.


@keras.saving.register_keras_serializable(package="tests")
class Towers(keras.Model):
    """Dense layers in all kinds of places."""

    def __init__(self, width=12, **kwargs):
        super().__init__(**kwargs)
        self.width = width

        def dense(name, units=width, activation="relu", **more):
            return keras.layers.Dense(units, activation, name=name, **more)

        self.first = dense("first")
        self.listed = [dense("listed_0"), dense("listed_1", activation="tanh")]
        self.named = {"a": dense("named_a"), "b": [dense("named_b", use_bias=False)]}
        self.shared = self.also_shared = dense("shared")
        self.read = dense("read", activation=None)
        self.kept_small = dense("kept_small", kernel_regularizer="l2")
        self.inside = keras.Sequential([dense("inner")], name="inside")
        self.narrow = dense("narrow", units=2)
        self.logits = dense("logits", units=2, activation=None)
        for layer in (self.first, *self.listed, *self.named["b"], self.named["a"], self.shared):
            layer.build((None, width))
        for layer in (self.read, self.kept_small, self.narrow, self.inside):
            layer.build((None, width))
        self.logits.build((None, 2))
        self.built = True

    def call(self, inputs, training=False):
        x = inputs["x"]
        for layer in (self.first, *self.listed, self.named["a"], self.named["b"][0], self.shared):
            x = layer(x)
        x = self.shared(x) @ self.read.kernel + self.read.bias
        return self.logits(self.narrow(self.inside(self.kept_small(x))))

    def get_config(self):
        return {"width": self.width, "name": self.name, **low_rank_layers(self)}

    @classmethod
    def from_config(cls, config, custom_objects=None):
        values = dict(config)
        low_rank = values.pop("low_rank", {})
        return with_low_rank(cls(**values), low_rank)


@pytest.fixture
def towers():
    keras.utils.set_random_seed(0)
    return Towers(name="towers"), {"x": np.random.default_rng(0).normal(1, 1, (200, 12))}


REASONS = {
    "shared": "is shared by two places",
    "read": "has weights that another layer reads",
    "kept_small": "has a regulariser or constraint of its matrix",
    "inner": "is inside another layer",
    "narrow": "rank 3 is above 2, the full rank",
    "logits": "computes the model's output",
}


@pytest.mark.parametrize("init", ["spectral", "function", "data"])
def test_layers_of_any_model_are_replaced_or_listed_with_the_reason(towers, init):
    model, x = towers
    before = model(x).numpy()
    weights = [w.copy() for w in model.get_weights()]
    new, reports = factorize(model, 3, init, x)
    assert {r.name: r.skipped for r in reports if r.skipped} == REASONS
    thin = [r.name for r in reports if r.rank]
    assert thin == ["first", "listed_0", "listed_1", "named_a", "named_b"]
    assert set(of_low_rank(new)) == set(thin)
    assert isinstance(new.named["b"][0], LowRankDense)
    assert new.listed[1].activation is keras.activations.tanh
    assert not new.named["b"][0].use_bias
    # The one that was given is what it was.
    assert not of_low_rank(model)
    for a, b in zip(weights, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(model(x), before)
    # No old matrix is left behind to train or to save.
    assert new.count_params() == model.count_params() - sum(
        r.parameters_before - r.parameters_after for r in reports
    )
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(new(x))
    assert all(g is not None for g in tape.gradient(loss, new.trainable_variables))


def test_factors_of_full_rank_compute_what_the_model_computed(towers):
    model, x = towers
    ranks = dict.fromkeys(("first", "listed_0", "listed_1", "named_a", "named_b"), 12)
    for init in ("spectral", "data"):
        new, reports = factorize(model, ranks, init, x, beyond_break_even=True)
        np.testing.assert_allclose(new(x), model(x), rtol=1e-4, atol=1e-5)
        assert all(r.output_error < 1e-5 for r in reports if r.rank)


def test_measured_inputs_beat_the_spectrum_whatever_the_activation(towers):
    model, x = towers
    linear, data = (
        {r.name: r.output_error for r in factorize(model, 2, init, x)[1] if r.rank}
        for init in ("spectral", "data")
    )
    assert all(data[name] < linear[name] for name in linear)


@pytest.mark.parametrize("name", ["listed_0", "listed_1"])
def test_only_the_units_of_a_relu_are_weighted(towers, name):
    model, x = towers
    new, _ = factorize(model, {name: 2}, "data", x)
    layer = model.listed[int(name[-1])]
    read = model.first(tf.constant(x["x"], tf.float32))
    read = read if layer is model.listed[0] else model.listed[0](read)
    output, read = layer(read).numpy(), np.asarray(read, np.float64)
    weights = (output > 0).mean(axis=0) if layer.activation is keras.activations.relu else None
    U, V = data_whitened(
        layer.kernel.numpy(), 2, read.T @ read / len(read), read.mean(axis=0), weights
    )
    made = new.listed[int(name[-1])]
    np.testing.assert_allclose(made.U.numpy() @ made.V.numpy().T, U @ V.T, atol=1e-4)


def test_a_model_of_any_class_is_saved_whole_and_by_checkpoint(towers, tmp_path):
    model, x = towers
    new, _ = factorize(model, 3, "data", x, frobenius_decay=0.25)
    new.save(tmp_path / "towers.keras")
    copy = keras.models.load_model(tmp_path / "towers.keras")
    np.testing.assert_array_equal(copy(x), new(x))
    assert copy.listed[0].frobenius_decay == 0.25
    path = tf.train.Checkpoint(weights=tf_variables(new.weights)).save(str(tmp_path / "checkpoint"))
    other, _ = factorize(Towers(name="other"), 3, inputs=x)
    assert not np.array_equal(other(x), new(x))
    copied = tf.train.Checkpoint(weights=tf_variables(other.weights))
    copied.restore(path).assert_existing_objects_matched()
    np.testing.assert_array_equal(other(x), new(x))


def test_scales_are_repaired_in_any_model(towers):
    model, x = towers
    new, reports = factorize(model, {"first": 1, "listed_1": 1}, "spectral", x, repair_scale=True)
    outputs = [m.first(tf.constant(x["x"], tf.float32)).numpy() for m in (model, new)]
    # The bias is 0 at the start, and a ReLU homogeneous: the size comes back exactly.
    sizes = [math.sqrt(np.square(o).mean()) for o in outputs]
    assert sizes[1] == pytest.approx(sizes[0], rel=1e-4)
    assert all(r.output_error is not None for r in reports if r.rank)


def test_the_first_examples_are_those_that_training_sees_first():
    batches = ArrayBatches({"x": np.arange(1000)}, batch_size=100, seed=3)
    found = np.concatenate([b["x"] for b in first_examples(batches, 250)])
    expected = np.concatenate([b["x"] for b in batches.epoch(0).take(3)])
    np.testing.assert_array_equal(found, expected)


def test_a_sequential_model_is_refused():
    with pytest.raises(ConfigError, match="a Sequential cannot be factorised"):
        factorize(keras.Sequential([keras.layers.Dense(2)]), 1)
