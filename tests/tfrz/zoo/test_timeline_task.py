"""Training on timelines: losses, metrics, what is exported, and what a configuration makes."""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import math
import tarfile
import zipfile
from pathlib import Path

import keras
import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import tensorflow as tf

from tfrz.cli.main import main
from tfrz.config import from_mapping, read_yaml, to_mapping
from tfrz.data.columns import raw_sparse, to_examples
from tfrz.data.records import open_source
from tfrz.data.timelines.slicing import load_slices
from tfrz.data.timelines.spec import TimelineSpec
from tfrz.data.transform import densify
from tfrz.errors import ConfigError, InputError
from tfrz.training.warm_start import warm_start
from tfrz.zoo import registry
from tfrz.zoo.run_config import load_run_config, run_config_from_mapping, run_config_to_mapping
from tfrz.zoo.tasks.thresholds import outcome_config
from tfrz.zoo.tasks.timeline import TimelineTask, events_bucket
from tfrz.zoo.train import train

REAL = Path(__file__).resolve().parents[4] / "shared" / "data"
CONFIGS = registry.get("dv365").config_directory
DAY = 86_400
START = 1_600_000_000
SPEC = """
user: viewer
time: at
ids: [{name: item}, {name: topic}]
action: what
actions: [view, like]
implicit: [view]
duration: length
dwell: watched
binary: [liked, shared]
regression: [watch, rate]
"""
SLICES = """
version: 4
slices:
  - {name: liked_topics, timeline: explicit, id: topic, table: liked_topic}
  - {name: liked_items, timeline: explicit, id: item, table: liked_item}
  - {name: liked_topics_7d, timeline: explicit, id: topic, table: liked_topic, days: 7}
  - {name: watched, timeline: implicit, id: topic, table: seen_topic, dwell: [15, null]}
  - {name: skipped, timeline: implicit, id: topic, table: skipped_topic, dwell: [null, 3]}
  - {name: scored, timeline: implicit, id: topic, table: seen_topic, weight: watch_score}
"""
TOPICS, ITEMS = 6, 4
TASKS = ("liked", "shared", "watch", "rate")
SMALL = (
    "data.timeline.targets=20",
    "data.timeline.min_visible=12",
    "data.timeline.recent=3",
    "model.dim=8",
    "model.candidate_dim=6",
    "model.num_heads=2",
    "model.linear_outputs=2",
    "model.hidden_units=[16]",
    "trainer.batch_size=16",
    "trainer.epochs=3",
    "trainer.learning_rate=0.02",
    "trainer.tensorboard=false",
)


def _write(folder: Path, users: int = 120, new: int = 0, seed: int = 0) -> tuple[str, str, str]:
    """Users see topics by chance, and like two of them: who has not seen their likes cannot tell.

    There are so many new topics, which come often.
    """
    rng = np.random.default_rng(seed)
    lines = ["viewer,at,item,topic,what,length,watched,liked,shared,watch,rate"]
    for user in range(users):
        taste = rng.choice(TOPICS + new, 2, replace=False)
        for step in range(40):
            topic = int(rng.integers(TOPICS + new))
            if new and rng.random() < 0.3:
                topic = TOPICS
            item, at = f"i{topic}-{rng.integers(ITEMS)}", START + step * DAY // 2 + user
            liked = rng.random() < (0.95 if topic in taste else 0.03)
            watched = 20.0 if liked else float(rng.integers(1, 6))
            shared = "" if rng.random() < 0.5 else int(rng.random() < 0.3)
            rate = "" if rng.random() < 0.3 else round(float(rng.normal()), 2)
            outcomes = f"{int(liked)},{shared},{math.log1p(watched):.4f},{rate}"
            lines.append(f"u{user},{at},{item},t{topic},view,30,{watched},{outcomes}")
            if liked:
                lines.append(f"u{user},{at + 5},{item},t{topic},like,,,,,,")
    (folder / "events.csv").write_text("\n".join(lines) + "\n")
    (folder / "spec.yaml").write_text(SPEC)
    (folder / "slices.yaml").write_text(SLICES)
    return tuple(str(folder / name) for name in ("events.csv", "spec.yaml", "slices.yaml"))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return _write(tmp_path_factory.mktemp("world"))


class Built:
    """A model with the data that it was built for."""

    def __init__(self, world: tuple[str, str, str], *overrides: str) -> None:
        data, spec, slices = world
        entry = registry.get("dv365")
        self.config = load_run_config(
            "dv365", data, [*SMALL, f"data.timeline.slices={slices}", *overrides]
        )
        self.task: TimelineTask = entry.new_task(self.config)
        self.reader = open_source(data, spec, "timeline")
        source = self.task.resolve(self.reader)
        self.spec, (self.parts, _) = source.spec, self.task.examples(source)
        self.prepared = self.task.prepared(self.spec, self.parts, 0)
        keras.utils.set_random_seed(7)
        self.model = self.task.build(self.prepared.inputs)
        # Tables start next to nothing, which would hide what is wrong with them.
        rng = np.random.default_rng(1)
        self.model.set_weights(
            [w + 0.2 * rng.normal(size=w.shape) for w in self.model.get_weights()]
        )

    def batch(self) -> dict:
        """The first validation examples."""
        return next(iter(self.prepared.validation.once()))


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """The same with few users, for what needs no training."""
    return _write(tmp_path_factory.mktemp("few"), users=30)


@pytest.fixture(scope="module")
def built(few):
    return functools.cache(lambda *overrides: Built(few, *overrides))


NEGATIVES = "data.timeline.negatives=2"
VARIANTS = {
    "both": (),
    "negatives": (NEGATIVES, "data.timeline.recent=0"),
    "funnel": ("model.encoder=funnel", "model.attend_over=tokens"),
    "linear": ("model.encoder=linear", NEGATIVES),
    "none": ("model.encoder=none",),
}
variants = pytest.mark.parametrize("variant", VARIANTS)


# Losses and metrics.


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def _losses(outputs: np.ndarray, label: np.ndarray) -> np.ndarray:
    """The loss of each example: sums over tasks of means over the candidates that are known."""
    found = []
    for output, outcome in zip(outputs.astype(float), label.astype(float), strict=True):
        total = 0.0
        for k in range(len(TASKS)):
            terms = []
            for out, y in zip(output[:, k], outcome[:, k], strict=True):
                if math.isnan(y):
                    continue
                if k < 2:
                    p = 1 / (1 + math.exp(-out))
                    terms.append(-y * math.log(p) - (1 - y) * math.log(1 - p))
                else:
                    terms.append((y - out) ** 2)
            total += np.mean(terms) if terms else 0.0
        found.append(total)
    return np.array(found)


@variants
def test_losses_are_those_of_plain_loops(variant, built):
    one = built(*VARIANTS[variant])
    batch = one.batch()
    looked_up = one.task.lookup(one.model, batch)
    label = looked_up["label"].numpy()
    candidates = 3 if NEGATIVES in VARIANTS[variant] else 1
    assert label.shape[1:] == (candidates, 4)
    outputs = one.model(batch, training=True).numpy()
    losses, penalty = one.task.dense_loss(one.model, looked_up)
    np.testing.assert_allclose(losses, _losses(outputs, label), rtol=1e-4, atol=1e-5)
    assert float(penalty) == 0.0
    # Some outcomes are known and some are not, of both kinds of tasks.
    known = np.isfinite(label)
    assert known[..., 1].any() and not known[..., 1].all()
    assert known[..., 3].any() and not known[..., 3].all()
    if candidates > 1:
        assert (label[:, 1:, :2] == 0).all()
        assert not known[:, 1:, 2:].any()


def test_an_example_without_outcomes_has_no_loss_and_no_gradient(built):
    one = built()
    looked_up = one.task.lookup(one.model, one.batch())
    label = looked_up["label"].numpy()
    label[1:] = math.nan
    with tf.GradientTape() as tape:
        losses, _ = one.task.dense_loss(one.model, {**looked_up, "label": tf.constant(label)})
    gradients = tape.gradient(losses, one.model.hidden[0].trainable_variables)
    assert losses.numpy()[0] > 0
    assert not losses.numpy()[1:].any()
    assert all(np.isfinite(gradient.numpy()).all() for gradient in gradients)
    label[:] = math.nan
    with tf.GradientTape() as tape:
        losses, _ = one.task.dense_loss(one.model, {**looked_up, "label": tf.constant(label)})
    for gradient in tape.gradient(losses, one.model.hidden[0].trainable_variables):
        assert not gradient.numpy().any()


def test_metrics_are_their_definitions(built):
    task = built(NEGATIVES).task
    rng = np.random.default_rng(0)
    output = rng.normal(size=(50, 3, 4)).astype("float32")
    label = np.where(rng.random((50, 3, 4)) < 0.5, rng.integers(0, 2, (50, 3, 4)), np.nan)
    label[..., 2:] *= 3.5
    found = task.metrics({"output": output, "label": label.astype("float32")})
    expected: dict[str, float] = {}
    for k, name in enumerate(TASKS):
        known = np.isfinite(label[..., k])
        y, out = label[..., k][known], output[..., k][known].astype(float)
        if k < 2:
            p, rate = _sigmoid(out), np.mean(y)
            loss = -np.mean(y * np.log(p) + (1 - y) * np.log(1 - p))
            entropy = -(rate * np.log(rate) + (1 - rate) * np.log(1 - rate))
            expected[f"normalized_entropy_{name}"] = loss / entropy
            higher = out[y == 1][:, None] > out[y == 0][None, :]
            expected[f"auc_{name}"] = higher.mean()
        else:
            expected[f"mse_{name}"] = np.mean((y - out) ** 2)
    for kind, names in (
        ("normalized_entropy", ("liked", "shared")),
        ("auc", ("liked", "shared")),
        ("mse", ("watch", "rate")),
    ):
        expected[kind] = np.mean([expected[f"{kind}_{name}"] for name in names])
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-5), name
    # That of the mean label is 1.
    same = np.broadcast_to(np.float32(math.log(0.25 / 0.75)), (4, 1, 4))
    label = np.array([1.0, 0, 0, 0])[:, None, None] * np.ones((4, 1, 4))
    found = task.metrics({"output": same, "label": label})
    assert found["normalized_entropy"] == pytest.approx(1.0, rel=1e-6)


def test_without_binary_tasks_regressions_decide(few, tmp_path):
    spec = tmp_path / "spec.yaml"
    spec.write_text(SPEC.replace("binary: [liked, shared]", "binary: []"))
    one = Built((few[0], str(spec), few[2]))
    predicted = {n: v.numpy() for n, v in one.task.predict(one.model, one.batch()).items()}
    found = one.task.metrics(predicted)
    assert found["normalized_entropy"] == found["mse"]
    assert set(found) == {"normalized_entropy", "mse", "mse_watch", "mse_rate"}
    losses, _ = one.task.dense_loss(one.model, one.task.lookup(one.model, one.batch()))
    assert np.isfinite(losses.numpy()).all()


# Inputs.


@variants
def test_ragged_and_dense_inputs_give_the_same(variant, built):
    one = built(*VARIANTS[variant])
    batch = one.batch()
    lists = list(one.prepared.inputs.names)
    assert all(isinstance(batch[name], tf.RaggedTensor) for name in lists)
    dense = {name: batch[name].to_tensor() for name in lists}
    ragged = {name: batch[name] for name in lists}
    outputs = one.model(ragged).numpy()
    assert outputs.shape == (batch["label_liked_xf"].shape[0], one.task.timeline.candidates, 4)
    np.testing.assert_allclose(one.model(dense), outputs, rtol=1e-5, atol=1e-5)
    if variant == "none":
        return
    of_ragged, of_dense = one.task.outputs(one.model, ragged), one.task.outputs(one.model, dense)
    np.testing.assert_allclose(of_dense["embedding"], of_ragged["embedding"], atol=1e-5)
    np.testing.assert_array_equal(of_dense["present"], of_ragged["present"])
    # Rows of requests are transformed to the dense ones.
    rows = len(outputs)
    raw = raw_sparse(one.parts["validation"].slice(0, rows), one.spec, label=False)
    requested = densify(one.prepared.transform(raw))
    np.testing.assert_allclose(one.model(requested), outputs, rtol=1e-5, atol=1e-5)


@variants
def test_inputs_of_a_model(variant, built):
    one = built(*VARIANTS[variant])
    inputs = one.prepared.inputs
    assert inputs.tables == {
        "liked_topic": (0, 2),
        "liked_item": (1,),
        "seen_topic": (3, 5),
        "skipped_topic": (4,),
    }
    assert inputs.table_ids["liked_item"] == "item"
    assert (inputs.binary, inputs.tasks) == (("liked", "shared"), TASKS)
    assert inputs.described == ("item", "topic")
    assert inputs.recent == (variant != "negatives")
    assert set(inputs.vocabulary_sizes) == {"item", "topic"}
    assert inputs.vocabulary_sizes["topic"] == 1 + TOPICS + 1
    zeros = one.task.example_inputs(inputs, 3)
    assert set(zeros) == set(inputs.names)
    assert one.model(zeros).shape == (3, one.task.timeline.candidates, 4)
    # The pipeline hands the spec on as plain values.
    assert from_mapping(TimelineSpec, to_mapping(one.spec)) == one.spec


def test_words_for_slices():
    totals = tf.constant([0, 1, 99, 100, 999, 1000, 9999, 10_000], tf.int64)
    words = events_bucket(totals).numpy().tolist()
    assert words == [
        b"0",
        b"1-99",
        b"1-99",
        b"100-999",
        b"100-999",
        b"1,000-9,999",
        b"1,000-9,999",
        b"10,000+",
    ]


# A trained model and what it exports.


@pytest.fixture(scope="module")
def run(world, tmp_path_factory):
    data, spec, slices = world
    out = tmp_path_factory.mktemp("run") / "out"
    overrides = [*SMALL, f"data.timeline.slices={slices}"]
    return out, train("dv365", data, out, spec, overrides, progress=False)


@pytest.fixture(scope="module")
def served(run):
    return tf.saved_model.load(str(run[0] / "model" / "1")).signatures


@pytest.fixture(scope="module")
def trained(run, world):
    """The trainer's own model, as it was exported."""
    one = Built(world)
    report = warm_start(one.model, one.task, one.prepared.vocabularies, run[0] / "model" / "1")
    assert not report.fresh
    return one


@pytest.mark.slow
def test_what_users_liked_is_learned_from_their_slices(run, world, tmp_path):
    found = run[1]["metrics"]
    for split in ("validation", "test"):
        assert found[split]["normalized_entropy_liked"] < 0.7
        assert found[split]["auc_liked"] > 0.8
    plain = Built(world, "model.encoder=none", "data.timeline.recent=0")
    fit = registry.get("dv365").load("recipe")
    sets = plain.prepared.train, plain.prepared.validation
    keras.utils.set_random_seed(7)
    model = plain.task.build(plain.prepared.inputs)
    without = fit(model, plain.task, *sets, plain.config.trainer, tmp_path, False).best
    of_slices, of_none = found["validation"], without
    assert of_none["normalized_entropy_liked"] > 0.9
    assert of_slices["normalized_entropy_liked"] < of_none["normalized_entropy_liked"] - 0.2


def test_files_of_a_run(run, world):
    names = {path.name for path in run[0].iterdir()}
    assert {"config.yaml", "metrics.json", "card.md", "curves.png"} <= names
    # The specification itself is saved, not its name.
    for path in (run[0] / "config.yaml", run[0] / "model" / "1" / "assets" / "run_config.yaml"):
        saved = read_yaml(path)
        assert saved["data"]["timeline"]["slices"] == to_mapping(load_slices(world[2]))
        saved.pop("data_source", None)
        config = run_config_from_mapping(saved)
        assert config.data.timeline.slices.fingerprint == load_slices(world[2]).fingerprint
    stored = json.loads((run[0] / "metrics.json").read_text())
    assert set(stored["metrics"]["validation"]) >= {"normalized_entropy_liked", "mse_rate"}


def _requests(one: Built, count: int = 12, labels: bool = False) -> list[bytes]:
    """The first validation examples as requests."""
    table = one.parts["validation"].slice(0, count)
    serialized = to_examples(table, one.spec, count)
    if labels:
        for i, row in enumerate(table.to_pylist()):
            example = tf.train.Example.FromString(serialized[i])
            for task in TASKS:
                stored = example.features.feature[f"label_{task}"]
                stored.float_list.value.extend(row[f"label_{task}"])
            serialized[i] = example.SerializeToString()
    return serialized


def _first(one: Built, count: int = 12) -> dict:
    return {name: value[:count] for name, value in one.batch().items()}


def test_signatures_are_those_of_the_registry(served):
    assert set(served) >= set(registry.get("dv365").signatures)


def test_score_is_the_model(trained, served):
    answers = served["score"](examples=tf.constant(_requests(trained)))
    assert set(answers) == set(TASKS)
    outputs = trained.model(_first(trained)).numpy()
    for k, task in enumerate(TASKS):
        expected = _sigmoid(outputs[..., k]) if k < 2 else outputs[..., k]
        assert answers[task].shape == (12, 1)
        np.testing.assert_allclose(answers[task], expected, rtol=1e-5, atol=1e-6)


def test_score_answers_for_each_candidate(built):
    one = built(NEGATIVES)
    functions = one.task.signatures(one.model, one.prepared.transform, one.spec, {})
    answers = functions["score"](tf.constant(_requests(one)))
    outputs = one.model(_first(one)).numpy()
    for k, task in enumerate(TASKS):
        expected = _sigmoid(outputs[..., k]) if k < 2 else outputs[..., k]
        assert answers[task].shape == (12, 3)
        np.testing.assert_allclose(answers[task], expected, rtol=1e-5, atol=1e-6)
    shown = functions["transform_features"](tf.constant(_requests(one, labels=True)))
    liked = shown["outcome_liked"].numpy()
    assert liked.shape == (12, 3)
    assert (liked[:, 1:] == 0).all()
    assert np.isnan(shown["outcome_watch"].numpy()[:, 1:]).all()


def test_serving_default_is_the_trainers_encoder(trained, served):
    answers = served["serving_default"](examples=tf.constant(_requests(trained)))
    assert set(answers) == {"embedding", "present"}
    pooled, _ = trained.model.pool(_first(trained))
    assert trained.model.num_vectors == 2 + 2
    assert answers["embedding"].shape == (12, 4, 8)
    assert answers["embedding"].dtype == tf.float32
    assert answers["present"].numpy().all()
    expected = trained.model.encode(pooled)
    np.testing.assert_allclose(answers["embedding"], expected, rtol=1e-5, atol=1e-6)


def _named_tensors(rows: list[dict], tables: list[str]) -> dict[str, tf.Tensor]:
    """The lists of the slices as padded tensors."""
    named = {}
    for table in tables:
        for part, empty, dtype in (
            ("ids", b"", tf.string),
            ("places", 0, tf.int64),
            ("weights", 0.0, tf.float32),
        ):
            name = f"slices_{table}_{part}"
            width = max(1, *(len(row[name]) for row in rows))
            padded = [row[name] + [empty] * (width - len(row[name])) for row in rows]
            named[name] = tf.constant(padded, dtype)
    return named


def _encoded(served, row: dict, tables) -> np.ndarray:
    answer = served["encode"](**_named_tensors([row], list(tables)))
    assert answer["present"].numpy().tolist() == [True]
    return answer["embedding"].numpy()[0]


def test_encode_takes_named_tensors(trained, served):
    rows = trained.parts["validation"].slice(0, 12).to_pylist()
    tables = list(trained.task.timeline.slices.tables)
    expected = served["serving_default"](examples=tf.constant(_requests(trained)))
    for name in ("encode", "serving_raw"):
        answers = served[name](**_named_tensors(rows, tables))
        assert set(answers) == {"embedding", "present"}
        for output, value in expected.items():
            np.testing.assert_allclose(
                tf.cast(answers[output], tf.float32), tf.cast(value, tf.float32), atol=1e-6
            )


def _chunks(row: dict, tables, parts: int, rng: np.random.Generator) -> list[dict]:
    """A history in so many chunks, some of them without anything; ids may be in several."""
    chunks: list[dict] = [{table: [] for table in tables} for _ in range(parts)]
    for table in tables:
        lists = (row[f"slices_{table}_{kind}"] for kind in ("ids", "places", "weights"))
        for term, place, weight in zip(*lists, strict=True):
            share = rng.random()
            for part in (share, 1 - share):
                chunks[rng.integers(parts)][table].append((term, place, weight * part))
    return chunks


@pytest.mark.parametrize("parts", [1, 2, 5])
def test_encode_is_the_sum_of_the_pools_of_chunks(trained, served, parts):
    slices, width = trained.task.timeline.slices, trained.model.config.dim
    rng = np.random.default_rng(parts)
    for row in trained.parts["validation"].slice(0, 4).to_pylist():
        # Ids that no vocabulary knows are part of a history too.
        for kind, value in (("ids", b"unheard of"), ("places", 1), ("weights", 2.5)):
            row[f"slices_liked_topic_{kind}"] = [*row[f"slices_liked_topic_{kind}"], value]
        sums, totals = np.zeros((len(slices.slices), width)), np.zeros(len(slices.slices))
        for chunk in _chunks(row, slices.tables, parts, rng):
            given = {}
            for table, places in slices.tables.items():
                terms = sorted({term for term, _, _ in chunk[table]})
                weights = np.zeros((len(places), len(terms)), "float32")
                for term, place, weight in chunk[table]:
                    weights[place, terms.index(term)] += weight
                    totals[places[place]] += weight
                given[f"terms_{table}"] = tf.constant(terms, tf.string)
                given[f"weights_{table}"] = tf.constant(weights)
            answers = served["pool"](**given)
            for table, places in slices.tables.items():
                assert answers[f"sums_{table}"].shape == (len(places), width)
                sums[list(places)] += answers[f"sums_{table}"].numpy()
        pooled = sums / np.where(totals > 0, totals, 1.0)[:, None]
        answer = served["summarize"](pooled=tf.constant(pooled[None], tf.float32))
        np.testing.assert_allclose(
            answer["embedding"].numpy()[0], _encoded(served, row, slices.tables), rtol=0, atol=1e-6
        )


def _example(**features) -> bytes:
    example = tf.train.Example()
    for name, values in features.items():
        stored = example.features.feature[name]
        if name.endswith("_ids"):
            stored.bytes_list.value.extend(values)
        elif name.endswith("_places"):
            stored.int64_list.value.extend(values)
        else:
            stored.float_list.value.extend(values)
    return example.SerializeToString()


def _liked(ids: list, places: list, weights: list) -> bytes:
    name = "slices_liked_topic"
    return _example(**{f"{name}_ids": ids, f"{name}_places": places, f"{name}_weights": weights})


def _answers(served, *requests: bytes) -> tuple[np.ndarray, list[bool]]:
    answer = served["serving_default"](examples=tf.constant(requests))
    return answer["embedding"].numpy(), answer["present"].numpy().tolist()


def test_a_user_without_events_has_a_vector_of_zeros_and_is_not_present(trained, served):
    whole = _liked([b"t1", b"t2"], [0, 1], [1.0, 2.0])
    vectors, present = _answers(served, b"", whole, _liked([], [], []), _liked([b""], [0], [1.0]))
    assert present == [False, True, False, False]
    assert not vectors[[0, 2, 3]].any()
    assert vectors[1].any()
    # The same in a batch of its own, and where the weights are nothing.
    vectors, present = _answers(served, b"")
    assert present == [False] and not vectors.any()
    vectors, present = _answers(served, _liked([b"t1"], [0], [0.0]))
    assert present == [False] and not vectors.any()
    empty = {
        name: value[:, :0]
        for name, value in _named_tensors(
            trained.parts["validation"].slice(0, 2).to_pylist(),
            list(trained.task.timeline.slices.tables),
        ).items()
    }
    answer = served["encode"](**empty)
    assert answer["present"].numpy().tolist() == [False, False]
    assert not answer["embedding"].numpy().any()
    # `score` answers for such users too.
    for value in served["score"](examples=tf.constant([b""])).values():
        assert np.isfinite(value.numpy()).all()


def test_unknown_ids_are_a_history_too(served):
    vectors, present = _answers(
        served, _liked([b"unheard of"], [0], [1.0]), _liked([b"nor of this"], [0], [3.0])
    )
    assert present == [True, True]
    assert np.isfinite(vectors).all() and vectors.any()
    np.testing.assert_allclose(vectors[0], vectors[1], atol=1e-6)


def test_places_that_there_are_not_are_ignored(served):
    vectors, present = _answers(
        served,
        _liked([b"t1"], [1], [1.0]),
        _liked([b"t2", b"t1", b"t3"], [2, 1, -1], [1.0, 1.0, 4.0]),
        _liked([b"t2"], [2], [1.0]),
    )
    assert present == [True, True, False]
    np.testing.assert_allclose(vectors[1], vectors[0], atol=1e-6)


@pytest.mark.parametrize(
    "lists",
    [
        ([b"t1", b"t2", b"t3"], [1, 0], [1.0, 2.0]),
        ([b"t1", b"t2"], [1, 0, 1, 1], [1.0, 2.0, 5.0, 7.0]),
        ([b"t1", b"t2", b"t3"], [1, 0, 1], [1.0, 2.0]),
        ([b"t1", b"t2", b"t3"], [1, 0], [1.0, 2.0, 3.0]),
    ],
    ids=["more ids", "fewer ids", "fewer weights", "fewer places"],
)
def test_a_request_whose_lists_are_not_of_one_length_is_refused_by_name(served, lists):
    """An id without a place or a weight, or the other way round, in a batch and alone."""
    wrong = "places" if len(lists[1]) != len(lists[0]) else "weights"
    message = rf"slices_liked_topic_{wrong} has \d values in row 0, slices_liked_topic_ids has \d"
    for others in ((), (_liked([b"t4"] * 6, [0] * 6, [1.0] * 6),)):
        with pytest.raises(tf.errors.InvalidArgumentError, match=message):
            _answers(served, _liked(*lists), *others)


def test_transform_features_answers_with_outcomes_and_slices(trained, served):
    answers = served["transform_features"](
        examples=tf.constant([*_requests(trained, labels=True), b""])
    )
    rows = trained.parts["validation"].slice(0, 12).to_pylist()
    for task in TASKS:
        found = answers[f"outcome_{task}"].numpy()
        expected = [row[f"label_{task}"] for row in rows]
        np.testing.assert_array_equal(found[:12], np.float32(expected))
        assert np.isnan(found[12]).all()
    assert not [name for name in answers if name.startswith("label_")]
    assert {f"{f.name}_xf" for f in trained.spec.features} <= set(answers)
    words = answers["history_events"].numpy().tolist()
    assert words[12] == b"0"
    for row, word in zip(rows, words[:12], strict=True):
        totals: dict[tuple, float] = {}
        for table in trained.task.timeline.slices.tables:
            name = f"slices_{table}"
            for place, weight in zip(row[f"{name}_places"], row[f"{name}_weights"], strict=True):
                totals[table, place] = totals.get((table, place), 0.0) + weight
        assert word == (b"1-99" if max(totals.values()) < 100 else b"100-999")


def test_warm_up_requests_are_answered(trained, served):
    vocabularies = trained.prepared.vocabularies
    requests = trained.task.warmup_examples(vocabularies, trained.spec, 3)
    assert len(requests) == 3
    vectors, present = _answers(served, *requests)
    assert present == [True] * 3
    assert np.isfinite(vectors).all()
    for value in served["score"](examples=tf.constant(requests)).values():
        assert np.isfinite(value.numpy()).all()
    bare = {name: [] for name in vocabularies}
    assert len(trained.task.warmup_examples(bare, trained.spec, 1)) == 1


def test_a_ranker_without_an_encoder_is_not_exported(built, few, tmp_path):
    one = built("model.encoder=none")
    with pytest.raises(InputError, match=r"model\.encoder is none"):
        one.task.signatures(one.model, one.prepared.transform, one.spec, {})
    data, spec, slices = few
    overrides = [*SMALL, f"data.timeline.slices={slices}", "model.encoder=none"]
    overrides += ["trainer.max_steps=1", "trainer.epochs=1"]
    with pytest.raises(InputError, match=r"model\.encoder is none"):
        train("dv365", data, tmp_path / "out", spec, overrides, progress=False)
    assert not (tmp_path / "out" / "model").exists()


# Warm starts.


def _tables(model) -> dict[str, tuple[str, np.ndarray]]:
    """Each table's type of id and its rows."""
    found = {}
    for name, layer in model.slice_tables.items():
        found[f"slices_{name}"] = model.table_ids[name], layer.embeddings.numpy()
    for prefix, layers in (("candidate", model.candidate_tables), ("recent", model.recent_tables)):
        for kind, layer in layers.items():
            found[f"{prefix}_{kind}"] = kind, layer.embeddings.numpy()
    return found


def test_a_warm_start_with_a_grown_vocabulary_remaps_every_table(run, trained, tmp_path):
    grown = Built(_write(tmp_path, new=2, seed=5))
    old, new = trained.prepared.vocabularies, grown.prepared.vocabularies
    assert set(new["topic_xf"]) > set(old["topic_xf"])
    assert new["topic_xf"][: len(old["topic_xf"])] != old["topic_xf"], "in another order too"
    report = warm_start(grown.model, grown.task, new, run[0] / "model" / "1")
    assert not report.fresh
    before, after = _tables(trained.model), _tables(grown.model)
    assert set(before) == set(after)
    assert len(report.remapped) == len(before) == 4 + 2 + 2
    for name, (kind, rows) in after.items():
        terms, known = new[f"{kind}_xf"], old[f"{kind}_xf"]
        first = before[name][1]
        np.testing.assert_array_equal(rows[0], first[0])
        unseen = first[1 + len(known) :].mean(axis=0)
        for i, term in enumerate(terms, start=1):
            expected = first[1 + known.index(term)] if term in known else unseen
            np.testing.assert_allclose(rows[i], expected, rtol=1e-6, err_msg=f"{name}, {term}")
        np.testing.assert_array_equal(rows[-1], first[-1])
    # Everything else is as it was: users of whom nothing is new have the vectors that they had.
    ids = [b"t0", b"t1", b"t2"]
    example = _liked(ids, [0, 1, 0], [1.0, 1.0, 2.0])
    vectors = []
    for one in (trained, grown):
        raw = tf.io.parse_example(
            [example],
            {
                f"slices_liked_topic_{part}": tf.io.VarLenFeature(dtype)
                for part, dtype in (
                    ("ids", tf.string),
                    ("places", tf.int64),
                    ("weights", tf.float32),
                )
            },
        )
        features = densify(one.prepared.transform(raw))
        nothing = one.task.example_inputs(one.prepared.inputs, 1)
        vectors.append(one.task.outputs(one.model, {**nothing, **features})["embedding"].numpy())
    np.testing.assert_allclose(vectors[1], vectors[0], rtol=1e-5, atol=1e-6)


# Bad input.


def _train(world, out: Path, *overrides: str, **changed: str):
    data, spec, slices = world
    settings = [*SMALL, f"data.timeline.slices={slices}", *overrides]
    return train(
        "dv365", changed.get("data", data), out, changed.get("spec", spec), settings, progress=False
    )


def test_a_slice_that_is_empty_for_everyone_is_refused_by_its_name(few, tmp_path):
    path = tmp_path / "slices.yaml"
    path.write_text(
        SLICES + "  - {name: never, timeline: implicit, id: item, table: a, dwell: [999, null]}\n"
    )
    with pytest.raises(InputError, match="no user has an event in slice never: ") as caught:
        _train(few, tmp_path / "out", f"data.timeline.slices={path}")
    assert "liked_topics" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["data.timeline.min_visible=10000"], "is left for train: bring longer histories"),
        (["data.timeline.targets=0"], "data.timeline.targets: must be at least 1"),
        (["data.timeline.split=time"], "a split by time needs both"),
        (["data.timeline.target=3"], "unknown key data.timeline.target; did you mean 'targets'"),
        (
            ["data.timeline.slices=movielens"],
            "slice liked_movies: the source has no ids movie; it has item, topic",
        ),
        (["data.timeline.slices=nowhere.yaml"], "data.timeline.slices: there is no file nowhere"),
        (["evaluator.min_metrics={auc: 0.5}"], "unknown key evaluator.min_metrics"),
        (["evaluator.min_coverage=2"], "evaluator.min_coverage"),
        (["model.attend_over=users"], "model.attend_over"),
    ],
)
def test_bad_settings_are_named(few, tmp_path, settings, message):
    with pytest.raises(InputError, match=message):
        _train(few, tmp_path / "out", *settings)


def test_bad_events_are_named_with_their_line(few, tmp_path, capsys):
    data, spec, slices = few
    lines = Path(data).read_text().splitlines()
    lines.insert(3, "u1,noon,i,t,view,1,1,1,,,")
    (tmp_path / "events.csv").write_text("\n".join(lines) + "\n")
    arguments = ["train", "dv365", "--data", str(tmp_path / "events.csv"), "--features", spec]
    arguments += ["--out", str(tmp_path / "out"), "--quiet", "--set"]
    arguments += [f"data.timeline.slices={slices}", "--set", "data.max_corrupt_fraction=0"]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert "events.csv:4: at is not a time in whole Unix seconds" in error
    assert error.count("\n") == 1


def test_events_that_are_left_out_are_counted_and_named(few, tmp_path, caplog):
    """Unknown actions, and lines that could not be read."""
    data, spec, _ = few
    lines = Path(data).read_text().splitlines()
    lines += ["u1,1600000000,i,t,forward,,,,,,"] * 3 + ["u1,1600000000,i,t,hide,,,,,,", "u1,x"]
    path = tmp_path / "events.csv"
    path.write_text("\n".join(lines) + "\n")
    one = Built(few)
    reader = open_source(str(path), spec, "timeline")
    with caplog.at_level(logging.WARNING):
        parts, left_out = one.task.examples(one.task.resolve(reader))
    assert left_out == 5
    assert "3 events left out: unknown action forward" in caplog.text
    assert "1 events left out: unknown action hide" in caplog.text
    for split, table in one.parts.items():
        assert repr(parts[split].to_pylist()) == repr(table.to_pylist())


def test_models_and_data_of_other_records_do_not_go_together(tmp_path):
    with pytest.raises(InputError, match="criteo:x has impression records, not timeline records"):
        train("dv365", "criteo:x", tmp_path / "o", progress=False)
    with pytest.raises(ConfigError, match="m3 does not learn from timelines"):
        load_run_config("m3", "simulated", ["data.timeline={targets: 5}"])
    with pytest.raises(ConfigError, match=r"data\.timeline: must be given"):
        load_run_config("dv365", "simulated", ["data.timeline=null"])
    with pytest.raises(ConfigError, match="dv365 does not learn from histories"):
        load_run_config("dv365", "simulated", ["data.history={length: 5}"])


# Configurations.


def _some_edits(folder: Path) -> str:
    """The real edits of a dozen users who are neither new nor everywhere."""
    source = REAL / "vcs-edits"
    events = pq.read_table(source / "events.parquet")
    counts = pc.value_counts(events["user"])
    ordinary = pc.and_(
        pc.greater(counts.field("counts"), 300), pc.less(counts.field("counts"), 900)
    )
    users = counts.field("values").filter(ordinary)[:12]
    pq.write_table(events.filter(pc.is_in(events["user"], users)), folder / "events.parquet")
    (folder / "items.parquet").symlink_to(source / "items.parquet")
    return f"vcs-edits:{folder}"


def _some_purchases(folder: Path) -> str:
    source = REAL / "completejourney"
    bought = pq.read_table(source / "transactions.parquet")
    households = bought["household_id"].unique()[:12]
    kept = bought.filter(pc.is_in(bought["household_id"], households))
    pq.write_table(kept, folder / "transactions.parquet", version="2.6")
    (folder / "products.parquet").symlink_to(source / "products.parquet")
    return f"completejourney:{folder}"


def _some_ratings(folder: Path) -> str:
    with zipfile.ZipFile(REAL / "ml-1m" / "ml-1m.zip") as archive:
        for name in ("users.dat", "movies.dat", "ratings.dat"):
            lines = archive.read(f"ml-1m/{name}").splitlines(keepends=True)
            (folder / name).write_bytes(b"".join(lines[:40_000]))
    return f"movielens-1m:{folder}"


def _small_ratings(folder: Path) -> str:
    """Of every fourth user: the lines are in no order."""
    with tarfile.open(REAL / "ml-100k" / "ml-100k.tar.xz") as archive:
        for name in ("u.user", "u.item", "u.data"):
            file = archive.extractfile(f"ml-100k/{name}")
            assert file is not None
            lines = file.read().splitlines(keepends=True)
            if name == "u.data":
                lines = [line for line in lines if int(line.split()[0]) % 4 == 0]
            (folder / name).write_bytes(b"".join(lines))
    return f"movielens-100k:{folder}"


DATA = {
    "vcs-edits": ("vcs-edits", _some_edits),
    "completejourney": ("completejourney", _some_purchases),
    "movielens-1m": ("ml-1m", _some_ratings),
    "movielens-100k": ("ml-100k", _small_ratings),
}


def test_every_known_data_set_has_a_configuration():
    names = {path.stem for path in CONFIGS.glob("*.yaml")} - {"default"}
    assert names == {"simulated", *DATA} == set(registry.get("dv365").datasets)


@pytest.mark.needs("tensorflow_model_analysis")
@pytest.mark.parametrize("name", ["simulated", *DATA])
def test_configurations_make_examples(name, tmp_path):
    overrides = ["data.options={users: 25, days: 15, impressions: 12}"]
    data = name
    if name != "simulated":
        if not (REAL / DATA[name][0]).exists():
            pytest.skip(f"{name} is not here")
        data, overrides = DATA[name][1](tmp_path), []
    config = load_run_config("dv365", name, overrides)
    entry = registry.get("dv365")
    task = entry.new_task(config)
    reader = open_source(data, None, "timeline", **config.data.options)
    source = task.resolve(reader)
    spec, (parts, left_out) = source.spec, task.examples(source)
    assert left_out == 0
    timeline = config.data.timeline
    for split in ("train", "validation", "test"):
        table = parts[split]
        assert table.num_rows > 0
        outcomes = pc.list_value_length(table[f"label_{spec.tasks[0]}"])
        assert set(outcomes.to_pylist()) == {timeline.candidates}
    assert parts["train"].num_rows > parts["validation"].num_rows
    for task_name in config.evaluator.max_normalized_entropy:
        assert task_name in spec.binary
    # No user has more examples than asked for.
    users = [user for table in parts.values() for (user,) in table["user"].to_pylist()]
    assert max(users.count(user) for user in set(users)) <= timeline.targets
    outcome_config(config.evaluator, spec.binary, spec.tasks, True)


def test_slices_by_name_by_file_and_as_a_mapping(tmp_path, monkeypatch):
    ready = load_slices("movielens")
    named = load_run_config("dv365", "simulated", ["data.timeline.slices=movielens"])
    assert named.data.timeline.slices == ready
    path = tmp_path / "mine.yaml"
    path.write_text(SLICES)
    of_file = load_run_config("dv365", "simulated", [f"data.timeline.slices={path}"])
    assert of_file.data.timeline.slices == load_slices(str(path))
    assert of_file.data.timeline.slices.version == 4
    monkeypatch.chdir(tmp_path)
    near = load_run_config("dv365", "simulated", ["data.timeline.slices=mine.yaml"])
    assert near == of_file
    mapping = json.dumps(to_mapping(of_file.data.timeline.slices))
    given = load_run_config("dv365", "simulated", [f"data.timeline.slices={mapping}"])
    assert given == of_file
    # What is saved is the specification, whatever becomes of the file.
    path.unlink()
    assert run_config_from_mapping(run_config_to_mapping(of_file)) == of_file


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("simulatd", "data.timeline.slices: .*simulatd.*did you mean 'simulated'"),
        ("movies", "data.timeline.slices: .*movies"),
        ("none.yaml", "data.timeline.slices: .*none.yaml"),
        ("[liked]", "data.timeline.slices"),
        ("{version: 1, slices: []}", "slices: must not be empty"),
        (
            "{version: 1, slices: [{name: a, timeline: explicit, id: item, tabel: t}]}",
            "tabel; did you mean 'table'",
        ),
    ],
)
def test_slices_that_are_none_are_named(value, message):
    with pytest.raises(ConfigError, match=message) as caught:
        load_run_config("dv365", "simulated", [f"data.timeline.slices={value}"])
    assert "\n" not in str(caught.value)


def test_a_file_of_ones_own_starts_from_the_default_configuration():
    config = load_run_config("dv365", "events.csv")
    (one,) = config.data.timeline.slices.slices
    assert (one.timeline, one.id) == ("explicit", "item")
    assert config.evaluator.slices == (("history_events",),)


# The Evaluator.


def _evaluator(**values):
    overrides = [f"evaluator.{name}={json.dumps(value)}" for name, value in values.items()]
    return load_run_config("dv365", "events.csv", overrides).evaluator


@pytest.mark.needs("tensorflow_model_analysis")
def test_thresholds_are_those_of_the_configuration():
    wanted = _evaluator(max_normalized_entropy={"liked": 0.9}, max_rise=0.03)
    config = load_run_config("dv365", "events.csv", [])
    task = TimelineTask(registry.get("dv365"), dataclasses.replace(config, evaluator=wanted))
    spec = TimelineSpec(binary=("liked", "shared"), regression=("watch",))
    for has_baseline in (True, False):
        found = task.eval_config(spec, has_baseline)
        assert found.model_specs[0].signature_name == "score"
        assert found.model_specs[0].preprocessing_function_names == ["transform_features"]
        assert [list(one.feature_keys) for one in found.slicing_specs] == [[], ["history_events"]]
        metrics = {}
        for spec_ in found.metrics_specs:
            for metric in spec_.metrics:
                name = json.loads(metric.config or "{}").get("name", metric.class_name)
                metrics[name] = metric
        assert list(metrics) == [
            "ExampleCount",
            "normalized_entropy_liked",
            "normalized_entropy_shared",
            "mse_watch",
        ]
        (liked,) = metrics["normalized_entropy_liked"].per_slice_thresholds
        assert liked.threshold.value_threshold.upper_bound.value == 0.9
        assert liked.threshold.HasField("change_threshold") == has_baseline
        shared = metrics["normalized_entropy_shared"].per_slice_thresholds
        assert len(shared) == has_baseline
        if has_baseline:
            assert shared[0].threshold.change_threshold.absolute.value == 0.03
            assert not shared[0].threshold.HasField("value_threshold")
        assert not metrics["mse_watch"].per_slice_thresholds


@pytest.mark.parametrize("name", ["likd", "watch"])
def test_thresholds_on_unknown_tasks_are_named(name):
    wanted = _evaluator(max_normalized_entropy={name: 0.9})
    with pytest.raises(ConfigError) as caught:
        outcome_config(wanted, ("liked",), ("liked", "watch"), False)
    assert f"evaluator.max_normalized_entropy.{name}" in str(caught.value)
    assert "liked" in str(caught.value)


class _Extracts:
    """What TFMA hands to a metric, of one example."""

    def __init__(self, outputs: dict[str, np.ndarray], outcomes: dict[str, list[float]]) -> None:
        self._outputs, self._outcomes = outputs, outcomes

    def get_predictions(self, *names: str):
        return self._outputs

    def get_transformed_features(self, *names: str):
        return {f"outcome_{task}": np.array(v, "float32") for task, v in self._outcomes.items()}


def _judged(kind: str, examples: list[_Extracts], parts: int) -> float:
    """The metric of some examples by accumulators of its parts."""
    from tfx_pipelines.modules.evaluation import OutcomeMetric

    (computation,) = OutcomeMetric(kind, "y", "name").computations()
    combiner = computation.combiner
    accumulators = [combiner.create_accumulator() for _ in range(parts)]
    for i, example in enumerate(examples):
        accumulators[i % parts] = combiner.add_input(accumulators[i % parts], example)
    merged = combiner.merge_accumulators(iter(accumulators))
    ((key, value),) = combiner.extract_output(merged).items()
    assert key == computation.keys[0]
    assert key.name == "name"
    return value


@pytest.mark.needs("apache_beam")
@pytest.mark.parametrize("parts", [1, 3])
def test_metrics_of_the_evaluator_are_their_definitions(parts):
    rng = np.random.default_rng(0)
    p = rng.uniform(0.05, 0.95, (30, 2)).astype("float32")
    y = np.where(rng.random((30, 2)) < 0.3, np.nan, rng.integers(0, 2, (30, 2)))
    examples = [
        _Extracts({"y": p[i], "other": p[i] * 0}, {"y": y[i].tolist(), "other": [0.0, 0.0]})
        for i in range(30)
    ]
    known = np.isfinite(y)
    label, chance = y[known], p[known].astype(float)
    loss = -np.mean(label * np.log(chance) + (1 - label) * np.log(1 - chance))
    rate = label.mean()
    entropy = -rate * np.log(rate) - (1 - rate) * np.log(1 - rate)
    assert _judged("normalized_entropy", examples, parts) == pytest.approx(loss / entropy)
    assert _judged("mse", examples, parts) == pytest.approx(np.mean((label - chance) ** 2))


@pytest.mark.needs("apache_beam")
def test_metrics_of_the_evaluator_by_hand():
    """Invariant 12."""
    y, p = [1.0, 0, 0, 1, 0], [0.8, 0.1, 0.3, 0.6, 0.2]
    examples = [_Extracts({"y": np.array([b])}, {"y": [a]}) for a, b in zip(y, p, strict=True)]
    assert _judged("normalized_entropy", examples, 2) == pytest.approx(0.42173063426891527)
    even = [_Extracts({"y": np.array([0.4])}, {"y": [a]}) for a in y]
    assert _judged("normalized_entropy", even, 2) == pytest.approx(1.0)
    # Of nothing, and of outcomes that are all alike, there is none; certainty costs no infinity.
    assert math.isnan(_judged("mse", [], 2))
    assert math.isnan(_judged("normalized_entropy", [], 1))
    alike = [_Extracts({"y": np.array([0.4])}, {"y": [1.0]})]
    assert math.isnan(_judged("normalized_entropy", alike, 1))
    sure = [_Extracts({"y": np.array([0.0])}, {"y": [1.0]}), examples[1]]
    assert math.isfinite(_judged("normalized_entropy", sure, 1))
    unknown = [_Extracts({"y": np.array([0.4, 0.1])}, {"y": [math.nan, math.nan]})]
    assert math.isnan(_judged("mse", unknown, 1))
