"""Raw features: their names, kinds, types and encodings."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, TypeVar

import numpy as np
import tensorflow as tf

from tfrz.config import from_mapping, read_yaml, require

T = TypeVar("T")
# Stands for a missing whole number where a value is required; strings use "", floats NaN.
MISSING_INT = int(np.iinfo(np.int64).min)
MISSING: dict[str, str | int | float] = {
    "string": "",
    "int64": MISSING_INT,
    "float32": float("nan"),
}

# The raw features of an example that hold its user's embedding (see `UserEmbedding`).
USER_EMBEDDING = "long_history"

USER_EMBEDDING_VERSION = "long_history_version"


class FromYaml:
    """Base of dataclasses that can be read from a YAML file."""

    @classmethod
    def from_yaml(cls: type[T], path: str | Path) -> T:
        """Reads a YAML file that maps field names to values.

        Raises:
          ConfigError: The file is missing, or contains an unknown name or an invalid value.
        """
        return from_mapping(cls, read_yaml(path), str(path))


class ExampleSpec(FromYaml):
    """Base of the specs of all record types; see `Spec`."""

    label_dtype: ClassVar[tf.DType] = tf.float32

    @property
    def outcome_features(self) -> tuple[str, ...]:
        """Raw features besides the label that are known only after the request."""
        return ()


@dataclasses.dataclass(frozen=True)
class Feature:
    """One raw feature.

    Attributes:
      name: Name of the column or the `tf.Example` feature.
      kind: categorical (looked up in a vocabulary), numeric, time (Unix seconds), or opaque (a
        string passed to the model unchanged; only for the features of `UserEmbedding`).
      dtype: type of the raw values. Categorical: string or int64; numeric: float32; time: int64;
        opaque: string.
      multivalent: Whether an example may have several values.
      vocabulary_size: Number of terms to keep, the most frequent; null keeps all.
      min_count: Drop terms that occur less often than this.
      oov_buckets: Number of ids for terms outside the vocabulary.
      log_offset: Replace x with log(x + log_offset); null for no logarithm. Values at or below
        -log_offset count as missing.
      standardize: Subtract the mean and divide by the standard deviation, after the logarithm.
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
        require(bool(self.name), "feature", "must have a name")
        numeric = self.kind == "numeric"
        require(
            numeric == (self.dtype == "float32"),
            where,
            "numeric features must have dtype float32, others must not",
        )
        require(
            self.kind != "time" or self.dtype == "int64",
            where,
            "time features must have dtype int64",
        )
        added = self.name in (USER_EMBEDDING, USER_EMBEDDING_VERSION)
        require(self.kind != "opaque" or added, where, "a file cannot have features of kind opaque")
        require(
            self.vocabulary_size is None or self.vocabulary_size >= 1,
            where,
            "vocabulary_size must be at least 1",
        )
        require(self.min_count >= 1, where, "min_count must be at least 1")
        require(self.oov_buckets >= 1, where, "oov_buckets must be at least 1")


def numeric(name: str, log_offset: float | None = None, standardize: bool = False) -> Feature:
    """Returns a numeric feature."""
    return Feature(name, "numeric", "float32", log_offset=log_offset, standardize=standardize)


@dataclasses.dataclass(frozen=True)
class UserEmbedding:
    """The stored embedding of its user that an example may carry.

    It adds two raw features: `long_history`, the vectors packed with 4 bits per value, and
    `long_history_version`, the version of the model that produced them. Either may be missing.

    Attributes:
      version: Version of the embeddings that the model is trained on. Embeddings of other versions
        have other coordinates and count as missing.
      num_vectors: Number of vectors per user.
      dim: Width of each vector.
      any_version: Accept embeddings of every version.
      generated_at: Unix seconds; the embeddings contain no event at or after this time.
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
        """The two raw features that it adds to an example."""
        return Feature(USER_EMBEDDING, "opaque"), Feature(USER_EMBEDDING_VERSION, "opaque")


def check_names(features: Iterable[Feature], taken: str, what: str) -> None:
    """Checks that the names of features are distinct and not taken.

    Raises:
      ConfigError: Two features share a name, or a name is taken.
    """
    names = [f.name for f in features]
    for name in names:
        require(names.count(name) == 1, f"feature {name}", "is defined twice")
    require(taken not in names, f"feature {taken}", f"is the {what}")


class Spec(Protocol):
    """The interface of all specs: the raw features of an example."""

    @property
    def features(self) -> tuple[Feature, ...]:
        """Raw features of an example, without the label."""

    @property
    def label(self) -> str:
        """Name of the label feature."""

    @property
    def label_dtype(self) -> tf.DType:
        """Type of the raw label values."""

    @property
    def vocabularies(self) -> tuple[Feature, ...]:
        """Features that have a vocabulary."""

    @property
    def outcome_features(self) -> tuple[str, ...]:
        """Raw features besides the label that are known only after the request."""


def transformed_name(name: str) -> str:
    """Returns the name of a feature after the transform."""
    return f"{name}_xf"


def raw_feature_spec(spec: Spec, label: bool = True) -> dict[str, Any]:
    """Returns the spec for `tf.io.parse_example`; any value may be missing (`VarLenFeature`)."""
    parse = {f.name: tf.io.VarLenFeature(tf.dtypes.as_dtype(f.dtype)) for f in spec.features}
    if label:
        parse[spec.label] = tf.io.VarLenFeature(spec.label_dtype)
        parse |= {name: tf.io.VarLenFeature(tf.float32) for name in spec.outcome_features}
    return parse
