"""A dense layer whose matrix is a product of two thin ones, and the full matrix it replaces."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from tfrz.config import require
from tfrz.keras_versions import layers_within
from tfrz.layers.configured import ConfiguredLayer
from tfrz.layers.temporal import last_dim

Factors = tuple[NDArray[np.float64], NDArray[np.float64]]


def spectral_factors(W: NDArray[np.float64], rank: int) -> Factors:
    """Balanced factors of the matrix of that rank nearest to `W` in the Frobenius norm.

    Formula: `W = P S R^T`, `U = P_r S_r^(1/2)`, `V = R_r S_r^(1/2)`, so that
    `U^T U = V^T V = S_r`.

    Args:
      W: `[dim, units]`.
      rank: 1 to `min(dim, units)`.

    Returns:
      U `[dim, rank]` and V `[units, rank]`, float64.

    Raises:
      ConfigError: a rank out of range.

    Example:
      >>> U, V = spectral_factors(np.array([[3.0, 0.0], [0.0, 1.0]]), rank=1)
      >>> print((U @ V.T).round(6))
      [[3. 0.]
       [0. 0.]]

    Reference:
      Khodak et al., "Initialization and Regularization of Factorized Neural Layers" (ICLR 2021).
    """
    W = np.asarray(W, np.float64)
    full = min(W.shape)
    require(1 <= rank <= full, "rank", f"{rank} is not 1 to {full}, the full rank")
    left, values, right = np.linalg.svd(W, full_matrices=False)
    root = np.sqrt(values[:rank])
    return left[:, :rank] * root, right[:rank].T * root


def as_float64(weight: Any) -> NDArray[np.float64]:
    """The values of a variable in float64."""
    return np.asarray(tf.cast(tf.convert_to_tensor(weight), tf.float64))


def as_rows(tensor: tf.Tensor) -> NDArray[np.float64]:
    """The values of `[..., dim]` as float64 rows `[rows, dim]`."""
    values = np.asarray(tf.cast(tensor, tf.float32), np.float64)
    return values.reshape(-1, values.shape[-1])


@dataclasses.dataclass(frozen=True)
class FullMatrix:
    """The matrix of a built layer, which two thin ones can replace.

    Attributes:
      kind: `dense`, or `cross` for the transposed matrix of a cross layer.
      weight: the variable, `[dim, units]`; a cross layer's is square.
      bias: the variable `[units]`, None if there is none.
      is_relu: whether a ReLU follows.
    """

    kind: Literal["dense", "cross"]
    weight: tf.Variable
    bias: tf.Variable | None
    is_relu: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        """`(dim, units)`."""
        dim, units = self.weight.shape
        return int(dim), int(units)

    @property
    def values(self) -> NDArray[np.float64]:
        """W, float64 `[dim, units]`: the layer computes `x W`."""
        values = as_float64(self.weight)
        return values.T if self.kind == "cross" else values

    def unit_weights(self, read: tuple[tf.Tensor, ...], output: tf.Tensor) -> NDArray[np.float64]:
        """What an error of each unit counts: `x0^2` in a cross layer, else 0 where a ReLU is 0.

        Args:
          read: the arguments of a call of the layer.
          output: of that call.

        Returns:
          float64 `[rows, units]`.
        """
        if self.kind == "cross":
            return np.square(as_rows(read[0]))
        values = as_rows(output)
        return (values > 0).astype(np.float64) if self.is_relu else np.ones_like(values)


@functools.singledispatch
def full_matrix(layer: keras.layers.Layer) -> FullMatrix | None:
    """The full matrix of a built layer; None if it has none that can be replaced.

    A class of layers joins in by `full_matrix.register`.
    """
    return None


@full_matrix.register
def _(layer: keras.layers.Dense) -> FullMatrix:
    bias = layer.bias if layer.use_bias else None
    return FullMatrix("dense", layer.kernel, bias, layer.activation is keras.activations.relu)


@keras.saving.register_keras_serializable(package="tfrz")
class LowRankDense(ConfiguredLayer):
    """A dense layer of low rank, without an activation between the two factors.

    Formula: `y = act(x U V^T + b)`, with `U` `[dim, rank]` and `V` `[units, rank]`.

    The factors start as the nearest ones to the matrix that `kernel_initializer` draws for a dense
    layer, with equal singular values (spectral initialisation). Their product is smaller than that
    matrix: `tfrz.training.factorization` has other initial values and repairs the scale.

    Args:
      units: width of the output.
      rank: rank of the matrix; below `dim * units / (dim + units)` there are fewer parameters than
        in a dense layer.
      activation: any Keras activation; None for none.
      use_bias: add `b`.
      frobenius_decay: lambda of the penalty `lambda / 2 * ||U V^T||_F^2` that is added to the
        losses of the model. An L2 penalty on each factor would be a penalty on the nuclear norm,
        which lowers the rank.
      kernel_initializer: of the dense matrix `[dim, units]`.
      bias_initializer: of `b`.

    Call arguments:
      x: `[..., dim]`.

    Returns:
      `[..., units]`, in the layer's compute dtype.

    Raises:
      ValueError: the last dimension is unknown.
      ConfigError: `units` or `rank` below 1, a rank above the full one, or a negative
        `frobenius_decay`.

    Example:
      >>> layer = LowRankDense(units=64, rank=4, activation="relu")
      >>> layer(tf.ones([2, 32])).shape
      TensorShape([2, 64])
      >>> layer.count_params() == 4 * (32 + 64) + 64
      True

    Reference:
      Vodrahalli et al. (arXiv 2202.00834), whose baseline is the spectral initialisation and the
      Frobenius decay of Khodak et al. (ICLR 2021).
    """

    def __init__(
        self,
        units: int,
        rank: int,
        activation: Any = None,
        use_bias: bool = True,
        frobenius_decay: float = 0.0,
        kernel_initializer: Any = "glorot_uniform",
        bias_initializer: Any = "zeros",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        require(units >= 1, "units", "must be at least 1")
        require(rank >= 1, "rank", "must be at least 1")
        require(rank <= units, "rank", f"{rank} is above {units}, the layer's units")
        require(frobenius_decay >= 0, "frobenius_decay", "must not be negative")
        self.units, self.rank = units, rank
        self.activation = keras.activations.get(activation)
        self.use_bias = use_bias
        self.frobenius_decay = frobenius_decay
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.bias_initializer = keras.initializers.get(bias_initializer)
        self.b: Any = None

    def build(self, x_shape: Any) -> None:
        """Makes `U` `[dim, rank]`, `V` `[units, rank]` and `b` `[units]`."""
        dim = last_dim(x_shape, self.name)
        require(
            self.rank <= dim,
            "rank",
            f"{self.rank} is above {dim}, the width of {self.name}'s input",
        )
        # The decomposition needs values, also while a graph is being built.
        with tf.init_scope():
            dtype = "float64" if self.dtype == "float64" else "float32"
            drawn = self.kernel_initializer((dim, self.units), dtype=dtype)
            factors = spectral_factors(np.asarray(drawn), self.rank)
        for name, factor in zip("UV", factors, strict=True):
            weight = self.add_weight(
                name=name,
                shape=factor.shape,
                initializer=lambda shape, dtype=None, value=factor, **_: tf.cast(value, dtype),
            )
            setattr(self, name, weight)
        if self.use_bias:
            self.b = self.add_weight(
                name="b", shape=(self.units,), initializer=self.bias_initializer
            )
        self.built = True

    @property
    def factors(self) -> Factors:
        """U `[dim, rank]` and V `[units, rank]`, float64, of the matrix `U V^T`."""
        return as_float64(self.U), as_float64(self.V)

    def assign_factors(self, U: NDArray[np.float64], V: NDArray[np.float64]) -> None:
        """Sets U `[dim, rank]` and V `[units, rank]`."""
        self.U.assign(U)
        self.V.assign(V)

    def squared_norm(self) -> tf.Tensor:
        """`||U V^T||_F^2 = trace((U^T U)(V^T V))`, without forming `U V^T`."""
        U, V = tf.convert_to_tensor(self.U), tf.convert_to_tensor(self.V)
        return tf.reduce_sum(tf.matmul(U, U, transpose_a=True) * tf.matmul(V, V, transpose_a=True))

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """The layer's output."""
        if self.frobenius_decay:
            self.add_loss(0.5 * self.frobenius_decay * self.squared_norm())
        x = tf.cast(x, self.compute_dtype)
        U, V = (tf.cast(tf.convert_to_tensor(w), x.dtype) for w in (self.U, self.V))
        y = tf.tensordot(tf.tensordot(x, U, 1), tf.transpose(V), 1)
        if self.use_bias:
            y = y + tf.cast(tf.convert_to_tensor(self.b), x.dtype)
        return self.activation(y)

    def compute_output_shape(self, x_shape: Any) -> tuple[int | None, ...]:
        """The input's, with `units` at the end."""
        return (*x_shape[:-1], self.units)


def frobenius_penalty(model: keras.Model) -> tf.Tensor:
    """The penalties of the layers of low rank in a model, from their weights, a scalar.

    For losses that do not add `model.losses`, which depends on the last call.
    """
    layers = [m for m in layers_within(model) if isinstance(m, LowRankDense) and m.frobenius_decay]
    penalties = [tf.cast(m.frobenius_decay * m.squared_norm(), tf.float32) / 2 for m in layers]
    return tf.add_n(penalties) if penalties else tf.constant(0.0)
