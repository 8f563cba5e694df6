"""The hook by which a model adds components of its own to the pipeline."""

from __future__ import annotations

import dataclasses

from tfx.dsl.components.base.base_node import BaseNode
from tfx.types import BaseChannel

from tfrz.zoo.run import Run
from tfx_pipelines.configs import Places


@dataclasses.dataclass(frozen=True)
class Stages:
    """Components that a model adds after the Trainer and after the Evaluator; none by default.

    The field `stages` of a model's row in the registry names a subclass.

    Attributes:
      run: the resolved run.
      places: the folders of the pipeline.
    """

    run: Run
    places: Places

    def source(self) -> dict[str, object]:
        """The arguments of `open_source`, and the fingerprint by which TFX's cache sees changes."""
        return {
            "data": self.run.data,
            "features": self.run.features,
            "options": self.run.config.data.options,
            "fingerprint": self.run.fingerprint,
        }

    def after_training(self, model: BaseChannel) -> tuple[BaseChannel, list[BaseNode]]:
        """The model to evaluate and push, and the components that make it.

        Args:
          model: the Trainer's output.
        """
        return model, []

    def after_evaluation(
        self, model: BaseChannel, examples: BaseChannel, blessing: BaseChannel
    ) -> tuple[BaseChannel, list[BaseNode]]:
        """The blessing for the Pusher, and the components that make it.

        Args:
          model: the output of `after_training`.
          examples: raw examples.
          blessing: the Evaluator's output.
        """
        return blessing, []
