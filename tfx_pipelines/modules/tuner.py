"""Tuner's callback: keras-tuner over the search space of the configuration."""

from __future__ import annotations

import dataclasses
from typing import Any

import keras_tuner

from tfrz.zoo import registry
from tfrz.zoo.building import build_for_training
from tfrz.zoo.run_config import RunConfig, run_config_from_mapping, with_override
from tfx_pipelines.modules.trainer import open_workspace


class ConfigTuner(keras_tuner.RandomSearch):
    """Trains a configuration per trial with the zoo's own loop.

    keras-tuner draws the values and keeps the trials; how a model is trained does not change.
    """

    def run_trial(self, trial: Any, *args: Any, **kwargs: Any) -> dict[str, float]:
        """One trial: the best validation metrics of one configuration."""
        fn_args, config = kwargs["fn_args"], kwargs["config"]
        for name in config.tuner.search_space:
            config = with_override(config, name, trial.hyperparameters.get(name))
        workspace = open_workspace(fn_args, config)
        inputs = workspace.inputs()
        model, _ = build_for_training(workspace.task, inputs, config, workspace.train)
        result = registry.get(config.name).load("recipe")(
            model,
            workspace.task,
            workspace.train,
            workspace.validation,
            config.trainer,
            None,
            progress=False,
        )
        return {workspace.task.objective: result.best[workspace.task.objective]}

    def _populate_initial_space(self) -> None:
        """Nothing to build for: the space is given whole."""


def _search_space(config: RunConfig) -> keras_tuner.HyperParameters:
    space = keras_tuner.HyperParameters()
    for name, values in config.tuner.search_space.items():
        space.Choice(name, list(values))
    return space


def tuner_fn(fn_args: Any) -> Any:
    """The tuner and what to call it with."""
    from tfx.components.tuner.component import TunerFnResult

    config = run_config_from_mapping(fn_args.custom_config["run_config"])
    task = open_workspace(fn_args, config).task
    tuner = ConfigTuner(
        hypermodel=None,
        objective=keras_tuner.Objective(task.objective, task.objective_direction),
        max_trials=config.tuner.max_trials,
        hyperparameters=_search_space(config),
        tune_new_entries=False,
        allow_new_entries=False,
        seed=config.trainer.seed,
        directory=fn_args.working_dir,
        project_name=config.name,
        overwrite=True,
    )
    trainer = dataclasses.replace(
        config.trainer, epochs=config.tuner.epochs_per_trial, tensorboard=False
    )
    trial_config = dataclasses.replace(config, trainer=trainer)
    return TunerFnResult(tuner=tuner, fit_kwargs={"fn_args": fn_args, "config": trial_config})
