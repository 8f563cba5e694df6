"""From interactions to examples of histories: order, rare users and items, splits without leakage.

Interactions are an Arrow table with a row per event: `user` and `item` (binary), `time` (int64,
Unix seconds; 0 where the source has none), `position` (int64, the place of the row in the source)
and a column per context. A user's events are ordered by (time, position), so events of the same
second keep the order of the source.

The functions work on a table in memory; `tfrz.data.histories.beam` calls them under Beam for a few
users at a time.
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
    """Keeps the first of several events with equal user, item and time."""
    users, items = codes_of(events["user"]), codes_of(events["item"])
    times, positions = events["time"].to_numpy(), events["position"].to_numpy()
    order = np.lexsort((positions, times, items, users))
    keys = np.stack([users[order], items[order], times[order]])
    first = np.concatenate([[True], (keys[:, 1:] != keys[:, :-1]).any(axis=0)])[: len(order)]
    return events.take(pa.array(np.sort(order[first])))


def drop_rare(events: pa.Table, config: HistoryConfig) -> pa.Table:
    """Leaves out rare items, then rare users, once or until nothing changes.

    Raises:
      InputError: There is no fixed point after `max_passes`, or nothing is left.
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
        raise nothing_left(config)
    return events.take(pa.array(kept))


def nothing_left(config: HistoryConfig) -> InputError:
    """Returns the error for events of rare users and items alone."""
    return InputError(
        f"no user has {config.min_user_count} events with items that have "
        f"{config.min_item_count}: lower data.history.min_user_count or min_item_count"
    )


def not_settled(config: HistoryConfig) -> InputError:
    """Returns the error for a fixed point that was not reached."""
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
    """Returns the row of each user's target for each split; -1 if there is none.

    In the split by users, users with fewer than `least` events are used for training only.
    """
    none = np.full(len(starts), -1)
    if config.split == "leave_last_out":
        left_out = 2 if with_test else 1
        # Users with fewer events are used for training only.
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
        # Times are sorted within a user, so counting those below the bound is enough.
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
    """Returns all training targets, and the first event of the history of each.

    An earlier target has at least one event before it, and a history no longer than the model
    reads: only the last target's example lists further seen items.
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
    """Builds examples of each split: at most one per user, `train_targets` in training.

    Args:
      events: Interactions in any order.
      spec: Spec of the interactions.
      config: Configuration of the examples.
      held_out: Shares of the users in validation and test, for the split by users.
      seed: Seed of that split.
      with_test: If False, the test examples go to validation.

    Returns:
      A dict from split to a table with `user` and the raw features and target of `spec`, as lists.
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
    # An action has an outcome even if it is the user's first event.
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
    """Returns the newest `count` of events `(time, position, ...)`, in order."""
    events.sort(key=lambda event: event[:2])
    return events[-count:]
