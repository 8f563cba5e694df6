"""Four-bit codes: the specification's invariants 10 and 11, on numbers of every kind."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from tests.oracles import history as oracle
from tfrz.errors import InputError
from tfrz.layers.quantize import pack4, packed_bytes, unpack4, unpack4_strings

EXAMPLE = np.array([-1, -0.4, 0, 0.25, 0.9, 2])
DIM, ROWS = 20, 3000


def _scales(words: np.ndarray) -> np.ndarray:
    return words[..., -1:].copy().view("<f4")[..., :1].astype("float64")


def _strings(words: np.ndarray) -> list[bytes]:
    """The words of each user as bytes."""
    return [user.astype("<u8").tobytes() for user in words]


def _kinds() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    one = rng.uniform(-1, 1, (ROWS, DIM))
    size = 10.0 ** rng.uniform(-24, 37, (ROWS, 1))
    start = rng.normal(size=(ROWS, 1)).astype("float32")
    power = (2.0 ** rng.integers(-20, 20, (ROWS, 1)) * rng.choice([-1, 1], (ROWS, 1))).astype("f4")
    steps = rng.integers(1, 70, (ROWS, 1))
    near = (rng.random((ROWS, DIM)) * steps).astype("int32")
    return {
        "ordinary": rng.normal(size=(ROWS, DIM)),
        "of any size": one * size,
        "far from zero": 1e-3 * one * size + size * 10.0 ** rng.uniform(-3, 0, (ROWS, 1)),
        "negative": -np.abs(one) * size - size,
        "huge": one * 1.6e38,
        "tiny": one * 2.0 ** rng.integers(-97, -80, (ROWS, 1)),
        "a few float32 apart": (start.view("i4") + near).view("f4"),
        "around powers of two": (power.view("i4") + near - steps.astype("i4") // 2).view("f4"),
        "one outlier": np.concatenate([one[:, 1:], size], axis=1),
        "two values": np.where(one > 0, size, -size / 3),
        "with zeros of both signs": np.where(one > 0.5, one, np.copysign(0.0, one)),
    }


KINDS = _kinds()
kinds = pytest.mark.parametrize("kind", KINDS)


def test_invariant_10_the_worked_example():
    words = pack4(EXAMPLE)
    assert words.dtype == np.uint64 and words.shape == (2,)
    assert int(words[0]) == 0xF96530 == 16344368
    back = unpack4(words, 6)
    assert back.dtype == np.float32
    np.testing.assert_allclose(back, [-1, -0.4, 0, 0.2, 0.8, 2], atol=2e-6)
    assert np.abs(back - EXAMPLE).max() == pytest.approx(0.1, abs=1e-6)
    scale, least = words[1:].view("<f4")
    assert scale == pytest.approx(0.2, rel=1e-6) and least == -1
    assert int(words[1]) & 0xFFFFFFFF == int(np.float32(scale).view(np.uint32))


def test_invariant_10_codes_are_those_of_the_formula_low_nibble_and_word_first():
    for vector in np.random.default_rng(0).normal(size=(50, 37)).astype("float32"):
        words = pack4(vector)
        assert len(words) == 4
        number = sum(int(word) << 64 * i for i, word in enumerate(words[:-1]))
        q, back = oracle.codes(vector.astype("float64"))
        assert [number >> 4 * i & 15 for i in range(48)] == [*q, *[0] * 11]
        np.testing.assert_allclose(unpack4(words, 37), back, atol=1e-5)


@kinds
def test_invariant_10_packing_what_was_unpacked_changes_no_bit(kind):
    words = pack4(KINDS[kind])
    back = unpack4(words, DIM)
    np.testing.assert_array_equal(pack4(back), words)
    np.testing.assert_array_equal(unpack4(pack4(back), DIM).view("u4"), back.view("u4"))


@kinds
def test_invariant_10_the_error_is_half_a_step_at_most(kind):
    x = KINDS[kind].astype("float32")
    words = pack4(x)
    back = unpack4(words, DIM)
    error = np.abs(back.astype("float64") - x)
    # What float32 adds: the rounding of the result, and of the quotient that was rounded to q.
    limit = _scales(words) / 2 * (1 + 4e-6) + np.spacing(np.abs(back)).astype("float64")
    assert (error <= limit).all()
    np.testing.assert_array_equal(_scales(words)[:, 0] > 0, x.max(axis=1) > x.min(axis=1))


@kinds
def test_invariant_10_graph_and_numpy_unpack_the_same_bits(kind):
    words = pack4(KINDS[kind]).reshape(ROWS // 3, 3, -1)
    graph = tf.function(lambda s: unpack4_strings(s, 3, DIM))(tf.constant(_strings(words)))
    np.testing.assert_array_equal(graph.numpy().view("u4"), unpack4(words, DIM).view("u4"))


@pytest.mark.parametrize("value", [0.0, -0.0, 1.0, -0.1, 1e-37, 3.4e38, -3.4e38])
def test_invariant_10_a_constant_vector_is_exact(value):
    x = np.full((2, DIM), value, "float32")
    words = pack4(x)
    assert not _scales(words).any()
    np.testing.assert_array_equal(unpack4(words, DIM), x)
    np.testing.assert_array_equal(pack4(unpack4(words, DIM)), words)


@pytest.mark.parametrize("exponent", range(-149, -96, 4))
def test_ranges_too_small_for_every_machine_are_none(exponent):
    x = np.random.default_rng(1).uniform(-1, 1, (50, DIM)) * 2.0**exponent
    words = pack4(x)
    back = unpack4(words, DIM)
    assert np.abs(back - x).max() <= max(3e-30, _scales(words).max())
    np.testing.assert_array_equal(pack4(back), words)
    graph = unpack4_strings(tf.constant(_strings(words[:, None])), 1, DIM)[:, 0]
    np.testing.assert_array_equal(graph.numpy().view("u4"), back.view("u4"))


def test_invariant_11_bytes_of_a_user():
    assert packed_bytes(58, 256) == 58 * 17 * 8 == 7888
    words = pack4(np.random.default_rng(0).normal(size=(2, 58, 256)))
    assert words.shape == (2, 58, 17) and words[0].nbytes == 7888
    assert packed_bytes(3, 17) == 3 * 3 * 8 and packed_bytes(1, 1) == 16


@pytest.mark.parametrize("dim", [1, 2, 15, 16, 17, 32, 33])
def test_every_width(dim):
    x = np.random.default_rng(dim).normal(size=(4, 3, dim)).astype("float32")
    words = pack4(x)
    assert words.shape == (4, 3, -(-dim // 16) + 1)
    back = unpack4(words, dim)
    assert back.shape == x.shape
    assert (np.abs(back - x) <= _scales(words) / 2 + 1e-6).all()
    np.testing.assert_array_equal(unpack4_strings(tf.constant(_strings(words)), 3, dim), back)
    # Words need not lie side by side.
    np.testing.assert_array_equal(unpack4(words[::2, ::-1], dim), back[::2, ::-1])


def test_strings_of_another_length_are_zeros():
    words = pack4(np.random.default_rng(0).normal(size=(1, 2, DIM)))
    data = _strings(words)[0]
    packed = tf.constant([data, b"", data[:-1], data + b"\0", data * 2])
    output = unpack4_strings(packed, 2, DIM).numpy()
    np.testing.assert_array_equal(output[0], unpack4(words, DIM)[0])
    assert output.shape == (5, 2, DIM) and not output[1:].any()


def test_none_is_none():
    assert pack4(np.zeros((0, 58, 256))).shape == (0, 58, 17)
    assert unpack4(np.zeros((0, 17), np.uint64), 256).shape == (0, 256)
    empty = tf.function(lambda s: unpack4_strings(s, 58, 256))
    assert empty(tf.constant([], tf.string)).shape == (0, 58, 256)
    assert unpack4_strings(tf.constant([b"", b""]), 58, 256).shape == (2, 58, 256)


@pytest.mark.parametrize(
    "row",
    [
        [0, np.nan, 1],
        [np.inf, 0, 1],
        [-np.inf, 0, 1],
        [np.inf] * 3,
        [np.nan] * 3,
        [0, 1, 1e39],
        [-3e38, 0, 3e38],
    ],
)
def test_what_float32_cannot_hold_is_refused_and_named(row):
    x = np.zeros((2, 4, 3))
    x[1, 2] = row
    with pytest.raises(InputError, match=r"vector \[1, 2\] has a value that is not finite, or"):
        pack4(x)


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match="nothing to pack"):
        pack4(np.zeros((3, 0)))
    with pytest.raises(InputError, match="nothing to pack"):
        pack4(np.float32(1))
    with pytest.raises(InputError, match="17 values are 3 words"):
        unpack4(np.zeros((4, 2), np.uint64), 17)
