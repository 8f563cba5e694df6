"""Teachers: found, asked, refused; and what each model makes of what its teacher says."""

from __future__ import annotations

import dataclasses
import json
import shutil

import keras
import numpy as np
import pyarrow as pa
import pytest
import tensorflow as tf

from tests.oracles.temporal import softmax
from tfrz.cli.main import main
from tfrz.data.columns import one_each, to_examples
from tfrz.data.impressions.spec import FeatureSpec
from tfrz.data.records import open_source
from tfrz.data.spec import Feature, numeric
from tfrz.errors import ConfigError, InputError
from tfrz.training.batches import ArrayBatches
from tfrz.training.distiller import DistillConfig
from tfrz.training.fit import build_model
from tfrz.zoo import registry
from tfrz.zoo.run_config import load_run_config
from tfrz.zoo.teacher import (
    TEACHER_SCORE,
    LiveTeacher,
    ScoringTeacher,
    check_scores,
    find_teacher,
    load_teacher,
    logits_of,
    with_teacher,
)
from tfrz.zoo.train import train

QUICK = ("trainer.tensorboard=false", "trainer.max_steps=4", "export.warmup_examples=0")
CLICKS = (*QUICK, "data.options={rows: 2000}", "trainer.batch_size=128", "model.hidden_units=[8]")
# Model to settings that make it small.
LIVE = {
    "m3": (
        "data.options={users: 100, length: 9}",
        "data.history.length=8",
        "trainer.batch_size=16",
    ),
    "multi_interest": (
        "data.options={world: interests, users: 200, item_power: 1.0}",
        "trainer.batch_size=32",
        "export.top_k=5",
    ),
    "topk_reinforce": (
        "data.options={users: 300, length: 4, items: 30, segments: 5}",
        "trainer.batch_size=16",
        "export.top_k=5",
    ),
    "seq2slate": (
        "data.options={queries: 120, length: 5}",
        "data.lists.length=5",
        "trainer.batch_size=16",
    ),
    "dv365": ("data.options={users: 60, days: 20, impressions: 10}", "trainer.batch_size=16"),
}


# Where a teacher is.


@pytest.mark.parametrize("below", ["", "7", "model/7", "serving/dcn_v2/7"])
def test_the_newest_model_of_a_place_is_found(tmp_path, below):
    newest = tmp_path / below
    newest.mkdir(parents=True, exist_ok=True)
    (newest / "saved_model.pb").write_bytes(b"")
    if below:
        older = newest.parent / "6"
        older.mkdir()
        (older / "saved_model.pb").write_bytes(b"")
    assert find_teacher(tmp_path) == newest


def test_a_place_without_a_model_is_refused_and_one_with_several_names_them(tmp_path):
    with pytest.raises(InputError, match=r"distill\.teacher: no SavedModel in"):
        find_teacher(tmp_path / "nowhere")
    for name in ("dcn_v2", "m3"):
        (tmp_path / "serving" / name / "1").mkdir(parents=True)
        (tmp_path / "serving" / name / "1" / "saved_model.pb").write_bytes(b"")
    with pytest.raises(InputError, match="serves dcn_v2, m3"):
        find_teacher(tmp_path)


def test_logits_of_probabilities():
    p = np.array([0.0, 1e-3, 0.5, 0.999, 1.0])
    found = logits_of(tf.constant(p)).numpy()
    np.testing.assert_allclose(found[1:4], np.log(p[1:4] / (1 - p[1:4])), rtol=1e-4)
    assert found[2] == 0 and np.isfinite(found).all() and (np.diff(found) > 0).all()


# Impressions.


@pytest.fixture(scope="module")
def clicks(tmp_path_factory):
    """A trained DCN-V2."""
    out = tmp_path_factory.mktemp("clicks") / "teacher"
    train("dcn_v2", out=out, overrides=[*CLICKS, "trainer.max_steps=20"], progress=False)
    return out


SPEC = FeatureSpec(
    (
        Feature("word"),
        Feature("tags", multivalent=True),
        numeric("size"),
        Feature("n", dtype="int64"),
    ),
    outcomes=(TEACHER_SCORE,),
)
ROWS = pa.table(
    {
        "word": one_each(pa.array([b"a", None, b"ccc"], pa.binary()), "string"),
        "tags": pa.array([[b"x", b"y"], [], [b"z"]], pa.list_(pa.binary())),
        "size": one_each(pa.array([1.0, 2.0, None], pa.float32()), "float32"),
        "n": one_each(pa.array([7, None, 9], pa.int64()), "int64"),
    }
)


class _Foreign(tf.Module):
    """A SavedModel that is not of the zoo: the probability is a function of the lengths."""

    def __init__(self, named: bool, output: str = "scores", factor: float = 0.1) -> None:
        super().__init__()

        def of(word: tf.Tensor, tags: tf.Tensor, size: tf.Tensor) -> dict[str, tf.Tensor]:
            length = tf.strings.length(word)
            many = tf.reduce_sum(tf.cast(tags != "", tf.int32), axis=1)
            known = tf.where(tf.math.is_nan(size), tf.zeros_like(size), size)
            return {output: factor * (tf.cast(length + many, tf.float32) + known)}

        if named:
            inputs = {
                "word": tf.TensorSpec([None], tf.string, "word"),
                "tags": tf.TensorSpec([None, None], tf.string, "tags"),
                "size": tf.TensorSpec([None], tf.float32, "size"),
            }
            self.answer = tf.function(
                lambda x: of(x["word"], x["tags"], x["size"]), input_signature=[inputs]
            )
        else:
            parse = {
                "word": tf.io.FixedLenFeature([], tf.string, ""),
                "tags": tf.io.VarLenFeature(tf.string),
                "size": tf.io.FixedLenFeature([], tf.float32, np.nan),
            }

            def parsed(examples: tf.Tensor) -> dict[str, tf.Tensor]:
                x = tf.io.parse_example(examples, parse)
                return of(x["word"], tf.sparse.to_dense(x["tags"], ""), x["size"])

            self.answer = tf.function(
                parsed, input_signature=[tf.TensorSpec([None], tf.string, "examples")]
            )

    def save(self, place, signature: str):
        tf.saved_model.save(self, str(place), signatures={signature: self.answer})
        return str(place)


@pytest.mark.parametrize("named", [True, False])
def test_any_saved_model_with_scores_teaches_clicks(tmp_path, named):
    place = _Foreign(named).save(tmp_path / "m", "serving_raw" if named else "serving_default")
    table = ScoringTeacher(place, SPEC).scored(ROWS)
    found = [row[0] for row in table[TEACHER_SCORE].to_pylist()]
    assert found == pytest.approx([0.4, 0.2, 0.4])
    assert ScoringTeacher(place, SPEC).scored(ROWS.slice(0, 0)).num_rows == 0


def test_a_teacher_of_clicks_that_does_not_fit_is_refused(tmp_path):
    place = _Foreign(True, "logits").save(tmp_path / "a", "serving_raw")
    with pytest.raises(InputError, match="answers with logits: a teacher of clicks gives 'scores'"):
        ScoringTeacher(place, SPEC)
    place = _Foreign(True, factor=1.0).save(tmp_path / "b", "serving_raw")
    with pytest.raises(InputError, match=r"gave 4.0 among the scores of 3 examples"):
        ScoringTeacher(place, SPEC).scored(ROWS)
    place = _Foreign(True).save(tmp_path / "c", "other")
    with pytest.raises(InputError, match="neither serving_raw nor serving_default"):
        ScoringTeacher(place, SPEC)
    fewer = dataclasses.replace(SPEC, features=SPEC.features[:2])
    place = _Foreign(True).save(tmp_path / "d", "serving_raw")
    with pytest.raises(
        InputError, match="reads the feature 'size', which is missing from the data"
    ):
        ScoringTeacher(place, fewer)
    (tmp_path / "e").mkdir()
    (tmp_path / "e" / "saved_model.pb").write_bytes(b"not a model")
    with pytest.raises(InputError, match="cannot be loaded"):
        ScoringTeacher(str(tmp_path / "e"), SPEC)


def test_the_column_of_the_teacher_may_not_be_there():
    taken = FeatureSpec((Feature(TEACHER_SCORE),))
    with pytest.raises(ConfigError, match=TEACHER_SCORE):
        with_teacher(DistillConfig(teacher="x"), taken)
    assert with_teacher(DistillConfig(), taken) is taken


def _clicks_task(*overrides):
    entry = registry.get("dcn_v2")
    config = load_run_config("dcn_v2", "simulated", [*CLICKS, *overrides])
    return entry.new_task(config)


def test_scores_are_those_that_the_teacher_serves(clicks):
    task = _clicks_task(f"distill.teacher={clicks}")
    prepared = task.prepare(open_source("simulated", None, "impression", rows=2000))
    loaded = tf.saved_model.load(str(clicks / "model" / "1")).signatures["serving_default"]
    served = loaded(tf.constant(prepared.examples[:100]))["scores"].numpy()
    column = prepared.validation.columns()[f"{TEACHER_SCORE}_xf"]
    np.testing.assert_allclose(column[:100], served, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("weight", "temperature"), [(0.3, 1.0), (1.0, 2.0)])
def test_the_loss_of_clicks_is_the_formula(clicks, weight, temperature):
    settings = (f"distill.weight={weight}", f"distill.temperature={temperature}")
    task = _clicks_task(f"distill.teacher={clicks}", *settings)
    prepared = task.prepare(open_source("simulated", None, "impression", rows=2000))
    model = build_model(lambda: task.build(prepared.inputs), task.config.trainer)
    batch = next(iter(prepared.train.epoch(0)))
    found, _ = task.dense_loss(model, task.lookup(model, batch))
    sigmoid = lambda x: 1 / (1 + np.exp(-x))  # noqa: E731
    s = np.asarray(model(batch), np.float64)
    q = np.asarray(batch[f"{TEACHER_SCORE}_xf"], np.float64)
    y = batch["label_xf"].numpy()

    def bce(target, logit):
        p = sigmoid(logit)
        return -target * np.log(p) - (1 - target) * np.log(1 - p)

    soft = bce(sigmoid(np.log(q / (1 - q)) / temperature), s / temperature)
    expected = (1 - weight) * bce(y, s) + weight * temperature**2 * soft
    np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.mark.slow
def test_a_student_without_weight_is_one_without_a_teacher(clicks, tmp_path):
    weights = []
    for name, more in (("plain", ()), ("taught", (f"distill.teacher={clicks}",))):
        overrides = [*CLICKS, *more, "distill.weight=0"]
        result = train("dcn_v2", out=tmp_path / name, overrides=overrides, progress=False)
        reader = tf.train.load_checkpoint(f"{result['model']}/variables/variables")
        weights.append({n: reader.get_tensor(n) for n in reader.get_variable_to_shape_map()})
        assert ("teacher, test" in result["metrics"]) == bool(more)
    plain, taught = weights
    assert set(plain) == set(taught)
    for name in filter(lambda n: n.startswith("weights/"), plain):
        np.testing.assert_array_equal(plain[name], taught[name])


def test_the_metrics_of_the_teacher_stand_beside_the_students(clicks, tmp_path):
    overrides = [*CLICKS, f"distill.teacher={clicks}"]
    result = train("dcn_v2", out=tmp_path / "run", overrides=overrides, progress=False)
    own = json.loads((clicks / "metrics.json").read_text())["metrics"]
    for name in ("validation", "test"):
        for metric, value in result["metrics"][f"teacher, {name}"].items():
            assert value == pytest.approx(own[name][metric], abs=1e-4)
    # What is served asks for nothing of the teacher's, and says who taught.
    signature = tf.saved_model.load(result["model"]).signatures["serving_raw"]
    assert TEACHER_SCORE not in signature.structured_input_signature[1]
    assert str(clicks) in (tmp_path / "run" / "card.md").read_text()


@pytest.mark.slow
def test_a_killed_distillation_ends_with_the_bits_of_one_that_was_not(clicks, tmp_path):
    settings = [*CLICKS, f"distill.teacher={clicks}", "trainer.max_steps=12"]
    settings += ["trainer.checkpoint_every_steps=4", "trainer.steps_per_call=2"]
    whole = train("dcn_v2", out=tmp_path / "whole", overrides=settings, progress=False)
    train("dcn_v2", out=tmp_path / "part", overrides=settings, progress=False)
    for name in ("metrics.json", "card.md", "history.json"):
        (tmp_path / "part" / name).unlink()
    shutil.rmtree(tmp_path / "part" / "model")
    checkpoints = tmp_path / "part" / "checkpoints"
    for path in checkpoints.glob("ckpt-12*"):
        path.unlink()
    state = (checkpoints / "checkpoint").read_text().splitlines()
    kept = [line for line in state if "ckpt-12" not in line]
    kept[0:0] = ['model_checkpoint_path: "ckpt-8"']
    (checkpoints / "checkpoint").write_text("\n".join(kept) + "\n")
    again = train("dcn_v2", out=tmp_path / "part", overrides=settings, progress=False)
    assert again["resumed_from"] == 8
    assert again["metrics"] == whole["metrics"]


# Live teachers.


def _setup(name, *overrides, seed=1):
    entry = registry.get(name)
    config = load_run_config(name, "simulated", [*QUICK, *LIVE[name], *overrides])
    task = entry.new_task(config)
    reader = open_source("simulated", None, entry.record_type, **config.data.options)
    prepared = task.prepare(reader)
    model = build_model(lambda: task.build(prepared.inputs), config.trainer)
    return task, prepared, model, next(iter(prepared.train.epoch(0)))


def _teacher(task, prepared, seed=77):
    """An untrained teacher, its weights large enough to say something."""
    keras.utils.set_random_seed(seed)
    model = task.build(prepared.inputs)
    rng = np.random.default_rng(seed)
    for weight in model.trainable_weights:
        weight.assign(rng.normal(0, 0.4, weight.shape))
    return LiveTeacher(None, task, model)


def _losses(name, factor="full", weight=0.4, temperature=2.0, *more):
    """Losses of a batch: by labels alone, by the mixture; the teacher's and the student's models."""
    settings = ("distill.teacher=there", f"distill.factor={factor}")
    settings += (f"distill.temperature={temperature}", *more)
    task, prepared, model, batch = _setup(name, *settings)
    if hasattr(task, "start"):
        task.start(model, prepared.train)
    keras.utils.set_random_seed(3)
    rng = np.random.default_rng(5)
    for variable in model.trainable_weights:
        variable.assign(rng.normal(0, 0.3, variable.shape))
    task.teacher = _teacher(task, prepared)
    looked_up = task.lookup(model, batch)
    found = {}
    for value in (0.0, weight, 1.0):
        config = dataclasses.replace(task.config.distill, weight=value)
        task.config = dataclasses.replace(task.config, distill=config)
        found[value] = task.dense_loss(model, looked_up)[0].numpy()
    mixed = (1 - weight) * found[0.0] + weight * found[1.0]
    np.testing.assert_allclose(found[weight], mixed, rtol=1e-4, atol=1e-5)
    return task, model, batch, looked_up, found[1.0]


def _cross_entropy(rho, logits):
    z = np.asarray(logits, np.float64)
    z = z - z.max(axis=-1, keepdims=True)
    return -(rho * (z - np.log(np.exp(z).sum(axis=-1, keepdims=True)))).sum(axis=-1)


def _mean_of_steps(steps, weights):
    return (steps * weights).sum(axis=1) * len(weights) / max(weights.sum(), 1)


@pytest.mark.parametrize("factor", ["full", "topk", "similarity"])
def test_m3_learns_its_teachers_items_at_every_step(factor):
    more = ("distill.k=3",) if factor == "topk" else ()
    task, model, batch, looked_up, soft = _losses("m3", factor, 0.4, 2.0, *more)
    teacher = task.teacher.model
    logits = {}
    for who, one in (("student", model), ("teacher", teacher)):
        items, bias = (np.asarray(v, np.float64) for v in one.item_vectors())
        hidden = np.asarray(one.encode(one.embed(batch)), np.float64)
        logits[who] = hidden @ items.T + bias
    targets = looked_up["targets"].numpy()
    q = softmax(logits["teacher"] / 2)
    if factor == "topk":
        kept = np.argsort(-q, axis=-1)[..., :3]
        rho = np.zeros_like(q)
        rest = 1 - np.take_along_axis(q, kept, -1).sum(-1, keepdims=True)
        rho[...] = rest / (q.shape[-1] - 3)
        np.put_along_axis(rho, kept, np.take_along_axis(q, kept, -1), -1)
    elif factor == "similarity":
        vectors = np.asarray(teacher.item_vectors()[0], np.float64)
        unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        rho = softmax(unit @ unit.T / 0.3)[np.clip(targets - 1, 0, None)]
    else:
        rho = q
    steps = 4 * _cross_entropy(rho, logits["student"] / 2)
    expected = _mean_of_steps(steps, looked_up["weights"].numpy())
    np.testing.assert_allclose(soft, expected, rtol=2e-4)


def test_a_policy_learns_its_teachers_policy():
    task, model, batch, looked_up, soft = _losses("topk_reinforce")
    teacher = task.teacher.model
    logits = [one.policy_logits(one.encode(one.embed(batch))).numpy() for one in (model, teacher)]
    steps = 4 * _cross_entropy(softmax(np.asarray(logits[1], np.float64) / 2), logits[0] / 2)
    expected = _mean_of_steps(steps, looked_up["counted"].numpy().astype(float))
    # The logger's head has no teacher: its loss stands beside both.
    config = dataclasses.replace(task.config.model, behavior_weight=0.0)
    model.config = config
    found = task.dense_loss(model, looked_up)[0].numpy()
    np.testing.assert_allclose(found, expected, rtol=2e-4)
    assert not np.allclose(found, soft)


def test_two_towers_learn_the_teachers_scores_of_the_same_candidates():
    more = ("model.num_negatives=7", "model.focal_gamma=0")
    task, model, batch, looked_up, soft = _losses("multi_interest", "full", 0.4, 1.0, *more)
    teacher = task.teacher.model
    candidates, targets = (looked_up[n].numpy() for n in ("candidates", "targets"))
    log_q = np.asarray(looked_up.get("log_q", np.zeros(len(candidates))), np.float64)
    rows = np.arange(len(targets))
    hits = (candidates[None, :] == targets[:, None]) & (
        np.arange(len(candidates))[None, :] != rows[:, None]
    )
    hits |= ((candidates < 1) | (candidates > model.num_items))[None, :] & (
        np.arange(len(candidates))[None, :] != rows[:, None]
    )
    logits = []
    for one in (model, teacher):
        users = one.encode(one.embed(batch))
        items = one.encode_items(one.embed_items(tf.constant(candidates)))
        scores = np.asarray(one.score(users, items), np.float64) - log_q
        logits.append(np.where(hits, -1e9, scores))
    assert hits.any()
    expected = looked_up["weights"].numpy() * _cross_entropy(softmax(logits[1]), logits[0])
    np.testing.assert_allclose(soft, expected, rtol=2e-4, atol=1e-5)


@pytest.mark.parametrize("scorer", ["sequential", "one_step", "mlp"])
def test_a_slate_is_learnt_in_the_teachers_order(scorer):
    more = (f"model.scorer={scorer}", "distill.k=2", "model.dropout=0")
    task, model, batch, _, soft = _losses("seq2slate", "topk", 0.4, 1.0, *more)
    order = task.teacher.model.best(batch).positions.numpy()
    expected = []
    forced = model.slate(model.embed(batch), "forced", positions=tf.constant(order))
    scores = forced.scores.numpy().astype(np.float64)
    free = forced.available.numpy()
    for row in range(len(order)):
        total = 0.0
        for place in range(2):
            if order[row, place] < 0:
                continue
            z = np.where(free[row, place], scores[row, place], -np.inf)
            total -= z[order[row, place]] - np.log(np.exp(z - z.max()).sum()) - z.max()
        expected.append(total)
    np.testing.assert_allclose(soft, expected, rtol=2e-4, atol=1e-5)


def test_outcomes_of_timelines_are_learnt_from_the_teachers():
    task, model, batch, looked_up, soft = _losses("dv365", "full", 0.4, 1.0)
    z = np.asarray(model.interact(looked_up, training=True), np.float64)
    v = np.asarray(task.teacher.model(batch), np.float64)
    known = np.isfinite(looked_up["label"].numpy())
    count = len(task._binary)
    q = 1 / (1 + np.exp(-v[..., :count]))
    p = 1 / (1 + np.exp(-z[..., :count]))
    losses = np.concatenate(
        [-q * np.log(p) - (1 - q) * np.log(1 - p), np.square(v[..., count:] - z[..., count:])], -1
    )
    means = (losses * known).sum(axis=1) / np.maximum(known.sum(axis=1), 1)
    np.testing.assert_allclose(soft, means.sum(axis=1), rtol=1e-3)


@pytest.mark.parametrize("name", ["m3", "topk_reinforce", "dv365"])
def test_label_smoothing_needs_no_teacher(name):
    task, _, model, batch = _setup(name, "distill.factor=label_smoothing", "distill.weight=0.5")
    looked_up = task.lookup(model, batch)
    smoothed = task.dense_loss(model, looked_up)[0].numpy()
    task.config = dataclasses.replace(task.config, distill=DistillConfig())
    assert not np.allclose(smoothed, task.dense_loss(model, looked_up)[0].numpy())


@pytest.fixture(scope="module")
def lists(tmp_path_factory):
    out = tmp_path_factory.mktemp("lists") / "teacher"
    train("seq2slate", out=out, overrides=[*QUICK, *LIVE["seq2slate"]], progress=False)
    return out


@pytest.fixture(scope="module")
def histories(tmp_path_factory):
    out = tmp_path_factory.mktemp("histories") / "teacher"
    train("m3", out=out, overrides=[*QUICK, *LIVE["m3"]], progress=False)
    return out


def _student_data(name, *overrides):
    task, prepared, _, _ = _setup(name, *overrides)
    return task, prepared


def test_a_live_teacher_answers_as_it_serves(histories):
    task, data = _student_data("m3", "model.encoder_dim=4")
    teacher = load_teacher(str(histories), task, data)
    assert teacher.task.config.model.encoder_dim != 4
    served = tf.saved_model.load(str(histories / "model" / "1"))
    asked = tf.constant(data.examples[:20])
    expected = served.signatures["serving_default"](asked)["scores"].numpy()
    signatures = teacher.task.signatures(
        teacher.model, data.transform, data.spec, data.vocabularies
    )
    found = signatures["serving_default"](asked)["scores"].numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_a_live_teacher_that_does_not_fit_is_refused(histories, lists, clicks, tmp_path):
    task, data = _student_data("m3")
    with pytest.raises(InputError, match="holds seq2slate, whose outputs are not those of m3"):
        load_teacher(str(lists), task, data)
    foreign = _Foreign(True).save(tmp_path / "foreign", "serving_raw")
    with pytest.raises(InputError, match="is no model that tfrz exported"):
        load_teacher(foreign, task, data)
    terms = dict(data.vocabularies)
    terms["item_xf"] = [*terms["item_xf"][:-1], "item_new"]
    with pytest.raises(InputError, match=r"vocabulary of item_xf .* only the .* has '"):
        load_teacher(str(histories), task, dataclasses.replace(data, vocabularies=terms))
    with pytest.raises(InputError, match=r"vocabulary of|another (shape|structure)|made otherwise"):
        load_teacher(str(histories), *_student_data("m3", "data.history.length=5"))
    # The same lists, scaled otherwise: nothing but its answers tells.
    task, data = _student_data("seq2slate")

    def scaled(raw):
        transformed = dict(data.transform(raw))
        return {**transformed, "features_xf": 2.0 * transformed["features_xf"]}

    load_teacher(str(lists), task, data)
    with pytest.raises(InputError, match=r"gives other .* on these data"):
        load_teacher(str(lists), task, dataclasses.replace(data, transform=scaled))


@pytest.mark.slow
def test_a_taught_m3_is_trained_and_exported(histories, tmp_path):
    overrides = [*QUICK, *LIVE["m3"], f"distill.teacher={histories}", "distill.weight=0.5"]
    result = train("m3", out=tmp_path / "run", overrides=overrides, progress=False)
    own = json.loads((histories / "metrics.json").read_text())["metrics"]
    assert result["metrics"]["teacher, test"] == pytest.approx(own["test"], abs=1e-6)
    reader = tf.train.load_checkpoint(f"{result['model']}/variables/variables")
    alone = tf.train.load_checkpoint(f"{histories}/model/1/variables/variables")
    # Nothing of the teacher is saved along.
    assert set(reader.get_variable_to_shape_map()) == set(alone.get_variable_to_shape_map())


# What a user types wrong.


@pytest.mark.parametrize(
    ("model", "setting", "words"),
    [
        ("dcn_v2", "distill.temperature=0", "distill.temperature: must be above 0"),
        ("dcn_v2", "distill.weight=2", "distill.weight: must be 0 to 1"),
        ("dcn_v2", "distill.factor=similarity", "class vectors"),
        ("dcn_v2", "distill.k=3", "above 2, the classes of a click"),
        ("dcn_v2", "distill.factor=topkk", "distill.factor"),
        ("seq2slate", "distill.factor=partial", "take full or topk"),
        ("multi_interest", "distill.factor=topk", "take full"),
        ("dcn_v2", "distill.weight=0.5", "no SavedModel in"),
        ("m3", "distill.weight=0.5", "no SavedModel in"),
    ],
)
def test_one_line_and_exit_status_2(model, setting, words, tmp_path, capsys):
    command = ["train", model, "--out", str(tmp_path / "out"), "--quiet"]
    command += ["--set", f"distill.teacher={tmp_path / 'nowhere'}", "--set", setting]
    assert main(command) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and words in lines[0]
    assert not (tmp_path / "out").exists()


def test_k_above_the_number_of_classes_is_told_before_training(histories, tmp_path, capsys):
    command = ["train", "m3", "--out", str(tmp_path / "out"), "--quiet"]
    for setting in (*QUICK, *LIVE["m3"], f"distill.teacher={histories}", "distill.factor=topk"):
        command += ["--set", setting]
    assert main([*command, "--set", "distill.k=100000"]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and "the number of classes, not 100000" in lines[0]


def test_what_serializes_is_what_travels(clicks):
    """The teacher's column is no part of a request."""
    with_score = ROWS.append_column(TEACHER_SCORE, one_each(pa.array([0.1] * 3), "float32"))
    example = tf.train.Example.FromString(to_examples(with_score, SPEC, 1)[0])
    assert TEACHER_SCORE not in example.features.feature


@pytest.mark.slow
def test_data_whose_label_has_another_name_are_taught_too(tmp_path):
    rng = np.random.default_rng(0)
    lines = ["user,item,clicked"]
    lines += [f"u{rng.integers(9)},i{rng.integers(9)},{rng.integers(2)}" for _ in range(600)]
    (tmp_path / "clicks.csv").write_text("\n".join(lines) + "\n")
    (tmp_path / "spec.yaml").write_text("label: clicked\nfeatures: [{name: user}, {name: item}]\n")
    source = (str(tmp_path / "clicks.csv"), tmp_path / "teacher", str(tmp_path / "spec.yaml"))
    settings = [*QUICK, "trainer.batch_size=64", "model.hidden_units=[4]"]
    train("dcn_v2", *source, settings, progress=False)
    taught = [*settings, f"distill.teacher={tmp_path / 'teacher'}"]
    result = train("dcn_v2", source[0], tmp_path / "run", source[2], taught, progress=False)
    assert result["metrics"]["teacher, test"]["log_loss"] > 0
    assert (tmp_path / "run" / "teaching.png").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("multi_interest", ()),
        ("topk_reinforce", ("export.deterministic=1",)),  # The others of a slate are drawn.
    ],
)
def test_the_other_models_of_histories_are_loaded_as_they_were_trained(name, more, tmp_path):
    settings = [*QUICK, *LIVE[name], *more]
    train(name, out=tmp_path / "teacher", overrides=settings, progress=False)
    taught = [*settings, f"distill.teacher={tmp_path / 'teacher'}"]
    result = train(name, out=tmp_path / "run", overrides=taught, progress=False)
    own = json.loads((tmp_path / "teacher" / "metrics.json").read_text())["metrics"]["test"]
    assert result["metrics"]["teacher, test"] == pytest.approx(own, abs=1e-5)


def test_a_teacher_of_several_or_of_other_inputs_is_refused(tmp_path):
    several = _Foreign(True).save(tmp_path / "a", "serving_default")
    with pytest.raises(InputError, match="reads size, tags, word: a teacher of clicks reads"):
        ScoringTeacher(several, SPEC)
    features = (Feature("word", dtype="int64"), *SPEC.features[1:])
    place = _Foreign(True).save(tmp_path / "b", "serving_raw")
    with pytest.raises(InputError, match="reads 'word' as string, the data have it as int64"):
        ScoringTeacher(place, dataclasses.replace(SPEC, features=features))


@pytest.mark.slow
def test_a_run_keeps_the_version_that_it_began_with(clicks, tmp_path):
    versions = tmp_path / "versions"
    shutil.copytree(clicks / "model" / "1", versions / "1")
    overrides = [*CLICKS, f"distill.teacher={versions}"]
    train("dcn_v2", out=tmp_path / "run", overrides=overrides, progress=False)
    assert f"{versions}/1" in (tmp_path / "run" / "config.yaml").read_text()
    (tmp_path / "run" / "metrics.json").unlink()
    shutil.copytree(versions / "1", versions / "2")
    with pytest.raises(ConfigError, match=r"another distill\.teacher"):
        train("dcn_v2", out=tmp_path / "run", overrides=overrides, progress=False)


def test_scores_that_are_no_probabilities_are_told_in_the_pipeline_too():
    batches = ArrayBatches({f"{TEACHER_SCORE}_xf": np.array([0.5, 3.25], np.float32)}, 2)
    with pytest.raises(InputError, match=r"the teacher gave 3\.25 to an example"):
        check_scores(batches)
    check_scores(ArrayBatches({f"{TEACHER_SCORE}_xf": np.array([0.0, 1.0], np.float32)}, 2))
