"""What the checks of training, validation and test sets share.

They run before training, and read no more of a set than decides.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfrz.training.batches import ArrayBatches, Batches
from tfrz.zoo.task import Prepared


def judged_sets(prepared: Prepared[Any, Any]) -> dict[str, Batches]:
    """The sets that a model is evaluated on, by name; a test set only where there is one."""
    sets = {"validation": prepared.validation}
    if prepared.test is not None:
        sets["test"] = prepared.test
    return sets


def column(batches: Batches, name: str) -> Iterable[NDArray[Any]]:
    """A column of a set, batch by batch."""
    if isinstance(batches, ArrayBatches):
        return [batches.columns()[name]]
    return (batch[name].numpy() for batch in batches.once())


def distinct(values: Iterable[NDArray[Any]]) -> list[float]:
    """At most two of the distinct finite values, without looking further than that."""
    found: set[float] = set()
    for some in values:
        some = some[np.isfinite(some)]
        if some.size:
            found |= {float(some.min()), float(some.max())}
        if len(found) > 1:
            break
    return sorted(found)[:2]
