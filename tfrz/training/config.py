"""The configuration of the training loop."""

from __future__ import annotations

import dataclasses
from typing import Literal

from tfrz.config import check_range, require


@dataclasses.dataclass(frozen=True)
class LowRankConfig:
    """Dense and cross layers as products of two thin matrices, from the start of training.

    At most one of `rank`, `target_parameters` and `layers` is given; without one, no layer is.

    Attributes:
      rank: the rank of every layer that becomes smaller with it; null for none.
      target_parameters: the number of parameters of all matrices that can be of low rank; the ranks
        are scaled to meet it.
      layers: names of layers to their ranks; the other layers stay full.
      init: how the factors approximate a full matrix that is drawn first: spectral (nearest in the
        Frobenius norm), function (nearest in the output of a ReLU layer) or data (nearest on the
        inputs of the layers for some training examples).
      repair_scale: multiply the factors by the measured gain that keeps the size of the outputs.
      frobenius_decay: lambda of the penalty `lambda / 2 * |U V^T|_F^2` of each such dense layer.
        DCN-V2 takes it for `model.deep_decay`, which also counts hidden layers that stay dense.
    """

    rank: int | None = None
    target_parameters: int | None = None
    layers: dict[str, int] = dataclasses.field(default_factory=dict)
    init: Literal["spectral", "function", "data"] = "spectral"
    repair_scale: bool = False
    frobenius_decay: float = 0.0

    def __post_init__(self) -> None:
        given = (self.rank is not None, self.target_parameters is not None, bool(self.layers))
        require(sum(given) <= 1, "low_rank", "takes one of rank, target_parameters and layers")
        check_range(self, "low_rank", "rank", "target_parameters", at_least=1)
        check_range(self, "low_rank", "frobenius_decay", at_least=0)
        for name, rank in self.layers.items():
            require(rank >= 1, f"low_rank.layers.{name}", "must be at least 1")

    @property
    def enabled(self) -> bool:
        """Whether any layer is to be of low rank."""
        return self.rank is not None or self.target_parameters is not None or bool(self.layers)


@dataclasses.dataclass(frozen=True)
class TrainerConfig:
    """How a model is trained.

    Attributes:
      epochs: largest number of passes over the training set.
      batch_size: examples per step, of all replicas together.
      learning_rate: the highest learning rate.
      optimizer: Adam, Adagrad or SGD, as Keras defines them.
      learning_rate_schedule: constant, half a cosine from `learning_rate` to 0 over all epochs, or
        exponential: `learning_rate * decay_rate ** (step / decay_steps)`.
      decay_rate: of the exponential schedule.
      decay_steps: of the exponential schedule.
      clip_norm: bound on the global norm of the gradients; null for none.
      embedding_l2: L2 penalty on the rows of embeddings that a batch looks up, summed over the
        fields and averaged over the batch; 0 for none.
      ema_decay: decay of the averaged weights that are evaluated and exported; null to use the
        last weights. The decay at step t is min(ema_decay, (1 + t) / (10 + t)), so that short
        runs do not evaluate near-initial weights.
      early_stopping_patience: epochs without a better `early_stopping_metric` after which training
        stops; null for never.
      early_stopping_metric: validation metric that chooses the weights and stops the training, in
        the direction that it declares; null for the metric of the model's task.
      evaluations_per_epoch: evaluations of the validation set in each epoch.
      dtype: Keras dtype policy of the model.
      xla: compile the dense part of the step: auto is on for GPU and TPU, off for CPU.
      strategy: the `tf.distribute` strategy.
      seed: of initial weights, order of examples and dropout.
      checkpoint_every_steps: steps between checkpoints, from which a run can be resumed.
      steps_per_call: steps in one call of the compiled loop.
      max_steps: largest number of steps (of each stage, if a recipe has several); null for no
        bound.
      warm_start: null, a SavedModel directory, or "latest_blessed" (pipeline only).
      tensorboard: write TensorBoard summaries.
    """

    epochs: int = 3
    batch_size: int = 1024
    learning_rate: float = 1e-3
    optimizer: Literal["adam", "adagrad", "sgd"] = "adam"
    learning_rate_schedule: Literal["constant", "cosine", "exponential"] = "constant"
    decay_rate: float = 0.96
    decay_steps: int = 1000
    clip_norm: float | None = 10.0
    embedding_l2: float = 0.0
    ema_decay: float | None = 0.9999
    early_stopping_patience: int | None = 2
    early_stopping_metric: str | None = None
    evaluations_per_epoch: int = 1
    dtype: Literal["float32", "mixed_bfloat16"] = "float32"
    xla: Literal["auto", "on", "off"] = "auto"
    strategy: Literal["one_device", "mirrored", "multi_worker_mirrored"] = "one_device"
    seed: int = 0
    checkpoint_every_steps: int = 1000
    steps_per_call: int = 20
    max_steps: int | None = None
    warm_start: str | None = None
    tensorboard: bool = True

    def __post_init__(self) -> None:
        check_range(
            self,
            "trainer",
            "epochs",
            "batch_size",
            "evaluations_per_epoch",
            "checkpoint_every_steps",
            "steps_per_call",
            "decay_steps",
            "early_stopping_patience",
            "max_steps",
            at_least=1,
        )
        check_range(self, "trainer", "learning_rate", "clip_norm", above=0)
        check_range(self, "trainer", "decay_rate", above=0, at_most=1)
        check_range(self, "trainer", "embedding_l2", at_least=0)
        check_range(self, "trainer", "ema_decay", above=0, below=1)
