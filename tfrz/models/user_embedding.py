"""Reading the embedding of a user's long history that comes with a request."""

from __future__ import annotations

from collections.abc import Mapping

import tensorflow as tf

from tfrz.data.spec import USER_EMBEDDING, USER_EMBEDDING_VERSION, UserEmbedding, transformed_name
from tfrz.layers.quantize import packed_bytes, unpack4_strings


def read_user_embedding(
    inputs: Mapping[str, tf.Tensor], described: UserEmbedding
) -> tuple[tf.Tensor, tf.Tensor]:
    """The vectors of each example's user, and whether they are missing.

    Vectors are missing if the feature is empty, has another length or, unless
    `described.any_version`, is of another version. Its bytes then have no effect.

    Args:
      inputs: `long_history_xf` and `long_history_version_xf`, string `[batch]`.
      described: what the model was trained on.

    Returns:
      float32 `[batch, vectors, dim]`, zeros where missing, and bool `[batch]`.
    """
    packed = tf.convert_to_tensor(inputs[transformed_name(USER_EMBEDDING)])
    length = packed_bytes(described.num_vectors, described.dim)
    missing = tf.not_equal(tf.strings.length(packed), length)
    if not described.any_version:
        version = tf.convert_to_tensor(inputs[transformed_name(USER_EMBEDDING_VERSION)])
        missing |= tf.not_equal(version, described.version)
    # The adapter hides missing vectors, but a NaN among them would return in the gradients.
    known = tf.where(missing, tf.fill(tf.shape(packed), ""), packed)
    return unpack4_strings(known, described.num_vectors, described.dim), missing
