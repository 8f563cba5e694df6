"""The spec of interactions, and the configuration of the histories built from them."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

import tensorflow as tf
from typing_extensions import override

from tfrz.config import require
from tfrz.data.spec import ExampleSpec, Feature, UserEmbedding, check_names
from tfrz.data.splits import SPLITS

# Columns of every interaction.
_OF_EVENTS = ("user", "item", "time", "position")


@dataclasses.dataclass(frozen=True)
class CandidateSpec:
    """Spec of the catalogue, the items that may be recommended.

    Attributes:
      item: Column of the item's raw id, as in histories; each id occurs once.
      features: Further columns, known before any interaction with the item.
      file: Your own CSV, Parquet or TFRecord file with a row per item, relative to the folder of
        the spec; null if the source has a catalogue.
      separator: Separator between the values of a multivalent feature in CSV.
      min_match: Share of the items of the training events that the catalogue must list at least.
    """

    item: str = "item"
    features: tuple[Feature, ...] = ()
    file: str | None = None
    separator: str = "|"
    min_match: float = 0.1

    def __post_init__(self) -> None:
        require(0 <= self.min_match <= 1, "candidates.min_match", "must be 0 to 1")
        check_names(self.features, self.item, "item")
        for feature in self.features:
            where = f"candidate {feature.name}"
            require(feature.kind != "time", where, "only histories can have time features")
            one = not (feature.kind == "numeric" and feature.multivalent)
            require(one, where, "numeric features cannot be multivalent")

    @property
    def columns(self) -> tuple[Feature, ...]:
        """The id of the item, and the features."""
        return (Feature(self.item), *self.features)


@dataclasses.dataclass(frozen=True)
class HistorySpec(ExampleSpec):
    """Spec of a source of interactions.

    A source has a row per interaction. An example has the events of a user in time order, the
    context of the request that follows them, and the item that the user then chose.

    Attributes:
      user: Column of the user.
      item: Column of the item.
      time: Column of the time in Unix seconds; null if the rows are in time order.
      context: Further columns that are known at the time of the request (page, device, shop). Do
        not list what is known only after an event (dwell time, rating).
      vocabulary_size: Number of items to keep, the most frequent; null keeps all.
      oov_buckets: Number of ids for items outside the vocabulary.
      candidates: Spec of the catalogue, for models that read features of items; null for none.
      outcomes: Numeric contexts that are known only after an event (its reward, the logger's
        propensity). Those of past events are `history_<name>`, those of the target are not features
        of a request.
      long_history: The embedding of the user that comes with an example. Set by a run, not by a
        file.
    """

    label: ClassVar[str] = "target"
    label_dtype: ClassVar[tf.DType] = tf.string
    user: str = "user"
    item: str = "item"
    time: str | None = "time"
    context: tuple[Feature, ...] = ()
    vocabulary_size: int | None = None
    oov_buckets: int = 1
    candidates: CandidateSpec | None = None
    outcomes: tuple[str, ...] = ()
    long_history: UserEmbedding | None = None

    def __post_init__(self) -> None:
        for feature in self.context:
            where = f"context {feature.name}"
            require(not feature.multivalent, where, "cannot be multivalent: events have one value")
            require(feature.kind != "time", where, "must be named under time, not under context")
            require(feature.name not in _OF_EVENTS, where, "is a reserved name: rename it")
        columns = [c for c in (self.user, self.item, self.time) if c is not None]
        columns += [f.name for f in self.context]
        for name in columns:
            require(columns.count(name) == 1, f"column {name}", "is named twice")
        check_names(self.features, self.label, "target")
        numbers = [f.name for f in self.context if f.kind == "numeric"]
        for name in self.outcomes:
            require(name in numbers, f"outcome {name}", "is not a numeric context")

    @property
    @override
    def outcome_features(self) -> tuple[str, ...]:
        return tuple(n for name in self.outcomes for n in (f"history_{name}", name))

    @property
    def item_feature(self) -> Feature:
        """The vocabulary of items, shared by history and target."""
        return Feature("item", vocabulary_size=self.vocabulary_size, oov_buckets=self.oov_buckets)

    @property
    def vocabularies(self) -> tuple[Feature, ...]:
        """Features that have a vocabulary."""
        return (self.item_feature, *(f for f in self.context if f.kind == "categorical"))

    @property
    def aligned(self) -> tuple[str, ...]:
        """Features with one value per event, the items first."""
        return tuple(f.name for f in self.features if f.multivalent)

    @property
    def features(self) -> tuple[Feature, ...]:
        """Raw features of an example, without the target.

        `history`, `history_time` and `history_<context>` are aligned lists, the oldest event
        first; `request_time`, `<context>` and the embedding of the user belong to the request.
        """
        features = [Feature("history", multivalent=True)]
        if self.time is not None:
            features.append(Feature("history_time", "time", "int64", multivalent=True))
            features.append(Feature("request_time", "time", "int64"))
        for feature in self.context:
            if feature.name not in self.outcomes:
                name = f"history_{feature.name}"
                features.append(dataclasses.replace(feature, name=name, multivalent=True))
                features.append(feature)
        if self.long_history is not None:
            features += self.long_history.features
        return tuple(features)


@dataclasses.dataclass(frozen=True)
class HistoryConfig:
    """Configures how interactions become examples.

    Attributes:
      length: Number of events that the model reads, the newest.
      padding: The side on which shorter histories are padded.
      keep: Number of events in an example, the newest; those beyond `length` only count as seen.
        Null means `length`. Training examples of earlier targets have `length`.
      train_targets: Maximum number of training examples per user: one for the last training event,
        and others before it, `train_stride` events apart. Models that learn from every event of a
        history need only one.
      train_stride: See `train_targets`.
      split: leave_last_out (a user's last event is the test target, the one before the validation
        target, the one before that the last training target), time (targets are a user's first
        events at or after `validation_start` and `test_start`), or users (a share of the users is
        held out with their last event as target).
      validation_start: Unix seconds; for the split by time.
      test_start: Unix seconds; for the split by time.
      min_item_count: Leave out items with fewer events.
      min_user_count: Then leave out users with fewer events.
      min_count_passes: Do this once, or repeat it until nothing changes.
      max_passes: Fail if the fixed point takes more passes.
      drop_duplicates: Keep only the first of events with equal user, item and time.
      time_features: Contexts derived from the times: gap (seconds since the event before, in 8
        logarithmic buckets), hour (of the day, UTC), weekday.
    """

    length: int = 50
    padding: Literal["right", "left"] = "right"
    keep: int | None = None
    train_targets: int = 1
    train_stride: int = 1
    split: Literal["leave_last_out", "time", "users"] = "leave_last_out"
    validation_start: int | None = None
    test_start: int | None = None
    min_item_count: int = 1
    min_user_count: int = 1
    min_count_passes: Literal["fixed_point", 1] = 1
    max_passes: int = 10
    drop_duplicates: bool = False
    time_features: tuple[Literal["gap", "hour", "weekday"], ...] = ()

    def __post_init__(self) -> None:
        where = "data.history"
        for name in (
            "length",
            "train_targets",
            "train_stride",
            "min_item_count",
            "min_user_count",
            "max_passes",
        ):
            require(getattr(self, name) >= 1, f"{where}.{name}", "must be at least 1")
        require(
            self.keep is None or self.keep >= self.length,
            f"{where}.keep",
            f"must be at least {where}.length, {self.length}",
        )
        if self.split == "time":
            first, second = self.validation_start, self.test_start
            require(
                first is not None and second is not None and 0 <= first < second,
                f"{where}.validation_start and test_start",
                "a split by time needs both, in Unix seconds, the first below the second",
            )

    @property
    def kept(self) -> int:
        """Number of events in an example."""
        return self.length if self.keep is None else self.keep

    @property
    def needed(self) -> int:
        """Number of a user's newest events that its examples need."""
        return self.kept + len(SPLITS) + (self.train_targets - 1) * self.train_stride

    def check(self, spec: HistorySpec) -> None:
        """Checks that the source has times if a setting needs them.

        Raises:
          ConfigError: A setting needs times, and the source has none.
        """
        timed = spec.time is not None
        without = "the source has no times, only an order"
        require(timed or self.split != "time", "data.history.split", without)
        require(timed or not self.time_features, "data.history.time_features", without)
        require(timed or not self.drop_duplicates, "data.history.drop_duplicates", without)
