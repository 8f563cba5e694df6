"""The model of a run before training: in this process, in the pipeline's Trainer and its Tuner."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras

from tfrz.files import atomic_write
from tfrz.training.batches import Batches
from tfrz.training.factorization import LayerReport, factorize_for_training, first_examples
from tfrz.training.fit import build_model

if TYPE_CHECKING:
    from tfrz.zoo.run_config import RunConfig
    from tfrz.zoo.task import Task

logger = logging.getLogger(__name__)


def build_for_training(
    task: Task[Any, Any], inputs: Any, config: RunConfig, train: Batches
) -> tuple[keras.Model, tuple[LayerReport, ...]]:
    """A task's model, its layers of low rank where the configuration asks for it.

    The same configuration builds the same structure: a run that is resumed, or started from the
    SavedModel of another, finds its weights.

    Args:
      task: of the run.
      inputs: what the task's `build` takes.
      config: of the run.
      train: the training set, on whose first examples layers of low rank are measured.

    Returns:
      The model, and what became of each dense and cross layer; nothing without `low_rank`.

    Raises:
      ConfigError: low rank is asked for, and no layer gets smaller by it.
    """
    reports: tuple[LayerReport, ...] = ()

    def built() -> keras.Model:
        nonlocal reports
        model = task.build(inputs)
        if config.low_rank.enabled:
            examples = first_examples(train)
            model, reports = factorize_for_training(model, config.low_rank, examples)
        return model

    model = build_model(built, config.trainer)
    for r in reports:
        if r.skipped:
            logger.info("%s stays as it is: %s", r.name, r.skipped)
            continue
        counts = f"{r.parameters_after:,} of {r.parameters_before:,} parameters"
        error = "" if r.output_error is None else f", output error {r.output_error:.3f}"
        logger.info("%s, %d x %d, has rank %d: %s%s", r.name, *r.shape, r.rank, counts, error)
    return model, reports


def build_like(task: Task[Any, Any], inputs: Any, config: RunConfig) -> keras.Model:
    """Builds a model like `build_for_training`, to load trained weights into."""
    model = task.build(inputs)
    if config.low_rank.enabled:
        plain = dataclasses.replace(config.low_rank, init="spectral", repair_scale=False)
        model, _ = factorize_for_training(model, plain, [task.example_inputs(inputs)])
    return model


def layers_as_values(reports: Sequence[LayerReport]) -> list[dict[str, Any]]:
    """Reports as JSON has them."""
    return [{**dataclasses.asdict(report), "shape": list(report.shape)} for report in reports]


def write_layers(reports: Sequence[LayerReport], directory: Path) -> None:
    """Writes `low_rank.json` into a run's folder, if there is something to report."""
    if reports:
        text = json.dumps(layers_as_values(reports), indent=1)
        atomic_write(directory / "low_rank.json", text + "\n")
