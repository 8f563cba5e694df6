"""The experiments of knowledge distillation: their world, their training, their judgement."""

import keras
import numpy as np
import pytest
import scipy.stats
import tensorflow as tf

from tfrz.reproduce.distillation import EXPERIMENTS, factors
from tfrz.reproduce.distillation.classes import (
    CLASSES,
    STUDENTS,
    GroupedClasses,
    network,
    reweighting,
    spearman,
)
from tfrz.reproduce.distillation.training import fit_together, rows_of_steps
from tfrz.reproduce.experiment import experiments


def test_the_group_is_listed():
    names = {experiment.name for experiment in EXPERIMENTS}
    parts = ("factors", "reweighting", "failure_modes", "clicks")
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
