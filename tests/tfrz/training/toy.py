"""A model and a task small enough to train in a test, in the form that the loop asks for."""

from __future__ import annotations

import keras
import numpy as np
import tensorflow as tf

from tfrz import metrics
from tfrz.training.batches import ArrayBatches


class ToyModel(keras.Model):
    """An embedding and a dense layer."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__(name="toy")
        self.embedding = keras.layers.Embedding(20, 4, name="item")
        self.dense = keras.layers.Dense(8, activation="tanh", name="dense")
        self.dropout = keras.layers.Dropout(dropout)
        self.out = keras.layers.Dense(1, name="out")

    def call(self, inputs, training=False):
        return self.interact(self.embedding(inputs["item"]), training)

    def interact(self, x, training=False):
        return self.out(self.dropout(self.dense(x), training=training))[:, 0]


class ToyTask:
    """Binary log loss."""

    objective = "log_loss"
    objective_direction = "min"

    def build(self) -> ToyModel:
        model = ToyModel()
        model({"item": tf.zeros([1], tf.int64)})
        return model

    def lookup(self, model, batch):
        return {"x": model.embedding(batch["item"]), "label": batch["label"]}

    def dense_loss(self, model, looked_up):
        logits = model.interact(looked_up["x"], training=True)
        loss = tf.nn.sigmoid_cross_entropy_with_logits(looked_up["label"], logits)
        return loss, 1e-4 * tf.reduce_sum(tf.square(model.dense.kernel))

    def predict(self, model, batch):
        return {"logits": model(batch), "label": batch["label"]}

    def metrics(self, outputs):
        labels, logits = outputs["label"], outputs["logits"]
        return {"auc": metrics.auc(labels, logits), "log_loss": metrics.log_loss(labels, logits)}


def toy_columns(rows: int, seed: int) -> dict[str, np.ndarray]:
    """Items of which the even ones are mostly clicked."""
    rng = np.random.default_rng(seed)
    item = rng.integers(0, 20, rows)
    label = rng.random(rows) < np.where(item % 2 == 0, 0.8, 0.2)
    return {"item": item.astype("int64"), "label": label.astype("float32")}


def toy_sets(batch_size: int = 32, rows: int = 1000) -> tuple[ArrayBatches, ArrayBatches]:
    """A training and a validation set."""
    return (
        ArrayBatches(toy_columns(rows, 0), batch_size, seed=3),
        ArrayBatches(toy_columns(500, 1), 128),
    )
