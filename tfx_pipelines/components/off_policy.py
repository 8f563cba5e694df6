"""Off-policy evaluation: a policy is pushed only if the log shows that it is better."""

# TFX reads a component's annotations at run time: `from __future__ import annotations` breaks it.

import numpy as np
import tensorflow as tf
from tfx.dsl.component.experimental.annotations import InputArtifact, OutputArtifact, Parameter
from tfx.dsl.component.experimental.decorators import component
from tfx.dsl.components.base.base_node import BaseNode
from tfx.types import BaseChannel
from tfx.types.standard_artifacts import Examples, Model, ModelBlessing
from tfx.utils import path_utils

from tfrz.metrics.off_policy import Estimate, inverse_propensity, self_normalized
from tfrz.zoo.run_config import PolicyEvaluatorConfig
from tfx_pipelines.components.blessing import bless, judged_records
from tfx_pipelines.components.stages import Stages
from tfx_pipelines.configs import config_from_json, config_to_json

_BATCH_SIZE = 1024


def refusal(estimate: Estimate, logged_reward: float, config: PolicyEvaluatorConfig) -> str | None:
    """Why a policy must not be pushed; None if it may be.

    Args:
      estimate: the policy's estimated value.
      logged_reward: mean reward of the logged actions, the value of the logging policy.
      config: the bounds.
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


@component
def OffPolicyCheck(
    model: InputArtifact[Model],
    examples: InputArtifact[Examples],
    earlier: InputArtifact[ModelBlessing],
    blessing: OutputArtifact[ModelBlessing],
    run_config: Parameter[str],
) -> None:
    """Blesses a policy if the log shows that it is better than the logging policy.

    Args:
      model: the policy, with the signature `judge_log`.
      examples: raw examples; the split that judges is the log.
      earlier: the blessing so far.
      blessing: the output.
      run_config: the run's configuration as JSON; its section `evaluator` holds the bounds.
    """
    wanted = config_from_json(run_config).evaluator
    signatures = tf.saved_model.load(path_utils.serving_model_path(model.uri)).signatures
    records = judged_records(examples).batch(_BATCH_SIZE)
    parts = [signatures["judge_log"](examples=batch) for batch in records]
    policy, logged, reward = (
        np.concatenate([part[name].numpy() for part in parts]).astype(np.float64)
        for name in ("policy", "logged", "reward")
    )
    estimator = {"self_normalized": self_normalized, "inverse_propensity": inverse_propensity}
    estimate = estimator[wanted.estimator](reward, policy, logged, cap=wanted.cap)
    earned = float(reward.mean())
    measured = {
        "estimator": wanted.estimator,
        "value": estimate.value,
        "low": estimate.low,
        "high": estimate.high,
        "effective_sample_size": estimate.effective_sample_size,
        "logged_reward": earned,
        "examples": len(reward),
    }
    bless(blessing, model, earlier, refusal(estimate, earned, wanted), measured)


class OffPolicyStages(Stages):
    """Adds the check of a policy's value."""

    def after_evaluation(
        self, model: BaseChannel, examples: BaseChannel, blessing: BaseChannel
    ) -> tuple[BaseChannel, list[BaseNode]]:
        """See the base class."""
        check = OffPolicyCheck(
            model=model,
            examples=examples,
            earlier=blessing,
            run_config=config_to_json(self.run.config),
        )
        return check.outputs["blessing"], [check]
