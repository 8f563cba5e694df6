"""The transform of impressions from raw features to model inputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import tensorflow as tf

from tfrz.data.impressions.spec import FeatureSpec
from tfrz.data.spec import Feature, transformed_name
from tfrz.data.transform import (
    Analyzers,
    Preprocessor,
    closed_up,
    first_value,
    fitted_moments,
    numbers,
    ranked_terms,
)


def _tokens(feature: Feature, values: tf.SparseTensor) -> tf.SparseTensor:
    """Converts raw categorical values to strings; drops empty ones."""
    tokens = values.values if feature.dtype == "string" else tf.strings.as_string(values.values)
    sparse = tf.SparseTensor(values.indices, tokens, values.dense_shape)
    return closed_up(tf.sparse.retain(sparse, tf.not_equal(tokens, "")))


def preprocess(
    inputs: Mapping[str, tf.SparseTensor],
    spec: FeatureSpec,
    analyzers: Analyzers,
    with_label: bool = True,
) -> dict[str, Any]:
    """Transforms a batch.

    Args:
      inputs: Raw features, sparse `[batch, values]`, as returned by `tf.io.parse_example`.
      spec: Spec of the raw features.
      analyzers: Vocabularies and moments.
      with_label: Whether the inputs include the label and outcomes.

    Returns:
      A dict whose keys end in `_xf`: int64 `[batch]` for categorical features (0 for missing,
      1..V for the vocabulary, then out-of-vocabulary ids), sparse int64 for multivalent ones,
      float32 `[batch]` for numeric features (0 for missing), the label and outcomes, and string
      `[batch]` for opaque features.
    """
    outputs: dict[str, Any] = {}
    for feature in spec.features:
        name = transformed_name(feature.name)
        if feature.kind == "numeric":
            values = numbers(feature, inputs[feature.name])
            if feature.standardize:
                mean, variance = analyzers.moments(feature, values)
                scaled = (values.values - mean) * tf.math.rsqrt(tf.maximum(variance, 1e-12))
                values = tf.SparseTensor(values.indices, scaled, values.dense_shape)
            outputs[name] = first_value(values, 0.0)
            continue
        if feature.kind == "opaque":
            outputs[name] = first_value(inputs[feature.name], "")
            continue
        tokens = _tokens(feature, inputs[feature.name])
        ids = tf.SparseTensor(
            tokens.indices, analyzers.lookup(feature, tokens)(tokens.values), tokens.dense_shape
        )
        outputs[name] = ids if feature.multivalent else first_value(ids, 0)
    if with_label:
        for name in (spec.label, *spec.outcomes):
            known = tf.math.is_finite(inputs[name].values)
            outputs[transformed_name(name)] = first_value(
                tf.sparse.retain(inputs[name], known), 0.0
            )
    return outputs


class ImpressionPreprocessor(Preprocessor[FeatureSpec, None]):
    """`preprocess` with its statistics, fitted in this process and saved in a SavedModel."""

    @classmethod
    def fit(cls, table: pa.Table, spec: FeatureSpec) -> ImpressionPreprocessor:
        """Fits vocabularies and moments to the rows of `table`."""
        vocabularies = {f.name: ranked_terms(table.column(f.name), f) for f in spec.categorical}
        moments = {f.name: fitted_moments(table, f) for f in spec.numeric if f.standardize}
        return cls(spec, vocabularies, moments, None)

    def __call__(
        self, inputs: Mapping[str, tf.SparseTensor], with_label: bool = False
    ) -> dict[str, Any]:
        """Applies `preprocess`."""
        return preprocess(inputs, self._spec, self, with_label)
