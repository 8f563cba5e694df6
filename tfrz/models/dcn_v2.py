"""DCN-V2: cross layers on the embeddings of all fields, below or beside a ReLU network."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import keras
import tensorflow as tf

from tfrz.config import check_range, require
from tfrz.layers.cross import Cross, LowRankCross, MixtureOfLowRankCross
from tfrz.layers.dropout import SeededDropout
from tfrz.layers.low_rank_dense import LowRankDense
from tfrz.models.base import build_stack
from tfrz.models.click import ClickModel
from tfrz.models.factorizable import placed_layers


@dataclasses.dataclass(frozen=True)
class DCNv2Config:
    """The shape of a DCN-V2.

    Attributes:
      structure: stacked (the ReLU network reads the last cross layer) or parallel (both read the
        embeddings, and the logit reads both).
      cross: the kind of cross layers: full, low_rank or mixture.
      num_cross_layers: number of cross layers; 0 for a plain ReLU network.
      rank: rank of one low-rank layer or of one expert. The paper's tables quote the total.
      num_experts: experts of a mixture layer.
      gate: softmax, sigmoid or constant.
      gate_constant: the value of constant gates.
      expert_activation: Keras activation inside the subspace; "linear" for none.
      inner_map: whether the experts have the inner map C (equation 4).
      hidden_units: widths of the ReLU layers; empty for a cross network without any.
      hidden_rank: rank of the ReLU layers' matrices, one for all or one for each; 0 for a dense
        layer, null if all are dense.
      embedding_dim: width of each field; null for the paper's rule, the average over the fields
        of 6 * (vocabulary size)^(1/4).
      embedding_scale: standard deviation of the initial embeddings.
      cross_decay: weight lambda of the penalty on the squared Frobenius norms of the cross layers.
      deep_decay: the same for the kernels of the ReLU layers. The paper does not say whether its
        penalty includes them.
      dropout: share of the ReLU activations dropped in training.
      logit_bias: add a bias to the logit; the paper has none.
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
        check_range(self, "model", "num_cross_layers", "cross_decay", "deep_decay", at_least=0)
        check_range(
            self, "model", "rank", "num_experts", "hidden_units", "embedding_dim", at_least=1
        )
        check_range(self, "model", "embedding_scale", above=0)
        check_range(self, "model", "dropout", at_least=0, below=1)
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
    widths = [6 * math.pow(size, 0.25) for size in vocabulary_sizes]
    return round(sum(widths) / len(widths))


@keras.saving.register_keras_serializable(package="tfrz")
class DCNv2(ClickModel):
    """Deep & Cross Network V2.

    Formula: with `x0` the concatenation of all embeddings, of the numeric inputs and, if examples
    carry one, of the adapted embedding of the user's long history,

        stacked:  logit = w . deep(cross(x0))
        parallel: logit = w . [cross(x0), deep(x0)]

    Args:
      config: the shape of the network.
      vocabulary_sizes: input name to the rows of its embedding: padding (id 0), the vocabulary
        and the out-of-vocabulary buckets.
      multivalent: inputs of `vocabulary_sizes` with several ids per example; the field's vector
        is the mean of their embeddings. Ids of 0 are left out; the vector is zero if none is left.
      numeric: names of float inputs, already normalised: a cross network of L layers is a
        polynomial of degree L + 1 in them.
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
      ConfigError: there are no inputs, or neither cross nor ReLU layers.

    Example:
      >>> model = DCNv2(DCNv2Config(embedding_dim=4), {"user_xf": 10, "item_xf": 20})
      >>> model({"user_xf": tf.constant([1, 2]), "item_xf": tf.constant([3, 0])}).shape
      TensorShape([2])

    Reference:
      DCN V2 (arXiv 2008.13535), section 3.
    """

    config_class = DCNv2Config
    config: DCNv2Config

    def field_width(self) -> int:
        """`config.embedding_dim`, or the paper's rule."""
        return self.config.embedding_dim or embedding_width(list(self.vocabulary_sizes.values()))

    def make_layers(self) -> None:
        """Creates the cross and hidden layers and the logit."""
        config = self.config
        require(
            bool(config.num_cross_layers or config.hidden_units),
            "model",
            "needs cross layers or hidden units",
        )
        self.cross_layers = [
            self._cross_layer(f"cross_{i}") for i in range(config.num_cross_layers)
        ]
        self.hidden_layers = [
            self._hidden_layer(units, rank, f"hidden_{i}")
            for i, (units, rank) in enumerate(
                zip(config.hidden_units, config.hidden_ranks, strict=True)
            )
        ]
        self.dropouts = [
            SeededDropout(config.dropout, seed=i, name=f"dropout_{i}", dtype=self.policy)
            for i in range(len(config.hidden_units))
            if config.dropout
        ]
        # The logit stays in float32: a sum of hundreds of terms loses too much in bfloat16.
        self.logit = keras.layers.Dense(
            1, use_bias=config.logit_bias, name="logit", dtype="float32"
        )

    def _cross_layer(self, name: str) -> keras.layers.Layer:
        config = self.config
        shared: dict[str, Any] = {"name": name, "dtype": self.policy}
        shared["frobenius_decay"] = config.cross_decay
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

    def _hidden_layer(self, units: int, rank: int, name: str) -> keras.layers.Layer:
        decay = self.config.deep_decay
        shared: dict[str, Any] = {"activation": "relu", "kernel_initializer": "he_normal"}
        shared |= {"name": name, "dtype": self.policy}
        if rank:
            # L2 has no factor of a half.
            return LowRankDense(units, rank, frobenius_decay=2 * decay, **shared)
        regularizer = keras.regularizers.L2(decay) if decay else None
        return keras.layers.Dense(units, kernel_regularizer=regularizer, **shared)

    def build_layers(self, dim: int) -> None:
        """Creates the variables of these layers, the cross layers' first."""
        for layer in self.cross_layers:
            layer.build((None, dim))
        width = build_stack(self.hidden_layers, dim)
        for layer in self.dropouts:
            layer.build(None)
        if self.hidden_layers and self.cross_layers and self.config.structure == "parallel":
            width += dim
        self.logit.build((None, width))

    def interact(self, x0: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Logits `[batch]` of embedded inputs `[batch, dim]`."""
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

    def factorizable(self) -> dict[str, keras.layers.Layer]:
        """The cross and hidden layers, by name."""
        return {layer.name: layer for layer in (*self.cross_layers, *self.hidden_layers)}

    def successor(self, ranks: Mapping[str, int], frobenius_decay: float) -> DCNv2:
        """A model with low-rank layers in some places and this model's weights in all others.

        Args:
          ranks: names of layers to their ranks, the same for all cross layers. The factors of
            these layers keep their initial values.
          frobenius_decay: of the new layers, which becomes `deep_decay`; 0 for what this model has.

        Raises:
          ConfigError: both `frobenius_decay` and the model's `deep_decay` are given.
        """
        config = self.config
        require(
            not (frobenius_decay and config.deep_decay),
            "low_rank.frobenius_decay",
            "model.deep_decay means the same: give one of them",
        )
        changes: dict[str, Any] = {"deep_decay": frobenius_decay / 2} if frobenius_decay else {}
        if any(layer.name in ranks for layer in self.hidden_layers):
            changes["hidden_rank"] = tuple(
                ranks.get(layer.name, rank)
                for layer, rank in zip(self.hidden_layers, config.hidden_ranks, strict=True)
            )
        crosses = [ranks[layer.name] for layer in self.cross_layers if layer.name in ranks]
        if crosses:
            changes |= {"cross": "low_rank", "rank": crosses[0]}
        values = self.get_config()
        values["config"] = {**values["config"], **changes}
        new = DCNv2.from_config(values)
        for after, before in zip(placed_layers(new), placed_layers(self), strict=True):
            # The counters of dropout, which are not trained, start anew.
            if before.trainable_weights and before.name not in ranks:
                after.set_weights(before.get_weights())
        return new
