"""Conversion of lists from and to `ExampleListWithContext`, the format of TF-Ranking."""

from __future__ import annotations

import pyarrow as pa
import tensorflow as tf

from tfrz.data.lists.spec import ListSpec
from tfrz.data.spec import MISSING, MISSING_INT, Feature


def _fill(example: tf.train.Example, name: str, dtype: str, value: bytes | int | float) -> None:
    stored = example.features.feature[name]
    kinds = {"string": stored.bytes_list, "int64": stored.int64_list, "float32": stored.float_list}
    kinds[dtype].value.append(value)


def to_elwc(lists: pa.Table, spec: ListSpec, label: bool = True) -> list[bytes]:
    """Serialises examples (see `build_lists`) as `ExampleListWithContext`s.

    Args:
      lists: Examples, one list per row.
      spec: Spec of the lists.
      label: Whether to write the relevance, under the name that the source uses.

    Returns:
      One message for each row: `context` has the id of the query and the context features, and
      each candidate is an example with its raw id (`spec.item`, or `item`) and features.
    """
    from tensorflow_serving.apis import input_pb2

    item = spec.item or "item"
    serialized = []
    for row in lists.to_pylist():
        elwc = input_pb2.ExampleListWithContext()
        for name, feature in ((spec.query, Feature("query")), *((f.name, f) for f in spec.context)):
            for value in row[feature.name]:
                _fill(elwc.context, name, feature.dtype, value)
        for place, identifier in enumerate(row["candidates"]):
            example = elwc.examples.add()
            _fill(example, item, "string", identifier)
            for feature in spec.candidate:
                value = row[feature.name][place]
                if value not in (b"", MISSING_INT) and value == value:  # NaN is a missing value
                    _fill(example, feature.name, feature.dtype, value)
            if label:
                _fill(example, spec.relevance, "float32", row[spec.label][place])
        serialized.append(elwc.SerializeToString(deterministic=True))
    return serialized


def parse_elwc(elwc: tf.Tensor, spec: ListSpec) -> dict[str, tf.Tensor]:
    """Parses `ExampleListWithContext`s to named raw tensors, with TF-Ranking's parser.

    Args:
      elwc: Serialised `ExampleListWithContext`s, string `[batch]`.
      spec: Spec of the lists.

    Returns:
      The inputs of `serving_raw`: `[batch, candidates]` for features of candidates, `[batch]` for
      features of the request; missing values are "", NaN or the smallest int64.
    """
    import tensorflow_ranking as tfr

    def fixed(dtype: str) -> tf.io.FixedLenFeature:
        return tf.io.FixedLenFeature([1], tf.dtypes.as_dtype(dtype), [MISSING[dtype]])

    item = spec.item or "item"
    parsed = tfr.data.parse_from_example_list(
        elwc,
        context_feature_spec={
            spec.query: fixed("string"),
            **{f.name: fixed(f.dtype) for f in spec.context},
        },
        example_feature_spec={
            item: fixed("string"),
            **{f.name: fixed(f.dtype) for f in spec.candidate},
        },
    )
    named = {"candidates": parsed[item][..., 0], "query": parsed[spec.query][:, 0]}
    for feature in spec.candidate:
        named[feature.name] = parsed[feature.name][..., 0]
    for feature in spec.context:
        named[feature.name] = parsed[feature.name][:, 0]
    return named
