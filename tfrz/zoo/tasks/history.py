"""The task of *history* records: recommend the next item, as its raw id.

Every model of this task is constructed as `Model(config, num_items, item_rows, length, context,
numeric, padding, dtype=...)` and has `embed(inputs)`, `encode(embedded)`, `interact(embedded) ->
logits [batch, items]` and the tables that `tfrz.models.m3.M3` names.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import pyarrow as pa
import tensorflow as tf
from numpy.typing import NDArray

from tfrz.data.arrow_files import Partitions
from tfrz.data.histories.examples import build_examples, drop_duplicates, drop_rare
from tfrz.data.histories.partitions import without_duplicates, without_rare
from tfrz.data.histories.spec import HistoryConfig, HistorySpec
from tfrz.data.histories.transform import (
    TIME_FEATURE_SIZES,
    HistoryPreprocessor,
    preprocess_history,
)
from tfrz.data.spec import Feature, UserEmbedding, transformed_name
from tfrz.data.transform import Analyzers, Preprocessor, TableTransform, first_value
from tfrz.errors import InputError
from tfrz.export.raw_inputs import to_sparse
from tfrz.layers.low_rank_dense import frobenius_penalty
from tfrz.losses.retrieval import softmax_loss
from tfrz.metrics.ranking import at_rank, parse, rank_of
from tfrz.training.compilation import compiles
from tfrz.zoo.task import ExampleSource, Parts, Prepared, Served, Task, Tensors, Transform
from tfrz.zoo.tasks.sets import column, judged_sets
from tfrz.zoo.tasks.slices import in_words, rank_in_words
from tfrz.zoo.user_embeddings import adapter_arguments

logger = logging.getLogger(__name__)

# Stands in an answer where fewer items than top_k may be shown.
NOTHING = -1e9


@dataclasses.dataclass(frozen=True)
class HistoryInputs:
    """The transformed inputs of a model.

    Attributes:
      num_items: size of the vocabulary.
      item_rows: rows of item tables: padding, vocabulary, out-of-vocabulary buckets.
      length: events of a history.
      context: categorical context to the number of its ids.
      numeric: numeric contexts.
      padding: its side.
      long_history: the embedding of the user that comes with an example; None for none.
    """

    num_items: int
    item_rows: int
    length: int
    context: dict[str, int]
    numeric: tuple[str, ...]
    padding: str
    long_history: UserEmbedding | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """All inputs of the model."""
        contexts = (*self.context, *self.numeric)
        pairs = [(transformed_name(f"history_{c}"), transformed_name(c)) for c in contexts]
        opaque = self.long_history.features if self.long_history is not None else ()
        names = [transformed_name(feature.name) for feature in opaque]
        return ("history_xf", *(name for pair in pairs for name in pair), *names)


def length_bucket(lengths: tf.Tensor) -> tf.Tensor:
    """Lengths of histories as words, for slices."""
    return in_words(lengths, [1, 10, 50, 200], ["0", "1-9", "10-49", "50-199", "200+"])


def popularity_bucket(ids: tf.Tensor, num_items: int) -> tf.Tensor:
    """Ranks of popularity (ids) as words, for slices."""
    words = ["unknown", "top 100", "101-1,000", "1,001-10,000", "10,001+"]
    return rank_in_words(ids, num_items, [1, 101, 1001, 10_001], words)


def id_table(items: Sequence[str], unknown: int) -> tf.lookup.StaticHashTable:
    """Raw ids of items to their ids from 1; `unknown` for all others."""
    initializer = tf.lookup.KeyValueTensorInitializer(
        tf.constant(list(items), tf.string), tf.range(1, len(items) + 1, dtype=tf.int64)
    )
    return tf.lookup.StaticHashTable(initializer, unknown)


class HistoryTask(Task[HistorySpec, HistoryInputs]):
    """Softmax over the next item; recommendations as raw item ids."""

    objective = "map_at_20"
    product = "recommend"
    slice_features = ("history_length", "target_popularity")

    @property
    def history(self) -> HistoryConfig:
        """How histories are made."""
        assert self.config.data.history is not None
        return self.config.data.history

    # Data.

    def make_examples(
        self, records: pa.Table, source: ExampleSource[HistorySpec]
    ) -> tuple[Parts, int]:
        """Histories of interactions, without duplicates and rare users and items.

        Raises:
          InputError: no user is left to validate with.
        """
        self.history.check(source.spec)
        if self.history.drop_duplicates:
            records = drop_duplicates(records)
        records = drop_rare(records, self.history)
        parts, left_out = self.examples_of_part(records, source)
        self.check_examples({split: part.num_rows for split, part in parts.items()}, source)
        return parts, left_out

    @property
    def partition_key(self) -> str | None:
        """The user."""
        return "user"

    def settled(self, records: Partitions, spec: HistorySpec) -> Partitions:
        """Interactions without duplicates and rare users and items."""
        self.history.check(spec)
        if self.history.drop_duplicates:
            records = without_duplicates(records)
        return without_rare(records, self.history)

    def examples_of_part(
        self, records: pa.Table, source: ExampleSource[HistorySpec]
    ) -> tuple[Parts, int]:
        """Histories of settled interactions."""
        data = self.config.data
        return build_examples(
            records,
            source.spec,
            self.history,
            data.held_out,
            data.seed,
            with_test=data.test_fraction > 0,
        ), 0

    def check_examples(self, counts: Mapping[str, int], source: ExampleSource[HistorySpec]) -> None:
        """Refuses an empty validation set.

        Raises:
          InputError: no user is left to validate with.
        """
        del source
        if not counts["validation"]:
            raise InputError(
                "no user has an event to hold out for validation: with data.history.split=users "
                "some users are held out as they are"
            )

    def check_sets(self, prepared: Prepared[HistorySpec, HistoryInputs]) -> None:
        """Refuses sets without a choice between items.

        Raises:
          InputError: as of `Task`; or training knows fewer than two items, or none of those that
            validation asks for.
        """
        super().check_sets(prepared)
        count = prepared.inputs.num_items
        if count < 2:
            raise InputError(
                f"the training set has {count} {'item' if count == 1 else 'items'}: there is "
                f"nothing to choose from; check {prepared.spec.item}"
            )
        for name, some in judged_sets(prepared).items():
            if any(((ids >= 1) & (ids <= count)).any() for ids in column(some, "target_xf")):
                continue
            said = (
                f"none of {some.num_examples:,} {name} targets is an item of the training set: "
                "every ranking metric is 0 there"
            )
            if name == "validation":
                raise InputError(f"{said}; check the split (data.history)")
            logger.warning("%s", said)

    def fit_transform(self, examples: pa.Table, spec: HistorySpec) -> Preprocessor[Any, Any]:
        """Vocabularies and moments of the training examples."""
        fitted: Preprocessor[Any, Any] = HistoryPreprocessor.fit_examples(
            examples, spec, self.history
        )
        return fitted

    def transform_of(
        self,
        spec: HistorySpec,
        vocabularies: Mapping[str, list[bytes]],
        moments: Mapping[str, tuple[float, float]],
    ) -> Preprocessor[Any, Any]:
        """As of `Task`."""
        return HistoryPreprocessor(spec, vocabularies, moments, self.history)

    def transformer(
        self, transform: Preprocessor[Any, Any], spec: HistorySpec, split: str
    ) -> Callable[[pa.Table], dict[str, Any]]:
        """As of `Task`, with what a user has seen where recommendations are judged."""
        del spec
        return TableTransform(transform, without=["seen_xf"] if split == "train" else [])

    def preprocess(
        self, inputs: Mapping[str, tf.SparseTensor], spec: HistorySpec, analyzers: Analyzers
    ) -> dict[str, Any]:
        """Raw features and target to transformed ones."""
        return preprocess_history(inputs, spec, self.history, analyzers)

    # The model.

    def model_inputs(self, spec: HistorySpec, vocabulary_sizes: Mapping[str, int]) -> HistoryInputs:
        """The argument of `build`, from the raw features and the fitted vocabularies."""
        self.history.check(spec)
        context = {
            f.name: vocabulary_sizes[transformed_name(f.name)]
            for f in spec.context
            if f.kind == "categorical"
        }
        context |= {name: TIME_FEATURE_SIZES[name] for name in self.history.time_features}
        rows = vocabulary_sizes["item_xf"]
        return HistoryInputs(
            num_items=rows - 1 - spec.oov_buckets,
            item_rows=rows,
            length=self.history.length,
            context=context,
            numeric=tuple(
                f.name for f in spec.context if f.kind == "numeric" and f.name not in spec.outcomes
            ),
            padding=self.history.padding,
            long_history=spec.long_history,
        )

    def construct(self, inputs: HistoryInputs) -> keras.Model:
        """The model, before it has any variables."""
        return self.entry.load("model")(
            self.config.model,
            inputs.num_items,
            inputs.item_rows,
            inputs.length,
            inputs.context,
            inputs.numeric,
            inputs.padding,
            *self.item_arguments(inputs),
            dtype=self.config.trainer.dtype,
            **adapter_arguments(self.config.features, inputs.long_history),
        )

    def item_arguments(self, inputs: HistoryInputs) -> tuple[Any, ...]:
        """Constructor arguments for the items' features; none by default."""
        del inputs
        return ()

    @staticmethod
    def example_inputs(inputs: HistoryInputs, batch_size: int = 2) -> Tensors:
        """A batch of zeros (of strings, empty ones) of the right shapes and dtypes."""
        batch = {"history_xf": tf.zeros([batch_size, inputs.length], tf.int64)}
        for names, dtype in ((inputs.context, tf.int64), (inputs.numeric, tf.float32)):
            for name in names:
                past = transformed_name(f"history_{name}")
                batch[past] = tf.zeros([batch_size, inputs.length], dtype)
                batch[transformed_name(name)] = tf.zeros([batch_size], dtype)
        if inputs.long_history is not None:
            for feature in inputs.long_history.features:
                batch[transformed_name(feature.name)] = tf.zeros([batch_size], tf.string)
        return batch

    def vocabulary_weights(self, model: keras.Model) -> dict[str, list[tf.Variable]]:
        """The tables whose rows are the ids of each vocabulary."""
        tables = {id(t): t for t in (model.items, model.output_items, model.output_bias)}
        weights = {"item_xf": [table.embeddings for table in tables.values()]}
        for name, table in model.context_tables.items():
            if name not in self.history.time_features:
                weights[transformed_name(name)] = [table.embeddings]
        return weights

    # Training.

    def lookup(self, model: keras.Model, batch: Tensors) -> Tensors:
        """Embeddings, targets `[batch, time + 1]` and their weights, and sampled negatives.

        Where nothing is compiled, `counted` `[count, 2]` are the places of weight 1 and the vectors
        of targets are theirs alone: padding, half of a batch at times, is not scored. XLA would
        compile anew for every count.
        """
        looked_up = dict(model.embed(batch, training=True))
        history, place = batch["history_xf"], looked_up["place"]
        targets = model.with_request(history, batch["target_xf"], place)
        known = (targets >= 1) & (targets <= model.num_items)
        request = tf.range(tf.shape(targets)[1])[None, :]
        last = place[:, None]
        if model.config.steps == "last":
            known &= tf.equal(request, last)
        if not model.config.cold_start:
            events = tf.reduce_sum(tf.cast(looked_up["real"], tf.int32), axis=1, keepdims=True)
            known &= request > last - events
        looked_up["targets"] = targets
        looked_up["weights"] = tf.cast(known, tf.float32)
        if not compiles(self.config.trainer.xla):
            looked_up["counted"] = tf.where(known)
            targets = tf.gather_nd(targets, looked_up["counted"])
        if model.sampler is not None:
            negatives = model.sampler.sample()
            for name, ids in (("target", targets), ("negative", negatives)):
                looked_up[f"{name}_vectors"] = tf.cast(model.output_items(ids), tf.float32)
                looked_up[f"{name}_bias"] = tf.cast(model.output_bias(ids), tf.float32)[..., 0]
            looked_up["negatives"] = negatives
        if self.teacher is not None:
            teacher = self.teacher.model
            looked_up["taught"] = tf.stop_gradient(teacher.encode(teacher.embed(batch)))
        return looked_up

    def dense_loss(self, model: keras.Model, looked_up: Tensors) -> tuple[tf.Tensor, tf.Tensor]:
        """A loss per example whose mean is that of all weighted steps, and the regularisation."""
        hidden = model.encode(looked_up, training=True)
        targets, weights = looked_up["targets"], looked_up["weights"]
        counted = looked_up.get("counted")
        if counted is not None:
            hidden, targets = tf.gather_nd(hidden, counted), tf.gather_nd(targets, counted)
        if model.sampler is None:
            items, bias = model.item_vectors()
            loss = softmax_loss(hidden, items, bias, targets)
        else:
            own = tf.reduce_sum(hidden * looked_up["target_vectors"], axis=-1)
            others = tf.tensordot(hidden, looked_up["negative_vectors"], [[-1], [1]])
            loss = model.sampler.loss(
                own + looked_up["target_bias"],
                others + looked_up["negative_bias"],
                targets,
                looked_up["negatives"],
            )
        if self.config.distill.active:
            taught = looked_up.get("taught")
            if taught is not None and counted is not None:
                taught = tf.gather_nd(taught, counted)
            loss = self.config.distill.mixed(loss, self._soft(model, hidden, targets, taught))
        if counted is not None:
            loss = tf.scatter_nd(counted, loss, tf.shape(weights, out_type=tf.int64))
        total = tf.maximum(tf.reduce_sum(weights), 1.0)
        rows = tf.cast(tf.shape(weights)[0], tf.float32)
        return tf.reduce_sum(loss * weights, axis=1) * rows / total, frobenius_penalty(model)

    def _soft(
        self,
        model: keras.Model,
        hidden: tf.Tensor,
        targets: tf.Tensor,
        taught: tf.Tensor | None,
    ) -> tf.Tensor:
        """The teacher's term over all items, of each step."""
        distill = self.config.distill
        logits, _ = self._over_items(model, hidden)
        labels = tf.clip_by_value(targets - 1, 0, model.num_items - 1)
        if taught is None or self.teacher is None:
            return distill.class_term(logits, labels, None)
        return distill.class_term(logits, labels, *self._over_items(self.teacher.model, taught))

    @staticmethod
    def _over_items(model: keras.Model, hidden: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Logits `[..., V]` of the ids 1..V, and the items' vectors `[V, dim]`."""
        items, bias = model.item_vectors()
        return tf.tensordot(hidden, items, [[-1], [1]]) + bias, items

    def _allowed(self, logits: tf.Tensor, features: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """The logits, -inf for items that were seen, if those are to be left out."""
        if not self.config.export.drop_seen:
            return logits
        seen = features["seen_xf"]
        count = tf.shape(logits, out_type=tf.int64)[1]
        # Padding and unknown items go to a column that is cut off again.
        column = tf.where((seen >= 1) & (seen <= count), seen - 1, tf.fill(tf.shape(seen), count))
        rows = tf.broadcast_to(tf.range(tf.shape(seen, tf.int64)[0])[:, None], tf.shape(seen))
        marks = tf.scatter_nd(
            tf.reshape(tf.stack([rows, column], axis=-1), [-1, 2]),
            tf.ones([tf.size(seen)], tf.int32),
            tf.stack([tf.shape(logits, out_type=tf.int64)[0], count + 1]),
        )
        return tf.where(marks[:, :-1] > 0, tf.constant(-np.inf, logits.dtype), logits)

    def predict(self, model: keras.Model, batch: Tensors) -> Tensors:
        """The target's rank `[batch]` among all items that may be shown; 0 for none."""
        logits = self._allowed(model(batch, training=False), batch)
        return {"rank": rank_of(logits, batch["target_xf"])}

    def metrics(self, outputs: dict[str, NDArray[Any]]) -> dict[str, float]:
        """mAP, precision, recall and NDCG."""
        return {
            name: float(np.mean(at_rank(parse(name)[0], outputs["rank"], parse(name)[1])))
            for name in self.entry.metrics
        }

    # A teacher.

    def num_classes(self, inputs: HistoryInputs) -> int | None:
        """The items."""
        return inputs.num_items

    def class_logits(
        self, model: keras.Model, batch: Tensors
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor] | None:
        """Of examples whose target is a known item."""
        assert self.teacher is not None
        labels = tf.cast(batch["target_xf"], tf.int64) - 1
        known = (labels >= 0) & (labels < model.num_items)
        both = (model(batch, training=False), self.teacher.model(batch, training=False), labels)
        student, taught, targets = (tf.boolean_mask(values, known) for values in both)
        return student, taught, targets

    # The export.

    def outputs(self, model: keras.Model, features: Tensors) -> Tensors:
        """The best items: `scores` float32 and `ids` int64, `[batch, top_k]`, best first."""
        logits = self._allowed(model(features, training=False), features)
        k = min(self.config.export.top_k, model.num_items)
        scores, columns = tf.math.top_k(logits, k)
        shown = tf.math.is_finite(scores)
        ids = tf.where(shown, tf.cast(columns, tf.int64) + 1, tf.zeros_like(columns, tf.int64))
        return {"scores": tf.where(shown, scores, tf.fill(tf.shape(scores), NOTHING)), "ids": ids}

    def answers(
        self, served: Served[HistorySpec]
    ) -> Callable[[dict[str, tf.SparseTensor]], Tensors]:
        """`item_ids` string and `scores` float32 `[batch, top_k]`, the best first.

        Where fewer items may be shown, "" and -1e9.
        """
        terms = tf.constant(["", *served.vocabularies["item_xf"]])

        def recommended(raw: dict[str, tf.SparseTensor]) -> Tensors:
            outputs = self.outputs(served.model, served.features(raw))
            return {"item_ids": tf.gather(terms, outputs.pop("ids")), **outputs}

        return recommended

    def request_spec(self, spec: HistorySpec) -> HistorySpec:
        """As of `Task`; requests of items alone have no times, unless the model reads them."""
        timed = self.history.time_features or spec.long_history is not None or spec.context
        return spec if timed else dataclasses.replace(spec, time=None)

    def aligned_lists(self, spec: HistorySpec) -> Sequence[Sequence[str]]:
        """The events; shorter lists belong to the newest of them."""
        return (spec.aligned,)

    def to_sparse(self, features: Tensors, spec: HistorySpec) -> dict[str, tf.SparseTensor]:
        """Named raw tensors as `tf.io.parse_example` returns them, lists aligned."""
        return to_sparse(features, spec.aligned)

    def signatures(
        self,
        model: keras.Model,
        transform: Transform,
        spec: HistorySpec,
        vocabularies: Mapping[str, Sequence[str]],
    ) -> dict[str, Callable[..., Tensors]]:
        """As of `Task`; `item_ids` are those of `vocabularies["item_xf"]`."""
        self._target_ids = id_table(vocabularies["item_xf"], 0)
        self.parts = [self._target_ids]
        return super().signatures(model, transform, spec, vocabularies)

    def described(
        self, served: Served[HistorySpec], raw: dict[str, tf.SparseTensor], features: Tensors
    ) -> Tensors:
        """The transformed features, and the length of the history and the target as words."""
        lengths = tf.reduce_sum(features["mask_xf"], axis=1)
        # The place of the target in the vocabulary is its rank of popularity.
        ids = self._target_ids.lookup(first_value(raw[served.spec.label], ""))
        return {
            **features,
            "history_length": length_bucket(lengths),
            "target_popularity": self.popularity_words(served.model, ids),
        }

    def popularity_words(self, model: keras.Model, ids: tf.Tensor) -> tf.Tensor:
        """How popular each target is as words, for slices."""
        return popularity_bucket(ids, model.num_items)

    def request_length(self, feature: Feature, row: int) -> int:
        """Histories of one event more in each request."""
        return min(1 + row, self.history.length) if feature.multivalent else 1

    def request_terms(
        self, feature: Feature, spec: HistorySpec, vocabularies: Mapping[str, Sequence[str]]
    ) -> Sequence[str]:
        """Past events have the terms of the request."""
        del spec
        name = feature.name.removeprefix("history_")
        return vocabularies.get(transformed_name("item" if name == "history" else name), ())

    # The Evaluator.

    def eval_config(self, spec: HistorySpec, has_baseline: bool) -> Any:
        """TFMA's `EvalConfig`: metrics, slices and the thresholds of a blessing.

        Args:
          spec: the raw features.
          has_baseline: whether there is a blessed model to compare with.
        """
        from tfrz.zoo.tasks.thresholds import evaluation_config

        parameters = {}
        for name in self.entry.metrics:
            kind, n = parse(name)
            parameters[name] = {"class_name": "RankingMetric", "kind": kind, "n": n}
        wanted = self.config.evaluator
        return evaluation_config(wanted, parameters, "item_ids", spec.label, has_baseline)
