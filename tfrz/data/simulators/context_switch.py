"""Events that depend on a lasting taste or on the previous item, according to the page."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

CLUSTERS = 10
CLUSTER_ITEMS = 10
HOME_ITEMS = CLUSTERS * CLUSTER_ITEMS
DETAIL_ITEMS = 100
NUM_ITEMS = HOME_ITEMS + DETAIL_ITEMS
TASTE = 0.6
SUCCESSION = 0.8


class ContextSwitchSimulator:
    """Draws users whose next item depends on their taste (home) or on their last item (detail).

    Every user has a favourite cluster of ten items. The page of each event is home or detail with
    probability 1/2; the first is home. On the home page the item is from the favourite cluster with
    probability 0.6, otherwise any of 1..100. On a detail page it is `successor[previous item]`, one
    of 101..200, with probability 0.8, otherwise any of 101..200.

    Args:
      seed: Seed of the successors.

    Example:
      >>> drawn = ContextSwitchSimulator(seed=0).sample(users=2, length=5, seed=1)
      >>> drawn["item"].shape, bool(drawn["detail"][0, 0])
      ((2, 5), False)
    """

    def __init__(self, seed: int = 0) -> None:
        rng = np.random.default_rng([seed, 1902])
        low, high = HOME_ITEMS + 1, NUM_ITEMS + 1
        self.successor = np.concatenate([[0], rng.integers(low, high, NUM_ITEMS)])

    def sample(self, users: int, length: int, seed: int) -> dict[str, NDArray[Any]]:
        """Samples `item` and `detail` (bool) `[users, length]`, and `favourite` `[users]`."""
        rng = np.random.default_rng([seed, 8588])
        favourite = rng.integers(0, CLUSTERS, users)
        detail = rng.random((users, length)) < 0.5
        detail[:, 0] = False
        liked = CLUSTER_ITEMS * favourite[:, None] + rng.integers(
            1, CLUSTER_ITEMS + 1, (users, length)
        )
        any_home = rng.integers(1, HOME_ITEMS + 1, (users, length))
        any_detail = rng.integers(HOME_ITEMS + 1, NUM_ITEMS + 1, (users, length))
        chance = rng.random((users, length))
        home = np.where(chance < TASTE, liked, any_home)
        item = np.zeros((users, length), np.int64)
        before = np.zeros(users, np.int64)
        for step in range(length):
            followed = chance[:, step] < SUCCESSION
            on_detail = np.where(followed, self.successor[before], any_detail[:, step])
            before = np.where(detail[:, step], on_detail, home[:, step])
            item[:, step] = before
        return {"item": item, "detail": detail, "favourite": favourite}
