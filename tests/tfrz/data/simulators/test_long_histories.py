"""Long histories: draws from the promised distributions, each user's own."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tfrz.data.simulators.long_histories import DAY, LongHistorySimulator
from tfrz.errors import ConfigError

USERS, DAYS, A_DAY = 400, 60, 30


def _near(found: float, expected: float, draws: int) -> bool:
    """Within 4.5 standard errors of a share."""
    return abs(found - expected) < 4.5 * math.sqrt(expected * (1 - expected) / draws) + 1e-9


def _close(values: np.ndarray, expected: float, deviation: float) -> bool:
    """A mean within 4.5 standard errors."""
    return abs(values.mean() - expected) < 4.5 * deviation / math.sqrt(len(values))


@pytest.fixture(scope="module")
def drawn() -> dict[str, np.ndarray]:
    return LongHistorySimulator().sample(USERS, DAYS, A_DAY, seed=0)


@pytest.fixture(scope="module")
def theta(drawn) -> np.ndarray:
    """Of the topic of each impression."""
    tastes = LongHistorySimulator().tastes(USERS, seed=0)
    return np.take_along_axis(tastes, drawn["topic"], axis=1)


def test_every_column_has_a_value_for_every_impression(drawn):
    types = {"topic": np.int64, "item": np.int64, "time": np.int64, "like": bool, "emerging": bool}
    floats = dict.fromkeys(("duration", "dwell", "like_probability"), np.float64)
    assert {name: column.dtype for name, column in drawn.items()} == {**types, **floats}
    assert all(column.shape == (USERS, DAYS * A_DAY) for column in drawn.values())
    assert all(np.isfinite(column).all() for column in drawn.values())


def test_a_user_is_the_same_whoever_else_is_drawn(drawn):
    simulator = LongHistorySimulator()
    for first, users in ((0, 3), (7, 1), (390, 10)):
        some = simulator.sample(users, DAYS, A_DAY, seed=0, first_user=first)
        for name, column in some.items():
            np.testing.assert_array_equal(column, drawn[name][first : first + users])
        np.testing.assert_array_equal(
            simulator.tastes(users, 0, first), simulator.tastes(USERS, 0)[first : first + users]
        )


def test_another_seed_and_another_user_draw_otherwise(drawn):
    other = LongHistorySimulator().sample(2, DAYS, A_DAY, seed=1)
    for name in ("topic", "time", "duration"):
        assert (other[name][0] != drawn[name][0]).any()
        assert (drawn[name][1] != drawn[name][0]).any()


def test_tastes_are_of_a_dirichlet_distribution():
    tastes = LongHistorySimulator().tastes(8000, seed=3)
    assert tastes.shape == (8000, 32) and (tastes >= 0).all()
    np.testing.assert_allclose(tastes.sum(1), 1.0, atol=1e-12)
    variance = (1 / 32) * (31 / 32) / (32 * 0.15 + 1)
    for topic in range(32):
        assert _close(tastes[:, topic], 1 / 32, math.sqrt(variance))
    assert tastes.var() == pytest.approx(variance, rel=0.03)


def test_the_emerging_topic_is_drawn_anew_on_a_third_of_the_days():
    simulator = LongHistorySimulator(taste_share=0.0, emerging_share=1.0)
    shown = simulator.sample(3000, 20, 2, seed=4)
    assert shown["emerging"].all()
    topic = shown["topic"].reshape(3000, 20, 2)
    assert (topic[..., 0] == topic[..., 1]).all()
    changed = topic[:, 1:, 0] != topic[:, :-1, 0]
    # One draw in 32 is the topic of the day before.
    assert _near(changed.mean(), 0.33 * 31 / 32, changed.size)
    for day in (0, 19):
        counts = np.bincount(topic[:, day, 0], minlength=32)
        assert all(_near(count / 3000, 1 / 32, 3000) for count in counts)
    for share, expected in ((0.0, 0.0), (1.0, 31 / 32)):
        simulator = LongHistorySimulator(
            taste_share=0.0, emerging_share=1.0, emerging_probability=share
        )
        topic = simulator.sample(500, 20, 1, seed=4)["topic"]
        assert _near((topic[:, 1:] != topic[:, :-1]).mean(), expected, 500 * 19)


def test_topics_are_of_popularity_taste_and_the_emerging_one():
    users = 2000
    simulator = LongHistorySimulator()
    shown = simulator.sample(users, 3, 40, seed=5)
    tastes = simulator.tastes(users, seed=5)
    expected = 0.6 * simulator.popularity + 0.25 * tastes + 0.15 / 32
    counts = np.stack([np.bincount(row, minlength=32) for row in shown["topic"]])
    # Impressions of a user and day share an emerging topic: they vary more than if independent.
    for topic in range(32):
        excess = counts[:, topic] - 120 * expected[:, topic]
        assert abs(excess.mean()) < 4.5 * excess.std() / math.sqrt(users)
    likes_much = tastes > 0.3
    assert counts[likes_much].sum() == pytest.approx(120 * expected[likes_much].sum(), rel=0.03)
    # The emerging one, or by chance one of popularity or taste: 1 / 32 of those.
    share = 0.15 + 0.85 / 32
    means = shown["emerging"].mean(1)
    assert abs(means.mean() - share) < 4.5 * means.std() / math.sqrt(users)


def test_popularity_and_items_are_power_laws(drawn):
    simulator = LongHistorySimulator()
    harmonic = sum(1 / k for k in range(1, 33))
    np.testing.assert_allclose(simulator.popularity, [1 / k / harmonic for k in range(1, 33)])
    assert simulator.num_items == 1600
    np.testing.assert_array_equal(drawn["item"] // 50, drawn["topic"])
    ranks = drawn["item"] % 50
    for rank in range(50):
        expected = simulator.item_probabilities[rank]
        assert _near((ranks == rank).mean(), expected, ranks.size)
    flat = LongHistorySimulator(
        taste_share=0.0, emerging_share=0.0, popularity_power=0.0, topic_items=3, item_power=0.0
    )
    items = flat.sample(300, 10, 30, seed=2)["item"]
    counts = np.bincount(items.ravel(), minlength=96)
    assert len(counts) == 96
    assert all(_near(count / items.size, 1 / 96, items.size) for count in counts)


def test_the_probability_of_a_like_is_the_formula(drawn, theta):
    logit = -2.5 + 0.7 * np.log(32 * theta + 0.1) + drawn["emerging"]
    np.testing.assert_allclose(drawn["like_probability"], 1 / (1 + np.exp(-logit)), rtol=1e-9)


def test_likes_come_as_often_as_their_probability(drawn):
    probability, like = drawn["like_probability"], drawn["like"]
    assert _close(
        (like - probability).ravel(), 0.0, math.sqrt((probability * (1 - probability)).mean())
    )
    edges = np.quantile(probability, np.linspace(0, 1, 11))
    group = np.clip(np.searchsorted(edges, probability, "right") - 1, 0, 9)
    for number in range(10):
        mine = group == number
        p = probability[mine]
        assert _close(like[mine] - p, 0.0, math.sqrt((p * (1 - p)).mean()))


def test_duration_and_dwell_time_are_lognormal_and_the_latter_is_cut(drawn, theta):
    duration, dwell = drawn["duration"].ravel(), drawn["dwell"].ravel()
    length = np.log(duration)
    assert _close(length, 3.0, 0.8)
    assert length.std() == pytest.approx(0.8, rel=0.01)
    ratio = dwell / duration
    assert ratio.max() <= 1.5 * (1 + 1e-12)
    mean = -1 + 0.35 * np.log(32 * theta + 0.1) + 0.5 * drawn["emerging"]
    far = (math.log(1.5) - mean.ravel()) / 0.7
    # Below the cut they are normal; and they are cut as often as they should be.
    z = (np.log(ratio) - mean.ravel()) / 0.7
    for bound in (-2.0, -1.0, 0.0, 1.0):
        free = z[far > bound] < bound
        assert len(free) > 100_000
        assert _near(free.mean(), 0.5 * math.erfc(-bound / math.sqrt(2)), len(free))
    above = np.array([0.5 * math.erfc(x / math.sqrt(2)) for x in far])
    cut = np.isclose(ratio, 1.5)
    assert _close(cut - above, 0.0, math.sqrt((above * (1 - above)).mean()))
    assert abs(np.corrcoef(length, np.log(ratio))[0, 1]) < 0.01


def test_times_rise_and_fill_each_day(drawn):
    time = drawn["time"]
    assert (np.diff(time, axis=1) >= 0).all()
    np.testing.assert_array_equal(
        time // DAY, np.tile(np.repeat(np.arange(DAYS), A_DAY), (USERS, 1))
    )
    of_day = (time % DAY).reshape(-1, A_DAY)
    np.testing.assert_array_equal(
        of_day // (DAY // A_DAY), np.tile(np.arange(A_DAY), (len(of_day), 1))
    )
    assert (of_day % (DAY // A_DAY)).mean() == pytest.approx(DAY / A_DAY / 2, rel=0.01)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"topics": 1}, "topics"),
        ({"concentration": 0.0}, "concentration"),
        ({"emerging_probability": 1.1}, "emerging_probability"),
        ({"emerging_probability": -0.1}, "emerging_probability"),
        ({"taste_share": -0.1}, "taste_share"),
        ({"taste_share": 0.7, "emerging_share": 0.4}, "emerging_share"),
        ({"popularity_power": -1.0}, "popularity_power"),
        ({"topic_items": 0}, "topic_items"),
        ({"item_power": -1.0}, "item_power"),
    ],
)
def test_arguments_out_of_range_are_named(arguments, message):
    with pytest.raises(ConfigError, match=message):
        LongHistorySimulator(**arguments)


def test_nobody_cannot_be_drawn():
    for sizes in ((0, 1, 1), (1, 0, 1), (1, 1, 0)):
        with pytest.raises(ConfigError, match="at least 1"):
            LongHistorySimulator().sample(*sizes, seed=0)
