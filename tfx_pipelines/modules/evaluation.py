"""TFMA metrics of what models list: recommendations of one target, and graded slates."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import apache_beam as beam
import numpy as np
import tensorflow_model_analysis as tfma
from tensorflow_model_analysis.metrics import metric_types

from tfrz.metrics.ranking import at_rank
from tfrz.metrics.slates import of_slate


class _Mean(beam.CombineFn):
    """Mean of a metric over examples, those left out that have none: accumulates (sum, count).

    Args:
      key: of the metric.
      output: of the signature that is judged.
      judge: from that output and the label, flat arrays, to the metric; NaN for none.
    """

    def __init__(self, key: Any, output: str, judge: Callable[..., float]) -> None:
        self._key, self._output, self._judge = key, output, judge

    def create_accumulator(self) -> tuple[float, float]:
        return 0.0, 0.0

    def add_input(self, accumulator: tuple[float, float], element: Any) -> tuple[float, float]:
        names = (self._key.model_name, self._key.output_name)
        outputs = element.get_predictions(*names)
        # TFMA leaves a signature's outputs together where there are several.
        shown = np.ravel(outputs[self._output] if isinstance(outputs, Mapping) else outputs)
        value = self._judge(shown, np.ravel(element.get_labels(*names)))
        if np.isnan(value):
            return accumulator
        return accumulator[0] + value, accumulator[1] + 1.0

    def merge_accumulators(
        self, accumulators: Iterable[tuple[float, float]]
    ) -> tuple[float, float]:
        pairs = list(accumulators)
        return sum(p[0] for p in pairs), sum(p[1] for p in pairs)

    def extract_output(self, accumulator: tuple[float, float]) -> dict[Any, float]:
        total, count = accumulator
        return {self._key: total / count if count else float("nan")}


def _of_target(kind: str, n: int, items: np.ndarray, target: np.ndarray) -> float:
    """The metric at the place of the target among the items."""
    places = np.flatnonzero(items == target[0]) if target.size and target[0] else ()
    rank = int(places[0]) + 1 if len(places) else 0
    return float(at_rank(kind, np.array([rank]), n)[0])


def _of_slate(name: str, max_grade: float, positions: np.ndarray, relevance: np.ndarray) -> float:
    """The metric of the relevance in the order of the slate."""
    return of_slate(name, relevance[positions[positions >= 0].astype(int)], max_grade)


def _computations(
    judge: Callable[..., float],
    output: str,
    name: str,
    model_names: list[str] | None,
    output_names: list[str] | None,
    example_weighted: bool,
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
                    keys=[metric], preprocessors=None, combiner=_Mean(metric, output, judge)
                )
            )
    return computations


def _target_computations(
    kind: str = "recall",
    n: int = 20,
    name: str = "",
    model_names: list[str] | None = None,
    output_names: list[str] | None = None,
    example_weighted: bool = False,
    **_: Any,
) -> list[Any]:
    judge = functools.partial(_of_target, kind, n)
    return _computations(judge, "item_ids", name, model_names, output_names, example_weighted)


def _slate_computations(
    name: str = "",
    max_grade: float = 4.0,
    model_names: list[str] | None = None,
    output_names: list[str] | None = None,
    example_weighted: bool = False,
    **_: Any,
) -> list[Any]:
    judge = functools.partial(_of_slate, name, max_grade)
    return _computations(judge, "positions", name, model_names, output_names, example_weighted)


class RankingMetric(tfma.metrics.Metric):
    """A metric of rankings with one target, by where the target stands in `item_ids`.

    Args:
      kind: `map`, `precision`, `recall` or `ndcg`.
      n: cut; the model must list at least as many items.
      name: of the metric.
    """

    def __init__(self, kind: str, n: int, name: str) -> None:
        super().__init__(_target_computations, kind=kind, n=n, name=name)


class SlateMetric(tfma.metrics.Metric):
    """A metric of slates, by the relevance of the candidates in the order of `positions`.

    Lists without a relevant candidate are left out.

    Args:
      name: of the metric, as `tfrz.metrics.slates.of_slate` knows it.
      max_grade: the highest grade that there is, for ERR.
    """

    def __init__(self, name: str, max_grade: float = 4.0) -> None:
        super().__init__(_slate_computations, name=name, max_grade=max_grade)
