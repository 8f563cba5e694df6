"""Seq2slate: a pointer network that re-ranks a list, and simpler scorers to compare with."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import keras
import tensorflow as tf

from tfrz.config import check_range, require
from tfrz.layers.dropout import SeededDropout
from tfrz.layers.pointer import (
    Beams,
    ListEncoder,
    PointerDecoder,
    Slate,
    SlateConstraints,
    availability,
    beam_search,
    gumbel,
    rank,
    roll,
    step_log_probabilities,
)
from tfrz.models.base import ZooModel, build_stack

LISTWISE = ("softmax", "approx_ndcg", "lambda_rank")


@dataclasses.dataclass(frozen=True)
class Seq2SlateConfig:
    """The shape of a re-ranker, and how it is trained.

    The paper's full text was not available when this was written. Widths, initialisation and the
    exact training objectives are choices, and each is an option here.

    Attributes:
      scorer: sequential (a decoder step for each position), one_step (ranks the scores of a single
        decoder step), or mlp (scores each candidate by itself, to compare with).
      units: H, the width of encoder and decoder.
      input_units: widths of ReLU layers before the encoder; empty for none.
      hidden_units: widths of the mlp's ReLU layers.
      position: add each candidate's position in the base ranker's order, one-hot.
      embedding_dim: width of the embedding of each categorical feature.
      initial_scale: initial values are uniform between minus this and this: the kernels of encoder
        and decoder, the pointer, the decoder's first input and embeddings. Recurrent kernels and
        ReLU layers have Keras's initial values.
      dropout: share of the features' values dropped in training.
      loss: cross_entropy, hinge or smooth_hinge at every step; reinforce; or, for one_step and mlp,
        sigmoid (pointwise), softmax, approx_ndcg or lambda_rank of TF-Ranking.
      trajectory: the slates that step losses follow, greedy or sample.
      score_term: with sampled slates, add the gradient of their probability (unbiased, noisier).
      normalizer: cross_entropy divides by the number of positives that remain, or of all positives
        in the list.
      step_weights: log (1 / ln(j + 1)) or equal.
      reward: the reward of reinforce: ndcg, map or clicks.
      reward_at: positions that the reward counts.
      baseline: the baseline of reinforce: none, mean (of the batch's other lists) or greedy
        (self-critical).
      beam_width: beams when serving; 1 is greedy. For the sequential decoder only.
    """

    scorer: Literal["sequential", "one_step", "mlp"] = "sequential"
    units: int = 128
    input_units: tuple[int, ...] = ()
    hidden_units: tuple[int, ...] = (64, 64)
    position: bool = False
    embedding_dim: int = 8
    initial_scale: float = 0.1
    dropout: float = 0.0
    loss: Literal[
        "cross_entropy",
        "hinge",
        "smooth_hinge",
        "reinforce",
        "sigmoid",
        "softmax",
        "approx_ndcg",
        "lambda_rank",
    ] = "cross_entropy"
    trajectory: Literal["greedy", "sample"] = "greedy"
    score_term: bool = False
    normalizer: Literal["remaining", "all"] = "remaining"
    step_weights: Literal["log", "equal"] = "log"
    reward: Literal["ndcg", "map", "clicks"] = "ndcg"
    reward_at: int = 10
    baseline: Literal["none", "mean", "greedy"] = "mean"
    beam_width: int = 1

    def __post_init__(self) -> None:
        counts = ("units", "embedding_dim", "reward_at", "beam_width")
        check_range(self, "model", *counts, "input_units", "hidden_units", at_least=1)
        check_range(self, "model", "initial_scale", above=0)
        check_range(self, "model", "dropout", at_least=0, below=1)
        require(
            self.scorer != "sequential" or self.loss not in (*LISTWISE, "sigmoid"),
            "model.loss",
            f"{self.loss} takes one score a candidate: set model.scorer to one_step or mlp",
        )
        require(
            self.beam_width == 1 or self.scorer == "sequential",
            "model.beam_width",
            "goes with model.scorer sequential: one score a candidate needs no search",
        )
        require(
            not self.score_term or self.trajectory == "sample",
            "model.score_term",
            "goes with model.trajectory sample",
        )


@keras.saving.register_keras_serializable(package="tfrz")
class Seq2Slate(ZooModel):
    """Re-ranks the candidates of a list, each choice depending on those before it.

    Formula: `p(pi | x) = prod_j p(pi_j | pi_<j, x)`, computed by an LSTM encoder over the base
    ranker's order and a pointer decoder (see `tfrz.layers.PointerDecoder`). With one step or an
    mlp, all steps have the same scores, and p is the Plackett-Luce distribution.

    Args:
      config: the shape of the network.
      length: candidates of a list, N.
      num_features: numeric features of a candidate.
      categorical: categorical feature of candidates to the number of its ids.
      context: categorical feature of the request to the number of its ids.
      num_context: numeric features of the request.

    Call arguments:
      inputs: a dict: `features_xf` float32 `[batch, N, num_features]`, `mask_xf` `[batch, N]`
        (True, or not 0, for candidates), for each categorical feature `<name>_xf` int64
        `[batch, N]`, for each context `<name>_xf` int64 `[batch]`, and `context_xf` float32
        `[batch, num_context]`. Other keys are ignored.
      training: whether dropout is on.

    Returns:
      The first step's scores, float32 `[batch, N]`, 0 at padding. `rerank` and `beams` build
      slates.

    Raises:
      ConfigError: an argument is out of its range.

    Example:
      >>> model = Seq2Slate(Seq2SlateConfig(units=4), length=3, num_features=2)
      >>> lists = {"features_xf": tf.zeros([1, 3, 2]), "mask_xf": tf.constant([[1, 1, 0]])}
      >>> model(lists).shape, model.rerank(lists).positions.numpy().tolist()
      (TensorShape([1, 3]), [[0, 1, -1]])

    Reference:
      Bello et al., "Seq2Slate: Re-ranking and Slate Optimization with RNNs", 2018 (arXiv
      1810.02019). Verified are the two LSTMs, the pointer's form, the trained first input and that
      two losses per step exist; the rest is recalled or chosen.
    """

    config_class = Seq2SlateConfig
    config: Seq2SlateConfig
    arguments = ("length", "num_features", "categorical", "context", "num_context")

    def __init__(
        self,
        config: Seq2SlateConfig,
        length: int,
        num_features: int,
        categorical: Mapping[str, int] | None = None,
        context: Mapping[str, int] | None = None,
        num_context: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(config, **kwargs)
        require(length >= 1, "length", "must be at least 1")
        require(num_features >= 0, "num_features", "must not be negative")
        require(num_context >= 0, "num_context", "must not be negative")
        for name, rows in {**(categorical or {}), **(context or {})}.items():
            require(rows >= 1, name, "must have at least one id")
        self.length, self.num_features = length, num_features
        self.categorical, self.context = dict(categorical or {}), dict(context or {})
        self.num_context = num_context
        policy, scale = self.policy, config.initial_scale

        def start(seed: int | None = None) -> Any:
            return keras.initializers.RandomUniform(-scale, scale, seed=seed)

        self.tables = {
            name: self.table(f"table_{name}", rows, config.embedding_dim, initializer=start())
            for name, rows in {**self.categorical, **self.context}.items()
        }
        self.dropout = SeededDropout(config.dropout, name="dropout", dtype=policy)
        pointer = config.scorer != "mlp"
        widths = config.input_units if pointer else config.hidden_units
        self.dense_layers = [
            keras.layers.Dense(units, activation="relu", name=f"dense_{i}", dtype=policy)
            for i, units in enumerate(widths)
        ]
        if pointer:
            self.encoder = ListEncoder(config.units, start(), name="encoder", dtype=policy)
            self.decoder = PointerDecoder(config.units, start(), name="decoder", dtype=policy)
        else:
            self.output_layer = keras.layers.Dense(1, name="output_score", dtype=policy)
        self._build_parts()

    def _build_parts(self) -> None:
        """Creates all variables, so that the order of first calls does not change them."""
        for table in self.tables.values():
            table.build((None,))
        width = self.num_features + self.num_context
        width += self.config.embedding_dim * len(self.tables)
        width += self.length if self.config.position else 0
        require(width >= 1, "features", "there is none: give candidates features or a position")
        self.dropout.build((None, None, width))
        width = build_stack(self.dense_layers, width)
        if self.config.scorer == "mlp":
            self.output_layer.build((None, None, width))
        else:
            self.encoder.build((None, self.length, width))
            self.decoder.build((None, self.length, width))
        self.draws = self.add_weight(
            name="draws", shape=(), dtype="int32", initializer="zeros", trainable=False
        )
        self.built = True

    def next_seed(self, seed: int = 0) -> tf.Tensor:
        """The seed of the next batch of samples, int32 `[2]`: a function of (seed, calls so far).

        The counter is a weight, so that a resumed run makes the same draws as one without a break.
        """
        draw = tf.convert_to_tensor(self.draws)
        self.draws.assign(draw + 1)
        # The steps of a slate increment the second number.
        return tf.stack([draw, tf.constant(seed * self.length, tf.int32)])

    def embed(
        self, inputs: Mapping[str, tf.Tensor], training: bool = False
    ) -> dict[str, tf.Tensor]:
        """Looks up `x` `[batch, N, dim]` and boolean `valid` `[batch, N]`."""
        del training
        numeric = tf.cast(inputs["features_xf"], self.compute_dtype)
        valid = tf.cast(inputs["mask_xf"], tf.bool)
        parts = [numeric]
        for name in self.categorical:
            parts.append(tf.cast(self.tables[name](inputs[f"{name}_xf"]), self.compute_dtype))
        shared = [
            tf.cast(self.tables[name](inputs[f"{name}_xf"]), self.compute_dtype)
            for name in self.context
        ]
        if self.num_context:
            shared.append(tf.cast(inputs["context_xf"], self.compute_dtype))
        for values in shared:
            parts.append(tf.repeat(values[:, None, :], self.length, axis=1))
        if self.config.position:
            places = tf.eye(self.length, dtype=self.compute_dtype)[None]
            parts.append(tf.repeat(places, tf.shape(numeric)[0], axis=0))
        x = tf.concat(parts, axis=-1)
        x = tf.where(valid[..., None], x, tf.zeros_like(x))
        return {"x": x, "valid": tf.ensure_shape(valid, [None, self.length])}

    def _projected(self, embedded: Mapping[str, tf.Tensor], training: bool) -> tf.Tensor:
        x = self.dropout(embedded["x"], training=training)
        for layer in self.dense_layers:
            x = layer(x)
        return tf.ensure_shape(x, [None, self.length, x.shape[-1]])

    def interact(self, embedded: Mapping[str, tf.Tensor], training: bool = False) -> tf.Tensor:
        """The first step's scores `[batch, N]`, 0 at padding."""
        x, valid = self._projected(embedded, training), embedded["valid"]
        if self.config.scorer == "mlp":
            scores = tf.cast(self.output_layer(x)[..., 0], tf.float32)
        else:
            scores = self.decoder.first_scores(x, *self.encoder.encode(x, valid))
        return tf.where(valid, scores, tf.zeros_like(scores))

    def slate(
        self,
        embedded: Mapping[str, tf.Tensor],
        method: str = "greedy",
        size: int | None = None,
        positions: tf.Tensor | None = None,
        seed: tf.Tensor | None = None,
        constraints: SlateConstraints | None = None,
        training: bool = False,
    ) -> Slate:
        """A slate from the result of `embed`; see `tfrz.layers.pointer.roll` for the arguments."""
        if self.config.scorer == "sequential":
            x, valid = self._projected(embedded, training), embedded["valid"]
            encoded = self.encoder.encode(x, valid)
            return self.decoder.decode(
                x, *encoded, valid, size, method, positions, seed, constraints
            )
        scores, valid = self.interact(embedded, training), embedded["valid"]
        if constraints is not None:
            return roll(
                lambda state, _: (state, scores),
                [],
                valid,
                size,
                method,
                positions,
                seed,
                constraints,
                scores.dtype,
            )
        if method == "forced":
            assert positions is not None
            positions = positions[:, :size]
        else:
            weighed = scores
            if method == "sample":
                # Sorting by perturbed scores draws from the Plackett-Luce distribution.
                weighed = scores + gumbel(tf.shape(scores), seed, scores.dtype)
            positions = rank(weighed, valid, size)
        available = availability(positions, valid)
        logs = step_log_probabilities(scores[:, None, :], available, positions)
        every = tf.broadcast_to(scores[:, None, :], tf.shape(available))
        return Slate(positions, every, available, logs)

    def rerank(self, inputs: Mapping[str, tf.Tensor], **arguments: Any) -> Slate:
        """A slate for each list of `inputs`, with the arguments of `slate`."""
        return self.slate(self.embed(inputs), **arguments)

    def beams(
        self,
        inputs: Mapping[str, tf.Tensor],
        width: int = 4,
        size: int | None = None,
        constraints: SlateConstraints | None = None,
    ) -> Beams:
        """The most probable slates that a beam search finds."""
        return self._beams(self.embed(inputs), width, size, constraints)

    def _beams(
        self,
        embedded: Mapping[str, tf.Tensor],
        width: int,
        size: int | None = None,
        constraints: SlateConstraints | None = None,
    ) -> Beams:
        if self.config.scorer == "sequential":
            x, valid = self._projected(embedded, False), embedded["valid"]
            encoded = self.encoder.encode(x, valid)
            return self.decoder.beams(x, *encoded, valid, width, size, constraints)
        scores = tf.repeat(self.interact(embedded), width, axis=0)
        valid = embedded["valid"]
        return beam_search(lambda state, _: (state, scores), [], valid, width, size, constraints)

    def best(
        self, inputs: Mapping[str, tf.Tensor], constraints: SlateConstraints | None = None
    ) -> Slate:
        """The slate to show: the more probable one of the greedy slate and the best beam."""
        embedded = self.embed(inputs)
        greedy = self.slate(embedded, constraints=constraints)
        width = self.config.beam_width
        if width == 1:
            return greedy
        found = self._beams(embedded, width, constraints=constraints)
        total = tf.reduce_sum(greedy.log_probabilities, axis=1)
        better = found.log_probability[:, 0] > tf.cast(total, tf.float32)
        chosen = tf.where(better[:, None], found.positions[:, 0], greedy.positions)
        return self.slate(embedded, "forced", positions=chosen, constraints=constraints)

    def compute_output_shape(self, input_shape: Any) -> tuple[int | None, ...]:
        """`[batch, N]`."""
        return (next(iter(input_shape.values()))[0], self.length)
