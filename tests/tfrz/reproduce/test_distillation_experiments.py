"""The experiments of knowledge distillation: their world, their training, their judgement."""

from collections import Counter

import keras
import numpy as np
import pytest
import scipy.stats
import tensorflow as tf

from tfrz.errors import InputError
from tfrz.reproduce import movielens_1m
from tfrz.reproduce.distillation import EXPERIMENTS, factors, movielens
from tfrz.reproduce.distillation.classes import (
    CLASSES,
    STUDENTS,
    GroupedClasses,
    network,
    reweighting,
    spearman,
)
from tfrz.reproduce.distillation.training import fit_together, rows_of_steps
from tfrz.reproduce.experiment import Context, experiments


def test_the_group_is_listed():
    names = {experiment.name for experiment in EXPERIMENTS}
    parts = ("factors", "reweighting", "failure_modes", "clicks", "movielens_1m")
    assert names == {f"distillation/{part}" for part in parts}
    assert names <= set(experiments())


def test_the_world_is_the_specifications():
    world = GroupedClasses(3)
    rows = world.sample(4000, 1)
    np.testing.assert_allclose(np.linalg.norm(world.vectors, axis=1), 1)
    assert world.mixing.var() == pytest.approx(1 / 50, rel=0.1)
    cosines = world.vectors @ world.vectors.T
    group = np.arange(CLASSES) // 4
    near = group[:, None] == group
    assert cosines[near & ~np.eye(CLASSES, dtype=bool)].min() > np.abs(cosines[~near]).max()
    p, x = rows["probability"], rows["x"].astype(float)
    u = x + np.sin(2 * x @ world.mixing)
    logits = 2 * u @ world.vectors.T
    expected = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(p, expected, rtol=1e-4)
    # Labels are drawn from it.
    seen = np.bincount(rows["label"], minlength=CLASSES)
    assert np.abs(seen - p.sum(0)).max() < 4 * np.sqrt(p.sum(0).max())
    own = np.take_along_axis(p, rows["label"][:, None], 1).mean()
    assert own == pytest.approx((p**2).sum(1).mean(), abs=0.02)


def test_rows_of_steps_pass_over_the_set():
    order = rows_of_steps(10, 3, 7, seed=0)
    assert order.shape == (7, 3)
    for start in (0, 3):
        assert len(set(order[start : start + 3].ravel())) == 9
    np.testing.assert_array_equal(order, rows_of_steps(10, 3, 7, seed=0))


@pytest.mark.slow
def test_students_that_learn_together_learn_what_they_learn_alone():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(64, 50)).astype("float32"), rng.normal(size=(2, 64)).astype("float32")

    def trained(arms):
        models = [network(4, seed=1) for _ in arms]
        fit_together(
            models,
            lambda i, z, batch: tf.square(z[:, 0] - batch[f"y{arms[i]}"]),
            {"x": x, "y0": y[0], "y1": y[1]},
            steps=20,
            batch_size=16,
            seed=0,
            read=lambda batch: batch["x"],
            weight_decay=1e-3,
        )
        return [model.get_weights() for model in models]

    together = trained([0, 1])
    for arm in (0, 1):
        for a, b in zip(together[arm], trained([arm])[0]):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    assert np.abs(together[0][0] - together[1][0]).max() > 1e-3


def test_spearman_is_that_of_scipy():
    a, b = np.random.default_rng(0).normal(size=(2, 100))
    assert spearman(a, a + b) == pytest.approx(scipy.stats.spearmanr(a, a + b).statistic)


def test_reweighting_in_tenths():
    rows = GroupedClasses(0).sample(500, 1)
    teacher, student = network(8, 0), network(8, 1)
    found = reweighting(student, teacher, rows, 0.7)
    label = rows["label"][:, None]
    q, p = (
        np.take_along_axis(keras.activations.softmax(m(rows["x"])).numpy(), label, 1)[:, 0]
        for m in (teacher, student)
    )
    omega = 1 - 0.7 * (1 - q) / (1 - p)
    np.testing.assert_allclose(found["points"], np.stack([q, omega], 1), atol=1e-4)
    best = np.argsort(q)[-50:]
    assert found["tenths"][-1]["omega"] == pytest.approx(omega[best].mean(), rel=1e-4)
    assert found["spearman_at_equal_p"] > found["spearman"]


def _found(**accuracy):
    return {name: np.array(accuracy[name]) for name in STUDENTS}


GOOD = {
    "hard": [0.236, 0.237],
    "label_smoothing": [0.2358, 0.237],
    "similarity": [0.2371, 0.238],
    "partial": [0.2521, 0.253],
    "partial_similarity": [0.2511, 0.252],
    "topk": [0.2859, 0.286],
    "full": [0.2865, 0.287],
}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, [True] * 4),
        ({"full": [0.2865, 0.25]}, [False, True, True, False]),
        ({"partial_similarity": [0.237, 0.252]}, [True, False, True, False]),
        ({"similarity": [0.2351, 0.236]}, [True, True, False, True]),
        ({"hard": [0.21, 0.21]}, [True, True, True, False]),
    ],
)
def test_directions_are_judged_by_seed(change, expected):
    checks = factors.checks(_found(**GOOD | change))
    assert [check.held for check in checks] == expected
    assert all(type(check.held) is bool for check in checks)


def test_the_parts_add_up_to_the_whole():
    found = _found(**GOOD)
    added = factors.decomposition(found)
    np.testing.assert_allclose(sum(added.values()), found["full"] - found["hard"])
    np.testing.assert_allclose(added["partial"], found["partial"] - found["label_smoothing"])


# MovieLens-1M.


@pytest.mark.slow
def test_a_quick_run_on_ratings_holds_and_is_resumed(ratings_1m, tmp_path, monkeypatch):
    says = []
    context = Context(True, 0, str(ratings_1m), tmp_path, says.append)
    outcome = movielens.EXPERIMENT.run(context)
    assert outcome.held, [check for check in outcome.checks if not check.held]
    assert all(type(check.held) is bool for check in outcome.checks)
    assert all(len(row) == len(outcome.columns) for row in outcome.rows)
    assert [row[0] for row in outcome.rows] == [
        "teacher",
        "teacher of half the rows",
        *(f"student, {arm}" for arm in movielens.ARMS),
    ]
    assert len(says) == 3 + len(movielens.ARMS)
    # Nothing is trained twice.
    monkeypatch.setattr(movielens_1m, "train", None)
    assert movielens.EXPERIMENT.run(context) == outcome


def test_ratings_that_are_not_there_are_named(tmp_path):
    with pytest.raises(InputError, match=r"no\.zip does not exist"):
        movielens.EXPERIMENT.run(Context(True, 0, "no.zip", tmp_path, print))


def _recorded(monkeypatch):
    """What each call of the training learned from, and by which configuration."""
    seen = []

    def train(task, sets, columns, model=None):
        seen.append((task.config, columns))
        return task.build(sets.inputs), {"log_loss": 0.5, "epoch": 1.0}

    monkeypatch.setattr(movielens_1m, "train", train)
    return seen


@pytest.mark.slow
def test_a_cross_fitted_teacher_scores_the_rows_that_it_has_not_seen(
    ratings_1m, tmp_path, monkeypatch
):
    seen = _recorded(monkeypatch)
    key = {"data": str(ratings_1m), "split": 0, "seed": 3, "trainer": {}}
    whole = movielens_1m.sets(key["data"], 0).train.columns()

    def rows(columns, where=slice(None)):
        return Counter(zip(columns["user_id_xf"][where], columns["movie_id_xf"][where]))

    halves = movielens._folds(len(whole["label_xf"]), 0)
    assert abs(int(halves.sum()) * 2 - len(halves)) <= 1
    for fold in (None, 0, 1):
        movielens.train_one(tmp_path, {**key, "fold": fold})
        learned = rows(seen[-1][1])
        if fold is None:
            assert learned == rows(whole)
        else:
            assert not learned & rows(whole, halves == fold)
            assert learned + rows(whole, halves == fold) == rows(whole)
        assert seen[-1][0].trainer.seed == 3 and seen[-1][0].model.embedding_dim == 30
    # Each score is beside its row.
    for fold in (0, 1):
        at = np.flatnonzero(halves == fold)
        np.save(movielens._scores(tmp_path, key, fold), (at / 1e6).astype("float32"))
    scores = movielens._taught(tmp_path, key, movielens.UNSEEN, len(halves))
    np.testing.assert_allclose(scores, np.arange(len(halves)) / 1e6, rtol=1e-5)


@pytest.mark.slow
def test_a_student_gets_the_teachers_scores(ratings_1m, tmp_path, monkeypatch):
    seen = _recorded(monkeypatch)
    key = {"data": str(ratings_1m), "split": 0, "seed": 0, "trainer": {}}
    movielens.train_one(tmp_path, {**key, "fold": None})
    scores = np.load(movielens._scores(tmp_path, key, None))
    key |= {"student": movielens.STUDENT, "values": {"learning_rate": 0.004}}
    for arm in ("no teacher", "lambda 0.5", "lambda 1"):
        movielens.train_one(tmp_path, {**key, "arm": arm})
        config, columns = seen[-1]
        assert config.trainer.learning_rate == 0.004 and config.model.embedding_dim == 4
        if arm == "no teacher":
            assert not config.distill.active and "teacher_score_xf" not in columns
        else:
            assert config.distill.active
            assert config.distill.weight == movielens.ARMS[arm][0]
            np.testing.assert_array_equal(columns["teacher_score_xf"], scores)


def test_each_arm_takes_its_best_values_by_validation():
    best = dict(zip(movielens.ARMS, (0, 2, 1, 2), strict=True))

    trials = []
    for arm in movielens.ARMS:
        for x in range(3):
            lost = float(x != best[arm])
            key = {"arm": arm, "values": {"x": x}}
            trials.append(
                {"key": key, "validation": {"log_loss": lost}, "test": {"log_loss": -lost}}
            )
    tuned = movielens._tuned(trials)
    assert tuned == {arm: {"x": x} for arm, x in best.items()}
