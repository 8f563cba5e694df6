"""Four bits for each value: the code of vectors of users in a key-value store.

A vector becomes 64-bit words with sixteen codes each, the first in the lowest four bits, and one
more word with two float32, the scale in its low half and the minimum in its high half. Bytes are
little-endian. `pack4(vectors).astype("<u8").tobytes()` is what `unpack4_strings` reads.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from tfrz.errors import InputError

_CODES_PER_WORD = 16
_TOP = np.float32(15)
# Smaller ranges count as 0: their codes would be numbers that TensorFlow flushes to 0.
_LEAST_SCALE = np.float32(2.0**-102)


def _num_words(dim: int) -> int:
    return -(-dim // _CODES_PER_WORD) + 1


def packed_bytes(num_vectors: int, dim: int) -> int:
    """Bytes of `num_vectors` packed vectors.

    Example:
      >>> packed_bytes(58, 256)
      7888
    """
    return 8 * num_vectors * _num_words(dim)


def _in_20_bits(scale: NDArray[Any]) -> NDArray[Any]:
    """The nearest float32 whose significand has 20 bits."""
    bits = np.asarray(scale, "<f4").view("<u4")
    return ((bits + np.uint32(8)) & np.uint32(0xFFFFFFF0)).view("<f4")


def pack4(vectors: NDArray[Any]) -> NDArray[Any]:
    """Codes each vector by 16 steps between its minimum and its maximum.

    Formula: `scale = (max - min) / 15`, `q = round((x - min) / scale)` in 0 to 15; the unpacked
    value is `min + scale q`, at most `scale / 2` away.

    The scale is rounded to 20 bits. `scale q` is then exact, so that every machine unpacks the same
    bits, with or without fused multiply-add, and packing unpacked vectors again changes nothing.
    In a range below 3e-30 all values become the minimum.

    Args:
      vectors: `[..., dim]`, taken as float32.

    Returns:
      uint64 `[..., ceil(dim / 16) + 1]`.

    Raises:
      InputError: there is no value, one that is not finite, or a range beyond float32.

    Example:
      >>> words = pack4(np.array([-1.0, -0.4, 0.0, 0.25, 0.9, 2.0]))
      >>> hex(words[0])
      '0xf96530'
      >>> unpack4(words, 6).round(5).tolist() == np.float32([-1, -0.4, 0, 0.2, 0.8, 2]).tolist()
      True

    Reference:
      DV365 (arXiv 2506.00450), specification 3.7; the content of the last word is a choice.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        x = np.asarray(vectors).astype(np.float32)
        if x.ndim == 0 or x.shape[-1] == 0:
            raise InputError(f"vectors to pack: nothing to pack in the shape {list(x.shape)}")
        least, greatest = x.min(axis=-1), x.max(axis=-1)
        # Subnormal numbers and -0 become 0: not every machine has them.
        least = np.where(np.abs(least) < np.finfo(np.float32).tiny, np.float32(0), least)
        scale = _in_20_bits((greatest - least) / _TOP)
        coded = np.isfinite(least + _TOP * scale)
        if not coded.all():
            raise InputError(
                f"vectors to pack: vector {np.argwhere(~coded)[0].tolist()} has a value that is "
                "not finite, or a range beyond float32"
            )
        scale = np.where(scale < _LEAST_SCALE, np.float32(0), scale)
        divisor = np.where(scale == 0, np.float32(np.inf), scale)[..., None]
        codes = np.clip(np.rint((x - least[..., None]) / divisor), 0, 15).astype(np.uint8)
    missing = -x.shape[-1] % _CODES_PER_WORD
    codes = np.concatenate([codes, np.zeros((*x.shape[:-1], missing), np.uint8)], axis=-1)
    words = (codes[..., 0::2] | codes[..., 1::2] << 4).view("<u8")
    ends = np.stack([scale, least], axis=-1).astype("<f4").view("<u8")
    return np.concatenate([words, ends], axis=-1).astype(np.uint64)


def unpack4(words: NDArray[Any], dim: int) -> NDArray[Any]:
    """The vectors that `pack4` coded: `min + scale q`.

    Args:
      words: uint64 `[..., ceil(dim / 16) + 1]`.
      dim: values of a vector.

    Returns:
      float32 `[..., dim]`.

    Raises:
      InputError: vectors of `dim` values have another number of words.
    """
    words = np.ascontiguousarray(words, "<u8")
    if words.shape[-1] != _num_words(dim):
        raise InputError(
            f"packed vectors: {dim} values are {_num_words(dim)} words, the shape is "
            f"{list(words.shape)}"
        )
    pairs = words[..., :-1].copy().view(np.uint8)
    codes = np.stack([pairs & 15, pairs >> 4], axis=-1)
    codes = codes.reshape(*words.shape[:-1], _CODES_PER_WORD * (_num_words(dim) - 1))
    ends = words[..., -1:].copy().view("<f4")
    scale, least = ends[..., :1], ends[..., 1:]
    return (least + scale * codes[..., :dim].astype(np.float32)).astype(np.float32)


def unpack4_strings(packed: tf.Tensor, num_vectors: int, dim: int) -> tf.Tensor:
    """`unpack4` in a graph, from the bytes of the words, with equal bits.

    Args:
      packed: string `[batch]`, each `packed_bytes(num_vectors, dim)` long. Any other length, an
        empty string among them, stands for a vector that is missing and gives zeros.
      num_vectors: vectors of a string.
      dim: values of a vector.

    Returns:
      float32 `[batch, num_vectors, dim]`.

    Example:
      >>> words = pack4(np.array([[0.0, 15.0, 4.0]]))
      >>> print(unpack4_strings(tf.constant([words.astype("<u8").tobytes(), b""]), 1, 3).numpy())
      [[[ 0. 15.  4.]]
      <BLANKLINE>
       [[ 0.  0.  0.]]]
    """
    size = packed_bytes(num_vectors, dim)
    # A string that is too short is filled with zero bytes, which unpack to zeros.
    known = tf.where(tf.equal(tf.strings.length(packed), size), packed, tf.constant(b""))
    data = tf.reshape(
        tf.io.decode_raw(known, tf.uint8, fixed_length=size), [-1, num_vectors, _num_words(dim), 8]
    )
    pairs = data[:, :, :-1]
    codes = tf.stack([tf.bitwise.bitwise_and(pairs, 15), tf.bitwise.right_shift(pairs, 4)], axis=-1)
    codes = tf.reshape(codes, [-1, num_vectors, _CODES_PER_WORD * (_num_words(dim) - 1)])
    ends = tf.bitcast(tf.reshape(data[:, :, -1], [-1, num_vectors, 2, 4]), tf.float32)
    return ends[:, :, 1:] + ends[:, :, :1] * tf.cast(codes[:, :, :dim], tf.float32)
