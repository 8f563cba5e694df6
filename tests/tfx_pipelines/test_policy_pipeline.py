"""The pipeline of policies: off-policy check, both refusals, metrics of served slates, blessings."""

from __future__ import annotations

import collections
import json
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tests.lazy import lazy
from tests.tfx_pipelines import stored
from tfrz.cli.main import main
from tfrz.data.histories.spec import HistorySpec
from tfrz.errors import InputError
from tfrz.metrics.ranking import ndcg_at, recall_at
from tfrz.zoo import registry
from tfrz.zoo.run_config import load_run_config
from tfx_pipelines.configs import config_to_json
from tfx_pipelines.local_runner import open_checked, run_pipeline

blessing_module = lazy("tfx_pipelines.components.blessing")
off_policy = lazy("tfx_pipelines.components.off_policy")

pytestmark = [pytest.mark.slow, pytest.mark.needs("tfx")]

ITEMS, SEGMENTS = 30, 5
PIPELINE = (
    # Everything that is held out judges.
    "data.test_fraction=0",
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


def _log(first) -> list[tf.train.Example]:
    """The raw examples of the split that is judged."""
    folder = stored.artifact(first, "HistoryExampleGen", "examples") / "Split-eval"
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


def test_a_refused_policy_is_not_the_one_to_compare_with_or_to_start_from(root, first, too_far):
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
    assert Path(model.uri) == stored.artifact(first, "Trainer", "model")


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


def _check(first, folder: Path, *settings, log=None, blessed_before: bool = True):
    """The blessing of the first run's model, and what was measured."""
    config = load_run_config("topk_reinforce", "simulated", [*PIPELINE, *settings])
    examples = stored.examples(first, "HistoryExampleGen")
    if log is not None:
        examples.uri = str(folder / "examples")
        place = folder / "examples" / "Split-eval"
        place.mkdir(parents=True)
        with tf.io.TFRecordWriter(str(place / "data-0.gz"), "GZIP") as writer:
            for example in log:
                writer.write(example.SerializeToString())
    earlier = stored.made("ModelBlessing", folder / "earlier")
    earlier.set_int_custom_property("blessed", int(blessed_before))
    blessing = stored.made("ModelBlessing", folder / "blessing")
    off_policy.OffPolicyCheck.test_call(
        model=stored.made("Model", stored.artifact(first, "Trainer", "model")),
        examples=examples,
        earlier=earlier,
        blessing=blessing,
        run_config=config_to_json(config),
    )
    return blessing, json.loads((Path(blessing.uri) / "check.json").read_text())


def test_one_refusal_is_enough(first, tmp_path):
    model = stored.artifact(first, "Trainer", "model")
    blessing, check = _check(first, tmp_path, blessed_before=False)
    assert check["passed"] and check["refused_before"]
    assert not stored.blessed(blessing)
    assert stored.push(model, blessing, tmp_path) == []
    again = tmp_path / "again"
    blessing, check = _check(first, again)
    assert check["passed"] and stored.blessed(blessing)
    assert len(stored.push(model, blessing, again)) == 1


def test_a_policy_whose_lower_bound_is_too_low_is_not_pushed_and_the_reason_is_told(
    first, tmp_path
):
    settings = ["evaluator.min_effective_sample_size=0", "evaluator.min_lift=1e6"]
    blessing, check = _check(first, tmp_path, *settings)
    assert not check["passed"] and not stored.blessed(blessing)
    assert f"the lower bound of the policy's value is {check['low']:.4f}" in check["reason"]
    assert f"not above {check['logged_reward'] * (1 + 1e6):.4f}" in check["reason"]
    assert "evaluator.min_lift 1e+06" in check["reason"]
    assert stored.push(stored.artifact(first, "Trainer", "model"), blessing, tmp_path) == []


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
    assert not check["passed"] and not stored.blessed(blessing)
    assert "the lower bound" in check["reason"]
