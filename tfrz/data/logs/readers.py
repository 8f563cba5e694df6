"""Readers of logged actions: what was shown to whom, with what probability and reward.

They are interactions whose last contexts are outcomes: the reward of the action, and the logger's
propensity (its probability of that action) if it is known.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Iterator
from typing import Self

import numpy as np
import pyarrow as pa
from typing_extensions import override

from tfrz.config import read_yaml
from tfrz.data.columns import filled
from tfrz.data.histories.readers import InteractionReader, TabularInteractions
from tfrz.data.histories.spec import HistorySpec
from tfrz.data.simulators.bandits import ContextualSlates
from tfrz.data.sources.files import CorruptLine, Shard
from tfrz.data.sources.reader import require_counts, simulated_shards
from tfrz.data.sources.values import Rows
from tfrz.data.spec import Feature, numeric


def wrong_outcome(reward: float | None, propensity: float | None) -> str | None:
    """Returns why an action's outcomes are invalid, or None; the propensity may be unknown."""
    if reward is None or not math.isfinite(reward):
        return f"the reward is {reward}, not a number"
    if propensity is not None and not math.isnan(propensity) and not 0 < propensity <= 1:
        return f"the propensity is {propensity:g}, not above 0 and at most 1"
    return None


class TabularActions(TabularInteractions):
    """Your own file with a row per action.

    The spec is that of interactions, plus the columns `reward` and `propensity`; leave out
    `propensity` if it is unknown:

        user: customer
        item: banner
        time: shown_at
        reward: clicked
        propensity: p
        context: [{name: page}]

    Args:
      path: Path `*.csv[.gz]`, `*.tsv[.gz]`, `*.parquet` or `*.tfrecord[.gz]`.
      features: Path of the feature spec, a YAML file.
    """

    record_type = "logged_action"

    def __init__(self, path: str, features: str) -> None:
        mapping = read_yaml(features)
        outcomes = [str(mapping.pop("reward", "reward"))]
        if (propensity := mapping.pop("propensity", None)) is not None:
            outcomes.append(str(propensity))
        added = [{"name": n, "kind": "numeric", "dtype": "float32"} for n in outcomes]
        mapping["context"] = [*(mapping.get("context") or []), *added]
        mapping["outcomes"] = outcomes
        self._open_interactions(path, mapping, features)

    @override
    def unlabelled(self) -> Self:
        reader = copy.copy(self)
        reader.labelled = False
        spec = self.spec
        context = tuple(f for f in spec.context if f.name not in spec.outcomes)
        reader.spec = dataclasses.replace(spec, context=context, outcomes=())
        reader._open(self.path, self.raw.dialect)
        return reader

    @override
    def _batch(self, rows: Rows) -> pa.RecordBatch:
        batch = super()._batch(rows)
        if not self.labelled:
            return batch
        names = self.spec.outcomes
        reward = filled(batch.column(names[0]), "float32").to_numpy(zero_copy_only=False)
        shown = batch.column(names[0])
        wrong = ~np.isfinite(reward)
        rows.refuse(wrong, lambda row: str(wrong_outcome(shown[row].as_py(), None)))
        if len(names) > 1:
            given = filled(batch.column(names[1]), "float32").to_numpy(zero_copy_only=False)
            with np.errstate(invalid="ignore"):
                wrong = ~np.isnan(given) & ~((given > 0) & (given <= 1))
            rows.refuse(wrong, lambda row: str(wrong_outcome(0.0, float(given[row]))))
        return batch


class SimulatedActions(InteractionReader):
    """Clicks of `ContextualSlates`: a biased logger shows items to the users of segments.

    Args:
      users: Approximate number of users.
      length: Number of events per user.
      segments: Number of contexts of the world.
      items: Number of items of the world.
      seed: Seed of the world and of the draws.
    """

    name = "simulated"
    record_type = "logged_action"
    _EVENTS_A_SHARD = 30_000

    def __init__(
        self,
        users: int = 6000,
        length: int = 5,
        segments: int = 20,
        items: int = 200,
        seed: int = 0,
    ) -> None:
        require_counts(users=users, length=length, segments=segments)
        require_counts(2, items=items)
        self.users, self.length, self.seed = users, length, seed
        self.segments, self.items = segments, items

    @property
    def world(self) -> ContextualSlates:
        """The simulator, which knows the true probabilities."""
        return ContextualSlates(self.segments, self.items, seed=self.seed)

    @override
    def feature_spec(self) -> HistorySpec:
        return HistorySpec(
            time=None,
            context=(Feature("segment"), numeric("reward"), numeric("propensity")),
            outcomes=("reward", "propensity"),
        )

    @override
    def shards(self) -> list[Shard]:
        return simulated_shards(self.users * self.length, self._EVENTS_A_SHARD)

    @override
    def read(self, shard: Shard) -> Iterator[pa.RecordBatch | CorruptLine]:
        count = shard.end - shard.start
        drawn = self.world.sample(count, seed=self.seed * 1_000_003 + shard.start)
        order = np.argsort(drawn["context"], kind="stable")
        segment = drawn["context"][order]
        first = np.searchsorted(segment, segment)
        place = np.arange(count) - first
        users = [
            f"user_{shard.start}_{s}_{p}"
            for s, p in zip(segment, place // self.length, strict=True)
        ]
        yield self.batch(
            user=pa.array(users),
            item=pa.array([f"item_{a}" for a in drawn["action"][order]]),
            position=(place % self.length).astype(np.int64),
            segment=pa.array([f"segment_{s}" for s in segment]),
            reward=drawn["click"][order].astype(np.float32),
            propensity=drawn["propensity"][order].astype(np.float32),
        )
