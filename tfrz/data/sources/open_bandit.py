"""The Open Bandit data, as logged actions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pc_csv
from typing_extensions import override

from tfrz.config import require
from tfrz.data.histories.readers import InteractionReader
from tfrz.data.histories.spec import HistorySpec
from tfrz.data.logs.readers import wrong_outcome
from tfrz.data.sources.files import CorruptLine, Shard
from tfrz.data.spec import Feature, numeric
from tfrz.errors import InputError


class OpenBandit(InteractionReader):
    """Impressions of the Open Bandit data; each is its own user, because the data have none.

    Contexts: the four hashed features of the user and the position on the page.

    Args:
      path: Folder with `random/` and `bts/`.
      policy: Policy of the log, `random` or `bts`.
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

    @override
    def feature_spec(self) -> HistorySpec:
        contexts = (*(Feature(name) for name in self._USERS), Feature("page_position"))
        return HistorySpec(
            time=None,
            context=(*contexts, numeric("reward"), numeric("propensity")),
            outcomes=("reward", "propensity"),
        )

    @override
    def files(self) -> list[str]:
        return [self.path]

    @override
    def shards(self) -> list[Shard]:
        if not Path(self.path).exists():
            raise InputError(f"{self.path} does not exist: check the path given to --data")
        return [Shard(self.path)]

    @override
    def read(self, shard: Shard) -> Iterator[pa.RecordBatch | CorruptLine]:
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
            raise InputError(
                f"{self.path} is not a log of the Open Bandit data: {error}"
            ) from error
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
