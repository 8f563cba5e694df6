"""The two lanes against each other: the same losses, the same quality, models that change lanes.

The reference lane is TensorFlow 2.15 with Keras 2, the newest lane a newer TensorFlow with Keras 3.
Each task runs in a process of the lane's Python (`tfrz.reproduce.lanes.worker`).
"""

from tfrz.reproduce.lanes import losses, metrics, saved_models

EXPERIMENTS = (losses.EXPERIMENT, metrics.EXPERIMENT, saved_models.EXPERIMENT)
