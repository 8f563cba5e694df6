"""TFMA's `EvalConfig` of models that list items: metrics, slices and thresholds."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tfrz.config import require
from tfrz.metrics.directions import direction
from tfrz.metrics.ranking import parse

if TYPE_CHECKING:
    from tfrz.zoo.run_config import (
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
    import tensorflow_model_analysis as tfma

    for task in wanted.max_normalized_entropy:
        known = ", ".join(binary)
        require(task in binary, f"evaluator.max_normalized_entropy.{task}", f"is none of {known}")
    slices = [tfma.SlicingSpec()]
    slices += [tfma.SlicingSpec(feature_keys=list(keys)) for keys in wanted.slices]
    specs = [tfma.MetricsSpec(metrics=[tfma.MetricConfig(class_name="ExampleCount")])]
    for task in tasks:
        kind = "normalized_entropy" if task in binary else "mse"
        metric = tfma.MetricConfig(
            class_name="OutcomeMetric",
            module="tfx_pipelines.modules.evaluation",
            config=json.dumps({"kind": kind, "task": task, "name": f"{kind}_{task}"}),
        )
        if task in binary:
            bounds: dict[str, Any] = {}
            if task in wanted.max_normalized_entropy:
                bounds["value_threshold"] = tfma.GenericValueThreshold(
                    upper_bound={"value": wanted.max_normalized_entropy[task]}
                )
            if has_baseline:
                bounds["change_threshold"] = tfma.GenericChangeThreshold(
                    direction=tfma.MetricDirection.LOWER_IS_BETTER,
                    absolute={"value": wanted.max_rise},
                )
            if bounds:
                metric.per_slice_thresholds.append(
                    tfma.PerSliceMetricThreshold(
                        slicing_specs=slices[:1], threshold=tfma.MetricThreshold(**bounds)
                    )
                )
        specs.append(tfma.MetricsSpec(metrics=[metric]))
    return tfma.EvalConfig(
        model_specs=[
            tfma.ModelSpec(
                signature_name="score",
                label_key=f"label_{tasks[0]}",
                preprocessing_function_names=["transform_features"],
            )
        ],
        slicing_specs=slices,
        metrics_specs=specs,
    )


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
    import tensorflow_model_analysis as tfma

    slices = [tfma.SlicingSpec()]
    slices += [tfma.SlicingSpec(feature_keys=list(keys)) for keys in wanted.slices]
    configured = [tfma.MetricConfig(class_name="ExampleCount")]
    for name, given in metrics.items():
        arguments = {k: v for k, v in given.items() if k != "class_name"}
        metric = tfma.MetricConfig(
            class_name=given["class_name"],
            module="tfx_pipelines.modules.evaluation",
            config=json.dumps({**arguments, "name": name}),
        )
        bounds: dict[str, Any] = {}
        rises = direction(name) == "max"
        if name in wanted.min_metrics:
            require(
                rises,
                f"evaluator.min_metrics.{name}",
                "smaller values are better: bound it by evaluator.max_drops",
            )
            bounds["value_threshold"] = tfma.GenericValueThreshold(
                lower_bound={"value": wanted.min_metrics[name]}
            )
        if name in wanted.max_drops and has_baseline:
            worse = wanted.max_drops[name]
            better = tfma.MetricDirection
            bounds["change_threshold"] = tfma.GenericChangeThreshold(
                direction=better.HIGHER_IS_BETTER if rises else better.LOWER_IS_BETTER,
                absolute={"value": -worse if rises else worse},
            )
        if bounds:
            # `threshold` would apply the bound to every slice.
            metric.per_slice_thresholds.append(
                tfma.PerSliceMetricThreshold(
                    slicing_specs=slices[:1], threshold=tfma.MetricThreshold(**bounds)
                )
            )
        configured.append(metric)
    return tfma.EvalConfig(
        model_specs=[
            tfma.ModelSpec(
                signature_name="serving_default",
                prediction_key=prediction_key,
                label_key=label,
                preprocessing_function_names=["transform_features"],
            )
        ],
        slicing_specs=slices,
        metrics_specs=[tfma.MetricsSpec(metrics=configured)],
    )
