"""Knowledge distillation: the specification's invariants 1 to 12, its worked examples, bad input."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import tensorflow as tf

from tests.oracles import distillation as oracle
from tfrz.errors import ConfigError
from tfrz.losses.distillation import (
    KINDS,
    binary_distillation_loss,
    binary_rescaling_factor,
    discrepancy_weights,
    distillation_loss,
    position_weights,
    ranking_distillation_loss,
    relaxed_ranking_loss,
    rescaling_factor,
    soft_targets,
    split_divergence,
)

BATCH, CLASSES, DIM, K = 6, 7, 3, 3
SETTINGS = [(0.0, 1.0, "squared"), (0.3, 1.0, "one"), (0.7, 4.0, "squared"), (1.0, 2.5, "one")]
# Worked example 1 and 2.
Z = tf.constant([[1.0, 0.2, -0.5, 0.1]], tf.float64)
V = tf.constant([[2.5, 1.5, -1.0, 0.0]], tf.float64)
T0 = tf.constant([0])
VECTORS = tf.constant([[1.0, 0], [0.8, 0.6], [-1, 0], [0, 1]], tf.float64)
Q = [0.675601805366216, 0.248540014612541, 0.020401406757454, 0.055456773263789]


def _case(seed: int = 0, dtype: str = "float64"):
    """Student and teacher logits, labels, and class vectors."""
    rng = np.random.default_rng(seed)
    z, v = (rng.normal(0, 2, (2, BATCH, CLASSES))).astype(dtype)
    labels, vectors = rng.integers(0, CLASSES, BATCH), rng.normal(size=(CLASSES, DIM))
    return tf.constant(z), tf.constant(v), tf.constant(labels), tf.constant(vectors.astype(dtype))


def _targets(kind, v, labels, vectors, temperature=1.0, k=K):
    return soft_targets(kind, v, labels, temperature, k, vectors, sharpness=0.4)


def _scaled(temperature: float, scale: str) -> float:
    return temperature**2 if scale == "squared" else 1.0


def _slopes(function, at):
    with tf.GradientTape() as tape:
        tape.watch(at)
        total = tf.reduce_sum(function(at))
    return tape.gradient(total, at).numpy()


def _one_hot(labels):
    return np.eye(CLASSES)[labels.numpy()]


# The oracle


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_soft_targets_are_those_of_numpy(kind, temperature):
    _, v, labels, vectors = _case()
    found = _targets(kind, v, labels, vectors, temperature)
    expected = [
        oracle.soft_targets(kind, row, t, temperature, K, vectors.numpy(), 0.4)
        for row, t in zip(v.numpy(), labels.numpy())
    ]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("weight", "temperature", "scale"), SETTINGS)
def test_loss_gradient_and_omega_are_those_of_numpy(kind, weight, temperature, scale):
    z, v, labels, vectors = _case()
    rho = _targets(kind, v, labels, vectors, temperature)
    s = _scaled(temperature, scale)
    rows = list(zip(z.numpy(), labels.numpy(), _one_hot(labels), rho.numpy()))
    arguments = (weight, temperature, s)
    loss = distillation_loss(z, labels, rho, weight, temperature, scale)
    np.testing.assert_allclose(
        loss, [oracle.loss(a, y, r, *arguments) for a, _, y, r in rows], rtol=0, atol=1e-12
    )
    slopes = _slopes(lambda a: distillation_loss(a, labels, rho, weight, temperature, scale), z)
    np.testing.assert_allclose(
        slopes, [oracle.gradient(a, y, r, *arguments) for a, _, y, r in rows], rtol=0, atol=1e-12
    )
    numeric = [oracle.slopes(lambda x: oracle.loss(x, y, r, *arguments), a) for a, _, y, r in rows]
    np.testing.assert_allclose(slopes, numeric, atol=1e-7)
    omega = rescaling_factor(z, labels, rho, weight, temperature, scale)
    np.testing.assert_allclose(
        omega, [oracle.omega(a, t, r, *arguments) for a, t, _, r in rows], rtol=1e-10
    )


@pytest.mark.parametrize(("weight", "temperature", "scale"), SETTINGS)
def test_binary_loss_is_that_of_numpy_for_labels_between_0_and_1_too(weight, temperature, scale):
    rng = np.random.default_rng(1)
    s, u = rng.normal(0, 2, (2, 5))
    y = np.array([0, 1, 0.3, 1, 0.0])
    arguments = (weight, temperature, _scaled(temperature, scale))
    found = binary_distillation_loss(tf.constant(s), y, tf.constant(u), weight, temperature, scale)
    expected = [oracle.binary_loss(*row, *arguments) for row in zip(s, y, u)]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)
    slopes = _slopes(
        lambda a: binary_distillation_loss(a, y, tf.constant(u), weight, temperature, scale),
        tf.constant(s),
    )
    numeric = [
        oracle.slopes(lambda x: oracle.binary_loss(x[0], b, c, *arguments), np.array([a]))[0]
        for a, b, c in zip(s, y, u)
    ]
    np.testing.assert_allclose(slopes, numeric, atol=1e-7)


# Section (e)


@pytest.mark.parametrize("kind", KINDS)
def test_invariant_01_without_weight_it_is_cross_entropy(kind):
    z, v, labels, vectors = _case()
    plain = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, z)
    rho = _targets(kind, v, labels, vectors, 4.0)
    for targets in (rho, rho * np.nan):
        np.testing.assert_array_equal(distillation_loss(z, labels, targets, 0.0, 4.0), plain)
        slopes = _slopes(lambda a: distillation_loss(a, labels, targets, 0.0, 4.0), z)
        np.testing.assert_allclose(slopes, tf.nn.softmax(z) - _one_hot(labels), rtol=0, atol=1e-12)
    y = tf.cast(labels > 2, tf.float64)
    np.testing.assert_array_equal(
        binary_distillation_loss(z[:, 0], y, v[:, 0] * np.nan, 0.0, 4.0),
        tf.nn.sigmoid_cross_entropy_with_logits(y, z[:, 0]),
    )


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_invariant_02_a_teacher_of_the_labels_is_cross_entropy(weight):
    z, _, labels, _ = _case()
    found = distillation_loss(z, labels, tf.constant(_one_hot(labels)), weight)
    plain = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, z)
    np.testing.assert_allclose(found, plain, rtol=1e-14)


@pytest.mark.parametrize("weight", [0.1, 0.7, 1.0])
def test_invariant_03_a_uniform_teacher_is_label_smoothing(weight):
    z, v, labels, _ = _case()
    smooth = (1 - weight) * _one_hot(labels) + weight / CLASSES
    expected = -np.sum(smooth * tf.nn.log_softmax(z).numpy(), -1)
    rho = soft_targets("label_smoothing", v, labels)
    np.testing.assert_allclose(distillation_loss(z, labels, rho, weight), expected, rtol=1e-12)
    equal = soft_targets("full", tf.zeros_like(v), labels)
    np.testing.assert_allclose(distillation_loss(z, labels, equal, weight), expected, rtol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("weight", "temperature", "scale"), SETTINGS)
def test_invariant_04_gradients_sum_to_0_and_the_own_prediction_teaches_nothing(
    kind, weight, temperature, scale
):
    z, v, labels, vectors = _case()
    rho = _targets(kind, v, labels, vectors, temperature)
    slopes = _slopes(lambda a: distillation_loss(a, labels, rho, weight, temperature, scale), z)
    np.testing.assert_allclose(slopes.sum(-1), 0, rtol=0, atol=1e-12)
    own = tf.nn.softmax(z / temperature)
    slopes = _slopes(lambda a: distillation_loss(a, labels, own, 1.0, temperature, scale), z)
    np.testing.assert_allclose(slopes, 0, rtol=0, atol=1e-14)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_invariant_05_targets_are_distributions_that_keep_what_they_say(temperature):
    _, v, labels, vectors = _case()
    q = tf.nn.softmax(v / temperature).numpy()
    rows, t = np.arange(BATCH), labels.numpy()
    rho = {
        kind: _targets(kind, v, labels, vectors, temperature).numpy().astype(float)
        for kind in KINDS
    }
    for kind, found in rho.items():
        assert (found >= 0).all(), kind
        np.testing.assert_allclose(found.sum(-1), 1, rtol=1e-14)
    for kind in ("partial", "partial_similarity"):
        np.testing.assert_allclose(rho[kind][rows, t], q[rows, t], rtol=1e-14)
    best = np.argsort(-q, -1, "stable")[:, :K]
    inside = (best == t[:, None]).any(-1)
    assert inside.any()
    assert not inside.all()
    np.testing.assert_allclose(rho["topk"][rows, t][inside], q[rows, t][inside], rtol=1e-14)
    # A label outside gets the shared rest.
    rest = (1 - np.take_along_axis(q, best, -1).sum(-1)) / (CLASSES - K)
    np.testing.assert_allclose(rho["topk"][rows, t][~inside], rest[~inside], rtol=1e-12)
    for k in (CLASSES, CLASSES - 1):
        found = _targets("topk", v, labels, vectors, temperature, k)
        np.testing.assert_allclose(found, q, rtol=1e-14)


def test_invariant_05_ties_are_taken_in_the_order_of_the_classes():
    v = tf.math.log(tf.constant([[0.2, 0.3, 0.2, 0.1, 0.2], [0.2, 0.2, 0.2, 0.2, 0.2]], tf.float64))
    v = tf.round(v * 8) / 8
    for jit in (False, True):
        made = tf.function(
            lambda a: soft_targets("topk", a, tf.constant([0, 0]), k=2), jit_compile=jit
        )
        q, found = tf.nn.softmax(v).numpy(), made(v).numpy()
        np.testing.assert_allclose(found[0, :2], q[0, :2])
        np.testing.assert_allclose(found[0, 2:], (1 - q[0, :2].sum()) / 3)
        np.testing.assert_allclose(found[1], 0.2)


@pytest.mark.parametrize(("weight", "temperature", "scale"), SETTINGS[1:])
def test_invariant_06_omega_is_the_ratio_of_gradients_and_the_same_for_partial(
    weight, temperature, scale
):
    z, v, labels, vectors = _case()
    omegas = {}
    for kind in ("full", "partial"):
        rho = _targets(kind, v, labels, vectors, temperature)
        omegas[kind] = rescaling_factor(z, labels, rho, weight, temperature, scale)
        ratios = []
        for a, t, r in zip(z.numpy(), labels.numpy(), rho.numpy()):
            y = np.eye(CLASSES)[t]
            s = _scaled(temperature, scale)
            mixed = oracle.slopes(lambda x: oracle.loss(x, y, r, weight, temperature, s), a)
            hard = oracle.slopes(lambda x: oracle.loss(x, y, y, 0.0, 1.0, 1.0), a)
            ratios.append(mixed[t] / hard[t])
        np.testing.assert_allclose(omegas[kind], ratios, rtol=1e-5)
    np.testing.assert_allclose(omegas["full"], omegas["partial"], rtol=1e-12)


@pytest.mark.parametrize("weight", [0.3, 1.0])
def test_invariant_07_partial_and_full_differ_by_the_class_relations_alone(weight):
    z, v, labels, vectors = _case()
    q, own = tf.nn.softmax(v).numpy(), _one_hot(labels).astype(bool)
    slopes = {
        kind: _slopes(
            lambda a: distillation_loss(a, labels, _targets(kind, v, labels, vectors), weight, 1.0),
            z,
        )
        for kind in ("full", "partial")
    }
    share = (1 - q[own])[:, None] / (CLASSES - 1)
    difference = np.where(own, 0, weight * (q - share))
    np.testing.assert_allclose(slopes["partial"] - slopes["full"], difference, rtol=0, atol=1e-12)
    np.testing.assert_allclose(difference.sum(-1), 0, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("weight", "temperature", "scale"), SETTINGS)
def test_invariant_08_two_classes_are_one_logit(weight, temperature, scale):
    rng = np.random.default_rng(2)
    s, u = tf.constant(rng.normal(0, 2, BATCH)), tf.constant(rng.normal(0, 2, BATCH))
    y = tf.constant(rng.integers(0, 2, BATCH))
    # Class 0 is the click: logits (s, 0).
    z, v, labels = tf.stack([s, 0 * s], -1), tf.stack([u, 0 * u], -1), 1 - y
    q = soft_targets("full", v, labels, temperature)
    for kind, k in (("partial", None), ("topk", 1), ("topk", 2)):
        rho = soft_targets(kind, v, labels, temperature, k)
        np.testing.assert_allclose(rho, q, rtol=1e-14)
    np.testing.assert_allclose(
        binary_distillation_loss(s, y, u, weight, temperature, scale),
        distillation_loss(z, labels, q, weight, temperature, scale),
        rtol=1e-12,
    )
    np.testing.assert_allclose(
        binary_rescaling_factor(s, y, u, weight, temperature, scale),
        rescaling_factor(z, labels, q, weight, temperature, scale),
        rtol=1e-12,
    )


@pytest.mark.parametrize("kind", KINDS)
def test_invariant_09_the_divergence_splits_exactly(kind):
    z, v, labels, vectors = _case()
    rho = _targets(kind, v, labels, vectors)
    parts = split_divergence(z, labels, rho)
    for i, (row, r, t) in enumerate(zip(z.numpy(), rho.numpy(), labels.numpy())):
        p, wrong = oracle.softmax(row), np.arange(CLASSES) != t
        first = oracle.divergence([r[t], 1 - r[t]], [p[t], 1 - p[t]])
        second = oracle.divergence(r[wrong] / r[wrong].sum(), p[wrong] / p[wrong].sum())
        assert float(parts.confidence[i]) == pytest.approx(first, abs=1e-12)
        assert float(parts.relations[i]) == pytest.approx((1 - r[t]) * second, abs=1e-12)
        assert float(sum(parts)[i]) == pytest.approx(oracle.divergence(r, p), abs=1e-12)
    # Its gradient is that of the cross-entropy against the same targets.
    slopes = _slopes(lambda a: sum(split_divergence(a, labels, rho)), z)
    plain = _slopes(lambda a: distillation_loss(a, labels, rho, 1.0), z)
    np.testing.assert_allclose(slopes, plain, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_invariant_10_constants_of_logits_change_nothing(kind):
    z, v, labels, vectors = _case()
    rho = _targets(kind, v, labels, vectors, 2.0)
    np.testing.assert_allclose(_targets(kind, v + 37, labels, vectors, 2.0), rho, rtol=1e-11)
    for function in (distillation_loss, rescaling_factor):
        np.testing.assert_allclose(
            function(z - 37, labels, rho, 0.7, 2.0), function(z, labels, rho, 0.7, 2.0), rtol=1e-11
        )
    for moved, still in zip(
        split_divergence(z - 37, labels, rho), split_divergence(z, labels, rho)
    ):
        np.testing.assert_allclose(moved, still, atol=1e-11)


@pytest.mark.parametrize(
    ("weight", "temperature", "scale"),
    [(0.3, 1.0, "one"), (1.0, 1.0, "one"), (0.7, 3.0, "squared"), (0.5, 0.7, "one")],
)
def test_invariant_11_free_logits_end_in_the_teachers_order(weight, temperature, scale):
    _, v, labels, _ = _case()
    v /= 2  # Plain descent takes for ever to where a probability is small.
    rho = soft_targets("full", v, labels, temperature)
    z = tf.Variable(tf.zeros_like(v))
    descend = tf.function(
        lambda: z.assign_sub(
            _gradient(lambda: distillation_loss(z, labels, rho, weight, temperature, scale), z)
        )
    )
    for _ in range(6000):
        descend()
    own = _one_hot(labels).astype(bool)
    for row, q, mine in zip(z.numpy(), rho.numpy(), own):
        np.testing.assert_array_equal(np.argsort(row[~mine]), np.argsort(q[~mine]))
    if temperature == 1:
        mixed = (1 - weight) * own + weight * rho.numpy()
        np.testing.assert_allclose(tf.nn.softmax(z), mixed, atol=1e-5)


def _gradient(function, variable):
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(function())
    return tape.gradient(loss, variable)


def test_invariant_12_relaxed_ranking_is_plackett_luce_ahead_of_the_rest():
    rng = np.random.default_rng(3)
    first, last = rng.normal(size=(2, 3)), rng.normal(size=(2, 4))
    loss = relaxed_ranking_loss(tf.constant(first), tf.constant(last)).numpy()
    np.testing.assert_allclose(
        loss, [oracle.relaxed_ranking(a, b) for a, b in zip(first, last)], rtol=1e-12
    )
    np.testing.assert_allclose(
        np.exp(-loss), [oracle.relaxed_probability(a, b) for a, b in zip(first, last)], rtol=1e-12
    )
    moved = relaxed_ranking_loss(tf.constant(first + 500), tf.constant(last + 500))
    np.testing.assert_allclose(moved, loss, rtol=1e-11)
    # Nothing uninteresting: the likelihood of the list, over all lists 1.
    empty = np.zeros([2, 0])
    for others in (None, tf.constant(empty)):
        orders = itertools.permutations(range(3))
        total = sum(
            np.exp(-relaxed_ranking_loss(tf.constant(first[:, o]), others).numpy())
            for o in map(list, orders)
        )
        np.testing.assert_allclose(total, 1, rtol=1e-12)


# Worked examples


def test_worked_example_1_temperature_4():
    rho = soft_targets("full", V, T0, 4.0)
    np.testing.assert_allclose(
        rho[0],
        [0.366176398652905, 0.285178466013149, 0.152645033101053, 0.196000102232893],
        rtol=0,
        atol=1e-12,
    )
    loss = distillation_loss(Z, T0, rho, 0.7, 4.0)
    assert float(loss[0]) == pytest.approx(15.38071625130738, abs=1e-9)
    slopes = _slopes(lambda a: distillation_loss(a, T0, rho, 0.7, 4.0), Z)
    expected = [-0.333675665618351, -0.039935341200737, 0.187145199125089, 0.186465807693999]
    np.testing.assert_allclose(slopes[0], expected, rtol=0, atol=1e-9)
    for scale, expected in (("squared", 0.6429127041146458), ("one", 0.3214320440071654)):
        omega = rescaling_factor(Z, T0, rho, 0.7, 4.0, scale)
        assert float(omega[0]) == pytest.approx(expected, abs=1e-9)


def test_worked_example_1_temperature_1():
    rho = soft_targets("full", V, T0)
    np.testing.assert_allclose(rho[0], Q, rtol=0, atol=1e-12)
    omega = rescaling_factor(Z, T0, rho, 0.7)
    assert float(omega[0]) == pytest.approx(0.562473924807204, abs=1e-9)
    mixed = _slopes(lambda a: distillation_loss(a, T0, rho, 0.7), Z)
    hard = _slopes(lambda a: distillation_loss(a, T0, rho, 0.0), Z)
    assert np.abs(mixed).sum() / np.abs(hard).sum() == pytest.approx(float(omega[0]), abs=1e-9)
    smooth = soft_targets("label_smoothing", V, T0)
    slopes = _slopes(lambda a: distillation_loss(a, T0, smooth, 0.7), Z)
    expected = [0.005993821582892, 0.041124455598625, -0.067675771559804, 0.020557494378287]
    np.testing.assert_allclose(slopes[0], expected, rtol=0, atol=1e-9)
    assert float(sum(split_divergence(Z, T0, rho))[0]) == pytest.approx(0.16050777843063, abs=1e-9)


def test_worked_example_1_temperature_1000_matches_centred_logits():
    rho = soft_targets("full", V, T0, 1000.0)
    slopes = _slopes(lambda a: distillation_loss(a, T0, rho, 1.0, 1000.0), Z)
    expected = [-0.237611710650398, -0.18737922449738, 0.262369210811658, 0.162621724336176]
    np.testing.assert_allclose(slopes[0], expected, rtol=0, atol=1e-9)
    np.testing.assert_allclose(slopes[0], [-0.2375, -0.1875, 0.2625, 0.1625], atol=2e-4)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("partial", [0.675601805366216, 0.108132731544595, 0.108132731544595, 0.108132731544595]),
        ("topk", [0.675601805366216, 0.248540014612541, 0.037929090010622, 0.037929090010622]),
        (
            "similarity",
            [0.548254340368283, 0.367505874674907, 0.010041628517367, 0.074198156439444],
        ),
        (
            "partial_similarity",
            [0.675601805366216, 0.263905672849279, 0.0072108853572, 0.053281636427306],
        ),
    ],
)
def test_worked_example_2(kind, expected):
    rho = soft_targets(kind, V, T0, k=2, class_vectors=VECTORS, sharpness=0.5)
    np.testing.assert_allclose(rho[0], expected, rtol=0, atol=1e-9)


def test_worked_example_3():
    s, u, y = (tf.constant([x], tf.float64) for x in (0.4, -1.2, 1.0))
    slope = _slopes(lambda a: binary_distillation_loss(a, y, u, 0.5), s)
    assert slope[0] == pytest.approx(-0.017049948138039173, abs=1e-9)
    soft = tf.constant([0.6157376082504912], tf.float64)
    np.testing.assert_allclose(
        binary_distillation_loss(s, y, u, 0.5),
        tf.nn.sigmoid_cross_entropy_with_logits(soft, s),
        rtol=0,
        atol=1e-9,
    )
    omega = binary_rescaling_factor(s, y, u, 0.5)
    assert float(omega[0]) == pytest.approx(0.0424854818638688, abs=1e-9)


def test_c8_omega_of_clicks_and_of_others():
    rng = np.random.default_rng(4)
    s, u = rng.normal(size=(2, BATCH))
    p, q = 1 / (1 + np.exp(-s)), 1 / (1 + np.exp(-u))
    ones = np.ones(BATCH)
    found = binary_rescaling_factor(tf.constant(s), ones, tf.constant(u), 0.6)
    np.testing.assert_allclose(found, 1 - 0.6 * (1 - q) / (1 - p), rtol=1e-12)
    found = binary_rescaling_factor(tf.constant(s), 0 * ones, tf.constant(u), 0.6)
    np.testing.assert_allclose(found, 1 - 0.6 * q / p, rtol=1e-12)


def test_c8_a_high_temperature_is_the_regression_of_logits():
    s, u = tf.constant([0.4, -2.0], tf.float64), tf.constant([-1.2, 0.5], tf.float64)
    slopes = _slopes(lambda a: binary_distillation_loss(a, [1.0, 0], u, 1.0, 1000.0), s)
    np.testing.assert_allclose(slopes, (s - u) / 4, rtol=1e-5)


# Section c9


def test_c9_position_weights():
    np.testing.assert_allclose(
        position_weights(5, 1.0, tf.float64),
        [0.63640865, 0.23412166, 0.08612854, 0.03168492, 0.01165623],
        rtol=0,
        atol=5e-9,
    )
    assert position_weights(3, 2.0).dtype == tf.float32


def test_c9_relaxed_ranking():
    loss = relaxed_ranking_loss(
        tf.constant([[2, 1, 0.5]], tf.float64), tf.constant([[0.3, -0.2]], tf.float64)
    )
    assert float(loss[0]) == pytest.approx(2.3504697986371363, abs=1e-9)


def test_c9_ranking_distillation_and_its_weights():
    rng = np.random.default_rng(5)
    scores, others = rng.normal(size=(4, 6)), rng.normal(0.5, 1, (4, 9))
    found = discrepancy_weights(tf.constant(scores), tf.constant(others), 50, 0.05)
    expected = [oracle.discrepancies(a, b, 50, 0.05) for a, b in zip(scores, others)]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)
    assert (np.array(expected) == 0).any()
    weights = position_weights(6, 2.0, tf.float64) * found
    np.testing.assert_allclose(
        ranking_distillation_loss(tf.constant(scores), weights),
        np.sum(weights.numpy() * np.log1p(np.exp(-scores)), -1),
        rtol=1e-12,
    )
    # An item on top of the list that the student has on top needs nothing more.
    top = discrepancy_weights(tf.constant([[9.0]]), tf.constant([[1.0, 2.0]]), 50, 0.05)
    assert float(top[0, 0]) == 0


def test_c9_ranks_are_rounded_down_from_whole_numbers():
    # 29 / 100 * 100 is 28.999999999999996 in float64.
    others = tf.concat([tf.ones([29]), -tf.ones([71])], 0)
    found = discrepancy_weights(tf.zeros([1]), others, 101, 0.001)
    np.testing.assert_allclose(found, np.tanh(0.029), rtol=1e-6)


def test_c9_padding_of_lists_changes_nothing():
    first, last = tf.constant([[2.0, 1.0, 0.5]]), tf.constant([[0.3, -0.2]])
    padded, rest = tf.constant([[2.0, 1.0, 0.5, 99.0]]), tf.constant([[0.3, 88.0, -0.2]])
    mask, rest_mask = tf.constant([[True] * 3 + [False]]), tf.constant([[True, False, True]])
    np.testing.assert_allclose(
        relaxed_ranking_loss(padded, rest, mask, rest_mask),
        relaxed_ranking_loss(first, last),
        rtol=1e-6,
    )
    slopes = _slopes(lambda a: relaxed_ranking_loss(a, rest, mask, rest_mask), padded)
    expected = _slopes(lambda a: relaxed_ranking_loss(a, last), first)
    np.testing.assert_allclose(slopes[:, :3], expected, rtol=1e-5)
    assert slopes[0, 3] == 0
    nothing = relaxed_ranking_loss(padded, None, tf.zeros([1, 4], tf.bool))
    np.testing.assert_array_equal(nothing, [0])
    weights = position_weights(4, 1.0)
    np.testing.assert_allclose(
        ranking_distillation_loss(padded, weights, mask),
        ranking_distillation_loss(first, weights[:3]),
        rtol=1e-6,
    )


@pytest.mark.parametrize("values", [(200.0, 150.0, 0.0), (-300.0, 0.0, 300.0)])
def test_c9_relaxed_ranking_of_large_scores_is_finite(values):
    first, last = tf.constant([values]), tf.constant([[170.0, -1000.0]])
    expected = oracle.relaxed_ranking(np.array(values) / 1, np.array([170.0, -1000.0]))
    np.testing.assert_allclose(relaxed_ranking_loss(first, last), [expected], rtol=1e-6)
    assert np.isfinite(_slopes(lambda a: relaxed_ranking_loss(a, last), first)).all()


def test_c9_gradients_of_the_ranking_losses():
    rng = np.random.default_rng(6)
    first, last = rng.normal(size=4), rng.normal(size=3)
    slopes = _slopes(lambda a: relaxed_ranking_loss(a, tf.constant(last)), tf.constant(first))
    numeric = oracle.slopes(lambda a: oracle.relaxed_ranking(a, last), first)
    np.testing.assert_allclose(slopes, numeric, atol=1e-8)
    slopes = _slopes(lambda a: relaxed_ranking_loss(tf.constant(first), a), tf.constant(last))
    numeric = oracle.slopes(lambda a: oracle.relaxed_ranking(first, a), last)
    np.testing.assert_allclose(slopes, numeric, atol=1e-8)

    def weighted(a):
        weights = discrepancy_weights(a, tf.constant(last), 20, 0.3)
        return ranking_distillation_loss(a, weights)

    # Nothing passes through the weights.
    weights = oracle.discrepancies(first, last, 20, 0.3)
    np.testing.assert_allclose(
        _slopes(weighted, tf.constant(first)), -weights / (1 + np.exp(first)), rtol=1e-12
    )


# What else holds


@pytest.mark.parametrize("kind", KINDS)
def test_no_gradient_reaches_the_teacher(kind):
    z, v, labels, vectors = _case()
    with tf.GradientTape() as tape:
        tape.watch([v, vectors])
        rho = _targets(kind, v, labels, vectors)
        loss = tf.reduce_sum(distillation_loss(z, labels, rho, 0.7))
        loss += tf.reduce_sum(binary_distillation_loss(z, tf.zeros_like(z), v, 0.7))
        loss += tf.reduce_sum(sum(split_divergence(z, labels, rho)))
        loss += tf.reduce_sum(rescaling_factor(z, labels, tf.nn.softmax(v), 0.7))
    assert tape.gradient(loss, [v, vectors]) == [None, None]
    # Targets that someone else made are not followed either.
    with tf.GradientTape() as tape:
        tape.watch(v)
        loss = tf.reduce_sum(distillation_loss(z, labels, tf.nn.softmax(v), 0.7))
    assert tape.gradient(loss, v) is None


def test_no_gradient_passes_through_omega():
    z, v, labels, _ = _case()
    rho = soft_targets("full", v, labels)
    with tf.GradientTape() as tape:
        tape.watch(z)
        omega = rescaling_factor(z, labels, rho, 0.7)
        both = omega + binary_rescaling_factor(z[:, 0], tf.zeros([BATCH]), v[:, 0], 0.7)
    assert tape.gradient(both, z) is None


def test_leading_dimensions_are_kept():
    z, v, labels, vectors = _case()
    fold = lambda a: tf.reshape(a, [2, 3, *a.shape[1:]])  # noqa: E731
    for kind in KINDS:
        rho = _targets(kind, v, labels, vectors)
        folded = _targets(kind, fold(v), fold(labels), vectors)
        np.testing.assert_array_equal(folded, fold(rho))
        for function in (distillation_loss, rescaling_factor):
            found = function(fold(z), fold(labels), folded, 0.7, 2.0)
            np.testing.assert_array_equal(found, fold(function(z, labels, rho, 0.7, 2.0)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 2e-2)])
def test_narrow_types_compute_in_float32(kind, dtype, tolerance):
    z, v, labels, vectors = _case()
    narrow = [tf.cast(x, dtype) for x in (z, v, vectors)]
    exact = [tf.cast(x, tf.float64) for x in narrow]
    found = _targets(kind, narrow[1], labels, narrow[2], 2.0)
    rho = _targets(kind, exact[1], labels, exact[2], 2.0)
    assert found.dtype == tf.float32
    np.testing.assert_allclose(found, rho, atol=tolerance)
    for function in (distillation_loss, rescaling_factor):
        narrowed = function(narrow[0], labels, found, 0.7, 2.0)
        assert narrowed.dtype == tf.float32
        wide = function(exact[0], labels, rho, 0.7, 2.0)
        np.testing.assert_allclose(narrowed, wide, rtol=tolerance, atol=tolerance)
    for function in (binary_distillation_loss, binary_rescaling_factor):
        y = tf.constant([0, 1, 0, 1, 1, 0])
        narrowed = function(narrow[0][:, 0], y, narrow[1][:, 0], 0.7, 2.0)
        assert narrowed.dtype == tf.float32
        wide = function(exact[0][:, 0], y, exact[1][:, 0], 0.7, 2.0)
        np.testing.assert_allclose(narrowed, wide, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_ranking_losses_of_narrow_types_are_float32(dtype):
    first, last = tf.constant([[2, 1, 0.5]], dtype), tf.constant([[0.25, -0.25]], dtype)
    for loss in (
        relaxed_ranking_loss(first, last),
        ranking_distillation_loss(first, position_weights(3, 1.0)),
        discrepancy_weights(first, last, 10, 1.0),
    ):
        assert loss.dtype == tf.float32


@pytest.mark.parametrize("kind", KINDS)
def test_compiled_and_not_agree(kind):
    z, v, labels, vectors = _case(dtype="float32")
    first, last = z[:, :3], z[:, 3:]

    def everything(z, v):
        with tf.GradientTape() as tape:
            tape.watch(z)
            rho = _targets(kind, v, labels, vectors, 2.0)
            loss = distillation_loss(z, labels, rho, 0.7, 2.0)
            loss += sum(split_divergence(z, labels, rho))
            loss += binary_distillation_loss(z[:, 0], tf.ones([BATCH]), v[:, 0], 0.7)
            loss += relaxed_ranking_loss(z[:, :3], z[:, 3:])
            weights = position_weights(3, 1.0) * discrepancy_weights(first, last, 100, 0.1)
            loss += ranking_distillation_loss(z[:, :3], weights)
        omega = rescaling_factor(z, labels, rho, 0.7, 2.0)
        return rho, loss, tape.gradient(loss, z), omega

    plain, compiled = (tf.function(everything, jit_compile=jit)(z, v) for jit in (False, True))
    for a, b in zip(plain, compiled):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("margin", [60.0, 120.0, -120.0, 1e4])
def test_very_sure_models_keep_numbers_finite(margin):
    z = tf.constant([[margin, 0.0, 0.0]])
    labels = tf.constant([0])
    for v in (z, -z, 0 * z):
        rho = soft_targets("full", v, labels)
        parts = split_divergence(z, labels, rho)
        loss = distillation_loss(z, labels, rho, 0.7)
        assert np.isfinite([*parts, loss]).all()
        slopes = _slopes(lambda a: distillation_loss(a, labels, rho, 0.7), z)
        slopes += _slopes(lambda a: sum(split_divergence(a, labels, rho)), z)
        assert np.isfinite(slopes).all()
        assert not np.isnan(rescaling_factor(z, labels, rho, 0.7).numpy()).any()


def test_omega_of_a_sure_student_has_digits():
    # p_t = 1 - 2e-13 / (1 + 2e-13): 1 in float32.
    z, v = tf.constant([[30.0, 0.0, 0.0]]), tf.constant([[31.0, 0.0, 0.0]])
    labels = tf.constant([0])
    found = rescaling_factor(z, labels, soft_targets("full", v, labels), 0.7)
    np.testing.assert_allclose(found, [1 - 0.7 * np.exp(-1)], rtol=1e-5)


def test_omega_rises_with_the_teachers_confidence():
    confidence = tf.constant(np.linspace(0.02, 0.999, 50))
    rho = tf.stack([confidence, 1 - confidence], -1)
    z, labels = tf.ones([50, 1], tf.float64) * [[0.5, 0.0]], tf.zeros([50], tf.int32)
    omega = rescaling_factor(z, labels, rho, 0.8).numpy()
    assert (np.diff(omega) > 0).all()
    assert omega[0] < 0
    sure = rescaling_factor(z, labels, tf.constant([[1.0, 0]] * 50), 0.8)
    np.testing.assert_allclose(sure, 1, rtol=1e-12)
    alike = rescaling_factor(z, labels, tf.nn.softmax(z), 0.8)
    np.testing.assert_allclose(alike, 0.2, rtol=1e-12)


# Bad input

V2 = tf.zeros([2, 4])
Y2 = tf.constant([0, 1])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"kind": "parial"}, "kind: must be one of full"),
        ({"temperature": 0.0}, "temperature: must be above 0"),
        ({"temperature": -1.0}, "temperature: must be above 0"),
        ({"temperature": float("nan")}, "temperature: must be above 0"),
        ({"temperature": float("inf")}, "temperature: must be above 0"),
        ({"kind": "topk"}, "k: must be 1 to 4"),
        ({"kind": "topk", "k": 0}, "k: must be 1 to 4"),
        ({"kind": "topk", "k": 5}, "k: must be 1 to 4"),
        ({"kind": "similarity", "sharpness": 0.3}, "class_vectors: needed"),
        ({"kind": "partial_similarity", "sharpness": 0.3}, "class_vectors: needed"),
        ({"kind": "similarity", "class_vectors": tf.zeros([4, 2])}, "sharpness: must be above 0"),
        (
            {"kind": "similarity", "class_vectors": tf.zeros([4, 2]), "sharpness": 0.0},
            "sharpness: must be above 0",
        ),
        (
            {"kind": "partial_similarity", "class_vectors": tf.zeros([2, 4]), "sharpness": 1.0},
            r"class_vectors: must be \[4, dim\]",
        ),
        (
            {
                "kind": "similarity",
                "class_vectors": tf.zeros([1, 2]),
                "sharpness": 1.0,
                "teacher_logits": tf.zeros([2, 1]),
            },
            "use binary_distillation_loss for one logit",
        ),
        ({"teacher_logits": tf.constant(1.0), "labels": tf.constant(0)}, "number of classes"),
    ],
)
def test_bad_targets(arguments, says):
    values = {"kind": "full", "teacher_logits": V2, "labels": Y2, **arguments}
    with pytest.raises(ConfigError, match=says):
        soft_targets(**values)


@pytest.mark.parametrize(
    "function",
    [distillation_loss, rescaling_factor, binary_distillation_loss, binary_rescaling_factor],
)
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"weight": -0.1}, "weight: must be 0 to 1"),
        ({"weight": 1.1}, "weight: must be 0 to 1"),
        ({"weight": float("nan")}, "weight: must be 0 to 1"),
        ({"temperature": 0.0}, "temperature: must be above 0"),
        ({"weight": 0.0, "temperature": -2.0}, "temperature: must be above 0"),
        ({"scale": "square"}, "scale: must be one of squared, one"),
    ],
)
def test_bad_losses(function, arguments, says):
    values = {"weight": 0.5, **arguments}
    binary = function.__name__.startswith("binary")
    logits, labels = (V2[:, 0], tf.zeros([2])) if binary else (V2, Y2)
    with pytest.raises(ConfigError, match=says):
        function(logits, labels, logits, **values)


@pytest.mark.parametrize(
    "call",
    [
        lambda: position_weights(0, 1.0),
        lambda: position_weights(3, 0.0),
        lambda: discrepancy_weights(V2, V2, 0, 1.0),
        lambda: discrepancy_weights(V2, V2, 10, 0.0),
        lambda: rescaling_factor(tf.zeros([2, 1]), Y2, tf.ones([2, 1]), 0.5),
        lambda: split_divergence(tf.zeros([2, 1]), Y2, tf.ones([2, 1])),
    ],
)
def test_other_bad_arguments(call):
    with pytest.raises(ConfigError):
        call()
