"""Layers that summarise histories of tens of thousands of events in a few vectors.

Slices of a history are pooled into one vector each (`MultiSlicePooling`), the vectors of all slices
are compressed into fewer (`FunnelSummarizer` and `LinearCompression`), and the result is an
additional input of another model (`LongHistoryAdapter`). The tokens of a sequence are the slices.
"""

from __future__ import annotations

import math
from typing import Any

import keras
import tensorflow as tf

from tfrz.config import require
from tfrz.layers.configured import ConfiguredLayer
from tfrz.layers.dropout import SeededDropout
from tfrz.layers.initializers import independent
from tfrz.layers.numerics import layer_norm, wide
from tfrz.layers.temporal import last_dim, policy_of


def pooled_mean(sums: tf.Tensor, totals: tf.Tensor) -> tf.Tensor:
    """Weighted means from weighted sums and sums of weights; zeros where the latter are 0.

    Args:
      sums: `[..., dim]`.
      totals: `[...]`.

    Returns:
      `[..., dim]`.

    Example:
      >>> print(pooled_mean(tf.constant([[2.0, 4.0], [0.0, 0.0]]), tf.constant([4.0, 0.0])).numpy())
      [[0.5 1. ]
       [0.  0. ]]
    """
    return tf.math.divide_no_nan(sums, totals[..., None])


def _whole(values: tf.Tensor) -> tf.Tensor:
    """Integers, cast from floats as in `keras.layers.Embedding`."""
    return values if values.dtype.is_integer else tf.cast(values, tf.int32)


@keras.saving.register_keras_serializable(package="tfrz")
class MultiSlicePooling(ConfiguredLayer):
    """One vector for each slice: the weighted mean of the embeddings of its entries.

    Formula: `x_f = sum_e w_e table[id_e] / sum_e w_e` over the entries e of slice f.

    All slices share one table. An event is an entry of every slice that it belongs to. Sums and
    rows are float32 (float64 in a float64 layer) even in a mixed policy: bfloat16 cannot hold a sum
    of thousands of entries.

    Args:
      num_slices: N.
      num_ids: V, rows of the table, including that of the padding.
      dim: D.
      embeddings_initializer: initialiser of the table.

    Call arguments:
      ids: integers `[batch, entries]`, 0 for padding.
      slices: integers `[batch, entries]`, the slice of each entry; entries of slices outside
        0 to N - 1 are ignored like padding.
      weights: `[batch, entries]`, not negative.

    Returns:
      `[batch, num_slices, dim]` in the layer's compute dtype; zeros for a slice whose weights sum
      to 0.

    Raises:
      ConfigError: an argument is below 1.

    Example:
      >>> layer = MultiSlicePooling(2, num_ids=4, dim=1)
      >>> layer.build()
      >>> layer.set_weights([tf.constant([[9.0], [1.0], [2.0], [3.0]]).numpy()])
      >>> ids, slices = tf.constant([[1, 3, 2, 0]]), tf.constant([[0, 0, 7, 1]])
      >>> print(layer(ids, slices, tf.constant([[1.0, 3.0, 1.0, 1.0]])).numpy())
      [[[2.5]
        [0. ]]]

    Reference:
      DV365 (arXiv 2506.00450), specification 3.2 and 3.3.
    """

    def __init__(
        self,
        num_slices: int,
        num_ids: int,
        dim: int,
        embeddings_initializer: Any = "uniform",
        **kwargs: Any,
    ) -> None:
        # Inputs are not cast: bfloat16 cannot hold counts and ids.
        super().__init__(autocast=False, **kwargs)
        for name, value in (("num_slices", num_slices), ("num_ids", num_ids), ("dim", dim)):
            require(value >= 1, name, "must be at least 1")
        self.num_slices, self.num_ids, self.dim = num_slices, num_ids, dim
        self.embeddings_initializer = keras.initializers.get(embeddings_initializer)
        # A separate layer because of its compute dtype.
        self.table = keras.layers.Embedding(
            num_ids,
            dim,
            embeddings_initializer=self.embeddings_initializer,
            dtype=self.variable_dtype,
            name="table",
        )

    def build(
        self, ids_shape: Any = None, slices_shape: Any = None, weights_shape: Any = None
    ) -> None:
        """Makes the table, `embeddings` `[num_ids, dim]`; the shapes are not used."""
        self.table.build((None,))
        self.built = True

    @property
    def embeddings(self) -> Any:
        """The table's variable, `[num_ids, dim]`."""
        return self.table.embeddings

    def rows_of(self, ids: tf.Tensor) -> tf.Tensor:
        """The rows of the table for `ids` `[n]`, `[n, dim]`, including that of the padding."""
        return self.table(ids)

    def sums_of(
        self,
        rows: tf.Tensor,
        slices: tf.Tensor,
        ids: tf.Tensor,
        weights: tf.Tensor,
        batch_size: Any,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Weighted sums and sums of weights of a chunk of entries from any examples.

        The sums of chunks add up to those of the whole, in any order; `pooled_mean` of the totals
        is the output of the layer.

        Args:
          rows: whole numbers `[n]`, the example of each entry, 0 to `batch_size - 1`.
          slices: whole numbers `[n]`.
          ids: whole numbers `[n]`.
          weights: `[n]`.
          batch_size: the number of examples.

        Returns:
          Sums `[batch_size, num_slices, dim]` and totals `[batch_size, num_slices]`.
        """
        ids, slices = _whole(ids), _whole(slices)
        counts = tf.not_equal(ids, 0) & (slices >= 0) & (slices < self.num_slices)
        # Ignored entries are in no segment, and have the row of the padding and the weight 0.
        places = tf.cast(rows, tf.int32) * self.num_slices + tf.cast(slices, tf.int32)
        places = tf.where(counts, places, -1)
        vectors = wide(self.rows_of(tf.where(counts, ids, tf.zeros_like(ids))))
        weights = tf.cast(weights, vectors.dtype)
        weights = tf.where(counts, weights, tf.zeros_like(weights))
        segments = batch_size * self.num_slices
        sums = tf.math.unsorted_segment_sum(weights[:, None] * vectors, places, segments)
        totals = tf.math.unsorted_segment_sum(weights, places, segments)
        return (
            tf.reshape(sums, [batch_size, self.num_slices, self.dim]),
            tf.reshape(totals, [batch_size, self.num_slices]),
        )

    def call(self, ids: tf.Tensor, slices: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
        """The mean of each slice."""
        batch = tf.shape(ids)[0]
        rows = tf.broadcast_to(tf.range(batch)[:, None], tf.shape(ids))
        rows, slices, ids, weights = (tf.reshape(v, [-1]) for v in (rows, slices, ids, weights))
        sums, totals = self.sums_of(rows, slices, ids, weights, batch)
        return tf.cast(pooled_mean(sums, totals), self.compute_dtype)

    def compute_output_shape(
        self, ids_shape: Any, slices_shape: Any = None, weights_shape: Any = None
    ) -> tuple[int | None, ...]:
        """`[batch, num_slices, dim]`."""
        return (ids_shape[0], self.num_slices, self.dim)


def _means_of_neighbours(z: tf.Tensor, stride: int) -> tf.Tensor:
    """Means of `stride` neighbours on the last axis of `[batch, rows, width]`, fewer at its end."""
    rows, width = z.shape[1], z.shape[2]
    full = width // stride
    groups = tf.reshape(z[:, :, : full * stride], [tf.shape(z)[0], rows, full, stride])
    means = tf.reduce_mean(groups, axis=-1)
    if width == full * stride:
        return means
    rest = tf.reduce_mean(z[:, :, full * stride :], axis=-1, keepdims=True)
    return tf.concat([means, rest], axis=-1)


def _sides(shape: Any, name: str) -> tuple[int, int]:
    """Tokens and dim of `[batch, tokens, dim]`.

    Raises:
      ValueError: one of them is unknown.
    """
    return last_dim(shape[:-1], name), last_dim(shape, name)


@keras.saving.register_keras_serializable(package="tfrz")
class FunnelSummarizer(ConfiguredLayer):
    """Reduces tokens by blocks of transformer layers with mean pooling after each block.

    Formula, with `z = Xᵀ` `[dim, tokens]`:

        z <- z + MHA(LN(z))                            num_blocks times: layers_per_block of
        z <- z + W_2 gelu(W_1 LN(z) + b_1) + b_2       these two
        z <- means of `stride` neighbours on the last axis

    and the output is `zᵀ`. The attention is over the `dim` rows of z, which share all weights, and
    its width is the number of tokens: 200, then 100, then 50. MHA is multi-head attention with
    heads of `max(1, width // num_heads)`, without positions; LN is over the width. If the stride
    does not divide the tokens, the last mean is over the rest.

    Args:
      num_blocks: number of blocks, each with a pooling at its end.
      layers_per_block: transformer layers of a block.
      num_heads: heads of each attention.
      stride: tokens that become one.
      attend_over: `dims` as above; `tokens` attends over the tokens, with `dim` as the width.
      units: width of the feed-forward parts; twice the width of the attention by default.
      dropout: share of the outputs of attention and feed-forward parts dropped in training.
      kernel_initializer: of the matrices.

    Call arguments:
      x: `[batch, tokens, dim]`.
      training: whether dropout is on.

    Returns:
      `[batch, num_outputs(tokens), dim]`, in the layer's compute dtype.

    Raises:
      ValueError: the tokens or dim are unknown.
      ConfigError: an argument is out of its range.

    Example:
      >>> layer = FunnelSummarizer(num_blocks=2, num_heads=2)
      >>> layer(tf.zeros([3, 10, 4])).shape, layer.num_outputs(200)
      (TensorShape([3, 3, 4]), 50)

    Reference:
      DV365 (arXiv 2506.00450), specification 3.4. The axis of the attention is inferred from the
      reported size; blocks, heads, stride and normalisation before each part are choices.
    """

    def __init__(
        self,
        num_blocks: int = 2,
        layers_per_block: int = 1,
        num_heads: int = 4,
        stride: int = 2,
        attend_over: str = "dims",
        units: int | None = None,
        dropout: float = 0.0,
        kernel_initializer: Any = "glorot_uniform",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        for name, value in (
            ("num_blocks", num_blocks),
            ("layers_per_block", layers_per_block),
            ("num_heads", num_heads),
            ("stride", stride),
            ("units", 1 if units is None else units),
        ):
            require(value >= 1, name, "must be at least 1")
        require(attend_over in ("dims", "tokens"), "attend_over", "must be dims or tokens")
        require(0 <= dropout < 1, "dropout", "must be at least 0, under 1")
        self.num_blocks, self.layers_per_block = num_blocks, layers_per_block
        self.num_heads, self.stride = num_heads, stride
        self.attend_over, self.units, self.dropout = attend_over, units, dropout
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        # Two of each layer.
        self.dropouts = [
            SeededDropout(dropout, seed=i, dtype=policy_of(self), name=f"dropout_{i}")
            for i in range(2 * num_blocks * layers_per_block if dropout else 0)
        ]

    def num_outputs(self, tokens: int) -> int:
        """The number of output tokens for a number of input tokens."""
        for _ in range(self.num_blocks):
            tokens = math.ceil(tokens / self.stride)
        return tokens

    def build(self, x_shape: Any) -> None:
        """Makes, for layer i: Q, K, V, O and the parts 1 and 2 (W, b); two norms (gamma, beta)."""
        tokens, dim = _sides(x_shape, self.name)
        self.encoders: list[dict[str, tuple[Any, Any]]] = []
        for _ in range(self.num_blocks):
            width = tokens if self.attend_over == "dims" else dim
            for _ in range(self.layers_per_block):
                self.encoders.append(self._encoder_weights(len(self.encoders), width))
            tokens = math.ceil(tokens / self.stride)
        for layer in self.dropouts:
            layer.build((None, None, None))
        self.built = True

    def _encoder_weights(self, i: int, width: int) -> dict[str, tuple[Any, Any]]:
        heads = self.num_heads * max(1, width // self.num_heads)
        units = self.units or 2 * width
        shapes = {
            "Q": (width, heads),
            "K": (width, heads),
            "V": (width, heads),
            "O": (heads, width),
            "1": (width, units),
            "2": (units, width),
        }
        weights = {}
        for k, (kind, shape) in enumerate(shapes.items()):
            kernel = self.add_weight(
                name=f"W_{kind}_{i}",
                shape=shape,
                initializer=independent(self.kernel_initializer, len(shapes) * i + k),
            )
            bias = self.add_weight(name=f"b_{kind}_{i}", shape=shape[1:], initializer="zeros")
            weights[kind] = (kernel, bias)
        for kind in ("attention", "feed_forward"):
            weights[kind] = (
                self.add_weight(name=f"gamma_{kind}_{i}", shape=(width,), initializer="ones"),
                self.add_weight(name=f"beta_{kind}_{i}", shape=(width,), initializer="zeros"),
            )
        return weights

    @staticmethod
    def _mapped(weights: tuple[Any, Any], z: tf.Tensor) -> tf.Tensor:
        kernel, bias = weights
        return tf.tensordot(z, tf.convert_to_tensor(kernel), 1) + bias

    def _attention(self, weights: dict[str, tuple[Any, Any]], z: tf.Tensor) -> tf.Tensor:
        """Multi-head self-attention of `[batch, sequence, width]`.

        In float32 it equals `keras.layers.MultiHeadAttention`, whose softmax is in the compute
        dtype: in bfloat16 its error is a third larger, too large for a hundred tokens or more.
        """
        length = z.shape[1]

        def heads(kind: str) -> tf.Tensor:
            mapped = self._mapped(weights[kind], z)
            return tf.reshape(
                mapped, [-1, length, self.num_heads, mapped.shape[-1] // self.num_heads]
            )

        q, k, v = heads("Q"), heads("K"), heads("V")
        scores = wide(tf.einsum("bqhw,bkhw->bhqk", q, k)) / math.sqrt(q.shape[-1])
        shares = tf.cast(tf.nn.softmax(scores), z.dtype)
        seen = tf.einsum("bhqk,bkhw->bqhw", shares, v)
        return self._mapped(weights["O"], tf.reshape(seen, [-1, length, q.shape[2] * q.shape[3]]))

    def _dropped(self, index: int, z: tf.Tensor, training: bool) -> tf.Tensor:
        return self.dropouts[index](z, training=training) if self.dropouts else z

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        """The summary of the tokens."""
        z = tf.cast(x, self.compute_dtype)
        over_dims = self.attend_over == "dims"
        z = tf.transpose(z, [0, 2, 1]) if over_dims else z
        for i, weights in enumerate(self.encoders):
            more = self._attention(weights, layer_norm(z, *weights["attention"]))
            z = z + self._dropped(2 * i, more, training)
            more = self._mapped(weights["1"], layer_norm(z, *weights["feed_forward"]))
            more = self._mapped(weights["2"], tf.nn.gelu(more))
            z = z + self._dropped(2 * i + 1, more, training)
            if (i + 1) % self.layers_per_block == 0:
                z = z if over_dims else tf.transpose(z, [0, 2, 1])
                z = _means_of_neighbours(z, self.stride)
                z = z if over_dims else tf.transpose(z, [0, 2, 1])
        return tf.transpose(z, [0, 2, 1]) if over_dims else z

    def compute_output_shape(self, x_shape: Any) -> tuple[int | None, ...]:
        """`[batch, num_outputs(tokens), dim]`."""
        return (x_shape[0], self.num_outputs(x_shape[1]), x_shape[2])


@keras.saving.register_keras_serializable(package="tfrz")
class LinearCompression(ConfiguredLayer):
    """A linear map of the tokens, or of the dimensions, without bias.

    Formula: `Y = (Xᵀ W)ᵀ` with `W [tokens, num_outputs]` for tokens: every output is one mixture of
    the tokens, the same in all dimensions. `Y = X W` with `W [dim, num_outputs]` for dims.

    Args:
      num_outputs: tokens, or dimensions, of the output.
      compress: `tokens` or `dims`.
      kernel_initializer: of W.

    Call arguments:
      x: `[batch, tokens, dim]`.

    Returns:
      `[batch, num_outputs, dim]`, or `[batch, tokens, num_outputs]`, in the layer's compute dtype.

    Raises:
      ValueError: the axis that is compressed has an unknown size.
      ConfigError: an argument is out of its range.

    Example:
      >>> layer = LinearCompression(1, kernel_initializer="ones")
      >>> print(layer(tf.constant([[[1.0, 2.0], [3.0, 4.0]]])).numpy())
      [[[4. 6.]]]

    Reference:
      DV365 (arXiv 2506.00450), specification 3.4, step 3.
    """

    def __init__(
        self,
        num_outputs: int,
        compress: str = "tokens",
        kernel_initializer: Any = "glorot_uniform",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        require(num_outputs >= 1, "num_outputs", "must be at least 1")
        require(compress in ("tokens", "dims"), "compress", "must be tokens or dims")
        self.num_outputs, self.compress = num_outputs, compress
        self.kernel_initializer = keras.initializers.get(kernel_initializer)

    def build(self, x_shape: Any) -> None:
        """Makes W."""
        size = last_dim(x_shape[:-1] if self.compress == "tokens" else x_shape, self.name)
        self.W = self.add_weight(
            name="W", shape=(size, self.num_outputs), initializer=self.kernel_initializer
        )
        self.built = True

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """The compressed vectors."""
        x = tf.cast(x, self.compute_dtype)
        rule = "btd,to->bod" if self.compress == "tokens" else "btd,do->bto"
        return tf.einsum(rule, x, tf.convert_to_tensor(self.W))

    def compute_output_shape(self, x_shape: Any) -> tuple[int | None, ...]:
        """`[batch, num_outputs, dim]` or `[batch, tokens, num_outputs]`."""
        batch, tokens, dim = x_shape
        if self.compress == "tokens":
            return (batch, self.num_outputs, dim)
        return (batch, tokens, self.num_outputs)


@keras.saving.register_keras_serializable(package="tfrz")
class LongHistoryAdapter(ConfiguredLayer):
    """Projects stored vectors of a user, with a learned replacement for missing ones.

    Formula: `y = W vec(x) + b` for `linear`; for `gate` of `x_n * sigmoid(x_n G + g)` in place of
    each vector `x_n`, element by element, with one G for all vectors. `y = m`, a weight, if the
    vectors are missing: their values, NaN included, are not used.

    Args:
      units: width of the output.
      kind: `linear` or `gate`.
      kernel_initializer: of W and G.

    Call arguments:
      vectors: x, `[batch, vectors, dim]`.
      missing: boolean `[batch]`, True where the vectors are missing.

    Returns:
      `[batch, units]`, in the layer's compute dtype.

    Raises:
      ValueError: the number of vectors or their width is unknown.
      ConfigError: an argument is out of its range.

    Example:
      >>> layer = LongHistoryAdapter(2, kernel_initializer="ones")
      >>> vectors = tf.constant([[[1.0], [2.0]], [[float("nan")], [5.0]]])
      >>> print(layer(vectors, tf.constant([False, True])).numpy())
      [[3. 3.]
       [0. 0.]]

    Reference:
      DV365 (arXiv 2506.00450), specification 3.8; the gate follows GateNet, with weights that the
      vectors share by choice.
    """

    def __init__(
        self,
        units: int,
        kind: str = "linear",
        kernel_initializer: Any = "glorot_uniform",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        require(units >= 1, "units", "must be at least 1")
        require(kind in ("linear", "gate"), "kind", "must be linear or gate")
        self.units, self.kind = units, kind
        self.kernel_initializer = keras.initializers.get(kernel_initializer)

    def build(self, vectors_shape: Any, missing_shape: Any = None) -> None:
        """Makes W, b and `missing`; for `gate` also G `[dim, dim]` and g `[dim]`."""
        vectors, dim = _sides(vectors_shape, self.name)
        start = self.kernel_initializer
        self.W = self.add_weight(name="W", shape=(vectors * dim, self.units), initializer=start)
        self.b = self.add_weight(name="b", shape=(self.units,), initializer="zeros")
        self.missing = self.add_weight(name="missing", shape=(self.units,), initializer="zeros")
        if self.kind == "gate":
            self.G = self.add_weight(name="G", shape=(dim, dim), initializer=independent(start, 1))
            self.g = self.add_weight(name="g", shape=(dim,), initializer="zeros")
        self.built = True

    def call(self, vectors: tf.Tensor, missing: tf.Tensor) -> tf.Tensor:
        """The projection of the vectors, or the replacement."""
        x, missing = tf.cast(vectors, self.compute_dtype), tf.cast(missing, tf.bool)
        # Before the maps too: values that are not chosen at the end have a gradient, maybe NaN.
        x = tf.where(missing[:, None, None], tf.zeros_like(x), x)
        if self.kind == "gate":
            x = x * tf.sigmoid(tf.tensordot(x, tf.convert_to_tensor(self.G), 1) + self.g)
        flat = tf.reshape(x, [-1, x.shape[1] * x.shape[2]])
        projected = tf.matmul(flat, tf.convert_to_tensor(self.W)) + self.b
        replacement = tf.cast(tf.convert_to_tensor(self.missing), x.dtype)
        return tf.where(missing[:, None], replacement[None], projected)

    def compute_output_shape(
        self, vectors_shape: Any, missing_shape: Any = None
    ) -> tuple[int | None, ...]:
        """`[batch, units]`."""
        return (vectors_shape[0], self.units)
