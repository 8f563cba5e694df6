"""Tuner's callback: the zoo's search over the configuration, on the pipeline's examples."""

from __future__ import annotations

from typing import Any

from tfrz.zoo.run_config import RunConfig, run_config_from_mapping
from tfrz.zoo.teacher import attach_teacher
from tfrz.zoo.tuning import ConfigTuner, TrialSets
from tfx_pipelines.modules.trainer import open_workspace


def tuner_fn(fn_args: Any) -> Any:
    """The tuner and what to call it with."""
    from tfx.components.tuner.component import TunerFnResult

    def sets_of(config: RunConfig) -> TrialSets:
        workspace = open_workspace(fn_args, config)
        inputs = workspace.inputs()
        student = workspace.student_data(inputs)
        attach_teacher(workspace.task, student, fn_args.custom_config.get("teacher"))
        return TrialSets(workspace.task, inputs, workspace.train, workspace.validation)

    config = run_config_from_mapping(fn_args.custom_config["run_config"])
    task = open_workspace(fn_args, config).task
    tuner = ConfigTuner(config, task, fn_args.working_dir)
    return TunerFnResult(tuner=tuner, fit_kwargs={"sets_of": sets_of})
