"""Training on lists, and slates as raw ids."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest
import tensorflow as tf

from tests.lazy import lazy
from tests.tfrz.zoo.test_compilations import _CHILD
from tfrz.data.columns import to_examples
from tfrz.data.lists.elwc import to_elwc
from tfrz.data.lists.examples import build_lists, splits_of
from tfrz.data.lists.spec import ListSpec
from tfrz.data.records import open_source
from tfrz.data.sources.reader import read_table
from tfrz.data.spec import Feature, numeric
from tfrz.errors import ConfigError, InputError
from tfrz.metrics.slates import of_slate, rank_gain
from tfrz.training import fit as loop
from tfrz.training.base_ranker import with_lambda_mart
from tfrz.zoo import registry
from tfrz.zoo.run_config import load_run_config
from tfrz.zoo.tasks.slate import frequency_bucket, length_bucket
from tfrz.zoo.train import train

evaluation = lazy("tfx_pipelines.modules.evaluation")

SPEC = """
query: search
item: sku
relevance: bought
score: base
candidate:
  - {name: quality, kind: numeric, dtype: float32}
  - {name: price, kind: numeric, dtype: float32, log_offset: 1.0}
  - {name: brand}
context:
  - {name: page}
  - {name: hour, kind: numeric, dtype: float32, standardize: true}
"""
LENGTH = 5
SETTINGS = (
    "model.units=8",
    "model.embedding_dim=2",
    f"data.lists.length={LENGTH}",
    "data.validation_fraction=0.2",
    "trainer.batch_size=16",
    "trainer.tensorboard=false",
    "export.warmup_examples=2",
)
NAN = float("nan")


def _write(folder, queries: int = 120, longest: int = 8) -> tuple[str, str]:
    """What is bought follows from the quality; the base ranker knows little of it."""
    rng = np.random.default_rng(0)
    lines = ["search,sku,bought,base,quality,price,brand,page,hour"]
    for query in range(queries):
        page, hour = ("home", "search", "")[int(rng.integers(3))], int(rng.integers(24))
        for i in range(int(rng.integers(1, longest + 1))):
            quality = float(np.float32(rng.normal()))
            base = 0.2 * quality + rng.normal()
            price = "" if rng.random() < 0.1 else f"{rng.exponential(9):.2f}"
            brand = ("x", "y", "")[int(rng.integers(3))]
            grade = int(np.searchsorted([0.3, 1.0], quality))
            lines.append(
                f"s{query},d{query}-{i},{grade},{base:.4f},{quality},{price},{brand},{page},{hour}"
            )
    (folder / "lists.csv").write_text("\n".join(lines) + "\n")
    (folder / "spec.yaml").write_text(SPEC)
    return str(folder / "lists.csv"), str(folder / "spec.yaml")


class Run:
    """A trained model with its data."""

    def __init__(self, folder) -> None:
        self.folder, (self.data, self.features) = folder, _write(folder)
        self.overrides = [*SETTINGS, "trainer.epochs=25", "trainer.learning_rate=0.02"]
        self.result = train(
            "seq2slate", self.data, folder / "out", self.features, self.overrides, progress=False
        )
        self.loaded = tf.saved_model.load(str(folder / "out" / "model" / "1"))
        self.signatures = self.loaded.signatures
        self.spec = ListSpec.from_yaml(folder / "spec.yaml")

    def prepared(self):
        task, reader = self.task(), open_source(self.data, self.features, "list")
        return task, reader, task.prepare(reader)

    def task(self):
        entry = registry.get("seq2slate")
        return entry.new_task(load_run_config("seq2slate", "file", self.overrides))


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    return Run(tmp_path_factory.mktemp("lists"))


def _candidates(count: int, seed: int = 0, prefix: str = "d") -> list[tuple]:
    rng = np.random.default_rng(seed)
    return [
        (f"{prefix}{i}", float(np.float32(rng.normal())), 5.0 + i, ("x", "y")[i % 2])
        for i in range(count)
    ]


def _raw(lists: list[list[tuple]], page: str = "home", hour: float = 7.0) -> dict[str, tf.Tensor]:
    """Named raw tensors, padded behind."""
    width = max([1, *map(len, lists)])
    nothing = ("", NAN, NAN, "")
    padded = [[*candidates, *[nothing] * (width - len(candidates))] for candidates in lists]
    columns = [[[c[i] for c in row] for row in padded] for i in range(4)]
    return {
        "candidates": tf.constant(columns[0], tf.string),
        "quality": tf.constant(columns[1], tf.float32),
        "price": tf.constant(columns[2], tf.float32),
        "brand": tf.constant(columns[3], tf.string),
        "query": tf.constant(["s1"] * len(lists)),
        "page": tf.constant([page] * len(lists)),
        "hour": tf.constant([hour] * len(lists)),
    }


def _as_table(lists: list[list[tuple]], page: str = "home", hour: float = 7.0) -> pa.Table:
    floats, strings = pa.list_(pa.float32()), pa.list_(pa.binary())
    kinds = {"candidates": strings, "quality": floats, "price": floats, "brand": strings}
    columns = {
        name: pa.array([[c[i] for c in row] for row in lists], kind)
        for i, (name, kind) in enumerate(kinds.items())
    }
    columns["query"] = pa.array([[b"s1"]] * len(lists), strings)
    columns["page"] = pa.array([[page]] * len(lists), strings)
    columns["hour"] = pa.array([[hour]] * len(lists), floats)
    return pa.table(columns)


def _ask(run: Run, lists: list[list[tuple]], signature: str = "rerank", **more):
    if signature == "serving_default":
        examples = to_examples(_as_table(lists, **more), run.spec, len(lists))
        given = {"examples": tf.constant(examples)}
    elif signature == "rerank_elwc":
        elwc = to_elwc(_as_table(lists, **more), run.spec, label=False)
        given = {"elwc": tf.constant(elwc)}
    else:
        given = _raw(lists, **more)
    answer = run.signatures[signature](**given)
    return {name: value.numpy() for name, value in answer.items()}


def _equal(one: dict, other: dict) -> None:
    assert one.keys() == other.keys()
    for name in one:
        if one[name].dtype.kind == "f":
            np.testing.assert_allclose(one[name], other[name], rtol=1e-5, atol=1e-5)
        else:
            np.testing.assert_array_equal(one[name], other[name])


def _slate(answer: dict, row: int = 0) -> list[str]:
    return [item.decode() for item in answer["item_ids"][row] if item]


def test_it_learns_a_better_order_than_the_base_rankers(run):
    report = json.loads((run.folder / "out" / "rerank.json").read_text())
    assert report["model"]["ndcg_at_10"] > report["base_ranker"]["ndcg_at_10"] + 0.03
    assert report["rank_gain"] > 0
    assert run.result["metrics"]["validation"].keys() >= set(registry.SLATE.metrics)
    ranked = [("low", -2.0, 5.0, "x"), ("high", 2.0, 5.0, "x"), ("middle", 0.3, 5.0, "x")]
    assert _slate(_ask(run, [ranked])) == ["high", "middle", "low"]


def test_files_of_a_run(run):
    names = {p.name for p in (run.folder / "out").iterdir()}
    assert {"config.yaml", "metrics.json", "card.md", "curves.png", "rerank.json"} <= names
    wanted = {"serving_default", "serving_raw", "rerank", "rerank_elwc", "transform_features"}
    assert wanted <= set(run.signatures)


@pytest.mark.parametrize("signature", ["serving_raw", "serving_default", "rerank_elwc"])
def test_every_form_of_a_request_gives_the_same_slates(run, signature):
    lists = [_candidates(n, seed=n) for n in (3, 5, 1, 8, 2)]
    answer = _ask(run, lists)
    _equal(_ask(run, lists, signature), answer)
    assert answer["item_ids"].shape == answer["positions"].shape == answer["scores"].shape == (5, 8)
    assert answer["log_probability"].shape == (5,)
    for row, candidates in enumerate(lists):
        ids, places = [c[0] for c in candidates], answer["positions"][row]
        count = len(ids)
        assert sorted(places[:count].tolist()) == list(range(count))
        assert _slate(answer, row) == [ids[place] for place in places[:count]]
        assert (places[count:] == -1).all() and (answer["scores"][row, count:] == -1e9).all()
        assert (answer["item_ids"][row, count:] == b"").all()


def test_a_list_is_ranked_the_same_alone_and_among_others(run):
    lists = [_candidates(n, seed=n) for n in (3, 5, 1, 7)]
    together = _ask(run, lists)
    for row, candidates in enumerate(lists):
        alone = _ask(run, [candidates])
        width = len(candidates)
        np.testing.assert_array_equal(alone["positions"][0], together["positions"][row, :width])
        np.testing.assert_allclose(
            alone["log_probability"][0], together["log_probability"][row], rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("signature", ["rerank", "serving_default", "rerank_elwc"])
def test_what_is_beyond_the_models_length_follows_in_its_order(run, signature):
    candidates = _candidates(LENGTH + 4)
    # The best of all comes last: it is not seen.
    candidates[-1] = ("best", 9.0, 1.0, "x")
    answer = _ask(run, [candidates, candidates[:LENGTH]], signature)
    assert _slate(answer)[LENGTH:] == [c[0] for c in candidates[LENGTH:]]
    assert answer["positions"][0, LENGTH:].tolist() == list(range(LENGTH, LENGTH + 4))
    assert (answer["scores"][0, LENGTH:] == -1e9).all()
    assert (answer["scores"][0, :LENGTH] > -1e8).all()
    # The part that is seen is the same as without the tail.
    assert _slate(answer)[:LENGTH] == _slate(answer, 1)
    np.testing.assert_allclose(*answer["log_probability"], rtol=1e-5)


@pytest.mark.parametrize("signature", ["rerank", "serving_default", "rerank_elwc"])
def test_equal_ids_both_come_back_and_positions_tell_them_apart(run, signature):
    twice = [("a", -1.0, 5.0, "x"), ("b", 0.2, 5.0, "y"), ("a", 2.0, 5.0, "x")]
    answer = _ask(run, [twice], signature)
    assert sorted(_slate(answer)) == ["a", "a", "b"]
    assert sorted(answer["positions"][0].tolist()) == [0, 1, 2]
    assert answer["positions"][0, 0] == 2


@pytest.mark.parametrize("signature", ["rerank", "serving_default", "rerank_elwc"])
def test_a_list_of_one_is_certain(run, signature):
    answer = _ask(run, [_candidates(1)], signature)
    assert _slate(answer) == ["d0"] and answer["positions"].tolist() == [[0]]
    assert answer["log_probability"][0] == pytest.approx(0.0, abs=1e-6)
    assert np.isfinite(answer["scores"]).all()


@pytest.mark.parametrize("signature", ["rerank", "serving_default", "rerank_elwc"])
def test_no_candidates_are_an_empty_slate(run, signature):
    answer = _ask(run, [[], _candidates(2)], signature)
    assert _slate(answer) == [] and (answer["positions"][0] == -1).all()
    assert (answer["scores"][0] == -1e9).all() and answer["log_probability"][0] == 0
    assert len(_slate(answer, 1)) == 2
    answer = _ask(run, [[]], signature)
    assert _slate(answer) == [] and answer["log_probability"].tolist() == [0]


def test_tensors_without_width_and_empty_examples_are_empty_slates(run):
    raw = {n: v[:, :0] if v.shape.rank == 2 else v for n, v in _raw([[]]).items()}
    answer = run.signatures["rerank"](**raw)
    assert answer["item_ids"].shape == (1, 0) and answer["log_probability"].numpy() == [0]
    for signature, name in (("serving_default", "examples"), ("rerank_elwc", "elwc")):
        answer = run.signatures[signature](**{name: tf.constant([b"", b""])})
        assert answer["item_ids"].shape[0] == 2
        assert not answer["item_ids"].numpy().astype(bool).any()
        assert answer["log_probability"].numpy().tolist() == [0, 0]


PADDED = {
    "behind": (0, 1, 2, None, None),
    "before": (None, None, 0, 1, 2),
    "in the middle": (0, None, 1, None, 2),
    "everywhere": (None, 0, 1, None, 2),
    "more behind than the model takes": (0, 1, 2, *[None] * 6),
    "more before than the model takes": (*[None] * 6, 0, 1, 2),
    "more in the middle than the model takes": (0, *[None] * 3, 1, *[None] * 3, 2),
}


@pytest.mark.parametrize("case", PADDED)
def test_empty_places_anywhere_do_not_change_the_slate(run, case):
    candidates, nothing = _candidates(3, seed=3), ("", 77.0, 77.0, "x")
    expected = _ask(run, [candidates])
    answer = _ask(run, [[nothing if i is None else candidates[i] for i in PADDED[case]]])
    assert _slate(answer) == _slate(expected)
    # Positions are those of the tensors that were sent.
    places = answer["positions"][0, :3].tolist()
    assert [PADDED[case][p] for p in places] == expected["positions"][0].tolist()
    np.testing.assert_allclose(answer["scores"][0, :3], expected["scores"][0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        answer["log_probability"], expected["log_probability"], rtol=1e-4, atol=1e-5
    )
    assert (answer["positions"][0, 3:] == -1).all() and (answer["item_ids"][0, 3:] == b"").all()


def test_missing_and_infinite_features_and_unknown_categories_are_answered(run):
    odd = [
        ("a", NAN, NAN, ""),
        ("b", float("inf"), -float("inf"), "never seen"),
        ("c", -1e30, 1e30, "x"),
        ("d", 0.0, -50.0, "neither\nthis"),
    ]
    for page, hour in (("", NAN), ("never seen", float("inf")), ("home", 1e30)):
        answer = _ask(run, [odd], page=page, hour=hour)
        assert sorted(_slate(answer)) == ["a", "b", "c", "d"]
        assert np.isfinite(answer["scores"]).all() and np.isfinite(answer["log_probability"]).all()
    # What is missing of all of them cannot tell them apart.
    answer = _ask(run, [[(i, NAN, NAN, "") for i in "abc"]])
    assert np.isfinite(answer["scores"]).all()


def test_features_of_examples_that_are_too_short_are_missing(run):
    (serialized,) = to_examples(_as_table([_candidates(3)]), run.spec, 1)
    example = tf.train.Example.FromString(serialized)
    del example.features.feature["price"]
    example.features.feature["quality"].float_list.value.pop()
    sent = tf.constant([example.SerializeToString()])
    short = run.signatures["serving_default"](examples=sent)
    listed = [(c[0], c[1] if i < 2 else NAN, NAN, c[3]) for i, c in enumerate(_candidates(3))]
    _equal({n: v.numpy() for n, v in short.items()}, _ask(run, [listed]))


def test_the_transform_of_the_export_tells_lengths_and_queries(run):
    lists = [_candidates(n) for n in (0, 1, 2, 8)]
    sent = tf.constant(to_examples(_as_table(lists), run.spec, 4))
    found = run.signatures["transform_features"](examples=sent)
    # Lengths are those that the model sees.
    assert found["list_length"].numpy().tolist() == [b"0", b"1", b"2-9", b"2-9"]
    assert set(found["query_frequency"].numpy()) <= {b"top 100", b"101-1,000", b"unknown"}


def test_words_for_slices():
    lengths = length_bucket(tf.constant([0, 1, 2, 9, 10, 19, 20, 49, 50, 999], tf.int64))
    words = [b"0", b"1", b"2-9", b"2-9", b"10-19", b"10-19", b"20-49", b"20-49", b"50+", b"50+"]
    assert lengths.numpy().tolist() == words
    ids = tf.constant([0, 1, 100, 101, 1000, 1001, 2000, 2001], tf.int64)
    words = frequency_bucket(ids, 2000).numpy().tolist()
    assert words[:3] == [b"unknown", b"top 100", b"top 100"]
    assert words[3:] == [b"101-1,000", b"101-1,000", b"1,001+", b"1,001+", b"unknown"]


# Metrics.


def _mean(name: str, slates: list, max_grade: float) -> float:
    values = [of_slate(name, np.asarray(labels), max_grade) for labels in slates]
    return float(np.nanmean(values))


@pytest.mark.parametrize("clicks", [False, True])
def test_metrics_are_the_means_of_those_of_single_slates(clicks):
    overrides = [] if clicks else ["data.lists.clicks=null"]
    config = load_run_config("seq2slate", "simulated", overrides)
    entry = registry.get("seq2slate")
    task = entry.new_task(config)
    assert task.max_grade == (1 if clicks else 4)
    rng = np.random.default_rng(0)
    ordered = rng.integers(0, 2 if clicks else 5, (200, 12)) * rng.integers(0, 2, (200, 12))
    ordered[rng.random(200) < 0.2] = 0
    lengths = rng.integers(0, 13, 200)
    ordered = np.where(np.arange(12) < lengths[:, None], ordered, -1).astype(np.float32)
    found = task.metrics({"ordered": ordered})
    for name in registry.SLATE.metrics:
        slates = [row[row >= 0] for row in ordered]
        assert found[name] == pytest.approx(_mean(name, slates, task.max_grade), abs=1e-6), name
    nothing = task.metrics({"ordered": np.zeros((3, 4), np.float32)})
    assert nothing.keys() == found.keys() and all(np.isnan(v) for v in nothing.values())


def test_the_reports_metrics_are_those_of_base_order_and_slates(run):
    task, reader, _ = run.prepared()
    documents, _ = read_table(reader)
    data = task.config.data
    held_out = (data.validation_fraction, data.test_fraction)
    lists = build_lists(documents, run.spec, task.lists, held_out, data.seed)["validation"]
    base, slates, gains = [], [], []
    for start in range(lists.num_rows):
        row = lists.slice(start, 1)
        (example,) = to_examples(row, run.spec, 1)
        answer = run.signatures["serving_default"](examples=tf.constant([example]))
        labels = np.array(row[run.spec.label].to_pylist()[0][:LENGTH])
        places = answer["positions"].numpy()[0][: len(labels)]
        base.append(labels)
        slates.append(labels[places])
        gains.append(rank_gain(labels, places))
    report = json.loads((run.folder / "out" / "rerank.json").read_text())
    for name in registry.SLATE.metrics:
        assert report["base_ranker"][name] == pytest.approx(_mean(name, base, 4.0), abs=1e-6)
        assert report["model"][name] == pytest.approx(_mean(name, slates, 4.0), abs=1e-6)
        best = run.result["metrics"]["validation"][name]
        assert best == pytest.approx(report["model"][name], abs=1e-6)
    assert report["rank_gain"] == pytest.approx(np.nanmean(gains), abs=1e-6)


@pytest.mark.needs("apache_beam")
def test_the_loop_judges_what_the_model_sees_and_the_evaluator_the_whole_list(run):
    """As docs/lists.md has it; they differ where a list is longer than the model takes."""
    task = run.task()
    labels = np.array([0, 1, 0, 2, 0, 2, 1, 0], np.float32)
    answer = _ask(run, [_candidates(LENGTH + 3)])
    places = answer["positions"][0]
    seen = tf.constant(answer["positions"][:, :LENGTH], tf.int32)
    judged = task.judged(seen, tf.constant(labels[None, :LENGTH]))
    own = task.metrics({n: v.numpy() for n, v in judged.items()})
    for name in registry.SLATE.metrics:
        part = of_slate(name, labels[places[:LENGTH]], task.max_grade)
        assert own[name] == pytest.approx(part, abs=1e-6), name
        whole = evaluation._of_slate(name, task.max_grade, places, labels)
        assert whole == pytest.approx(of_slate(name, labels[places], task.max_grade), abs=1e-6)
    assert own["map"] != pytest.approx(evaluation._of_slate("map", 4.0, places, labels), abs=1e-3)


# Training.


def _task(*overrides: str, source: str = "simulated"):
    entry = registry.get("seq2slate")
    simulated = ["data.options={queries: 60, length: 4}", "data.lists.length=4"]
    config = load_run_config("seq2slate", source, [*SETTINGS, *simulated, *overrides])
    return entry.new_task(config)


@pytest.fixture(scope="module")
def small():
    """Sets and inputs that no setting of the model changes."""
    task = _task("model.units=4")
    return task.prepare(open_source("simulated", None, "list", queries=60, length=4))


SCORERS = ("sequential", "one_step", "mlp")
LOSSES = ("cross_entropy", "hinge", "smooth_hinge", "reinforce")
OF_ONE_STEP = ("sigmoid", "softmax", "approx_ndcg", "lambda_rank")
TRAINED = [
    *(f"model.loss={loss} model.scorer={s}" for s in SCORERS for loss in LOSSES),
    *(f"model.loss={loss} model.scorer={s}" for s in SCORERS[1:] for loss in OF_ONE_STEP),
    *(
        f"model.loss=reinforce model.baseline={baseline} model.reward={reward}"
        for baseline in ("none", "mean", "greedy")
        for reward in ("ndcg", "map", "clicks")
    ),
    "model.trajectory=sample",
    "model.trajectory=sample model.score_term=true",
    "model.normalizer=all model.step_weights=equal model.position=true",
    "model.loss=hinge model.trajectory=sample model.dropout=0.5 model.input_units=[4]",
]


@pytest.mark.parametrize("settings", TRAINED)
def test_every_loss_trains_two_steps(small, settings):
    task = _task("model.units=4", "model.hidden_units=[4]", *settings.split())
    model = loop.build_model(lambda: task.build(small.inputs), task.config.trainer)
    before = [w.numpy() for w in model.trainable_variables]
    steps = loop._Loop(model, task, task.config.trainer, 2)
    iterator = steps.iterator(small.train.epoch(0))
    assert np.isfinite(steps.run(iterator, 2))
    after = [w.numpy() for w in model.trainable_variables]
    assert all(np.isfinite(w).all() for w in after)
    assert any((a != b).any() for a, b in zip(before, after, strict=True))
    assert int(model.draws) == 2


@pytest.mark.parametrize("loss", [*LOSSES, *OF_ONE_STEP])
def test_a_list_without_anything_relevant_teaches_nothing(small, loss):
    scorer = "one_step" if loss in OF_ONE_STEP else "sequential"
    task = _task("model.units=4", f"model.loss={loss}", f"model.scorer={scorer}")
    model = task.build(small.inputs)
    batch = {n: v[:8] for n, v in next(iter(small.train.epoch(0))).items()}
    batch["relevance_xf"] = tf.zeros_like(batch["relevance_xf"])
    values, _ = task.dense_loss(model, task.lookup(model, batch))
    assert np.isfinite(values.numpy()).all()
    if loss not in ("sigmoid", "softmax", "approx_ndcg", "lambda_rank"):
        np.testing.assert_array_equal(values.numpy(), np.zeros(8, np.float32))


@pytest.mark.parametrize(
    ("scorer", "width"), [("sequential", 1), ("sequential", 3), ("one_step", 1), ("mlp", 1)]
)
def test_the_log_probability_is_that_of_scoring_the_slate_again(small, scorer, width):
    task = _task(f"model.scorer={scorer}", f"model.beam_width={width}", "model.initial_scale=1.0")
    model = task.build(small.inputs)
    batch = {n: v[:16] for n, v in next(iter(small.validation.once())).items()}
    rows = tf.shape(batch["mask_xf"])[0]
    lengths = tf.range(rows, dtype=tf.int64) % 5
    batch["mask_xf"] = tf.cast(tf.range(4, dtype=tf.int64)[None] < lengths[:, None], tf.int64)
    outputs = task.outputs(model, batch)
    positions = tf.cast(outputs["positions"], tf.int32)
    again = model.slate(model.embed(batch), "forced", positions=positions)
    found = outputs["log_probability"].numpy()
    expected = again.log_probabilities.numpy().sum(1)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    for row in range(int(rows)):
        total, free = 0.0, set(range(int(lengths[row])))
        for step, place in enumerate(outputs["positions"].numpy()[row]):
            if place < 0:
                break
            scores = again.scores.numpy()[row, step].astype(np.float64)
            total += scores[place] - np.log(sum(np.exp(scores[i]) for i in free))
            assert outputs["scores"].numpy()[row, step] == pytest.approx(scores[place], abs=1e-5)
            free.remove(int(place))
        assert not free
        assert found[row] == pytest.approx(total, abs=1e-4)
    if width > 1:
        greedy = model.slate(model.embed(batch)).log_probabilities.numpy().sum(1)
        assert (found >= greedy - 1e-5).all()


SAMPLED = {
    "reinforce": ["model.loss=reinforce", "model.baseline=greedy"],
    "cross_entropy": ["model.trajectory=sample", "model.score_term=true", "model.dropout=0.3"],
}


@pytest.mark.slow
@pytest.mark.parametrize("loss", SAMPLED)
def test_a_resumed_run_samples_what_an_uninterrupted_one_does(small, tmp_path, loss):
    """Stopped in the middle of an epoch; the counter of draws is in the checkpoint."""

    def fitted(folder, steps: int):
        settings = [*SAMPLED[loss], "model.units=4", "trainer.steps_per_call=4"]
        settings += ["trainer.batch_size=16", "trainer.epochs=9", f"trainer.max_steps={steps}"]
        settings += ["trainer.early_stopping_patience=null"]
        task = _task(*settings)
        trainer = task.config.trainer
        model = loop.build_model(lambda: task.build(small.inputs), trainer)
        result = loop.fit(
            model, task, small.train, small.validation, trainer, folder, progress=False
        )
        return result, int(model.draws)

    assert small.train.steps_per_epoch == 2 or small.train.steps_per_epoch == 3
    stop = small.train.steps_per_epoch * 2 + 1
    _, draws = fitted(tmp_path / "whole", stop + 4)
    assert draws == stop + 4
    fitted(tmp_path / "cut", stop)
    resumed, resumed_draws = fitted(tmp_path / "cut", stop + 4)
    assert resumed.resumed_from == stop and resumed_draws == draws
    weights = [_checkpoint(tmp_path / name) for name in ("whole", "cut")]
    assert weights[0].keys() == weights[1].keys()
    assert draws in [value for value in weights[0].values() if value.shape == ()]
    for name, value in weights[0].items():
        np.testing.assert_array_equal(value, weights[1][name], err_msg=name)


def _checkpoint(folder) -> dict[str, np.ndarray]:
    """Weights and the optimizer's state as they were after the last step."""
    reader = tf.train.load_checkpoint(tf.train.latest_checkpoint(str(folder / "checkpoints")))
    names = [
        n for n in reader.get_variable_to_shape_map() if n.startswith(("weights/", "optimizer/"))
    ]
    return {name: reader.get_tensor(name) for name in names if "OBJECT" not in name}


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["cross_entropy", "reinforce"])
def test_one_compilation_for_all_steps_of_a_run(tmp_path, loss):
    settings = [*SETTINGS, f"model.loss={loss}", "data.options={queries: 60, length: 4}"]
    settings += ["data.lists.length=4", "trainer.epochs=2", "trainer.steps_per_call=2"]
    dump = tmp_path / "dump"
    done = subprocess.run(
        [sys.executable, "-c", _CHILD.replace('"m3"', '"seq2slate"'), str(tmp_path / "run")]
        + [*settings, 'trainer.xla="on"'],
        capture_output=True,
        text=True,
        check=False,
        env={
            **os.environ,
            "XLA_FLAGS": f"--xla_dump_to={dump} --xla_dump_hlo_as_text",
            "TF_CPP_MIN_LOG_LEVEL": "3",
        },
    )
    assert done.returncode == 0, done.stderr[-1500:]
    steps = [p.name for p in dump.glob("*inside*before_optimizations.txt")]
    assert len(steps) == 1, sorted(steps)


# The base ranker of the experiments.

RANKED = ListSpec(candidate=(numeric("f1"), numeric("f2"), Feature("brand")))


def _documents(queries: int = 80, length: int = 12) -> pa.Table:
    rng = np.random.default_rng(0)
    count = queries * length
    values = rng.normal(size=(count, 2)).astype(np.float32)
    grades = np.clip(np.round(values[:, 0] + 0.3 * rng.normal(size=count) + 1), 0, 4)
    ids = np.repeat(np.arange(queries), length)
    split = [b"train" if q < queries - 20 else b"test" for q in ids]
    order = rng.permutation(count)
    table = pa.table(
        {
            "query": pa.array([b"q%d" % q for q in ids], pa.binary()),
            "item": pa.array([b"d%d" % i for i in range(count)], pa.binary()),
            "split": pa.array(split, pa.binary()),
            "position": pa.array(np.arange(count)),
            "score": pa.array(np.zeros(count, np.float32)),
            "relevance": pa.array(grades.astype(np.float32)),
            "f1": pa.array(values[:, 0]),
            "f2": pa.array(values[:, 1], from_pandas=True),
            "brand": pa.array([b"x"] * count, pa.binary()),
        }
    )
    return table.take(pa.array(order))


def _scored(documents: pa.Table) -> dict[bytes, float]:
    splits = splits_of(documents, (0.0, 0.0), 0)
    scored = with_lambda_mart(documents, RANKED, splits)
    assert scored.drop(["score"]).equals(documents.drop(["score"]))
    return dict(zip(scored["item"].to_pylist(), scored["score"].to_pylist(), strict=True))


def _with_grades(documents: pa.Table, query: bytes, grades) -> pa.Table:
    relevance = documents["relevance"].to_numpy().copy()
    rows = np.flatnonzero(np.array(documents["query"].to_pylist()) == query)
    relevance[rows] = grades(relevance[rows])
    place = documents.schema.get_field_index("relevance")
    return documents.set_column(place, "relevance", pa.array(relevance))


@pytest.mark.needs("lightgbm")
def test_a_training_query_is_scored_by_models_that_did_not_see_it():
    documents = _documents()
    first = _scored(documents)
    owners = dict(zip(documents["item"].to_pylist(), documents["query"].to_pylist(), strict=True))
    for query in (b"q0", b"q7", b"q31"):
        other = _scored(_with_grades(documents, query, lambda grades: 4 - grades))
        changed = {owners[item] for item in first if first[item] != other[item]}
        assert query not in changed
        # It was seen by the models of the other training queries and of the test set.
        assert b"q79" in changed and len(changed) > 40


@pytest.mark.needs("lightgbm")
def test_grades_that_are_held_out_teach_nothing():
    documents = _documents()
    other = _with_grades(documents, b"q79", lambda grades: 4 - grades)
    assert _scored(other) == _scored(documents)


@pytest.mark.needs("lightgbm")
def test_lambda_mart_orders_by_what_it_learned():
    documents = _documents()
    scored = _scored(documents)
    by_score = [scored[item] for item in documents["item"].to_pylist()]
    tested = np.array(documents["split"].to_pylist()) == b"test"
    learned = np.corrcoef(np.array(by_score)[tested], documents["f1"].to_numpy()[tested])[0, 1]
    assert learned > 0.7


@pytest.mark.needs("lightgbm")
def test_too_few_training_queries_for_lambda_mart_are_told():
    with pytest.raises(InputError, match="4 training queries are too few for LambdaMART"):
        _scored(_documents(queries=24))


@pytest.mark.needs("lightgbm")
def test_lambda_mart_without_numeric_features_is_refused():
    spec, documents = ListSpec(candidate=(Feature("brand"),)), _documents()
    with pytest.raises(InputError):
        with_lambda_mart(documents, spec, splits_of(documents, (0.0, 0.0), 0))


@pytest.mark.needs("lightgbm")
def test_grades_that_lambda_mart_does_not_take_are_told():
    """LightGBM has gains for grades to 30."""
    with pytest.raises(InputError):
        _scored(_with_grades(_documents(), b"q0", lambda grades: grades + 1000))


@pytest.mark.needs("lightgbm")
def test_a_run_with_lambda_mart_starts_from_its_order(run):
    entry = registry.get("seq2slate")
    prepared = {}
    for ranker in ("source", "lambda_mart"):
        settings = [*run.overrides, f"data.lists.base_ranker={ranker}"]
        task = entry.new_task(load_run_config("seq2slate", "file", settings))
        prepared[ranker] = task.prepare(open_source(run.data, run.features, "list"))
    ndcg = {}
    for ranker, sets in prepared.items():
        (batch,) = sets.validation.once()
        rows = [y[m > 0] for y, m in zip(batch["relevance_xf"].numpy(), batch["mask_xf"].numpy())]
        ndcg[ranker] = _mean("ndcg_at_5", rows, 4.0)
    assert ndcg["lambda_mart"] > ndcg["source"] + 0.05


@pytest.mark.needs("apache_beam")
def test_the_pipeline_refuses_to_fit_a_base_ranker(tmp_path):
    from tfx_pipelines.local_runner import run_pipeline

    settings = ["data.options={queries: 60, length: 4}", "data.lists.base_ranker=lambda_mart"]
    config = load_run_config("seq2slate", "simulated", settings)
    with pytest.raises(ConfigError, match=r"data\.lists\.base_ranker: .*tfrz train alone"):
        run_pipeline(config, "simulated", tmp_path / "root", progress=False)
    assert not list(tmp_path.glob("root/artifacts/*"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["data.lists.length=0"], r"data\.lists\.length: must be at least 1"),
        (["data.lists.lenght=3"], "did you mean 'length'"),
        (["data.lists=null"], r"data\.lists: must be given"),
        (["data.lists.clicks={kind: diverse, eta: -1}"], r"clicks\.eta: must be at least 0"),
        (["data.history={length: 5}"], r"data\.history: seq2slate does not learn from histories"),
        (["model.loss=softmax"], r"model\.loss: softmax takes one score a candidate"),
        (["model.beam_width=2", "model.scorer=mlp"], r"model\.beam_width: goes with"),
        (["model.score_term=true"], r"model\.score_term: goes with model\.trajectory sample"),
        (["model.reward=err"], r"model\.reward: 'err' is none of ndcg, map, clicks"),
        (["model.dropout=1"], r"model\.dropout: must be at least 0, under 1"),
        (["model.units=0"], r"model\.units: must be at least 1"),
        (["evaluator.min_metrics={recall_at_20: 0.1}"], r"evaluator\.min_metrics\.recall_at_20"),
        (["evaluator.max_drops={map: 2}"], r"evaluator\.max_drops\.map: must be at least 0"),
        (["evaluator.min_auc=0.6"], "unknown key"),
        (["data.test_fraction=0.95"], r"data\.validation_fraction \+ data\.test_fraction"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(ConfigError, match=message):
        load_run_config("seq2slate", "file", [*SETTINGS, *settings])


def test_too_few_lists_for_a_batch_are_told(run, tmp_path):
    settings = [*SETTINGS, "trainer.batch_size=4000"]
    with pytest.raises(InputError, match="fewer than one batch of 4000"):
        train("seq2slate", run.data, tmp_path, run.features, settings, progress=False)


def test_a_source_without_anything_relevant_is_told(run, tmp_path):
    lines = open(run.data).read().splitlines()
    rows = [line.split(",") for line in lines]
    text = "\n".join(",".join([*r[:2], "0", *r[3:]]) for r in rows[1:])
    (tmp_path / "lists.csv").write_text(f"{lines[0]}\n{text}\n")
    data = str(tmp_path / "lists.csv")
    with pytest.raises(InputError, match="the training set is empty"):
        train("seq2slate", data, tmp_path / "o", run.features, [*SETTINGS], progress=False)


def test_models_and_data_of_other_records_do_not_go_together(tmp_path):
    with pytest.raises(InputError, match="criteo:x has impression records, not list records"):
        train("seq2slate", "criteo:x", tmp_path / "o", progress=False)


@pytest.mark.slow
def test_a_retrain_starts_from_the_weights_it_is_given(run, tmp_path):
    start = run.folder / "out" / "model" / "1"
    settings = [*SETTINGS, f"trainer.warm_start={start}", "trainer.max_steps=1"]
    settings += ["trainer.learning_rate=1e-9", "trainer.epochs=1"]
    result = train("seq2slate", run.data, tmp_path, run.features, settings, progress=False)
    for name, value in run.result["metrics"]["validation"].items():
        assert result["metrics"]["validation"][name] == pytest.approx(value, abs=1e-4)
