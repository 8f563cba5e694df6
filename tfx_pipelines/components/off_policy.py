"""Off-policy evaluation in the pipeline: a policy that is not safely better is not pushed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tensorflow as tf
from tfx import types
from tfx.dsl.components.base import base_component, base_executor, executor_spec
from tfx.types import artifact_utils, component_spec, standard_artifacts
from tfx.utils import path_utils

from tfrz.metrics.off_policy import Estimate, inverse_propensity, self_normalized
from tfrz.zoo.run_config import (
    PolicyEvaluatorConfig,
    RunConfig,
    run_config_from_mapping,
    run_config_to_mapping,
)
from tfx_pipelines.components.blessing import bless
from tfx_pipelines.configs import Places

_EXAMPLES_AT_ONCE = 1024


def refusal(estimate: Estimate, logged_reward: float, config: PolicyEvaluatorConfig) -> str | None:
    """Why a policy is not to be pushed; None if it may be.

    Args:
      estimate: of its value.
      logged_reward: mean reward of the logged actions: the value of the logger.
      config: what is wanted.
    """
    size = estimate.effective_sample_size
    if size < config.min_effective_sample_size:
        return (
            f"the effective sample size is {size:.1f}, evaluator.min_effective_sample_size is "
            f"{config.min_effective_sample_size:g}: the policy is too far from the log"
        )
    wanted = logged_reward + config.min_lift * abs(logged_reward)
    if not estimate.low > wanted:
        return (
            f"the lower bound of the policy's value is {estimate.low:.4f} (estimate "
            f"{estimate.value:.4f}), not above {wanted:.4f}, what the logging policy earned"
            + (f" and evaluator.min_lift {config.min_lift:g}" if config.min_lift else "")
        )
    return None


class OffPolicyCheckSpec(component_spec.ComponentSpec):
    """What `OffPolicyCheck` takes and gives."""

    PARAMETERS: ClassVar = {"run_config": component_spec.ExecutionParameter(type=str)}
    INPUTS: ClassVar = {
        "model": component_spec.ChannelParameter(type=standard_artifacts.Model),
        "examples": component_spec.ChannelParameter(type=standard_artifacts.Examples),
        "earlier": component_spec.ChannelParameter(type=standard_artifacts.ModelBlessing),
    }
    OUTPUTS: ClassVar = {
        "blessing": component_spec.ChannelParameter(type=standard_artifacts.ModelBlessing)
    }


class OffPolicyCheckExecutor(base_executor.BaseExecutor):
    """Estimates the value of the exported policy from the log of the evaluation set."""

    def Do(
        self,
        input_dict: dict[str, list[Any]],
        output_dict: dict[str, list[Any]],
        exec_properties: dict[str, Any],
    ) -> None:
        """See the base class."""
        config = run_config_from_mapping(json.loads(exec_properties["run_config"]))
        wanted = config.evaluator
        (source,) = input_dict["model"]
        judge = tf.saved_model.load(path_utils.serving_model_path(source.uri)).signatures[
            "judge_log"
        ]
        folder = artifact_utils.get_split_uri(input_dict["examples"], "eval")
        files = sorted(str(path) for path in Path(folder).glob("*"))
        records = tf.data.TFRecordDataset(files, compression_type="GZIP")
        parts = [judge(examples=batch) for batch in records.batch(_EXAMPLES_AT_ONCE)]
        policy, logged, reward = (
            np.concatenate([part[name].numpy() for part in parts]).astype(np.float64)
            for name in ("policy", "logged", "reward")
        )
        estimator = {"self_normalized": self_normalized, "inverse_propensity": inverse_propensity}
        estimate = estimator[wanted.estimator](reward, policy, logged, cap=wanted.cap)
        earned = float(reward.mean())
        bless(
            output_dict["blessing"],
            source,
            input_dict["earlier"],
            refusal(estimate, earned, wanted),
            {
                "estimator": wanted.estimator,
                "value": estimate.value,
                "low": estimate.low,
                "high": estimate.high,
                "effective_sample_size": estimate.effective_sample_size,
                "logged_reward": earned,
                "examples": len(reward),
            },
        )


class OffPolicyCheck(base_component.BaseComponent):
    """Blesses a policy that was blessed so far if the log says that it is better than the logger.

    Args:
      model: with the signature `judge_log`.
      examples: raw examples; those of the split `eval` are the log.
      earlier: the blessing so far.
      config: says what is wanted (`evaluator`).
    """

    SPEC_CLASS = OffPolicyCheckSpec
    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(OffPolicyCheckExecutor)

    def __init__(
        self,
        model: types.BaseChannel,
        examples: types.BaseChannel,
        earlier: types.BaseChannel,
        config: RunConfig,
    ) -> None:
        super().__init__(
            OffPolicyCheckSpec(
                model=model,
                examples=examples,
                earlier=earlier,
                run_config=json.dumps(run_config_to_mapping(config), sort_keys=True),
                blessing=types.Channel(type=standard_artifacts.ModelBlessing),
            )
        )


class OffPolicyStages:
    """What a pipeline of policies has beyond the others': the check of their value.

    Args:
      config: the run's configuration.
      data: as `--data` of the command line.
      features: spec of a file of the user's own.
      reader: what `data` opens.
      places: where things go.
    """

    def __init__(
        self, config: RunConfig, data: str, features: str | None, reader: Any, places: Places
    ) -> None:
        del data, features, reader, places
        self._config = config

    def after_training(self, model: Any) -> tuple[Any, list[Any]]:
        """The model as it is."""
        return model, []

    def after_evaluation(self, model: Any, examples: Any, blessing: Any) -> tuple[Any, list[Any]]:
        """The blessing that the Pusher needs, and the component that gives it."""
        check = OffPolicyCheck(model, examples, blessing, self._config)
        return check.outputs["blessing"], [check]
