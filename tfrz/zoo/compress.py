"""A trained model made smaller: its layers as products of two thin matrices, then fine-tuned."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import keras

from tfrz.config import require, to_mapping, write_yaml
from tfrz.files import atomic_write
from tfrz.keras_versions import layers_within
from tfrz.metrics import distance_to_best
from tfrz.training.config import LowRankConfig, TrainerConfig
from tfrz.training.distiller import DistillConfig
from tfrz.training.factorization import factorize_for_training, first_examples, low_rank_config
from tfrz.training.fit import evaluate, fit, make_strategy, objective_of
from tfrz.zoo.building import layers_as_values
from tfrz.zoo.run import open_run
from tfrz.zoo.run_config import RunConfig, TunerConfig, run_config_to_mapping
from tfrz.zoo.run_folder import data_of, features_of, keep_source, refuse_other_contents, run_of
from tfrz.zoo.teacher import Words, find_teacher, load_trained, trained_config
from tfrz.zoo.train import finish_run, refuse_other_run

if TYPE_CHECKING:
    from tfrz.zoo.task import Prepared, Task

logger = logging.getLogger(__name__)

_COMMAND = "compress"
_WORDS = Words(_COMMAND, "model", "data", "name the data that it was trained on")


@dataclasses.dataclass(frozen=True)
class Quality:
    """How good and how large a model is.

    Attributes:
      stage: before, compressed or fine-tuned.
      metrics: set name to metric names and values.
      parameters: that training changes.
      dense_parameters: of them those outside tables of embeddings.
    """

    stage: str
    metrics: dict[str, dict[str, float]]
    parameters: int
    dense_parameters: int


def _quality(
    stage: str, model: keras.Model, task: Task[Any, Any], prepared: Prepared[Any, Any]
) -> Quality:
    tables = {
        id(weight)
        for layer in layers_within(model)
        if isinstance(layer, keras.layers.Embedding)
        for weight in layer.weights
    }
    sizes = {id(w): int(w.shape.num_elements()) for w in model.trainable_weights}
    metrics = {"validation": evaluate(model, task, prepared.validation)}
    if prepared.test is not None:
        metrics["test"] = evaluate(model, task, prepared.test)
    dense = sum(size for weight, size in sizes.items() if weight not in tables)
    return Quality(stage, metrics, sum(sizes.values()), dense)


def _better(task: Task[Any, Any], trainer: TrainerConfig, new: Quality, old: Quality) -> bool:
    """Whether the validation set prefers one model to another, by what training goes by."""
    name = objective_of(task, trainer)
    after, before = (distance_to_best(name, q.metrics["validation"][name]) for q in (new, old))
    return after < before


def _described(config: RunConfig, model: keras.Model) -> RunConfig:
    """The configuration from which the compressed model is built again."""
    return dataclasses.replace(
        config,
        model=model.config,
        low_rank=low_rank_config(model),
        # Its names and values are of the model as it was searched for.
        tuner=TunerConfig(),
        trainer=dataclasses.replace(config.trainer, warm_start=None),
    )


def compress(
    directory: str | Path,
    out: str | Path,
    rank: int | None = None,
    target_parameters: int | None = None,
    data: str | None = None,
    features: str | None = None,
    init: Literal["spectral", "function", "data"] = "data",
    repair_scale: bool = False,
    fine_tune_steps: int = 0,
    learning_rate: float | None = None,
    distill: float = 0.0,
    progress: bool = True,
) -> dict[str, Any]:
    """Compresses a trained model and exports it.

    Args:
      directory: a run of `tfrz train`, or a SavedModel that tfrz exported.
      out: takes what `tfrz train` leaves, and `compression.json`.
      rank: of every layer that it makes smaller.
      target_parameters: instead: of the matrices of all layers that can be of low rank, together.
      data: as `--data` of the command line; what the run was trained on if left out.
      features: feature spec of a file of the user's own; that of the run if left out.
      init: where the factors come from; see `tfrz.training.factorization.factorize`.
      repair_scale: multiply them by the measured gain.
      fine_tune_steps: of training after that; 0 for none. The weights that the validation set
        prefers, before or after, are kept.
      learning_rate: of fine-tuning; that of the configuration if left out.
      distill: of fine-tuning, the weight of a teacher: the model as it was.
      progress: show a bar on standard error.

    Returns:
      What `compression.json` holds: each layer, the quality of each stage, which one was kept.

    Raises:
      InputError: bad input of any kind, before anything is written.
    """
    given = [value for value in (rank, target_parameters) if value is not None]
    require(len(given) == 1, "--rank", "give a rank, or --target-parameters, one of them")
    name = "--target-parameters" if rank is None else "--rank"
    require(given[0] >= 1, name, f"must be at least 1, not {given[0]}")
    require(fine_tune_steps >= 0, "--fine-tune-steps", "must not be negative")
    require(0 <= distill <= 1, "--distill", f"must be 0 to 1, not {distill}")
    require(
        not distill or fine_tune_steps > 0,
        "--distill",
        "teaches in fine-tuning: give --fine-tune-steps too",
    )
    wanted = LowRankConfig(rank, target_parameters, init=init, repair_scale=repair_scale)
    source = find_teacher(directory, _COMMAND)
    config = trained_config(source, _COMMAND)
    # Who taught the model need not be asked again.
    taught = DistillConfig(str(source), weight=distill) if distill else DistillConfig()
    config = dataclasses.replace(config, distill=taught)
    trainer = dataclasses.replace(
        config.trainer,
        max_steps=fine_tune_steps or None,
        learning_rate=config.trainer.learning_rate if learning_rate is None else learning_rate,
    )
    data = data_of(source) if data is None else data
    features = features_of(source, features)
    out, cache = Path(out), run_of(source) / "cache"
    run = open_run(config, data, features, cache if cache.is_dir() else out / "cache")
    task = run.task
    described = {
        "data_source": data,
        "compressed": {
            "source": str(source),
            **to_mapping(wanted),
            "fine_tune_steps": fine_tune_steps,
            "learning_rate": trainer.learning_rate,
            "distill": distill,
        },
        **run_config_to_mapping(config),
    }
    refuse_other_run(out, described)
    refuse_other_contents(out, data, run.fingerprint)
    started = time.perf_counter()
    prepared = run.prepare()
    with make_strategy(trainer.strategy).scope():
        loaded = load_trained(source, task, prepared, _WORDS)
        original = loaded.model
        if distill and task.live_teacher:
            task.teacher = loaded
        examples = first_examples(prepared.train)
        model, layers = factorize_for_training(original, wanted, examples, name)
    keep_source(out, features, run.fingerprint)
    atomic_write(out / "config.yaml", write_yaml(described))
    stages = [
        _quality("before", original, task, prepared),
        _quality("compressed", model, task, prepared),
    ]
    kept = stages[-1]
    if fine_tune_steps:
        weights = model.get_weights()
        epochs = math.ceil(fine_tune_steps / prepared.train.steps_per_epoch)
        trainer = dataclasses.replace(trainer, epochs=epochs)
        fit(model, task, prepared.train, prepared.validation, trainer, out, progress)
        stages.append(_quality("fine-tuned", model, task, prepared))
        if _better(task, trainer, stages[-1], kept):
            kept = stages[-1]
        else:
            model.set_weights(weights)
    metrics = dict(kept.metrics)
    metrics |= {f"before, {name}": values for name, values in stages[0].metrics.items()}
    final = _described(config, model)
    finish_run(out, model, task, final, prepared, data, metrics, layers)
    result = {
        "model": str(out / "model" / "1"),
        "source": str(source),
        "data": data,
        "kept": kept.stage,
        "layers": layers_as_values(layers),
        "quality": [dataclasses.asdict(quality) for quality in stages],
        "seconds": time.perf_counter() - started,
    }
    atomic_write(out / "compression.json", json.dumps(result, indent=1) + "\n")
    summary = {
        "model": result["model"],
        "metrics": metrics,
        "parameters": kept.parameters,
        "dense_parameters": kept.dense_parameters,
        "compressed_from": result["source"],
    }
    atomic_write(out / "metrics.json", json.dumps(summary, indent=1) + "\n")
    return result
