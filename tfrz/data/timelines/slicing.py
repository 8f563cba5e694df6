"""Slices of a user's timeline: rules as data, and the additive sketches they compute from events.

A slice selects events of one timeline and keeps the sum of the weights for each id. Sums are whole
multiples of 2^-24, so events can be added in any order, in any parts and at any time and the
result has the same bits. Training and export use the same functions.

Events are an Arrow table of one user with the columns `time` (int64, Unix seconds), `explicit`
(bool: which timeline), `action` (binary), one for each type of id (binary, or lists), and
`duration`, `dwell` and `value` (float, NaN if missing).
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from tfrz.config import did_you_mean, from_mapping, require, to_mapping
from tfrz.data.columns import whole
from tfrz.data.spec import FromYaml
from tfrz.errors import InputError

# Size of the chunks in which the events of a timeline are processed.
CHUNK_EVENTS = 4096

_ONE = 1 << 24

_DAY = 86_400.0

# Bound on the score of very short durations, which would dominate all others.
_MAX_SCORE = float(1 << 14)

# Keep sums within 64-bit integers.
_MAX_VALUE, _MAX_SUM = float(1 << 36), float(1 << 62)

_LOW_BITS = 26

READY_MADE = Path(__file__).parent / "slices"

Range = tuple[float | None, ...]


@dataclasses.dataclass(frozen=True)
class Slice:
    """A rule that selects events and weights their ids.

    Ranges are [low, high), null for no bound; an event without the number is outside every range.

    Attributes:
      name: Name of the slice.
      timeline: explicit (likes, ratings, purchases, edits) or implicit (impressions).
      id: Type of the ids to keep, a column of the events.
      table: Group of slices that share an embedding table; all have the same type of id.
      actions: Actions of the events to keep; empty keeps all.
      dwell: Range of the dwell time in seconds.
      ratio: Range of dwell time / duration.
      score: Range of the watch score.
      value: Range of the value (a rating, an amount).
      days: Maximum age of events in days; null for the whole history. With a gap of 24 hours, 3
        days are the events between 24 and 72 hours ago.
      weight: Weight of an event: one, its watch score (at most 16,384), or its value.
    """

    name: str
    timeline: Literal["explicit", "implicit"]
    id: str
    table: str
    actions: tuple[str, ...] = ()
    dwell: Range | None = None
    ratio: Range | None = None
    score: Range | None = None
    value: Range | None = None
    days: float | None = None
    weight: Literal["one", "watch_score", "value"] = "one"

    def __post_init__(self) -> None:
        where = f"slice {self.name}"
        require(bool(self.name), "slice", "must have a name")
        for name in ("dwell", "ratio", "score", "value"):
            bounds = getattr(self, name)
            if bounds is not None:
                require(
                    len(bounds) == 2, f"{where}: {name}", "must be [low, high), null for no bound"
                )
                low, high = bounds
                ordered = low is None or high is None or low < high
                require(ordered, f"{where}: {name}", f"{low} is not below {high}")
        require(self.days is None or self.days > 0, f"{where}: days", "must be above 0, or null")


@dataclasses.dataclass(frozen=True)
class SliceSpecification(FromYaml):
    """All slices of a model; any change makes another version.

    Attributes:
      version: Increase it with every change.
      slices: Slices in the order of the model's inputs.
      gap_hours: Younger events are invisible, in training and export.
      gamma: Parameter of the watch score ln(dwell + 1) / ln(gamma * duration + 1).
      max_events: Number of events of each timeline to use, the newest. Whole chunks of 4,096
        events, counted from the oldest, are used, so up to 4,095 more may be included.
    """

    version: int
    slices: tuple[Slice, ...]
    gap_hours: float = 24.0
    gamma: float = 0.5
    max_events: int = 35_000

    def __post_init__(self) -> None:
        require(bool(self.slices), "slices", "must not be empty")
        require(self.version >= 1, "slices.version", "must be at least 1")
        require(self.gap_hours >= 0, "slices.gap_hours", "must not be negative")
        require(self.gamma > 0, "slices.gamma", "must be above 0")
        require(self.max_events >= 1, "slices.max_events", "must be at least 1")
        names = [s.name for s in self.slices]
        for one in self.slices:
            require(names.count(one.name) == 1, f"slice {one.name}", "is defined twice")
            first = next(s for s in self.slices if s.table == one.table)
            require(
                first.id == one.id,
                f"slice {one.name}",
                f"table {one.table} holds {first.id} ids ({first.name}), this slice has {one.id}",
            )
            require(
                one.table.replace("_", "").isalnum(),
                f"table {one.table}",
                "must consist of letters, digits and underscores",
            )
            if one.days is not None:
                enough = one.days * 24 > self.gap_hours
                require(
                    enough,
                    f"slice {one.name}: days",
                    "ends within the gap, so the slice is always empty",
                )

    @functools.cached_property
    def tables(self) -> dict[str, tuple[int, ...]]:
        """Maps each table to the places of its slices, in order."""
        found: dict[str, list[int]] = {}
        for place, one in enumerate(self.slices):
            found.setdefault(one.table, []).append(place)
        return {table: tuple(places) for table, places in found.items()}

    @functools.cached_property
    def table_ids(self) -> dict[str, str]:
        """Maps each table to its type of id."""
        return {one.table: one.id for one in self.slices}

    @property
    def gap(self) -> float:
        """The gap in seconds."""
        return self.gap_hours * 3600.0

    @property
    def buckets(self) -> tuple[float, ...]:
        """The time buckets of the slices, in seconds, the shortest first."""
        return tuple(sorted({s.days * _DAY for s in self.slices if s.days is not None}))

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hash of the specification."""
        # A round trip through a mapping, so that 7 and 7.0 days are equal.
        same = from_mapping(type(self), to_mapping(self))
        text = json.dumps(to_mapping(same), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def first_chunk(self, visible: int) -> int:
        """Returns the oldest chunk that counts in a timeline with this many visible events."""
        return max(0, visible - self.max_events) // CHUNK_EVENTS


def load_slices(name: str) -> SliceSpecification:
    """Loads a predefined specification by name, or a specification from a YAML file.

    Raises:
      ConfigError: There is neither.
    """
    ready = {path.stem: path for path in READY_MADE.glob("*.yaml")}
    if name in ready:
        return SliceSpecification.from_yaml(ready[name])
    known = did_you_mean(name, ready)
    require(Path(name).exists(), "data.timeline.slices", f"there is no file {name}{known}")
    return SliceSpecification.from_yaml(name)


def watch_score(dwell: Any, duration: Any, gamma: float = 0.5) -> NDArray[Any]:
    """Computes the watch score, ln(dwell + 1) / ln(gamma * duration + 1).

    Args:
      dwell: Dwell time in seconds.
      duration: Duration in seconds.
      gamma: A number above 0.

    Returns:
      Scores, float64; NaN if the duration is missing or not positive, or the dwell time is
      negative.

    Example:
      >>> print(np.round(watch_score([3.0, 15.0, 5.0], [10.0, 60.0, 0.0]), 6))
      [0.773706 0.807396      nan]

    Reference:
      DV365 (arXiv 2506.00450), section 3.1.
    """
    dwell, duration = np.asarray(dwell, np.float64), np.asarray(duration, np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        score = np.log1p(dwell) / np.log1p(gamma * duration)
        sound = (duration > 0) & (dwell >= 0) & np.isfinite(score)
        return np.where(sound, score, np.nan)


def _within(numbers: NDArray[Any], bounds: Range) -> NDArray[Any]:
    low, high = bounds
    inside = np.isfinite(numbers)
    if low is not None:
        inside &= numbers >= low
    if high is not None:
        inside &= numbers < high
    return inside


class Events:
    """Events of one user, with cached results that several slices need.

    Args:
      table: Events, see the module's docstring.
      gamma: Parameter of the watch score.
      once: The events are sliced only once, so the entries of slices are not cached.
    """

    def __init__(self, table: pa.Table | pa.RecordBatch, gamma: float, once: bool = False) -> None:
        self._table, self._gamma, self._once = table, gamma, once
        self._ids: dict[str, tuple[NDArray[Any], NDArray[Any], NDArray[Any]]] = {}
        self._entries: dict[Slice, tuple[NDArray[Any], NDArray[Any], NDArray[Any]]] = {}
        self.time = whole(table["time"]).to_numpy()
        self.explicit = whole(table["explicit"]).to_numpy(zero_copy_only=False)

    def __len__(self) -> int:
        return len(self.time)

    @functools.cached_property
    def _actions(self) -> tuple[NDArray[Any], list[bytes]]:
        coded = whole(self._table["action"]).dictionary_encode()
        codes = coded.indices.fill_null(-1).to_numpy(zero_copy_only=False)
        return codes, coded.dictionary.to_pylist()

    @functools.cached_property
    def _numbers(self) -> dict[str, NDArray[Any]]:
        found: dict[str, NDArray[Any]] = {}
        for name in ("duration", "dwell", "value"):
            column = whole(self._table[name]).cast(pa.float64())
            found[name] = column.fill_null(np.nan).to_numpy(zero_copy_only=False)
        return found

    @functools.cached_property
    def score(self) -> NDArray[Any]:
        """Watch scores of the events."""
        return watch_score(self._numbers["dwell"], self._numbers["duration"], self._gamma)

    @functools.cached_property
    def ratio(self) -> NDArray[Any]:
        """Dwell time divided by duration; NaN without a duration."""
        dwell, duration = self._numbers["dwell"], self._numbers["duration"]
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(duration > 0, dwell / duration, np.nan)

    def selected(self, rule: Slice) -> NDArray[Any]:
        """Returns which events a slice keeps, ignoring its time bucket; boolean `[events]`."""
        kept = self.explicit if rule.timeline == "explicit" else ~self.explicit
        if rule.actions:
            codes, names = self._actions
            wanted = np.isin(names, [a.encode() for a in rule.actions])
            kept = kept & np.append(wanted, False)[codes]
        for name in ("dwell", "value"):
            if (bounds := getattr(rule, name)) is not None:
                kept = kept & _within(self._numbers[name], bounds)
        for name in ("ratio", "score"):
            if (bounds := getattr(rule, name)) is not None:
                kept = kept & _within(getattr(self, name), bounds)
        return kept

    def weights(self, rule: Slice) -> NDArray[Any]:
        """Returns the weight of each event in a slice, int64 in multiples of 2^-24.

        Raises:
          InputError: A value is too large to be summed.
        """
        if rule.weight == "one":
            return np.full(len(self), _ONE)
        if rule.weight == "watch_score":
            numbers = np.minimum(self.score, _MAX_SCORE)
        else:
            numbers = self._numbers["value"]
            if (np.abs(numbers[np.isfinite(numbers)]) > _MAX_VALUE).any():
                raise InputError(
                    f"slice {rule.name}: a value is above {_MAX_VALUE:.0f}: take larger units"
                )
        sound = np.where(np.isfinite(numbers), np.maximum(numbers, 0.0), 0.0)
        return np.rint(sound * _ONE).astype(np.int64)

    def entries(self, rule: Slice) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        """Returns event, place of the id, and weight for each id that a slice keeps."""
        if rule in self._entries:
            return self._entries[rule]
        rows, codes, _ = self.ids(rule.id)
        mine = self.selected(rule)[rows]
        rows, codes = rows[mine], codes[mine]
        found = rows, codes, self.weights(rule)[rows]
        if not self._once:
            self._entries[rule] = found
        return found

    def ids_between(self, kind: str, first: int, end: int) -> NDArray[Any]:
        """Returns the ids of the events `[first, end)`, in order."""
        rows, codes, terms = self.ids(kind)
        begin, stop = (int(np.searchsorted(rows, bound)) for bound in (first, end))
        return terms[codes[begin:stop]]

    def ids(self, kind: str) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        """Returns the ids of a type.

        Returns:
          The event of each id, the place of the id among the terms, and the distinct terms,
          sorted by their bytes.
        """
        if kind not in self._ids:
            self._ids[kind] = self._coded(whole(self._table[kind]))
        return self._ids[kind]

    @staticmethod
    def _coded(column: pa.Array) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        if pa.types.is_list(column.type):
            lengths = pc.list_value_length(column).fill_null(0).to_numpy()
            rows, column = np.repeat(np.arange(len(column)), lengths), column.flatten()
        else:
            rows = np.arange(len(column))
        if pa.types.is_dictionary(column.type):
            # The dictionary may contain repeated and unused terms.
            column = column.dictionary_decode()
        coded = column.dictionary_encode()
        codes = coded.indices.fill_null(-1).to_numpy(zero_copy_only=False)
        order = pc.array_sort_indices(coded.dictionary)
        terms = np.array(coded.dictionary.take(order).to_pylist(), object)
        # Missing ids and the empty term, which sorts first, get places below 0.
        empty = int(len(terms) and terms[0] == b"")
        places = np.full(len(terms) + 1, -1)
        places[order.to_numpy()] = np.arange(len(terms)) - empty
        codes = places[codes]
        real = codes >= 0
        return rows[real], codes[real], terms[empty:]


@dataclasses.dataclass(frozen=True)
class Sketch:
    """Ids and sums of their weights for the slices of one table: the input of pooling.

    Attributes:
      terms: Distinct ids, sorted by their bytes; object `[terms]`.
      weights: int64 `[slices of the table, terms]`, in multiples of 2^-24; 0 if a slice does not
        have the id. Ids without a weight in any slice are left out.
    """

    terms: NDArray[Any]
    weights: NDArray[Any]

    @property
    def floats(self) -> NDArray[Any]:
        """The weights as float64."""
        return self.weights / _ONE

    def entries(self) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        """Returns slice (place in the table), term and float32 weight of the nonzero entries."""
        slices, places = np.nonzero(self.weights)
        return slices, self.terms[places], self.floats[slices, places].astype(np.float32)


def _compact(terms: NDArray[Any], weights: NDArray[Any]) -> Sketch:
    used = weights.any(axis=0)
    return Sketch(terms[used], weights[:, used])


def _sums(codes: NDArray[Any], weights: NDArray[Any], count: int, rule: Slice) -> NDArray[Any]:
    """Sums the weights of each code exactly: halves of the bits are exact in float64."""
    if rule.weight == "one":
        return np.bincount(codes, minlength=count).astype(np.int64) * _ONE
    low = np.bincount(codes, weights & ((1 << _LOW_BITS) - 1), minlength=count)
    high = np.bincount(codes, weights >> _LOW_BITS, minlength=count)
    if (high * (1 << _LOW_BITS) > _MAX_SUM).any():
        raise InputError(f"slice {rule.name}: the sum of the values is too large to be exact")
    return (high.astype(np.int64) << _LOW_BITS) + low.astype(np.int64)


def sketch(
    specification: SliceSpecification,
    events: Events,
    as_of: float,
    bucketed: bool | None = None,
    counted: NDArray[Any] | None = None,
) -> dict[str, Sketch]:
    """Computes the sketch of some events of one user at a time.

    Args:
      specification: The slices.
      events: The events, usually at most a chunk, to bound memory.
      as_of: Unix seconds; only events before `as_of - gap` are visible.
      bucketed: Use only slices with (True) or without (False) a time bucket; the others are 0.
        None uses all.
      counted: Mask of the events to use, boolean `[events]`; by default all.

    Returns:
      A dict from table to sketch, without empty tables.
    """
    age = as_of - events.time
    visible = age > specification.gap
    if counted is not None:
        visible &= counted
    there = {
        "explicit": bool((visible & events.explicit).any()),
        "implicit": bool((visible & ~events.explicit).any()),
    }

    def asked(rule: Slice) -> bool:
        return there[rule.timeline] and bucketed in (None, rule.days is not None)

    found: dict[str, Sketch] = {}
    for table, places in specification.tables.items():
        rules = [specification.slices[place] for place in places]
        if not any(map(asked, rules)):
            continue
        _, _, terms = events.ids(rules[0].id)
        weights = np.zeros((len(rules), len(terms)), np.int64)
        for i, rule in enumerate(rules):
            if not asked(rule):
                continue
            kept = visible if rule.days is None else visible & (age <= rule.days * _DAY)
            rows, codes, weight = events.entries(rule)
            mine = kept[rows]
            weights[i] = _sums(codes[mine], weight[mine], len(terms), rule)
        compact = _compact(terms, weights)
        if len(compact.terms):
            found[table] = compact
    return found


def merge(parts: list[dict[str, Sketch]]) -> dict[str, Sketch]:
    """Adds sketches; the sum is associative and commutative to the bit."""
    merged: dict[str, Sketch] = {}
    for table in dict.fromkeys(table for part in parts for table in part):
        some = [part[table] for part in parts if table in part]
        if len(some) == 1:
            merged[table] = some[0]
            continue
        terms, inverse = np.unique(np.concatenate([one.terms for one in some]), return_inverse=True)
        weights = np.zeros((some[0].weights.shape[0], len(terms)), np.int64)
        start = 0
        for one in some:
            places = inverse[start : start + len(one.terms)]
            if (one.weights > int(_MAX_SUM) - weights[:, places]).any():
                raise InputError(f"table {table}: the sum of the values is too large to be exact")
            weights[:, places] += one.weights
            start += len(one.terms)
        merged[table] = Sketch(terms, weights)
    return merged


def chunks(explicit: NDArray[Any]) -> Iterator[tuple[bool, int, NDArray[Any]]]:
    """Yields timeline, number of the chunk and places of its events, for sorted events."""
    for timeline in (True, False):
        places = np.flatnonzero(explicit == timeline)
        for number, start in enumerate(range(0, len(places), CHUNK_EVENTS)):
            yield timeline, number, places[start : start + CHUNK_EVENTS]


def slice_user(
    specification: SliceSpecification, history: Events | pa.Table, as_of: float
) -> dict[str, Sketch]:
    """Computes the sketch of all events of a user that count at a time, as used in training.

    Args:
      specification: The slices.
      history: The user's events in time order; pass `Events` to slice them several times.
      as_of: Unix seconds.
    """
    events = history if isinstance(history, Events) else Events(history, specification.gamma)
    visible = int(np.searchsorted(events.time, as_of - specification.gap, "left"))
    explicit = events.explicit[:visible]
    counts = {True: int(explicit.sum()), False: int((~explicit).sum())}
    counted = np.zeros(len(events), bool)
    for timeline, number, places in chunks(explicit):
        counted[places] = number >= specification.first_chunk(counts[timeline])
    return sketch(specification, events, as_of, counted=counted)


def totals(specification: SliceSpecification, sketches: Mapping[str, Sketch]) -> NDArray[Any]:
    """Returns the sum of weights of each slice, float64 `[slices]`; 0 for an empty slice."""
    found = np.zeros(len(specification.slices))
    for table, one in sketches.items():
        found[list(specification.tables[table])] = one.weights.sum(axis=1) / _ONE
    return found
