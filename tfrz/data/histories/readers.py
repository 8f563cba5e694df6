"""Readers of interactions (user, item, time), which become histories.

A batch has the columns `user` and `item` (binary), `time` (int64, 0 if the source has none),
`position` (int64, the place in the source) and one for each context of the spec.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from typing_extensions import override

from tfrz.config import from_mapping, read_yaml, require
from tfrz.data.columns import ARROW, one_each, record_batch
from tfrz.data.histories.spec import CandidateSpec, HistorySpec
from tfrz.data.simulators.context_switch import ContextSwitchSimulator
from tfrz.data.simulators.interests import InterestSimulator
from tfrz.data.sources.files import CorruptLine, Shard
from tfrz.data.sources.reader import Reader, construct, require_counts, simulated_shards
from tfrz.data.sources.tabular import (
    NumberedRow,
    RawValues,
    TabularFile,
    UnreadableError,
    first_of,
    key_in,
    list_columns,
    time_in,
    values_of,
)
from tfrz.data.spec import Feature
from tfrz.errors import InputError


class InteractionReader(Reader):
    """A reader of interactions."""

    record_type = "history"

    @abc.abstractmethod
    def feature_spec(self) -> HistorySpec:
        """Returns the spec of the rows."""

    def candidates(self) -> pa.Table | None:
        """Returns the rows of the catalogue, see `feature_spec().candidates`; None without one."""
        return None

    @property
    def schema(self) -> pa.Schema:
        """Schema of the batches."""
        columns = {
            "user": pa.binary(),
            "item": pa.binary(),
            "time": pa.int64(),
            "position": pa.int64(),
        }
        for feature in self.feature_spec().context:
            columns[feature.name] = ARROW[feature.dtype]
        return pa.schema(list(columns.items()))

    def batch(self, **columns: Any) -> pa.RecordBatch:
        """Builds a batch of the schema; `time` is optional."""
        columns.setdefault("time", np.zeros(len(columns["item"]), np.int64))
        return record_batch(self.schema, columns)


class TabularCandidates(TabularFile[CandidateSpec]):
    """Your own CSV, Parquet or TFRecord file with a row per item of the catalogue.

    Args:
      spec: Spec with the file and its columns.
    """

    def __init__(self, spec: CandidateSpec) -> None:
        assert spec.file is not None
        self._open(spec.file, spec.separator, "candidates.file in the feature spec")
        self.spec = spec

    @property
    @override
    def _names(self) -> list[str]:
        return [feature.name for feature in self.spec.columns]

    @property
    @override
    def _multivalent(self) -> tuple[Feature, ...]:
        return tuple(f for f in self.spec.features if f.multivalent)

    @override
    def _row(self, raw: RawValues) -> dict[str, Any]:
        row = {feature.name: values_of(raw, feature) for feature in self.spec.columns}
        if not row[self.spec.item]:
            raise UnreadableError(f"{self.spec.item} is missing")
        return row

    @override
    def _batch(self, rows: list[NumberedRow]) -> pa.RecordBatch:
        columns = list_columns(rows, {f.name: f.dtype for f in self.spec.columns})
        columns[self.spec.item] = columns[self.spec.item].flatten()
        return pa.RecordBatch.from_pydict(columns)

    def table(self) -> pa.Table:
        """Reads all rows.

        Raises:
          InputError: A row cannot be read, or there is none.
        """
        batches = []
        for shard in self.shards():
            for batch in self.read(shard):
                if isinstance(batch, CorruptLine):
                    raise InputError(f"{batch}: correct the catalogue")
                batches.append(batch)
        if not batches:
            raise InputError(f"{self.path} has no items: the catalogue is empty")
        return pa.Table.from_batches(batches)


class TabularInteractions(TabularFile[HistorySpec], InteractionReader):
    """Your own CSV, Parquet or TFRecord file with a row per interaction.

    Args:
      path: Path `*.csv[.gz]`, `*.tsv[.gz]`, `*.parquet` or `*.tfrecord[.gz]`.
      features: Path of a YAML file with the fields of `HistorySpec`.
    """

    def __init__(self, path: str, features: str) -> None:
        self._open(path)
        self.spec = from_mapping(HistorySpec, read_yaml(features), features)
        described = self.spec.candidates
        if described is not None and described.file is not None:
            # The file is named relative to the spec.
            beside = str(Path(features).parent / described.file)
            described = dataclasses.replace(described, file=beside)
            self.spec = dataclasses.replace(self.spec, candidates=described)

    @override
    def files(self) -> list[str]:
        described = self.spec.candidates
        return [self.path, *([described.file] if described and described.file else [])]

    @override
    def candidates(self) -> pa.Table | None:
        described = self.spec.candidates
        if described is None:
            return None
        require(described.file is not None, "candidates.file", "name the file of the catalogue")
        return TabularCandidates(described).table()

    @property
    @override
    def _names(self) -> list[str]:
        spec = self.spec
        keys = [name for name in (spec.user, spec.item, spec.time) if name is not None]
        return keys + [feature.name for feature in spec.context]

    @override
    def _row(self, raw: RawValues) -> dict[str, Any]:
        spec = self.spec
        row: dict[str, Any] = {"user": key_in(raw, spec.user), "item": key_in(raw, spec.item)}
        if spec.time is not None:
            row["time"] = time_in(raw, spec.time)
        return row | {feature.name: first_of(raw, feature) for feature in spec.context}

    @override
    def _batch(self, rows: list[NumberedRow]) -> pa.RecordBatch:
        columns: dict[str, list[Any]] = {"position": [number for number, _ in rows]}
        for name in self.schema.names:
            if name != "position" and (name != "time" or self.spec.time is not None):
                columns[name] = [row[name] for _, row in rows]
        return self.batch(**columns)


class SimulatedInteractions(InteractionReader):
    """Events of `ContextSwitchSimulator`, with the page as context.

    Args:
      users: Number of users.
      length: Number of events per user.
      seed: Seed of the world and of the draws.
    """

    name = "simulated"
    _USERS_A_SHARD = 1000

    def __init__(self, users: int = 5000, length: int = 51, seed: int = 0) -> None:
        require_counts(users=users, length=length)
        self.users, self.length, self.seed = users, length, seed

    @override
    def feature_spec(self) -> HistorySpec:
        return HistorySpec(context=(Feature("page"),))

    @override
    def shards(self) -> list[Shard]:
        return simulated_shards(self.users, self._USERS_A_SHARD)

    @override
    def read(self, shard: Shard) -> Iterator[pa.RecordBatch | CorruptLine]:
        count = shard.end - shard.start
        drawn = ContextSwitchSimulator(self.seed).sample(
            count, self.length, seed=self.seed * 1_000_003 + shard.start
        )
        users = np.repeat(np.arange(shard.start, shard.end), self.length)
        steps = np.tile(np.arange(self.length), count)
        pages = pa.array(["home", "detail"]).take(pa.array(drawn["detail"].ravel().astype(int)))
        yield self.batch(
            user=pa.array([f"user_{u}" for u in users]),
            item=pa.array([f"item_{i}" for i in drawn["item"].ravel()]),
            # Events are a minute apart; users start one after the other.
            time=1_600_000_000 + users * 7 + steps * 60,
            position=users * self.length + steps,
            page=pages,
        )


class SimulatedInterests(InteractionReader):
    """Events of `InterestSimulator`, with a catalogue of the items' clusters.

    Args:
      users: Number of users.
      length: Number of events per user.
      seed: Seed of the draws.
      interest_power: Skew of interests.
      item_power: Skew of items.
      clusters: Number of clusters.
      cluster_items: Number of items per cluster.
    """

    name = "simulated"
    _USERS_A_SHARD = 1000

    def __init__(
        self,
        users: int = 10_000,
        length: int = 20,
        seed: int = 0,
        interest_power: float = 1.0,
        item_power: float = 0.5,
        clusters: int = 5,
        cluster_items: int = 10,
    ) -> None:
        require_counts(users=users, length=length)
        self.users, self.length, self.seed = users, length, seed
        self._simulator = InterestSimulator(
            clusters,
            cluster_items,
            interests=min(3, clusters - 1),
            interest_power=interest_power,
            item_power=item_power,
        )

    @override
    def feature_spec(self) -> HistorySpec:
        return HistorySpec(time=None, candidates=CandidateSpec(features=(Feature("cluster"),)))

    @override
    def shards(self) -> list[Shard]:
        return simulated_shards(self.users, self._USERS_A_SHARD)

    @override
    def read(self, shard: Shard) -> Iterator[pa.RecordBatch | CorruptLine]:
        count = shard.end - shard.start
        drawn = self._simulator.sample(count, self.length, seed=self.seed * 1_000_003 + shard.start)
        yield self.batch(
            user=pa.array(
                [f"user_{u}" for u in np.repeat(np.arange(count), self.length) + shard.start]
            ),
            item=pa.array([f"item_{i}" for i in drawn["item"].ravel()]),
            position=np.tile(np.arange(self.length), count),
        )

    @override
    def candidates(self) -> pa.Table | None:
        items = np.arange(self._simulator.num_items)
        clusters = items // self._simulator.cluster_items
        return pa.table(
            {
                "item": pa.array([b"item_%d" % i for i in items], pa.binary()),
                "cluster": one_each(pa.array([f"cluster_{c}" for c in clusters]), "string"),
            }
        )


def simulated_interactions(world: str = "context_switch", **options: Any) -> Reader:
    """Opens simulated events of a world, `context_switch` or `interests`."""
    worlds = {"context_switch": SimulatedInteractions, "interests": SimulatedInterests}
    require(world in worlds, "data.options.world", f"must be one of {', '.join(worlds)}")
    return construct("simulated", worlds[world], {}, options)
