"""Searching for a model's best configuration on a source of records, in this process."""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfrz.config import write_yaml
from tfrz.errors import ConfigError, InputError
from tfrz.files import atomic_write
from tfrz.zoo.run_config import RunConfig, load_run_config, run_config_to_mapping, with_values
from tfrz.zoo.search_space import check_search, combinations
from tfrz.zoo.train import refuse_other_run

if TYPE_CHECKING:
    from tfrz.zoo.task import Prepared, Task
    from tfrz.zoo.tuning import TrialResult


class PreparedSets:
    """The sets of each trial: prepared anew only where its values change the data.

    Args:
      data: as `--data` of the command line.
      features: feature spec of a file of the user's own.
    """

    def __init__(self, data: str, features: str | None) -> None:
        self._data, self._features = data, features
        self._reads: dict[str, Any] | None = None
        self._prepared: Prepared[Any, Any] | None = None

    def __call__(self, config: RunConfig) -> tuple[Task[Any, Any], Prepared[Any, Any]]:
        """What `config` is trained with.

        Raises:
          InputError: as of the task's `prepare`.
        """
        from tfrz.training.batches import ArrayBatches
        from tfrz.zoo.run import open_run

        run = open_run(config, self._data, self._features)
        reads = self._read_by(run.task, config)
        if self._prepared is None or reads != self._reads:
            self._reads, self._prepared = reads, run.prepare()
        prepared, trainer = self._prepared, config.trainer
        if isinstance(prepared.train, ArrayBatches):
            train = prepared.train.recut(trainer.batch_size, trainer.seed)
            prepared = dataclasses.replace(prepared, train=train)
        return run.task, prepared

    @staticmethod
    def _read_by(task: Task[Any, Any], config: RunConfig) -> dict[str, Any]:
        """The values of the configuration that decide what `prepare` returns."""
        mapping = run_config_to_mapping(config)
        reads = {"data": mapping["data"], "features": mapping["features"]}
        for dotted in task.prepare_reads:
            section, _, name = dotted.partition(".")
            reads[dotted] = mapping[section][name]
        return reads


def best_first(results: Iterable[TrialResult], direction: str) -> list[TrialResult]:
    """Failed trials last."""
    sign = 1.0 if direction == "min" else -1.0

    def place(result: TrialResult) -> tuple[bool, float, int]:
        failed = result.objective is None
        return failed, 0.0 if result.objective is None else sign * result.objective, result.trial

    return sorted(results, key=place)


def tune(
    model: str,
    data: str = "simulated",
    out: str | Path = "runs/tune",
    features: str | None = None,
    overrides: Iterable[str] = (),
    progress: bool = True,
    config_file: str | Path | None = None,
) -> dict[str, Any]:
    """Tries configurations of `model`'s search space on `data`.

    Args:
      model: a name of the registry.
      data: as `--data` of the command line.
      out: takes `config.yaml`, `trials/<number>.json`, `best.yaml` and, at the end, `trials.json`.
        An unfinished search is resumed: trials that ended are not run again.
      features: feature spec of a file of the user's own.
      overrides: `section.key=value`.
      progress: show a bar on standard error.
      config_file: YAML over the configuration of the data set, under `overrides`.

    Returns:
      What `trials.json` holds: the objective, and the trials, the best first.

    Raises:
      InputError: bad input of any kind, or every trial failed.
    """
    config = load_run_config(model, data.partition(":")[0], overrides, config_file)
    check_search(config)
    if "KERASTUNER_ORACLE_IP" in os.environ:
        raise InputError(
            "KERASTUNER_ORACLE_IP is set, for a search of several processes, and this is one: "
            "unset it (docs/tuning.md)"
        )
    if config.trainer.warm_start is not None:
        raise ConfigError(
            "trainer.warm_start: trials start from nothing: leave it out, and set it when you "
            "train with the best configuration"
        )
    # These load TensorFlow: a misspelt option fails before the slow import.
    from tfrz.zoo.run import open_run
    from tfrz.zoo.run_folder import pinned_spans
    from tfrz.zoo.teacher import pinned_teacher
    from tfrz.zoo.tuning import ConfigTuner
    from tfrz.zoo.user_embeddings import pinned

    out = Path(out)
    config = pinned_spans(pinned_teacher(pinned(config, out)), data, out)
    task = open_run(config, data, features).task
    described = {"command": "tune", "data_source": data, **run_config_to_mapping(config)}
    refuse_other_run(out, described, "trials.json")
    atomic_write(out / "config.yaml", write_yaml(described))
    with tempfile.TemporaryDirectory(prefix="tfrz-tune-") as state:
        tuner = ConfigTuner(config, task, state, out / "trials")
        tuner.search(sets_of=PreparedSets(data, features), progress=progress)

    trials = best_first(tuner.results, task.objective_direction)
    best = trials[0]
    result = {
        "model": model,
        "data": data,
        "objective": task.objective,
        "direction": task.objective_direction,
        "combinations": combinations(config),
        "best": str(out / "best.yaml"),
        "trials": [dataclasses.asdict(trial) for trial in trials],
    }
    comment = (
        f"# The best of {len(trials)} trials of 'tfrz tune {model} --data {data}': "
        f"{task.objective} {best.objective:.6g}.\n"
    )
    found = run_config_to_mapping(with_values(config, best.values))
    atomic_write(out / "best.yaml", comment + write_yaml(found))
    # Last: it says that the search is finished.
    atomic_write(out / "trials.json", json.dumps(result, indent=1) + "\n")
    return result
