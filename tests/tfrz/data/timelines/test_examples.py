"""Examples of timelines against plain loops over events: no leakage, splits, candidates."""

from __future__ import annotations

import dataclasses
import itertools
import math
import random

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfrz.config import from_mapping
from tfrz.data.spec import Feature
from tfrz.data.splits import SPLITS
from tfrz.data.timelines.examples import (
    bounds_of_users,
    build_examples,
    clean,
    in_order,
    joined_pools,
    refuse_empty_slices,
    sampled,
    users_of,
)
from tfrz.data.timelines.slicing import Slice, SliceSpecification
from tfrz.data.timelines.spec import EntryList, TimelineConfig, TimelineSpec, example_spec
from tfrz.errors import ConfigError, InputError

HOUR = 3600
DAY = 24 * HOUR
NOW = 1_700_000_000
NAN = float("nan")
UNIT = 2**24

SPEC = TimelineSpec(
    ids=(Feature("item"), Feature("topics", multivalent=True)),
    actions=("like", "share", "view"),
    implicit=("view",),
    duration="duration",
    dwell="dwell",
    value="value",
    binary=("liked",),
    regression=("watched",),
)
SLICES = SliceSpecification(
    1,
    (
        Slice("explicit", "explicit", "item", "items"),
        Slice("topics seen", "implicit", "topics", "topics", weight="watch_score"),
        Slice("likes of 3 days", "explicit", "item", "items", actions=("like",), days=3),
        Slice("topics of 7 days", "explicit", "topics", "topics", days=7),
        Slice("watched", "implicit", "item", "items", dwell=(5.0, None)),
    ),
)
CONFIG = TimelineConfig(slices=SLICES, targets=1000)
HELD_OUT = (0.2, 0.2)
TYPES = {
    "user": pa.binary(),
    "time": pa.int64(),
    "position": pa.int64(),
    "explicit": pa.bool_(),
    "action": pa.binary(),
    "item": pa.binary(),
    "topics": pa.list_(pa.binary()),
    "duration": pa.float64(),
    "dwell": pa.float64(),
    "value": pa.float64(),
    "label_liked": pa.float32(),
    "label_watched": pa.float32(),
}


def _event(time: float, user: str = "u", action: str = "like", **values) -> dict:
    """An event so many hours after `NOW`; it has no outcome."""
    event = {
        "user": user,
        "time": NOW + round(time * HOUR),
        "explicit": action != "view",
        "action": action,
        "item": "m",
        "topics": ["t"],
        "duration": NAN,
        "dwell": NAN,
        "value": NAN,
        "label_liked": NAN,
        "label_watched": NAN,
    }
    assert set(values) <= set(event)
    return event | values


def _target(time: float, user: str = "u", **values) -> dict:
    return _event(time, user, **{"label_liked": 1.0, "item": "target", **values})


def _bytes(value):
    if isinstance(value, list):
        return [_bytes(one) for one in value]
    return value.encode() if isinstance(value, str) else value


def _table(events: list[dict]) -> pa.Table:
    """In the given order; the place in the source is that in the list, unless an event has one."""
    events = [{"position": place, **event} for place, event in enumerate(events)]
    return pa.table(
        {
            name: pa.array([_bytes(event[name]) for event in events], kind)
            for name, kind in TYPES.items()
        }
    )


def _build(events, config=CONFIG, held_out=HELD_OUT, pool=None) -> dict[str, pa.Table]:
    table = events if isinstance(events, pa.Table) else _table(events)
    built = build_examples(table, example_spec(SPEC, config), config, held_out, pool)
    assert tuple(built) == SPLITS
    return built


def _grouped(example: dict, name: str, places: int, weighted: bool = False) -> list[list]:
    """The ids of each place of a list, with or without weights."""
    lists = [example[f"{name}_{part}"] for part in ("ids", "places", "weights")]
    assert len({len(one) for one in lists}) == 1, "aligned"
    groups: list[list] = [[] for _ in range(places)]
    for one, place, weight in zip(*lists, strict=True):
        groups[place].append((one, weight) if weighted else one)
        assert weighted or weight == 1.0
    return groups


def _decoded(example: dict, config: TimelineConfig) -> dict:
    """An example in the oracle's form."""
    sketches: dict[str, dict] = {rule.name: {} for rule in config.slices.slices}
    for table, places in config.slices.tables.items():
        groups = _grouped(example, f"slices_{table}", len(places), weighted=True)
        for place, group in zip(places, groups, strict=True):
            assert len(dict(group)) == len(group), "an id once in a slice"
            sketches[config.slices.slices[place].name] = dict(sorted(group))
    count = 1 + config.negatives
    candidates = [_grouped(example, f"candidate_{name}", count) for name in ("item", "topics")]
    decoded = {
        "user": example["user"],
        "time": example["request_time"],
        "slices": sketches,
        "candidates": list(zip(*candidates, strict=True)),
        "labels": (example["label_liked"], example["label_watched"]),
    }
    if config.recent:
        decoded["recent"] = [
            sorted(_grouped(example, f"recent_{name}", 1)[0]) for name in ("item", "topics")
        ]
    return decoded


def _examples(built: dict[str, pa.Table] | pa.Table, config: TimelineConfig = CONFIG) -> list[dict]:
    tables = [built] if isinstance(built, pa.Table) else built.values()
    return [_decoded(row, config) for table in tables for row in table.to_pylist()]


def _sorted(examples: list[dict]) -> list[str]:
    return sorted(map(repr, examples))


def _rows(table: pa.Table) -> list[str]:
    """In order; NaN is equal to NaN."""
    return list(map(repr, table.to_pylist()))


def _only(examples: list[dict], item: bytes = b"target") -> dict:
    (one,) = (e for e in examples if e["candidates"][0][0] == [item])
    return one


# The oracle: one event at a time.


def _known(ids) -> list[bytes]:
    return [one.encode() for one in (ids if isinstance(ids, list) else [ids]) if one]


def _naive_sketch(spec: SliceSpecification, events: list[dict], as_of: float) -> dict:
    sums: dict[str, dict[bytes, int]] = {rule.name: {} for rule in spec.slices}
    for event in events:
        age = as_of - event["time"]
        if not age > spec.gap_hours * HOUR:
            continue
        for rule in spec.slices:
            if event["explicit"] != (rule.timeline == "explicit"):
                continue
            if rule.actions and event["action"] not in rule.actions:
                continue
            if rule.days is not None and age > rule.days * DAY:
                continue
            if rule.dwell is not None and not event["dwell"] >= rule.dwell[0]:
                continue
            weight = 1.0
            if rule.weight == "watch_score":
                if not (event["dwell"] >= 0 and event["duration"] > 0):
                    continue
                weight = math.log(event["dwell"] + 1) / math.log(spec.gamma * event["duration"] + 1)
            for one in _known(event[rule.id]):
                sums[rule.name][one] = sums[rule.name].get(one, 0) + round(weight * UNIT)
    return {
        name: {one: float(np.float32(ids[one] / UNIT)) for one in sorted(ids) if ids[one]}
        for name, ids in sums.items()
    }


def _history(events: list[dict], user: str) -> list[dict]:
    """The events of a user in order of time."""
    return sorted((e for e in events if e["user"] == user), key=lambda event: event["time"])


def _naive_examples(events: list[dict], config: TimelineConfig) -> list[dict]:
    examples = []
    for user in {event["user"] for event in events}:
        history = _history(events, user)
        for target in history:
            labels = target["label_liked"], target["label_watched"]
            as_of = target["time"] - config.staleness_days * DAY
            limit = as_of - config.slices.gap_hours * HOUR
            visible = [event for event in history if event["time"] < limit]
            if len(visible) < config.min_visible or all(map(math.isnan, labels)):
                continue
            example = {
                "user": [user.encode()],
                "time": [target["time"]],
                "slices": _naive_sketch(config.slices, history, as_of),
                "candidates": [(_known(target["item"]), _known(target["topics"]))],
                "labels": tuple([float(np.float32(label))] for label in labels),
            }
            if config.recent:
                before = [event for event in history if event["time"] < target["time"]]
                newest = before[-config.recent :]
                example["recent"] = [
                    sorted(one for event in newest for one in _known(event[name]))
                    for name in ("item", "topics")
                ]
            examples.append(example)
    return examples


_NAMES = st.sampled_from(["a", "b", "c", "", None])


@st.composite
def _histories(draw, users: int = 3) -> list[dict]:
    """In no order, some at the same second, no two equal."""
    events = []
    for place in range(draw(st.integers(0, 12))):
        viewed = draw(st.booleans())
        events.append(
            _event(
                draw(st.one_of(st.sampled_from([0, 24, 48, 72]), st.integers(0, 240))),
                draw(st.sampled_from(["u", "v", "w"][:users])),
                "view" if viewed else draw(st.sampled_from(["like", "share"])),
                item=draw(_NAMES),
                topics=draw(st.lists(_NAMES, max_size=2, unique=True)),
                duration=draw(st.sampled_from([NAN, 0.0, 10.0, 30.0])) if viewed else NAN,
                dwell=draw(st.sampled_from([NAN, 0.0, 3.0, 5.0, 20.0])) if viewed else NAN,
                value=float(place),
                label_liked=draw(st.sampled_from([NAN, 0.0, 1.0])),
                label_watched=draw(st.sampled_from([NAN, 2.5])),
            )
        )
    return events


@settings(max_examples=60, deadline=None)
@given(
    _histories(),
    st.sampled_from([1, 2, 3]),
    st.sampled_from([0, 1, 3]),
    st.sampled_from([0.0, 1.5]),
)
def test_examples_are_those_of_plain_loops(events, min_visible, recent, staleness):
    config = dataclasses.replace(
        CONFIG, min_visible=min_visible, recent=recent, staleness_days=staleness
    )
    got = _examples(_build(events, config), config)
    assert _sorted(got) == _sorted(_naive_examples(events, config))


@pytest.mark.parametrize("gap_hours", [0.0, 1.0, 36.0])
def test_examples_have_the_gap_of_their_specification(gap_hours):
    config = dataclasses.replace(CONFIG, slices=dataclasses.replace(SLICES, gap_hours=gap_hours))
    events = [_target(hours, item=f"m{hours}") for hours in range(0, 100, 3)]
    got = _examples(_build(events, config), config)
    assert got
    assert _sorted(got) == _sorted(_naive_examples(events, config))


# No leakage


@settings(max_examples=60, deadline=None)
@given(_histories(users=1), st.data(), st.sampled_from([0.0, 2.0]))
def test_invariant_3_what_is_younger_than_the_gap_of_a_target_does_not_reach_its_slices(
    events, data, staleness
):
    config = dataclasses.replace(CONFIG, staleness_days=staleness)
    at = data.draw(st.integers(100, 240))
    target = _target(at)
    limit = target["time"] - DAY - round(staleness * DAY)
    before = [_event(0, item="visible")] + [e for e in events if e["time"] < limit]
    events = before + [event for event in events if event["time"] >= limit] + [target]
    want = _only(_examples(_build(events, config), config))
    assert want["slices"]["explicit"][b"visible"] == 1.0

    changed = list(before)
    for event in events[len(before) : -1]:
        kind = data.draw(st.sampled_from(["drop", "ids", "label", "action", "time", "twice"]))
        younger = limit + data.draw(st.integers(0, 300 * HOUR))
        change = {
            "ids": {"item": "other", "topics": ["other", "t"]},
            "label": {"label_liked": 0.0, "label_watched": 99.0},
            "action": {"action": "like", "explicit": True, "dwell": 99.0, "duration": 1.0},
            "time": {"time": younger},
        }
        if kind != "drop":
            changed.append(event | change.get(kind, {}))
        if kind == "twice":
            changed.append(event | {"time": younger, "item": "twice"})
    for age in (0, 1, DAY - 1, DAY, DAY + round(staleness * DAY)):
        changed.append(_event(0, item="new", topics=["new"]) | {"time": target["time"] - age})
    changed.append(_event(0, item="future") | {"time": target["time"] + 30 * DAY})
    random.Random(0).shuffle(changed)
    got = _only(_examples(_build(changed + [target], config), config))
    assert got["slices"] == want["slices"]
    assert repr(got["labels"]) == repr(want["labels"])

    # Outcomes of events that are visible are outcomes too.
    relabelled = [event | {"label_liked": 0.0, "label_watched": 7.0} for event in before]
    got = _only(_examples(_build(relabelled + [target], config), config))
    assert got["slices"] == want["slices"]


def test_invariant_3_an_event_exactly_as_old_as_the_gap_is_invisible():
    seconds = {"young": DAY - 1, "as old": DAY, "older": DAY + 1, "3 days": 3 * DAY}
    seconds |= {"over 3 days": 3 * DAY + 1}
    events = [_event(0, item=name) | {"time": NOW - age} for name, age in seconds.items()]
    slices = _only(_examples(_build([*events, _target(0)])))["slices"]
    assert set(slices["explicit"]) == {b"older", b"3 days", b"over 3 days"}
    assert set(slices["likes of 3 days"]) == {b"older", b"3 days"}


def test_duplicates_count_once_in_slices_recent_lists_and_targets():
    config = dataclasses.replace(CONFIG, recent=5)
    events = [_event(0, item="a"), _event(1, item="a"), _target(100)]
    (want,) = _examples(_build(events, config), config)
    assert want["slices"]["explicit"] == {b"a": 2.0}
    (got,) = _examples(_build(events + events[::-1], config), config)
    assert repr(got) == repr(want)


def test_targets_of_the_same_second_do_not_see_each_other():
    events = [_event(0, item="old"), _target(100, item="a"), _target(100, item="b")]
    config = dataclasses.replace(CONFIG, recent=5)
    got = _examples(_build(events, config), config)
    assert len(got) == 2
    for example in got:
        assert set(example["slices"]["explicit"]) == {b"old"}
        assert example["recent"][0] == [b"old"]


def test_staleness_shifts_the_visible_window_and_its_buckets():
    config = dataclasses.replace(CONFIG, staleness_days=2.0)
    back = DAY + 2 * DAY
    seconds = {
        "a day": DAY + 1,
        "as old": back,
        "older": back + 1,
        "end of bucket": 5 * DAY,
        "over the bucket": 5 * DAY + 1,
    }
    events = [_event(0, item=name) | {"time": NOW - age} for name, age in seconds.items()]
    example = _only(_examples(_build([*events, _target(0)], config), config))
    assert example["time"] == [NOW]
    assert set(example["slices"]["explicit"]) == {b"older", b"end of bucket", b"over the bucket"}
    assert set(example["slices"]["likes of 3 days"]) == {b"older", b"end of bucket"}
    # Without it all but the youngest are visible.
    example = _only(_examples(_build([*events, _target(0)])))
    assert set(example["slices"]["explicit"]) == set(map(str.encode, seconds))


def test_recent_lists_are_strictly_before_the_target_with_the_gap_or_not():
    config = dataclasses.replace(CONFIG, recent=3)
    events = [
        _event(0, item="oldest"),
        _event(1, item="old"),
        _event(99, action="view", item="viewed", topics=["x", "y"]),
        _event(100, item="second before") | {"time": NOW + 100 * HOUR - 1},
        _event(100, item="same second"),
        _target(100),
        _event(101, item="after"),
    ]
    example = _only(_examples(_build(events, config), config))
    assert example["recent"] == [[b"old", b"second before", b"viewed"], [b"t", b"t", b"x", b"y"]]
    assert set(example["slices"]["explicit"]) == {b"oldest", b"old"}
    few = _only(_examples(_build(events[:2] + [_target(100)], config), config))
    assert few["recent"][0] == [b"old", b"oldest"]


# Targets


def test_an_event_is_a_target_if_it_has_an_outcome_and_enough_is_visible():
    events = [
        _target(0, item="first"),
        _target(24, item="a day later"),
        _target(24, item="a second more") | {"time": NOW + DAY + 1},
        _event(50, item="no outcome"),
        _event(51, item="only watched", label_watched=3.0),
        _target(52, item="only liked", label_liked=0.0),
    ]

    def items(**values):
        config = dataclasses.replace(CONFIG, **values)
        return [
            e["candidates"][0][0][0].decode() for e in _examples(_build(events, config), config)
        ]

    assert sorted(items()) == ["a second more", "only liked", "only watched"]
    # 51 h: those of 0, 24 h and a second more; 52 h the same.
    assert sorted(items(min_visible=3)) == ["only liked", "only watched"]
    assert items(min_visible=4) == []
    labels = {e["candidates"][0][0][0]: e["labels"] for e in _examples(_build(events))}
    np.testing.assert_equal(labels[b"only watched"], ([NAN], [3.0]))
    np.testing.assert_equal(labels[b"only liked"], ([0.0], [NAN]))


def test_a_user_without_visible_events_has_no_example():
    events = [_target(hours, "young", item=f"m{hours}") for hours in range(25)]
    assert _examples(_build(events)) == []
    events += [_event(0, "old"), _target(30, "old")]
    assert [e["user"] for e in _examples(_build(events))] == [[b"old"]]
    assert _examples(_build([])) == []


def _days(count: int, user: str = "u", start: int = 0) -> list[dict]:
    """A target a day that are all visible later, behind an event that makes them eligible."""
    first = _event(24 * start - 48, user, item="first")
    return [first] + [_target(24 * (start + i), user, item=f"m{i}") for i in range(count)]


@pytest.mark.parametrize(("count", "targets"), [(97, 10), (20, 20), (21, 20), (5, 20), (50, 1)])
def test_targets_are_at_most_so_many_evenly_spread(count, targets):
    config = dataclasses.replace(CONFIG, targets=targets)
    times = sorted(e["time"][0] for e in _examples(_build(_days(count), config), config))
    places = [(time - NOW) // DAY for time in times]
    assert len(places) == len(set(places)) == min(count, targets)
    step = max(1.0, count / targets)
    gaps = [b - a for a, b in itertools.pairwise(places)]
    assert all(math.floor(step) <= gap <= math.ceil(step) for gap in gaps)
    # Neither end is left out by more than the others are apart.
    assert places[0] <= step
    assert count - 1 - places[-1] <= step


def test_targets_of_a_split_by_time_are_at_most_so_many_of_a_user():
    config = dataclasses.replace(
        CONFIG,
        targets=10,
        split="time",
        validation_start=NOW + 60 * DAY,
        test_start=NOW + 80 * DAY,
    )
    built = _build(_days(100), config)
    assert 0 < sum(table.num_rows for table in built.values()) <= 10


# Splits


def _places(table: pa.Table) -> list[int]:
    return [(row["request_time"][0] - NOW) // DAY for row in table.to_pylist()]


def test_split_by_time_begins_with_its_bounds():
    config = dataclasses.replace(
        CONFIG, split="time", validation_start=NOW + 6 * DAY, test_start=NOW + 8 * DAY
    )
    events = _days(10) + _days(3, "other", 7)
    built = _build(events, config)
    assert sorted(_places(built["train"])) == [0, 1, 2, 3, 4, 5]
    assert sorted(_places(built["validation"])) == [6, 7, 7]
    assert sorted(_places(built["test"])) == [8, 8, 9, 9]
    # A second before the bound is before it.
    shifted = [event | {"time": event["time"] - 1} for event in events]
    assert sorted(_places(_build(shifted, config)["validation"])) == [6, 6, 7, 7]
    assert sorted(_places(_build(shifted, config)["test"])) == [8, 8]


def test_split_last_takes_the_newest_of_each_user_with_the_right_mean():
    counts = {f"user {i}": 1 + i % 12 for i in range(240)}
    events = [event for user, count in counts.items() for event in _days(count, user)]
    held_out = (0.15, 0.25)
    built = _build(events, held_out=held_out)
    places: dict[str, dict[str, list[int]]] = {user: {} for user in counts}
    for split, table in built.items():
        for row in table.to_pylist():
            place = (row["request_time"][0] - NOW) // DAY
            places[row["user"][0].decode()].setdefault(split, []).append(place)
    total = dict.fromkeys(SPLITS, 0)
    for user, count in counts.items():
        parts = [sorted(places[user].get(split, [])) for split in SPLITS]
        assert sum(parts, []) == list(range(count)), "each once, the newest last"
        for share, part in zip(held_out, parts[1:], strict=True):
            assert abs(len(part) - share * count) < 1
        for split, part in zip(SPLITS, parts, strict=True):
            total[split] += len(part)
    whole = sum(counts.values())
    assert abs(total["validation"] / whole - 0.15) < 0.03
    assert abs(total["test"] / whole - 0.25) < 0.03


def test_split_last_with_nothing_held_out_is_all_for_training():
    built = _build(_days(7), held_out=(0.0, 0.0))
    assert [built[split].num_rows for split in SPLITS] == [7, 0, 0]


@settings(max_examples=30, deadline=None)
@given(_histories())
def test_examples_do_not_depend_on_which_other_users_there_are(events):
    config = dataclasses.replace(CONFIG, recent=2)
    together = _build(events, config)
    for user in ("u", "v", "w"):
        alone = _build([event for event in events if event["user"] == user], config)
        for split in SPLITS:
            of_user = [
                e for e in _examples(together[split], config) if e["user"] == [user.encode()]
            ]
            assert _sorted(of_user) == _sorted(_examples(alone[split], config))


@settings(max_examples=30, deadline=None)
@given(_histories(), st.randoms())
def test_examples_do_not_depend_on_the_order_of_rows(events, random):
    config = dataclasses.replace(CONFIG, recent=2, negatives=3, targets=2)
    rows = [event | {"position": place} for place, event in enumerate(events)]
    want = _build(rows, config)
    random.shuffle(rows)
    got = _build(rows, config)
    for split in SPLITS:
        assert _sorted(_examples(got[split], config)) == _sorted(_examples(want[split], config))


def test_dictionary_encoded_columns_are_the_same():
    rng = np.random.default_rng(0)
    events = [
        _target(float(rng.integers(0, 400)), f"user {rng.integers(5)}", item=f"m{rng.integers(9)}")
        for _ in range(60)
    ]
    config = dataclasses.replace(CONFIG, recent=3, negatives=2)
    table = _table(events)
    want = _build(table, config)
    for name in ("item", "action"):
        place = table.schema.get_field_index(name)
        table = table.set_column(place, name, table[name].dictionary_encode())
    got = _build(table, config)
    for split in SPLITS:
        assert _sorted(_examples(got[split], config)) == _sorted(_examples(want[split], config))


# Candidates


def _crowd(users: int = 12, count: int = 9) -> list[dict]:
    """Most events are of one item; the topic tells which item it is."""
    rng = np.random.default_rng(7)
    events = []
    for user in range(users):
        for place in range(count):
            item = "often" if rng.random() < 0.7 else f"m{rng.integers(30)}"
            event = _target(
                30 * place + user / 7, f"user {user}", item=item, topics=[f"of {item}", "t"]
            )
            events.append(event | {"label_watched": 5.0})
    return events


def test_negatives_come_from_the_pool_so_many_and_with_what_is_known_of_them():
    config = dataclasses.replace(CONFIG, negatives=4)
    events = _crowd()
    names = {event["item"].encode() for event in events}
    examples = _examples(_build(events, config), config)
    assert len(examples) == len(_examples(_build(events)))
    drawn = []
    for example in examples:
        (liked, watched), candidates = example["labels"], example["candidates"]
        assert liked == [1.0, 0.0, 0.0, 0.0, 0.0]
        np.testing.assert_equal(watched, [5.0, NAN, NAN, NAN, NAN])
        assert len(candidates) == config.candidates == 5
        for (item,), topics in candidates:
            assert item in names
            assert topics == [b"of " + item, b"t"], "the ids of one event"
        drawn.append(tuple(items[0] for items, _ in candidates[1:]))
    assert len(set(drawn)) > len(drawn) / 4, "not the same for every example"
    # None looks like the target; elsewhere frequent ids come often: 70 % are of one item.
    of = [example["candidates"][0][0][0] for example in examples]
    assert all(target not in items for target, items in zip(of, drawn, strict=True))
    others = [items for target, items in zip(of, drawn, strict=True) if target != b"often"]
    assert 0.5 < np.mean([item == b"often" for items in others for item in items]) < 0.9


def test_negatives_are_drawn_from_the_given_pool_alone():
    config = dataclasses.replace(CONFIG, negatives=6)
    events = [event | {"position": place} for place, event in enumerate(_crowd(4))]
    pool = sampled(
        _table([_target(i, "elsewhere", item=f"p{i}", topics=["p"]) for i in range(5)]), config
    )
    want = _build(events, config, pool=pool)
    drawn = set()
    for example in _examples(want, config):
        assert len(example["candidates"]) == 7
        for items, topics in example["candidates"][1:]:
            assert topics == [b"p"]
            drawn.update(items)
    assert drawn == {b"p0", b"p1", b"p2", b"p3", b"p4"}
    # Again, and for a user alone, the same are drawn.
    again = _build(events, config, pool=pool)
    assert _sorted(_examples(again, config)) == _sorted(_examples(want, config))
    alone = _build([e for e in events if e["user"] == "user 2"], config, pool=pool)
    of_user = [e for e in _examples(want, config) if e["user"] == [b"user 2"]]
    assert of_user
    assert _sorted(_examples(alone, config)) == _sorted(of_user)


def test_negatives_change_nothing_else():
    config = dataclasses.replace(CONFIG, negatives=2)
    plain, drawn = _build(_crowd()), _build(_crowd(), config)
    for split in SPLITS:
        few = {repr((e["user"], e["time"], e["slices"])) for e in _examples(plain[split])}
        assert few == {
            repr((e["user"], e["time"], e["slices"])) for e in _examples(drawn[split], config)
        }


def test_candidates_are_described_by_the_named_ids_only():
    spec = dataclasses.replace(SPEC, candidate=("topics",))
    lists = {one.name for one in example_spec(spec, CONFIG).lists}
    assert "candidate_topics" in lists
    assert "candidate_item" not in lists
    built = build_examples(_table(_days(4)), example_spec(spec, CONFIG), CONFIG, HELD_OUT)
    assert "candidate_item_ids" not in built["train"].column_names


def test_pool_is_the_same_of_parts_and_of_the_whole():
    events = [event | {"position": i} for i, event in enumerate(_crowd(20, 10))]
    for size in (1, 17, 200, 1000):
        config = dataclasses.replace(CONFIG, pool=size)
        whole = sampled(_table(events), config)
        assert whole.num_rows == min(size, 200)
        assert len(set(whole["position"].to_pylist())) == whole.num_rows
        rng = np.random.default_rng(size)
        for parts in (1, 2, 7):
            owner = rng.integers(0, parts, len(events))
            shuffled = [events[i] for i in rng.permutation(len(events))]
            pools = [
                sampled(_table([e for e in shuffled if owner[e["position"]] == k]), config)
                for k in range(parts)
            ]
            assert _rows(joined_pools(pools, config)) == _rows(whole)
            assert _rows(joined_pools(pools[::-1], config)) == _rows(whole)
            nested = [joined_pools(pools[:1], config), *pools[1:]]
            assert _rows(joined_pools(iter(nested), config)) == _rows(whole)


def test_pool_is_a_uniform_sample_of_events():
    events = [_target(i, f"user {i % 10}", item="often" if i % 4 else "rare") for i in range(4000)]
    config = dataclasses.replace(CONFIG, pool=800)
    pool = sampled(_table(events), config)
    share = np.mean([item == b"rare" for item in pool["item"].to_pylist()])
    assert abs(share - 0.25) < 0.06
    assert abs(np.mean(pool["position"].to_numpy()) - 2000) < 150
    assert pool["order"].to_pylist() == sorted(pool["order"].to_pylist())


# Order


def test_in_order_is_by_user_time_and_place():
    rng = np.random.default_rng(3)
    events = [
        _event(int(rng.integers(5)), ["b", "a", "ab", ""][rng.integers(4)], item=f"m{i}")
        | {"position": i}
        for i in range(60)
    ]
    rng.shuffle(events)
    table = in_order(_table(events))
    assert table.column_names == list(TYPES)
    got = [table[name].to_pylist() for name in ("user", "time", "position")]
    got = list(zip(*got, strict=True))
    # Which user comes first is left open; the rows of a user are together.
    first = list(dict.fromkeys(user for user, _, _ in got))
    assert len(first) == 4
    want = [(e["user"].encode(), e["time"], e["position"]) for e in events]
    want.sort(key=lambda row: (first.index(row[0]), *row[1:]))
    assert got == want

    bounds = bounds_of_users(table)
    users = [list(group) for _, group in itertools.groupby(want, key=lambda row: row[0])]
    assert list(bounds) == [0, *itertools.accumulate(map(len, users))]
    parts = list(users_of(table))
    assert [part.num_rows for part in parts] == list(map(len, users))
    assert _rows(pa.concat_tables(parts)) == _rows(table)


def test_no_events_are_of_no_user():
    table = in_order(_table([]))
    assert table.num_rows == 0
    assert list(bounds_of_users(table)) == [0]
    assert list(users_of(table)) == []


def test_events_equal_in_all_but_the_place_are_kept_once():
    event = _event(5, action="view", topics=["x", "y"], label_liked=1.0)
    viewed = _event(6, action="view", duration=NAN, dwell=3.0, topics=[])
    rows = [event, viewed, event, _event(7), viewed, event]
    table = in_order(_table(rows))
    assert table["time"].to_pylist() == [NOW + h * HOUR for h in (5, 6, 7)]
    # The first of them stays.
    assert table["position"].to_pylist() == [0, 1, 3]
    assert _rows(in_order(table)) == _rows(table)


@pytest.mark.parametrize(
    "change",
    [
        {"user": "v"},
        {"time": NOW + 1},
        {"item": "other"},
        {"item": None},
        {"item": ""},
        {"topics": ["t", "u"]},
        {"topics": []},
        {"topics": ["u"]},
        {"action": "share"},
    ],
)
def test_events_that_differ_in_user_time_ids_or_action_are_kept(change):
    event = _event(0)
    for rows in ([event, event | change], [event | change, event]):
        assert in_order(_table(rows)).num_rows == 2


def test_lists_that_join_to_the_same_bytes_are_not_equal():
    rows = [_event(0, topics=topics) for topics in (["ab", "c"], ["a", "bc"], ["abc"], ["abc", ""])]
    assert in_order(_table(rows)).num_rows == 4
    rows = [_event(0, "a", item="bc"), _event(0, "ab", item="c")]
    assert in_order(_table(rows)).num_rows == 2


def test_lists_that_differ_in_their_last_id_are_not_equal():
    rows = [_event(0, topics=["x", "y"]), _event(0, topics=["x", "z"])]
    assert in_order(_table(rows)).num_rows == 2


@pytest.mark.parametrize("missing", [{"item": None}, {"topics": None}, {"topics": [None]}])
def test_duplicates_of_which_an_id_is_missing_are_kept_once(missing):
    assert in_order(_table([_event(0, **missing)] * 2)).num_rows == 1


def test_duplicates_of_a_user_are_not_those_of_another():
    rows = [_event(0, "u"), _event(0, "v"), _event(1, "u")] * 2
    table = in_order(_table(rows))
    assert table["user"].to_pylist().count(b"u") == 2
    assert table["user"].to_pylist().count(b"v") == 1


def test_duplicates_are_kept_once_where_another_event_is_between_them():
    # Of one second, as a log that was written twice has them.
    rows = [_event(0, item="a"), _event(0, item="b")]
    table = in_order(_table(rows + rows))
    assert table["item"].to_pylist() == [b"a", b"b"]


def test_clean_leaves_out_unknown_actions_and_the_future_and_counts_them():
    rows = [
        _event(0),
        _event(1, action="hide"),
        _event(2, action="hide"),
        _event(3, action="view"),
        _event(4, action="block"),
        _event(5, action="share"),
    ]
    kept, left_out = clean(_table(rows), SPEC)
    assert kept["position"].to_pylist() == [0, 3, 5]
    assert left_out == {"unknown action hide": 2, "unknown action block": 1}
    kept, left_out = clean(_table(rows[:1] + rows[3:4] + rows[5:]), SPEC, as_of=NOW + 3 * HOUR)
    assert kept["position"].to_pylist() == [0]
    assert left_out == {"in the future": 2}
    kept, left_out = clean(_table(rows[:1]), SPEC)
    assert kept.num_rows == 1
    assert not left_out


# Specifications and errors


def test_spec_of_examples_names_the_lists_and_the_outcomes():
    config = dataclasses.replace(CONFIG, negatives=2, recent=4)
    spec = example_spec(SPEC, config)
    assert set(spec.lists) == {
        EntryList("slices_items", "item", 3),
        EntryList("slices_topics", "topics", 2),
        EntryList("candidate_item", "item", 3),
        EntryList("candidate_topics", "topics", 3),
        EntryList("recent_item", "item", 1),
        EntryList("recent_topics", "topics", 1),
    }
    assert SPEC.lists == ()
    assert spec.label == "label_liked"
    assert spec.outcome_features == ("label_watched",)
    assert [f.name for f in spec.vocabularies] == ["item", "topics"]
    names = {"user", "request_time", "label_liked", "label_watched"}
    names |= {f"{one.name}_{part}" for one in spec.lists for part in ("ids", "places", "weights")}
    assert {f.name for f in spec.features} <= names
    for table in _build(_days(9), config).values():
        assert set(table.column_names) == names
    assert not [one for one in example_spec(SPEC, CONFIG).lists if one.name.startswith("recent")]


def test_an_id_that_no_list_has_needs_no_vocabulary():
    rules = SliceSpecification(1, (Slice("a", "explicit", "item", "a"),))
    spec = dataclasses.replace(SPEC, candidate=("item",))
    config = TimelineConfig(slices=rules)
    assert [f.name for f in example_spec(spec, config).vocabularies] == ["item"]


def _refused(build, *words: str, error: type[Exception] = ConfigError) -> None:
    with pytest.raises(error) as caught:
        build()
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"targets": 0}, "targets"),
        ({"min_visible": -1}, "min_visible"),
        ({"negatives": -1}, "negatives"),
        ({"pool": 0}, "pool"),
        ({"recent": -1}, "recent"),
        ({"staleness_days": -0.5}, "staleness_days"),
        ({"staleness_days": NAN}, "staleness_days"),
        ({"split": "random"}, "split"),
        ({"split": "time"}, "validation_start"),
        ({"split": "time", "validation_start": 5}, "test_start"),
        ({"split": "time", "validation_start": 5, "test_start": 5}, "test_start"),
        ({"split": "time", "validation_start": 5, "test_start": 3}, "test_start"),
        ({"target": 3}, "targets"),
    ],
)
def test_values_of_a_configuration_are_checked(values, word):
    _refused(lambda: from_mapping(TimelineConfig, values, "data.timeline"), word)


@pytest.mark.parametrize(
    ("values", "without", "words"),
    [
        ({"id": "author"}, {}, ["author"]),
        ({"actions": ("like", "lik")}, {}, ["lik"]),
        ({"dwell": (1.0, 2.0)}, {"dwell": None}, ["dwell"]),
        ({"ratio": (1.0, 2.0)}, {"duration": None}, ["duration"]),
        ({"score": (1.0, 2.0)}, {"dwell": None}, ["dwell"]),
        ({"weight": "watch_score"}, {"duration": None}, ["duration"]),
        ({"value": (1.0, 2.0)}, {"value": None}, ["value"]),
        ({"weight": "value"}, {"value": None}, ["value"]),
        ({"timeline": "implicit"}, {"implicit": ()}, ["implicit"]),
        ({"timeline": "explicit"}, {"actions": ("view",)}, ["explicit"]),
    ],
)
def test_slices_of_what_the_source_lacks_are_refused_by_name(values, without, words):
    rule = Slice(
        **{"name": "my slice", "timeline": "explicit", "id": "item", "table": "a", **values}
    )
    config = TimelineConfig(slices=SliceSpecification(1, (rule,)))
    _refused(lambda: config.check(dataclasses.replace(SPEC, **without)), "my slice", *words)
    CONFIG.check(SPEC)
    if without:
        config.check(SPEC)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"ids": ()}, ["ids"]),
        ({"ids": (Feature("item"), Feature("item"))}, ["item"]),
        ({"ids": (Feature("item", dtype="int64"),)}, ["item"]),
        ({"ids": (Feature("item", "numeric", "float32"),)}, ["item"]),
        ({"actions": ()}, ["actions"]),
        ({"implicit": ("viewed",)}, ["viewed"]),
        ({"binary": (), "regression": (), "happened": ("x", "x")}, ["x", "twice"]),
        ({"regression": ("liked",)}, ["liked"]),
        ({"candidate": ("author",)}, ["author", "item"]),
    ],
)
def test_values_of_a_spec_are_checked(values, words):
    _refused(lambda: dataclasses.replace(SPEC, **values), *words)


def test_a_spec_is_read_from_yaml(tmp_path):
    path = tmp_path / "spec.yaml"
    path.write_text(
        "user: viewer\nids: [{name: video}, {name: topics, multivalent: true}]\n"
        "actions: [like, view]\nimplicit: [view]\nbinary: [liked]\nregression: [watched]\n"
    )
    spec = TimelineSpec.from_yaml(path)
    assert spec.user == "viewer"
    assert [(f.name, f.multivalent) for f in spec.described] == [("video", False), ("topics", True)]
    assert spec.tasks == ("liked", "watched")
    path.write_text(path.read_text().replace("implicit", "implict"))
    _refused(lambda: TimelineSpec.from_yaml(path), "implict", "implicit", str(path))
    _refused(lambda: TimelineSpec.from_yaml(tmp_path / "none.yaml"), "none.yaml")


def test_slices_that_no_example_has_are_refused_by_name():
    events = _days(9)
    train = _build(events)["train"]
    with pytest.raises(InputError) as caught:
        refuse_empty_slices(train, CONFIG)
    message = str(caught.value)
    assert "\n" not in message
    # The daily likes fill three of the five.
    for name in ("topics seen", "watched"):
        assert name in message
    for name in ("explicit", "likes of 3 days", "topics of 7 days"):
        assert name not in message
    events += [_event(1, action="view", dwell=9.0, duration=9.0)]
    refuse_empty_slices(_build(events)["train"], CONFIG)


def test_one_empty_slice_among_those_of_a_table_is_refused():
    rules = (
        Slice("first of table", "explicit", "item", "a"),
        Slice("second of table", "explicit", "item", "a", actions=("share",)),
        Slice("third of table", "explicit", "item", "a", actions=("like",)),
    )
    config = dataclasses.replace(CONFIG, slices=SliceSpecification(1, rules))
    with pytest.raises(InputError) as caught:
        refuse_empty_slices(_build(_days(9), config)["train"], config)
    assert "second of table" in str(caught.value)
    assert "first of table" not in str(caught.value)
    assert "third of table" not in str(caught.value)


def test_tasks_without_a_column_need_negatives():
    spec = TimelineSpec()
    assert spec.tasks == spec.happened == ("event",)
    with pytest.raises(ConfigError, match=r"data.timeline.negatives: must be above 0: the outcome"):
        example_spec(spec, TimelineConfig())
    example_spec(spec, TimelineConfig(negatives=1))
    example_spec(TimelineSpec(binary=("liked",)), TimelineConfig())
    # Embeddings of users need no outcome.
    TimelineConfig().check(spec)
    with pytest.raises(ConfigError, match="happened seen: is not one of the binary tasks"):
        TimelineSpec(binary=("liked",), happened=("seen",))
