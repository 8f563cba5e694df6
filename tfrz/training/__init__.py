"""Training: batches in a fixed order, the loop, the XLA policy, warm starts, teachers."""

from tfrz.training.distiller import DistillConfig, Distiller

__all__ = ["DistillConfig", "Distiller"]
