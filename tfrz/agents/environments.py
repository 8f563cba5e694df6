"""The bandits of `tfrz.data.simulators.bandits` as environments and logs for TF-Agents."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from tf_agents.bandits.environments import bandit_py_environment
from tf_agents.specs import array_spec
from tf_agents.trajectories import time_step as ts
from tf_agents.trajectories import trajectory
from tf_agents.trajectories.policy_step import PolicyInfo

from tfrz.config import require
from tfrz.data.simulators.bandits import BiasedLoggerBandit, ContextualSlates, PageOfTwoBandit

Simulator = BiasedLoggerBandit | PageOfTwoBandit | ContextualSlates
Observation = Literal["id", "one_hot"]


class BanditEnvironment(bandit_py_environment.BanditPyEnvironment):
    """A simulated bandit for the drivers of TF-Agents.

    An observation is the context, an action is one item, numbered from 0. The reward is that of the
    item (`BiasedLoggerBandit`, `PageOfTwoBandit`: deterministic, in one context), or 1 for a click
    drawn with the probability of the item in the context (`ContextualSlates`).

    A step adds one item to a page: `page` consecutive steps have the same context, and an item that
    is on the page already earns 0. Each step is an episode, as in all bandits of TF-Agents, so a
    policy draws every place of the page from the same state: a page is `page` draws of the policy
    without repetitions, and the expected sum of its rewards is `page_value(policy, page)` of the
    simulator. Use `page` above 1 for this evaluation of a policy; train with `page` = 1, where
    rewards depend on the item only.

    Actions that are whole slates, and the position of an item on its page, are not supported.

    Args:
      simulator: one of `tfrz.data.simulators.bandits`.
      batch_size: number of parallel bandits, each with its own contexts.
      page: number of items on a page.
      observation: `id` (int32 scalar from 0, for `TopKReinforceAgent`), or `one_hot` (float32
        `[contexts]`, for the bandit agents of TF-Agents).
      seed: seed of contexts and clicks.
      name: name of the environment.

    Raises:
      ConfigError: an argument is out of its range, or an action is not one of the items.

    Example:
      >>> environment = BanditEnvironment(BiasedLoggerBandit(), batch_size=2)
      >>> _ = environment.reset()
      >>> print(environment.step(np.array([0, 9])).reward)
      [ 1. 10.]

    Reference:
      Chen et al. (arXiv 1812.02353), sections 4.3 and 6.1.
    """

    def __init__(
        self,
        simulator: Simulator,
        batch_size: int = 1,
        page: int = 1,
        observation: Observation = "id",
        seed: int = 0,
        name: str | None = None,
    ) -> None:
        require(batch_size >= 1, "batch_size", "must be at least 1")
        require(page >= 1, "page", "must be at least 1")
        self._rewards = _rewards(simulator)
        self._clicks = isinstance(simulator, ContextualSlates)
        self._batch_size, self._page, self._kind = batch_size, page, observation
        self._rng = np.random.default_rng([seed, 1812, 6])
        contexts, items = self._rewards.shape
        super().__init__(
            _observation_spec(observation, contexts),
            array_spec.BoundedArraySpec((), np.int32, 0, items - 1, name="action"),
            array_spec.ArraySpec((), np.float32, name="reward"),
            name=name,
        )
        self._turn_page()

    @property
    def batched(self) -> bool:
        """Whether observations and actions have a batch dimension: always."""
        return True

    @property
    def batch_size(self) -> int:
        """The number of parallel bandits."""
        return self._batch_size

    def _turn_page(self) -> None:
        contexts, items = self._rewards.shape
        self._place = 0
        self._context = self._rng.integers(0, contexts, self._batch_size)
        self._shown = np.zeros((self._batch_size, items), bool)

    def _reset(self) -> ts.TimeStep:
        self._turn_page()
        return super()._reset()

    def _observe(self) -> NDArray[Any]:
        return _observed(self._context, self._kind, len(self._rewards))

    def _apply_action(self, action: NDArray[Any]) -> NDArray[Any]:
        items = self._rewards.shape[1]
        within = bool(np.all((action >= 0) & (action < items)))
        require(within, "action", f"must be 0 to {items - 1}")
        rows = np.arange(self._batch_size)
        rewards = self._rewards[self._context, action]
        if self._clicks:
            rewards = self._rng.random(self._batch_size) < rewards
        earned = np.where(self._shown[rows, action], 0.0, rewards).astype(np.float32)
        self._shown[rows, action] = True
        self._place += 1
        if self._place == self._page:
            self._turn_page()
        return earned


def logged_experience(
    simulator: Simulator, n: int, seed: int = 0, observation: Observation = "id"
) -> trajectory.Trajectory:
    """A log of the logger of a simulator, as an experience for `agent.train`.

    Every row is one action in an episode of one step; `policy_info.log_probability` is the
    logarithm of the propensity of the logger.

    Args:
      simulator: one of `tfrz.data.simulators.bandits`.
      n: number of rows.
      seed: equal seeds return equal logs.
      observation: as in `BanditEnvironment`.

    Returns:
      A `Trajectory` with tensors `[n, 1]` (`[n, 1, contexts]` for one-hot observations).

    Raises:
      ConfigError: an argument is out of its range.

    Example:
      >>> experience = logged_experience(BiasedLoggerBandit(), n=3)
      >>> experience.reward.shape, experience.is_last().numpy().all()
      (TensorShape([3, 1]), True)
    """
    contexts = len(_rewards(simulator))
    _observation_spec(observation, contexts)
    log = simulator.sample(n, seed)
    context = log.get("context", np.zeros(n, np.int64))

    def column(values: NDArray[Any], dtype: tf.DType) -> tf.Tensor:
        return tf.constant(values, dtype)[:, None]

    reward = log["click"] if "click" in log else log["reward"]
    return trajectory.Trajectory(
        step_type=column(np.full(n, ts.StepType.FIRST), tf.int32),
        observation=tf.constant(_observed(context, observation, contexts))[:, None],
        action=column(log["action"], tf.int32),
        policy_info=PolicyInfo(column(np.log(log["propensity"]), tf.float32)),
        next_step_type=column(np.full(n, ts.StepType.LAST), tf.int32),
        reward=column(reward, tf.float32),
        discount=column(np.zeros(n), tf.float32),
    )


def _rewards(simulator: Simulator) -> NDArray[Any]:
    """Expected reward of each item in each context, `[contexts, items]`."""
    known = (BiasedLoggerBandit, PageOfTwoBandit, ContextualSlates)
    names = ", ".join(kind.__name__ for kind in known)
    require(isinstance(simulator, known), "simulator", f"must be one of {names}")
    if isinstance(simulator, ContextualSlates):
        return simulator.click_probabilities
    return simulator.rewards[None]


def _observation_spec(kind: str, contexts: int) -> array_spec.ArraySpec:
    require(kind in ("id", "one_hot"), "observation", "must be id or one_hot")
    if kind == "id":
        return array_spec.BoundedArraySpec((), np.int32, 0, contexts - 1, name="observation")
    return array_spec.ArraySpec((contexts,), np.float32, name="observation")


def _observed(context: NDArray[Any], kind: str, contexts: int) -> NDArray[Any]:
    if kind == "id":
        return context.astype(np.int32)
    return np.eye(contexts, dtype=np.float32)[context]
