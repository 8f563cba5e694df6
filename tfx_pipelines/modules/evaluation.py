"""TFMA metrics: AUC, metrics of recommendations, of re-ranked lists, of exposure, of outcomes.

A metric is NaN exactly where the labels leave it undefined. A prediction that is not a number
gives the worst value.
"""

from __future__ import annotations

import collections
import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import apache_beam as beam
import numpy as np
import tensorflow_model_analysis as tfma
from numpy.typing import NDArray
from tensorflow_model_analysis.metrics import metric_types
from tensorflow_model_analysis.metrics.metric_types import MetricKey, StandardMetricInputs

from tfrz.metrics.coverage import coverage, gini
from tfrz.metrics.ranking import at_rank
from tfrz.metrics.slates import of_slate


class AreaUnderCurve(tfma.metrics.AUC):
    """TFMA's AUC; NaN where all labels are equal, for which TFMA gives 0."""

    def _metric_value(self, **given: Any) -> float:
        """See the base class."""
        counts = given["matrices"]
        positives, negatives = counts.tp[0] + counts.fn[0], counts.fp[0] + counts.tn[0]
        return float(super()._metric_value(**given)) if positives and negatives else float("nan")


class _Mean(beam.CombineFn):
    """Mean of a metric over the examples that have it: accumulates (sum, count).

    Args:
      key: the metric's key.
      output: the signature's output that the metric reads.
      judge: takes that output and the label as flat arrays, returns the metric or NaN.
    """

    def __init__(self, key: MetricKey, output: str, judge: Callable[..., float]) -> None:
        self._key, self._output, self._judge = key, output, judge

    def create_accumulator(self) -> tuple[float, float]:
        return 0.0, 0.0

    def add_input(
        self, accumulator: tuple[float, float], element: StandardMetricInputs
    ) -> tuple[float, float]:
        names = (self._key.model_name, self._key.output_name)
        outputs = element.get_predictions(*names)
        # TFMA passes a mapping if the signature has several outputs.
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

    def extract_output(self, accumulator: tuple[float, float]) -> dict[MetricKey, float]:
        total, count = accumulator
        return {self._key: total / count if count else float("nan")}


def _of_target(kind: str, n: int, items: NDArray[Any], target: NDArray[Any]) -> float:
    """The metric of a list by the rank of its target; NaN without a target."""
    if not target.size or not target[0]:
        return float("nan")
    places = np.flatnonzero(items == target[0])
    rank = int(places[0]) + 1 if len(places) else 0
    return float(at_rank(kind, np.array([rank]), n)[0])


def _of_slate(
    name: str, max_grade: float, positions: NDArray[Any], relevance: NDArray[Any]
) -> float:
    """The metric of the relevance in the order of the slate."""
    return of_slate(name, relevance[positions[positions >= 0].astype(int)], max_grade)


class _Exposures(beam.CombineFn):
    """Counts how often each item is listed: accumulates (size of the catalogue, counts).

    Args:
      key: the metric's key.
      kind: `coverage` or `gini`.
      n: how many items of each list count.
    """

    def __init__(self, key: MetricKey, kind: str, n: int) -> None:
        self._key, self._kind, self._n = key, kind, n

    def create_accumulator(self) -> tuple[int, collections.Counter[bytes]]:
        return 0, collections.Counter()

    def add_input(
        self, accumulator: tuple[int, collections.Counter[bytes]], element: StandardMetricInputs
    ) -> tuple[int, collections.Counter[bytes]]:
        size, counts = accumulator
        outputs = element.get_predictions(self._key.model_name, self._key.output_name)
        counts.update(item for item in np.ravel(outputs["item_ids"])[: self._n].tolist() if item)
        features = element.get_transformed_features(self._key.model_name)
        return max(size, int(np.ravel(features["catalogue_size"])[0])), counts

    def merge_accumulators(
        self, accumulators: Iterable[tuple[int, collections.Counter[bytes]]]
    ) -> tuple[int, collections.Counter[bytes]]:
        size, merged = self.create_accumulator()
        for one, counts in accumulators:
            size = max(size, one)
            merged.update(counts)
        return size, merged

    def extract_output(
        self, accumulator: tuple[int, collections.Counter[bytes]]
    ) -> dict[MetricKey, float]:
        size, counts = accumulator
        listed = np.zeros(max(size, len(counts)), np.int64)
        listed[: len(counts)] = list(counts.values())
        return {self._key: coverage(listed) if self._kind == "coverage" else gini(listed)}


class _Outcomes(beam.CombineFn):
    """Log losses or squared errors of one task: accumulates (sum, sum of outcomes, count).

    Args:
      key: the metric's key.
      kind: `normalized_entropy` or `mse`.
      task: the output, a probability or a value for each candidate.
    """

    def __init__(self, key: MetricKey, kind: str, task: str) -> None:
        self._key, self._kind, self._task = key, kind, task

    def create_accumulator(self) -> tuple[float, float, float]:
        return 0.0, 0.0, 0.0

    def add_input(
        self, accumulator: tuple[float, float, float], element: StandardMetricInputs
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
        losses[np.isnan(losses)] = np.inf
        loss, outcome, count = accumulator
        return loss + float(losses.sum()), outcome + float(label.sum()), count + len(label)

    def merge_accumulators(
        self, accumulators: Iterable[tuple[float, float, float]]
    ) -> tuple[float, float, float]:
        loss, outcome, count = np.sum([self.create_accumulator(), *accumulators], axis=0)
        return float(loss), float(outcome), float(count)

    def extract_output(self, accumulator: tuple[float, float, float]) -> dict[MetricKey, float]:
        loss, outcome, count = accumulator
        if not count:
            return {self._key: float("nan")}
        if self._kind == "mse":
            return {self._key: loss / count}
        p = outcome / count
        entropy = -(p * np.log(p) + (1 - p) * np.log1p(-p)) if 0 < p < 1 else float("nan")
        return {self._key: loss / count / entropy}


class _Metric(tfma.metrics.Metric):
    """A metric that one combiner computes for each model.

    Args:
      name: the metric's name.
      combiner: takes the metric's key, returns the combiner.
      feature: the transformed feature that the combiner reads, if any.
      config: arguments of the subclass.
    """

    def __init__(
        self,
        name: str,
        combiner: Callable[[MetricKey], beam.CombineFn],
        feature: str | None = None,
        **config: str | float,
    ) -> None:
        def create(
            name: str = "",
            model_names: list[str] | None = None,
            output_names: list[str] | None = None,
            example_weighted: bool = False,
            **_: object,
        ) -> list[metric_types.MetricComputation]:
            computations = []
            for model in model_names or [""]:
                inputs = feature and metric_types.TransformedFeaturePreprocessor(
                    feature_keys=[feature], model_names=[model] if model else None
                )
                for output in output_names or [""]:
                    key = MetricKey(
                        name=name,
                        model_name=model,
                        output_name=output,
                        example_weighted=example_weighted,
                    )
                    computation = metric_types.MetricComputation(
                        keys=[key],
                        preprocessors=[inputs] if inputs else None,
                        combiner=combiner(key),
                    )
                    computations.append(computation)
            return computations

        super().__init__(create, name=name, **config)


class OutcomeMetric(_Metric):
    """Normalised entropy or mean squared error of one task, over all candidates with an outcome.

    Args:
      kind: `normalized_entropy` or `mse`.
      task: the signature's output; outcomes are the transformed feature `outcome_<task>`.
      name: the metric's name.
    """

    def __init__(self, kind: str, task: str, name: str) -> None:
        combiner = functools.partial(_Outcomes, kind=kind, task=task)
        super().__init__(name, combiner, f"outcome_{task}", kind=kind, task=task)


class ExposureMetric(_Metric):
    """Coverage of the catalogue, or how unevenly items are listed, over all examples.

    Args:
      kind: `coverage` or `gini`.
      n: how many items of each list count.
      name: the metric's name.
    """

    def __init__(self, kind: str, n: int, name: str) -> None:
        combiner = functools.partial(_Exposures, kind=kind, n=n)
        super().__init__(name, combiner, "catalogue_size", kind=kind, n=n)


class RankingMetric(_Metric):
    """A metric of rankings with one target, by the target's rank in `item_ids`.

    Args:
      kind: `map`, `precision`, `recall` or `ndcg`.
      n: cutoff; the model must list at least as many items.
      name: the metric's name.
    """

    def __init__(self, kind: str, n: int, name: str) -> None:
        judge = functools.partial(_of_target, kind, n)
        combiner = functools.partial(_Mean, output="item_ids", judge=judge)
        super().__init__(name, combiner, kind=kind, n=n)


class SlateMetric(_Metric):
    """A metric of slates, by the relevance of the candidates in the order of `positions`.

    Lists without a relevant candidate do not count.

    Args:
      name: the metric's name, one that `tfrz.metrics.slates.of_slate` takes.
      max_grade: the highest possible grade, for ERR.
    """

    def __init__(self, name: str, max_grade: float = 4.0) -> None:
        judge = functools.partial(_of_slate, name, max_grade)
        combiner = functools.partial(_Mean, output="positions", judge=judge)
        super().__init__(name, combiner, max_grade=max_grade)
