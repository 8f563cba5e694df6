"""A next-item model from outside the package: stacked GRUs on histories."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import keras
import tensorflow as tf

from tfrz.config import check_range
from tfrz.models import NextItemConfig, NextItemModel
from tfrz.zoo import registry


@dataclasses.dataclass(frozen=True)
class StackedGRUConfig(NextItemConfig):
    """The shape of a `StackedGRU`.

    Attributes:
      num_layers: GRUs, one on top of another.
    """

    num_layers: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "model", "num_layers", at_least=1)


@keras.saving.register_keras_serializable(package="plugins")
class StackedGRU(NextItemModel):
    """Encodes events by GRUs, each of which reads the states of the one below."""

    config_class = StackedGRUConfig
    config: StackedGRUConfig

    def make_encoder(self) -> None:
        """Creates `grus`."""
        self.grus = [
            keras.layers.GRU(
                self.config.encoder_dim, return_sequences=True, name=f"gru_{i}", dtype=self.policy
            )
            for i in range(self.config.num_layers)
        ]

    def build_encoder(self, width: int) -> None:
        """Creates their variables."""
        for gru in self.grus:
            gru.build((None, None, width))
            width = gru.units

    def encode_events(
        self, z: tf.Tensor, embedded: Mapping[str, tf.Tensor], training: bool = False
    ) -> tf.Tensor:
        """The states of the last GRU, `[batch, time, encoder_dim]`."""
        for gru in self.grus:
            z = gru(z, mask=embedded["real"], training=training)
        return z


registry.register(
    registry.ModelEntry(
        name="stacked_gru",
        title="Stacked GRUs over histories",
        paper=registry.Paper(
            "Session-based Recommendations with Recurrent Neural Networks",
            "Hidasi, Karatzoglou, Baltrunas, Tikk",
            "ICLR 2016",
            "https://arxiv.org/abs/1511.06939",
        ),
        task=registry.NEXT_ITEM,
        model="tests.plugins.gru:StackedGRU",
        config="tests.plugins.gru:StackedGRUConfig",
        long_history=True,
        distillation=True,
        configs=str(Path(__file__).parent / "configs" / "stacked_gru"),
    )
)
