"""DCN-V2: cross layers over the embeddings of all fields, stacked on or beside a ReLU network."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import keras
import tensorflow as tf

from tfrz.config import from_mapping, require, to_mapping
from tfrz.data.spec import UserEmbedding
from tfrz.layers.cross import Cross, LowRankCross, MixtureOfLowRankCross
from tfrz.layers.dropout import SeededDropout
from tfrz.layers.history import LongHistoryAdapter
from tfrz.layers.low_rank import LowRankDense
from tfrz.layers.pooling import mean_of_real
from tfrz.models.long_history import read_long_history


@dataclasses.dataclass(frozen=True)
class DCNv2Config:
    """The shape of a DCN-V2.

    Attributes:
      structure: stacked (the ReLU network reads the last cross layer) or parallel (both read the
        embeddings, and the logit reads both).
      cross: full, low_rank or mixture.
      num_cross_layers: 0 leaves the plain ReLU network.
      rank: of one low-rank layer or of one expert. (The paper's tables quote the total.)
      num_experts: experts of a mixture layer.
      gate: softmax, sigmoid or constant.
      gate_constant: value of constant gates.
      expert_activation: Keras activation inside the subspace; "linear" for none.
      inner_map: whether the experts have the inner map C (equation 4).
      hidden_units: widths of the ReLU layers; none leaves the cross network alone.
      hidden_rank: of the ReLU layers' matrices: one for all or one for each, 0 for a dense layer;
        null leaves all dense.
      embedding_dim: width of each field; null for the paper's rule, the average over the fields
        of 6 * (vocabulary size)^(1/4).
      embedding_scale: standard deviation of the initial embeddings.
      cross_decay: lambda of the penalty on the squared Frobenius norms of the cross layers.
      deep_decay: the same for the kernels of the ReLU layers. The paper does not say whether its
        penalty includes them.
      dropout: share of the ReLU activations dropped in training.
      logit_bias: add a bias to the logit; the paper writes none.
    """

    structure: Literal["stacked", "parallel"] = "stacked"
    cross: Literal["full", "low_rank", "mixture"] = "mixture"
    num_cross_layers: int = 2
    rank: int = 32
    num_experts: int = 4
    gate: Literal["softmax", "sigmoid", "constant"] = "softmax"
    gate_constant: float = 1.0
    expert_activation: str = "tanh"
    inner_map: bool = True
    hidden_units: tuple[int, ...] = (256,)
    hidden_rank: int | tuple[int, ...] | None = None
    embedding_dim: int | None = None
    embedding_scale: float = 0.05
    cross_decay: float = 0.0
    deep_decay: float = 0.0
    dropout: float = 0.0
    logit_bias: bool = False

    def __post_init__(self) -> None:
        require(self.num_cross_layers >= 0, "model.num_cross_layers", "must not be negative")
        require(self.rank >= 1, "model.rank", "must be at least 1")
        require(self.num_experts >= 1, "model.num_experts", "must be at least 1")
        require(all(u >= 1 for u in self.hidden_units), "model.hidden_units", "must be positive")
        ranks = self.hidden_ranks
        require(
            len(ranks) == len(self.hidden_units),
            "model.hidden_rank",
            f"{len(ranks)} ranks for {len(self.hidden_units)} hidden layers",
        )
        for rank, units in zip(ranks, self.hidden_units, strict=True):
            require(
                0 <= rank <= units,
                "model.hidden_rank",
                f"{rank} is not 1 to {units}, the layer's units, nor 0 for a dense layer",
            )
        require(
            self.embedding_dim is None or self.embedding_dim >= 1,
            "model.embedding_dim",
            "must be at least 1, or null for the paper's rule",
        )
        require(self.embedding_scale > 0, "model.embedding_scale", "must be above 0")
        require(self.cross_decay >= 0, "model.cross_decay", "must not be negative")
        require(self.deep_decay >= 0, "model.deep_decay", "must not be negative")
        require(0 <= self.dropout < 1, "model.dropout", "must be at least 0, under 1")
        try:
            keras.activations.get(self.expert_activation)
        except ValueError:
            require(False, "model.expert_activation", f"Keras has no {self.expert_activation!r}")

    @property
    def hidden_ranks(self) -> tuple[int, ...]:
        """The rank of each hidden layer, 0 of a dense one."""
        if isinstance(self.hidden_rank, tuple):
            return self.hidden_rank
        return (self.hidden_rank or 0,) * len(self.hidden_units)


def embedding_width(vocabulary_sizes: Sequence[int]) -> int:
    """The paper's rule: the average over fields of 6 * (vocabulary size)^(1/4), rounded.

    Example:
      >>> embedding_width([10000, 16])
      36
    """
    return round(sum(6 * size**0.25 for size in vocabulary_sizes) / len(vocabulary_sizes))


@keras.saving.register_keras_serializable(package="tfrz")
class DCNv2(keras.Model):
    """Deep & Cross Network V2.

    Formula: with `x0` the concatenation of all embeddings, the numeric inputs and, where the
    examples carry one, the adapted embedding of the user's long history,

        stacked:  logit = w . deep(cross(x0))
        parallel: logit = w . [cross(x0), deep(x0)]

    Args:
      config: the shape of the network.
      vocabulary_sizes: input name to the rows of its embedding: padding (id 0), the vocabulary
        and the out-of-vocabulary buckets.
      multivalent: inputs of `vocabulary_sizes` with several ids per example; the field's vector
        is the mean of their embeddings, ids of 0 left out, and zero if none is left.
      numeric: names of float inputs, already normalised: a cross network of L layers is a
        polynomial of degree L + 1 in them.
      long_history: the embedding of the user that comes with an example; None for none.
      adapter: how it is read, linear or gate (see `tfrz.layers.LongHistoryAdapter`).
      adapter_units: width of what is read.

    Call arguments:
      inputs: a dict. Univalent ids int64 `[batch]`, multivalent ids int64 `[batch, values]`,
        numbers float32 `[batch]`; with a long history `long_history_xf` and
        `long_history_version_xf`, string `[batch]`. Other keys are ignored.
      training: whether dropout is on.

    Returns:
      Logits, float32 `[batch]`.

    Raises:
      ConfigError: no inputs at all, or neither cross nor ReLU layers.

    Example:
      >>> model = DCNv2(DCNv2Config(embedding_dim=4), {"user_xf": 10, "item_xf": 20})
      >>> model({"user_xf": tf.constant([1, 2]), "item_xf": tf.constant([3, 0])}).shape
      TensorShape([2])

    Reference:
      DCN V2 (arXiv 2008.13535), section 3.
    """

    def __init__(
        self,
        config: DCNv2Config,
        vocabulary_sizes: Mapping[str, int],
        multivalent: Sequence[str] = (),
        numeric: Sequence[str] = (),
        long_history: UserEmbedding | None = None,
        adapter: Literal["linear", "gate"] = "linear",
        adapter_units: int = 16,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        require(bool(vocabulary_sizes or numeric), "inputs", "the model needs at least one")
        require(
            bool(config.num_cross_layers or config.hidden_units),
            "model",
            "needs cross layers or hidden units",
        )
        self.config = config
        self.vocabulary_sizes = dict(vocabulary_sizes)
        self.multivalent, self.numeric = tuple(multivalent), tuple(numeric)
        self.long_history, self.adapter = long_history, adapter
        self.adapter_units = adapter_units if long_history is not None else 0
        policy = self._policy()
        width = config.embedding_dim or (
            embedding_width(list(self.vocabulary_sizes.values())) if vocabulary_sizes else 0
        )
        self.embeddings = {
            name: keras.layers.Embedding(
                size,
                width,
                embeddings_initializer=keras.initializers.RandomNormal(
                    stddev=config.embedding_scale
                ),
                name=f"embedding_{name}",
                dtype=policy,
            )
            for name, size in self.vocabulary_sizes.items()
        }
        self.long_history_adapter = (
            LongHistoryAdapter(adapter_units, adapter, name="long_history", dtype=policy)
            if long_history is not None
            else None
        )
        dim = width * len(self.embeddings) + len(self.numeric) + self.adapter_units
        self.cross_layers = [
            self._cross_layer(f"cross_{i}", policy) for i in range(config.num_cross_layers)
        ]
        self.hidden_layers = [
            self._hidden_layer(units, rank, f"hidden_{i}", policy)
            for i, (units, rank) in enumerate(
                zip(config.hidden_units, config.hidden_ranks, strict=True)
            )
        ]
        self.dropouts = [
            SeededDropout(config.dropout, seed=i, name=f"dropout_{i}", dtype=policy)
            for i in range(len(config.hidden_units))
            if config.dropout
        ]
        # The logit stays in float32: a sum of hundreds of terms in bfloat16 would lose it.
        self.logit = keras.layers.Dense(
            1, use_bias=config.logit_bias, name="logit", dtype="float32"
        )
        self._build_parts(dim)

    def _policy(self) -> Any:
        policy = getattr(self, "dtype_policy", None)
        return getattr(policy, "name", policy)

    def _cross_layer(self, name: str, policy: Any) -> keras.layers.Layer:
        config = self.config
        shared = {"frobenius_decay": config.cross_decay, "name": name, "dtype": policy}
        if config.cross == "full":
            return Cross(**shared)
        if config.cross == "low_rank":
            return LowRankCross(config.rank, **shared)
        return MixtureOfLowRankCross(
            config.num_experts,
            config.rank,
            gate=config.gate,
            gate_constant=config.gate_constant,
            expert_activation=config.expert_activation,
            use_inner_map=config.inner_map,
            **shared,
        )

    def _hidden_layer(self, units: int, rank: int, name: str, policy: Any) -> keras.layers.Layer:
        decay = self.config.deep_decay
        shared: dict[str, Any] = {"activation": "relu", "kernel_initializer": "he_normal"}
        shared |= {"name": name, "dtype": policy}
        if rank:
            # L2 has no factor of a half.
            return LowRankDense(units, rank, frobenius_decay=2 * decay, **shared)
        regularizer = keras.regularizers.L2(decay) if decay else None
        return keras.layers.Dense(units, kernel_regularizer=regularizer, **shared)

    def _build_parts(self, dim: int) -> None:
        """Makes all variables now, so that the order of first calls cannot change them."""
        for layer in self.embeddings.values():
            layer.build((None,))
        if self.long_history_adapter is not None:
            shape = (None, self.long_history.num_vectors, self.long_history.dim)
            self.long_history_adapter.build(shape, (None,))
        for layer in self.cross_layers:
            layer.build((None, dim))
        width = dim
        for i, layer in enumerate(self.hidden_layers):
            layer.build((None, width))
            width = layer.units
            if self.dropouts:
                self.dropouts[i].build((None, width))
        if self.hidden_layers and self.cross_layers and self.config.structure == "parallel":
            width += dim
        self.logit.build((None, width))
        self.built = True

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
        if self.long_history is not None:
            read = self.long_history_adapter(*read_long_history(inputs, self.long_history))
            fields.append(tf.cast(read, dtype))
        return tf.concat(fields, axis=1)

    def interact(self, x0: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Logits `[batch]` of embedded inputs `[batch, dim]`: the dense part of the model."""
        x = x0
        for layer in self.cross_layers:
            x = layer(x0, x)
        parallel = self.config.structure == "parallel"
        h = x0 if parallel else x
        for i, layer in enumerate(self.hidden_layers):
            h = layer(h)
            if self.dropouts:
                h = self.dropouts[i](h, training=training)
        if parallel and self.hidden_layers and self.cross_layers:
            h = tf.concat([tf.cast(x, h.dtype), h], axis=1)
        elif not self.hidden_layers:
            h = x
        return tf.squeeze(self.logit(tf.cast(h, tf.float32)), axis=1)

    def call(self, inputs: Mapping[str, tf.Tensor], training: bool = False) -> tf.Tensor:
        """Logits of raw ids and numbers."""
        return self.interact(self.embed(inputs), training=training)

    def compute_output_shape(self, input_shape: Any) -> tuple[int | None, ...]:
        """`[batch]`."""
        return (next(iter(input_shape.values()))[0],)

    def get_config(self) -> dict[str, Any]:
        """Plain values from which `from_config` makes an equal model."""
        values = {
            "config": to_mapping(self.config),
            "vocabulary_sizes": self.vocabulary_sizes,
            "multivalent": list(self.multivalent),
            "numeric": list(self.numeric),
            "name": self.name,
            "dtype": self._policy(),
        }
        if self.long_history is not None:
            values["long_history"] = to_mapping(self.long_history)
            values |= {"adapter": self.adapter, "adapter_units": self.adapter_units}
        return values

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> DCNv2:
        """The inverse of `get_config`."""
        del custom_objects
        values = dict(config)
        values["config"] = from_mapping(DCNv2Config, values["config"], "model")
        if "long_history" in values:
            values["long_history"] = from_mapping(UserEmbedding, values["long_history"])
        return cls(**values)
