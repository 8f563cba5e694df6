"""Beam transforms that build examples of histories from sources of any size.

Rows stay in Arrow batches until they are grouped by user. A worker holds only the events of a user
that its examples need, so a user with a million events costs no more than any other.
"""

from __future__ import annotations

import collections
from collections.abc import Iterable, Iterator
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.pvalue import AsList, TaggedOutput

from tfrz.data.beam import split_batches
from tfrz.data.histories.examples import build_examples, newest, not_settled
from tfrz.data.histories.spec import HistoryConfig, HistorySpec
from tfrz.data.splits import SPLITS
from tfrz.data.user_embeddings import EmbeddingJoin
from tfrz.data.user_embeddings_beam import FOUND, CheckFound

# (time, position, item, contexts...)
Event = tuple[Any, ...]
_COUNTS_HELD = 1_000_000

_USERS_A_BATCH = 64


class _Counts(beam.DoFn):
    """Counts the values of a column within a bundle."""

    def __init__(self, column: str) -> None:
        self._column = column

    def start_bundle(self) -> None:
        self._counts: collections.Counter[bytes] = collections.Counter()

    def process(self, batch: pa.RecordBatch) -> Iterator[tuple[bytes, int]]:
        """Emits counts early only if there are many values."""
        counted = pc.value_counts(batch.column(self._column))
        values, counts = counted.field("values"), counted.field("counts")
        for value, count in zip(values.to_pylist(), counts.to_pylist(), strict=True):
            self._counts[value] += count
        if len(self._counts) > _COUNTS_HELD:
            yield from self._counts.items()
            self._counts.clear()

    def finish_bundle(self) -> Iterator[Any]:
        """Emits the remaining counts."""
        from apache_beam.transforms.window import GlobalWindow
        from apache_beam.utils.windowed_value import WindowedValue

        window = GlobalWindow()
        for pair in self._counts.items():
            yield WindowedValue(pair, window.max_timestamp(), [window])


def _without(batch: pa.RecordBatch, rare: Iterable[bytes], column: str) -> list[pa.RecordBatch]:
    rare = list(rare)
    if not rare:
        return [batch]
    drop = pc.is_in(batch.column(column), pa.array(rare, pa.binary()))
    kept = batch.filter(pc.invert(drop))
    return [kept] if kept.num_rows else []


class DropRare(beam.PTransform):
    """Leaves out rare items, then rare users, once or until nothing changes.

    A pipeline cannot loop, so a fixed point takes `max_passes` passes, and the last of them must
    find nothing to leave out.

    Args:
      config: Minimum counts, and number of passes.
    """

    def __init__(self, config: HistoryConfig) -> None:
        super().__init__()
        self._config = config

    def expand(self, batches: beam.PCollection) -> beam.PCollection:
        """Filters batches of interactions."""
        config = self._config
        bounds = (("item", config.min_item_count), ("user", config.min_user_count))
        passes = 1 if config.min_count_passes == 1 else config.max_passes
        last: list[beam.PCollection] = []
        for number in range(passes):
            last = []
            for column, least in bounds:
                if least == 1:
                    continue
                label = f"{column.title()}{number}"
                rare = (
                    batches
                    | f"Count{label}" >> beam.ParDo(_Counts(column))
                    | f"Sum{label}" >> beam.CombinePerKey(sum)
                    | f"Rare{label}"
                    >> beam.FlatMapTuple(
                        lambda value, count, least=least: [value] if count < least else []
                    )
                )
                last.append(rare)
                batches = batches | f"Without{label}" >> beam.FlatMap(
                    _without, AsList(rare), column
                )
        if config.min_count_passes == "fixed_point" and last:
            left = last | "Unsettled" >> beam.Flatten()
            _ = left | "Settled" >> beam.Map(_refuse, config)
        return batches


def _refuse(value: bytes, config: HistoryConfig) -> None:
    raise not_settled(config)


class _OncePerEvent(beam.PTransform):
    """Keeps the first of several events with equal user, item and time."""

    def expand(self, rows: beam.PCollection) -> beam.PCollection:
        return (
            rows
            | "ByEvent" >> beam.Map(lambda row: ((row[0], row[1][0], row[1][2]), row[1]))
            | "First" >> beam.CombinePerKey(_first_of)
            | "ByUser" >> beam.MapTuple(lambda key, event: (key[0], event))
        )


def _first_of(events: Iterable[Event]) -> Event:
    return min(events, key=lambda event: event[:2])


def _rows(batch: pa.RecordBatch, columns: tuple[str, ...]) -> Iterator[tuple[bytes, Event]]:
    """Yields (user, (time, position, item, contexts...)) for each row."""
    users = batch.column("user").to_pylist()
    yield from zip(
        users, zip(*(batch.column(name).to_pylist() for name in columns), strict=True), strict=True
    )


class _Kept(beam.CombineFn):
    """Keeps the events of a user that its examples need.

    These are the newest events; in a split by time, the newest of each region of time between the
    bounds, and its first. An accumulator has a list of events for each region.
    """

    def __init__(self, config: HistoryConfig) -> None:
        self._newest = config.needed
        self._bounds: tuple[int, ...] = ()
        if config.split == "time":
            assert config.validation_start is not None
            assert config.test_start is not None
            self._bounds = (config.validation_start, config.test_start)

    def create_accumulator(self) -> list[list[Event]]:
        return [[] for _ in range(len(self._bounds) + 1)]

    def _region(self, event: Event) -> int:
        return sum(event[0] >= bound for bound in self._bounds)

    def _shortened(self, region: int, events: list[Event]) -> list[Event]:
        kept = newest(events, self._newest)
        if region and len(events) > len(kept):
            kept = [events[0], *kept]
        return kept

    def add_input(self, accumulator: list[list[Event]], event: Event) -> list[list[Event]]:
        region = self._region(event)
        events = accumulator[region]
        events.append(event)
        # Sort only now and then: sorting at every event is too slow.
        if len(events) > 4 * self._newest:
            accumulator[region] = self._shortened(region, events)
        return accumulator

    def merge_accumulators(self, accumulators: Iterable[list[list[Event]]]) -> list[list[Event]]:
        merged = self.create_accumulator()
        for accumulator in accumulators:
            for region, events in enumerate(accumulator):
                merged[region] = self._shortened(region, merged[region] + events)
        return merged

    def compact(self, accumulator: list[list[Event]]) -> list[list[Event]]:
        return [self._shortened(region, events) for region, events in enumerate(accumulator)]

    def extract_output(self, accumulator: list[list[Event]]) -> list[Event]:
        return [event for part in self.compact(accumulator) for event in part]


class _Build(beam.DoFn):
    """Builds the examples of some users; each split has an output of its name."""

    def __init__(
        self,
        spec: HistorySpec,
        config: HistoryConfig,
        schema: pa.Schema,
        held_out: tuple[float, float],
        seed: int,
        with_test: bool,
        join: EmbeddingJoin | None,
    ) -> None:
        self._join = join
        self._spec, self._config, self._schema = spec, config, schema
        self._held_out, self._seed, self._with_test = held_out, seed, with_test

    def process(self, users: list[tuple[bytes, list[Event]]]) -> Iterator[TaggedOutput]:
        """Yields Arrow batches without the column of the user."""
        columns = _event_columns(self._spec)
        flat = [event for _, events in users for event in events]
        owners = np.repeat(np.arange(len(users)), [len(events) for _, events in users])
        table = {"user": pa.array([user for user, _ in users], pa.binary()).take(pa.array(owners))}
        for name, values in zip(columns, zip(*flat, strict=True), strict=True):
            table[name] = pa.array(values, self._schema.field(name).type)
        examples = build_examples(
            pa.Table.from_pydict(table),
            self._spec,
            self._config,
            self._held_out,
            self._seed,
            self._with_test,
        )
        for split, rows in examples.items():
            if self._join is not None:
                rows, found = self._join(rows)
                yield TaggedOutput(FOUND, found)
            yield from split_batches({split: rows.drop(["user"])})


def _event_columns(spec: HistorySpec) -> tuple[str, ...]:
    return ("time", "position", "item", *(feature.name for feature in spec.context))


class InteractionsToExamples(beam.PTransform):
    """Builds examples of each split from batches of interactions.

    Args:
      spec: Spec of the interactions.
      config: Configuration of the examples.
      schema: Schema of the batches.
      held_out: Shares of the users in validation and test, for the split by users.
      seed: Seed of that split.
      with_test: If False, the test examples go to validation.
      join: Join with the embeddings of the users; None for no join.

    Returns:
      A dict from `train`, `validation` and `test` to batches for `RecordsToExamples`.
    """

    def __init__(
        self,
        spec: HistorySpec,
        config: HistoryConfig,
        schema: pa.Schema,
        held_out: tuple[float, float] = (0.0, 0.0),
        seed: int = 0,
        with_test: bool = True,
        join: EmbeddingJoin | None = None,
    ) -> None:
        super().__init__()
        config.check(spec)
        self._build = _Build(spec, config, schema, held_out, seed, with_test, join)
        self._join = join
        self._config, self._columns = config, _event_columns(spec)

    def expand(self, batches: beam.PCollection) -> dict[str, beam.PCollection]:
        """Builds the transform."""
        config, columns = self._config, self._columns
        if config.drop_duplicates:
            # As in memory, before counting. Batches of one row each would be slow.
            batches = (
                batches
                | "RowsToCompare" >> beam.FlatMap(_rows, columns)
                | "Once" >> _OncePerEvent()
                | "Together" >> beam.BatchElements(min_batch_size=256, max_batch_size=4096)
                | "Batch" >> beam.Map(_to_batch, columns, self._build._schema)
            )
        users = (
            batches
            | "DropRare" >> DropRare(config)
            | "Rows" >> beam.FlatMap(_rows, columns)
            | "Kept" >> beam.CombinePerKey(_Kept(config))
            | "Users" >> beam.BatchElements(min_batch_size=1, max_batch_size=_USERS_A_BATCH)
        )
        outputs = users | "Build" >> beam.ParDo(self._build).with_outputs(*SPLITS, FOUND)
        if self._join is not None:
            _ = outputs[FOUND] | "CheckFound" >> CheckFound(self._join)
        return {split: outputs[split] for split in SPLITS}


def _to_batch(
    rows: list[tuple[bytes, Event]], columns: tuple[str, ...], schema: pa.Schema
) -> pa.RecordBatch:
    table = {"user": pa.array([user for user, _ in rows], pa.binary())}
    for name, values in zip(columns, zip(*(event for _, event in rows), strict=True), strict=True):
        table[name] = pa.array(values, schema.field(name).type)
    return pa.RecordBatch.from_pydict(table)
