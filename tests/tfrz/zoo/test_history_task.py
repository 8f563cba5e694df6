"""Training on interactions, and recommendations as raw item ids."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tensorflow as tf

from tfrz.cli.main import main
from tfrz.data.histories.spec import HistorySpec
from tfrz.data.records import open_source
from tfrz.data.spec import Feature, UserEmbedding
from tfrz.errors import ConfigError, InputError
from tfrz.export.raw_inputs import raw_input_signature
from tfrz.metrics.ranking import recall_at
from tfrz.zoo import registry
from tfrz.zoo.reports.gates import gate_table
from tfrz.zoo.run_config import load_run_config
from tfrz.zoo.tasks.history import HistoryTask, length_bucket, popularity_bucket
from tfrz.zoo.train import train

SPEC = """
user: customer
item: sku
time: bought_at
context:
  - {name: page}
"""
SETTINGS = (
    "model.item_dim=8",
    "model.input_units=[8]",
    "model.encoder_dim=8",
    "model.output_units=[8]",
    "model.num_sampled=20",
    "data.history.length=6",
    "trainer.batch_size=16",
    "trainer.epochs=3",
    "trainer.learning_rate=0.02",
    "trainer.tensorboard=false",
    "export.top_k=5",
)


def _write(folder, users: int = 60, ring: int = 12) -> tuple[str, str]:
    """Every user walks along a ring of items, a step a minute."""
    rng = np.random.default_rng(0)
    lines = ["customer,sku,bought_at,page"]
    for user in range(users):
        place = int(rng.integers(ring))
        for step in range(int(rng.integers(4, 12))):
            page = ("home", "detail", "")[int(rng.integers(3))]
            lines.append(f"c{user},item-{(place + step) % ring},{1_600_000_000 + 60 * step},{page}")
    (folder / "events.csv").write_text("\n".join(lines) + "\n")
    (folder / "spec.yaml").write_text(SPEC)
    return str(folder / "events.csv"), str(folder / "spec.yaml")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("history")
    data, spec = _write(folder)
    overrides = [*SETTINGS, "trainer.epochs=40", "trainer.early_stopping_patience=null"]
    result = train("m3", data, folder / "out", spec, overrides, progress=False)
    return folder / "out", result


def _recommend(run, history: list[str], **more):
    signature = tf.saved_model.load(str(run[0] / "model" / "1")).signatures["serving_raw"]
    width = max(len(history), 1)
    given = {
        "history": tf.constant([history or [""]]),
        "history_time": tf.constant([[1_600_000_000 + 60 * i for i in range(width)]], tf.int64),
        "request_time": tf.constant([1_600_000_000 + 60 * width], tf.int64),
        "history_page": tf.constant([["home"] * width]),
        "page": tf.constant(["home"]),
    }
    outputs = signature(**{**given, **more})
    items = [item.decode() for item in outputs["item_ids"].numpy()[0]]
    return items, outputs["scores"].numpy()[0]


def test_it_learns_what_comes_next_and_answers_with_raw_ids(run):
    assert run[1]["metrics"]["test"]["recall_at_10"] > 0.8
    items, scores = _recommend(run, ["item-3", "item-4", "item-5"])
    assert items[0] == "item-6"
    assert len(items) == 5 and len(set(items)) == 5
    assert (np.diff(scores) <= 0).all()


def test_what_was_seen_padding_and_unknown_items_are_never_recommended(run):
    history = [f"item-{i}" for i in range(12)][-8:]
    items, scores = _recommend(run, history)
    assert not set(items) & set(history)
    # Four items are left: the rest of the list is empty, and says so.
    assert sorted(items[:4]) == ["item-0", "item-1", "item-2", "item-3"]
    assert items[4] == "" and scores[4] == -1e9
    items, _ = _recommend(run, ["never seen", "neither this"])
    assert all(item.startswith("item-") for item in items)


def test_an_empty_history_is_answered(run):
    items, scores = _recommend(run, [])
    assert len(set(items)) == 5 and all(item.startswith("item-") for item in items)
    assert np.isfinite(scores).all()


def test_only_the_newest_events_of_a_long_history_decide(run):
    recent = ["item-1", "item-2", "item-3", "item-4", "item-5", "item-6"]
    short, _ = _recommend(run, recent)
    long, _ = _recommend(run, ["item-2", "item-6", "item-3", *recent])
    assert short == long


def test_files_of_a_run(run):
    names = {p.name for p in run[0].iterdir()}
    wanted = {"config.yaml", "metrics.json", "card.md", "curves.png", "gates.json", "gates.png"}
    assert wanted <= names
    rows = json.loads((run[0] / "gates.json").read_text())
    assert {row["by"] for row in rows} == {"events so far", "page"}
    for row in rows:
        assert set(row["gates"]) == {"tiny", "short", "long"}
        assert all(0 <= gate <= 1 for gate in row["gates"].values())
    assert sum(r["requests"] for r in rows if r["by"] == "page") == sum(
        r["requests"] for r in rows if r["by"] == "events so far"
    )
    assert {r["value"] for r in rows if r["by"] == "page"} == {"home", "detail", "missing"}


def test_mean_gates_are_those_of_the_model():
    entry = registry.get("m3")
    config = load_run_config("m3", "simulated", ["data.options={users: 50, length: 9}"])
    task = entry.new_task(config)
    prepared = task.prepare(open_source("simulated", None, "history", users=50, length=9))
    model = task.build(prepared.inputs)
    (batch,) = list(prepared.validation.once())
    gates, _ = model.gates(batch)
    real = batch["history_xf"].numpy() != 0
    rows = gate_table(model, prepared)
    total = sum(r["requests"] * r["gates"]["long"] for r in rows if r["by"] == "page")
    assert total == pytest.approx(float(gates.numpy()[..., 2][real].sum()), rel=1e-4)


def test_the_metrics_are_those_of_the_recommendations():
    """Ranks in the graph against lists that leave out what was seen."""
    entry = registry.get("m3")
    options = "data.options={users: 80, length: 12}"
    config = load_run_config("m3", "simulated", [options, "export.drop_seen=true"])
    task = entry.new_task(config)
    prepared = task.prepare(open_source("simulated", None, "history", users=80, length=12))
    model = task.build(prepared.inputs)
    (batch,) = list(prepared.test.once())
    found = task.metrics({"rank": task.predict(model, batch)["rank"].numpy()})
    ids = task.outputs(model, batch)["ids"].numpy()
    targets = batch["target_xf"].numpy()
    expected = np.mean([recall_at(list(r), {t}, 20) for r, t in zip(ids, targets, strict=True)])
    assert found["recall_at_20"] == pytest.approx(expected)
    for row, seen in zip(ids, batch["seen_xf"].numpy(), strict=True):
        assert not set(row) & set(seen) - {0}


def test_all_steps_and_the_last_one():
    entry = registry.get("m3")
    options = "data.options={users: 40, length: 9}"
    weights = {}
    for name, more in {
        "all": [],
        "warm": ["model.cold_start=false"],
        "last": ["model.steps=last"],
        "left": ["data.history.padding=left"],
    }.items():
        settings = [options, "data.history.length=10", *more]
        config = load_run_config("m3", "simulated", settings)
        task = entry.new_task(config)
        prepared = task.prepare(open_source("simulated", None, "history", users=40, length=9))
        model = task.build(prepared.inputs)
        batch = {n: v[:3] for n, v in next(iter(prepared.validation.once())).items()}
        looked_up = task.lookup(model, batch)
        weights[name] = looked_up["weights"].numpy()
        targets = looked_up["targets"].numpy()
        history = batch["history_xf"].numpy()
        place = looked_up["place"].numpy()
        for row in range(3):
            assert targets[row, place[row]] == batch["target_xf"].numpy()[row]
            real = history[row][history[row] != 0]
            assert targets[row, place[row] - len(real) : place[row]].tolist() == real.tolist()
    # 7 events of history: requests 0..7, the rest padding.
    assert weights["all"].sum(1).max() == 8 and not weights["all"][:, 8:].any()
    np.testing.assert_array_equal(weights["warm"][:, 1:], weights["all"][:, 1:])
    assert not weights["warm"][:, 0].any()
    assert (weights["last"].sum(1) <= 1).all() and not weights["last"][:, :7].any()
    np.testing.assert_array_equal(weights["left"].sum(1), weights["all"].sum(1))


def test_words_for_slices():
    lengths = length_bucket(tf.constant([0, 1, 9, 10, 199, 200], tf.int64)).numpy().tolist()
    assert lengths == [b"0", b"1-9", b"1-9", b"10-49", b"50-199", b"200+"]
    ids = tf.constant([0, 1, 100, 101, 1000, 1001, 2001], tf.int64)
    words = popularity_bucket(ids, 2000).numpy().tolist()
    assert words[:3] == [b"unknown", b"top 100", b"top 100"]
    assert words[3:] == [b"101-1,000", b"101-1,000", b"1,001-10,000", b"unknown"]


BAD_ROWS = {
    "negative time": ("c1,a,-5,home", "bought_at is negative: -5"),
    "missing time": ("c1,a,,home", "bought_at is not a time in whole Unix seconds"),
    "no item": ("c1,,5,home", "sku is missing"),
    "no user": (",a,5,home", "customer is missing"),
    "a word for a time": ("c1,a,noon,home", "bought_at is not a time"),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_bad_interactions_are_named_with_their_line(tmp_path, case, capsys):
    row, message = BAD_ROWS[case]
    data, spec = _write(tmp_path, users=5)
    lines = open(data).read().splitlines()
    lines.insert(3, row)
    open(data, "w").write("\n".join(lines) + "\n")
    arguments = ["train", "m3", "--data", data, "--features", spec, "--out", f"{tmp_path}/o"]
    assert main([*arguments, "--quiet"]) == 2
    error = capsys.readouterr().err
    assert f"events.csv:4: {message}" in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["data.history.split=time"], "a split by time needs both"),
        (["data.history.keep=2"], "data.history.keep: must be at least"),
        (["evaluator.min_metrics={recall_at_7: 0.1}"], "evaluator.min_metrics.recall_at_7"),
        (["evaluator.min_auc=0.6"], "unknown key"),
        (["export.top_k=0"], "export.top_k"),
        (["data.history.min_user_count=1000"], "no user has 1000 events"),
    ],
)
def test_bad_settings_are_named(tmp_path, settings, message):
    data, spec = _write(tmp_path, users=5)
    with pytest.raises(InputError, match=message):
        train("m3", data, tmp_path / "out", spec, [*SETTINGS, *settings], progress=False)


def test_a_source_without_times_refuses_what_needs_them(tmp_path):
    (tmp_path / "s.txt").write_text("1 2 3 4\n2 3 4\n" * 20)
    settings = [*SETTINGS, "data.history.time_features=[hour]"]
    with pytest.raises(ConfigError, match="no times, only an order"):
        train("m3", f"sessions:{tmp_path}/s.txt", tmp_path / "o", None, settings, progress=False)


def test_models_and_data_of_other_records_do_not_go_together(tmp_path):
    with pytest.raises(InputError, match="criteo:x has impression records, not history records"):
        train("m3", "criteo:x", tmp_path / "o", progress=False)
    with pytest.raises(ConfigError, match="dcn_v2 does not learn from histories"):
        load_run_config("dcn_v2", "simulated", ["data.history={length: 5}"])


@pytest.mark.slow
def test_a_retrain_keeps_the_rows_of_the_items_it_knows(run, tmp_path):
    data, spec = _write(tmp_path)
    with open(data, "a") as file:
        file.write("c0,item-new,1700000000,home\n" * 3)
    settings = [*SETTINGS, f"trainer.warm_start={run[0] / 'model' / '1'}", "trainer.max_steps=1"]
    settings += ["trainer.learning_rate=1e-9", "trainer.epochs=1"]
    train("m3", data, tmp_path / "out", spec, settings, progress=False)
    second = (tmp_path / "out", None)
    assert _recommend(second, ["item-3", "item-4"])[0][0] == "item-5"


@pytest.mark.parametrize(
    ("spec", "overrides", "timed"),
    [
        (HistorySpec(), [], False),
        (HistorySpec(), ["data.history.time_features=[hour]"], True),
        (HistorySpec(context=(Feature("page"),)), [], True),
        (HistorySpec(time=None, context=(Feature("page"),)), [], False),
        (HistorySpec(long_history=UserEmbedding("1", 2, 4)), [], True),
    ],
)
def test_requests_of_items_alone_have_no_times(spec, overrides, timed):
    task = HistoryTask(registry.get("m3"), load_run_config("m3", overrides=overrides))
    names = set(raw_input_signature(task.request_spec(spec)))
    assert ({"history_time", "request_time"} <= names) is timed
    assert {"history", *(f.name for f in spec.context)} <= names


@pytest.mark.slow
def test_a_request_without_times_is_answered(tmp_path, capsys):
    data, spec = _write(tmp_path)
    (tmp_path / "spec.yaml").write_text("user: customer\nitem: sku\ntime: bought_at\n")
    train("m3", data, tmp_path / "out", spec, SETTINGS, progress=False)
    request = '[{"history": ["item-3", "item-4"]}]'
    command = ["predict", str(tmp_path / "out" / "model"), "--signature", "recommend", request]
    assert main(command) == 0
    assert len(json.loads(capsys.readouterr().out)["predictions"][0]["item_ids"]) == 5
