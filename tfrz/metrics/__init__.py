"""Metrics on whole arrays (exact, NumPy) and as streaming Keras metrics."""

from tfrz.metrics.binary import Calibration, auc, calibration, log_loss
from tfrz.metrics.coverage import coverage, exposures, gini
from tfrz.metrics.ranking import average_precision_at, ndcg_at, precision_at, rank_of, recall_at

__all__ = [
    "Calibration",
    "auc",
    "average_precision_at",
    "calibration",
    "coverage",
    "exposures",
    "gini",
    "log_loss",
    "ndcg_at",
    "precision_at",
    "rank_of",
    "recall_at",
]
