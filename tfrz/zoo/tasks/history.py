"""The recipe of *history* records: recommend the next item, as its raw id.

Every model of this record type is constructed as `Model(config, num_items, item_rows, length,
context, numeric, padding, dtype=...)` and has `embed(inputs)`, `encode(embedded)`,
`interact(embedded) -> logits [batch, items]` and the tables that `tfrz.models.m3.M3` names.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import tensorflow as tf

from tfrz.data.columns import to_examples
from tfrz.data.histories.examples import build_examples, drop_duplicates, drop_rare
from tfrz.data.histories.spec import HistorySpec
from tfrz.data.histories.transform import (
    TIME_FEATURE_SIZES,
    HistoryPreprocessor,
    preprocess_history,
)
from tfrz.data.spec import UserEmbedding, raw_feature_spec, transformed_name
from tfrz.data.splits import SPLITS
from tfrz.data.transform import Analyzers, densify, transform_table
from tfrz.data.user_embeddings import joined
from tfrz.errors import InputError
from tfrz.export.raw_inputs import raw_input_signature, to_sparse, without_opaque
from tfrz.layers.low_rank import frobenius_penalty
from tfrz.losses.retrieval import softmax_loss
from tfrz.metrics.ranking import at_rank, parse, rank_of
from tfrz.training.batches import ArrayBatches
from tfrz.training.compilation import compiles
from tfrz.zoo.long_history import with_long_history
from tfrz.zoo.tasks.prepared import Prepared
from tfrz.zoo.tasks.slices import in_words, rank_in_words
from tfrz.zoo.teacher import LiveTeacher

if TYPE_CHECKING:
    from tfrz.data.histories.spec import HistoryConfig
    from tfrz.data.sources.reader import Reader
    from tfrz.zoo.registry import ModelEntry
    from tfrz.zoo.run_config import RunConfig

_EVALUATION_BATCH = 256
# Stands in an answer where fewer items than top_k may be shown.
_NOTHING = -1e9

Transform = Callable[[dict[str, tf.SparseTensor]], dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class HistoryInputs:
    """What a model must know of its transformed inputs.

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


class HistoryTask:
    """Softmax over the next item; recommendations as raw item ids.

    Args:
      entry: the model's row in the registry.
      config: the run's configuration.
    """

    objective = "map_at_20"
    objective_direction = "max"
    spec_class = HistorySpec
    slice_features = ("history_length", "target_popularity")

    def __init__(self, entry: ModelEntry, config: RunConfig) -> None:
        self.entry, self.config = entry, config
        self.teacher: LiveTeacher | None = None

    @property
    def history(self) -> HistoryConfig:
        """How histories are made."""
        assert self.config.data.history is not None
        return self.config.data.history

    def model_inputs(self, spec: HistorySpec, vocabulary_sizes: Mapping[str, int]) -> HistoryInputs:
        """What `build` takes, from the source's spec and its fitted vocabularies."""
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

    def build(self, inputs: HistoryInputs) -> keras.Model:
        """A model with all its variables made."""
        model = self.entry.load("model")(
            self.config.model,
            inputs.num_items,
            inputs.item_rows,
            inputs.length,
            inputs.context,
            inputs.numeric,
            inputs.padding,
            dtype=self.config.trainer.dtype,
            **self._long_history(inputs),
        )
        model(self.example_inputs(inputs))
        return model

    def _long_history(self, inputs: HistoryInputs) -> dict[str, Any]:
        """Arguments that only models with a long history take."""
        if inputs.long_history is None:
            return {}
        return {"long_history": inputs.long_history, "adapter": self.config.features.adapter}

    @staticmethod
    def example_inputs(inputs: HistoryInputs, batch_size: int = 2) -> dict[str, tf.Tensor]:
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

    def prepare(self, reader: Reader) -> Prepared:
        """Reads interactions and makes histories of them in this process.

        Vocabularies come from the training examples alone.

        Raises:
          InputError: the source cannot be read, too many of its lines are corrupt, or no user has
            an embedding.
          ConfigError: a setting needs times, and the source has none.
        """
        from tfrz.data.sources.reader import read_table

        data = self.config.data
        spec, join = with_long_history(self.config.features, reader.feature_spec())
        assert isinstance(spec, HistorySpec)
        self.history.check(spec)
        events, corrupt = read_table(reader, data.max_corrupt_fraction)
        if self.history.drop_duplicates:
            events = drop_duplicates(events)
        events = drop_rare(events, self.history)
        held_out = (data.validation_fraction, data.test_fraction)
        parts = build_examples(
            events, spec, self.history, held_out, data.seed, with_test=data.test_fraction > 0
        )
        if not parts["validation"].num_rows:
            raise InputError(
                "no user has an event to hold out for validation: with data.history.split=users "
                "some users are held out as they are"
            )
        parts = dict(zip(SPLITS, joined(join, [parts[name] for name in SPLITS]), strict=True))
        transform = HistoryPreprocessor.fit_examples(parts["train"], spec, self.history)
        trainer = self.config.trainer
        # What a user has seen is only asked where recommendations are judged.
        columns = {"train": transform_table(transform, parts["train"], without=["seen_xf"])}
        columns |= {name: transform_table(transform, parts[name]) for name in SPLITS[1:]}
        sizes = transform.vocabulary_sizes
        evaluated = {name: ArrayBatches(columns[name], _EVALUATION_BATCH) for name in SPLITS[1:]}
        return Prepared(
            train=ArrayBatches(columns["train"], trainer.batch_size, trainer.seed),
            validation=evaluated["validation"],
            test=evaluated["test"],
            inputs=self.model_inputs(spec, sizes),
            transform=transform,
            vocabularies={
                transformed_name(name): terms for name, terms in transform.vocabularies.items()
            },
            spec=spec,
            examples=to_examples(parts["validation"], spec, limit=1000),
            corrupt_lines=len(corrupt),
        )

    # What the training loop asks for.

    def lookup(self, model: keras.Model, batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
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

    def dense_loss(
        self, model: keras.Model, looked_up: dict[str, tf.Tensor]
    ) -> tuple[tf.Tensor, tf.Tensor]:
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

    def predict(self, model: keras.Model, batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """The target's rank `[batch]` among all items that may be shown; 0 for none."""
        logits = self._allowed(model(batch, training=False), batch)
        return {"rank": rank_of(logits, batch["target_xf"])}

    def metrics(self, outputs: dict[str, np.ndarray]) -> dict[str, float]:
        """mAP, precision, recall and NDCG."""
        return {
            name: float(np.mean(at_rank(parse(name)[0], outputs["rank"], parse(name)[1])))
            for name in self.entry.metrics
        }

    def report(self, model: keras.Model, prepared: Prepared, out: Path) -> None:
        """`gates.json` and `gates.png`: which range serves which context and length."""
        from tfrz.zoo.tasks.gates import gate_report

        if model.config.encoder == "mixture":
            gate_report(model, prepared, out)

    # What a warm start asks for.

    def vocabulary_weights(self, model: keras.Model) -> dict[str, list[tf.Variable]]:
        """The tables whose rows are the ids of each vocabulary."""
        tables = {id(t): t for t in (model.items, model.output_items, model.output_bias)}
        weights = {"item_xf": [table.embeddings for table in tables.values()]}
        for name, table in model.context_tables.items():
            if name not in self.history.time_features:
                weights[transformed_name(name)] = [table.embeddings]
        return weights

    # What the pipeline's Transform asks for.

    def preprocess(
        self, inputs: Mapping[str, tf.SparseTensor], spec: HistorySpec, analyzers: Analyzers
    ) -> dict[str, Any]:
        """Raw features and target to transformed ones."""
        return preprocess_history(inputs, spec, self.history, analyzers)

    # What the export asks for.

    def outputs(self, model: keras.Model, features: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """The best items: `scores` float32 and `ids` int64, `[batch, top_k]`, best first."""
        logits = self._allowed(model(features, training=False), features)
        k = min(self.config.export.top_k, model.num_items)
        scores, columns = tf.math.top_k(logits, k)
        shown = tf.math.is_finite(scores)
        ids = tf.where(shown, tf.cast(columns, tf.int64) + 1, tf.zeros_like(columns, tf.int64))
        return {"scores": tf.where(shown, scores, tf.fill(tf.shape(scores), _NOTHING)), "ids": ids}

    def warmup_examples(
        self, vocabularies: Mapping[str, Sequence[str]], spec: HistorySpec, limit: int
    ) -> list[bytes]:
        """Requests for the warm-up: histories of the most frequent items."""
        serialized = []
        for row in range(limit):
            events = min(1 + row, self.history.length)
            example = tf.train.Example()
            for feature in spec.features:
                if feature.kind == "opaque":
                    continue
                name = feature.name.removeprefix("history_")
                stored = example.features.feature[feature.name]
                known = "item" if feature.name == "history" else name
                terms = vocabularies.get(transformed_name(known)) or [""]
                for i in range(events if feature.multivalent else 1):
                    if feature.kind == "time":
                        stored.int64_list.value.append(1_600_000_000 + 60 * i)
                    elif feature.kind == "numeric":
                        stored.float_list.value.append(float(i))
                    elif feature.dtype == "int64":
                        stored.int64_list.value.append(int(terms[i % len(terms)] or 0))
                    else:
                        stored.bytes_list.value.append(terms[i % len(terms)].encode())
            serialized.append(example.SerializeToString())
        return serialized

    def signatures(
        self,
        model: keras.Model,
        transform: Transform,
        spec: HistorySpec,
        vocabularies: Mapping[str, Sequence[str]],
    ) -> dict[str, Any]:
        """The signatures of DESIGN's contract for a model that recommends.

        Args:
          model: the trained model.
          transform: raw sparse features to transformed ones.
          spec: the raw features.
          vocabularies: `item_xf` to the raw ids of the items.

        Returns:
          Names to functions with an input signature. `examples` are serialised `tf.Example`s
          `[batch]`. `item_ids` string and `scores` float32 are `[batch, top_k]`, the best first;
          where fewer items may be shown, "" and -1e9.
        """
        parse_spec = raw_feature_spec(spec, label=False)
        labelled_spec = raw_feature_spec(spec, label=True)
        examples = tf.TensorSpec([None], tf.string, name="examples")
        terms = tf.constant(["", *vocabularies["item_xf"]])

        def recommended(features: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
            outputs = self.outputs(model, features)
            return {"item_ids": tf.gather(terms, outputs["ids"]), "scores": outputs["scores"]}

        @tf.function(input_signature=[examples])
        def serving_default(examples: tf.Tensor) -> dict[str, tf.Tensor]:
            return recommended(densify(transform(tf.io.parse_example(examples, parse_spec))))

        @tf.function(input_signature=[raw_input_signature(spec)])
        def serving_raw(features: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
            return recommended(densify(transform(to_sparse(features, spec.aligned))))

        @tf.function(input_signature=[examples])
        def transform_features(examples: tf.Tensor) -> dict[str, tf.Tensor]:
            raw = tf.io.parse_example(examples, labelled_spec)
            target = raw.pop(spec.label)
            features = without_opaque(densify(transform(raw)), spec)
            lengths = tf.reduce_sum(features["mask_xf"], axis=1)
            features["history_length"] = length_bucket(lengths)
            # The place of the target in the vocabulary is its rank of popularity.
            first = tf.sparse.to_dense(target, "")
            first = tf.pad(first, [[0, 0], [0, 1]], constant_values="")[:, :1]
            same = tf.cast(tf.equal(first, terms[None, :]), tf.int64)
            ids = tf.argmax(same, axis=1)
            features["target_popularity"] = self.popularity_words(model, ids)
            return features

        return {
            "serving_default": serving_default,
            "serving_raw": serving_raw,
            "recommend": serving_raw,
            "transform_features": transform_features,
        }

    def popularity_words(self, model: keras.Model, ids: tf.Tensor) -> tf.Tensor:
        """How popular each target is as words, for slices."""
        return popularity_bucket(ids, model.num_items)

    # What the Evaluator asks for.

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
