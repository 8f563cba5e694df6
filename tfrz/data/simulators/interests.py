"""Users with several interests: a Markov chain over clusters of items, with adjustable skew."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfrz.config import require


class InterestSimulator:
    """Draws users who move between their interests, and the items that they choose.

    There are C clusters of I items; cluster c has the items c I ... c I + I - 1. A user's set of
    interests S are M draws of clusters with replacement, with probability proportional to
    `(c + 1) ** -interest_power`; with a power of 0 they are M distinct clusters, drawn uniformly.
    The cluster of an event depends on the previous one, with n = |S|:

        from i in S:      stay alpha; each other j in S gamma / (n - 1); each j outside
                          (1 - alpha - gamma) / (C - n); if n = 1, stay alpha + gamma
        from i outside S: stay epsilon; each j in S (1 - epsilon) / n

    The first cluster is uniform over all C. The item has probability proportional to
    `rank ** -item_power` within its cluster.

    Args:
      clusters: C.
      cluster_items: I.
      interests: M.
      alpha: see above.
      gamma: see above.
      epsilon: see above.
      interest_power: Skew of interests, a in the specification.
      item_power: Skew of items, b in the specification.

    Raises:
      ConfigError: An argument is out of range.

    Example:
      >>> drawn = InterestSimulator().sample(users=2, length=5, seed=0)
      >>> drawn["item"].shape, drawn["interests"].shape
      ((2, 5), (2, 5))

    Reference:
      Mehta et al. (arXiv 2308.01563), specification 3.7: read in the authors' code.
    """

    def __init__(
        self,
        clusters: int = 5,
        cluster_items: int = 10,
        interests: int = 3,
        alpha: float = 0.6,
        gamma: float = 0.3,
        epsilon: float = 0.2,
        interest_power: float = 1.0,
        item_power: float = 0.5,
    ) -> None:
        require(clusters >= 2, "clusters", "must be at least 2")
        require(cluster_items >= 1, "cluster_items", "must be at least 1")
        require(1 <= interests < clusters, "interests", "must be 1 to clusters - 1")
        sound = min(alpha, gamma) >= 0 and alpha + gamma <= 1 and 0 <= epsilon <= 1
        require(sound, "alpha, gamma, epsilon", "must be probabilities, alpha + gamma at most 1")
        for name, power in (("interest_power", interest_power), ("item_power", item_power)):
            require(power >= 0, name, "must not be negative")
        self.clusters, self.cluster_items, self.interests = clusters, cluster_items, interests
        self.alpha, self.gamma, self.epsilon = alpha, gamma, epsilon
        self.interest_power, self.item_power = interest_power, item_power

    @property
    def num_items(self) -> int:
        """Total number of items."""
        return self.clusters * self.cluster_items

    @property
    def interest_probabilities(self) -> NDArray[Any]:
        """Probability of each cluster to be drawn as an interest, `[clusters]`."""
        return _power_law(self.clusters, self.interest_power)

    @property
    def item_probabilities(self) -> NDArray[Any]:
        """Probability of each item within its cluster, `[cluster_items]`."""
        return _power_law(self.cluster_items, self.item_power)

    def transitions(self, interests: NDArray[Any]) -> NDArray[Any]:
        """Returns the transition matrices of users.

        Args:
          interests: Boolean `[..., clusters]`, True for a user's interests.

        Returns:
          Probabilities, float64 `[..., clusters, clusters]`; rows are the previous cluster and
          sum to 1.
        """
        interests = np.asarray(interests, bool)
        inside = interests.astype(np.float64)
        n = inside.sum(-1)[..., None, None]
        into, outside = inside[..., None, :], 1.0 - inside[..., None, :]
        same = np.eye(self.clusters)
        stay = np.where(n > 1, self.alpha, self.alpha + self.gamma)
        others = self.gamma / np.maximum(n - 1, 1) * (n > 1)
        leave = (1 - self.alpha - self.gamma) / (self.clusters - n)
        from_inside = stay * same + others * into * (1 - same) + leave * outside
        from_outside = self.epsilon * same + (1 - self.epsilon) / n * into
        return np.where(interests[..., :, None], from_inside, from_outside)

    def sample(self, users: int, length: int, seed: int) -> dict[str, NDArray[Any]]:
        """Samples users and their events.

        Returns:
          `item` and `cluster`, int64 `[users, length]` from 0, and `interests`, bool
          `[users, clusters]`.
        """
        rng = np.random.default_rng([seed, 2308])
        chosen = np.zeros((users, self.clusters), bool)
        if self.interest_power:
            draws = rng.choice(
                self.clusters, (users, self.interests), p=self.interest_probabilities
            )
        else:
            draws = rng.random((users, self.clusters)).argsort(axis=1)[:, : self.interests]
        np.put_along_axis(chosen, draws, True, axis=1)
        bounds = self.transitions(chosen).cumsum(axis=-1)
        cluster = np.zeros((users, length), np.int64)
        chance = rng.random((users, length))
        cluster[:, 0] = rng.integers(0, self.clusters, users)
        rows = np.arange(users)
        for step in range(1, length):
            row = bounds[rows, cluster[:, step - 1]]
            reached = (chance[:, step, None] >= row).sum(axis=1)
            cluster[:, step] = np.minimum(reached, self.clusters - 1)
        within = rng.choice(self.cluster_items, (users, length), p=self.item_probabilities)
        return {
            "item": cluster * self.cluster_items + within,
            "cluster": cluster,
            "interests": chosen,
        }


def _power_law(count: int, power: float) -> NDArray[Any]:
    weights = np.arange(1, count + 1, dtype=np.float64) ** -power
    return weights / weights.sum()
