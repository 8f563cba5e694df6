"""The transform of histories from aligned raw lists to arrays of a fixed length with a mask.

The same code runs under TensorFlow Transform, in process, and inside the SavedModel.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import tensorflow as tf

from tfrz.data.histories.spec import HistoryConfig, HistorySpec
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

GAP_BUCKETS = 8

# Number of ids of each derived context: 0 for missing, then its values.
TIME_FEATURE_SIZES = {"gap": 1 + GAP_BUCKETS, "hour": 1 + 24, "weekday": 1 + 7}

_NO_TIME = -1


def _right_aligned(
    values: tf.SparseTensor, width: tf.Tensor, missing: str | int | float
) -> tf.Tensor:
    """Converts lists to `[batch, width]`, the last value of each row in the last column."""
    rows = values.indices[:, 0]
    ends = tf.searchsorted(rows, rows, side="right", out_type=tf.int64)
    to_end = ends - tf.range(tf.shape(rows, out_type=tf.int64)[0])
    inside = to_end <= width
    indices = tf.stack([rows, width - to_end], axis=1)
    dense = tf.fill(tf.stack([values.dense_shape[0], width]), tf.cast(missing, values.dtype))
    return tf.tensor_scatter_nd_update(
        dense, tf.boolean_mask(indices, inside), tf.boolean_mask(values.values, inside)
    )


def _arranged(values: tf.Tensor, order: tf.Tensor, length: int) -> tf.Tensor:
    arranged = tf.gather(values, order, batch_dims=1)
    arranged.set_shape([None, length])
    return arranged


def _time_ids(kind: str, times: tf.Tensor, before: tf.Tensor) -> tf.Tensor:
    """Returns ids of a derived context of events at `times` that follow events at `before`."""
    known = times != _NO_TIME
    if kind == "gap":
        known &= before != _NO_TIME
        seconds = tf.cast(tf.maximum(times - before, 0), tf.float32)
        # Less than 10 s, less than 100 s, ..., at least 10^7 s (four months).
        decade = tf.math.log1p(seconds) / np.float32(np.log(10.0))
        ids = 1 + tf.minimum(tf.cast(decade, tf.int64), GAP_BUCKETS - 1)
    elif kind == "hour":
        ids = 1 + times // 3600 % 24
    else:  # 1970-01-01 was a Thursday; Monday is 1.
        ids = 1 + (times // 86400 + 3) % 7
    return tf.where(known, ids, tf.zeros_like(ids))


def preprocess_history(
    inputs: Mapping[str, tf.SparseTensor],
    spec: HistorySpec,
    config: HistoryConfig,
    analyzers: Analyzers,
    with_target: bool = True,
) -> dict[str, Any]:
    """Transforms a batch.

    Lists shorter than `history` are aligned with its newest events. Events without an item are
    dropped. The newest `config.length` events are kept.

    Args:
      inputs: Raw features, sparse `[batch, values]`, as returned by `tf.io.parse_example`.
      spec: Spec of the raw features.
      config: Length, side of the padding, and derived contexts.
      analyzers: Vocabularies and moments.
      with_target: Whether the inputs include the target.

    Returns:
      `history_xf` int64 `[batch, length]` (0 padding, 1..V the vocabulary by falling frequency,
      then out of vocabulary), `mask_xf` int64 `[batch, length]` (1 for events), `seen_xf` sparse
      int64 (all items of the raw history), `target_xf` int64 `[batch]`, and for each context
      `history_<name>_xf` `[batch, length]` and `<name>_xf` `[batch]`: int64 ids or float32. With
      `spec.long_history` also its two features as strings `[batch]`, and for events with times
      `long_history_usable_xf` int64 `[batch, length]`: 0 for events older than the embeddings,
      which would reveal the answers to a model that learns from every event.
    """
    length = config.length
    raw = inputs["history"]
    raw = tf.SparseTensor(raw.indices, raw.values, raw.dense_shape)
    width = tf.constant(length, tf.int64)
    items = _right_aligned(raw, width, "")
    real = tf.not_equal(items, "")
    # A stable sort moves padding to its side and keeps the order of events.
    side = tf.cast(real if config.padding == "left" else ~real, tf.int32)
    order = tf.argsort(side, axis=1, stable=True)
    items, mask = _arranged(items, order, length), _arranged(real, order, length)
    terms = {"item": [raw.values]}
    if with_target:
        target = first_value(inputs[spec.label], "")
        terms["item"].append(target)
    lookup = analyzers.lookup(spec.item_feature, one_a_row(terms["item"]))
    outputs: dict[str, Any] = {
        "history_xf": ids_of(lookup, items),
        "mask_xf": tf.cast(mask, tf.int64),
        "seen_xf": tf.SparseTensor(raw.indices, ids_of(lookup, raw.values), raw.dense_shape),
    }
    if with_target:
        outputs[transformed_name(spec.label)] = ids_of(lookup, target)
    for feature in spec.context:
        old_name, name = f"history_{feature.name}", feature.name
        if name in spec.outcomes and not with_target:
            continue
        if feature.kind == "categorical":
            missing = MISSING[feature.dtype]
            past = _right_aligned(inputs[old_name], width, missing)
            past = as_terms(feature, _arranged(past, order, length))
            now = as_terms(feature, first_value(inputs[name], missing))
            lookup = analyzers.lookup(feature, one_a_row([now]))
            past, now = ids_of(lookup, past), ids_of(lookup, now)
        else:
            past = _right_aligned(inputs[old_name], width, float("nan"))
            past = _arranged(past, order, length)
            now = first_value(inputs[name], float("nan"))
            past, now = _numbers(feature, analyzers, past, now)
        outputs[transformed_name(old_name)] = tf.where(mask, past, tf.zeros_like(past))
        outputs[transformed_name(name)] = now
    if spec.long_history is not None:
        for feature in spec.long_history.features:
            outputs[transformed_name(feature.name)] = first_value(inputs[feature.name], "")
        if spec.time is not None:
            times = _right_aligned(inputs["history_time"], width, _NO_TIME)
            usable = _arranged(times, order, length) >= spec.long_history.generated_at
            outputs["long_history_usable_xf"] = tf.cast(mask & usable, tf.int64)
    if config.time_features:
        times = _right_aligned(inputs["history_time"], width, _NO_TIME)
        times = _arranged(times, order, length)
        request = first_value(inputs["request_time"], _NO_TIME)
        unknown = tf.fill([tf.shape(times)[0], 1], tf.constant(_NO_TIME, tf.int64))
        before = tf.concat([unknown, times[:, :-1]], axis=1)
        last = tf.reduce_max(times, axis=1)
        for kind in config.time_features:
            past = tf.where(mask, _time_ids(kind, times, before), tf.zeros_like(times))
            outputs[transformed_name(f"history_{kind}")] = past
            outputs[transformed_name(kind)] = _time_ids(kind, request, last)
    return outputs


def _numbers(
    feature: Feature, analyzers: Analyzers, past: tf.Tensor, now: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Applies logarithm and scaling to numeric contexts; missing values become 0."""
    past, now = logarithms(feature, past), logarithms(feature, now)
    if feature.standardize:
        mean, variance = analyzers.moments(feature, finite_rows(now))
        scale = tf.math.rsqrt(tf.maximum(variance, 1e-12))
        past, now = (past - mean) * scale, (now - mean) * scale

    def known(values: tf.Tensor) -> tf.Tensor:
        return tf.where(tf.math.is_finite(values), values, tf.zeros_like(values))

    return known(past), known(now)


class HistoryPreprocessor(Preprocessor[HistorySpec, HistoryConfig]):
    """`preprocess_history` with its statistics, fitted in this process."""

    @classmethod
    def fit_examples(
        cls, table: pa.Table, spec: HistorySpec, config: HistoryConfig
    ) -> HistoryPreprocessor:
        """Fits vocabularies and moments to the examples of `table`."""
        chunks = [chunk for name in ("history", spec.label) for chunk in table[name].chunks]
        vocabularies = {"item": ranked_terms(pa.chunked_array(chunks), spec.item_feature)}
        moments = {}
        for feature in spec.context:
            if feature.kind == "categorical":
                vocabularies[feature.name] = ranked_terms(table[feature.name], feature)
            elif feature.standardize:
                moments[feature.name] = fitted_moments(table, feature)
        return cls(spec, vocabularies, moments, config)

    def __call__(
        self, inputs: Mapping[str, tf.SparseTensor], with_label: bool = False
    ) -> dict[str, Any]:
        """Applies `preprocess_history`."""
        return preprocess_history(inputs, self._spec, self._config, self, with_label)
