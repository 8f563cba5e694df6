"""DCN-V2 on the ratings of MovieLens-1M, shared by several experiments."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfrz.reproduce import training
from tfrz.training.batches import ArrayBatches
from tfrz.training.fit import evaluate
from tfrz.zoo.task import Prepared, Task

DATA = "../shared/data/ml-1m/ml-1m.zip"
_AT_ONCE = 8192


@functools.lru_cache(maxsize=1)
def sets(path: str, split: int) -> Prepared[Any, Any]:
    """The sets of the zoo's configuration, without genres; once for each process.

    Args:
      path: of the archive, or of a folder with its files.
      split: seed of the random split.
    """
    task = task_of({"data.options": {"genres": False}, "data.seed": split})
    return training.permuted(task, f"movielens-1m:{path}")


def task_of(values: Mapping[str, Any]) -> Task[Any, Any]:
    """The task of the zoo's configuration for MovieLens-1M with some values changed.

    Args:
      values: dotted name to value.
    """
    return training.task_of("dcn_v2", "movielens-1m", training.settings(values))


def train(
    task: Task[Any, Any],
    sets: Prepared[Any, Any],
    columns: Mapping[str, Any],
    model: keras.Model | None = None,
) -> tuple[keras.Model, dict[str, float]]:
    """Trains a model; the validation set of `sets` chooses its weights. See `training.train`."""
    return training.train(task, sets.inputs, columns, sets.validation, model)


def judged(
    model: keras.Model, task: Task[Any, Any], sets: Prepared[Any, Any]
) -> dict[str, dict[str, float]]:
    """Metrics of a model on the validation set and on the test set."""
    return {kind: evaluate(model, task, getattr(sets, kind)) for kind in ("validation", "test")}


def logits(model: keras.Model, columns: Mapping[str, Any]) -> np.ndarray:
    """Returns the logits of examples, `[examples]`."""
    ask = tf.function(
        lambda batch: model(batch, training=False), autograph=False, reduce_retracing=True
    )
    return np.concatenate([ask(b).numpy() for b in ArrayBatches(columns, _AT_ONCE).once()])


def parameters(model: keras.Model) -> dict[str, int]:
    """Returns the number of parameters: `dense` (without embeddings) and `total`."""
    dense = [w for w in model.trainable_weights if "embeddings" not in w.name]
    return {
        "dense": sum(int(w.shape.num_elements()) for w in dense),
        "total": int(model.count_params()),
    }
