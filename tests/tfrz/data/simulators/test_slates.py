"""Sections 3.10, 5.1 (12) and 5.4 of the specification of seq2slate: clicks and lists."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from tfrz.data.simulators.slates import ClickModel, SlateSimulator
from tfrz.errors import ConfigError

KINDS = ("diverse", "similar", "independent")

# Worked example C.
FEATURES = np.array([[[0.0, 0], [3, 0], [0, 1], [3, 1], [6, 0]]])
GRADES = np.array([[3, 2, 4, 1, 2]])


def _tau(features: np.ndarray, q: float) -> float:
    pairs = list(itertools.combinations(range(len(features)), 2))
    distances = [np.sqrt(((features[i] - features[k]) ** 2).sum()) for i, k in pairs]
    return float(np.quantile(distances, q)) if pairs else 0.0


def _walk(features, grades, observed, threshold, q, kind, order=None) -> np.ndarray:
    """Section 4's `clicks` for one list without padding; `observed` and the result are by row."""
    tau, clicked = _tau(features, q), []
    for r in range(len(features)) if order is None else order:
        if r < 0 or not observed[r] or grades[r] < threshold:
            continue
        near = any(np.sqrt(((features[r] - features[c]) ** 2).sum()) <= tau for c in clicked)
        take = {"diverse": not near, "similar": near or not clicked, "independent": True}[kind]
        if take:
            clicked.append(r)
    found = np.zeros(len(features), bool)
    found[clicked] = True
    return found


def _lists(seed: int = 0, lists: int = 100, length: int = 7):
    """Lists of every length from 0, padded on the right, with clusters of documents."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(lists, 3, 2)) * 3
    features = np.take_along_axis(centres, rng.integers(0, 3, (lists, length, 1)), 1)
    features += 0.3 * rng.normal(size=features.shape)
    grades = rng.integers(0, 5, (lists, length))
    valid = np.arange(length) < rng.integers(0, length + 1, (lists, 1))
    return features, grades, valid


# 5.4


@pytest.mark.parametrize(
    ("kind", "order", "expected"),
    [
        ("diverse", None, [1, 0, 0, 0, 1]),
        ("similar", None, [1, 1, 1, 0, 1]),
        ("independent", None, [1, 1, 1, 0, 1]),
        ("diverse", [2, 4, 0, 1, 3], [1, 1, 0, 0, 0]),
        ("similar", [2, 4, 0, 1, 3], [1, 0, 1, 1, 0]),
    ],
)
def test_5_4_click_rules(kind, order, expected):
    rows = order or [0, 1, 2, 3, 4]
    shown = None if order is None else np.array([order])
    found = ClickModel(kind, 0.0, 2, 0.5).click(FEATURES, GRADES, order=shown)
    assert found.shape == (1, 5)
    assert found.dtype == bool
    # The expected clicks are by position.
    assert found[0][rows].astype(int).tolist() == expected


def test_5_4_tau_lies_between_3_and_3_1623():
    """Pairs at exactly 3 are near, pairs at 3.1623 are not: tau = 3.0811388301."""
    assert _tau(FEATURES[0], 0.5) == pytest.approx(3.0811388301, abs=1e-9)
    features = FEATURES.copy()
    grades = np.array([[3, 3, 0, 0, 0]])
    assert ClickModel().click(features, grades)[0].tolist() == [True, False, False, False, False]
    grades = np.array([[3, 0, 0, 3, 0]])
    assert ClickModel().click(features, grades)[0].tolist() == [True, False, False, True, False]


@pytest.mark.parametrize("reverse", [False, True])
def test_5_4_observation_decays_with_the_position(reverse):
    lists = 40_000
    features, grades = np.zeros([lists, 5, 1]), np.full([lists, 5], 3)
    order = np.tile(np.arange(5)[::-1], (lists, 1)) if reverse else None
    clicks = ClickModel("independent", eta=0.3).click(features, grades, seed=4, order=order)
    by_position = clicks[:, ::-1] if reverse else clicks
    p = np.array([1, 0.8122523964, 0.7192230933, 0.6597539554, 0.6170338627])
    bound = 5 * np.sqrt(p * (1 - p) / lists)
    assert (np.abs(by_position.mean(0) - p) <= bound).all()
    # Positions are observed independently of each other.
    for i, k in itertools.combinations(range(1, 5), 2):
        both = (by_position[:, i] & by_position[:, k]).mean()
        assert both == pytest.approx(p[i] * p[k], abs=5 * 0.5 / np.sqrt(lists))


# 5.1.12


@pytest.mark.parametrize("kind", KINDS)
def test_5_1_12_without_decay_nothing_is_random(kind):
    features, grades, valid = _lists()
    one, other = (ClickModel(kind).click(features, grades, seed, valid) for seed in (1, 2))
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("kind", ["diverse", "similar"])
@pytest.mark.parametrize("threshold", [1, 2, 4])
def test_5_1_12_clicks_are_a_subset_of_what_is_relevant(kind, threshold):
    features, grades, valid = _lists()
    clicks = ClickModel(kind, threshold=threshold).click(features, grades, valid=valid)
    relevant = (grades >= threshold) & valid
    assert not (clicks & ~relevant).any()
    assert (clicks != relevant).any()
    # The first candidate is always clicked.
    assert clicks[relevant.any(1), relevant.argmax(1)[relevant.any(1)]].all()
    independent = ClickModel("independent", threshold=threshold)
    np.testing.assert_array_equal(independent.click(features, grades, valid=valid), relevant)


def test_5_1_12_at_quantile_0_only_a_closest_pair_loses_a_click():
    features, _, _ = _lists()
    grades = np.full(features.shape[:2], 4)
    clicks = ClickModel(quantile=0.0).click(features, grades)
    distances = np.sqrt(((features[:, :, None] - features[:, None]) ** 2).sum(-1))
    distances[:, np.arange(7), np.arange(7)] = np.inf
    for row, d in zip(clicks, distances):
        first, second = sorted(np.unravel_index(d.argmin(), d.shape))
        assert np.flatnonzero(~row).tolist() == [second]
        assert first < second


# The walk


@pytest.mark.parametrize("quantile", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("kind", KINDS)
def test_4_the_walk_is_that_of_a_loop(kind, quantile):
    features, grades, valid = _lists()
    found = ClickModel(kind, 0.0, 2, quantile).click(features, grades, valid=valid)
    for b, n in enumerate(valid.sum(1)):
        expected = _walk(features[b, :n], grades[b, :n], np.ones(n), 2, quantile, kind)
        np.testing.assert_array_equal(found[b, :n], expected)
        assert not found[b, n:].any()


@pytest.mark.parametrize("kind", KINDS)
def test_4_the_walk_follows_the_order(kind):
    features, grades, valid = _lists(1)
    rng = np.random.default_rng(2)
    keys = np.where(valid, rng.random(valid.shape), 2)
    order = np.where(np.sort(keys) < 2, np.argsort(keys, 1), -1)
    found = ClickModel(kind).click(features, grades, valid=valid, order=order)
    base = ClickModel(kind).click(features, grades, valid=valid)
    for b, n in enumerate(valid.sum(1)):
        expected = _walk(features[b, :n], grades[b, :n], np.ones(n), 2, 0.5, kind, order[b])
        np.testing.assert_array_equal(found[b, :n], expected)
        assert not found[b, n:].any()
    assert (found != base).any() == (kind != "independent")
    identity = np.where(valid, np.arange(7), -1)
    again = ClickModel(kind).click(features, grades, valid=valid, order=identity)
    np.testing.assert_array_equal(again, base)


@pytest.mark.parametrize("kind", ["diverse", "similar"])
def test_4_the_walk_with_decay_sees_what_is_observed(kind):
    """The observations are a function of the seed: every observed document of another model."""
    features, grades, valid = _lists(3)
    observed = ClickModel("independent", eta=0.7).click(
        features, np.full_like(grades, 4), seed=9, valid=valid
    )
    assert 0.3 < observed[valid].mean() < 0.9
    found = ClickModel(kind, eta=0.7).click(features, grades, seed=9, valid=valid)
    for b, n in enumerate(valid.sum(1)):
        expected = _walk(features[b, :n], grades[b, :n], observed[b, :n], 2, 0.5, kind)
        np.testing.assert_array_equal(found[b, :n], expected)


def test_what_is_not_shown_is_not_clicked_and_still_decides_tau():
    features, grades, _ = _lists(4)
    rng = np.random.default_rng(5)
    order = np.argsort(rng.random(grades.shape), 1)
    order[:, 3:] = -1
    for kind in KINDS:
        found = ClickModel(kind).click(features, grades, order=order)
        assert (found.sum(1) <= 3).all()
        for b in range(len(found)):
            expected = _walk(features[b], grades[b], np.ones(7), 2, 0.5, kind, order[b])
            np.testing.assert_array_equal(found[b], expected)


@pytest.mark.parametrize("filling", [0.0, 1e6, np.nan], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_padding_is_never_clicked_and_changes_nothing(kind, filling):
    features, grades, valid = _lists()
    model = ClickModel(kind, eta=0.3)
    before = model.click(np.where(valid[..., None], features, 7.0), grades, 3, valid)
    padded = np.where(valid[..., None], features, filling)
    after = model.click(padded, np.where(valid, grades, 4), 3, valid)
    np.testing.assert_array_equal(before, after)
    assert not after[~valid].any()
    assert after[valid].any()


@pytest.mark.parametrize("kind", KINDS)
def test_padding_in_the_middle_is_passed_over(kind):
    features, grades, _ = _lists()
    valid = np.tile([True, False, True, True, False, True, True], (len(features), 1))
    found = ClickModel(kind).click(features, grades, valid=valid)
    alone = ClickModel(kind).click(features[:, valid[0]], grades[:, valid[0]])
    np.testing.assert_array_equal(found[:, valid[0]], alone)
    assert not found[~valid].any()


def test_seeds_of_the_observations():
    features, grades, valid = _lists()
    model = ClickModel(eta=0.5)
    one, again, other = (model.click(features, grades, seed, valid) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert (one != other).any()


@pytest.mark.parametrize(
    "values", [{"kind": "random"}, {"eta": -0.1}, {"quantile": 1.1}, {"quantile": -0.1}], ids=str
)
def test_a_wrong_click_model_is_an_error(values):
    with pytest.raises(ConfigError):
        ClickModel(**values)


# Lists


def test_7_1_lists_are_those_of_the_seeds():
    one, again, other = (SlateSimulator(3).sample(20, 10, seed) for seed in (1, 1, 2))
    for name, value in one.items():
        np.testing.assert_array_equal(again[name], value)
        assert (other[name] != value).any()
    assert one["features"].shape == (20, 10, 16)
    assert one["features"].dtype == np.float64
    assert one["grade"].shape == (20, 10)
    assert one["grade"].dtype == np.int64
    world = SlateSimulator(4).sample(20, 10, 1)
    assert (world["grade"] != one["grade"]).any()


def test_7_1_documents_lie_around_five_centres():
    features = SlateSimulator(0).sample(2000, 10, 1)["features"]
    assert features.mean() == pytest.approx(0, abs=0.02)
    assert features.var() == pytest.approx(1 + 0.35**2, abs=0.03)
    distances = np.sqrt(((features[:, :, None] - features[:, None]) ** 2).sum(-1))
    pairs = distances[:, np.triu(np.ones((10, 10)), 1) > 0]
    near = pairs < 3.3
    # Two documents of the same centre: one pair in five, at sqrt(2 * 16) * 0.35 or so.
    assert near.mean() == pytest.approx(0.2, abs=0.02)
    assert np.sqrt((pairs[near] ** 2).mean()) == pytest.approx(0.35 * np.sqrt(32), rel=0.02)


def test_7_1_grades_follow_one_direction_and_the_base_ranker_knows_them_roughly():
    simulator = SlateSimulator(0)
    drawn = simulator.sample(4000, 10, 1)
    grade = drawn["grade"]
    assert set(np.unique(grade)) == {0, 1, 2, 3, 4}
    by_position = grade.mean(0)
    assert (np.diff(by_position) < 0.05).all()
    assert by_position[0] - by_position[-1] > 0.7
    # A noisy ranker: not sorted by the grade in most lists.
    assert (np.diff(grade, axis=1) > 0).any(1).mean() > 0.5
    # The same w for all lists: a fit on one half predicts the other, and another draw.
    flat, y = drawn["features"].reshape(-1, 16), grade.reshape(-1)
    w, *_ = np.linalg.lstsq(flat[:20_000], y[:20_000] - y.mean(), rcond=None)
    more = simulator.sample(1000, 10, 2)
    for x, target in (
        (flat[20_000:], y[20_000:]),
        (more["features"].reshape(-1, 16), more["grade"].reshape(-1)),
    ):
        assert np.corrcoef(x @ w, target)[0, 1] > 0.85
    elsewhere = SlateSimulator(1).sample(1000, 10, 2)
    found = np.corrcoef(elsewhere["features"].reshape(-1, 16) @ w, elsewhere["grade"].reshape(-1))
    assert found[0, 1] < 0.85


def test_7_1_grades_have_the_thresholds_of_the_text():
    """`s = x.w + 0.3 N(0, 1)`; where x.w is far from a threshold the grade is known."""
    drawn = SlateSimulator(0).sample(4000, 10, 1)
    flat, y = drawn["features"].reshape(-1, 16), drawn["grade"].reshape(-1)
    w, *_ = np.linalg.lstsq(flat, y - y.mean(), rcond=None)
    s = flat @ w / np.linalg.norm(w)
    # Half of the documents with x.w at the threshold have the higher grade, whatever |w| is: the
    # thresholds' distances have the ratios 0.6 : 0.5 : 0.6.
    cuts, grid = [], np.linspace(-6, 6, 1201)
    for grade in range(1, 5):
        wrong = np.searchsorted(np.sort(s[y >= grade]), grid)
        wrong += (y < grade).sum() - np.searchsorted(np.sort(s[y < grade]), grid)
        cuts.append(grid[wrong.argmin()])
    ratios = np.diff(cuts) / (cuts[3] - cuts[0]) * 1.7
    np.testing.assert_allclose(ratios, [0.6, 0.5, 0.6], atol=0.1)
    assert abs(cuts[1]) < 0.15
