"""TFMA metrics of what models list: recommendations of one target, and graded slates."""

from __future__ import annotations

import collections
import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import apache_beam as beam
import numpy as np
import tensorflow_model_analysis as tfma
from tensorflow_model_analysis.metrics import metric_types

from tfrz.metrics.coverage import coverage, gini
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
    """The metric at the place of the target among the items; NaN for none that counts."""
    if not target.size or not target[0]:
        return float("nan")
    places = np.flatnonzero(items == target[0])
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


class _Exposures(beam.CombineFn):
    """How often each item is listed: accumulates (size of the catalogue, counts).

    Args:
      key: of the metric.
      kind: `coverage` or `gini`.
      n: the items of a list that count.
    """

    def __init__(self, key: Any, kind: str, n: int) -> None:
        self._key, self._kind, self._n = key, kind, n

    def create_accumulator(self) -> tuple[int, collections.Counter]:
        return 0, collections.Counter()

    def add_input(
        self, accumulator: tuple[int, collections.Counter], element: Any
    ) -> tuple[int, collections.Counter]:
        size, counts = accumulator
        outputs = element.get_predictions(self._key.model_name, self._key.output_name)
        counts.update(item for item in np.ravel(outputs["item_ids"])[: self._n].tolist() if item)
        features = element.get_transformed_features(self._key.model_name)
        return max(size, int(np.ravel(features["catalogue_size"])[0])), counts

    def merge_accumulators(
        self, accumulators: Iterable[tuple[int, collections.Counter]]
    ) -> tuple[int, collections.Counter]:
        size, merged = self.create_accumulator()
        for one, counts in accumulators:
            size = max(size, one)
            merged.update(counts)
        return size, merged

    def extract_output(self, accumulator: tuple[int, collections.Counter]) -> dict[Any, float]:
        size, counts = accumulator
        listed = np.zeros(max(size, len(counts)), np.int64)
        listed[: len(counts)] = list(counts.values())
        return {self._key: coverage(listed) if self._kind == "coverage" else gini(listed)}


def _exposure_computations(
    kind: str = "coverage",
    n: int = 20,
    name: str = "",
    model_names: list[str] | None = None,
    output_names: list[str] | None = None,
    example_weighted: bool = False,
    **_: Any,
) -> list[Any]:
    computations = []
    for model_name in model_names or [""]:
        key = metric_types.MetricKey(
            name=name, model_name=model_name, example_weighted=example_weighted
        )
        inputs = metric_types.TransformedFeaturePreprocessor(
            feature_keys=["catalogue_size"], model_names=[model_name] if model_name else None
        )
        computations.append(
            metric_types.MetricComputation(
                keys=[key], preprocessors=[inputs], combiner=_Exposures(key, kind, n)
            )
        )
    return computations


class _Outcomes(beam.CombineFn):
    """Log losses or squared errors of one task: accumulates (sum, sum of outcomes, count).

    Args:
      key: of the metric.
      kind: `normalized_entropy` or `mse`.
      task: the output, a probability or a value for each candidate.
    """

    def __init__(self, key: Any, kind: str, task: str) -> None:
        self._key, self._kind, self._task = key, kind, task

    def create_accumulator(self) -> tuple[float, float, float]:
        return 0.0, 0.0, 0.0

    def add_input(
        self, accumulator: tuple[float, float, float], element: Any
    ) -> tuple[float, float, float]:
        outputs = element.get_predictions(self._key.model_name, self._key.output_name)
        predicted = np.ravel(outputs[self._task] if isinstance(outputs, Mapping) else outputs)
        features = element.get_transformed_features(self._key.model_name)
        label = np.ravel(features[f"outcome_{self._task}"])
        known = np.isfinite(label)
        label, predicted = label[known].astype(float), predicted[known].astype(float)
        if self._kind == "mse":
            losses = np.square(label - predicted)
        else:
            predicted = np.clip(predicted, 1e-7, 1 - 1e-7)
            losses = -label * np.log(predicted) - (1 - label) * np.log1p(-predicted)
        loss, outcome, count = accumulator
        return loss + float(losses.sum()), outcome + float(label.sum()), count + len(label)

    def merge_accumulators(
        self, accumulators: Iterable[tuple[float, float, float]]
    ) -> tuple[float, float, float]:
        loss, outcome, count = np.sum([self.create_accumulator(), *accumulators], axis=0)
        return float(loss), float(outcome), float(count)

    def extract_output(self, accumulator: tuple[float, float, float]) -> dict[Any, float]:
        loss, outcome, count = accumulator
        if not count:
            return {self._key: float("nan")}
        if self._kind == "mse":
            return {self._key: loss / count}
        p = outcome / count
        entropy = -(p * np.log(p) + (1 - p) * np.log1p(-p)) if 0 < p < 1 else float("nan")
        return {self._key: loss / count / entropy}


def _outcome_computations(
    kind: str = "normalized_entropy",
    task: str = "",
    name: str = "",
    model_names: list[str] | None = None,
    output_names: list[str] | None = None,
    example_weighted: bool = False,
    **_: Any,
) -> list[Any]:
    computations = []
    for model_name in model_names or [""]:
        key = metric_types.MetricKey(
            name=name, model_name=model_name, example_weighted=example_weighted
        )
        inputs = metric_types.TransformedFeaturePreprocessor(
            feature_keys=[f"outcome_{task}"], model_names=[model_name] if model_name else None
        )
        computations.append(
            metric_types.MetricComputation(
                keys=[key], preprocessors=[inputs], combiner=_Outcomes(key, kind, task)
            )
        )
    return computations


class OutcomeMetric(tfma.metrics.Metric):
    """Normalised entropy or mean squared error of one task, over all candidates with an outcome.

    Args:
      kind: `normalized_entropy` or `mse`.
      task: the signature's output; outcomes are the transformed feature `outcome_<task>`.
      name: of the metric.
    """

    def __init__(self, kind: str, task: str, name: str) -> None:
        super().__init__(_outcome_computations, kind=kind, task=task, name=name)


class ExposureMetric(tfma.metrics.Metric):
    """How much of the catalogue is listed, or how unevenly, over all examples.

    Args:
      kind: `coverage` or `gini`.
      n: the items of a list that count.
      name: of the metric.
    """

    def __init__(self, kind: str, n: int, name: str) -> None:
        super().__init__(_exposure_computations, kind=kind, n=n, name=name)


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
