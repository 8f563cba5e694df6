"""Losses of recommenders."""

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
    candidate_softmax_loss,
    focal_loss,
    log_expected_counts,
    sampled_softmax_loss,
    softmax_loss,
)

__all__ = [
    "NegativeSampler",
    "TopKOffPolicyReinforce",
    "behavior_loss",
    "candidate_softmax_loss",
    "discounted_returns",
    "focal_loss",
    "importance_weights",
    "log_expected_counts",
    "normalized_weights",
    "sampled_log_prob",
    "sampled_policy_loss",
    "sampled_softmax_loss",
    "softmax_loss",
    "top_k_multiplier",
]
