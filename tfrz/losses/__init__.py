"""Losses of recommenders."""

import tfrz.keras_versions  # noqa: F401  (refuses other backends)
from tfrz.losses.distillation import (
    SplitDivergence,
    binary_distillation_loss,
    binary_rescaling_factor,
    discrepancy_weights,
    distillation_loss,
    position_weights,
    ranking_distillation_loss,
    relaxed_ranking_loss,
    rescaling_factor,
    soft_targets,
    split_divergence,
)
from tfrz.losses.ranking import (
    ApproxNDCGLoss,
    LambdaRankLoss,
    SigmoidCrossEntropyLoss,
    SoftmaxLoss,
)
from tfrz.losses.reinforce import (
    TopKOffPolicyReinforce,
    behavior_loss,
    discounted_returns,
    importance_weights,
    normalized_weights,
    sampled_log_prob,
    sampled_policy_loss,
    top_k_multiplier,
)
from tfrz.losses.retrieval import (
    NegativeSampler,
    candidate_logits,
    candidate_softmax_loss,
    focal_loss,
    log_expected_counts,
    sampled_softmax_loss,
    softmax_loss,
)

__all__ = [
    "ApproxNDCGLoss",
    "LambdaRankLoss",
    "NegativeSampler",
    "SigmoidCrossEntropyLoss",
    "SoftmaxLoss",
    "SplitDivergence",
    "TopKOffPolicyReinforce",
    "behavior_loss",
    "binary_distillation_loss",
    "binary_rescaling_factor",
    "candidate_logits",
    "candidate_softmax_loss",
    "discounted_returns",
    "discrepancy_weights",
    "distillation_loss",
    "focal_loss",
    "importance_weights",
    "log_expected_counts",
    "normalized_weights",
    "position_weights",
    "ranking_distillation_loss",
    "relaxed_ranking_loss",
    "rescaling_factor",
    "sampled_log_prob",
    "sampled_policy_loss",
    "sampled_softmax_loss",
    "soft_targets",
    "softmax_loss",
    "split_divergence",
    "top_k_multiplier",
]
