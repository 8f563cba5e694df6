"""The training loop: deterministic batches, averaged weights, checkpoints to resume from exactly.

Keras' own `fit` resumes at the start of an epoch and forgets its early-stopping state. This loop
keeps everything that decides the future in one checkpoint: weights, their averages, the best
weights so far, the optimiser, the step and the history. A run that was killed and started again
ends with the same bits as one that was never interrupted.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import sys
import weakref
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from tqdm import tqdm

from tfrz.config import require
from tfrz.errors import InputError
from tfrz.files import atomic_write
from tfrz.keras_versions import apply_summed_gradients, make_optimizer, tf_variables
from tfrz.metrics import direction, distance_to_best
from tfrz.training.batches import Batches
from tfrz.training.compilation import compiled_value_and_gradients, use_xla
from tfrz.training.config import TrainerConfig
from tfrz.training.curves import save_curves

logger = logging.getLogger(__name__)

_NO_METRIC = ("step", "epoch", "loss", "stage")


Gradient: TypeAlias = "tf.Tensor | tf.IndexedSlices"
Batch = dict[str, tf.Tensor]


class Trainable(Protocol):
    """The task that the loop trains a model for (see `tfrz.zoo.tasks`).

    Attributes:
      objective: the metric that chooses the weights; it must declare a direction
        (`tfrz.metrics.better`).
    """

    @property
    def objective(self) -> str:
        """The metric that chooses the weights."""

    def lookup(self, model: keras.Model, batch: Batch) -> Batch:
        """The inputs of `dense_loss`: embeddings that are looked up outside the compiled part."""

    def dense_loss(self, model: keras.Model, looked_up: Batch) -> tuple[tf.Tensor, tf.Tensor]:
        """Loss per example `[batch]`, and the regularisation of the step, a scalar."""

    def predict(self, model: keras.Model, batch: Batch) -> Batch:
        """The inputs of `metrics` for one batch, `[batch, ...]` each."""

    def metrics(self, outputs: dict[str, NDArray[Any]]) -> dict[str, float]:
        """Metrics of the concatenated outputs."""


@dataclasses.dataclass(frozen=True)
class FitResult:
    """The result of a run.

    Attributes:
      history: one row per evaluation: step, epoch, mean training loss since the last one, metrics.
      best: the row of the weights that the model now has.
      steps_run: number of steps, including those before a resume.
      epochs_run: number of epochs that were started.
      resumed_from: the step at which this process started; 0 for a new run.
      optimizer: the optimiser after the last step, for another run.
    """

    history: list[dict[str, float]]
    best: dict[str, float]
    steps_run: int
    epochs_run: int
    resumed_from: int
    optimizer: keras.optimizers.Optimizer | None = None


def measured(row: Mapping[str, float]) -> dict[str, float]:
    """The validation metrics in one row of the history of a run."""
    return {name: value for name, value in row.items() if name not in _NO_METRIC}


def make_strategy(name: str) -> tf.distribute.Strategy:
    """The `tf.distribute` strategy called `name` in the configuration."""
    if name == "mirrored":
        kinds = ("GPU", "TPU", "CPU")
        devices = next(d for d in map(tf.config.list_logical_devices, kinds) if d)
        return tf.distribute.MirroredStrategy([device.name for device in devices])
    if name == "multi_worker_mirrored":
        return tf.distribute.MultiWorkerMirroredStrategy()
    return tf.distribute.get_strategy()


def build_model(build: Callable[[], keras.Model], config: TrainerConfig) -> keras.Model:
    """Calls `build` under the configured seed and distribution strategy."""
    keras.utils.set_random_seed(config.seed)
    with make_strategy(config.strategy).scope():
        return build()


def _make_optimizer(config: TrainerConfig, total_steps: int) -> keras.optimizers.Optimizer:
    rate: float | keras.optimizers.schedules.LearningRateSchedule = config.learning_rate
    if config.learning_rate_schedule == "cosine":
        rate = keras.optimizers.schedules.CosineDecay(config.learning_rate, total_steps)
    elif config.learning_rate_schedule == "exponential":
        rate = keras.optimizers.schedules.ExponentialDecay(
            config.learning_rate, config.decay_steps, config.decay_rate
        )
    kinds = {
        "adam": keras.optimizers.Adam,
        "adagrad": keras.optimizers.Adagrad,
        "sgd": keras.optimizers.SGD,
    }
    return make_optimizer(kinds[config.optimizer], learning_rate=rate)


def _sum_duplicates(gradient: Gradient) -> Gradient:
    """The gradient of an embedding with one row per id, so that its norm is the right one."""
    if not isinstance(gradient, tf.IndexedSlices):
        return gradient
    ids, positions = tf.unique(gradient.indices)
    rows = tf.math.unsorted_segment_sum(gradient.values, positions, tf.size(ids))
    return tf.IndexedSlices(rows, ids, gradient.dense_shape)


def _sum_of(first: Gradient | None, second: Gradient | None) -> Gradient | None:
    """The sum of two gradients, either of which may be missing."""
    if first is None or second is None:
        return second if first is None else first
    return tf.convert_to_tensor(first) + tf.convert_to_tensor(second)


class _Loop:
    """The variables and compiled functions of one run."""

    def __init__(
        self,
        model: keras.Model,
        task: Trainable,
        config: TrainerConfig,
        total_steps: int,
        optimizer: keras.optimizers.Optimizer | None = None,
    ) -> None:
        self.model, self.task, self.config = model, task, config
        self.strategy = model.distribute_strategy
        self.variables = tf_variables(model.trainable_variables)
        self._compiled = use_xla(config.xla)
        with self.strategy.scope():
            if optimizer is None:
                optimizer = _make_optimizer(config, total_steps)
                optimizer.build(model.trainable_variables)
            self.optimizer = optimizer
            self.averages = self._copies("average") if config.ema_decay is not None else []
            self.best = self._copies("best")
        self._run_steps = self._compile()

    def _copies(self, kind: str) -> list[tf.Variable]:
        return [
            tf.Variable(
                variable,
                trainable=False,
                dtype=variable.dtype,
                name=f"{kind}_{i}",
                aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
            )
            for i, variable in enumerate(self.variables)
        ]

    def _gradients(self) -> Callable[[Batch], tuple[tf.Tensor, list[Gradient | None]]]:
        """The function from a batch to its loss and the gradients of all variables."""
        model, task = self.model, self.task
        batch_size = float(self.config.batch_size)
        replicas = float(self.strategy.num_replicas_in_sync)

        def loss_of(looked_up: Batch) -> tf.Tensor:
            per_example, regularization = task.dense_loss(model, looked_up)
            return tf.reduce_sum(per_example) / batch_size + regularization / replicas

        def plain(batch: Batch) -> tuple[tf.Tensor, list[Gradient | None]]:
            with tf.GradientTape() as tape:
                loss = loss_of(task.lookup(model, batch))
            return loss, tape.gradient(loss, self.variables)

        if not self._compiled:
            return plain
        value_and_gradients = compiled_value_and_gradients(loss_of, self.variables)

        def compiled(batch: Batch) -> tuple[tf.Tensor, list[Gradient | None]]:
            with tf.GradientTape() as tape:
                looked_up = task.lookup(model, batch)
            loss, dense, inner = value_and_gradients(looked_up)
            names = list(inner)
            outer = tape.gradient(
                [looked_up[name] for name in names],
                self.variables,
                output_gradients=[inner[name] for name in names],
            )
            return loss, [_sum_of(a, b) for a, b in zip(dense, outer, strict=True)]

        return compiled

    def _compile(self) -> Callable[..., tf.Tensor]:
        replicas = float(self.strategy.num_replicas_in_sync)
        loss_and_gradients = self._gradients()

        def replica_step(batch: Batch) -> tf.Tensor:
            loss, gradients = loss_and_gradients(batch)
            if replicas > 1:
                replica = tf.distribute.get_replica_context()
                gradients = replica.all_reduce(tf.distribute.ReduceOp.SUM, gradients)
            if self.config.clip_norm is not None:
                # Keras clips before it sums the rows of one id, and so clips another norm.
                gradients = [_sum_duplicates(g) for g in gradients]
                gradients, _ = tf.clip_by_global_norm(gradients, self.config.clip_norm)
            apply_summed_gradients(
                self.optimizer, gradients, self.model.trainable_variables, int(replicas)
            )
            if self.averages:
                step = tf.cast(self.optimizer.iterations, tf.float32)
                decay = tf.minimum(self.config.ema_decay, step / (9.0 + step))
                for average, variable in zip(self.averages, self.variables, strict=True):
                    average.assign_add(
                        (tf.convert_to_tensor(variable) - average)
                        * tf.cast(1 - decay, average.dtype)
                    )
            return loss

        def run_steps(iterator: Iterator[Batch], count: tf.Tensor) -> tf.Tensor:
            def another(step: tf.Tensor, total: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
                losses = self.strategy.run(replica_step, args=(next(iterator),))
                loss = self.strategy.reduce(tf.distribute.ReduceOp.SUM, losses, axis=None)
                return step + 1, total + loss

            _, total = tf.while_loop(
                lambda step, total: step < count, another, (tf.constant(0), tf.constant(0.0))
            )
            return total / tf.cast(count, tf.float32)

        compiled: Callable[..., tf.Tensor] = tf.function(run_steps, reduce_retracing=True)
        return compiled

    def iterator(self, dataset: tf.data.Dataset) -> Iterator[Batch]:
        """An iterator over batches, each of them split among the replicas."""
        if self.strategy.num_replicas_in_sync > 1:
            return iter(self.strategy.experimental_distribute_dataset(dataset))
        return iter(dataset)

    def run(self, iterator: Iterator[Batch], count: int) -> float:
        """Mean loss of `count` steps."""
        return float(self._run_steps(iterator, tf.constant(count)))

    def weights_to_evaluate(self) -> list[NDArray[Any]]:
        """The averaged weights, or the current ones if none are averaged."""
        return [v.numpy() for v in (self.averages or self.variables)]

    def assign(self, variables: list[tf.Variable], values: list[NDArray[Any]]) -> None:
        """Sets variables to values."""
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)


Predict = Callable[[Batch], Batch]

# By model and task: tracing a model takes longer than evaluating it.
_predictors: weakref.WeakKeyDictionary[
    keras.Model, weakref.WeakKeyDictionary[Trainable, Predict]
] = weakref.WeakKeyDictionary()


def _predictor(model: keras.Model, task: Trainable) -> Predict:
    """`task.predict` of a model as a compiled function, which keeps neither of them alive."""
    of_model = _predictors.setdefault(model, weakref.WeakKeyDictionary())
    if task not in of_model:
        of, by = weakref.ref(model), weakref.ref(task)

        def predict(batch: Batch) -> Batch:
            living = by()
            assert living is not None  # The caller has it.
            return living.predict(of(), batch)

        of_model[task] = tf.function(predict, reduce_retracing=True)
    return of_model[task]


def evaluate(model: keras.Model, task: Trainable, batches: Batches) -> dict[str, float]:
    """The task's metrics of `model` over all examples of `batches`."""
    predict = _predictor(model, task)
    collected: dict[str, list[NDArray[Any]]] = {}
    for batch in batches.once():
        for name, value in predict(batch).items():
            collected.setdefault(name, []).append(value.numpy())
    return task.metrics({name: np.concatenate(parts) for name, parts in collected.items()})


class _Progress:
    """The part of the state of a run that is not a tensor."""

    def __init__(self) -> None:
        self.step = 0
        self.history: list[dict[str, float]] = []
        self.best_row = -1
        self.loss_sum = 0.0
        self.loss_steps = 0
        self.stopped = False

    def dump(self) -> str:
        return json.dumps(vars(self))

    def load(self, text: str) -> None:
        vars(self).update(json.loads(text))


class _Checkpoints:
    """Saves and restores a loop with its progress; does nothing without a folder."""

    def __init__(self, directory: Path | None, loop: _Loop, progress: _Progress) -> None:
        self._progress = progress
        self._manager: tf.train.CheckpointManager | None = None
        if directory is None:
            return
        self._text = tf.Variable("", dtype=tf.string, trainable=False)
        self._checkpoint = tf.train.Checkpoint(
            # Their variables: TensorFlow does not find layers of Keras 3 in lists and dictionaries.
            weights=tf_variables(loop.model.weights),
            optimizer=tf_variables(loop.optimizer.variables),
            averages=loop.averages,
            best=loop.best,
            progress=self._text,
        )
        self._manager = tf.train.CheckpointManager(
            self._checkpoint, str(directory / "checkpoints"), max_to_keep=2
        )

    def save(self) -> None:
        if self._manager is not None:
            self._text.assign(self._progress.dump())
            self._manager.save(checkpoint_number=self._progress.step)

    def restore(self) -> None:
        if self._manager is not None and self._manager.latest_checkpoint:
            status = self._checkpoint.restore(self._manager.latest_checkpoint)
            try:
                status.assert_existing_objects_matched()
            except AssertionError as error:
                raise InputError(
                    f"{self._manager.directory} holds another model's checkpoints, or those of "
                    "another version of tfrz: choose another --out"
                ) from error
            self._progress.load(self._text.numpy().decode())
            logger.info("resumed at step %d", self._progress.step)


def _boundaries(steps_per_epoch: int, per_epoch: int, total: int) -> Callable[[int], int]:
    """The next step, after a given one, at which the validation set is evaluated."""

    def following(step: int) -> int:
        epoch, offset = divmod(step, steps_per_epoch)
        for part in range(1, per_epoch + 1):
            point = steps_per_epoch * part // per_epoch
            if point > offset:
                return min(epoch * steps_per_epoch + point, total)
        return min((epoch + 1) * steps_per_epoch, total)

    return following


def objective_of(task: Trainable, config: TrainerConfig) -> str:
    """The metric that chooses the weights, in its `tfrz.metrics.direction`."""
    return config.early_stopping_metric or task.objective


def _judge(loop: _Loop, progress: _Progress, objective: str, evaluations_of_patience: int) -> None:
    """Keeps the weights if the last evaluation is the best, and decides whether to stop."""
    require(
        objective in progress.history[-1],
        "trainer.early_stopping_metric",
        f"is none of {', '.join(measured(progress.history[-1]))}",
    )
    values = [distance_to_best(objective, row[objective]) for row in progress.history]
    # As long as the metric is undefined, the last weights are the best.
    if progress.best_row < 0 or values[-1] < values[progress.best_row] or min(values) == math.inf:
        progress.best_row = len(values) - 1
        loop.assign(loop.best, loop.weights_to_evaluate())
    elif evaluations_of_patience and len(values) - 1 - progress.best_row >= evaluations_of_patience:
        progress.stopped = True


def _total_steps(train: Batches, config: TrainerConfig) -> int:
    """The largest number of steps of a run."""
    total = train.steps_per_epoch * config.epochs
    return total if config.max_steps is None else min(total, config.max_steps)


def step_losses(
    model: keras.Model, task: Trainable, train: Batches, config: TrainerConfig, steps: int
) -> list[float]:
    """Trains `model` for some steps, as `fit` does, and returns the loss of each.

    The model has its last weights afterwards. Nothing is evaluated or written.

    Args:
      model: built by `build_model`.
      task: the losses.
      train: the training set.
      config: the settings; a learning rate that changes does so over the whole run.
      steps: how many; more than one epoch if need be.
    """
    loop = _Loop(model, task, config, _total_steps(train, config))
    losses: list[float] = []
    for epoch in range(-(-steps // train.steps_per_epoch)):
        iterator = loop.iterator(train.epoch(epoch))
        count = min(train.steps_per_epoch, steps - len(losses))
        losses += [loop.run(iterator, 1) for _ in range(count)]
    return losses


def fit(
    model: keras.Model,
    task: Trainable,
    train: Batches,
    validation: Batches,
    config: TrainerConfig,
    directory: Path | None = None,
    progress: bool = True,
    optimizer: keras.optimizers.Optimizer | None = None,
) -> FitResult:
    """Trains `model`; on return it has the best (averaged) weights by the task's objective.

    Args:
      model: built by `build_model`, so that its variables are made under the strategy.
      task: losses and metrics.
      train: the training set.
      validation: the set that chooses the weights and stops the training.
      config: the settings.
      directory: receives `checkpoints/`, `tensorboard/`, `history.json` and `curves.png`. A run
        that is found there is resumed. Nothing is written by default.
      progress: show a progress bar on standard error.
      optimizer: the optimiser of an earlier run, to continue with its state; a new one by default.

    Raises:
      InputError: fewer examples than one batch, or the loss is no longer finite.
      ConfigError: `early_stopping_metric` is not a metric of the task, or declares no direction.
    """
    objective = objective_of(task, config)
    direction(objective)  # Refuses a metric without one before the first step.
    steps_per_epoch, total = train.steps_per_epoch, _total_steps(train, config)
    loop = _Loop(model, task, config, total, optimizer)
    state = _Progress()
    checkpoints = _Checkpoints(directory, loop, state)
    checkpoints.restore()
    resumed_from = state.step
    writer = None
    if directory is not None and config.tensorboard:
        writer = tf.summary.create_file_writer(str(directory / "tensorboard"))
    next_evaluation = _boundaries(steps_per_epoch, config.evaluations_per_epoch, total)
    patience = (config.early_stopping_patience or 0) * config.evaluations_per_epoch
    bar = tqdm(
        total=total,
        initial=state.step,
        desc="training",
        unit="step",
        disable=not progress,
        mininterval=0.5 if sys.stderr.isatty() else 10,
    )
    iterator: Iterator[Batch] | None = None
    try:
        while state.step < total and not state.stopped:
            epoch, offset = divmod(state.step, steps_per_epoch)
            if iterator is None or offset == 0:
                iterator = loop.iterator(train.epoch(epoch, skip=offset))
            evaluation = next_evaluation(state.step)
            every = config.checkpoint_every_steps
            checkpoint = (state.step // every + 1) * every
            count = min(config.steps_per_call, evaluation - state.step, checkpoint - state.step)
            loss = loop.run(iterator, count)
            if not math.isfinite(loss):
                raise InputError(
                    f"the loss is {loss} at step {state.step + count}: "
                    "lower trainer.learning_rate or trainer.clip_norm, or check numeric features"
                )
            state.step += count
            state.loss_sum += loss * count
            state.loss_steps += count
            bar.update(count)
            if writer is not None:
                with writer.as_default(step=state.step):
                    tf.summary.scalar("loss", loss)
            if state.step == evaluation:
                current = [v.numpy() for v in loop.variables]
                loop.assign(loop.variables, loop.weights_to_evaluate())
                metrics = evaluate(model, task, validation)
                loop.assign(loop.variables, current)
                state.history.append(
                    {
                        "step": state.step,
                        "epoch": state.step / steps_per_epoch,
                        "loss": state.loss_sum / state.loss_steps,
                        **metrics,
                    }
                )
                state.loss_sum, state.loss_steps = 0.0, 0
                _judge(loop, state, objective, patience)
                bar.set_postfix({k: f"{v:.4f}" for k, v in metrics.items()})
                if writer is not None:
                    with writer.as_default(step=state.step):
                        for name, value in metrics.items():
                            tf.summary.scalar(f"validation/{name}", value)
            if state.step in (checkpoint, evaluation):
                checkpoints.save()
    except KeyboardInterrupt:
        checkpoints.save()
        raise
    finally:
        bar.close()
    loop.assign(loop.variables, [v.numpy() for v in loop.best])
    if directory is not None:
        atomic_write(directory / "history.json", json.dumps(state.history, indent=1) + "\n")
        save_curves(state.history, directory / "curves.png")
    return FitResult(
        history=state.history,
        best=state.history[state.best_row],
        steps_run=state.step,
        epochs_run=-(-state.step // steps_per_epoch),
        resumed_from=resumed_from,
        optimizer=loop.optimizer,
    )
