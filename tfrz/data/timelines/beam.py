"""Beam transforms that build examples of timelines from sources of any size.

Elements are Arrow batches, never single events. Users are grouped into buckets by a hash.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.metrics import Metrics
from apache_beam.pvalue import AsIter, TaggedOutput

from tfrz.data.beam import split_batches
from tfrz.data.splits import SPLITS
from tfrz.data.timelines.examples import buckets_of, build_examples, clean, joined_pools, sampled
from tfrz.data.timelines.spec import TimelineConfig, TimelineSpec, example_spec

_BUCKETS = 64


def by_bucket(batch: pa.RecordBatch, count: int) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Yields the rows of each bucket of users."""
    buckets = buckets_of(batch.column("user"), count)
    for bucket in np.unique(buckets):
        yield int(bucket), batch.filter(pa.array(buckets == bucket))


class Clean(beam.DoFn):
    """Drops invalid events, and counts them by reason.

    Args:
      spec: Spec of the source.
      as_of: Events at or after this time are dropped as from the future; None keeps all.
      since: Events before this time are dropped without counting: an earlier run has read them.
    """

    def __init__(
        self, spec: TimelineSpec, as_of: float | None = None, since: int | None = None
    ) -> None:
        self._spec, self._as_of, self._since = spec, as_of, since

    def process(self, batch: pa.RecordBatch) -> Iterator[Any]:
        """Yields the valid events; the counts go to `left_out`."""
        if self._since is not None:
            batch = batch.filter(pc.greater_equal(batch.column("time"), self._since))
        table, left_out = clean(pa.Table.from_batches([batch]), self._spec, self._as_of)
        for reason, count in left_out.items():
            Metrics.counter("tfrz", reason).inc(count)
            yield TaggedOutput("left_out", (reason, count))
        yield from table.combine_chunks().to_batches()


def _pools(batch: pa.RecordBatch, config: TimelineConfig) -> list[pa.Table]:
    return [sampled(pa.Table.from_batches([batch]), config)]


def _joined(pools: Iterable[list[pa.Table]], config: TimelineConfig) -> list[pa.Table]:
    """Merges the pools of parts of the events; the list is empty without events."""
    found = [pool for part in pools for pool in part]
    return [joined_pools(found, config)] if found else []


class _Build(beam.DoFn):
    """Builds the examples of a bucket of users; each split has an output of its name."""

    def __init__(
        self, spec: TimelineSpec, config: TimelineConfig, held_out: tuple[float, float]
    ) -> None:
        self._spec, self._config, self._held_out = spec, config, held_out

    def process(
        self,
        bucket: tuple[int, Iterable[pa.RecordBatch]],
        pools: Iterable[list[pa.Table]],
    ) -> Iterator[TaggedOutput]:
        """Yields Arrow batches with feature columns only."""
        events = pa.Table.from_batches(list(bucket[1]))
        found = [pool for pools_ in pools for pool in pools_]
        examples = build_examples(
            events, self._spec, self._config, self._held_out, found[0] if found else None
        )
        told = {split: rows.drop(["user", "request_time"]) for split, rows in examples.items()}
        yield from split_batches(told, 64)


class EventsToExamples(beam.PTransform):
    """Builds examples of each split from batches of events.

    Args:
      spec: Spec of the source.
      config: Configuration of the examples.
      held_out: Shares of each user's targets in validation and test.

    Returns:
      A dict from `train`, `validation` and `test` to batches for `RecordsToExamples`.
    """

    def __init__(
        self,
        spec: TimelineSpec,
        config: TimelineConfig,
        held_out: tuple[float, float] = (0.0, 0.0),
    ) -> None:
        super().__init__()
        self._source, self._config = spec, config
        self._build = _Build(example_spec(spec, config), config, held_out)

    def expand(self, batches: beam.PCollection) -> dict[str, beam.PCollection]:
        """Builds the transform."""
        cleaned = batches | "Clean" >> beam.ParDo(Clean(self._source)).with_outputs(
            "left_out", main="events"
        )
        events = cleaned.events
        if self._config.negatives:
            pools = (
                events
                | "Sample" >> beam.Map(_pools, self._config)
                | "Pool" >> beam.CombineGlobally(_joined, self._config)
            )
        else:
            pools = batches.pipeline | "NoPool" >> beam.Create([[]])
        outputs = (
            events
            | "ByBucket" >> beam.FlatMap(by_bucket, _BUCKETS)
            | "Buckets" >> beam.GroupByKey()
            | "Build" >> beam.ParDo(self._build, AsIter(pools)).with_outputs(*SPLITS)
        )
        return {split: outputs[split] for split in SPLITS}
