"""TFMA metrics of recommendations that are lists of raw item ids."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import apache_beam as beam
import numpy as np
import tensorflow_model_analysis as tfma
from tensorflow_model_analysis.metrics import metric_types

from tfrz.metrics.ranking import at_rank


class _Mean(beam.CombineFn):
    """Mean over examples of the metric at the target's rank: accumulates (sum, count)."""

    def __init__(self, key: Any, kind: str, n: int) -> None:
        self._key, self._kind, self._n = key, kind, n

    def create_accumulator(self) -> tuple[float, float]:
        return 0.0, 0.0

    def add_input(self, accumulator: tuple[float, float], element: Any) -> tuple[float, float]:
        names = (self._key.model_name, self._key.output_name)
        outputs = element.get_predictions(*names)
        # TFMA leaves a signature's outputs together where there are several.
        items = np.ravel(outputs["item_ids"] if isinstance(outputs, Mapping) else outputs)
        target = np.ravel(element.get_labels(*names))
        places = np.flatnonzero(items == target[0]) if target.size and target[0] else ()
        rank = int(places[0]) + 1 if len(places) else 0
        value = float(at_rank(self._kind, np.array([rank]), self._n)[0])
        return accumulator[0] + value, accumulator[1] + 1.0

    def merge_accumulators(
        self, accumulators: Iterable[tuple[float, float]]
    ) -> tuple[float, float]:
        pairs = list(accumulators)
        return sum(p[0] for p in pairs), sum(p[1] for p in pairs)

    def extract_output(self, accumulator: tuple[float, float]) -> dict[Any, float]:
        total, count = accumulator
        return {self._key: total / count if count else float("nan")}


def _computations(
    kind: str = "recall",
    n: int = 20,
    name: str = "",
    model_names: list[str] | None = None,
    output_names: list[str] | None = None,
    example_weighted: bool = False,
    **_: Any,
) -> list[Any]:
    computations = []
    for model_name in model_names or [""]:
        for output_name in output_names or [""]:
            metric = metric_types.MetricKey(
                name=name,
                model_name=model_name,
                output_name=output_name,
                example_weighted=example_weighted,
            )
            computations.append(
                metric_types.MetricComputation(
                    keys=[metric], preprocessors=None, combiner=_Mean(metric, kind, n)
                )
            )
    return computations


class RankingMetric(tfma.metrics.Metric):
    """A metric of rankings with one target, by where the target stands in `item_ids`.

    Args:
      kind: `map`, `precision`, `recall` or `ndcg`.
      n: cut; the model must list at least as many items.
      name: of the metric.
    """

    def __init__(self, kind: str, n: int, name: str) -> None:
        super().__init__(_computations, kind=kind, n=n, name=name)
