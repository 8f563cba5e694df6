"""Encoders of tiny, short and long temporal range, and their gated mixture: the layers of M3.

All are causal: the output of a step depends on that step and those before it. They take a boolean
mask, True for real events, for padding on either side. Padded steps, whatever they hold (NaN
included), change no output or gradient, and their own outputs are zeros. Padding on the right needs
no mask for the outputs of real steps to be right.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfrz.config import require
from tfrz.layers.configured import ConfiguredLayer
from tfrz.layers.initializers import independent
from tfrz.layers.numerics import wide

RANGES = ("tiny", "short", "long")
SHORT_RANGES = ("gru", "lstm", "convolution")
GATES = ("sigmoid", "softmax", "fixed")


def last_dim(shape: Sequence[int | None], what: str) -> int:
    """The last dimension of a shape.

    Raises:
      ValueError: it is unknown.
    """
    if shape[-1] is None:
        raise ValueError(f"{what} needs to know the last dimension of its input")
    return int(shape[-1])


def policy_of(layer: keras.layers.Layer) -> Any:
    """The dtype policy of a layer, in a form that Keras 2 and 3 accept."""
    policy = getattr(layer, "dtype_policy", None)
    if policy is None:  # Keras 2.15
        return "mixed_bfloat16" if layer.compute_dtype != layer.dtype else layer.dtype
    return policy


def zero_padding(values: tf.Tensor, mask: tf.Tensor | None) -> tf.Tensor:
    """`values` `[batch, time, dim]` with zeros where `mask` `[batch, time]` is False.

    Layers call it before their first product: NaN times zero is NaN, in gradients too.
    """
    if mask is None:
        return values
    return tf.where(mask[..., None], values, tf.zeros_like(values))


def windows(z: tf.Tensor, size: int, dilation: int = 1) -> tf.Tensor:
    """Each step with the steps before it: `[batch, time, dim]` to `[batch, time, size * dim]`.

    Step t is `[z_t, z_{t - dilation}, ..., z_{t - (size - 1) dilation}]`, zeros before the
    first event.
    """
    reach, steps = (size - 1) * dilation, tf.shape(z)[1]
    before = tf.pad(z, [[0, 0], [reach, 0], [0, 0]])
    places = [reach - j * dilation for j in range(size)]
    return tf.concat([before[:, place : place + steps] for place in places], axis=-1)


class Encoder(ConfiguredLayer):
    """Base class of encoders: `[batch, time, in]` to `[batch, time, units]`."""

    def __init__(self, units: int | None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        require(units is None or units >= 1, "units", "must be at least 1")
        self.units = units
        self.supports_masking = True

    def compute_output_shape(self, z_shape: Any) -> tuple[int | None, ...]:
        """`[batch, time, units]`."""
        return (*tuple(z_shape)[:-1], self.units or z_shape[-1])


@keras.saving.register_keras_serializable(package="tfrz")
class TinyRangeEncoder(Encoder):
    """Tiny range: the last event only, as in item co-occurrence.

    Formula: `SE_t^T = z_t W_T + b_T`, or `z_t` itself.

    Args:
      units: width of the output; None for the identity.
      kernel_initializer: initialiser of `W_T`.
      bias_initializer: initialiser of `b_T`.

    Call arguments:
      z: projected inputs, `[batch, time, dim]`.
      mask: boolean `[batch, time]`, True for real events; all if left out.

    Returns:
      `[batch, time, units]`, in the layer's compute dtype; zeros at padded steps.

    Raises:
      ValueError: the last dimension is unknown.
      ConfigError: `units` is below 1.

    Example:
      >>> layer = TinyRangeEncoder(units=None)
      >>> print(layer(tf.constant([[[1.0, 2.0]]])).numpy())
      [[[1. 2.]]]

    Reference:
      M3 (arXiv 1902.08588); the form is recalled, not verified in the paper.
    """

    def __init__(
        self,
        units: int | None = None,
        kernel_initializer: Any = "glorot_uniform",
        bias_initializer: Any = "zeros",
        **kwargs: Any,
    ) -> None:
        super().__init__(units, **kwargs)
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.bias_initializer = keras.initializers.get(bias_initializer)

    def build(self, z_shape: Any) -> None:
        """Makes `W_T` `[dim, units]` and `b_T` `[units]`, unless the layer is the identity."""
        if self.units is not None:
            shape = (last_dim(z_shape, self.name), self.units)
            self.W_T = self.add_weight(name="W_T", shape=shape, initializer=self.kernel_initializer)
            self.b_T = self.add_weight(
                name="b_T", shape=(self.units,), initializer=self.bias_initializer
            )
        self.built = True

    def call(self, z: tf.Tensor, mask: tf.Tensor | None = None) -> tf.Tensor:
        """Encodes every step on its own."""
        z = zero_padding(tf.cast(z, self.compute_dtype), mask)
        if self.units is not None:
            z = tf.tensordot(z, tf.convert_to_tensor(self.W_T), 1) + self.b_T
        return zero_padding(z, mask)


@keras.saving.register_keras_serializable(package="tfrz")
class ShortRangeEncoder(Encoder):
    """Short range: a recurrent network (M3R) or a causal convolution (M3C).

    Formula: `SE_t^S = RNN(z_t, SE_{t-1}^S)` from a zero state; or
    `SE_t^S = act(sum_{j=0}^{k-1} z_{t-j} K_j + b_S)` with zeros before the first event.

    Args:
      units: width of the output.
      kind: `gru` (with reset after the matrix product, as in Keras), `lstm` or `convolution`.
      kernel_size: `k` of the convolution.
      dilations: the dilations of consecutive convolutions; their range is
        `1 + (k - 1) * sum(dilations)` events.
      activation: of the convolution.
      kernel_initializer: of the kernels.
      bias_initializer: of the convolution's bias.

    Call arguments:
      z: projected inputs, `[batch, time, dim]`.
      mask: boolean `[batch, time]`, True for real events; all if left out.

    Returns:
      `[batch, time, units]`, in the layer's compute dtype; zeros at padded steps.

    Raises:
      ValueError: the last dimension is unknown.
      ConfigError: an argument is out of its range.

    Example:
      >>> layer = ShortRangeEncoder(1, kind="convolution", kernel_size=2, kernel_initializer="ones")
      >>> print(layer(tf.constant([[[1.0], [2.0], [4.0]]])).numpy().ravel())
      [1. 3. 6.]

    Reference:
      M3 (arXiv 1902.08588); cell, `k` and activation are recalled or chosen.
    """

    def __init__(
        self,
        units: int,
        kind: str = "gru",
        kernel_size: int = 5,
        dilations: Sequence[int] = (1,),
        activation: Any = "relu",
        kernel_initializer: Any = "glorot_uniform",
        bias_initializer: Any = "zeros",
        **kwargs: Any,
    ) -> None:
        super().__init__(units, **kwargs)
        require(kind in SHORT_RANGES, "kind", f"must be one of {', '.join(SHORT_RANGES)}")
        require(kernel_size >= 1, "kernel_size", "must be at least 1")
        require(bool(dilations) and min(dilations) >= 1, "dilations", "must be at least 1 each")
        self.kind, self.kernel_size, self.dilations = kind, kernel_size, tuple(dilations)
        self.activation = keras.activations.get(activation)
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.bias_initializer = keras.initializers.get(bias_initializer)
        self._rnn: Any = None
        if kind != "convolution":
            # Not the GRU and LSTM layers, which XLA compiles again at every training step.
            policy = policy_of(self)
            cell = keras.layers.GRUCell if kind == "gru" else keras.layers.LSTMCell
            self._rnn = keras.layers.RNN(
                cell(
                    units,
                    kernel_initializer=self.kernel_initializer,
                    dtype=policy,
                    name="cell",
                ),
                return_sequences=True,
                dtype=policy,
                name="rnn",
            )

    def build(self, z_shape: Any) -> None:
        """Makes the cell's weights, or a kernel `K` `[k, in, units]` and `b_S` per dilation."""
        dim = last_dim(z_shape, self.name)
        if self._rnn is not None:
            self._rnn.build((None, None, dim))
        else:
            self.kernels, self.biases = [], []
            for i in range(len(self.dilations)):
                ending = f"_{i}" if i else ""
                self.kernels.append(
                    self.add_weight(
                        name=f"K{ending}",
                        shape=(self.kernel_size, dim, self.units),
                        initializer=self.kernel_initializer,
                    )
                )
                self.biases.append(
                    self.add_weight(
                        name=f"b_S{ending}", shape=(self.units,), initializer=self.bias_initializer
                    )
                )
                dim = self.units or dim
        self.built = True

    def call(self, z: tf.Tensor, mask: tf.Tensor | None = None) -> tf.Tensor:
        """Encodes every step with the steps right before it."""
        z = zero_padding(tf.cast(z, self.compute_dtype), mask)
        if self._rnn is not None:
            return zero_padding(self._rnn(z, mask=mask), mask)
        for kernel, bias, dilation in zip(self.kernels, self.biases, self.dilations, strict=True):
            # One matrix product: the CPU kernels have no gradient of a dilated convolution.
            matrix = tf.reshape(tf.convert_to_tensor(kernel), [-1, self.units])
            z = tf.tensordot(windows(z, self.kernel_size, dilation), matrix, 1) + bias
            z = zero_padding(self.activation(z), mask)
        return z


@keras.saving.register_keras_serializable(package="tfrz")
class LongRangeEncoder(Encoder):
    """Long range: causal attention with one head and no positions.

    Formula: `SE_t^L = sum_{i<=t} a_{t,i} z_i W_V` with
    `a_{t,i} = softmax_{i<=t}((z_t W_Q) . (z_i W_K) / sqrt(d_k))`.

    Args:
      units: width of the output; None for that of the input.
      key_dim: `d_k`; the width of the input by default.
      projections: learn `W_Q` and `W_K`; otherwise queries and keys are the inputs.
      learn_values: learn `W_V` even if the input is as wide as the output; otherwise it is the
        identity in this case.
      kernel_initializer: of the matrices.

    Call arguments:
      z: projected inputs, `[batch, time, dim]`.
      mask: boolean `[batch, time]`, True for real events; all if left out.

    Returns:
      `[batch, time, units]`, in the layer's compute dtype; zeros at padded steps.

    Raises:
      ValueError: the last dimension is unknown.
      ConfigError: `units` or `key_dim` is below 1.

    Example:
      >>> layer = LongRangeEncoder(units=None, projections=False)
      >>> print(layer(tf.constant([[[0.0, 0.0], [0.0, 2.0]]])).numpy().round(3))
      [[[0.    0.   ]
        [0.    1.888]]]

    Reference:
      M3 (arXiv 1902.08588); the form is recalled, not verified in the paper.
    """

    def __init__(
        self,
        units: int | None = None,
        key_dim: int | None = None,
        projections: bool = True,
        learn_values: bool = False,
        kernel_initializer: Any = "glorot_uniform",
        **kwargs: Any,
    ) -> None:
        super().__init__(units, **kwargs)
        require(key_dim is None or key_dim >= 1, "key_dim", "must be at least 1")
        self.key_dim, self.projections = key_dim, projections
        self.learn_values = learn_values
        self.kernel_initializer = keras.initializers.get(kernel_initializer)

    def build(self, z_shape: Any) -> None:
        """Makes `W_Q`, `W_K` `[dim, key_dim]` and `W_V` `[dim, units]`, those that are learned."""
        dim = last_dim(z_shape, self.name)
        self.W_Q = self.W_K = self.W_V = None
        initializer = self.kernel_initializer
        if self.projections:
            shape = (dim, self.key_dim or dim)
            self.W_Q = self.add_weight(name="W_Q", shape=shape, initializer=initializer)
            self.W_K = self.add_weight(
                name="W_K", shape=shape, initializer=independent(initializer, 1)
            )
        units = self.units or dim
        if units != dim or self.learn_values:
            self.W_V = self.add_weight(
                name="W_V", shape=(dim, units), initializer=independent(initializer, 2)
            )
        self.built = True

    def attention(self, z: tf.Tensor, mask: tf.Tensor | None = None) -> tf.Tensor:
        """The weights `a`, `[batch, time, time]`; rows of padded steps are zeros."""
        z = zero_padding(tf.cast(z, self.compute_dtype), mask)
        queries = z if self.W_Q is None else tf.tensordot(z, tf.convert_to_tensor(self.W_Q), 1)
        keys = z if self.W_K is None else tf.tensordot(z, tf.convert_to_tensor(self.W_K), 1)
        # The softmax of a long history needs float32.
        scale = tf.sqrt(tf.cast(tf.shape(queries)[-1], tf.float32))
        scores = wide(tf.matmul(queries, keys, transpose_b=True))
        scores = scores / tf.cast(scale, scores.dtype)
        steps = tf.range(tf.shape(z)[1])
        seen = steps[None, :, None] >= steps[None, None, :]
        if mask is not None:
            seen = seen & mask[:, None, :] & mask[:, :, None]
        scores = tf.where(seen, scores, tf.constant(-1e9, scores.dtype))
        # A row without any key would be uniform.
        weights = tf.where(seen, tf.nn.softmax(scores), tf.zeros_like(scores))
        return tf.cast(weights, self.compute_dtype)

    def call(self, z: tf.Tensor, mask: tf.Tensor | None = None) -> tf.Tensor:
        """Encodes every step with all steps before it."""
        z = zero_padding(tf.cast(z, self.compute_dtype), mask)
        values = z if self.W_V is None else tf.tensordot(z, tf.convert_to_tensor(self.W_V), 1)
        return tf.matmul(self.attention(z, mask), values)


@keras.saving.register_keras_serializable(package="tfrz")
class ContextualGate(ConfiguredLayer):
    """One weight per encoder and step, from the context of the request.

    Formula: `G_t = sigmoid(u_t W_G + b_G)`, or `softmax(...)`, or ones.

    Args:
      num_gates: how many encoders are mixed.
      gate: `sigmoid` (independent gates), `softmax` (they sum to one) or `fixed` (all ones, no
        weights).
      kernel_initializer: of `W_G`.
      bias_initializer: of `b_G`.

    Call arguments:
      u: inputs of the gate, `[batch, time, dim]`: the contexts of the event and of the request
        (contextual), or the projected inputs (bottom switch).

    Returns:
      `[batch, time, num_gates]`, in the layer's compute dtype.

    Raises:
      ValueError: the last dimension is unknown.
      ConfigError: `num_gates` is below 1, or `gate` is unknown.

    Example:
      >>> gates = ContextualGate(3, gate="softmax", kernel_initializer="zeros")
      >>> print(gates(tf.zeros([1, 1, 2])).numpy().round(3))
      [[[0.333 0.333 0.333]]]

    Reference:
      M3 (arXiv 1902.08588); the learned gate from the context is verified, its form recalled.
    """

    def __init__(
        self,
        num_gates: int = 3,
        gate: str = "sigmoid",
        kernel_initializer: Any = "glorot_uniform",
        bias_initializer: Any = "zeros",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        require(num_gates >= 1, "num_gates", "must be at least 1")
        require(gate in GATES, "gate", f"must be one of {', '.join(GATES)}")
        self.num_gates, self.gate = num_gates, gate
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.bias_initializer = keras.initializers.get(bias_initializer)
        self.supports_masking = True

    def build(self, u_shape: Any) -> None:
        """Makes `W_G` `[dim, num_gates]` and `b_G` `[num_gates]`, unless the gate is fixed."""
        if self.gate != "fixed":
            shape = (last_dim(u_shape, self.name), self.num_gates)
            self.W_G = self.add_weight(name="W_G", shape=shape, initializer=self.kernel_initializer)
            self.b_G = self.add_weight(
                name="b_G", shape=(self.num_gates,), initializer=self.bias_initializer
            )
        self.built = True

    def call(self, u: tf.Tensor) -> tf.Tensor:
        """The gates of every step."""
        u = tf.cast(u, self.compute_dtype)
        if self.gate == "fixed":
            return tf.ones_like(u[..., :1]) * tf.ones([self.num_gates], u.dtype)
        scores = tf.tensordot(u, tf.convert_to_tensor(self.W_G), 1) + self.b_G
        return tf.sigmoid(scores) if self.gate == "sigmoid" else tf.nn.softmax(scores)

    def compute_output_shape(self, u_shape: Any) -> tuple[int | None, ...]:
        """`[batch, time, num_gates]`."""
        return (*tuple(u_shape)[:-1], self.num_gates)


@keras.saving.register_keras_serializable(package="tfrz")
class MultiTemporalRangeMixture(ConfiguredLayer):
    """Encoders of several ranges on the same inputs, weighted by a gate: the core of M3.

    Formula: `z_t^mix = sum_k G_t^k SE_t^k` over the encoders k.

    Args:
      units: width of every encoder.
      ranges: which encoders, of `tiny`, `short`, `long`; gates are in this order.
      short_range: `gru`, `lstm` (M3R) or `convolution` (M3C).
      gate: see `ContextualGate`.
      identity: the tiny encoder is its input, which must have `units` features.
      learn_values: see `LongRangeEncoder`.
      kernel_size: of the convolution.
      dilations: of the convolution.

    Call arguments:
      z: projected inputs, `[batch, time, dim]`.
      u: inputs of the gate, `[batch, time, any]`; `z` if left out (bottom switch).
      mask: boolean `[batch, time]`, True for real events; all if left out.

    Returns:
      `[batch, time, units]`, in the layer's compute dtype; zeros at padded steps.

    Raises:
      ValueError: a last dimension is unknown, or `identity` is true and the widths differ.
      ConfigError: an argument is out of its range.

    Example:
      >>> layer = MultiTemporalRangeMixture(4, short_range="convolution")
      >>> layer(tf.zeros([2, 7, 3]), tf.zeros([2, 7, 5])).shape
      TensorShape([2, 7, 4])

    Reference:
      M3 (arXiv 1902.08588); the contextual gate over such encoders is verified, the equations are
      recalled.
    """

    def __init__(
        self,
        units: int,
        ranges: Sequence[str] = RANGES,
        short_range: str = "gru",
        gate: str = "sigmoid",
        identity: bool = False,
        learn_values: bool = False,
        kernel_size: int = 5,
        dilations: Sequence[int] = (1,),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        require(units >= 1, "units", "must be at least 1")
        known = bool(ranges) and set(ranges) <= set(RANGES) and len(set(ranges)) == len(ranges)
        require(known, "ranges", f"must be some of {', '.join(RANGES)}, each once")
        self.units, self.ranges, self.identity = units, tuple(ranges), identity
        self.short_range, self.gate, self.learn_values = short_range, gate, learn_values
        self.kernel_size, self.dilations = kernel_size, tuple(dilations)
        self.supports_masking = True
        own = None if identity else units
        policy = policy_of(self)
        made: dict[str, Callable[[], Encoder]] = {
            "tiny": lambda: TinyRangeEncoder(own, dtype=policy, name="tiny"),
            "short": lambda: ShortRangeEncoder(
                units, short_range, kernel_size, dilations, dtype=policy, name="short"
            ),
            "long": lambda: LongRangeEncoder(
                units, learn_values=learn_values, dtype=policy, name="long"
            ),
        }
        self.encoders = [made[one]() for one in self.ranges]
        self.contextual_gate = ContextualGate(len(self.ranges), gate, dtype=policy, name="gate")

    def build(self, z_shape: Any, u_shape: Any = None) -> None:
        """Builds the encoders and the gate."""
        dim = last_dim(z_shape, self.name)
        if self.identity and dim != self.units:
            raise ValueError(f"identity needs an input of {self.units} features, got {dim}")
        for encoder in self.encoders:
            encoder.build((None, None, dim))
        if self.gate == "fixed" or u_shape is not None:
            width = dim if u_shape is None else last_dim(u_shape, self.name)
            self.contextual_gate.build((None, None, width))
        self.built = True

    def gates(
        self, z: tf.Tensor, u: tf.Tensor | None = None, mask: tf.Tensor | None = None
    ) -> tf.Tensor:
        """The weights of the encoders, `[batch, time, len(ranges)]`."""
        return self.contextual_gate(zero_padding(z if u is None else u, mask))

    def encodings(self, z: tf.Tensor, mask: tf.Tensor | None = None) -> list[tf.Tensor]:
        """The output of each encoder, `[batch, time, units]`."""
        return [encoder(z, mask=mask) for encoder in self.encoders]

    def call(
        self, z: tf.Tensor, u: tf.Tensor | None = None, mask: tf.Tensor | None = None
    ) -> tf.Tensor:
        """The gated sum of the encodings of `z`."""
        # Keras passes a mask for each argument of a call with several tensors.
        if isinstance(mask, list | tuple):
            mask = mask[0]
        gates = self.gates(z, u, mask)
        parts = self.encodings(z, mask)
        return tf.add_n([gates[..., k : k + 1] * part for k, part in enumerate(parts)])

    def compute_output_shape(self, z_shape: Any, u_shape: Any = None) -> tuple[int | None, ...]:
        """`[batch, time, units]`."""
        return (*tuple(z_shape)[:-1], self.units)
