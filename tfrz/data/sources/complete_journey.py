"""Grocery purchases of The Complete Journey, as histories and as timelines."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from typing_extensions import override

from tfrz.data.columns import one_each, whole
from tfrz.data.histories.readers import InteractionReader
from tfrz.data.histories.spec import CandidateSpec, HistorySpec
from tfrz.data.sources.files import CorruptLine, Shard, parquet_shards, row_group
from tfrz.data.spec import Feature
from tfrz.data.timelines.readers import TimelineReader
from tfrz.data.timelines.spec import TimelineSpec


def _purchases(
    shard: Shard, columns: Sequence[str]
) -> Generator[CorruptLine, None, tuple[pa.Table, pa.Array, NDArray[Any]]]:
    """Yields the corrupt rows of a shard; returns the other rows, their times and positions."""
    table, before = row_group(shard, columns)
    stamps = whole(table["transaction_timestamp"].cast(pa.timestamp("s"), safe=False))
    times = stamps.cast(pa.int64())
    sound = pc.and_(
        pc.is_valid(whole(table["household_id"])), pc.is_valid(whole(table["product_id"]))
    )
    sound = pc.and_(sound, pc.fill_null(pc.greater_equal(times, 0), False))
    kept = np.asarray(sound.to_numpy(zero_copy_only=False), bool)
    for i in np.flatnonzero(~kept):
        reason = "household, product or time is missing, or the time is negative"
        yield CorruptLine(shard.path, before + int(i) + 1, reason, "")
    rows = np.flatnonzero(kept)
    return table.take(pa.array(rows)), times.take(pa.array(rows)), before + rows


class CompleteJourney(InteractionReader):
    """Grocery purchases of The Complete Journey: household, product, time; context: the store.

    Args:
      path: `transactions.parquet`, or the folder that contains it.
    """

    name = "completejourney"
    _COLUMNS = ("household_id", "product_id", "transaction_timestamp", "store_id")
    _DESCRIBED = ("department", "brand", "product_category", "product_type")

    def __init__(self, path: str) -> None:
        place = Path(path)
        self.path = str(place / "transactions.parquet" if place.is_dir() else place)

    @override
    def feature_spec(self) -> HistorySpec:
        return HistorySpec(
            user="household_id",
            item="product_id",
            time="transaction_timestamp",
            context=(Feature("store_id"),),
            candidates=(
                CandidateSpec("product_id", tuple(Feature(name) for name in self._DESCRIBED))
                if self._products is not None
                else None
            ),
        )

    @property
    def _products(self) -> str | None:
        beside = Path(self.path).with_name("products.parquet")
        return str(beside) if beside.exists() else None

    @override
    def candidates(self) -> pa.Table | None:
        if self._products is None:
            return None
        wanted = ("product_id", *self._DESCRIBED)
        parquet_shards(self._products, wanted)
        table = pq.read_table(self._products, columns=list(wanted))
        text = {name: whole(table[name]).cast(pa.string()) for name in wanted}
        return pa.table(
            {
                "product_id": text["product_id"].cast(pa.binary()),
                **{name: one_each(text[name], "string") for name in self._DESCRIBED},
            }
        )

    @override
    def files(self) -> list[str]:
        return [self.path, *([self._products] if self._products else [])]

    @override
    def shards(self) -> list[Shard]:
        return parquet_shards(self.path, self._COLUMNS)

    @override
    def read(self, shard: Shard) -> Iterator[pa.RecordBatch | CorruptLine]:
        table, times, position = yield from _purchases(shard, self._COLUMNS)
        yield self.batch(
            user=whole(table["household_id"]).cast(pa.string()),
            item=whole(table["product_id"]).cast(pa.string()),
            time=times,
            position=position,
            store_id=whole(table["store_id"]).cast(pa.string()),
        )


class CompleteJourneyTimelines(TimelineReader):
    """Grocery purchases of The Complete Journey as explicit events whose value is the amount.

    Actions: `bought`, `bought_on_offer` (a retailer's discount), `bought_with_coupon`. Ids:
    `product`, `category`, `department`, `manufacturer`. Every purchase can be a
    target, with the outcome `bought` 1, so negatives must be drawn.

    Args:
      path: Folder with `transactions.parquet` and `products.parquet`.
    """

    name = "completejourney"
    _COLUMNS = (
        "household_id",
        "product_id",
        "transaction_timestamp",
        "sales_value",
        "retail_disc",
        "coupon_disc",
        "coupon_match_disc",
    )
    _DESCRIBED = ("product_category", "department", "manufacturer_id")
    _ACTIONS = ("bought", "bought_on_offer", "bought_with_coupon")

    def __init__(self, path: str) -> None:
        self.path = path

    @override
    def feature_spec(self) -> TimelineSpec:
        names = ("product", "category", "department", "manufacturer")
        return TimelineSpec(
            ids=tuple(Feature(name, min_count=2) for name in names),
            actions=self._ACTIONS,
            value="sales_value",
            binary=("bought",),
        )

    @override
    def files(self) -> list[str]:
        return [str(Path(self.path) / f"{name}.parquet") for name in ("transactions", "products")]

    @override
    def shards(self) -> list[Shard]:
        transactions, products = self.files()
        parquet_shards(products, ("product_id", *self._DESCRIBED))
        return parquet_shards(transactions, self._COLUMNS)

    @override
    def events(self, shard: Shard) -> Iterator[pa.RecordBatch | CorruptLine]:
        table, times, position = yield from _purchases(shard, self._COLUMNS)
        catalogue = pq.read_table(self.files()[1], columns=["product_id", *self._DESCRIBED])
        place = pc.index_in(whole(table["product_id"]), whole(catalogue["product_id"]))

        def text(name: str) -> pa.Array:
            return whole(catalogue[name].cast(pa.string())).take(place).cast(pa.binary())

        def discount(name: str) -> pa.Array:
            return whole(table[name]).fill_null(0.0)

        off = pc.not_equal(discount("retail_disc"), 0.0)
        coupon = pc.not_equal(pc.add(discount("coupon_disc"), discount("coupon_match_disc")), 0.0)
        action = pc.if_else(coupon, self._ACTIONS[2], pc.if_else(off, *self._ACTIONS[1::-1]))
        yield self.batch(
            user=whole(table["household_id"]).cast(pa.string()),
            time=times,
            position=position,
            action=action.cast(pa.binary()),
            product=whole(table["product_id"]).cast(pa.string()).cast(pa.binary()),
            category=text("product_category"),
            department=text("department"),
            manufacturer=text("manufacturer_id"),
            value=pc.max_element_wise(whole(table["sales_value"]), 0.0, skip_nulls=False),
            label_bought=np.ones(table.num_rows, np.float32),
        )
