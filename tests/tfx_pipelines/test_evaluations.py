"""Stored evaluations: metrics, broken bounds, and undefined metrics, which break none."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.lazy import lazy
from tfrz.cli.main import main
from tfrz.data.impressions.spec import FeatureSpec
from tfrz.data.spec import Feature
from tfrz.errors import ConfigError
from tfrz.zoo import registry
from tfrz.zoo.run_config import (
    RankingEvaluatorConfig,
    TimelineEvaluatorConfig,
    load_run_config,
)
from tfrz.zoo.tasks.thresholds import evaluation_config, outcome_config
from tfx_pipelines import local_runner

pytestmark = pytest.mark.needs("tfx")

tfma = lazy("tensorflow_model_analysis")
constants = lazy("tfx.components.evaluator.constants")
standard_artifacts = lazy("tfx.types.standard_artifacts")
evaluator = lazy("tfx_pipelines.components.evaluator")
evaluations = lazy("tfx_pipelines.evaluations")
metrics_module = lazy("tfx_pipelines.modules.evaluation")


def _clicks(**labels: list[int]) -> pd.DataFrame:
    """Impressions by group; scores rank the labels well, and badly in the group `bad`."""
    rows = []
    for group, given in labels.items():
        for i, label in enumerate(given):
            good = 0.6 * label + 0.2 + 0.001 * i
            rows.append((group, float(label), 1.0 - good if group == "bad" else good))
    return pd.DataFrame(rows, columns=["group", "clicked", "scores"])


def _stored(folder: Path, frame: pd.DataFrame, *settings: str) -> Path:
    """An evaluation as the Evaluator stores it, with the bounds of a configuration."""
    fixed = ("evaluator.slices=[[group]]", *settings)
    config = load_run_config("dcn_v2", "simulated", fixed)
    entry = registry.get("dcn_v2")
    spec = FeatureSpec(label="clicked", features=(Feature("group"),))
    judged = entry.new_task(config).eval_config(spec, has_baseline=False)
    judged.model_specs[0].ClearField("signature_name")
    tfma.analyze_raw_data(frame, judged, output_path=str(folder))
    return folder


MIXED = {"good": [0, 1, 0, 1], "bad": [0, 1, 0, 1], "never": [0, 0, 0], "always": [1, 1]}
BOUNDS = ("evaluator.min_auc=0.1", "evaluator.min_slice_auc=0.5")


@pytest.fixture(scope="module")
def mixed(tmp_path_factory) -> Path:
    return _stored(tmp_path_factory.mktemp("mixed"), _clicks(**MIXED), *BOUNDS)


def test_a_slice_of_equal_labels_breaks_no_bound_and_is_named(mixed):
    found = evaluations.read_evaluation(mixed)
    assert [line.rpartition(" on ")[2] for line in found.refusals] == ["group=bad"]
    assert sorted(found.undefined) == [
        "auc on group=always: all labels are equal",
        "auc on group=never: all labels are equal",
    ]
    assert math.isnan(found.slices["group=never"]["auc"])
    assert found.slices["group=good"]["auc"] == pytest.approx(1.0)
    # An AUC of 0 is a value, and a bad one.
    assert found.slices["group=bad"]["auc"] == pytest.approx(0.0)
    assert found.metrics["example_count"] == 13
    assert set(found.metrics) == {"example_count", "auc", "log_loss", "calibration"}


def _evaluator(folder: Path, stored: Path, monkeypatch) -> standard_artifacts.ModelBlessing:
    """The blessing that the Evaluator writes of a stored evaluation."""
    evaluation, blessing = standard_artifacts.ModelEvaluation(), standard_artifacts.ModelBlessing()
    evaluation.uri, blessing.uri = str(stored), str(folder / "blessing")

    def evaluate(self, inputs, outputs, properties) -> None:
        """TFX's part: the evaluation is there, its verdict as TFMA finds it."""
        verdict = tfma.load_validation_result(str(stored)).validation_ok
        (folder / "blessing").mkdir()
        (folder / "blessing" / ("BLESSED" if verdict else "NOT_BLESSED")).write_text("")
        blessing.set_int_custom_property(constants.ARTIFACT_PROPERTY_BLESSED_KEY, int(verdict))

    monkeypatch.setattr(evaluator.TfxExecutor, "Do", evaluate)
    outputs = {"evaluation": [evaluation], "blessing": [blessing]}
    evaluator.EvaluatorExecutor().Do({}, outputs, {})
    return blessing


@pytest.mark.parametrize(
    ("labels", "verdict"),
    [
        ({"good": [0, 1, 0, 1], "never": [0, 0]}, "BLESSED"),
        # Without any positive no bound can be checked: nothing speaks for the model.
        ({"good": [0, 0], "never": [0, 0]}, "NOT_BLESSED"),
    ],
)
def test_the_evaluators_blessing(labels, verdict, tmp_path, monkeypatch):
    stored = _stored(tmp_path / "evaluation", _clicks(**labels), *BOUNDS)
    assert not tfma.load_validation_result(str(stored)).validation_ok
    blessing = _evaluator(tmp_path, stored, monkeypatch)
    assert [p.name for p in Path(blessing.uri).iterdir()] == [verdict]
    assert blessing.get_int_custom_property("blessed") == int(verdict == "BLESSED")
    refusals = evaluations.read_evaluation(stored).refusals
    assert bool(refusals) == (verdict == "NOT_BLESSED")
    if "good" in labels and not any(labels["good"]):
        assert refusals == ["no bound on all examples could be checked: auc undefined"]


def test_a_bad_slice_stays_a_refusal(mixed, tmp_path, monkeypatch):
    blessing = _evaluator(tmp_path, mixed, monkeypatch)
    assert [p.name for p in Path(blessing.uri).iterdir()] == ["NOT_BLESSED"]


def test_predictions_that_are_no_numbers_are_not_excused():
    nan = math.nan
    assert evaluations.why_undefined("auc", {"auc": nan, "log_loss": 0.3}) == "all labels are equal"
    assert evaluations.why_undefined("calibration", {"calibration": nan}) == "no label is positive"
    assert evaluations.why_undefined("calibration", {"calibration": nan, "log_loss": nan}) is None
    assert evaluations.why_undefined("log_loss", {"log_loss": nan}) is None
    assert evaluations.why_undefined("auc", {"auc": 0.0}) is None
    # A model that lists nothing has no Gini coefficient: that is its own fault.
    assert evaluations.why_undefined("gini_at_20", {"gini_at_20": nan}) is None
    for name in ("recall_at_10", "ndcg_at_20", "map", "err_at_10"):
        assert evaluations.why_undefined(name, {name: nan}) == "no example has a relevant item"


class _Extracts:
    """What TFMA passes to a metric, of one example."""

    def __init__(self, predicted, outcome) -> None:
        self._predicted, self._outcome = np.array(predicted), np.array(outcome)

    def get_predictions(self, *names: str):
        return {"y": self._predicted, "item_ids": self._predicted}

    def get_labels(self, *names: str):
        return self._outcome

    def get_transformed_features(self, *names: str):
        return {"outcome_y": self._outcome}


def _value(metric, *examples: _Extracts) -> float:
    (computation,) = metric.computations()
    combiner = computation.combiner
    accumulator = combiner.create_accumulator()
    for example in examples:
        accumulator = combiner.add_input(accumulator, example)
    (value,) = combiner.extract_output(combiner.merge_accumulators([accumulator])).values()
    return value


@pytest.mark.parametrize("kind", ["normalized_entropy", "mse"])
def test_a_prediction_that_is_no_number_gives_the_worst_value(kind):
    metric = metrics_module.OutcomeMetric(kind, "y", "name")
    broken = _Extracts([math.nan, 0.2], [1.0, 0.0])
    assert _value(metric, broken) == math.inf
    assert math.isnan(_value(metric, _Extracts([math.nan], [math.nan])))


def test_lists_without_a_target_are_undefined_and_bad_lists_are_not():
    metric = metrics_module.RankingMetric("recall", 2, "recall_at_2")
    assert math.isnan(_value(metric, _Extracts([b"a", b"b"], [b""])))
    assert _value(metric, _Extracts([b"a", b"b"], [b"c"])) == 0.0
    assert metric.get_config() == {"name": "recall_at_2", "kind": "recall", "n": 2}


def test_every_bounded_metric_that_labels_can_leave_undefined_has_a_reason():
    """The metrics that bounds of the three kinds of evaluations can name."""
    wanted = TimelineEvaluatorConfig(max_normalized_entropy={"like": 1.0})
    configs = [outcome_config(wanted, ["like"], ["like", "watch"], has_baseline=True)]
    ranking = load_run_config("m3", "simulated", ["evaluator.min_metrics={recall_at_20: 0.1}"])
    metrics = {"recall_at_20": {"class_name": "RankingMetric", "kind": "recall", "n": 20}}
    given = (ranking.evaluator, metrics, "item_ids", "target")
    configs.append(evaluation_config(*given, has_baseline=True))
    for config in configs:
        held = tfma.metrics.metric_thresholds_from_metrics_specs(
            config.metrics_specs, eval_config=config
        )
        assert held
        for key in held:
            assert evaluations.why_undefined(key.name, {key.name: math.nan}), key.name


def test_the_auc_of_mixed_labels_is_tfmas():
    assert issubclass(metrics_module.AreaUnderCurve, tfma.metrics.AUC)
    config = load_run_config("dcn_v2", "simulated", [])
    spec = FeatureSpec(label="clicked", features=(Feature("group"),))
    judged = registry.get("dcn_v2").new_task(config).eval_config(spec, has_baseline=True)
    (auc,) = (m for m in judged.metrics_specs[0].metrics if m.class_name == "AreaUnderCurve")
    assert json.loads(f"{{{auc.config}}}") == {"num_thresholds": 10000}


def _result(mixed, folder: Path) -> local_runner.PipelineResult:
    """The result of a run with a stored evaluation."""
    found = evaluations.read_evaluation(mixed)
    return local_runner.PipelineResult(
        components=[local_runner.ComponentRun("Evaluator", "ran", 1.0)],
        evaluated=False,
        blessed=False,
        refusals=found.refusals,
        undefined=found.undefined,
        checks={},
        metrics=found.metrics,
        slices=found.slices,
        comparison={},
        pushed=None,
        seconds=1.0,
        root=str(folder),
        log="log",
    )


def test_the_command_names_slice_metric_and_reason(mixed, monkeypatch, capsys, tmp_path):
    result = _result(mixed, tmp_path)
    monkeypatch.setattr(local_runner, "run_pipeline", lambda *_, **__: result)
    command = ["pipeline", "run", "dcn_v2", "--root", str(tmp_path), "--quiet"]
    assert main(command) == 1
    lines = capsys.readouterr().out.splitlines()
    told = [line for line in lines if line.startswith(("undefined: ", "not blessed: "))]
    assert sorted(told) == [
        "not blessed: auc 0.0000 misses its threshold on group=bad",
        "undefined: auc on group=always: all labels are equal, so no bound applies",
        "undefined: auc on group=never: all labels are equal, so no bound applies",
    ]


def test_undefined_metrics_are_null_in_json(mixed, tmp_path):
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    result = _result(mixed, tmp_path)
    result.checks["OffPolicyCheck"] = {"passed": False, "low": -math.inf}
    text = local_runner.result_to_json(result)
    read = json.loads(text, parse_constant=refuse)
    assert read["slices"]["group=never"]["auc"] is None
    assert read["slices"]["group=good"]["auc"] == pytest.approx(1.0)
    assert read["checks"]["OffPolicyCheck"] == {"passed": False, "low": None}
    assert read["components"] == [{"name": "Evaluator", "outcome": "ran", "seconds": 1.0}]


def test_bounds_follow_the_direction_of_their_metric():
    """A Gini coefficient is better when it falls: only a rise can break its bound."""
    metrics = {
        "gini_at_20": {"class_name": "ExposureMetric", "kind": "gini", "n": 20},
        "recall_at_20": {"class_name": "RankingMetric", "kind": "recall", "n": 20},
    }
    drops = {"gini_at_20": 0.1, "recall_at_20": 0.2}
    wanted = RankingEvaluatorConfig(max_drops=drops)
    config = evaluation_config(wanted, metrics, "item_ids", "target", has_baseline=True)
    held = {
        json.loads(metric.config)["name"]: metric.per_slice_thresholds[0].threshold.change_threshold
        for metric in config.metrics_specs[0].metrics
        if metric.per_slice_thresholds
    }
    lower, higher = held["gini_at_20"], held["recall_at_20"]
    assert lower.direction == tfma.MetricDirection.LOWER_IS_BETTER
    assert lower.absolute.value == pytest.approx(0.1)
    assert higher.direction == tfma.MetricDirection.HIGHER_IS_BETTER
    assert higher.absolute.value == pytest.approx(-0.2)
    least = RankingEvaluatorConfig(min_metrics={"gini_at_20": 0.3})
    with pytest.raises(ConfigError, match=r"min_metrics\.gini_at_20: smaller values are better"):
        evaluation_config(least, metrics, "item_ids", "target", has_baseline=False)
