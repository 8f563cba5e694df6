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
from tfrz.data.sources.locations import is_uri
from tfrz.data.sources.raw import Dialect, pop_dialect
from tfrz.data.sources.reader import Reader, construct, require_counts, simulated_shards
from tfrz.data.sources.tabular import TabularFile
from tfrz.data.sources.values import Rows
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
    """Your own files with a row per item of the catalogue.

    Args:
      spec: Spec with the file and its columns.
      dialect: How text files are written, but for the separator.
    """

    def __init__(self, spec: CandidateSpec, dialect: Dialect | None = None) -> None:
        assert spec.file is not None
        self.spec = spec
        dialect = dataclasses.replace(dialect or Dialect(), separator=spec.separator)
        self._open(spec.file, dialect, "candidates.file in the feature spec")

    @property
    @override
    def _columns(self) -> list[Feature]:
        return list(self.spec.columns)

    @override
    def _batch(self, rows: Rows) -> pa.RecordBatch:
        columns = {self.spec.item: rows.key(self.spec.item)}
        columns |= {feature.name: rows.lists(feature) for feature in self.spec.features}
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
    """Your own files with a row per interaction.

    Args:
      path: A file, a folder, a glob or a list of them: CSV, JSON lines, Parquet or TFRecords.
      features: Path of a YAML file with the fields of `HistorySpec`.
    """

    def __init__(self, path: str, features: str) -> None:
        mapping = read_yaml(features)
        self._open_interactions(path, mapping, features)

    def _open_interactions(self, path: str, mapping: dict[str, Any], features: str) -> None:
        dialect = pop_dialect(mapping, features)
        self.spec = from_mapping(HistorySpec, mapping, features)
        described = self.spec.candidates
        if described is not None and described.file is not None and not is_uri(described.file):
            # The file is named relative to the spec.
            beside = str(Path(features).parent / described.file)
            described = dataclasses.replace(described, file=beside)
            self.spec = dataclasses.replace(self.spec, candidates=described)
        self._open(path, dialect)

    @override
    def files(self) -> list[str]:
        described = self.spec.candidates
        if described is None or described.file is None:
            return super().files()
        return [*super().files(), *self._catalogue(described).files()]

    def _catalogue(self, described: CandidateSpec) -> TabularCandidates:
        return TabularCandidates(described, self.raw.dialect)

    @override
    def candidates(self) -> pa.Table | None:
        described = self.spec.candidates
        if described is None:
            return None
        require(described.file is not None, "candidates.file", "name the file of the catalogue")
        return self._catalogue(described).table()

    @property
    @override
    def _columns(self) -> list[Feature]:
        spec = self.spec
        keys = [name for name in (spec.user, spec.item, spec.time) if name is not None]
        return [*(Feature(name) for name in keys), *spec.context]

    @override
    def _batch(self, rows: Rows) -> pa.RecordBatch:
        spec = self.spec
        columns: dict[str, Any] = {"user": rows.key(spec.user), "item": rows.key(spec.item)}
        if spec.time is not None:
            columns["time"] = rows.times(spec.time)
        columns |= {feature.name: rows.first(feature) for feature in spec.context}
        return self.batch(position=rows.positions, **columns)


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
