"""Reads what the Evaluator stored: metrics, slices, refusals and undefined metrics."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import tensorflow_model_analysis as tfma

# TFMA's names of metrics, and the zoo's.
_NAMES = {"binary_crossentropy": "log_loss"}
# Metrics that the labels alone can leave without a value, and why. TFMA stores NaN for them.
# A log loss always has a value, as long as the predictions are numbers.
_UNDEFINED = {
    "auc": "all labels are equal",
    "calibration": "no label is positive",
    "normalized_entropy": "its outcomes are missing or all equal",
    "mse": "no outcome is known",
    **dict.fromkeys(
        ("recall", "precision", "map", "ndcg", "err"), "no example has a relevant item"
    ),
}


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """A stored evaluation of a model.

    Attributes:
      metrics: metrics over all examples; NaN where undefined.
      slices: the same by slice.
      refusals: the bounds that the model broke, as text.
      undefined: the bounds that could not be checked because the metric is undefined, as text.
    """

    metrics: dict[str, float] = dataclasses.field(default_factory=dict)
    slices: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)
    refusals: list[str] = dataclasses.field(default_factory=list)
    undefined: list[str] = dataclasses.field(default_factory=list)


def _slice_name(keys: tfma.slicer.SliceKeyType) -> str:
    return ", ".join(f"{column}={value}" for column, value in keys)


def read_metrics(folder: Path, model: str | None = None) -> dict[str, dict[str, float]]:
    """Metrics of a stored evaluation by slice; the key of all examples is empty.

    Args:
      folder: the output of the Evaluator.
      model: TFMA's name of the model, where the evaluation has several.
    """
    result = tfma.load_eval_result(str(folder), model_name=model)
    return {
        _slice_name(keys): {
            _NAMES.get(name, name): float(value["doubleValue"])
            for output in outputs.values()
            for sub in output.values()
            for name, value in sub.items()
            if "doubleValue" in value
        }
        for keys, outputs in result.slicing_metrics
    }


def why_undefined(name: str, metrics: dict[str, float]) -> str | None:
    """Why the labels leave a metric without a value; None if they do not.

    A metric that is NaN because a prediction is NaN is not undefined: it breaks every bound.

    Args:
      name: the metric.
      metrics: all metrics of the same slice.
    """
    if not math.isnan(metrics.get(name, 0.0)) or math.isnan(metrics.get("log_loss", 0.0)):
        return None
    kinds = (kind for kind in _UNDEFINED if name == kind or name.startswith(f"{kind}_"))
    return next((_UNDEFINED[kind] for kind in kinds), None)


def _bounded(folder: Path) -> set[str]:
    """The metrics that have a bound over all examples."""
    config = tfma.load_eval_result(str(folder)).config
    thresholds = tfma.metrics.metric_thresholds_from_metrics_specs(
        config.metrics_specs, eval_config=config
    )
    return {
        _NAMES.get(key.name, key.name)
        for key, held in thresholds.items()
        if any(spec is None or spec == tfma.SlicingSpec() for spec, _ in held)
    }


def read_evaluation(folder: Path) -> Evaluation:
    """The model's metrics, and how they compare with the bounds.

    An undefined metric breaks no bound. A model without any defined bound over all examples is
    refused, as TFX refuses a model without thresholds.

    Args:
      folder: the output of the Evaluator.
    """
    slices = read_metrics(folder)
    refusals, undefined = [], []
    for one in tfma.load_validation_result(str(folder)).metric_validations_per_slice:
        keys = tfma.slicer.slicer_lib.deserialize_slice_key(one.slice_key)
        where = _slice_name(keys)
        for failure in one.failures:
            name = _NAMES.get(failure.metric_key.name, failure.metric_key.name)
            reason = why_undefined(name, slices[where])
            if reason is not None:
                undefined.append(f"{name} on {where or 'all examples'}: {reason}")
                continue
            value = failure.metric_value.double_value.value
            place = where or "all examples"
            refusals.append(f"{name} {value:.4f} misses its threshold on {place}")
    overall = slices.pop("", {})
    bounded = sorted(_bounded(folder))
    if bounded and all(why_undefined(name, overall) for name in bounded):
        names = ", ".join(bounded)
        refusals.append(f"no bound on all examples could be checked: {names} undefined")
    return Evaluation(overall, slices, refusals, list(dict.fromkeys(undefined)))
