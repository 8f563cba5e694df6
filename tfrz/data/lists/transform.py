"""The transform of lists from raw features to model inputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import tensorflow as tf

from tfrz.data.columns import first_of_each
from tfrz.data.lists.spec import ListConfig, ListSpec
from tfrz.data.spec import MISSING, Feature, transformed_name
from tfrz.data.transform import (
    Analyzers,
    Preprocessor,
    as_terms,
    finite_rows,
    first_value,
    fitted_moments,
    ids_of,
    logarithms,
    one_a_row,
    ranked_terms,
)

_EPSILON = 1e-6

_GREATEST = 1e18


def normalized(values: tf.Tensor, valid: tf.Tensor, config: ListConfig) -> tf.Tensor:
    """Normalises numeric features within their lists.

    Args:
      values: Features `[lists, length, features]`; NaN for missing values.
      valid: Mask, boolean `[lists, length]`.
      config: Logarithm and normalisation.

    Returns:
      Features of the same shape; 0 for missing and masked values, and if all are equal.
    """
    known = valid[..., None] & tf.math.is_finite(values)
    nothing = tf.zeros_like(values)
    # Keep squares and differences finite.
    values = tf.clip_by_value(tf.where(known, values, nothing), -_GREATEST, _GREATEST)
    if config.log_features:
        values = tf.sign(values) * tf.math.log1p(tf.abs(values))
    if config.normalize == "standardize":
        count = tf.reduce_sum(tf.cast(known, values.dtype), axis=1, keepdims=True)
        mean = tf.reduce_sum(values, axis=1, keepdims=True) / tf.maximum(count, 1.0)
        off = tf.where(known, values - mean, nothing)
        variance = tf.reduce_sum(off**2, axis=1, keepdims=True) / tf.maximum(count, 1.0)
        # Do not amplify rounding errors of equal values.
        scale = tf.sqrt(variance)
        flat = scale <= _EPSILON * tf.maximum(tf.abs(mean), _EPSILON)
        values = tf.where(flat, nothing, off / tf.where(flat, tf.ones_like(scale), scale))
    elif config.normalize == "min_max":
        far = tf.constant(values.dtype.max, values.dtype)
        low = tf.reduce_min(tf.where(known, values, far), axis=1, keepdims=True)
        high = tf.reduce_max(tf.where(known, values, -far), axis=1, keepdims=True)
        span = high - low
        flat = span <= _EPSILON * tf.maximum(tf.maximum(tf.abs(low), tf.abs(high)), _EPSILON)
        values = tf.where(flat, nothing, (values - low) / tf.where(flat, tf.ones_like(span), span))
    return tf.where(known, values, nothing)


def _cut(values: tf.SparseTensor, length: int, default: str | int | float) -> tf.Tensor:
    """Returns the first `length` values of each row, padded with `default`."""
    values = tf.SparseTensor(values.indices, values.values, values.dense_shape)
    kept = tf.sparse.retain(values, values.indices[:, 1] < length)
    shape = tf.stack([values.dense_shape[0], tf.constant(length, tf.int64)])
    dense = tf.sparse.to_dense(tf.SparseTensor(kept.indices, kept.values, shape), default)
    return tf.ensure_shape(dense, [None, length])


def _scaled(feature: Feature, analyzers: Analyzers, values: tf.Tensor) -> tf.Tensor:
    """Applies a feature's logarithm and scaling over all lists; missing values are NaN."""
    values = logarithms(feature, values)
    if feature.standardize:
        mean, variance = analyzers.moments(feature, finite_rows(values))
        values = (values - mean) * tf.math.rsqrt(tf.maximum(variance, 1e-12))
    return values


def preprocess_list(
    inputs: Mapping[str, tf.SparseTensor],
    spec: ListSpec,
    config: ListConfig,
    analyzers: Analyzers,
    with_label: bool = True,
) -> dict[str, Any]:
    """Transforms a batch of lists, N = `config.length`.

    Args:
      inputs: Raw features, sparse `[batch, values]`, as returned by `tf.io.parse_example`.
      spec: Spec of the raw features.
      config: Length and normalisation.
      analyzers: Vocabularies and moments.
      with_label: Whether the inputs include the relevance.

    Returns:
      `features_xf` float32 `[batch, N, numeric features]`, `mask_xf` int64 `[batch, N]` (1 for
      candidates), `<name>_xf` int64 `[batch, N]` for categorical features of candidates and
      `[batch]` for those of the request, `context_xf` float32 `[batch, numeric context]` if there
      are numeric contexts, `query_xf` int64 `[batch]`, and `relevance_xf` float32 `[batch, N]`, not
      negative.
    """
    length = config.length
    valid = tf.not_equal(_cut(inputs["candidates"], length, ""), "")
    outputs: dict[str, Any] = {"mask_xf": tf.cast(valid, tf.int64)}
    numeric = []
    for feature in spec.candidate:
        raw = inputs[feature.name]
        if feature.kind == "numeric":
            numeric.append(_scaled(feature, analyzers, _cut(raw, length, float("nan"))))
            continue
        missing = MISSING[feature.dtype]
        terms = as_terms(feature, _cut(raw, length, missing))
        lookup = analyzers.lookup(feature, one_a_row([tf.reshape(terms, [-1])]))
        ids = ids_of(lookup, terms)
        outputs[transformed_name(feature.name)] = tf.where(valid, ids, tf.zeros_like(ids))
    stacked = tf.stack(numeric, axis=-1) if numeric else tf.zeros([tf.shape(valid)[0], length, 0])
    outputs["features_xf"] = normalized(stacked, valid, config)
    context = []
    for feature in (*spec.context, spec.query_feature):
        raw = inputs[feature.name]
        if feature.kind == "numeric":
            value = _scaled(feature, analyzers, first_value(raw, float("nan")))
            context.append(tf.where(tf.math.is_finite(value), value, tf.zeros_like(value)))
            continue
        missing = MISSING[feature.dtype]
        terms = as_terms(feature, first_value(raw, missing))
        outputs[transformed_name(feature.name)] = ids_of(
            analyzers.lookup(feature, one_a_row([terms])), terms
        )
    if context:
        outputs["context_xf"] = tf.stack(context, axis=-1)
    if with_label:
        label = _cut(inputs[spec.label], length, 0.0)
        real = valid & tf.math.is_finite(label)
        label = tf.where(real, tf.maximum(label, 0.0), tf.zeros_like(label))
        outputs[transformed_name(spec.label)] = label
    return outputs


class ListPreprocessor(Preprocessor[ListSpec, ListConfig]):
    """`preprocess_list` with its statistics, fitted in this process."""

    @classmethod
    def fit_examples(cls, table: pa.Table, spec: ListSpec, config: ListConfig) -> ListPreprocessor:
        """Fits vocabularies and moments to the lists of `table`."""
        # Candidates that the model does not read must not enter the vocabulary.
        for place, name in enumerate(table.column_names):
            if name in spec.aligned:
                chunks = [first_of_each(chunk, config.length) for chunk in table[name].chunks]
                column = pa.chunked_array(chunks, table[name].type)
                table = table.set_column(place, name, column)
        vocabularies = {f.name: ranked_terms(table[f.name], f) for f in spec.vocabularies}
        both = (*spec.candidate, *spec.context)
        moments = {f.name: fitted_moments(table, f) for f in both if f.standardize}
        return cls(spec, vocabularies, moments, config)

    def __call__(
        self, inputs: Mapping[str, tf.SparseTensor], with_label: bool = False
    ) -> dict[str, Any]:
        """Applies `preprocess_list`."""
        return preprocess_list(inputs, self._spec, self._config, self, with_label)
