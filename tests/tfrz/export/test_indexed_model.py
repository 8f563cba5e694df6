"""A trained model whose index is built anew on other catalogues, without training."""

from __future__ import annotations

import json
import sys

import numpy as np
import pyarrow as pa
import pytest
import tensorflow as tf
from tensorflow_serving.apis import prediction_log_pb2

from tfrz.config import read_yaml
from tfrz.data.columns import to_examples
from tfrz.data.histories.catalogue import Catalogue
from tfrz.data.histories.spec import CandidateSpec
from tfrz.data.records import open_source
from tfrz.data.spec import Feature
from tfrz.errors import InputError
from tfrz.export import indexed_model
from tfrz.export.indexed_model import IndexedModel, exact_answers, export_indexed
from tfrz.export.saved_model import export_model
from tfrz.training.warm_start import warm_start
from tfrz.zoo import registry
from tfrz.zoo.run_config import load_run_config
from tfrz.zoo.train import train

SETTINGS = (
    "data.options={world: interests, users: 300}",
    "trainer.batch_size=64",
    "trainer.epochs=1",
    "trainer.tensorboard=false",
    "model.dim=8",
    "export.top_k=12",
)
SPEC = CandidateSpec(features=(Feature("cluster"),))
HISTORIES = [
    ["item_0", "item_1", "item_10", "item_0"],
    ["item_49"],
    [],
    ["never seen", "item_23"],
    ["neither this"],
    [f"item_{i}" for i in range(40)],
]


def _catalogue(items: list[str], clusters: list[str | None]) -> Catalogue:
    columns = {
        "item": pa.array([item.encode() for item in items], pa.binary()),
        "cluster": pa.array(
            [[] if c is None else [c.encode()] for c in clusters], pa.list_(pa.binary())
        ),
    }
    return Catalogue(SPEC, pa.table(columns))


def _known(numbers) -> Catalogue:
    return _catalogue([f"item_{i}" for i in numbers], [f"cluster_{i // 10}" for i in numbers])


def _config(*more: str):
    return load_run_config("multi_interest", "simulated", [*SETTINGS, *more])


def _histories(histories=HISTORIES) -> tf.Tensor:
    width = max(1, *map(len, histories))
    return tf.constant([h + [""] * (width - len(h)) for h in histories])


def _requests() -> list[bytes]:
    table = pa.table({"history": [[i.encode() for i in h] for h in HISTORIES]})
    spec = open_source("simulated", None, "history", world="interests").feature_spec()
    return to_examples(table, spec, 100)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A trained model."""
    out = tmp_path_factory.mktemp("trained") / "run"
    train("multi_interest", "simulated", out, None, SETTINGS, progress=False)
    return IndexedModel(out / "model" / "1")


@pytest.fixture
def rebuilt(trained, tmp_path):
    """Builds the index anew and gives the new model."""

    def build(catalogue: Catalogue, *more: str, model: IndexedModel = trained) -> IndexedModel:
        path = tmp_path / f"model{len(list(tmp_path.iterdir()))}"
        export_indexed(model, catalogue, _config(*more), path)
        return IndexedModel(path)

    return build


@pytest.fixture(scope="module")
def same(trained, tmp_path_factory):
    """The model with an index of the catalogue that it was trained with."""
    path = tmp_path_factory.mktemp("same") / "model"
    export_indexed(trained, _known(range(50)), _config(), path)
    return IndexedModel(path)


def _answers(model: IndexedModel, histories=HISTORIES) -> tuple[list[list[str]], np.ndarray]:
    outputs = model.signatures["recommend"](history=_histories(histories))
    lists = [[item.decode() for item in row] for row in outputs["item_ids"].numpy()]
    return lists, outputs["scores"].numpy()


def _by_hand(model: IndexedModel, items: list[str], clusters, k: int, drop_seen: bool):
    """The best of some items for every history, from their vectors."""
    users = model.signatures["encode"](history=_histories())["embedding"].numpy()
    clusters = tf.constant(["" if c is None else c for c in clusters])
    vectors = model.signatures["encode_items"](item=tf.constant(items), cluster=clusters)
    scores = np.einsum("bhd,id->bhi", users, vectors["embedding"].numpy()).max(axis=1)
    lists, best = [], []
    for row, history in enumerate(HISTORIES):
        left = [i for i in range(len(items)) if not (drop_seen and items[i] in history)]
        left = sorted(left, key=lambda i: -scores[row, i])[:k]
        lists.append([items[i] for i in left] + [""] * (k - len(left)))
        best.append([scores[row, i] for i in left] + [-1e9] * (k - len(left)))
    return lists, np.array(best)


def _same(one: dict, other: dict) -> None:
    assert set(one) == set(other)
    for name, value in one.items():
        if value.dtype.is_floating:
            np.testing.assert_allclose(value, other[name], rtol=1e-5, atol=1e-6)
        else:
            np.testing.assert_array_equal(value, other[name])


# The same catalogue.


def test_on_the_same_catalogue_every_answer_is_that_of_the_original(trained, same):
    history, examples = _histories(), tf.constant([*_requests(), b""])
    for name in ("recommend", "serving_raw", "encode"):
        _same(trained.signatures[name](history=history), same.signatures[name](history=history))
    for name in ("serving_default", "encode_examples", "transform_features"):
        _same(trained.signatures[name](examples=examples), same.signatures[name](examples=examples))
    items = {"item": tf.constant(["item_3", "?"]), "cluster": tf.constant(["cluster_0", ""])}
    _same(trained.signatures["encode_items"](**items), same.signatures["encode_items"](**items))


def test_all_signatures_are_there_with_the_inputs_and_outputs_of_the_original(trained, same):
    assert set(same.signatures) == set(registry.get("multi_interest").signatures)
    for name, signature in trained.signatures.items():
        assert same.inputs_of(name) == trained.inputs_of(name)
        outputs = same.signatures[name].structured_outputs
        assert {n: (s.dtype, s.shape.as_list()) for n, s in outputs.items()} == {
            n: (s.dtype, s.shape.as_list()) for n, s in signature.structured_outputs.items()
        }


def test_the_assets_go_along_and_tell_the_new_configuration(trained, rebuilt):
    new = rebuilt(_known(range(50)), "export.top_k=7")
    for name in ("card.md", "vocabularies.json"):
        assert (new.path / "assets" / name).read_bytes() == (
            trained.path / "assets" / name
        ).read_bytes()
    assert read_yaml(new.path / "assets" / "run_config.yaml")["export"]["top_k"] == 7
    assert not (new.path / "assets" / "required_ops.txt").exists()
    warmup = new.path / "assets.extra" / "tf_serving_warmup_requests"
    for record in tf.data.TFRecordDataset(str(warmup)):
        log = prediction_log_pb2.PredictionLog.FromString(record.numpy())
        request = log.predict_log.request
        tensors = {n: tf.constant(tf.make_ndarray(p)) for n, p in request.inputs.items()}
        outputs = new.signatures[request.model_spec.signature_name](**tensors)
        assert outputs["item_ids"].shape[1] == 7
    json.loads((new.path / "assets" / "vocabularies.json").read_text())


def test_the_order_of_the_rows_is_nothing(trained, rebuilt):
    new = rebuilt(_known(np.random.default_rng(0).permutation(50)))
    history = _histories()
    _same(
        trained.signatures["recommend"](history=history),
        new.signatures["recommend"](history=history),
    )


def test_a_catalogue_is_encoded_a_few_items_at_a_time(trained, monkeypatch):
    catalogue = _catalogue(
        [f"item_{i}" for i in range(50)] + ["new"],
        [None if i % 7 == 0 else f"cluster_{i // 10}" for i in range(50)] + [None],
    )
    items, vectors = trained.encode_catalogue(catalogue)
    monkeypatch.setattr(indexed_model, "_ITEMS_AT_ONCE", 7)
    again, others = trained.encode_catalogue(catalogue)
    assert items == again
    np.testing.assert_allclose(others, vectors, rtol=1e-6)
    chunks = [catalogue.table.slice(0, 20), catalogue.table.slice(20)]
    in_chunks = Catalogue(SPEC, pa.concat_tables(chunks))
    np.testing.assert_allclose(trained.encode_catalogue(in_chunks)[1], vectors, rtol=1e-6)


def test_an_index_can_be_built_anew_from_a_rebuilt_model(trained, rebuilt):
    small = rebuilt(_known(range(20)))
    new = rebuilt(_known(range(50)), model=small)
    history = _histories()
    _same(
        trained.signatures["recommend"](history=history),
        new.signatures["recommend"](history=history),
    )


# Other catalogues.


def test_what_was_removed_is_never_recommended_and_nothing_is_trained(trained, rebuilt):
    numbers = [i for i in range(50) if i % 2]
    new = rebuilt(_known(numbers))
    names = {f"item_{i}" for i in numbers}
    lists, _ = _answers(new)
    everyone = [[f"item_{i}", f"item_{(i * 7) % 50}"] for i in range(50)]
    found = {item for row in [*lists, *_answers(new, everyone)[0]] for item in row}
    assert found <= names and len(found) > 12
    # The order among those that are left is the old one.
    whole, _ = _answers(rebuilt(_known(range(50)), "export.top_k=50"))
    for row, old in zip(lists, whole, strict=True):
        assert row == [item for item in old if item in names][:12]
    history = _histories()
    _same(trained.signatures["encode"](history=history), new.signatures["encode"](history=history))
    for name, weight in trained.loaded.weights.items():
        np.testing.assert_array_equal(weight.numpy(), new.loaded.weights[name].numpy())


NEW = [f"new_{i}" for i in range(12)] + ["of no cluster", "of another"]
OF_NEW = [f"cluster_{i % 5}" for i in range(12)] + [None, "cluster_99"]


@pytest.mark.parametrize("drop_seen", [True, False])
def test_new_items_are_known_by_their_cluster_and_recommended(rebuilt, drop_seen):
    items = [f"item_{i}" for i in range(50)] + NEW
    clusters = [f"cluster_{i // 10}" for i in range(50)] + OF_NEW
    catalogue = _catalogue(items, clusters)
    new = rebuilt(catalogue, f"export.drop_seen={str(drop_seen).lower()}", "export.top_k=40")
    lists, scores = _answers(new)
    expected, best = _by_hand(new, items, clusters, 40, drop_seen)
    np.testing.assert_allclose(scores, best, rtol=1e-4, atol=1e-4)
    if drop_seen:
        # Forty of the sixty-four were seen: the others are listed, new ones among them.
        assert sum(item == "" for item in lists[-1]) == 16
        assert set(lists[-1]) - {""} == set(items) - set(HISTORIES[-1])
    assert {item for row in lists for item in row} & set(NEW)
    same = [sorted(a) == sorted(b) for a, b in zip(lists, expected, strict=True)]
    assert np.mean(same) > 0.5  # New items of one cluster tie.
    given = {"item": tf.constant(NEW), "cluster": tf.constant([c or "" for c in OF_NEW])}
    vectors = new.signatures["encode_items"](**given)["embedding"].numpy()
    for i in range(5):
        np.testing.assert_allclose(vectors[i], vectors[i + 5], rtol=1e-6)
    assert len(np.unique(vectors[:5].round(6), axis=0)) == 5
    assert np.isfinite(vectors).all()


def test_the_size_of_the_catalogue_is_told_to_the_evaluator(trained, rebuilt):
    new = rebuilt(_known(range(20)))
    for model, size in ((trained, 50), (new, 20)):
        features = model.signatures["transform_features"](examples=tf.constant(_requests()))
        assert features["catalogue_size"].numpy().tolist() == [size] * len(HISTORIES)


def test_a_catalogue_of_new_items_alone(rebuilt):
    new = rebuilt(_catalogue(NEW, OF_NEW))
    lists, scores = _answers(new)
    assert {item for row in lists for item in row} <= set(NEW)
    assert np.isfinite(scores).all()


def test_whether_what_was_seen_comes_back_is_the_new_configurations_to_say(rebuilt):
    for drop_seen in (True, False):
        new = rebuilt(
            _known(range(50)), f"export.drop_seen={str(drop_seen).lower()}", "export.top_k=50"
        )
        lists, _ = _answers(new)
        for row, history in zip(lists, HISTORIES, strict=True):
            known = {item for item in history if item.startswith("item_")}
            assert len(set(row) & known) == (0 if drop_seen else len(known))
            assert sum(item == "" for item in row) == (len(known) if drop_seen else 0)


# Models that know their items by their ids alone.


def _untrained(folder, name: str, *settings: str) -> str:
    """A model as it is before training, exported."""
    entry = registry.get(name)
    config = load_run_config(name, "simulated", settings)
    task = entry.new_task(config)
    reader = open_source("simulated", None, entry.record_type, **config.data.options)
    prepared = task.prepare(reader)
    model = task.build(prepared.inputs)
    export_model(
        folder / "1",
        model,
        task,
        prepared.transform,
        prepared.spec,
        config,
        prepared.vocabularies,
        "card",
    )
    return str(folder / "1")


@pytest.mark.slow
def test_without_features_new_items_are_left_out_and_the_column_may_have_any_name(tmp_path):
    settings = (
        *SETTINGS,
        "data.options={world: interests, users: 50}",
        "model.item_features=false",
    )
    model = IndexedModel(_untrained(tmp_path, "multi_interest", *settings))
    known = model.vocabulary[:15]
    ids = pa.array([i.encode() for i in ["new", *reversed(known), "newer"]], pa.binary())
    catalogue = Catalogue(CandidateSpec(item="sku"), pa.table({"sku": ids}))
    items, vectors = model.encode_catalogue(catalogue)
    # The most popular in training first.
    assert [item.decode() for item in items] == known
    assert vectors.shape == (15, 8)
    config = load_run_config("multi_interest", "simulated", settings)
    export_indexed(model, catalogue, config, tmp_path / "2")
    new = IndexedModel(tmp_path / "2")
    lists, _ = _answers(new)
    assert {item for row in lists for item in row} <= set(known)
    with pytest.raises(InputError, match="top_k is 12, the catalogue has 0 items"):
        export_indexed(model, Catalogue.of_items([b"x", b"y"]), config, tmp_path / "3")
    assert not (tmp_path / "3").exists()


# The check of an index.


def test_the_exact_answers_are_those_of_the_exact_index(trained, rebuilt, monkeypatch):
    catalogue = _known(range(45))
    config = _config("export.drop_seen=true")
    new = rebuilt(catalogue, "export.drop_seen=true")
    found, exact = exact_answers(new, catalogue, config, _requests())
    assert found == exact
    assert [[i.decode() for i in row] for row in found] == [
        [item for item in row if item] for row in _answers(new)[0]
    ]
    assert len(found[-1]) == 5  # Forty of the forty-five were seen.
    monkeypatch.setattr(indexed_model, "_EXAMPLES_AT_ONCE", 4)
    assert exact_answers(new, catalogue, config, _requests()) == (found, exact)
    assert exact_answers(new, catalogue, config, []) == ([], [])


def test_an_index_of_other_items_is_found_out(rebuilt):
    new = rebuilt(_known(range(20)))
    found, exact = exact_answers(new, _known(range(50)), _config(), _requests())
    assert found != exact and not {b"item_45"} & {i for row in found for i in row}


# ScaNN.


@pytest.mark.needs("scann")
@pytest.mark.slow
def test_a_model_with_scann_says_what_it_needs(trained, rebuilt, monkeypatch):
    settings = ("export.index={kind: scann, num_leaves: 5, leaves_to_search: 5}",)
    new = rebuilt(_known(range(50)), *settings)
    told = (new.path / "assets" / "required_ops.txt").read_text()
    assert "Scann" in told and "google/tf-serving-scann" in told and "pip install" in told
    lists, scores = _answers(new)
    expected, best = _answers(trained)
    np.testing.assert_allclose(scores, best, rtol=1e-4, atol=1e-4)
    assert [sorted(row) for row in lists] == [sorted(row) for row in expected]
    assert set(new.signatures) == set(trained.signatures)
    exact = rebuilt(_known(range(50)), model=new)  # And without it again.
    assert not (exact.path / "assets" / "required_ops.txt").exists()
    history = _histories()
    _same(
        trained.signatures["recommend"](history=history),
        exact.signatures["recommend"](history=history),
    )
    monkeypatch.setitem(sys.modules, "scann", None)
    with pytest.raises(InputError, match="ScaNN's operations, but ScaNN is not installed: docs"):
        IndexedModel(new.path)


# Training that starts from one.


def test_a_warm_start_from_a_rebuilt_model_takes_all_of_it(trained, rebuilt):
    new = rebuilt(_known(range(20)))
    entry = registry.get("multi_interest")
    config = _config()
    task = entry.new_task(config)
    reader = open_source("simulated", None, "history", **config.data.options)
    prepared = task.prepare(reader)
    model = task.build(prepared.inputs)
    report = warm_start(model, task, prepared.vocabularies, new.path)
    assert not report.fresh, report.fresh
    functions = task.signatures(model, prepared.transform, prepared.spec, prepared.vocabularies)
    _same(
        functions["encode"]({"history": _histories()}),
        trained.signatures["encode"](history=_histories()),
    )
    items = {
        "item": tf.constant([f"item_{i}" for i in range(50)] + ["new"]),
        "cluster": tf.constant([f"cluster_{i // 10}" for i in range(50)] + ["cluster_2"]),
    }
    _same(functions["encode_items"](items), trained.signatures["encode_items"](**items))


@pytest.mark.slow
def test_a_run_that_starts_from_a_rebuilt_model_goes_on_from_there(trained, rebuilt, tmp_path):
    start = rebuilt(_known(range(20)))
    more = [f"trainer.warm_start={start.path}", "trainer.max_steps=1", "trainer.learning_rate=1e-9"]
    result = train("multi_interest", "simulated", tmp_path / "o", None, [*SETTINGS, *more], False)
    again = IndexedModel(result["model"])
    lists, scores = _answers(again)
    expected, best = _answers(trained)
    np.testing.assert_allclose(scores, best, atol=1e-4)
    assert lists == expected


# What is refused.


def test_an_item_that_is_there_twice_is_refused_with_its_id():
    with pytest.raises(InputError, match="item 'item_7' is in the catalogue twice"):
        _known([3, 7, 4, 7])


def test_a_catalogue_without_a_column_that_the_model_reads_is_refused(trained):
    for catalogue, column in (
        (Catalogue.of_items([b"item_1"]), "cluster"),
        (
            Catalogue(
                CandidateSpec(item="sku", features=(Feature("cluster"),)),
                pa.table({"sku": [b"item_1"], "cluster": pa.array([[b"c"]])}),
            ),
            "item",
        ),
    ):
        with pytest.raises(InputError, match=f"no column '{column}'") as caught:
            trained.encode_catalogue(catalogue)
        assert "\n" not in str(caught.value)


def test_a_catalogue_whose_column_has_another_type_is_refused(trained):
    spec = CandidateSpec(features=(Feature("cluster", dtype="int64"),))
    columns = {"item": pa.array([b"item_1"]), "cluster": pa.array([[1]], pa.list_(pa.int64()))}
    with pytest.raises(InputError, match="cluster"):
        trained.encode_catalogue(Catalogue(spec, pa.table(columns)))


def test_a_catalogue_in_which_a_feature_is_missing_everywhere_is_answered(trained):
    items, vectors = trained.encode_catalogue(_catalogue(["item_1", "x"], [None, None]))
    assert items == [b"item_1", b"x"]
    assert np.isfinite(vectors).all() and vectors[0].any() and not vectors[1].any()


def test_more_items_than_there_are_are_refused_and_nothing_is_written(trained, tmp_path):
    place = tmp_path / "model"
    export_indexed(trained, _known(range(20)), _config(), place)
    before = sorted((str(p), p.stat().st_mtime_ns) for p in tmp_path.rglob("*"))
    with pytest.raises(InputError, match=r"export\.top_k is 12, the catalogue has 11 items"):
        export_indexed(trained, _known(range(11)), _config(), place)
    assert sorted((str(p), p.stat().st_mtime_ns) for p in tmp_path.rglob("*")) == before
    export_indexed(trained, _known(range(12)), _config(), place)
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_a_vector_that_is_no_number_is_refused_with_its_item(trained, tmp_path):
    model = IndexedModel(trained.path)
    (table,) = (w for n, w in model.loaded.weights.items() if n.startswith("items-"))
    rows = table.numpy()
    rows[1 + model.vocabulary.index("item_31")] = np.nan
    table.assign(rows)
    with pytest.raises(InputError, match="'item_31' is not finite") as caught:
        export_indexed(model, _known(range(50)), _config(), tmp_path / "model")
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())
    # Without that item there is nothing wrong.
    others = [i for i in range(50) if i != 31]
    export_indexed(model, _known(others), _config(), tmp_path / "model")


def test_the_model_of_another_system_is_refused_in_one_line(tmp_path):
    """One that reads histories and knows items, but has no vectors of users."""
    settings = ("data.options={users: 40, length: 8}", "data.history.length=5")
    path = _untrained(tmp_path, "m3", *settings)
    with pytest.raises(InputError, match="has no signature encode: it does not encode") as caught:
        IndexedModel(path)
    assert path in str(caught.value) and "\n" not in str(caught.value)


def test_what_is_no_model_is_refused_in_one_line(trained, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    (tmp_path / "junk").mkdir()
    (tmp_path / "junk" / "saved_model.pb").write_bytes(b"junk")
    tf.saved_model.save(tf.Module(), str(tmp_path / "other"))
    for name in ("nowhere", "empty", "file", "junk", "other"):
        with pytest.raises(InputError, match=name) as caught:
            IndexedModel(tmp_path / name)
        assert "\n" not in str(caught.value)
