"""Whole sources through the SavedModel of a run, its metrics on them, and requests that disagree."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pcsv
import pyarrow.parquet as pq
import pytest
import tensorflow as tf

from tfrz.cli.main import main
from tfrz.serving.model import LoadedModel
from tfrz.serving.status import RequestError
from tfrz.zoo.evaluating import evaluate_file
from tfrz.zoo.predicting import Asked, predict_file
from tfrz.zoo.train import train

FEW = ["trainer.max_steps=6", "trainer.batch_size=32", "trainer.tensorboard=false"]
CLICK_SPEC = """
label: clicked
features:
  - {name: user}
  - {name: hour, dtype: int64}
  - {name: tags, multivalent: true}
  - {name: price, kind: numeric, dtype: float32, standardize: true}
"""
EVENT_SPEC = "user: customer\nitem: sku\ntime: at\ncontext: [{name: page}]\n"


def clicks(rows: int, seed: int = 0) -> pa.Table:
    rng = np.random.default_rng(seed)
    tags = [[f"t{t}" for t in rng.integers(0, 5, rng.integers(0, 4))] for _ in range(rows)]
    users = rng.integers(0, 40, rows)
    prices = [None if rng.random() < 0.1 else float(p) for p in rng.random(rows)]
    return pa.table(
        {
            "user": pa.array(users),
            "hour": pa.array(rng.integers(0, 24, rows), mask=rng.random(rows) < 0.1),
            "tags": pa.array(tags, pa.list_(pa.string())),
            "price": pa.array(prices, pa.float32()),
            "request": pa.array([f"r{i}" for i in range(rows)]),
            "clicked": pa.array((users % 2).astype(np.int64)),
        }
    )


def events(users: int = 50, seed: int = 0) -> pa.Table:
    rng = np.random.default_rng(seed)
    rows = [
        (
            user,
            f"item-{(user + step) % 12}",
            1_600_000_000 + 60 * step,
            "home" if step % 2 else None,
        )
        for user in range(users)
        for step in range(int(rng.integers(4, 10)))
    ]
    columns = [pa.array(list(column)) for column in zip(*rows, strict=True)]
    return pa.table(dict(zip(("customer", "sku", "at", "page"), columns, strict=True)))


@pytest.fixture(scope="module")
def click_run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("clicks")
    pq.write_table(clicks(600), folder / "train.parquet")
    (folder / "spec.yaml").write_text(CLICK_SPEC)
    data, spec = str(folder / "train.parquet"), str(folder / "spec.yaml")
    train("dcn_v2", data, folder / "run", spec, FEW, progress=False)
    # What a run needs later is in the run.
    (folder / "spec.yaml").unlink()
    return folder


@pytest.fixture(scope="module")
def m3_run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("events")
    pq.write_table(events(), folder / "events.parquet")
    (folder / "spec.yaml").write_text(EVENT_SPEC)
    sizes = ["model.item_dim=8", "model.input_units=[8]", "model.encoder_dim=8"]
    sizes += ["model.output_units=[8]", "data.history.length=6", "model.num_sampled=10"]
    data, spec = str(folder / "events.parquet"), str(folder / "spec.yaml")
    train("m3", data, folder / "run", spec, [*FEW, *sizes], progress=False)
    return folder


def version_of(folder: Path) -> str:
    return str(folder / "run" / "model" / "1")


def simulated(model: str, folder: Path, *more: str) -> Path:
    train(model, "simulated", folder / "run", None, [*FEW, *more], progress=False)
    return folder / "run"


def test_every_row_is_answered_in_order_as_one_request_is(click_run):
    table = clicks(700, seed=1)
    pq.write_table(table.drop(["clicked"]), click_run / "asked.parquet")
    out = click_run / "out.parquet"
    asked = Asked(keep=("request", "user"), batch_size=64)
    done = predict_file(
        click_run / "run", str(click_run / "asked.parquet"), out, asked=asked, progress=False
    )
    found = pq.read_table(out)
    assert done["rows"] == 700 and done["corrupt_lines"] == 0
    assert found.column_names == ["request", "user", "scores"]
    assert found["request"].to_pylist() == table["request"].to_pylist()
    # Copied in its own type, although the spec makes it text for the model.
    assert found["user"].type == pa.int64()
    assert found["user"].to_pylist() == table["user"].to_pylist()
    # Row by row as serialised examples, another way into the model.
    signature = tf.saved_model.load(version_of(click_run)).signatures["serving_default"]
    examples = []
    for row in table.slice(0, 80).to_pylist():
        example = tf.train.Example()
        feature = example.features.feature
        feature["user"].bytes_list.value.append(str(row["user"]).encode())
        feature["tags"].bytes_list.value.extend(tag.encode() for tag in row["tags"])
        if row["hour"] is not None:
            feature["hour"].int64_list.value.append(row["hour"])
        if row["price"] is not None:
            feature["price"].float_list.value.append(row["price"])
        examples.append(example.SerializeToString())
    expected = signature(tf.constant(examples))["scores"].numpy()
    np.testing.assert_allclose(found["scores"].to_numpy()[:80], expected, atol=1e-6)
    assert np.std(expected) > 0


def test_corrupt_rows_are_counted_and_bounded(click_run, capsys):
    lines = ["user,hour,tags,price", *(f"{i},3,t1|t2,0.5" for i in range(98)), "7,late,t1,0.5"]
    (click_run / "asked.csv").write_text("\n".join(lines) + "\n")
    command = ["predict", str(click_run / "run"), "--data", str(click_run / "asked.csv")]
    out = click_run / "dirty.parquet"
    command += ["--out", str(out), "--quiet", "--json"]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert "hour is not int64" in error and error.count("\n") == 1
    assert not out.exists() and not list(click_run.glob(".*"))
    assert main([*command, "--max-corrupt-fraction", "0.05"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["rows"], result["corrupt_lines"]) == (98, 1)
    # By default what is categorical and has one value is copied.
    assert pq.read_table(out).column_names == ["user", "hour", "scores"]


def test_metrics_of_a_file_are_those_of_its_answers(click_run, capsys):
    table = clicks(400, seed=2)
    pq.write_table(table, click_run / "labelled.parquet")
    command = ["evaluate", str(click_run / "run"), "--data", str(click_run / "labelled.parquet")]
    assert main([*command, "--slice", "hour", "--json", "--quiet"]) == 0
    result = json.loads(capsys.readouterr().out)
    out = click_run / "again.parquet"
    predict_file(click_run / "run", str(click_run / "labelled.parquet"), out, progress=False)
    scores = pq.read_table(out)["scores"].to_numpy().astype(float)
    label = table["clicked"].to_numpy()
    loss = -np.mean(label * np.log(scores) + (1 - label) * np.log(1 - scores))
    assert result["metrics"]["log_loss"] == pytest.approx(loss, abs=1e-5)
    assert result["baseline"]["metrics"]["auc"] == 0.5
    noon = [row == 12 for row in table["hour"].to_pylist()]
    one = result["slices"]["hour"].get("12")
    assert one is None or one["examples"] == sum(noon)
    assert main([*command, "--slice", "price", "--quiet"]) == 2
    assert "price" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "word"),
    [
        (["--out", "x.csv"], ".parquet"),
        ([], "--out"),
        (["--out", "x.parquet", "--context", "page"], "NAME=VALUE"),
        (["--out", "x.parquet", "--keep", "nobody"], "nobody"),
        (["--out", "x.parquet", "--batch-size", "0"], "--batch-size"),
        (["--out", "x.parquet", "--time", "soon"], "--time soon"),
        (["{}", "--out", "x.parquet"], "REQUEST"),
    ],
)
def test_bad_input_is_one_line(click_run, capsys, monkeypatch, more, word):
    monkeypatch.chdir(click_run)
    command = ["predict", "run", *more, "--data", "train.parquet", "--quiet"]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert word in error and error.count("\n") == 1
    assert not (click_run / "x.parquet").exists()


def test_instances_of_a_file_fit_the_signature_or_are_refused_by_name(click_run, capsys):
    rows = [
        {"user": 3, "hour": 4.0, "tags": ["t1", "t2"], "price": None},
        {"user": "7", "hour": None, "tags": []},
    ]
    path = click_run / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    command = ["predict", version_of(click_run), f"@{path}", "--signature", "serving_raw"]
    assert main(command) == 0
    assert len(json.loads(capsys.readouterr().out)["predictions"]) == 2
    pq.write_table(clicks(5).drop(["request", "clicked"]), click_run / "rows.parquet")
    command[2] = f"@{click_run / 'rows.parquet'}"
    assert main(command) == 0
    assert len(json.loads(capsys.readouterr().out)["predictions"]) == 5
    command[2] = f"@{path}"
    for wrong in ({"hour": "noon"}, {"user": 3.5}, {"tags": [["t1"]]}, {"price": "cheap"}):
        path.write_text(json.dumps({**rows[0], **wrong}))
        assert main(command) == 2
        error = capsys.readouterr().err
        assert f"row 1, feature {next(iter(wrong))}" in error and error.count("\n") == 1


@pytest.mark.slow
def test_compress_finds_the_feature_spec_in_the_run(click_run, capsys):
    out = click_run / "small"
    assert (
        main(["compress", str(click_run / "run"), "--rank", "2", "--out", str(out), "--quiet"]) == 0
    )
    assert (out / "features.yaml").read_text() == CLICK_SPEC


def test_every_user_of_an_events_file_gets_recommendations(m3_run):
    out = m3_run / "out.parquet"
    data = str(m3_run / "events.parquet")
    asked = Asked(context={"page": "home"}, batch_size=7)
    predict_file(m3_run / "run", data, out, asked=asked, progress=False)
    found = {row["user"]: row for row in pq.read_table(out).to_pylist()}
    assert set(found) == {str(user) for user in range(50)}
    table = events().to_pylist()
    signature = tf.saved_model.load(version_of(m3_run)).signatures["serving_raw"]
    newest = max(row["at"] for row in table)
    for user in (0, 17):
        history = [row for row in table if row["customer"] == user][-6:]
        answer = signature(
            history=tf.constant([[row["sku"] for row in history]]),
            history_time=tf.constant([[row["at"] for row in history]], tf.int64),
            history_page=tf.constant([[row["page"] or "" for row in history]]),
            request_time=tf.constant([newest + 1], tf.int64),
            page=tf.constant(["home"]),
        )
        items = [item.decode() for item in answer["item_ids"].numpy()[0] if item]
        assert found[str(user)]["items"] == items
        np.testing.assert_allclose(
            found[str(user)]["scores"], answer["scores"].numpy()[0][: len(items)], atol=1e-5
        )
    # Seen items are not recommended, so the lists end before the catalogue does.
    assert {len(row["items"]) for row in found.values()} <= set(range(3, 9))


def test_the_last_event_of_each_user_is_the_test_of_a_history_run(m3_run):
    result = evaluate_file(m3_run / "run", str(m3_run / "events.parquet"), slices=["page"])
    stored = json.loads((m3_run / "run" / "metrics.json").read_text())["metrics"]["test"]
    assert result["examples"] == 50
    for name, value in result["metrics"].items():
        assert value == pytest.approx(stored[name], abs=1e-6)
    assert result["metrics"]
    assert sum(one["examples"] for one in result["slices"]["page"].values()) == 50


def request(width: int = 3) -> dict[str, np.ndarray]:
    texts = np.array([[b"item-1"] * width] * 2, object)
    return {
        "history": texts,
        "history_time": np.full((2, width), 1_600_000_000),
        "history_page": texts,
        "request_time": np.full(2, 1_600_000_100),
        "page": np.array([b"home", b"home"], object),
    }


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("page", lambda values: values[:1]),
        ("request_time", lambda values: np.concatenate([values, values])),
        ("history_page", lambda values: values[:, :1]),
        ("history_time", lambda values: np.concatenate([values, values], axis=1)),
    ],
)
def test_columns_that_disagree_are_refused_by_name(m3_run, name, change):
    loaded = LoadedModel(version_of(m3_run))
    for signature in ("serving_raw", "recommend"):
        loaded.run(signature, request())
        wrong = {**request(), name: change(request()[name])}
        with pytest.raises(RequestError) as refused:
            loaded.run(signature, wrong)
        assert refused.value.code.name == "INVALID_ARGUMENT"
        assert name in refused.value.message
    loaded.close()


def test_a_list_of_an_example_that_is_longer_than_the_history_is_refused(m3_run):
    example = tf.train.Example()
    example.features.feature["history"].bytes_list.value.extend([b"item-1"])
    example.features.feature["history_page"].bytes_list.value.extend([b"home", b"home"])
    loaded = LoadedModel(version_of(m3_run))
    with pytest.raises(RequestError) as refused:
        loaded.run("serving_default", {"examples": np.array([example.SerializeToString()], object)})
    assert "history_page has 2 values in row 0, history has 1" in refused.value.message


@pytest.mark.slow
def test_a_list_is_answered_and_columns_that_disagree_are_refused(tmp_path):
    run = simulated("seq2slate", tmp_path, "data.options={queries: 200, length: 6}")
    out = tmp_path / "out.parquet"
    predict_file(run, "simulated", out, progress=False)
    rows = pq.read_table(out).to_pylist()
    assert len(rows) == 200
    assert all(len(row["items"]) == 6 and len(set(row["items"])) == 6 for row in rows)
    result = evaluate_file(run, "simulated")
    assert 0 < result["baseline"]["metrics"]["ndcg_at_10"] <= 1
    assert set(result["metrics"]) == set(
        json.loads((run / "metrics.json").read_text())["metrics"]["test"]
    )
    loaded = LoadedModel(run / "model" / "1")
    inputs = {}
    for name, info in loaded.signature("serving_raw").inputs.items():
        shape = [2, 3][: len(info.tensor_shape.dim)]
        text = tf.dtypes.as_dtype(info.dtype) == tf.string
        inputs[name] = np.full(shape, b"a", object) if text else np.ones(shape, np.float32)
    loaded.run("serving_raw", inputs)
    for change in (np.ones((2, 5), np.float32), np.ones((1, 3), np.float32)):
        with pytest.raises(RequestError, match=r"f1 has") as refused:
            loaded.run("rerank", {**inputs, "f1": change})
        assert refused.value.code.name == "INVALID_ARGUMENT"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "more", "columns"),
    [
        ("multi_interest", ["data.options={world: interests, users: 200}"], ["user", "items"]),
        ("topk_reinforce", ["data.options={users: 300}"], ["user", "items", "log_probability"]),
        ("dv365", ["data.options={users: 40, days: 10}"], ["user", "embedding", "present"]),
    ],
)
def test_users_of_other_models_are_answered_and_judged(tmp_path, model, more, columns):
    run = simulated(model, tmp_path, *more)
    out = tmp_path / "out.parquet"
    done = predict_file(run, "simulated", out, progress=False)
    table = pq.read_table(out)
    assert done["columns"][: len(columns)] == columns
    assert len(set(table["user"].to_pylist())) == table.num_rows > 30
    result = evaluate_file(run, "simulated")
    assert result["metrics"] and all(np.isfinite(list(result["metrics"].values())))


def test_csv_and_parquet_of_the_same_events_are_answered_alike(m3_run):
    table = events()
    pcsv.write_csv(table, m3_run / "events.csv")
    outs = []
    for data in ("events.csv", "events.parquet"):
        out = m3_run / f"of_{data}.parquet"
        predict_file(m3_run / "run", str(m3_run / data), out, progress=False)
        outs.append(pq.read_table(out).sort_by("user"))
    assert outs[0].equals(outs[1])
