"""Metrics on whole arrays (exact, NumPy) and as streaming Keras metrics."""

import tfrz.keras_versions  # noqa: F401  (refuses other backends)
from tfrz.metrics.binary import (
    Calibration,
    NormalizedEntropy,
    auc,
    calibration,
    log_loss,
    mean_squared_error,
    normalized_entropy,
)
from tfrz.metrics.coverage import coverage, exposures, gini
from tfrz.metrics.directions import Direction, better, direction, distance_to_best
from tfrz.metrics.lists import MRRMetric, NDCGMetric
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
from tfrz.metrics.slates import of_slate, rank_gain

__all__ = [
    "Calibration",
    "Direction",
    "Estimate",
    "MRRMetric",
    "NDCGMetric",
    "NormalizedEntropy",
    "auc",
    "average_precision_at",
    "better",
    "calibration",
    "coverage",
    "direct_method",
    "direction",
    "distance_to_best",
    "doubly_robust",
    "effective_sample_size",
    "exposures",
    "gini",
    "inverse_propensity",
    "log_loss",
    "mean_squared_error",
    "ndcg_at",
    "normalized_entropy",
    "of_slate",
    "precision_at",
    "rank_gain",
    "rank_of",
    "recall_at",
    "self_normalized",
    "weight_summary",
]
