"""Simulated histories, sliced by the product's own slicing, and a logistic regression on them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pyarrow as pa

from tfrz.data.simulators.long_histories import DAY, LongHistorySimulator
from tfrz.data.timelines.slicing import Slice, SliceSpecification, slice_user

TOPICS = 32
DAYS = 130
IMPRESSIONS = 30
TRAIN_DAYS = (118, 119, 120)
TEST_DAY = 125
# The last 60 impressions are those of so many whole days.
_RECENT_DAYS = 60 / IMPRESSIONS
_BLOCK = 250

RECENT = (
    Slice("recent views", "implicit", "topic", "topics", days=_RECENT_DAYS),
    Slice("recent likes", "explicit", "topic", "topics", days=_RECENT_DAYS),
)
SIX = (
    Slice("like", "explicit", "topic", "topics"),
    Slice("all", "implicit", "topic", "topics"),
    Slice("dwell >= 15", "implicit", "topic", "topics", dwell=(15.0, None)),
    Slice("dwell < 3", "implicit", "topic", "topics", dwell=(None, 3.0)),
    Slice("ratio > 0.5", "implicit", "topic", "topics", ratio=(0.5, None)),
    Slice("score > 0.9", "implicit", "topic", "topics", score=(0.9, None), weight="watch_score"),
)
TIMED = (
    Slice("like, 3 days", "explicit", "topic", "topics", days=3.0),
    Slice("all, 3 days", "implicit", "topic", "topics", days=3.0),
    Slice("like, 7 days", "explicit", "topic", "topics", days=7.0),
    Slice("all, 7 days", "implicit", "topic", "topics", days=7.0),
)


def timeline(drawn: dict[str, np.ndarray], row: int) -> pa.Table:
    """Returns the events of one user: impressions, and a like for each liked one."""
    liked = np.flatnonzero(drawn["like"][row])
    count = len(drawn["time"][row])
    place = np.concatenate([np.arange(count), liked])
    explicit = np.arange(len(place)) >= count
    order = np.argsort(drawn["time"][row][place], kind="stable")
    place, explicit = place[order], explicit[order]
    seconds = {
        name: np.where(explicit, np.nan, drawn[name][row][place]) for name in ("duration", "dwell")
    }
    return pa.table(
        {
            "time": drawn["time"][row][place],
            "explicit": explicit,
            "action": _named(explicit.astype(np.int32), [b"impression", b"like"]),
            "topic": _named(
                drawn["topic"][row][place].astype(np.int32), [b"%d" % t for t in range(TOPICS)]
            ),
            **seconds,
            "value": np.full(len(place), np.nan),
        }
    )


def _named(codes: np.ndarray, names: list[bytes]) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(pa.array(codes), pa.array(names, pa.binary()))


class Histories:
    """Sliced histories of many users, and the impressions that are predicted from them.

    Args:
      users: number of users.
      seed: of the simulator.
      wanted: specifications, each with the days at whose beginning users are sliced by it.
      days: of the impressions to predict.
    """

    def __init__(
        self,
        users: int,
        seed: int,
        wanted: Sequence[tuple[SliceSpecification, Iterable[int]]],
        days: Sequence[int] = (*TRAIN_DAYS, TEST_DAY),
    ) -> None:
        cells = [(spec, day) for spec, some in wanted for day in sorted(set(some))]
        self._weights = {
            (spec.fingerprint, day): np.zeros((users, len(spec.slices), TOPICS), np.float32)
            for spec, day in cells
        }
        self._topics = {day: np.zeros((users, IMPRESSIONS), np.int64) for day in days}
        self._likes = {day: np.zeros((users, IMPRESSIONS)) for day in days}
        for user, drawn, row in _users(users, seed):
            table = timeline(drawn, row)
            for spec, day in cells:
                into = self._weights[spec.fingerprint, day][user]
                for name, one in slice_user(spec, table, float(day * DAY)).items():
                    terms = [int(term) for term in one.terms]
                    into[np.ix_(spec.tables[name], terms)] = one.floats
            for day in days:
                mine = slice(day * IMPRESSIONS, (day + 1) * IMPRESSIONS)
                self._topics[day][user] = drawn["topic"][row, mine]
                self._likes[day][user] = drawn["like"][row, mine]

    def weights(self, spec: SliceSpecification, day: int) -> np.ndarray:
        """The sums of weights at the beginning of a day, `[users, slices, topics]`."""
        return self._weights[spec.fingerprint, day]

    def candidates(self, day: int) -> tuple[np.ndarray, np.ndarray]:
        """Topics of a day's impressions and whether liked, each `[users, impressions]`."""
        return self._topics[day], self._likes[day]

    def features(self, spec: SliceSpecification, sliced: int, day: int) -> np.ndarray:
        """Features of a day's impressions from slices as of another, `[impressions, slices]`.

        They are ln((w + 1) / (W + topics)): w of the candidate's topic, W of all.
        """
        weights = self.weights(spec, sliced).astype(np.float64)
        shares = np.log((weights + 1) / (weights.sum(axis=2, keepdims=True) + TOPICS))
        topics, _ = self.candidates(day)
        found = np.take_along_axis(shares, topics[:, None, :], axis=2)
        return found.transpose(0, 2, 1).reshape(-1, len(spec.slices))

    def likes(self, days: Iterable[int]) -> np.ndarray:
        """Returns the outcomes of the impressions of several days, concatenated."""
        return np.concatenate([self.candidates(day)[1].ravel() for day in days])


def _users(users: int, seed: int) -> Iterator[tuple[int, dict[str, np.ndarray], int]]:
    simulator = LongHistorySimulator(topics=TOPICS)
    for first in range(0, users, _BLOCK):
        count = min(_BLOCK, users - first)
        drawn = simulator.sample(count, DAYS, IMPRESSIONS, seed, first)
        for row in range(count):
            yield first + row, drawn, row


def fit_logistic(features: np.ndarray, labels: np.ndarray, steps: int = 25) -> np.ndarray:
    """Fits a logistic regression by Newton's method.

    Args:
      features: `[rows, features]`.
      labels: `[rows]`, 0 or 1.
      steps: maximum number of steps; stops earlier on convergence.
    """
    design = _with_one(features)
    weights = np.zeros(design.shape[1])
    for _ in range(steps):
        predicted = 1.0 / (1.0 + np.exp(-(design @ weights)))
        curvature = predicted * (1.0 - predicted)
        # Too small to matter unless features are equal.
        hessian = design.T @ (curvature[:, None] * design) + 1e-6 * np.eye(len(weights))
        step = np.linalg.solve(hessian, design.T @ (labels - predicted))
        weights = weights + step
        if np.abs(step).max() < 1e-9:
            break
    return weights


def logits(features: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Returns the log-odds for the weights of `fit_logistic`."""
    return _with_one(features) @ weights


def _with_one(features: np.ndarray) -> np.ndarray:
    return np.concatenate([features, np.ones((len(features), 1))], axis=1)
