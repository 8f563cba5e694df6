"""The task of *impression* records: predict the probability of a click (or of any yes or no).

Every model of this task is constructed as `Model(config, vocabulary_sizes, multivalent, numeric,
dtype=...)` and has `embed(inputs) -> [batch, dim]` and `interact(x0) -> logits [batch]`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import keras
import numpy as np
import pyarrow as pa
import tensorflow as tf
from numpy.typing import NDArray

from tfrz import metrics
from tfrz.config import to_mapping
from tfrz.data.arrow_files import EncodedSet
from tfrz.data.impressions.encoding import (
    ENCODING_VERSION,
    EncodedImpressions,
    FittedImpressions,
    coded,
    encode,
    encoded_in,
)
from tfrz.data.impressions.spec import FeatureSpec
from tfrz.data.impressions.transform import ImpressionPreprocessor, preprocess
from tfrz.data.sources.ahead import ahead
from tfrz.data.sources.files import CorruptLines
from tfrz.data.spec import Spec, UserEmbedding, transformed_name
from tfrz.data.splits import SPLITS, SplitPlan, split_rows
from tfrz.data.transform import Analyzers, Preprocessor
from tfrz.data.user_embeddings import EmbeddingJoin, Found
from tfrz.errors import InputError
from tfrz.training.batches import ArrayBatches, Batches, GroupedBatches
from tfrz.training.fit import objective_of
from tfrz.zoo.task import ExampleSource, Parts, Prepared, Served, Task, Tensors
from tfrz.zoo.tasks.sets import column, distinct, judged_sets
from tfrz.zoo.tasks.thresholds import click_config
from tfrz.zoo.teacher import TEACHER_SCORE, logits_of, open_teacher, with_teacher
from tfrz.zoo.user_embeddings import adapter_arguments

logger = logging.getLogger(__name__)

# Sets of more rows are read from the cache while training.
_IN_MEMORY = 1 << 20


@dataclasses.dataclass(frozen=True)
class ModelInputs:
    """The transformed inputs of a model.

    Attributes:
      vocabulary_sizes: rows of the embedding of each categorical input, ids 0 and OOV included.
      multivalent: those of them that come as `[batch, values]`, padded with 0.
      numeric: inputs that come as float32 `[batch]`.
      label: name of the transformed label.
      long_history: the embedding of the user among them; None for none.
    """

    vocabulary_sizes: dict[str, int]
    multivalent: tuple[str, ...] = ()
    numeric: tuple[str, ...] = ()
    label: str = "label_xf"
    long_history: UserEmbedding | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """All inputs of the model, the label not among them."""
        opaque = self.long_history.features if self.long_history is not None else ()
        names = [transformed_name(feature.name) for feature in opaque]
        return (*self.vocabulary_sizes, *self.numeric, *names)


class ClickTask(Task[FeatureSpec, ModelInputs]):
    """Binary log loss over impressions; the product is a probability."""

    objective = "log_loss"
    product = "score"
    # Larger than a training batch: evaluation keeps no activations for a backward pass.
    evaluation_batch = 8192
    prepare_reads = ("distill.teacher",)
    live_teacher = False
    describes_targets = False
    label = "label_xf"  # As `build` found it.

    # Data.

    def example_spec(self, source: Spec) -> tuple[FeatureSpec, EmbeddingJoin | None]:
        """As of `Task`, with what a teacher says of each example."""
        spec, join = super().example_spec(source)
        return with_teacher(self.config.distill, spec), join

    def make_examples(
        self, records: pa.Table, source: ExampleSource[FeatureSpec]
    ) -> tuple[Parts, int]:
        """Splits impressions, each by a hash of its own values."""
        rows = split_rows(records, self._plan(source))
        return {split: records.take(pa.array(some)) for split, some in rows.items()}, 0

    def _plan(self, source: ExampleSource[FeatureSpec]) -> SplitPlan:
        return self.config.data.split_plan(cast(FeatureSpec, source.reader.feature_spec()))

    def _rows(
        self, source: ExampleSource[FeatureSpec], corrupt: CorruptLines
    ) -> Iterator[tuple[pa.Table, dict[str, NDArray[Any]]]]:
        """Reads a source once: rows, joined and scored, and which of them are of each split.

        Raises:
          InputError: as of `examples`; or no row falls into training or validation.
        """
        # Before anything is read: the teacher may not fit.
        teacher = open_teacher(self.config.distill, source.spec)
        data, plan = self.config.data, self._plan(source)
        own = cast(FeatureSpec, source.reader.feature_spec())
        counts, found = dict.fromkeys(SPLITS, 0), Found()
        reader = source.reader
        if source.join is None and teacher is None:
            reader = reader.with_dictionaries()
        for batch in ahead(reader.batches(corrupt)):
            table = coded(pa.Table.from_batches([batch]), own)
            # By the record's own values: what is added must not change its split.
            rows = split_rows(table, plan)
            for split, some in rows.items():
                counts[split] += len(some)
            if source.join is not None or teacher is not None:
                table = pa.Table.from_batches([batch])
            if source.join is not None:
                table, some_found = source.join(table)
                found += some_found
            yield table if teacher is None else teacher.scored(table), rows
        corrupt.check(source.reader.name, data.max_corrupt_fraction)
        for split in ("train", "validation"):
            if not counts[split]:
                raise InputError(
                    f"{source.reader.name}: none of {corrupt.rows:,} impressions falls into "
                    f"{split}: bring more, or change data.validation_fraction or data.seed"
                )
        if source.join is not None:
            source.join.check(found)

    def examples(self, source: ExampleSource[FeatureSpec]) -> tuple[Parts, int]:
        """As of `Task`, scored by the teacher if there is one."""
        corrupt = CorruptLines()
        tables: dict[str, list[pa.Table]] = {split: [] for split in SPLITS}
        for table, rows in self._rows(source, corrupt):
            for split, some in rows.items():
                tables[split].append(table.take(pa.array(some)))
        return {split: pa.concat_tables(parts) for split, parts in tables.items()}, len(corrupt)

    def prepared(
        self, spec: FeatureSpec, parts: Mapping[str, pa.Table], left_out: int = 0
    ) -> Prepared[FeatureSpec, ModelInputs]:
        """Examples by split as sets that a model is trained and evaluated on."""
        rows = ((table, {split: np.arange(table.num_rows)}) for split, table in parts.items())
        return self._of_encoded(spec, encode(spec, rows, left_out=lambda: left_out))

    def prepared_source(
        self, source: ExampleSource[FeatureSpec], cache: Path | None = None
    ) -> Prepared[FeatureSpec, ModelInputs]:
        """As of `Task`; with a cache, no more than some of the rows are ever in memory."""
        corrupt = CorruptLines()
        rows = self._rows(source, corrupt)
        if cache is None:
            encoded = encode(source.spec, rows, left_out=lambda: len(corrupt))
            return self._of_encoded(source.spec, encoded)
        directory = cache / self._cache_key(source)
        found = encoded_in(directory, source.spec)
        if found is None:
            found = encode(source.spec, rows, directory, lambda: len(corrupt))
        else:
            logger.info("encoded examples of %s: %s", source.reader.name, directory)
        return self._of_encoded(source.spec, found)

    def _cache_key(self, source: ExampleSource[FeatureSpec]) -> str:
        """A name that changes with whatever decides what is encoded."""
        data, join = self.config.data, source.join
        state = [
            ENCODING_VERSION,
            source.reader.fingerprint(),
            to_mapping(source.spec),
            [dataclasses.astuple(self._plan(source)), data.max_corrupt_fraction],
            None if join is None else [join.place, join.embeddings.version],
            self.config.distill.teacher,
        ]
        return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()[:20]

    def _of_encoded(
        self, spec: FeatureSpec, encoded: EncodedImpressions
    ) -> Prepared[FeatureSpec, ModelInputs]:
        fitted, trainer = encoded.fitted, self.config.trainer
        vocabularies = {
            transformed_name(name): terms for name, terms in fitted.transform.vocabularies.items()
        }
        sets = {
            split: self._batches(
                fitted, some, trainer.batch_size if split == "train" else self.evaluation_batch
            )
            for split, some in encoded.sets.items()
        }
        return Prepared(
            train=sets["train"],
            validation=sets["validation"],
            test=sets["test"] if sets["test"].num_examples else None,
            inputs=self.inputs_of(spec, fitted.transform.vocabulary_sizes, vocabularies),
            transform=fitted.transform,
            vocabularies=vocabularies,
            spec=spec,
            examples=encoded.examples,
            corrupt_lines=encoded.left_out,
        )

    def _batches(self, fitted: FittedImpressions, some: EncodedSet, batch_size: int) -> Batches:
        """The rows in memory if they are few, else read by groups."""
        seed = self.config.trainer.seed
        if not some.mapped or some.num_examples <= _IN_MEMORY:
            return ArrayBatches(fitted.columns(some.table(), some.widths), batch_size, seed)

        def read(groups: Sequence[int]) -> dict[str, NDArray[Any]]:
            return fitted.columns(some.table(groups), some.widths)

        return GroupedBatches([b.num_rows for b in some.batches], read, batch_size, seed)

    def check_sets(self, prepared: Prepared[FeatureSpec, ModelInputs]) -> None:
        """Refuses a training set of one class; warns of others, in which AUC is undefined.

        Raises:
          InputError: as of `Task`; or all training examples have one label, or all validation
            examples do and AUC is to choose the weights.
        """
        super().check_sets(prepared)
        label, train = prepared.inputs.label, prepared.train
        classes = distinct(column(train, label))
        if len(classes) < 2:
            raise InputError(
                f"{prepared.spec.label} is {classes[0]:g} in all {train.num_examples:,} training "
                "examples: there is nothing to learn; check the label"
            )
        for name, some in judged_sets(prepared).items():
            classes = distinct(column(some, label))
            if len(classes) == 2:
                continue
            said = (
                f"{prepared.spec.label} is {classes[0]:g} in all {some.num_examples:,} {name} "
                "examples: auc is undefined there"
            )
            if name == "validation" and objective_of(self, self.config.trainer) == "auc":
                raise InputError(f"{said}, and it is to choose the weights; bring more data")
            logger.warning("%s", said)

    def fit_transform(self, examples: pa.Table, spec: FeatureSpec) -> Preprocessor[Any, Any]:
        """Vocabularies and moments of the training examples."""
        fitted: Preprocessor[Any, Any] = ImpressionPreprocessor.fit(examples, spec)
        return fitted

    def preprocess(
        self, inputs: Mapping[str, tf.SparseTensor], spec: FeatureSpec, analyzers: Analyzers
    ) -> dict[str, Any]:
        """Raw features and label to transformed ones."""
        return preprocess(inputs, spec, analyzers)

    # The model.

    def model_inputs(self, spec: FeatureSpec, vocabulary_sizes: Mapping[str, int]) -> ModelInputs:
        """The argument of `build`, from the raw features and the fitted vocabularies."""
        return ModelInputs(
            vocabulary_sizes=dict(vocabulary_sizes),
            multivalent=tuple(transformed_name(f.name) for f in spec.multivalent),
            numeric=tuple(transformed_name(f.name) for f in spec.numeric),
            label=transformed_name(spec.label),
            long_history=spec.long_history,
        )

    def construct(self, inputs: ModelInputs) -> keras.Model:
        """The model, before it has any variables."""
        self.label = inputs.label
        return self.entry.load("model")(
            self.config.model,
            inputs.vocabulary_sizes,
            multivalent=inputs.multivalent,
            numeric=inputs.numeric,
            dtype=self.config.trainer.dtype,
            **adapter_arguments(self.config.features, inputs.long_history, units=True),
        )

    @staticmethod
    def example_inputs(inputs: ModelInputs, batch_size: int = 2) -> Tensors:
        """A batch of zeros (of strings, empty ones) of the right shapes and dtypes."""
        batch: Tensors = {}
        for name in inputs.names:
            if name in inputs.vocabulary_sizes:
                shape = [batch_size, 1] if name in inputs.multivalent else [batch_size]
                batch[name] = tf.zeros(shape, tf.int64)
            else:
                dtype = tf.float32 if name in inputs.numeric else tf.string
                batch[name] = tf.zeros([batch_size], dtype)
        return batch

    def vocabulary_weights(self, model: keras.Model) -> dict[str, list[tf.Variable]]:
        """The embeddings whose rows are the ids of each categorical input."""
        return {name: [layer.embeddings] for name, layer in model.embeddings.items()}

    # Training.

    def lookup(self, model: keras.Model, batch: Tensors) -> Tensors:
        """Embeddings `[batch, dim]`, labels and what a teacher says, logits, `[batch]`."""
        looked_up = {
            "x0": model.embed(batch, training=True),
            "label": tf.cast(batch[self.label], tf.float32),
        }
        if self.config.distill.teacher is not None:
            looked_up["taught"] = self._taught(batch)
        return looked_up

    def dense_loss(self, model: keras.Model, looked_up: Tensors) -> tuple[tf.Tensor, tf.Tensor]:
        """Cross-entropy per example `[batch]` and the regularisation, a scalar."""
        x0 = looked_up["x0"]
        logits = tf.cast(model.interact(x0, training=True), tf.float32)
        loss = tf.nn.sigmoid_cross_entropy_with_logits(looked_up["label"], logits)
        distill = self.config.distill
        if distill.active:
            loss = distill.mixed(loss, distill.click_term(logits, looked_up.get("taught")))
        penalty = tf.constant(0.0)
        for value in model.losses:
            penalty += tf.cast(value, tf.float32)
        if self.config.trainer.embedding_l2:
            squares = tf.reduce_sum(tf.square(tf.cast(x0, tf.float32)), axis=-1)
            penalty += self.config.trainer.embedding_l2 * tf.reduce_mean(squares)
        return loss, penalty

    def predict(self, model: keras.Model, batch: Tensors) -> Tensors:
        """Logits and labels, `[batch]` each."""
        return {
            "logits": model(batch, training=False),
            "label": tf.cast(batch[self.label], tf.float32),
        }

    def metrics(self, outputs: dict[str, NDArray[Any]]) -> dict[str, float]:
        """AUC, log loss and calibration."""
        labels, logits = outputs["label"], outputs["logits"]
        return {
            "auc": metrics.auc(labels, logits),
            "log_loss": metrics.log_loss(labels, logits),
            "calibration": metrics.calibration(labels, logits),
        }

    # A teacher.

    def _taught(self, batch: Tensors) -> tf.Tensor:
        """The teacher's logits, `[batch]`."""
        return logits_of(batch[transformed_name(TEACHER_SCORE)])

    def teacher_metrics(self, batches: Batches) -> dict[str, float]:
        """The metrics of the run's teacher on a set of examples."""
        rows = [
            (batch[self.label].numpy(), self._taught(batch).numpy()) for batch in batches.once()
        ]
        labels, logits = (np.concatenate(column) for column in zip(*rows, strict=True))
        return self.metrics({"label": labels, "logits": logits})

    def class_logits(
        self, model: keras.Model, batch: Tensors
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor] | None:
        """Of the two classes, no and yes."""
        logits = tf.cast(model(batch, training=False), tf.float32)
        student, taught = (
            tf.stack([tf.zeros_like(one), one], axis=1) for one in (logits, self._taught(batch))
        )
        return student, taught, tf.cast(batch[self.label] > 0.5, tf.int64)

    # The export.

    def outputs(self, model: keras.Model, features: Tensors) -> Tensors:
        """Probabilities, float32 `[batch]`."""
        return {"scores": tf.sigmoid(tf.cast(model(features, training=False), tf.float32))}

    def further_signatures(self, served: Served[FeatureSpec]) -> dict[str, Callable[..., Tensors]]:
        """`classify` and `regress` of TF Serving's contract, from serialised examples `[batch]`."""
        inputs = tf.TensorSpec([None], tf.string, name="inputs")

        def probability(serialized: tf.Tensor) -> tf.Tensor:
            features = served.features(self.parsed(serialized, served.spec))
            return self.outputs(served.model, features)["scores"]

        @tf.function(input_signature=[inputs])
        def classify(inputs: tf.Tensor) -> Tensors:
            p = probability(inputs)
            classes = tf.tile(tf.constant([["0", "1"]]), [tf.shape(p)[0], 1])
            return {"classes": classes, "scores": tf.stack([1.0 - p, p], axis=1)}

        @tf.function(input_signature=[inputs])
        def regress(inputs: tf.Tensor) -> Tensors:
            return {"outputs": probability(inputs)}

        return {"classify": classify, "regress": regress}

    # The Evaluator.

    def eval_config(self, spec: FeatureSpec, has_baseline: bool) -> Any:
        """TFMA's `EvalConfig`: metrics, slices and the thresholds of a blessing.

        Args:
          spec: the raw features.
          has_baseline: whether there is a blessed model to compare with.
        """
        return click_config(self.config.evaluator, spec.label, has_baseline)
