"""DCN-V2 on the ratings of MovieLens-1M: what experiments on it share."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfrz.errors import InputError
from tfrz.reproduce.experiment import Context
from tfrz.reproduce.training import prepared
from tfrz.training.batches import ArrayBatches
from tfrz.training.fit import build_model, fit
from tfrz.zoo import registry
from tfrz.zoo.run_config import load_run_config

DATA = "../shared/data/ml-1m/ml-1m.zip"
_AT_ONCE = 8192


def data_path(context: Context) -> str:
    """Where the data set is.

    Raises:
      InputError: it is not there.
    """
    path = context.data or DATA
    if not Path(path).exists():
        raise InputError(f"{path} does not exist: name MovieLens-1M with --data PATH")
    return path


@functools.lru_cache(maxsize=1)
def sets(path: str, split: int) -> Any:
    """The sets of the zoo's configuration, without genres; once for each process.

    Args:
      path: of the archive, or of a folder with its files.
      split: seed of the random split.
    """
    overrides = ['data.options={"genres": false}', f"data.seed={split}"]
    return prepared("dcn_v2", "movielens-1m", f"movielens-1m:{path}", overrides)


def task_of(values: Mapping[str, Any]) -> Any:
    """The task of the zoo's configuration for MovieLens-1M with some values changed.

    Args:
      values: dotted name to value.
    """
    entry = registry.get("dcn_v2")
    overrides = [f"{name}={json.dumps(value)}" for name, value in values.items()]
    return entry.load("task")(entry, load_run_config("dcn_v2", "movielens-1m", overrides))


def train(
    task: Any, sets: Any, columns: Mapping[str, Any], model: keras.Model | None = None
) -> tuple[keras.Model, dict[str, float]]:
    """Trains a model by the zoo's loop; nothing is written.

    Args:
      task: of `task_of`.
      sets: the validation set chooses the weights and the end.
      columns: training examples.
      model: to go on with; a new one if left out.

    Returns:
      The model and its metrics on the validation set.
    """
    config = task.config.trainer
    if model is None:
        model = build_model(lambda: task.build(sets.inputs), config)
    batches = ArrayBatches(columns, config.batch_size, config.seed)
    return model, fit(model, task, batches, sets.validation, config, None, False).best


def logits(model: keras.Model, columns: Mapping[str, Any]) -> np.ndarray:
    """What a model says of examples, `[examples]`."""
    ask = tf.function(lambda batch: model(batch, training=False), reduce_retracing=True)
    return np.concatenate([ask(b).numpy() for b in ArrayBatches(columns, _AT_ONCE).once()])


def parameters(model: keras.Model) -> dict[str, int]:
    """How many a model has: `dense`, without embeddings, and `total`."""
    dense = [w for w in model.trainable_weights if "embeddings" not in w.name]
    return {
        "dense": sum(int(w.shape.num_elements()) for w in dense),
        "total": int(model.count_params()),
    }
