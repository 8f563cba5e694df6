"""Losses of recommenders."""

from tfrz.losses.retrieval import NegativeSampler, sampled_softmax_loss, softmax_loss

__all__ = ["NegativeSampler", "sampled_softmax_loss", "softmax_loss"]
