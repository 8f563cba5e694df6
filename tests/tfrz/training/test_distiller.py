"""The settings of a teacher, and the Keras model that trains a student."""

from __future__ import annotations

import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.oracles.temporal import softmax
from tfrz.errors import ConfigError
from tfrz.training import DistillConfig, Distiller

ROWS, DIM, CLASSES = 64, 6, 4
RNG = np.random.default_rng(0)
X = RNG.normal(size=(ROWS, DIM)).astype(np.float32)
LABELS = RNG.integers(0, CLASSES, ROWS)
CLICKS = RNG.integers(0, 2, ROWS).astype(np.float32)


def _network(units: int, seed: int) -> keras.Model:
    keras.utils.set_random_seed(seed)
    model = keras.Sequential([keras.layers.Dense(8, "relu"), keras.layers.Dense(units)])
    model.build((None, DIM))
    return model


def _fitted(distiller: Distiller, targets, epochs: int = 3) -> list[np.ndarray]:
    distiller.compile(optimizer=keras.optimizers.SGD(0.1))
    distiller.fit(X, targets, batch_size=16, epochs=epochs, shuffle=False, verbose=0)
    return distiller.student.get_weights()


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("weight", 1.5),
        ("weight", -0.1),
        ("temperature", 0.0),
        ("temperature", -1.0),
        ("temperature", float("inf")),
        ("sharpness", 0.0),
        ("k", 0),
    ],
)
def test_a_setting_out_of_range_is_named(setting, value):
    with pytest.raises(ConfigError, match=f"^distill.{setting}: "):
        DistillConfig(**{setting: value})


def test_who_is_taught():
    assert not DistillConfig().active
    assert DistillConfig(teacher="there").active
    assert DistillConfig(factor="label_smoothing").active


def test_what_clicks_classes_and_lists_do_not_have_is_refused():
    for factor in ("similarity", "partial_similarity"):
        with pytest.raises(ConfigError, match="class vectors"):
            DistillConfig(factor=factor).check_clicks()
    with pytest.raises(ConfigError, match="above 2"):
        DistillConfig(factor="topk", k=3).check_clicks()
    for k in (None, CLASSES + 1):
        with pytest.raises(ConfigError, match=rf"distill.k: must be 1 to {CLASSES}"):
            DistillConfig(factor="topk", k=k).check_classes(CLASSES)
    with pytest.raises(ConfigError, match="order"):
        DistillConfig(factor="partial").check_lists()
    DistillConfig(factor="topk", k=CLASSES).check_classes(CLASSES)
    DistillConfig(factor="topk").check_lists()


def test_without_weight_it_is_plain_training_whatever_the_teacher():
    plain = _network(CLASSES, 1)
    plain.compile(
        optimizer=keras.optimizers.SGD(0.1),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    plain.fit(X, LABELS, batch_size=16, epochs=3, shuffle=False, verbose=0)
    nobody = lambda rows: tf.fill([tf.shape(rows)[0], CLASSES], np.nan)  # noqa: E731
    student = Distiller(_network(CLASSES, 1), nobody, DistillConfig(weight=0.0))
    for a, b in zip(_fitted(student, LABELS), plain.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("units", [1, CLASSES])
def test_cached_logits_teach_what_the_teacher_itself_teaches(units):
    config = DistillConfig(weight=0.7, temperature=2.0)
    labels = CLICKS[:, None] if units == 1 else LABELS
    teacher = _network(units, 9)
    before = [w.copy() for w in teacher.get_weights()]
    live = _fitted(Distiller(_network(units, 1), teacher, config), labels)
    said = teacher(X).numpy()
    cached = _fitted(Distiller(_network(units, 1), None, config), (labels, said))
    for a, b in zip(live, cached, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    # The teacher is as it was, and no part of the student.
    for a, b in zip(teacher.get_weights(), before, strict=True):
        np.testing.assert_array_equal(a, b)
    assert len(live) == len(Distiller(_network(units, 1), teacher, config).weights)


def test_the_loss_is_the_formula():
    config = DistillConfig(weight=0.3, temperature=3.0)
    student, teacher = _network(CLASSES, 1), _network(CLASSES, 9)
    z, v = (np.asarray(m(X), np.float64) for m in (student, teacher))
    hard = -np.log(softmax(z))[np.arange(ROWS), LABELS]
    soft = -(softmax(v / 3) * np.log(softmax(z / 3))).sum(axis=1)
    distiller = Distiller(student, teacher, config)
    distiller.compile(optimizer="sgd")
    found = distiller.evaluate(X, LABELS, batch_size=ROWS, verbose=0)
    assert found == pytest.approx((0.7 * hard + 0.3 * 9 * soft).mean(), rel=1e-5)
    one = Distiller(student, teacher, DistillConfig(weight=0.3, temperature=3.0, scale="one"))
    one.compile(optimizer="sgd")
    found = one.evaluate(X, LABELS, batch_size=ROWS, verbose=0)
    assert found == pytest.approx((0.7 * hard + 0.3 * soft).mean(), rel=1e-5)


def test_clicks_learn_from_the_teachers_probabilities():
    teacher, student = _network(1, 9), _network(1, 1)
    p = 1 / (1 + np.exp(-np.asarray(teacher(X), np.float64)))
    distance = lambda: float(np.abs(tf.sigmoid(student(X)).numpy() - p).mean())  # noqa: E731
    before = distance()
    _fitted(Distiller(student, teacher, DistillConfig(weight=1.0)), CLICKS, epochs=150)
    assert distance() < 0.3 * before


def test_metrics_of_compile_and_sample_weights_are_heard():
    config = DistillConfig(weight=0.5)
    weights = (np.arange(ROWS) < ROWS // 2).astype(np.float32)
    students = []
    for labels in (LABELS, np.where(weights > 0, LABELS, 0)):
        distiller = Distiller(_network(CLASSES, 1), _network(CLASSES, 9), config)
        distiller.compile(
            optimizer=keras.optimizers.SGD(0.1),
            metrics=[keras.metrics.SparseCategoricalAccuracy(name="accuracy")],
        )
        history = distiller.fit(
            X, labels, batch_size=ROWS, epochs=2, verbose=0, sample_weight=weights
        )
        assert set(history.history) == {"loss", "accuracy"}
        students.append(distiller.student.get_weights())
    # Labels of rows without weight change nothing.
    for a, b in zip(*students, strict=True):
        np.testing.assert_array_equal(a, b)


def test_penalties_of_the_student_count():
    student = keras.Sequential([keras.layers.Dense(2, kernel_regularizer="l2")])
    student.build((None, DIM))
    distiller = Distiller(student, _network(2, 9), DistillConfig(weight=1.0))
    before = np.abs(student.get_weights()[0]).sum()
    _fitted(distiller, np.zeros(ROWS, int), epochs=300)
    plain = keras.Sequential([keras.layers.Dense(2)])
    plain.build((None, DIM))
    _fitted(Distiller(plain, _network(2, 9), DistillConfig(weight=1.0)), np.zeros(ROWS, int), 300)
    assert np.abs(student.get_weights()[0]).sum() < np.abs(plain.get_weights()[0]).sum()
    assert before > 0


def test_a_factor_that_the_logits_do_not_admit_is_refused():
    with pytest.raises(ConfigError, match=r"distill\.k"):
        Distiller(None, None, DistillConfig(factor="topk", k=9)).loss_of(
            tf.zeros([2, 3]), tf.zeros([2], tf.int32), tf.zeros([2, 3])
        )
    with pytest.raises(ConfigError, match="class vectors"):
        Distiller(None, None, DistillConfig(factor="similarity")).loss_of(
            tf.zeros([2, 1]), tf.zeros([2]), tf.zeros([2, 1])
        )


def test_label_smoothing_needs_no_teacher():
    config = DistillConfig(factor="label_smoothing", weight=0.4)
    student = _network(CLASSES, 1)
    z = np.asarray(student(X), np.float64)
    log_p = np.log(softmax(z))
    expected = -0.6 * log_p[np.arange(ROWS), LABELS] - 0.4 * log_p.mean(axis=1)
    distiller = Distiller(student, None, config)
    distiller.compile(optimizer="sgd")
    found = distiller.evaluate(X, LABELS, batch_size=ROWS, verbose=0)
    assert found == pytest.approx(expected.mean(), rel=1e-5)
    clicks = Distiller(_network(1, 1), None, config)
    clicks.compile(optimizer="sgd")
    assert np.isfinite(clicks.fit(X, CLICKS, verbose=0).history["loss"]).all()
    nobody = Distiller(_network(CLASSES, 1), None, DistillConfig())
    nobody.compile(optimizer="sgd")
    with pytest.raises(ConfigError, match="teacher: is missing"):
        nobody.fit(X, LABELS, verbose=0)


def test_evaluation_heeds_weights_and_penalties_as_training_does():
    student = keras.Sequential([keras.layers.Dense(2, kernel_regularizer="l2")])
    student.build((None, DIM))
    distiller = Distiller(student, _network(2, 9), DistillConfig())
    distiller.compile(optimizer=keras.optimizers.SGD(0.0))
    weights = (np.arange(ROWS) < 10).astype(np.float32)
    arguments = {"sample_weight": weights, "batch_size": ROWS, "verbose": 0}
    trained = distiller.fit(X, LABELS % 2, **arguments).history["loss"][0]
    assert distiller.evaluate(X, LABELS % 2, **arguments) == pytest.approx(trained, rel=1e-5)


_REPLICAS = """
import keras
import numpy as np
import tensorflow as tf
from tests.tfrz.training.test_distiller import CLASSES, LABELS, X, _network
from tfrz.training import DistillConfig, Distiller

cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
found = []
for strategy in (tf.distribute.get_strategy(), tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])):
    with strategy.scope():
        student, teacher = _network(CLASSES, 1), _network(CLASSES, 9)
        distiller = Distiller(student, teacher, DistillConfig())
        distiller.compile(optimizer=keras.optimizers.SGD(0.1))
    distiller.fit(X, LABELS, batch_size=16, epochs=2, shuffle=False, verbose=0)
    found.append(student.get_weights())
for a, b in zip(*found, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
"""


@pytest.mark.slow
def test_two_replicas_learn_what_one_learns():
    done = subprocess.run([sys.executable, "-c", _REPLICAS], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-1500:]
