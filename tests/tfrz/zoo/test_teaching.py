"""What a teacher adds to the labels, taken apart."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tensorflow as tf

from tests.oracles.temporal import softmax
from tfrz.training.distiller import DistillConfig
from tfrz.zoo.reports.teaching import decompose, examined
from tfrz.zoo.train import train

ROWS = 200


def _case(classes: int, sharp: float = 2.0):
    rng = np.random.default_rng(classes)
    z, v = rng.normal(0, sharp, (2, ROWS, classes)).astype(np.float32)
    return z, v, rng.integers(0, classes, ROWS)


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_the_shares_are_those_of_the_squared_distance_from_the_labels(classes):
    z, v, labels = _case(classes)
    rows = examined(DistillConfig(), *map(tf.constant, (z, v, labels)))
    q, y = softmax(v.astype(np.float64)), np.eye(classes)[labels]
    total = np.square(q - y).sum(axis=1).mean()
    doubt = 1 - q[np.arange(ROWS), labels]

    def spread(mass):
        """A mass taken off the true class and shared equally by the others."""
        return np.where(y == 1, -mass, mass / (classes - 1))

    smoothing = spread(np.full((ROWS, 1), doubt.mean()))
    weighting = spread((doubt - doubt.mean())[:, None])
    relations = q - y - smoothing - weighting
    found = decompose(rows, classes)
    for name, part in zip(found, (smoothing, weighting, relations), strict=True):
        share = np.square(part).sum(axis=1).mean() / total
        assert found[name] == pytest.approx(share, abs=1e-5)
    assert sum(found.values()) == pytest.approx(1)
    if classes == 2:
        assert found["class relations"] == pytest.approx(0, abs=1e-9)


def test_each_part_is_found_where_it_is_alone():
    labels = np.arange(ROWS) % 4
    own = np.eye(4)[labels]
    smooth = np.log(np.where(own == 1, 0.7, 0.1)).astype(np.float32)
    z = tf.zeros([ROWS, 4])
    rows = examined(DistillConfig(), z, tf.constant(smooth), tf.constant(labels))
    assert decompose(rows, 4)["label smoothing"] == pytest.approx(1, abs=1e-5)
    doubt = np.where(np.arange(ROWS) % 2, 0.6, 0.2)[:, None]
    weighted = np.log(np.where(own == 1, 1 - doubt, doubt / 3)).astype(np.float32)
    shares = decompose(examined(DistillConfig(), z, tf.constant(weighted), tf.constant(labels)), 4)
    assert shares["class relations"] == pytest.approx(0, abs=1e-5)
    assert shares["re-weighting"] == pytest.approx(0.04 / (0.04 + 0.16), abs=1e-5)


def test_omega_and_the_divergence_are_those_of_the_losses():
    z, v, labels = _case(5)
    config = DistillConfig(weight=0.7)
    rows = examined(config, *map(tf.constant, (z, v, labels)))
    p, q = softmax(z.astype(np.float64)), softmax(v.astype(np.float64))
    at = (np.arange(ROWS), labels)
    np.testing.assert_allclose(rows["confidence"], q[at], rtol=1e-5)
    np.testing.assert_allclose(rows["omega"], 1 - 0.7 * (1 - q[at]) / (1 - p[at]), rtol=2e-3)
    divergence = (q * np.log(q / p)).sum(axis=1)
    both = rows["about the true class"] + rows["about the others"]
    np.testing.assert_allclose(both, divergence, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["dcn_v2", "m3", "seq2slate"])
def test_a_run_with_a_teacher_leaves_a_report(model, tmp_path):
    small = {
        "dcn_v2": ("data.options={rows: 2000}", "trainer.batch_size=128"),
        "m3": ("data.options={users: 100, length: 9}", "data.history.length=8"),
        "seq2slate": ("data.options={queries: 100, length: 4}", "data.lists.length=4"),
    }[model]
    common = [*small, "trainer.max_steps=5", "trainer.tensorboard=false"]
    if model != "dcn_v2":
        common.append("trainer.batch_size=16")
    train(model, out=tmp_path / "teacher", overrides=common, progress=False)
    assert not (tmp_path / "teacher" / "teaching.json").exists()
    taught = [*common, f"distill.teacher={tmp_path / 'teacher'}"]
    result = train(model, out=tmp_path / "run", overrides=taught, progress=False)
    if model == "seq2slate":  # The order of a slate has no classes.
        assert "teaching" not in result
        return
    report = json.loads((tmp_path / "run" / "teaching.json").read_text())
    assert (tmp_path / "run" / "teaching.png").stat().st_size > 5000
    assert report["shares"] == result["teaching"]
    assert sum(report["shares"].values()) == pytest.approx(1)
    assert (report["shares"]["class relations"] > 1e-6) == (model == "m3")
    assert (report["classes"] == 2) == (model == "dcn_v2")
    confidences = [tenth["confidence"] for tenth in report["tenths"]]
    assert confidences == sorted(confidences)
