"""Training of several students at once: on the same batches, from the same weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

Columns = Mapping[str, Any]


def rows_of_steps(rows: int, batch_size: int, steps: int, seed: int) -> np.ndarray:
    """Returns the rows of each step, int32 `[steps, batch_size]`; every pass has its own order."""
    rng = np.random.default_rng([seed, 2002])
    passes = -(-steps // (rows // batch_size))
    orders = [rng.permutation(rows)[: rows - rows % batch_size] for _ in range(passes)]
    return np.concatenate(orders).reshape(-1, batch_size)[:steps].astype(np.int32)


def fit_together(
    models: Sequence[keras.Model],
    loss_of: Callable[[int, Any, dict[str, tf.Tensor]], tf.Tensor],
    columns: Columns,
    steps: int,
    batch_size: int,
    seed: int,
    read: Callable[[dict[str, tf.Tensor]], Any] = lambda batch: batch,
    learning_rate: float = 3e-3,
    weight_decay: float | None = None,
) -> None:
    """Trains models by Adam, from `learning_rate` down to 0 along a cosine.

    The models do not influence each other: an update of Adam depends on a model's own gradients.

    Args:
      models: with variables.
      loss_of: of a model's number, its outputs and the batch; `[batch]`.
      columns: of the training rows; a batch is a dict of the same.
      steps: of training.
      batch_size: rows of a step.
      seed: of the order.
      read: maps a batch to the models' input.
      learning_rate: of the first step.
      weight_decay: as in AdamW, of all weights; None for none.
    """
    columns = {name: tf.constant(values) for name, values in columns.items()}
    rows = int(next(iter(columns.values())).shape[0])
    order = tf.constant(rows_of_steps(rows, batch_size, steps, seed))
    rate = keras.optimizers.schedules.CosineDecay(learning_rate, steps)
    optimizer = (
        keras.optimizers.Adam(rate)
        if weight_decay is None
        else keras.optimizers.AdamW(rate, weight_decay=weight_decay)
    )
    variables = [v for model in models for v in model.trainable_variables]
    optimizer.build(variables)

    @tf.autograph.experimental.do_not_convert
    def one(step: tf.Tensor) -> None:
        batch = {name: tf.gather(values, order[step]) for name, values in columns.items()}
        with tf.GradientTape() as tape:
            losses = [
                tf.reduce_mean(loss_of(i, model(read(batch), training=True), batch))
                for i, model in enumerate(models)
            ]
            total = tf.add_n(losses)
        gradients = tape.gradient(total, variables)
        optimizer.apply_gradients(zip(gradients, variables, strict=True))

    @tf.function
    def run() -> None:
        for step in tf.range(steps):
            one(step)

    run()
