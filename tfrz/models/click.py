"""What models of impressions share: the embeddings of the fields, and the logit's shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import tensorflow as tf

from tfrz.config import require
from tfrz.data.spec import UserEmbedding
from tfrz.layers.history import LongHistoryAdapter
from tfrz.layers.pooling import mean_of_real
from tfrz.models.base import ZooModel
from tfrz.models.user_embedding import read_user_embedding


class ClickModel(ZooModel):
    """A model that scores an impression by the embeddings of its fields.

    A subclass implements `field_width`, `make_layers`, `build_layers` and `interact`. The
    constructor calls the first three; `config` and the arguments below are set by then.

    Args:
      config: an instance of `config_class`, with a field or property `embedding_scale`, the
        standard deviation of the initial embeddings.
      vocabulary_sizes: input name to the rows of its embedding: padding (id 0), the vocabulary
        and the out-of-vocabulary buckets.
      multivalent: inputs of `vocabulary_sizes` with several ids per example. The field's vector
        is the mean of their embeddings; ids of 0 are left out, and the vector is zero if none is
        left.
      numeric: names of float inputs, already normalised.
      long_history: the embedding of the user that comes with an example; None for none.
      adapter: how it is read, linear or gate (see `tfrz.layers.LongHistoryAdapter`).
      adapter_units: width of its output.

    Call arguments:
      inputs: a dict. Univalent ids int64 `[batch]`, multivalent ids int64 `[batch, values]`,
        numbers float32 `[batch]`; with a long history `long_history_xf` and
        `long_history_version_xf`, string `[batch]`. Other keys are ignored.
      training: whether dropout is on.

    Returns:
      Logits, float32 `[batch]`.

    Raises:
      ConfigError: there are no inputs.
    """

    arguments: ClassVar[tuple[str, ...]] = (
        "vocabulary_sizes",
        "multivalent",
        "numeric",
        "long_history",
        "adapter",
        "adapter_units",
    )

    def __init__(
        self,
        config: Any,
        vocabulary_sizes: Mapping[str, int],
        multivalent: Sequence[str] = (),
        numeric: Sequence[str] = (),
        long_history: UserEmbedding | None = None,
        adapter: Literal["linear", "gate"] = "linear",
        adapter_units: int = 16,
        **kwargs: Any,
    ) -> None:
        super().__init__(config, **kwargs)
        require(bool(vocabulary_sizes or numeric), "inputs", "the model needs at least one")
        self.vocabulary_sizes = dict(vocabulary_sizes)
        self.multivalent, self.numeric = tuple(multivalent), tuple(numeric)
        self.long_history, self.adapter = long_history, adapter
        self.adapter_units = adapter_units if long_history is not None else 0
        width = self.field_width() if vocabulary_sizes else 0
        self.embeddings = {
            name: self.table(f"embedding_{name}", rows, width)
            for name, rows in self.vocabulary_sizes.items()
        }
        self.long_history_adapter = (
            LongHistoryAdapter(adapter_units, adapter, name="long_history", dtype=self.policy)
            if long_history is not None
            else None
        )
        self.make_layers()
        for layer in self.embeddings.values():
            layer.build((None,))
        if self.long_history_adapter is not None and long_history is not None:
            shape = (None, long_history.num_vectors, long_history.dim)
            self.long_history_adapter.build(shape, (None,))
        self.build_layers(width * len(self.embeddings) + len(self.numeric) + self.adapter_units)
        self.built = True

    def field_width(self) -> int:
        """The width of each field's vector."""
        raise NotImplementedError

    def make_layers(self) -> None:
        """Creates the layers that read the embeddings, without their variables."""

    def build_layers(self, dim: int) -> None:
        """Creates the variables of these layers.

        Args:
          dim: the width of x0.
        """

    def embed(self, inputs: Mapping[str, tf.Tensor], training: bool = False) -> tf.Tensor:
        """x0 `[batch, dim]`: the fields' vectors, the numeric inputs, then the long history."""
        del training
        dtype = self.compute_dtype
        fields = []
        for name, layer in self.embeddings.items():
            ids = tf.convert_to_tensor(inputs[name])
            vectors = tf.cast(layer(ids), dtype)
            if name in self.multivalent:
                vectors = mean_of_real(vectors, ids)
            fields.append(vectors)
        fields += [tf.cast(inputs[name], dtype)[:, None] for name in self.numeric]
        if self.long_history_adapter is not None and self.long_history is not None:
            read = self.long_history_adapter(*read_user_embedding(inputs, self.long_history))
            fields.append(tf.cast(read, dtype))
        return tf.concat(fields, axis=1)

    def compute_output_shape(
        self, input_shape: Mapping[str, tuple[int | None, ...]]
    ) -> tuple[int | None, ...]:
        """`[batch]`."""
        return (next(iter(input_shape.values()))[0],)
