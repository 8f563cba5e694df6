"""From events to examples of timelines: targets, candidates, and visible events.

Events are an Arrow table with a row per event: `user` (binary), `time` (int64, Unix seconds),
`position` (int64, the place in the source), the columns that `tfrz.data.timelines.slicing` reads,
and `label_<task>` (float, NaN for none). An event with an outcome may be a target; its time is that
of the example, and only events before that time minus the gap are visible.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import zlib
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from tfrz.data.columns import codes_of, whole
from tfrz.data.splits import SPLITS, share_of
from tfrz.data.timelines.slicing import Events, Sketch, slice_user
from tfrz.data.timelines.spec import _RECENT, TimelineConfig, TimelineSpec, example_spec
from tfrz.errors import InputError

# Attempts to draw a candidate that differs from the target.
_TRIES = 20


def clean(
    events: pa.Table, spec: TimelineSpec, as_of: float | None = None
) -> tuple[pa.Table, dict[str, int]]:
    """Drops events with unknown actions and events from the future.

    Args:
      events: Events of any users.
      spec: Spec of the source, with the known actions.
      as_of: If given, events at or after this time are from the future.

    Returns:
      The remaining events, and a dict from the reason (`unknown action <name>`, `in the future`)
      to the number of dropped events.
    """
    left_out: dict[str, int] = {}
    known = pa.array([action.encode() for action in spec.actions], pa.binary())
    unknown = pc.invert(pc.is_in(whole(events["action"]), known))
    if pc.any(unknown).as_py():
        named = pc.value_counts(whole(events["action"]).filter(unknown)).to_pylist()
        for one in named:
            action = (one["values"] or b"").decode("utf-8", "replace")
            left_out[f"unknown action {action}"] = one["counts"]
        events = events.filter(pc.invert(unknown))
    if as_of is not None:
        future = pc.greater_equal(whole(events["time"]), pa.scalar(math.ceil(as_of), pa.int64()))
        if pc.any(future).as_py():
            left_out["in the future"] = pc.sum(future).as_py()
            events = events.filter(pc.invert(future))
    return events, left_out


def _codes(column: pa.Array) -> NDArray[Any]:
    """Numbers the distinct values; lists are equal if all their values are equal."""
    if pa.types.is_list(column.type):
        lengths = pc.list_value_length(column).fill_null(0).to_numpy()
        values = codes_of(column.flatten().dictionary_encode().dictionary_decode().fill_null(b""))
        text = [b",".join(b"%d" % v for v in part) for part in np.split(values, np.cumsum(lengths))]
        return codes_of(pa.array(text[:-1], pa.binary()))
    if pa.types.is_floating(column.type):
        numbers = column.cast(pa.float64()).fill_null(np.nan).to_numpy(zero_copy_only=False)
        return np.where(np.isnan(numbers), -1, numbers.view(np.int64))
    return whole(column.dictionary_encode()).indices.fill_null(-1).to_numpy(zero_copy_only=False)


def in_order(events: pa.Table) -> pa.Table:
    """Sorts events by user, time and place in the source, and drops duplicates.

    Events that differ in place and outcomes only are duplicates.
    """
    order = pc.sort_indices(events, [(name, "ascending") for name in ("user", "time", "position")])
    events = events.take(order).combine_chunks()
    users, time = codes_of(events["user"]), whole(events["time"]).to_numpy()
    together = (users[1:] == users[:-1]) & (time[1:] == time[:-1])
    if not together.any():
        return events
    # Only events of the same user and second can be duplicates.
    shared = np.flatnonzero(np.append(together, False) | np.insert(together, 0, False))
    some = events.take(pa.array(shared))
    left_aside = ("user", "time", "position")
    keys = [users[shared], time[shared]]
    for name in some.column_names:
        if name not in left_aside and not name.startswith("label_"):
            keys.append(_codes(whole(some[name])))
    # The sort is stable, so the first of equal events comes first.
    order = np.lexsort(keys)
    same = np.ones(len(order) - 1, bool)
    for key in keys:
        same &= key[order][1:] == key[order][:-1]
    again = shared[order[1:][same]]
    if not len(again):
        return events
    kept = np.ones(events.num_rows, bool)
    kept[again] = False
    return events.filter(pa.array(kept))


def bounds_of_users(events: pa.Table) -> NDArray[Any]:
    """Returns where the rows of each user begin in a sorted table, and its end, `[users + 1]`."""
    codes = codes_of(events["user"])
    if not len(codes):
        return np.zeros(1, int)
    return np.flatnonzero(np.concatenate([[True], codes[1:] != codes[:-1], [True]]))


def _number(*parts: bytes | int) -> int:
    """Returns a number that depends on the parts only."""
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        digest.update(part if isinstance(part, bytes) else b"%d" % part)
        digest.update(b"\0")
    return int.from_bytes(digest.digest(), "big")


def sampled(events: pa.Table, config: TimelineConfig) -> pa.Table:
    """Returns the pool of candidates: the events with the smallest hashes, with them as `order`."""
    has = np.zeros(events.num_rows, bool)
    for name in events.column_names:
        if name.startswith("label_"):
            column = whole(events[name]).fill_null(np.nan).to_numpy(zero_copy_only=False)
            has |= np.isfinite(column)
    events = events.filter(pa.array(has))
    keys = [
        _number(user, time, position) >> 1
        for user, time, position in zip(
            events["user"].to_pylist(),
            events["time"].to_pylist(),
            events["position"].to_pylist(),
            strict=True,
        )
    ]
    order = np.argsort(np.array(keys, np.int64), kind="stable")[: config.pool]
    return events.take(pa.array(order)).append_column(
        "order", pa.array(np.array(keys)[order], pa.int64())
    )


def joined_pools(pools: Iterable[pa.Table], config: TimelineConfig) -> pa.Table:
    """Merges the pools of parts of the events."""
    table = pa.concat_tables(list(pools))
    order = np.argsort(whole(table["order"]).to_numpy(), kind="stable")[: config.pool]
    return table.take(pa.array(order))


def _targets(
    user: bytes,
    time: NDArray[Any],
    labels: NDArray[Any],
    config: TimelineConfig,
    held_out: tuple[float, float],
) -> dict[str, NDArray[Any]]:
    """Returns the places of a user's targets in each split, in time order.

    The number of held-out targets is randomly rounded up or down, with the right mean.
    """
    back = config.slices.gap + config.staleness_days * 86_400
    visible = np.searchsorted(time, time - back, "left")
    eligible = np.flatnonzero(np.isfinite(labels).any(axis=1) & (visible >= config.min_visible))
    chosen = _spread(eligible, config.targets)
    if config.split == "time":
        first, second = config.validation_start, config.test_start
        assert first is not None
        assert second is not None
        if held_out[1] == 0:
            second = int(time[-1]) + 1
        at = time[chosen]
        return {
            "train": chosen[at < first],
            "validation": chosen[(at >= first) & (at < second)],
            "test": chosen[at >= second],
        }
    chance = share_of(user, 0)
    test = int(held_out[1] * len(chosen) + chance)
    validation = int(held_out[0] * len(chosen) + 1 - chance)
    last = len(chosen) - test
    return {
        "train": chosen[: last - validation],
        "validation": chosen[last - validation : last],
        "test": chosen[last:],
    }


def _spread(places: NDArray[Any], count: int) -> NDArray[Any]:
    """Returns at most `count` of the places, evenly spaced."""
    if len(places) <= count:
        return places
    return places[((np.arange(count) + 0.5) * len(places) / count).astype(int)]


class _Columns:
    """Collects the examples: lists of values for each raw feature."""

    def __init__(self, spec: TimelineSpec) -> None:
        self._spec = spec
        self.users: list[bytes] = []
        self.times: list[int] = []
        names = [f.name for f in spec.features] + [f"label_{task}" for task in spec.tasks]
        self.values: dict[str, list[NDArray[Any]]] = {name: [] for name in names}

    def entries(
        self,
        name: str,
        ids: NDArray[Any],
        places: NDArray[Any],
        weights: NDArray[Any] | None = None,
    ) -> None:
        self.values[f"{name}_ids"].append(ids)
        self.values[f"{name}_places"].append(places)
        ones = np.ones(len(ids), np.float32)
        self.values[f"{name}_weights"].append(ones if weights is None else weights)

    def table(self) -> pa.Table:
        types = {f.name: f.dtype for f in self._spec.features}
        kinds = {"string": (pa.binary(), object), "int64": (pa.int64(), np.int64)}
        columns: dict[str, pa.Array] = {
            "user": pa.array([[user] for user in self.users], pa.list_(pa.binary())),
            "request_time": pa.array([[time] for time in self.times], pa.list_(pa.int64())),
        }
        for name, parts in self.values.items():
            kind, dtype = kinds.get(types.get(name, "float32"), (pa.float32(), np.float32))
            lengths = [len(part) for part in parts]
            flat = np.concatenate(parts) if parts else np.zeros(0, dtype)
            offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
            values = pa.array(flat.tolist() if kind == pa.binary() else flat.astype(dtype), kind)
            columns[name] = pa.ListArray.from_arrays(pa.array(offsets), values)
        return pa.table(columns)


def _others(
    pool: Events,
    history: Events,
    place: int,
    key: tuple[bytes, int, int],
    spec: TimelineSpec,
    config: TimelineConfig,
) -> list[int]:
    """Draws candidates that differ from the target, with a seed from the target's key."""

    def looks(events: Events, at: int) -> list[list[bytes]]:
        return [events.ids_between(f.name, at, at + 1).tolist() for f in spec.described]

    target, found = looks(history, place), []
    for number in range(_TRIES * config.negatives):
        other = _number(*key, number) % len(pool)
        if looks(pool, other) != target:
            found.append(other)
            if len(found) == config.negatives:
                break
    return found


def build_user(
    events: pa.Table,
    spec: TimelineSpec,
    config: TimelineConfig,
    pool: Events | None,
    held_out: tuple[float, float],
    into: dict[str, _Columns],
) -> None:
    """Adds the examples of one user with sorted events to the columns of each split."""
    time = whole(events["time"]).to_numpy()
    labels = np.stack(
        [
            whole(events[f"label_{task}"]).fill_null(np.nan).to_numpy(zero_copy_only=False)
            for task in spec.tasks
        ],
        axis=1,
    )
    user = events["user"][0].as_py()
    stale = config.staleness_days * 86_400
    history = Events(events, config.slices.gamma)
    for split, places in _targets(user, time, labels, config, held_out).items():
        columns = into[split]
        for place in places:
            at = int(time[place])
            columns.users.append(user)
            columns.times.append(at)
            sketches = slice_user(config.slices, history, at - stale)
            for table in config.slices.tables:
                one = sketches.get(table)
                ids, slices, weights = _entries(one)
                columns.entries(f"slices_{table}", ids, slices, weights)
            outcomes = np.full((config.candidates, len(spec.tasks)), np.nan)
            outcomes[0] = labels[place]
            others: list[int] = []
            if pool is not None:
                position = events["position"][int(place)].as_py()
                others = _others(pool, history, int(place), (user, at, position), spec, config)
                outcomes[1 : 1 + len(others), : len(spec.binary)] = 0.0
            before = int(np.searchsorted(time, at, "left"))
            for feature in spec.described:
                found = [history.ids_between(feature.name, place, place + 1)]
                if pool is not None:
                    found += [pool.ids_between(feature.name, o, o + 1) for o in others]
                where = np.repeat(np.arange(len(found)), [len(ids) for ids in found])
                columns.entries(f"candidate_{feature.name}", np.concatenate(found), where)
                if config.recent:
                    first = max(0, before - config.recent)
                    ids = history.ids_between(feature.name, first, before)
                    columns.entries(f"{_RECENT}{feature.name}", ids, np.zeros(len(ids), np.int64))
            for task, values in zip(spec.tasks, outcomes.T, strict=True):
                columns.values[f"label_{task}"].append(values)


def _entries(one: Sketch | None) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    if one is None:
        return np.zeros(0, object), np.zeros(0, np.int64), np.zeros(0, np.float32)
    slices, ids, weights = one.entries()
    return ids, slices, weights


def build_examples(
    events: pa.Table,
    spec: TimelineSpec,
    config: TimelineConfig,
    held_out: tuple[float, float],
    pool: pa.Table | None = None,
) -> dict[str, pa.Table]:
    """Builds examples of each split.

    Args:
      events: Events of any users, in any order.
      spec: Spec of the examples, see `example_spec`.
      config: Configuration of the examples.
      held_out: Shares of each user's targets in validation and test.
      pool: Pool from which candidates are drawn; by default that of the events.

    Returns:
      A dict from split to a table of lists: `user`, `request_time`, and the raw features and
      outcomes of `spec`.
    """
    if config.negatives and pool is None:
        pool = sampled(events, config)
    drawn = Events(pool, config.slices.gamma) if config.negatives and pool is not None else None
    events = in_order(events)
    into = {split: _Columns(spec) for split in SPLITS}
    for table in users_of(events):
        build_user(table, spec, config, drawn, held_out, into)
    return {split: columns.table() for split, columns in into.items()}


def buckets_of(users: pa.Array, count: int) -> NDArray[Any]:
    """Returns the bucket of each user, `[rows]`; it is the same in every process."""
    coded = whole(users).dictionary_encode()
    of_terms = np.array([zlib.crc32(user) % count for user in coded.dictionary.to_pylist()], int)
    return of_terms[coded.indices.to_numpy(zero_copy_only=False)]


def users_of(events: pa.Table) -> Iterator[pa.Table]:
    """Yields the rows of each user of a sorted table."""
    if events.num_rows:
        bounds = bounds_of_users(events)
        for start, end in itertools.pairwise(bounds):
            yield events.slice(int(start), int(end - start))


def refuse_empty_slices(examples: pa.Table, config: TimelineConfig) -> None:
    """Checks that every slice has events.

    Raises:
      InputError: A slice has none.
    """
    empty = []
    for table, places in config.slices.tables.items():
        there = np.unique(whole(examples[f"slices_{table}_places"]).flatten().to_numpy())
        empty += [config.slices.slices[p].name for i, p in enumerate(places) if i not in there]
    if empty:
        raise InputError(
            f"no user has an event in slice {', '.join(empty)}: correct or remove it in "
            "data.timeline.slices"
        )


__all__ = [
    "TimelineConfig",
    "bounds_of_users",
    "buckets_of",
    "build_examples",
    "clean",
    "example_spec",
    "in_order",
    "joined_pools",
    "refuse_empty_slices",
    "sampled",
    "users_of",
]
