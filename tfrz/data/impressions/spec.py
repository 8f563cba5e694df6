"""The spec of impressions."""

from __future__ import annotations

import dataclasses

from typing_extensions import override

from tfrz.config import require
from tfrz.data.spec import ExampleSpec, Feature, UserEmbedding, check_names
from tfrz.data.splits import SPLIT_COLUMN, TIME_COLUMN


@dataclasses.dataclass(frozen=True)
class FeatureSpec(ExampleSpec):
    """The raw features of a source of impressions, and its label.

    Attributes:
      features: All features except the label.
      label: Name of the label, a number that is 0 or 1.
      long_history: The embedding of the user that comes with an impression; its two features are
        among `features`. Set by a run, not by a file.
      outcomes: Numbers besides the label that are known only in training; models do not read them.
      split: Column that says train, validation or test; null for none.
      time: Column of the time of an impression, for the split by time; null for none. It is a
        feature only if it is among `features` too.
    """

    features: tuple[Feature, ...]
    label: str = "label"
    long_history: UserEmbedding | None = None
    outcomes: tuple[str, ...] = ()
    split: str | None = None
    time: str | None = None

    def __post_init__(self) -> None:
        require(bool(self.features), "features", "must not be empty")
        check_names(self.features, self.label, "label")
        for name in (SPLIT_COLUMN, TIME_COLUMN):
            require(name not in [f.name for f in self.features], f"feature {name}", "is reserved")
        for name in self.outcomes:
            check_names(self.features, name, "name of an outcome")
        for feature in self.features:
            where = f"feature {feature.name}"
            require(feature.kind != "time", where, "only histories can have time features")
            one = not (feature.kind == "numeric" and feature.multivalent)
            require(one, where, "numeric features cannot be multivalent")

    @property
    def categorical(self) -> tuple[Feature, ...]:
        """Categorical features, including multivalent ones."""
        return tuple(f for f in self.features if f.kind == "categorical")

    @property
    def vocabularies(self) -> tuple[Feature, ...]:
        """Features that have a vocabulary."""
        return self.categorical

    @property
    @override
    def outcome_features(self) -> tuple[str, ...]:
        return self.outcomes

    @property
    def multivalent(self) -> tuple[Feature, ...]:
        """Features with several values."""
        return tuple(f for f in self.features if f.multivalent)

    @property
    def numeric(self) -> tuple[Feature, ...]:
        """Numeric features."""
        return tuple(f for f in self.features if f.kind == "numeric")
