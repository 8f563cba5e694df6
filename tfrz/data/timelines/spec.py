"""Timelines: what the columns of events are, and how they become examples."""

from __future__ import annotations

import dataclasses
from typing import Literal

import tensorflow as tf

from tfrz.config import require
from tfrz.data.spec import Feature, FromYaml, check_names
from tfrz.data.timelines.slicing import Slice, SliceSpecification

# Columns of every event.
_OF_EVENTS = ("user", "time", "position", "explicit", "action", "duration", "dwell", "value")


@dataclasses.dataclass(frozen=True)
class EntryList:
    """A list of weighted ids in an example, each with the place that it counts for.

    Attributes:
      name: its features are `<name>_ids`, `<name>_places` and `<name>_weights`, aligned.
      id: the type of the ids, which share a vocabulary.
      places: how many there are.
    """

    name: str
    id: str
    places: int

    @property
    def features(self) -> tuple[Feature, ...]:
        """The three raw features."""
        return (
            Feature(f"{self.name}_ids", multivalent=True),
            Feature(f"{self.name}_places", dtype="int64", multivalent=True),
            Feature(f"{self.name}_weights", "numeric", "float32", multivalent=True),
        )


@dataclasses.dataclass(frozen=True)
class TimelineSpec(FromYaml):
    """What the events of a source of timelines are, and what its examples look like.

    A source has a row per event. An example has the sketch of a user's timeline at a time: for each
    slice the ids and the sums of their weights, and candidates with what became of them.

    Attributes:
      user: column of the user.
      time: column of the time in Unix seconds.
      ids: the types of ids of an event (the item, its author, its topic), each a column.
      action: column of the action; null where there is but one, called `event`.
      actions: those that are known. Events of others are counted, named and left out.
      implicit: the actions of the implicit timeline; all others are explicit.
      duration: column of the length of what was shown, in seconds; null for none.
      dwell: column of how long it was watched, in seconds; null for none.
      value: column of a number of the event, at least 0 (rating, amount); null for none.
      binary: tasks whose outcome is 0 or 1, columns; an event with an outcome may be a target.
      regression: tasks whose outcome is a number.
      candidate: types of ids that describe a candidate; all if none is named.
      lists: of an example; set by `tfrz.data.timelines.spec.example_spec`.
    """

    user: str = "user"
    time: str = "time"
    ids: tuple[Feature, ...] = (Feature("item"),)
    action: str | None = "action"
    actions: tuple[str, ...] = ("event",)
    implicit: tuple[str, ...] = ()
    duration: str | None = None
    dwell: str | None = None
    value: str | None = None
    binary: tuple[str, ...] = ("label",)
    regression: tuple[str, ...] = ()
    candidate: tuple[str, ...] = ()
    lists: tuple[EntryList, ...] = ()

    def __post_init__(self) -> None:
        require(bool(self.ids), "ids", "there is none: name what tells events apart")
        check_names(self.ids, "time", "time")
        for feature in self.ids:
            where = f"id {feature.name}"
            taken = feature.name in _OF_EVENTS or feature.name.startswith("label_")
            require(not taken, where, "is a name that every event has: rename it")
            plain = feature.kind == "categorical" and feature.dtype == "string"
            require(plain, where, "must be categorical, of strings")
        require(bool(self.actions), "actions", "there is none")
        for name in self.implicit:
            require(name in self.actions, f"implicit {name}", "is none of the actions")
        require(bool(self.tasks), "binary", "there is no task to learn from")
        for name in self.tasks:
            require(self.tasks.count(name) == 1, f"task {name}", "is there twice")
        names = [feature.name for feature in self.ids]
        for name in self.candidate:
            require(name in names, f"candidate {name}", f"is none of {', '.join(names)}")

    @property
    def tasks(self) -> tuple[str, ...]:
        """Binary tasks, then regressions."""
        return (*self.binary, *self.regression)

    @property
    def described(self) -> tuple[Feature, ...]:
        """The types of ids that describe a candidate."""
        return tuple(f for f in self.ids if not self.candidate or f.name in self.candidate)

    @property
    def label(self) -> str:
        """The feature of an example that holds the first task's outcome for each candidate."""
        return f"label_{self.tasks[0]}"

    @property
    def label_dtype(self) -> tf.DType:
        """Of a raw outcome; NaN for none."""
        return tf.float32

    @property
    def outcome_features(self) -> tuple[str, ...]:
        """Raw features that are known only afterwards, besides the label."""
        return tuple(f"label_{task}" for task in self.tasks[1:])

    @property
    def vocabularies(self) -> tuple[Feature, ...]:
        """Features that have a vocabulary: the types of ids that an example has."""
        used = {one.id for one in self.lists}
        return tuple(f for f in self.ids if f.name in used)

    @property
    def features(self) -> tuple[Feature, ...]:
        """The raw features of an example, without the outcomes."""
        return tuple(feature for one in self.lists for feature in one.features)


NUMBERS = ("duration", "dwell", "value")

_RECENT = "recent_"

_EVERYTHING = SliceSpecification(1, (Slice("all", "explicit", "item", "all"),))


@dataclasses.dataclass(frozen=True)
class TimelineConfig:
    """How events become examples.

    Attributes:
      slices: the specification; in a configuration also the name of a ready-made one or a YAML
        file.
      targets: examples of a user at most, evenly spread over its events that have an outcome and
        a visible history.
      min_visible: events that must be visible.
      negatives: candidates beside the target, drawn from `pool`, whose binary outcomes count as 0.
        For sources that only know what was taken.
      pool: events from which they are drawn: a uniform sample, so that frequent ids come often.
      recent: newest events before the target, gap or not, that the ranker reads beside the
        embedding, as models downstream do; 0 for none.
      staleness_days: the embedding is made so long before the target.
      split: last (of a user's targets the newest are test, those before validation) or time
        (targets from `validation_start` and from `test_start` on).
      validation_start: Unix seconds; for the split by time.
      test_start: Unix seconds; for the split by time.
    """

    slices: SliceSpecification = _EVERYTHING
    targets: int = 20
    min_visible: int = 1
    negatives: int = 0
    pool: int = 10_000
    recent: int = 0
    staleness_days: float = 0.0
    split: Literal["last", "time"] = "last"
    validation_start: int | None = None
    test_start: int | None = None

    def __post_init__(self) -> None:
        where = "data.timeline"
        for name in ("targets", "pool"):
            require(getattr(self, name) >= 1, f"{where}.{name}", "must be at least 1")
        for name in ("min_visible", "negatives", "recent", "staleness_days"):
            require(getattr(self, name) >= 0, f"{where}.{name}", "must not be negative")
        if self.split == "time":
            first, second = self.validation_start, self.test_start
            require(
                first is not None and second is not None and 0 <= first < second,
                f"{where}.validation_start and test_start",
                "a split by time needs both, in Unix seconds, the first below the second",
            )

    @property
    def candidates(self) -> int:
        """Candidates of an example."""
        return 1 + self.negatives

    def check(self, spec: TimelineSpec) -> None:
        """Refuses slices of what the source does not have.

        Raises:
          ConfigError: names the slice.
        """
        ids = [feature.name for feature in spec.ids]
        for one in self.slices.slices:
            where = f"slice {one.name}"
            require(one.id in ids, where, f"the source has {', '.join(ids)}, no {one.id}")
            for action in one.actions:
                known = ", ".join(spec.actions)
                require(action in spec.actions, where, f"unknown action {action}; known: {known}")
            mine = [a for a in spec.actions if (a in spec.implicit) == (one.timeline == "implicit")]
            require(bool(mine), where, f"the source has no {one.timeline} timeline")
            for action in one.actions:
                require(
                    action in mine, where, f"{action} is no action of the {one.timeline} timeline"
                )
            for name in ("dwell", "value"):
                wanted = getattr(one, name) is not None or one.weight == name
                has = getattr(spec, name) is not None
                require(has or not wanted, where, f"the source has no {name}")
            watched = one.ratio is not None or one.score is not None or one.weight == "watch_score"
            both = spec.dwell is not None and spec.duration is not None
            require(both or not watched, where, "the source has no dwell time and duration")


def example_spec(spec: TimelineSpec, config: TimelineConfig) -> TimelineSpec:
    """The spec of the examples that a configuration makes of a source."""
    config.check(spec)
    slices = config.slices
    lists = [
        EntryList(f"slices_{table}", slices.table_ids[table], len(places))
        for table, places in slices.tables.items()
    ]
    lists += [EntryList(f"candidate_{f.name}", f.name, config.candidates) for f in spec.described]
    if config.recent:
        lists += [EntryList(f"{_RECENT}{f.name}", f.name, 1) for f in spec.described]
    return dataclasses.replace(spec, lists=tuple(lists))
