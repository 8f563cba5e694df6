"""A pointer network over a list of candidates: the layers of seq2slate.

A list has a static length and a boolean mask `valid`, True for candidates. The encoder reads it in
the order of the base ranker. The decoder points at one candidate after the other, each at most
once, and reads every chosen candidate before the next choice. Every loop has a static number of
steps, so that XLA compiles all of it, gradients included.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from tfrz.config import require
from tfrz.layers.configured import ConfiguredLayer
from tfrz.layers.initializers import independent
from tfrz.layers.numerics import wide
from tfrz.layers.temporal import last_dim, policy_of, zero_padding

METHODS = ("greedy", "sample", "forced")
# Not -inf, because 0 times -inf is NaN in a loss. Scores are float32 or float64.
_NEVER = -1e9
# Beams with a lower log-probability hold no slate.
_NO_BEAM = -1e8


class Slate(NamedTuple):
    """The slates that a decoder built for a batch of lists.

    Attributes:
      positions: int32 `[batch, slate]`: the row of the list at each position; -1 if no candidate
        remained.
      scores: `[batch, slate, list]`: the unmasked scores of the pointer at each step. Those of
        padding, and all of a step without an available candidate, have no meaning.
      available: boolean `[batch, slate, list]`: the candidates available at each step.
      log_probabilities: `[batch, slate]`: of each choice given the earlier ones; 0 at -1. Their sum
        is the log-probability of the slate.
    """

    positions: tf.Tensor
    scores: tf.Tensor
    available: tf.Tensor
    log_probabilities: tf.Tensor


class Beams(NamedTuple):
    """The most probable slates that a beam search found, the best first.

    Attributes:
      positions: int32 `[batch, width, slate]`; -1 if no candidate remained, and everywhere in a
        beam that holds no slate.
      log_probability: `[batch, width]`; -1e9 or less for a beam that holds no slate.
    """

    positions: tf.Tensor
    log_probability: tf.Tensor


class SlateConstraints(NamedTuple):
    """Constraints of a slate, in addition to each candidate at most once.

    A constraint that would leave no choice although candidates remain is dropped at that step: a
    slate holds as many candidates as fit. A row that is fixed to a position is placed there
    whatever its category. A row that is fixed beyond the end of the list stays reserved to the
    last.

    Attributes:
      fixed: int32 `[batch, slate]`: the row for each position, -1 for any. A row that is fixed to a
        later position is not chosen earlier.
      categories: int32 `[batch, list]`: the category of each candidate, for `max_per_category`.
      max_per_category: largest number of candidates of a category in a slate.
    """

    fixed: tf.Tensor | None = None
    categories: tf.Tensor | None = None
    max_per_category: int | None = None


def availability(positions: tf.Tensor, valid: tf.Tensor) -> tf.Tensor:
    """The candidates that are available at each step of given slates, without constraints.

    Args:
      positions: int32 `[batch, slate]`, -1 for nothing.
      valid: boolean `[batch, list]`.

    Returns:
      Boolean `[batch, slate, list]`.
    """
    chosen = tf.one_hot(positions, int(valid.shape[1]), dtype=tf.float32)
    return valid[:, None, :] & (tf.cumsum(chosen, axis=1, exclusive=True) < 0.5)


def masked(scores: tf.Tensor, available: tf.Tensor) -> tf.Tensor:
    """`scores` of available candidates, a very low number elsewhere; float32 or float64."""
    scores = wide(scores)
    return tf.where(available, scores, tf.constant(_NEVER, scores.dtype))


def step_log_probabilities(
    scores: tf.Tensor, available: tf.Tensor, positions: tf.Tensor
) -> tf.Tensor:
    """Log-probability of each choice given those before it.

    Formula: `s_{pi_j} - log sum_{k available} exp(s_k)`; with the same scores at every step this is
    the Plackett-Luce distribution.

    Args:
      scores: `[batch, slate, list]`, or `[batch, 1, list]` for the same at every step.
      available: boolean `[batch, slate, list]`.
      positions: int32 `[batch, slate]`, -1 for nothing.

    Returns:
      `[batch, slate]`, 0 where nothing was chosen.

    Example:
      >>> scores = tf.constant([[[0.0, 0.0, 1.0]]])
      >>> positions = tf.constant([[2, 0, 1]])
      >>> free = availability(positions, tf.constant([[True, True, True]]))
      >>> print(step_log_probabilities(scores, free, positions).numpy().round(4))
      [[-0.5514 -0.6931  0.    ]]
    """
    live = positions >= 0
    logs = tf.nn.log_softmax(masked(scores, available))
    chosen = tf.gather(logs, tf.maximum(positions, 0), batch_dims=2)
    return tf.where(live, chosen, tf.zeros_like(chosen))


def gumbel(shape: Any, seed: tf.Tensor, dtype: Any = tf.float32) -> tf.Tensor:
    """Standard Gumbel noise, a function of `seed` (int32 `[2]`), the same with and without XLA."""
    # From whole numbers: XLA makes other fractions of the same bits.
    bits = tf.random.stateless_uniform(shape, seed, 0, 1 << 24, tf.int32, alg="philox")
    uniform = (tf.cast(bits, dtype) + 0.5) / float(1 << 24)
    return -tf.math.log(-tf.math.log(uniform))


def rank(scores: tf.Tensor, valid: tf.Tensor, slate: int | None = None) -> tf.Tensor:
    """Rows by falling score, ties in the order of the list.

    Args:
      scores: `[batch, list]`.
      valid: boolean `[batch, list]`.
      slate: positions; as many as the list is long if left out.

    Returns:
      int32 `[batch, slate]`, -1 beyond the valid rows.
    """
    rows = tf.argsort(masked(scores, valid), direction="DESCENDING", stable=True)[:, :slate]
    count = tf.reduce_sum(tf.cast(valid, tf.int32), axis=1, keepdims=True)
    # Every valid row comes before every other.
    filled = tf.range(tf.shape(rows)[1])[None, :] < count
    return tf.where(filled, rows, tf.fill(tf.shape(rows), -1))


@keras.saving.register_keras_serializable(package="tfrz")
class ListEncoder(ConfiguredLayer):
    """Reads a list in its order with an LSTM, which skips padding.

    Formula: `(c_i, e_i) = LSTM(x_i, (c_{i-1}, e_{i-1}))` from zeros. At a row that is not valid the
    state stays and the output is zero.

    Args:
      units: H, the width of the state.
      kernel_initializer: initialiser of the kernels of the cell.

    Call arguments:
      x: candidates, `[batch, list, dim]`.
      valid: boolean `[batch, list]`; all if left out.

    Returns:
      E, `[batch, list, units]`, in the layer's compute dtype.

    Raises:
      ValueError: the last dimension is unknown.
      ConfigError: `units` is below 1.

    Example:
      >>> encoder = ListEncoder(4)
      >>> encoder(tf.zeros([2, 5, 3])).shape
      TensorShape([2, 5, 4])

    Reference:
      Seq2Slate (arXiv 1810.02019): an LSTM encoder; the treatment of padding is a choice.
    """

    def __init__(
        self, units: int, kernel_initializer: Any = "glorot_uniform", **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        require(units >= 1, "units", "must be at least 1")
        self.units = units
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        policy = policy_of(self)
        # Not the LSTM layer, which XLA compiles again at every training step.
        self._rnn = keras.layers.RNN(
            keras.layers.LSTMCell(
                units, kernel_initializer=self.kernel_initializer, dtype=policy, name="cell"
            ),
            return_sequences=True,
            return_state=True,
            zero_output_for_mask=True,
            dtype=policy,
            name="rnn",
        )

    def build(self, x_shape: Any, valid_shape: Any = None) -> None:
        """Makes the cell's weights."""
        self._rnn.build((None, None, last_dim(x_shape, self.name)))
        self.built = True

    def encode(
        self, x: tf.Tensor, valid: tf.Tensor | None = None
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """E `[batch, list, units]`, and the state after the last valid row, h and c."""
        x = zero_padding(tf.cast(x, self.compute_dtype), valid)
        encoded, hidden, carry = self._rnn(x, mask=valid)
        return encoded, hidden, carry

    def call(self, x: tf.Tensor, valid: tf.Tensor | None = None) -> tf.Tensor:
        """Encodes every candidate with those before it."""
        return self.encode(x, valid)[0]

    def compute_output_shape(self, x_shape: Any, valid_shape: Any = None) -> tuple[int | None, ...]:
        """`[batch, list, units]`."""
        return (*tuple(x_shape)[:-1], self.units)


@keras.saving.register_keras_serializable(package="tfrz")
class PointerAttention(ConfiguredLayer):
    """Scores every candidate for a decoder state.

    Formula: `s_i = v^T tanh(W_enc e_i + W_dec d)`, no bias.

    Args:
      units: H, the width of encoder outputs and of the decoder's state.
      kernel_initializer: of `W_enc`, `W_dec` and `v`.

    Call arguments:
      encoded: E, `[batch, list, units]`.
      state: d, `[batch, units]`.

    Returns:
      `[batch, list]`, float32 or float64. Padding is scored too: mask it.

    Raises:
      ValueError: `encoded` is not `units` wide.
      ConfigError: `units` is below 1.

    Example:
      >>> layer = PointerAttention(2, kernel_initializer="ones")
      >>> print(layer(tf.zeros([1, 3, 2]), tf.constant([[1.0, 0.0]])).numpy().round(4))
      [[1.5232 1.5232 1.5232]]

    Reference:
      Seq2Slate (arXiv 1810.02019); the form is verified in a summary by third parties.
    """

    def __init__(
        self, units: int, kernel_initializer: Any = "glorot_uniform", **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        require(units >= 1, "units", "must be at least 1")
        self.units = units
        self.kernel_initializer = keras.initializers.get(kernel_initializer)

    def build(self, encoded_shape: Any, state_shape: Any = None) -> None:
        """Makes `W_enc` and `W_dec` `[units, units]` and `v` `[units, 1]`."""
        width = last_dim(encoded_shape, self.name)
        if width != self.units:
            raise ValueError(f"{self.name} has {self.units} units, the encoder's outputs {width}")
        square, start = (self.units, self.units), self.kernel_initializer
        self.W_enc = self.add_weight(name="W_enc", shape=square, initializer=start)
        self.W_dec = self.add_weight(name="W_dec", shape=square, initializer=independent(start, 1))
        self.v = self.add_weight(name="v", shape=(self.units, 1), initializer=independent(start, 2))
        self.built = True

    def keys(self, encoded: tf.Tensor) -> tf.Tensor:
        """`W_enc e_i` of all candidates, which is the same at every step of a decoder."""
        if encoded.shape[-1] != self.units:
            raise ValueError(
                f"{self.name} has {self.units} units, the encoder's outputs {encoded.shape[-1]}"
            )
        encoded = tf.cast(encoded, self.compute_dtype)
        return tf.tensordot(encoded, self._weight(self.W_enc), 1)

    def _weight(self, variable: Any) -> tf.Tensor:
        # Keras casts inside calls only.
        return tf.cast(tf.convert_to_tensor(variable), self.compute_dtype)

    def score(self, keys: tf.Tensor, state: tf.Tensor) -> tf.Tensor:
        """The scores for a state, from `keys`."""
        query = tf.matmul(tf.cast(state, keys.dtype), self._weight(self.W_dec))
        hidden = tf.tanh(keys + query[:, None, :])
        return wide(tf.tensordot(hidden, self._weight(self.v), 1)[..., 0])

    def call(self, encoded: tf.Tensor, state: tf.Tensor) -> tf.Tensor:
        """Scores every candidate."""
        return self.score(self.keys(encoded), state)

    def compute_output_shape(
        self, encoded_shape: Any, state_shape: Any = None
    ) -> tuple[int | None, ...]:
        """`[batch, list]`."""
        return tuple(encoded_shape)[:-1]


def _allowed(
    free: tf.Tensor, step: tf.Tensor, valid: tf.Tensor, constraints: SlateConstraints | None
) -> tf.Tensor:
    """The free candidates that the constraints allow at a step, `[batch, list]`."""
    if constraints is None:
        return free
    size, allowed = int(free.shape[1]), free
    if constraints.categories is not None and constraints.max_per_category is not None:
        same = tf.equal(constraints.categories[:, :, None], constraints.categories[:, None, :])
        taken = tf.cast(valid & ~free, tf.float32)
        counts = tf.linalg.matvec(tf.cast(same, tf.float32), taken)
        under = allowed & (counts < float(constraints.max_per_category) - 0.5)
        allowed = tf.where(tf.reduce_any(under, axis=1, keepdims=True), under, allowed)
    if constraints.fixed is not None:
        places = tf.range(int(constraints.fixed.shape[1]))[None, :, None]
        wanted = tf.one_hot(constraints.fixed, size, on_value=True, off_value=False, dtype=tf.bool)
        later = tf.reduce_any(wanted & (places > step), axis=1)
        unreserved = allowed & ~later
        allowed = tf.where(tf.reduce_any(unreserved, axis=1, keepdims=True), unreserved, allowed)
        # A row that is fixed to this position is chosen whatever its category.
        here = free & tf.reduce_any(wanted & tf.equal(places, step), axis=1)
        allowed = tf.where(tf.reduce_any(here, axis=1, keepdims=True), here, allowed)
    return allowed


ScoreStep = Callable[[Any, tf.Tensor], tuple[Any, tf.Tensor]]


def roll(
    score: ScoreStep,
    state: Any,
    valid: tf.Tensor,
    slate: int | None = None,
    method: str = "greedy",
    positions: tf.Tensor | None = None,
    seed: tf.Tensor | None = None,
    constraints: SlateConstraints | None = None,
    dtype: Any = tf.float32,
) -> Slate:
    """Chooses one candidate after the other.

    Args:
      score: from the state and the row chosen last (int32 `[batch]`, -1 at first) to the next
        state and the scores `[batch, list]`.
      state: the first state, a structure of tensors.
      valid: boolean `[batch, list]`, its second dimension static.
      slate: positions to fill; the length of the list by default.
      method: `greedy`, `sample`, or `forced` along `positions`.
      positions: int32 `[batch, slate]`, for `forced`; nothing is chosen at -1. A row that is not
        available gets a log-probability of about -1e9.
      seed: int32 `[2]`, for `sample`.
      constraints: constraints of the slate.
      dtype: dtype of the scores.

    Returns:
      The slate.

    Raises:
      ConfigError: an unknown method, or `positions` or `seed` is missing.
    """
    require(method in METHODS, "method", f"must be one of {', '.join(METHODS)}")
    require(method != "forced" or positions is not None, "positions", "forced decoding needs them")
    require(method != "sample" or seed is not None, "seed", "sampling needs one")
    size = int(valid.shape[1])
    steps = size if slate is None else min(slate, size)
    batch, nothing = tf.shape(valid)[0], tf.zeros_like(valid[:, 0], tf.int32) - 1
    arrays = (
        tf.TensorArray(tf.int32, steps, element_shape=[None]),
        tf.TensorArray(dtype, steps, element_shape=[None, size]),
        tf.TensorArray(tf.bool, steps, element_shape=[None, size]),
    )

    def step(j: Any, state: Any, last: Any, free: Any, arrays: Any) -> tuple[Any, ...]:
        state, scores = score(state, last)
        allowed = _allowed(free, j, valid, constraints)
        live = tf.reduce_any(allowed, axis=1)
        if method == "forced":
            chosen = tf.gather(positions, j, axis=1)
            live &= chosen >= 0
        else:
            weighed = scores
            if method == "sample" and seed is not None:
                fold = tf.stack([seed[0], seed[1] + j])
                weighed = scores + gumbel([batch, size], fold, scores.dtype)
            chosen = tf.argmax(masked(weighed, allowed), axis=1, output_type=tf.int32)
        placed, scored, seen = arrays
        chosen = tf.where(live, chosen, nothing)
        placed = placed.write(j, chosen)
        scored, seen = scored.write(j, scores), seen.write(j, allowed)
        free = free & ~tf.one_hot(chosen, size, on_value=True, off_value=False, dtype=tf.bool)
        return j + 1, state, tf.where(live, chosen, last), free, (placed, scored, seen)

    *_, (placed, scored, seen) = tf.while_loop(
        lambda j, *_: j < steps,
        step,
        (tf.constant(0), state, nothing, valid, arrays),
        maximum_iterations=steps,
    )
    found = tf.transpose(placed.stack())
    scores = tf.transpose(scored.stack(), [1, 0, 2])
    available = tf.transpose(seen.stack(), [1, 0, 2])
    found.set_shape([valid.shape[0], steps])
    return Slate(found, scores, available, step_log_probabilities(scores, available, found))


def beam_search(
    score: ScoreStep,
    state: Any,
    valid: tf.Tensor,
    width: int,
    slate: int | None = None,
    constraints: SlateConstraints | None = None,
) -> Beams:
    """The most probable slates that a beam search finds.

    A wider beam may find less probable slates than a narrower one (greedy decoding is a beam of 1).

    Args:
      score: as in `roll`; called with `batch * width` rows.
      state: the first state, tensors with `batch` rows.
      valid: boolean `[batch, list]`.
      width: number of prefixes that are kept.
      slate: as in `roll`.
      constraints: as in `roll`.

    Raises:
      ConfigError: `width` is below 1.
    """
    require(width >= 1, "width", "must be at least 1")
    size = int(valid.shape[1])
    steps = size if slate is None else min(slate, size)
    batch = tf.shape(valid)[0]

    def repeated(values: tf.Tensor) -> tf.Tensor:
        return tf.repeat(values, width, axis=0)

    def of_beams(values: tf.Tensor, beams: tf.Tensor) -> tf.Tensor:
        """Rows `[batch * width, ...]` rearranged by `beams` `[batch, width]`."""
        rows = beams + width * tf.range(batch)[:, None]
        return tf.gather(values, tf.reshape(rows, [-1]))

    every = repeated(valid)
    if constraints is not None:
        constraints = constraints._replace(
            fixed=None if constraints.fixed is None else repeated(constraints.fixed),
            categories=(
                None if constraints.categories is None else repeated(constraints.categories)
            ),
        )
    state = tf.nest.map_structure(repeated, state)
    placed = tf.fill([batch * width, steps], -1)
    first = tf.where(tf.range(width) == 0, 0.0, _NEVER)
    totals = tf.tile(first[None, :], [batch, 1])
    # A beam that is complete continues with its first candidate only.
    carried = tf.where(tf.range(size) == 0, 0.0, _NEVER)[None, :]

    def step(j: Any, state: Any, last: Any, free: Any, placed: Any, totals: Any) -> tuple[Any, ...]:
        state, scores = score(state, last)
        allowed = _allowed(free, j, every, constraints)
        live = tf.reduce_any(allowed, axis=1, keepdims=True)
        logs = tf.cast(tf.nn.log_softmax(masked(scores, allowed)), tf.float32)
        logs = tf.where(live, tf.where(allowed, logs, _NEVER), carried)
        grown = totals[:, :, None] + tf.reshape(logs, [batch, width, size])
        totals, best = tf.math.top_k(tf.reshape(grown, [batch, width * size]), width)
        beams, chosen = best // size, tf.reshape(best % size, [-1])
        state = tf.nest.map_structure(lambda values: of_beams(values, beams), state)
        free, placed = of_beams(free, beams), of_beams(placed, beams)
        live = of_beams(live, beams)
        here = tf.range(steps)[None, :] == j
        placed = tf.where(here & live, chosen[:, None], placed)
        taken = tf.one_hot(chosen, size, on_value=True, off_value=False, dtype=tf.bool)
        return j + 1, state, chosen, free & ~taken, placed, totals

    nothing = tf.zeros_like(every[:, 0], tf.int32) - 1
    start = (tf.constant(0), state, nothing, every, placed, totals)
    *_, placed, totals = tf.while_loop(
        lambda j, *_: j < steps, step, start, maximum_iterations=steps
    )
    holds = totals > _NO_BEAM
    placed = tf.where(holds[:, :, None], tf.reshape(placed, [batch, width, steps]), -1)
    return Beams(placed, totals)


@keras.saving.register_keras_serializable(package="tfrz")
class PointerDecoder(ConfiguredLayer):
    """Builds a slate with an LSTM that points at candidates and reads the chosen ones.

    Formula: `(c'_j, d_j) = LSTM(u_j, (c'_{j-1}, d_{j-1}))` from the encoder's last state, with
    `u_1` a trained vector and `u_j = x_{pi_{j-1}}`; `s^j = PointerAttention(E, d_j)`;
    `p(pi_j = i | pi_<j) = softmax over the remaining candidates`.

    Args:
      units: H, the width of encoder outputs and states.
      kernel_initializer: of the kernels, `go`, `W_enc`, `W_dec` and `v`.

    Call arguments:
      x: candidates, `[batch, list, dim]`; `list` static.
      encoded: E, `[batch, list, units]`.
      hidden: the encoder's last h, `[batch, units]`.
      carry: the encoder's last c, `[batch, units]`.
      valid: boolean `[batch, list]`; all if left out.

    Returns:
      The unmasked scores at each step of greedy decoding, `[batch, list, list]` (step, candidate),
      float32 or float64. `decode` and `beams` return slates.

    Raises:
      ValueError: a dimension is unknown, or `encoded` is not `units` wide.
      ConfigError: `units` is below 1.

    Example:
      >>> x, valid = tf.zeros([1, 3, 2]), tf.constant([[True, True, False]])
      >>> e, h, c = ListEncoder(4).encode(x, valid)
      >>> print(PointerDecoder(4).decode(x, e, h, c, valid).positions.numpy())
      [[ 0  1 -1]]

    Reference:
      Seq2Slate (arXiv 1810.02019): decoder, pointer and trained first input are verified in a
      summary by third parties; starting from the last state of the encoder is recalled.
    """

    def __init__(
        self, units: int, kernel_initializer: Any = "glorot_uniform", **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        require(units >= 1, "units", "must be at least 1")
        self.units = units
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        policy = policy_of(self)
        self.cell = keras.layers.LSTMCell(
            units,
            kernel_initializer=independent(self.kernel_initializer, 3),
            dtype=policy,
            name="cell",
        )
        self.attention = PointerAttention(
            units, self.kernel_initializer, dtype=policy, name="attention"
        )

    def build(
        self,
        x_shape: Any,
        encoded_shape: Any = None,
        hidden_shape: Any = None,
        carry_shape: Any = None,
        valid_shape: Any = None,
    ) -> None:
        """Makes the cell, the attention and `go` `[dim]`."""
        dim = last_dim(x_shape, self.name)
        self.cell.build((None, dim))
        self.attention.build((None, None, self.units))
        self.go = self.add_weight(
            name="go", shape=(1, dim), initializer=independent(self.kernel_initializer, 4)
        )
        self.built = True

    def _stepper(self, x: tf.Tensor, encoded: tf.Tensor, valid: tf.Tensor) -> ScoreStep:
        """The decoder as `roll` and `beam_search` take it."""
        x = zero_padding(tf.cast(x, self.compute_dtype), valid)
        keys = self.attention.keys(zero_padding(encoded, valid))
        go = tf.cast(tf.convert_to_tensor(self.go), x.dtype)

        def score(state: Any, last: tf.Tensor) -> tuple[Any, tf.Tensor]:
            chosen = tf.gather(x, tf.maximum(last, 0), batch_dims=1)
            output, state = self.cell(tf.where(last[:, None] < 0, go, chosen), list(state))
            return list(state), self.attention.score(keys, output)

        return score

    def _start(self, hidden: tf.Tensor, carry: tf.Tensor) -> list[tf.Tensor]:
        return [tf.cast(value, self.compute_dtype) for value in (hidden, carry)]

    def first_scores(
        self, x: tf.Tensor, encoded: tf.Tensor, hidden: tf.Tensor, carry: tf.Tensor
    ) -> tf.Tensor:
        """s^1, `[batch, list]`: the scores of the one-step decoder."""
        nothing = tf.zeros_like(hidden[:, 0], tf.int32) - 1
        every = tf.ones_like(x[..., 0], tf.bool)
        return self._stepper(x, encoded, every)(self._start(hidden, carry), nothing)[1]

    def decode(
        self,
        x: tf.Tensor,
        encoded: tf.Tensor,
        hidden: tf.Tensor,
        carry: tf.Tensor,
        valid: tf.Tensor | None = None,
        slate: int | None = None,
        method: str = "greedy",
        positions: tf.Tensor | None = None,
        seed: tf.Tensor | None = None,
        constraints: SlateConstraints | None = None,
    ) -> Slate:
        """A slate for each list; arguments as in the call and in `roll`."""
        if not self.built:
            self.build(x.shape)
        valid = self._valid(x, valid)
        return roll(
            self._stepper(x, encoded, valid),
            self._start(hidden, carry),
            valid,
            slate,
            method,
            positions,
            seed,
            constraints,
            tf.float64 if self.compute_dtype == "float64" else tf.float32,
        )

    def beams(
        self,
        x: tf.Tensor,
        encoded: tf.Tensor,
        hidden: tf.Tensor,
        carry: tf.Tensor,
        valid: tf.Tensor | None = None,
        width: int = 4,
        slate: int | None = None,
        constraints: SlateConstraints | None = None,
    ) -> Beams:
        """The most probable slates that a beam search finds; arguments as in `beam_search`."""
        if not self.built:
            self.build(x.shape)
        state, valid = self._start(hidden, carry), self._valid(x, valid)
        wider = (tf.repeat(values, width, axis=0) for values in (x, encoded, valid))
        return beam_search(self._stepper(*wider), state, valid, width, slate, constraints)

    @staticmethod
    def _valid(x: tf.Tensor, valid: tf.Tensor | None) -> tf.Tensor:
        """The mask with the list's static length."""
        if valid is None:
            valid = tf.ones_like(x[..., 0], tf.bool)
        return tf.ensure_shape(valid, [None, int(x.shape[1])])

    def call(
        self,
        x: tf.Tensor,
        encoded: tf.Tensor,
        hidden: tf.Tensor,
        carry: tf.Tensor,
        valid: tf.Tensor | None = None,
    ) -> tf.Tensor:
        """The scores of greedy decoding."""
        return self.decode(x, encoded, hidden, carry, valid).scores

    def compute_output_shape(
        self,
        x_shape: Any,
        encoded_shape: Any = None,
        hidden_shape: Any = None,
        carry_shape: Any = None,
        valid_shape: Any = None,
    ) -> tuple[int | None, ...]:
        """`[batch, list, list]`."""
        return (x_shape[0], x_shape[1], x_shape[1])
