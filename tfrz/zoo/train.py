"""Training one model from a source of records to an exported SavedModel, in this process."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfrz.config import read_yaml, write_yaml
from tfrz.errors import ConfigError, InputError
from tfrz.files import atomic_write, require_writable_directory
from tfrz.zoo import registry
from tfrz.zoo.run_config import RunConfig, load_run_config, run_config_to_mapping
from tfrz.zoo.run_folder import (
    FEATURES,
    keep_source,
    pinned_spans,
    refuse_other_contents,
    refuse_other_features,
)

if TYPE_CHECKING:
    import keras

    from tfrz.training.factorization import LayerReport
    from tfrz.zoo.task import Prepared, Task

logger = logging.getLogger(__name__)


def _differing(old: Any, new: Any, where: str = "") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        names = list(dict.fromkeys((*old, *new)))
        return [
            path
            for name in names
            for path in _differing(old.get(name), new.get(name), f"{where}.{name}".strip("."))
        ]
    return [] if old == new else [where]


def refuse_other_run(out: Path, described: dict[str, Any], result: str = "metrics.json") -> None:
    """Refuses a folder that cannot be written, or holds another run or a finished one.

    Args:
      out: the folder.
      described: what the run is; `config.yaml` there must say the same.
      result: the file whose presence says that the run is finished.
    """
    require_writable_directory(out)
    if (out / result).exists():
        raise InputError(f"{out} holds a finished run: choose another --out")
    stored = out / "config.yaml"
    if stored.exists():
        different = _differing(read_yaml(stored), described)
        if different:
            raise ConfigError(
                f"{out} holds a run with another {', '.join(different[:3])}: repeat its "
                "configuration to resume it, or choose another --out"
            )


def finish_run(
    out: Path,
    model: keras.Model,
    task: Task[Any, Any],
    config: RunConfig,
    prepared: Prepared[Any, Any],
    data: str,
    metrics: Mapping[str, Mapping[str, float]],
    layers: Sequence[LayerReport] = (),
) -> None:
    """Writes `out/model/1`, `out/card.md` and the report of the model's row.

    Args:
      out: folder of the run.
      model: the trained model.
      task: of the run.
      config: that the SavedModel is to carry.
      prepared: what the model was trained on.
      data: as `--data` of the command line.
      metrics: set name to metric names and values.
      layers: what became of each layer, where some are of low rank.
    """
    from tfrz.zoo.run import export

    version = out / "model" / "1"
    card = export(version, model, task, prepared, config, data, metrics, layers)
    atomic_write(out / "card.md", card)
    if task.entry.report is not None:
        registry.resolve(task.entry.report)(task, model, prepared, out)


def train(
    model: str,
    data: str = "simulated",
    out: str | Path = "runs/train",
    features: str | None = None,
    overrides: Iterable[str] = (),
    progress: bool = True,
    config_file: str | Path | None = None,
    cache: str | Path | None = None,
) -> dict[str, Any]:
    """Trains `model` on `data` and exports it.

    Args:
      model: a name of the registry.
      data: as `--data` of the command line.
      out: takes `config.yaml`, `metrics.json`, `curves.png`, `card.md`, `history.json`,
        `checkpoints/`, `tensorboard/`, `model/<version>/` and the model's own reports. An
        unfinished run is resumed. `low_rank.json` describes layers of low rank, if there are any;
        `features.yaml` is the feature spec, if one was given, and `data_fingerprint` tells whether
        the source has changed; `cache/` holds encoded examples, see `cache`.
      features: feature spec of a file of the user's own; that of the run to resume if left out.
      overrides: `section.key=value`.
      progress: show a bar on standard error.
      config_file: YAML over the configuration of the data set, under `overrides`.
      cache: folder for encoded examples, which later runs on the same data share; `out/cache` by
        default.

    Returns:
      What `metrics.json` holds: metrics per set, seconds per stage, the model's place.

    Raises:
      InputError: bad input of any kind, before anything is written where possible.
    """
    # These load TensorFlow: a misspelt option fails before the slow import.
    config = load_run_config(model, data.partition(":")[0], overrides, config_file)
    if config.trainer.warm_start == "latest_blessed":
        raise ConfigError(
            "trainer.warm_start: latest_blessed needs the pipeline; name a SavedModel directory"
        )
    from tfrz.training.fit import evaluate, measured
    from tfrz.zoo.building import layers_as_values, write_layers
    from tfrz.zoo.reports.teaching import teaching_report
    from tfrz.zoo.run import num_parameters, open_run, train_prepared
    from tfrz.zoo.teacher import pinned_teacher
    from tfrz.zoo.user_embeddings import check_warm_start, pinned

    out = Path(out)
    if features is None and (out / FEATURES).exists():
        features = str(out / FEATURES)
    config = pinned_spans(pinned_teacher(pinned(config, out)), data, out)
    if config.trainer.warm_start is not None:
        check_warm_start(config, config.trainer.warm_start)
    run = open_run(config, data, features, Path(cache) if cache is not None else out / "cache")
    resolved = {"data_source": data, **run_config_to_mapping(config)}
    refuse_other_run(out, resolved)
    refuse_other_features(out, features)
    refuse_other_contents(out, data, run.fingerprint)
    task = run.task
    seconds: dict[str, float] = {}
    started = time.perf_counter()
    prepared = run.prepare()
    seconds["data"] = time.perf_counter() - started
    logger.info("read and transformed in %.1f s", seconds["data"])

    def starting(layers: Sequence[LayerReport]) -> None:
        # Not before the model is known to exist: who corrects a rank may keep the folder.
        keep_source(out, features, run.fingerprint)
        atomic_write(out / "config.yaml", write_yaml(resolved))
        write_layers(layers, out)

    started = time.perf_counter()
    trained = train_prepared(
        task, prepared, out, progress, config.trainer.warm_start, starting=starting
    )
    keras_model, layers, result = trained.model, trained.layers, trained.result
    seconds["fit"] = time.perf_counter() - started
    sets = {"validation": prepared.validation}
    metrics = {"validation": measured(result.best)}
    if prepared.test is not None:
        sets["test"] = prepared.test
        metrics["test"] = evaluate(keras_model, task, prepared.test)
    if config.distill.teacher is not None:
        metrics |= {f"teacher, {name}": task.teacher_metrics(some) for name, some in sets.items()}
    teaching = teaching_report(task, keras_model, prepared.validation, out)

    started = time.perf_counter()
    finish_run(out, keras_model, task, config, prepared, data, metrics, layers)
    seconds["export"] = time.perf_counter() - started
    steps = result.steps_run - result.resumed_from
    described = {
        "model": str(out / "model" / "1"),
        "metrics": metrics,
        "parameters": num_parameters(keras_model),
        "steps": result.steps_run,
        "epochs": result.epochs_run,
        "resumed_from": result.resumed_from,
        "corrupt_lines": prepared.corrupt_lines,
        "seconds": seconds,
        "examples_per_second": steps * config.trainer.batch_size / max(seconds["fit"], 1e-9),
    }
    if teaching:
        described["teaching"] = teaching["shares"]
    if layers:
        described["low_rank"] = layers_as_values(layers)
    atomic_write(out / "metrics.json", json.dumps(described, indent=1) + "\n")
    return described
