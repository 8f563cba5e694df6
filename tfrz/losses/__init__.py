"""Losses of recommenders."""

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
    "candidate_softmax_loss",
    "focal_loss",
    "log_expected_counts",
    "sampled_softmax_loss",
    "softmax_loss",
]
