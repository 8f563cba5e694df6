"""Training for a fixed number of steps: what experiments share."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import keras
import tensorflow as tf

from tfrz.training.batches import ArrayBatches, Batches
from tfrz.training.fit import build_model, fit
from tfrz.zoo import registry
from tfrz.zoo.run_config import RunConfig, load_run_config

# The weights of the last step are taken: nothing is chosen by looking at held-out data.
_TRAINER = (
    "trainer.epochs=1",
    "trainer.clip_norm=null",
    "trainer.ema_decay=null",
    "trainer.early_stopping_patience=null",
    "trainer.tensorboard=false",
    "trainer.steps_per_call=50",
)


def configure(model: str, dataset: str, overrides: Iterable[str], seed: int) -> RunConfig:
    """The zoo's configuration of a model for an experiment."""
    return load_run_config(model, dataset, [*_TRAINER, *overrides, f"trainer.seed={seed}"])


def device_name() -> str:
    """What the runs of this process are trained on."""
    for device in tf.config.list_physical_devices("GPU"):
        details = tf.config.experimental.get_device_details(device)
        return str(details.get("device_name", "GPU"))
    return "CPU"


def prepared(model: str, dataset: str, data: str, overrides: Iterable[str] = ()) -> Any:
    """The sets of a model's configuration on a data set, as `tfrz train` makes them.

    Args:
      model: a name of the registry.
      dataset: whose configuration.
      data: as `--data` of the command line.
      overrides: of the configuration.
    """
    from tfrz.data.records import open_source

    entry, config = registry.get(model), load_run_config(model, dataset, overrides)
    reader = open_source(data, None, entry.record_type, **config.data.options)
    return entry.load("task")(entry, config).prepare(reader)


def staged(
    model: str,
    dataset: str,
    sets: Any,
    overrides: Iterable[str],
    seed: int,
    after: Callable[[str, keras.Model, Any], None] | None = None,
) -> tuple[keras.Model, Any]:
    """Trains by the model's own recipe, with nothing written.

    Args:
      model: a name of the registry.
      dataset: whose configuration.
      sets: of `prepared`.
      overrides: of the configuration.
      seed: of weights and order; also of what the recipe draws.
      after: called with each stage's name, the model and its task.

    Returns:
      The trained model and its task.
    """
    seeds = (f"trainer.seed={seed}", f"weighting.seed={seed}", "trainer.tensorboard=false")
    config = load_run_config(model, dataset, [*overrides, *seeds])
    entry = registry.get(model)
    task = entry.load("task")(entry, config)
    built = build_model(lambda: task.build(sets.inputs), config.trainer)
    batches = ArrayBatches(sets.train.columns(), config.trainer.batch_size, seed)
    arguments = (built, task, batches, sets.validation, config.trainer, None, False)
    recipe = entry.load("recipe")
    if after is None:
        recipe(*arguments)
    else:
        recipe(*arguments, lambda stage, trained: after(stage, trained, task))
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
    config: RunConfig, inputs: Any, batches: ArrayBatches, steps: int, validation: Batches
) -> tuple[keras.Model, Any, dict[str, float]]:
    """Trains the model of `config` for `steps`.

    Returns:
      The model, its task, and the metrics on `validation` at the end.
    """
    entry = registry.get(config.name)
    task = entry.load("task")(entry, config)
    model = build_model(lambda: task.build(inputs), config.trainer)
    result = fit(model, task, Stepped(batches, steps), validation, config.trainer, None, False)
    return model, task, result.best
