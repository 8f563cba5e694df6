"""Causal encoders of published sequence models, baselines of M3."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from tfrz.config import require
from tfrz.layers.initializers import independent
from tfrz.layers.numerics import layer_norm
from tfrz.layers.temporal import Encoder, LongRangeEncoder, last_dim, policy_of, zero_padding


@keras.saving.register_keras_serializable(package="tfrz")
class CaserEncoder(Encoder):
    """Horizontal and vertical convolutions over the last events, as in Caser.

    Formula: over the window `E_t = [z_{t-L+1}; ...; z_t]`, zeros before the first event,

        horizontal: max over positions of ReLU(sum_{j<h} E_{i+j} K^h_j + b^h), heights h = 1..L
        vertical:   sum_l w^v_l E_l, for each vertical filter v
        SE_t = ReLU([horizontal, vertical] W + b)

    Args:
      units: width of the output.
      window: L.
      horizontal_filters: number of filters of each height.
      vertical_filters: number of vertical filters.
      kernel_initializer: initialiser of the kernels.

    Call arguments:
      z: inputs, `[batch, time, dim]`.
      mask: boolean `[batch, time]`, True for real events; all if left out.

    Returns:
      `[batch, time, units]`, in the layer's compute dtype; zeros at padded steps.

    Raises:
      ConfigError: an argument is below 1.

    Example:
      >>> CaserEncoder(4, window=3)(tf.zeros([2, 7, 5])).shape
      TensorShape([2, 7, 4])

    Reference:
      Tang and Wang, "Personalized Top-N Sequential Recommendation via Convolutional Sequence
      Embedding", WSDM 2018, without the vectors of users.
    """

    def __init__(
        self,
        units: int,
        window: int = 5,
        horizontal_filters: int = 16,
        vertical_filters: int = 4,
        kernel_initializer: Any = "glorot_uniform",
        **kwargs: Any,
    ) -> None:
        super().__init__(units, **kwargs)
        require(window >= 1, "window", "must be at least 1")
        require(horizontal_filters >= 1, "horizontal_filters", "must be at least 1")
        require(vertical_filters >= 1, "vertical_filters", "must be at least 1")
        self.window, self.horizontal_filters = window, horizontal_filters
        self.vertical_filters = vertical_filters
        self.kernel_initializer = keras.initializers.get(kernel_initializer)

    def build(self, z_shape: Any) -> None:
        """Makes `K_h` `[h, dim, filters]`, `b_h`, `vertical` `[L, filters]`, `W` and `b`."""
        dim, filters = last_dim(z_shape, self.name), self.horizontal_filters
        make = self.kernel_initializer
        self.kernels = [
            self.add_weight(
                name=f"K_{h}", shape=(h, dim, filters), initializer=independent(make, h)
            )
            for h in range(1, self.window + 1)
        ]
        self.biases = [
            self.add_weight(name=f"b_{h}", shape=(filters,), initializer="zeros")
            for h in range(1, self.window + 1)
        ]
        self.vertical = self.add_weight(
            name="vertical",
            shape=(self.window, self.vertical_filters),
            initializer=independent(make, 0),
        )
        width = filters * self.window + dim * self.vertical_filters
        self.W = self.add_weight(
            name="W", shape=(width, self.units), initializer=independent(make, self.window + 1)
        )
        self.b = self.add_weight(name="b", shape=(self.units,), initializer="zeros")
        self.built = True

    def call(self, z: tf.Tensor, mask: tf.Tensor | None = None) -> tf.Tensor:
        """Encodes every step with the window that ends there."""
        z = zero_padding(tf.cast(z, self.compute_dtype), mask)
        steps = tf.shape(z)[1]
        before = tf.pad(z, [[0, 0], [self.window - 1, 0], [0, 0]])
        parts = []
        for h, (kernel, bias) in enumerate(zip(self.kernels, self.biases, strict=True), start=1):
            length = steps + self.window - h
            beside = tf.concat([before[:, j : j + length] for j in range(h)], axis=-1)
            matrix = tf.reshape(tf.convert_to_tensor(kernel), [-1, self.horizontal_filters])
            found = tf.nn.relu(tf.tensordot(beside, matrix, 1) + bias)
            # Not pooling, whose gradient is slow in XLA on a CPU.
            places = self.window - h + 1
            best = found[:, :steps]
            for place in range(1, places):
                best = tf.maximum(best, found[:, place : place + steps])
            parts.append(best)
        windows = tf.stack([before[:, i : i + steps] for i in range(self.window)], axis=-1)
        vertical = tf.tensordot(windows, tf.convert_to_tensor(self.vertical), 1)
        shape = tf.concat([tf.shape(z)[:2], [z.shape[-1] * self.vertical_filters]], axis=0)
        parts.append(tf.reshape(vertical, shape))
        joined = tf.concat(parts, axis=-1)
        output = tf.nn.relu(tf.tensordot(joined, tf.convert_to_tensor(self.W), 1) + self.b)
        return zero_padding(output, mask)


@keras.saving.register_keras_serializable(package="tfrz")
class SelfAttentiveEncoder(Encoder):
    """Blocks of causal self-attention with learned positions, as in SASRec, with one head.

    Formula: `x = z W_in + P`; in each block `x += Attention(LN(x))`, then
    `x += ReLU(LN(x) W_1 + b_1) W_2 + b_2`; at the end `SE = LN(x)`.

    Args:
      units: width of the blocks and of the output.
      length: the longest history, for the table of positions.
      num_blocks: number of blocks.

    Call arguments:
      z: inputs, `[batch, time, dim]`, time at most `length`.
      mask: boolean `[batch, time]`, True for real events; all if left out.

    Returns:
      `[batch, time, units]`, in the layer's compute dtype; zeros at padded steps.

    Raises:
      ConfigError: an argument is below 1.

    Example:
      >>> SelfAttentiveEncoder(4, length=7)(tf.zeros([2, 7, 5])).shape
      TensorShape([2, 7, 4])

    Reference:
      Kang and McAuley, "Self-Attentive Sequential Recommendation", ICDM 2018, with the
      normalisation before each part and after the last.
    """

    def __init__(self, units: int, length: int, num_blocks: int = 2, **kwargs: Any) -> None:
        super().__init__(units, **kwargs)
        require(length >= 1, "length", "must be at least 1")
        require(num_blocks >= 1, "num_blocks", "must be at least 1")
        self.length, self.num_blocks = length, num_blocks
        policy = policy_of(self)
        self.attentions = [
            LongRangeEncoder(units, learn_values=True, dtype=policy, name=f"attention_{i}")
            for i in range(num_blocks)
        ]

    def build(self, z_shape: Any) -> None:
        """Makes the projection, the positions and each block's weights."""
        units = self.units
        assert units is not None

        def matrix(name: str, rows: int) -> Any:
            return self.add_weight(name=name, shape=(rows, units), initializer="glorot_uniform")

        def vector(name: str, value: str = "zeros") -> Any:
            return self.add_weight(name=name, shape=(units,), initializer=value)

        self.W_in = matrix("W_in", last_dim(z_shape, self.name))
        self.positions = self.add_weight(
            name="positions",
            shape=(self.length, units),
            initializer=keras.initializers.RandomNormal(stddev=0.02),
        )
        self.blocks = []
        for i, attention in enumerate(self.attentions):
            attention.build((None, None, units))
            self.blocks.append(
                {
                    name: vector(f"{name}_{i}", "ones" if name.startswith("scale") else "zeros")
                    for name in ("scale_1", "shift_1", "scale_2", "shift_2", "b_1", "b_2")
                }
                | {name: matrix(f"{name}_{i}", units) for name in ("W_1", "W_2")}
            )
        self.scale, self.shift = vector("scale", "ones"), vector("shift")
        self.built = True

    def call(self, z: tf.Tensor, mask: tf.Tensor | None = None) -> tf.Tensor:
        """Encodes every step with all steps before it."""
        z = zero_padding(tf.cast(z, self.compute_dtype), mask)
        x = tf.tensordot(z, tf.convert_to_tensor(self.W_in), 1)
        x += tf.convert_to_tensor(self.positions)[: tf.shape(z)[1]]
        for attention, block in zip(self.attentions, self.blocks, strict=True):
            x += attention(layer_norm(x, block["scale_1"], block["shift_1"]), mask=mask)
            h = layer_norm(x, block["scale_2"], block["shift_2"])
            h = tf.nn.relu(tf.tensordot(h, tf.convert_to_tensor(block["W_1"]), 1) + block["b_1"])
            x += tf.tensordot(h, tf.convert_to_tensor(block["W_2"]), 1) + block["b_2"]
        return zero_padding(layer_norm(x, self.scale, self.shift), mask)
