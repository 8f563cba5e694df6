"""A model of impressions from outside the package: a factorization machine."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import keras
import tensorflow as tf

from tfrz.config import check_range
from tfrz.models import ClickModel
from tfrz.zoo import registry


@dataclasses.dataclass(frozen=True)
class FactorizationMachineConfig:
    """The shape of a `FactorizationMachine`.

    Attributes:
      dim: width of the factors.
      embedding_scale: standard deviation of the initial weights.
    """

    dim: int = 8
    embedding_scale: float = 0.05

    def __post_init__(self) -> None:
        check_range(self, "model", "dim", at_least=1)
        check_range(self, "model", "embedding_scale", above=0)


@keras.saving.register_keras_serializable(package="plugins")
class FactorizationMachine(ClickModel):
    """`logit = b + sum_i w_i x_i + sum_{i<j} <v_i, v_j> x_i x_j`.

    A field's embedding is its factors v, then its weight w.
    """

    config_class = FactorizationMachineConfig

    def field_width(self) -> int:
        """Factors and weight."""
        return self.config.dim + 1

    def make_layers(self) -> None:
        """Creates the bias, and a table of factors and weights of the inputs that are numbers."""
        self.num_numbers = len(self.numeric) + self.adapter_units
        if self.num_numbers:
            self.numbers = self.table("numbers", self.num_numbers, self.field_width(), "float32")
        self.bias = self.table("bias", 1, 1, "float32", "zeros")

    def build_layers(self, dim: int) -> None:
        """Creates their variables."""
        if self.num_numbers:
            self.numbers.build((None,))
        self.bias.build((None,))

    def interact(self, x0: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Logits `[batch]`."""
        shape = [tf.shape(x0)[0], len(self.embeddings), self.field_width()]
        x0 = tf.cast(x0, tf.float32)
        fields = tf.reshape(x0[:, : shape[1] * shape[2]], shape)
        if self.num_numbers:
            numbers = self.numbers(tf.range(self.num_numbers))
            fields = tf.concat([fields, x0[:, -self.num_numbers :, None] * numbers], axis=1)
        factors, weights = fields[..., :-1], fields[..., -1]
        pairs = tf.square(tf.reduce_sum(factors, 1)) - tf.reduce_sum(tf.square(factors), 1)
        logits = tf.reduce_sum(weights, axis=1) + 0.5 * tf.reduce_sum(pairs, axis=1)
        return logits + self.bias(tf.constant(0))


registry.register(
    registry.ModelEntry(
        name="factorization_machine",
        title="Factorization machine of degree 2",
        paper=registry.Paper(
            "Factorization Machines",
            "Rendle",
            "ICDM 2010",
            "https://doi.org/10.1109/ICDM.2010.127",
        ),
        task=registry.CLICK,
        model="tests.plugins.fm:FactorizationMachine",
        config="tests.plugins.fm:FactorizationMachineConfig",
        long_history=True,
        distillation=True,
        configs=str(Path(__file__).parent / "configs" / "factorization_machine"),
    )
)
