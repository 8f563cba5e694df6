"""Runs a pipeline on this machine, shows where it is, and says what came of it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tfrz.config import require
from tfrz.data.records import open_source
from tfrz.files import require_writable_directory
from tfrz.zoo import registry
from tfrz.zoo.long_history import pinned, with_long_history
from tfrz.zoo.run_config import RunConfig
from tfrz.zoo.teacher import with_teacher
from tfx_pipelines.configs import Places


@dataclasses.dataclass
class ComponentRun:
    """What one component did.

    Attributes:
      name: of the component.
      outcome: "ran" or "cached".
      seconds: it took.
    """

    name: str
    outcome: str = "ran"
    seconds: float = 0.0


@dataclasses.dataclass(frozen=True)
class PipelineResult:
    """What came of a run.

    Attributes:
      components: in the order they ran.
      evaluated: whether the Evaluator blessed the model.
      blessed: whether the Evaluator and every other check blessed the model.
      refusals: the thresholds that the model missed.
      checks: what checks beside the Evaluator measured.
      metrics: of the Evaluator, over all examples.
      slices: the same by slice.
      comparison: of a distilled model: the metrics of the student, of its teacher, and of the same
        model without a teacher.
      pushed: the version that was pushed, or that an unchanged run had pushed before.
      seconds: in all.
      root: where things are.
      log: the libraries' log.
    """

    components: list[ComponentRun]
    evaluated: bool
    blessed: bool
    refusals: list[str]
    checks: dict[str, dict[str, Any]]
    metrics: dict[str, float]
    slices: dict[str, dict[str, float]]
    comparison: dict[str, dict[str, float]]
    pushed: str | None
    seconds: float
    root: str
    log: str


def _dag_runner(progress: bool, done: list[ComponentRun]) -> Any:
    """TFX's local runner, which also tells what each component did.

    The same steps as LocalDagRunner's; it has no hook, and its log is switched off by the
    libraries that the components load.
    """
    import datetime

    from ml_metadata.proto import metadata_store_pb2
    from tfx.dsl.compiler.constants import PIPELINE_RUN_ID_PARAMETER_NAME
    from tfx.orchestration import metadata
    from tfx.orchestration.local import runner_utils
    from tfx.orchestration.portable import launcher, runtime_parameter_utils, tfx_runner
    from tfx.utils import telemetry_utils

    def say(text: str) -> None:
        if progress:
            print(f"  {text}", file=sys.stderr, flush=True)

    class WatchedDagRunner(tfx_runner.IrBasedRunner):
        def run_with_ir(self, pipeline: Any, run_options: Any = None) -> None:
            del run_options
            runtime_parameter_utils.substitute_runtime_parameter(
                pipeline,
                {PIPELINE_RUN_ID_PARAMETER_NAME: datetime.datetime.now().isoformat()},
            )
            deployment = runner_utils.extract_local_deployment_config(pipeline)
            choice = deployment.metadata_connection_config
            connection = metadata.Metadata(getattr(choice, choice.WhichOneof("connection_config")))
            with telemetry_utils.scoped_labels({telemetry_utils.LABEL_TFX_RUNNER: "local"}):
                for node in pipeline.nodes:
                    self._launch(pipeline, node.pipeline_node, deployment, connection)

        def _launch(self, pipeline: Any, node: Any, deployment: Any, connection: Any) -> None:
            name = node.node_info.id
            say(f"{name} ...")
            started = time.perf_counter()
            execution = launcher.Launcher(
                pipeline_node=node,
                mlmd_connection=connection,
                pipeline_info=pipeline.pipeline_info,
                pipeline_runtime_spec=pipeline.runtime_spec,
                executor_spec=runner_utils.extract_executor_spec(deployment, name),
                custom_driver_spec=runner_utils.extract_custom_driver_spec(deployment, name),
            ).launch()
            outcome = "ran"
            if execution is not None and execution.execution_id is not None:
                with connection as handle:
                    (stored,) = handle.store.get_executions_by_id([execution.execution_id])
                if stored.last_known_state == metadata_store_pb2.Execution.CACHED:
                    outcome = "cached"
            done.append(ComponentRun(name, outcome, time.perf_counter() - started))
            say(f"{name} {outcome} ({done[-1].seconds:.1f} s)")

    return WatchedDagRunner()


@contextlib.contextmanager
def _logs_to(path: Path) -> Iterator[None]:
    """Sends everything that the libraries log to a file for the time of a run."""
    import tensorflow as tf

    tf.get_logger()  # Made at its first use, with a handler of its own.
    file = logging.FileHandler(path)
    file.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    # Each with a level of its own: libraries change the root logger's while they run.
    loggers = [logging.getLogger(name) for name in ("", "absl", "tensorflow", "tfrz")]
    before = [(one.handlers, one.propagate, one.level) for one in loggers]
    for one in loggers:
        one.handlers, one.propagate = [file] if one.name == "root" else [], True
        one.setLevel(logging.INFO)
    try:
        yield
    finally:
        for one, (handlers, propagate, level) in zip(loggers, before, strict=True):
            one.handlers, one.propagate = handlers, propagate
            one.setLevel(level)
        file.close()


def _latest(folder: Path) -> Path | None:
    """The newest execution's folder of an artifact."""
    numbered = [p for p in folder.glob("*") if p.name.isdigit()] if folder.exists() else []
    return max(numbered, key=lambda p: int(p.name), default=None)


# Of TFMA's metrics, as the zoo calls them.
_NAMES = {"auc": "auc", "binary_crossentropy": "log_loss", "calibration": "calibration"}


def _measured(result: Any) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Metrics of one model in an evaluation: over all examples, and by slice."""
    overall: dict[str, float] = {}
    slices: dict[str, dict[str, float]] = {}
    for key, outputs in result.slicing_metrics:
        values = {
            _NAMES.get(name, name): float(value["doubleValue"])
            for output in outputs.values()
            for sub in output.values()
            for name, value in sub.items()
            if "doubleValue" in value
        }
        if key:
            slices[", ".join(f"{k}={v}" for k, v in key)] = values
        else:
            overall = values
    return overall, slices


def _comparison(places: Places, student: dict[str, float]) -> dict[str, dict[str, float]]:
    """The metrics of a student, of its teacher, and of the same model without a teacher."""
    import tensorflow_model_analysis as tfma

    from tfx_pipelines.components.teacher import COMPARISON

    folder = _latest(Path(places.artifacts) / COMPARISON / "evaluation")
    if folder is None:
        return {}
    models = {"teacher": tfma.BASELINE_KEY, "undistilled": tfma.CANDIDATE_KEY}
    found = {
        name: _measured(tfma.load_eval_result(str(folder), model_name=key))[0]
        for name, key in models.items()
    }
    return {"student": student, **found}


def _evaluation(places: Places) -> tuple[dict[str, float], dict[str, dict[str, float]], list[str]]:
    """Overall metrics, those of slices, and the missed thresholds of the latest evaluation."""
    import tensorflow_model_analysis as tfma

    folder = _latest(Path(places.artifacts) / "Evaluator" / "evaluation")
    if folder is None:
        return {}, {}, []
    overall, slices = _measured(tfma.load_eval_result(str(folder)))
    refusals = []
    validation = tfma.load_validation_result(str(folder))
    for one in validation.metric_validations_per_slice:
        keys = ", ".join(
            f"{k.column}={k.bytes_value.decode() or k.int64_value}"
            for k in one.slice_key.single_slice_keys
        )
        for failure in one.failures:
            value = failure.metric_value.double_value.value
            refusals.append(
                f"{_NAMES.get(failure.metric_key.name, failure.metric_key.name)} {value:.4f} "
                f"misses its threshold on {keys or 'all examples'}"
            )
    return overall, slices, refusals


def _checks(places: Places) -> tuple[dict[str, dict[str, Any]], bool, list[str]]:
    """What the latest checks beside the Evaluator measured, whether all passed, and why not."""
    measured: dict[str, dict[str, Any]] = {}
    for component in sorted(Path(places.artifacts).glob("*/blessing")):
        folder = _latest(component)
        report = folder / "check.json" if folder is not None else None
        if report is not None and report.exists():
            measured[component.parent.name] = json.loads(report.read_text())
    reasons = [r["reason"] for r in measured.values() if not r["passed"]]
    return measured, not reasons, reasons


def _pushed(places: Places, model: str) -> list[int]:
    folder = Path(places.serving(model))
    return sorted(int(p.name) for p in folder.glob("*") if p.name.isdigit())


def _check_slices(config: RunConfig, names: set[str]) -> None:
    for keys in config.evaluator.slices:
        for key in keys:
            require(key in names, "evaluator.slices", f"the data has no feature {key!r}")


def open_checked(config: RunConfig, data: str, features: str | None) -> Any:
    """The reader of `data`, after everything that can be checked before a run.

    Raises:
      InputError: the data is missing, of another format, or has no such records; or the store of
        embeddings is none, or of another version than the run.
    """
    entry = registry.get(config.name)
    reader = open_source(data, features, entry.record_type, **config.data.options)
    reader.shards()
    spec, _ = with_long_history(config.features, reader.feature_spec())
    with_teacher(config.distill, spec)
    names = {f.name for f in spec.features if f.kind != "opaque"}
    _check_slices(config, names | set(entry.load("task").slice_features))
    return reader


def run_pipeline(
    config: RunConfig,
    data: str,
    root: str | Path,
    features: str | None = None,
    progress: bool = True,
) -> PipelineResult:
    """Runs the pipeline of `config.name` with TFX's LocalDagRunner.

    Args:
      config: the run's configuration.
      data: as `--data` of the command line.
      root: takes `artifacts/`, `metadata.sqlite`, `logs/` and `serving/<model>/<version>/`.
      features: feature spec of a file of the user's own.
      progress: name the components on standard error as they run.

    Raises:
      InputError: bad input, before anything runs where possible.
    """
    config = pinned(config)
    reader = open_checked(config, data, features)
    places = Places(str(require_writable_directory(root).resolve()))
    Path(places.logs).mkdir(exist_ok=True)
    log = Path(places.logs) / time.strftime("%Y%m%d-%H%M%S.log")
    started = time.perf_counter()
    if progress:
        print("  loading TFX ...", file=sys.stderr, flush=True)
    components: list[ComponentRun] = []
    with _logs_to(log):
        from tfrz.data.beam import input_error_in
        from tfx_pipelines.pipeline import create_pipeline, describe

        logging.getLogger("tfrz").info("configuration: %s", describe(config))
        before = _pushed(places, config.name)
        pipeline = create_pipeline(config, data, features, reader, places)
        try:
            _dag_runner(progress, components).run(pipeline)
        except Exception as error:
            logging.getLogger("tfrz").exception("the pipeline failed")
            told = input_error_in(error)
            if told is None:
                raise
            raise told from error
        metrics, slices, refusals = _evaluation(places)
        checks, passed, reasons = _checks(places)
    blessing = _latest(Path(places.artifacts) / "Evaluator" / "blessing")
    evaluated = blessing is not None and (blessing / "BLESSED").exists()
    blessed = passed and evaluated
    compared = config.distill.teacher is not None and config.distill.compare
    after = _pushed(places, config.name)
    unchanged = bool(components) and components[-1].outcome == "cached"
    pushed = after[-1] if after and (len(after) > len(before) or (unchanged and blessed)) else None
    return PipelineResult(
        components=components,
        evaluated=evaluated,
        blessed=blessed,
        refusals=refusals + reasons,
        checks=checks,
        metrics=metrics,
        slices=slices,
        comparison=_comparison(places, metrics) if compared else {},
        pushed=None if pushed is None else f"{places.serving(config.name)}/{pushed}",
        seconds=time.perf_counter() - started,
        root=places.root,
        log=str(log),
    )


def result_to_json(result: PipelineResult) -> str:
    """The result as JSON."""
    return json.dumps(dataclasses.asdict(result), indent=1)
