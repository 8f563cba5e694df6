"""The teacher of distillation in the pipeline: an artifact that records its origin.

The latest blessed model of another pipeline is found in that pipeline's metadata; any other
SavedModel is copied under the root. TFX's BulkInferrer computes the scores of stored teachers.
"""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
from pathlib import Path
from typing import Any

import tensorflow_model_analysis as tfma
from tfx import v1 as tfx
from tfx.dsl.components.base.base_node import BaseNode
from tfx.orchestration import metadata
from tfx.types import Artifact, BaseChannel, artifact_utils
from tfx.types.standard_artifacts import Model, ModelBlessing
from tfx.utils import path_utils

from tfrz.config import require
from tfrz.errors import InputError
from tfrz.files import atomic_directory
from tfrz.training.distiller import DistillConfig
from tfrz.zoo.run import Run
from tfrz.zoo.run_config import run_config_to_mapping
from tfrz.zoo.teacher import TEACHER_SCORE, find_teacher
from tfx_pipelines.components.blessing import LatestPassedModelStrategy
from tfx_pipelines.configs import Places, pipeline_name, splits_of

COMPARISON = "ComparisonEvaluator"


@dataclasses.dataclass(frozen=True)
class Origin:
    """A model artifact and its origin.

    Attributes:
      uri: the artifact's URI; the SavedModel is in its folder for serving.
      properties: custom properties for the imported artifact.
    """

    uri: str
    properties: dict[str, str | int]


def latest_blessed(root: Path, pipeline: str | None = None) -> Origin:
    """The latest blessed model of another pipeline on this machine.

    Args:
      root: root folder of that pipeline, with `metadata.sqlite`.
      pipeline: its name, if the root has several.

    Raises:
      InputError: no model was blessed, or the root has several pipelines and none was named.
    """
    database = str(root / "metadata.sqlite")
    connection = tfx.orchestration.metadata.sqlite_metadata_connection_config(database)
    with metadata.Metadata(connection) as handle:
        store = handle.store
        known = {context.name: context.id for context in store.get_contexts_by_type("pipeline")}
        if pipeline is None and len(known) > 1:
            names = ", ".join(sorted(known))
            raise InputError(
                f"distill.teacher: {root} has the pipelines {names}: name the folder that one "
                f"serves from, {root}/serving/MODEL"
            )
        name = pipeline if pipeline is not None else next(iter(known), "")
        found: dict[str, list[Artifact]] = {}
        for key, kind in (("model", Model), ("model_blessing", ModelBlessing)):
            stored = store.get_artifacts_by_context(known[name]) if name in known else []
            types = {t.id: t for t in store.get_artifact_types() if t.name == kind.TYPE_NAME}
            found[key] = [
                artifact_utils.deserialize_artifact(types[one.type_id], one)
                for one in stored
                if one.type_id in types and one.state == one.LIVE
            ]
        resolved = LatestPassedModelStrategy().resolve_artifacts(store, found)
        if not resolved or not resolved["model"]:
            whose = "" if pipeline is None else f" of the pipeline {pipeline}"
            raise InputError(f"distill.teacher: {root} has no blessed model{whose}")
        model = resolved["model"][0]
        runs = [
            context.name
            for context in store.get_contexts_by_artifact(model.id)
            if context.type == "pipeline_run"
        ]
    properties: dict[str, str | int] = {
        "teacher_root": str(root.resolve()),
        "teacher_pipeline": name,
        "teacher_model_id": model.id,
        "teacher_run": runs[0] if runs else "",
    }
    return Origin(model.uri, properties)


def _staged(model: Path, places: Places) -> Origin:
    """A copy of a SavedModel under the root, in the layout of a model artifact; copied once."""
    digest = hashlib.sha256()
    for path in sorted(p for p in model.rglob("*") if p.is_file()):
        digest.update(str(path.relative_to(model)).encode())
        digest.update(path.read_bytes())
    uri = Path(places.teachers) / digest.hexdigest()[:16]
    if not uri.exists():
        with atomic_directory(uri) as folder:
            shutil.copytree(model, path_utils.serving_model_dir(str(folder)))
    return Origin(str(uri), {"teacher_path": str(model.resolve())})


def find_origin(distill: DistillConfig, places: Places, here: bool) -> Origin:
    """The artifact of a run's teacher.

    Args:
      distill: names the teacher: for a cluster, the URI of a model artifact.
      places: the folders of this run.
      here: whether the pipeline runs on this machine.

    Raises:
      InputError: the model does not exist, or its pipeline has no blessed model.
    """
    assert distill.teacher is not None
    if not here:
        return Origin(distill.teacher, {})
    place = Path(distill.teacher)
    if (place / "metadata.sqlite").exists():
        return latest_blessed(place)
    root = place.parent.parent
    if place.parent.name == "serving" and (root / "metadata.sqlite").exists():
        return latest_blessed(root, pipeline_name(place.name))
    return _staged(find_teacher(place), places)


class TeacherNodes:
    """The nodes that a teacher adds to a pipeline.

    Args:
      run: the resolved run, whose configuration names a teacher.
      places: the folders of the pipeline.
      here: whether the pipeline runs on this machine.
    """

    def __init__(self, run: Run, places: Places, here: bool) -> None:
        self._config, self._live = run.config, run.task.live_teacher
        origin = find_origin(run.config.distill, places, here)
        self._importer = tfx.dsl.Importer(
            source_uri=origin.uri, artifact_type=Model, custom_properties=origin.properties
        ).with_id("Teacher")
        self.model = self._importer.outputs["result"]
        # For the Tuner, which takes no model artifact.
        self.saved_model = path_utils.serving_model_dir(origin.uri)

    def ask(self, examples: BaseChannel) -> tuple[BaseChannel, list[BaseNode]]:
        """Examples with the teacher's scores, and the nodes that make them.

        The Trainer runs live teachers itself: their examples stay unchanged.
        """
        if self._live:
            return examples, [self._importer]
        column = tfx.proto.OutputColumnsSpec(
            signature_name="serving_default",
            predict_output=tfx.proto.PredictOutput(
                output_columns=[
                    tfx.proto.PredictOutputCol(output_key="scores", output_column=TEACHER_SCORE)
                ]
            ),
        )
        inferrer = tfx.components.BulkInferrer(
            examples=examples,
            model=self.model,
            model_spec=tfx.proto.ModelSpec(model_signature_name=["serving_default"]),
            output_example_spec=tfx.proto.OutputExampleSpec(output_columns_spec=[column]),
        )
        return inferrer.outputs["output_examples"], [self._importer, inferrer]

    def base_model(self) -> BaseChannel | None:
        """The base model for the Trainer: a live teacher, or None.

        Raises:
          ConfigError: a warm start needs the same input.
        """
        if not self._live:
            return None
        require(
            self._config.trainer.warm_start != "latest_blessed",
            "trainer.warm_start",
            "latest_blessed and a live teacher are both the Trainer's base model: take one",
        )
        return self.model

    def compare(
        self, trained: dict[str, Any], examples: BaseChannel, eval_config: tfma.EvalConfig
    ) -> list[BaseNode]:
        """The same model without its teacher, and an evaluation of both; nothing if switched off.

        The evaluation has no thresholds, so it blesses neither model.

        Args:
          trained: arguments of the Trainer.
          examples: raw examples.
          eval_config: the student's evaluation; its thresholds are removed.
        """
        if not self._config.distill.compare:
            return []
        alone = dataclasses.replace(self._config, distill=DistillConfig())
        custom = {**trained["custom_config"], "run_config": run_config_to_mapping(alone)}
        trainer = tfx.components.Trainer(
            run_fn="tfx_pipelines.modules.trainer.run_fn",
            **{**trained, "custom_config": custom},
        ).with_id("UndistilledTrainer")
        for metrics in eval_config.metrics_specs:
            for metric in metrics.metrics:
                metric.ClearField("threshold")
                metric.ClearField("per_slice_thresholds")
        evaluator = tfx.components.Evaluator(
            examples=examples,
            model=trainer.outputs["model"],
            baseline_model=self.model,
            eval_config=eval_config,
            example_splits=[splits_of(self._config.data.test_fraction)[-1]],
        ).with_id(COMPARISON)
        return [trainer, evaluator]
