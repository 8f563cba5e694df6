"""Two-tower retrieval with several vectors a user; the best of them scores an item."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from tfrz.config import check_range, require
from tfrz.layers.dropout import SeededDropout
from tfrz.layers.interests import (
    DeepInterestEncoder,
    ShallowInterestEncoder,
    interest_scores,
)
from tfrz.layers.pooling import mean_of_real
from tfrz.losses.retrieval import NegativeSampler
from tfrz.models.base import build_stack
from tfrz.models.next_item import HistoryModel


@dataclasses.dataclass(frozen=True)
class MultiInterestConfig:
    """The shape of the towers, and how they are trained.

    Attributes:
      user_tower: shallow (unprojected attention), deep (projection and residual self-attention), or
        popularity (a baseline: vectors that all users share, without a history).
      num_interests: H, vectors of a user; 1 is the plain two-tower model.
      dim: width of embeddings and of both towers' outputs.
      num_layers: residual self-attention layers of the deep tower.
      num_heads: attention heads of each.
      positions: whether the deep tower adds sinusoidal positions, counted from the last event.
      dropout: share of the values dropped in training, in the deep tower and the item embeddings.
      item_layers: layers of the item tower's MLP, the last linear; 0 for a plain table.
      item_features: read the features of the catalogue, if the source has one.
      embedding_scale: half the width of the uniform distribution of initial embeddings.
      query_scale: standard deviation of the initial queries.
      normalize: L2-normalise both towers' outputs.
      temperature: tau; scores are divided by it.
      log_q: correct the logits in training for how often a candidate is expected.
      num_negatives: uniform negatives of a batch, in addition to its own targets.
      focal_gamma: weight losses by `(1 - p)^gamma`; 0 for no weights.
      disagreement: weight of the penalty on the cosines of the queries.
    """

    user_tower: Literal["shallow", "deep", "popularity"] = "deep"
    num_interests: int = 4
    dim: int = 32
    num_layers: int = 1
    num_heads: int = 1
    positions: bool = True
    dropout: float = 0.0
    item_layers: int = 0
    item_features: bool = True
    embedding_scale: float = 0.05
    query_scale: float = 1.0
    normalize: bool = False
    temperature: float = 1.0
    log_q: bool = True
    num_negatives: int = 0
    focal_gamma: float = 0.0
    disagreement: float = 0.0

    def __post_init__(self) -> None:
        check_range(self, "model", "num_interests", "dim", "num_heads", at_least=1)
        counts = ("num_layers", "item_layers", "num_negatives")
        check_range(self, "model", *counts, "focal_gamma", "disagreement", at_least=0)
        check_range(self, "model", "embedding_scale", "query_scale", "temperature", above=0)
        check_range(self, "model", "dropout", at_least=0, below=1)
        require(self.dim % self.num_heads == 0, "model.num_heads", "must divide model.dim")


@keras.saving.register_keras_serializable(package="tfrz")
class ItemStatistics(keras.layers.Layer):
    """Statistics and features of the items, as weights that are not trained; it is not called.

    The weights have a row for each id: `counts` (how often the item is a training target),
    `example_weights` (the weight of an example with that target), and a column for each feature of
    the catalogue.

    Args:
      rows: the number of ids.
      features: names to the width of a multivalent feature, or 0 for one value.
      numeric: names of the features that are numbers.
    """

    def __init__(
        self,
        rows: int,
        features: Mapping[str, int] | None = None,
        numeric: Sequence[str] = (),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.rows, self.features, self.numeric = rows, dict(features or {}), tuple(numeric)

        def column(name: str, width: int, dtype: str, start: str) -> Any:
            shape = (rows, width) if width else (rows,)
            return self.add_weight(
                name=name, shape=shape, dtype=dtype, initializer=start, trainable=False
            )

        self.counts = column("counts", 0, "float32", "zeros")
        self.weights_of = column("example_weights", 0, "float32", "ones")
        self.columns = {
            name: column(
                f"feature_{name}", width, "float32" if name in self.numeric else "int64", "zeros"
            )
            for name, width in self.features.items()
        }
        self.built = True

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {
            **super().get_config(),
            "rows": self.rows,
            "features": self.features,
            "numeric": list(self.numeric),
        }


@keras.saving.register_keras_serializable(package="tfrz")
class MultiInterest(HistoryModel):
    """Two towers: several vectors for a user, one for an item.

    Formula, with x the embedded events of a history:

        U      = user_tower(sqrt(d) E_u[history])           H vectors
        v_i    = MLP(sqrt(d) (E_i[i] + sum_f mean F_f[i]))  ELU between layers, the last linear
        S(u,i) = max_h U_h . v_i / tau

    The input table E_u and the item tower's table E_i are separate. If the source has contexts,
    those of an event are added to its vector, and those of the request become one more event at the
    end. A history without events has scores of 0, or those of the request's context. Equal scores
    are ordered like the vocabulary, which is by popularity.

    If the examples carry an embedding of the user's long history, an adapter's output is added to
    every U_h before they are normalised.

    Args:
      config: the shape of the towers.
      num_items: V, the size of the vocabulary.
      item_rows: rows of the item tables: padding, vocabulary, out-of-vocabulary buckets.
      length: events of a history.
      context: categorical context to the number of its ids.
      numeric: names of numeric contexts.
      padding: the side on which histories are padded, `right` or `left`; positions need `left`.
      features: categorical feature of the items to the number of its ids.
      multivalent: the ones of these with several values, to the largest number of values.
      numeric_features: numeric features of the items.
      **kwargs: `long_history` and `adapter` of `HistoryModel`, and Keras's own.

    Call arguments:
      inputs: a dict: `history_xf` int64 `[batch, time]` (0 where padded), and for each context
        `history_<name>_xf` `[batch, time]` and `<name>_xf` `[batch]`; with a long history
        `long_history_xf` and `long_history_version_xf`, string `[batch]`. Other keys are ignored.
      training: whether dropout is on.

    Returns:
      Scores of the items 1..V, float32 `[batch, V]`.

    Raises:
      ConfigError: an argument is out of its range.

    Example:
      >>> model = MultiInterest(MultiInterestConfig(), num_items=10, item_rows=12, length=5)
      >>> model({"history_xf": tf.constant([[0, 0, 0, 3, 1], [0, 0, 0, 0, 0]])}).shape
      TensorShape([2, 10])

    Reference:
      Mehta et al., "Density Weighting for Multi-Interest Personalized Recommendation" (arXiv
      2308.01563). The formulas are those of the authors' code; context and features are ours.
    """

    config_class = MultiInterestConfig
    config: MultiInterestConfig
    arguments = (*HistoryModel.arguments, "features", "multivalent", "numeric_features")

    def __init__(
        self,
        config: MultiInterestConfig,
        num_items: int,
        item_rows: int,
        length: int,
        context: Mapping[str, int] | None = None,
        numeric: Sequence[str] = (),
        padding: str = "left",
        features: Mapping[str, int] | None = None,
        multivalent: Mapping[str, int] | None = None,
        numeric_features: Sequence[str] = (),
        **kwargs: Any,
    ) -> None:
        super().__init__(config, num_items, item_rows, length, context, numeric, padding, **kwargs)
        require(
            padding == "left" or not config.positions or config.user_tower != "deep",
            "model.positions",
            "count from the last event: set data.history.padding to left, or positions to false",
        )
        self.features, self.multivalent = dict(features or {}), dict(multivalent or {})
        self.numeric_features = tuple(numeric_features)
        policy, scale = self.policy, config.embedding_scale

        def table(name: str, rows: int) -> keras.layers.Embedding:
            start = keras.initializers.RandomUniform(-scale, scale)
            return self.table(name, rows, config.dim, initializer=start)

        def dense(name: str, activation: str | None, bias: bool = True) -> Any:
            return keras.layers.Dense(
                config.dim, activation=activation, use_bias=bias, name=name, dtype=policy
            )

        reads = config.user_tower != "popularity"
        self.events = table("events", item_rows) if reads else None
        self.items = table("items", item_rows)
        self.context_tables = {
            name: table(f"context_{name}", rows) for name, rows in self.context.items() if reads
        }
        self.context_numbers = (
            dense("context_numbers", None, False) if self.numeric and reads else None
        )
        self.feature_tables = {
            name: table(f"feature_{name}", rows) for name, rows in self.features.items()
        }
        self.feature_numbers = (
            dense("feature_numbers", None, False) if self.numeric_features else None
        )
        last = config.item_layers - 1
        self.item_mlp = [
            dense(f"item_{i}", None if i == last else "elu") for i in range(config.item_layers)
        ]
        self.dropout = SeededDropout(config.dropout, seed=1000, name="dropout", dtype=policy)
        widths = {name: self.multivalent.get(name, 0) for name in self.features}
        self.statistics = ItemStatistics(
            item_rows,
            widths | dict.fromkeys(self.numeric_features, 0),
            self.numeric_features,
            name="statistics",
            dtype="float32",
        )
        self.sampler = (
            NegativeSampler(
                num_items, config.num_negatives, "uniform", name="sampler", dtype="float32"
            )
            if config.num_negatives
            else None
        )
        self.user_tower = self._tower(policy)
        self.long_history_adapter = self.make_adapter(config.dim)
        self._build_parts()

    def _tower(self, policy: Any) -> Any:
        config = self.config
        queries = keras.initializers.RandomNormal(stddev=config.query_scale)
        shared = {"query_initializer": queries, "dtype": policy, "name": "user_tower"}
        if config.user_tower == "popularity":
            return self.table("user_tower", config.num_interests, config.dim, initializer=queries)
        if config.user_tower == "shallow":
            return ShallowInterestEncoder(config.num_interests, **shared)
        return DeepInterestEncoder(
            config.num_interests,
            config.dim,
            num_layers=config.num_layers,
            num_heads=config.num_heads,
            dropout=config.dropout,
            positions=config.positions,
            **shared,
        )

    def _build_parts(self) -> None:
        """Creates all variables, so that the order of first calls does not change them."""
        tables = [self.items, *self.context_tables.values(), *self.feature_tables.values()]
        for table in [*([self.events] if self.events is not None else []), *tables]:
            table.build((None,))
        dim = self.config.dim
        numbers = (
            (self.context_numbers, self.numeric),
            (self.feature_numbers, self.numeric_features),
        )
        for layer, columns in numbers:
            if layer is not None:
                layer.build((None, len(columns)))
        build_stack(self.item_mlp, dim)
        self.dropout.build((None, None, dim))
        self.user_tower.build((None,) if self.events is None else (None, None, dim))
        self.built = True

    # Density weighting.

    @property
    def target_counts(self) -> tf.Variable:
        """How often each id is a training target, float32 `[item_rows]`."""
        return self.statistics.counts

    @property
    def target_weights(self) -> tf.Variable:
        """The weight of an example with each target, float32 `[item_rows]`."""
        return self.statistics.weights_of

    @property
    def item_tower(self) -> list[keras.layers.Layer]:
        """The layers that the vectors of items depend on."""
        numbers = [self.feature_numbers] if self.feature_numbers is not None else []
        return [self.items, *self.feature_tables.values(), *numbers, *self.item_mlp]

    def item_embeddings(self) -> NDArray[np.float32]:
        """V of the ids 1..V, float32 `[V, dim]`."""
        vectors: NDArray[np.float32] = self.item_vectors().numpy()
        return vectors

    def set_item_features(self, columns: Mapping[str, NDArray[Any]]) -> None:
        """Sets the features of the ids 1..V; padding and unknown items have none.

        Args:
          columns: names to arrays `[V]`, or `[V, values]` with at most the feature's width.
        """
        for name, variable in self.statistics.columns.items():
            rows = np.zeros(tuple(variable.shape), tf.as_dtype(variable.dtype).as_numpy_dtype)
            values = columns[name]
            if values.ndim == 2:
                rows[1 : 1 + self.num_items, : values.shape[1]] = values
            else:
                rows[1 : 1 + self.num_items] = values
            variable.assign(rows)

    # The item tower.

    def embed_items(
        self, ids: tf.Tensor, columns: Mapping[str, tf.Tensor] | None = None
    ) -> tf.Tensor:
        """The input of the item tower's MLP, `[items, dim]`.

        Args:
          ids: `[items]`. If items have features, padding and unknown ids have no embedding of
            their own.
          columns: features of the items; None for those of the vocabulary.
        """
        scale = self.config.dim**0.5
        vectors = tf.cast(self.items(ids), self.compute_dtype)
        if not self.feature_tables and self.feature_numbers is None:
            return scale * vectors
        known = (ids >= 1) & (ids <= self.num_items)
        vectors = tf.where(known[:, None], vectors, tf.zeros_like(vectors))
        if columns is None:
            stored = self.statistics.columns
            columns = {n: tf.gather(tf.convert_to_tensor(c), ids) for n, c in stored.items()}
        for name, table in self.feature_tables.items():
            values = tf.cast(table(columns[name]), self.compute_dtype)
            if name in self.multivalent:
                vectors += mean_of_real(values, columns[name])
            else:
                real = tf.not_equal(columns[name], 0)[:, None]
                vectors += tf.where(real, values, tf.zeros_like(values))
        vectors = scale * vectors
        if self.feature_numbers is not None:
            numbers = tf.stack([columns[name] for name in self.numeric_features], axis=-1)
            vectors += tf.cast(self.feature_numbers(numbers), vectors.dtype)
        return vectors

    def encode_items(self, embedded: tf.Tensor) -> tf.Tensor:
        """V of embedded items, float32 `[items, dim]`."""
        v = embedded
        for layer in self.item_mlp:
            v = layer(v)
        v = tf.cast(v, tf.float32)
        return tf.math.l2_normalize(v, axis=-1) if self.config.normalize else v

    def item_vectors(self) -> tf.Tensor:
        """V of the ids 1..V, float32 `[V, dim]`."""
        return self.encode_items(self.embed_items(tf.range(1, 1 + self.num_items, dtype=tf.int64)))

    # The user tower.

    def _context(self, inputs: Mapping[str, tf.Tensor], prefix: str) -> tf.Tensor | None:
        """Sum of the vectors of a context: `[batch, time, dim]`, or `[batch, dim]`."""
        parts = self.context_parts(inputs, prefix, self.context_tables, self.context_numbers)
        return tf.add_n([tf.cast(part, self.compute_dtype) for part in parts]) if parts else None

    def embed(
        self, inputs: Mapping[str, tf.Tensor], training: bool = False
    ) -> dict[str, tf.Tensor]:
        """Looks up `events` `[batch, time, dim]`, `real` `[batch, time]` and the long history."""
        del training
        return self._embed_events(inputs) | self.embed_long_history(inputs)

    def _embed_events(self, inputs: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        history = tf.convert_to_tensor(inputs["history_xf"])
        real = tf.not_equal(history, 0)
        if self.events is None:
            shape = tf.stack([tf.shape(history)[0], 1, self.config.dim])
            return {"events": tf.zeros(shape, self.compute_dtype), "real": real[:, :1]}
        scale = self.config.dim**0.5
        events = tf.cast(self.events(history), self.compute_dtype)
        past = self._context(inputs, "history_")
        if past is None:
            return {"events": scale * events, "real": real}
        request = self._context(inputs, "")
        assert request is not None
        events = tf.concat([events + past, request[:, None]], axis=1)
        real = tf.concat([real, tf.ones_like(real[:, :1])], axis=1)
        return {"events": scale * events, "real": real}

    def encode(self, embedded: Mapping[str, tf.Tensor], training: bool = False) -> tf.Tensor:
        """U of every user, float32 `[batch, interests, dim]`."""
        if self.events is None:
            rows = tf.shape(embedded["events"])[0]
            shared = self.user_tower(tf.range(self.config.num_interests))
            users = tf.tile(shared[None], [rows, 1, 1])
        elif isinstance(self.user_tower, ShallowInterestEncoder):
            users = self.user_tower(embedded["events"], mask=embedded["real"])
        else:
            events = self.dropout(embedded["events"], training=training)
            users = self.user_tower(events, mask=embedded["real"], training=training)
        users = tf.cast(users, tf.float32)
        if self.long_history_adapter is not None:
            vectors, missing = embedded["long_history"], embedded["no_long_history"]
            read = self.long_history_adapter(vectors, missing)
            users += tf.cast(read, tf.float32)[:, None]
        if self.config.normalize:
            users = tf.math.l2_normalize(users, axis=-1)
        return users

    def disagreement(self) -> tf.Tensor:
        """The penalty on similar queries, a scalar; 0 if there are no two of them."""
        if self.events is None or self.config.num_interests == 1:
            return tf.constant(0.0)
        return tf.cast(self.user_tower.interests.disagreement(), tf.float32)

    def score(self, users: tf.Tensor, items: tf.Tensor) -> tf.Tensor:
        """S of users `[batch, interests, dim]` and items `[items, dim]`: `[batch, items]`."""
        return interest_scores(users, items) / self.config.temperature

    def interact(self, embedded: Mapping[str, tf.Tensor], training: bool = False) -> tf.Tensor:
        """Scores `[batch, V]` of all items."""
        return self.score(self.encode(embedded, training), self.item_vectors())
