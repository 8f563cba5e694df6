"""The simulated bandits as environments: what they show, what they pay, and in drivers."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from tests.lazy import lazy
from tfrz.data.simulators.bandits import BiasedLoggerBandit, ContextualSlates, PageOfTwoBandit
from tfrz.errors import ConfigError

pytestmark = pytest.mark.needs("tf_agents")

agents = lazy("tfrz.agents")
array_spec = lazy("tf_agents.specs.array_spec")
dynamic_step_driver = lazy("tf_agents.drivers.dynamic_step_driver")
environments = lazy("tfrz.agents.environments")
random_tf_policy = lazy("tf_agents.policies.random_tf_policy")
tf_py_environment = lazy("tf_agents.environments.tf_py_environment")

SLATES = ContextualSlates(contexts=4, items=6, seed=1)


def _actions(environment: agents.BanditEnvironment, rng: np.random.Generator) -> np.ndarray:
    items = int(environment.action_spec().maximum) + 1
    return rng.integers(0, items, environment.batch_size)


@pytest.mark.parametrize("observation", ["id", "one_hot"])
@pytest.mark.parametrize("simulator", [BiasedLoggerBandit(), PageOfTwoBandit(), SLATES])
def test_what_it_gives_is_what_its_specs_say(simulator, observation):
    environment = agents.BanditEnvironment(simulator, batch_size=3, observation=observation)
    spec = array_spec.add_outer_dims_nest(environment.time_step_spec(), (3,))
    rng = np.random.default_rng(0)
    assert array_spec.check_arrays_nest(environment.reset(), spec)
    for _ in range(5):
        step = environment.step(_actions(environment, rng))
        assert array_spec.check_arrays_nest(step, spec)


def test_rewards_without_chance_are_those_of_the_items():
    environment = agents.BanditEnvironment(PageOfTwoBandit(), batch_size=3)
    environment.reset()
    step = environment.step(np.array([0, 1, 7]))
    np.testing.assert_array_equal(step.reward, np.float32([10, 9, 1]))
    assert step.is_last().all()
    # On pages of one the same item pays again.
    np.testing.assert_array_equal(environment.step(np.array([0, 1, 7])).reward, step.reward)


def test_clicks_and_contexts_have_their_probabilities():
    environment = agents.BanditEnvironment(SLATES, batch_size=4000)
    context, rng = environment.reset().observation, np.random.default_rng(0)
    clicks, shown = np.zeros((4, 6)), np.zeros((4, 6))
    for _ in range(10):
        action = _actions(environment, rng)
        step = environment.step(action)
        np.add.at(shown, (context, action), 1)
        np.add.at(clicks, (context, action), step.reward)
        context = step.observation
    np.testing.assert_allclose(shown / shown.sum(), 1 / 24, atol=0.004)
    error = np.sqrt(SLATES.click_probabilities / shown)
    assert (np.abs(clicks / shown - SLATES.click_probabilities) < 4.5 * error).all()


def test_a_page_keeps_its_context_and_a_repeated_item_earns_nothing():
    environment = agents.BanditEnvironment(PageOfTwoBandit(), batch_size=2, page=3)
    environment.reset()
    earned = [environment.step(np.array(a)).reward.tolist() for a in ([0, 0], [0, 1], [1, 0])]
    assert earned == [[10, 10], [0, 9], [9, 0]]
    assert environment.step(np.array([0, 0])).reward.tolist() == [10, 10]
    environment.reset()
    assert environment.step(np.array([0, 0])).reward.tolist() == [10, 10]

    environment = agents.BanditEnvironment(SLATES, batch_size=50, page=3)
    seen = [environment.reset().observation]
    seen += [environment.step(np.zeros(50, int)).observation for _ in range(3)]
    assert (seen[0] == seen[1]).all() and (seen[1] == seen[2]).all()
    assert (seen[2] != seen[3]).any()


def test_what_a_page_earns_is_the_page_value_of_the_simulator():
    bandit, rng = PageOfTwoBandit(), np.random.default_rng(0)
    policy = np.array([0.4, 0.3, *([0.3 / 8] * 8)])
    environment = agents.BanditEnvironment(bandit, batch_size=20_000, page=2)
    environment.reset()
    draws = rng.choice(10, size=(2, 20_000), p=policy)
    earned = sum(environment.step(draw).reward for draw in draws)
    assert abs(earned.mean() - bandit.page_value(policy, 2)) < 4 * earned.std() / np.sqrt(20_000)


def test_equal_seeds_give_equal_runs():
    def run(seed):
        environment, rng = agents.BanditEnvironment(SLATES, 8, seed=seed), np.random.default_rng(0)
        steps = [environment.reset()]
        steps += [environment.step(_actions(environment, rng)) for _ in range(5)]
        return np.array([[s.observation, s.reward] for s in steps])

    np.testing.assert_array_equal(run(3), run(3))
    assert (run(3) != run(4)).any()


@pytest.mark.parametrize("observation", ["id", "one_hot"])
def test_a_driver_of_tf_agents_runs_in_it(observation):
    environment = tf_py_environment.TFPyEnvironment(
        agents.BanditEnvironment(SLATES, batch_size=5, observation=observation)
    )
    policy = random_tf_policy.RandomTFPolicy(
        environment.time_step_spec(), environment.action_spec()
    )
    seen = []
    dynamic_step_driver.DynamicStepDriver(environment, policy, [seen.append], num_steps=20).run()
    assert len(seen) == 4
    assert all(step.is_first().numpy().all() and step.is_last().numpy().all() for step in seen)
    assert seen[0].observation.shape == ((5,) if observation == "id" else (5, 4))


def test_a_log_is_the_loggers():
    experience = agents.logged_experience(SLATES, n=20, seed=5)
    log = SLATES.sample(20, seed=5)
    np.testing.assert_array_equal(experience.observation[:, 0], log["context"])
    np.testing.assert_array_equal(experience.action[:, 0], log["action"])
    np.testing.assert_array_equal(experience.reward[:, 0], log["click"])
    np.testing.assert_allclose(
        np.exp(experience.policy_info.log_probability[:, 0]), log["propensity"], rtol=1e-6
    )
    assert agents.logged_experience(SLATES, 3, observation="one_hot").observation.shape == (3, 1, 4)
    assert (
        agents.logged_experience(BiasedLoggerBandit(), 3).observation.numpy().tolist() == [[0]] * 3
    )


@pytest.mark.parametrize(
    ("build", "line"),
    [
        (lambda: agents.BanditEnvironment(SLATES, batch_size=0), "batch_size: must be at least 1"),
        (lambda: agents.BanditEnvironment(SLATES, page=0), "page: must be at least 1"),
        (
            lambda: agents.BanditEnvironment(SLATES, observation="x"),
            "observation: must be id or one_hot",
        ),
        (
            lambda: agents.BanditEnvironment(object()),
            "simulator: must be one of BiasedLoggerBandit",
        ),
        (lambda: agents.logged_experience(SLATES, 0), "n: must be at least 1"),
        (
            lambda: agents.logged_experience(SLATES, 1, observation=""),
            "observation: must be id or one",
        ),
    ],
)
def test_bad_arguments_are_refused_in_one_line(build, line):
    with pytest.raises(ConfigError, match=line) as caught:
        build()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("action", [-1, 6])
def test_an_action_that_is_no_item_is_refused(action):
    environment = agents.BanditEnvironment(SLATES)
    environment.reset()
    with pytest.raises(ConfigError, match="action: must be 0 to 5"):
        environment.step(np.array([action]))


def test_without_tf_agents_the_extra_is_named():
    code = "import sys; sys.modules['tf_agents'] = None; import tfrz.agents"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    last = done.stderr.strip().splitlines()[-1]
    assert last == (
        "ImportError: tfrz.agents needs TF-Agents: docs/install.md says how it is installed"
    )
