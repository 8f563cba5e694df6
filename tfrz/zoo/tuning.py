"""keras-tuner over a search space: what `tfrz tune` and the pipeline's Tuner share."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras_tuner
import tensorflow as tf
from keras_tuner.engine.trial import TrialStatus

from tfrz.errors import InputError
from tfrz.files import atomic_write
from tfrz.training.fit import measured
from tfrz.zoo.run import train_prepared
from tfrz.zoo.run_config import RunConfig
from tfrz.zoo.search_space import chosen_values, draw, stand_in, trial_config
from tfrz.zoo.task import Prepared, Task

logger = logging.getLogger(__name__)


# What a configuration is trained with.
SetsOf = Callable[[RunConfig], tuple[Task[Any, Any], Prepared[Any, Any]]]


@dataclasses.dataclass(frozen=True)
class TrialResult:
    """The result of a trial.

    Attributes:
      trial: its number, from 1.
      values: dotted names of the configuration to the values tried.
      objective: the objective of the best evaluation; null if the trial failed.
      metrics: the other validation metrics of that evaluation.
      steps: trained.
      seconds: of training and evaluation.
      error: why the trial failed; null if it did not.
    """

    trial: int
    values: dict[str, Any]
    objective: float | None
    metrics: dict[str, float]
    steps: int
    seconds: float
    error: str | None = None


class _SeededSearch(keras_tuner.oracles.RandomSearchOracle):
    """Random search without replacement.

    keras-tuner's own gives up after 20 collisions, before a small space is exhausted, and takes
    the seed 0 for none.
    """

    def __init__(self, config: RunConfig, objective: keras_tuner.Objective) -> None:
        space = keras_tuner.HyperParameters()
        for name, values in config.tuner.search_space.items():
            space.Choice(name, [stand_in(value, values) for value in values])
        self._space, self._draws = config.tuner.search_space, draw(config)
        super().__init__(
            objective=objective,
            max_trials=len(self._draws),
            hyperparameters=space,
            tune_new_entries=False,
            allow_new_entries=False,
        )

    def populate_space(self, trial_id: str) -> dict[str, Any]:
        """The values of a trial, by its number."""
        values = self._draws[int(trial_id)]
        drawn = {name: stand_in(value, self._space[name]) for name, value in values.items()}
        return {"status": TrialStatus.RUNNING, "values": drawn}


class _SearchEnded(keras_tuner.errors.FatalError):
    """An error that is not the trial's: keras-tuner lets this kind through."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


class ConfigTuner(keras_tuner.Tuner):
    """Trains a configuration per trial with the zoo's own loop.

    keras-tuner keeps the trials, here or for workers elsewhere; how a model is trained does not
    change. A trial that cannot be trained (its loss is not finite, its memory is not enough) is the
    worst of all; other errors end the search.

    Args:
      config: has the search space.
      task: of that configuration; has the objective.
      directory: of keras-tuner's state, which it does not write atomically.
      results: folder of the results of trials, one file each, written atomically; a trial whose
        result is there is not run again. None to keep none.
      teacher: SavedModel of the live teacher, where it is not that of the configuration.
    """

    def __init__(
        self,
        config: RunConfig,
        task: Task[Any, Any],
        directory: str | Path,
        results: Path | None = None,
        teacher: str | None = None,
    ) -> None:
        self._config, self._results, self._teacher = config, results, teacher
        self.results: list[TrialResult] = []
        self._worst = math.inf if task.objective_direction == "min" else -math.inf
        oracle = _SeededSearch(
            config, keras_tuner.Objective(task.objective, task.objective_direction)
        )
        oracle.verbose = 0
        self._count = oracle.max_trials
        super().__init__(
            oracle=oracle,
            directory=str(directory),
            project_name=config.name,
            overwrite=True,
        )

    def search(self, *args: Any, **kwargs: Any) -> None:
        """All trials; see `run_trial`."""
        try:
            super().search(*args, **kwargs)
        except _SearchEnded as ended:
            raise ended.error from None

    def run_trial(self, trial: Any, sets_of: SetsOf, progress: bool = False) -> dict[str, float]:
        """One trial: the best validation metrics of one configuration.

        Args:
          trial: of keras-tuner.
          sets_of: what a configuration is trained with.
          progress: show a bar on standard error.
        """
        try:
            number = int(trial.trial_id) + 1
            values = chosen_values(self._config, trial.hyperparameters.values)
            result = self._stored(number, values)
            if result is None:
                result = self._train(number, values, sets_of, progress)
                if self._results is not None:
                    text = json.dumps(dataclasses.asdict(result), indent=1)
                    atomic_write(self._results / f"{number}.json", f"{text}\n")
            else:
                logger.info("trial %d ended before", number)
        except Exception as error:
            raise _SearchEnded(error) from error
        self.results.append(result)
        score = self._worst if result.objective is None else result.objective
        return {self.oracle.objective.name: score}

    def _stored(self, number: int, values: dict[str, Any]) -> TrialResult | None:
        """The result of a trial that an interrupted search has run."""
        if self._results is None or not (self._results / f"{number}.json").exists():
            return None
        stored = TrialResult(**json.loads((self._results / f"{number}.json").read_text()))
        return stored if stored.values == values else None

    def _train(
        self,
        number: int,
        values: dict[str, Any],
        sets_of: SetsOf,
        progress: bool,
    ) -> TrialResult:
        words = ", ".join(f"{name}={value}" for name, value in values.items())
        logger.info("trial %d of %d: %s", number, self._count, words)
        config = trial_config(self._config, values)
        task, prepared = sets_of(config)
        objective = task.objective
        started = time.perf_counter()
        try:
            fitted = train_prepared(task, prepared, None, progress, teacher=self._teacher).result
            metrics = measured(fitted.best)
            if not math.isfinite(metrics[objective]):
                raise InputError(f"{objective} is {metrics[objective]}")
        except (InputError, tf.errors.ResourceExhaustedError) as error:
            reason = str(error).partition("\n")[0]
            logger.info("trial %d failed: %s", number, reason)
            seconds = time.perf_counter() - started
            return TrialResult(number, values, None, {}, 0, seconds, reason)
        value = metrics.pop(objective)
        seconds = time.perf_counter() - started
        logger.info("trial %d: %s %.4f (%.1f s)", number, objective, value, seconds)
        return TrialResult(number, values, value, metrics, fitted.steps_run, seconds)

    def on_search_end(self) -> None:
        """Refuses to call a failed trial the best.

        Raises:
          InputError: every trial failed.
        """
        here = isinstance(self.oracle, keras_tuner.Oracle)  # Else other workers have trials too.
        if here and all(result.error is not None for result in self.results):
            raise InputError(f"every trial failed, the first because {self.results[0].error}")

    def _populate_initial_space(self) -> None:
        """Nothing to build for: the space is given whole."""
