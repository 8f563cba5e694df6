"""The recipe of *impression* records: predict the probability of a click (or of any yes/no).

Every model of this record type is constructed as `Model(config, vocabulary_sizes, multivalent,
numeric, dtype=...)` and has `embed(inputs) -> [batch, dim]` and `interact(x0) -> logits [batch]`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import tensorflow as tf

from tfrz import metrics
from tfrz.data.columns import to_examples
from tfrz.data.impressions.spec import FeatureSpec
from tfrz.data.impressions.transform import ImpressionPreprocessor, preprocess
from tfrz.data.spec import UserEmbedding, raw_feature_spec, transformed_name
from tfrz.data.transform import Analyzers, densify, transform_table
from tfrz.data.user_embeddings import joined
from tfrz.export.raw_inputs import raw_input_signature, to_sparse, without_opaque
from tfrz.training.batches import ArrayBatches
from tfrz.zoo.long_history import with_long_history
from tfrz.zoo.tasks.prepared import Prepared
from tfrz.zoo.teacher import TEACHER_SCORE, logits_of, open_teacher, with_teacher

if TYPE_CHECKING:
    from tfrz.data.sources.reader import Reader
    from tfrz.zoo.registry import ModelEntry
    from tfrz.zoo.run_config import RunConfig

# Larger than a training batch: evaluation keeps no activations for a backward pass.
_EVALUATION_BATCH = 8192

Transform = Callable[[dict[str, tf.SparseTensor]], dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class ModelInputs:
    """What a model must know of its transformed inputs.

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

    @classmethod
    def from_spec(cls, spec: FeatureSpec, vocabulary_sizes: Mapping[str, int]) -> ModelInputs:
        """The inputs that a feature spec and its fitted vocabularies give."""
        return cls(
            vocabulary_sizes=dict(vocabulary_sizes),
            multivalent=tuple(transformed_name(f.name) for f in spec.multivalent),
            numeric=tuple(transformed_name(f.name) for f in spec.numeric),
            label=transformed_name(spec.label),
            long_history=spec.long_history,
        )

    @property
    def names(self) -> tuple[str, ...]:
        """All inputs of the model, the label not among them."""
        opaque = self.long_history.features if self.long_history is not None else ()
        names = [transformed_name(feature.name) for feature in opaque]
        return (*self.vocabulary_sizes, *self.numeric, *names)


class ClickTask:
    """Binary log loss over impressions.

    Args:
      entry: the model's row in the registry.
      config: the run's configuration.
    """

    objective = "log_loss"
    objective_direction = "min"
    spec_class = FeatureSpec
    slice_features: tuple[str, ...] = ()
    prepare_reads = ("distill.teacher",)  # Beyond `data` and `features`.

    def __init__(self, entry: ModelEntry, config: RunConfig) -> None:
        self.entry, self.config = entry, config
        self.label = "label_xf"

    @staticmethod
    def model_inputs(spec: FeatureSpec, vocabulary_sizes: Mapping[str, int]) -> ModelInputs:
        """What `build` takes, from a feature spec and its fitted vocabularies."""
        return ModelInputs.from_spec(spec, vocabulary_sizes)

    def build(self, inputs: ModelInputs) -> keras.Model:
        """A model with all its variables made."""
        self.label = inputs.label
        model = self.entry.load("model")(
            self.config.model,
            inputs.vocabulary_sizes,
            multivalent=inputs.multivalent,
            numeric=inputs.numeric,
            dtype=self.config.trainer.dtype,
            **self._long_history(inputs),
        )
        model(self.example_inputs(inputs))
        return model

    def _long_history(self, inputs: ModelInputs) -> dict[str, Any]:
        """Arguments that only models with a long history take."""
        features = self.config.features
        if inputs.long_history is None:
            return {}
        return {
            "long_history": inputs.long_history,
            "adapter": features.adapter,
            "adapter_units": features.adapter_units,
        }

    @staticmethod
    def example_inputs(inputs: ModelInputs, batch_size: int = 2) -> dict[str, tf.Tensor]:
        """A batch of zeros (of strings, empty ones) of the right shapes and dtypes."""
        batch: dict[str, tf.Tensor] = {}
        for name in inputs.names:
            if name in inputs.vocabulary_sizes:
                shape = [batch_size, 1] if name in inputs.multivalent else [batch_size]
                batch[name] = tf.zeros(shape, tf.int64)
            else:
                dtype = tf.float32 if name in inputs.numeric else tf.string
                batch[name] = tf.zeros([batch_size], dtype)
        return batch

    def prepare(self, reader: Reader) -> Prepared:
        """Reads, splits and transforms a source in this process.

        Vocabularies and moments come from the training part alone.

        Raises:
          InputError: the source cannot be read, too many of its lines are corrupt, or no user has
            an embedding.
        """
        from tfrz.data.sources.reader import read_table
        from tfrz.data.splits import split_table

        data = self.config.data
        spec, join = with_long_history(self.config.features, reader.feature_spec())
        spec = with_teacher(self.config.distill, spec)
        teacher = open_teacher(self.config.distill, spec)
        table, corrupt = read_table(reader, data.max_corrupt_fraction)
        held_out = (data.validation_fraction, data.test_fraction)
        parts = joined(join, split_table(table, (1.0 - sum(held_out), *held_out), data.seed))
        if teacher is not None:
            parts = [teacher.scored(part) for part in parts]
        transform = ImpressionPreprocessor.fit(parts[0], spec)
        trainer = self.config.trainer
        columns = [transform_table(transform, part) for part in parts]
        return Prepared(
            train=ArrayBatches(columns[0], trainer.batch_size, trainer.seed),
            validation=ArrayBatches(columns[1], _EVALUATION_BATCH),
            test=ArrayBatches(columns[2], _EVALUATION_BATCH),
            inputs=self.model_inputs(spec, transform.vocabulary_sizes),
            transform=transform,
            vocabularies={
                transformed_name(name): terms for name, terms in transform.vocabularies.items()
            },
            spec=spec,
            examples=to_examples(parts[1], spec, limit=1000),
            corrupt_lines=len(corrupt),
        )

    # What the training loop asks for.

    def lookup(self, model: keras.Model, batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Embeddings `[batch, dim]`, labels and what a teacher says, logits, `[batch]`."""
        looked_up = {
            "x0": model.embed(batch, training=True),
            "label": tf.cast(batch[self.label], tf.float32),
        }
        if self.config.distill.teacher is not None:
            looked_up["taught"] = logits_of(batch[transformed_name(TEACHER_SCORE)])
        return looked_up

    def dense_loss(
        self, model: keras.Model, looked_up: dict[str, tf.Tensor]
    ) -> tuple[tf.Tensor, tf.Tensor]:
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

    def predict(self, model: keras.Model, batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Logits and labels, `[batch]` each."""
        return {
            "logits": model(batch, training=False),
            "label": tf.cast(batch[self.label], tf.float32),
        }

    def metrics(self, outputs: dict[str, np.ndarray]) -> dict[str, float]:
        """AUC, log loss and calibration."""
        labels, logits = outputs["label"], outputs["logits"]
        return {
            "auc": metrics.auc(labels, logits),
            "log_loss": metrics.log_loss(labels, logits),
            "calibration": metrics.calibration(labels, logits),
        }

    def report(self, model: keras.Model, prepared: Prepared, out: Path) -> None:
        """Nothing beyond the metrics."""

    # What a warm start asks for.

    def vocabulary_weights(self, model: keras.Model) -> dict[str, list[tf.Variable]]:
        """The embeddings whose rows are the ids of each categorical input."""
        return {name: [layer.embeddings] for name, layer in model.embeddings.items()}

    # What the pipeline's Transform asks for.

    def preprocess(
        self, inputs: Mapping[str, tf.SparseTensor], spec: FeatureSpec, analyzers: Analyzers
    ) -> dict[str, Any]:
        """Raw features and label to transformed ones."""
        return preprocess(inputs, spec, analyzers)

    # What the export asks for.

    def outputs(self, model: keras.Model, features: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """What the signatures answer with: probabilities, float32 `[batch]`."""
        return {"scores": tf.sigmoid(tf.cast(model(features, training=False), tf.float32))}

    def warmup_examples(
        self, vocabularies: Mapping[str, Sequence[str]], spec: FeatureSpec, limit: int
    ) -> list[bytes]:
        """Requests for the warm-up, from the most frequent terms of each vocabulary."""
        serialized = []
        for row in range(limit):
            example = tf.train.Example()
            for feature in spec.features:
                if feature.kind == "opaque":
                    continue
                stored = example.features.feature[feature.name]
                if feature.kind == "numeric":
                    stored.float_list.value.append(float(row))
                    continue
                terms = vocabularies[transformed_name(feature.name)] or [""]
                term = terms[row % len(terms)]
                if feature.dtype == "int64":
                    stored.int64_list.value.append(int(term or 0))
                else:
                    stored.bytes_list.value.append(term.encode())
            serialized.append(example.SerializeToString())
        return serialized

    def signatures(
        self,
        model: keras.Model,
        transform: Transform,
        spec: FeatureSpec,
        vocabularies: Mapping[str, Sequence[str]],
    ) -> dict[str, Any]:
        """The signatures of DESIGN's contract for a binary model.

        Args:
          model: the trained model.
          transform: raw sparse features to transformed ones.
          spec: the raw features.
          vocabularies: not needed here.

        Returns:
          Names to functions with an input signature. `examples` and `inputs` are serialised
          `tf.Example`s `[batch]`; scores are float32 `[batch]`.
        """
        del vocabularies
        parse_spec = raw_feature_spec(spec, label=False)
        examples = tf.TensorSpec([None], tf.string, name="examples")
        inputs = tf.TensorSpec([None], tf.string, name="inputs")

        def transformed(serialized: tf.Tensor) -> dict[str, tf.Tensor]:
            return densify(transform(tf.io.parse_example(serialized, parse_spec)))

        def probability(features: dict[str, tf.Tensor]) -> tf.Tensor:
            return self.outputs(model, features)["scores"]

        @tf.function(input_signature=[examples])
        def serving_default(examples: tf.Tensor) -> dict[str, tf.Tensor]:
            return {"scores": probability(transformed(examples))}

        @tf.function(input_signature=[raw_input_signature(spec)])
        def serving_raw(features: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
            return {"scores": probability(densify(transform(to_sparse(features))))}

        @tf.function(input_signature=[inputs])
        def classify(inputs: tf.Tensor) -> dict[str, tf.Tensor]:
            p = probability(transformed(inputs))
            classes = tf.tile(tf.constant([["0", "1"]]), [tf.shape(p)[0], 1])
            return {"classes": classes, "scores": tf.stack([1.0 - p, p], axis=1)}

        @tf.function(input_signature=[inputs])
        def regress(inputs: tf.Tensor) -> dict[str, tf.Tensor]:
            return {"outputs": probability(transformed(inputs))}

        @tf.function(input_signature=[examples])
        def transform_features(examples: tf.Tensor) -> dict[str, tf.Tensor]:
            return without_opaque(transformed(examples), spec)

        return {
            "serving_default": serving_default,
            "serving_raw": serving_raw,
            "score": serving_raw,
            "classify": classify,
            "regress": regress,
            "transform_features": transform_features,
        }

    # What the Evaluator asks for.

    def eval_config(self, spec: FeatureSpec, has_baseline: bool) -> Any:
        """TFMA's `EvalConfig`: metrics, slices and the thresholds of a blessing.

        Args:
          spec: the raw features.
          has_baseline: whether there is a blessed model to compare with.
        """
        import tensorflow_model_analysis as tfma

        wanted = self.config.evaluator
        slices = [tfma.SlicingSpec()]
        slices += [tfma.SlicingSpec(feature_keys=list(keys)) for keys in wanted.slices]

        def bounded(low: float | None, high: float | None) -> Any:
            bounds = {"lower_bound": low, "upper_bound": high}
            return tfma.GenericValueThreshold(
                **{name: {"value": value} for name, value in bounds.items() if value is not None}
            )

        def held_to(threshold: Any, where: list[Any]) -> Any:
            return tfma.PerSliceMetricThreshold(slicing_specs=where, threshold=threshold)

        # Not `threshold`: TFMA would hold every slice to the bound of all examples.
        everything = slices[:1]
        auc = tfma.MetricConfig(
            class_name="AreaUnderCurve",
            module="tfx_pipelines.modules.evaluation",
            config='"num_thresholds": 10000',
        )
        change = tfma.GenericChangeThreshold(
            direction=tfma.MetricDirection.HIGHER_IS_BETTER,
            absolute={"value": -wanted.max_auc_drop},
        )
        overall = tfma.MetricThreshold(
            value_threshold=bounded(wanted.min_auc, None),
            change_threshold=change if has_baseline else None,
        )
        auc.per_slice_thresholds.append(held_to(overall, everything))
        if wanted.min_slice_auc is not None and wanted.slices:
            sliced = tfma.MetricThreshold(value_threshold=bounded(wanted.min_slice_auc, None))
            auc.per_slice_thresholds.append(held_to(sliced, slices[1:]))
        log_loss = tfma.MetricConfig(class_name="BinaryCrossentropy")
        if wanted.max_log_loss is not None:
            least = tfma.MetricThreshold(value_threshold=bounded(None, wanted.max_log_loss))
            log_loss.per_slice_thresholds.append(held_to(least, everything))
        calibration = tfma.MetricConfig(class_name="Calibration")
        if wanted.calibration_bounds is not None:
            between = tfma.MetricThreshold(value_threshold=bounded(*wanted.calibration_bounds))
            calibration.per_slice_thresholds.append(held_to(between, everything))
        return tfma.EvalConfig(
            model_specs=[
                tfma.ModelSpec(
                    signature_name="serving_default", prediction_key="scores", label_key=spec.label
                )
            ],
            slicing_specs=slices,
            metrics_specs=[
                tfma.MetricsSpec(
                    metrics=[
                        tfma.MetricConfig(class_name="ExampleCount"),
                        auc,
                        log_loss,
                        calibration,
                    ]
                )
            ],
        )
