"""Long timelines: users with a lasting taste, an emerging interest, and global popularity."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfrz.config import require

DAY = 86_400


class LongHistorySimulator:
    """Draws users' impressions over many days: what was shown, watched and liked.

    A user has a taste theta ~ Dirichlet(concentration) over T topics, and an emerging topic per
    day. The first is uniform; on each later day it is replaced, with `emerging_probability`, by a
    new uniform draw. The topic of an impression is drawn from global popularity (60 %), from the
    taste (25 %), or is the emerging topic of the day (15 %). With e = 1 if the topic equals the
    emerging topic of the day, however it was drawn:

        t        = ln(T theta[topic] + 0.1)
        like     ~ Bernoulli(sigmoid(-2.5 + 0.7 t + e))
        duration = exp(N(3, 0.8))
        dwell    = duration min(1.5, exp(N(-1 + 0.35 t + 0.5 e, 0.7)))

    where the second argument of N is the deviation. The formulas and their numbers are from the
    specification. It does not define the following: global popularity is a power law, with
    `(k + 1) ** -popularity_power` for topic k; a topic has `topic_items` items, with popularity
    `rank ** -item_power`; the impressions divide the day into equal parts, one in each.

    Args:
      topics: T.
      concentration: Concentration of the tastes; with lower values users like fewer topics.
      emerging_probability: Probability that the emerging topic is replaced on a day.
      taste_share: Share of impressions drawn from the taste.
      emerging_share: Share of impressions of the emerging topic; the rest is drawn from popularity.
      popularity_power: Skew of global popularity.
      topic_items: Number of items I per topic; topic k has the items k I ... k I + I - 1.
      item_power: Skew of a topic's items.

    Raises:
      ConfigError: An argument is out of range.

    Example:
      >>> drawn = LongHistorySimulator().sample(users=2, days=3, impressions_a_day=4, seed=0)
      >>> drawn["topic"].shape, bool((np.diff(drawn["time"]) >= 0).all())
      ((2, 12), True)

    Reference:
      Specification of DV365 (arXiv 2506.00450), (g) T1; the generator is ours, not the paper's.
    """

    def __init__(
        self,
        topics: int = 32,
        concentration: float = 0.15,
        emerging_probability: float = 0.33,
        taste_share: float = 0.25,
        emerging_share: float = 0.15,
        popularity_power: float = 1.0,
        topic_items: int = 50,
        item_power: float = 1.0,
    ) -> None:
        require(topics >= 2, "topics", "must be at least 2")
        require(concentration > 0, "concentration", "must be above 0")
        likely = 0 <= emerging_probability <= 1
        require(likely, "emerging_probability", "must be a probability")
        shares = min(taste_share, emerging_share) >= 0 and taste_share + emerging_share <= 1
        require(shares, "taste_share, emerging_share", "must be at least 0, their sum at most 1")
        require(topic_items >= 1, "topic_items", "must be at least 1")
        for name, power in (("popularity_power", popularity_power), ("item_power", item_power)):
            require(power >= 0, name, "must not be negative")
        self.topics, self.topic_items = topics, topic_items
        self.concentration, self.emerging_probability = concentration, emerging_probability
        self.taste_share, self.emerging_share = taste_share, emerging_share
        self.popularity_power, self.item_power = popularity_power, item_power

    @property
    def num_items(self) -> int:
        """Total number of items."""
        return self.topics * self.topic_items

    @property
    def popularity(self) -> NDArray[Any]:
        """Global popularity of the topics, `[topics]`."""
        return _power_law(self.topics, self.popularity_power)

    @property
    def item_probabilities(self) -> NDArray[Any]:
        """Probability of each item within its topic, `[topic_items]`."""
        return _power_law(self.topic_items, self.item_power)

    def tastes(self, users: int, seed: int, first_user: int = 0) -> NDArray[Any]:
        """Returns theta of the users that `sample` draws, float64 `[users, topics]`."""
        return np.stack(
            [self._taste(_generator(seed, first_user + row)) for row in range(users)]
        ).reshape(users, self.topics)

    def sample(
        self, users: int, days: int, impressions_a_day: int, seed: int, first_user: int = 0
    ) -> dict[str, NDArray[Any]]:
        """Samples users and their impressions, in time order.

        The draws of a user depend on the seed, the user's number, `days` and `impressions_a_day`,
        but not on the other users.

        Args:
          users: Number of users.
          days: Number of days per user; the first is day 0.
          impressions_a_day: Number of impressions per user and day.
          seed: Seed of all draws.
          first_user: Number of the first user.

        Returns:
          Arrays `[users, days * impressions_a_day]`: `topic` and `item` int64 from 0; `time` int64,
          seconds from the beginning of day 0, sorted; `like` and `emerging` (e above) bool;
          `duration` and `dwell` float64, seconds; `like_probability` float64, the true one.
        """
        require(min(users, days, impressions_a_day) >= 1, "users, days, impressions", "at least 1")
        events = days * impressions_a_day
        day = np.repeat(np.arange(days), impressions_a_day)
        topic = np.empty((users, events), np.int64)
        emerging = np.empty((users, events), np.int64)
        theta = np.empty((users, events))
        item, moment, liked = (np.empty((users, events)) for _ in range(3))
        length, watched = (np.empty((users, events)) for _ in range(2))
        popularity = self.popularity.cumsum()
        for row in range(users):
            rng = _generator(seed, first_user + row)
            taste = self._taste(rng)
            emerging[row] = self._emerging(rng, days)[day]
            source, which, item[row], moment[row], liked[row] = rng.random((5, events))
            length[row], watched[row] = rng.standard_normal((2, events))
            of_taste = source < self.taste_share
            of_day = ~of_taste & (source < self.taste_share + self.emerging_share)
            topic[row] = _pick(popularity, which)
            topic[row, of_taste] = _pick(taste.cumsum(), which[of_taste])
            topic[row, of_day] = emerging[row, of_day]
            theta[row] = taste[topic[row]]
        is_emerging = topic == emerging
        strength = np.log(self.topics * theta + 0.1)
        probability = 1.0 / (1.0 + np.exp(2.5 - 0.7 * strength - is_emerging))
        duration = np.exp(3.0 + 0.8 * length)
        watch = np.exp(-1.0 + 0.35 * strength + 0.5 * is_emerging + 0.7 * watched)
        part = np.tile(np.arange(impressions_a_day), days) + moment
        return {
            "topic": topic,
            "item": topic * self.topic_items + _pick(self.item_probabilities.cumsum(), item),
            "time": day * DAY + (part * (DAY / impressions_a_day)).astype(np.int64),
            "like": liked < probability,
            "duration": duration,
            "dwell": duration * np.minimum(1.5, watch),
            "emerging": is_emerging,
            "like_probability": probability,
        }

    def _taste(self, rng: np.random.Generator) -> NDArray[Any]:
        return rng.dirichlet(np.full(self.topics, self.concentration))

    def _emerging(self, rng: np.random.Generator, days: int) -> NDArray[Any]:
        """Returns the emerging topic of each day."""
        drawn = rng.integers(0, self.topics, days)
        anew = rng.random(days) < self.emerging_probability
        anew[0] = True
        return drawn[np.maximum.accumulate(np.where(anew, np.arange(days), 0))]


def _generator(seed: int, user: int) -> np.random.Generator:
    return np.random.default_rng([seed, 2506, user])


def _pick(bounds: NDArray[Any], chance: NDArray[Any]) -> NDArray[Any]:
    """Returns the places that numbers in [0, 1) fall on, given cumulated probabilities."""
    return np.minimum(np.searchsorted(bounds, chance, "right"), len(bounds) - 1)


def _power_law(count: int, power: float) -> NDArray[Any]:
    weights = np.arange(1, count + 1, dtype=np.float64) ** -power
    return weights / weights.sum()
