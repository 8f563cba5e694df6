"""Several vectors for each user by attention with learned queries, and scores by the best one.

Inputs are vectors of a user's events, `[batch, time, dim]`, with a boolean mask, True for real
events. Padding, whatever it holds, changes no output or gradient; a history without any event has
zeros for an output.
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
from tfrz.layers.numerics import wide
from tfrz.layers.temporal import last_dim, policy_of, zero_padding


def interest_scores(users: tf.Tensor, items: tf.Tensor) -> tf.Tensor:
    """The score of every item with the best of a user's vectors.

    Formula: `S(u, i) = max_h U_{u,h} . v_i`. The maximum is taken for every item separately, and
    the gradient of a score flows into its best vector only, the first one in a tie.

    Args:
      users: U, `[batch, interests, dim]`.
      items: v, `[items, dim]`.

    Returns:
      `[batch, items]`.

    Example:
      >>> users = tf.constant([[[1.0, 0.0], [0.0, 1.0]], [[0.5, 0.5], [-1.0, 1.0]]])
      >>> print(interest_scores(users, tf.constant([[2.0, 0.0], [0.0, 3.0]])).numpy())
      [[2. 3.]
       [1. 3.]]

    Reference:
      Mehta et al. (arXiv 2308.01563), specification 3.3.
    """
    shape = tf.shape(users)
    # One product for all interests of all users.
    flat = tf.matmul(tf.reshape(users, [-1, shape[2]]), items, transpose_b=True)
    each = tf.reshape(flat, [shape[0], shape[1], -1])
    if users.shape[1] == 1:
        return each[:, 0]
    # Not reduce_max, which shares the gradient among ties.
    best = tf.one_hot(tf.argmax(each, axis=1), shape[1], axis=1, dtype=each.dtype)
    return tf.reduce_sum(each * tf.stop_gradient(best), axis=1)


def sinusoids_from_end(length: Any, dim: int, dtype: Any) -> tf.Tensor:
    """Fixed position codes `[length, dim]`; the last position has the code of 0.

    Formula: `P[n, 2i] = sin(n / 10000^(2i / dim))`, `P[n, 2i + 1] = cos(...)`, n counted backwards.
    """
    places = tf.cast(length - 1 - tf.range(length), tf.float32)
    half = (dim + 1) // 2
    rates = tf.exp(-math.log(10_000.0) * 2.0 * tf.range(half, dtype=tf.float32) / dim)
    angles = places[:, None] * rates[None, :]
    codes = tf.reshape(tf.stack([tf.sin(angles), tf.cos(angles)], axis=-1), [-1, 2 * half])
    return tf.cast(codes[:, :dim], dtype)


def _attended(scores: tf.Tensor, values: tf.Tensor, mask: tf.Tensor | None) -> tf.Tensor:
    """`softmax(scores) values`, `[..., queries, time]` by `[..., time, dim]`, without masked times.

    The output is zero for a query without any time to attend to.
    """
    scores = wide(scores)
    if mask is None:
        weights = tf.nn.softmax(scores)
    else:
        scores = tf.where(mask, scores, tf.constant(-1e9, scores.dtype))
        weights = tf.where(mask, tf.nn.softmax(scores), tf.zeros_like(scores))
    return tf.matmul(tf.cast(weights, values.dtype), values)


@keras.saving.register_keras_serializable(package="tfrz")
class MultiInterestAttention(ConfiguredLayer):
    """Several summaries of a history, each by attention with a learned query.

    Formula: `U_h = sum_t softmax_t(c q_h . y_t) y_t`: convex combinations of the vectors of events,
    which differ only by their query.

    Args:
      num_interests: H.
      query_initializer: initialiser of the queries, which must differ from each other.
      scale_initializer: initialiser of c.

    Call arguments:
      y: vectors of the events, `[batch, time, dim]`.
      mask: boolean `[batch, time]`, True for real events; all if left out.

    Returns:
      U, `[batch, num_interests, dim]`, in the layer's compute dtype; zeros for a history without
      real events.

    Raises:
      ValueError: the last dimension is unknown.
      ConfigError: `num_interests` is below 1.

    Example:
      >>> layer = MultiInterestAttention(2, query_initializer="identity")
      >>> y = tf.constant([[[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]])
      >>> print(layer(y, mask=tf.constant([[True, True, False]])).numpy().round(6))
      [[[0.731059 0.268941]
        [0.268941 0.731059]]]

    Reference:
      Mehta et al. (arXiv 2308.01563), specification 3.1, from the code of the authors.
    """

    def __init__(
        self,
        num_interests: int,
        query_initializer: Any = "random_normal",
        scale_initializer: Any = "ones",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        require(num_interests >= 1, "num_interests", "must be at least 1")
        self.num_interests = num_interests
        self.query_initializer = keras.initializers.get(query_initializer)
        self.scale_initializer = keras.initializers.get(scale_initializer)
        self.supports_masking = True

    def build(self, y_shape: Any) -> None:
        """Makes q `[num_interests, dim]` and the scalar c."""
        self.q = self.add_weight(
            name="q",
            shape=(self.num_interests, last_dim(y_shape, self.name)),
            initializer=self.query_initializer,
        )
        self.c = self.add_weight(name="c", shape=(), initializer=self.scale_initializer)
        self.built = True

    def attend(self, queries: tf.Tensor, y: tf.Tensor, mask: tf.Tensor | None = None) -> tf.Tensor:
        """`softmax(c queries yᵀ) y` of any queries, `[batch, queries, dim]`."""
        y = zero_padding(y, mask)
        scores = tf.cast(self.c, y.dtype) * tf.matmul(queries, y, transpose_b=True)
        return _attended(scores, y, None if mask is None else mask[:, None, :])

    def call(self, y: tf.Tensor, mask: tf.Tensor | None = None) -> tf.Tensor:
        """The summaries of each history."""
        y = tf.cast(y, self.compute_dtype)
        q = tf.cast(tf.convert_to_tensor(self.q), y.dtype)
        return self.attend(tf.tile(q[None], [tf.shape(y)[0], 1, 1]), y, mask)

    def disagreement(self) -> tf.Tensor:
        """The sum of the cosines of different queries, a scalar: a penalty that separates them.

        Formula: `sum_{h != h'} q^_h . q^_h'` with `q^ = q / |q|`, the norm a constant to the
        gradient.
        """
        q = tf.convert_to_tensor(self.q)
        q = q / tf.stop_gradient(tf.maximum(tf.norm(q, axis=-1, keepdims=True), 1e-12))
        products = tf.matmul(q, q, transpose_b=True)
        return tf.reduce_sum(products) - tf.linalg.trace(products)

    def compute_output_shape(self, y_shape: Any) -> tuple[int | None, ...]:
        """`[batch, num_interests, dim]`."""
        return (y_shape[0], self.num_interests, y_shape[-1])


class _InterestEncoder(ConfiguredLayer):
    """Base class of both towers: a body `[batch, time, dim]`, then `MultiInterestAttention`."""

    def __init__(
        self, num_interests: int, query_initializer: Any = "random_normal", **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.num_interests = num_interests
        self.query_initializer = keras.initializers.get(query_initializer)
        self.supports_masking = True
        self.interests = MultiInterestAttention(
            num_interests, self.query_initializer, dtype=policy_of(self), name="interests"
        )


@keras.saving.register_keras_serializable(package="tfrz")
class ShallowInterestEncoder(_InterestEncoder):
    """Simple parametric attention: self-attention without projections, then several summaries.

    Formula: `y = softmax(c x xᵀ) x`, `U = softmax(c q yᵀ) y`, with the same scalar c.

    Args:
      num_interests: H.
      query_initializer: initialiser of the queries q.

    Call arguments:
      x: vectors of the events, `[batch, time, dim]`.
      mask: boolean `[batch, time]`, True for real events; all if left out.

    Returns:
      U, `[batch, num_interests, dim]`, in the layer's compute dtype.

    Raises:
      ValueError: the last dimension is unknown.
      ConfigError: `num_interests` is below 1.

    Example:
      >>> ShallowInterestEncoder(3)(tf.zeros([2, 5, 4])).shape
      TensorShape([2, 3, 4])

    Reference:
      Mehta et al. (arXiv 2308.01563), specification 3.1, from the code of the authors.
    """

    def build(self, x_shape: Any) -> None:
        """Builds the attention."""
        self.interests.build(x_shape)
        self.built = True

    def contextualized(self, x: tf.Tensor, mask: tf.Tensor | None = None) -> tf.Tensor:
        """y, `[batch, time, dim]`."""
        x = zero_padding(tf.cast(x, self.compute_dtype), mask)
        return self.interests.attend(x, x, mask)

    def call(self, x: tf.Tensor, mask: tf.Tensor | None = None) -> tf.Tensor:
        """The interests of each history."""
        return self.interests(self.contextualized(x, mask), mask=mask)

    def compute_output_shape(self, x_shape: Any) -> tuple[int | None, ...]:
        """`[batch, num_interests, dim]`."""
        return (x_shape[0], self.num_interests, x_shape[-1])


@keras.saving.register_keras_serializable(package="tfrz")
class DeepInterestEncoder(_InterestEncoder):
    """Residual self-attention layers, then several summaries.

    Formula:

        x <- x W + b (+ positions)
        x <- x + ELU(MHA(x, x))          num_layers times; no layer norm, no feed-forward part
        U  = softmax(c q xᵀ) x

    MHA is multi-head attention with scores divided by the root of `units / num_heads`.

    Args:
      num_interests: H.
      units: D, width of the representations.
      num_layers: residual layers.
      num_heads: attention heads of each layer, a divisor of `units`.
      dropout: share of the outputs of the attention dropped in training.
      positions: add fixed sinusoids, counted from the last event (histories are padded on the
        left).
      query_initializer: initialiser of the queries q.
      kernel_initializer: initialiser of the matrices.

    Call arguments:
      x: vectors of the events, `[batch, time, dim]`.
      mask: boolean `[batch, time]`, True for real events; all if left out.
      training: whether dropout is on.

    Returns:
      U, `[batch, num_interests, units]`, in the layer's compute dtype.

    Raises:
      ValueError: the last dimension is unknown.
      ConfigError: an argument is out of its range.

    Example:
      >>> DeepInterestEncoder(3, units=8, num_heads=2)(tf.zeros([2, 5, 4])).shape
      TensorShape([2, 3, 8])

    Reference:
      Mehta et al. (arXiv 2308.01563), specification 3.1, from the code of the authors; counting
      positions from the end is a choice.
    """

    def __init__(
        self,
        num_interests: int,
        units: int,
        num_layers: int = 1,
        num_heads: int = 1,
        dropout: float = 0.0,
        positions: bool = False,
        query_initializer: Any = "random_normal",
        kernel_initializer: Any = "glorot_uniform",
        **kwargs: Any,
    ) -> None:
        super().__init__(num_interests, query_initializer, **kwargs)
        require(units >= 1, "units", "must be at least 1")
        require(num_layers >= 0, "num_layers", "must not be negative")
        require(num_heads >= 1 and units % num_heads == 0, "num_heads", "must divide units")
        require(0 <= dropout < 1, "dropout", "must be at least 0, under 1")
        self.units, self.num_layers, self.num_heads = units, num_layers, num_heads
        self.dropout, self.positions = dropout, positions
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.dropouts = [
            SeededDropout(dropout, seed=i, dtype=policy_of(self), name=f"dropout_{i}")
            for i in range(num_layers if dropout else 0)
        ]

    def build(self, x_shape: Any) -> None:
        """Makes W, b and, for each layer, W_Q, W_K, W_V, W_O and their biases."""

        def matrix(name: str, rows: int, copy: int) -> Any:
            return self.add_weight(
                name=name,
                shape=(rows, self.units),
                initializer=independent(self.kernel_initializer, copy),
            )

        def bias(name: str) -> Any:
            return self.add_weight(name=name, shape=(self.units,), initializer="zeros")

        self.W, self.b = matrix("W", last_dim(x_shape, self.name), 0), bias("b")
        self.maps = [
            {
                kind: (matrix(f"W_{kind}_{i}", self.units, 1 + 4 * i + k), bias(f"b_{kind}_{i}"))
                for k, kind in enumerate("QKVO")
            }
            for i in range(self.num_layers)
        ]
        for layer in self.dropouts:
            layer.build((None, None, self.units))
        self.interests.build((None, None, self.units))
        self.built = True

    def _attention(self, maps: dict[str, Any], x: tf.Tensor, mask: tf.Tensor | None) -> tf.Tensor:
        """Multi-head self-attention, `[batch, time, units]`."""
        width = self.units // self.num_heads

        def mapped(kind: str, values: tf.Tensor) -> tf.Tensor:
            kernel, bias = maps[kind]
            return tf.tensordot(values, tf.convert_to_tensor(kernel), 1) + bias

        def heads(kind: str) -> tf.Tensor:
            shape = [tf.shape(x)[0], tf.shape(x)[1], self.num_heads, width]
            return tf.transpose(tf.reshape(mapped(kind, x), shape), [0, 2, 1, 3])

        scores = tf.matmul(heads("Q"), heads("K"), transpose_b=True) / math.sqrt(width)
        seen = _attended(scores, heads("V"), None if mask is None else mask[:, None, None, :])
        seen = tf.reshape(tf.transpose(seen, [0, 2, 1, 3]), tf.shape(x))
        return mapped("O", seen)

    def contextualized(
        self, x: tf.Tensor, mask: tf.Tensor | None = None, training: bool = False
    ) -> tf.Tensor:
        """The vectors of events after the residual layers, `[batch, time, units]`."""
        x = zero_padding(tf.cast(x, self.compute_dtype), mask)
        x = tf.tensordot(x, tf.convert_to_tensor(self.W), 1) + self.b
        if self.positions:
            x += sinusoids_from_end(tf.shape(x)[1], self.units, x.dtype)
        for i, maps in enumerate(self.maps):
            more = tf.nn.elu(self._attention(maps, x, mask))
            if self.dropouts:
                more = self.dropouts[i](more, training=training)
            x = x + more
        return zero_padding(x, mask)

    def call(
        self, x: tf.Tensor, mask: tf.Tensor | None = None, training: bool = False
    ) -> tf.Tensor:
        """The interests of each history."""
        return self.interests(self.contextualized(x, mask, training), mask=mask)

    def compute_output_shape(self, x_shape: Any) -> tuple[int | None, ...]:
        """`[batch, num_interests, units]`."""
        return (x_shape[0], self.num_interests, self.units)
