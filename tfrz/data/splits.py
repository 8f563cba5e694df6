"""Random splits: of a table that is in memory, and of keys by a hash."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

SPLITS = ("train", "validation", "test")


def share_of(key: bytes, seed: int) -> float:
    """A number in [0, 1) that depends on the key and the seed alone."""
    digest = hashlib.blake2b(key, digest_size=8, key=str(seed).encode()).digest()
    return int.from_bytes(digest, "big") / 2.0**64


def split_table(table: pa.Table, fractions: Sequence[float], seed: int) -> list[pa.Table]:
    """Cuts the rows at random into parts of the given shares; the same seed, the same parts.

    Args:
      table: the rows.
      fractions: shares that sum to 1; the last part takes what rounding leaves.
      seed: of the permutation.
    """
    order = np.random.default_rng(seed).permutation(table.num_rows)
    bounds = np.round(np.cumsum(fractions)[:-1] * table.num_rows).astype(int)
    # Sorted within a part: taking rows in order is faster, and training shuffles anyway.
    return [table.take(pa.array(np.sort(part))) for part in np.split(order, bounds)]
