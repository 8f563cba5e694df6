"""Splits that depend on the example and the seed alone: the same in this process and under Beam."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from tfrz.data.columns import whole
from tfrz.data.spec import USER_EMBEDDING, USER_EMBEDDING_VERSION

SPLITS = ("train", "validation", "test")
# Columns of impressions that place a row, if the spec names a split or a time.
SPLIT_COLUMN, TIME_COLUMN = "_split", "_time"
_ADDED = (SPLIT_COLUMN, TIME_COLUMN, USER_EMBEDDING, USER_EMBEDDING_VERSION)
_WORDS = {
    word: split
    for split, words in {
        "train": ("train", "training"),
        "validation": ("validation", "valid", "val", "eval", "dev"),
        "test": ("test", "testing"),
    }.items()
    for word in words
}


def share_of(key: bytes, seed: int) -> float:
    """A number in [0, 1) that depends on the key and the seed alone."""
    digest = hashlib.blake2b(key, digest_size=8, key=str(seed).encode()).digest()
    return int.from_bytes(digest, "big") / 2.0**64


def _mixed(bits: NDArray[Any]) -> NDArray[Any]:
    """Spreads each bit of unsigned 64-bit integers over all (the finaliser of SplitMix64)."""
    bits = bits ^ (bits >> np.uint64(30))
    bits *= np.uint64(0xBF58476D1CE4E5B9)
    bits ^= bits >> np.uint64(27)
    bits *= np.uint64(0x94D049BB133111EB)
    bits ^= bits >> np.uint64(31)
    return bits


def _sums(values: NDArray[Any], offsets: NDArray[Any]) -> NDArray[Any]:
    """Sums of unsigned integers, modulo 2^64, between consecutive offsets."""
    total = np.concatenate([np.zeros(1, np.uint64), np.cumsum(values, dtype=np.uint64)])
    sums: NDArray[Any] = total[offsets[1:]] - total[offsets[:-1]]
    return sums


def _places(offsets: NDArray[Any]) -> NDArray[Any]:
    """The place of each value in its list."""
    first = np.repeat(offsets[:-1] - offsets[0], np.diff(offsets))
    places: NDArray[Any] = np.arange(offsets[-1] - offsets[0]) - first
    return places


def _bits_of_text(values: pa.Array) -> NDArray[Any]:
    """A polynomial hash of the bytes of each text."""
    values = values.cast(pa.large_binary())
    offsets = np.frombuffer(values.buffers()[1], np.int64)
    offsets = offsets[values.offset : values.offset + len(values) + 1]
    data = values.buffers()[2]
    text = np.zeros(0, np.uint8) if data is None else np.frombuffer(data, np.uint8)
    text = text[offsets[0] : offsets[-1]].astype(np.uint64) + np.uint64(1)
    longest = int(np.diff(offsets).max(initial=0))
    powers = np.cumprod(np.full(longest + 1, 0x9E3779B97F4A7C15, np.uint64), dtype=np.uint64)
    return _sums(text * powers[_places(offsets)], offsets - offsets[0])


def _bits(values: pa.Array, distinct: bool = False) -> NDArray[Any]:
    """Each value as an unsigned 64-bit integer; nulls are told from all values.

    Args:
      values: Texts, numbers, or dictionaries of them.
      distinct: Whether few of them are equal.
    """
    missing = np.asarray(values.is_null())
    if pa.types.is_dictionary(values.type) and not missing.any():
        # Each term once.
        terms: NDArray[Any] = _bits(values.dictionary, True)[values.indices.to_numpy()]
        return terms
    if pa.types.is_floating(values.type):
        # Adding 0 makes -0 and 0 equal.
        numbers = values.to_numpy(zero_copy_only=False).astype(np.float64) + 0.0
        numbers[np.isnan(numbers)] = np.nan
        bits = numbers.view(np.uint64)
    elif pa.types.is_integer(values.type) or pa.types.is_boolean(values.type):
        whole = values.cast(pa.int64()).fill_null(0)
        bits = whole.to_numpy(zero_copy_only=False).astype(np.int64).view(np.uint64)
    else:
        texts = values.fill_null(b"" if pa.types.is_binary(values.type) else "")
        if distinct:
            bits = _bits_of_text(texts)
        else:
            coded = texts.dictionary_encode()
            bits = _bits_of_text(coded.dictionary)[coded.indices.to_numpy()]
    found: NDArray[Any] = np.where(missing, np.uint64(0xA5A5A5A5A5A5A5A5), _mixed(bits))
    return found


def _of_single_values(values: pa.Array, salt: np.uint64, distinct: bool = False) -> NDArray[Any]:
    """What a column adds to the sum of each row if every row has one value."""
    if pa.types.is_dictionary(values.type) and not values.null_count:
        # Each term once.
        terms = _of_single_values(values.dictionary, salt, True)
        added: NDArray[Any] = terms[values.indices.to_numpy()]
        return added
    return _mixed((_mixed(_bits(values, distinct)) + np.uint64(1)) ^ salt)


def shares_of_rows(
    batch: pa.RecordBatch | pa.Table, seed: int, names: Sequence[str] | None = None
) -> NDArray[Any]:
    """A number in [0, 1) for each row, `[rows]`, that depends on its values and the seed alone.

    Neither the order of the columns nor the rows around it matter.

    Args:
      batch: columns of texts, numbers, or lists of them.
      seed: of the split.
      names: columns that count; all by default.
    """
    total = np.full(batch.num_rows, _mixed(np.array([seed], np.int64).view(np.uint64))[0])
    for name in batch.schema.names if names is None else names:
        column = whole(batch.column(name))
        salt = _bits_of_text(pa.array([name]))[0]
        if pa.types.is_list(column.type):
            offsets = column.offsets.to_numpy().astype(np.int64)
            values = column.values[offsets[0] : offsets[-1]]
            offsets = offsets - offsets[0]
            if len(values) == len(column) and np.array_equal(offsets, np.arange(len(offsets))):
                # One value each.
                total += _of_single_values(values, salt)
                continue
            placed = _mixed(_bits(values) + _places(offsets).astype(np.uint64))
            row = _sums(placed, offsets) + np.diff(offsets).astype(np.uint64)
        else:
            row = _bits(column)
        total += _mixed(row ^ salt)
    shares: NDArray[Any] = (_mixed(total) >> np.uint64(11)).astype(np.float64) / 2.0**53
    return shares


@dataclasses.dataclass(frozen=True)
class SplitPlan:
    """How impressions are split.

    Attributes:
      held_out: shares of validation and test, of rows that nothing else places; without a share for
        the test there is no test set, and its rows are validation rows.
      seed: of the random split.
      how: random (by a hash of the row's values), column (by `SPLIT_COLUMN`; rows without a word by
        the hash) or time (by `TIME_COLUMN` and `starts`).
      starts: Unix seconds at which validation and test begin.
    """

    held_out: tuple[float, float]
    seed: int
    how: Literal["random", "column", "time"] = "random"
    starts: tuple[int, int] | None = None


def split_rows(batch: pa.RecordBatch | pa.Table, plan: SplitPlan) -> dict[str, NDArray[Any]]:
    """Split to the numbers of its rows; each row alone decides where it is.

    Args:
      batch: impressions.
      plan: how they are split.
    """
    if plan.how == "time":
        assert plan.starts is not None
        times = whole(batch.column(TIME_COLUMN)).to_numpy()
        places = np.searchsorted(np.array(plan.starts), times, side="right")
    else:
        # What a run adds to a row must not change its split.
        own = [name for name in batch.schema.names if name not in _ADDED]
        shares = shares_of_rows(batch, plan.seed, own)
        validation, test = plan.held_out
        places = np.where(shares < test, 2, np.where(shares < test + validation, 1, 0))
        if plan.how == "column":
            words = whole(batch.column(SPLIT_COLUMN))
            named = pc.index_in(words, value_set=pa.array([s.encode() for s in SPLITS]))
            places = np.where(
                np.asarray(named.is_valid()),
                named.fill_null(0).to_numpy(zero_copy_only=False),
                places,
            )
    if not plan.held_out[1]:
        places = np.minimum(places, 1)
    return {split: np.flatnonzero(places == place) for place, split in enumerate(SPLITS)}


def split_word(text: str) -> str | None:
    """The split that a word names, in any case; None if it names none."""
    return _WORDS.get(text.strip().lower())
