"""M3: encoders of tiny, short and long range, mixed by a gate that the context drives."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import keras
import tensorflow as tf

from tfrz.config import require
from tfrz.layers.baseline_encoders import CaserEncoder, SelfAttentiveEncoder
from tfrz.layers.dropout import SeededDropout
from tfrz.layers.temporal import MultiTemporalRangeMixture
from tfrz.losses.retrieval import NegativeSampler
from tfrz.models.long_history import read_long_history
from tfrz.models.sequence import SequenceModel


@dataclasses.dataclass(frozen=True)
class M3Config:
    """The shape of an M3, and how it is trained.

    The paper's text was not at hand when this was written: sizes, the cell, the kernel size and
    the loss are choices, each a switch here.

    Attributes:
      encoder: mixture (M3), or a published model to compare with: caser or sasrec.
      ranges: encoders of the mixture, of tiny, short and long.
      short_range: gru or lstm (M3R), or convolution (M3C).
      gate: contextual (context of event and request), bottom (projected inputs) or fixed (ones).
      gate_activation: sigmoid (independent gates) or softmax.
      item_dim: width of the item embeddings.
      input_units: widths of F_in's ReLU layers; none leaves it out.
      encoder_dim: width of the encoders' outputs.
      output_units: widths of F_out's ReLU layers; none leaves it out, and the request's context
        with it.
      linear_output: no ReLU on F_out's last layer.
      identity: the tiny encoder is its input.
      learn_values: learn the long encoder's W_V also where it can be the identity.
      kernel_size: of the convolution.
      dilations: of the convolutions, one behind the other.
      context_dim: width of the embedding of each categorical context; null for one-hot.
      context_in_input: F_in reads the event's context.
      context_in_output: F_out reads the request's context.
      tie_embeddings: score with the table of item embeddings instead of one of its own.
      dropout: share of the item embeddings' values dropped in training.
      embedding_scale: standard deviation of the initial embeddings.
      loss: softmax over all items, or over sampled negatives.
      num_sampled: negatives of a batch.
      sampling: uniform, or log_uniform over the rank of popularity.
      correction: log_q, or partition (see `tfrz.losses.NegativeSampler`).
      steps: learn to predict every event of a history, or the last alone.
      cold_start: learn to predict a history's first event from context and popularity; that is
        what an empty history is answered with.
    """

    encoder: Literal["mixture", "caser", "sasrec"] = "mixture"
    ranges: tuple[Literal["tiny", "short", "long"], ...] = ("tiny", "short", "long")
    short_range: Literal["gru", "lstm", "convolution"] = "gru"
    gate: Literal["contextual", "bottom", "fixed"] = "contextual"
    gate_activation: Literal["sigmoid", "softmax"] = "sigmoid"
    item_dim: int = 64
    input_units: tuple[int, ...] = (64,)
    encoder_dim: int = 64
    output_units: tuple[int, ...] = (64,)
    linear_output: bool = False
    identity: bool = False
    learn_values: bool = False
    kernel_size: int = 5
    dilations: tuple[int, ...] = (1,)
    context_dim: int | None = 8
    context_in_input: bool = True
    context_in_output: bool = True
    tie_embeddings: bool = False
    dropout: float = 0.1
    embedding_scale: float = 0.05
    loss: Literal["softmax", "sampled_softmax"] = "sampled_softmax"
    num_sampled: int = 512
    sampling: Literal["uniform", "log_uniform"] = "log_uniform"
    correction: Literal["log_q", "partition"] = "log_q"
    steps: Literal["all", "last"] = "all"
    cold_start: bool = True

    def __post_init__(self) -> None:
        known = bool(self.ranges) and len(set(self.ranges)) == len(self.ranges)
        require(known, "model.ranges", "must be at least one of tiny, short and long, each once")
        for name in ("item_dim", "encoder_dim", "kernel_size", "num_sampled"):
            require(getattr(self, name) >= 1, f"model.{name}", "must be at least 1")
        for name in ("input_units", "output_units", "dilations"):
            require(all(u >= 1 for u in getattr(self, name)), f"model.{name}", "must be positive")
        require(bool(self.dilations), "model.dilations", "needs at least one")
        require(
            self.context_dim is None or self.context_dim >= 1,
            "model.context_dim",
            "must be at least 1, or null for one-hot",
        )
        require(0 <= self.dropout < 1, "model.dropout", "must be at least 0, under 1")
        require(self.embedding_scale > 0, "model.embedding_scale", "must be above 0")
        require(
            not self.tie_embeddings or self.output_dim == self.item_dim,
            "model.tie_embeddings",
            f"needs an output as wide as the item embeddings, {self.item_dim}",
        )
        require(
            self.correction == "log_q" or self.sampling == "uniform",
            "model.correction",
            "partition goes with model.sampling uniform",
        )

    @property
    def output_dim(self) -> int:
        """Width of the representation that items are scored with."""
        return self.output_units[-1] if self.output_units else self.encoder_dim


@keras.saving.register_keras_serializable(package="tfrz")
class M3(SequenceModel):
    """Multi-temporal-range mixture model of next items.

    Formula, at event t of a history, with `c_in` its context and `c_out` that of the request
    which event t + 1 answers:

        z_t   = F_in(e(x_t) (+) c_in_t)
        mix_t = sum_k G_t^k SE_t^k          k over tiny, short and long range
        h_t   = F_out(mix_t (+) c_out_t)
        logit_t(i) = <h_t, Q_i> + b_i

    Before the first event the mixture is zero: what is left is context and popularity. Where the
    examples carry an embedding of the user's long history, what an adapter reads of it is added to
    h_t; for requests before the embedding was generated, what it reads where there is none.

    Args:
      config: the shape of the network.
      num_items: V, the size of the vocabulary.
      item_rows: rows of the item tables: padding, vocabulary, out-of-vocabulary buckets.
      length: events of a history.
      context: categorical context to the number of its ids.
      numeric: names of numeric contexts.
      padding: the side on which histories are padded, `right` or `left`.
      **kwargs: `long_history` and `adapter` as of `SequenceModel`, and Keras' own.

    Call arguments:
      inputs: a dict: `history_xf` int64 `[batch, time]` (0 where padded), and for each context
        `history_<name>_xf` `[batch, time]` and `<name>_xf` `[batch]`; with a long history
        `long_history_xf` and `long_history_version_xf`, string `[batch]`, and
        `long_history_usable_xf` `[batch, time]` where some events are older than the embedding.
        Other keys are ignored.
      training: whether dropout is on.

    Returns:
      Logits of the items 1..V for the request after the history, float32 `[batch, V]`.

    Raises:
      ConfigError: an argument is out of its range.

    Example:
      >>> model = M3(M3Config(), num_items=10, item_rows=12, length=5)
      >>> model({"history_xf": tf.constant([[3, 1, 0, 0, 0], [0, 0, 0, 0, 0]])}).shape
      TensorShape([2, 10])

    Reference:
      Tang et al., "Towards Neural Mixture Recommender for Long Range Dependent User Sequences",
      WWW 2019 (arXiv 1902.08588). Verified are the mixture of temporal ranges and the learned
      gate driven by context; the equations are recalled.
    """

    config_class = M3Config

    def __init__(
        self,
        config: M3Config,
        num_items: int,
        item_rows: int,
        length: int,
        context: Mapping[str, int] | None = None,
        numeric: Sequence[str] = (),
        padding: str = "right",
        **kwargs: Any,
    ) -> None:
        super().__init__(config, num_items, item_rows, length, context, numeric, padding, **kwargs)
        policy = self._policy()

        def table(name: str, rows: int, dim: int, dtype: Any = policy, start: Any = None) -> Any:
            start = start or keras.initializers.RandomNormal(stddev=config.embedding_scale)
            return keras.layers.Embedding(
                rows, dim, embeddings_initializer=start, name=name, dtype=dtype
            )

        self.items = table("items", item_rows, config.item_dim)
        # Scores are sums over the width: they stay in float32.
        self.output_items = (
            self.items
            if config.tie_embeddings
            else table("output_items", item_rows, config.output_dim, "float32")
        )
        self.output_bias = table("output_bias", item_rows, 1, "float32", start="zeros")
        self.context_tables = {
            name: table(f"context_{name}", rows, config.context_dim)
            for name, rows in self.context.items()
            if config.context_dim is not None
        }
        self.dropout = SeededDropout(config.dropout, name="dropout", dtype=policy)
        self.input_layers = self._dense("input", config.input_units, False, policy)
        self.output_layers = self._dense(
            "output", config.output_units, config.linear_output, policy
        )
        self.mixture = self._encoder(policy)
        self.long_history_adapter = self._long_history_adapter(config.output_dim)
        self.sampler = (
            NegativeSampler(
                num_items,
                config.num_sampled,
                config.sampling,
                config.correction,
                name="sampler",
                dtype="float32",
            )
            if config.loss == "sampled_softmax"
            else None
        )
        self._build_parts()

    @staticmethod
    def _dense(name: str, widths: Sequence[int], linear: bool, policy: Any) -> list[Any]:
        last = len(widths) - 1
        return [
            keras.layers.Dense(
                units,
                activation=None if linear and i == last else "relu",
                name=f"{name}_{i}",
                dtype=policy,
            )
            for i, units in enumerate(widths)
        ]

    def _encoder(self, policy: Any) -> Any:
        config = self.config
        if config.encoder == "caser":
            return CaserEncoder(config.encoder_dim, dtype=policy, name="encoder")
        if config.encoder == "sasrec":
            return SelfAttentiveEncoder(
                config.encoder_dim, self.length, dtype=policy, name="encoder"
            )
        return MultiTemporalRangeMixture(
            config.encoder_dim,
            ranges=config.ranges,
            short_range=config.short_range,
            gate="fixed" if config.gate == "fixed" else config.gate_activation,
            identity=config.identity,
            learn_values=config.learn_values,
            kernel_size=config.kernel_size,
            dilations=config.dilations,
            dtype=policy,
            name="mixture",
        )

    @property
    def context_width(self) -> int:
        """Width of one context, all its parts together."""
        each = [self.config.context_dim or rows for rows in self.context.values()]
        return sum(each) + len(self.numeric)

    def _build_parts(self) -> None:
        """Makes all variables now, so that the order of first calls cannot change them."""
        config, context = self.config, self.context_width
        tables = {self.items.name: self.items, self.output_items.name: self.output_items}
        for table in (*tables.values(), self.output_bias, *self.context_tables.values()):
            table.build((None,))
        self.dropout.build((None, None, config.item_dim))
        width = config.item_dim + (context if config.context_in_input else 0)
        for layer in self.input_layers:
            layer.build((None, None, width))
            width = layer.units
        if config.encoder != "mixture":
            self.mixture.build((None, None, width))
        elif config.gate == "bottom":
            self.mixture.build((None, None, width), (None, None, width))
        else:
            # Without any context the contextual gate is a learned constant.
            self.mixture.build((None, None, width), (None, None, max(2 * context, 1)))
        width = config.encoder_dim + (context if config.context_in_output else 0)
        for layer in self.output_layers:
            layer.build((None, None, width))
            width = layer.units
        self.built = True

    def _context(self, inputs: Mapping[str, tf.Tensor], prefix: str) -> tf.Tensor | None:
        """`[batch, time, context]` of the events, or `[batch, context]` of the request."""
        parts = []
        for name, rows in self.context.items():
            ids = tf.convert_to_tensor(inputs[f"{prefix}{name}_xf"])
            if self.config.context_dim is None:
                parts.append(tf.one_hot(ids, rows, dtype=self.compute_dtype))
            else:
                parts.append(self.context_tables[name](ids))
        parts += [inputs[f"{prefix}{name}_xf"][..., None] for name in self.numeric]
        if not parts:
            return None
        return tf.concat([tf.cast(part, self.compute_dtype) for part in parts], axis=-1)

    def request_place(self, history: tf.Tensor) -> tf.Tensor:
        """Where the served request is in the sequence of requests 0..time, `[batch]`.

        Request r is the one that event r answered; request 0 has no history.
        """
        steps = tf.shape(history)[1]
        if self.padding == "left":
            return tf.fill(tf.shape(history)[:1], steps)
        return tf.reduce_sum(tf.cast(tf.not_equal(history, 0), tf.int32), axis=1)

    def with_request(self, past: tf.Tensor, request: tf.Tensor, place: tf.Tensor) -> tf.Tensor:
        """Values of events `[batch, time, ...]` followed by the request's `[batch, ...]`.

        Returns:
          `[batch, time + 1, ...]`: at r what belongs to request r.
        """
        longer = tf.concat([past, tf.zeros_like(past[:, :1])], axis=1)
        here = tf.equal(tf.range(tf.shape(longer)[1])[None, :], place[:, None])
        here = tf.reshape(here, tf.concat([tf.shape(here), tf.ones_like(tf.shape(past)[2:])], 0))
        return tf.where(here, request[:, None], longer)

    def embed(
        self, inputs: Mapping[str, tf.Tensor], training: bool = False
    ) -> dict[str, tf.Tensor]:
        """What is looked up: `items`, `real`, `place`, contexts, and the long history."""
        del training
        history = tf.convert_to_tensor(inputs["history_xf"])
        place = self.request_place(history)
        embedded = {
            "items": tf.cast(self.items(history), self.compute_dtype),
            "real": tf.not_equal(history, 0),
            "place": place,
        }
        past = self._context(inputs, "history_")
        if past is not None:
            request = self._context(inputs, "")
            assert request is not None
            embedded["event_context"] = past
            embedded["request_context"] = self.with_request(past, request, place)
        if self.long_history is not None:
            vectors, missing = read_long_history(inputs, self.long_history)
            embedded["long_history"], embedded["no_long_history"] = vectors, missing
            if "long_history_usable_xf" in inputs:
                usable = tf.cast(inputs["long_history_usable_xf"], tf.bool)
                served = tf.ones_like(usable[:, 0])
                embedded["long_history_usable"] = self.with_request(usable, served, place)
        return embedded

    def _user(self, embedded: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """What the adapter reads for every request, `[batch, time + 1 or 1, output_dim]`."""
        assert self.long_history_adapter is not None
        vectors, missing = embedded["long_history"], embedded["no_long_history"]
        user = self.long_history_adapter(vectors, missing)[:, None]
        usable = embedded.get("long_history_usable")
        if usable is None:
            return user
        nobody = self.long_history_adapter(vectors, tf.ones_like(missing))[:, None]
        return tf.where(usable[..., None], user, nobody)

    def _mixed(
        self, embedded: Mapping[str, tf.Tensor], training: bool
    ) -> tuple[tf.Tensor, tf.Tensor | None, tf.Tensor | None]:
        """z, what decides the gates (None for z itself), and the mask if one is needed."""
        parts = [self.dropout(embedded["items"], training=training)]
        event, request = embedded.get("event_context"), embedded.get("request_context")
        if event is not None and self.config.context_in_input:
            parts.append(event)
        z = tf.concat(parts, axis=-1)
        for layer in self.input_layers:
            z = layer(z)
        u = None
        if self.config.gate != "bottom":
            if event is None or request is None:
                u = tf.zeros_like(z[..., :1])
            else:
                u = tf.concat([event, request[:, 1:]], axis=-1)
        # Padding on the right comes after every real event, and all encoders are causal.
        return z, u, embedded["real"] if self.padding == "left" else None

    def gates(self, inputs: Mapping[str, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
        """How the mixture weighs its encoders at every event.

        Returns:
          The gates `[batch, time, ranges]`, and the norms of `G^k SE^k` in the same shape: gates
          of encoders whose outputs differ in scale are not comparable by themselves.
        """
        require(self.config.encoder == "mixture", "model.encoder", "has no gates")
        z, u, mask = self._mixed(self.embed(inputs), training=False)
        gates = self.mixture.gates(z, u)
        parts = tf.stack(self.mixture.encodings(z, mask), axis=2)
        return gates, gates * tf.norm(tf.cast(parts, gates.dtype), axis=-1)

    def encode(self, embedded: Mapping[str, tf.Tensor], training: bool = False) -> tf.Tensor:
        """H of every request, `[batch, time + 1, output_dim]`, float32."""
        z, u, mask = self._mixed(embedded, training)
        if self.config.encoder == "mixture":
            mixed = self.mixture(z, u, mask=mask)
        else:
            mixed = self.mixture(z, mask=mask)
        h = tf.pad(mixed, [[0, 0], [1, 0], [0, 0]])
        request = embedded.get("request_context")
        if request is not None and self.config.context_in_output and self.output_layers:
            h = tf.concat([h, tf.cast(request, h.dtype)], axis=-1)
        for layer in self.output_layers:
            h = layer(h)
        h = tf.cast(h, tf.float32)
        if self.long_history_adapter is not None:
            h += tf.cast(self._user(embedded), tf.float32)
        return h

    def item_vectors(self) -> tuple[tf.Tensor, tf.Tensor]:
        """Q `[V, output_dim]` and b `[V]` of the ids 1..V."""
        end = 1 + self.num_items
        items = tf.convert_to_tensor(self.output_items.embeddings)[1:end]
        bias = tf.convert_to_tensor(self.output_bias.embeddings)[1:end, 0]
        return tf.cast(items, tf.float32), tf.cast(bias, tf.float32)

    def interact(self, embedded: Mapping[str, tf.Tensor], training: bool = False) -> tf.Tensor:
        """Logits `[batch, V]` of the served request."""
        h = tf.gather(self.encode(embedded, training), embedded["place"], batch_dims=1)
        items, bias = self.item_vectors()
        return tf.matmul(h, items, transpose_b=True) + bias

    def call(self, inputs: Mapping[str, tf.Tensor], training: bool = False) -> tf.Tensor:
        """Logits of all items for the request after the history."""
        return self.interact(self.embed(inputs), training=training)
