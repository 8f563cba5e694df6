"""The Beam side: what a reader reads, in parallel, with corrupt lines set aside."""

from __future__ import annotations

import json

import pytest
import tensorflow as tf

from tests.lazy import lazy
from tests.tfrz.data import small_sources as sources
from tfrz.data.records import open_source
from tfrz.data.sources.reader import read_table

pytestmark = pytest.mark.needs("apache_beam")

beam = lazy("apache_beam")
data_beam = lazy("tfrz.data.beam")
metrics = lazy("apache_beam.metrics")

BAD = "1::1\n9::9::1::1\n"


def _run(reader, folder, max_fraction):
    pipeline = beam.Pipeline(runner="DirectRunner")
    outputs = pipeline | data_beam.ReadRecords(reader)
    _ = outputs | data_beam.CheckCorrupt(max_fraction, str(folder / "corrupt"))
    _ = (
        outputs["records"]
        | data_beam.RecordsToExamples()
        | beam.io.WriteToTFRecord(str(folder / "examples"), shard_name_template="")
    )
    result = pipeline.run()
    result.wait_until_finish()
    counters = result.metrics().query(metrics.MetricsFilter().with_namespace("tfrz"))["counters"]
    return {c.key.metric.name: c.committed for c in counters}


def test_records_become_examples_and_corrupt_lines_a_side_output(tmp_path):
    folder = sources.movielens_1m(tmp_path / "data", sources.RATINGS_1M + BAD)
    reader = open_source(f"movielens-1m:{folder}")
    counters = _run(reader, tmp_path, 0.5)
    assert counters == {"records": 3, "corrupt_lines": 2}
    written = []
    for record in tf.data.TFRecordDataset(str(tmp_path / "examples")):
        features = tf.train.Example.FromString(record.numpy()).features.feature
        kinds = {name: value.WhichOneof("kind") for name, value in features.items()}
        written.append({n: list(getattr(features[n], k).value) for n, k in kinds.items() if k})
    table, _ = read_table(reader, 1.0)
    assert sorted(map(_stable, written)) == sorted(map(_stable, table.to_pylist()))
    lines = [json.loads(line) for line in (tmp_path / "corrupt").read_text().splitlines()]
    assert sorted((line["line"], line["reason"]) for line in lines) == [
        (5, "2 fields instead of 4"),
        (6, "an unknown user"),
    ]


def _stable(row):
    return json.dumps({n: [str(x) for x in v] for n, v in row.items()}, sort_keys=True)


def test_too_many_corrupt_lines_fail_the_pipeline_and_name_the_first(tmp_path):
    folder = sources.movielens_1m(tmp_path / "data", sources.RATINGS_1M + BAD)
    with pytest.raises(
        Exception, match=r"ratings\.dat:5: 2 fields .*one of 2 corrupt lines among 5"
    ):
        _run(open_source(f"movielens-1m:{folder}"), tmp_path, 0.1)


def test_every_shard_is_read_once(tmp_path):
    reader = open_source("simulated", None, rows=60_000)
    assert len(reader.shards()) == 3
    assert _run(reader, tmp_path, 0.0) == {"records": 60_000}
