"""Raw features as named dense tensors, the form of the `serving_raw` signatures.

A missing value is the empty string, NaN, or the smallest int64; lists are padded with it.

Columns of one request have the same number of rows, and aligned lists the same length: the checks
here are part of the graph, so every server refuses others with INVALID_ARGUMENT and their names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

import tensorflow as tf

from tfrz.data.spec import MISSING_INT, Spec, transformed_name

T = TypeVar("T")


def raw_input_signature(spec: Spec) -> dict[str, tf.TensorSpec]:
    """Names to specs: `[batch]`, or `[batch, values]` for multivalent features."""
    return {
        feature.name: tf.TensorSpec(
            [None, None] if feature.multivalent else [None],
            tf.dtypes.as_dtype(feature.dtype),
            name=feature.name,
        )
        for feature in spec.features
    }


def _refuse_unless(condition: tf.Tensor, message: str, *values: tf.Tensor) -> tf.Operation:
    return tf.debugging.Assert(condition, [tf.strings.format(message, values)])


def _after(checks: Sequence[tf.Operation], features: Mapping[str, T]) -> dict[str, T]:
    """The features, which nothing reads before the checks have passed."""
    # In eager execution checks have run, and there is no operation.
    with tf.control_dependencies([check for check in checks if check is not None]):
        return {
            name: tf.nest.map_structure(tf.identity, value, expand_composites=True)
            for name, value in features.items()
        }


def check_rows(features: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    """Checks that all features have the same number of rows, when the graph runs.

    Args:
      features: Names to tensors `[batch, ...]`; at least one.

    Returns:
      The same features, once they are checked.
    """
    first, *others = features
    checks = []
    rows = tf.shape(features[first])[0]
    for name in others:
        own = tf.shape(features[name])[0]
        message = f"{name} has {{}} rows, {first} has {{}}: give each row a value of every feature"
        checks.append(_refuse_unless(tf.equal(own, rows), message, own, rows))
    return _after(checks, features)


def check_widths(features: Mapping[str, tf.Tensor], aligned: Sequence[str]) -> dict[str, tf.Tensor]:
    """Checks that dense aligned lists have the same number of columns, when the graph runs.

    Args:
      features: Names to tensors `[batch, values]`.
      aligned: Names of the lists, the one that counts first.

    Returns:
      The same features, once they are checked.
    """
    checks = []
    width = tf.shape(features[aligned[0]])[1]
    for name in aligned[1:]:
        own = tf.shape(features[name])[1]
        message = (
            f"{name} has {{}} values a row, {aligned[0]} has {{}}: pad both to the same length"
        )
        checks.append(_refuse_unless(tf.equal(own, width), message, own, width))
    return _after(checks, features)


def _lengths(values: tf.SparseTensor) -> tf.Tensor:
    ones = tf.ones_like(values.indices[:, 0])
    return tf.math.unsorted_segment_sum(ones, values.indices[:, 0], values.dense_shape[0])


def check_lengths(
    raw: Mapping[str, tf.SparseTensor], aligned: Sequence[str], shorter: bool = False
) -> dict[str, tf.SparseTensor]:
    """Checks that aligned lists of serialised examples have one length, when the graph runs.

    A list without any value is one of missing values.

    Args:
      raw: Names to sparse features, as `tf.io.parse_example` returns them.
      aligned: Names of the lists, the one that counts first.
      shorter: Whether other lists may be shorter than the first.

    Returns:
      The same features, once they are checked.
    """
    checks = []
    expected = _lengths(raw[aligned[0]])
    for name in aligned[1:]:
        own = _lengths(raw[name])
        wrong = own > expected if shorter else (own > 0) & tf.not_equal(own, expected)
        row = tf.argmax(tf.concat([wrong, [True]], axis=0), output_type=tf.int32)
        none = tf.zeros([1], own.dtype)
        message = f"{name} has {{}} values in row {{}}, {aligned[0]} has {{}}"
        values = (tf.concat([own, none], 0)[row], row, tf.concat([expected, none], 0)[row])
        checks.append(_refuse_unless(tf.logical_not(tf.reduce_any(wrong)), message, *values))
    return _after(checks, raw)


def to_sparse(
    features: dict[str, tf.Tensor], aligned: Sequence[str] = ()
) -> dict[str, tf.SparseTensor]:
    """The features as `tf.io.parse_example` returns them: without missing values.

    Args:
      features: the tensors of `raw_input_signature`.
      aligned: names of lists with a common order: a place is left out of all of them exactly if it
        is missing from the first.

    Raises:
      tf.errors.InvalidArgumentError: features differ in their rows, or aligned lists in length.
    """
    if features:
        features = check_rows(features)
    if aligned:
        features = check_widths(features, aligned)
    sparse = {}
    for name, value in features.items():
        dense = value[:, tf.newaxis] if value.shape.rank == 1 else value
        if name in aligned:
            present = tf.not_equal(features[aligned[0]], "")
        elif dense.dtype == tf.string:
            present = tf.not_equal(dense, "")
        elif dense.dtype.is_floating:
            present = tf.logical_not(tf.math.is_nan(dense))
        else:
            present = tf.not_equal(dense, MISSING_INT)
        where = tf.where(present)
        sparse[name] = tf.SparseTensor(
            where, tf.gather_nd(dense, where), tf.shape(dense, out_type=tf.int64)
        )
    return sparse


def without_opaque(features: Mapping[str, tf.Tensor], spec: Spec) -> dict[str, tf.Tensor]:
    """Transformed features that JSON can hold: not those of bytes that are no text."""
    opaque = [transformed_name(f.name) for f in spec.features if f.kind == "opaque"]
    return {name: value for name, value in features.items() if name not in opaque}
