"""The transform of timelines: ids are looked up, places and weights stay unchanged."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import tensorflow as tf

from tfrz.data.spec import transformed_name
from tfrz.data.timelines.spec import TimelineSpec
from tfrz.data.transform import (
    Analyzers,
    Preprocessor,
    closed_up,
    ids_of,
    one_a_row,
    ranked_terms,
)


@tf.function(
    input_signature=[
        tf.SparseTensorSpec([None, None], dtype) for dtype in (tf.string, tf.int64, tf.float32)
    ]
)
def _as_far_as_all_go(*lists: tf.SparseTensor) -> list[tf.SparseTensor]:
    """Truncates aligned lists, in each row, to the shortest of them.

    This is a `tf.function` so that a SavedModel contains it once, not once per list and signature.
    """
    closed = [closed_up(part) for part in lists]
    batch = closed[0].dense_shape[0]
    lengths = [
        tf.math.unsorted_segment_sum(tf.ones_like(part.indices[:, 0]), part.indices[:, 0], batch)
        for part in closed
    ]
    shortest = tf.reduce_min(tf.stack(lengths), axis=0)
    shape = tf.stack([batch, tf.reduce_max(tf.pad(shortest, [[0, 1]]))])
    cut = []
    for part in closed:
        kept = part.indices[:, 1] < tf.gather(shortest, part.indices[:, 0])
        indices = tf.boolean_mask(part.indices, kept)
        cut.append(tf.SparseTensor(indices, tf.boolean_mask(part.values, kept), shape))
    return cut


def preprocess_timeline(
    inputs: Mapping[str, tf.SparseTensor],
    spec: TimelineSpec,
    analyzers: Analyzers,
    with_label: bool = True,
) -> dict[str, Any]:
    """Transforms a batch.

    Args:
      inputs: Raw features, sparse `[batch, values]`, as returned by `tf.io.parse_example`; lists
        may be left out.
      spec: Spec of the examples, see `example_spec`.
      analyzers: Vocabularies.
      with_label: Whether the inputs include the outcomes.

    Returns:
      For each list `<name>_ids_xf` and `<name>_places_xf` sparse int64 and `<name>_weights_xf`
      sparse float32, all of the same width; with the outcomes `label_<task>_xf` float32
      `[batch, candidates]`, NaN for none.
    """
    outputs: dict[str, Any] = {}
    lists = [one for one in spec.lists if f"{one.name}_ids" in inputs]
    terms: dict[str, list[tf.Tensor]] = {}
    for one in lists:
        terms.setdefault(one.id, []).append(inputs[f"{one.name}_ids"].values)
    lookups = {
        feature.name: analyzers.lookup(feature, one_a_row(terms[feature.name]))
        for feature in spec.vocabularies
        if feature.name in terms
    }
    for one in lists:
        raw = _as_far_as_all_go(*[inputs[feature.name] for feature in one.features])
        values = [ids_of(lookups[one.id], raw[0].values), raw[1].values, raw[2].values]
        for feature, part, value in zip(one.features, raw, values, strict=True):
            outputs[transformed_name(feature.name)] = tf.SparseTensor(
                part.indices, value, part.dense_shape
            )
    if with_label:
        candidates = max(one.places for one in spec.lists if one.name.startswith("candidate_"))
        for task in spec.tasks:
            raw_label = inputs[f"label_{task}"]
            dense = tf.sparse.to_dense(raw_label, float("nan"))
            padding = [[0, 0], [0, candidates]]
            dense = tf.pad(dense, padding, constant_values=float("nan"))[:, :candidates]
            outputs[f"label_{task}_xf"] = tf.ensure_shape(dense, [None, candidates])
    return outputs


class TimelinePreprocessor(Preprocessor[TimelineSpec, None]):
    """`preprocess_timeline` with its vocabularies, fitted in this process."""

    @classmethod
    def fit_examples(cls, examples: pa.Table, spec: TimelineSpec) -> TimelinePreprocessor:
        """Fits a vocabulary for each type of id to the examples."""
        vocabularies = {}
        for feature in spec.vocabularies:
            columns = [examples[f"{one.name}_ids"] for one in spec.lists if one.id == feature.name]
            chunks = [chunk for column in columns for chunk in column.chunks]
            vocabularies[feature.name] = ranked_terms(pa.chunked_array(chunks), feature)
        return cls(spec, vocabularies, {}, None)

    def __call__(
        self, inputs: Mapping[str, tf.SparseTensor], with_label: bool = False
    ) -> dict[str, Any]:
        """Applies `preprocess_timeline`."""
        return preprocess_timeline(inputs, self._spec, self, with_label)
