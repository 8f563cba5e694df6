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

if TYPE_CHECKING:
    from tfrz.training.low_rank import LayerReport

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


def export_run(
    out: Path,
    model: Any,
    task: Any,
    config: RunConfig,
    prepared: Any,
    data: str,
    metrics: Mapping[str, Mapping[str, float]],
    layers: Sequence[LayerReport] = (),
) -> int:
    """Writes `out/model/1`, `out/card.md` and the task's own reports; gives the parameters.

    Args:
      out: folder of the run.
      model: the trained model.
      task: of the run.
      config: that the SavedModel is to carry.
      prepared: what the task made of the data.
      data: as `--data` of the command line.
      metrics: set name to metric names and values.
      layers: what became of each layer, where some are of low rank.
    """
    from tfrz.export.card import render_card
    from tfrz.export.saved_model import export_model

    entry = registry.get(config.name)
    parameters = sum(int(w.shape.num_elements()) for w in model.trainable_weights)
    card = render_card(entry, config, prepared.spec, data, metrics, parameters, layers)
    version = out / "model" / "1"
    # Left by a run that was stopped between the export and the metrics: the export is whole.
    if not version.exists():
        export_model(
            version,
            model,
            task,
            prepared.transform,
            prepared.spec,
            config,
            prepared.vocabularies,
            card,
            prepared.examples[: config.export.warmup_examples],
        )
    atomic_write(out / "card.md", card)
    task.report(model, prepared, out)
    return parameters


def train(
    model: str,
    data: str = "simulated",
    out: str | Path = "runs/train",
    features: str | None = None,
    overrides: Iterable[str] = (),
    progress: bool = True,
    config_file: str | Path | None = None,
) -> dict[str, Any]:
    """Trains `model` on `data` and exports it.

    Args:
      model: a name of the registry.
      data: as `--data` of the command line.
      out: takes `config.yaml`, `metrics.json`, `curves.png`, `card.md`, `history.json`,
        `checkpoints/`, `tensorboard/`, `model/<version>/` and the task's own reports. An
        unfinished run is resumed. `low_rank.json` tells of layers of low rank, if asked for.
      features: feature spec of a file of the user's own.
      overrides: `section.key=value`.
      progress: show a bar on standard error.
      config_file: YAML over the configuration of the data set, under `overrides`.

    Returns:
      What `metrics.json` holds: metrics per set, seconds per stage, the model's place.

    Raises:
      InputError: bad input of any kind, before anything is written where possible.
    """
    # These pull in TensorFlow: a misspelt option above should be told in no time.
    from tfrz.data.records import open_source
    from tfrz.training.fit import evaluate, measured
    from tfrz.training.warm_start import warm_start
    from tfrz.zoo.building import build_for_training, layers_as_values, write_layers
    from tfrz.zoo.long_history import check_warm_start, pinned
    from tfrz.zoo.tasks.teaching import teaching_report
    from tfrz.zoo.teacher import StudentData, attach_teacher, pinned_teacher, teacher_metrics

    entry = registry.get(model)
    config = load_run_config(model, data.partition(":")[0], overrides, config_file)
    reader = open_source(data, features, entry.record_type, **config.data.options)
    if config.trainer.warm_start == "latest_blessed":
        raise ConfigError(
            "trainer.warm_start: latest_blessed needs the pipeline; name a SavedModel directory"
        )
    out = Path(out)
    config = pinned(config, out)
    config = pinned_teacher(config)
    if config.trainer.warm_start is not None:
        check_warm_start(config, config.trainer.warm_start)
    resolved = {"data_source": data, **run_config_to_mapping(config)}
    refuse_other_run(out, resolved)
    task = entry.load("task")(entry, config)
    seconds: dict[str, float] = {}

    started = time.perf_counter()
    prepared = task.prepare(reader)
    seconds["data"] = time.perf_counter() - started
    logger.info(
        "%s: %s training, %s validation, %s test examples (%.1f s)",
        data,
        *(f"{s.num_examples:,}" for s in (prepared.train, prepared.validation, prepared.test)),
        seconds["data"],
    )

    attach_teacher(task, StudentData.of(prepared))
    keras_model, layers = build_for_training(task, prepared.inputs, config, prepared.train)
    # Not before the model is known to exist: who corrects a rank may keep the folder.
    atomic_write(out / "config.yaml", write_yaml(resolved))
    write_layers(layers, out)
    if config.trainer.warm_start is not None:
        warm_start(keras_model, task, prepared.vocabularies, config.trainer.warm_start)
    started = time.perf_counter()
    result = entry.load("recipe")(
        keras_model, task, prepared.train, prepared.validation, config.trainer, out, progress
    )
    seconds["fit"] = time.perf_counter() - started
    metrics = {"validation": measured(result.best)}
    sets = {"validation": prepared.validation}
    if prepared.test.num_examples:
        sets["test"] = prepared.test
        metrics["test"] = evaluate(keras_model, task, prepared.test)
    for name, batches in sets.items():
        taught = teacher_metrics(task, batches)
        if taught is not None:
            metrics[f"teacher, {name}"] = taught

    teaching = teaching_report(task, keras_model, prepared.validation, out)

    started = time.perf_counter()
    parameters = export_run(out, keras_model, task, config, prepared, data, metrics, layers)
    seconds["export"] = time.perf_counter() - started
    steps = result.steps_run - result.resumed_from
    described = {
        "model": str(out / "model" / "1"),
        "metrics": metrics,
        "parameters": parameters,
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
