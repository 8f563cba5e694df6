"""Common implementations of a mixture of low-rank cross layers, to compare the fused one with.

All compute eq. 4 of DCN-V2 with a softmax gate. `LoopMixture` and `BroadcastMixture` do so term by
term, as the paper writes it: the former adds up the experts one by one (and, unlike the open
implementations, does not stack them in memory), the latter holds all experts in one
`[batch, experts, dim]` tensor. `FactoredLoopMixture` and `ExpertMajorMixture` are what these become
when x0 is taken out of the sum, or the axes are put in the order that matrix products like best.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfrz.layers.cross import MixtureOfLowRankCross


@dataclasses.dataclass(frozen=True)
class MixtureWeights:
    """The arrays of one mixture layer, in the paper's letters.

    Attributes:
      down: V, `[experts, dim, rank]`.
      inner: C, `[experts, rank, rank]`, applied from the right (C transposed in the paper).
      up: U transposed, `[experts, rank, dim]`.
      bias: b, `[dim]`.
      gate: `[dim, experts]`.
    """

    down: np.ndarray
    inner: np.ndarray
    up: np.ndarray
    bias: np.ndarray
    gate: np.ndarray

    @classmethod
    def of(cls, layer: MixtureOfLowRankCross) -> MixtureWeights:
        """The weights of a built `MixtureOfLowRankCross`."""
        experts, rank = layer.num_experts, layer.rank
        down, up = (
            np.moveaxis(np.array(factor).reshape(-1, experts, rank), 1, 0)
            for factor in (layer.V, layer.U)
        )
        return cls(
            down=down,
            inner=np.array(layer.C).swapaxes(1, 2),
            up=up.swapaxes(1, 2),
            bias=np.array(layer.b),
            gate=np.array(layer.A).T,
        )


class _Mixture(keras.layers.Layer):
    """A layer whose initial weights are given as arrays."""

    def __init__(self, weights: MixtureWeights, activation: str = "tanh", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.activation = keras.activations.get(activation)
        self._initial = weights

    def _weight(self, name: str, value: np.ndarray) -> Any:
        return self.add_weight(
            name=name,
            shape=value.shape,
            initializer=lambda shape, dtype=None: tf.cast(value, dtype),
        )


class LoopMixture(_Mixture):
    """Expert after expert: sum_i G_i(x) (x0 * (U_i g(C_i g(V_i^T x)) + b)) + x."""

    def build(self, input_shape: Any) -> None:
        """Makes one set of matrices for each expert."""
        w = self._initial
        experts = range(len(w.down))
        self.down = [self._weight(f"down_{i}", w.down[i]) for i in experts]
        self.inner = [self._weight(f"inner_{i}", w.inner[i]) for i in experts]
        self.up = [self._weight(f"up_{i}", w.up[i]) for i in experts]
        self.bias = self._weight("bias", w.bias)
        self.gate = self._weight("gate", w.gate)
        self.built = True

    def call(self, x0: tf.Tensor, x: tf.Tensor | None = None) -> tf.Tensor:
        """`[batch, dim]` twice to `[batch, dim]`."""
        x = x0 if x is None else x
        gates = tf.nn.softmax(tf.matmul(x, self.gate))
        output = x
        for i, (down, inner, up) in enumerate(zip(self.down, self.inner, self.up, strict=True)):
            hidden = self.activation(tf.matmul(x, down))
            hidden = self.activation(tf.matmul(hidden, inner))
            expert = x0 * (tf.matmul(hidden, up) + self.bias)
            output += gates[:, i : i + 1] * expert
        return output


class BroadcastMixture(_Mixture):
    """All experts at once, as one tensor `[batch, experts, dim]` that the gates then sum up."""

    def build(self, input_shape: Any) -> None:
        """Makes the stacked matrices."""
        self.down = self._weight("down", self._initial.down)
        self.inner = self._weight("inner", self._initial.inner)
        self.up = self._weight("up", self._initial.up)
        self.bias = self._weight("bias", self._initial.bias)
        self.gate = self._weight("gate", self._initial.gate)
        self.built = True

    def call(self, x0: tf.Tensor, x: tf.Tensor | None = None) -> tf.Tensor:
        """`[batch, dim]` twice to `[batch, dim]`."""
        x = x0 if x is None else x
        gates = tf.nn.softmax(tf.matmul(x, self.gate))
        hidden = self.activation(tf.einsum("bd,kdr->bkr", x, self.down))
        hidden = self.activation(tf.einsum("bkr,krs->bks", hidden, self.inner))
        experts = x0[:, None, :] * (tf.einsum("bks,ksd->bkd", hidden, self.up) + self.bias)
        return tf.reduce_sum(gates[:, :, None] * experts, axis=1) + x


class FactoredLoopMixture(LoopMixture):
    """Expert after expert, with x0 taken out of the sum: x0 * sum_i G_i (U_i z_i + b) + x."""

    def call(self, x0: tf.Tensor, x: tf.Tensor | None = None) -> tf.Tensor:
        """`[batch, dim]` twice to `[batch, dim]`."""
        x = x0 if x is None else x
        gates = tf.nn.softmax(tf.matmul(x, self.gate))
        total = None
        for i, (down, inner, up) in enumerate(zip(self.down, self.inner, self.up, strict=True)):
            hidden = self.activation(tf.matmul(x, down))
            hidden = self.activation(tf.matmul(hidden, inner))
            expert = gates[:, i : i + 1] * (tf.matmul(hidden, up) + self.bias)
            total = expert if total is None else total + expert
        return x0 * total + x


class ExpertMajorMixture(BroadcastMixture):
    """All experts at once, as one tensor `[experts, batch, dim]`: plain batched products."""

    def call(self, x0: tf.Tensor, x: tf.Tensor | None = None) -> tf.Tensor:
        """`[batch, dim]` twice to `[batch, dim]`."""
        x = x0 if x is None else x
        gates = tf.nn.softmax(tf.matmul(x, self.gate))
        hidden = self.activation(tf.matmul(x, self.down))
        hidden = self.activation(tf.matmul(hidden, self.inner))
        experts = x0 * (tf.matmul(hidden, self.up) + self.bias)
        return tf.reduce_sum(tf.transpose(gates)[:, :, None] * experts, axis=0) + x
