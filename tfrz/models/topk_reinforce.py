"""A policy trained by REINFORCE from the logs of another policy, corrected for pages of K items."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import keras
import tensorflow as tf

from tfrz.config import check_range, require
from tfrz.layers.recurrent import ChaosFreeRNN
from tfrz.losses.reinforce import (
    DEFAULT_CAP,
    TopKOffPolicyReinforce,
    sampled_log_prob,
    sampled_policy_loss,
)
from tfrz.losses.retrieval import NegativeSampler
from tfrz.models.next_item import HistoryModel


@dataclasses.dataclass(frozen=True)
class TopKReinforceConfig:
    """The shape of the policy, and how it is trained.

    Attributes:
      action_dim: m, width of the embeddings of past actions.
      units: n, width of the state and of the output embeddings.
      k: K, the number of draws on a page; 1 for a single recommendation.
      cap: c, bound on pi / beta; null for none.
      weights: capped, normalized (NIS), or none (naive and biased: the logged rewards as they are).
      multiplier: lambda, or alpha (used by public code; not the gradient of a page's reward).
      cap_after: cap the product with the multiplier instead of pi / beta.
      gamma: discount of later rewards.
      warm_up: positions at the start of a full window that only update the state.
      look_ahead: positions at its end that only contribute rewards.
      propensities: use the propensities of the log, if it has any, instead of the head's estimate.
      loss: softmax over all actions, or over sampled negatives, the same for both heads.
      num_sampled: negatives of a batch.
      sampling: uniform, or log_uniform over the rank of popularity.
      embedding_scale: standard deviation of the initial embeddings.
      temperature: T of the policy's softmax.
      behavior_weight: weight of the loss of the logger's head.
    """

    action_dim: int = 32
    units: int = 32
    k: int = 16
    cap: float | None = DEFAULT_CAP
    weights: Literal["capped", "normalized", "none"] = "capped"
    multiplier: Literal["lambda", "alpha"] = "lambda"
    cap_after: bool = False
    gamma: float = 0.9
    warm_up: int = 0
    look_ahead: int = 0
    propensities: bool = True
    loss: Literal["softmax", "sampled_softmax"] = "softmax"
    num_sampled: int = 1024
    sampling: Literal["uniform", "log_uniform"] = "uniform"
    embedding_scale: float = 0.05
    temperature: float = 1.0
    behavior_weight: float = 1.0

    def __post_init__(self) -> None:
        check_range(self, "model", "action_dim", "units", "k", "num_sampled", at_least=1)
        check_range(self, "model", "warm_up", "look_ahead", "behavior_weight", at_least=0)
        check_range(self, "model", "embedding_scale", "temperature", "cap", above=0)
        check_range(self, "model", "gamma", at_least=0, at_most=1)

    def objective(self) -> TopKOffPolicyReinforce:
        """The policy's loss."""
        return TopKOffPolicyReinforce(
            self.k, self.cap, self.weights, self.multiplier, self.cap_after
        )


def log_probability(logits: tf.Tensor, ids: tf.Tensor) -> tf.Tensor:
    """Log-probability of the actions `ids` (from 1) under a softmax of logits `[..., actions]`."""
    count = tf.shape(logits, out_type=tf.int64)[-1]
    place = tf.clip_by_value(tf.cast(ids, tf.int64) - 1, 0, count - 1)
    return -tf.nn.sparse_softmax_cross_entropy_with_logits(place, logits)


@keras.saving.register_keras_serializable(package="tfrz")
class TopKReinforce(HistoryModel):
    """The policy: a chaos-free network over past actions, a softmax over the next.

    Formula, with s_t the state before action t and c_t its context:

        s_{t+1} = CFN(s_t, u_{a_t} + sum_c E_c[c_t])
        h_t     = s_t + sum_c F_c[c_t]
        pi(a)   = softmax_a(h_t . v_a / T)
        beta(a) = softmax_a(sg(h_t) . v'_a)

    Neither head has a bias, so that an index of the v_a serves the trained policy. The gradient of
    the logger's head stops at the state.

    Args:
      config: the shape of the network.
      num_items: A, the size of the vocabulary of actions.
      item_rows: rows of the tables: padding, vocabulary, out-of-vocabulary buckets.
      length: past actions of a window.
      context: categorical context to the number of its ids.
      numeric: names of numeric contexts.
      padding: the side on which histories are padded; `left` only.

    Call arguments:
      inputs: a dict: `history_xf` int64 `[batch, time]` (0 where padded), and for each context
        `history_<name>_xf` `[batch, time]` and `<name>_xf` `[batch]`. Other keys are ignored.
      training: not used.

    Returns:
      The policy's logits of the actions 1..A after the history, float32 `[batch, A]`.

    Raises:
      ConfigError: an argument is out of its range.

    Example:
      >>> model = TopKReinforce(TopKReinforceConfig(), num_items=10, item_rows=12, length=5)
      >>> model({"history_xf": tf.constant([[0, 0, 0, 3, 1], [0, 0, 0, 0, 0]])}).shape
      TensorShape([2, 10])

    Reference:
      Chen et al., "Top-K Off-Policy Correction for a REINFORCE Recommender System" (WSDM 2019,
      arXiv 1812.02353), section 4.
    """

    config_class = TopKReinforceConfig
    config: TopKReinforceConfig

    def __init__(
        self,
        config: TopKReinforceConfig,
        num_items: int,
        item_rows: int,
        length: int,
        context: Mapping[str, int] | None = None,
        numeric: Sequence[str] = (),
        padding: str = "left",
        **kwargs: Any,
    ) -> None:
        super().__init__(config, num_items, item_rows, length, context, numeric, padding, **kwargs)
        require(padding == "left", "data.history.padding", "must be left for trajectories")
        policy, table = self.policy, self.table
        self.actions = table("actions", item_rows, config.action_dim)
        # Scores are sums over the width: they stay in float32.
        self.policy_head = table("policy_head", item_rows, config.units, "float32")
        self.behavior_head = table("behavior_head", item_rows, config.units, "float32")
        self.past_contexts = {
            name: table(f"past_{name}", rows, config.action_dim)
            for name, rows in self.context.items()
        }
        self.request_contexts = {
            name: table(f"request_{name}", rows, config.units, "float32")
            for name, rows in self.context.items()
        }
        self.past_numbers = self.request_numbers = None
        if self.numeric:
            self.past_numbers = keras.layers.Dense(
                config.action_dim, use_bias=False, name="past_numbers", dtype=policy
            )
            self.request_numbers = keras.layers.Dense(
                config.units, use_bias=False, name="request_numbers", dtype="float32"
            )
        self.rnn = ChaosFreeRNN(config.units, name="state", dtype=policy)
        self.sampler = (
            NegativeSampler(
                num_items, config.num_sampled, config.sampling, name="sampler", dtype="float32"
            )
            if config.loss == "sampled_softmax"
            else None
        )
        self._build_parts()

    def _build_parts(self) -> None:
        """Creates all variables, so that the order of first calls does not change them."""
        tables = [self.actions, self.policy_head, self.behavior_head]
        for layer in (*tables, *self.past_contexts.values(), *self.request_contexts.values()):
            layer.build((None,))
        for layer in (self.past_numbers, self.request_numbers):
            if layer is not None:
                layer.build((None, len(self.numeric)))
        self.rnn.build((None, None, self.config.action_dim))
        self.built = True

    def embed(
        self, inputs: Mapping[str, tf.Tensor], training: bool = False
    ) -> dict[str, tf.Tensor]:
        """Looks up `past` `[batch, time, dim]`, `real` `[batch, time]` and contexts.

        With contexts, the result also has `request` `[batch, units]` and, for every past action,
        `requests` `[batch, time, units]`.
        """
        del training
        history = tf.convert_to_tensor(inputs["history_xf"])
        past = tf.cast(self.actions(history), self.compute_dtype)
        for part in self.context_parts(inputs, "history_", self.past_contexts, self.past_numbers):
            past += tf.cast(part, past.dtype)
        embedded = {"real": tf.not_equal(history, 0), "past": past}
        if self.context or self.numeric:
            layers = (self.request_contexts, self.request_numbers)
            embedded["requests"] = tf.add_n(self.context_parts(inputs, "history_", *layers))
            embedded["request"] = tf.add_n(self.context_parts(inputs, "", *layers))
        return embedded

    def encode(self, embedded: Mapping[str, tf.Tensor], training: bool = False) -> tf.Tensor:
        """The h before every action of the window and the request, `[batch, time + 1, units]`."""
        del training
        states = tf.cast(self.rnn(embedded["past"], mask=embedded["real"]), tf.float32)
        if "request" not in embedded:
            return states
        contexts = tf.concat([embedded["requests"], embedded["request"][:, None]], axis=1)
        return states + contexts

    def head(self, name: str) -> tf.Tensor:
        """Vectors v (`policy`) or v' (`behavior`) of the ids 1..A, float32 `[A, units]`."""
        table = self.policy_head if name == "policy" else self.behavior_head
        return tf.convert_to_tensor(table.embeddings)[1 : 1 + self.num_items]

    def policy_logits(self, hidden: tf.Tensor) -> tf.Tensor:
        """Logits of pi, `[..., A]`."""
        scores = tf.tensordot(hidden, self.head("policy"), [[-1], [1]])
        return scores / self.config.temperature

    def behavior_logits(self, hidden: tf.Tensor) -> tf.Tensor:
        """Logits of beta, `[..., A]`. No gradient reaches the state."""
        return tf.tensordot(tf.stop_gradient(hidden), self.head("behavior"), [[-1], [1]])

    def draw(self, ids: tf.Tensor) -> dict[str, tf.Tensor]:
        """Looks up negatives, the same for both heads, and vectors for a sampled softmax.

        Args:
          ids: actions, from 1, any shape.

        Returns:
          `negatives` int64 `[n]`, and for each head the vectors of the actions and of the
          negatives, `<head>_own` and `<head>_negatives`. Empty for a softmax over all actions.
        """
        if self.sampler is None:
            return {}
        negatives = self.sampler.sample()
        drawn = {"negatives": negatives}
        for head, table in (("policy", self.policy_head), ("behavior", self.behavior_head)):
            drawn[f"{head}_own"] = table(ids)
            drawn[f"{head}_negatives"] = table(negatives)
        return drawn

    def judge(
        self, hidden: tf.Tensor, ids: tf.Tensor, drawn: Mapping[str, tf.Tensor]
    ) -> dict[str, tuple[tf.Tensor, tf.Tensor]]:
        """Log-probability and loss of every action under both heads, each as `ids`.

        Args:
          hidden: h before each action, `[..., units]`.
          ids: actions, from 1, `[...]`. The results for other ids are finite but meaningless.
          drawn: the result of `draw`.
        """
        if self.sampler is None:
            policy = log_probability(self.policy_logits(hidden), ids)
            behavior = log_probability(self.behavior_logits(hidden), ids)
            return {"policy": (policy, -policy), "behavior": (behavior, -behavior)}
        sampler, negatives = self.sampler, drawn["negatives"]
        hits = tf.equal(tf.cast(ids, tf.int64)[..., None], negatives)
        expected = sampler.log_expected_count(negatives)
        own_expected = sampler.log_expected_count(ids)
        found = {}
        for head, state, scale in (
            ("policy", hidden, self.config.temperature),
            ("behavior", tf.stop_gradient(hidden), 1.0),
        ):
            own = tf.reduce_sum(state * drawn[f"{head}_own"], axis=-1) / scale
            others = tf.tensordot(state, drawn[f"{head}_negatives"], [[-1], [1]]) / scale
            found[head] = (
                sampled_log_prob(own, others, expected, hits),
                sampled_policy_loss(own, others, own_expected, expected, hits),
            )
        return found

    def interact(self, embedded: Mapping[str, tf.Tensor], training: bool = False) -> tf.Tensor:
        """Logits `[batch, A]` of the policy after the history."""
        return self.policy_logits(self.encode(embedded, training)[:, -1])
