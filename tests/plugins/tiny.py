"""A model that is not part of the zoo: logistic regression on ids, registered from outside."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from tfrz.config import from_mapping, to_mapping
from tfrz.zoo import registry


@dataclasses.dataclass(frozen=True)
class LogisticRegressionConfig:
    """The shape of a `LogisticRegression`.

    Attributes:
      scale: standard deviation of the initial weights.
    """

    scale: float = 0.01


@keras.saving.register_keras_serializable(package="tests")
class LogisticRegression(keras.Model):
    """logit = b + sum of one weight a field value, `[batch]`."""

    def __init__(
        self,
        config: LogisticRegressionConfig,
        vocabulary_sizes: Mapping[str, int],
        multivalent: Sequence[str] = (),
        numeric: Sequence[str] = (),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        assert not multivalent and not numeric
        self.config, self.vocabulary_sizes = config, dict(vocabulary_sizes)
        self.embeddings = {
            name: keras.layers.Embedding(
                size,
                1,
                embeddings_initializer=keras.initializers.RandomNormal(0, config.scale),
                name=f"embedding_{name}",
            )
            for name, size in vocabulary_sizes.items()
        }
        self.logit = keras.layers.Dense(1, kernel_initializer="ones", name="logit", dtype="float32")
        for layer in self.embeddings.values():
            layer.build(None)
        self.logit.build((None, len(self.embeddings)))
        self.built = True

    def embed(self, inputs: Mapping[str, tf.Tensor], training: bool = False) -> tf.Tensor:
        """`[batch, fields]`."""
        return tf.concat([layer(inputs[n]) for n, layer in self.embeddings.items()], axis=1)

    def interact(self, x0: tf.Tensor, training: bool = False) -> tf.Tensor:
        """`[batch]`."""
        return tf.squeeze(self.logit(tf.cast(x0, tf.float32)), axis=1)

    def call(self, inputs: Mapping[str, tf.Tensor], training: bool = False) -> tf.Tensor:
        """Logits."""
        return self.interact(self.embed(inputs))

    def get_config(self) -> dict[str, Any]:
        """For Keras."""
        return {"config": to_mapping(self.config), "vocabulary_sizes": self.vocabulary_sizes}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> LogisticRegression:
        """For Keras."""
        own = from_mapping(LogisticRegressionConfig, config["config"], "model")
        return cls(own, config["vocabulary_sizes"])


registry.register(
    registry.ModelEntry(
        name="tiny",
        title="Logistic regression, registered by a test",
        paper=registry.Paper("None", "Nobody", "Nowhere", "https://example.com"),
        task=registry.CLICK,
        model="tests.plugins.tiny:LogisticRegression",
        config="tests.plugins.tiny:LogisticRegressionConfig",
        configs=str(Path(__file__).parent / "configs"),
    )
)
