"""Trainer's callback, and what the Tuner shares with it."""

from __future__ import annotations

import dataclasses
import glob
import logging
from pathlib import Path
from typing import Any

import tensorflow as tf
import tensorflow_transform as tft

from tfrz.config import from_mapping
from tfrz.data.records import open_source
from tfrz.data.spec import Spec
from tfrz.data.tft_analyzers import vocabularies_from_transform, vocabulary_sizes_from_transform
from tfrz.export.card import render_card
from tfrz.export.saved_model import export_model
from tfrz.training.batches import ExampleBatches
from tfrz.training.fit import measured
from tfrz.training.warm_start import warm_start
from tfrz.zoo import registry
from tfrz.zoo.building import build_for_training, write_layers
from tfrz.zoo.long_history import check_warm_start
from tfrz.zoo.run_config import RunConfig, run_config_from_mapping, with_values
from tfrz.zoo.search_space import chosen_values
from tfrz.zoo.teacher import StudentData, attach_teacher, check_scores

logger = logging.getLogger(__name__)


class TransformGraph(tf.Module):
    """The graph that Transform wrote, for raw features without the label."""

    def __init__(self, output: tft.TFTransformOutput) -> None:
        super().__init__()
        self.layer = output.transform_features_layer()

    def __call__(self, inputs: dict[str, tf.SparseTensor]) -> dict[str, Any]:
        """Transformed features."""
        return dict(self.layer(dict(inputs)))


@dataclasses.dataclass(frozen=True)
class Workspace:
    """What the callbacks make of their arguments."""

    data: str
    features: str | None
    config: RunConfig
    task: Any
    spec: Spec
    transform: tft.TFTransformOutput
    train: ExampleBatches
    validation: ExampleBatches

    def vocabularies(self) -> dict[str, list[str]]:
        """Transformed name to terms in the order of their ids from 1."""
        found = vocabularies_from_transform(self.transform, self.spec)
        return {**found, **getattr(self.task, "feature_vocabularies", {})}

    def inputs(self) -> Any:
        """What the task's `build` takes."""
        sizes = vocabulary_sizes_from_transform(self.transform, self.spec)
        inputs = self.task.model_inputs(self.spec, sizes)
        if not hasattr(self.task, "open_catalogue"):
            return inputs
        # A model that knows its items by their features reads them where the events come from.
        entry = registry.get(self.config.name)
        options = self.config.data.options
        self.task.open_catalogue(
            open_source(self.data, self.features, entry.record_type, **options)
        )
        return self.task.with_items(inputs, self.vocabularies()["item_xf"])

    def student_data(self, inputs: Any) -> StudentData:
        """What a live teacher must fit."""
        vocabularies = self.vocabularies()
        limit = self.config.export.warmup_examples
        return StudentData(
            inputs,
            vocabularies,
            TransformGraph(self.transform),
            self.spec,
            self.task.warmup_examples(vocabularies, self.spec, limit),
        )


def _files(patterns: list[str]) -> list[str]:
    return sorted(path for pattern in patterns for path in glob.glob(pattern))


def open_workspace(fn_args: Any, config: RunConfig | None = None) -> Workspace:
    """The workspace of a component's `fn_args`."""
    custom = fn_args.custom_config
    config = config or run_config_from_mapping(custom["run_config"])
    entry = registry.get(config.name)
    task = entry.load("task")(entry, config)
    output = tft.TFTransformOutput(fn_args.transform_graph_path)
    parse_spec = output.transformed_feature_spec()
    trainer = config.trainer
    return Workspace(
        data=custom["data"],
        features=custom["features"],
        config=config,
        task=task,
        spec=from_mapping(task.spec_class, custom["feature_spec"]),
        transform=output,
        train=ExampleBatches(
            _files(fn_args.train_files), parse_spec, trainer.batch_size, seed=trainer.seed
        ),
        validation=ExampleBatches(_files(fn_args.eval_files), parse_spec, 8192, shuffle=False),
    )


def _with_hyperparameters(config: RunConfig, hyperparameters: dict[str, Any] | None) -> RunConfig:
    """The configuration with what the Tuner found."""
    if not hyperparameters:
        return config
    return with_values(config, chosen_values(config, hyperparameters["values"]))


def run_fn(fn_args: Any) -> None:
    """Trains and writes the SavedModel to `fn_args.serving_model_dir`."""
    config = run_config_from_mapping(fn_args.custom_config["run_config"])
    config = _with_hyperparameters(config, fn_args.hyperparameters)
    workspace = open_workspace(fn_args, config)
    entry = registry.get(config.name)
    task, spec = workspace.task, workspace.spec
    inputs = workspace.inputs()
    student = workspace.student_data(inputs)
    taught_live = config.distill.teacher is not None and hasattr(task, "teacher")
    attach_teacher(task, student, fn_args.base_model if taught_live else None)
    if config.distill.teacher is not None and not taught_live:
        check_scores(workspace.train)
    if hasattr(task, "check_training_set"):
        task.check_training_set(workspace.train, inputs)
    model, layers = build_for_training(task, inputs, config, workspace.train)
    if fn_args.base_model and not taught_live:
        check_warm_start(config, fn_args.base_model)
        report = warm_start(model, task, student.vocabularies, fn_args.base_model)
        Path(fn_args.model_run_dir).mkdir(parents=True, exist_ok=True)
        (Path(fn_args.model_run_dir) / "warm_start.txt").write_text(f"{report}\n")
    run_directory = Path(fn_args.model_run_dir)
    write_layers(layers, run_directory)
    result = entry.load("recipe")(
        model,
        task,
        workspace.train,
        workspace.validation,
        config.trainer,
        run_directory,
        progress=bool(fn_args.custom_config.get("progress", False)),
    )
    parameters = sum(int(w.shape.num_elements()) for w in model.trainable_weights)
    card = render_card(
        entry,
        config,
        spec,
        fn_args.custom_config["data"],
        {"validation": measured(result.best)},
        parameters,
        layers,
    )
    export_model(
        Path(fn_args.serving_model_dir),
        model,
        task,
        student.transform,
        spec,
        config,
        student.vocabularies,
        card,
        student.examples,
        replace=True,
    )
