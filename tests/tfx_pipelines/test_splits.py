"""The splits of the pipeline are those of `tfrz train`, example by example."""

from __future__ import annotations

import collections

import pytest
import tensorflow as tf

from tfrz.data.columns import to_examples
from tfrz.data.records import RECORD_TYPES, load
from tfrz.data.splits import SPLITS
from tfrz.zoo import registry
from tfrz.zoo.run import open_run
from tfrz.zoo.run_config import load_run_config
from tfx_pipelines.configs import Places

pytestmark = pytest.mark.needs("tfx")

OPTIONS = {
    "impression": "{rows: 1500}",
    "history": "{users: 60, length: 9}",
    "list": "{queries: 150, length: 4}",
    "logged_action": "{users: 80, length: 5}",
    "timeline": "{users: 30, days: 10, impressions: 15}",
}
MORE = {"timeline": ("data.timeline.min_visible=10", "data.timeline.targets=6")}


def _model(record_type: str) -> str:
    return next(n for n in registry.names() if registry.get(n).record_type == record_type)


def _comparable(serialized: bytes, names: list[str]) -> str:
    """The raw features of an example; sums of weights may differ in their last digits."""
    features = tf.train.Example.FromString(serialized).features.feature
    values = {}
    for name in names:
        kind = features[name].WhichOneof("kind")
        stored = list(getattr(features[name], kind).value) if kind else []
        values[name] = [f"{v:.5g}" for v in stored] if kind == "float_list" else stored
    return repr(values)


@pytest.mark.parametrize("test_fraction", [0.0, 0.2])
@pytest.mark.parametrize("record_type", list(RECORD_TYPES))
def test_an_example_is_in_the_same_split_here_and_in_the_pipeline(
    record_type, test_fraction, tmp_path
):
    import apache_beam as beam

    from tfrz.data.beam import ReadRecords
    from tfx_pipelines.components.example_gen import Plan

    overrides = (
        f"data.options={OPTIONS[record_type]}",
        "data.validation_fraction=0.2",
        f"data.test_fraction={test_fraction}",
        *MORE.get(record_type, ()),
    )
    run = open_run(load_run_config(_model(record_type), "simulated", overrides), "simulated")
    parts, _ = run.task.examples(run.source)
    spec, data, row = run.source.spec, run.config.data, RECORD_TYPES[record_type]
    names = [feature.name for feature in spec.features]
    here = {
        split: collections.Counter(
            _comparable(one, names) for one in to_examples(parts[split], spec, 10**9)
        )
        for split in SPLITS
    }
    assert sum(here["train"].values())
    assert sum(here["validation"].values())
    assert bool(sum(here["test"].values())) == (test_fraction > 0)

    section = None if row.section is None else getattr(data, row.section)
    plan = Plan(run.source.reader, data, section, None)
    assert plan.splits == (("train", "eval", "test") if test_fraction else ("train", "eval"))
    with beam.Pipeline() as pipeline:
        records = (pipeline | ReadRecords(run.source.reader))["records"]
        for name, examples in load(row.splits)(records, plan).items():
            _ = examples | f"Write{name}" >> beam.io.WriteToTFRecord(str(tmp_path / name))
    for name, split in (("train", "train"), ("eval", "validation"), ("test", "test")):
        files = sorted(str(path) for path in tmp_path.glob(f"{name}-*"))
        found = collections.Counter(
            _comparable(one.numpy(), names) for one in tf.data.TFRecordDataset(files)
        )
        assert found == here[split], split


def test_a_pipeline_reads_its_source_once_to_fingerprint_it(tmp_path, monkeypatch):
    """ExampleGen, Trainer and EmbeddingExport all have the fingerprint in their cache keys."""
    from tfx_pipelines.pipeline import create_pipeline

    overrides = (f"data.options={OPTIONS['timeline']}", *MORE["timeline"])
    run = open_run(load_run_config(_model("timeline"), "simulated", overrides), "simulated")
    read = []
    reader = type(run.source.reader)
    monkeypatch.setattr(reader, "fingerprint", lambda self: read.append(self) or "of-the-source")
    made = create_pipeline(run, Places(str(tmp_path)))
    assert read == [run.source.reader]
    told = {
        component.id
        for component in made.components
        if "of-the-source" in str(getattr(component, "exec_properties", ""))
    }
    assert told == {"TimelineExampleGen", "Trainer", "EmbeddingExport"}
