"""The pipeline of policies: off-policy check, both refusals, metrics of served slates, blessings."""

from __future__ import annotations

import collections
import json
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tests.lazy import lazy
from tfrz.cli.main import main
from tfrz.data.histories.spec import HistorySpec
from tfrz.errors import InputError
from tfrz.metrics.off_policy import Estimate
from tfrz.metrics.ranking import ndcg_at, recall_at
from tfrz.zoo import registry
from tfrz.zoo.run_config import PolicyEvaluatorConfig, load_run_config
from tfx_pipelines.configs import config_to_json
from tfx_pipelines.local_runner import open_checked, run_pipeline

blessing_module = lazy("tfx_pipelines.components.blessing")
off_policy = lazy("tfx_pipelines.components.off_policy")

ITEMS, SEGMENTS = 30, 5
PIPELINE = (
    f"data.options={{users: 3000, length: 4, items: {ITEMS}, segments: {SEGMENTS}}}",
    "data.validation_fraction=0.3",
    "data.history.length=3",
    "model.units=12",
    "model.action_dim=6",
    "model.k=2",
    "trainer.epochs=4",
    "trainer.batch_size=128",
    "trainer.tensorboard=false",
    "export.top_k=20",
    "evaluator.min_effective_sample_size=30",
    "evaluator.min_metrics={recall_at_10: 0.1}",
    "evaluator.slices=[[segment]]",
)
# Of those that are refused no more is asked than that they run.
BRIEF = ("trainer.max_steps=1",)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("policy-pipeline") / "root"


@pytest.fixture(scope="module")
def first(root):
    config = load_run_config("topk_reinforce", "simulated", PIPELINE)
    return run_pipeline(config, "simulated", root, None, progress=False)


def _artifact(first, component: str, output: str) -> Path:
    """The folder of an artifact of the first run."""
    places = (Path(first.root) / "artifacts" / component / output).iterdir()
    return min((p for p in places if p.name.isdigit()), key=lambda p: int(p.name))


def _log(first) -> list[tf.train.Example]:
    """The raw examples of the split that is judged."""
    folder = _artifact(first, "HistoryExampleGen", "examples") / "Split-eval"
    files = sorted(str(path) for path in folder.glob("*"))
    records = tf.data.TFRecordDataset(files, compression_type="GZIP")
    return [tf.train.Example.FromString(record.numpy()) for record in records]


def _number(example: tf.train.Example, name: str) -> float:
    (value,) = example.features.feature[name].float_list.value
    return value


def _text(example: tf.train.Example, name: str) -> str:
    (value,) = example.features.feature[name].bytes_list.value
    return value.decode()


@pytest.fixture(scope="module")
def served(first):
    """The judged examples, and what the pushed model lists for each."""
    log = _log(first)
    signature = tf.saved_model.load(first.pushed).signatures["serving_default"]
    outputs = signature(examples=tf.constant([one.SerializeToString() for one in log]))
    return log, [[item.decode() for item in row] for row in outputs["item_ids"].numpy()]


def test_logged_actions_become_a_pushed_policy(first):
    names = [component.name for component in first.components]
    order = [names.index(n) for n in ("HistoryExampleGen", "Transform", "Trainer", "Evaluator")]
    order += [names.index(n) for n in ("OffPolicyCheck", "Pusher")]
    assert order == sorted(order)
    assert first.evaluated and first.blessed and not first.refusals
    signatures = tf.saved_model.load(first.pushed).signatures
    assert set(signatures) == set(registry.get("topk_reinforce").signatures)
    answer = signatures["recommend"](
        history=tf.constant([["item_1", "never shown"], ["", ""]]),
        history_segment=tf.constant([["segment_1", "segment_1"], ["", ""]]),
        segment=tf.constant(["segment_1", "segment_2"]),
    )
    for row in answer["item_ids"].numpy():
        assert len(set(row)) == 20 and all(item.startswith(b"item_") for item in row)
    assert not answer["log_probability"].numpy().any()
    assert (np.diff(answer["scores"].numpy(), axis=1) <= 0).all()


def test_rewards_and_propensities_of_the_log_are_told_in_the_examples(first):
    run = open_checked(load_run_config("topk_reinforce", "simulated", PIPELINE), "simulated", None)
    world = run.source.reader.world
    log = _log(first)
    assert 0.2 * 3000 < len(log) < 0.4 * 3000
    for example in log[:100]:
        segment = int(_text(example, "segment").partition("_")[2])
        action = int(_text(example, "target").partition("_")[2])
        propensity = world.logger[segment, action]
        assert _number(example, "propensity") == pytest.approx(propensity, rel=1e-5)
        assert _number(example, "reward") in (0.0, 1.0)
        past = example.features.feature
        lengths = {len(past[name].bytes_list.value) for name in ("history", "history_segment")} | {
            len(past[f"history_{n}"].float_list.value) for n in ("reward", "propensity")
        }
        assert len(lengths) == 1


def test_the_check_tells_what_it_estimated_from_the_pushed_policy_and_the_log(first, served):
    log, _ = served
    (name,) = first.checks
    check = first.checks[name]
    assert name == "OffPolicyCheck" and check["passed"] and not check["refused_before"]
    assert check["estimator"] == "self_normalized" and "reason" not in check
    assert check["examples"] == len(log)
    rewards = np.array([_number(one, "reward") for one in log])
    propensities = np.array([_number(one, "propensity") for one in log])
    assert check["logged_reward"] == pytest.approx(rewards.mean(), abs=1e-6)
    # The policy's probability of the logged action, from what it serves when it lists everything.
    signatures = tf.saved_model.load(first.pushed).signatures
    serialized = tf.constant([one.SerializeToString() for one in log])
    judged = {n: v.numpy() for n, v in signatures["judge_log"](examples=serialized).items()}
    np.testing.assert_allclose(judged["logged"], propensities, rtol=1e-6)
    np.testing.assert_allclose(judged["reward"], rewards)
    listed = signatures["serving_default"](examples=serialized)
    for row, example in enumerate(log[:200]):
        items = [item.decode() for item in listed["item_ids"].numpy()[row]]
        scores = listed["scores"].numpy()[row].astype("f8")
        target = _text(example, "target")
        if target in items and items[0] != target and judged["known"][row]:
            odds = np.exp(scores[items.index(target)] - scores[0])
            # Of the ten that are not listed it is only known that they score no higher.
            total = np.exp(scores - scores[0]).sum()
            most = total + (ITEMS - len(items)) * np.exp(scores[-1] - scores[0])
            assert odds / most - 1e-6 <= judged["policy"][row] <= odds / total + 1e-6
    weights = np.minimum(judged["policy"].astype("f8") / propensities, np.exp(3.0))
    value = (weights * rewards).sum() / weights.sum()
    assert check["value"] == pytest.approx(value, rel=1e-4)
    size = weights.sum() ** 2 / (weights**2).sum()
    assert check["effective_sample_size"] == pytest.approx(size, rel=1e-4)
    assert size >= 30
    assert check["logged_reward"] < check["low"] < check["value"] < check["high"]


def _gini(counts) -> float:
    counts = np.asarray(counts, "f8")
    return np.abs(counts[:, None] - counts[None]).mean() / (2 * counts.mean())


def test_the_evaluators_metrics_are_those_of_the_served_lists_where_there_was_a_reward(
    first, served
):
    log, lists = served
    targets = [_text(one, "target") for one in log]
    rewarded = [_number(one, "reward") > 0 for one in log]
    assert 0 < sum(rewarded) < len(log)
    assert first.metrics["example_count"] == len(log)
    for name, metric, n in (
        ("recall_at_10", recall_at, 10),
        ("recall_at_20", recall_at, 20),
        ("ndcg_at_20", ndcg_at, 20),
    ):
        values = [
            metric(row, {target}, n)
            for row, target, reward in zip(lists, targets, rewarded, strict=True)
            if reward
        ]
        assert first.metrics[name] == pytest.approx(np.mean(values), abs=1e-6), name
    # Exposure is of everybody, rewarded or not.
    shown = collections.Counter(item for row in lists for item in row)
    counts = [shown[f"item_{i}"] for i in range(ITEMS)]
    assert first.metrics["coverage_at_20"] == pytest.approx(np.mean(np.array(counts) > 0))
    assert first.metrics["gini_at_20"] == pytest.approx(_gini(counts), abs=1e-6)
    for segment in range(SEGMENTS):
        hits = [
            recall_at(row, {target}, 10)
            for row, target, reward, one in zip(lists, targets, rewarded, log, strict=True)
            if reward and _text(one, "segment") == f"segment_{segment}"
        ]
        found = first.slices[f"segment=segment_{segment}"]
        assert found["recall_at_10"] == pytest.approx(np.mean(hits), abs=1e-6)


# What is not pushed.


@pytest.fixture(scope="module")
def too_far(root, first):
    """A run that asks for more than the log is worth, by the command line."""
    import contextlib
    import io

    command = ["pipeline", "run", "topk_reinforce", "--root", str(root), "--quiet", "--json"]
    for setting in (*PIPELINE, *BRIEF, "evaluator.min_effective_sample_size=1e9"):
        command += ["--set", setting]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        status = main(command)
    return status, json.loads(printed.getvalue())


def _outcomes(components) -> dict[str, str]:
    return {one["name"]: one["outcome"] for one in components}


def test_a_policy_too_far_from_its_log_is_not_pushed_and_the_reason_is_told(first, too_far):
    status, result = too_far
    assert status == 1
    assert result["pushed"] is None and result["evaluated"] and not result["blessed"]
    (reason,) = result["refusals"]
    check = result["checks"]["OffPolicyCheck"]
    assert not check["passed"] and check["reason"] == reason
    assert f"the effective sample size is {check['effective_sample_size']:.1f}" in reason
    assert "evaluator.min_effective_sample_size is 1e+09" in reason
    pushed = Path(first.pushed)
    assert [p.name for p in pushed.parent.iterdir()] == [pushed.name]
    # The log was not read again.
    assert _outcomes(result["components"])["HistoryExampleGen"] == "cached"
    assert _outcomes(result["components"])["StatisticsGen"] == "cached"


@pytest.fixture(scope="module")
def too_little(root, first, too_far):
    settings = [*PIPELINE, *BRIEF, "evaluator.min_effective_sample_size=0"]
    config = load_run_config("topk_reinforce", "simulated", [*settings, "evaluator.min_lift=1e6"])
    return run_pipeline(config, "simulated", root, None, progress=False)


def test_a_policy_whose_lower_bound_is_too_low_is_not_pushed_and_the_reason_is_told(
    first, too_little
):
    result = too_little
    assert result.pushed is None and result.evaluated and not result.blessed
    (reason,) = result.refusals
    check = result.checks["OffPolicyCheck"]
    assert not check["passed"] and check["reason"] == reason
    assert f"the lower bound of the policy's value is {check['low']:.4f}" in reason
    assert f"not above {check['logged_reward'] * (1 + 1e6):.4f}" in reason
    assert "evaluator.min_lift 1e+06" in reason
    pushed = Path(first.pushed)
    assert [p.name for p in pushed.parent.iterdir()] == [pushed.name]


def test_a_refused_policy_is_not_the_one_to_compare_with_or_to_start_from(
    root, first, too_far, too_little
):
    """The next run's Resolver gives what was pushed."""
    from tfx import v1 as tfx
    from tfx.dsl.compiler.compiler import Compiler
    from tfx.orchestration.metadata import Metadata
    from tfx.orchestration.portable.inputs_utils import resolve_input_artifacts
    from tfx.orchestration.portable.runtime_parameter_utils import substitute_runtime_parameter

    from tfx_pipelines.configs import Places
    from tfx_pipelines.pipeline import create_pipeline

    config, places = load_run_config("topk_reinforce", "simulated", PIPELINE), Places(first.root)
    run = open_checked(config, "simulated", None)
    compiled = Compiler().compile(create_pipeline(run, places))
    substitute_runtime_parameter(compiled, {"pipeline-run-id": "next"})
    nodes = [node.pipeline_node for node in compiled.nodes]
    (resolver,) = (node for node in nodes if node.node_info.id == "Resolver")
    settings = tfx.orchestration.metadata.sqlite_metadata_connection_config(places.metadata)
    with Metadata(settings) as handle:
        (found,) = resolve_input_artifacts(metadata_handle=handle, pipeline_node=resolver)
    (model,) = found["model"]
    assert Path(model.uri) == _artifact(first, "Trainer", "model")


def test_a_log_without_any_reward_is_refused_in_one_line(tmp_path, capsys):
    lines = ["user,item,reward,propensity"]
    lines += [f"u{i // 4},i{i % 7},0,0.25" for i in range(800)]
    (tmp_path / "log.csv").write_text("\n".join(lines) + "\n")
    (tmp_path / "spec.yaml").write_text(
        "user: user\nitem: item\ntime: null\npropensity: propensity\n"
    )
    command = ["pipeline", "run", "topk_reinforce", "--root", str(tmp_path / "root"), "--quiet"]
    command += ["--data", f"{tmp_path}/log.csv", "--features", f"{tmp_path}/spec.yaml"]
    assert main([*command, "--set", "data.history.length=3"]) == 2
    error = capsys.readouterr().err
    assert "every action of the training log has the reward 0" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "root" / "serving").exists()


def test_a_threshold_on_more_items_than_are_listed_is_refused_or_held():
    """Nothing is blessed by a bound that nobody looks at."""
    settings = [*PIPELINE, "export.top_k=10", "evaluator.min_metrics={recall_at_20: 0.9}"]
    try:
        config = load_run_config("topk_reinforce", "simulated", settings)
        open_checked(config, "simulated", None)
        entry = registry.get("topk_reinforce")
        judged = entry.new_task(config).eval_config(HistorySpec(), False)
    except InputError as error:
        assert "recall_at_20" in str(error) and "top_k" in str(error)
        return
    held = {
        json.loads(metric.config)["name"]
        for metric in judged.metrics_specs[0].metrics
        if metric.per_slice_thresholds
    }
    assert "recall_at_20" in held


def test_it_compiles_for_kubeflow(tmp_path, capsys):
    out = tmp_path / "topk_reinforce.json"
    assert main(["pipeline", "compile", "topk_reinforce", "--out", str(out)]) == 0
    capsys.readouterr()
    text = out.read_text()
    json.loads(text)
    for name in ("HistoryExampleGen", "Evaluator", "OffPolicyCheck", "Pusher"):
        assert name in text


# The check by itself, on what the first run made.


def _made(kind: str, uri: Path):
    from tfx.types import standard_artifacts

    artifact = getattr(standard_artifacts, kind)()
    artifact.uri = str(uri)
    return artifact


def _check(first, folder: Path, *settings, log=None, blessed_before: bool = True):
    """The blessing of the first run's model, and what was measured."""
    config = load_run_config("topk_reinforce", "simulated", [*PIPELINE, *settings])
    examples = _made("Examples", _artifact(first, "HistoryExampleGen", "examples"))
    if log is not None:
        examples.uri = str(folder / "examples")
        place = folder / "examples" / "Split-eval"
        place.mkdir(parents=True)
        with tf.io.TFRecordWriter(str(place / "data-0.gz"), "GZIP") as writer:
            for example in log:
                writer.write(example.SerializeToString())
    examples.split_names = '["train", "eval"]'
    earlier = _made("ModelBlessing", folder / "earlier")
    earlier.set_int_custom_property("blessed", int(blessed_before))
    blessing = _made("ModelBlessing", folder / "blessing")
    off_policy.OffPolicyCheck.test_call(
        model=_made("Model", _artifact(first, "Trainer", "model")),
        examples=examples,
        earlier=earlier,
        blessing=blessing,
        run_config=config_to_json(config),
    )
    return blessing, json.loads((Path(blessing.uri) / "check.json").read_text())


def _verdict(blessing) -> str:
    (name,) = (p.name for p in Path(blessing.uri).iterdir() if "BLESSED" in p.name)
    assert blessing.get_int_custom_property("blessed") == int(name == "BLESSED")
    return name


def _push(model: Path, blessing, folder: Path) -> list[str]:
    """What TFX' Pusher puts where models are served."""
    from tfx.components.pusher import executor

    serving = folder / "serving"
    destination = {"filesystem": {"base_directory": str(serving)}}
    executor.Executor().Do(
        {"model": [_made("Model", model)], "model_blessing": [blessing]},
        {"pushed_model": [_made("PushedModel", folder / "pushed")]},
        {"push_destination": json.dumps(destination), "custom_config": "null"},
    )
    return [p.name for p in serving.iterdir()] if serving.exists() else []


def test_one_refusal_is_enough(first, tmp_path):
    model = _artifact(first, "Trainer", "model")
    blessing, check = _check(first, tmp_path, blessed_before=False)
    assert check["passed"] and check["refused_before"]
    assert _verdict(blessing) == "NOT_BLESSED"
    assert _push(model, blessing, tmp_path) == []
    again = tmp_path / "again"
    blessing, check = _check(first, again)
    assert check["passed"] and _verdict(blessing) == "BLESSED"
    assert len(_push(model, blessing, again)) == 1


def test_the_estimator_and_its_cap_are_those_that_were_asked_for(first, tmp_path):
    log = _log(first)
    settings = ["evaluator.estimator=inverse_propensity", "evaluator.cap=2.0"]
    _, check = _check(first, tmp_path, *settings)
    assert check["estimator"] == "inverse_propensity"
    judge = tf.saved_model.load(first.pushed).signatures["judge_log"]
    found = judge(examples=tf.constant([one.SerializeToString() for one in log]))
    weights = np.minimum(found["policy"].numpy().astype("f8") / found["logged"].numpy(), 2.0)
    expected = (weights * found["reward"].numpy()).mean()
    assert check["value"] == pytest.approx(expected, rel=1e-4)


def test_where_the_log_has_no_propensities_the_loggers_head_stands_in(first, tmp_path):
    log = _log(first)
    known = [_number(one, "propensity") for one in log]
    for one in log:
        one.features.feature.pop("propensity")
    _, check = _check(first, tmp_path, log=log)
    judge = tf.saved_model.load(first.pushed).signatures["judge_log"]
    found = judge(examples=tf.constant([one.SerializeToString() for one in log]))
    logged = found["logged"].numpy().astype("f8")
    # It has learnt the logger: closer than a guess.
    error = np.abs(np.log(logged / known)).mean()
    assert error < np.abs(np.log(1 / ITEMS / np.array(known))).mean()
    weights = np.minimum(found["policy"].numpy() / logged, np.exp(3.0))
    expected = (weights * found["reward"].numpy()).sum() / weights.sum()
    assert check["value"] == pytest.approx(expected, rel=1e-4)


def test_a_log_of_one_action_proves_nothing(first, tmp_path):
    rewarded = next(e for e in _log(first) if _number(e, "reward") > 0)
    settings = ["evaluator.min_effective_sample_size=0"]
    blessing, check = _check(first, tmp_path, *settings, log=[rewarded])
    assert not check["passed"] and _verdict(blessing) == "NOT_BLESSED"
    assert "the lower bound" in check["reason"]


# Reasons.


def _estimate(**values) -> Estimate:
    usual = {"value": 0.5, "low": 0.4, "high": 0.6, "effective_sample_size": 200.0, "count": 900}
    return Estimate(**{**usual, **values})


def test_a_policy_that_is_surely_better_is_not_refused():
    assert off_policy.refusal(_estimate(), 0.3, PolicyEvaluatorConfig()) is None
    assert (
        off_policy.refusal(_estimate(effective_sample_size=100.0), 0.3, PolicyEvaluatorConfig())
        is None
    )
    assert off_policy.refusal(_estimate(), 0.3, PolicyEvaluatorConfig(min_lift=0.33)) is None
    assert off_policy.refusal(_estimate(low=-0.1, value=0.0), -0.3, PolicyEvaluatorConfig()) is None


@pytest.mark.parametrize(
    ("estimate", "logged", "wanted", "reason"),
    [
        ({"effective_sample_size": 99.9}, 0.3, {}, "effective sample size is 99.9"),
        ({"effective_sample_size": 0.0}, 0.3, {}, "effective sample size is 0.0"),
        ({}, 0.4, {}, "lower bound of the policy's value is 0.4000"),
        ({}, 0.45, {}, "not above 0.4500, what the logging policy earned"),
        ({}, 0.3, {"min_lift": 0.34}, "and evaluator.min_lift 0.34"),
        ({"low": float("-inf")}, 0.3, {}, "the lower bound"),
        ({"low": float("nan"), "value": float("nan")}, 0.3, {}, "the lower bound"),
        ({"low": -0.35}, -0.3, {}, "the lower bound"),
        ({"low": 0.0, "high": 0.0, "value": 0.0}, 0.0, {}, "the lower bound"),
    ],
)
def test_a_policy_that_may_be_worse_is_refused_with_the_reason(estimate, logged, wanted, reason):
    found = off_policy.refusal(_estimate(**estimate), logged, PolicyEvaluatorConfig(**wanted))
    assert found is not None and reason in found and "\n" not in found


def test_where_rewards_are_costs_a_lift_asks_for_less_cost():
    """A logger that earns -1: a policy that earns -1.05 is worse, whatever lift is wanted."""
    config = PolicyEvaluatorConfig(min_lift=0.1)
    assert off_policy.refusal(_estimate(low=-1.05, value=-1.02), -1.0, config) is not None
    assert off_policy.refusal(_estimate(low=-0.95, value=-0.9), -1.0, config) is not None
    assert off_policy.refusal(_estimate(low=-0.85, value=-0.8), -1.0, config) is None


def test_an_earlier_refusal_stays_one_whatever_later_checks_say(tmp_path):
    from tfx.components.evaluator import constants

    model = _made("Model", tmp_path / "model")
    model.id = 7
    evaluated = _made("ModelBlessing", tmp_path / "evaluator")
    evaluated.set_int_custom_property("blessed", 1)
    chain = [evaluated]
    for number, reason in enumerate((None, "too far", None)):
        blessing = _made("ModelBlessing", tmp_path / str(number))
        passed = blessing_module.bless(blessing, model, chain[-1], reason, {"value": number})
        assert passed == (number == 0)
        chain.append(blessing)
    verdicts = [_verdict(blessing) for blessing in chain[1:]]
    assert verdicts == ["BLESSED", "NOT_BLESSED", "NOT_BLESSED"]
    told = [json.loads((Path(one.uri) / "check.json").read_text()) for one in chain[1:]]
    assert told == [
        {"passed": True, "refused_before": False, "value": 0},
        {"passed": False, "refused_before": False, "value": 1, "reason": "too far"},
        {"passed": True, "refused_before": True, "value": 2},
    ]
    for blessing in chain[1:]:
        uri = constants.ARTIFACT_PROPERTY_CURRENT_MODEL_URI_KEY
        assert blessing.get_string_custom_property(uri) == model.uri
        number = constants.ARTIFACT_PROPERTY_CURRENT_MODEL_ID_KEY
        assert blessing.get_int_custom_property(number) == 7
