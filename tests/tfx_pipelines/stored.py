"""One component by itself on what a whole run has stored: its model, its examples, its verdict."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.lazy import lazy
from tfrz.zoo import registry
from tfrz.zoo.run_config import RunConfig
from tfx_pipelines.configs import splits_of
from tfx_pipelines.local_runner import PipelineResult

evaluations = lazy("tfx_pipelines.evaluations")
evaluator = lazy("tfx_pipelines.components.evaluator")
json_format = lazy("google.protobuf.json_format")
pusher = lazy("tfx.components.pusher.executor")
standard_artifacts = lazy("tfx.types.standard_artifacts")


def artifact(run: PipelineResult, component: str, output: str) -> Path:
    """The folder of an artifact of the first run in a root."""
    places = (Path(run.root) / "artifacts" / component / output).iterdir()
    return min((p for p in places if p.name.isdigit()), key=lambda p: int(p.name))


def made(kind: str, uri: Path) -> Any:
    """An artifact of TFX."""
    new = getattr(standard_artifacts, kind)()
    new.uri = str(uri)
    return new


def examples(run: PipelineResult, example_gen: str) -> Any:
    """The examples of a run."""
    folder = artifact(run, example_gen, "examples")
    found = made("Examples", folder)
    found.split_names = json.dumps([p.name.removeprefix("Split-") for p in folder.glob("Split-*")])
    return found


def evaluate(
    run: PipelineResult, judged: Any, config: RunConfig, spec: Any, folder: Path
) -> tuple[Any, list[str]]:
    """Judges a run's model by other examples or thresholds, as the Evaluator of a pipeline does.

    Returns:
      The blessing, and the refusals as a run tells them.
    """
    thresholds = registry.get(config.name).new_task(config).eval_config(spec, has_baseline=False)
    evaluation = made("ModelEvaluation", folder / "evaluation")
    blessing = made("ModelBlessing", folder / "blessing")
    evaluator.EvaluatorExecutor().Do(
        {
            "examples": [judged],
            "model": [made("Model", artifact(run, "Trainer", "model"))],
        },
        {"evaluation": [evaluation], "blessing": [blessing]},
        {
            "eval_config": json_format.MessageToJson(thresholds, preserving_proto_field_name=True),
            "example_splits": json.dumps(splits_of(config.data.test_fraction)[-1:]),
        },
    )
    return blessing, evaluations.read_evaluation(Path(evaluation.uri)).refusals


def blessed(blessing: Any) -> bool:
    """Whether the model was blessed; the property and the file say the same."""
    (name,) = (p.name for p in Path(blessing.uri).iterdir() if "BLESSED" in p.name)
    assert blessing.get_int_custom_property("blessed") == int(name == "BLESSED")
    return name == "BLESSED"


def push(model: Path, blessing: Any, folder: Path) -> list[Path]:
    """What TFX' Pusher puts where models are served."""
    serving = folder / "serving"
    destination = {"filesystem": {"base_directory": str(serving)}}
    pusher.Executor().Do(
        {"model": [made("Model", model)], "model_blessing": [blessing]},
        {"pushed_model": [made("PushedModel", folder / "pushed")]},
        {"push_destination": json.dumps(destination), "custom_config": "null"},
    )
    return list(serving.iterdir()) if serving.exists() else []
