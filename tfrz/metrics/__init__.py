"""Metrics on whole arrays (exact, NumPy) and as streaming Keras metrics."""

from tfrz.metrics.binary import (
    Calibration,
    NormalizedEntropy,
    auc,
    calibration,
    log_loss,
    normalized_entropy,
)
from tfrz.metrics.coverage import coverage, exposures, gini
from tfrz.metrics.off_policy import (
    Estimate,
    direct_method,
    doubly_robust,
    effective_sample_size,
    inverse_propensity,
    self_normalized,
    weight_summary,
)
from tfrz.metrics.ranking import average_precision_at, ndcg_at, precision_at, rank_of, recall_at

__all__ = [
    "Calibration",
    "Estimate",
    "NormalizedEntropy",
    "auc",
    "average_precision_at",
    "calibration",
    "coverage",
    "direct_method",
    "doubly_robust",
    "effective_sample_size",
    "exposures",
    "gini",
    "inverse_propensity",
    "log_loss",
    "ndcg_at",
    "normalized_entropy",
    "precision_at",
    "rank_of",
    "recall_at",
    "self_normalized",
    "weight_summary",
]
