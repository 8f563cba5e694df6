"""Raw features as named dense tensors, the form of the `serving_raw` signatures.

A missing value is the empty string, NaN, or the smallest int64; lists are padded with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import tensorflow as tf

from tfrz.data.spec import MISSING_INT, Spec, transformed_name


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


def to_sparse(
    features: dict[str, tf.Tensor], aligned: Sequence[str] = ()
) -> dict[str, tf.SparseTensor]:
    """The features as `tf.io.parse_example` returns them: without missing values.

    Args:
      features: the tensors of `raw_input_signature`.
      aligned: names of lists with a common order: a place is left out of all of them exactly if it
        is missing from the first.
    """
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
