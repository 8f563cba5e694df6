"""The configuration of one run: model, data, training, export, tuning, evaluation, pipeline."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from tfrz.config import apply_overrides, from_mapping, merge, read_yaml, require, to_mapping
from tfrz.data.histories.spec import HistoryConfig
from tfrz.data.impressions.spec import FeatureSpec
from tfrz.data.lists.spec import ListConfig
from tfrz.data.records import RECORD_TYPES
from tfrz.data.sources.spans import SpansConfig
from tfrz.data.splits import SplitPlan
from tfrz.data.timelines.slicing import load_slices
from tfrz.data.timelines.spec import TimelineConfig
from tfrz.errors import ConfigError
from tfrz.export.index import IndexConfig
from tfrz.training.config import LowRankConfig, TrainerConfig
from tfrz.training.density_weighting import WeightingConfig
from tfrz.training.distiller import DistillConfig
from tfrz.zoo import registry


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """How records become training, validation and test sets.

    Attributes:
      seed: the seed of the random split.
      validation_fraction: share of the records that choose the weights and the end of training (the
        pipeline's split `eval`).
      test_fraction: share of the records that the result is measured on (the pipeline's split
        `test`, which its Evaluator reads); 0 for no test set.
      split: for impressions: random (by a hash of each row), column (as the column says that the
        spec names under `split`) or time (by the column under `time`). Null takes the column if the
        spec names one, and else random. Lists follow the column that their spec names; histories
        and timelines have their own.
      validation_start: Unix seconds at which validation begins, for the split by time;
        earlier impressions are for training.
      test_start: the same for the test.
      validation: files of the user's own that the validation set is read from, as `--validation`.
      test: files of the user's own that the test set is read from, as `--test`.
      spans: of rolling data, whose paths have `{SPAN}` or a date, the spans that are read:
        `latest`, or `start` and `end`. Null takes the newest alone.
      max_corrupt_fraction: a run fails if a larger share of the lines is unreadable.
      options: options of the source's reader, such as `rows` for simulated data.
      history: how interactions become histories, for models of histories and logged actions. The
        fractions above then count users, and apply to the split by users only.
      lists: how documents become lists, for models of lists. The fractions above then count
        queries, and apply where the source has no splits.
      timeline: how events become sketches of timelines, for models of timelines. The fractions
        above then count each user's targets.
    """

    seed: int = 0
    validation_fraction: float = 0.1
    test_fraction: float = 0.1
    split: Literal["random", "column", "time"] | None = None
    validation_start: int | None = None
    test_start: int | None = None
    validation: str | None = None
    test: str | None = None
    spans: SpansConfig | None = None
    max_corrupt_fraction: float = 0.001
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    history: HistoryConfig | None = None
    lists: ListConfig | None = None
    timeline: TimelineConfig | None = None

    @property
    def held_out(self) -> tuple[float, float]:
        """Shares of validation and test."""
        return self.validation_fraction, self.test_fraction

    def split_plan(self, spec: FeatureSpec) -> SplitPlan:
        """How impressions are split.

        Raises:
          ConfigError: The spec does not name the column that the split needs.
        """
        how = self.split or ("random" if spec.split is None else "column")
        for needed, column in (("column", spec.split), ("time", spec.time)):
            name = "split" if needed == "column" else "time"
            require(
                how != needed or column is not None,
                "data.split",
                f"{needed} needs '{name}' in the feature spec, the name of a column",
            )
        starts = None
        if self.validation_start is not None and self.test_start is not None:
            starts = (self.validation_start, self.test_start)
        return SplitPlan(self.held_out, self.seed, how, starts)

    def __post_init__(self) -> None:
        require(
            0 < self.validation_fraction < 1, "data.validation_fraction", "must be between 0 and 1"
        )
        require(0 <= self.test_fraction < 1, "data.test_fraction", "must be at least 0, under 1")
        require(
            self.validation_fraction + self.test_fraction < 1,
            "data.validation_fraction + data.test_fraction",
            "must leave something to train on (sum under 1)",
        )
        first, second = self.validation_start, self.test_start
        require(
            self.split != "time"
            or (first is not None and second is not None and 0 <= first < second),
            "data.validation_start and test_start",
            "a split by time needs both, in Unix seconds, the first below the second",
        )
        require(
            self.test is None or self.test_fraction > 0,
            "data.test_fraction",
            "0 leaves the test set out, and --test names one",
        )
        require(
            0 <= self.max_corrupt_fraction <= 1,
            "data.max_corrupt_fraction",
            "must be between 0 and 1",
        )


@dataclasses.dataclass(frozen=True)
class FeaturesConfig:
    """Features that a run adds to those of its source.

    Attributes:
      long_history: folder of a store of user embeddings, which are joined with the examples; null
        for none.
      adapter: how the model reads the vectors: linear, or gate (linear times GateNet's gate).
      adapter_units: output width of the adapter, for models of impressions.
      user: name of the raw feature with the user's key, for impressions; other sources name it in
        their spec.
      long_history_version: version of the embeddings that the model is trained on; a store of
        another version is refused. Null takes the store's version; the saved configuration has it.
      any_version: accept embeddings of any version, in training and in requests.
    """

    long_history: str | None = None
    adapter: Literal["linear", "gate"] = "linear"
    adapter_units: int = 16
    user: str = "user"
    long_history_version: str | None = None
    any_version: bool = False

    def __post_init__(self) -> None:
        require(self.adapter_units >= 1, "features.adapter_units", "must be at least 1")
        require(
            self.long_history is not None or self.long_history_version is None,
            "features.long_history_version",
            "goes with features.long_history, the folder of the embeddings",
        )


@dataclasses.dataclass(frozen=True)
class EmbeddingsConfig:
    """How the pipeline exports users' embeddings; see `tfrz.embeddings.job.ExportOptions`.

    Attributes:
      store: folder of the store; null for `embeddings` in the pipeline's root.
      as_of: time up to which events count, in Unix seconds; null for the second after the newest
        event of the source.
      buckets: number of parts that the users of a new store are divided into.
      allow_empty: accept slices without an event of any user.
      to: writers to key-value stores, `sqlite=FILE`, `tfrecord=FILE` or `module:Class=PLACE`; none
        for SQLite in the store.
    """

    store: str | None = None
    as_of: int | None = None
    buckets: int = 16
    allow_empty: bool = False
    to: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require(self.buckets >= 1, "export.embeddings.buckets", "must be at least 1")


@dataclasses.dataclass(frozen=True)
class ExportConfig:
    """How a model is exported and what it answers with.

    Attributes:
      warmup_examples: rows of the largest warm-up request for TF Serving; requests of 1, 2, 4, ...
        rows are stored before it. 0 for none.
      top_k: number of items in a recommendation, for models that recommend.
      drop_seen: leave out the items of the request's history, for models that recommend.
      index: the index that recommendations are read from, for models with user and item vectors.
      deterministic: number of places of a slate that take the most probable actions; the others are
        drawn at random. Null for all places. For policies.
      temperature: temperature of the random draws, for policies.
      candidates: number of most probable actions that the draws choose from, for policies.
      embeddings: how the pipeline exports user embeddings, for models that make them.
    """

    warmup_examples: int = 8
    top_k: int = 20
    drop_seen: bool = True
    index: IndexConfig = IndexConfig()
    deterministic: int | None = None
    temperature: float = 1.0
    candidates: int = 500
    embeddings: EmbeddingsConfig = EmbeddingsConfig()

    def __post_init__(self) -> None:
        require(
            0 <= self.warmup_examples <= 1000,
            "export.warmup_examples",
            "must be 0 to 1000",
        )
        require(self.top_k >= 1, "export.top_k", "must be at least 1")
        require(self.temperature > 0, "export.temperature", "must be above 0")
        require(self.candidates >= 1, "export.candidates", "must be at least 1")
        require(
            self.deterministic is None or 0 <= self.deterministic <= self.top_k,
            "export.deterministic",
            "must be 0 to export.top_k, or null",
        )


@dataclasses.dataclass(frozen=True)
class TunerConfig:
    """The search of `tfrz tune` and of the pipeline's Tuner.

    Attributes:
      enabled: whether the pipeline has a Tuner.
      max_trials: largest number of configurations to try.
      epochs_per_trial: largest number of epochs of a trial; null for `trainer.epochs`.
      search_space: maps dotted names of this configuration to the values to try. A later space (of
        a data set, a file, an override) replaces an earlier one.
    """

    enabled: bool = False
    max_trials: int = 8
    epochs_per_trial: int | None = None
    search_space: dict[str, list[Any]] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        require(self.max_trials >= 1, "tuner.max_trials", "must be at least 1")
        require(
            self.epochs_per_trial is None or self.epochs_per_trial >= 1,
            "tuner.epochs_per_trial",
            "must be at least 1, or null",
        )
        require(
            not self.enabled or bool(self.search_space),
            "tuner.search_space",
            "is empty: name what to search, e.g. {model.rank: [8, 16]}",
        )
        for name, values in self.search_space.items():
            where = f"tuner.search_space.{name}"
            require(bool(values), where, "has no values")
            require(
                name.partition(".")[0] not in ("name", "tuner", "evaluator", "pipeline"),
                where,
                "does not change how a model is trained: search values of model, trainer or data",
            )
            different = {json.dumps(value, default=str) for value in values}
            require(len(different) == len(values), where, "has a value twice")


@dataclasses.dataclass(frozen=True)
class EvaluatorConfig:
    """Bounds that a model of clicks must meet to be blessed.

    Attributes:
      slices: raw features, or tuples of them, by whose values metrics are sliced.
      min_auc: lower bound on the AUC of all examples.
      max_log_loss: upper bound on the log loss of all examples, if given.
      calibration_bounds: lower and upper bound on mean prediction / mean label, if given.
      min_slice_auc: lower bound on the AUC of every slice of `slices`, if given.
      max_auc_drop: largest difference by which the AUC may fall below the latest blessed model's.
    """

    slices: tuple[tuple[str, ...], ...] = ()
    min_auc: float = 0.6
    max_log_loss: float | None = None
    calibration_bounds: tuple[float, ...] | None = None
    min_slice_auc: float | None = None
    max_auc_drop: float = 0.01

    def __post_init__(self) -> None:
        require(0 <= self.min_auc < 1, "evaluator.min_auc", "must be at least 0, under 1")
        require(self.max_auc_drop >= 0, "evaluator.max_auc_drop", "must not be negative")
        bounds = self.calibration_bounds
        require(
            bounds is None or (len(bounds) == 2 and bounds[0] < bounds[1]),
            "evaluator.calibration_bounds",
            "must be two numbers, the smaller first",
        )


@dataclasses.dataclass(frozen=True)
class RankingEvaluatorConfig:
    """Bounds that a model that recommends must meet to be blessed.

    Attributes:
      slices: tuples of features by whose values metrics are sliced: raw contexts, and
        `history_length` and `target_popularity`, which `transform_features` adds.
      min_metrics: maps metrics, such as recall_at_20, to lower bounds over all examples.
      max_drops: maps metrics to the largest difference by which they may be worse than the latest
        blessed model's.
    """

    slices: tuple[tuple[str, ...], ...] = (("history_length",), ("target_popularity",))
    min_metrics: dict[str, float] = dataclasses.field(default_factory=dict)
    max_drops: dict[str, float] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("min_metrics", "max_drops"):
            for metric, value in getattr(self, name).items():
                where = f"evaluator.{name}.{metric}"
                require(0 <= value < 1, where, "must be at least 0, under 1")


@dataclasses.dataclass(frozen=True)
class SlateEvaluatorConfig(RankingEvaluatorConfig):
    """Bounds that a model that re-ranks must meet to be blessed.

    Attributes:
      slices: tuples of features by whose values metrics are sliced: raw contexts, and `list_length`
        and `query_frequency`, which `transform_features` adds.
    """

    slices: tuple[tuple[str, ...], ...] = (("list_length",), ("query_frequency",))


@dataclasses.dataclass(frozen=True)
class PolicyEvaluatorConfig(RankingEvaluatorConfig):
    """Bounds that a policy must meet to be blessed, on its rankings and its estimated value.

    Attributes:
      slices: tuples of features by whose values metrics are sliced.
      estimator: self_normalized (SNIPS) or inverse_propensity (IPS), on the log that judges.
      cap: upper bound on the importance weights of the estimate; null for none.
      min_lift: share of the logged reward by which the lower bound of the estimate must exceed it.
      min_effective_sample_size: an estimate with a smaller effective sample size is refused.
    """

    slices: tuple[tuple[str, ...], ...] = (("history_length",), ("target_popularity",))
    estimator: Literal["self_normalized", "inverse_propensity"] = "self_normalized"
    cap: float | None = 20.085536923187668
    min_lift: float = 0.0
    min_effective_sample_size: float = 100.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.cap is None or self.cap > 0, "evaluator.cap", "must be above 0, or null")
        require(
            self.min_effective_sample_size >= 0,
            "evaluator.min_effective_sample_size",
            "must not be negative",
        )


@dataclasses.dataclass(frozen=True)
class TimelineEvaluatorConfig:
    """Bounds that a model of user vectors must meet to be blessed, as a ranker and on its vectors.

    Attributes:
      slices: tuples of features by whose values metrics are sliced; `transform_features` adds
        `history_events`.
      max_normalized_entropy: maps binary tasks to upper bounds on their normalised entropy.
      max_rise: largest difference by which a normalised entropy may exceed the latest blessed
        model's.
      min_coverage: lower bound on the share of the users with a vector.
      min_cosine: lower bound on the median cosine between a user's vectors of this model and of the
        one before; null where a new coordinate system is expected.
      max_norm_change: upper bound on |log(median norm / median norm before)|; null for none.
    """

    slices: tuple[tuple[str, ...], ...] = (("history_events",),)
    max_normalized_entropy: dict[str, float] = dataclasses.field(default_factory=dict)
    max_rise: float = 0.02
    min_coverage: float = 0.0
    min_cosine: float | None = None
    max_norm_change: float | None = None

    def __post_init__(self) -> None:
        require(self.max_rise >= 0, "evaluator.max_rise", "must not be negative")
        require(0 <= self.min_coverage <= 1, "evaluator.min_coverage", "must be 0 to 1")
        cosine = self.min_cosine
        require(cosine is None or -1 <= cosine <= 1, "evaluator.min_cosine", "must be -1 to 1")
        change = self.max_norm_change
        require(change is None or change > 0, "evaluator.max_norm_change", "must be above 0")


@dataclasses.dataclass(frozen=True)
class PipelineConfig:
    """How the TFX pipeline runs.

    Attributes:
      beam_runner: DirectRunner, or another runner of the Beam installation.
      beam_args: further Beam options, passed unchanged (`--direct_num_workers=2`).
      schema: inferred from the statistics, or imported from the source's feature spec.
      enable_cache: reuse the outputs of components whose inputs have not changed.
    """

    beam_runner: str = "DirectRunner"
    beam_args: tuple[str, ...] = ()
    schema: Literal["inferred", "imported"] = "inferred"
    enable_cache: bool = True


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """Everything that determines a run; saved beside each result and inside each SavedModel.

    Attributes:
      name: the model's name in the registry.
      model: an instance of the configuration class of that model.
      weighting: how training examples are weighted; for two-tower models.
      distill: who teaches the model.
      low_rank: which layers are of low rank from the start.
      evaluator: an `EvaluatorConfig`, a `RankingEvaluatorConfig` for history records, a
        `SlateEvaluatorConfig` for list records, a `PolicyEvaluatorConfig` for logged actions, or a
        `TimelineEvaluatorConfig` for timelines.
    """

    name: str
    model: Any
    data: DataConfig = DataConfig()
    features: FeaturesConfig = FeaturesConfig()
    trainer: TrainerConfig = TrainerConfig()
    weighting: WeightingConfig = WeightingConfig()
    distill: DistillConfig = DistillConfig()
    low_rank: LowRankConfig = LowRankConfig()
    export: ExportConfig = ExportConfig()
    tuner: TunerConfig = TunerConfig()
    evaluator: Any = EvaluatorConfig()
    pipeline: PipelineConfig = PipelineConfig()


def _check_distillation(entry: registry.ModelEntry, distill: DistillConfig) -> None:
    if not distill.active:
        return
    able = [name for name in registry.names() if registry.get(name).distillation]
    require(
        entry.distillation,
        "distill.teacher",
        f"{entry.name} cannot be taught; {', '.join(able)} can",
    )
    if entry.task.taught == "clicks":
        distill.check_clicks()
    elif entry.task.taught == "lists":
        distill.check_lists()
    elif entry.task.taught == "batch":
        require(
            distill.factor == "full",
            "distill.factor",
            f"{distill.factor} spreads shares over all items, and {entry.name} scores those of a "
            "batch: take full",
        )


def _with_slices(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """The mapping with the slices themselves where it names a specification."""
    timeline = (mapping.get("data") or {}).get("timeline") or {}
    if not isinstance(timeline, Mapping) or not isinstance(timeline.get("slices"), str):
        return dict(mapping)
    slices = to_mapping(load_slices(timeline["slices"]))
    return merge(mapping, {"data": {"timeline": {"slices": slices}}})


def run_config_from_mapping(mapping: Mapping[str, Any]) -> RunConfig:
    """The `RunConfig` that plain values describe; the inverse of `run_config_to_mapping`.

    Raises:
      ConfigError: an unknown key, or a value of the wrong type or range.
    """
    values = _with_slices(mapping)
    entry = registry.get(str(values.get("name", "")))
    model = from_mapping(entry.load("config"), values.pop("model", None), "model")
    judged = registry.resolve(entry.task.evaluator)
    evaluator: Any = from_mapping(judged, values.pop("evaluator", None), "evaluator")
    config = from_mapping(RunConfig, {**values, "model": model, "evaluator": evaluator})
    if isinstance(config.evaluator, RankingEvaluatorConfig):
        for bounds in ("min_metrics", "max_drops"):
            for metric in getattr(config.evaluator, bounds):
                known = ", ".join(entry.metrics)
                where = f"evaluator.{bounds}.{metric}"
                require(metric in entry.metrics, where, f"is none of {known}")
    require(
        config.weighting.kind == "none" or entry.recipe != registry.PLAIN_RECIPE,
        "weighting.kind",
        f"{entry.name} has no items to weight examples by",
    )
    _check_distillation(entry, config.distill)
    able = [name for name in registry.names() if registry.get(name).long_history]
    require(
        entry.long_history or config.features.long_history is None,
        "features.long_history",
        f"{entry.name} reads no embeddings of users; {', '.join(able)} do",
    )
    own = RECORD_TYPES[entry.record_type].section
    for section in sorted({row.section for row in RECORD_TYPES.values() if row.section}):
        given = getattr(config.data, section) is not None
        what = {"history": "histories", "timeline": "timelines"}.get(section, section)
        why = "must be given" if section == own else f"{entry.name} does not learn from {what}"
        require(given == (section == own), f"data.{section}", why)
    for dotted, choices in config.tuner.search_space.items():
        # A misspelt name must not cost an evening of trials: build one configuration with each.
        for value in choices:
            try:
                with_override(config, dotted, value)
            except ConfigError as error:
                raise ConfigError(f"tuner.search_space: {error}") from error
    return config


def run_config_to_mapping(config: RunConfig) -> dict[str, Any]:
    """Plain values (for YAML, JSON and TFX's `custom_config`)."""
    values: dict[str, Any] = to_mapping(config)
    return values


def with_override(config: RunConfig, dotted: str, value: Any) -> RunConfig:
    """A copy of `config` with one dotted name set to `value`, checked like every value."""
    return with_values(config, {dotted: value})


def with_values(config: RunConfig, values: Mapping[str, Any]) -> RunConfig:
    """A copy of `config` with dotted names set to values, checked together."""
    mapping = run_config_to_mapping(config)
    del mapping["tuner"]  # Its space was checked, each value with a configuration of its own.
    for dotted, value in values.items():
        change: Any = value
        for key in reversed(dotted.split(".")):
            change = {key: change}
        mapping = merge(mapping, change)
    return dataclasses.replace(run_config_from_mapping(mapping), tuner=config.tuner)


def _without_space(mapping: dict[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """`mapping` without its search space if `change` has one: spaces are not mixed."""
    tuner = change.get("tuner")
    if not isinstance(tuner, Mapping) or "search_space" not in tuner:
        return mapping
    return merge(mapping, {"tuner": {"search_space": None}})


def _merged(mapping: dict[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """`mapping` with the values of a file over it."""
    return merge(_without_space(mapping, change), change)


def load_run_config(
    model: str,
    dataset: str = "simulated",
    overrides: Iterable[str] = (),
    config_file: str | Path | None = None,
) -> RunConfig:
    """The configuration of `model` on `dataset`, with overrides.

    Args:
      model: a name of the registry.
      dataset: the word of `--data` before the colon. A dataset without a file of its own takes
        `simulated.yaml`'s model and trainer sections only if there is no `default.yaml`.
      overrides: `section.key=value`, the value as YAML.
      config_file: YAML over the configuration of `dataset` and under `overrides`.

    Raises:
      InputError: the model is unknown.
      ConfigError: a key is unknown or a value is out of range, or the file cannot be read or is of
        another model.
    """
    entry = registry.get(model)
    directory = entry.config_directory
    mapping: dict[str, Any] = {}
    files = [directory / f"{name}.yaml" for name in ("default", dataset)]
    for path in [path for path in files if path.exists()]:
        mapping = _merged(mapping, read_yaml(path))
    if config_file is not None:
        change = read_yaml(config_file)
        of = change.get("name", model)
        require(of == model, f"--config {config_file}", f"is of the model {of!r}, not of {model!r}")
        mapping = _merged(mapping, change)
    mapping["name"] = model
    overrides = list(overrides)
    mapping = _without_space(mapping, apply_overrides({}, overrides))
    try:
        # Named slices first, so that an override may change a part of them.
        return run_config_from_mapping(apply_overrides(_with_slices(mapping), overrides))
    except ConfigError as error:
        if config_file is None:
            raise
        raise ConfigError(f"{error} (with --config {config_file})") from error
