"""The record types that sources yield.

- *impression*: features and a label (was it clicked, was it rated high).
- *history*: a user's events in order of time, and a target.
- *list*: a context, candidates, and their relevance or clicks.
- *logged_action*: state, action, propensity if known, reward.

Records travel in Arrow `RecordBatch`es of some thousand rows whose columns are lists
(`list<binary>`, `list<int64>`, `list<float>`); an empty list is a missing value.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from tfrz.errors import InputError


@dataclasses.dataclass(frozen=True)
class CorruptLine:
    """A line that could not be read.

    Attributes:
      file: where.
      line: number of the line, from 1.
      reason: what is wrong with it.
      text: its first characters.
    """

    file: str
    line: int
    reason: str
    text: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.reason}"


def check_corrupt(
    count: int, total: int, examples: Sequence[CorruptLine], max_fraction: float
) -> None:
    """Raises if more than `max_fraction` of all lines are corrupt.

    Args:
      count: corrupt lines.
      total: all lines, corrupt ones included.
      examples: the first of them is named.
      max_fraction: what is tolerated.

    Raises:
      InputError: too many; names file and line.
    """
    if count > max_fraction * total:
        first = min(examples, key=lambda line: (line.file, line.line))
        raise InputError(
            f"{first} (one of {count} corrupt lines among {total}, more than the tolerated share "
            f"of {max_fraction:g}): mend the file or raise data.max_corrupt_fraction"
        )
