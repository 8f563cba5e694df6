"""The task of *timeline* records: learn users' vectors from whole histories, by ranking.

Every model of this task is constructed as `Model(config, tables, table_ids, vocabulary_sizes,
candidates, described, recent, num_tasks, dtype=...)` and has `embed`, `interact`, `pool`, `encode`
and the tables that `tfrz.models.dv365.DV365` names.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import pyarrow as pa
import tensorflow as tf
from numpy.typing import NDArray

from tfrz import metrics
from tfrz.data.columns import raw_sparse
from tfrz.data.spec import Feature, Spec, raw_feature_spec, transformed_name
from tfrz.data.timelines.examples import build_examples, clean, refuse_empty_slices
from tfrz.data.timelines.spec import TimelineConfig, TimelineSpec, example_spec
from tfrz.data.timelines.transform import TimelinePreprocessor, preprocess_timeline
from tfrz.data.transform import Analyzers, Preprocessor
from tfrz.data.user_embeddings import EmbeddingJoin
from tfrz.errors import InputError
from tfrz.export.raw_inputs import check_rows, to_sparse
from tfrz.layers.low_rank_dense import frobenius_penalty
from tfrz.training.batches import Batches
from tfrz.training.fit import objective_of
from tfrz.zoo.task import ExampleSource, Parts, Prepared, Served, Task, Tensors, Transform
from tfrz.zoo.tasks.sets import column, distinct, judged_sets
from tfrz.zoo.tasks.slices import in_words

logger = logging.getLogger(__name__)

_ROWS_AT_ONCE = 1024


@dataclasses.dataclass(frozen=True)
class TimelineInputs:
    """The transformed inputs of a model.

    Attributes:
      tables: table of slices to the places of its slices.
      table_ids: table of slices to its type of id.
      vocabulary_sizes: type of id to its ids in all.
      candidates: of an example.
      described: types of ids that describe a candidate.
      recent: whether there are recent ids.
      binary: tasks whose outcome is 0 or 1.
      tasks: all tasks, the binary ones first.
      names: all inputs of the model.
    """

    tables: dict[str, tuple[int, ...]]
    table_ids: dict[str, str]
    vocabulary_sizes: dict[str, int]
    candidates: int
    described: tuple[str, ...]
    recent: bool
    binary: tuple[str, ...]
    tasks: tuple[str, ...]
    names: tuple[str, ...]


def events_bucket(totals: tf.Tensor) -> tf.Tensor:
    """Visible events as words, for slices of the Evaluator."""
    words = ["0", "1-99", "100-999", "1,000-9,999", "10,000+"]
    return in_words(totals, [1, 100, 1000, 10_000], words)


def transform_timelines(
    preprocessor: Preprocessor[Any, Any], table: pa.Table, spec: TimelineSpec
) -> dict[str, Any]:
    """All rows of a table of examples, outcomes included: lists as ragged tensors."""
    names = raw_feature_spec(spec)
    specs = {name: tf.SparseTensorSpec([None, None], one.dtype) for name, one in names.items()}
    transform = tf.function(
        lambda raw: preprocessor(raw, with_label=True), input_signature=[specs], autograph=False
    )
    parts: dict[str, list[Any]] = {}
    for start in range(0, max(table.num_rows, 1), _ROWS_AT_ONCE):
        for name, value in transform(raw_sparse(table.slice(start, _ROWS_AT_ONCE), spec)).items():
            if isinstance(value, tf.SparseTensor):
                value = tf.RaggedTensor.from_sparse(value)
            parts.setdefault(name, []).append(value)
    return {name: tf.concat(values, axis=0) for name, values in parts.items()}


def _constant(batches: Batches, name: str, task: str) -> str | None:
    """Says that the outcomes of a task do not differ in a set; None if they do."""
    values = distinct(column(batches, f"label_{task}_xf"))
    if not values:
        return f"no {name} example has an outcome {task}"
    if len(values) == 1:
        return f"{task} is {values[0]:g} in all {batches.num_examples:,} {name} examples"
    return None


class TimelineTask(Task[TimelineSpec, TimelineInputs]):
    """Binary log losses and squared errors, summed over the tasks; the product is the vectors."""

    objective = "normalized_entropy"
    product = "encode"
    slice_features = ("history_events",)
    shorter_lists = False
    _binary: tuple[str, ...] = ()
    _tasks: tuple[str, ...] = ()

    @property
    def timeline(self) -> TimelineConfig:
        """How examples are made."""
        assert self.config.data.timeline is not None
        return self.config.data.timeline

    # Data.

    def example_spec(self, source: Spec) -> tuple[TimelineSpec, EmbeddingJoin | None]:
        """The spec of examples, from that of the source."""
        spec, join = super().example_spec(source)
        return example_spec(spec, self.timeline), join

    def make_examples(
        self, records: pa.Table, source: ExampleSource[TimelineSpec]
    ) -> tuple[Parts, int]:
        """Sketches of timelines with candidates.

        Raises:
          InputError: no example is left of a split, or a slice is empty for everyone.
          ConfigError: a slice needs columns that the source does not have.
        """
        name, data = source.reader.name, self.config.data
        events, left_out = clean(records, source.spec)
        for reason, count in left_out.items():
            logger.warning("%s: %d events left out: %s", name, count, reason)
        parts = build_examples(events, source.spec, self.timeline, data.held_out)
        for split in ("train", "validation"):
            if not parts[split].num_rows:
                raise InputError(
                    f"{name}: no event with an outcome and a visible history is left for "
                    f"{split}: bring longer histories, or raise data.timeline.targets"
                )
        refuse_empty_slices(parts["train"], self.timeline)
        return parts, sum(left_out.values())

    def check_sets(self, prepared: Prepared[TimelineSpec, TimelineInputs]) -> None:
        """Refuses outcomes of one class.

        Raises:
          InputError: as of `Task`; or no task has different outcomes in training, or none whose
            metric chooses the weights has them in validation.
        """
        super().check_sets(prepared)
        inputs = prepared.inputs
        constant = {
            task: said
            for task in inputs.tasks
            if (said := _constant(prepared.train, "training", task)) is not None
        }
        if len(constant) == len(inputs.tasks):
            raise InputError(
                f"{next(iter(constant.values()))}: there is nothing to learn; check the outcomes, "
                "or set data.timeline.negatives"
            )
        for said in constant.values():
            logger.warning("%s: this task teaches nothing", said)
        objective = objective_of(self, self.config.trainer)
        for name, some in judged_sets(prepared).items():
            undefined = {
                task: f"{said}: auc and normalized_entropy of {task} are undefined there"
                for task in inputs.binary
                if (said := _constant(some, name, task)) is not None
            }
            of_one = [t for t in undefined if objective in (f"auc_{t}", f"normalized_entropy_{t}")]
            of_all = objective in ("auc", "normalized_entropy")
            if of_all and undefined and len(undefined) == len(inputs.binary):
                of_one = list(undefined)
            if name == "validation" and of_one:
                raise InputError(
                    f"{undefined[of_one[0]]}, and {objective} is to choose the weights"
                )
            for said in undefined.values():
                logger.warning("%s", said)

    def fit_transform(self, examples: pa.Table, spec: TimelineSpec) -> Preprocessor[Any, Any]:
        """Vocabularies of the training examples."""
        fitted: Preprocessor[Any, Any] = TimelinePreprocessor.fit_examples(examples, spec)
        return fitted

    def transformer(
        self, transform: Preprocessor[Any, Any], spec: TimelineSpec, split: str
    ) -> Callable[[pa.Table], dict[str, Any]]:
        """As of `Task`, lists as ragged tensors."""
        del split
        return functools.partial(transform_timelines, transform, spec=spec)

    def preprocess(
        self, inputs: Mapping[str, tf.SparseTensor], spec: TimelineSpec, analyzers: Analyzers
    ) -> dict[str, Any]:
        """Raw features and outcomes to transformed ones."""
        return preprocess_timeline(inputs, spec, analyzers)

    # The model.

    def model_inputs(
        self, spec: TimelineSpec, vocabulary_sizes: Mapping[str, int]
    ) -> TimelineInputs:
        """The argument of `build`, from the raw features and the fitted vocabularies."""
        slices = self.timeline.slices
        return TimelineInputs(
            tables=dict(slices.tables),
            table_ids=dict(slices.table_ids),
            vocabulary_sizes={
                f.name: vocabulary_sizes[transformed_name(f.name)] for f in spec.vocabularies
            },
            candidates=self.timeline.candidates,
            described=tuple(f.name for f in spec.described),
            recent=self.timeline.recent > 0,
            binary=spec.binary,
            tasks=spec.tasks,
            names=tuple(transformed_name(f.name) for f in spec.features),
        )

    def construct(self, inputs: TimelineInputs) -> keras.Model:
        """The model, before it has any variables."""
        self._binary, self._tasks = inputs.binary, inputs.tasks
        return self.entry.load("model")(
            self.config.model,
            inputs.tables,
            inputs.table_ids,
            inputs.vocabulary_sizes,
            inputs.candidates,
            inputs.described,
            inputs.recent,
            len(inputs.tasks),
            dtype=self.config.trainer.dtype,
        )

    @staticmethod
    def example_inputs(inputs: TimelineInputs, batch_size: int = 2) -> Tensors:
        """A batch of zeros of the right shapes and dtypes."""
        return {
            name: tf.zeros(
                [batch_size, 1], tf.float32 if name.endswith("_weights_xf") else tf.int64
            )
            for name in inputs.names
        }

    def vocabulary_weights(self, model: keras.Model) -> dict[str, list[tf.Variable]]:
        """The tables whose rows are the ids of each vocabulary."""
        weights: dict[str, list[tf.Variable]] = {}
        for name, layer in model.slice_tables.items():
            kind = transformed_name(model.table_ids[name])
            weights.setdefault(kind, []).append(layer.embeddings)
        for layers in (model.candidate_tables, model.recent_tables):
            for kind, layer in layers.items():
                weights.setdefault(transformed_name(kind), []).append(layer.embeddings)
        return weights

    # Training.

    def _labels(self, batch: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """Outcomes `[batch, candidates, tasks]`, NaN for none."""
        return tf.stack([batch[f"label_{task}_xf"] for task in self._tasks], axis=-1)

    def lookup(self, model: keras.Model, batch: Tensors) -> Tensors:
        """The embedded inputs and the outcomes."""
        looked_up = {**model.embed(batch, training=True), "label": self._labels(batch)}
        if self.teacher is not None:
            looked_up["taught"] = tf.stop_gradient(self.teacher.model(batch, training=False))
        return looked_up

    def dense_loss(self, model: keras.Model, looked_up: Tensors) -> tuple[tf.Tensor, tf.Tensor]:
        """The tasks' losses, summed, each the mean over the candidates with one; a penalty."""
        outputs = tf.cast(model.interact(looked_up, training=True), tf.float32)
        label = looked_up["label"]
        known = tf.math.is_finite(label)
        label = tf.where(known, label, tf.zeros_like(label))
        count = len(self._binary)
        losses = tf.concat(
            [
                tf.nn.sigmoid_cross_entropy_with_logits(label[..., :count], outputs[..., :count]),
                tf.square(label[..., count:] - outputs[..., count:]),
            ],
            axis=-1,
        )
        distill = self.config.distill
        if distill.active:
            said = looked_up.get("taught", tf.zeros_like(outputs))
            soft = [
                distill.click_term(outputs[..., :count], said[..., :count]),
                tf.square(said[..., count:] - outputs[..., count:])
                if "taught" in looked_up and distill.factor != "label_smoothing"
                else losses[..., count:],
            ]
            losses = distill.mixed(losses, tf.concat(soft, axis=-1))
        weights = tf.cast(known, tf.float32)
        means = tf.math.divide_no_nan(
            tf.reduce_sum(losses * weights, axis=1), tf.reduce_sum(weights, axis=1)
        )
        return tf.reduce_sum(means, axis=1), frobenius_penalty(model)

    def predict(self, model: keras.Model, batch: Tensors) -> Tensors:
        """Outputs and outcomes, `[batch, candidates, tasks]` each."""
        return {"output": model(batch, training=False), "label": self._labels(batch)}

    def metrics(self, outputs: dict[str, NDArray[Any]]) -> dict[str, float]:
        """Normalised entropy and AUC of binary tasks, mean squared error of regressions.

        Those without a task's name are means over the tasks.
        """
        found: dict[str, float] = {}
        for i, task in enumerate(self._tasks):
            known = np.isfinite(outputs["label"][..., i])
            label, output = outputs["label"][..., i][known], outputs["output"][..., i][known]
            if task in self._binary:
                found[f"normalized_entropy_{task}"] = metrics.normalized_entropy(label, output)
                found[f"auc_{task}"] = metrics.auc(label, output)
            else:
                found[f"mse_{task}"] = float(np.mean(np.square(label - output)))
        for kind in ("normalized_entropy", "auc", "mse"):
            values = [value for name, value in found.items() if name.startswith(f"{kind}_")]
            # A task of one class has no such metric.
            defined = [value for value in values if not np.isnan(value)]
            if values:
                found[kind] = float(np.mean(defined)) if defined else float("nan")
        # Without a binary task the loop is to choose by the regressions.
        found.setdefault("normalized_entropy", found.get("mse", float("nan")))
        return found

    # The export.

    def outputs(self, model: keras.Model, features: Tensors) -> Tensors:
        """`embedding` float32 `[batch, vectors, dim]`, zero without any event, and `present`."""
        pooled, totals = model.pool(features)
        present = tf.reduce_any(totals > 0, axis=1)
        return {"embedding": self._summary(model, pooled, present), "present": present}

    @staticmethod
    def _summary(model: keras.Model, pooled: tf.Tensor, present: tf.Tensor) -> tf.Tensor:
        vectors = tf.cast(model.encode(pooled), tf.float32)
        return tf.where(present[:, None, None], vectors, tf.zeros_like(vectors))

    def request_spec(self, spec: TimelineSpec) -> TimelineSpec:
        """The slices: a request has no candidates."""
        slices = tuple(one for one in spec.lists if one.name.startswith("slices_"))
        return dataclasses.replace(spec, lists=slices)

    def aligned_lists(self, spec: TimelineSpec) -> Sequence[Sequence[str]]:
        """Ids, places and weights of each list."""
        return [[feature.name for feature in one.features] for one in spec.lists]

    def to_sparse(self, features: Tensors, spec: TimelineSpec) -> dict[str, tf.SparseTensor]:
        """Named raw tensors as `tf.io.parse_example` returns them, each list aligned in itself."""
        features = check_rows(features)
        sparse: dict[str, tf.SparseTensor] = {}
        for names in self.aligned_lists(spec):
            sparse |= to_sparse({name: features[name] for name in names}, names)
        return sparse

    def signatures(
        self,
        model: keras.Model,
        transform: Transform,
        spec: TimelineSpec,
        vocabularies: Mapping[str, Sequence[str]],
    ) -> dict[str, Callable[..., Tensors]]:
        """As of `Task`, and those of the export of vectors.

        `serving_default`, `serving_raw` and `encode` answer `embedding` float32
        `[batch, vectors, dim]` and `present` bool `[batch]`. `score` takes serialised examples with
        candidates and answers each task `[batch, candidates]`, probabilities of binary ones. `pool`
        takes for each table `terms_<table>` string `[terms]` and `weights_<table>` float32
        `[slices of it, terms]` and answers `sums_<table>` float64 `[slices of it, dim]`;
        `summarize` takes `pooled` `[batch, slices, dim]` and answers the `embedding`. The last two
        are additive parts of `encode`, for histories of any length.

        Raises:
          InputError: the model has no vectors.
        """
        if not model.num_vectors:
            raise InputError("model.encoder is none: such a ranker has no embedding to export")
        self._binary, self._tasks = spec.binary, spec.tasks
        return super().signatures(model, transform, spec, vocabularies)

    def described(
        self, served: Served[TimelineSpec], raw: dict[str, tf.SparseTensor], features: Tensors
    ) -> Tensors:
        """The transformed features, the outcomes, and the number of events as words."""
        outcomes = {
            f"outcome_{task}": tf.sparse.to_dense(raw[f"label_{task}"], float("nan"))
            for task in self._tasks
        }
        _, totals = served.model.pool(features)
        # The slice that holds most is as near as a sketch comes to the number of events.
        most = tf.cast(tf.reduce_max(totals, axis=1), tf.int64)
        return {**features, **outcomes, "history_events": events_bucket(most)}

    def further_signatures(self, served: Served[TimelineSpec]) -> dict[str, Callable[..., Tensors]]:
        """`score`, `pool` and `summarize`; see `signatures`."""
        model, transform = served.model, served.transform

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="examples")])
        def score(examples: tf.Tensor) -> Tensors:
            features = served.features(self.parsed(examples, served.spec))
            outputs = tf.cast(model(features, training=False), tf.float32)
            binary = len(self._binary)
            return {
                task: tf.sigmoid(outputs[..., i]) if i < binary else outputs[..., i]
                for i, task in enumerate(self._tasks)
            }

        pool_inputs = {}
        for table, places in model.tables.items():
            pool_inputs[f"terms_{table}"] = tf.TensorSpec([None], tf.string, name=f"terms_{table}")
            pool_inputs[f"weights_{table}"] = tf.TensorSpec(
                [len(places), None], tf.float32, name=f"weights_{table}"
            )

        @tf.function(input_signature=[pool_inputs])
        def pool(inputs: Tensors) -> Tensors:
            raw: dict[str, tf.SparseTensor] = {}
            for table in model.tables:
                terms = inputs[f"terms_{table}"]
                places = tf.range(tf.shape(terms, out_type=tf.int64)[0])
                indices = tf.stack([tf.zeros_like(places), places], axis=1)
                shape = tf.stack([tf.constant(1, tf.int64), tf.shape(terms, tf.int64)[0]])
                for part, values in (
                    ("ids", terms),
                    ("places", tf.zeros_like(places)),
                    ("weights", tf.ones_like(places, tf.float32)),
                ):
                    raw[f"slices_{table}_{part}"] = tf.SparseTensor(indices, values, shape)
            transformed = transform(raw)
            sums = {}
            for table, layer in model.slice_tables.items():
                rows = layer.rows_of(transformed[f"slices_{table}_ids_xf"].values)
                # Sums of thousands of rows: in float32 they would depend on how they are cut.
                weights = tf.cast(inputs[f"weights_{table}"], tf.float64)
                sums[f"sums_{table}"] = tf.matmul(weights, tf.cast(rows, tf.float64))
            return sums

        size = [None, model.num_slices, model.config.dim]

        @tf.function(input_signature=[tf.TensorSpec(size, tf.float32, name="pooled")])
        def summarize(pooled: tf.Tensor) -> Tensors:
            return {"embedding": tf.cast(model.encode(pooled), tf.float32)}

        return {"score": score, "pool": pool, "summarize": summarize}

    def request_length(self, feature: Feature, row: int) -> int:
        """Sketches of one entry more in each request."""
        del feature
        return 1 + row

    def request_terms(
        self, feature: Feature, spec: TimelineSpec, vocabularies: Mapping[str, Sequence[str]]
    ) -> Sequence[str]:
        """The ids of a list are of its type; places of the slices in turn."""
        for one in spec.lists:
            if feature.name == f"{one.name}_ids":
                return vocabularies.get(transformed_name(one.id)) or ["none"]
            if feature.name == f"{one.name}_places":
                return [str(place) for place in range(one.places)]
        return ()

    # The Evaluator.

    def eval_config(self, spec: TimelineSpec, has_baseline: bool) -> Any:
        """TFMA's `EvalConfig`: metrics, slices and the thresholds of a blessing.

        Args:
          spec: the raw features.
          has_baseline: whether there is a blessed model to compare with.
        """
        from tfrz.zoo.tasks.thresholds import outcome_config

        return outcome_config(self.config.evaluator, spec.binary, spec.tasks, has_baseline)
