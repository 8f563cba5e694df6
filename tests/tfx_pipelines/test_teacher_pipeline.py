"""Pipelines with a teacher: found, asked, compared with; as an artifact with its origin."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import tensorflow as tf

from tests.lazy import lazy
from tests.tfrz.zoo.test_history_task import SETTINGS, _write
from tfrz.cli.main import main
from tfrz.errors import ConfigError, InputError
from tfrz.zoo.run_config import load_run_config
from tfrz.zoo.teacher import TEACHER_SCORE
from tfrz.zoo.train import train
from tfx_pipelines.local_runner import run_pipeline

metadata = lazy("tfx.orchestration.metadata")
tfx_metadata = lazy("tfx.v1.orchestration.metadata")
teacher_module = lazy("tfx_pipelines.components.teacher")

pytestmark = [pytest.mark.slow, pytest.mark.needs("tfx")]

CLICKS = (
    "data.options={rows: 4000}",
    "trainer.epochs=1",
    "trainer.batch_size=128",
    "trainer.tensorboard=false",
    "evaluator.min_auc=0.4",
    "evaluator.slices=[]",
)


def _clicks(root, *overrides):
    config = load_run_config("dcn_v2", "simulated", [*CLICKS, *overrides])
    return run_pipeline(config, "simulated", root, progress=False)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A pipeline that has blessed and pushed a model."""
    root = tmp_path_factory.mktemp("teacher") / "root"
    result = _clicks(root)
    assert result.pushed, result.refusals
    return root, result


@pytest.fixture(scope="module")
def student(teacher, tmp_path_factory):
    root = tmp_path_factory.mktemp("student") / "root"
    more = ("model.embedding_dim=2", "model.hidden_units=[4]", "distill.weight=1")
    return root, _clicks(root, f"distill.teacher={teacher[0]}", *more)


def _metadata(root):
    return metadata.Metadata(
        tfx_metadata.sqlite_metadata_connection_config(str(root / "metadata.sqlite"))
    )


def _artifacts(root, kind: str):
    with _metadata(root) as handle:
        return handle.store, handle.store.get_artifacts_by_type(kind)


def test_student_teacher_and_undistilled_are_compared(teacher, student):
    result = student[1]
    names = [component.name for component in result.components]
    wanted = {"Teacher", "BulkInferrer", "UndistilledTrainer", "ComparisonEvaluator", "Pusher"}
    assert wanted <= set(names)
    assert set(result.comparison) == {"student", "teacher", "undistilled"}
    assert result.comparison["student"] == result.metrics
    # The teacher is the other pipeline's model, on the same examples.
    for name in ("auc", "log_loss"):
        assert result.comparison["teacher"][name] == pytest.approx(
            teacher[1].metrics[name], abs=1e-4
        )
    assert result.comparison["undistilled"] != result.comparison["student"]


def test_what_is_pushed_is_the_student_and_asks_for_no_teacher(student):
    model = tf.saved_model.load(student[1].pushed)
    assert TEACHER_SCORE not in model.signatures["serving_raw"].structured_input_signature[1]
    weights = {name: v.shape for name, v in model.weights.items()}
    assert weights["hidden_0-kernel"][1] == 4


def test_every_example_carries_what_the_teacher_serves(teacher, student):
    files = sorted(Path(student[0]).glob("artifacts/BulkInferrer/output_examples/*/Split-eval/*"))
    records = list(
        tf.data.TFRecordDataset(
            [str(f) for f in files], compression_type="GZIP"
        ).as_numpy_iterator()
    )
    served = tf.saved_model.load(teacher[1].pushed).signatures["serving_default"]
    expected = served(tf.constant(records[:50]))["scores"].numpy()
    found = [
        tf.train.Example.FromString(r).features.feature[TEACHER_SCORE].float_list.value[0]
        for r in records[:50]
    ]
    assert found == pytest.approx(expected.tolist(), abs=1e-5)


def test_the_teacher_is_an_artifact_with_its_origin(teacher, student):
    _, models = _artifacts(student[0], "Model")
    (imported,) = [m for m in models if "teacher_root" in m.custom_properties]
    assert imported.custom_properties["teacher_root"].string_value == str(teacher[0].resolve())
    assert imported.custom_properties["teacher_pipeline"].string_value == "dcn-v2"
    assert imported.custom_properties["teacher_run"].string_value
    original = imported.custom_properties["teacher_model_id"].int_value
    _, theirs = _artifacts(teacher[0], "Model")
    assert imported.uri == next(m.uri for m in theirs if m.id == original)


def test_neither_teacher_nor_undistilled_counts_as_blessed(student):
    origin = teacher_module.latest_blessed(student[0])
    assert "/Trainer/model/" in origin.uri


def test_a_saved_model_teaches_too_and_an_unchanged_run_is_cached(teacher, tmp_path):
    place = Path(teacher[1].pushed)
    more = (f"distill.teacher={place}", "distill.compare=false", "pipeline.schema=imported")
    first = _clicks(tmp_path / "root", *more)
    assert first.pushed and first.comparison == {}
    again = _clicks(tmp_path / "root", *more)
    # The Evaluator has a blessed model to compare with now.
    cached = {c.name for c in again.components if c.outcome == "cached"}
    assert {"ReaderExampleGen", "BulkInferrer", "Transform", "Trainer"} <= cached


def test_a_history_model_has_its_teacher_in_the_trainer(tmp_path):
    data, spec = _write(tmp_path, users=200, ring=40)
    settings = [*SETTINGS, "trainer.epochs=20", "trainer.early_stopping_patience=null"]
    settings += ["evaluator.slices=[]", "evaluator.min_metrics={recall_at_10: 0.3}"]
    config = load_run_config("m3", "file", settings)
    teacher = run_pipeline(config, data, tmp_path / "teacher", spec, progress=False)
    assert teacher.pushed, teacher.refusals
    more = [f"distill.teacher={tmp_path / 'teacher'}", "distill.weight=0.9", "model.item_dim=4"]
    config = load_run_config("m3", "file", [*settings, *more])
    student = run_pipeline(config, data, tmp_path / "student", spec, progress=False)
    assert student.pushed, student.refusals
    names = {component.name for component in student.components}
    assert "Teacher" in names and "BulkInferrer" not in names
    compared = student.comparison
    assert compared["teacher"]["recall_at_10"] == pytest.approx(teacher.metrics["recall_at_10"])
    assert compared["student"]["map_at_20"] != compared["undistilled"]["map_at_20"]
    # Both its teacher and the model before it would be the Trainer's base model.
    warm = load_run_config("m3", "file", [*settings, *more, "trainer.warm_start=latest_blessed"])
    with pytest.raises(ConfigError, match="both the Trainer's base model"):
        run_pipeline(warm, data, tmp_path / "student", spec, progress=False)


def test_a_root_without_a_blessed_model_is_refused(teacher, tmp_path, capsys):
    root = tmp_path / "root"
    shutil.copytree(teacher[0], root)
    with _metadata(root) as handle:
        blessings = handle.store.get_artifacts_by_type("ModelBlessing")
        for blessing in blessings:
            blessing.custom_properties["blessed"].int_value = 0
        handle.store.put_artifacts(blessings)
    with pytest.raises(InputError, match="has no blessed model"):
        teacher_module.latest_blessed(root)
    command = ["pipeline", "run", "dcn_v2", "--root", str(tmp_path / "student"), "--quiet"]
    command += ["--set", f"distill.teacher={tmp_path / 'nowhere'}"]
    assert main(command) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and "no SavedModel in" in lines[0]


def test_a_search_for_a_teacher_is_refused(teacher, tmp_path):
    space = "tuner.search_space={distill.teacher: [null, somewhere]}"
    with pytest.raises(ConfigError, match=r"distill\.teacher: the examples are made before"):
        _clicks(tmp_path / "root", f"distill.teacher={teacher[0]}", "tuner.enabled=true", space)


def test_a_root_with_several_pipelines_asks_for_one(teacher, tmp_path):
    root = tmp_path / "both"
    shutil.copytree(teacher[0], root)
    from ml_metadata.proto import metadata_store_pb2

    with _metadata(root) as handle:
        kind = handle.store.get_context_type("pipeline").id
        handle.store.put_contexts([metadata_store_pb2.Context(type_id=kind, name="other")])
    with pytest.raises(InputError, match=r"has the pipelines dcn-v2, other: name the folder"):
        teacher_module.latest_blessed(root)
    assert teacher_module.latest_blessed(root, "dcn-v2").properties["teacher_pipeline"] == "dcn-v2"


def test_a_distilled_pipeline_compiles_for_a_cluster(tmp_path, capsys):
    out = tmp_path / "dcn.json"
    command = ["pipeline", "compile", "dcn_v2", "--out", str(out)]
    command += ["--set", "distill.teacher=gs://bucket/teacher/Trainer/model/7"]
    assert main(command) == 0, capsys.readouterr().err
    text = out.read_text()
    assert "gs://bucket/teacher/Trainer/model/7" in text and "BulkInferrer" in text


def test_live_metrics_are_of_the_same_examples(tmp_path):
    """`tfrz train` with a run as the teacher, the same thing in process."""
    train("dcn_v2", out=tmp_path / "teacher", overrides=CLICKS, progress=False)
    more = [f"distill.teacher={tmp_path / 'teacher'}", "trainer.max_steps=1"]
    result = train("dcn_v2", out=tmp_path / "s", overrides=[*CLICKS, *more], progress=False)
    assert {"teacher, validation", "teacher, test"} < set(result["metrics"])
