"""The spec of events, and the configuration of the timelines built from them."""

from __future__ import annotations

import dataclasses
from typing import Literal

from typing_extensions import override

from tfrz.config import require
from tfrz.data.spec import ExampleSpec, Feature, check_names
from tfrz.data.timelines.slicing import Slice, SliceSpecification

# Columns of every event.
_OF_EVENTS = ("user", "time", "position", "explicit", "action", "duration", "dwell", "value")


@dataclasses.dataclass(frozen=True)
class EntryList:
    """A list of weighted ids in an example, each with the place (slice or candidate) it belongs to.

    Attributes:
      name: Prefix of the aligned features `<name>_ids`, `<name>_places` and `<name>_weights`.
      id: Type of the ids; ids of one type share a vocabulary.
      places: Number of places.
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
class TimelineSpec(ExampleSpec):
    """Spec of a source of events.

    A source has a row per event. An example has the sketch of a user's timeline at a time (the ids
    and the sums of their weights for each slice), and candidates with their outcomes.

    Attributes:
      user: Column of the user.
      time: Column of the time in Unix seconds.
      ids: Types of ids of an event (the item, its author, its topic), each a column.
      action: Column of the action; null if there is only one, called `event`. A file's spec that
        does not say takes the column `action` if there is one.
      actions: Known actions. Events with other actions are counted, named and left out.
      implicit: Actions of the implicit timeline; all others are explicit.
      duration: Column of the length of what was shown, in seconds; null for none.
      dwell: Column of the dwell time, in seconds; null for none.
      value: Column of a number of at least 0 (rating, amount); null for none.
      binary: tasks whose outcome is 0 or 1, columns; an event with an outcome may be a target. A
        file's spec without any task takes the column `label` if there is one.
      regression: tasks whose outcome is a number.
      happened: those of `binary` that have no column: their outcome is 1 for every event, so that
        `data.timeline.negatives` must be above 0. A spec without any task has one, `event`.
      candidate: types of ids that describe a candidate; all if none is named.
      lists: of an example; set by `tfrz.data.timelines.spec.example_spec`.
    """

    user: str = "user"
    time: str = "time"
    ids: tuple[Feature, ...] = (Feature("item"),)
    action: str | None = None
    actions: tuple[str, ...] = ("event",)
    implicit: tuple[str, ...] = ()
    duration: str | None = None
    dwell: str | None = None
    value: str | None = None
    binary: tuple[str, ...] = ()
    regression: tuple[str, ...] = ()
    happened: tuple[str, ...] = ()
    candidate: tuple[str, ...] = ()
    lists: tuple[EntryList, ...] = ()

    def __post_init__(self) -> None:
        require(bool(self.ids), "ids", "must not be empty: name the columns of ids")
        check_names(self.ids, "time", "time")
        for feature in self.ids:
            where = f"id {feature.name}"
            taken = feature.name in _OF_EVENTS or feature.name.startswith("label_")
            require(not taken, where, "is a reserved name: rename it")
            plain = feature.kind == "categorical" and feature.dtype == "string"
            require(plain, where, "must be categorical, with dtype string")
        require(bool(self.actions), "actions", "must not be empty")
        for name in self.implicit:
            require(name in self.actions, f"implicit {name}", "is not one of the actions")
        if not self.tasks:
            object.__setattr__(self, "binary", self.happened or ("event",))
            object.__setattr__(self, "happened", self.binary)
        for name in self.happened:
            require(name in self.binary, f"happened {name}", "is not one of the binary tasks")
        for name in self.tasks:
            require(self.tasks.count(name) == 1, f"task {name}", "is defined twice")
        names = [feature.name for feature in self.ids]
        for name in self.candidate:
            require(name in names, f"candidate {name}", f"is not one of {', '.join(names)}")

    @property
    def tasks(self) -> tuple[str, ...]:
        """Binary tasks, then regression tasks."""
        return (*self.binary, *self.regression)

    @property
    def described(self) -> tuple[Feature, ...]:
        """The types of ids that describe a candidate."""
        return tuple(f for f in self.ids if not self.candidate or f.name in self.candidate)

    @property
    def label(self) -> str:
        """Name of the feature with the first task's outcome for each candidate."""
        return f"label_{self.tasks[0]}"

    @property
    @override
    def outcome_features(self) -> tuple[str, ...]:
        return tuple(f"label_{task}" for task in self.tasks[1:])

    @property
    def vocabularies(self) -> tuple[Feature, ...]:
        """Features that have a vocabulary: the types of ids in an example."""
        used = {one.id for one in self.lists}
        return tuple(f for f in self.ids if f.name in used)

    @property
    def features(self) -> tuple[Feature, ...]:
        """Raw features of an example, without the outcomes."""
        return tuple(feature for one in self.lists for feature in one.features)


NUMBERS = ("duration", "dwell", "value")

_RECENT = "recent_"

_EVERYTHING = SliceSpecification(1, (Slice("all", "explicit", "item", "all"),))


@dataclasses.dataclass(frozen=True)
class TimelineConfig:
    """Configures how events become examples.

    Attributes:
      slices: The slices; a configuration may also name a predefined specification or a YAML file.
      targets: Maximum number of examples per user, evenly spread over the events with an outcome
        and a visible history.
      min_visible: Minimum number of visible events.
      negatives: Number of candidates besides the target, drawn from `pool`, with binary outcomes
        0. For sources that contain positives only.
      pool: Size of the uniform sample of events from which candidates are drawn, so frequent ids
        are drawn often.
      recent: Number of the newest events before the target, gap or not, that the ranker reads
        besides the embedding, as downstream models do; 0 for none.
      staleness_days: Age of the embedding at the time of the target, in days.
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
        """Number of candidates of an example."""
        return 1 + self.negatives

    def check(self, spec: TimelineSpec) -> None:
        """Checks that the source has what the slices use.

        Raises:
          ConfigError: A slice uses something that the source does not have.
        """
        ids = [feature.name for feature in spec.ids]
        for one in self.slices.slices:
            where = f"slice {one.name}"
            require(
                one.id in ids, where, f"the source has no ids {one.id}; it has {', '.join(ids)}"
            )
            for action in one.actions:
                known = ", ".join(spec.actions)
                require(action in spec.actions, where, f"unknown action {action}; known: {known}")
            mine = [a for a in spec.actions if (a in spec.implicit) == (one.timeline == "implicit")]
            require(bool(mine), where, f"the source has no {one.timeline} timeline")
            for action in one.actions:
                require(
                    action in mine,
                    where,
                    f"{action} is not an action of the {one.timeline} timeline",
                )
            for name in ("dwell", "value"):
                wanted = getattr(one, name) is not None or one.weight == name
                has = getattr(spec, name) is not None
                require(has or not wanted, where, f"the source has no {name}")
            watched = one.ratio is not None or one.score is not None or one.weight == "watch_score"
            both = spec.dwell is not None and spec.duration is not None
            require(both or not watched, where, "the source has no dwell time and duration")


def example_spec(spec: TimelineSpec, config: TimelineConfig) -> TimelineSpec:
    """Returns the spec of the examples of a source for a configuration."""
    config.check(spec)
    require(
        bool(config.negatives) or set(spec.tasks) != set(spec.happened),
        "data.timeline.negatives",
        f"must be above 0: the outcome {', '.join(spec.happened)} is 1 for every event",
    )
    slices = config.slices
    lists = [
        EntryList(f"slices_{table}", slices.table_ids[table], len(places))
        for table, places in slices.tables.items()
    ]
    lists += [EntryList(f"candidate_{f.name}", f.name, config.candidates) for f in spec.described]
    if config.recent:
        lists += [EntryList(f"{_RECENT}{f.name}", f.name, 1) for f in spec.described]
    return dataclasses.replace(spec, lists=tuple(lists))
