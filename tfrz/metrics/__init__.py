"""Metrics on whole arrays (exact, NumPy) and as streaming Keras metrics."""

from tfrz.metrics.binary import Calibration, auc, calibration, log_loss

__all__ = ["Calibration", "auc", "calibration", "log_loss"]
