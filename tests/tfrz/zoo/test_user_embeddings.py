"""Training on examples that carry the embedding of their user, from `tfrz train` to a request."""

from __future__ import annotations

import base64
import json

import numpy as np
import pytest
import tensorflow as tf

from tests.fake_embeddings import VERSION, FakeEmbeddings, packed, stores
from tests.tfrz.serving.harness import ServerProcess
from tfrz.cli.main import main
from tfrz.config import read_yaml
from tfrz.errors import ConfigError, InputError
from tfrz.zoo import registry
from tfrz.zoo.run_config import load_run_config
from tfrz.zoo.train import train
from tfrz.zoo.user_embeddings import check_warm_start, pinned

GROUPS, ITEMS = 4, 10
CLICKS = (
    "model.embedding_dim=4",
    "model.rank=2",
    "model.hidden_units=[16]",
    "trainer.epochs=12",
    "trainer.batch_size=64",
    "trainer.learning_rate=0.02",
    "trainer.tensorboard=false",
)
SMALL = (
    "data.history.length=4",
    "data.history.split=users",
    "data.validation_fraction=0.2",
    "trainer.batch_size=32",
    "trainer.epochs=12",
    "trainer.learning_rate=0.02",
    "trainer.tensorboard=false",
    "export.top_k=10",
)
HISTORIES = {
    "m3": (
        *SMALL,
        "model.item_dim=8",
        "model.input_units=[8]",
        "model.encoder_dim=8",
        "model.output_units=[8]",
        "model.loss=softmax",
    ),
    "multi_interest": (*SMALL, "model.dim=8", "model.num_interests=2", "model.temperature=1"),
}
# Of the embeddings; histories are before, requests at or after it.
NOW = 1_600_000_000


def _taste(user: int) -> int:
    return user * 7919 % GROUPS


def make_store(users: int, **more) -> FakeEmbeddings:
    """Two vectors a user, the second of which tells the group of items that the user likes."""
    rng = np.random.default_rng(1)
    vectors = {}
    for user in range(users):
        values = rng.normal(0, 0.3, (2, 20))
        values[1, _taste(user)] += 3.0
        vectors[f"c{user}".encode()] = values
    return FakeEmbeddings(vectors, **more)


def write_clicks(folder) -> tuple[str, str]:
    """Users who are seen twice and like the items of one group: ids cannot tell which."""
    rng = np.random.default_rng(0)
    lines = ["customer,item,label"]
    for user in range(1200):
        for _ in range(2):
            group = _taste(user) if rng.random() < 0.5 else int(rng.integers(GROUPS))
            item = group * ITEMS + int(rng.integers(ITEMS))
            liked = (group == _taste(user)) != (rng.random() < 0.05)
            lines.append(f"c{user},i{item},{int(liked)}")
    (folder / "clicks.csv").write_text("\n".join(lines) + "\n")
    (folder / "spec.yaml").write_text("features: [{name: customer}, {name: item}]\n")
    return str(folder / "clicks.csv"), str(folder / "spec.yaml")


@pytest.fixture(scope="module")
def clicks(tmp_path_factory):
    return write_clicks(tmp_path_factory.mktemp("clicks"))


@pytest.fixture(scope="module")
def events(tmp_path_factory):
    """Four events that tell nothing, then, after the embeddings, one of the user's group."""
    folder = tmp_path_factory.mktemp("events")
    rng = np.random.default_rng(0)
    lines = ["user,item,time"]
    for user in range(600):
        items = [*rng.integers(0, GROUPS * ITEMS, 4), _taste(user) * ITEMS + rng.integers(ITEMS)]
        for step, item in enumerate(items):
            lines.append(f"c{user},i{item},{NOW + 100 * (step - 4)}")
    (folder / "events.csv").write_text("\n".join(lines) + "\n")
    (folder / "spec.yaml").write_text("user: user\n")
    return str(folder / "events.csv"), str(folder / "spec.yaml")


def _train(model, source, out, *overrides, **opened):
    data, spec = source
    with stores(**opened):
        return train(model, data, out, spec, overrides, progress=False)


WITH = ("features.long_history=store", "features.user=customer")


@pytest.fixture(scope="module")
def trained(clicks, tmp_path_factory):
    out = tmp_path_factory.mktemp("trained") / "run"
    return out, _train("dcn_v2", clicks, out, *CLICKS, *WITH, store=make_store(1000))


@pytest.mark.slow
def test_dcn_learns_from_the_embedding_what_ids_do_not_tell(clicks, trained, tmp_path, caplog):
    without = _train("dcn_v2", clicks, tmp_path / "run", *CLICKS)
    assert without["metrics"]["test"]["auc"] < 0.7
    # A sixth of the users has no embedding.
    assert trained[1]["metrics"]["test"]["auc"] > without["metrics"]["test"]["auc"] + 0.15


@pytest.mark.slow
@pytest.mark.parametrize(("model", "adapter"), [("m3", "gate"), ("multi_interest", "linear")])
def test_recommendations_follow_the_embedding(model, adapter, events, tmp_path):
    settings = [*HISTORIES[model], f"features.adapter={adapter}"]
    store = make_store(600, generated_at=NOW)
    result = _train(
        model, events, tmp_path / "run", *settings, "features.long_history=store", store=store
    )
    # Ten of forty items are of the user's group.
    assert result["metrics"]["validation"]["recall_at_10"] > 0.7
    signatures = tf.saved_model.load(result["model"]).signatures
    for group in range(GROUPS):
        vectors = np.zeros((2, 20))
        vectors[1, group] = 3.0
        answer = signatures["recommend"](
            history=tf.constant([[f"i{group}"]]),
            history_time=tf.constant([[NOW]], tf.int64),
            request_time=tf.constant([NOW + 10], tf.int64),
            long_history=tf.constant([packed(vectors)]),
            long_history_version=tf.constant([VERSION]),
        )
        listed = [int(item[1:]) // ITEMS for item in answer["item_ids"].numpy()[0]]
        assert listed.count(group) >= 8


@pytest.mark.slow
@pytest.mark.parametrize("model", ["m3", "multi_interest"])
def test_without_it_they_cannot_know(model, events, tmp_path):
    result = _train(model, events, tmp_path / "run", *HISTORIES[model])
    assert result["metrics"]["validation"]["recall_at_10"] < 0.45


def test_embeddings_from_after_the_requests_are_refused(events, tmp_path):
    with pytest.raises(InputError, match="every request is older than the embeddings in store"):
        _train(
            "m3",
            events,
            tmp_path / "run",
            *HISTORIES["m3"],
            "features.long_history=store",
            store=make_store(800, generated_at=NOW + 1),
        )


def test_the_version_is_in_all_that_a_run_leaves(trained):
    out = trained[0]
    saved = out / "model" / "1" / "assets"
    for path in (out / "config.yaml", saved / "run_config.yaml"):
        features = read_yaml(path)["features"]
        assert features["long_history_version"] == VERSION
        assert features["long_history"] == "store"
    card = (out / "card.md").read_text()
    assert f"long_history_version: {VERSION}" in card
    assert "| long_history | opaque | string | one |" in card


def _example(user: str, item: str, stored: bytes | None = None, version: str = VERSION) -> bytes:
    example = tf.train.Example()
    example.features.feature["customer"].bytes_list.value.append(user.encode())
    example.features.feature["item"].bytes_list.value.append(item.encode())
    if stored is not None:
        example.features.feature["long_history"].bytes_list.value.append(stored)
        example.features.feature["long_history_version"].bytes_list.value.append(version.encode())
    return example.SerializeToString()


def test_invariant_13_the_served_model_reads_no_bytes_of_what_is_missing(trained):
    loaded = tf.saved_model.load(trained[1]["model"])
    store = make_store(4)
    one, other = store.packed([b"c0", b"c1"])

    def scores(*sent: bytes) -> np.ndarray:
        return loaded.signatures["serving_default"](examples=tf.constant(sent))["scores"].numpy()

    known = scores(_example("c1", "i3", one), _example("c1", "i3", other))
    assert abs(known[0] - known[1]) > 1e-3
    nothing = scores(_example("c1", "i3"))
    strange = b"\xff" * len(one)
    missing = scores(
        _example("c1", "i3"),
        *(_example("c1", "i3", stored, "2-00000000") for stored in (one, other, strange)),
        *(_example("c1", "i3", stored) for stored in (b"", one[:-1], one + one)),
    )
    np.testing.assert_array_equal(missing, np.repeat(missing[:1], len(missing)))
    np.testing.assert_allclose(missing[:1], nothing, atol=1e-6)
    assert abs(nothing[0] - known).min() > 1e-3
    raw = loaded.signatures["serving_raw"](
        customer=tf.constant(["c1"] * 4),
        item=tf.constant(["i3"] * 4),
        long_history=tf.constant([one, other, b"", one]),
        long_history_version=tf.constant([VERSION, VERSION, "", "2-00000000"]),
    )["scores"].numpy()
    np.testing.assert_allclose(raw, [*known, *nothing, *nothing], atol=1e-6)


@pytest.mark.slow
def test_bytes_reach_it_over_rest_and_with_tfrz_predict(trained, tmp_path, capsys):
    out, result = trained
    one = make_store(2).packed([b"c1"])[0]
    assert one is not None
    expected = (
        tf.saved_model.load(result["model"])
        .signatures["serving_raw"](
            customer=tf.constant(["c1", "c1"]),
            item=tf.constant(["i3", "i3"]),
            long_history=tf.constant([one, b""]),
            long_history_version=tf.constant([VERSION, ""]),
        )["scores"]
        .numpy()
    )
    stored = {"b64": base64.b64encode(one).decode()}
    rows = [
        {"customer": "c1", "item": "i3", "long_history": value, "long_history_version": version}
        for value, version in ((stored, VERSION), ("", ""))
    ]
    request = {"signature_name": "serving_raw", "instances": rows}
    examples = [
        {"b64": base64.b64encode(_example("c1", "i3", stored)).decode()} for stored in (one, None)
    ]
    flags = (f"--model_base_path={out / 'model'}", "--model_name=dcn_v2")
    with ServerProcess(*flags, log=tmp_path / "server.log") as server:
        client = server.client()
        status, answer = client.rest("dcn_v2", request)
        assert status == 200, answer
        np.testing.assert_allclose(answer["predictions"], expected, atol=1e-6)
        status, answer = client.rest("dcn_v2", {"instances": examples})
        assert status == 200, answer
        np.testing.assert_allclose(answer["predictions"], expected, atol=1e-6)
        shown = {"signature_name": "transform_features", "instances": examples}
        status, answer = client.rest("dcn_v2", shown)
        assert status == 200, answer
        assert "long_history_xf" not in answer["predictions"][0]
    assert main(["predict", str(out / "model"), json.dumps(request)]) == 0
    answer = json.loads(capsys.readouterr().out)
    np.testing.assert_allclose(answer["predictions"], expected, atol=1e-6)


def test_warm_up_requests_carry_none(clicks, tmp_path):
    from tfrz.data.records import open_source
    from tfrz.zoo.user_embeddings import with_user_embeddings

    for model, data in (("dcn_v2", clicks), ("m3", None), ("multi_interest", None)):
        entry = registry.get(model)
        overrides = ["features.long_history=store", "features.user=customer"]
        config = load_run_config(model, "simulated", overrides)
        source = ("simulated", None) if data is None else data
        reader = open_source(*source, entry.record_type)
        with stores(store=make_store(1)):
            spec, _ = with_user_embeddings(config.features, reader.feature_spec())
        assert spec.long_history is not None
        task = entry.new_task(config)
        vocabularies = {f"{f.name}_xf": ["a", "b"] for f in spec.vocabularies}
        for sent in task.warmup_examples(vocabularies, spec, 3):
            names = set(tf.train.Example.FromString(sent).features.feature)
            assert names and not {n for n in names if n.startswith("long_history")}


# Versions.

OTHER = "2-00000000"
BOTH = rf"store holds embeddings of version {OTHER}, .* was trained on version {VERSION}: train"


def test_a_run_of_one_version_refuses_a_store_of_another(clicks, tmp_path):
    newer = make_store(10, version=OTHER)
    pin = f"features.long_history_version={VERSION}"
    with pytest.raises(InputError, match=BOTH):
        _train("dcn_v2", clicks, tmp_path / "run", *CLICKS, *WITH, pin, store=newer)
    assert not (tmp_path / "run").exists()
    config = load_run_config("dcn_v2", "file", [*WITH, pin, "features.any_version=true"])
    with stores(store=newer):
        assert pinned(config).features.long_history_version == OTHER


@pytest.mark.slow
def test_an_unfinished_run_is_not_resumed_with_another(clicks, tmp_path, monkeypatch):
    out, settings = tmp_path / "run", (*CLICKS, *WITH, "trainer.max_steps=2")

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("tfrz.zoo.run.export_model", interrupted)
        with pytest.raises(KeyboardInterrupt):
            _train("dcn_v2", clicks, out, *settings, store=make_store(1200))
    with pytest.raises(InputError, match=BOTH):
        _train("dcn_v2", clicks, out, *settings, store=make_store(1200, version=OTHER))
    resumed = _train("dcn_v2", clicks, out, *settings, store=make_store(1200))
    assert resumed["resumed_from"] == 2


def test_a_model_of_one_version_is_no_start_for_another(clicks, trained, tmp_path):
    newer, model = make_store(1200, version=OTHER), trained[1]["model"]
    settings = (*CLICKS, *WITH, f"trainer.warm_start={model}", "trainer.max_steps=2")
    with pytest.raises(InputError, match=BOTH):
        _train("dcn_v2", clicks, tmp_path / "run", *settings, store=newer)
    assert not (tmp_path / "run").exists()
    _train("dcn_v2", clicks, tmp_path / "any", *settings, "features.any_version=true", store=newer)
    _train("dcn_v2", clicks, tmp_path / "same", *settings, store=make_store(1200))
    # A model without embeddings has no coordinates to mix up.
    plain = load_run_config("dcn_v2", "file", CLICKS)
    check_warm_start(plain, model)


# Bad input.


def test_a_store_of_other_users_is_refused_and_one_user_named(tmp_path):
    settings = ["features.long_history=s", "data.options={rows: 300}"]
    line = r"s has no embedding for any user of the 300 examples: 'user_\d+' was looked up"
    with stores(s=make_store(5)), pytest.raises(InputError, match=line):
        train("dcn_v2", "simulated", tmp_path / "run", None, settings, progress=False)


@pytest.mark.parametrize("model", ["seq2slate", "topk_reinforce"])
def test_models_that_read_none_say_so(model, tmp_path, capsys):
    line = (
        f"features.long_history: {model} reads no embeddings of users; dcn_v2, m3, multi_interest"
    )
    with pytest.raises(ConfigError, match=line):
        load_run_config(model, "simulated", ["features.long_history=x"])
    command = ["train", model, "--out", str(tmp_path / "o"), "--set", "features.long_history=x"]
    assert main(command) == 2
    assert line in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (["features.long_history=nowhere"], "nowhere is no store of embeddings"),
        (["features.long_history=s", "features.user=usr"], "no feature 'usr' with one user; did"),
        (["features.long_history_version=1-a"], "goes with features.long_history"),
        (["features.adapter=gates", "features.long_history=s"], "did you mean 'gate'"),
        (["features.adapter_units=0"], "features.adapter_units: must be at least 1"),
        (["features.long_histories=s"], "did you mean 'long_history'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.parametrize(
    "command", ["train", pytest.param("pipeline run", marks=pytest.mark.needs("tfx"))]
)
def test_bad_settings_are_one_line(command, settings, line, tmp_path, capsys):
    where = "--out" if command == "train" else "--root"
    words = [*command.split(), "dcn_v2", where, str(tmp_path / "o"), "--quiet"]
    for setting in [*settings, "data.options={rows: 300}", "trainer.batch_size=32"]:
        words += ["--set", setting]
    with stores(s=make_store(5)):
        assert main(words) == 2
    printed = capsys.readouterr().err.strip()
    assert line in printed and "\n" not in printed and "Traceback" not in printed
