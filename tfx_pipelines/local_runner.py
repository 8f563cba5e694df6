"""Runs a pipeline on this machine, shows its progress, and returns its result."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import logging
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tfrz.config import require
from tfrz.files import require_writable_directory
from tfrz.zoo.run import Run, open_run
from tfrz.zoo.run_config import RunConfig
from tfrz.zoo.run_folder import pinned_spans
from tfrz.zoo.user_embeddings import pinned
from tfx_pipelines.configs import Places, config_to_json

logger = logging.getLogger(__name__)
_LOGGERS = ("", "absl", "tensorflow", "tfrz", "tfx_pipelines")


@dataclasses.dataclass(frozen=True)
class ComponentRun:
    """The run of one component.

    Attributes:
      name: the component's name.
      outcome: "ran" or "cached".
      seconds: how long it took.
    """

    name: str
    outcome: str
    seconds: float


@dataclasses.dataclass(frozen=True)
class PipelineResult:
    """The result of a run.

    Attributes:
      components: the components in the order they ran.
      evaluated: whether the Evaluator blessed the model.
      blessed: whether the Evaluator and every later check blessed the model.
      refusals: the bounds that the model broke.
      undefined: bounds that could not be checked because a metric is undefined on a slice.
      checks: reports of the checks after the Evaluator.
      metrics: the Evaluator's metrics over all examples; NaN where undefined.
      slices: the same by slice.
      comparison: of a distilled model: the metrics of the student, of its teacher, and of the same
        model without a teacher.
      pushed: the pushed version, or the version that an unchanged earlier run pushed.
      seconds: time of the whole run.
      root: folder of the pipeline.
      log: file with the libraries' logs.
    """

    components: list[ComponentRun]
    evaluated: bool
    blessed: bool
    refusals: list[str]
    undefined: list[str]
    checks: dict[str, dict[str, Any]]
    metrics: dict[str, float]
    slices: dict[str, dict[str, float]]
    comparison: dict[str, dict[str, float]]
    pushed: str | None
    seconds: float
    root: str
    log: str


@contextlib.contextmanager
def _logs_to(path: Path) -> Iterator[None]:
    """Sends all logs of the libraries to a file during a run."""
    import tensorflow as tf

    tf.get_logger()  # Created at its first use, with a handler of its own.
    file = logging.FileHandler(path)
    file.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    # Set each level: libraries change the root logger's level while they run.
    loggers = [logging.getLogger(name) for name in _LOGGERS]
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


def _versions(folder: str | Path) -> list[Path]:
    """The folders whose names are numbers, in ascending order."""
    return sorted(
        (p for p in Path(folder).glob("*") if p.name.isdecimal()), key=lambda p: int(p.name)
    )


def _latest(places: Places, component: str, output: str) -> Path | None:
    """The folder of a component's newest output."""
    return next(reversed(_versions(Path(places.artifacts) / component / output)), None)


def _comparison(places: Places, student: dict[str, float]) -> dict[str, dict[str, float]]:
    """The metrics of a student, of its teacher, and of the same model without a teacher."""
    from tensorflow_model_analysis import BASELINE_KEY, CANDIDATE_KEY

    from tfx_pipelines.components.teacher import COMPARISON
    from tfx_pipelines.evaluations import read_metrics

    folder = _latest(places, COMPARISON, "evaluation")
    if folder is None:
        return {}
    models = {"teacher": BASELINE_KEY, "undistilled": CANDIDATE_KEY}
    return {"student": student, **{n: read_metrics(folder, k)[""] for n, k in models.items()}}


def _checks(places: Places) -> dict[str, dict[str, Any]]:
    """The reports of the latest checks after the Evaluator, by component."""
    reports = {}
    for component in sorted(p.parent.name for p in Path(places.artifacts).glob("*/blessing")):
        folder = _latest(places, component, "blessing")
        if folder is not None and (folder / "check.json").exists():
            reports[component] = json.loads((folder / "check.json").read_text())
    return reports


def open_checked(config: RunConfig, data: str, features: str | None) -> Run:
    """The resolved run, after every check that is possible before it starts.

    Raises:
      InputError: the data are missing, in another format, or have no records of the model's type;
        or the store of embeddings does not exist or has another version than the run.
      ConfigError: `evaluator.slices` names a feature that the data do not have.
    """
    run = open_run(config, data, features)
    run.source.reader.shards()
    names = {f.name for f in run.source.spec.features if f.kind != "opaque"}
    names |= set(run.task.slice_features)
    for key in itertools.chain.from_iterable(config.evaluator.slices):
        require(key in names, "evaluator.slices", f"the data has no feature {key!r}")
    return run


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
      root: folder for `artifacts/`, `metadata.sqlite`, `logs/` and `serving/<model>/<version>/`.
      features: feature spec of a file of the user's own.
      progress: print the components on standard error as they run.

    Raises:
      InputError: bad input; before anything runs where possible.
    """
    config = pinned_spans(pinned(config), data)
    run = open_checked(config, data, features)
    places = Places(str(require_writable_directory(root).resolve()))
    Path(places.logs).mkdir(exist_ok=True)
    log = Path(places.logs) / time.strftime("%Y%m%d-%H%M%S.log")
    started = time.perf_counter()
    components: list[ComponentRun] = []
    clock = started

    def say(text: str) -> None:
        if progress:
            print(f"  {text}", file=sys.stderr, flush=True)

    def begin(name: str) -> None:
        nonlocal clock
        clock = time.perf_counter()
        say(f"{name} ...")

    def finish(name: str, cached: bool) -> None:
        run = ComponentRun(name, "cached" if cached else "ran", time.perf_counter() - clock)
        components.append(run)
        say(f"{name} {run.outcome} ({run.seconds:.1f} s)")

    say("loading TFX ...")
    with _logs_to(log):
        from tfrz.data.beam import input_error_in
        from tfx_pipelines.dag_runner import WatchedDagRunner
        from tfx_pipelines.evaluations import Evaluation, read_evaluation
        from tfx_pipelines.pipeline import create_pipeline

        logger.info("configuration: %s", config_to_json(config))
        before = _versions(places.serving(config.name))
        pipeline = create_pipeline(run, places)
        try:
            WatchedDagRunner(places.metadata, begin, finish).run(pipeline)
        except Exception as error:
            logger.exception("the pipeline failed")
            told = input_error_in(error)
            if told is None:
                raise
            raise told from error
        folder = _latest(places, "Evaluator", "evaluation")
        evaluation = Evaluation() if folder is None else read_evaluation(folder)
        compared = config.distill.teacher is not None and config.distill.compare
        comparison = _comparison(places, evaluation.metrics) if compared else {}
    checks = _checks(places)
    reasons = [report["reason"] for report in checks.values() if not report["passed"]]
    blessing = _latest(places, "Evaluator", "blessing")
    evaluated = blessing is not None and (blessing / "BLESSED").exists()
    blessed = evaluated and not reasons
    after = _versions(places.serving(config.name))
    unchanged = bool(components) and components[-1].outcome == "cached"
    pushed = len(after) > len(before) or (bool(after) and unchanged and blessed)
    return PipelineResult(
        components=components,
        evaluated=evaluated,
        blessed=blessed,
        refusals=evaluation.refusals + reasons,
        undefined=evaluation.undefined,
        checks=checks,
        metrics=evaluation.metrics,
        slices=evaluation.slices,
        comparison=comparison,
        pushed=str(after[-1]) if pushed else None,
        seconds=time.perf_counter() - started,
        root=places.root,
        log=str(log),
    )


def _finite(value: Any) -> Any:
    """The value with None for numbers that JSON does not have: NaN and infinities."""
    if isinstance(value, dict):
        return {name: _finite(inner) for name, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def result_to_json(result: PipelineResult) -> str:
    """The result as JSON; metrics without a finite value are null."""
    return json.dumps(_finite(dataclasses.asdict(result)), indent=1, allow_nan=False)
