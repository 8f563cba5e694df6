"""The spec of documents, and the configuration of the lists built from them."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

from tfrz.config import require
from tfrz.data.simulators.slates import ClickModel
from tfrz.data.spec import ExampleSpec, Feature, check_names

# Columns of documents, and features that the transform creates.
_OF_LISTS = ("position", "split", "score", "item", "mask", "features", "context")


@dataclasses.dataclass(frozen=True)
class ListSpec(ExampleSpec):
    """Spec of a source of documents.

    A source has a row per candidate of a query. An example has the candidates of a query in the
    base ranker's order, the context of the request, and the relevance (or click) of each candidate.

    Attributes:
      query: Column of the query.
      item: Column of the candidate's raw id; null numbers the rows.
      relevance: Column of the grade or click, a number of at least 0.
      score: Column of the base ranker's score, the highest first; null if the rows of a query are
        in its order.
      split: Column that says train, validation or test, the same in all rows of a query; null for
        none.
      candidate: Columns that describe a candidate and are known before it is shown. Do not list
        clicks, dwell time and other outcomes.
      context: Columns that describe the request, the same in all rows of a query.
      query_vocabulary: Number of queries whose frequency the Evaluator knows, the most frequent.
    """

    label: ClassVar[str] = "relevance"
    query: str = "query"
    item: str | None = "item"
    relevance: str = "relevance"
    score: str | None = None
    split: str | None = None
    candidate: tuple[Feature, ...] = ()
    context: tuple[Feature, ...] = ()
    query_vocabulary: int = 10_000

    def __post_init__(self) -> None:
        for feature in (*self.candidate, *self.context):
            where = f"feature {feature.name}"
            require(feature.name not in _OF_LISTS, where, "is a reserved name: rename it")
            require(
                not feature.multivalent,
                where,
                "cannot be multivalent: candidates and requests have one value",
            )
            require(feature.kind != "time", where, "only histories can have time features")
        require(
            bool(self.candidate),
            "candidate",
            "must not be empty: name the columns that describe candidates",
        )
        require(self.query_vocabulary >= 1, "query_vocabulary", "must be at least 1")
        check_names(self.features, self.label, "relevance")

    @property
    def query_feature(self) -> Feature:
        """The id of the list; models do not read it."""
        return Feature("query", vocabulary_size=self.query_vocabulary)

    @property
    def vocabularies(self) -> tuple[Feature, ...]:
        """Features that have a vocabulary."""
        both = (*self.candidate, *self.context)
        return (self.query_feature, *(f for f in both if f.kind == "categorical"))

    @property
    def numeric(self) -> tuple[Feature, ...]:
        """Numeric features of candidates."""
        return tuple(f for f in self.candidate if f.kind == "numeric")

    @property
    def aligned(self) -> tuple[str, ...]:
        """Features with one value per candidate, the ids first."""
        return ("candidates", *(f.name for f in self.candidate))

    @property
    def features(self) -> tuple[Feature, ...]:
        """Raw features of an example, without the relevance.

        `candidates` are the raw ids in the base ranker's order; their features are lists aligned
        with them. `query` and the context features have one value.
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
    """Configures how documents become examples.

    Attributes:
      length: Number of candidates that the model reads, the base ranker's best; later candidates
        keep their places after them.
      log_features: First replace numeric features x of candidates with sign(x) log(1 + |x|).
      normalize: Normalisation of numeric features within a list: standardize (mean 0, deviation
        1), min_max (0 to 1) or none. Missing values become 0.
      clicks: Replace the grades with clicks of this model on the base ranker's order; null trains
        and evaluates on the grades.
      click_seed: Seed of the simulated observations.
      drop_empty: Leave lists without a relevant candidate out of the training set.
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
