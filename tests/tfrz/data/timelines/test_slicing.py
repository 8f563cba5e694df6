"""Slices of timelines against plain loops over events, and the numbers of section (e)."""

from __future__ import annotations

import collections
import dataclasses
import itertools
import math
from fractions import Fraction

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfrz.config import from_mapping
from tfrz.data.timelines.slicing import (
    CHUNK_EVENTS,
    READY_MADE,
    Events,
    Sketch,
    Slice,
    SliceSpecification,
    chunks,
    load_slices,
    merge,
    sketch,
    slice_user,
    totals,
    watch_score,
)
from tfrz.errors import ConfigError, InputError

HOUR = 3600
DAY = 24 * HOUR
NOW = 1_700_000_000
NAN = float("nan")
UNIT = 2**24
CHUNK = 4096


def _event(age_hours: float, explicit: bool = True, **values) -> dict:
    """An event so many hours before `NOW`, in plain Python."""
    event = {
        "time": NOW - round(age_hours * HOUR),
        "explicit": explicit,
        "action": "like" if explicit else "view",
        "item": "m",
        "topics": [],
        "duration": NAN,
        "dwell": NAN,
        "value": NAN,
    }
    assert set(values) <= set(event)
    return event | values


def _view(age_hours: float, duration: float, dwell: float, item: str = "m", **values) -> dict:
    return _event(age_hours, False, duration=duration, dwell=dwell, item=item, **values)


def _bytes(value):
    if isinstance(value, list):
        return [_bytes(one) for one in value]
    return value.encode() if isinstance(value, str) else value


def _table(events: list[dict]) -> pa.Table:
    """The events as the module reads them, in the given order."""
    types = {
        "time": pa.int64(),
        "explicit": pa.bool_(),
        "action": pa.binary(),
        "item": pa.binary(),
        "topics": pa.list_(pa.binary()),
        "duration": pa.float64(),
        "dwell": pa.float64(),
        "value": pa.float64(),
    }
    columns = {
        name: pa.array([_bytes(event[name]) for event in events], kind)
        for name, kind in types.items()
    }
    return pa.table(columns)


def _events(events: list[dict], gamma: float = 0.5) -> Events:
    return Events(_table(events), gamma)


def _spec(*slices: Slice, **values) -> SliceSpecification:
    return SliceSpecification(1, slices, **values)


# The oracle: one event, one slice at a time, in the words of the specification.


def _score(event: dict, gamma: float) -> float | None:
    duration, dwell = event["duration"], event["dwell"]
    if math.isnan(duration) or math.isnan(dwell) or duration <= 0 or dwell < 0:
        return None
    return math.log(dwell + 1) / math.log(gamma * duration + 1)


def _in(number: float | None, bounds: tuple | None) -> bool:
    if bounds is None:
        return True
    if number is None or math.isnan(number):
        return False
    low, high = bounds
    return not (low is not None and number < low) and not (high is not None and number >= high)


def _keeps(rule: Slice, event: dict, as_of: float, spec: SliceSpecification) -> bool:
    if event["explicit"] != (rule.timeline == "explicit"):
        return False
    if rule.actions and event["action"] not in rule.actions:
        return False
    if not _in(event["dwell"], rule.dwell) or not _in(event["value"], rule.value):
        return False
    if not _in(_score(event, spec.gamma), rule.score):
        return False
    if rule.ratio is not None:
        known = event["duration"] > 0 and not math.isnan(event["dwell"])
        if not _in(event["dwell"] / event["duration"] if known else None, rule.ratio):
            return False
    return rule.days is None or as_of - event["time"] <= rule.days * DAY


def _weight(rule: Slice, event: dict, gamma: float) -> float:
    if rule.weight == "one":
        return 1.0
    number = _score(event, gamma) if rule.weight == "watch_score" else event["value"]
    return 0.0 if number is None or math.isnan(number) else number


def _naive(
    spec: SliceSpecification, events: list[dict], as_of: float
) -> dict[str, dict[bytes, int]]:
    """Slice to {id: sum of weights in 2^-24}, of events in order of time."""
    visible = [event for event in events if event["time"] < as_of - spec.gap_hours * HOUR]
    counting = []
    for explicit in (True, False):
        timeline = [event for event in visible if event["explicit"] == explicit]
        first_needed = max(0, len(timeline) - spec.max_events)
        counting += timeline[first_needed - first_needed % CHUNK :]
    result = {}
    for rule in spec.slices:
        sums: dict[bytes, int] = {}
        for event in counting:
            if _keeps(rule, event, as_of, spec):
                ids = event[rule.id]
                for one in ids if isinstance(ids, list) else [ids]:
                    if one:
                        units = round(_weight(rule, event, spec.gamma) * UNIT)
                        sums[one.encode()] = sums.get(one.encode(), 0) + units
        result[rule.name] = {one: units for one, units in sums.items() if units}
    return result


def _plain(spec: SliceSpecification, sketches: dict[str, Sketch]) -> dict[str, dict[bytes, int]]:
    """A sketch in the oracle's form; checks what a sketch promises of itself on the way."""
    result = {rule.name: {} for rule in spec.slices}
    for table, one in sketches.items():
        places = spec.tables[table]
        terms = list(one.terms)
        assert terms == sorted(set(terms))
        assert one.weights.shape == (len(places), len(terms))
        assert one.weights.dtype == np.int64
        assert len(terms), "a table that has nothing is left out"
        assert (one.weights != 0).any(axis=0).all(), "an id that all lack is left out"
        for row, place in enumerate(places):
            result[spec.slices[place].name] = {
                term: int(units)
                for term, units in zip(terms, one.weights[row], strict=True)
                if units
            }
    return result


def _sliced(spec: SliceSpecification, events: list[dict], as_of: float = NOW):
    return _plain(spec, slice_user(spec, _table(events), as_of))


def _ids(spec: SliceSpecification, events: list[dict]) -> dict[str, set[str]]:
    return {name: {one.decode() for one in ids} for name, ids in _sliced(spec, events).items()}


def _same(left: dict[str, Sketch], right: dict[str, Sketch]) -> None:
    """Equal to the bit."""
    assert left.keys() == right.keys()
    for table in left:
        assert list(left[table].terms) == list(right[table].terms)
        assert left[table].weights.dtype == right[table].weights.dtype
        np.testing.assert_array_equal(left[table].weights, right[table].weights)


# Every rule, weight, bucket and type of id that there is.
EVERY = _spec(
    Slice("all explicit", "explicit", "item", "positive"),
    Slice("all implicit", "implicit", "item", "seen"),
    Slice("likes", "explicit", "item", "positive", actions=("like",)),
    Slice("likes of 3 days", "explicit", "item", "positive", actions=("like",), days=3),
    Slice("likes of 7 days", "explicit", "item", "positive", actions=("like",), days=7),
    Slice("not likes", "explicit", "topics", "topics", actions=("share", "save")),
    Slice("skipped", "implicit", "item", "seen", dwell=(None, 3.0)),
    Slice("glanced", "implicit", "topics", "topics", dwell=(3.0, 15.0)),
    Slice("watched", "implicit", "item", "positive", dwell=(15.0, None), days=3),
    Slice("half", "implicit", "item", "seen", ratio=(0.5, 1.0)),
    Slice("held", "implicit", "item", "seen", score=(0.9, None), weight="watch_score"),
    Slice("scored", "implicit", "topics", "topics", weight="watch_score", days=7),
    Slice("valued", "explicit", "item", "valued", weight="value"),
    Slice("dear", "explicit", "item", "valued", value=(4.0, None), days=2.5),
    Slice("cheap", "explicit", "topics", "topics", value=(None, 2.0)),
)

_AGES = st.one_of(
    st.sampled_from([-30, 0, 23, 24, 25, 60, 72, 73, 168, 169, 900]),
    st.integers(-48, 400),
)
_NUMBERS = st.one_of(
    st.sampled_from([NAN, 0.0, 2.0, 3.0, 4.0, 10.0, 15.0, 30.0, -1.0]),
    st.floats(0.125, 100.0, width=32),
)
_VALUES = st.one_of(st.sampled_from([NAN, 0.0, 2.0, 4.0]), st.floats(0.0, 10.0))
_NAMES = st.sampled_from(["a", "b", "c", "ab", "é", "", None])


@st.composite
def _histories(draw, ages=_AGES) -> list[dict]:
    """In order of time."""
    events = []
    for _ in range(draw(st.integers(0, 14))):
        explicit = draw(st.booleans())
        event = _event(
            draw(ages),
            explicit,
            action=draw(
                st.sampled_from(["like", "share", "save", "hide"] if explicit else ["view"])
            ),
            item=draw(_NAMES),
            topics=draw(st.lists(_NAMES, max_size=3, unique=True)),
            duration=draw(_NUMBERS),
            dwell=draw(_NUMBERS),
            value=draw(_VALUES),
        )
        event["time"] += draw(st.sampled_from([0, 0, -1, 1]))
        events.append(event)
    return sorted(events, key=lambda event: event["time"])


def _many(count: int, seed: int = 0, names: int = 500) -> list[dict]:
    """A long history of both timelines, in order of time, the last event just too young."""
    rng = np.random.default_rng(seed)
    ages = np.sort(rng.uniform(23, 2000, count))[::-1]
    explicit = rng.random(count) < 0.4
    item = rng.integers(0, names, count)
    topic = rng.integers(0, 20, (count, 2))
    duration = np.where(rng.random(count) < 0.1, 0.0, rng.lognormal(3, 1, count))
    dwell = rng.lognormal(2, 1.5, count)
    value = rng.uniform(0, 1, count)
    action = rng.integers(0, 3, count)
    return [
        _event(
            ages[i],
            bool(explicit[i]),
            action=("like", "share", "save")[action[i]] if explicit[i] else "view",
            item=f"m{item[i]}",
            topics=sorted({f"t{one}" for one in topic[i]}),
            duration=float(duration[i]),
            dwell=float(dwell[i]),
            value=float(value[i]),
        )
        for i in range(count)
    ]


@settings(max_examples=100, deadline=None)
@given(_histories())
def test_slices_are_those_of_plain_loops(events):
    assert _sliced(EVERY, events) == _naive(EVERY, events, NOW)


@settings(max_examples=30, deadline=None)
@given(_histories(), st.sampled_from([0.0, 1.0, 24.0, 36.5]), st.sampled_from([0.5, 1.0, 2.0]))
def test_gap_and_gamma_are_those_of_the_specification(events, gap_hours, gamma):
    spec = dataclasses.replace(EVERY, gap_hours=gap_hours, gamma=gamma)
    assert _sliced(spec, events) == _naive(spec, events, NOW)


def test_worked_example():
    rules = [
        Slice("like", "explicit", "item", "a", actions=("like",)),
        Slice("share", "explicit", "item", "a", actions=("share",)),
        Slice("dwell<3", "implicit", "item", "a", dwell=(None, 3)),
        Slice("dwell>=15", "implicit", "item", "a", dwell=(15, None)),
        Slice("3-15", "implicit", "item", "a", dwell=(3, 15)),
        Slice("like 3 days", "explicit", "item", "a", actions=("like",), days=3),
        Slice("dwell>=15 7 days", "implicit", "item", "a", dwell=(15, None), days=7),
        Slice("full explicit", "explicit", "item", "a"),
        Slice("full implicit", "implicit", "item", "a"),
    ]
    events = [
        _view(300, 30, 2, "m5"),
        _event(200, item="m1"),
        _view(100, 30, 20, "m6"),
        _view(50, 10, 16, "m7"),
        _event(30, action="share", item="m2"),
        _event(26, item="m3"),
        _event(10, item="m4"),
        _view(5, 10, 9, "m8"),
    ]
    assert _ids(_spec(*rules), events) == {
        "like": {"m1", "m3"},
        "share": {"m2"},
        "dwell<3": {"m5"},
        "dwell>=15": {"m6", "m7"},
        "3-15": set(),
        "like 3 days": {"m3"},
        "dwell>=15 7 days": {"m6", "m7"},
        "full explicit": {"m1", "m2", "m3"},
        "full implicit": {"m5", "m6", "m7"},
    }


# (e) 1


@pytest.mark.parametrize("days", [None, 3, 7])
@settings(max_examples=30, deadline=None)
@given(events=_histories())
def test_invariant_1_ranges_of_dwell_time_are_a_partition_of_the_implicit_timeline(days, events):
    for number, event in enumerate(events):
        event.update(item=f"m{number}", dwell=abs(event["dwell"]))
        if math.isnan(event["dwell"]):
            event["dwell"] = 0.0
    spec = _spec(
        Slice("[0,3)", "implicit", "item", "a", dwell=(0, 3), days=days),
        Slice("[3,15)", "implicit", "item", "b", dwell=(3, 15), days=days),
        Slice("[15,)", "implicit", "item", "c", dwell=(15, None), days=days),
        Slice("all", "implicit", "item", "d", days=days),
    )
    slices = _sliced(spec, events)
    parts = [set(slices[name]) for name in ("[0,3)", "[3,15)", "[15,)")]
    assert set.union(*parts) == set(slices["all"])
    counts = totals(spec, slice_user(spec, _table(events), NOW))
    assert sum(map(len, parts)) == len(slices["all"]) == counts[3] == sum(counts[:3])
    visible = [e for e in events if not e["explicit"] and NOW - e["time"] > DAY]
    assert counts[3] == sum(days is None or NOW - e["time"] <= days * DAY for e in visible)


@pytest.mark.parametrize("days", [None, 3, 7])
@settings(max_examples=30, deadline=None)
@given(events=_histories())
def test_invariant_1_actions_are_a_partition_of_the_explicit_timeline(days, events):
    for number, event in enumerate(events):
        event["item"] = f"m{number}"
    actions = ("like", "share", "save", "hide")
    spec = _spec(
        *(Slice(a, "explicit", "item", "a", actions=(a,), days=days) for a in actions),
        Slice("two", "explicit", "item", "a", actions=("like", "share"), days=days),
        Slice("all", "explicit", "item", "a", days=days),
    )
    slices = _sliced(spec, events)
    assert set.union(*(set(slices[a]) for a in actions)) == set(slices["all"])
    assert sum(len(slices[a]) for a in actions) == len(slices["all"])
    assert set(slices["two"]) == set(slices["like"]) | set(slices["share"])


def test_invariant_1_bounds_belong_to_the_upper_range():
    below = [float(np.nextafter(3, 0)), float(np.nextafter(15, 0))]
    dwells = [0.0, below[0], 3.0, below[1], 15.0, 1e9]
    events = [_view(50, 30, dwell, f"m{i}") for i, dwell in enumerate(dwells)]
    spec = _spec(
        Slice("negative", "implicit", "item", "negative", dwell=(0, 3)),
        Slice("neither", "implicit", "item", "neither", dwell=(3, 15)),
        Slice("positive", "implicit", "item", "positive", dwell=(15, None)),
    )
    assert _ids(spec, events) == {
        "negative": {"m0", "m1"},
        "neither": {"m2", "m3"},
        "positive": {"m4", "m5"},
    }


def test_invariant_1_timelines_are_apart():
    # The same item, action and numbers in both: only the timeline tells them apart.
    same = {"action": "like", "item": "m", "duration": 10.0, "dwell": 5.0, "value": 1.0}
    spec = _spec(
        Slice("explicit", "explicit", "item", "a", actions=("like",), dwell=(1, 9)),
        Slice("implicit", "implicit", "item", "a", actions=("like",), dwell=(1, 9)),
    )
    assert _ids(spec, [_event(50, True, **same)]) == {"explicit": {"m"}, "implicit": set()}
    assert _ids(spec, [_event(50, False, **same)]) == {"explicit": set(), "implicit": {"m"}}
    both = _sliced(spec, [_event(50, True, **same), _event(49, False, **same)])
    assert both == {"explicit": {b"m": UNIT}, "implicit": {b"m": UNIT}}


# (e) 2


@settings(max_examples=40, deadline=None)
@given(_histories())
def test_invariant_2_days_are_nested(events):
    lengths = (2, 3, 7, None)
    spec = _spec(
        *(Slice(f"likes {d}", "explicit", "item", "a", days=d) for d in lengths),
        *(
            Slice(f"w {d}", "implicit", "topics", "b", days=d, weight="watch_score")
            for d in lengths
        ),
    )
    slices = _sliced(spec, events)
    for kind in ("likes", "w"):
        for short, long in itertools.pairwise(lengths):
            inner, outer = slices[f"{kind} {short}"], slices[f"{kind} {long}"]
            assert all(units <= outer[one] for one, units in inner.items())


def test_days_are_after_the_gap_up_to_and_with_the_last_second():
    seconds = {
        "24 h": DAY,
        "a second over 24 h": DAY + 1,
        "a second under 72 h": 3 * DAY - 1,
        "72 h": 3 * DAY,
        "a second over 72 h": 3 * DAY + 1,
        "168 h": 7 * DAY,
        "a second over 168 h": 7 * DAY + 1,
    }
    events = [_event(0, item=name) | {"time": NOW - age} for name, age in seconds.items()][::-1]
    spec = _spec(
        *(Slice(f"{d}", "explicit", "item", "a", days=d) for d in (3, 7)),
        Slice("full", "explicit", "item", "a"),
    )
    names = list(seconds)
    assert _ids(spec, events) == {
        "3": set(names[1:4]),
        "7": set(names[1:6]),
        "full": set(names[1:]),
    }


def test_bucket_is_measured_from_the_time_asked_for():
    spec = _spec(Slice("3", "explicit", "item", "a", days=3))
    event = [_event(0, item="m")]
    for hours, seen in ((24, False), (25, True), (72, True), (73, False)):
        assert bool(_sliced(spec, event, NOW + hours * HOUR)["3"]) is seen


def test_buckets_are_the_days_that_occur_in_seconds():
    assert EVERY.buckets == (2.5 * DAY, 3 * DAY, 7 * DAY)
    assert _spec(Slice("a", "explicit", "item", "a")).buckets == ()


# (e) 3


@settings(max_examples=50, deadline=None)
@given(_histories(), _histories(ages=st.integers(-100, 24)))
def test_invariant_3_events_within_the_gap_and_in_the_future_change_no_bit(events, young):
    young = [event for event in young if event["time"] >= NOW - DAY]
    old = [event for event in events if event["time"] < NOW - DAY]
    by_time = sorted(old + young, key=lambda event: event["time"])
    want = slice_user(EVERY, _table(old), NOW)
    _same(slice_user(EVERY, _table(by_time), NOW), want)
    _same(slice_user(EVERY, _table(events), NOW), want)
    for one in range(len(by_time)):
        if by_time[one] in young:
            _same(slice_user(EVERY, _table(by_time[:one] + by_time[one + 1 :]), NOW), want)


def test_invariant_3_holds_for_every_slice_of_a_full_timeline():
    old = [e for e in _many(9000, seed=3) if e["time"] < NOW - DAY]
    spec = dataclasses.replace(EVERY, max_events=1000)
    want = slice_user(spec, _table(old), NOW)
    assert (totals(spec, want)[[0, 1, 2, 3, 5, 8, 10, 12]] > 0).all()
    young = [dict(event, time=NOW - DAY + i) for i, event in enumerate(_many(5000, seed=4))]
    _same(slice_user(spec, _table(old + young), NOW), want)


@pytest.mark.parametrize("seconds", [DAY, DAY - 1, 0, -1])
def test_invariant_3_an_invisible_event_pushes_no_chunk_out(seconds):
    spec = _spec(Slice("s", "explicit", "item", "a"), max_events=1)
    old = [_event(900, item=f"m{i}") for i in range(4096)]
    young = _event(0, item="young") | {"time": NOW - seconds}
    want = slice_user(spec, _table(old), NOW)
    assert totals(spec, want) == [4096]
    _same(slice_user(spec, _table([*old, young]), NOW), want)
    # One that is visible does.
    young["time"] = NOW - DAY - 1
    assert _sliced(spec, [*old, young])["s"] == {b"young": UNIT}


def test_invariant_3_an_event_exactly_24_hours_old_is_invisible():
    event = _event(24, action="like", item="m", value=5.0, topics=["t"])
    view = _view(24, 10.0, 20.0, "m", topics=["t"])
    for one in (event, view):
        assert not slice_user(EVERY, _table([one]), NOW)
        assert not slice_user(EVERY, _table([one]), NOW - 1)
        assert slice_user(EVERY, _table([one]), NOW + 1)
        assert slice_user(EVERY, _table([one]), NOW + 0.5)
        assert not sketch(EVERY, _events([one]), NOW)
        assert sketch(EVERY, _events([one]), NOW + 1)


# (e) 4


def test_invariant_4_merge_of_chunks_of_70_000_events_is_the_whole_to_the_bit():
    rng = np.random.default_rng(0)
    count = 70_000
    names = np.array([b"m%d" % i for i in range(3000)], object)
    explicit = rng.random(count) < 0.5
    table = pa.table(
        {
            "time": pa.array(NOW - np.sort(rng.integers(DAY, 300 * DAY, count))[::-1]),
            "explicit": pa.array(explicit),
            "action": pa.array([b"like"] * count, pa.binary()),
            "item": pa.array(names[rng.integers(0, 3000, count)], pa.binary()),
            "duration": pa.array(rng.lognormal(3, 1, count)),
            "dwell": pa.array(rng.lognormal(2, 1, count)),
            "value": pa.array(rng.random(count)),
        }
    )
    spec = _spec(
        Slice("count", "explicit", "item", "a"),
        Slice("value", "explicit", "item", "a", weight="value"),
        Slice("score", "implicit", "item", "b", weight="watch_score", dwell=(3, None)),
        Slice("score of 30 days", "implicit", "item", "b", weight="watch_score", days=30),
        max_events=count,
    )
    whole = slice_user(spec, table, NOW)
    _same(sketch(spec, Events(table, spec.gamma), NOW), whole)

    parts = [
        sketch(spec, Events(table.take(pa.array(places)), spec.gamma), NOW)
        for _, _, places in chunks(explicit)
    ]
    assert len(parts) == sum(math.ceil(n / CHUNK) for n in (explicit.sum(), (~explicit).sum()))
    for seed in range(3):
        shuffled = [parts[i] for i in np.random.default_rng(seed).permutation(len(parts))]
        _same(merge(shuffled), whole)
        half = merge([merge(shuffled[:5]), merge(shuffled[5:])])
        _same(half, whole)
        one_by_one: dict[str, Sketch] = {}
        for part in shuffled:
            one_by_one = merge([part, one_by_one])
        _same(one_by_one, whole)
    cuts = [0, 1, 2, 5000, 5001, 33_333, 69_999, count]
    odd = [
        sketch(spec, Events(table.slice(a, b - a), spec.gamma), NOW)
        for a, b in itertools.pairwise(cuts)
    ]
    _same(merge(odd), whole)
    _same(merge(odd[::-1]), whole)

    # Against exact fractions, and the weighted mean of vectors against a plain sum.
    exact: dict[bytes, Fraction] = {}
    visible = np.asarray(table["time"]) < NOW - DAY
    kept = visible & explicit
    values, items = np.asarray(table["value"])[kept], table["item"].to_pylist()
    items = [items[i] for i in np.flatnonzero(kept)]
    for item, value in zip(items, values, strict=True):
        exact[item] = exact.get(item, Fraction(0)) + Fraction(float(value))
    times, one = collections.Counter(items), whole["a"]
    assert list(one.terms) == sorted(exact)
    for term, value in zip(one.terms, one.floats[1], strict=True):
        # Half a unit for each of the id's events.
        assert abs(Fraction(float(value)) - exact[term]) * UNIT <= Fraction(times[term], 2)
    vectors = dict(zip(names, rng.normal(size=(3000, 4)), strict=True))
    pooled = one.floats[1] @ np.stack([vectors[t] for t in one.terms]) / one.floats[1].sum()
    want = sum(v * vectors[i] for v, i in zip(values, items, strict=True)) / values.sum()
    np.testing.assert_allclose(pooled, want, atol=1e-8)


@settings(max_examples=40, deadline=None)
@given(_histories(), st.lists(st.integers(0, 3), min_size=14, max_size=14), st.randoms())
def test_invariant_4_any_parts_in_any_order_are_the_whole(events, owner, random):
    parts = [
        sketch(EVERY, _events([e for e, o in zip(events, owner, strict=False) if o == k]), NOW)
        for k in range(4)
    ]
    random.shuffle(parts)
    _same(merge(parts), slice_user(EVERY, _table(events), NOW))
    _same(merge([merge(parts[:1]), merge(parts[1:])]), merge(parts))


def test_invariant_4_ids_that_cancel_or_lack_leave_no_trace():
    assert merge([]) == {}
    assert merge([{}, {}]) == {}
    part = sketch(EVERY, _events([_event(50, item="a", value=2.0)]), NOW)
    _same(merge([part]), part)
    _same(merge([{}, part]), part)


@settings(max_examples=40, deadline=None)
@given(_histories())
def test_invariant_4_slices_with_and_without_a_bucket_add_up_to_all(events):
    events_of = _events(events)
    with_bucket = sketch(EVERY, events_of, NOW, bucketed=True)
    without = sketch(EVERY, events_of, NOW, bucketed=False)
    _same(merge([with_bucket, without]), sketch(EVERY, events_of, NOW))
    _same(merge([with_bucket, without]), sketch(EVERY, events_of, NOW, bucketed=None))
    whole = _naive(EVERY, events, NOW)
    for part, bucketed in ((with_bucket, True), (without, False)):
        assert _plain(EVERY, part) == {
            rule.name: whole[rule.name] if (rule.days is not None) == bucketed else {}
            for rule in EVERY.slices
        }


def test_grid_has_4096_events_of_a_timeline_from_the_oldest_on():
    assert CHUNK_EVENTS == CHUNK
    rng = np.random.default_rng(1)
    explicit = rng.random(12_000) < 0.7
    seen: dict[bool, list[int]] = {True: [], False: []}
    numbers: dict[bool, list[int]] = {True: [], False: []}
    for timeline, number, places in chunks(explicit):
        assert number * CHUNK == len(seen[bool(timeline)])
        assert 1 <= len(places) <= CHUNK
        numbers[bool(timeline)].append(number)
        seen[bool(timeline)] += [int(place) for place in places]
    for timeline in (True, False):
        assert seen[timeline] == [i for i in range(12_000) if explicit[i] == timeline]
        assert numbers[timeline] == list(range(math.ceil(len(seen[timeline]) / CHUNK)))
    assert list(chunks(np.zeros(0, bool))) == []
    assert [(bool(t), n, list(p)) for t, n, p in chunks(np.array([False]))] == [(False, 0, [0])]


@pytest.mark.parametrize("limit", [1, 4095, 4096, 4097, 35_000])
def test_first_chunk_is_that_of_the_oldest_event_that_counts(limit):
    spec = _spec(Slice("a", "explicit", "item", "a"), max_events=limit)
    for visible in (
        0,
        1,
        4095,
        4096,
        4097,
        8191,
        8192,
        8193,
        35_000,
        35_001,
        39_095,
        39_096,
        70_000,
    ):
        first = spec.first_chunk(visible)
        want = 0 if visible <= limit else (visible - limit) // CHUNK
        assert first == want
        seen = visible - first * CHUNK
        assert min(visible, limit) <= seen <= limit + CHUNK - 1


@pytest.mark.parametrize("limit", [1, 3000, 4096, 5000])
def test_only_whole_chunks_with_the_newest_events_count(limit):
    events = _many(16_000, seed=5)
    spec = dataclasses.replace(EVERY, max_events=limit)
    got = slice_user(spec, _table(events), NOW)
    assert _plain(spec, got) == _naive(spec, events, NOW)
    counts = totals(spec, got)[:2]
    for count, explicit in zip(counts, (True, False), strict=True):
        visible = sum(e["explicit"] == explicit and NOW - e["time"] > DAY for e in events)
        assert min(limit, visible) <= count <= limit + CHUNK - 1
        assert (visible - count) % CHUNK == 0


def test_the_grid_is_of_each_timeline_apart():
    # 5,000 explicit events do not push out the one impression that is older than all of them.
    events = [_view(1000, 10, 5, "old")] + [_event(900, item=f"m{i}") for i in range(5000)]
    spec = _spec(
        Slice("seen", "implicit", "item", "a"),
        Slice("done", "explicit", "item", "a"),
        max_events=10,
    )
    slices = _ids(spec, events)
    assert slices["seen"] == {"old"}
    assert slices["done"] == {f"m{i}" for i in range(4096, 5000)}


# (e) 5


@settings(max_examples=40, deadline=None)
@given(_histories(), st.randoms())
def test_invariant_5_order_of_events_changes_no_bit(events, random):
    want = slice_user(EVERY, _table(events), NOW)
    shuffled = list(events)
    random.shuffle(shuffled)
    _same(sketch(EVERY, _events(shuffled), NOW), want)
    # In order of time, but those of the same second in any.
    for event in events:
        event["time"] -= event["time"] % (4 * DAY)
    shuffled.sort(key=lambda event: event["time"])
    _same(slice_user(EVERY, _table(shuffled), NOW), slice_user(EVERY, _table(events), NOW))


def test_invariant_5_order_within_a_chunk_of_a_full_timeline_changes_no_bit():
    events = [_event(100, item=f"m{i % 700}", value=i / 7) for i in range(8192)]
    spec = _spec(
        Slice("a", "explicit", "item", "a", weight="value"),
        Slice("b", "explicit", "item", "a", days=7),
        max_events=4096,
    )
    want = slice_user(spec, _table(events), NOW)
    assert totals(spec, want)[1] == 4096
    rng = np.random.default_rng(0)
    order = [*rng.permutation(4096), *(4096 + rng.permutation(4096))]
    _same(slice_user(spec, _table([events[i] for i in order]), NOW), want)


# (e) 6


def test_invariant_6_equal_weights_are_so_many_times_the_count():
    events = [_event(100 - i, item=f"m{i % 3}", value=2.5) for i in range(10)]
    spec = _spec(
        Slice("one", "explicit", "item", "a"),
        Slice("value", "explicit", "item", "a", weight="value"),
        Slice("none", "explicit", "item", "a", actions=("hide",)),
        Slice("none at all", "implicit", "item", "b"),
    )
    got = slice_user(spec, _table(events), NOW)
    assert set(got) == {"a"}
    np.testing.assert_array_equal(got["a"].floats[0], [4, 3, 3])
    np.testing.assert_array_equal(got["a"].floats[1], [10, 7.5, 7.5])
    np.testing.assert_array_equal(got["a"].floats[2], [0, 0, 0])
    counts = totals(spec, got)
    assert counts.dtype == np.float64
    np.testing.assert_array_equal(counts, [10, 25, 0, 0])
    np.testing.assert_array_equal(totals(spec, {}), np.zeros(4))


def test_entries_are_what_is_not_0_by_slice():
    spec = _spec(
        Slice("likes", "explicit", "item", "a", actions=("like",)),
        Slice("seen", "implicit", "item", "b"),
        Slice("value", "explicit", "item", "a", weight="value"),
    )
    assert spec.tables == {"a": (0, 2), "b": (1,)}
    assert spec.table_ids == {"a": "item", "b": "item"}
    events = [
        _event(50, item="x", value=0.1),
        _event(49, item="b", action="share", value=3.0),
        _event(48, item="x"),
    ]
    places, terms, weights = slice_user(spec, _table(events), NOW)["a"].entries()
    assert weights.dtype == np.float32
    assert list(zip(places, terms, strict=True)) == [(0, b"x"), (1, b"b"), (1, b"x")]
    np.testing.assert_array_equal(weights, np.float32([2, 3, round(0.1 * UNIT) / UNIT]))


# (e) 7


def test_invariant_7_watch_scores():
    got = watch_score([3, 15, 15, 60, 0], [10, 10, 60, 60, 30], 0.5)
    assert got.dtype == np.float64
    np.testing.assert_allclose(got, [0.773706, 1.547411, 0.807396, 1.197114, 0], atol=5e-7)
    np.testing.assert_array_equal(got, watch_score([3, 15, 15, 60, 0], [10, 10, 60, 60, 30]))
    lengths = np.float64([0.25, 1, 7, 59.5, 3600, 1e6])
    np.testing.assert_array_equal(watch_score(lengths, lengths, 1.0), np.ones(6))


@settings(max_examples=100, deadline=None)
@given(
    st.floats(0, 1e5), st.floats(0, 1e5), st.floats(0.01, 1e5), st.floats(0.01, 1e5),
    st.sampled_from([0.1, 0.5, 1.0, 3.0]),
)  # fmt: skip
def test_invariant_7_watch_score_rises_with_dwell_and_falls_with_duration(a, b, c, d, gamma):
    (less, more), (short, long) = sorted((a, b)), sorted((c, d))
    scores = watch_score([less, more, more], [short, short, long], gamma)
    assert scores[0] <= scores[1]
    assert scores[2] <= scores[1]
    assert not np.isnan(scores).any()
    if more > less + 1e-3:
        assert scores[0] < scores[1]
    if long > short + 1e-3 and more > 1e-3:
        assert scores[2] < scores[1]


def test_invariant_7_there_is_no_score_without_a_duration_or_a_dwell_time():
    dwell = [3, 0, 3, 3, NAN, -1, -0.5, NAN, -1]
    duration = [0, 0, -5, NAN, 10, 10, 10, NAN, 0]
    with np.errstate(all="raise"):
        got = watch_score(dwell, duration)
    np.testing.assert_array_equal(got, [NAN] * 9)


@pytest.mark.parametrize(("dwell", "duration"), [(3.0, 1e-17), (3.0, 1e-12), (float("inf"), 10.0)])
def test_invariant_7_a_score_beyond_all_measure_makes_no_negative_weight(dwell, duration):
    spec = _spec(Slice("a", "implicit", "item", "a", weight="watch_score"))
    try:
        sums = totals(spec, slice_user(spec, _table([_view(50, duration, dwell)] * 2), NOW))
    except InputError:
        return
    assert (sums >= 0).all()


def test_invariant_7_events_without_a_score_are_outside_of_every_range_and_weigh_nothing():
    bad = [(0.0, 3.0), (NAN, 3.0), (10.0, NAN), (10.0, -1.0), (-1.0, 3.0)]
    events = [_view(50, duration, dwell, f"m{i}") for i, (duration, dwell) in enumerate(bad)]
    spec = _spec(
        Slice("weighed", "implicit", "item", "a", weight="watch_score"),
        Slice("below", "implicit", "item", "a", score=(None, 1e9)),
        Slice("above", "implicit", "item", "a", score=(-1e9, None)),
        Slice("both open", "implicit", "item", "a", score=(None, None)),
        Slice("all", "implicit", "item", "b"),
    )
    assert _ids(spec, events) == {
        "weighed": set(),
        "below": set(),
        "above": set(),
        "both open": set(),
        "all": {"m0", "m1", "m2", "m3", "m4"},
    }


def test_invariant_7_score_as_threshold_and_as_weight():
    events = [_view(50, 10, 3, "a"), _view(49, 10, 15, "b"), _view(48, 60, 15, "b")]
    spec = _spec(Slice("s", "implicit", "item", "a", score=(0.8, None), weight="watch_score"))
    got = slice_user(spec, _table(events), NOW)["a"]
    assert list(got.terms) == [b"b"]
    np.testing.assert_allclose(got.floats[0], [1.547411 + 0.807396], atol=1e-6)


# Ranges and weights


@pytest.mark.parametrize("name", ["dwell", "ratio", "value"])
def test_an_event_without_the_number_is_outside_of_every_range(name):
    unknown = _view(50, NAN, NAN, value=NAN)
    known = _view(49, 10.0, 5.0, "known", value=5.0)
    for bounds in ((None, None), (None, 100.0), (0.0, None), (-1e9, 1e9)):
        spec = _spec(Slice("s", "implicit", "item", "a", **{name: bounds}))
        assert _ids(spec, [unknown, known]) == {"s": {"known"}}


def test_ratio_needs_a_duration():
    events = [_view(50, d, 5.0, f"m{i}") for i, d in enumerate([0.0, -5.0, NAN, 10.0, 5.0])]
    spec = _spec(
        Slice("any", "implicit", "item", "a", ratio=(None, None)),
        Slice("half", "implicit", "item", "a", ratio=(0.5, 1.0)),
        Slice("whole", "implicit", "item", "a", ratio=(1.0, None)),
    )
    assert _ids(spec, events) == {"any": {"m3", "m4"}, "half": {"m3"}, "whole": {"m4"}}


def test_value_ranges_are_closed_below_and_open_above():
    events = [_event(50, item=f"m{v}", value=v) for v in (0.0, 1.0, 2.0, 3.5, 4.0, 5.0)]
    spec = _spec(
        Slice("low", "explicit", "item", "a", value=(None, 2)),
        Slice("middle", "explicit", "item", "a", value=(2, 4)),
        Slice("high", "explicit", "item", "a", value=(4, None)),
    )
    assert _ids(spec, events) == {
        "low": {"m0.0", "m1.0"},
        "middle": {"m2.0", "m3.5"},
        "high": {"m4.0", "m5.0"},
    }


def test_value_weights_are_added_and_missing_ones_weigh_nothing():
    values = {"a": [1.5, 2.0], "b": [NAN], "c": [0.0], "d": [NAN, 3.0]}
    events = [_event(50, item=item, value=v) for item, vs in values.items() for v in vs]
    spec = _spec(Slice("s", "explicit", "item", "a", weight="value"))
    assert _sliced(spec, events)["s"] == {b"a": 7 * UNIT // 2, b"d": 3 * UNIT}


@settings(max_examples=100, deadline=None)
@given(st.floats(0, 1000))
def test_weights_are_rounded_to_the_nearest_2_to_the_minus_24(value):
    rule = Slice("s", "explicit", "item", "a", weight="value")
    weights = _events([_event(50, value=value)]).weights(rule)
    assert weights.shape == (1,)
    assert weights[0] == int(weights[0])
    assert abs(Fraction(int(weights[0])) - Fraction(value) * UNIT) <= Fraction(1, 2)


def test_a_weight_that_rounds_to_nothing_leaves_its_id_out():
    spec = _spec(Slice("s", "explicit", "item", "a", weight="value"))
    assert not slice_user(spec, _table([_event(50, value=2.0**-26)] * 100), NOW)
    assert _sliced(spec, [_event(50, value=0.75 * 2.0**-24)] * 3) == {"s": {b"m": 3}}


def test_weights_of_many_events_do_not_drift():
    events = [_event(50, value=0.1)] * 5000
    spec = _spec(Slice("s", "explicit", "item", "a", weight="value"))
    assert _sliced(spec, events)["s"] == {b"m": 5000 * round(0.1 * UNIT)}


def test_invariant_4_sums_of_large_amounts_do_not_depend_on_order_or_parts():
    # Amounts in dong or rupiah: their sum has more units than float64 has whole numbers.
    events = [_event(50, value=v) for v in (2.0**29, 2.0**-24, 2.0**-24, 2.0**-24)]
    spec = _spec(Slice("s", "explicit", "item", "a", weight="value"))
    want = {b"m": 2**53 + 3}
    assert _sliced(spec, events)["s"] == want
    assert _sliced(spec, events[::-1])["s"] == want
    parts = [sketch(spec, _events([event]), NOW) for event in events]
    assert _plain(spec, merge(parts))["s"] == want
    assert _plain(spec, merge(parts[::-1]))["s"] == want


@pytest.mark.parametrize("largest", [1.0, 2.0**20, 2.0**26])
def test_invariant_4_sums_of_any_amounts_are_exact(largest):
    rng = np.random.default_rng(0)
    values = rng.uniform(0, largest, 3000)
    events = [_event(50, item=f"m{i % 2}", value=float(v)) for i, v in enumerate(values)]
    spec = _spec(Slice("s", "explicit", "item", "a", weight="value"))
    assert _sliced(spec, events) == _naive(spec, events, NOW)
    parts = [sketch(spec, _events(events[i : i + 700]), NOW) for i in range(0, 3000, 700)]
    assert _plain(spec, merge(parts)) == _naive(spec, events, NOW)


def test_an_amount_too_large_for_the_sum_is_named():
    spec = _spec(Slice("my slice", "explicit", "item", "a", weight="value"))
    table = _table([_event(50, value=1e12)])
    _refused(InputError, lambda: slice_user(spec, table, NOW), "my slice")
    # Of values that fit, more than their sum can hold.
    table = _table([_event(50, value=2.0**36)] * 9)
    _refused(InputError, lambda: slice_user(spec, table, NOW), "my slice")
    # A slice that only counts does not mind.
    count = _spec(Slice("s", "explicit", "item", "a", value=(5.0, None)))
    assert _sliced(count, [_event(50, value=1e12)])["s"] == {b"m": UNIT}


def test_a_watch_score_weighs_16_384_at_most():
    spec = _spec(Slice("s", "implicit", "item", "a", weight="watch_score"))
    assert _sliced(spec, [_view(50, 1e-12, 3.0)])["s"] == {b"m": 16_384 * UNIT}
    got = _sliced(spec, [_view(50, 1e-3, 3.0)])["s"][b"m"] / UNIT
    assert got == pytest.approx(math.log(4) / math.log1p(0.0005))


@pytest.mark.parametrize("value", [1e12, float("inf"), -5.0])
def test_an_amount_too_large_for_the_sum_is_refused_or_kept_but_never_negative(value):
    spec = _spec(Slice("s", "explicit", "item", "a", weight="value"))
    events = [_event(50, value=value), _event(49, value=value)]
    try:
        weights = _events(events).weights(spec.slices[0])
        sums = totals(spec, slice_user(spec, _table(events), NOW))
    except InputError:
        return
    assert (weights >= 0).all()
    assert (sums >= 0).all()


# Ids


def test_every_id_of_a_list_counts_and_missing_ones_are_left_out():
    lists = [["x", "y"], [], None, ["", None, "x"], ["z"], [None], [""]]
    events = [_event(100 - i, topics=ids) for i, ids in enumerate(lists)]
    spec = _spec(Slice("s", "explicit", "topics", "a"))
    assert _sliced(spec, events)["s"] == {b"x": 2 * UNIT, b"y": UNIT, b"z": UNIT}
    rows, codes, terms = _events(events).ids("topics")
    assert list(terms) == [b"x", b"y", b"z"]
    pairs = sorted((int(row), terms[code]) for row, code in zip(rows, codes, strict=True))
    assert pairs == [(0, b"x"), (0, b"y"), (3, b"x"), (4, b"z")]


def test_weights_go_to_every_id_of_a_list():
    events = [_event(50, topics=["x", "y"], value=1.5), _event(49, topics=["y"], value=0.25)]
    spec = _spec(Slice("s", "explicit", "topics", "a", weight="value"))
    assert _sliced(spec, events)["s"] == {b"x": 3 * UNIT // 2, b"y": 7 * UNIT // 4}


def test_single_ids_that_are_missing_or_empty_are_left_out():
    events = [_event(50, item=item) for item in ("a", "", None, "b", "a")]
    spec = _spec(Slice("s", "explicit", "item", "a"))
    assert _sliced(spec, events)["s"] == {b"a": 2 * UNIT, b"b": UNIT}
    assert not slice_user(spec, _table([_event(50, item=None), _event(49, item="")]), NOW)


def test_ids_of_any_bytes_in_the_order_of_their_bytes():
    names = [b"\xff\x00", b"\x00", b"a\x00", b"a", b"Z", "é".encode(), b"a\x00b", b"\xff"]
    table = _table([_event(50)] * len(names))
    place = table.schema.get_field_index("item")
    table = table.set_column(place, "item", pa.array(names, pa.binary()))
    spec = _spec(Slice("s", "explicit", "item", "a"))
    got = slice_user(spec, table, NOW)["a"]
    assert list(got.terms) == sorted(names)
    np.testing.assert_array_equal(got.floats, np.ones((1, len(names))))


def _replaced(table: pa.Table, name: str, column) -> pa.Table:
    return table.set_column(table.schema.get_field_index(name), name, column)


@settings(max_examples=40, deadline=None)
@given(_histories())
def test_dictionary_encoded_ids_are_the_same(events):
    table = _table(events)
    want = slice_user(EVERY, table, NOW)
    for name in ("item", "action"):
        table = _replaced(table, name, table[name].dictionary_encode())
    _same(slice_user(EVERY, table, NOW), want)
    _same(sketch(EVERY, Events(table, EVERY.gamma), NOW), want)


def test_dictionaries_may_repeat_hold_what_is_unused_and_differ_between_parts():
    spec = _spec(Slice("s", "explicit", "item", "a", actions=("like",)))

    def coded(codes, terms):
        return pa.DictionaryArray.from_arrays(
            pa.array(codes, pa.int32()), pa.array(terms, pa.binary())
        )

    parts = [
        coded([0, 1, 2, None, 3, 3], [b"b", b"a", b"b", b"", b"unused"]),
        coded([0, 0, 1], [b"a", b"c"]),
    ]
    table = _table([_event(50)] * 9)
    table = _replaced(table, "item", pa.chunked_array(parts))
    got = slice_user(spec, table, NOW)["a"]
    assert list(got.terms) == [b"a", b"b", b"c"]
    np.testing.assert_array_equal(got.floats, [[3, 2, 1]])


def test_a_dictionary_that_repeats_a_term_makes_it_one_id():
    codes = pa.array([0, 1, 2, None, 3], pa.int32())
    terms = pa.array([b"b", b"a", b"b", b""], pa.binary())
    table = _table([_event(50)] * 5)
    table = _replaced(table, "item", pa.DictionaryArray.from_arrays(codes, terms))
    spec = _spec(Slice("s", "explicit", "item", "a"))
    got = slice_user(spec, table, NOW)["a"]
    assert list(got.terms) == [b"a", b"b"]
    np.testing.assert_array_equal(got.floats, [[1, 2]])


def test_a_missing_list_has_no_ids_whatever_lies_under_it():
    # Arrow allows a null list to have values that are not to be read.
    values = pa.array([b"x", b"hidden", b"y"], pa.binary())
    offsets = pa.array([0, 1, 2, 3], pa.int32()).buffers()[1]
    lists = pa.ListArray.from_buffers(
        pa.list_(pa.binary()), 3, [pa.py_buffer(bytes([0b101])), offsets], children=[values]
    )
    assert lists.to_pylist() == [[b"x"], None, [b"y"]]
    table = _replaced(_table([_event(50)] * 3), "topics", lists)
    spec = _spec(Slice("s", "explicit", "topics", "a"))
    assert _plain(spec, slice_user(spec, table, NOW))["s"] == {b"x": UNIT, b"y": UNIT}


@settings(max_examples=40, deadline=None)
@given(_histories(), st.data())
def test_parts_and_slices_of_arrow_tables_are_the_same(events, data):
    want = slice_user(EVERY, _table(events), NOW)
    padding = [_event(300, item="padding", topics=["padding", "more"], value=9.0)] * 3
    inner = _table(padding + events + padding).slice(3, len(events))
    cut = data.draw(st.integers(0, len(events)))
    several = pa.concat_tables([_table(events[:cut]), _table(events[cut:])])
    for table in (inner, several):
        _same(slice_user(EVERY, table, NOW), want)
        _same(sketch(EVERY, Events(table, EVERY.gamma), NOW), want)
    for batch in inner.combine_chunks().to_batches() if events else ():
        _same(sketch(EVERY, Events(batch, EVERY.gamma), NOW), want)


def test_float32_numbers_are_read_too():
    table = _table([_view(50, 10.0, 3.0, "a", value=0.5), _view(49, 10.0, 15.0, "b")])
    want = slice_user(EVERY, table, NOW)
    for name in ("duration", "dwell", "value"):
        table = _replaced(table, name, table[name].cast(pa.float32()))
    _same(slice_user(EVERY, table, NOW), want)


def test_no_events_make_no_sketch():
    assert slice_user(EVERY, _table([]), NOW) == {}
    assert sketch(EVERY, _events([]), NOW) == {}
    assert len(_events([])) == 0
    assert len(_events([_event(1), _event(2)])) == 2


# Errors


def _refused(error: type[Exception], build, *words: str) -> None:
    with pytest.raises(error) as caught:
        build()
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


def _slice(**values) -> Slice:
    mapping = {"name": "my slice", "timeline": "explicit", "id": "item", "table": "a", **values}
    return from_mapping(Slice, mapping, "slices")


@pytest.mark.parametrize("name", ["dwell", "ratio", "score", "value"])
@pytest.mark.parametrize(
    "bounds", [[3, 1], [3, 3], [3], [], [1, 2, 3], [float("nan"), 3], [0, float("nan")]]
)
def test_ranges_are_checked(name, bounds):
    _refused(ConfigError, lambda: _slice(**{name: bounds}), "my slice", name)


@pytest.mark.parametrize("days", [0, -1, float("nan")])
def test_days_are_checked(days):
    _refused(ConfigError, lambda: _slice(days=days), "my slice", "days")


@pytest.mark.parametrize("days", [0.5, 1])
def test_days_within_the_gap_are_refused_since_nothing_can_be_in_them(days):
    _refused(ConfigError, lambda: _spec(_slice(days=days)), "my slice", "days")


def test_a_shorter_gap_allows_shorter_buckets():
    spec = _spec(_slice(days=1), gap_hours=0)
    assert _ids(spec, [_event(24, item="in"), _event(1, item="too")]) == {"my slice": {"in", "too"}}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"timeline": "implict"}, ["implict"]),
        ({"weight": "dwell"}, ["dwell"]),
        ({"name": ""}, ["name"]),
        ({"actoins": ["like"]}, ["actoins", "actions"]),
        ({"dwell": 3}, ["dwell"]),
        ({"days": "three"}, ["days"]),
    ],
)
def test_values_of_a_slice_are_checked(values, words):
    _refused(ConfigError, lambda: _slice(**values), *words)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"gap_hours": -1.0}, ["gap_hours"]),
        ({"gap_hours": NAN}, ["gap_hours"]),
        ({"gamma": 0.0}, ["gamma"]),
        ({"gamma": -0.5}, ["gamma"]),
        ({"gamma": NAN}, ["gamma"]),
        ({"max_events": 0}, ["max_events"]),
        ({"slices": ()}, ["slice"]),
        ({"slices": (_slice(), _slice(actions=["like"]))}, ["my slice"]),
        ({"slices": (_slice(), _slice(name="other", id="author"))}, ["author", "item"]),
    ],
)
def test_values_of_a_specification_are_checked(values, words):
    _refused(ConfigError, lambda: dataclasses.replace(EVERY, **values), *words)


YAML = """\
version: 3
gap_hours: 12
slices:
  - {name: likes, timeline: explicit, id: item, table: positive, actions: [like]}
  - {name: skips, timeline: implicit, id: item, table: negative, dwell: [null, 3], days: 7}
"""


def test_a_specification_is_read_from_yaml(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(YAML)
    want = SliceSpecification(
        3,
        (
            Slice("likes", "explicit", "item", "positive", actions=("like",)),
            Slice("skips", "implicit", "item", "negative", dwell=(None, 3.0), days=7.0),
        ),
        gap_hours=12.0,
    )
    for got in (load_slices(str(path)), SliceSpecification.from_yaml(path)):
        assert got == want
        assert got.fingerprint == want.fingerprint
        assert got.gap == 12 * HOUR
        assert got.buckets == (7 * DAY,)
        assert got.tables == {"positive": (0,), "negative": (1,)}


@pytest.mark.parametrize("path", sorted(READY_MADE.glob("*.yaml")), ids=lambda path: path.stem)
def test_ready_made_specifications_are_found_by_name(path):
    assert load_slices(path.stem) == SliceSpecification.from_yaml(path)


def test_a_specification_that_is_not_there_is_named(tmp_path):
    _refused(ConfigError, lambda: load_slices("no_such_slices"), "no_such_slices")
    missing = str(tmp_path / "missing.yaml")
    _refused(ConfigError, lambda: load_slices(missing), missing)
    _refused(ConfigError, lambda: SliceSpecification.from_yaml(missing), missing)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("gap_hours", "gap_hour", ["gap_hour", "gap_hours"]),
        ("table: negative", "tables: negative", ["tables"]),
        ("[null, 3]", "[4, 3]", ["skips", "dwell"]),
        ("timeline: implicit", "timeline: both", ["both"]),
        ("name: skips", "name: likes", ["likes"]),
        ("id: item, table: negative", "id: author, table: positive", ["positive"]),
        ("version: 3\n", "", ["version"]),
        ("days: 7", "days: 0.25", ["skips"]),
        ("slices:", "slices: [", []),
    ],
)
def test_errors_of_a_file_are_one_line(tmp_path, old, new, words):
    path = tmp_path / "mine.yaml"
    assert old in YAML
    path.write_text(YAML.replace(old, new))
    _refused(ConfigError, lambda: load_slices(str(path)), *words)


# Fingerprints


def test_fingerprint_is_of_every_field():
    first, *rest = EVERY.slices
    changes = {
        "name": "another",
        "timeline": "implicit",
        "id": "topics",
        "table": "elsewhere",
        "actions": ("share",),
        "dwell": (1.0, 2.0),
        "ratio": (1.0, 2.0),
        "score": (1.0, 2.0),
        "value": (1.0, 2.0),
        "days": 30.0,
        "weight": "value",
    }
    assert set(changes) == {field.name for field in dataclasses.fields(Slice)}
    alone = dataclasses.replace(first, table="alone")
    base = dataclasses.replace(EVERY, slices=(alone, *rest))
    seen = [base]
    seen += [
        dataclasses.replace(base, slices=(dataclasses.replace(alone, **{name: value}), *rest))
        for name, value in changes.items()
    ]
    whole = {"version": 2, "gap_hours": 23.0, "gamma": 0.25, "max_events": 34_999}
    whole["slices"] = tuple(base.slices[:-1])
    assert set(whole) == {field.name for field in dataclasses.fields(SliceSpecification)}
    seen += [dataclasses.replace(base, **{name: value}) for name, value in whole.items()]
    seen += [dataclasses.replace(base, slices=base.slices[::-1])]
    # Bounds that differ in one place, or only in which is open.
    for bounds in ((1.0, 3.0), (0.0, 2.0), (None, 2.0), (1.0, None), (None, None)):
        one = dataclasses.replace(alone, dwell=bounds)
        seen.append(dataclasses.replace(base, slices=(one, *rest)))
    prints = [one.fingerprint for one in seen]
    assert len(set(prints)) == len(seen)
    assert all(isinstance(one, str) and one for one in prints)


def test_fingerprint_is_that_of_an_equal_specification():
    again = dataclasses.replace(EVERY, slices=tuple(map(dataclasses.replace, EVERY.slices)))
    assert again == EVERY
    assert again.fingerprint == EVERY.fingerprint


def test_fingerprint_is_that_of_an_equal_specification_in_whole_numbers():
    # Python code says days=7, YAML is read as 7.0: the two are equal.
    whole = _spec(Slice("s", "implicit", "item", "a", dwell=(3, 15), days=7), gap_hours=24)
    floats = _spec(Slice("s", "implicit", "item", "a", dwell=(3.0, 15.0), days=7.0), gap_hours=24.0)
    assert whole == floats
    assert whole.fingerprint == floats.fingerprint
