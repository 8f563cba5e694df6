"""Histories: what the columns of interactions are, and how they become examples."""

from __future__ import annotations

import dataclasses
from typing import Literal

import tensorflow as tf

from tfrz.config import require
from tfrz.data.spec import Feature, FromYaml, UserEmbedding, check_names
from tfrz.data.splits import SPLITS


@dataclasses.dataclass(frozen=True)
class CandidateSpec:
    """What describes the items that may be recommended.

    Attributes:
      item: column of the item's raw id, as histories have it; once in the table.
      features: further columns, known before anybody has taken the item.
      file: a CSV, Parquet or TFRecord file of one's own with a row per item, named from the folder
        of the spec; null where the source brings its catalogue.
      separator: between the values of a multivalent feature in CSV.
    """

    item: str = "item"
    features: tuple[Feature, ...] = ()
    file: str | None = None
    separator: str = "|"

    def __post_init__(self) -> None:
        check_names(self.features, self.item, "item")
        for feature in self.features:
            where = f"candidate {feature.name}"
            require(feature.kind != "time", where, "only histories of events have times")
            one = not (feature.kind == "numeric" and feature.multivalent)
            require(one, where, "numeric features have one value")

    @property
    def columns(self) -> tuple[Feature, ...]:
        """The item's id and the features."""
        return (Feature(self.item), *self.features)


@dataclasses.dataclass(frozen=True)
class HistorySpec(FromYaml):
    """What the columns of a source of interactions are, and what its examples look like.

    A source has a row per interaction. An example has a user's events in order of time, the
    context of the request that follows them, and the item that the user took then.

    Attributes:
      user: column of the user.
      item: column of the item.
      time: column of the time in Unix seconds; null where the rows are in order of time.
      context: further columns, known when the recommendations are asked for (page, device, shop).
        Nothing that is only known of an event afterwards (dwell time, rating) belongs here.
      vocabulary_size: keep this many items, the most frequent; null for all.
      oov_buckets: ids for items outside the vocabulary.
      candidates: what describes the items, for models that recommend by it; null for nothing.
      outcomes: contexts, numbers, that are only known after an event (its reward, the logger's
        propensity). They come with the target, those of past events as `history_<name>`, and are no
        features of a request.
      long_history: the embedding of the user that comes with an example; set by a run, not by a
        file.
    """

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
            require(not feature.multivalent, where, "has one value an event")
            require(feature.kind != "time", where, "name the time column as time")
        columns = [c for c in (self.user, self.item, self.time) if c is not None]
        columns += [f.name for f in self.context]
        for name in columns:
            require(columns.count(name) == 1, f"column {name}", "is named twice")
        check_names(self.features, self.label, "target")
        numbers = [f.name for f in self.context if f.kind == "numeric"]
        for name in self.outcomes:
            require(name in numbers, f"outcome {name}", "is no numeric context")

    @property
    def label(self) -> str:
        """The feature of an example that holds the item to predict."""
        return "target"

    @property
    def label_dtype(self) -> tf.DType:
        """Of the raw target."""
        return tf.string

    @property
    def outcome_features(self) -> tuple[str, ...]:
        """Raw features that are known only afterwards, besides the label."""
        return tuple(n for name in self.outcomes for n in (f"history_{name}", name))

    @property
    def item_feature(self) -> Feature:
        """The items' vocabulary, which history and target share."""
        return Feature("item", vocabulary_size=self.vocabulary_size, oov_buckets=self.oov_buckets)

    @property
    def vocabularies(self) -> tuple[Feature, ...]:
        """Features that have a vocabulary."""
        return (self.item_feature, *(f for f in self.context if f.kind == "categorical"))

    @property
    def aligned(self) -> tuple[str, ...]:
        """Features with a value an event, the items first."""
        return tuple(f.name for f in self.features if f.multivalent)

    @property
    def features(self) -> tuple[Feature, ...]:
        """The raw features of an example, without the target.

        `history`, `history_time` and `history_<context>` are aligned lists, the oldest event
        first; `request_time`, `<context>` and the long history belong to the request.
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
    """How interactions become examples.

    Attributes:
      length: events that the model sees, the newest.
      padding: the side on which shorter histories are padded.
      keep: events that an example holds, the newest; those beyond `length` only count as seen.
        Null for `length`. Training examples of earlier targets hold `length`.
      train_targets: training examples of a user at most: one for the last event of training, and
        for those before it, `train_stride` events apart. Models that learn from every event of a
        history need one.
      train_stride: see `train_targets`.
      split: leave_last_out (a user's last event is the test target, the one before the validation
        target, the one before that the last training target), time (targets are a user's first
        events at or after `validation_start` and `test_start`), or users (a share of the users is
        held out with their last event as target).
      validation_start: Unix seconds; for the time split.
      test_start: Unix seconds; for the time split.
      min_item_count: leave out items with fewer events.
      min_user_count: then leave out users with fewer events.
      min_count_passes: once, or again until nothing changes.
      max_passes: a fixed point that takes more passes is refused.
      drop_duplicates: count events that are equal in user, item and time once.
      time_features: context derived from the times: gap (seconds since the event before, in 8
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
        """Events that an example holds."""
        return self.length if self.keep is None else self.keep

    @property
    def needed(self) -> int:
        """The newest events of a user that its examples are made of."""
        return self.kept + len(SPLITS) + (self.train_targets - 1) * self.train_stride

    def check(self, spec: HistorySpec) -> None:
        """Refuses what needs times where the source has none.

        Raises:
          ConfigError: names the setting.
        """
        timed = spec.time is not None
        without = "the source has no times, only an order"
        require(timed or self.split != "time", "data.history.split", without)
        require(timed or not self.time_features, "data.history.time_features", without)
        require(timed or not self.drop_duplicates, "data.history.drop_duplicates", without)
