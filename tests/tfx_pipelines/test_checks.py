"""What the checks beside the Evaluator refuse, and that a refusal stays one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.lazy import lazy
from tests.tfx_pipelines import stored
from tfrz.embeddings import health
from tfrz.metrics.off_policy import Estimate
from tfrz.zoo.run_config import PolicyEvaluatorConfig, TimelineEvaluatorConfig

blessing_module = lazy("tfx_pipelines.components.blessing")
off_policy = lazy("tfx_pipelines.components.off_policy")


def _estimate(**values) -> Estimate:
    usual = {"value": 0.5, "low": 0.4, "high": 0.6, "effective_sample_size": 200.0, "count": 900}
    return Estimate(**{**usual, **values})


@pytest.mark.needs("tfx")
def test_a_policy_that_is_surely_better_is_not_refused():
    assert off_policy.refusal(_estimate(), 0.3, PolicyEvaluatorConfig()) is None
    assert (
        off_policy.refusal(_estimate(effective_sample_size=100.0), 0.3, PolicyEvaluatorConfig())
        is None
    )
    assert off_policy.refusal(_estimate(), 0.3, PolicyEvaluatorConfig(min_lift=0.33)) is None
    assert off_policy.refusal(_estimate(low=-0.1, value=0.0), -0.3, PolicyEvaluatorConfig()) is None


@pytest.mark.needs("tfx")
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


@pytest.mark.needs("tfx")
def test_where_rewards_are_costs_a_lift_asks_for_less_cost():
    """A logger that earns -1: a policy that earns -1.05 is worse, whatever lift is wanted."""
    config = PolicyEvaluatorConfig(min_lift=0.1)
    assert off_policy.refusal(_estimate(low=-1.05, value=-1.02), -1.0, config) is not None
    assert off_policy.refusal(_estimate(low=-0.95, value=-0.9), -1.0, config) is not None
    assert off_policy.refusal(_estimate(low=-0.85, value=-0.8), -1.0, config) is None


@pytest.mark.needs("tfx")
def test_an_earlier_refusal_stays_one_whatever_later_checks_say(tmp_path):
    from tfx.components.evaluator import constants

    model = stored.made("Model", tmp_path / "model")
    model.id = 7
    evaluated = stored.made("ModelBlessing", tmp_path / "evaluator")
    evaluated.set_int_custom_property("blessed", 1)
    chain = [evaluated]
    for number, reason in enumerate((None, "too far", None)):
        blessing = stored.made("ModelBlessing", tmp_path / str(number))
        passed = blessing_module.bless(blessing, model, chain[-1], reason, {"value": number})
        assert passed == (number == 0)
        chain.append(blessing)
    verdicts = [stored.blessed(blessing) for blessing in chain[1:]]
    assert verdicts == [True, False, False]
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


@pytest.mark.parametrize(
    ("change", "wanted", "told"),
    [
        ({}, {}, None),
        ({"not_finite": 2}, {}, "2 users' vectors are not finite"),
        ({"coverage": 0.5}, {"min_coverage": 0.6}, "evaluator.min_coverage is 0.6"),
        ({"coverage": 0.6}, {"min_coverage": 0.6}, None),
        ({"drift": {"users": 0}}, {"min_cosine": 0.9}, None),
        ({}, {"min_cosine": 0.8}, "cosine to version 1-a is 0.7000"),
        ({}, {"min_cosine": 0.7, "max_norm_change": 0.7}, None),
        ({}, {"max_norm_change": 0.69}, "from 1.0000 to 2.0000"),
    ],
)
def test_what_the_check_of_embeddings_refuses(change, wanted, told):
    report = {
        "not_finite": 0,
        "coverage": 1.0,
        "norm": {"p50": 2.0},
        "drift": {
            "version": "1-a",
            "users": 9,
            "cosine": {"p50": 0.7},
            "norm": {"p50": 1.0},
        },
    }
    reason = health.refusal(report | change, TimelineEvaluatorConfig(**wanted))
    assert reason is None if told is None else told in reason
