"""The pipeline: made from a model's row and configuration, the same for every system."""

from __future__ import annotations

from typing import Any

import tensorflow as tf
from tfx import v1 as tfx
from tfx.types.standard_artifacts import Model, ModelBlessing

from tfrz.config import merge, require, to_mapping
from tfrz.data.spec import Spec
from tfrz.errors import InputError
from tfrz.export.index import usable
from tfrz.zoo import registry
from tfrz.zoo.run import Run
from tfrz.zoo.run_config import RunConfig, run_config_to_mapping
from tfrz.zoo.search_space import check_search
from tfx_pipelines.components.blessing import LatestPassedModelStrategy
from tfx_pipelines.components.evaluator import Evaluator
from tfx_pipelines.components.example_gen import ExampleGen
from tfx_pipelines.components.teacher import TeacherNodes
from tfx_pipelines.configs import Places, pipeline_name, splits_of


def _beam_args(config: RunConfig) -> list[str]:
    if config.pipeline.beam_runner == "DirectRunner" and not config.pipeline.beam_args:
        # Beam's own default. With any argument, each component packs TFX for remote workers.
        return []
    return [f"--runner={config.pipeline.beam_runner}", *config.pipeline.beam_args]


def _imported_schema(spec: Spec, folder: str) -> str:
    """Writes a schema of the raw features and returns its path."""
    from google.protobuf import text_format
    from tensorflow_metadata.proto.v0 import schema_pb2

    kinds = {"string": schema_pb2.BYTES, "int64": schema_pb2.INT, "float32": schema_pb2.FLOAT}
    schema = schema_pb2.Schema()
    for feature in spec.features:
        schema.feature.add(name=feature.name, type=kinds[feature.dtype])
    label = schema_pb2.BYTES if spec.label_dtype == tf.string else schema_pb2.FLOAT
    schema.feature.add(name=spec.label, type=label)
    for name in spec.outcome_features:
        schema.feature.add(name=name, type=schema_pb2.FLOAT)
    path = f"{folder}/schema.pbtxt"
    try:
        tf.io.gfile.makedirs(folder)
        with tf.io.gfile.GFile(path, "w") as file:
            file.write(text_format.MessageToString(schema))
    except tf.errors.OpError as error:
        raise InputError(f"cannot write {path}: {error.message.splitlines()[0]}") from error
    return path


def _read_by_transform(run: Run) -> dict[str, Any]:
    """The part of the configuration that decides what Transform writes.

    The rest is left out, so that TFX's cache answers when only the rest has changed.
    """
    whole = run_config_to_mapping(run.config)
    reads = {name: whole[name] for name in ("name", "data", "features")}
    for dotted in run.task.prepare_reads:
        section, _, name = dotted.partition(".")
        reads = merge(reads, {section: {name: whole[section][name]}})
    return reads


def create_pipeline(run: Run, places: Places, here: bool = True) -> tfx.dsl.Pipeline:
    """The pipeline of one model, from ExampleGen to Pusher.

    Args:
      run: the resolved run.
      places: the folders that it writes to.
      here: whether it runs on this machine, with its metadata in a file.
    """
    config = run.config
    usable(config.export.index)  # The Evaluator loads the model, with ScaNN, in this process.
    entry, task, spec = run.entry, run.task, run.source.spec
    teacher = None
    if config.distill.teacher is not None:
        teacher = TeacherNodes(run, places, here)
    example_gen = ExampleGen(run, places.corrupt_lines)
    examples = example_gen.outputs["examples"]
    components = [example_gen]
    if teacher is not None:
        examples, more = teacher.ask(examples)
        components += more
    statistics_gen = tfx.components.StatisticsGen(examples=examples)
    statistics = statistics_gen.outputs["statistics"]
    if config.pipeline.schema == "imported":
        schema_gen = tfx.components.ImportSchemaGen(
            schema_file=_imported_schema(spec, places.schema)
        )
    else:
        # Any value may be missing at serving time, so no feature has a fixed shape.
        schema_gen = tfx.components.SchemaGen(statistics=statistics, infer_feature_shape=False)
    schema = schema_gen.outputs["schema"]
    example_validator = tfx.components.ExampleValidator(statistics=statistics, schema=schema)
    transform = tfx.components.Transform(
        examples=examples,
        schema=schema,
        preprocessing_fn="tfx_pipelines.modules.preprocessing.preprocessing_fn",
        custom_config={
            "feature_spec": to_mapping(spec),
            "run_config": _read_by_transform(run),
        },
        disable_statistics=True,
        # One span of examples: no later run could read the analyzers' cache.
        disable_analyzer_cache=True,
    )
    components += [statistics_gen, schema_gen, example_validator, transform]
    custom_config = {
        "run_config": run_config_to_mapping(config),
        "feature_spec": to_mapping(spec),
        "data": run.data,
        "features": run.features,
        "fingerprint": run.fingerprint,
    }
    if teacher is not None:
        custom_config["teacher"] = teacher.saved_model
    resolver = tfx.dsl.Resolver(
        # Kubeflow knows TFX's own strategies alone: there, a model that a later check refused may
        # be the one to compare with.
        strategy_class=LatestPassedModelStrategy
        if here
        else tfx.dsl.experimental.LatestBlessedModelStrategy,
        model=tfx.dsl.Channel(type=Model),
        model_blessing=tfx.dsl.Channel(type=ModelBlessing),
    ).with_id("Resolver")
    trained = {
        "examples": transform.outputs["transformed_examples"],
        "transform_graph": transform.outputs["transform_graph"],
        "train_args": tfx.proto.TrainArgs(),
        "eval_args": tfx.proto.EvalArgs(),
        "custom_config": custom_config,
    }
    hyperparameters = None
    if config.tuner.enabled:
        check_search(config)
        for name in config.tuner.search_space:
            require(
                name.partition(".")[0] not in ("data", "features") and name != "distill.teacher",
                f"tuner.search_space.{name}",
                "the examples are made before the Tuner runs: search it with 'tfrz tune'",
            )
        tuner = tfx.components.Tuner(tuner_fn="tfx_pipelines.modules.tuner.tuner_fn", **trained)
        hyperparameters = tuner.outputs["best_hyperparameters"]
        components.append(tuner)
    base_model = None
    if config.trainer.warm_start == "latest_blessed":
        base_model = resolver.outputs["model"]
    if teacher is not None:
        base_model = teacher.base_model() or base_model
    trainer = tfx.components.Trainer(
        run_fn="tfx_pipelines.modules.trainer.run_fn",
        base_model=base_model,
        hyperparameters=hyperparameters,
        **trained,
    )
    components += [resolver, trainer]
    model = trainer.outputs["model"]
    stages = None
    if entry.stages is not None:
        stages = registry.resolve(entry.stages)(run, places)
        model, more = stages.after_training(model)
        components += more
    evaluator = Evaluator(
        examples=examples,
        model=model,
        baseline_model=resolver.outputs["model"],
        eval_config=task.eval_config(spec, has_baseline=True),
        example_splits=[splits_of(config.data.test_fraction)[-1]],
    )
    components.append(evaluator)
    if teacher is not None:
        bare = task.eval_config(spec, has_baseline=True)
        alone = trained | {"hyperparameters": hyperparameters}
        if config.trainer.warm_start == "latest_blessed":
            alone["base_model"] = resolver.outputs["model"]
        components += teacher.compare(alone, examples, bare)
    blessing = evaluator.outputs["blessing"]
    if stages is not None:
        blessing, more = stages.after_evaluation(model, examples, blessing)
        components += more
    pusher = tfx.components.Pusher(
        model=model,
        model_blessing=blessing,
        push_destination=tfx.proto.PushDestination(
            filesystem=tfx.proto.PushDestination.Filesystem(
                base_directory=places.serving(config.name)
            )
        ),
    )
    components.append(pusher)
    return tfx.dsl.Pipeline(
        pipeline_name=pipeline_name(config.name),
        pipeline_root=places.artifacts,
        components=components,
        enable_cache=config.pipeline.enable_cache,
        metadata_connection_config=(
            tfx.orchestration.metadata.sqlite_metadata_connection_config(places.metadata)
            if here
            else None  # the cluster has its own
        ),
        beam_pipeline_args=_beam_args(config),
    )
