"""Which values of a metric are the better ones, declared where the metric is defined."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, TypeVar

from tfrz.config import require

Direction = Literal["max", "min"] | float
_Metric = TypeVar("_Metric", bound=Callable[..., Any])

# Means of any loss, whatever its formula.
_DIRECTIONS: dict[str, Direction] = {"loss": "min", "cross_entropy": "min"}


def better(direction: Direction, *names: str) -> Callable[[_Metric], _Metric]:
    """Declares the direction of the metric that follows.

    Args:
      direction: `max` or `min`, or the value that the metric should be close to.
      *names: the names under which results of the metric are reported.

    Example:
      >>> @better("min", "absolute_error")
      ... def absolute_error(label: float, output: float) -> float:
      ...     return abs(label - output)
      >>> direction("absolute_error_watch_time")
      'min'
    """

    def declared(metric: _Metric) -> _Metric:
        _DIRECTIONS.update(dict.fromkeys(names, direction))
        return metric

    return declared


def direction(name: str) -> Direction:
    """The direction of a metric, by the name under which it is reported.

    Args:
      name: a declared name, alone or followed by `_` and any qualifier: a cut, a task, a group.

    Returns:
      `max`, `min`, or the value that the metric should be close to.

    Raises:
      ConfigError: no metric of that name declares a direction.

    Example:
      >>> direction("recall_at_50_tail"), direction("normalized_entropy"), direction("calibration")
      ('max', 'min', 1.0)
    """
    kind = name
    while kind not in _DIRECTIONS and "_" in kind:
        kind = kind.rpartition("_")[0]
    require(kind in _DIRECTIONS, name, "no metric of this name declares which values are better")
    return _DIRECTIONS[kind]


def distance_to_best(name: str, value: float) -> float:
    """How far a value is from the best, to compare values of one metric: smaller is better.

    Args:
      name: as in `direction`.
      value: of the metric.

    Returns:
      The value, its negative, or its distance to the declared value; infinity where the metric is
      undefined (NaN) or infinite.

    Raises:
      ConfigError: as in `direction`.

    Example:
      >>> distance_to_best("auc", 0.75), distance_to_best("calibration", 0.75)
      (-0.75, 0.25)
    """
    wanted = direction(name)
    if not math.isfinite(value):
        return math.inf
    if isinstance(wanted, str):
        return value if wanted == "min" else -value
    return abs(value - wanted)
