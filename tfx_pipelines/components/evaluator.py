"""TFX's Evaluator, where an undefined metric breaks no bound."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tfx.components import Evaluator as TfxEvaluator
from tfx.components.evaluator import constants
from tfx.components.evaluator.executor import Executor as TfxExecutor
from tfx.dsl.components.base.executor_spec import BeamExecutorSpec
from tfx.types import Artifact, artifact_utils

from tfx_pipelines.components.blessing import set_blessed
from tfx_pipelines.evaluations import read_evaluation


class EvaluatorExecutor(TfxExecutor):
    """Evaluates as TFX does, and blesses by `read_evaluation`."""

    def Do(
        self,
        input_dict: dict[str, list[Artifact]],
        output_dict: dict[str, list[Artifact]],
        exec_properties: dict[str, Any],
    ) -> None:
        """See the base class."""
        super().Do(input_dict, output_dict, exec_properties)
        blessing = artifact_utils.get_single_instance(output_dict["blessing"])
        # Without thresholds there is no blessing.
        if blessing.has_custom_property(constants.ARTIFACT_PROPERTY_BLESSED_KEY):
            (evaluation,) = output_dict["evaluation"]
            set_blessed(blessing, not read_evaluation(Path(evaluation.uri)).refusals)


class Evaluator(TfxEvaluator):
    """TFX's Evaluator with `EvaluatorExecutor`. A class, because it runs on Beam."""

    EXECUTOR_SPEC = BeamExecutorSpec(EvaluatorExecutor)
