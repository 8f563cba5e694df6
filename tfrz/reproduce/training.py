"""Training as experiments share it: by the zoo's loop or recipe, with nothing written."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import keras
import numpy as np
import pyarrow as pa
import tensorflow as tf

from tfrz.data.records import open_source
from tfrz.data.sources.reader import read_table
from tfrz.data.splits import SPLITS
from tfrz.training.batches import ArrayBatches, Batches
from tfrz.training.fit import build_model, fit
from tfrz.zoo import registry
from tfrz.zoo.run_config import load_run_config
from tfrz.zoo.task import Inputs, Prepared, Task

_TRAINER = (
    "trainer.epochs=1",
    "trainer.clip_norm=null",
    "trainer.ema_decay=null",
    "trainer.early_stopping_patience=null",
    "trainer.tensorboard=false",
    "trainer.steps_per_call=50",
)


def last_step(overrides: Iterable[str], seed: int) -> list[str]:
    """Overrides of a training whose last weights count: nothing is chosen on held-out data."""
    return [*_TRAINER, *overrides, f"trainer.seed={seed}"]


def device_name() -> str:
    """The device that this process trains on."""
    for device in tf.config.list_physical_devices("GPU"):
        details = tf.config.experimental.get_device_details(device)
        return str(details.get("device_name", "GPU"))
    return "CPU"


def settings(values: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Overrides of a configuration from a mapping: `model.rank=8`."""
    return [f"{prefix}{name}={json.dumps(value)}" for name, value in values.items()]


def task_of(model: str, dataset: str, overrides: Iterable[str] = ()) -> Task[Any, Any]:
    """Returns the task of the zoo's configuration of a model with some values changed.

    Args:
      model: a name of the registry.
      dataset: whose configuration to use.
      overrides: of the configuration, as `--set` takes them.
    """
    entry = registry.get(model)
    return entry.new_task(load_run_config(model, dataset, overrides))


def prepared(task: Task[Any, Any], data: str, **options: Any) -> Prepared[Any, Any]:
    """Returns the sets of a task, as `tfrz train` prepares them.

    Args:
      task: of `task_of`.
      data: as `--data` of the command line.
      **options: of the reader, beside those of the configuration.
    """
    options = {**task.config.data.options, **options}
    return task.prepare(open_source(data, None, task.entry.record_type, **options))


def permuted(task: Task[Any, Any], data: str, **options: Any) -> Prepared[Any, Any]:
    """Returns the sets of impressions, split by a permutation of their rows.

    The stored results were measured on such sets. `tfrz train` splits each row by
    its own values.

    Args:
      task: of `task_of`.
      data: as `--data` of the command line.
      **options: of the reader, beside those of the configuration.
    """
    settings = task.config.data
    options = {**settings.options, **options}
    source = task.resolve(open_source(data, None, task.entry.record_type, **options))
    records, corrupt = read_table(source.reader, settings.max_corrupt_fraction)
    order = np.random.default_rng(settings.seed).permutation(records.num_rows)
    held_out = (settings.validation_fraction, settings.test_fraction)
    bounds = np.cumsum((1.0 - sum(held_out), *held_out))[:-1] * records.num_rows
    rows = np.split(order, np.round(bounds).astype(int))
    parts = {
        name: records.take(pa.array(np.sort(some))) for name, some in zip(SPLITS, rows, strict=True)
    }
    return task.prepared(source.spec, parts, len(corrupt))


def staged(
    model: str,
    dataset: str,
    sets: Prepared[Any, Any],
    overrides: Iterable[str],
    seed: int,
    after: Callable[[str, keras.Model, Task[Any, Any]], None] | None = None,
) -> tuple[keras.Model, Task[Any, Any]]:
    """Trains by the model's own recipe; writes nothing.

    Args:
      model: a name of the registry.
      dataset: whose configuration to use.
      sets: of `prepared`.
      overrides: of the configuration.
      seed: of weights and order; also of what the recipe draws.
      after: called with each stage's name (`train`, `density`, `calibrate`), the model and its
        task.

    Returns:
      The trained model and its task.
    """
    seeds = (f"trainer.seed={seed}", f"weighting.seed={seed}", "trainer.tensorboard=false")
    task = task_of(model, dataset, [*overrides, *seeds])
    config = task.config.trainer
    built = build_model(lambda: task.build(sets.inputs), config)
    batches = ArrayBatches(sets.train.columns(), config.batch_size, seed)
    arguments = (built, task, batches, sets.validation, config, None, False)
    recipe = registry.get(model).load("recipe")
    if after is None:
        recipe(*arguments)
    else:
        # The rounds of the density are stages of their own; the last one counts.
        recipe(
            *arguments,
            lambda stage, trained: after(
                "density" if stage.startswith("density") else stage, trained, task
            ),
        )
    return built, task


class Stepped:
    """Batches whose epoch has a given number of steps: passes over the set, one after another.

    Args:
      batches: the set.
      steps: of an epoch.
    """

    def __init__(self, batches: ArrayBatches, steps: int) -> None:
        self._batches, self._steps = batches, steps
        self.batch_size, self.num_examples = batches.batch_size, batches.num_examples

    @property
    def steps_per_epoch(self) -> int:
        """As given."""
        return self._steps

    def epoch(self, epoch: int, skip: int = 0) -> tf.data.Dataset:
        """The given number of batches, without the first `skip`."""
        passes = -(-self._steps // self._batches.steps_per_epoch)
        dataset = self._batches.epoch(epoch * passes)
        for number in range(1, passes):
            dataset = dataset.concatenate(self._batches.epoch(epoch * passes + number))
        return dataset.take(self._steps).skip(skip)

    def once(self) -> tf.data.Dataset:
        """All examples in stored order."""
        return self._batches.once()


def train(
    task: Task[Any, Any],
    inputs: Inputs,
    columns: Mapping[str, Any],
    validation: Batches,
    model: keras.Model | None = None,
    steps: int | None = None,
) -> tuple[keras.Model, dict[str, float]]:
    """Trains a model by the zoo's loop; writes nothing.

    Args:
      task: of `task_of`.
      inputs: of the task's model.
      columns: training examples.
      validation: the set that the weights and the end are chosen by.
      model: trained further; a new one if left out.
      steps: of one epoch; passes over the examples if left out.

    Returns:
      The model and its metrics on the validation set.
    """
    config = task.config.trainer
    if model is None:
        model = build_model(lambda: task.build(inputs), config)
    batches: Any = ArrayBatches(columns, config.batch_size, config.seed)
    if steps is not None:
        batches = Stepped(batches, steps)
    return model, fit(model, task, batches, validation, config, None, False).best
