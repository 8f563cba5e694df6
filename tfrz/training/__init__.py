"""Training: batches in a fixed order, the loop, the XLA policy, warm starts, teachers."""

from tfrz.training.distillation import DistillConfig, Distiller

__all__ = ["DistillConfig", "Distiller"]
