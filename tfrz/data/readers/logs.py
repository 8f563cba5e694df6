"""Sources of logged actions: what was shown to whom, with which probability, and what came of it.

They are interactions whose contexts end in outcomes: the reward of an action, and the logger's
propensity (its probability of that action) where it is known.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pc_csv

from tfrz.config import from_mapping, read_yaml, require
from tfrz.data.features import Feature, HistorySpec, numeric
from tfrz.data.readers.base import Shard
from tfrz.data.readers.interactions import (
    InteractionReader,
    MovieLensInteractions,
    TabularInteractions,
)
from tfrz.data.records import CorruptLine
from tfrz.data.simulators.bandits import ContextualSlates
from tfrz.errors import InputError


def wrong_outcome(reward: float | None, propensity: float | None) -> str | None:
    """What is wrong with an action's outcomes; None if nothing is. A propensity may be unknown."""
    if reward is None or not math.isfinite(reward):
        return f"the reward is {reward}, no number"
    if propensity is not None and not math.isnan(propensity) and not 0 < propensity <= 1:
        return f"the propensity is {propensity:g}, not above 0 and at most 1"
    return None


class MovieLensActions(MovieLensInteractions):
    """Ratings of MovieLens as actions of an unknown logger; the reward is 1 for a good rating.

    Args:
      path: the archive as GroupLens publishes it, or a folder with its files.
      release: "1m" or "100k".
      good: ratings from this on have the reward 1, others 0; 0 for a reward of rating / 5.
    """

    record_type = "logged_action"

    def __init__(self, path: str, release: str = "1m", good: int = 4) -> None:
        require(0 <= good <= 5, "data.options.good", "must be 0 to 5")
        super().__init__(path, release)
        self.good = good

    def feature_spec(self) -> HistorySpec:
        """See `Reader`."""
        return HistorySpec(
            "user_id", "movie_id", "timestamp", (numeric("reward"),), outcomes=("reward",)
        )

    def fingerprint(self) -> str:
        """See `Reader`."""
        return f"{super().fingerprint()}-{self.good}"

    def of_ratings(self, ratings: np.ndarray) -> dict[str, Any]:
        """See `MovieLensInteractions`."""
        reward = ratings / 5.0 if self.good == 0 else ratings >= self.good
        return {"reward": reward.astype(np.float32)}


class OpenBandit(InteractionReader):
    """Impressions of the Open Bandit data, each a user of its own: there are no users in it.

    Contexts: the four hashed features of the user and the position on the page.

    Args:
      path: the folder with `random/` and `bts/`.
      policy: whose log, `random` or `bts`.
      campaign: `all`, `men` or `women`.
    """

    name = "obd"
    record_type = "logged_action"
    _USERS = tuple(f"user_feature_{i}" for i in range(4))

    def __init__(self, path: str, policy: str = "random", campaign: str = "all") -> None:
        for option, value, known in (
            ("policy", policy, ("random", "bts")),
            ("campaign", campaign, ("all", "men", "women")),
        ):
            require(value in known, f"data.options.{option}", f"must be one of {', '.join(known)}")
        self.path = str(Path(path) / policy / campaign / f"{campaign}.csv.gz")

    def feature_spec(self) -> HistorySpec:
        """See `Reader`."""
        contexts = (*(Feature(name) for name in self._USERS), Feature("page_position"))
        return HistorySpec(
            time=None,
            context=(*contexts, numeric("reward"), numeric("propensity")),
            outcomes=("reward", "propensity"),
        )

    def files(self) -> list[str]:
        """See `Reader`."""
        return [self.path]

    def shards(self) -> list[Shard]:
        """See `Reader`."""
        if not Path(self.path).exists():
            raise InputError(f"{self.path} does not exist: check the path given to --data")
        return [Shard(self.path)]

    def read(self, shard: Shard) -> Iterator[pa.RecordBatch | CorruptLine]:
        """See `Reader`."""
        wanted = ("item_id", "position", "click", "propensity_score", *self._USERS)
        try:
            table = pc_csv.read_csv(
                self.path,
                convert_options=pc_csv.ConvertOptions(
                    include_columns=list(wanted),
                    column_types={name: pa.string() for name in wanted},
                ),
            )
        except (pa.ArrowException, OSError, KeyError) as error:
            raise InputError(f"{self.path} is no log of the Open Bandit data: {error}") from error
        columns = {name: table[name].to_pylist() for name in wanted}
        kept: list[int] = []
        rewards: list[float] = []
        propensities: list[float] = []
        for row, values in enumerate(zip(*columns.values(), strict=True)):
            item, _, click, propensity = values[:4]
            try:
                reward, chance = float(click), float(propensity)
                reason = "item is missing" if not item else wrong_outcome(reward, chance)
            except (TypeError, ValueError):
                reason = "click or propensity is not a number"
            if reason is not None:
                yield CorruptLine(self.path, row + 2, reason, str(values[:4]))
                continue
            kept.append(row)
            rewards.append(reward)
            propensities.append(chance)
        table = table.take(pa.array(kept, pa.int64()))
        text = {
            name: table[name].combine_chunks() for name in ("item_id", "position", *self._USERS)
        }
        yield self.batch(
            user=pa.array(kept, pa.int64()).cast(pa.string()),
            item=text["item_id"],
            position=np.array(kept, np.int64),
            page_position=text["position"],
            reward=np.array(rewards, np.float32),
            propensity=np.array(propensities, np.float32),
            **{name: text[name] for name in self._USERS},
        )


class TabularActions(TabularInteractions):
    """A user's own file with a row per action.

    The spec is that of interactions with the columns `reward` and `propensity` named, the latter
    left out where the logger's propensities are unknown:

        user: customer
        item: banner
        time: shown_at
        reward: clicked
        propensity: p
        context: [{name: page}]

    Args:
      path: `*.csv[.gz]`, `*.tsv[.gz]`, `*.parquet` or `*.tfrecord[.gz]`.
      features: the spec's YAML file.
    """

    record_type = "logged_action"

    def __init__(self, path: str, features: str) -> None:
        self._open(path)
        mapping = read_yaml(features)
        outcomes = [str(mapping.pop("reward", "reward"))]
        if (propensity := mapping.pop("propensity", None)) is not None:
            outcomes.append(str(propensity))
        added = [{"name": n, "kind": "numeric", "dtype": "float32"} for n in outcomes]
        mapping["context"] = [*(mapping.get("context") or []), *added]
        mapping["outcomes"] = outcomes
        self.spec = from_mapping(HistorySpec, mapping, features)

    def _row(self, raw: dict[str, list[Any]]) -> dict[str, Any] | str:
        row = super()._row(raw)
        if isinstance(row, str):
            return row
        names = self.spec.outcomes
        wrong = wrong_outcome(row[names[0]], row[names[1]] if len(names) > 1 else None)
        return row if wrong is None else wrong


class SimulatedActions(InteractionReader):
    """Clicks of `ContextualSlates`: users of a segment to whom a biased logger showed items.

    Args:
      users: how many, about; those of a segment have `length` events each.
      length: events of each.
      segments: contexts of the world.
      items: of the world.
      seed: of the world and of the draws.
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
        for name, value, least in (
            ("users", users, 1),
            ("length", length, 1),
            ("segments", segments, 1),
            ("items", items, 2),
        ):
            sound = isinstance(value, int) and value >= least
            require(sound, f"data.options.{name}", f"must be a whole number >= {least}")
        self.users, self.length, self.seed = users, length, seed
        self.segments, self.items = segments, items

    @property
    def world(self) -> ContextualSlates:
        """The simulator, with the truth."""
        return ContextualSlates(self.segments, self.items, seed=self.seed)

    def feature_spec(self) -> HistorySpec:
        """See `Reader`."""
        return HistorySpec(
            time=None,
            context=(Feature("segment"), numeric("reward"), numeric("propensity")),
            outcomes=("reward", "propensity"),
        )

    def shards(self) -> list[Shard]:
        """See `Reader`."""
        events = self.users * self.length
        starts = range(0, events, self._EVENTS_A_SHARD)
        return [Shard("simulated", "", s, min(s + self._EVENTS_A_SHARD, events)) for s in starts]

    def read(self, shard: Shard) -> Iterator[pa.RecordBatch | CorruptLine]:
        """See `Reader`."""
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


__all__ = [
    "MovieLensActions",
    "OpenBandit",
    "SimulatedActions",
    "TabularActions",
    "wrong_outcome",
]
