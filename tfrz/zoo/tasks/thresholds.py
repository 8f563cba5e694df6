"""TFMA's `EvalConfig` of each task: metrics, slices and thresholds."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tfrz.config import require
from tfrz.metrics.directions import direction
from tfrz.metrics.ranking import parse

if TYPE_CHECKING:
    from tfrz.zoo.run_config import (
        EvaluatorConfig,
        RankingEvaluatorConfig,
        RunConfig,
        TimelineEvaluatorConfig,
    )


def metrics_of_lists(config: RunConfig, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """The metrics whose cutoff the served lists reach.

    Args:
      config: the run's configuration, with the length of the lists.
      names: metrics, as `kind_at_n`.

    Returns:
      Metrics for `evaluation_config`.

    Raises:
      ConfigError: a threshold is set on a metric of more items than are listed.
    """
    judged = (*config.evaluator.min_metrics, *config.evaluator.max_drops)
    parameters: dict[str, dict[str, Any]] = {}
    for name in names:
        kind, n = parse(name)
        listed = n <= config.export.top_k
        require(
            listed or name not in judged,
            f"evaluator: a threshold on {name}",
            f"needs export.top_k of {n} at least, it is {config.export.top_k}",
        )
        if listed:
            shown = "ExposureMetric" if kind in ("coverage", "gini") else "RankingMetric"
            parameters[name] = {"class_name": shown, "kind": kind, "n": n}
    return parameters


_MODULE = "tfx_pipelines.modules.evaluation"


def _slices(wanted: Sequence[Sequence[str]]) -> list[Any]:
    """All examples, then the slices by the values of features."""
    import tensorflow_model_analysis as tfma

    return [tfma.SlicingSpec(), *(tfma.SlicingSpec(feature_keys=list(keys)) for keys in wanted)]


def _metric(
    name: str,
    class_name: str,
    slices: Sequence[Any],
    arguments: str = "",
    module: str = _MODULE,
    lower: float | None = None,
    upper: float | None = None,
    worse: float | None = None,
    slice_lower: float | None = None,
) -> Any:
    """The configuration of one metric.

    Args:
      name: of the metric, which declares a direction.
      class_name: its class.
      slices: as returned by `_slices`.
      arguments: of the class, as JSON.
      module: of the class; "" for TFMA's own.
      lower: bound over all examples; None for no bound.
      upper: bound over all examples; None for no bound.
      worse: how much worse than the latest blessed model's it may be; None for any amount.
      slice_lower: bound on every slice; None for no bound.
    """
    import tensorflow_model_analysis as tfma

    def bounds(**limits: float | None) -> dict[str, Any]:
        given = {key: {"value": value} for key, value in limits.items() if value is not None}
        return {"value_threshold": tfma.GenericValueThreshold(**given)} if given else {}

    overall = bounds(lower_bound=lower, upper_bound=upper)
    if worse is not None:
        rises = direction(name) == "max"
        better = tfma.MetricDirection
        overall["change_threshold"] = tfma.GenericChangeThreshold(
            direction=better.HIGHER_IS_BETTER if rises else better.LOWER_IS_BETTER,
            absolute={"value": -worse if rises else worse},
        )
    metric = tfma.MetricConfig(class_name=class_name, module=module, config=arguments)
    # `threshold` would apply the bound over all examples to every slice.
    for where, given in ((slices[:1], overall), (slices[1:], bounds(lower_bound=slice_lower))):
        if where and given:
            metric.per_slice_thresholds.append(
                tfma.PerSliceMetricThreshold(
                    slicing_specs=where, threshold=tfma.MetricThreshold(**given)
                )
            )
    return metric


def _config(
    signature: str,
    label: str,
    slices: Sequence[Any],
    *metrics: Sequence[Any],
    prediction_key: str = "",
    described: bool = True,
) -> Any:
    """The whole configuration.

    Args:
      signature: what the model is asked by.
      label: the raw label feature.
      slices: as returned by `_slices`.
      *metrics: groups of metrics that are computed together.
      prediction_key: the output that the metrics read; "" for all outputs.
      described: whether slices and metrics read what `transform_features` returns.
    """
    import tensorflow_model_analysis as tfma

    count = tfma.MetricConfig(class_name="ExampleCount")
    asked = tfma.ModelSpec(
        signature_name=signature,
        prediction_key=prediction_key,
        label_key=label,
        preprocessing_function_names=["transform_features"] if described else [],
    )
    return tfma.EvalConfig(
        model_specs=[asked],
        slicing_specs=slices,
        metrics_specs=[
            tfma.MetricsSpec(metrics=[*([] if i else [count]), *group])
            for i, group in enumerate(metrics)
        ],
    )


def click_config(wanted: EvaluatorConfig, label: str, has_baseline: bool) -> Any:
    """The Evaluator's configuration for models of clicks.

    Args:
      wanted: slices and thresholds.
      label: the raw label feature.
      has_baseline: whether there is a blessed model to compare with.
    """
    slices = _slices(wanted.slices)
    low, high = wanted.calibration_bounds or (None, None)
    metrics = [
        _metric(
            "auc",
            "AreaUnderCurve",
            slices,
            '"num_thresholds": 10000',
            lower=wanted.min_auc,
            worse=wanted.max_auc_drop if has_baseline else None,
            slice_lower=wanted.min_slice_auc,
        ),
        _metric("log_loss", "BinaryCrossentropy", slices, module="", upper=wanted.max_log_loss),
        _metric("calibration", "Calibration", slices, module="", lower=low, upper=high),
    ]
    return _config(
        "serving_default", label, slices, metrics, prediction_key="scores", described=False
    )


def outcome_config(
    wanted: TimelineEvaluatorConfig,
    binary: Sequence[str],
    tasks: Sequence[str],
    has_baseline: bool,
) -> Any:
    """The Evaluator's configuration for models with several outcomes per candidate.

    Args:
      wanted: slices and thresholds.
      binary: tasks whose outcome is 0 or 1.
      tasks: all tasks; each is an output of the signature `score` and has the label `label_<task>`.
      has_baseline: whether there is a blessed model to compare with.
    """
    for task in wanted.max_normalized_entropy:
        known = ", ".join(binary)
        require(task in binary, f"evaluator.max_normalized_entropy.{task}", f"is none of {known}")
    slices = _slices(wanted.slices)
    metrics = []
    for task in tasks:
        kind = "normalized_entropy" if task in binary else "mse"
        name = f"{kind}_{task}"
        metrics.append(
            _metric(
                name,
                "OutcomeMetric",
                slices,
                json.dumps({"kind": kind, "task": task, "name": name}),
                upper=wanted.max_normalized_entropy.get(task),
                worse=wanted.max_rise if has_baseline and task in binary else None,
            )
        )
    return _config("score", f"label_{tasks[0]}", slices, [], *([metric] for metric in metrics))


def evaluation_config(
    wanted: RankingEvaluatorConfig,
    metrics: Mapping[str, Mapping[str, Any]],
    prediction_key: str,
    label: str,
    has_baseline: bool,
) -> Any:
    """The Evaluator's configuration for models that list items.

    Args:
      wanted: slices and thresholds.
      metrics: name to `class_name` (in `tfx_pipelines.modules.evaluation`) and the arguments of the
        class other than `name`.
      prediction_key: the output of `serving_default` that the metrics read.
      label: the raw label feature.
      has_baseline: whether there is a blessed model to compare with.

    Raises:
      ConfigError: `min_metrics` bounds a metric of which smaller values are better.
    """
    for name in wanted.min_metrics:
        require(
            direction(name) == "max",
            f"evaluator.min_metrics.{name}",
            "smaller values are better: bound it by evaluator.max_drops",
        )
    slices = _slices(wanted.slices)
    configured = [
        _metric(
            name,
            given["class_name"],
            slices,
            json.dumps({k: v for k, v in given.items() if k != "class_name"} | {"name": name}),
            lower=wanted.min_metrics.get(name),
            worse=wanted.max_drops.get(name) if has_baseline else None,
        )
        for name, given in metrics.items()
    ]
    return _config("serving_default", label, slices, configured, prediction_key=prediction_key)
