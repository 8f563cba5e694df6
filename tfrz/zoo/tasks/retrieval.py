"""The task of two-tower retrieval from *history* records: recommend from an index of items.

Models of this task have, beyond what `HistoryTask` asks for, vectors of items by id or by features
(`embed_items`, `encode_items`), and what `tfrz.training.density_weighting` asks for.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from tfrz.data.histories.catalogue import CandidateFeatures, Catalogue
from tfrz.data.histories.readers import InteractionReader
from tfrz.data.histories.spec import HistorySpec
from tfrz.data.sources.reader import Reader
from tfrz.data.transform import densify
from tfrz.errors import InputError
from tfrz.export.index import RecommendationIndex
from tfrz.export.raw_inputs import check_rows, raw_input_signature, to_sparse
from tfrz.layers.low_rank_dense import frobenius_penalty
from tfrz.losses.retrieval import (
    candidate_logits,
    candidate_softmax_loss,
    focal_loss,
    log_expected_counts,
)
from tfrz.metrics.coverage import coverage, exposures, gini
from tfrz.metrics.ranking import at_rank, parse, rank_of
from tfrz.training.batches import Batches
from tfrz.training.density_weighting import WeightingConfig
from tfrz.zoo.task import Served, Tensors, Transform
from tfrz.zoo.tasks.history import HistoryInputs, HistoryTask, id_table
from tfrz.zoo.tasks.slices import in_words
from tfrz.zoo.tasks.thresholds import evaluation_config, metrics_of_lists

if TYPE_CHECKING:
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
    """The transformed inputs of a model, and its items.

    Attributes:
      features: categorical feature of the items to the number of its ids.
      multivalent: those of them with several values, to how many at most.
      numeric_features: numeric features of the items.
      columns: features of the ids 1..V.
    """

    features: dict[str, int] = dataclasses.field(default_factory=dict)
    multivalent: dict[str, int] = dataclasses.field(default_factory=dict)
    numeric_features: tuple[str, ...] = ()
    columns: dict[str, NDArray[Any]] = dataclasses.field(default_factory=dict)


class RetrievalTask(HistoryTask):
    """Softmax over the items of a batch; recommendations from an index."""

    objective = "ndcg_at_20"
    prepare_reads = ("model.item_features",)

    def __init__(self, entry: ModelEntry, config: RunConfig) -> None:
        super().__init__(entry, config)
        self._catalogue: Catalogue | None = None
        self._features: CandidateFeatures | None = None
        self._vocabulary: Sequence[str] = ()
        self._columns: dict[str, NDArray[Any]] = {}

    @property
    def weighting(self) -> WeightingConfig:
        """How examples are weighted."""
        return self.config.weighting

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Names of the metrics that `metrics` returns."""
        parts = [name for name in self.entry.metrics if parse(name)[0] == "recall"]
        groups = [f"{name}_{part}" for name in parts for part in ("head", "tail")]
        return (*self.entry.metrics, *groups, "cross_entropy")

    # The catalogue.

    def open_catalogue(self, opened: Callable[[], Reader]) -> None:
        """Reads the source's catalogue, if it has one.

        Raises:
          InputError: it cannot be read, or an item is there twice.
        """
        reader = opened()
        assert isinstance(reader, InteractionReader)
        spec, table = reader.feature_spec(), reader.candidates()
        if spec.candidates is None or table is None:
            return
        self._catalogue = Catalogue(spec.candidates, table)
        if spec.candidates.features and self.config.model.item_features:
            self._features = CandidateFeatures(self._catalogue)

    def with_catalogue(
        self, inputs: HistoryInputs, vocabularies: Mapping[str, Sequence[str]]
    ) -> HistoryInputs:
        """Inputs with the features of the vocabulary's items."""
        return self.with_items(inputs, vocabularies["item_xf"])

    @property
    def catalogue_vocabularies(self) -> dict[str, list[str]]:
        """The terms of the items' features, for a later warm start."""
        if self._features is None:
            return {}
        terms = self._features.transform.vocabularies
        return {f"candidate_{name}_xf": list(values) for name, values in terms.items()}

    def with_items(self, inputs: HistoryInputs, items: Sequence[str]) -> RetrievalInputs:
        """Inputs with the features of the vocabulary's items."""
        self._vocabulary = items
        if self._catalogue is not None:
            self._catalogue.check_match(items)
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

    # The model.

    def construct(self, inputs: HistoryInputs) -> keras.Model:
        """The model, before it has any variables; also of inputs without a catalogue."""
        given = inputs if isinstance(inputs, RetrievalInputs) else self.with_items(inputs, ())
        self._columns = given.columns
        return super().construct(given)

    def item_arguments(self, inputs: HistoryInputs) -> tuple[Any, ...]:
        """The features of the items."""
        assert isinstance(inputs, RetrievalInputs)
        return inputs.features, inputs.multivalent, inputs.numeric_features

    def build(self, inputs: HistoryInputs) -> keras.Model:
        """A model with all its variables made, which knows the features of its items."""
        model = super().build(inputs)
        model.set_item_features(self._columns)
        return model

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

    # Training.

    def start(self, model: keras.Model, train: Batches) -> None:
        """Counts the training targets; a warm start may have brought those of another set."""
        model.set_item_features(self._columns)
        counts = np.zeros(int(model.target_counts.shape[0]), np.float32)
        for batch in train.once():
            counts += np.bincount(batch["target_xf"].numpy(), minlength=len(counts))
        counts[0] = 0
        counts[1 + model.num_items :] = 0
        model.target_counts.assign(counts)

    def lookup(self, model: keras.Model, batch: Tensors) -> Tensors:
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

    def dense_loss(self, model: keras.Model, looked_up: Tensors) -> tuple[tf.Tensor, tf.Tensor]:
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

    def predict(self, model: keras.Model, batch: Tensors) -> Tensors:
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

    def metrics(self, outputs: dict[str, NDArray[Any]]) -> dict[str, float]:
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

    # The export.

    def _make_index(
        self, model: keras.Model, items: Sequence[str]
    ) -> tuple[RecommendationIndex, NDArray[Any]]:
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

    def outputs(self, model: keras.Model, features: Tensors) -> Tensors:
        """The best items: `scores` float32 `[batch, top_k]`, and `ids`, rows of the index."""
        index, rows = self._make_index(model, self._vocabulary)
        seen = tf.gather(tf.constant(rows), features["seen_xf"])
        found, scores = index.search(
            self._users(model, features), seen if self.config.export.drop_seen else None
        )
        return {"scores": scores, "ids": found}

    @staticmethod
    def _users(model: keras.Model, features: Tensors) -> tf.Tensor:
        """Vectors whose products with those of items are scores."""
        return model.encode(model.embed(features)) / model.config.temperature

    def signatures(
        self,
        model: keras.Model,
        transform: Transform,
        spec: HistorySpec,
        vocabularies: Mapping[str, Sequence[str]],
    ) -> dict[str, Callable[..., Tensors]]:
        """As of `HistoryTask`, and what an index of another catalogue can be built from.

        `encode` and `encode_examples` return the vectors of users, `embedding`
        `[batch, interests, dim]`, and `seen`, the raw ids of the history; `encode_items` takes raw
        ids and features of items and returns `embedding` `[items, dim]` and `rank`, the id in the
        vocabulary, or one more than its size.
        """
        self._index, _ = self._make_index(model, vocabularies["item_xf"])
        signatures = super().signatures(model, transform, spec, vocabularies)
        self.parts.insert(0, self._index)
        return signatures

    def answers(
        self, served: Served[HistorySpec]
    ) -> Callable[[dict[str, tf.SparseTensor]], Tensors]:
        """`item_ids` string and `scores` float32 `[batch, top_k]` from the index."""
        index, drop_seen = self._index, self.config.export.drop_seen

        def recommended(raw: dict[str, tf.SparseTensor]) -> Tensors:
            encoded = self._encoded(served, raw)
            return index.recommend(encoded["embedding"], encoded["seen"] if drop_seen else None)

        return recommended

    def _encoded(self, served: Served[HistorySpec], raw: dict[str, tf.SparseTensor]) -> Tensors:
        history = tf.sparse.to_dense(raw["history"], "")
        return {"embedding": self._users(served.model, served.features(raw)), "seen": history}

    def described(
        self, served: Served[HistorySpec], raw: dict[str, tf.SparseTensor], features: Tensors
    ) -> Tensors:
        """As of `HistoryTask`, and the number of items that can be listed."""
        count = tf.fill(tf.shape(features["history_xf"])[:1], self._index.count)
        return {**super().described(served, raw, features), "catalogue_size": count}

    def further_signatures(self, served: Served[HistorySpec]) -> dict[str, Callable[..., Tensors]]:
        """Vectors of users and of items."""
        spec = served.spec

        @tf.function(input_signature=[raw_input_signature(spec)])
        def encode(features: Tensors) -> Tensors:
            return self._encoded(served, self.to_sparse(features, spec))

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="examples")])
        def encode_examples(examples: tf.Tensor) -> Tensors:
            return self._encoded(served, self.parsed(examples, spec))

        return {
            "encode": encode,
            "encode_examples": encode_examples,
            "encode_items": self._encode_items(served.model, spec, served.vocabularies["item_xf"]),
        }

    def _encode_items(
        self, model: keras.Model, spec: HistorySpec, items: Sequence[str]
    ) -> Callable[..., Tensors]:
        """The signature from raw ids and features of items to their vectors."""
        table = id_table(items, len(items) + 1)
        described = self._features.spec if self._features is not None else None
        name = spec.candidates.item if spec.candidates is not None else "item"
        inputs = {} if described is None else raw_input_signature(described)
        inputs[name] = tf.TensorSpec([None], tf.string, name=name)
        transform = None if self._features is None else self._features.transform

        @tf.function(input_signature=[inputs])
        def encode_items(features: Tensors) -> Tensors:
            features = check_rows(features)
            ids = table.lookup(features[name])
            columns = None
            if described is not None and transform is not None:
                raw = {f.name: features[f.name] for f in described.features}
                columns = densify(transform(to_sparse(raw)))
            vectors = model.encode_items(model.embed_items(ids, columns))
            return {"embedding": vectors, "rank": ids}

        self.parts += [table] if transform is None else [table, transform]
        signature: Callable[..., Tensors] = encode_items
        return signature

    def popularity_words(self, model: keras.Model, ids: tf.Tensor) -> tf.Tensor:
        """The group of each target as a word, for slices."""
        group = self._group(model, tf.where(ids > model.num_items, tf.zeros_like(ids), ids))
        return in_words(group, [1, 2], ["never trained", "tail", "head"])

    # The Evaluator.

    def eval_config(self, spec: HistorySpec, has_baseline: bool) -> Any:
        """TFMA's `EvalConfig`: metrics, slices and the thresholds of a blessing."""
        parameters = metrics_of_lists(self.config, self.entry.metrics)
        wanted = self.config.evaluator
        return evaluation_config(wanted, parameters, "item_ids", spec.label, has_baseline)


def _mean(values: NDArray[Any]) -> float:
    return float(np.mean(values)) if len(values) else float("nan")


def item_vectors(
    model: keras.Model, ids: NDArray[Any], columns: Mapping[str, NDArray[Any]] | None
) -> NDArray[Any]:
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
