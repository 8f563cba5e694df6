"""The recipe of two-tower retrieval from *history* records: recommend from an index of items.

Models of this recipe have, beyond what `HistoryTask` asks for, vectors of items by id or by
features (`embed_items`, `encode_items`), and what `tfrz.training.density_weighting` asks for.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import tensorflow as tf

from tfrz.data.histories.catalogue import CandidateFeatures, Catalogue
from tfrz.data.histories.spec import HistorySpec
from tfrz.data.spec import raw_feature_spec
from tfrz.data.transform import densify
from tfrz.errors import InputError
from tfrz.export.index import RecommendationIndex, recommending
from tfrz.export.raw_inputs import raw_input_signature, to_sparse
from tfrz.files import atomic_write
from tfrz.layers.low_rank import frobenius_penalty
from tfrz.losses.retrieval import (
    candidate_logits,
    candidate_softmax_loss,
    focal_loss,
    log_expected_counts,
)
from tfrz.metrics.coverage import coverage, exposures, gini
from tfrz.metrics.ranking import at_rank, parse, rank_of
from tfrz.training.density_weighting import WeightingConfig
from tfrz.zoo.tasks.history import HistoryInputs, HistoryTask, Transform
from tfrz.zoo.tasks.prepared import Prepared
from tfrz.zoo.tasks.slices import in_words
from tfrz.zoo.tasks.thresholds import evaluation_config, metrics_of_lists

if TYPE_CHECKING:
    from tfrz.data.sources.reader import Reader
    from tfrz.training.batches import Batches
    from tfrz.zoo.registry import ModelEntry
    from tfrz.zoo.run_config import RunConfig

logger = logging.getLogger(__name__)

# The most frequent fifth of the items are the head.
HEAD_SHARE = 0.2
UNTRAINED, TAIL, HEAD = range(3)
_LISTED = 50
_ITEMS_AT_ONCE = 65_536


@dataclasses.dataclass(frozen=True)
class RetrievalInputs(HistoryInputs):
    """What a model must know of its transformed inputs and of its items.

    Attributes:
      features: categorical feature of the items to the number of its ids.
      multivalent: those of them with several values, to how many at most.
      numeric_features: numeric features of the items.
      columns: features of the ids 1..V.
    """

    features: dict[str, int] = dataclasses.field(default_factory=dict)
    multivalent: dict[str, int] = dataclasses.field(default_factory=dict)
    numeric_features: tuple[str, ...] = ()
    columns: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)


class RetrievalTask(HistoryTask):
    """Softmax over the items of a batch; recommendations from an index.

    Args:
      entry: the model's row in the registry.
      config: the run's configuration.
    """

    objective = "ndcg_at_20"
    objective_direction = "max"
    # Beside those of data and features: values of the configuration that decide what it prepares.
    prepare_reads = ("model.item_features",)

    def __init__(self, entry: ModelEntry, config: RunConfig) -> None:
        super().__init__(entry, config)
        self._catalogue: Catalogue | None = None
        self._features: CandidateFeatures | None = None
        # What the signatures read beyond the model's weights; saved along.
        self.parts: list[Any] = []
        self._vocabulary: Sequence[str] = ()
        self._columns: dict[str, np.ndarray] = {}

    @property
    def weighting(self) -> WeightingConfig:
        """How examples are weighted."""
        return self.config.weighting

    @property
    def metric_names(self) -> tuple[str, ...]:
        """What `metrics` gives."""
        parts = [name for name in self.entry.metrics if parse(name)[0] == "recall"]
        groups = [f"{name}_{part}" for name in parts for part in ("head", "tail")]
        return (*self.entry.metrics, *groups, "cross_entropy")

    # The catalogue.

    def open_catalogue(self, reader: Reader) -> None:
        """Reads the source's catalogue, if it has one.

        Raises:
          InputError: it cannot be read, or an item is there twice.
        """
        from tfrz.data.histories.readers import InteractionReader

        assert isinstance(reader, InteractionReader)
        spec, table = reader.feature_spec(), reader.candidates()
        if spec.candidates is None or table is None:
            return
        self._catalogue = Catalogue(spec.candidates, table)
        if spec.candidates.features and self.config.model.item_features:
            self._features = CandidateFeatures(self._catalogue)

    def with_items(self, inputs: HistoryInputs, items: Sequence[str]) -> RetrievalInputs:
        """Inputs with the features of the vocabulary's items."""
        self._vocabulary = items
        self._check_size(items)
        known = {f.name: getattr(inputs, f.name) for f in dataclasses.fields(HistoryInputs)}
        if self._features is None or self._catalogue is None:
            return RetrievalInputs(**known)
        shapes = self._features.shapes
        rows = self._catalogue.rows_of([item.encode() for item in items])
        return RetrievalInputs(
            **known,
            features=shapes["categorical"],
            multivalent=shapes["multivalent"],
            numeric_features=shapes["numeric"],
            columns=self._features.columns(rows),
        )

    def _check_size(self, items: Sequence[str]) -> None:
        """Refuses to list more than there is, before anything is trained."""
        count = len(items)
        if self._catalogue is not None:
            rows = self._catalogue.rows_of([item.encode() for item in items])
            known = int((rows >= 0).sum())
            count = known if self._features is None else self._catalogue.table.num_rows
        wanted = self.config.export.top_k
        if items and wanted > count:
            raise InputError(
                f"export.top_k is {wanted}, the catalogue has {count} items: set it lower"
            )

    def build(self, inputs: HistoryInputs) -> keras.Model:
        """A model with all its variables made, which knows the features of its items."""
        given = inputs if isinstance(inputs, RetrievalInputs) else self.with_items(inputs, ())
        model = self.entry.load("model")(
            self.config.model,
            inputs.num_items,
            inputs.item_rows,
            inputs.length,
            inputs.context,
            inputs.numeric,
            inputs.padding,
            given.features,
            given.multivalent,
            given.numeric_features,
            dtype=self.config.trainer.dtype,
            **self._long_history(inputs),
        )
        model(self.example_inputs(inputs))
        self._columns = given.columns
        model.set_item_features(given.columns)
        return model

    def prepare(self, reader: Reader) -> Prepared:
        """As of `HistoryTask`, and reads the catalogue."""
        self.open_catalogue(reader)
        prepared = super().prepare(reader)
        inputs = self.with_items(prepared.inputs, prepared.vocabularies["item_xf"])
        vocabularies = prepared.vocabularies | self.feature_vocabularies
        return dataclasses.replace(prepared, inputs=inputs, vocabularies=vocabularies)

    @property
    def feature_vocabularies(self) -> dict[str, list[str]]:
        """The terms of the items' features, for a later warm start."""
        if self._features is None:
            return {}
        terms = self._features.transform.vocabularies
        return {f"candidate_{name}_xf": list(values) for name, values in terms.items()}

    # What the training loop asks for.

    def start(self, model: keras.Model, train: Batches) -> None:
        """Counts the training targets; a warm start may have brought those of another set."""
        model.set_item_features(self._columns)
        counts = np.zeros(int(model.target_counts.shape[0]), np.float32)
        for batch in train.once():
            counts += np.bincount(batch["target_xf"].numpy(), minlength=len(counts))
        counts[0] = 0
        counts[1 + model.num_items :] = 0
        model.target_counts.assign(counts)

    def lookup(self, model: keras.Model, batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Embedded events, and the candidates: the batch's targets, then uniform negatives."""
        looked_up = dict(model.embed(batch, training=True))
        targets = candidates = tf.cast(batch["target_xf"], tf.int64)
        uniform = model.config.num_negatives
        if uniform:
            candidates = tf.concat([targets, model.sampler.sample()], axis=0)
        looked_up["candidates"], looked_up["targets"] = candidates, targets
        looked_up["candidate_vectors"] = model.embed_items(candidates)
        weights = tf.gather(tf.convert_to_tensor(model.target_weights), targets)
        known = (targets >= 1) & (targets <= model.num_items)
        looked_up["weights"] = tf.where(known, weights, tf.zeros_like(weights))
        if model.config.log_q:
            counts = tf.convert_to_tensor(model.target_counts)[1 : 1 + model.num_items]
            log_q = log_expected_counts(counts, tf.shape(targets)[0], uniform)
            place = tf.clip_by_value(candidates - 1, 0, model.num_items - 1)
            looked_up["log_q"] = tf.gather(log_q, place)
        if self.teacher is not None:
            teacher = self.teacher.model
            users = teacher.encode(teacher.embed(batch))
            items = teacher.encode_items(teacher.embed_items(candidates))
            looked_up["taught"] = tf.stop_gradient(teacher.score(users, items))
        return looked_up

    def dense_loss(
        self, model: keras.Model, looked_up: dict[str, tf.Tensor]
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """A loss per example, and the penalties: on queries that agree, on layers of low rank."""
        config = model.config
        users = model.encode(looked_up, training=True)
        items = model.encode_items(looked_up["candidate_vectors"])
        candidates = looked_up["candidates"]
        known = (candidates >= 1) & (candidates <= model.num_items)
        others = (looked_up["targets"], candidates, looked_up.get("log_q", 0.0), known)
        scores = model.score(users, items)
        losses = focal_loss(candidate_softmax_loss(scores, *others), config.focal_gamma)
        if "taught" in looked_up:
            # The same correction and the same accidental hits left out, of both models.
            logits = candidate_logits(scores, *others)
            said = candidate_logits(looked_up["taught"], *others)
            own = tf.range(tf.shape(logits)[0])
            distill = self.config.distill
            losses = distill.mixed(losses, distill.class_term(logits, own, said))
        losses = looked_up["weights"] * losses
        penalty = frobenius_penalty(model)
        if config.disagreement:
            penalty += config.disagreement * model.disagreement()
        return losses, penalty

    def predict(self, model: keras.Model, batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Rank and loss of each target, its group, and the items listed first."""
        targets = tf.cast(batch["target_xf"], tf.int64)
        scores = model(batch, training=False)
        allowed = self._allowed(scores, batch)
        place = tf.clip_by_value(targets - 1, 0, model.num_items - 1)
        best, listed = tf.math.top_k(allowed, min(_LISTED, model.num_items))
        listed = tf.where(tf.math.is_finite(best), listed + 1, tf.zeros_like(listed))
        return {
            "rank": rank_of(allowed, targets),
            "group": self._group(model, targets),
            "loss": tf.nn.sparse_softmax_cross_entropy_with_logits(place, scores),
            "listed": listed,
            "num_items": tf.fill(tf.shape(targets), model.num_items),
        }

    @staticmethod
    def _group(model: keras.Model, targets: tf.Tensor) -> tf.Tensor:
        """Whether each target is of the head, of the tail, or was no target in training."""
        counts = tf.convert_to_tensor(model.target_counts)
        head = tf.math.top_k(
            counts[1 : 1 + model.num_items], round(HEAD_SHARE * model.num_items)
        ).indices
        in_head = tf.reduce_any(tf.equal(tf.cast(head, tf.int64)[None], targets[:, None] - 1), 1)
        trained = tf.gather(counts, targets) > 0
        return tf.where(trained, tf.where(in_head, HEAD, TAIL), UNTRAINED)

    def metrics(self, outputs: dict[str, np.ndarray]) -> dict[str, float]:
        """Those of the registry's row, recall by group of the target, and the loss."""
        rank, group = outputs["rank"], outputs["group"]
        found: dict[str, float] = {}
        for name in self.entry.metrics:
            kind, n = parse(name)
            if kind in ("coverage", "gini"):
                counts = exposures(outputs["listed"][:, :n], int(outputs["num_items"][0]))
                found[name] = coverage(counts) if kind == "coverage" else gini(counts)
                continue
            values = at_rank(kind, rank, n)
            found[name] = _mean(values)
            if kind == "recall":
                for part, chosen in (("head", group == HEAD), ("tail", group == TAIL)):
                    found[f"{name}_{part}"] = _mean(values[chosen])
        found["cross_entropy"] = _mean(outputs["loss"][group != UNTRAINED])
        return found

    def report(self, model: keras.Model, prepared: Prepared, out: Path) -> None:
        """`interests.json`: how often each of a user's vectors is the one that finds the target."""
        wins = np.zeros(model.config.num_interests, np.int64)
        items = model.item_vectors()
        for batch in prepared.validation.once():
            targets = batch["target_xf"]
            known = (targets >= 1) & (targets <= model.num_items)
            users = tf.boolean_mask(model.encode(model.embed(batch)), known)
            vectors = tf.gather(items, tf.boolean_mask(targets, known) - 1)
            best = tf.argmax(tf.einsum("bhd,bd->bh", users, vectors), axis=1).numpy()
            wins += np.bincount(best, minlength=len(wins))
        share = wins / max(wins.sum(), 1)
        described = {"share_of_targets": share.tolist(), "targets": int(wins.sum())}
        atomic_write(out / "interests.json", json.dumps(described, indent=1) + "\n")

    # What a warm start asks for.

    def vocabulary_weights(self, model: keras.Model) -> dict[str, list[tf.Variable]]:
        """The tables whose rows are the ids of each vocabulary."""
        statistics = [model.target_counts, model.target_weights, *model.statistics.columns.values()]
        tables = [t for t in (model.events, model.items) if t is not None]
        weights = {"item_xf": [t.embeddings for t in tables] + statistics}
        for name, table in model.context_tables.items():
            if name not in self.history.time_features:
                weights[f"{name}_xf"] = [table.embeddings]
        for name, table in model.feature_tables.items():
            weights[f"candidate_{name}"] = [table.embeddings]
        return weights

    # What the export asks for.

    def _index(
        self, model: keras.Model, items: Sequence[str]
    ) -> tuple[RecommendationIndex, np.ndarray]:
        """An index of the catalogue, or of the vocabulary; and the row of each id."""
        vocabulary = [item.encode() for item in items]
        ids_of = {item: i for i, item in enumerate(vocabulary, start=1)}
        catalogue = self._catalogue or Catalogue.of_items(vocabulary)
        unknown = len(vocabulary) + 1
        indexable = catalogue.items
        ids = np.array([ids_of.get(item, unknown) for item in indexable], np.int64)
        order = np.argsort(ids, kind="stable")
        if self._features is None:
            # Nothing is known of items that the model has not seen.
            order = order[ids[order] < unknown]
        known = [indexable[row] for row in order]
        columns = None if self._features is None else self._features.columns(order)
        vectors = item_vectors(model, ids[order], columns)
        logger.info(
            "index: %s items, of which %s were never trained on; %s of the vocabulary are not in "
            "the catalogue",
            f"{len(known):,}",
            f"{int((ids[order] == unknown).sum()):,}",
            f"{len(vocabulary) - int((ids < unknown).sum()):,}",
        )
        index = RecommendationIndex(
            known, vectors, self.config.export.index, self.config.export.top_k
        )
        rows = np.full(model.item_rows, -1, np.int64)
        indexed = ids[order] < unknown
        rows[ids[order][indexed]] = np.flatnonzero(indexed)
        return index, rows

    def outputs(self, model: keras.Model, features: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """The best items: `scores` float32 `[batch, top_k]`, and `ids`, rows of the index."""
        index, rows = self._index(model, self._vocabulary)
        seen = tf.gather(tf.constant(rows), features["seen_xf"])
        found, scores = index.search(
            self._users(model, features), seen if self.config.export.drop_seen else None
        )
        return {"scores": scores, "ids": found}

    @staticmethod
    def _users(model: keras.Model, features: dict[str, tf.Tensor]) -> tf.Tensor:
        """Vectors whose products with those of items are scores."""
        return model.encode(model.embed(features)) / model.config.temperature

    def signatures(
        self,
        model: keras.Model,
        transform: Transform,
        spec: HistorySpec,
        vocabularies: Mapping[str, Sequence[str]],
    ) -> dict[str, Any]:
        """The signatures of a model that recommends from an index.

        Args:
          model: the trained model.
          transform: raw sparse features to transformed ones.
          spec: the raw features.
          vocabularies: `item_xf` to the raw ids of the items.

        Returns:
          Names to functions with an input signature. Beside those of `HistoryTask`: `encode` and
          `encode_examples` give the vectors of users, `embedding` `[batch, interests, dim]`, and
          `seen`, the raw ids of the history; `encode_items` takes raw ids and features of items
          and gives `embedding` `[items, dim]` and `rank`, the id in the vocabulary, or one more
          than its size. An index of another catalogue can be built from these three.
        """
        index, _ = self._index(model, vocabularies["item_xf"])
        self.parts = [index]
        parse_spec = raw_feature_spec(spec, label=False)
        examples = tf.TensorSpec([None], tf.string, name="examples")
        drop_seen = self.config.export.drop_seen

        def encoded(raw: dict[str, tf.SparseTensor]) -> dict[str, tf.Tensor]:
            history = tf.sparse.to_dense(raw["history"], "")
            features = densify(transform(raw))
            return {"embedding": self._users(model, features), "seen": history}

        def encode_examples(examples: tf.Tensor) -> dict[str, tf.Tensor]:
            return encoded(tf.io.parse_example(examples, parse_spec))

        def encode(features: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
            return encoded(to_sparse(features, spec.aligned))

        by_examples, by_names = [examples], [raw_input_signature(spec)]
        serving_raw = tf.function(recommending(encode, index, drop_seen), input_signature=by_names)
        described = super().signatures(model, transform, spec, vocabularies)["transform_features"]

        @tf.function(input_signature=[examples])
        def transform_features(examples: tf.Tensor) -> dict[str, tf.Tensor]:
            features = described(examples)
            features["catalogue_size"] = tf.fill(tf.shape(examples), index.count)
            return features

        return {
            "serving_default": tf.function(
                recommending(encode_examples, index, drop_seen), input_signature=by_examples
            ),
            "serving_raw": serving_raw,
            "recommend": serving_raw,
            "encode": tf.function(encode, input_signature=by_names),
            "encode_examples": tf.function(encode_examples, input_signature=by_examples),
            "encode_items": self._encode_items(model, spec, vocabularies["item_xf"]),
            "transform_features": transform_features,
        }

    def _encode_items(self, model: keras.Model, spec: HistorySpec, items: Sequence[str]) -> Any:
        """The signature from raw ids and features of items to their vectors."""
        table = tf.lookup.StaticVocabularyTable(
            tf.lookup.KeyValueTensorInitializer(
                tf.constant(list(items)), tf.range(len(items), dtype=tf.int64)
            ),
            1,
        )
        described = self._features.spec if self._features is not None else None
        name = spec.candidates.item if spec.candidates is not None else "item"
        inputs = {} if described is None else raw_input_signature(described)
        inputs[name] = tf.TensorSpec([None], tf.string, name=name)
        transform = None if self._features is None else self._features.transform

        @tf.function(input_signature=[inputs])
        def encode_items(features: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
            ids = table.lookup(features[name]) + 1
            columns = None
            if described is not None and transform is not None:
                raw = {f.name: features[f.name] for f in described.features}
                columns = densify(transform(to_sparse(raw)))
            vectors = model.encode_items(model.embed_items(ids, columns))
            return {"embedding": vectors, "rank": ids}

        self.parts += [table] if transform is None else [table, transform]
        return encode_items

    def popularity_words(self, model: keras.Model, ids: tf.Tensor) -> tf.Tensor:
        """The group of each target as a word, for slices."""
        group = self._group(model, tf.where(ids > model.num_items, tf.zeros_like(ids), ids))
        return in_words(group, [1, 2], ["never trained", "tail", "head"])

    # What the Evaluator asks for.

    def eval_config(self, spec: HistorySpec, has_baseline: bool) -> Any:
        """TFMA's `EvalConfig`: metrics, slices and the thresholds of a blessing."""
        parameters = metrics_of_lists(self.config, self.entry.metrics)
        wanted = self.config.evaluator
        return evaluation_config(wanted, parameters, "item_ids", spec.label, has_baseline)


def _mean(values: np.ndarray) -> float:
    return float(np.mean(values)) if len(values) else float("nan")


def item_vectors(
    model: keras.Model, ids: np.ndarray, columns: Mapping[str, np.ndarray] | None
) -> np.ndarray:
    """Vectors of items by id and features, some at a time, `[items, dim]`."""
    parts = []
    for start in range(0, len(ids), _ITEMS_AT_ONCE):
        some = slice(start, start + _ITEMS_AT_ONCE)
        chosen = None
        if columns is not None:
            chosen = {name: tf.constant(column[some]) for name, column in columns.items()}
        embedded = model.embed_items(tf.constant(ids[some]), chosen)
        parts.append(model.encode_items(embedded).numpy())
    return np.concatenate(parts)
