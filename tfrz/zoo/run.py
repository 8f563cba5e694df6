"""The driver of a run: what `tfrz train`, `tune`, `compress` and the pipeline's Trainer share.

A run is resolved once (reader, features of its examples, embeddings joined to them, task), then
prepared, trained and exported, each by one function here.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras

from tfrz.config import require
from tfrz.data.records import open_source
from tfrz.data.sources.reader import Reader
from tfrz.data.sources.spans import Span, chosen_spans, filled, located
from tfrz.data.sources.split_files import with_split_files
from tfrz.export.saved_model import export_model
from tfrz.training.factorization import LayerReport
from tfrz.training.fit import FitResult
from tfrz.training.warm_start import WarmStartReport, warm_start
from tfrz.zoo import registry
from tfrz.zoo.building import build_for_training
from tfrz.zoo.card import render_card
from tfrz.zoo.partitioned import prepared_in
from tfrz.zoo.run_config import DataConfig, RunConfig
from tfrz.zoo.task import ExampleSource, Prepared, Task
from tfrz.zoo.teacher import attach_teacher
from tfrz.zoo.user_embeddings import check_warm_start

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Run:
    """A configuration on a source, with everything resolved that needs no reading of records.

    Attributes:
      config: of the run.
      data: as `--data` of the command line, with the spans that are read filled in.
      features: feature spec of a file of the user's own.
      task: what the model learns.
      source: the reader, the features of its examples, and what joins embeddings.
      cache: folder for examples that were encoded once; None for none.
      spans: of rolling data, those that are read.
    """

    config: RunConfig
    data: str
    features: str | None
    task: Task[Any, Any]
    source: ExampleSource[Any]
    cache: Path | None = None
    spans: tuple[Span, ...] = ()

    @property
    def entry(self) -> registry.ModelEntry:
        """The model's row in the registry."""
        return self.task.entry

    @functools.cached_property
    def fingerprint(self) -> str:
        """Changes when the records may have; every file of the source is read for it, once."""
        return self.source.reader.fingerprint()

    def prepare(self) -> Prepared[Any, Any]:
        """Reads, splits and transforms the source in this process, and checks the sets.

        Raises:
          InputError: as of the task's `examples` and `check_sets`.
        """
        if self.cache is not None and self.task.partition_key is not None:
            prepared = prepared_in(self.task, self.source, self.cache)
        else:
            prepared = self.task.prepared_source(self.source, self.cache)
        counts = [f"{s.num_examples:,}" for s in (prepared.train, prepared.validation)]
        counts.append(f"{prepared.test.num_examples:,}" if prepared.test is not None else "no")
        logger.info("%s: %s training, %s validation, %s test examples", self.data, *counts)
        self.task.check_sets(prepared)
        if prepared.test is None and self.config.data.test_fraction > 0:
            logger.warning("%s: the test set is empty, so no test metrics are reported", self.data)
        return prepared


def open_reader(settings: DataConfig, data: str, features: str | None, records: str) -> Reader:
    """Opens the source of a run, with the files that validation and test have of their own.

    Args:
      settings: the section `data` of the configuration.
      data: as `--data` of the command line.
      features: feature spec of a file of the user's own.
      records: type of the records.

    Raises:
      InputError: a source is missing, of another format, or has no such records.
      ConfigError: records of this type are not split like this.
    """
    require(
        settings.split is None or records == "impression",
        "data.split",
        f"is for impressions; {records} records have a split of their own",
    )

    def opened(path: str) -> Reader:
        found = located(path, settings.spans)
        return open_source(found, features, records, **settings.options)

    return with_split_files(
        opened(data),
        opened,
        settings.validation,
        settings.test,
        settings.held_out,
        settings.seed,
    )


def open_run(
    config: RunConfig, data: str, features: str | None = None, cache: Path | None = None
) -> Run:
    """Resolves a run.

    Args:
      config: of the run.
      data: as `--data` of the command line.
      features: feature spec of a file of the user's own.
      cache: folder for examples that were encoded once; None for none.

    Raises:
      InputError: the source is missing, of another format, or has no such records; or the store of
        embeddings is none, or of another version than the run.
    """
    entry = registry.get(config.name)
    spans = chosen_spans(data, config.data.spans)
    if spans:
        logger.info("%s: spans %s", data, ", ".join(str(span.number) for span in spans))
        data = filled(data, spans)
    reader = open_reader(config.data, data, features, entry.record_type)
    task = entry.new_task(config)
    return Run(config, data, features, task, task.resolve(reader), cache, tuple(spans))


@dataclasses.dataclass(frozen=True)
class Trained:
    """A trained model and how it came about.

    Attributes:
      model: with its best weights.
      layers: what became of each layer, where some are of low rank.
      result: of the training loop.
      warm_start: which weights came from an earlier model; None without one.
    """

    model: keras.Model
    layers: tuple[LayerReport, ...]
    result: FitResult
    warm_start: WarmStartReport | None


def train_prepared(
    task: Task[Any, Any],
    prepared: Prepared[Any, Any],
    directory: Path | None,
    progress: bool = True,
    start_from: str | Path | None = None,
    teacher: str | None = None,
    starting: Callable[[Sequence[LayerReport]], None] | None = None,
) -> Trained:
    """Builds and trains the model of a task, by the recipe of its row.

    Args:
      task: of the run.
      prepared: what it learns from.
      directory: folder of the run; None to write nothing. An unfinished run there is resumed.
      progress: show a bar on standard error.
      start_from: SavedModel of an earlier model, whose weights it starts from.
      teacher: SavedModel of the live teacher, where it is not that of the configuration.
      starting: called once the model is built, with what became of its layers.

    Raises:
      InputError: the teacher or the earlier model does not fit, or training fails.
    """
    config = task.config
    attach_teacher(task, prepared, teacher)
    model, layers = build_for_training(task, prepared.inputs, config, prepared.train)
    if starting is not None:
        starting(layers)
    started = None
    if start_from is not None:
        check_warm_start(config, start_from)
        started = warm_start(model, task, prepared.vocabularies, start_from)
    result = task.entry.load("recipe")(
        model, task, prepared.train, prepared.validation, config.trainer, directory, progress
    )
    return Trained(model, layers, result, started)


def num_parameters(model: keras.Model) -> int:
    """Trainable parameters, embeddings included."""
    return sum(int(weight.shape.num_elements()) for weight in model.trainable_weights)


def export(
    version: Path,
    model: keras.Model,
    task: Task[Any, Any],
    prepared: Prepared[Any, Any],
    config: RunConfig,
    data: str,
    metrics: Mapping[str, Mapping[str, float]],
    layers: Sequence[LayerReport] = (),
    replace: bool = False,
) -> str:
    """Writes the SavedModel with its card.

    Args:
      version: where; its name is the version.
      model: the trained model.
      task: of the run.
      prepared: what the model was trained on.
      config: that the SavedModel is to carry.
      data: as `--data` of the command line.
      metrics: set name to metric names and values.
      layers: what became of each layer, where some are of low rank.
      replace: put it in the place of what is there. Otherwise a whole version that is there stays.

    Returns:
      The card, as Markdown.
    """
    card = render_card(
        task.entry, config, prepared.spec, data, metrics, num_parameters(model), layers
    )
    # Left by a run that was stopped between the export and the metrics: the export is whole.
    if replace or not version.exists():
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
            replace,
        )
    return card
