"""The pipeline on impressions that carry the embedding of their user."""

from __future__ import annotations

import dataclasses

import pytest
import tensorflow as tf

from tests.fake_embeddings import VERSION, stores
from tests.lazy import lazy
from tests.tfrz.zoo.test_user_embeddings import CLICKS, WITH, make_store, write_clicks
from tfrz.errors import InputError
from tfrz.zoo.run import open_run
from tfrz.zoo.run_config import load_run_config
from tfx_pipelines.local_runner import run_pipeline

beam = lazy("apache_beam")
example_gen = lazy("tfx_pipelines.components.example_gen")

pytestmark = [pytest.mark.slow, pytest.mark.needs("tfx")]

SETTINGS = (
    "data.test_fraction=0",
    *CLICKS,
    *WITH,
    "evaluator.min_auc=0.7",
    "export.warmup_examples=2",
)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipeline")
    return folder, *write_clicks(folder)


def _run(place, store, *overrides, root="root"):
    folder, data, spec = place
    config = load_run_config("dcn_v2", "file", [*SETTINGS, *overrides])
    with stores(store=store):
        return run_pipeline(config, data, folder / root, spec, progress=False)


@pytest.fixture(scope="module")
def first(place):
    return _run(place, make_store(1000))


def test_a_model_that_reads_the_embedding_is_pushed(first):
    assert first.blessed, first.refusals
    # Without the embedding it stays below 0.7.
    assert first.metrics["auc"] > 0.7
    signatures = tf.saved_model.load(first.pushed).signatures
    one, other = make_store(3).packed([b"c0", b"c1"])
    answer = signatures["serving_raw"](
        customer=tf.constant(["c1"] * 3),
        item=tf.constant(["i3"] * 3),
        long_history=tf.constant([one, other, b""]),
        long_history_version=tf.constant([VERSION, VERSION, ""]),
    )["scores"].numpy()
    assert abs(answer[0] - answer[1]) > 0.1 and answer[2] not in answer[:2]


def test_an_unchanged_store_is_cached_and_another_version_starts_no_warm_run(place, first):
    again = _run(place, make_store(1000))
    outcomes = {c.name: c.outcome for c in again.components}
    assert outcomes["ReaderExampleGen"] == outcomes["Trainer"] == "cached"
    newer = make_store(1000, version="2-00000000")
    line = rf"store holds embeddings of version 2-00000000, .* on version {VERSION}: train anew"
    with pytest.raises(InputError, match=line) as error:
        _run(place, newer, "trainer.warm_start=latest_blessed")
    assert "\n" not in str(error.value)


def test_a_store_of_other_users_ends_the_run_with_one_line(place):
    folder, data, spec = place
    settings = [*SETTINGS, "features.user=item"]
    config = load_run_config("dcn_v2", "file", settings)
    with stores(store=make_store(5)), pytest.raises(InputError) as error:
        run_pipeline(config, data, folder / "other", spec, progress=False)
    assert "store has no embedding for any user of the 2,400 examples: 'i" in str(error.value)
    assert "\n" not in str(error.value)


def _splits(place, folder, store=None, *overrides) -> dict[str, list[dict]]:
    """What the examples of each split hold, long histories aside."""
    _, data, spec = place
    config = load_run_config("dcn_v2", "file", [*CLICKS, *(WITH if store else ()), *overrides])
    with stores(**({"store": store} if store else {})):
        run = open_run(config, data, spec)
        component = example_gen.ExampleGen(run, str(folder / "corrupt"))
        with beam.Pipeline() as pipeline:
            properties = dict(component.exec_properties)
            parts = example_gen.ExampleGenExecutor().GenerateExamplesByBeam(pipeline, properties)
            for name, part in parts.items():
                _ = part | name >> beam.io.WriteToTFRecord(str(folder / name))
    found: dict[str, list[dict]] = {}
    for name in ("train", "eval", "test"):
        for file in sorted(folder.glob(f"{name}-*")):
            for record in tf.data.TFRecordDataset(str(file)):
                features = tf.train.Example.FromString(record.numpy()).features.feature
                row = {n: str(v) for n, v in features.items() if not n.startswith("long_history")}
                found.setdefault(name, []).append(str(sorted(row.items())))
    return {name: sorted(rows) for name, rows in found.items()}


def test_an_example_keeps_its_split_whatever_is_known_of_its_user(place, tmp_path):
    splits = []
    for number, store in enumerate((None, None, make_store(1000), make_store(10, version="2-a"))):
        folder = tmp_path / str(number)
        folder.mkdir()
        splits.append(_splits(place, folder, store))
    assert all(one == splits[0] for one in splits)
    assert 0.06 < len(splits[0]["eval"]) / 2400 < 0.14
    assert sum(len(rows) for rows in splits[0].values()) == 2400


def test_a_store_that_was_exported_anew_since_is_refused(place, tmp_path):
    _, data, spec = place
    config = load_run_config("dcn_v2", "file", [*CLICKS, *WITH])
    with stores(store=make_store(5)):
        component = example_gen.ExampleGen(open_run(config, data, spec), "c")
    with stores(store=make_store(5, generated_at=7)), pytest.raises(InputError, match="anew since"):
        example_gen.ExampleGenExecutor().GenerateExamplesByBeam(
            beam.Pipeline(), dict(component.exec_properties)
        )


def test_the_embeddings_are_part_of_what_the_cache_knows_examples_by(place):
    _, data, spec = place
    config = load_run_config("dcn_v2", "file", [*CLICKS, *WITH])

    def query(store, features) -> str:
        with stores(store=store):
            run = open_run(dataclasses.replace(config, features=features), data, spec)
            component = example_gen.ExampleGen(run, "c")
        return component.exec_properties["input_config"]

    one = query(make_store(5), config.features)
    assert query(make_store(5), config.features) == one
    assert query(make_store(5, generated_at=7), config.features) != one
    # How a model reads them changes no example.
    gate = dataclasses.replace(config.features, adapter="gate", adapter_units=3)
    assert query(make_store(5), gate) == one
