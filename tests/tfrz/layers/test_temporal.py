"""Sections 5.1, 5.2 and 5.4 of the specification of M3, on the layers."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfrz.errors import InputError
from tfrz.layers.temporal import (
    ContextualGate,
    LongRangeEncoder,
    MultiTemporalRangeMixture,
    ShortRangeEncoder,
    TinyRangeEncoder,
)

Z = np.array([[[1.6, 0.2], [1.6, 0.0], [0.1, 0.7]]], "float32")
CONTEXT = np.array([[[1, 0], [0, 1], [0, 1]]], "float32")


def _mixture(short_range: str = "gru", **more) -> MultiTemporalRangeMixture:
    keras.utils.set_random_seed(3)
    layer = MultiTemporalRangeMixture(4, short_range=short_range, **more)
    layer(_random(2, 9, 3), _random(2, 9, 2))
    return layer


def _random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def test_5_2_convolution():
    layer = ShortRangeEncoder(2, kind="convolution", kernel_size=2)
    layer(Z)
    layer.set_weights([np.array([[[1, 0], [0, 0.5]], [[0, 1], [-1, 0]]]), np.zeros(2)])
    np.testing.assert_allclose(layer(Z)[0], [[1.6, 0.1], [1.4, 1.6], [0.1, 1.95]], atol=1e-6)


def test_5_2_attention():
    layer = LongRangeEncoder(projections=False)
    layer(Z)
    np.testing.assert_allclose(
        layer.attention(Z)[0, 2], [0.3270477811, 0.2962226389, 0.3767295800], atol=1e-6
    )
    expected = [[1.6, 0.2], [1.6, 0.1], [1.0349056299, 0.3291202623]]
    np.testing.assert_allclose(layer(Z)[0], expected, atol=1e-6)


@pytest.mark.parametrize(
    ("gate", "first", "rest"),
    [
        (
            "sigmoid",
            [0.7310585786, 0.5249791875, 0.2689414214],
            [0.2689414214, 0.6456563062, 0.8807970780],
        ),
        (
            "softmax",
            [0.6485484106, 0.2636801066, 0.0877714829],
            [0.0384045677, 0.1902190692, 0.7713763631],
        ),
        ("fixed", [1, 1, 1], [1, 1, 1]),
    ],
)
def test_5_2_gates(gate, first, rest):
    layer = ContextualGate(3, gate=gate)
    layer(CONTEXT)
    if gate != "fixed":
        layer.set_weights([np.array([[1, 0, -1], [-1, 0.5, 2]]), np.array([0, 0.1, 0])])
    np.testing.assert_allclose(layer(CONTEXT)[0], [first, rest, rest], atol=1e-6)


@pytest.mark.parametrize(
    ("gate", "expected"),
    [
        (
            "sigmoid",
            [
                [2.4399666997, 0.2524979187],
                [2.7435004277, 1.1211297978],
                [1.0030016276, 1.7371769574],
            ],
        ),
        (
            "softmax",
            [[1.6, 0.1736319893], [1.5619561862, 0.3814881470], [0.8211641046, 0.6516859732]],
        ),
    ],
)
def test_5_2_mixture(gate, expected):
    layer = MultiTemporalRangeMixture(
        2, short_range="convolution", gate=gate, identity=True, kernel_size=2
    )
    layer(Z, CONTEXT)
    tiny, short, long = layer.encoders
    assert tiny.weights == []
    short.set_weights([np.array([[[1, 0], [0, 0.5]], [[0, 1], [-1, 0]]]), np.zeros(2)])
    long.set_weights([np.eye(2), np.eye(2)])
    layer.contextual_gate.set_weights([np.array([[1, 0, -1], [-1, 0.5, 2]]), np.array([0, 0.1, 0])])
    np.testing.assert_allclose(layer(Z, CONTEXT)[0], expected, atol=1e-6)


def test_5_4_gru_cell():
    layer = ShortRangeEncoder(1, kind="gru")
    x = np.array([[[1.0], [-2.0]]], "float32")
    layer(x)
    layer.set_weights(
        [
            np.array([[0.1, 0.2, 0.3]]),
            np.array([[0.5, 0.6, 0.7]]),
            np.array([[0.01, 0.02, 0.03], [0.04, 0.05, 0.06]]),
        ]
    )
    np.testing.assert_allclose(np.ravel(layer(x)), [0.1613236219, -0.1585769825], atol=1e-6)


@pytest.mark.parametrize("kind", ["gru", "lstm", "convolution"])
def test_5_1_1_causality(kind):
    layer, z, u = _mixture(kind), _random(2, 9, 3), _random(2, 9, 2)
    before = layer(z, u).numpy()
    changed = z.copy()
    changed[:, 5] += 1
    np.testing.assert_array_equal(layer(changed, u).numpy()[:, :5], before[:, :5])
    other = u.copy()
    other[:, 5] += 1
    after = layer(z, other).numpy()
    np.testing.assert_array_equal(np.delete(after, 5, 1), np.delete(before, 5, 1))
    assert np.abs(after[:, 5] - before[:, 5]).max() > 0


@pytest.mark.parametrize("k", [0, 1, 2])
@pytest.mark.parametrize("kind", ["gru", "convolution"])
def test_5_1_2_a_one_hot_gate_is_one_encoder(kind, k):
    layer, z, u = _mixture(kind), _random(2, 9, 3), _random(2, 9, 2)
    bias = np.full(3, -1000.0)
    bias[k] = 1000.0
    layer.contextual_gate.set_weights([np.zeros([2, 3]), bias])
    np.testing.assert_array_equal(layer(z, u), layer.encoders[k](z))


def test_5_1_3_and_4_order_of_the_past():
    z = _random(1, 9, 3)
    permuted = z.copy()
    permuted[:, :8] = z[:, [3, 1, 7, 0, 2, 6, 5, 4]]
    tiny, long, short = TinyRangeEncoder(4), LongRangeEncoder(4), ShortRangeEncoder(4)
    np.testing.assert_array_equal(tiny(z)[:, 8], tiny(permuted)[:, 8])
    np.testing.assert_allclose(long(z)[:, 8], long(permuted)[:, 8], atol=1e-6)
    assert np.abs(short(z)[:, 8] - short(permuted)[:, 8]).max() > 1e-3


@pytest.mark.parametrize(("dilations", "reach"), [((1,), 5), ((1, 2), 13)])
def test_5_1_5_reach_of_the_convolution(dilations, reach):
    layer = ShortRangeEncoder(4, "convolution", kernel_size=5, dilations=dilations, activation=None)
    z = _random(1, 20, 3)
    before = layer(z).numpy()
    for back, same in ((reach - 1, False), (reach, True)):
        changed = z.copy()
        changed[:, 19 - back] += 1
        assert np.array_equal(layer(changed)[:, 19], before[:, 19]) is same


def test_5_1_6_sums_of_gates():
    z, u = _random(2, 9, 3), _random(2, 9, 2)
    fixed = _mixture(gate="fixed")
    for gate, share in (("sigmoid", 0.5), ("softmax", 1 / 3)):
        other = _mixture(gate=gate)
        for a, b in zip(other.encoders, fixed.encoders, strict=True):
            a.set_weights(b.get_weights())
        other.contextual_gate.set_weights([np.zeros([2, 3]), np.zeros(3)])
        np.testing.assert_allclose(other(z, u), share * fixed(z, u).numpy(), atol=1e-6)


@pytest.mark.parametrize("kind", ["gru", "lstm", "convolution"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_5_1_7_padding_changes_nothing(kind, side):
    layer, z, u = _mixture(kind), _random(2, 6, 3), _random(2, 6, 2)
    layer.set_weights([_random(*w.shape, seed=i) for i, w in enumerate(layer.get_weights())])
    widths = [(0, 0), (0, 4) if side == "right" else (4, 0), (0, 0)]
    filled = [np.pad(x, widths, constant_values=7.0) for x in (z, u)]
    mask = np.pad(np.ones([2, 6], bool), widths[:2])
    padded = layer(*filled, mask=tf.constant(mask)).numpy()
    np.testing.assert_allclose(padded[mask].reshape(2, 6, 4), layer(z, u), atol=1e-5)
    assert not padded[~mask].any()


def test_5_1_9_the_first_step():
    layer, z = LongRangeEncoder(4), _random(2, 5, 3)
    layer(z)
    expected = z[:, 0] @ tf.convert_to_tensor(layer.W_V).numpy()
    np.testing.assert_allclose(layer(z)[:, 0], expected, atol=1e-6)


def test_bad_arguments_name_themselves():
    for make, word in (
        (lambda: ShortRangeEncoder(4, kind="rnn"), "kind"),
        (lambda: ContextualGate(3, gate="relu"), "gate"),
        (lambda: MultiTemporalRangeMixture(4, ranges=("tiny", "tiny")), "ranges"),
        (lambda: TinyRangeEncoder(0), "units"),
    ):
        with pytest.raises(InputError, match=word):
            make()
