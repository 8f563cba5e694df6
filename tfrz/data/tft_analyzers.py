"""TensorFlow Transform's analyzers behind the `Analyzers` interface."""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf
import tensorflow_transform as tft

from tfrz.data.spec import Feature, Spec, transformed_name


def vocabulary_name(feature_name: str) -> str:
    """Returns the name of a feature's vocabulary file in the transform's assets."""
    return f"{feature_name}_vocabulary"


class TransformAnalyzers:
    """Vocabularies and moments computed by Beam over the whole data set."""

    def lookup(self, feature: Feature, tokens: tf.SparseTensor) -> Callable[[tf.Tensor], tf.Tensor]:
        """See `tfrz.data.transform.Analyzers`."""
        path = tft.vocabulary(
            tokens,
            top_k=feature.vocabulary_size,
            frequency_threshold=feature.min_count if feature.min_count > 1 else None,
            vocab_filename=vocabulary_name(feature.name),
        )
        return lambda terms: (
            1 + tft.apply_vocabulary(terms, path, num_oov_buckets=feature.oov_buckets)
        )

    def moments(self, feature: Feature, values: tf.SparseTensor) -> tuple[tf.Tensor, tf.Tensor]:
        """See `tfrz.data.transform.Analyzers`."""
        return tft.mean(values), tft.var(values)


def vocabularies_from_transform(output: tft.TFTransformOutput, spec: Spec) -> dict[str, list[str]]:
    """Maps transformed names to terms in the order of their ids, which start at 1.

    Args:
      output: A `tft.TFTransformOutput`.
      spec: The raw features.
    """
    return {
        transformed_name(f.name): [
            term.decode("utf-8", "backslashreplace")
            for term in output.vocabulary_by_name(vocabulary_name(f.name))
        ]
        for f in spec.vocabularies
    }


def vocabulary_sizes_from_transform(output: tft.TFTransformOutput, spec: Spec) -> dict[str, int]:
    """Maps transformed names to the number of ids: padding, vocabulary, OOV buckets."""
    return {
        transformed_name(f.name): 1
        + max(output.vocabulary_size_by_name(vocabulary_name(f.name)), 1)
        + f.oov_buckets
        for f in spec.vocabularies
    }
