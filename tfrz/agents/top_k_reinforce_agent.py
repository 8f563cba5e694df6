"""Top-K off-policy REINFORCE as a TF-Agents agent, with the losses of the Keras model."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import tensorflow as tf
import tensorflow_probability as tfp
from tf_agents.agents import data_converter, tf_agent
from tf_agents.policies import tf_policy
from tf_agents.policies.greedy_policy import DeterministicWithLogProb
from tf_agents.specs import tensor_spec
from tf_agents.trajectories import policy_step, trajectory
from tf_agents.trajectories import time_step as ts
from tf_agents.utils import common, eager_utils, nest_utils

from tfrz.config import require
from tfrz.errors import ConfigError, InputError
from tfrz.losses.reinforce import (
    TopKOffPolicyReinforce,
    behavior_loss,
    discounted_returns,
)
from tfrz.models.topk_reinforce import TopKReinforce

# The id of action 0 in the model; id 0 is padding.
_FIRST_ID = 1
# Rounding of the logarithm of a probability of 1.
_ROUNDING = 1e-4


class TopKReinforceLossInfo(NamedTuple):
    """Further results of `agent.train`, scalars over the steps that count.

    Attributes:
      policy_loss: mean of `-coef log pi`, the loss of the policy.
      behavior_loss: mean of `-log beta`, the loss of the head of the logger, without
        `behavior_weight`.
      mean_weight: mean of `min(pi / beta, c)`; about 1 if the log covers the policy.
      share_capped: share of the steps with a weight above c.
      effective_sample_size: `(sum w)^2 / sum w^2` of these weights w: the number of steps of the
        policy itself with the same information.
      entropy: mean entropy of the policy in nats; NaN for a sampled softmax.

    With `cap_after` the weights are `lambda pi / beta`, which are capped then. They are reported
    whether or not the loss uses them (`weights`).
    """

    policy_loss: tf.Tensor
    behavior_loss: tf.Tensor
    mean_weight: tf.Tensor
    share_capped: tf.Tensor
    effective_sample_size: tf.Tensor
    entropy: tf.Tensor


class TopKReinforcePolicy(tf_policy.TFPolicy):
    """Acts by the softmax of `TopKReinforce`, or greedily by its largest logit.

    Formula, with c_t the observation, and s_0 = 0 at the start of an episode:

        a_t ~ softmax_a(h_t . v_a / T),  h_t = s_t + F[c_t]
        s_{t+1} = CFN(s_t, u_{a_t} + E[c_t])

    The state of the policy is s_t, float32 `[batch, units]`. `action` returns s_{t+1}, which
    includes the drawn action: the observation need not repeat it. The observation is the context of
    the action only: ids and numbers by the names of the contexts of the model, as scalars (a single
    tensor if the model has one context, anything if it has none). Ids are rows of the tables of the
    model, without an offset; actions 0..A-1 are the ids 1..A of the model.

    The state is reset at steps of type FIRST and LAST: drivers of bandits act on the latter, each
    an episode of its own, and other drivers ignore actions there.

    `policy_info.log_probability` is log pi of the action, or 0 for the greedy policy. A policy
    saved by `PolicySaver` also runs step by step; loading it in Python needs `import tf_agents`
    before.

    `distribution` does not know the action, so it returns the state s_t (`next_state` computes
    s_{t+1}, also for another action than the drawn one). Masks of actions, steps `[batch, time]`
    and actions that are pages are not supported: `tfrz.layers.boltzmann_slate` draws pages from the
    logits of the Keras model, whose export serves them.

    Args:
      time_step_spec: spec of the environment.
      action_spec: BoundedTensorSpec, an integer from 0 to A - 1.
      model: the network.
      greedy: take the action with the largest logit, the first one in a tie.
      name: name of the policy.

    Raises:
      ConfigError: a spec does not fit the model.

    Reference:
      Chen et al. (arXiv 1812.02353), sections 3 and 4.1.
    """

    def __init__(
        self,
        time_step_spec: ts.TimeStep,
        action_spec: tensor_spec.BoundedTensorSpec,
        model: TopKReinforce,
        greedy: bool = False,
        name: str | None = None,
    ) -> None:
        time_step_spec, action_spec = _checked_specs(time_step_spec, action_spec, model)
        super().__init__(
            time_step_spec,
            action_spec,
            policy_state_spec=tf.TensorSpec([model.config.units], tf.float32, name="state"),
            emit_log_probability=True,
            name=name,
        )
        self._model, self._greedy = model, greedy
        # PolicySaver saves the model by Keras, which only saves models that were called.
        model(_model_inputs(model, _zeros(model), tf.zeros([1, model.length], tf.int64)))

    def next_state(self, observation: Any, action: tf.Tensor, policy_state: tf.Tensor) -> tf.Tensor:
        """s_{t+1}, float32 `[batch, units]`.

        Args:
          observation: c_t, `[batch]` each.
          action: a_t, `[batch]`.
          policy_state: s_t, `[batch, units]`.
        """
        steps = tf.nest.map_structure(lambda t: t[:, None], observation)
        embedded = self._model.embed(_model_inputs(self._model, steps, action[:, None]))
        states = self._model.rnn(
            embedded["past"], mask=embedded["real"], initial_state=policy_state
        )
        return tf.cast(states[:, -1], tf.float32)

    def _state_before(self, time_step: ts.TimeStep, policy_state: Any) -> tf.Tensor:
        initial = self.get_initial_state(tf.shape(time_step.step_type)[0])
        if isinstance(policy_state, tuple):  # None was given.
            return initial
        return tf.where(time_step.is_last()[:, None], initial, policy_state)

    def _distribution(self, time_step: ts.TimeStep, policy_state: Any) -> policy_step.PolicyStep:
        require(
            nest_utils.get_outer_rank(time_step, self.time_step_spec) == 1,
            "time_step",
            "must have a batch dimension and no other",
        )
        model, state = self._model, self._state_before(time_step, policy_state)
        # A history without steps: what is left is the request.
        now = tf.nest.map_structure(lambda t: t[:, None], time_step.observation)
        none = tf.zeros_like(time_step.step_type)[:, None]
        embedded = model.embed(_model_inputs(model, now, none, real=tf.zeros_like(none, tf.bool)))
        hidden = state + embedded["request"] if "request" in embedded else state
        logits = model.policy_logits(hidden)
        dtype = self.action_spec.dtype
        if self._greedy:
            chosen = DeterministicWithLogProb(tf.argmax(logits, axis=-1, output_type=dtype))
        else:
            chosen = tfp.distributions.Categorical(logits=logits, dtype=dtype)
        return policy_step.PolicyStep(chosen, state)

    def _action(
        self, time_step: ts.TimeStep, policy_state: Any, seed: Any = None
    ) -> policy_step.PolicyStep:
        step = super()._action(time_step, policy_state, seed)
        after = self.next_state(time_step.observation, step.action, step.state)
        return step._replace(state=after)


class TopKReinforceAgent(tf_agent.TFAgent):
    """Trains `TopKReinforce` on trajectories of any logger, with the correction for pages of K.

    Formula, with the configuration of the model:

        coef = sg(min(pi / beta, c) K (1 - pi)^(K - 1) R)
        L    = mean_t(-coef log pi(a_t | s_t)) + behavior_weight mean_t(-log beta(a_t | sg(s_t)))

    This is the loss of the Keras model. The experience is a `Trajectory` with tensors `[B, T]`. A
    row is cut into episodes, which start from the state s_0 at the first step of the row and at
    every step of type FIRST. After a step with `next_step_type` LAST no step counts until the next
    FIRST, nor do steps with `next_step_type` FIRST (between two episodes, or zero padding). Returns
    end with the episode.

    If a row begins in the middle of an episode, its first `warm_up` steps only update the state; if
    it ends before the episode does, its last `look_ahead` steps only contribute rewards.

    beta is `exp(policy_info.log_probability)` if it is known, else that of the head of the logger
    (always with `propensities=False`). It is unknown if it is NaN, if `policy_info` has no such
    field (for example `()`), and if it is 0, from a deterministic logger: 1 is no weight, and the
    head learns the mixture over time.

    The discounts of the environment are not supported (only `config.gamma` discounts, and an
    episode ends at LAST only), nor are a learned s_0, a value baseline and normalised returns.
    Without a context the policy of the first step of an episode is always uniform, since s_0 = 0.

    Args:
      time_step_spec: the observation as in `TopKReinforcePolicy`; the reward is a scalar.
      action_spec: BoundedTensorSpec, an integer from 0 to A - 1.
      model: the network, with the settings of the loss in its `config`.
      optimizer: a Keras optimizer.
      gradient_clipping: bound on the norm of the gradient of each variable; None for none.
      debug_summaries: write the parts of the loss for TensorBoard.
      summarize_grads_and_vars: write gradients and variables too.
      train_step_counter: counts the calls of `train`; the global step of TF-Agents by default.
      name: name of the agent.

    Call arguments of `train` and `loss`:
      experience: a `Trajectory`, tensors `[B, T]`.
      weights: of the rows, `[B]`, or one for all; they multiply the losses.

    Returns of `train` and `loss`:
      `LossInfo`: `loss`, and `extra`, a `TopKReinforceLossInfo`.

    Raises:
      ConfigError: a spec does not fit the model.
      InputError: in eager mode, if a step that counts has a reward that is not finite, a propensity
        of 0 or above 1, or an action outside its spec. In a graph
        `tf.errors.InvalidArgumentError` with the same message.

    Example:
      >>> import keras
      >>> from tfrz.agents import BanditEnvironment, logged_experience
      >>> from tfrz.data.simulators.bandits import ContextualSlates
      >>> from tfrz.models.topk_reinforce import TopKReinforceConfig
      >>> slates = ContextualSlates(contexts=5, items=10)
      >>> specs = BanditEnvironment(slates)
      >>> model = TopKReinforce(TopKReinforceConfig(k=2), 10, 11, 1, context={"segment": 5})
      >>> agent = TopKReinforceAgent(
      ...     specs.time_step_spec(), specs.action_spec(), model, keras.optimizers.Adam()
      ... )
      >>> info = agent.train(logged_experience(slates, n=100))
      >>> bool(info.extra.effective_sample_size <= 100), round(float(info.extra.entropy), 2)
      (True, 2.3)

    Reference:
      Chen et al., "Top-K Off-Policy Correction for a REINFORCE Recommender System" (WSDM 2019,
      arXiv 1812.02353).
    """

    def __init__(
        self,
        time_step_spec: ts.TimeStep,
        action_spec: tensor_spec.BoundedTensorSpec,
        model: TopKReinforce,
        optimizer: Any,
        gradient_clipping: float | None = None,
        debug_summaries: bool = False,
        summarize_grads_and_vars: bool = False,
        train_step_counter: tf.Variable | None = None,
        name: str | None = None,
    ) -> None:
        tf.Module.__init__(self, name=name)
        time_step_spec, action_spec = _checked_specs(time_step_spec, action_spec, model)
        require(hasattr(optimizer, "apply_gradients"), "optimizer", "must be a Keras optimizer")
        require(
            gradient_clipping is None or gradient_clipping > 0,
            "gradient_clipping",
            "must be above 0, or None",
        )
        self._model, self._optimizer = model, optimizer
        self._gradient_clipping = gradient_clipping
        if hasattr(optimizer, "build"):
            # Now, so that it can be restored before training, and trained in a tf.function.
            optimizer.build(model.trainable_variables)
        super().__init__(
            time_step_spec,
            action_spec,
            policy=TopKReinforcePolicy(time_step_spec, action_spec, model, greedy=True),
            collect_policy=TopKReinforcePolicy(time_step_spec, action_spec, model),
            train_sequence_length=None,
            debug_summaries=debug_summaries,
            summarize_grads_and_vars=summarize_grads_and_vars,
            train_step_counter=train_step_counter,
        )
        self._as_trajectory = data_converter.AsTrajectory(self.data_context)

    @property
    def model(self) -> TopKReinforce:
        """The network."""
        return self._model

    def _train(
        self, experience: trajectory.Trajectory, weights: tf.Tensor | None = None
    ) -> tf_agent.LossInfo:
        variables = self._model.trainable_variables
        with tf.GradientTape() as tape:
            info = self._loss(experience, weights, training=True)
        tf.debugging.check_numerics(info.loss, "the loss is no finite number")
        gradients = tape.gradient(info.loss, variables)
        pairs = [(g, v) for g, v in zip(gradients, variables, strict=True) if g is not None]
        if self._gradient_clipping is not None:
            # Dense, since a row of a table may come several times: their sum is to be bounded.
            pairs = [(tf.convert_to_tensor(g), v) for g, v in pairs]
            pairs = eager_utils.clip_gradient_norms(pairs, self._gradient_clipping)
        if self.summarize_grads_and_vars:
            eager_utils.add_variables_summaries(pairs, self.train_step_counter)
            eager_utils.add_gradients_summaries(pairs, self.train_step_counter)
        self._optimizer.apply_gradients(pairs)
        self.train_step_counter.assign_add(1)
        if self.debug_summaries:
            common.summarize_scalar_dict(
                {"loss": info.loss, **info.extra._asdict()},
                step=self.train_step_counter,
                name_scope="Losses/",
            )
        return tf.nest.map_structure(tf.identity, info)

    def _loss(
        self,
        experience: trajectory.Trajectory,
        weights: tf.Tensor | None = None,
        training: bool = False,
    ) -> tf_agent.LossInfo:
        model, config = self._model, self._model.config
        experience = self._as_trajectory(_with_propensities(experience))
        episodes = _Episodes.of(experience.step_type, experience.next_step_type)
        real = episodes.real
        counted = episodes.counted(config.warm_up, config.look_ahead)
        rewards = episodes.take(experience.reward)
        actions = episodes.take(experience.action)
        log_propensities = episodes.take(experience.policy_info.log_probability)
        self._check(real, counted, rewards, actions, log_propensities)
        # Padding may hold any action.
        actions = tf.where(real, actions, tf.zeros_like(actions))
        returns = discounted_returns(rewards, config.gamma, real)

        observation = tf.nest.map_structure(episodes.take, experience.observation)
        embedded = model.embed(_model_inputs(model, observation, actions, real), training)
        hidden = model.encode(embedded, training)[:, :-1]
        heads = _heads(model, hidden, actions)
        log_beta = heads.log_beta
        if config.propensities:
            given = (log_propensities < 0) & (log_propensities > -float("inf"))
            log_beta = tf.where(given, log_propensities, log_beta)

        steps = tf.maximum(tf.reduce_sum(tf.cast(counted, tf.float32)), 1.0)
        each = tf.ones([], tf.float32)
        if weights is not None:
            each = tf.cast(weights, tf.float32)
            require(each.shape.rank in (0, 1), "weights", "must be one number, or one of each row")
            if each.shape.rank:
                each = tf.gather(each, episodes.rows)[:, None]

        def mean(values: tf.Tensor) -> tf.Tensor:
            return tf.reduce_sum(tf.where(counted, values, tf.zeros_like(values))) / steps

        objective = config.objective()
        of_policy = objective(heads.log_pi, log_beta, returns, counted, heads.policy_loss)
        policy_loss = mean(each * of_policy)
        logger_loss = mean(each * behavior_loss(-heads.behavior_loss, counted))
        told, share = _told_weights(objective, heads.log_pi, log_beta, counted)
        squares = tf.reduce_sum(told**2)
        extra = TopKReinforceLossInfo(
            policy_loss,
            logger_loss,
            tf.reduce_sum(told) / steps,
            mean(share),
            tf.math.divide_no_nan(tf.reduce_sum(told) ** 2, squares),
            mean(heads.entropy),
        )
        total = policy_loss + config.behavior_weight * logger_loss
        return tf_agent.LossInfo(total, extra)

    def _check(
        self,
        real: tf.Tensor,
        counted: tf.Tensor,
        rewards: tf.Tensor,
        actions: tf.Tensor,
        log_propensities: tf.Tensor,
    ) -> None:
        """Refuses invalid actions, rewards and propensities."""
        last = self._model.num_items - 1
        _refuse(
            real & ((actions < 0) | (actions > last)),
            f"experience.action: must be 0 to {last}; drop steps with other actions",
        )
        _refuse(
            real & ~tf.math.is_finite(rewards),
            "experience.reward: NaN or infinite; drop such steps, or give them the reward 0",
        )
        if self._model.config.propensities:
            wrong = (log_propensities > _ROUNDING) | (log_propensities == -float("inf"))
            _refuse(
                counted & wrong,
                "experience.policy_info.log_probability: a propensity of 0 or above 1; "
                "give NaN where it is unknown",
            )


class _Heads(NamedTuple):
    """The outputs of both heads for the actions, `[batch, time]` each."""

    log_pi: tf.Tensor
    policy_loss: tf.Tensor
    log_beta: tf.Tensor
    behavior_loss: tf.Tensor
    entropy: tf.Tensor


def _heads(model: TopKReinforce, hidden: tf.Tensor, actions: tf.Tensor) -> _Heads:
    """Log-probabilities of the actions, and the losses of the heads.

    Args:
      model: the network.
      hidden: h before each action, `[batch, time, units]`.
      actions: from 0, `[batch, time]`.
    """
    ids = tf.cast(actions, tf.int64) + _FIRST_ID
    heads = model.judge(hidden, ids, model.draw(ids))
    if model.sampler is None:
        logits = tf.stop_gradient(model.policy_logits(hidden))
        entropy = tfp.distributions.Categorical(logits).entropy()
    else:
        entropy = tf.fill(tf.shape(actions), float("nan"))
    return _Heads(*heads["policy"], *heads["behavior"], entropy)


def _told_weights(
    objective: TopKOffPolicyReinforce, log_pi: tf.Tensor, log_beta: tf.Tensor, mask: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """The capped weights, 0 outside the mask, and 1 for each weight that the cap lowered."""
    k = objective.k if objective.cap_after else 1

    def weights(cap: float | None) -> tf.Tensor:
        bounded = TopKOffPolicyReinforce(
            k, cap, "capped", objective.multiplier, objective.cap_after
        )
        return bounded.coefficients(log_pi, log_beta, tf.ones_like(log_pi), mask)

    capped = weights(objective.cap)
    return capped, tf.cast(weights(None) > capped, tf.float32)


@dataclasses.dataclass(frozen=True)
class _Episodes:
    """Rows `[B, T]` cut into episodes `[N, L]`, padded on the right.

    Attributes:
      place: index of each step in the flattened experience, int32 `[N, L]`; 0 for padding.
      real: boolean `[N, L]`, False for padding.
      rows: row of each episode in the experience, int32 `[N]`.
      lengths: number of steps of each episode, int32 `[N]`.
      has_past: boolean `[N]`: the episode began before its row.
      has_future: boolean `[N]`: the episode continues after its row.
    """

    place: tf.Tensor
    real: tf.Tensor
    rows: tf.Tensor
    lengths: tf.Tensor
    has_past: tf.Tensor
    has_future: tf.Tensor

    @classmethod
    def of(cls, step_type: tf.Tensor, next_step_type: tf.Tensor) -> _Episodes:
        """The episodes of an experience, from its step types `[B, T]`."""
        columns = tf.shape(step_type)[1]
        count = tf.size(step_type)
        everywhere = tf.range(count)
        kind, following = tf.reshape(step_type, [-1]), tf.reshape(next_step_type, [-1])
        nowhere = (kind == ts.StepType.LAST) | (following == ts.StepType.FIRST)
        ends = nowhere | (following == ts.StepType.LAST)
        starts = ((kind == ts.StepType.FIRST) & ~nowhere) | (everywhere % columns == 0)
        begin = tf.boolean_mask(everywhere, starts)
        episode = tf.cumsum(tf.cast(starts, tf.int32)) - 1
        ended = tf.cumsum(tf.cast(ends, tf.int32), exclusive=True)
        alive = ~nowhere & (ended == tf.gather(tf.gather(ended, begin), episode))
        lengths = tf.math.segment_sum(tf.cast(alive, tf.int32), episode)
        steps = tf.boolean_mask(everywhere, alive)
        of_steps = tf.gather(episode, steps)
        cells = tf.stack([of_steps, steps - tf.gather(begin, of_steps)], axis=1)
        shape = tf.stack([tf.size(begin), tf.maximum(tf.reduce_max(lengths), 1)])
        table = tf.scatter_nd(cells, steps + 1, shape)
        if step_type.shape[1] == 1:
            # Bandits: with a known length of 1, a graph needs no loop over time.
            table = tf.ensure_shape(table, [None, 1])
        last = begin + tf.maximum(lengths - 1, 0)
        return cls(
            place=tf.maximum(table - 1, 0),
            real=table > 0,
            rows=begin // columns,
            lengths=lengths,
            has_past=tf.gather(kind, begin) != ts.StepType.FIRST,
            has_future=tf.gather(following, last) != ts.StepType.LAST,
        )

    def take(self, values: tf.Tensor) -> tf.Tensor:
        """The values `[B, T, ...]` by episode, `[N, L, ...]`, with any values for padding."""
        flat = tf.reshape(values, tf.concat([[-1], tf.shape(values)[2:]], axis=0))
        return tf.gather(flat, self.place)

    def counted(self, warm_up: int, look_ahead: int) -> tf.Tensor:
        """The steps that contribute to the losses, boolean `[N, L]`."""
        time = tf.range(tf.shape(self.real)[1])[None, :]
        early = self.has_past[:, None] & (time < warm_up)
        late = self.has_future[:, None] & (time >= self.lengths[:, None] - look_ahead)
        return self.real & ~early & ~late


def _model_inputs(
    model: TopKReinforce, observation: Any, actions: tf.Tensor, real: tf.Tensor | None = None
) -> dict[str, tf.Tensor]:
    """Inputs of the model for steps: the ids of actions and their contexts, `[batch, time]`.

    The context of the request is that of the last step.
    """
    ids = tf.cast(actions, tf.int64) + _FIRST_ID
    inputs = {"history_xf": ids if real is None else tf.where(real, ids, tf.zeros_like(ids))}
    for name, values in _contexts(model, observation).items():
        if name in model.context:
            values = tf.cast(values, tf.int64)
        inputs[f"history_{name}_xf"] = values
        inputs[f"{name}_xf"] = values[:, -1]
    return inputs


def _contexts(model: TopKReinforce, observation: Any) -> dict[str, Any]:
    """The model's contexts in an observation, or their specs in its spec."""
    names = [*model.context, *model.numeric]
    if isinstance(observation, Mapping) or not names:
        return {name: observation[name] for name in names}
    return {names[0]: observation}


def _zeros(model: TopKReinforce) -> dict[str, tf.Tensor]:
    """Observations of zeros, `[1, length]`."""
    kinds = {**dict.fromkeys(model.context, tf.int64), **dict.fromkeys(model.numeric, tf.float32)}
    return {name: tf.zeros([1, model.length], kind) for name, kind in kinds.items()}


def _with_propensities(experience: trajectory.Trajectory) -> trajectory.Trajectory:
    """The experience with only `policy_info.log_probability`, NaN if it is missing."""
    given = policy_step.get_log_probability(experience.policy_info)
    if given is None:
        given = tf.fill(tf.shape(experience.reward), float("nan"))
        given = tf.ensure_shape(given, experience.reward.shape)
    return experience._replace(policy_info=policy_step.PolicyInfo(tf.cast(given, tf.float32)))


def _refuse(wrong: tf.Tensor, line: str) -> None:
    """Raises `line` if any value is wrong; in a graph at run time."""
    fine = ~tf.reduce_any(wrong)
    known = tf.get_static_value(fine)
    if known is None:
        tf.debugging.Assert(fine, [line])
    elif not known:
        raise InputError(line)


def _checked_specs(
    time_step_spec: Any, action_spec: Any, model: Any
) -> tuple[ts.TimeStep, tensor_spec.BoundedTensorSpec]:
    """Both as specs of tensors.

    Raises:
      ConfigError: they do not fit the model.
    """
    require(isinstance(model, TopKReinforce), "model", "must be a tfrz.models.TopKReinforce")
    require(isinstance(time_step_spec, ts.TimeStep), "time_step_spec", "must be a TimeStep")
    time_step_spec = _as_tensor_spec(time_step_spec, "time_step_spec")
    action_spec = _as_tensor_spec(action_spec, "action_spec")
    last = model.num_items - 1
    wanted = f"must be a scalar BoundedTensorSpec of int32 or int64 from 0 to {last}"
    require(
        isinstance(action_spec, tensor_spec.BoundedTensorSpec)
        and action_spec.shape.rank == 0
        and action_spec.dtype in (tf.int32, tf.int64)
        and int(action_spec.minimum) == 0
        and int(action_spec.maximum) == last,
        "action_spec",
        f"{wanted} (the model has {model.num_items} actions), got {_in_a_line(action_spec)}",
    )
    reward = time_step_spec.reward
    require(
        isinstance(reward, tf.TensorSpec) and reward.shape.rank == 0 and reward.dtype.is_floating,
        "time_step_spec.reward",
        f"must be one number, got {_in_a_line(reward)}",
    )
    observation, where = time_step_spec.observation, "time_step_spec.observation"
    names = [*model.context, *model.numeric]
    if isinstance(observation, Mapping):
        missing = [name for name in names if name not in observation]
        require(not missing, where, f"lacks the model's contexts {', '.join(missing)}")
    else:
        require(
            len(names) == 0 or (len(names) == 1 and isinstance(observation, tf.TensorSpec)),
            where,
            f"must be a mapping with the model's contexts {', '.join(names)}",
        )
    for name, spec in _contexts(model, observation).items():
        is_id = name in model.context
        kind = "whole number" if is_id else "floating-point number"
        require(
            isinstance(spec, tf.TensorSpec)
            and spec.shape.rank == 0
            and (spec.dtype.is_integer if is_id else spec.dtype.is_floating),
            where,
            f"context {name} must be a scalar {kind}, got {_in_a_line(spec)}",
        )
        if is_id and isinstance(spec, tensor_spec.BoundedTensorSpec):
            rows = model.context[name]
            require(
                int(spec.maximum) < rows,
                where,
                f"context {name} goes to {int(spec.maximum)}, the model's table to {rows - 1}",
            )
    return time_step_spec, action_spec


def _as_tensor_spec(spec: Any, where: str) -> Any:
    try:
        return tensor_spec.from_spec(spec)
    except (AttributeError, TypeError, ValueError) as error:
        raise ConfigError(f"{where}: must be specs, got {_in_a_line(spec)}") from error


def _in_a_line(spec: Any) -> str:
    return " ".join(str(spec).split())
