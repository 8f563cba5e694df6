"""The task of *logged action* records: learn a policy from what others did, serve its slates.

Models of this task are constructed like those of `HistoryTask` and have `embed`, `encode`
`[batch, time + 1, units]`, `policy_logits`, `behavior_logits`, the tables `policy_head` and
`behavior_head`, and a configuration with the fields of `tfrz.models.topk_reinforce`.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from tfrz.config import require
from tfrz.data.histories.spec import HistorySpec
from tfrz.data.spec import transformed_name
from tfrz.data.transform import first_value
from tfrz.errors import InputError
from tfrz.layers.low_rank_dense import frobenius_penalty
from tfrz.layers.slates import boltzmann_slate
from tfrz.losses.reinforce import discounted_returns
from tfrz.metrics.coverage import coverage, exposures, gini
from tfrz.metrics.off_policy import self_normalized
from tfrz.metrics.ranking import at_rank, parse, rank_of
from tfrz.models.topk_reinforce import log_probability
from tfrz.training.fit import objective_of
from tfrz.zoo.task import Prepared, Served, Tensors, Transform
from tfrz.zoo.tasks.history import NOTHING, HistoryInputs, HistoryTask, id_table
from tfrz.zoo.tasks.sets import distinct, judged_sets
from tfrz.zoo.tasks.thresholds import evaluation_config, metrics_of_lists

logger = logging.getLogger(__name__)

_LISTED = 20
# Metrics that estimate what a policy is worth.
_VALUES = ("snips", "snips_low")


@dataclasses.dataclass(frozen=True)
class ReinforceInputs(HistoryInputs):
    """The transformed inputs of a policy.

    Attributes:
      reward: outcome that is the reward.
      propensity: outcome that is the logger's propensity; None where there is none.
    """

    reward: str = "reward"
    propensity: str | None = None


def usable(propensities: tf.Tensor) -> tf.Tensor:
    """Which propensities are used: not 0, unknown, and not 1, of a logger without chance."""
    return (propensities > 0) & (propensities < 1)


class ReinforceTask(HistoryTask):
    """The top-K off-policy policy gradient; recommendations as slates of raw action ids."""

    objective = "snips"

    # Data.

    def outcome_names(self, spec: HistorySpec) -> tuple[str, str | None]:
        """The reward, and the propensity where the source has one."""
        names = spec.outcomes
        return names[0], names[1] if len(names) > 1 else None

    def check_sets(self, prepared: Prepared[HistorySpec, HistoryInputs]) -> None:
        """Refuses logs from which nothing can be learned.

        Raises:
          InputError: as of `HistoryTask`; or no action of the training log has a reward, or those
            of the validation log have the same, so that every policy is worth the same there.
        """
        inputs = prepared.inputs
        assert isinstance(inputs, ReinforceInputs)
        super().check_sets(prepared)
        reward = transformed_name(inputs.reward)
        if not any(
            np.any(batch[reward].numpy()) or np.any(batch[f"history_{reward}"].numpy())
            for batch in prepared.train.once()
        ):
            raise InputError(
                "every action of the training log has the reward 0: a policy cannot learn from it"
            )
        for name, some in judged_sets(prepared).items():
            # Only actions that the policy knows count in an estimate.
            rewards = distinct(
                batch[reward].numpy()[batch["target_xf"].numpy() <= inputs.num_items]
                for batch in some.once()
            )
            # Without any, the targets were warned of above.
            if len(rewards) != 1:
                continue
            said = (
                f"the reward is {rewards[0]:g} for all {some.num_examples:,} {name} actions: "
                "every policy is worth the same there"
            )
            if name == "validation" and objective_of(self, self.config.trainer) in _VALUES:
                raise InputError(f"{said}, and no weights can be chosen; hold out more")
            logger.warning("%s", said)

    # The model.

    def model_inputs(
        self, spec: HistorySpec, vocabulary_sizes: Mapping[str, int]
    ) -> ReinforceInputs:
        """As of `HistoryTask`; outcomes are no inputs."""
        inputs = super().model_inputs(spec, vocabulary_sizes)
        known = {f.name: getattr(inputs, f.name) for f in dataclasses.fields(HistoryInputs)}
        reward, propensity = self.outcome_names(spec)
        return ReinforceInputs(**known, reward=reward, propensity=propensity)

    def construct(self, inputs: HistoryInputs) -> keras.Model:
        """The model, before it has any variables."""
        assert isinstance(inputs, ReinforceInputs)
        model = self.config.model
        require(
            model.warm_up + model.look_ahead <= inputs.length,
            "model.warm_up + model.look_ahead",
            f"leave no step to learn from: data.history.length is {inputs.length}",
        )
        self._reward, self._propensity = inputs.reward, inputs.propensity
        return super().construct(inputs)

    def vocabulary_weights(self, model: keras.Model) -> dict[str, list[tf.Variable]]:
        """The tables whose rows are the ids of each vocabulary."""
        tables = (model.actions, model.policy_head, model.behavior_head)
        weights = {"item_xf": [table.embeddings for table in tables]}
        for name in model.context:
            if name not in self.history.time_features:
                weights[transformed_name(name)] = [
                    model.past_contexts[name].embeddings,
                    model.request_contexts[name].embeddings,
                ]
        return weights

    # Training.

    def trajectory(self, model: keras.Model, batch: Mapping[str, tf.Tensor]) -> dict[str, Any]:
        """Actions, rewards, known propensities and masks of a window, `[batch, time + 1]` each.

        The last step is the target. `known` are actions of the vocabulary, `counted` those of the
        window's middle, on which losses are taken.
        """
        reward = transformed_name(self._reward)
        history = tf.cast(batch["history_xf"], tf.int64)

        def whole(past: tf.Tensor, last: tf.Tensor) -> tf.Tensor:
            return tf.concat([past, last[:, None]], axis=1)

        actions = whole(history, tf.cast(batch["target_xf"], tf.int64))
        rewards = whole(batch[f"history_{reward}"], batch[reward])
        if self._propensity is None or not model.config.propensities:
            propensities = tf.zeros_like(rewards)
        else:
            name = transformed_name(self._propensity)
            propensities = whole(batch[f"history_{name}"], batch[name])
        real = tf.not_equal(actions, 0)
        place = tf.range(tf.shape(actions)[1])[None, :]
        middle = (place >= model.config.warm_up) & (
            place < tf.shape(actions)[1] - model.config.look_ahead
        )
        known = real & (actions <= model.num_items)
        return {
            "actions": actions,
            "rewards": rewards,
            "propensities": propensities,
            "real": real,
            "known": known,
            "counted": known & middle,
        }

    def lookup(self, model: keras.Model, batch: Tensors) -> Tensors:
        """Embedded actions and the trajectory, and sampled negatives of both heads."""
        looked_up = dict(model.embed(batch, training=True))
        trajectory = self.trajectory(model, batch)
        looked_up["returns"] = discounted_returns(
            trajectory["rewards"], model.config.gamma, trajectory["real"]
        )
        for name in ("actions", "propensities", "counted"):
            looked_up[name] = trajectory[name]
        looked_up |= model.draw(trajectory["actions"])
        if self.teacher is not None:
            teacher = self.teacher.model
            looked_up["taught"] = tf.stop_gradient(teacher.encode(teacher.embed(batch)))
        return looked_up

    def dense_loss(self, model: keras.Model, looked_up: Tensors) -> tuple[tf.Tensor, tf.Tensor]:
        """A loss per example whose mean is that of all counted steps, and no regularisation.

        The policy learns from steps with a return, the logger's head from every step shown.
        """
        counted, hidden = looked_up["counted"], model.encode(looked_up, training=True)
        heads = model.judge(hidden, looked_up["actions"], looked_up)
        log_pi, policy_loss = heads["policy"]
        log_beta, behavior_loss = heads["behavior"]
        logged = looked_up["propensities"]
        log_beta = tf.where(usable(logged), tf.math.log(tf.maximum(logged, 1e-30)), log_beta)
        losses = model.config.objective()(
            log_pi, log_beta, looked_up["returns"], counted, policy_loss
        )
        weights = tf.cast(counted, tf.float32)
        if self.config.distill.active:
            soft = self._soft(model, hidden, looked_up["actions"], looked_up.get("taught"))
            losses = self.config.distill.mixed(losses, weights * soft)
        losses += model.config.behavior_weight * weights * behavior_loss
        total = tf.maximum(tf.reduce_sum(weights), 1.0)
        rows = tf.cast(tf.shape(weights)[0], tf.float32)
        return tf.reduce_sum(losses, axis=1) * rows / total, frobenius_penalty(model)

    @staticmethod
    def _over_items(model: keras.Model, hidden: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Logits `[..., A]` of the policy, and the actions' vectors `[A, units]`."""
        return model.policy_logits(hidden), model.head("policy")

    def judged(self, model: keras.Model, batch: Mapping[str, tf.Tensor]) -> Tensors:
        """The inputs of an estimate of the policy's value, from each last action, `[batch]`.

        `policy`, `logged` (the propensity of the log, or the head's estimate), `reward`, and
        `known`: whether the action is one that the policy can take.
        """
        hidden = model.encode(model.embed(batch))[:, -1]
        trajectory = self.trajectory(model, batch)
        action, known = trajectory["actions"][:, -1], trajectory["known"][:, -1]
        policy = tf.exp(log_probability(model.policy_logits(hidden), action))
        behavior = tf.exp(log_probability(model.behavior_logits(hidden), action))
        logged = trajectory["propensities"][:, -1]
        return {
            "policy": tf.where(known, policy, tf.zeros_like(policy)),
            "logged": tf.where(usable(logged), logged, tf.maximum(behavior, 1e-6)),
            "reward": trajectory["rewards"][:, -1],
            "known": known,
        }

    def predict(self, model: keras.Model, batch: Tensors) -> Tensors:
        """Rank of the logged action, what the estimate needs, and what is listed."""
        logits = model(batch, training=False)
        allowed = self._allowed(logits, batch)
        best, listed = tf.math.top_k(allowed, min(_LISTED, model.num_items))
        log_pi = tf.nn.log_softmax(logits)
        return {
            **self.judged(model, batch),
            "rank": rank_of(allowed, batch["target_xf"]),
            "listed": tf.where(tf.math.is_finite(best), listed + 1, tf.zeros_like(listed)),
            "entropy": -tf.reduce_sum(tf.exp(log_pi) * log_pi, axis=-1),
            "num_items": tf.fill([tf.shape(logits)[0]], model.num_items),
        }

    def metrics(self, outputs: dict[str, NDArray[Any]]) -> dict[str, float]:
        """Ranking metrics of rewarded actions, what is listed, and the estimated value."""
        rewarded = outputs["reward"] > 0
        found: dict[str, float] = {}
        for name in self.entry.metrics:
            kind, n = parse(name)
            if kind in ("coverage", "gini"):
                counts = exposures(outputs["listed"][:, :n], int(outputs["num_items"][0]))
                found[name] = coverage(counts) if kind == "coverage" else gini(counts)
            else:
                values = at_rank(kind, outputs["rank"][rewarded], n)
                found[name] = float(np.mean(values)) if len(values) else float("nan")
        cap = self.config.evaluator.cap
        found |= {"snips": float("nan"), "snips_low": float("nan"), "effective_sample_size": 0.0}
        # A few rows may hold no action that the policy knows.
        if np.any(outputs["policy"] > 0):
            estimate = self_normalized(
                outputs["reward"], outputs["policy"], outputs["logged"], cap=cap
            )
            found["snips"], found["snips_low"] = estimate.value, estimate.low
            found["effective_sample_size"] = estimate.effective_sample_size
        return {
            **found,
            "logged_reward": float(np.mean(outputs["reward"])),
            "entropy": float(np.mean(outputs["entropy"])),
        }

    # The export.

    def outputs(self, model: keras.Model, features: Tensors) -> Tensors:
        """A slate: `ids` int64, `scores` (logits) and `log_probability`, `[batch, top_k]`."""
        export = self.config.export
        logits = self._allowed(model(features, training=False), features)
        k = min(export.top_k, model.num_items)
        best, columns = tf.math.top_k(logits, min(max(export.candidates, k), model.num_items))
        certain = k if export.deterministic is None else min(export.deterministic, k)
        slate = boltzmann_slate(best, k, certain, export.temperature)
        places = slate["positions"]
        scores = tf.gather(best, places, batch_dims=1)
        shown = tf.math.is_finite(scores)
        ids = tf.cast(tf.gather(columns, places, batch_dims=1), tf.int64) + 1
        return {
            "ids": tf.where(shown, ids, tf.zeros_like(ids)),
            "scores": tf.where(shown, scores, tf.fill(tf.shape(scores), NOTHING)),
            "log_probability": tf.where(
                shown, slate["log_probability"], tf.zeros_like(slate["log_probability"])
            ),
        }

    def signatures(
        self,
        model: keras.Model,
        transform: Transform,
        spec: HistorySpec,
        vocabularies: Mapping[str, Sequence[str]],
    ) -> dict[str, Callable[..., Tensors]]:
        """As of `HistoryTask`, and `judge_log`.

        Answers also have `log_probability` `[batch, top_k]`: that each place was filled as it was,
        given those before it, 0 for places filled without chance. `judge_log` takes serialised
        examples with their outcomes and returns what `judged` does.
        """
        self._action_ids = id_table(vocabularies["item_xf"], model.num_items + 1)
        signatures = super().signatures(model, transform, spec, vocabularies)
        self.parts.append(self._action_ids)
        return signatures

    def described(
        self, served: Served[HistorySpec], raw: dict[str, tf.SparseTensor], features: Tensors
    ) -> Tensors:
        """As of `HistoryTask`, with the target if it was rewarded, and the number of actions."""
        target, reward = raw[served.spec.label], raw[self.outcome_names(served.spec)[0]]
        # The Evaluator ranks what was rewarded; the rest is left out.
        rewarded = first_value(reward, float("nan")) > 0
        count = tf.fill(tf.shape(rewarded), served.model.num_items)
        return {
            **super().described(served, raw, features),
            "rewarded": tf.where(rewarded, first_value(target, ""), ""),
            "catalogue_size": count,
        }

    def further_signatures(self, served: Served[HistorySpec]) -> dict[str, Callable[..., Tensors]]:
        """`judge_log`: what an estimate of the policy's value needs of logged examples."""
        spec = served.spec
        outcomes = [name for name in self.outcome_names(spec) if name is not None]

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="examples")])
        def judge_log(examples: tf.Tensor) -> Tensors:
            raw = self.parsed(examples, spec, label=True)
            batch = served.features(raw)
            batch["target_xf"] = self._action_ids.lookup(first_value(raw[spec.label], ""))
            # Only the last action is judged.
            past = tf.zeros(tf.shape(batch["history_xf"]))
            for name in outcomes:
                value = first_value(raw[name], float("nan"))
                finite = tf.where(tf.math.is_finite(value), value, tf.zeros_like(value))
                batch[transformed_name(name)] = finite
                batch[transformed_name(f"history_{name}")] = past
            return self.judged(served.model, batch)

        return {"judge_log": judge_log}

    # The Evaluator.

    def eval_config(self, spec: HistorySpec, has_baseline: bool) -> Any:
        """TFMA's `EvalConfig`: metrics of rewarded actions, slices, thresholds of a blessing."""
        parameters = metrics_of_lists(self.config, self.entry.metrics)
        return evaluation_config(
            self.config.evaluator, parameters, "item_ids", "rewarded", has_baseline
        )
