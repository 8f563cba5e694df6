"""M3: encoders of tiny, short and long range, mixed by gates that depend on the context."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import keras
import tensorflow as tf

from tfrz.config import check_range, require
from tfrz.layers.baseline_encoders import CaserEncoder, SelfAttentiveEncoder
from tfrz.layers.temporal import MultiTemporalRangeMixture
from tfrz.models.next_item import NextItemConfig, NextItemModel


@dataclasses.dataclass(frozen=True)
class M3Config(NextItemConfig):
    """The shape of an M3, and how it is trained.

    The paper's full text was not available when this was written. Sizes, the cell, the kernel size
    and the loss are choices, and each is an option here. `tfrz.models.next_item.NextItemConfig`
    describes the options that all next-item models have.

    Attributes:
      encoder: mixture (M3), or a published model to compare with: caser or sasrec.
      ranges: encoders of the mixture, of tiny, short and long.
      short_range: gru or lstm (M3R), or convolution (M3C).
      gate: contextual (context of event and request), bottom (projected inputs) or fixed (ones).
      gate_activation: sigmoid (independent gates) or softmax.
      identity: the tiny encoder is its input.
      learn_values: learn the long encoder's W_V also where it can be the identity.
      kernel_size: of the convolution.
      dilations: of the convolutions, applied one after another.
    """

    encoder: Literal["mixture", "caser", "sasrec"] = "mixture"
    ranges: tuple[Literal["tiny", "short", "long"], ...] = ("tiny", "short", "long")
    short_range: Literal["gru", "lstm", "convolution"] = "gru"
    gate: Literal["contextual", "bottom", "fixed"] = "contextual"
    gate_activation: Literal["sigmoid", "softmax"] = "sigmoid"
    identity: bool = False
    learn_values: bool = False
    kernel_size: int = 5
    dilations: tuple[int, ...] = (1,)

    def __post_init__(self) -> None:
        known = bool(self.ranges) and len(set(self.ranges)) == len(self.ranges)
        require(known, "model.ranges", "must be at least one of tiny, short and long, each once")
        check_range(self, "model", "kernel_size", "dilations", at_least=1)
        require(bool(self.dilations), "model.dilations", "needs at least one")
        super().__post_init__()


@keras.saving.register_keras_serializable(package="tfrz")
class M3(NextItemModel):
    """Multi-temporal-range mixture model of next items.

    Formula, at event t of a history, with `c_in` its context and `c_out` that of the request
    which event t + 1 answers:

        z_t   = F_in(e(x_t) (+) c_in_t)
        mix_t = sum_k G_t^k SE_t^k          k over tiny, short and long range
        h_t   = F_out(mix_t (+) c_out_t)
        logit_t(i) = <h_t, Q_i> + b_i

    Before the first event the mixture is zero: only context and popularity remain. Where the
    examples carry an embedding of the user's long history, an adapter's output is added to h_t;
    requests before the embedding was generated get its output for a missing embedding.

    Args:
      config: the shape of the network.
      num_items: V, the size of the vocabulary.
      item_rows: rows of the item tables: padding, vocabulary, out-of-vocabulary buckets.
      length: events of a history.
      context: categorical context to the number of its ids.
      numeric: names of numeric contexts.
      padding: the side on which histories are padded, `right` or `left`.
      **kwargs: `long_history` and `adapter` of `NextItemModel`, and Keras's own.

    Call arguments:
      inputs: a dict: `history_xf` int64 `[batch, time]` (0 where padded), and for each context
        `history_<name>_xf` `[batch, time]` and `<name>_xf` `[batch]`; with a long history
        `long_history_xf` and `long_history_version_xf`, string `[batch]`, and
        `long_history_usable_xf` `[batch, time]` where some events are older than the embedding.
        Other keys are ignored.
      training: whether dropout is on.

    Returns:
      Logits of the items 1..V for the request after the history, float32 `[batch, V]`.

    Raises:
      ConfigError: an argument is out of its range.

    Example:
      >>> model = M3(M3Config(), num_items=10, item_rows=12, length=5)
      >>> model({"history_xf": tf.constant([[3, 1, 0, 0, 0], [0, 0, 0, 0, 0]])}).shape
      TensorShape([2, 10])

    Reference:
      Tang et al., "Towards Neural Mixture Recommender for Long Range Dependent User Sequences",
      WWW 2019 (arXiv 1902.08588). Verified are the mixture of temporal ranges and the learned
      gate driven by context; the equations are recalled.
    """

    config_class = M3Config
    config: M3Config

    def make_encoder(self) -> None:
        """Creates `mixture`: the mixture, or the encoder to compare it with."""
        config = self.config
        shared: dict[str, Any] = {"dtype": self.policy, "name": "encoder"}
        self.mixture: keras.layers.Layer
        if config.encoder == "caser":
            self.mixture = CaserEncoder(config.encoder_dim, **shared)
        elif config.encoder == "sasrec":
            self.mixture = SelfAttentiveEncoder(config.encoder_dim, self.length, **shared)
        else:
            self.mixture = MultiTemporalRangeMixture(
                config.encoder_dim,
                ranges=config.ranges,
                short_range=config.short_range,
                gate="fixed" if config.gate == "fixed" else config.gate_activation,
                identity=config.identity,
                learn_values=config.learn_values,
                kernel_size=config.kernel_size,
                dilations=config.dilations,
                dtype=self.policy,
                name="mixture",
            )

    def build_encoder(self, width: int) -> None:
        """Creates the variables of `mixture`."""
        shape = (None, None, width)
        if self.config.encoder != "mixture":
            self.mixture.build(shape)
        elif self.config.gate == "bottom":
            self.mixture.build(shape, shape)
        else:
            # Without any context the contextual gate is a learned constant.
            self.mixture.build(shape, (None, None, max(2 * self.context_width, 1)))

    def _gate_inputs(self, z: tf.Tensor, embedded: Mapping[str, tf.Tensor]) -> tf.Tensor | None:
        """The input of the gates, None for z itself."""
        if self.config.gate == "bottom":
            return None
        if "event_context" not in embedded:
            return tf.zeros_like(z[..., :1])
        event, request = embedded["event_context"], embedded["request_context"]
        return tf.concat([event, request[:, 1:]], axis=-1)

    def _mask(self, embedded: Mapping[str, tf.Tensor]) -> tf.Tensor | None:
        # Padding on the right comes after every real event, and all encoders are causal.
        return embedded["real"] if self.padding == "left" else None

    def encode_events(
        self, z: tf.Tensor, embedded: Mapping[str, tf.Tensor], training: bool = False
    ) -> tf.Tensor:
        """The mixture at every event, `[batch, time, encoder_dim]`."""
        del training
        if self.config.encoder != "mixture":
            return self.mixture(z, mask=self._mask(embedded))
        return self.mixture(z, self._gate_inputs(z, embedded), mask=self._mask(embedded))

    def gates(self, inputs: Mapping[str, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
        """The weights of the mixture's encoders at every event.

        Returns:
          The gates `[batch, time, ranges]`, and the norms of `G^k SE^k` in the same shape. Gates
          alone are not comparable if the outputs of the encoders differ in scale.
        """
        require(self.config.encoder == "mixture", "model.encoder", "has no gates")
        embedded = self.embed(inputs)
        z = self.event_inputs(embedded)
        gates = self.mixture.gates(z, self._gate_inputs(z, embedded))
        parts = tf.stack(self.mixture.encodings(z, self._mask(embedded)), axis=2)
        return gates, gates * tf.norm(tf.cast(parts, gates.dtype), axis=-1)
