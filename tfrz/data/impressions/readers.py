"""`--data simulated`: impressions of `ClickSimulator`."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
from typing_extensions import override

from tfrz.data.columns import one_each
from tfrz.data.impressions.spec import FeatureSpec
from tfrz.data.simulators.clicks import FIELDS, ClickSimulator
from tfrz.data.sources.files import CorruptLine, Shard
from tfrz.data.sources.reader import Reader, require_counts, simulated_shards
from tfrz.data.spec import Feature

_ROWS_A_SHARD = 25_000


class SimulatedClicks(Reader):
    """Simulated ratings: six categorical features and whether the item was liked.

    Args:
      rows: Number of impressions.
      seed: Seed of the effects and of the draws.
    """

    name = "simulated"

    def __init__(self, rows: int = 100_000, seed: int = 0) -> None:
        require_counts(rows=rows)
        self.rows, self.seed = rows, seed

    @override
    def feature_spec(self) -> FeatureSpec:
        return FeatureSpec(tuple(Feature(name) for name in FIELDS))

    @override
    def shards(self) -> list[Shard]:
        return simulated_shards(self.rows, _ROWS_A_SHARD)

    @override
    def read(self, shard: Shard) -> Iterator[pa.RecordBatch | CorruptLine]:
        part = shard.start // _ROWS_A_SHARD
        rows = ClickSimulator(self.seed).sample(
            shard.end - shard.start, seed=self.seed * 1_000_003 + part
        )
        columns = {
            name: one_each(pa.array([f"{name}_{c}" for c in rows[name]]), "string")
            for name in FIELDS
        }
        columns["label"] = one_each(rows["click"], "float32")
        yield pa.RecordBatch.from_pydict(columns)
