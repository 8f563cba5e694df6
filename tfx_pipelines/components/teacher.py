"""A teacher in the pipeline: an artifact with its origin, asked by TFX's BulkInferrer.

Another pipeline's latest blessed model is found in that pipeline's metadata; any other SavedModel
is copied under the root, where artifacts are.
"""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
from pathlib import Path
from typing import Any

from tfx import v1 as tfx
from tfx.orchestration import metadata
from tfx.types import artifact_utils
from tfx.types.standard_artifacts import Model, ModelBlessing
from tfx.utils import path_utils

from tfrz.config import require
from tfrz.data.impressions.spec import FeatureSpec
from tfrz.errors import InputError
from tfrz.files import atomic_directory
from tfrz.training.distillation import DistillConfig
from tfrz.zoo.run_config import RunConfig, run_config_to_mapping
from tfrz.zoo.teacher import TEACHER_SCORE, find_teacher
from tfx_pipelines.components.blessing import LatestPassedModelStrategy
from tfx_pipelines.configs import Places, pipeline_name

COMPARISON = "ComparisonEvaluator"


@dataclasses.dataclass(frozen=True)
class Origin:
    """A model artifact, and where it is from.

    Attributes:
      uri: of the artifact; the SavedModel is in its folder for serving.
      properties: custom properties of the imported artifact.
    """

    uri: str
    properties: dict[str, str | int]


def latest_blessed(root: Path, pipeline: str | None = None) -> Origin:
    """The latest blessed model of another pipeline on this machine.

    Args:
      root: of that pipeline's runs, with `metadata.sqlite`.
      pipeline: its name, where the root has several.

    Raises:
      InputError: nothing was blessed, or the root has several pipelines and none was named.
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
        found: dict[str, list[Any]] = {}
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
            raise InputError(f"distill.teacher: {root} has no blessed model{_of(pipeline)}")
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


def _of(pipeline: str | None) -> str:
    return "" if pipeline is None else f" of the pipeline {pipeline}"


def _staged(model: Path, places: Places) -> Origin:
    """A SavedModel in the layout of a model artifact, under the root; copied once."""
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
    """The artifact of the teacher that a run names.

    Args:
      distill: names it. For a cluster it is the URI of a model artifact, taken as it is.
      places: of this run.
      here: whether the pipeline runs on this machine.

    Raises:
      InputError: there is no such model, or none of the root's was blessed.
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
    """What a pipeline has of its teacher.

    Args:
      config: of the run, with a teacher.
      places: of the run.
      here: whether the pipeline runs on this machine.
    """

    def __init__(self, config: RunConfig, places: Places, here: bool) -> None:
        self._config = config
        origin = find_origin(config.distill, places, here)
        self._importer = tfx.dsl.Importer(
            source_uri=origin.uri, artifact_type=Model, custom_properties=origin.properties
        ).with_id("Teacher")
        self.model = self._importer.outputs["result"]
        # Where it is, for the Tuner, which takes no model.
        self.saved_model = path_utils.serving_model_dir(origin.uri)

    def ask(self, examples: Any, spec: Any) -> tuple[Any, list[Any]]:
        """Examples that come with what the teacher says, and the nodes that make them.

        Live teachers are asked by the Trainer: their examples stay as they are.
        """
        if not isinstance(spec, FeatureSpec):
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

    def base_model(self, spec: Any) -> Any:
        """What the Trainer takes as its base model: a live teacher, or None.

        Raises:
          ConfigError: the place is wanted by a warm start.
        """
        if isinstance(spec, FeatureSpec):
            return None
        require(
            self._config.trainer.warm_start != "latest_blessed",
            "trainer.warm_start",
            "latest_blessed and a live teacher are both the Trainer's base model: take one",
        )
        return self.model

    def compare(self, trained: dict[str, Any], examples: Any, eval_config: Any) -> list[Any]:
        """The same model without its teacher, and an evaluation of both; nothing if not wanted.

        The evaluation has no thresholds: neither of the two is ever blessed by it.

        Args:
          trained: arguments of the Trainer.
          examples: raw ones, with the split `eval`.
          eval_config: of the student.
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
            example_splits=["eval"],
        ).with_id(COMPARISON)
        return [trainer, evaluator]
