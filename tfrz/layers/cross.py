"""Cross layers of DCN-V2: full rank, low rank, and gated mixtures of low-rank experts.

Weights are stored in the orientation of the paper: the first axis of `W` and `U` is the coordinate
of the output, which is multiplied by `x0`. (A Keras `Dense` kernel is the transpose.)
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from tfrz.config import require
from tfrz.layers.configured import ConfiguredLayer
from tfrz.layers.initializers import independent
from tfrz.layers.low_rank_dense import Factors, FullMatrix, as_float64, full_matrix

GATES = ("softmax", "sigmoid", "constant")


def _experts(
    initializer: Any, num_experts: int, fan_in: int, fan_out: int, transpose: bool
) -> Callable[..., tf.Tensor]:
    """Draws the `[fan_in, fan_out]` matrix of each expert separately, and concatenates them.

    One draw of the whole array would use the fans of the array: with Glorot's rule an expert of
    rank 64 among 4 would start several times too small.

    Args:
      initializer: of one matrix.
      num_experts: how many matrices.
      fan_in: of one matrix.
      fan_out: of one matrix.
      transpose: lay out the `[fan_out, fan_in]` transposes.

    Returns:
      A Keras initialiser of the array `[rows, num_experts * columns]`.
    """

    def draw(shape: Sequence[int], dtype: Any = None, **_: Any) -> tf.Tensor:
        matrices = [
            independent(initializer, i)((fan_in, fan_out), dtype=dtype) for i in range(num_experts)
        ]
        if transpose:
            matrices = [tf.transpose(matrix) for matrix in matrices]
        return tf.reshape(tf.concat(matrices, axis=1), shape)

    return draw


class _CrossBase(ConfiguredLayer):
    """Base class of the three kinds: `x0 * transform(x) + x`, bias, residual, penalty."""

    def __init__(
        self,
        use_bias: bool = True,
        use_residual: bool = True,
        frobenius_decay: float = 0.0,
        kernel_initializer: Any = "he_normal",
        bias_initializer: Any = "zeros",
        kernel_regularizer: Any = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        require(frobenius_decay >= 0, "frobenius_decay", "must not be negative")
        self.use_bias = use_bias
        self.use_residual = use_residual
        self.frobenius_decay = frobenius_decay
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.bias_initializer = keras.initializers.get(bias_initializer)
        self.kernel_regularizer = keras.regularizers.get(kernel_regularizer)
        self.b: Any = None

    def _add_bias(self, dim: int) -> None:
        if self.use_bias:
            self.b = self.add_weight(name="b", shape=(dim,), initializer=self.bias_initializer)

    @staticmethod
    def _dim(x0_shape: Sequence[int | None], x_shape: Sequence[int | None] | None) -> int:
        dim = x0_shape[-1]
        if dim is None:
            raise ValueError("a cross layer needs to know the last dimension of x0")
        if x_shape is not None and x_shape[-1] != dim:
            raise ValueError(f"x0 has {dim} features but x has {x_shape[-1]}: they must be equal")
        return int(dim)

    def _inputs(self, x0: tf.Tensor, x: tf.Tensor | None) -> tuple[tf.Tensor, tf.Tensor]:
        """Both in the compute dtype: Keras 2 casts only the first argument of a call."""
        x0 = tf.cast(x0, self.compute_dtype)
        return x0, x0 if x is None else tf.cast(x, self.compute_dtype)

    @abc.abstractmethod
    def squared_norm(self) -> tf.Tensor:
        """Squared Frobenius norm of the layer's matrix, a scalar."""

    def _cross(self, x0: tf.Tensor, transformed: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
        if self.frobenius_decay:
            self.add_loss(self.frobenius_decay * self.squared_norm())
        crossed = x0 * transformed
        return crossed + x if self.use_residual else crossed

    def compute_output_shape(self, x0_shape: Any, x_shape: Any = None) -> tuple[int | None, ...]:
        """The shape of `x0`."""
        return tuple(x0_shape)


@keras.saving.register_keras_serializable(package="tfrz")
class Cross(_CrossBase):
    """Full-rank cross layer.

    Formula: `x_{l+1} = x0 * (W x_l + b) + x_l`, with `*` element by element.

    Args:
      use_bias: add `b`, inside the parenthesis.
      use_residual: add `x_l`.
      frobenius_decay: adds `frobenius_decay * ||W||_F^2` to the model's losses.
      kernel_initializer: of `W`.
      bias_initializer: of `b`.
      kernel_regularizer: of `W`.

    Call arguments:
      x0: the base input, `[batch, dim]`.
      x: output of the layer before, `[batch, dim]`; `x0` if left out.

    Returns:
      `[batch, dim]`, in the layer's compute dtype.

    Raises:
      ValueError: the last dimension is unknown, or differs between `x0` and `x`.
      ConfigError: `frobenius_decay` is negative.

    Example:
      >>> layer = Cross(kernel_initializer="ones")
      >>> x0, x = tf.constant([[0.1, 0.2, 0.3]]), tf.constant([[0.4, 0.5, 0.6]])
      >>> print(layer(x0, x).numpy().round(2))
      [[0.55 0.8  1.05]]

    Reference:
      DCN V2 (arXiv 2008.13535), equation 1.
    """

    def build(self, x0_shape: Any, x_shape: Any = None) -> None:
        """Makes `W` `[dim, dim]` and `b` `[dim]`."""
        dim = self._dim(x0_shape, x_shape)
        self.W = self.add_weight(
            name="W",
            shape=(dim, dim),
            initializer=self.kernel_initializer,
            regularizer=self.kernel_regularizer,
        )
        self._add_bias(dim)
        self.built = True

    def squared_norm(self) -> tf.Tensor:
        """`||W||_F^2`."""
        return tf.reduce_sum(tf.square(tf.convert_to_tensor(self.W)))

    def call(self, x0: tf.Tensor, x: tf.Tensor | None = None) -> tf.Tensor:
        """Crosses `x` with `x0`."""
        x0, x = self._inputs(x0, x)
        transformed = tf.matmul(x, self.W, transpose_b=True)
        if self.use_bias:
            transformed = transformed + self.b
        return self._cross(x0, transformed, x)


@full_matrix.register
def _(layer: Cross) -> FullMatrix:
    return FullMatrix("cross", layer.W, layer.b)


@keras.saving.register_keras_serializable(package="tfrz")
class LowRankCross(_CrossBase):
    """Low-rank cross layer.

    Formula: `x_{l+1} = x0 * (U (V^T x_l) + b) + x_l`, with `U` and `V` of shape `[dim, rank]`.

    Args:
      rank: of `W = U V^T`. Fewer parameters than full rank only if below `dim / 2`.
      use_bias: add `b`, inside the parenthesis.
      use_residual: add `x_l`.
      frobenius_decay: adds `frobenius_decay * ||U V^T||_F^2` to the model's losses.
      kernel_initializer: of each factor as a map: `V` from `dim` to `rank`, `U` from `rank` to
        `dim`.
      bias_initializer: of `b`.
      kernel_regularizer: of each factor; L2 on the factors is not L2 on their product.

    Call arguments:
      x0: the base input, `[batch, dim]`.
      x: output of the layer before, `[batch, dim]`; `x0` if left out.

    Returns:
      `[batch, dim]`, in the layer's compute dtype.

    Raises:
      ValueError: the last dimension is unknown, or differs between `x0` and `x`.
      ConfigError: `rank` is below 1 or `frobenius_decay` is negative.

    Example:
      >>> layer = LowRankCross(rank=1, kernel_initializer="ones")
      >>> x0, x = tf.constant([[0.1, 0.2, 0.3]]), tf.constant([[0.4, 0.5, 0.6]])
      >>> print(layer(x0, x).numpy().round(2))
      [[0.55 0.8  1.05]]

    Reference:
      DCN V2 (arXiv 2008.13535), equation 2.
    """

    def __init__(self, rank: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        require(rank >= 1, "rank", "must be at least 1")
        self.rank = rank

    def build(self, x0_shape: Any, x_shape: Any = None) -> None:
        """Makes `U`, `V` `[dim, rank]` and `b` `[dim]`."""
        dim = self._dim(x0_shape, x_shape)
        initializer = self.kernel_initializer
        self.V = self.add_weight(
            name="V",
            shape=(dim, self.rank),
            initializer=_experts(independent(initializer, 0), 1, dim, self.rank, False),
            regularizer=self.kernel_regularizer,
        )
        self.U = self.add_weight(
            name="U",
            shape=(dim, self.rank),
            initializer=_experts(independent(initializer, 1), 1, self.rank, dim, True),
            regularizer=self.kernel_regularizer,
        )
        self._add_bias(dim)
        self.built = True

    @property
    def factors(self) -> Factors:
        """Float64 factors of the matrix in `x W^T`, as `LowRankDense` has them: V, then U."""
        return as_float64(self.V), as_float64(self.U)

    def assign_factors(self, left: NDArray[np.float64], right: NDArray[np.float64]) -> None:
        """Sets V and U, in the order of `factors`."""
        self.V.assign(left)
        self.U.assign(right)

    def squared_norm(self) -> tf.Tensor:
        """`||U V^T||_F^2 = trace((U^T U)(V^T V))`, without forming `U V^T`."""
        U, V = tf.convert_to_tensor(self.U), tf.convert_to_tensor(self.V)
        return tf.reduce_sum(tf.matmul(U, U, transpose_a=True) * tf.matmul(V, V, transpose_a=True))

    def call(self, x0: tf.Tensor, x: tf.Tensor | None = None) -> tf.Tensor:
        """Crosses `x` with `x0`."""
        x0, x = self._inputs(x0, x)
        transformed = tf.matmul(tf.matmul(x, self.V), self.U, transpose_b=True)
        if self.use_bias:
            transformed = transformed + self.b
        return self._cross(x0, transformed, x)


@keras.saving.register_keras_serializable(package="tfrz")
class MixtureOfLowRankCross(_CrossBase):
    """Gated mixture of low-rank cross experts.

    Formula, without an activation (equation 3) and with one and the inner map (equation 4):

        x_{l+1} = sum_i G_i(x_l) x0 * (U^i V^i^T x_l + b) + x_l
        x_{l+1} = sum_i G_i(x_l) x0 * (U^i g(C^i g(V^i^T x_l)) + b) + x_l

    It is computed as `x0 * ([U^1..U^K] (G . z) + (sum_i G_i) b) + x_l`: one product for all
    experts, without a tensor `[batch, num_experts, dim]`.

    Args:
      num_experts: K.
      rank: rank of one expert. (The tables of the paper have K times this.)
      gate: "softmax" over the experts, "sigmoid" of each, or "constant".
      gate_constant: the value of every constant gate. The paper does not say whether its
        constant is 1 or 1 / K.
      expert_activation: g, any Keras activation; None for none.
      use_inner_map: whether there is C. Without it g is applied once.
      use_bias: add `b`, which the experts share.
      use_residual: add `x_l`.
      frobenius_decay: adds `frobenius_decay * sum_i ||U^i V^i^T||_F^2` to the model's losses.
      kernel_initializer: of each expert's factors, drawn with the fans of one expert.
      inner_initializer: of each `C^i`.
      gate_initializer: of the gates' scores.
      bias_initializer: of `b`.
      kernel_regularizer: of each factor and inner map.

    Call arguments:
      x0: the base input, `[batch, dim]`.
      x: output of the layer before, `[batch, dim]`; `x0` if left out.

    Returns:
      `[batch, dim]`, in the layer's compute dtype.

    Raises:
      ValueError: the last dimension is unknown, or differs between `x0` and `x`.
      ConfigError: a number below 1, or an unknown gate.

    Example:
      >>> layer = MixtureOfLowRankCross(num_experts=4, rank=8, expert_activation="tanh")
      >>> layer(tf.ones([2, 16])).shape
      TensorShape([2, 16])

    Reference:
      DCN V2 (arXiv 2008.13535), equations 3 and 4. The paper gives no formula for the gates;
      scores linear in `x_l`, without a bias, are the usual reading.
    """

    def __init__(
        self,
        num_experts: int = 4,
        rank: int = 64,
        gate: str = "softmax",
        gate_constant: float = 1.0,
        expert_activation: Any = None,
        use_inner_map: bool = True,
        inner_initializer: Any = "he_normal",
        gate_initializer: Any = "glorot_uniform",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        require(num_experts >= 1, "num_experts", "must be at least 1")
        require(rank >= 1, "rank", "must be at least 1")
        require(gate in GATES, "gate", f"{gate!r} is none of {', '.join(GATES)}")
        self.num_experts = num_experts
        self.rank = rank
        self.gate = gate
        self.gate_constant = gate_constant
        self.expert_activation = keras.activations.get(expert_activation)
        self.use_inner_map = use_inner_map
        self.inner_initializer = keras.initializers.get(inner_initializer)
        self.gate_initializer = keras.initializers.get(gate_initializer)

    def build(self, x0_shape: Any, x_shape: Any = None) -> None:
        """Makes `U`, `V` `[dim, K rank]`, `C` `[K, rank, rank]`, `A` `[K, dim]`, `b` `[dim]`.

        The columns of expert i in `U` and `V` are `i * rank` to `(i + 1) * rank`.
        """
        dim = self._dim(x0_shape, x_shape)
        experts, rank, initializer = self.num_experts, self.rank, self.kernel_initializer
        self.V = self.add_weight(
            name="V",
            shape=(dim, experts * rank),
            initializer=_experts(independent(initializer, 0), experts, dim, rank, False),
            regularizer=self.kernel_regularizer,
        )
        self.U = self.add_weight(
            name="U",
            shape=(dim, experts * rank),
            initializer=_experts(independent(initializer, experts), experts, rank, dim, True),
            regularizer=self.kernel_regularizer,
        )
        if self.use_inner_map:
            inner = _experts(self.inner_initializer, experts, rank, rank, False)
            self.C = self.add_weight(
                name="C",
                shape=(experts, rank, rank),
                # Side by side to one behind the other.
                initializer=lambda shape, dtype=None, **_: tf.transpose(
                    tf.reshape(inner((rank, experts * rank), dtype=dtype), (rank, experts, rank)),
                    (1, 0, 2),
                ),
                regularizer=self.kernel_regularizer,
            )
        if self.gate != "constant":
            self.A = self.add_weight(
                name="A", shape=(experts, dim), initializer=self.gate_initializer
            )
        self._add_bias(dim)
        self.built = True

    def squared_norm(self) -> tf.Tensor:
        """`sum_i ||U^i V^i^T||_F^2`, without forming the products."""
        grams = []
        for factor in (self.U, self.V):
            split = tf.reshape(tf.convert_to_tensor(factor), (-1, self.num_experts, self.rank))
            split = tf.transpose(split, (1, 0, 2))
            grams.append(tf.matmul(split, split, transpose_a=True))
        return tf.reduce_sum(grams[0] * grams[1])

    def gates(self, x: tf.Tensor) -> tf.Tensor:
        """G(x), `[batch, num_experts]`, for inputs `[batch, dim]`."""
        if self.gate == "constant":
            return tf.fill([tf.shape(x)[0], self.num_experts], tf.cast(self.gate_constant, x.dtype))
        return self._weigh(tf.matmul(x, self.A, transpose_b=True))

    def _split(self, x: tf.Tensor) -> tuple[list[tf.Tensor], tf.Tensor]:
        """`V^T x` expert by expert, `[batch, rank]` each, and the gates `[batch, num_experts]`.

        Both are one product: a second one would read `x`, and in the backward pass write its
        gradient, once more.
        """
        kernel = tf.convert_to_tensor(self.V)
        sizes = [self.rank] * self.num_experts
        if self.gate == "constant":
            return tf.split(tf.matmul(x, kernel), sizes, axis=1), self.gates(x)
        kernel = tf.concat([kernel, tf.transpose(tf.convert_to_tensor(self.A))], axis=1)
        *projected, scores = tf.split(tf.matmul(x, kernel), [*sizes, self.num_experts], axis=1)
        return projected, self._weigh(scores)

    def _weigh(self, scores: tf.Tensor) -> tf.Tensor:
        return tf.nn.softmax(scores) if self.gate == "softmax" else tf.sigmoid(scores)

    def call(self, x0: tf.Tensor, x: tf.Tensor | None = None) -> tf.Tensor:
        """Crosses `x` with `x0`."""
        x0, x = self._inputs(x0, x)
        codes, gates = self._split(x)
        codes = [self.expert_activation(code) for code in codes]
        if self.use_inner_map:
            # Small products for each expert: a block-diagonal C would multiply mostly zeros.
            inner = tf.unstack(tf.convert_to_tensor(self.C))
            codes = [
                self.expert_activation(tf.matmul(code, c, transpose_b=True))
                for code, c in zip(codes, inner, strict=True)
            ]
        weights = tf.split(gates, self.num_experts, axis=1)
        weighted = tf.concat([g * z for g, z in zip(weights, codes, strict=True)], axis=1)
        transformed = tf.matmul(weighted, self.U, transpose_b=True)
        if self.use_bias:
            # Softmax gates sum to one: the sum is the bias itself.
            if self.gate == "softmax":
                transformed = tf.nn.bias_add(transformed, tf.convert_to_tensor(self.b))
            else:
                transformed += tf.reduce_sum(gates, axis=1, keepdims=True) * self.b
        return self._cross(x0, transformed, x)
