"""What all models of the zoo share: a configuration, the dtype policy, saving and loading."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, TypeVar

import keras
import tensorflow as tf

from tfrz.config import from_mapping, to_mapping
from tfrz.data.spec import UserEmbedding
from tfrz.models.factorizable import low_rank_layers, with_low_rank

Model = TypeVar("Model", bound="ZooModel")

# Saved only by models that read an embedding of the user.
_LONG_HISTORY_ARGUMENTS = ("long_history", "adapter", "adapter_units")


def build_stack(layers: Iterable[keras.layers.Layer], width: int) -> int:
    """Creates the variables of dense layers, each of which reads the output of the one before.

    Args:
      layers: `Dense` or `LowRankDense`.
      width: the last dimension of the first layer's input.

    Returns:
      The last dimension of the last layer's output.
    """
    for layer in layers:
        layer.build((None, width))
        width = layer.units
    return width


class ZooModel(keras.Model):
    """A model that is described by a configuration dataclass and works in two steps.

    `embed` looks up embeddings, and `interact` computes the output from them. Training compiles
    the second step only, because XLA makes the gradients of lookups dense.

    A subclass sets `config_class` and `arguments`, keeps every constructor argument in an attribute
    of the same name, and implements `embed`, `interact` and `compute_output_shape`. It makes all
    its variables in the constructor, so that their initial values depend on the seed alone, and
    keeps them in layers with unique names: SavedModels and warm starts find weights by these.

    Attributes:
      config_class: the class of `config`.
      arguments: names of the constructor's other arguments.
      config: the model's configuration, an instance of `config_class`.
    """

    config_class: ClassVar[type]
    arguments: ClassVar[tuple[str, ...]]
    config: Any

    def __init__(self, config: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.config = config

    @property
    def policy(self) -> str:
        """The name of the dtype policy, for the model's layers."""
        return str(getattr(self.dtype_policy, "name", self.dtype_policy))

    def table(
        self,
        name: str,
        rows: int,
        dim: int,
        dtype: str | None = None,
        initializer: keras.initializers.Initializer | str | None = None,
    ) -> keras.layers.Embedding:
        """An embedding table; normal with `config.embedding_scale` unless told otherwise."""
        if initializer is None:
            initializer = keras.initializers.RandomNormal(stddev=self.config.embedding_scale)
        return keras.layers.Embedding(
            rows, dim, embeddings_initializer=initializer, name=name, dtype=dtype or self.policy
        )

    def embed(self, inputs: Mapping[str, tf.Tensor], training: bool = False) -> Any:
        """Looks up embeddings.

        Args:
          inputs: transformed features, by name.
          training: whether the model is being trained.

        Returns:
          What `interact` reads: a tensor, or a dict of tensors.
        """
        raise NotImplementedError

    def interact(self, embedded: Any, training: bool = False) -> tf.Tensor:
        """Computes the model's output from the result of `embed`."""
        raise NotImplementedError

    def call(self, inputs: Mapping[str, tf.Tensor], training: bool = False) -> tf.Tensor:
        """Computes the model's output from transformed features."""
        return self.interact(self.embed(inputs, training=training), training=training)

    def get_config(self) -> dict[str, Any]:
        """Plain values from which `from_config` makes an equal model."""
        reads_users = getattr(self, "long_history", None) is not None
        left_out = () if reads_users else _LONG_HISTORY_ARGUMENTS
        names = [name for name in ("config", *self.arguments) if name not in left_out]
        values = {name: to_mapping(getattr(self, name)) for name in names}
        return {**values, "name": self.name, "dtype": self.policy, **low_rank_layers(self)}

    @classmethod
    def from_config(cls: type[Model], config: dict[str, Any], custom_objects: Any = None) -> Model:
        """The inverse of `get_config`."""
        del custom_objects
        values = dict(config)
        values["config"] = from_mapping(cls.config_class, values["config"], "model")
        if "long_history" in values:
            values["long_history"] = from_mapping(UserEmbedding, values["long_history"])
        low_rank = values.pop("low_rank", {})
        return with_low_rank(cls(**values), low_rank)
