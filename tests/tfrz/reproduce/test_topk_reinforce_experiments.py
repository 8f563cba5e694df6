import gzip
from pathlib import Path

import numpy as np
import pytest

from tfrz.data.simulators.bandits import BiasedLoggerBandit, PageOfTwoBandit, best_policy
from tfrz.errors import InputError
from tfrz.losses.reinforce import TopKOffPolicyReinforce
from tfrz.metrics.off_policy import Estimate
from tfrz.reproduce.experiment import Context
from tfrz.reproduce.topk_reinforce import EXPERIMENTS, bandits, estimators, slates

BY_NAME = {experiment.name.partition("/")[2]: experiment for experiment in EXPERIMENTS}


def context(work, data=None):
    return Context(True, 0, data, Path(work), lambda line: None)


def held(checks):
    assert all(type(check.held) is bool for check in checks)
    return [check.held for check in checks]


def test_the_group_has_its_experiments():
    names = "biased_logger page_of_two cap slates biased_catalogue estimators obd"
    assert set(names.split()) <= set(BY_NAME)
    assert all(experiment.name.startswith("topk_reinforce/") for experiment in EXPERIMENTS)


def test_exact_gradient_ends_at_the_fixed_points():
    rewards, beta = np.array([[3.0, 2.0, 1.0]]), np.array([[0.2, 0.3, 0.5]])
    logged = bandits.Logged(beta, np.log(beta), rewards)
    top_k = bandits.ascend(TopKOffPolicyReinforce(3, None), logged, 5000, 0.2)
    np.testing.assert_allclose(top_k, best_policy(rewards, 3), atol=1e-6)
    naive = bandits.ascend(bandits.NAIVE, logged, 5000, 0.2)
    np.testing.assert_allclose(naive, beta * rewards / (beta * rewards).sum(), atol=1e-6)


def test_a_step_of_sgd_is_the_coefficient_times_the_action_less_the_policy():
    start = np.array([[0.5, 0.3, 0.2], [0.2, 0.2, 0.6]])
    log = {"action": np.array([1]), "propensity": np.array([0.1]), "reward": np.array([2.0])}
    found = bandits.follow(TopKOffPolicyReinforce(2, None), [log, log], start, 0.01)
    for policy, after in zip(start, found):
        coefficient = policy[1] / 0.1 * 2 * (1 - policy[1]) * 2.0
        logits = np.log(policy) + 0.01 * coefficient * (np.eye(3)[1] - policy)
        np.testing.assert_allclose(after, np.exp(logits) / np.exp(logits).sum(), rtol=1e-12)


def test_a_log_becomes_shares_rewards_and_a_smoothed_logger():
    log = {"context": [0, 0, 0, 1], "action": [2, 2, 0, 1], "click": [1, 0, 1, 0]}
    found = slates.table_of({k: np.array(v) for k, v in log.items()}, 2, 3)
    np.testing.assert_allclose(found.shares, [[1 / 3, 0, 2 / 3], [0, 1, 0]])
    np.testing.assert_allclose(found.rewards, [[1, 0, 0.5], [0, 0, 0]])
    np.testing.assert_allclose(np.exp(found.log_beta[0]), np.array([1.1, 0.1, 2.1]) / 3.3)
    both = bandits.Logged.stacked([found, found])
    assert both.shares.shape == (4, 3)


def test_checks_of_the_biased_logger_fail_on_doctored_policies():
    bandit = BiasedLoggerBandit()
    goal, best = bandit.naive_policy, np.eye(10)[9] * 0.999972 + np.eye(10)[8] * 2.8e-5
    exact = {"naive": goal, "corrected": best}
    learned = {
        (name, rate): np.tile(policy, (4, 1))
        for name, policy in exact.items()
        for rate in (0.01, 0.0003)
    }
    assert all(held(bandits.biased_checks(exact, learned, goal, 5.5)))
    assert not any(held(bandits.biased_checks(exact, learned, goal, 5.6))[:1])
    swapped = {"naive": best, "corrected": goal}
    wrong = {
        (name, rate): np.tile(policy, (4, 1))
        for name, policy in swapped.items()
        for rate in (0.01, 0.0003)
    }
    assert not any(held(bandits.biased_checks(swapped, wrong, goal, 9.9)))


def test_checks_of_the_page_fail_on_doctored_policies():
    bandit = PageOfTwoBandit()
    exact = {k: bandit.best_policy(k) for k in (1, 2, 3, 4, 8, 16)}
    exact[2] = np.array([0.526311, 0.473678, *[1.1e-5 / 8] * 8])
    alpha = np.array([11 / 19, 8 / 19, *[0.0] * 8])
    learned = {
        (k, rate): np.tile(np.maximum(exact[k], 1e-6), (4, 1))
        for k in (1, 2)
        for rate in (0.01, 0.001)
    }
    assert all(held(bandits.page_checks(bandit, exact, alpha, learned)))
    uniform = np.full(10, 0.1)
    flat = {key: np.tile(uniform, (4, 1)) for key in learned}
    found = held(bandits.page_checks(bandit, dict.fromkeys(exact, uniform), uniform, flat))
    assert not any(found)


def test_the_cap_has_the_specifications_figures(tmp_path):
    outcome = BY_NAME["cap"].run(context(tmp_path))
    assert outcome.held
    assert [row[1:4] for row in outcome.rows][3] == ("0.4394", "0.0764", "1.599")
    found = dict.fromkeys(bandits.CAPS, (0.5, 1.0))
    assert not any(held(bandits.cap_checks(found, 0.6, [(found, 0.6)])))


def test_checks_of_the_slates_fail_on_doctored_values():
    good = {name: np.array([[*spec, 0.0][:4]] * 2) for name, spec in slates._SLATE_SPEC.items()}
    assert all(held(slates.slate_checks(good)))
    flat = {name: np.zeros((2, 4)) for name in good}
    assert not any(held(slates.slate_checks(flat)))
    rising = {**good, "K=16, c=e^3": good["K=16, c=e^3"] + 1}
    assert held(slates.slate_checks(rising)) == [False, True, True, True]


def test_checks_of_the_catalogue_fail_on_doctored_values():
    good = {key: np.array([0.97, 0.95]) for key in slates._LEARNERS}
    good[slates._NAIVE] = np.array([0.5, 0.5])
    assert all(held(slates.catalogue_checks(good, good)))
    low = {key: np.array([0.94, 0.95]) for key in slates._LEARNERS}
    assert held(slates.catalogue_checks(good, low)) == [True, True, False, False]


def test_a_summary_counts_what_the_intervals_cover():
    made = [Estimate(1.0, 0.5, 1.5, 10.0, 20), Estimate(3.0, 2.5, 3.5, 30.0, 20)]
    found = estimators.summary(made, 1.2)
    assert found["coverage"] == 0.5
    assert found["bias"] == pytest.approx(0.8)
    assert (found["width"], found["effective_sample_size"], found["logs"]) == (1.0, 20.0, 2)


def test_checks_of_the_estimators_fail_on_doctored_coverage():
    good = {"bias": 0.001, "std": 0.1, "coverage": 0.95, "logs": 500}
    found = {("pi", 500, name): good for name in estimators.GATED}
    assert all(held(estimators.coverage_checks(found)))
    assert not any(held(estimators.coverage_checks({})))
    for coverage in (0.89, 0.995):
        found["pi", 500, "SNIPS"] = {**good, "coverage": coverage}
        assert held(estimators.coverage_checks(found)) == [True, False, True, True, True]
    found["pi", 500, "SNIPS"] = good
    found["pi", 500, "DR"] = {**good, "bias": 0.05}
    assert held(estimators.coverage_checks(found)) == [True, True, True, True, False]


def test_obd_names_the_option_when_the_data_is_absent(tmp_path):
    with pytest.raises(InputError, match="--data"):
        BY_NAME["obd"].run(context(tmp_path, str(tmp_path / "nowhere")))


def test_obd_of_equal_policies_gives_the_click_rate(tmp_path):
    names = "timestamp,item_id,position,click,propensity_score"
    header = f",{names},{','.join(f'user_feature_{i}' for i in range(4))}"
    # Every item at every position equally often, by both policies: all weights are 1.
    cells = [(item, place) for item in range(4) for place in (1, 2, 3)] * 5
    lines = [
        f"{row},t,{item},{place},{int(row % 7 == 0)},0.25,a,b,c,d"
        for row, (item, place) in enumerate(cells)
    ]
    for policy in ("random", "bts"):
        for campaign in ("all", "men", "women"):
            folder = tmp_path / policy / campaign
            folder.mkdir(parents=True)
            text = "\n".join([header, *lines]) + "\n"
            (folder / f"{campaign}.csv.gz").write_bytes(gzip.compress(text.encode()))
    outcome = BY_NAME["obd"].run(context(tmp_path, str(tmp_path)))
    assert outcome.checks == []
    assert len(outcome.rows) == 3 * 2 * 4
    rate = f"{100 * 9 / 60:.3f}"
    assert {row[3].split()[0] for row in outcome.rows} == {rate}
    assert {row[5] for row in outcome.rows} == {"60"}
