"""Lists: what the columns of documents are, and how they become examples."""

from __future__ import annotations

import dataclasses
from typing import Literal

import tensorflow as tf

from tfrz.config import require
from tfrz.data.simulators.slates import ClickModel
from tfrz.data.spec import Feature, FromYaml, check_names

# Columns of documents, and what the transform makes of every list.
_OF_LISTS = ("position", "split", "score", "item", "mask", "features", "context")


@dataclasses.dataclass(frozen=True)
class ListSpec(FromYaml):
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
        check_names(self.features, self.label, "relevance")

    @property
    def label(self) -> str:
        """The feature of an example that holds the relevance of each candidate."""
        return "relevance"

    @property
    def label_dtype(self) -> tf.DType:
        """Of the raw relevance."""
        return tf.float32

    @property
    def outcome_features(self) -> tuple[str, ...]:
        """Raw features that are known only afterwards, besides the label."""
        return ()

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


@dataclasses.dataclass(frozen=True)
class ListConfig:
    """How documents become examples.

    Attributes:
      length: candidates that the model sees, the base ranker's best; what comes after keeps its
        place behind them.
      log_features: replace numeric features x of candidates by sign(x) log(1 + |x|) first.
      normalize: numeric features of candidates within their list: standardize (mean 0, deviation
        1), min_max (0 to 1) or none. Missing values are 0 after it.
      clicks: replace the grades by clicks of this model on the base ranker's order; null trains and
        judges on the grades.
      click_seed: of the simulated observations.
      drop_empty: leave lists without any relevant candidate out of the training set.
      base_ranker: source (the source's scores or order), or lambda_mart: LightGBM's LambdaMART,
        fitted to the grades of the training queries (extra `lambdamart`; `tfrz train` only).
    """

    length: int = 50
    log_features: bool = False
    normalize: Literal["standardize", "min_max", "none"] = "standardize"
    clicks: ClickModel | None = None
    click_seed: int = 0
    drop_empty: bool = True
    base_ranker: Literal["source", "lambda_mart"] = "source"

    def __post_init__(self) -> None:
        require(self.length >= 1, "data.lists.length", "must be at least 1")
