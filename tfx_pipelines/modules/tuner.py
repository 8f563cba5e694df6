"""Tuner's callback: the zoo's search over the configuration, on the pipeline's examples."""

from __future__ import annotations

from typing import Any

from tfrz.zoo import registry
from tfrz.zoo.run_config import RunConfig, run_config_from_mapping
from tfrz.zoo.task import Prepared, Task
from tfrz.zoo.tuning import ConfigTuner
from tfx_pipelines.modules.trainer import open_prepared


def tuner_fn(fn_args: Any) -> Any:
    """The tuner and what to call it with."""
    from tfx.components.tuner.component import TunerFnResult

    def sets_of(config: RunConfig) -> tuple[Task[Any, Any], Prepared[Any, Any]]:
        return open_prepared(fn_args, config)

    config = run_config_from_mapping(fn_args.custom_config["run_config"])
    task = registry.get(config.name).new_task(config)
    tuner = ConfigTuner(
        config, task, fn_args.working_dir, teacher=fn_args.custom_config.get("teacher")
    )
    return TunerFnResult(tuner=tuner, fit_kwargs={"sets_of": sets_of})
