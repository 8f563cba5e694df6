"""Random splits of a table that is in memory."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa


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
