"""Training: batches in a fixed order, the loop, the XLA policy, warm starts, teachers."""

import tfrz.keras_versions  # noqa: F401  (refuses other backends)
from tfrz.training.distiller import DistillConfig, Distiller

__all__ = ["DistillConfig", "Distiller"]
