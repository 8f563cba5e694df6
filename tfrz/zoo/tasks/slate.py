"""The task of *list* records: re-rank the candidates of a list, as their raw ids.

Every model of this task is constructed as `Model(config, length, num_features, categorical,
context, num_context, dtype=...)` and has `embed(inputs)`, `interact(embedded) -> scores`,
`slate(embedded, ...)` and `best(inputs)`, as `tfrz.models.seq2slate.Seq2Slate` does.
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

from tfrz.data.lists.examples import build_lists, splits_of
from tfrz.data.lists.spec import ListConfig, ListSpec
from tfrz.data.lists.transform import ListPreprocessor, preprocess_list
from tfrz.data.spec import MISSING, Feature, transformed_name
from tfrz.data.transform import Analyzers, Preprocessor, closed_up
from tfrz.errors import InputError
from tfrz.export.raw_inputs import check_widths, to_sparse
from tfrz.layers.low_rank_dense import frobenius_penalty
from tfrz.losses.ranking import (
    ApproxNDCGLoss,
    LambdaRankLoss,
    SigmoidCrossEntropyLoss,
    SoftmaxLoss,
)
from tfrz.losses.slate import (
    average_precision_reward,
    clicks_reward,
    in_slate_order,
    mean_of_others,
    ndcg_reward,
    policy_gradient_loss,
    step_cross_entropy,
    step_hinge,
    step_weights,
)
from tfrz.metrics.slates import of_slate
from tfrz.models.seq2slate import Seq2SlateConfig
from tfrz.zoo.task import ExampleSource, Parts, Prepared, Served, Task, Tensors
from tfrz.zoo.tasks.sets import judged_sets
from tfrz.zoo.tasks.slices import in_words, rank_in_words

logger = logging.getLogger(__name__)

# The score where nothing stands, or where the model did not choose.
NOTHING = -1e9

_RANKING_LOSSES = {
    "sigmoid": SigmoidCrossEntropyLoss,
    "softmax": SoftmaxLoss,
    "approx_ndcg": ApproxNDCGLoss,
    "lambda_rank": LambdaRankLoss,
}


@dataclasses.dataclass(frozen=True)
class ListInputs:
    """The transformed inputs of a model.

    Attributes:
      length: candidates of a list.
      num_features: numeric features of a candidate.
      categorical: categorical feature of a candidate to the number of its ids.
      context: categorical feature of the request to the number of its ids.
      num_context: numeric features of the request.
    """

    length: int
    num_features: int
    categorical: dict[str, int]
    context: dict[str, int]
    num_context: int

    @property
    def names(self) -> tuple[str, ...]:
        """All inputs of the model."""
        named = [transformed_name(name) for name in (*self.categorical, *self.context)]
        return ("features_xf", "mask_xf", *named, *(["context_xf"] if self.num_context else []))


def length_bucket(lengths: tf.Tensor) -> tf.Tensor:
    """Lengths of lists as words, for slices."""
    return in_words(lengths, [1, 2, 10, 20, 50], ["0", "1", "2-9", "10-19", "20-49", "50+"])


def frequency_bucket(ids: tf.Tensor, num_queries: int) -> tf.Tensor:
    """Ranks of queries by frequency (their ids) as words, for slices."""
    words = ["unknown", "top 100", "101-1,000", "1,001+"]
    return rank_in_words(ids, num_queries, [1, 101, 1001], words)


def without_gaps(
    raw: dict[str, tf.SparseTensor], spec: ListSpec
) -> tuple[dict[str, tf.SparseTensor], tf.Tensor]:
    """Candidates moved to the first places of their lists, with what describes them.

    Args:
      raw: raw features; places whose id is missing or empty hold no candidate.
      spec: what they are.

    Returns:
      The same without such places, and the row of the request at each place, int64
      `[batch, candidates]`.
    """
    listed = raw["candidates"]
    present = tf.not_equal(listed.values, "")
    kept = tf.boolean_mask(listed.indices, present)
    shape = listed.dense_shape

    def moved(values: tf.Tensor) -> tf.SparseTensor:
        return closed_up(tf.SparseTensor(kept, values, shape))

    closed = {**raw, "candidates": moved(tf.boolean_mask(listed.values, present))}
    for feature in spec.candidate:
        given = raw[feature.name]
        given = tf.sparse.retain(given, given.indices[:, 1] < shape[1])
        given = tf.SparseTensor(given.indices, given.values, shape)
        dense = tf.sparse.to_dense(given, MISSING[feature.dtype])
        closed[feature.name] = moved(tf.gather_nd(dense, kept))
    return closed, tf.sparse.to_dense(moved(kept[:, 1]), -1)


def reward_of(config: Seq2SlateConfig, labels: tf.Tensor, positions: tf.Tensor) -> tf.Tensor:
    """The reward of slates that `config.reward` names, `[batch]`."""
    if config.reward == "map":
        return average_precision_reward(labels, positions)
    reward = ndcg_reward if config.reward == "ndcg" else clicks_reward
    return reward(labels, positions, config.reward_at)


class SlateTask(Task[ListSpec, ListInputs]):
    """Slates that put what is relevant first."""

    objective = "ndcg_at_10"
    product = "rerank"
    evaluation_batch = 512
    slice_features = ("list_length", "query_frequency")

    @property
    def lists(self) -> ListConfig:
        """How lists are made."""
        assert self.config.data.lists is not None
        return self.config.data.lists

    # Data.

    def make_examples(
        self, records: pa.Table, source: ExampleSource[ListSpec]
    ) -> tuple[Parts, int]:
        """Lists of documents, in the base ranker's order."""
        data = self.config.data
        arguments = (data.held_out, data.seed, data.test_fraction > 0)
        if self.lists.base_ranker == "lambda_mart":
            from tfrz.training.base_ranker import with_lambda_mart

            records = with_lambda_mart(records, source.spec, splits_of(records, *arguments))
        return build_lists(records, source.spec, self.lists, *arguments), 0

    def check_sets(self, prepared: Prepared[ListSpec, ListInputs]) -> None:
        """Refuses sets in which every order is as good as any other.

        Raises:
          InputError: as of `Task`; or no list of the training or validation set has candidates of
            different relevance.
        """
        super().check_sets(prepared)
        for name, some in {"training": prepared.train, **judged_sets(prepared)}.items():
            count = 0
            for batch in some.once():
                valid, labels = batch["mask_xf"].numpy() > 0, batch["relevance_xf"].numpy()
                most = np.where(valid, labels, -np.inf).max(axis=1)
                count += int((most > np.where(valid, labels, np.inf).min(axis=1)).sum())
                if count > 1:
                    break
            if count > 1:
                continue
            if count:
                logger.warning(
                    "only one of %s %s lists has both relevant and irrelevant candidates",
                    f"{some.num_examples:,}",
                    name,
                )
                continue
            said = (
                f"none of {some.num_examples:,} {name} lists has both relevant and irrelevant "
                f"candidates among its first {self.lists.length}: every order is as good"
            )
            if name != "test":
                raise InputError(f"{said}; bring more data, or check {prepared.spec.label}")
            logger.warning("%s", said)

    @property
    def partition_key(self) -> str | None:
        """The query; none where the base ranker learns from all documents at once."""
        return None if self.lists.base_ranker == "lambda_mart" else "query"

    def transform_of(
        self,
        spec: ListSpec,
        vocabularies: Mapping[str, list[bytes]],
        moments: Mapping[str, tuple[float, float]],
    ) -> Preprocessor[Any, Any]:
        """As of `Task`."""
        return ListPreprocessor(spec, vocabularies, moments, self.lists)

    def fit_transform(self, examples: pa.Table, spec: ListSpec) -> Preprocessor[Any, Any]:
        """Vocabularies and moments of the training examples."""
        fitted: Preprocessor[Any, Any] = ListPreprocessor.fit_examples(examples, spec, self.lists)
        return fitted

    def preprocess(
        self, inputs: Mapping[str, tf.SparseTensor], spec: ListSpec, analyzers: Analyzers
    ) -> dict[str, Any]:
        """Raw features and relevance to transformed ones."""
        return preprocess_list(inputs, spec, self.lists, analyzers)

    # The model.

    def model_inputs(self, spec: ListSpec, vocabulary_sizes: Mapping[str, int]) -> ListInputs:
        """The argument of `build`, from the raw features and the fitted vocabularies."""

        def sizes(features: Sequence[Feature]) -> dict[str, int]:
            return {
                f.name: vocabulary_sizes[transformed_name(f.name)]
                for f in features
                if f.kind == "categorical"
            }

        return ListInputs(
            length=self.lists.length,
            num_features=len(spec.numeric),
            categorical=sizes(spec.candidate),
            context=sizes(spec.context),
            num_context=sum(f.kind == "numeric" for f in spec.context),
        )

    def construct(self, inputs: ListInputs) -> keras.Model:
        """The model, before it has any variables."""
        return self.entry.load("model")(
            self.config.model,
            inputs.length,
            inputs.num_features,
            inputs.categorical,
            inputs.context,
            inputs.num_context,
            dtype=self.config.trainer.dtype,
        )

    @staticmethod
    def example_inputs(inputs: ListInputs, batch_size: int = 2) -> Tensors:
        """A batch of zeros of the right shapes and dtypes."""
        rows = [batch_size, inputs.length]
        batch = {
            "features_xf": tf.zeros([*rows, inputs.num_features]),
            "mask_xf": tf.zeros(rows, tf.int64),
        }
        for name in inputs.categorical:
            batch[transformed_name(name)] = tf.zeros(rows, tf.int64)
        for name in inputs.context:
            batch[transformed_name(name)] = tf.zeros([batch_size], tf.int64)
        if inputs.num_context:
            batch["context_xf"] = tf.zeros([batch_size, inputs.num_context])
        return batch

    def vocabulary_weights(self, model: keras.Model) -> dict[str, list[tf.Variable]]:
        """The tables whose rows are the ids of each vocabulary."""
        return {transformed_name(name): [t.embeddings] for name, t in model.tables.items()}

    # Training.

    def lookup(self, model: keras.Model, batch: Tensors) -> Tensors:
        """Candidates `x`, their mask, their labels, and the seed of this step's samples."""
        looked_up = {
            **model.embed(batch, training=True),
            "label": batch["relevance_xf"],
            "seed": model.next_seed(self.config.trainer.seed),
        }
        if self.teacher is not None:
            looked_up["taught"] = self.teacher.model.best(batch).positions
        return looked_up

    def dense_loss(self, model: keras.Model, looked_up: Tensors) -> tuple[tf.Tensor, tf.Tensor]:
        """A loss per list and the regularisation; lists without a positive have a loss of 0."""
        config, labels = model.config, looked_up["label"]
        if config.loss in _RANKING_LOSSES:
            loss = self._of_ranking(model, looked_up)
        elif config.loss == "reinforce":
            loss = self._reinforce(model, looked_up)
        elif config.scorer == "sequential":
            slate = model.slate(looked_up, config.trajectory, seed=looked_up["seed"], training=True)
            steps = self._steps(config, slate.scores, slate.available, labels)
            weights = step_weights(int(steps.shape[1]), config.step_weights)
            loss = tf.linalg.matvec(steps, weights)
            if config.score_term:
                total = tf.reduce_sum(slate.log_probabilities, axis=1)
                loss += tf.stop_gradient(loss - mean_of_others(loss)) * total
        else:
            scores = model.interact(looked_up, training=True)[:, None, :]
            steps = self._steps(config, scores, looked_up["valid"][:, None, :], labels)
            loss = steps[:, 0] * step_weights(1, config.step_weights)[0]
        if "taught" in looked_up:
            loss = self.config.distill.mixed(loss, self._soft(model, looked_up))
        return loss, frobenius_penalty(model)

    def _soft(self, model: keras.Model, looked_up: Tensors) -> tf.Tensor:
        """How improbable the first places of the teacher's slate are, `[batch]`."""
        order, distill = looked_up["taught"], self.config.distill
        if model.config.scorer != "sequential":
            return distill.order_term(model.interact(looked_up, training=True), order)
        places = distill.places(int(order.shape[1]))
        slate = model.slate(looked_up, "forced", places, positions=order, training=True)
        return -tf.reduce_sum(tf.cast(slate.log_probabilities, tf.float32), axis=1)

    @staticmethod
    def _steps(
        config: Seq2SlateConfig, scores: tf.Tensor, free: tf.Tensor, labels: tf.Tensor
    ) -> tf.Tensor:
        if config.loss == "cross_entropy":
            return step_cross_entropy(scores, free, labels, config.normalizer)
        return step_hinge(scores, free, labels, smooth=config.loss == "smooth_hinge")

    @staticmethod
    def _reinforce(model: keras.Model, looked_up: Tensors) -> tf.Tensor:
        config, labels = model.config, looked_up["label"]
        slate = model.slate(looked_up, "sample", seed=looked_up["seed"], training=True)
        reward = reward_of(config, labels, slate.positions)
        baseline = tf.zeros_like(reward)
        if config.baseline == "mean":
            baseline = mean_of_others(reward)
        elif config.baseline == "greedy":
            baseline = reward_of(config, labels, model.slate(looked_up).positions)
        # Without a positive every slate is as good: no signal, only noise.
        positive = tf.cast(tf.reduce_any(labels > 0, axis=1), reward.dtype)
        total = tf.reduce_sum(slate.log_probabilities, axis=1)
        return policy_gradient_loss(total, reward * positive, baseline * positive)

    @staticmethod
    def _of_ranking(model: keras.Model, looked_up: Tensors) -> tf.Tensor:
        """The loss of scores that are given all at once, `[batch]`."""
        kind, labels = model.config.loss, looked_up["label"]
        if kind == "sigmoid":
            labels = tf.minimum(labels, 1.0)
        padded = tf.where(looked_up["valid"], labels, -tf.ones_like(labels))
        losses: tf.Tensor = _RANKING_LOSSES[kind]().call(
            padded, model.interact(looked_up, training=True)
        )
        return losses

    def predict(self, model: keras.Model, batch: Tensors) -> Tensors:
        """Labels in the order of the slate, -1 where nothing stands, and the slate `[batch, N]`."""
        return self.judged(model.best(batch).positions, batch["relevance_xf"])

    @staticmethod
    def judged(positions: tf.Tensor, labels: tf.Tensor) -> Tensors:
        """The inputs of `metrics`, from any slates of lists with `labels`."""
        ordered = in_slate_order(labels, positions)
        return {
            "ordered": tf.where(positions >= 0, ordered, -tf.ones_like(ordered)),
            "positions": positions,
        }

    @classmethod
    def in_base_order(cls, batch: Tensors) -> Tensors:
        """The inputs of `metrics`, from the lists in the base ranker's order."""
        rows = tf.range(tf.shape(batch["mask_xf"])[1])[None, :]
        positions = tf.where(batch["mask_xf"] > 0, rows, -tf.ones_like(rows))
        return cls.judged(positions, batch["relevance_xf"])

    @property
    def max_grade(self) -> float:
        """The highest grade that there is; ERR depends on it."""
        return 1.0 if self.lists.clicks is not None else 4.0

    def metrics(self, outputs: dict[str, NDArray[Any]]) -> dict[str, float]:
        """NDCG, MAP and ERR, over lists with something relevant."""
        ordered = outputs["ordered"]
        rows = [row[row >= 0] for row in ordered[(ordered > 0).any(1)]]
        if not rows:
            return dict.fromkeys(self.entry.metrics, float("nan"))
        return {
            name: float(np.mean([of_slate(name, row, self.max_grade) for row in rows]))
            for name in self.entry.metrics
        }

    # The export.

    def outputs(self, model: keras.Model, features: Tensors) -> Tensors:
        """The slate of the first N candidates.

        Returns:
          `positions` int64 and `scores` float32 `[batch, N]`: the row at each place, -1 for none,
          and its score when it was chosen, -1e9 for none; `log_probability` float32 `[batch]`.
        """
        slate = model.best(features)
        chosen = tf.gather(slate.scores, tf.maximum(slate.positions, 0), batch_dims=2)
        filled = slate.positions >= 0
        return {
            "positions": tf.cast(slate.positions, tf.int64),
            "scores": tf.where(filled, tf.cast(chosen, tf.float32), NOTHING),
            "log_probability": tf.cast(tf.reduce_sum(slate.log_probabilities, 1), tf.float32),
        }

    def aligned_lists(self, spec: ListSpec) -> Sequence[Sequence[str]]:
        """The candidates."""
        return (spec.aligned,)

    def to_sparse(self, features: Tensors, spec: ListSpec) -> dict[str, tf.SparseTensor]:
        """Named raw tensors as `tf.io.parse_example` returns them, with the places of candidates.

        Missing values of a candidate are left out by themselves.
        """
        return to_sparse(check_widths(features, spec.aligned))

    def answers(self, served: Served[ListSpec]) -> Callable[[dict[str, tf.SparseTensor]], Tensors]:
        """The whole list re-ranked, as raw ids.

        `item_ids` string, `positions` int64 and `scores` float32 are `[batch, candidates]`;
        candidates beyond the model's length follow in their order with a score of -1e9, and "", -1
        and -1e9 fill shorter lists. `log_probability` float32 `[batch]` is that of the part that
        the model ordered.
        """

        def reranked(raw: dict[str, tf.SparseTensor]) -> Tensors:
            raw, rows = without_gaps(raw, served.spec)
            ids = tf.sparse.to_dense(raw["candidates"], "")
            outputs = self.outputs(served.model, served.features(raw))
            width = tf.shape(ids, out_type=tf.int64)[1]
            length = int(served.model.length)
            tail = tf.range(length, tf.maximum(width, length))[None, :]
            tail = tf.tile(tail, tf.stack([tf.shape(ids, tf.int64)[0], 1]))
            # Where candidates are left over, every place before them is filled.
            places = tf.concat([outputs["positions"], tail], axis=1)[:, :width]
            scores = tf.concat([outputs["scores"], tf.fill(tf.shape(tail), NOTHING)], axis=1)
            safe = tf.maximum(places, 0)
            named = tf.gather(ids, safe, batch_dims=1)
            there = (places >= 0) & tf.not_equal(named, "")
            positions = tf.gather(rows, safe, batch_dims=1)
            return {
                "item_ids": tf.where(there, named, tf.zeros_like(named)),
                "positions": tf.where(there, positions, -tf.ones_like(positions)),
                "scores": scores[:, :width],
                "log_probability": outputs["log_probability"],
            }

        return reranked

    def described(
        self, served: Served[ListSpec], raw: dict[str, tf.SparseTensor], features: Tensors
    ) -> Tensors:
        """The transformed features, and the length and the frequency of the query as words."""
        del raw
        known = len(served.vocabularies.get("query_xf", ()))
        return {
            **features,
            "list_length": length_bucket(tf.reduce_sum(features["mask_xf"], axis=1)),
            "query_frequency": frequency_bucket(features["query_xf"], known),
        }

    def further_signatures(self, served: Served[ListSpec]) -> dict[str, Callable[..., Tensors]]:
        """`rerank_elwc`, of serialised `ExampleListWithContext`s `[batch]`."""
        answer = self.answers(served)

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="elwc")])
        def rerank_elwc(elwc: tf.Tensor) -> Tensors:
            from tfrz.data.lists.elwc import parse_elwc

            return answer(self.to_sparse(parse_elwc(elwc, served.spec), served.spec))

        return {"rerank_elwc": rerank_elwc}

    def request_length(self, feature: Feature, row: int) -> int:
        """Lists of as many candidates as the model takes."""
        del row
        return self.lists.length if feature.multivalent else 1

    def request_terms(
        self, feature: Feature, spec: ListSpec, vocabularies: Mapping[str, Sequence[str]]
    ) -> Sequence[str]:
        """Candidates have ids of their own."""
        if feature.name == "candidates":
            return [f"candidate_{i}" for i in range(self.lists.length)]
        return super().request_terms(feature, spec, vocabularies)

    # The Evaluator.

    def eval_config(self, spec: ListSpec, has_baseline: bool) -> Any:
        """TFMA's `EvalConfig`: metrics, slices and the thresholds of a blessing.

        Args:
          spec: the raw features.
          has_baseline: whether there is a blessed model to compare with.
        """
        from tfrz.zoo.tasks.thresholds import evaluation_config

        parameters = {
            name: {"class_name": "SlateMetric", "max_grade": self.max_grade}
            for name in self.entry.metrics
        }
        return evaluation_config(
            self.config.evaluator, parameters, "positions", spec.label, has_baseline
        )
