"""Readers of timelines (user, time, action, ids), which become sketches of long histories.

A batch has the columns `user` (binary), `time` (int64, Unix seconds), `position` (int64, the place
in the source), `explicit` (bool), `action` (binary), one for each type of id (binary, or lists),
`duration`, `dwell` and `value` (float), and `label_<task>` for each task (float, null for none).
"""

from __future__ import annotations

import abc
import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from typing_extensions import override

from tfrz.config import from_mapping, read_yaml
from tfrz.data.columns import filled, first_values, record_batch
from tfrz.data.simulators.long_histories import LongHistorySimulator
from tfrz.data.sources.files import CorruptLine, Shard
from tfrz.data.sources.raw import Dialect, RawFiles, pop_dialect
from tfrz.data.sources.reader import Reader, require_counts, simulated_shards
from tfrz.data.sources.tabular import TabularFile
from tfrz.data.sources.values import Rows, times
from tfrz.data.spec import Feature
from tfrz.data.timelines.spec import NUMBERS, TimelineSpec
from tfrz.errors import InputError


class TimelineReader(Reader):
    """A reader of timelines.

    Attributes:
      since: Leave out events before this time, if given; for incremental runs.
      whole_shards: Leave out only shards that end before this time.
    """

    record_type = "timeline"
    since: int | None = None
    whole_shards = False

    @abc.abstractmethod
    def feature_spec(self) -> TimelineSpec:
        """Returns the spec of the events."""

    @abc.abstractmethod
    def events(self, shard: Shard) -> Iterator[pa.RecordBatch | CorruptLine]:
        """Yields all events of a shard, and its corrupt lines."""

    @override
    def read(self, shard: Shard) -> Iterator[pa.RecordBatch | CorruptLine]:
        for batch in self.events(shard):
            some = self.since is not None and not self.whole_shards
            if some and not isinstance(batch, CorruptLine):
                batch = batch.filter(pc.greater_equal(batch.column("time"), self.since))
                if not batch.num_rows:
                    continue
            yield batch

    def from_time(self, since: int | None, whole_shards: bool = False) -> TimelineReader:
        """Returns a reader without events before a time, or without shards that end before it."""
        reader = copy.copy(self)
        reader.since, reader.whole_shards = since, whole_shards
        return reader

    @property
    def schema(self) -> pa.Schema:
        """Schema of the batches."""
        spec = self.feature_spec()
        fields = [("user", pa.binary()), ("time", pa.int64()), ("position", pa.int64())]
        fields += [("explicit", pa.bool_()), ("action", pa.binary())]
        for feature in spec.ids:
            kind = pa.list_(pa.binary()) if feature.multivalent else pa.binary()
            fields.append((feature.name, kind))
        fields += [(name, pa.float32()) for name in NUMBERS]
        fields += [(f"label_{task}", pa.float32()) for task in spec.tasks]
        return pa.schema(fields)

    def batch(self, **columns: Any) -> pa.RecordBatch:
        """Builds a batch; numbers and labels are optional, `explicit` follows from the action."""
        spec, rows = self.feature_spec(), len(columns["user"])
        if "action" not in columns:
            columns["action"] = pa.array([spec.actions[0].encode()] * rows, pa.binary())
        if "explicit" not in columns:
            implicit = pa.array([a.encode() for a in spec.implicit], pa.binary())
            columns["explicit"] = pc.invert(pc.is_in(columns["action"].cast(pa.binary()), implicit))
        for field in self.schema:
            if pa.types.is_floating(field.type):
                columns.setdefault(field.name, pa.nulls(rows, field.type))
        return record_batch(self.schema, columns)


class SimulatedTimelines(TimelineReader):
    """Impressions and likes of `LongHistorySimulator`.

    An impression (`view`) is implicit, with duration and dwell time; a like is explicit. Ids:
    `item` and `topic`. Outcomes of an impression: `like`, and `watch`, ln(1 + dwell time).

    Args:
      users: Number of users.
      days: Number of days per user.
      impressions: Number of impressions per day.
      seed: Seed of the draws.
    """

    name = "simulated"
    _USERS_A_SHARD = 100
    _START = 1_600_000_000 // 86_400 * 86_400

    def __init__(
        self, users: int = 1000, days: int = 40, impressions: int = 20, seed: int = 0
    ) -> None:
        require_counts(users=users, days=days, impressions=impressions)
        self.users, self.days, self.impressions, self.seed = users, days, impressions, seed

    @override
    def feature_spec(self) -> TimelineSpec:
        return TimelineSpec(
            ids=(Feature("item"), Feature("topic")),
            actions=("view", "like"),
            implicit=("view",),
            duration="duration",
            dwell="dwell",
            binary=("like",),
            regression=("watch",),
        )

    @override
    def shards(self) -> list[Shard]:
        return simulated_shards(self.users, self._USERS_A_SHARD)

    @override
    def events(self, shard: Shard) -> Iterator[pa.RecordBatch | CorruptLine]:
        count = shard.end - shard.start
        drawn = LongHistorySimulator().sample(
            count, self.days, self.impressions, self.seed, first_user=shard.start
        )
        length = self.days * self.impressions
        flat = {name: value.ravel() for name, value in drawn.items()}
        users = np.repeat(np.arange(shard.start, shard.end), length)
        liked = np.flatnonzero(flat["like"])
        rows = np.concatenate([np.arange(len(users)), liked])
        view = np.arange(len(rows)) < len(users)

        def only_viewed(values: NDArray[Any]) -> pa.Array:
            return pa.array(values[rows].astype(np.float32), mask=~view)

        yield self.batch(
            user=pa.array([f"user_{u}" for u in users[rows]]),
            time=self._START + flat["time"][rows].astype(np.int64),
            position=users[rows] * 2 * length + rows % length * 2 + ~view,
            action=pa.array([b"view", b"like"], pa.binary()).take(pa.array((~view).astype(int))),
            item=pa.array([f"item_{i}" for i in flat["item"][rows]]),
            topic=pa.array([f"topic_{i}" for i in flat["topic"][rows]]),
            duration=only_viewed(flat["duration"]),
            dwell=only_viewed(flat["dwell"]),
            label_like=only_viewed(flat["like"]),
            label_watch=only_viewed(np.log1p(flat["dwell"])),
        )


class TabularTimelines(TabularFile[TimelineSpec], TimelineReader):
    """Your own files with a row per event.

    Args:
      path: A file, a folder, a glob or a list of them: CSV, JSON lines, Parquet or TFRecords.
      features: Path of a YAML file with the fields of `TimelineSpec`.
    """

    def __init__(self, path: str, features: str) -> None:
        mapping = read_yaml(features)
        dialect = pop_dialect(mapping, features)
        self.spec = from_mapping(TimelineSpec, self._completed(mapping, path, dialect), features)
        self._open(path, dialect)

    @staticmethod
    def _completed(mapping: dict[str, Any], path: str, dialect: Dialect) -> dict[str, Any]:
        """Names the columns `action` and `label` of the files where the spec is silent."""
        files = RawFiles(path, (), dialect)
        columns = files.columns_of(files.files[0])
        completed = dict(mapping)
        # Several actions cannot be told apart without their column, which is then missed by name.
        several = isinstance(mapping.get("actions"), list) and len(mapping["actions"]) > 1
        if "action" not in mapping and ("action" in columns or several):
            completed["action"] = "action"
        if not mapping.keys() & {"binary", "regression", "happened"} and "label" in columns:
            completed["binary"] = ["label"]
        return completed

    @override
    def read(self, shard: Shard) -> Iterator[pa.RecordBatch | CorruptLine]:
        return TimelineReader.read(self, shard)

    @override
    def events(self, shard: Shard) -> Iterator[pa.RecordBatch | CorruptLine]:
        return TabularFile.read(self, shard)

    def shards(self) -> list[Shard]:
        """See `Reader`; row groups that end before `since` are not read."""
        return self._late(super().shards())

    def parts(self) -> list[Shard]:
        """See `Reader`; row groups that end before `since` are not read."""
        return self._late(super().parts())

    def _late(self, shards: list[Shard]) -> list[Shard]:
        if self.since is None or self.format != "parquet":
            return shards
        return [shard for shard in shards if self._recent(shard)]

    @property
    def _tasks(self) -> tuple[str, ...]:
        """The outcomes that are read."""
        spec = self.spec
        return tuple(t for t in spec.tasks if t not in spec.happened) if self.labelled else ()

    def _recent(self, shard: Shard) -> bool:
        described = self.raw.metadata(shard).row_group(shard.start)
        for i in range(described.num_columns):
            column = described.column(i)
            known = column.statistics
            if column.path_in_schema == self.spec.time and known is not None and known.has_min_max:
                latest = times(pa.array([known.max]), self.spec.time)[0][0].as_py()
                # The maximum of a text column says nothing about times.
                return isinstance(known.max, str | bytes) or latest >= self.since
        return True

    @property
    @override
    def _columns(self) -> list[Feature]:
        spec = self.spec
        named = (spec.user, spec.time, spec.action, spec.duration, spec.dwell, spec.value)
        keys = [name for name in (*named, *self._tasks) if name is not None]
        ids = {feature.name: feature for feature in spec.ids}
        return list({**{name: Feature(name) for name in keys}, **ids}.values())

    @override
    def _batch(self, rows: Rows) -> pa.RecordBatch:
        spec = self.spec
        columns: dict[str, Any] = {"position": rows.positions}
        for feature in spec.ids:
            lists = rows.lists(feature)
            columns[feature.name] = lists if feature.multivalent else first_values(lists)
        columns["user"] = rows.key(spec.user)
        columns["time"] = rows.times(spec.time)
        if spec.action is not None:
            columns["action"] = rows.key(spec.action)
        pairs = [(name, getattr(spec, name)) for name in NUMBERS]
        pairs += [(f"label_{task}", task) for task in self._tasks]
        for task in spec.happened:
            columns[f"label_{task}"] = pa.array(np.ones(rows.count, np.float32))
        for name, column in pairs:
            if column is not None:
                columns[name] = _number(rows, column, name in NUMBERS, column in spec.binary)
        return self.batch(**columns)


def _number(rows: Rows, column: str, positive: bool, binary: bool) -> pa.Array:
    """A column of numbers that may be missing."""
    values = rows.number(column)
    found = filled(values, "float32").to_numpy(zero_copy_only=False)
    with np.errstate(invalid="ignore"):
        if positive:
            rows.refuse(found < 0, lambda row: f"{column} is negative: {float(found[row])}")
        if binary:
            rows.refuse(
                ~np.isnan(found) & ~np.isin(found, (0.0, 1.0)),
                lambda row: f"{column} is neither 0 nor 1",
            )
    return values


def check_timelines(reader: Reader) -> TimelineReader:
    """Returns the reader, checked to be one of timelines.

    Raises:
      InputError: It reads other records.
    """
    if not isinstance(reader, TimelineReader):
        raise InputError(f"{reader.name} has {reader.record_type} records, not timelines")
    return reader
