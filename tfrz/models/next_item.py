"""Models of histories: what they all share, and what those share that predict every next item."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import keras
import tensorflow as tf

from tfrz.config import check_range, require
from tfrz.data.spec import UserEmbedding
from tfrz.layers.dropout import SeededDropout
from tfrz.layers.history import LongHistoryAdapter
from tfrz.losses.retrieval import NegativeSampler
from tfrz.models.base import ZooModel, build_stack
from tfrz.models.user_embedding import read_user_embedding


class HistoryModel(ZooModel):
    """A model that scores a vocabulary of items after a history.

    Args:
      config: an instance of `config_class`.
      num_items: V, the size of the vocabulary.
      item_rows: rows of the item tables: padding, vocabulary, out-of-vocabulary buckets.
      length: events of a history.
      context: categorical context to the number of its ids.
      numeric: names of numeric contexts.
      padding: the side on which histories are padded, `right` or `left`.
      long_history: the embedding of the user that comes with an example; None for none.
      adapter: how it is read, linear or gate (see `tfrz.layers.LongHistoryAdapter`).

    Raises:
      ConfigError: an argument is out of its range.
    """

    arguments: ClassVar[tuple[str, ...]] = (
        "num_items",
        "item_rows",
        "length",
        "context",
        "numeric",
        "padding",
        "long_history",
        "adapter",
    )

    def __init__(
        self,
        config: Any,
        num_items: int,
        item_rows: int,
        length: int,
        context: Mapping[str, int] | None = None,
        numeric: Sequence[str] = (),
        padding: str = "right",
        long_history: UserEmbedding | None = None,
        adapter: Literal["linear", "gate"] = "linear",
        **kwargs: Any,
    ) -> None:
        super().__init__(config, **kwargs)
        require(num_items >= 1, "num_items", "must be at least 1")
        require(item_rows > num_items, "item_rows", "must be above num_items")
        require(padding in ("right", "left"), "padding", "must be right or left")
        self.num_items, self.item_rows = num_items, item_rows
        self.length, self.padding = length, padding
        self.context, self.numeric = dict(context or {}), tuple(numeric)
        self.long_history, self.adapter = long_history, adapter

    def make_adapter(self, units: int) -> LongHistoryAdapter | None:
        """The layer that reads the long history, with its variables, if there is one to read."""
        if self.long_history is None:
            return None
        layer = LongHistoryAdapter(units, self.adapter, name="long_history", dtype=self.policy)
        layer.build((None, self.long_history.num_vectors, self.long_history.dim), (None,))
        return layer

    def embed_long_history(self, inputs: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """The user's vectors and whether they are missing; nothing without a long history."""
        if self.long_history is None:
            return {}
        vectors, missing = read_user_embedding(inputs, self.long_history)
        return {"long_history": vectors, "no_long_history": missing}

    def context_parts(
        self,
        inputs: Mapping[str, tf.Tensor],
        prefix: str,
        tables: Mapping[str, keras.layers.Embedding],
        numbers: keras.layers.Dense | None,
    ) -> list[tf.Tensor]:
        """The vectors of a context's parts.

        Args:
          inputs: as of a call.
          prefix: `history_` for the contexts of the events, empty for that of the request.
          tables: categorical contexts to their embeddings.
          numbers: the layer that reads all numeric contexts; None for none.

        Returns:
          Tensors `[batch, time, dim]` of the events, or `[batch, dim]` of the request.
        """
        parts = [table(inputs[f"{prefix}{name}_xf"]) for name, table in tables.items()]
        if numbers is not None:
            columns = [tf.cast(inputs[f"{prefix}{name}_xf"], tf.float32) for name in self.numeric]
            parts.append(numbers(tf.stack(columns, axis=-1)))
        return parts

    def compute_output_shape(
        self, input_shape: Mapping[str, tuple[int | None, ...]]
    ) -> tuple[int | None, ...]:
        """`[batch, V]`."""
        return (next(iter(input_shape.values()))[0], self.num_items)


@dataclasses.dataclass(frozen=True)
class NextItemConfig:
    """What the configurations of all next-item models contain.

    Attributes:
      item_dim: width of the item embeddings.
      input_units: widths of F_in's ReLU layers; none leaves it out.
      encoder_dim: width of the encoder's output.
      output_units: widths of F_out's ReLU layers; none leaves it out, and the request's context
        with it.
      linear_output: no ReLU on F_out's last layer.
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
      steps: learn to predict every event of a history, or only the last.
      cold_start: learn to predict a history's first event from context and popularity, which is
        how an empty history is answered.
    """

    item_dim: int = 64
    input_units: tuple[int, ...] = (64,)
    encoder_dim: int = 64
    output_units: tuple[int, ...] = (64,)
    linear_output: bool = False
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
        counts = ("item_dim", "encoder_dim", "num_sampled", "input_units", "output_units")
        check_range(self, "model", *counts, "context_dim", at_least=1)
        check_range(self, "model", "dropout", at_least=0, below=1)
        check_range(self, "model", "embedding_scale", above=0)
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
        """Width of the vector that items are scored with."""
        return self.output_units[-1] if self.output_units else self.encoder_dim


class NextItemModel(HistoryModel):
    """A model that represents every request of a history by a vector and scores all items with it.

    Request r is the one that event r answered, and request 0 has no history. With x_t the items,
    `c_in_t` the context of event t and `c_out_r` the context of request r:

        z_t = F_in(e(x_t) (+) c_in_t)
        h_r = F_out(encode_events(z)_{r-1} (+) c_out_r)
        logit_r(i) = <h_r, Q_i> + b_i

    Before the first event the encoding is zero. Where the examples carry an embedding of the user's
    long history, the adapter's output is added to h_r; requests before the embedding was generated
    get the adapter's output for a missing embedding.

    A subclass brings the encoder: it implements `make_encoder`, `build_encoder` and
    `encode_events`, and its configuration class extends `NextItemConfig`.

    Args:
      config: an instance of `config_class`.
      num_items: V, the size of the vocabulary.
      item_rows: rows of the item tables: padding, vocabulary, out-of-vocabulary buckets.
      length: events of a history.
      context: categorical context to the number of its ids.
      numeric: names of numeric contexts.
      padding: the side on which histories are padded, `right` or `left`.
      long_history: the embedding of the user that comes with an example; None for none.
      adapter: how it is read, linear or gate (see `tfrz.layers.LongHistoryAdapter`).

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
    """

    config: NextItemConfig

    def __init__(
        self,
        config: Any,
        num_items: int,
        item_rows: int,
        length: int,
        context: Mapping[str, int] | None = None,
        numeric: Sequence[str] = (),
        padding: str = "right",
        **kwargs: Any,
    ) -> None:
        super().__init__(config, num_items, item_rows, length, context, numeric, padding, **kwargs)
        self.items = self.table("items", item_rows, config.item_dim)
        # Scores are sums over the width: they stay in float32.
        self.output_items = (
            self.items
            if config.tie_embeddings
            else self.table("output_items", item_rows, config.output_dim, "float32")
        )
        self.output_bias = self.table("output_bias", item_rows, 1, "float32", "zeros")
        self.context_tables = {
            name: self.table(f"context_{name}", rows, config.context_dim)
            for name, rows in self.context.items()
            if config.context_dim is not None
        }
        self.dropout = SeededDropout(config.dropout, name="dropout", dtype=self.policy)
        self.input_layers = self._dense("input", config.input_units)
        self.output_layers = self._dense("output", config.output_units, config.linear_output)
        self.make_encoder()
        self.long_history_adapter = self.make_adapter(config.output_dim)
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

    def make_encoder(self) -> None:
        """Creates the encoder's layers, without their variables, in attributes of the model."""

    def build_encoder(self, width: int) -> None:
        """Creates the variables of the encoder's layers.

        Args:
          width: the last dimension of `encode_events`' argument `z`.
        """

    def encode_events(
        self, z: tf.Tensor, embedded: Mapping[str, tf.Tensor], training: bool = False
    ) -> tf.Tensor:
        """Encodes every event from itself and the events before it.

        Args:
          z: F_in's output `[batch, time, width]`.
          embedded: the result of `embed`.
          training: whether the model is being trained.

        Returns:
          `[batch, time, encoder_dim]`. What stands at padding is not read.
        """
        raise NotImplementedError

    def _dense(
        self, name: str, widths: Sequence[int], linear: bool = False
    ) -> list[keras.layers.Dense]:
        last = len(widths) - 1
        return [
            keras.layers.Dense(
                units,
                activation=None if linear and i == last else "relu",
                name=f"{name}_{i}",
                dtype=self.policy,
            )
            for i, units in enumerate(widths)
        ]

    @property
    def context_width(self) -> int:
        """Width of one context, all its parts together."""
        each = [self.config.context_dim or rows for rows in self.context.values()]
        return sum(each) + len(self.numeric)

    def _build_parts(self) -> None:
        config, context = self.config, self.context_width
        tables = {self.items.name: self.items, self.output_items.name: self.output_items}
        for table in (*tables.values(), self.output_bias, *self.context_tables.values()):
            table.build((None,))
        self.dropout.build((None, None, config.item_dim))
        width = config.item_dim + (context if config.context_in_input else 0)
        self.build_encoder(build_stack(self.input_layers, width))
        width = config.encoder_dim + (context if config.context_in_output else 0)
        build_stack(self.output_layers, width)
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
        """Where the served request is in the sequence of requests 0..time, `[batch]`."""
        steps = tf.shape(history)[1]
        if self.padding == "left":
            return tf.fill(tf.shape(history)[:1], steps)
        return tf.reduce_sum(tf.cast(tf.not_equal(history, 0), tf.int32), axis=1)

    def with_request(self, past: tf.Tensor, request: tf.Tensor, place: tf.Tensor) -> tf.Tensor:
        """Values of events `[batch, time, ...]` followed by the request's `[batch, ...]`.

        Returns:
          `[batch, time + 1, ...]`, with the value of request r at position r.
        """
        longer = tf.concat([past, tf.zeros_like(past[:, :1])], axis=1)
        here = tf.equal(tf.range(tf.shape(longer)[1])[None, :], place[:, None])
        here = tf.reshape(here, tf.concat([tf.shape(here), tf.ones_like(tf.shape(past)[2:])], 0))
        return tf.where(here, request[:, None], longer)

    def embed(
        self, inputs: Mapping[str, tf.Tensor], training: bool = False
    ) -> dict[str, tf.Tensor]:
        """Looks up `items`, `real`, `place`, the contexts and the long history.

        Returns:
          `items` `[batch, time, item_dim]`; `real` bool `[batch, time]`; `place` int32 `[batch]`,
          the served request's; with contexts `event_context` `[batch, time, context]` and
          `request_context` `[batch, time + 1, context]`; with a long history the user's vectors.
        """
        del training
        history = tf.convert_to_tensor(inputs["history_xf"])
        place = self.request_place(history)
        embedded = {
            "items": tf.cast(self.items(history), self.compute_dtype),
            "real": tf.not_equal(history, 0),
            "place": place,
        }
        past, request = self._context(inputs, "history_"), self._context(inputs, "")
        if past is not None and request is not None:
            embedded["event_context"] = past
            embedded["request_context"] = self.with_request(past, request, place)
        embedded |= self.embed_long_history(inputs)
        if self.long_history is not None and "long_history_usable_xf" in inputs:
            usable = tf.cast(inputs["long_history_usable_xf"], tf.bool)
            served = tf.ones_like(usable[:, 0])
            embedded["long_history_usable"] = self.with_request(usable, served, place)
        return embedded

    def event_inputs(self, embedded: Mapping[str, tf.Tensor], training: bool = False) -> tf.Tensor:
        """F_in of every event and its context, z `[batch, time, width]`."""
        parts = [self.dropout(embedded["items"], training=training)]
        if self.config.context_in_input and "event_context" in embedded:
            parts.append(embedded["event_context"])
        z = tf.concat(parts, axis=-1)
        for layer in self.input_layers:
            z = layer(z)
        return z

    @staticmethod
    def _user(adapter: LongHistoryAdapter, embedded: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """The adapter's output for every request, `[batch, time + 1 or 1, output_dim]`."""
        vectors, missing = embedded["long_history"], embedded["no_long_history"]
        user = adapter(vectors, missing)[:, None]
        if "long_history_usable" not in embedded:
            return user
        nobody = adapter(vectors, tf.ones_like(missing))[:, None]
        return tf.where(embedded["long_history_usable"][..., None], user, nobody)

    def encode(self, embedded: Mapping[str, tf.Tensor], training: bool = False) -> tf.Tensor:
        """H of every request, `[batch, time + 1, output_dim]`, float32."""
        encoded = self.encode_events(self.event_inputs(embedded, training), embedded, training)
        h = tf.pad(encoded, [[0, 0], [1, 0], [0, 0]])
        request = embedded.get("request_context")
        if request is not None and self.config.context_in_output and self.output_layers:
            h = tf.concat([h, tf.cast(request, h.dtype)], axis=-1)
        for layer in self.output_layers:
            h = layer(h)
        h = tf.cast(h, tf.float32)
        if self.long_history_adapter is not None:
            h += tf.cast(self._user(self.long_history_adapter, embedded), tf.float32)
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
