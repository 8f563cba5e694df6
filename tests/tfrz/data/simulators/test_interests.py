"""Users with several interests: invariants 13 to 15, and draws from the promised probabilities."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from tfrz.data.records import open_source
from tfrz.data.simulators.interests import InterestSimulator
from tfrz.data.sources.reader import read_table
from tfrz.errors import ConfigError


def _near(found: float, expected: float, draws: int) -> bool:
    """Within 4.5 standard errors of a share."""
    return abs(found - expected) < 4.5 * math.sqrt(expected * (1 - expected) / draws) + 1e-9


@pytest.mark.parametrize("clusters", [2, 3, 5])
@pytest.mark.parametrize("chain", [{}, {"alpha": 0.8, "gamma": 0.1}, {"alpha": 0.7, "gamma": 0.3}])
def test_invariant_13_rows_of_every_chain_sum_to_one(clusters, chain):
    simulator = InterestSimulator(clusters=clusters, interests=1, **chain)
    every = itertools.product([False, True], repeat=clusters)
    sets = np.array([s for s in every if any(s) and not all(s)])
    chains = simulator.transitions(sets)
    assert chains.shape == (len(sets), clusters, clusters) and chains.dtype == np.float64
    np.testing.assert_allclose(chains.sum(-1), 1.0, atol=1e-12)
    assert (chains >= 0).all()


@pytest.mark.parametrize("power", [0.0, 1.0])
def test_invariant_13_a_user_of_all_clusters_has_a_chain_or_is_refused(power):
    try:
        simulator = InterestSimulator(clusters=3, interests=3, interest_power=power)
    except ConfigError as error:
        assert "interests" in str(error)
        return
    chain = simulator.transitions(np.ones(3, bool))
    np.testing.assert_allclose(chain.sum(-1), 1.0, atol=1e-12)
    drawn = simulator.sample(users=3000, length=20, seed=0)
    cluster = drawn["cluster"][drawn["interests"].all(1)]
    for c in range(3):
        assert (cluster[:, -1] == c).mean() > 0.25


@pytest.mark.parametrize("places", [(0, 1, 2), (1, 3, 4)])
def test_invariant_13_the_numbers_of_three_interests_in_five(places):
    interests = np.isin(np.arange(5), places)
    chain = InterestSimulator(alpha=0.6, gamma=0.3, epsilon=0.2).transitions(interests)
    for i in range(5):
        for j in range(5):
            if interests[i]:
                expected = 0.6 if i == j else 0.15 if interests[j] else 0.05
            else:
                expected = 0.2 if i == j else 0.266667 if interests[j] else 0.0
            assert chain[i, j] == pytest.approx(expected, abs=5e-7)
    stationary = np.linalg.matrix_power(chain, 300)[0]
    np.testing.assert_allclose(stationary[interests], 8 / 27, atol=1e-9)
    np.testing.assert_allclose(stationary[~interests], 1 / 18, atol=1e-9)
    np.testing.assert_allclose(stationary @ chain, stationary, atol=1e-12)


def test_invariant_13_one_interest_keeps_what_would_go_to_the_others():
    interests = np.array([False, True, False, False, False])
    chain = InterestSimulator(alpha=0.6, gamma=0.3, epsilon=0.2).transitions(interests)
    np.testing.assert_allclose(chain[1], [0.025, 0.9, 0.025, 0.025, 0.025], atol=1e-12)
    np.testing.assert_allclose(chain[0], [0.2, 0.8, 0, 0, 0], atol=1e-12)


def test_chains_of_many_users_are_those_of_each():
    simulator = InterestSimulator()
    drawn = simulator.sample(users=6, length=1, seed=0)["interests"]
    together = simulator.transitions(drawn.reshape(2, 3, 5))
    for row, interests in enumerate(drawn):
        np.testing.assert_array_equal(together[row // 3, row % 3], simulator.transitions(interests))


def test_invariant_14_probabilities_of_the_interests():
    found = InterestSimulator(clusters=5, interest_power=1.0).interest_probabilities
    np.testing.assert_allclose(found, [0.437956, 0.218978, 0.145985, 0.109489, 0.087591], atol=5e-7)
    distinct = np.zeros(4)
    for draw in itertools.product(range(5), repeat=3):
        distinct[len(set(draw))] += np.prod(found[list(draw)])
    np.testing.assert_allclose(distinct[1:], [0.099599, 0.543391, 0.357010], atol=5e-7)


def test_invariant_14_three_draws_give_one_to_three_interests_as_often_as_they_should():
    users = 40_000
    interests = InterestSimulator().sample(users=users, length=1, seed=1)["interests"]
    assert interests.dtype == bool and interests.shape == (users, 5)
    counts = np.bincount(interests.sum(1), minlength=6)
    assert counts[0] == counts[4] == counts[5] == 0
    for count, expected in zip(counts[1:4], [0.099599, 0.543391, 0.357010], strict=True):
        assert _near(count / users, expected, users)
    p = InterestSimulator().interest_probabilities
    for cluster in range(5):
        assert _near(interests[:, cluster].mean(), 1 - (1 - p[cluster]) ** 3, users)


def test_without_skew_all_users_have_as_many_interests_all_alike():
    users = 40_000
    simulator = InterestSimulator(interest_power=0.0)
    np.testing.assert_allclose(simulator.interest_probabilities, 0.2, atol=1e-12)
    interests = simulator.sample(users=users, length=1, seed=2)["interests"]
    assert (interests.sum(1) == 3).all()
    sets, counts = np.unique(interests, axis=0, return_counts=True)
    assert len(sets) == 10
    for count in counts:
        assert _near(count / users, 0.1, users)


def test_invariant_15_probabilities_of_the_items():
    one = InterestSimulator(cluster_items=10, item_power=1.0).item_probabilities
    np.testing.assert_allclose(one[:3], [0.341417, 0.170709, 0.113806], atol=5e-7)
    assert one[-1] == pytest.approx(0.034142, abs=5e-7)
    half = InterestSimulator(cluster_items=10, item_power=0.5).item_probabilities
    assert half[0] == pytest.approx(0.199164, abs=5e-7)
    assert half[-1] == pytest.approx(0.062981, abs=5e-7)
    for p in (one, half):
        assert p.sum() == pytest.approx(1.0, abs=1e-12)
    flat = InterestSimulator(cluster_items=10, item_power=0.0).item_probabilities
    np.testing.assert_allclose(flat, 0.1, atol=1e-12)


def test_items_belong_to_their_clusters_and_follow_their_probabilities():
    simulator = InterestSimulator(cluster_items=7, item_power=1.0)
    assert simulator.num_items == 35
    drawn = simulator.sample(users=5000, length=10, seed=3)
    item, cluster = drawn["item"], drawn["cluster"]
    assert item.dtype == np.int64 and item.shape == cluster.shape == (5000, 10)
    np.testing.assert_array_equal(item // 7, cluster)
    for c in range(5):
        ranks = (item % 7)[cluster == c]
        for rank in range(7):
            expected = simulator.item_probabilities[rank]
            assert _near((ranks == rank).mean(), expected, len(ranks))


def test_the_first_cluster_is_any_of_all():
    users = 30_000
    drawn = InterestSimulator().sample(users=users, length=1, seed=4)
    counts = np.bincount(drawn["cluster"][:, 0], minlength=5)
    for count in counts:
        assert _near(count / users, 0.2, users)


@pytest.mark.parametrize("power", [0.0, 1.0])
def test_clusters_move_as_the_chains_promise(power):
    simulator = InterestSimulator(interest_power=power)
    drawn = simulator.sample(users=20_000, length=8, seed=5)
    cluster, interests = drawn["cluster"], drawn["interests"]
    before, after = cluster[:, :-1].ravel(), cluster[:, 1:].ravel()
    owner = np.repeat(np.arange(20_000), 7)
    size, inside = interests.sum(1)[owner], interests[owner, before]
    to_inside = interests[owner, after]
    for n in range(1, 4):
        chosen = (size == n) & inside
        if not chosen.any():
            assert power == 0.0 and n < 3
            continue
        draws = chosen.sum()
        stay = 0.6 if n > 1 else 0.9
        assert _near((before == after)[chosen].mean(), stay, draws)
        assert _near(to_inside[chosen].mean(), 0.9, draws)
        chosen = (size == n) & ~inside
        draws = chosen.sum()
        assert _near((before == after)[chosen].mean(), 0.2, draws)
        assert _near(to_inside[chosen].mean(), 0.8, draws)
        assert not ((before != after) & ~to_inside)[chosen].any()


def test_the_same_seed_draws_the_same_and_another_does_not():
    first, again = (InterestSimulator().sample(users=50, length=9, seed=9) for _ in range(2))
    for name, value in first.items():
        np.testing.assert_array_equal(again[name], value)
    other = InterestSimulator().sample(users=50, length=9, seed=10)
    assert (other["item"] != first["item"]).any()
    assert (other["interests"] != first["interests"]).any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"clusters": 0}, "clusters"),
        ({"cluster_items": 0}, "cluster_items"),
        ({"interests": 0}, "interests"),
        ({"interests": 6, "interest_power": 0.0}, "interests"),
        ({"alpha": 1.1}, "alpha"),
        ({"alpha": 0.8, "gamma": 0.3}, "alpha|gamma"),
        ({"gamma": -0.1}, "gamma"),
        ({"epsilon": -0.1}, "epsilon"),
        ({"epsilon": 1.1}, "epsilon"),
    ],
)
def test_arguments_out_of_range_are_named(arguments, message):
    with pytest.raises(ConfigError, match=message):
        InterestSimulator(**arguments)


def _source(**options):
    return open_source("simulated", None, "history", world="interests", **options)


def test_the_reader_gives_every_user_their_events():
    table, corrupt = read_table(_source(users=300, length=7, seed=1))
    assert not corrupt and table.num_rows == 2100
    rows = table.to_pylist()
    places: dict[bytes, list[int]] = {}
    for row in rows:
        places.setdefault(row["user"], []).append(row["position"])
    assert len(places) == 300
    assert all(len(p) == len(set(p)) == 7 for p in places.values())
    assert read_table(_source(users=300, length=7, seed=1))[0].equals(table)
    assert not read_table(_source(users=300, length=7, seed=2))[0].equals(table)


def test_the_reader_draws_as_the_simulator_does():
    options = {"clusters": 4, "cluster_items": 6, "interest_power": 0.0, "item_power": 1.0}
    catalogue = _source(**options).candidates().to_pylist()
    clusters = {row["item"]: row["cluster"] for row in catalogue}
    assert len(catalogue) == len(clusters) == 24
    assert clusters == {b"item_%d" % i: [b"cluster_%d" % (i // 6)] for i in range(24)}
    table, _ = read_table(_source(users=4000, length=6, seed=3, **options))
    items = np.array([int(item.decode()[5:]) for item in table["item"].to_pylist()])
    assert set(items) == set(range(24))
    p = InterestSimulator(**options).item_probabilities
    for rank in range(6):
        assert _near((items % 6 == rank).mean(), p[rank], len(items))
    users: dict[bytes, list[int]] = {}
    for row in sorted(table.to_pylist(), key=lambda row: row["position"]):
        users.setdefault(row["user"], []).append(int(row["item"].decode()[5:]) // 6)
    moves = [(a, b) for places in users.values() for a, b in itertools.pairwise(places)]
    starts = np.bincount([places[0] for places in users.values()], minlength=4)
    for count in starts:
        assert _near(count / 4000, 0.25, 4000)
    # Three of the four clusters are interests: 0.6 is the share that stays within one of them.
    stay = np.mean([a == b for a, b in moves])
    assert 0.5 < stay < 0.6


def test_the_readers_fingerprint_knows_all_of_its_options():
    changes = [
        {},
        {"users": 11},
        {"length": 21},
        {"seed": 1},
        {"interest_power": 0.5},
        {"item_power": 1.0},
        {"clusters": 6},
        {"cluster_items": 11},
    ]
    prints = [_source(**{"users": 10, **change}).fingerprint() for change in changes]
    assert len(set(prints)) == len(changes)
    assert prints[0] == _source(users=10).fingerprint()


def test_an_option_of_the_other_world_is_refused():
    with pytest.raises(ConfigError):
        open_source("simulated", None, "history", world="context_switch", item_power=1.0)
    with pytest.raises(ConfigError, match="world"):
        open_source("simulated", None, "history", world="interest")
