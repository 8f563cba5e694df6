"""What the raw features of a source are: names, kinds, types and how they are to be encoded."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tensorflow as tf

from tfrz.config import from_mapping, read_yaml, require

# A missing whole number where something must stand; of strings it is "", of floats NaN.
MISSING_INT = int(np.iinfo(np.int64).min)
MISSING = {"string": "", "int64": MISSING_INT, "float32": float("nan")}
# The raw features of an example that hold its user's embedding (see `LongHistory`).
LONG_HISTORY = "long_history"
LONG_HISTORY_VERSION = "long_history_version"


@dataclasses.dataclass(frozen=True)
class Feature:
    """One raw feature.

    Attributes:
      name: of the column or the `tf.Example` feature.
      kind: categorical (looked up in a vocabulary), numeric, time (Unix seconds), or opaque (a
        string that reaches the model as it is; only what `LongHistory` adds).
      dtype: type of the raw values. Categorical: string or int64; numeric: float32; time: int64;
        opaque: string.
      multivalent: whether an example has a list of values.
      vocabulary_size: keep this many terms, the most frequent; null for all.
      min_count: leave out terms that occur less often.
      oov_buckets: ids for terms outside the vocabulary.
      log_offset: replace x by log(x + log_offset); null for no logarithm. Values at or below
        -log_offset count as missing.
      standardize: subtract the mean and divide by the standard deviation, after the logarithm.
    """

    name: str
    kind: Literal["categorical", "numeric", "time", "opaque"] = "categorical"
    dtype: Literal["string", "int64", "float32"] = "string"
    multivalent: bool = False
    vocabulary_size: int | None = None
    min_count: int = 1
    oov_buckets: int = 1
    log_offset: float | None = None
    standardize: bool = False

    def __post_init__(self) -> None:
        where = f"feature {self.name}"
        require(bool(self.name), "feature", "needs a name")
        numeric = self.kind == "numeric"
        require(numeric == (self.dtype == "float32"), where, "numeric goes with dtype float32")
        require(self.kind != "time" or self.dtype == "int64", where, "time goes with dtype int64")
        added = self.name in (LONG_HISTORY, LONG_HISTORY_VERSION)
        require(self.kind != "opaque" or added, where, "opaque is none of a file's kinds")
        require(
            self.vocabulary_size is None or self.vocabulary_size >= 1,
            where,
            "vocabulary_size must be at least 1",
        )
        require(self.min_count >= 1, where, "min_count must be at least 1")
        require(self.oov_buckets >= 1, where, "oov_buckets must be at least 1")


def numeric(name: str, log_offset: float | None = None, standardize: bool = False) -> Feature:
    """A numeric feature."""
    return Feature(name, "numeric", "float32", log_offset=log_offset, standardize=standardize)


@dataclasses.dataclass(frozen=True)
class LongHistory:
    """The embedding of its user's long history that an example may carry.

    It adds two raw features: `long_history`, the vectors packed in 4 bits a value, and
    `long_history_version`, the version of the model that made them. Either may be missing.

    Attributes:
      version: of the embeddings that the model is trained on. Those of another version have other
        coordinates and count as missing.
      num_vectors: vectors of a user.
      dim: width of each.
      any_version: read embeddings of every version.
      generated_at: Unix seconds; the training examples' embeddings hold nothing at or after it.
    """

    version: str
    num_vectors: int
    dim: int
    any_version: bool = False
    generated_at: int = 0

    def __post_init__(self) -> None:
        require(bool(self.version), "long_history.version", "must not be empty")
        for name in ("num_vectors", "dim"):
            require(getattr(self, name) >= 1, f"long_history.{name}", "must be at least 1")

    @property
    def features(self) -> tuple[Feature, ...]:
        """What it adds to an example."""
        return Feature(LONG_HISTORY, "opaque"), Feature(LONG_HISTORY_VERSION, "opaque")


def _check_names(features: Iterable[Feature], taken: str, what: str) -> None:
    names = [f.name for f in features]
    for name in names:
        require(names.count(name) == 1, f"feature {name}", "is there twice")
    require(taken not in names, f"feature {taken}", f"is the {what}")


@dataclasses.dataclass(frozen=True)
class FeatureSpec:
    """The raw features of a source of impressions, and its label.

    Attributes:
      features: all but the label.
      label: name of the label, a number that is 0 or 1.
      long_history: the embedding of the user that comes with an impression, its two features among
        `features`; set by a run, not by a file.
      outcomes: numbers that are known in training alone, beside the label; no model reads them.
    """

    features: tuple[Feature, ...]
    label: str = "label"
    long_history: LongHistory | None = None
    outcomes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require(bool(self.features), "features", "there is none")
        _check_names(self.features, self.label, "label")
        for name in self.outcomes:
            _check_names(self.features, name, "name of an outcome")
        for feature in self.features:
            where = f"feature {feature.name}"
            require(feature.kind != "time", where, "only histories of events have times")
            one = not (feature.kind == "numeric" and feature.multivalent)
            require(one, where, "numeric features have one value")

    @classmethod
    def from_yaml(cls, path: str | Path) -> FeatureSpec:
        """Reads a spec: `label: clicked` and `features: [{name: user, ...}, ...]`.

        Raises:
          ConfigError: the file is missing, or a name or value in it is wrong.
        """
        return from_mapping(cls, read_yaml(path), str(path))

    @property
    def categorical(self) -> tuple[Feature, ...]:
        """Categorical features, multivalent ones included."""
        return tuple(f for f in self.features if f.kind == "categorical")

    @property
    def vocabularies(self) -> tuple[Feature, ...]:
        """Features that have a vocabulary."""
        return self.categorical

    @property
    def label_dtype(self) -> tf.DType:
        """Of the raw label."""
        return tf.float32

    @property
    def multivalent(self) -> tuple[Feature, ...]:
        """Features with a list of values."""
        return tuple(f for f in self.features if f.multivalent)

    @property
    def numeric(self) -> tuple[Feature, ...]:
        """Numeric features."""
        return tuple(f for f in self.features if f.kind == "numeric")


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
        _check_names(self.features, self.item, "item")
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
class HistorySpec:
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
    long_history: LongHistory | None = None

    def __post_init__(self) -> None:
        for feature in self.context:
            where = f"context {feature.name}"
            require(not feature.multivalent, where, "has one value an event")
            require(feature.kind != "time", where, "name the time column as time")
        columns = [c for c in (self.user, self.item, self.time) if c is not None]
        columns += [f.name for f in self.context]
        for name in columns:
            require(columns.count(name) == 1, f"column {name}", "is named twice")
        _check_names(self.features, self.label, "target")
        numbers = [f.name for f in self.context if f.kind == "numeric"]
        for name in self.outcomes:
            require(name in numbers, f"outcome {name}", "is no numeric context")

    @classmethod
    def from_yaml(cls, path: str | Path) -> HistorySpec:
        """Reads a spec: `user: customer`, `item: sku`, `time: bought_at`, `context: [...]`.

        Raises:
          ConfigError: the file is missing, or a name or value in it is wrong.
        """
        return from_mapping(cls, read_yaml(path), str(path))

    @property
    def label(self) -> str:
        """The feature of an example that holds the item to predict."""
        return "target"

    @property
    def label_dtype(self) -> tf.DType:
        """Of the raw target."""
        return tf.string

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


# Columns of documents, and what the transform makes of every list.
_OF_LISTS = ("position", "split", "score", "item", "mask", "features", "context")


@dataclasses.dataclass(frozen=True)
class ListSpec:
    """What the columns of a source of lists are, and what its examples look like.

    A source has a row per candidate of a query. An example has a query's candidates in the base
    ranker's order, the context of the request, and the relevance (or clicks) of each candidate.

    Attributes:
      query: column that tells lists apart.
      item: column of the candidate's raw id; null to number the rows.
      relevance: column of the grade or click, a number from 0.
      score: column of the base ranker's score, the highest first; null where the rows of a query
        are in its order.
      candidate: columns that describe a candidate, known before it is shown. Clicks, dwell time and
        whatever else follows the display do not belong here.
      context: columns that describe the request, the same in all rows of a query.
      query_vocabulary: queries whose frequency is known to the Evaluator, the most frequent.
    """

    query: str = "query"
    item: str | None = "item"
    relevance: str = "relevance"
    score: str | None = None
    candidate: tuple[Feature, ...] = ()
    context: tuple[Feature, ...] = ()
    query_vocabulary: int = 10_000

    def __post_init__(self) -> None:
        for feature in (*self.candidate, *self.context):
            where = f"feature {feature.name}"
            require(
                feature.name not in _OF_LISTS, where, "is a name that every list has: rename it"
            )
            require(not feature.multivalent, where, "has one value a candidate or request")
            require(feature.kind != "time", where, "only histories of events have times")
        require(bool(self.candidate), "candidate", "there is none: name what describes candidates")
        require(self.query_vocabulary >= 1, "query_vocabulary", "must be at least 1")
        _check_names(self.features, self.label, "relevance")

    @classmethod
    def from_yaml(cls, path: str | Path) -> ListSpec:
        """Reads a spec: `query: search`, `item: sku`, `relevance: clicked`, `candidate: [...]`.

        Raises:
          ConfigError: the file is missing, or a name or value in it is wrong.
        """
        return from_mapping(cls, read_yaml(path), str(path))

    @property
    def label(self) -> str:
        """The feature of an example that holds the relevance of each candidate."""
        return "relevance"

    @property
    def label_dtype(self) -> tf.DType:
        """Of the raw relevance."""
        return tf.float32

    @property
    def query_feature(self) -> Feature:
        """The id of the list; no input of a model."""
        return Feature("query", vocabulary_size=self.query_vocabulary)

    @property
    def vocabularies(self) -> tuple[Feature, ...]:
        """Features that have a vocabulary."""
        both = (*self.candidate, *self.context)
        return (self.query_feature, *(f for f in both if f.kind == "categorical"))

    @property
    def numeric(self) -> tuple[Feature, ...]:
        """Numeric features of a candidate."""
        return tuple(f for f in self.candidate if f.kind == "numeric")

    @property
    def aligned(self) -> tuple[str, ...]:
        """Features with a value a candidate, the ids first."""
        return ("candidates", *(f.name for f in self.candidate))

    @property
    def features(self) -> tuple[Feature, ...]:
        """The raw features of an example, without the relevance.

        `candidates` are the raw ids in the base ranker's order; what describes them are lists
        aligned with it. `query` and the context have one value.
        """
        lists = [dataclasses.replace(f, multivalent=True) for f in self.candidate]
        return (
            Feature("candidates", multivalent=True),
            *lists,
            Feature("query"),
            *self.context,
        )


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
class TimelineSpec:
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
      lists: of an example; set by `tfrz.data.timelines.example_spec`.
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
        _check_names(self.ids, "time", "time")
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

    @classmethod
    def from_yaml(cls, path: str | Path) -> TimelineSpec:
        """Reads a spec: `user: viewer`, `ids: [{name: video}, ...]`, `binary: [liked]`.

        Raises:
          ConfigError: the file is missing, or a name or value in it is wrong.
        """
        return from_mapping(cls, read_yaml(path), str(path))

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
    def vocabularies(self) -> tuple[Feature, ...]:
        """Features that have a vocabulary: the types of ids that an example has."""
        used = {one.id for one in self.lists}
        return tuple(f for f in self.ids if f.name in used)

    @property
    def features(self) -> tuple[Feature, ...]:
        """The raw features of an example, without the outcomes."""
        return tuple(feature for one in self.lists for feature in one.features)


Spec = FeatureSpec | HistorySpec | ListSpec | TimelineSpec


def transformed_name(name: str) -> str:
    """The name of a feature after the transform."""
    return f"{name}_xf"


def outcomes_of(spec: Spec) -> tuple[str, ...]:
    """Raw features of an example that are known only afterwards, beside the label."""
    if isinstance(spec, TimelineSpec):
        return tuple(f"label_{task}" for task in spec.tasks[1:])
    if isinstance(spec, FeatureSpec):
        return spec.outcomes
    names = spec.outcomes if isinstance(spec, HistorySpec) else ()
    return tuple(name for outcome in names for name in (f"history_{outcome}", outcome))


def raw_feature_spec(spec: Spec, label: bool = True) -> dict[str, Any]:
    """What `tf.io.parse_example` takes: every value may be missing, so all are `VarLenFeature`."""
    parse = {f.name: tf.io.VarLenFeature(tf.dtypes.as_dtype(f.dtype)) for f in spec.features}
    if label:
        parse[spec.label] = tf.io.VarLenFeature(spec.label_dtype)
        parse |= {name: tf.io.VarLenFeature(tf.float32) for name in outcomes_of(spec)}
    return parse
