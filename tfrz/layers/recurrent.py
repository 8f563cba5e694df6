"""The chaos-free recurrent network, whose state decays to zero without inputs."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from tfrz.config import require
from tfrz.layers.configured import ConfiguredLayer
from tfrz.layers.initializers import independent
from tfrz.layers.temporal import last_dim, zero_padding


@keras.saving.register_keras_serializable(package="tfrz")
class ChaosFreeCell(ConfiguredLayer):
    """One step of the chaos-free network (CFN); a cell for `keras.layers.RNN` too.

    Formula:

        z   = sigmoid(U_z s + W_z u + b_z)
        i   = sigmoid(U_i s + W_i u + b_i)
        s'  = z * tanh(s) + i * tanh(W_a u)

    There is neither a bias nor a recurrent matrix inside the last tanh, so that the state shrinks
    at every step without input.

    Args:
      units: n, width of the state.
      kernel_initializer: of W_z, W_i and W_a.
      recurrent_initializer: of U_z and U_i.
      bias_initializer: of b_z and b_i.

    Call arguments:
      u: embedding of the action taken, `[batch, dim]`.
      states: a list with s, `[batch, units]`.

    Returns:
      s' `[batch, units]`, and a list with it.

    Raises:
      ValueError: the last dimension is unknown.
      ConfigError: `units` is below 1.

    Example:
      >>> cell = ChaosFreeCell(2)
      >>> output, states = cell(tf.zeros([1, 3]), [tf.constant([[0.5, -1.0]])])
      >>> bool(tf.reduce_all(tf.abs(output) < tf.abs(tf.tanh(tf.constant([[0.5, -1.0]])))))
      True

    Reference:
      Chen et al. (arXiv 1812.02353), equation 5; Laurent and von Brecht, "A recurrent neural
      network without chaos" (2016).
    """

    def __init__(
        self,
        units: int,
        kernel_initializer: Any = "glorot_uniform",
        recurrent_initializer: Any = "orthogonal",
        bias_initializer: Any = "zeros",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        require(units >= 1, "units", "must be at least 1")
        self.units = units
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.recurrent_initializer = keras.initializers.get(recurrent_initializer)
        self.bias_initializer = keras.initializers.get(bias_initializer)

    @property
    def state_size(self) -> int:
        """Width of the state."""
        return self.units

    @property
    def output_size(self) -> int:
        """Width of the output."""
        return self.units

    def build(self, u_shape: Any, states_shape: Any = None) -> None:
        """Makes U `[units, units]`, W `[dim, units]` and b `[units]`."""
        dim, units = last_dim(u_shape, self.name), self.units

        def weight(name: str, shape: tuple[int, ...], initializer: Any) -> Any:
            return self.add_weight(name=name, shape=shape, initializer=initializer)

        for copy, gate in enumerate(("z", "i")):
            recurrent = independent(self.recurrent_initializer, copy)
            setattr(self, f"U_{gate}", weight(f"U_{gate}", (units, units), recurrent))
            kernel = independent(self.kernel_initializer, copy)
            setattr(self, f"W_{gate}", weight(f"W_{gate}", (dim, units), kernel))
            setattr(self, f"b_{gate}", weight(f"b_{gate}", (units,), self.bias_initializer))
        self.W_a = weight("W_a", (dim, units), independent(self.kernel_initializer, 2))
        self.built = True

    def of_inputs(self, u: tf.Tensor) -> tf.Tensor:
        """The terms of the inputs in the two gates and the candidate, `[..., 3 * units]`."""
        u = tf.cast(u, self.compute_dtype)
        kernels = [
            tf.cast(tf.convert_to_tensor(w), u.dtype) for w in (self.W_z, self.W_i, self.W_a)
        ]
        biases = [tf.cast(tf.convert_to_tensor(b), u.dtype) for b in (self.b_z, self.b_i)]
        added = tf.concat([*biases, tf.zeros_like(biases[0])], axis=0)
        return tf.tensordot(u, tf.concat(kernels, axis=1), 1) + added

    def step(self, added: tf.Tensor, s: tf.Tensor) -> tf.Tensor:
        """The next state, from `of_inputs` `[batch, 3 * units]` and the state."""
        recurrent = tf.concat(
            [tf.cast(tf.convert_to_tensor(w), s.dtype) for w in (self.U_z, self.U_i)], axis=1
        )
        z, i = tf.split(tf.sigmoid(tf.matmul(s, recurrent) + added[:, : 2 * self.units]), 2, axis=1)
        return z * tf.tanh(s) + i * tf.tanh(added[:, 2 * self.units :])

    def call(
        self, u: tf.Tensor, states: Any, training: bool = False
    ) -> tuple[tf.Tensor, list[tf.Tensor]]:
        """One step."""
        del training
        s = states[0] if isinstance(states, list | tuple) else states
        after = self.step(self.of_inputs(u), tf.cast(s, self.compute_dtype))
        return after, [after]

    def get_initial_state(
        self, inputs: Any = None, batch_size: Any = None, dtype: Any = None
    ) -> list[tf.Tensor]:
        """Zeros."""
        rows = tf.shape(inputs)[0] if inputs is not None else batch_size
        return [tf.zeros([rows, self.units], dtype or self.compute_dtype)]


@keras.saving.register_keras_serializable(package="tfrz")
class ChaosFreeRNN(ConfiguredLayer):
    """States of a user before each action, and after the last.

    Formula: `s_{t+1} = CFN(s_t, u_t)`, see `ChaosFreeCell`; a padded step keeps the state. Score
    action t with `s_t`, the state before it.

    Args:
      units: n, width of the state.
      kernel_initializer: of W_z, W_i and W_a.
      recurrent_initializer: of U_z and U_i.
      bias_initializer: of b_z and b_i.

    Call arguments:
      inputs: u, embeddings of the actions, `[batch, time, dim]`.
      mask: boolean `[batch, time]`, True for real steps; all if left out.
      initial_state: s_0, `[batch, units]`; zeros if left out.

    Returns:
      s_0 ... s_T, `[batch, time + 1, units]`, in the layer's compute dtype.

    Raises:
      ValueError: the last dimension is unknown.
      ConfigError: `units` is below 1.

    Example:
      >>> states = ChaosFreeRNN(4)(tf.zeros([2, 3, 5]))
      >>> states.shape
      TensorShape([2, 4, 4])

    Reference:
      Chen et al. (arXiv 1812.02353), section 4.1.
    """

    def __init__(
        self,
        units: int,
        kernel_initializer: Any = "glorot_uniform",
        recurrent_initializer: Any = "orthogonal",
        bias_initializer: Any = "zeros",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        # Float32 even in a mixed policy: the state accumulates over many steps.
        self.cell = ChaosFreeCell(
            units,
            kernel_initializer,
            recurrent_initializer,
            bias_initializer,
            dtype="float64" if self.compute_dtype == "float64" else "float32",
            name="cell",
        )
        self.units, self.kernel_initializer = units, self.cell.kernel_initializer
        self.recurrent_initializer = self.cell.recurrent_initializer
        self.bias_initializer = self.cell.bias_initializer
        self.supports_masking = True

    def build(self, inputs_shape: Any, *_: Any, **__: Any) -> None:
        """Builds the cell."""
        self.cell.build((None, last_dim(inputs_shape, self.name)))
        self.built = True

    def call(
        self,
        inputs: tf.Tensor,
        mask: tf.Tensor | None = None,
        initial_state: tf.Tensor | None = None,
    ) -> tf.Tensor:
        """The states."""
        if isinstance(mask, list | tuple):
            mask = mask[0]
        wide = self.cell.compute_dtype
        mask = None if mask is None else tf.cast(mask, tf.bool)
        added = self.cell.of_inputs(zero_padding(tf.cast(inputs, wide), mask))
        rows, steps = tf.shape(added)[0], tf.shape(added)[1]
        first = tf.zeros([rows, self.units], wide)
        if initial_state is not None:
            first = tf.cast(initial_state, wide)
        real = tf.ones([rows, steps], tf.bool) if mask is None else mask
        if inputs.shape[1] is not None:
            states = [first]
            for t in range(inputs.shape[1]):
                after = self.cell.step(added[:, t], states[-1])
                states.append(tf.where(real[:, t, None], after, states[-1]))
            stacked = tf.stack(states, axis=1)
        else:

            def step(s: tf.Tensor, given: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
                after = self.cell.step(given[0], s)
                return tf.where(given[1][:, None], after, s)

            later = tf.scan(step, (tf.transpose(added, [1, 0, 2]), tf.transpose(real)), first)
            stacked = tf.concat([first[:, None], tf.transpose(later, [1, 0, 2])], axis=1)
        return tf.cast(stacked, self.compute_dtype)

    def compute_output_shape(self, inputs_shape: Any, *_: Any, **__: Any) -> Any:
        """`[batch, time + 1, units]`."""
        batch, time = tuple(inputs_shape)[:2]
        return (batch, None if time is None else time + 1, self.units)
