"""Conversion of lists from and to `ExampleListWithContext`, the format of TF-Ranking."""

from __future__ import annotations

import pyarrow as pa
import tensorflow as tf
from google.protobuf import descriptor_pb2

from tfrz.data.lists.spec import ListSpec
from tfrz.data.spec import MISSING, MISSING_INT, Feature


def _fill(example: tf.train.Example, name: str, dtype: str, value: bytes | int | float) -> None:
    stored = example.features.feature[name]
    kinds = {"string": stored.bytes_list, "int64": stored.int64_list, "float32": stored.float_list}
    kinds[dtype].value.append(value)


def _context(spec: ListSpec) -> dict[str, Feature]:
    """The raw features of the request, by their names in the messages."""
    return {spec.query: Feature("query"), **{f.name: f for f in spec.context}}


def _descriptor() -> bytes:
    """The part of `ExampleListWithContext` that is read, as an operation of the graph takes it.

    Its examples stay serialised, for TensorFlow's own parser.
    """
    field = descriptor_pb2.FieldDescriptorProto
    files = descriptor_pb2.FileDescriptorSet()
    file = files.file.add(name="tfrz/elwc.proto", package="tfrz", syntax="proto3")
    message = file.message_type.add(name="ExampleListWithContext")
    message.field.add(name="examples", number=1, type=field.TYPE_BYTES, label=field.LABEL_REPEATED)
    message.field.add(name="context", number=2, type=field.TYPE_BYTES, label=field.LABEL_OPTIONAL)
    return b"bytes://" + bytes(files.SerializeToString(deterministic=True))


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
        for name, feature in _context(spec).items():
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
    """Parses `ExampleListWithContext`s to named raw tensors, in the graph.

    Args:
      elwc: Serialised `ExampleListWithContext`s, string `[batch]`.
      spec: Spec of the lists.

    Returns:
      The inputs of `serving_raw`: `[batch, candidates]` for features of candidates, `[batch]` for
      features of the request; missing values are "", NaN or the smallest int64.
    """

    def fixed(dtype: str) -> tf.io.FixedLenFeature:
        return tf.io.FixedLenFeature([1], tf.dtypes.as_dtype(dtype), [MISSING[dtype]])

    item = spec.item or "item"
    _, (examples, contexts) = tf.io.decode_proto(
        elwc,
        "tfrz.ExampleListWithContext",
        ["examples", "context"],
        [tf.string, tf.string],
        descriptor_source=_descriptor(),
    )
    # A message without a context, and the end of a shorter list, are parsed as empty examples.
    contexts = tf.concat([contexts, tf.fill([tf.shape(elwc)[0], 1], "")], axis=1)[:, 0]
    of_context = tf.io.parse_example(
        contexts, {name: fixed(f.dtype) for name, f in _context(spec).items()}
    )
    of_candidates = tf.io.parse_example(
        tf.reshape(examples, [-1]),
        {item: fixed("string"), **{f.name: fixed(f.dtype) for f in spec.candidate}},
    )
    rows = {name: tf.reshape(value, tf.shape(examples)) for name, value in of_candidates.items()}
    return {
        "candidates": rows[item],
        **{feature.name: rows[feature.name] for feature in spec.candidate},
        **{f.name: of_context[name][:, 0] for name, f in _context(spec).items()},
    }
