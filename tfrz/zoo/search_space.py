"""The values that a search draws from: `tuner.search_space` of a configuration."""

from __future__ import annotations

import dataclasses
import json
import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

from tfrz.config import require
from tfrz.errors import ConfigError
from tfrz.zoo.run_config import RunConfig, with_values


def stand_in(value: Any, values: Sequence[Any]) -> Any:
    """Returns keras-tuner's value for one of `values`: it draws scalars of one type only.

    Example:
      >>> stand_in(8, [8, 16])
      8
      >>> stand_in([64, 32], [None, [64, 32]])
      '[64, 32]'
    """
    kinds = {type(each) for each in values}
    plain = len(kinds) == 1 and kinds <= {int, float, str, bool}
    return value if plain else json.dumps(value)


def chosen_values(config: RunConfig, drawn: Mapping[str, Any]) -> dict[str, Any]:
    """The values that keras-tuner's `drawn` stand for, by their dotted names."""
    return {
        name: {stand_in(value, values): value for value in values}[drawn[name]]
        for name, values in config.tuner.search_space.items()
    }


def combinations(config: RunConfig) -> int:
    """How many different trials the space has."""
    return math.prod(len(values) for values in config.tuner.search_space.values())


def draw(config: RunConfig) -> list[dict[str, Any]]:
    """The values of each trial: at random, none twice, the same for the same `trainer.seed`.

    A search of more trials begins with those of a search of fewer.
    """
    space, count = config.tuner.search_space, combinations(config)
    numbers: dict[int, None] = {}
    generator = random.Random(config.trainer.seed)
    while len(numbers) < min(config.tuner.max_trials, count):
        numbers[generator.randrange(count)] = None
    drawn = []
    for number in numbers:
        trial = {}
        for name, values in space.items():
            number, place = divmod(number, len(values))
            trial[name] = values[place]
        drawn.append(trial)
    return drawn


def trial_config(config: RunConfig, values: Mapping[str, Any]) -> RunConfig:
    """The configuration that a trial of `values` trains: shorter, and nothing written."""
    epochs = config.tuner.epochs_per_trial or config.trainer.epochs
    trainer = dataclasses.replace(config.trainer, epochs=epochs, tensorboard=False)
    return with_values(dataclasses.replace(config, trainer=trainer), values)


def check_search(config: RunConfig) -> None:
    """Refuses a search that cannot be run, before any trial.

    Raises:
      ConfigError: there is nothing to search, or values of a trial do not go together.
    """
    require(
        bool(config.tuner.search_space),
        "tuner.search_space",
        "is empty: name what to search, e.g. --set 'tuner.search_space={model.rank: [8, 16]}'",
    )
    for number, values in enumerate(draw(config), 1):
        try:
            trial_config(config, values)
        except ConfigError as error:
            raise ConfigError(
                f"tuner.search_space: the values of trial {number} do not go together: {error}"
            ) from error
