"""DV365: encodes a user's whole history as a few vectors that other models read."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import keras
import tensorflow as tf

from tfrz.config import check_range, require
from tfrz.layers.dropout import SeededDropout
from tfrz.layers.history import (
    FunnelSummarizer,
    LinearCompression,
    MultiSlicePooling,
    pooled_mean,
)
from tfrz.models.base import ZooModel, build_stack


@dataclasses.dataclass(frozen=True)
class DV365Config:
    """The shape of a DV365 and of the ranker that trains it.

    Attributes:
      dim: D, the width of the slices' and the user's vectors.
      encoder: both (the vectors of the funnel, then those of the linear compression), funnel,
        linear, or none (a baseline: the ranker without the history).
      funnel_blocks: blocks of the funnel; each divides the number of vectors by `stride`.
      layers_per_block: encoder layers of a block.
      num_heads: attention heads.
      stride: stride of the mean pooling after a block.
      attend_over: dims (positions are the D dimensions and the width is the number of slices, so
        all dimensions share the parameters) or tokens (positions are the slices).
      linear_outputs: number of vectors from the linear compression.
      candidate_dim: width of the candidates' vectors.
      hidden_units: widths of the ranker's ReLU layers.
      dropout: share of values dropped in training, in the funnel and the ranker.
      embedding_scale: bound of the uniform initial embeddings.
    """

    dim: int = 32
    encoder: Literal["both", "funnel", "linear", "none"] = "both"
    funnel_blocks: int = 2
    layers_per_block: int = 1
    num_heads: int = 4
    stride: int = 2
    attend_over: Literal["dims", "tokens"] = "dims"
    linear_outputs: int = 4
    candidate_dim: int = 16
    hidden_units: tuple[int, ...] = (64, 32)
    dropout: float = 0.0
    embedding_scale: float = 0.05

    def __post_init__(self) -> None:
        counts = ("dim", "funnel_blocks", "layers_per_block", "num_heads", "linear_outputs")
        check_range(self, "model", *counts, "candidate_dim", "hidden_units", at_least=1)
        check_range(self, "model", "stride", at_least=2)
        check_range(self, "model", "dropout", at_least=0, below=1)
        check_range(self, "model", "embedding_scale", above=0)


@keras.saving.register_keras_serializable(package="tfrz")
class DV365(ZooModel):
    """Encodes a user's history as vectors, learned by ranking candidates for several tasks.

    Formula: with x_f the weighted mean of slice f and X = [x_1 ... x_N],

        Y = [funnel(X), X^T W_lce]           [vectors, dim]
        logit_k(c) = MLP(P y_i . c_j for all i, j; c; U Y; log(1 + sum of weights); recent)_k

    Args:
      config: the shape of the network.
      tables: table of slices to the positions of its slices in X.
      table_ids: table of slices to its type of id.
      vocabulary_sizes: type of id to its number of ids: padding, vocabulary, out of vocabulary.
      candidates: number of candidates of an example.
      described: types of ids that describe a candidate.
      recent: whether examples contain the ids of the newest events.
      num_tasks: outputs for each candidate.

    Call arguments:
      inputs: a dict: for each list `<name>_ids_xf` and `<name>_places_xf` int64 and
        `<name>_weights_xf` float32, `[batch, entries]` dense (id 0 is padding) or ragged. Lists are
        `slices_<table>`, `candidate_<id>` and `recent_<id>`.
      training: whether dropout is on.

    Returns:
      float32 `[batch, candidates, tasks]`: logits of binary tasks, values of regressions.

    Raises:
      ConfigError: an argument is out of its range.

    Reference:
      DV365 (arXiv 2506.00450), sections 3.1 to 3.5. The ranker is DLRM-style; its layers are ours.
    """

    config_class = DV365Config
    config: DV365Config
    arguments = (
        "tables",
        "table_ids",
        "vocabulary_sizes",
        "candidates",
        "described",
        "recent",
        "num_tasks",
    )

    def __init__(
        self,
        config: DV365Config,
        tables: Mapping[str, Sequence[int]],
        table_ids: Mapping[str, str],
        vocabulary_sizes: Mapping[str, int],
        candidates: int,
        described: Sequence[str],
        recent: bool = False,
        num_tasks: int = 1,
        **kwargs: Any,
    ) -> None:
        super().__init__(config, **kwargs)
        require(bool(tables), "tables", "there is none")
        require(candidates >= 1, "candidates", "must be at least 1")
        require(num_tasks >= 1, "num_tasks", "must be at least 1")
        self.candidates, self.num_tasks = candidates, num_tasks
        self.tables = {name: tuple(places) for name, places in tables.items()}
        self.table_ids, self.vocabulary_sizes = dict(table_ids), dict(vocabulary_sizes)
        self.described, self.recent = tuple(described), recent
        self.num_slices = sum(map(len, self.tables.values()))
        policy = self.policy

        def table(name: str, places: int, kind: str, dim: int) -> MultiSlicePooling:
            scale = config.embedding_scale
            return MultiSlicePooling(
                places,
                self.vocabulary_sizes[kind],
                dim,
                embeddings_initializer=keras.initializers.RandomUniform(-scale, scale),
                name=name,
                dtype=policy,
            )

        self.slice_tables = {
            name: table(f"slices_{name}", len(places), self.table_ids[name], config.dim)
            for name, places in self.tables.items()
            if config.encoder != "none"
        }
        self.candidate_tables = {
            kind: table(f"candidate_{kind}", candidates, kind, config.candidate_dim)
            for kind in self.described
        }
        self.recent_tables = {
            kind: table(f"recent_{kind}", 1, kind, config.candidate_dim)
            for kind in (self.described if recent else ())
        }
        self.funnel = (
            FunnelSummarizer(
                num_blocks=config.funnel_blocks,
                layers_per_block=config.layers_per_block,
                num_heads=config.num_heads,
                stride=config.stride,
                attend_over=config.attend_over,
                dropout=config.dropout,
                name="funnel",
                dtype=policy,
            )
            if config.encoder in ("both", "funnel")
            else None
        )
        self.compression = (
            LinearCompression(config.linear_outputs, name="compression", dtype=policy)
            if config.encoder in ("both", "linear")
            else None
        )

        def dense(units: int, name: str, activation: str | None = None, **more: Any) -> Any:
            return keras.layers.Dense(
                units, activation=activation, name=name, **{"dtype": policy, **more}
            )

        self.interest = dense(config.candidate_dim, "interest", use_bias=False)
        self.projection = dense(config.candidate_dim, "projection")
        self.hidden = [
            dense(units, f"hidden_{i}", "relu") for i, units in enumerate(config.hidden_units)
        ]
        self.dropouts = [
            SeededDropout(config.dropout, seed=i, name=f"dropout_{i}", dtype=policy)
            for i in range(len(config.hidden_units))
            if config.dropout
        ]
        self.logits = dense(num_tasks, "logits", dtype="float32")
        self._build_parts()

    @property
    def num_vectors(self) -> int:
        """Vectors of a user; 0 without an encoder."""
        funnel = self.funnel.num_outputs(self.num_slices) if self.funnel is not None else 0
        return funnel + (self.config.linear_outputs if self.compression is not None else 0)

    def _build_parts(self) -> None:
        """Creates all variables, so that the order of first calls does not change them."""
        config, kinds = self.config, len(self.described)
        for layers in (self.slice_tables, self.candidate_tables, self.recent_tables):
            for layer in layers.values():
                layer.build((None, None), (None, None), (None, None))
        pooled = (None, self.num_slices, config.dim)
        for encoder in (self.funnel, self.compression):
            if encoder is not None:
                encoder.build(pooled)
        width = kinds * config.candidate_dim
        if self.num_vectors:
            width += self.num_slices
            self.interest.build((None, self.num_vectors, config.dim))
            self.projection.build((None, self.num_vectors * config.dim))
            width += kinds * self.num_vectors + config.candidate_dim
        if self.recent:
            width += kinds * (config.candidate_dim + 1)
        self.logits.build((None, build_stack(self.hidden, width)))
        for layer in self.dropouts:
            layer.build(None)
        self.built = True

    @staticmethod
    def _entries(inputs: Mapping[str, Any], name: str) -> tuple[tf.Tensor, ...]:
        """Row, place, id and weight of every entry that is not padding, and the number of rows."""
        ids, places, weights = (
            inputs[f"{name}_{part}_xf"] for part in ("ids", "places", "weights")
        )
        if isinstance(ids, tf.RaggedTensor):
            rows = ids.value_rowids()
            return rows, places.flat_values, ids.flat_values, weights.flat_values, ids.nrows()
        real = tf.where(tf.not_equal(ids, 0))
        batch = tf.shape(ids, out_type=tf.int64)[0]
        return (
            real[:, 0],
            tf.gather_nd(places, real),
            tf.gather_nd(ids, real),
            tf.gather_nd(weights, real),
            batch,
        )

    def _sums(
        self, inputs: Mapping[str, Any], layer: MultiSlicePooling
    ) -> tuple[tf.Tensor, tf.Tensor]:
        rows, places, ids, weights, batch = self._entries(inputs, layer.name)
        return layer.sums_of(rows, places, ids, weights, batch)

    def in_order(self, by_table: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """The tables' values `[batch, slices of the table, ...]` in the order of all slices."""
        together = tf.concat([by_table[name] for name in self.tables], axis=1)
        placed = [place for places in self.tables.values() for place in places]
        order = [placed.index(place) for place in range(self.num_slices)]
        return tf.gather(together, order, axis=1)

    def pool(self, inputs: Mapping[str, Any]) -> tuple[tf.Tensor, tf.Tensor]:
        """X `[batch, slices, dim]`, and the sums of weights `[batch, slices]`."""
        sums, totals = {}, {}
        for name, layer in self.slice_tables.items():
            sums[name], totals[name] = self._sums(inputs, layer)
        all_totals = self.in_order(totals)
        return pooled_mean(self.in_order(sums), all_totals), all_totals

    def encode(self, pooled: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Y `[batch, vectors, dim]` of X `[batch, slices, dim]`."""
        parts = []
        x = tf.cast(pooled, self.compute_dtype)
        if self.funnel is not None:
            parts.append(self.funnel(x, training=training))
        if self.compression is not None:
            parts.append(self.compression(x))
        return tf.concat(parts, axis=1)

    def embed(self, inputs: Mapping[str, Any], training: bool = False) -> dict[str, tf.Tensor]:
        """Looks up X, the sums of weights, and the vectors of candidates and of recent ids."""
        del training

        def means(layers: Mapping[str, MultiSlicePooling]) -> tf.Tensor:
            found = [pooled_mean(*self._sums(inputs, layer)) for layer in layers.values()]
            return tf.stack(found, axis=2)

        embedded = {"candidates": means(self.candidate_tables)}
        if self.num_vectors:
            embedded["pooled"], embedded["totals"] = self.pool(inputs)
        if self.recent:
            embedded["recent"] = means(self.recent_tables)
        return embedded

    def interact(self, embedded: Mapping[str, tf.Tensor], training: bool = False) -> tf.Tensor:
        """Outputs `[batch, candidates, tasks]` from the result of `embed`."""
        dtype = self.compute_dtype
        candidates = tf.cast(embedded["candidates"], dtype)  # [batch, candidates, kinds, dim]
        shape = tf.shape(candidates)[:2]

        def flat(x: tf.Tensor) -> tf.Tensor:
            width = int(x.shape[2]) * int(x.shape[3])
            return tf.reshape(x, tf.concat([shape, [width]], axis=0))

        def for_each(x: tf.Tensor) -> tf.Tensor:
            return tf.repeat(x[:, None, :], self.candidates, axis=1)

        parts = [flat(candidates)]
        if self.num_vectors:
            logs = tf.math.log1p(tf.cast(embedded["totals"], tf.float32))
            parts.append(for_each(tf.cast(logs, dtype)))
            vectors = self.encode(embedded["pooled"], training=training)
            interests = self.interest(vectors)
            parts.append(flat(tf.einsum("bnd,bckd->bckn", interests, candidates)))
            width = self.num_vectors * self.config.dim
            parts.append(for_each(self.projection(tf.reshape(vectors, [-1, width]))))
        if self.recent:
            recent = tf.cast(embedded["recent"], dtype)[:, 0]
            parts.append(tf.einsum("bkd,bckd->bck", recent, candidates))
            width = int(recent.shape[1]) * int(recent.shape[2])
            parts.append(for_each(tf.reshape(recent, [-1, width])))
        h = tf.concat(parts, axis=-1)
        for i, layer in enumerate(self.hidden):
            h = layer(h)
            if self.dropouts:
                h = self.dropouts[i](h, training=training)
        return self.logits(tf.cast(h, tf.float32))

    def compute_output_shape(self, input_shape: Any) -> tuple[int | None, ...]:
        """`[batch, candidates, tasks]`."""
        return (next(iter(input_shape.values()))[0], self.candidates, self.num_tasks)
