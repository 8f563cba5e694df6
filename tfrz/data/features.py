"""What the raw features of a source are: names, kinds, types and how they are to be encoded."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal

import tensorflow as tf

from tfrz.config import from_mapping, read_yaml, require


@dataclasses.dataclass(frozen=True)
class Feature:
    """One raw feature.

    Attributes:
      name: of the column or the `tf.Example` feature.
      kind: categorical (looked up in a vocabulary) or numeric.
      dtype: type of the raw values. Categorical: string or int64; numeric: float32.
      multivalent: whether an example has a list of values.
      vocabulary_size: keep this many terms, the most frequent; null for all.
      min_count: leave out terms that occur less often.
      oov_buckets: ids for terms outside the vocabulary.
      log_offset: replace x by log(x + log_offset); null for no logarithm. Values at or below
        -log_offset count as missing.
      standardize: subtract the mean and divide by the standard deviation, after the logarithm.
    """

    name: str
    kind: Literal["categorical", "numeric"] = "categorical"
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
        require(not (numeric and self.multivalent), where, "numeric features have one value")
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
class FeatureSpec:
    """The raw features of a source of impressions, and its label.

    Attributes:
      features: all but the label.
      label: name of the label, a number that is 0 or 1.
    """

    features: tuple[Feature, ...]
    label: str = "label"

    def __post_init__(self) -> None:
        names = [f.name for f in self.features]
        require(bool(names), "features", "there is none")
        for name in names:
            require(names.count(name) == 1, f"feature {name}", "is there twice")
        require(self.label not in names, f"feature {self.label}", "is the label")

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
    def multivalent(self) -> tuple[Feature, ...]:
        """Features with a list of values."""
        return tuple(f for f in self.features if f.multivalent)

    @property
    def numeric(self) -> tuple[Feature, ...]:
        """Numeric features."""
        return tuple(f for f in self.features if f.kind == "numeric")


def transformed_name(name: str) -> str:
    """The name of a feature after the transform."""
    return f"{name}_xf"


def raw_feature_spec(spec: FeatureSpec, label: bool = True) -> dict[str, Any]:
    """What `tf.io.parse_example` takes: every value may be missing, so all are `VarLenFeature`."""
    parse = {f.name: tf.io.VarLenFeature(tf.dtypes.as_dtype(f.dtype)) for f in spec.features}
    if label:
        parse[spec.label] = tf.io.VarLenFeature(tf.float32)
    return parse
