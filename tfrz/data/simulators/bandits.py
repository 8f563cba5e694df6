"""Bandits with known rewards: two with ten items, and slates in contexts with a click model."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfrz.config import require


class _Bandit:
    """Items with known rewards, and a logger that shows one at a time."""

    rewards: NDArray[Any]
    logger: NDArray[Any]
    _stream: int

    def sample(self, n: int, seed: int) -> dict[str, NDArray[Any]]:
        """Samples a log.

        Args:
          n: Number of rows.
          seed: Equal seeds return equal logs.

        Returns:
          `action` int64 from 0, `propensity` and `reward` float64, each `[n]`.

        Raises:
          ConfigError: If `n` is not positive.
        """
        return _log(self.logger, self.rewards, n, np.random.default_rng([seed, 1812, self._stream]))

    def value(self, policy: NDArray[Any]) -> float:
        """Expected reward of one draw of a policy `[items]`: `sum_a pi(a) r(a)`.

        Raises:
          ConfigError: If `policy` has the wrong shape.
        """
        return float(_policy(policy, self.rewards.shape) @ self.rewards)


class BiasedLoggerBandit(_Bandit):
    """A logger that prefers low rewards: `r(a_i) = i`, `beta(a_i) = (A + 1 - i) / sum_j j`.

    REINFORCE without importance weights maximises `sum_a beta(a) r(a) log pi(a)`, so it ends at
    `pi(a_i) ~ beta(a_i) r(a_i) = i (A + 1 - i)`; corrected, it ends at the best item.

    Args:
      items: A.

    Attributes:
      rewards: Reward of each item, 1..items; float64 `[items]`.
      logger: The logger's probability of each item, float64 `[items]`.

    Raises:
      ConfigError: An argument is out of range.

    Example:
      >>> bandit = BiasedLoggerBandit()
      >>> round(bandit.value(bandit.logger), 6), round(bandit.value(bandit.naive_policy), 6)
      (4.0, 5.5)

    Reference:
      Chen et al. (WSDM 2019, arXiv 1812.02353), section 6.1.1; specification, worked example 1.
    """

    _stream = 1

    def __init__(self, items: int = 10) -> None:
        require(items >= 2, "items", "must be at least 2")
        self.rewards = np.arange(1.0, items + 1.0)
        self.logger = _normalized(self.rewards[::-1])

    @property
    def naive_policy(self) -> NDArray[Any]:
        """The limit of REINFORCE without importance weights, float64 `[items]`."""
        return _normalized(self.logger * self.rewards)


class PageOfTwoBandit(_Bandit):
    """Pages of items with two nearly equal rewards (10, 9, 1, ..., 1), and a uniform logger.

    A page consists of K draws of a policy, without repetitions. Its expected reward is
    `sum_a r(a) (1 - (1 - pi(a))^K)`, for K = 2 largest at pi = (10/19, 9/19, 0, ..., 0).

    Args:
      items: Number of items, including the first two.

    Attributes:
      rewards: float64 `[items]`.
      logger: float64 `[items]`.

    Raises:
      ConfigError: An argument is out of range.

    Example:
      >>> bandit = PageOfTwoBandit()
      >>> print(bandit.best_policy(draws=2)[:3].round(6))
      [0.526316 0.473684 0.      ]
      >>> round(bandit.page_value(bandit.best_policy(draws=2), draws=2), 6)
      14.263158

    Reference:
      Chen et al. (WSDM 2019, arXiv 1812.02353), section 6.1.2; specification, worked example 2.
    """

    _stream = 2

    def __init__(self, items: int = 10) -> None:
        require(items >= 3, "items", "must be at least 3")
        self.rewards = np.ones(items)
        self.rewards[:2] = 10.0, 9.0
        self.logger = np.full(items, 1.0 / items)

    def page_value(self, policy: NDArray[Any], draws: int = 2) -> float:
        """Expected reward of `draws` draws of a policy `[items]`, without repetitions.

        Raises:
          ConfigError: If `policy` has the wrong shape, or `draws` is not positive.
        """
        return float(inclusion(_policy(policy, self.rewards.shape), draws) @ self.rewards)

    def best_policy(self, draws: int = 2) -> NDArray[Any]:
        """The policy `[items]` with the largest `page_value`."""
        return best_policy(self.rewards, draws)


class ContextualSlates:
    """Contexts and items with clicks by their dot product, and a logger that prefers popular items.

    With x and y from N(0, I_D), and popularity p of an item from N(0, 1):

        P(click | context, item) = sigmoid(1.8 x.y / sqrt(D) - 3)
        beta(item | context) ~ exp(0.5 x.y / sqrt(D) + 1.5 p)

    Contexts are equally frequent; the logger shows one item at a time. A page of several items
    is worth the sum of their click probabilities, and an item shown twice counts once.

    Args:
      contexts: C.
      items: A.
      dim: D.
      seed: Seed of x, y and p; the seed of the log is an argument of `sample`.

    Attributes:
      context_features: x, float64 `[contexts, dim]`.
      item_features: y, float64 `[items, dim]`.
      popularity: p, float64 `[items]`.
      click_probabilities: float64 `[contexts, items]`.
      logger: beta, float64 `[contexts, items]`.

    Raises:
      ConfigError: An argument is out of range.

    Example:
      >>> slates = ContextualSlates(seed=0)
      >>> log = slates.sample(n=3, seed=0)
      >>> sorted(log), log["action"].shape
      (['action', 'click', 'context', 'propensity'], (3,))
      >>> slates.value(slates.logger) < slates.value(slates.best_policy(draws=1))
      True

    Reference:
      Specification of top-K REINFORCE (Chen et al., arXiv 1812.02353), section (g), S4.
    """

    def __init__(self, contexts: int = 20, items: int = 200, dim: int = 8, seed: int = 0) -> None:
        for name, size, least in (("contexts", contexts, 1), ("items", items, 2), ("dim", dim, 1)):
            require(size >= least, name, f"must be at least {least}")
        rng = np.random.default_rng([seed, 1812, 4])
        self.context_features = rng.normal(size=(contexts, dim))
        self.item_features = rng.normal(size=(items, dim))
        self.popularity = rng.normal(size=items)
        affinity = self.context_features @ self.item_features.T / np.sqrt(dim)
        self.click_probabilities = 1.0 / (1.0 + np.exp(3.0 - 1.8 * affinity))
        logits = 0.5 * affinity + 1.5 * self.popularity
        self.logger = _normalized(np.exp(logits - logits.max(axis=1, keepdims=True)))

    @property
    def num_contexts(self) -> int:
        """The number of contexts, C."""
        return int(self.logger.shape[0])

    @property
    def num_items(self) -> int:
        """The number of items, A."""
        return int(self.logger.shape[1])

    def sample(self, n: int, seed: int) -> dict[str, NDArray[Any]]:
        """Samples a log of single items.

        Args:
          n: Number of rows.
          seed: Equal seeds return equal logs.

        Returns:
          `context` and `action` int64 from 0, `propensity` float64, `click` float64 of 0 and 1,
          each `[n]`.

        Raises:
          ConfigError: If `n` is not positive.
        """
        require(n >= 1, "n", "must be at least 1")
        rng = np.random.default_rng([seed, 1812, 5])
        context = rng.integers(0, self.num_contexts, n)
        action = _draw(self.logger, context, rng)
        chance = self.click_probabilities[context, action]
        return {
            "context": context,
            "action": action,
            "propensity": self.logger[context, action],
            "click": (rng.random(n) < chance).astype(np.float64),
        }

    def value(self, policy: NDArray[Any]) -> float:
        """Expected clicks of one draw of a policy `[contexts, items]`.

        Raises:
          ConfigError: If `policy` has the wrong shape.
        """
        return self.page_value(policy, 1)

    def page_value(self, policy: NDArray[Any], draws: int) -> float:
        """Expected clicks of `draws` draws with replacement, without repetitions.

        Formula: `mean_x sum_a P(click | x, a) (1 - (1 - pi(a | x))^draws)`.

        Args:
          policy: `[contexts, items]`.
          draws: K.

        Raises:
          ConfigError: If `policy` has the wrong shape, or `draws` is not positive.
        """
        shown = inclusion(_policy(policy, self.logger.shape), draws)
        return float((shown * self.click_probabilities).sum(axis=1).mean())

    def top_value(self, scores: NDArray[Any], k: int) -> float:
        """Expected clicks of the k items with the highest scores; ties go to the first.

        Args:
          scores: A policy or logits, `[contexts, items]`.
          k: Number of items of a page.

        Raises:
          ConfigError: If `scores` has the wrong shape, or `k` is not 1 to the number of items.
        """
        require(1 <= k <= self.num_items, "k", f"must be 1 to {self.num_items}")
        order = np.argsort(-_policy(scores, self.logger.shape), axis=1, kind="stable")[:, :k]
        clicks = np.take_along_axis(self.click_probabilities, order, axis=1)
        return float(clicks.sum(axis=1).mean())

    @property
    def logger_value(self) -> float:
        """Expected clicks of one draw of the logger."""
        return self.value(self.logger)

    def oracle_value(self, k: int) -> float:
        """Expected clicks of the best k items, the maximum over pages of k items.

        Raises:
          ConfigError: `k` is not 1 to the number of items.
        """
        return self.top_value(self.click_probabilities, k)

    def best_policy(self, draws: int) -> NDArray[Any]:
        """The policy `[contexts, items]` with the largest `page_value`."""
        return best_policy(self.click_probabilities, draws)

    def entropy(self, policy: NDArray[Any]) -> float:
        """Returns the mean entropy of a policy `[contexts, items]` over the contexts, in nats.

        Raises:
          ConfigError: If `policy` has the wrong shape.
        """
        p = _policy(policy, self.logger.shape)
        logs = np.log(np.where(p > 0, p, 1.0))
        return float(-(p * logs).sum(axis=1).mean())


def inclusion(policy: NDArray[Any], draws: int) -> NDArray[Any]:
    """Probability that an item is among `draws` draws with replacement: `1 - (1 - pi)^K`.

    Args:
      policy: Probabilities of any shape.
      draws: K.

    Returns:
      Probabilities, float64, with the shape of `policy`.

    Raises:
      ConfigError: `draws` is not positive.

    Example:
      >>> print(inclusion(np.array([0.5, 0.1, 0.0, 1.0]), 2))
      [0.75 0.19 0.   1.  ]

    Reference:
      Chen et al. (arXiv 1812.02353), section 4.3; alpha in the specification, 3.6.
    """
    require(draws >= 1, "draws", "must be at least 1")
    policy = np.asarray(policy, np.float64)
    if draws == 1:
        return policy
    # Computing 1 - (1 - pi)^K directly loses precision for small pi.
    with np.errstate(divide="ignore"):
        return -np.expm1(draws * np.log1p(-policy))


def best_policy(rewards: NDArray[Any], draws: int) -> NDArray[Any]:
    """The policy with the largest expected reward of `draws` draws without repetitions.

    It maximises `sum_a r_a (1 - (1 - pi_a)^K)`, a concave function, so that on its support
    `r_a K (1 - pi_a)^(K - 1) = mu`: there `1 - pi_a = t r_a^(-1 / (K - 1))`, with t from
    `sum_a pi_a = 1`, and the support is as many of the best items as leave every pi_a positive.

    Args:
      rewards: positive, `[..., items]`.
      draws: K; 1 selects the best item (ties go to the first).

    Returns:
      Policy, float64 `[..., items]`; rows sum to 1.

    Raises:
      ConfigError: `draws` or a reward is not positive.

    Example:
      >>> print(best_policy(np.array([10.0, 9.0, 1.0]), 3).round(6))
      [0.513167 0.486833 0.      ]

    Reference:
      Specification of top-K REINFORCE (Chen et al., arXiv 1812.02353), 3.6.
    """
    require(draws >= 1, "draws", "must be at least 1")
    rewards = np.asarray(rewards, np.float64)
    require(bool((rewards > 0).all()), "rewards", "must be positive")
    order = np.argsort(-rewards, axis=-1, kind="stable")
    policy = np.zeros(rewards.shape)
    if draws == 1:
        np.put_along_axis(policy, order[..., :1], 1.0, axis=-1)
        return policy
    ranked = np.take_along_axis(rewards, order, axis=-1)
    # Relative to the best, so that the power does not overflow.
    scale = (ranked / ranked[..., :1]) ** (-1.0 / (draws - 1))
    m = np.arange(1, rewards.shape[-1] + 1)
    t = (m - 1) / scale.cumsum(axis=-1)
    size = (t * scale < 1.0).sum(axis=-1, keepdims=True)
    t = np.take_along_axis(t, size - 1, axis=-1)
    np.put_along_axis(policy, order, np.where(m <= size, 1.0 - t * scale, 0.0), axis=-1)
    return policy


def _normalized(weights: NDArray[Any]) -> NDArray[Any]:
    return weights / weights.sum(axis=-1, keepdims=True)


def _policy(policy: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    policy = np.asarray(policy, np.float64)
    require(policy.shape == shape, "policy", f"expected the shape {shape}, got {policy.shape}")
    return policy


def _draw(policy: NDArray[Any], rows: NDArray[Any], rng: np.random.Generator) -> NDArray[Any]:
    """Draws an action of `policy` `[contexts, items]` for each of `rows` in a single search.

    The cumulated probabilities of row c lie between c and c + 1 on a line.
    """
    contexts, items = policy.shape
    line = (np.arange(contexts)[:, None] + policy.cumsum(axis=1)).ravel()
    found = np.searchsorted(line, rows + rng.random(len(rows)), side="right") - rows * items
    return np.clip(found, 0, items - 1)


def _log(
    logger: NDArray[Any], rewards: NDArray[Any], n: int, rng: np.random.Generator
) -> dict[str, NDArray[Any]]:
    require(n >= 1, "n", "must be at least 1")
    action = _draw(logger[None], np.zeros(n, np.int64), rng)
    return {"action": action, "propensity": logger[action], "reward": rewards[action]}
