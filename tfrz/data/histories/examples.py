"""From interactions to examples of histories: order, rare users and items, splits without leakage.

Interactions are an Arrow table with a row per event: `user` and `item` (binary), `time` (int64,
Unix seconds; 0 where the source has none), `position` (int64, the place of the row in the source)
and a column per context. The order of a user's events is (time, position), a total one: events of
one second keep the order of the source.

Everything here works on a table in memory. `tfrz.data.histories.beam` does the same under Beam
and calls these functions for a few users at a time.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tfrz.data.columns import codes_of, filled, runs, whole
from tfrz.data.histories.spec import HistoryConfig, HistorySpec
from tfrz.data.splits import SPLITS, share_of
from tfrz.errors import InputError


def drop_duplicates(events: pa.Table) -> pa.Table:
    """Events that are equal in user, item and time once: the first of them in the source."""
    users, items = codes_of(events["user"]), codes_of(events["item"])
    times, positions = events["time"].to_numpy(), events["position"].to_numpy()
    order = np.lexsort((positions, times, items, users))
    keys = np.stack([users[order], items[order], times[order]])
    first = np.concatenate([[True], (keys[:, 1:] != keys[:, :-1]).any(axis=0)])[: len(order)]
    return events.take(pa.array(np.sort(order[first])))


def drop_rare(events: pa.Table, config: HistoryConfig) -> pa.Table:
    """Leaves out rare items, then rare users: once or until nothing changes.

    Raises:
      InputError: the fixed point was not reached in `max_passes`, or nothing is left.
    """
    if config.min_item_count == 1 and config.min_user_count == 1:
        return events
    users, items = codes_of(events["user"]), codes_of(events["item"])
    kept = np.arange(len(users))
    for _ in range(config.max_passes):
        before = len(kept)
        for codes, least in ((items, config.min_item_count), (users, config.min_user_count)):
            counts = np.bincount(codes[kept], minlength=1)
            kept = kept[counts[codes[kept]] >= least]
        if config.min_count_passes == 1 or len(kept) == before:
            break
    else:
        raise not_settled(config)
    if not len(kept):
        raise InputError(
            f"no user has {config.min_user_count} events with items that have "
            f"{config.min_item_count}: lower data.history.min_user_count or min_item_count"
        )
    return events.take(pa.array(kept))


def not_settled(config: HistoryConfig) -> InputError:
    """The error of a fixed point that was not reached."""
    return InputError(
        f"leaving out rare items and users did not settle in {config.max_passes} passes: raise "
        "data.history.max_passes, or set data.history.min_count_passes to 1"
    )


def _targets(
    config: HistoryConfig,
    starts: NDArray[Any],
    ends: NDArray[Any],
    times: NDArray[Any],
    users: list[bytes],
    held_out: tuple[float, float],
    seed: int,
    with_test: bool,
    least: int,
) -> dict[str, NDArray[Any]]:
    """For each split, the row of each user's target, or -1 for none.

    In the split by users, those with fewer than `least` events are only trained on.
    """
    none = np.full(len(starts), -1)
    if config.split == "leave_last_out":
        left_out = 2 if with_test else 1
        # Users with fewer events are only trained on.
        enough = ends - starts > left_out
        return {
            "train": np.where(enough, ends - 1 - left_out, ends - 1),
            "validation": np.where(enough, ends - left_out, none),
            "test": np.where(enough & with_test, ends - 1, none),
        }
    if config.split == "users":
        shares = np.array([share_of(user, seed) for user in users])
        validation, test = held_out if with_test else (held_out[0], 0.0)
        last, several = ends - 1, ends - starts >= least
        chosen = {
            "test": (shares < test) & several,
            "validation": (shares >= test) & (shares < test + validation) & several,
        }
        chosen["train"] = shares >= test + validation
        return {name: np.where(chosen[name], last, none) for name in SPLITS}

    def before(bound: int) -> NDArray[Any]:
        # Times rise within a user: count those below the bound.
        below = np.concatenate([[0], np.cumsum(times < bound)])
        return starts + below[ends] - below[starts]

    assert config.validation_start is not None
    assert config.test_start is not None
    first = before(config.validation_start)
    second = before(config.test_start) if with_test else ends
    return {
        "train": np.where(first > starts, first - 1, none),
        "validation": np.where((first > starts) & (first < second), first, none),
        "test": np.where((second > starts) & (second < ends) & with_test, second, none),
    }


def _earlier_targets(
    target: NDArray[Any], begin: NDArray[Any], config: HistoryConfig
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Training targets with those before them, and the first event of the history of each.

    An earlier target has a history of one event at least, and of no more than the model sees: what
    was seen before is told of a user once.
    """
    back = config.train_stride * np.arange(config.train_targets)
    rows = target[:, None] - back
    used = rows > begin[:, None]
    used[:, 0] = True
    length = np.where(back == 0, config.kept, config.length)
    first = np.maximum(begin[:, None], rows - length)
    return rows[used], first[used]


def build_examples(
    events: pa.Table,
    spec: HistorySpec,
    config: HistoryConfig,
    held_out: tuple[float, float] = (0.0, 0.0),
    seed: int = 0,
    with_test: bool = True,
) -> dict[str, pa.Table]:
    """Examples of each split: at most one a user, in training at most `train_targets`.

    Args:
      events: interactions in any order.
      spec: what their columns are.
      config: how.
      held_out: shares of the users in validation and test, for the split by users.
      seed: of that split.
      with_test: without it, validation takes what test would.

    Returns:
      Split to a table with `user` and the raw features and target of `spec`, as lists.
      A missing context within a history is "" or NaN, so that the lists stay aligned.
    """
    config.check(spec)
    codes = codes_of(events["user"])
    order = np.lexsort((events["position"].to_numpy(), events["time"].to_numpy(), codes))
    events = events.take(pa.array(order))
    codes = codes[order]
    starts = np.flatnonzero(np.concatenate([[True], codes[1:] != codes[:-1]])[: len(codes)])
    ends = np.append(starts[1:], len(codes)).astype(np.int64)
    columns = {name: whole(events[name]) for name in events.column_names}
    contexts = {f.name: filled(columns[f.name], f.dtype) for f in spec.context}
    users = columns["user"].take(pa.array(starts)).to_pylist() if config.split == "users" else []
    times = columns["time"].to_numpy()
    # An action has an outcome though nothing came before it.
    least = 1 if spec.outcomes else 2
    targets = _targets(config, starts, ends, times, users, held_out, seed, with_test, least)
    examples = {}
    for split in SPLITS:
        some = targets[split] >= 0
        target, first = targets[split][some], starts[some]
        if split == "train":
            target, first = _earlier_targets(target, first, config)
        else:
            first = np.maximum(first, target - config.kept)
        row = {
            "user": runs(columns["user"], target, target + 1),
            "history": runs(columns["item"], first, target),
            "target": runs(columns["item"], target, target + 1),
        }
        if spec.time is not None:
            row["history_time"] = runs(columns["time"], first, target)
            row["request_time"] = runs(columns["time"], target, target + 1)
        for name, column in contexts.items():
            row[f"history_{name}"] = runs(column, first, target)
            row[name] = runs(column, target, target + 1)
        examples[split] = pa.Table.from_pydict(row)
    return examples


def newest(events: list[tuple[Any, ...]], count: int) -> list[tuple[Any, ...]]:
    """The newest `count` of events `(time, position, ...)`, in order."""
    events.sort(key=lambda event: event[:2])
    return events[-count:]
