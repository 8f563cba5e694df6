"""What the raw features of a source are: names, kinds, types and how they are to be encoded."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import numpy as np
import tensorflow as tf

from tfrz.config import from_mapping, read_yaml, require

T = TypeVar("T")
# A missing whole number where something must stand; of strings it is "", of floats NaN.
MISSING_INT = int(np.iinfo(np.int64).min)
MISSING = {"string": "", "int64": MISSING_INT, "float32": float("nan")}

# The raw features of an example that hold its user's embedding (see `UserEmbedding`).
USER_EMBEDDING = "long_history"

USER_EMBEDDING_VERSION = "long_history_version"


class FromYaml:
    """A dataclass that a YAML file describes."""

    @classmethod
    def from_yaml(cls: type[T], path: str | Path) -> T:
        """Reads the file: names of the fields to their values.

        Raises:
          ConfigError: the file is missing, or a name or value in it is wrong.
        """
        return from_mapping(cls, read_yaml(path), str(path))


@dataclasses.dataclass(frozen=True)
class Feature:
    """One raw feature.

    Attributes:
      name: of the column or the `tf.Example` feature.
      kind: categorical (looked up in a vocabulary), numeric, time (Unix seconds), or opaque (a
        string that reaches the model as it is; only what `UserEmbedding` adds).
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
        added = self.name in (USER_EMBEDDING, USER_EMBEDDING_VERSION)
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
class UserEmbedding:
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
        return Feature(USER_EMBEDDING, "opaque"), Feature(USER_EMBEDDING_VERSION, "opaque")


def check_names(features: Iterable[Feature], taken: str, what: str) -> None:
    """Refuses two features of one name, and one whose name is taken.

    Raises:
      ConfigError: names the feature.
    """
    names = [f.name for f in features]
    for name in names:
        require(names.count(name) == 1, f"feature {name}", "is there twice")
    require(taken not in names, f"feature {taken}", f"is the {what}")


class Spec(Protocol):
    """What the specs of all record types have in common: the raw features of an example."""

    @property
    def features(self) -> tuple[Feature, ...]:
        """The raw features of an example, without the label."""

    @property
    def label(self) -> str:
        """Name of the label."""

    @property
    def label_dtype(self) -> tf.DType:
        """Type of the raw label."""

    @property
    def vocabularies(self) -> tuple[Feature, ...]:
        """Features that have a vocabulary."""

    @property
    def outcome_features(self) -> tuple[str, ...]:
        """Raw features that are known only afterwards, besides the label."""


def transformed_name(name: str) -> str:
    """The name of a feature after the transform."""
    return f"{name}_xf"


def raw_feature_spec(spec: Spec, label: bool = True) -> dict[str, Any]:
    """What `tf.io.parse_example` takes: every value may be missing, so all are `VarLenFeature`."""
    parse = {f.name: tf.io.VarLenFeature(tf.dtypes.as_dtype(f.dtype)) for f in spec.features}
    if label:
        parse[spec.label] = tf.io.VarLenFeature(spec.label_dtype)
        parse |= {name: tf.io.VarLenFeature(tf.float32) for name in spec.outcome_features}
    return parse
