"""The Trainer's callback, and the functions that the Tuner's callback shares with it."""

from __future__ import annotations

import glob
from pathlib import Path
from typing import Any

import tensorflow as tf
import tensorflow_transform as tft

from tfrz.config import from_mapping
from tfrz.data.records import open_source
from tfrz.data.tft_analyzers import vocabularies_from_transform, vocabulary_sizes_from_transform
from tfrz.training.batches import ExampleBatches
from tfrz.training.fit import measured
from tfrz.zoo import registry
from tfrz.zoo.building import write_layers
from tfrz.zoo.run import export, train_prepared
from tfrz.zoo.run_config import RunConfig, run_config_from_mapping, with_values
from tfrz.zoo.search_space import chosen_values
from tfrz.zoo.task import Prepared, Task
from tfrz.zoo.teacher import check_scores


class TransformGraph(tf.Module):
    """The graph that Transform wrote, for raw features without the label."""

    def __init__(self, output: tft.TFTransformOutput) -> None:
        super().__init__()
        self.layer = output.transform_features_layer()

    def __call__(self, inputs: dict[str, tf.SparseTensor]) -> dict[str, Any]:
        """Transformed features."""
        return dict(self.layer(dict(inputs)))


def _files(patterns: list[str]) -> list[str]:
    return sorted(path for pattern in patterns for path in glob.glob(pattern))


def open_prepared(fn_args: Any, config: RunConfig) -> tuple[Task[Any, Any], Prepared[Any, Any]]:
    """The task of a component's `fn_args`, and the examples that Transform prepared for it."""
    custom = fn_args.custom_config
    entry = registry.get(config.name)
    task = entry.new_task(config)
    spec = from_mapping(task.spec_class, custom["feature_spec"])
    output = tft.TFTransformOutput(fn_args.transform_graph_path)
    # A model that knows its items by their features reads them where the events come from.
    task.open_catalogue(
        lambda: open_source(
            custom["data"], custom["features"], entry.record_type, **config.data.options
        )
    )
    vocabularies = vocabularies_from_transform(output, spec) | task.catalogue_vocabularies
    sizes = vocabulary_sizes_from_transform(output, spec)
    inputs = task.inputs_of(spec, sizes, vocabularies)
    parse_spec, trainer = output.transformed_feature_spec(), config.trainer
    train = ExampleBatches(
        _files(fn_args.train_files), parse_spec, trainer.batch_size, seed=trainer.seed
    )
    prepared: Prepared[Any, Any] = Prepared(
        train=train,
        validation=ExampleBatches(_files(fn_args.eval_files), parse_spec, 8192, shuffle=False),
        test=None,
        inputs=inputs,
        transform=TransformGraph(output),
        vocabularies=vocabularies,
        spec=spec,
        examples=task.warmup_examples(vocabularies, spec, config.export.warmup_examples),
    )
    task.check_sets(prepared)
    return task, prepared


def _with_hyperparameters(config: RunConfig, hyperparameters: dict[str, Any] | None) -> RunConfig:
    """The configuration with the Tuner's best values."""
    if not hyperparameters:
        return config
    return with_values(config, chosen_values(config, hyperparameters["values"]))


def run_fn(fn_args: Any) -> None:
    """Trains and writes the SavedModel to `fn_args.serving_model_dir`."""
    config = run_config_from_mapping(fn_args.custom_config["run_config"])
    config = _with_hyperparameters(config, fn_args.hyperparameters)
    task, prepared = open_prepared(fn_args, config)
    taught = config.distill.teacher is not None
    if taught and not task.live_teacher:
        check_scores(prepared.train)
    # The base model is the teacher of a student that has a live one.
    teaches = taught and task.live_teacher
    directory = Path(fn_args.model_run_dir)
    trained = train_prepared(
        task,
        prepared,
        directory,
        progress=bool(fn_args.custom_config.get("progress", False)),
        start_from=None if teaches else fn_args.base_model,
        teacher=fn_args.base_model if teaches else None,
        starting=lambda layers: write_layers(layers, directory),
    )
    if trained.warm_start is not None:
        (directory / "warm_start.txt").write_text(f"{trained.warm_start}\n")
    export(
        Path(fn_args.serving_model_dir),
        trained.model,
        task,
        prepared,
        config,
        fn_args.custom_config["data"],
        {"validation": measured(trained.result.best)},
        trained.layers,
        replace=True,
    )
