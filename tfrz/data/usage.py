"""What matters for a recommender in a source: who did how much, how often again, and when.

`UsageCounter` reads batches of records; its memory grows with the number of users and items, not
with the number of events. `advice` says which keys of the configuration follow.
"""

from __future__ import annotations

import dataclasses
import datetime
import math
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from tfrz.data.columns import whole
from tfrz.data.histories.spec import HistorySpec
from tfrz.data.impressions.spec import FeatureSpec
from tfrz.data.lists.spec import ListSpec
from tfrz.data.sources.reader import Reader
from tfrz.data.splits import shares_of_rows
from tfrz.data.timelines.spec import TimelineSpec

# Users and items with fewer events than this are hard to learn.
FEW = 5
_HOUR = 3600
# Smaller times are counters.
_REAL_TIME = 10**8
_PENDING = 1 << 20


class Counts:
    """How often each value occurs, over batches."""

    def __init__(self) -> None:
        self._parts: list[pa.Table] = []
        self._pending = 0

    def add(self, values: pa.Array) -> None:
        """Counts the values of a batch that are not null."""
        found = pc.value_counts(values.drop_null())
        part = pa.table({"value": found.field("values"), "count": found.field("counts")})
        self._parts.append(part)
        self._pending += part.num_rows
        if self._pending > _PENDING + 2 * self._parts[0].num_rows:
            self._merge()

    def _merge(self) -> None:
        if len(self._parts) > 1:
            joined = pa.concat_tables(self._parts).group_by("value").aggregate([("count", "sum")])
            part = pa.table({"value": joined["value"], "count": joined["count_sum"]})
            self._parts, self._pending = [part], part.num_rows

    @property
    def table(self) -> pa.Table | None:
        """Columns `value` and `count`; None if nothing was added."""
        self._merge()
        return self._parts[0] if self._parts else None

    @property
    def counts(self) -> NDArray[np.int64]:
        """The number of occurrences of each value."""
        if self.table is None:
            return np.zeros(0, np.int64)
        counts: NDArray[np.int64] = self.table["count"].to_numpy().astype(np.int64)
        return counts

    def top(self, number: int) -> list[tuple[Any, int]]:
        """The most frequent values; of equally frequent ones the smallest."""
        table, counts = self.table, self.counts
        if table is None or not len(counts):
            return []
        place = max(0, len(counts) - number)
        table = table.filter(pa.array(counts >= np.partition(counts, place)[place]))
        order = pc.sort_indices(table, [("count", "descending"), ("value", "ascending")])
        table = table.take(order[:number])
        return list(zip(table["value"].to_pylist(), table["count"].to_pylist(), strict=True))


class _Pairs:
    """The share of events that repeat an item of their user; of a sample of users if many."""

    _MOST = 4_000_000

    def __init__(self) -> None:
        self.bound = 1.0
        self._users: NDArray[np.float64] = np.zeros(0)
        self._pairs: NDArray[np.float64] = np.zeros(0)
        self._events: NDArray[np.int64] = np.zeros(0, np.int64)

    def add(self, users: pa.Array, items: pa.Array) -> None:
        """Adds events."""
        of_user = shares_of_rows(pa.table({"user": users}), 1)
        kept = of_user < self.bound
        pairs = shares_of_rows(pa.table({"user": users, "item": items}), 2)[kept]
        found, first, counts = np.unique(pairs, return_index=True, return_counts=True)
        self._pairs = np.concatenate([self._pairs, found])
        self._users = np.concatenate([self._users, of_user[kept][first]])
        self._events = np.concatenate([self._events, counts])
        if len(self._pairs) > self._MOST:
            self._merge()
        while len(self._pairs) > self._MOST:
            self.bound /= 2
            some = self._users < self.bound
            self._pairs, self._users = self._pairs[some], self._users[some]
            self._events = self._events[some]

    def _merge(self) -> None:
        self._pairs, first, inverse = np.unique(self._pairs, return_index=True, return_inverse=True)
        self._users = self._users[first]
        sums = np.bincount(inverse, weights=self._events)
        self._events = sums.astype(np.int64)

    def share(self) -> float:
        """The share of the events whose user had the item before."""
        self._merge()
        events = int(self._events.sum())
        return 1 - len(self._pairs) / events if events else 0.0


@dataclasses.dataclass
class Usage:
    """Figures of a source; null where they have no meaning.

    Attributes:
      events: Number of events, impressions or documents.
      users: Number of users; of queries, for lists.
      items: Number of items.
      length_p50: Median number of events of a user, or of documents of a query.
      length_p90: The 90th percentile.
      length_max: The largest number.
      repeated: Share of events whose user had the item before.
      few_users: Share of users with fewer than 5 events.
      few_items: Share of items with fewer than 5 events.
      begin: Time of the first event, UTC.
      end: Time of the last event, UTC.
      label_rate: Mean of the label, or share of documents with a relevance above 0.
      without: Share of queries without a relevant document.
      missing: Share of the values of features that are missing.
    """

    events: int
    users: int | None = None
    items: int | None = None
    length_p50: float | None = None
    length_p90: float | None = None
    length_max: int | None = None
    repeated: float | None = None
    few_users: float | None = None
    few_items: float | None = None
    begin: str | None = None
    end: str | None = None
    label_rate: float | None = None
    without: float | None = None
    missing: float | None = None


class UsageCounter:
    """Counts while a source is read.

    Args:
      reader: Reader of the source.
    """

    def __init__(self, reader: Reader) -> None:
        self.spec: Any = reader.feature_spec()
        self.records = reader.record_type
        self.users, self.items, self.hours = Counts(), Counts(), Counts()
        self._pairs, self._relevant = _Pairs(), Counts()
        self._events, self._label, self._labels = 0, 0.0, 0
        self._first: int | None = None
        self._last: int | None = None
        self._item = "item"
        if isinstance(self.spec, TimelineSpec):
            self._item = self.spec.ids[0].name

    def add(self, batch: pa.RecordBatch) -> None:
        """Counts a batch."""
        spec = self.spec
        self._events += batch.num_rows
        if isinstance(spec, FeatureSpec):
            self._add_label(_flat(batch.column(spec.label)))
            return
        if isinstance(spec, ListSpec):
            self.users.add(batch.column("query"))
            self.items.add(batch.column("item"))
            relevant = pc.greater(batch.column("relevance"), 0)
            self._add_label(relevant.cast(pa.float32()))
            self._relevant.add(batch.column("query").filter(relevant))
            return
        users, items = batch.column("user"), batch.column(self._item)
        self.users.add(users)
        if pa.types.is_list(items.type):
            owners = pc.list_parent_indices(items)
            users, items = users.take(owners), _flat(items)
        present = items.is_valid()
        users, items = users.filter(present), items.filter(present)
        self.items.add(items)
        self._pairs.add(users, items)
        if getattr(spec, "time", None) is not None and batch.num_rows:
            times = batch.column("time").to_numpy(zero_copy_only=False)
            low, high = int(times.min()), int(times.max())
            self._first = low if self._first is None else min(low, self._first)
            self._last = high if self._last is None else max(high, self._last)
            self.hours.add(pa.array(times // _HOUR))

    def _add_label(self, values: pa.Array) -> None:
        self._label += pc.sum(values).as_py() or 0.0
        self._labels += len(values) - values.null_count

    def finish(self) -> Usage:
        """Returns the figures."""
        usage = Usage(self._events)
        if self._labels:
            usage.label_rate = self._label / self._labels
        if isinstance(self.spec, FeatureSpec):
            return usage
        users, items = self.users.counts, self.items.counts
        usage.users, usage.items = len(users), len(items)
        if len(users):
            usage.length_p50 = float(np.quantile(users, 0.5))
            usage.length_p90 = float(np.quantile(users, 0.9))
            usage.length_max = int(users.max())
        if isinstance(self.spec, ListSpec):
            usage.without = 1 - len(self._relevant.counts) / max(len(users), 1)
            if self.spec.item is None:
                usage.items = None
            return usage
        usage.repeated = self._pairs.share()
        usage.few_users = float((users < FEW).mean()) if len(users) else None
        usage.few_items = float((items < FEW).mean()) if len(items) else None
        if self.times_are_real and self._first is not None and self._last is not None:
            usage.begin, usage.end = _date(self._first), _date(self._last)
        return usage

    @property
    def times_are_real(self) -> bool:
        """Whether the events have times, not counters."""
        return self._first is not None and self._first >= _REAL_TIME

    def starts(self) -> tuple[int, int] | None:
        """Whole hours after which a fifth and a tenth of the events are; None without times."""
        table = self.hours.table
        if not self.times_are_real or table is None or table.num_rows < 10:
            return None
        hours = table["value"].to_numpy()
        order = np.argsort(hours)
        share = np.cumsum(self.hours.counts[order]) / self._events
        first, second = (int(hours[order][np.searchsorted(share, q)]) + 1 for q in (0.8, 0.9))
        return (first * _HOUR, second * _HOUR) if first < second else None


def _flat(lists: pa.Array) -> pa.Array:
    return pc.list_flatten(whole(lists)) if pa.types.is_list(lists.type) else lists


def _date(seconds: int) -> str:
    moment = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    return moment.strftime("%Y-%m-%d %H:%M:%S")


@dataclasses.dataclass(frozen=True)
class Advice:
    """What to set, and why.

    Attributes:
      setting: For `--set`, or a key of the feature spec.
      reason: The figure that it follows from.
    """

    setting: str
    reason: str


def advice(counter: UsageCounter, usage: Usage) -> list[Advice]:
    """Returns what follows from the figures of a source.

    Args:
      counter: Its counter, after the last batch.
      usage: Its figures.
    """
    if isinstance(counter.spec, HistorySpec):
        return _of_histories(counter, usage)
    if isinstance(counter.spec, TimelineSpec):
        return _of_timelines(counter, usage)
    if isinstance(counter.spec, ListSpec):
        return _of_lists(usage)
    found = []
    if usage.label_rate in (0.0, 1.0):
        found.append(Advice("label: another column", f"every label is {usage.label_rate:g}"))
    return found


def _split_by_time(counter: UsageCounter, usage: Usage, section: str) -> list[Advice]:
    starts = counter.starts()
    if starts is None:
        return []
    keys = ("split=time", f"validation_start={starts[0]}", f"test_start={starts[1]}")
    return [
        Advice(
            " ".join(f"{section}.{key}" for key in keys),
            f"there are times, {usage.begin} to {usage.end}: test on the newest tenth (from "
            f"{_date(starts[1])}), validate on the tenth before it",
        )
    ]


def _of_histories(counter: UsageCounter, usage: Usage) -> list[Advice]:
    found = []
    if usage.repeated is not None and usage.repeated >= 0.1:
        found.append(
            Advice(
                "export.drop_seen=false",
                f"{usage.repeated:.0%} of the events repeat an item of their user, and by default "
                "no item of a history is recommended",
            )
        )
    found += _split_by_time(counter, usage, "data.history")
    if usage.length_p90 is not None and (usage.length_p90 > 50 or usage.length_p90 <= 25):
        length = min(500, max(2, math.ceil(usage.length_p90)))
        found.append(
            Advice(
                f"data.history.length={length}",
                f"nine of ten users have at most {usage.length_p90:.0f} events",
            )
        )
    if usage.few_items is not None and usage.few_items >= 0.2:
        found.append(
            Advice(
                f"data.history.min_item_count={FEW}",
                f"{usage.few_items:.0%} of the items have fewer than {FEW} events",
            )
        )
    short = float((counter.users.counts < 3).mean()) if usage.users else 0.0
    if short >= 0.1:
        found.append(
            Advice(
                "data.history.min_user_count=3",
                f"{short:.0%} of the users have fewer than 3 events: too few to be tested on",
            )
        )
    return found


def _of_timelines(counter: UsageCounter, usage: Usage) -> list[Advice]:
    spec: TimelineSpec = counter.spec
    found = []
    if set(spec.tasks) == set(spec.happened):
        found.append(
            Advice(
                "data.timeline.negatives=4",
                f"the outcome {', '.join(spec.happened)} is 1 for every event",
            )
        )
    found += _split_by_time(counter, usage, "data.timeline")
    if usage.length_p50 is not None and usage.length_p50 < 100:
        visible = max(1, int(usage.length_p50 // 4))
        found.append(
            Advice(
                f"data.timeline.min_visible={visible}",
                f"half of the users have at most {usage.length_p50:.0f} events",
            )
        )
    if usage.few_items is not None and usage.few_items >= 0.2:
        name = spec.ids[0].name
        found.append(
            Advice(
                f"ids: [{{name: {name}, min_count: {FEW}}}] in the feature spec",
                f"{usage.few_items:.0%} of the values of {name} have fewer than {FEW} events",
            )
        )
    return found


def _of_lists(usage: Usage) -> list[Advice]:
    found = []
    if usage.length_p90 is not None:
        length = math.ceil(usage.length_p90)
        found.append(
            Advice(
                f"data.lists.length={length}",
                f"nine of ten queries have at most {length} candidates",
            )
        )
    return found
