"""The recipe of *logged action* records: learn a policy from what others did, serve its slates.

Models of this recipe are constructed like those of `HistoryTask` and have `embed`, `encode`
`[batch, time + 1, units]`, `policy_logits`, `behavior_logits`, the tables `policy_head` and
`behavior_head`, and a configuration with the fields of `tfrz.models.topk_reinforce`.
"""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import tensorflow as tf

from tfrz.config import require
from tfrz.data.histories.spec import HistorySpec
from tfrz.data.spec import raw_feature_spec, transformed_name
from tfrz.data.transform import densify
from tfrz.errors import InputError
from tfrz.export.raw_inputs import raw_input_signature, to_sparse
from tfrz.files import atomic_write
from tfrz.layers.low_rank import frobenius_penalty
from tfrz.layers.slates import boltzmann_slate
from tfrz.losses.reinforce import (
    discounted_returns,
    importance_weights,
)
from tfrz.metrics.coverage import coverage, exposures, gini
from tfrz.metrics.off_policy import self_normalized, weight_summary
from tfrz.metrics.ranking import at_rank, parse, rank_of
from tfrz.models.topk_reinforce import log_probability
from tfrz.zoo.tasks.history import HistoryInputs, HistoryTask, Transform
from tfrz.zoo.tasks.thresholds import evaluation_config, metrics_of_lists

if TYPE_CHECKING:
    from tfrz.data.sources.reader import Reader
    from tfrz.training.batches import Batches
    from tfrz.zoo.tasks.prepared import Prepared

_LISTED = 20


@dataclasses.dataclass(frozen=True)
class ReinforceInputs(HistoryInputs):
    """What a policy must know of its transformed inputs.

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
    """The top-K off-policy policy gradient; recommendations as slates of raw action ids.

    Args:
      entry: the model's row in the registry.
      config: the run's configuration.
    """

    objective = "snips"
    objective_direction = "max"

    def outcome_names(self, spec: HistorySpec) -> tuple[str, str | None]:
        """The reward, and the propensity where the source has one."""
        names = spec.outcomes
        return names[0], names[1] if len(names) > 1 else None

    def model_inputs(
        self, spec: HistorySpec, vocabulary_sizes: Mapping[str, int]
    ) -> ReinforceInputs:
        """As of `HistoryTask`; outcomes are no inputs."""
        inputs = super().model_inputs(spec, vocabulary_sizes)
        known = {f.name: getattr(inputs, f.name) for f in dataclasses.fields(HistoryInputs)}
        reward, propensity = self.outcome_names(spec)
        return ReinforceInputs(**known, reward=reward, propensity=propensity)

    def build(self, inputs: HistoryInputs) -> keras.Model:
        """A model with all its variables made."""
        assert isinstance(inputs, ReinforceInputs)
        model = self.config.model
        require(
            model.warm_up + model.look_ahead <= inputs.length,
            "model.warm_up + model.look_ahead",
            f"leave no step to learn from: data.history.length is {inputs.length}",
        )
        self._reward, self._propensity = inputs.reward, inputs.propensity
        return super().build(inputs)

    def prepare(self, reader: Reader) -> Prepared:
        """As of `HistoryTask`.

        Raises:
          InputError: no action of the log has a reward.
        """
        prepared = super().prepare(reader)
        self.check_training_set(prepared.train, prepared.inputs)
        return prepared

    # What the training loop asks for.

    @staticmethod
    def check_training_set(train: Batches, inputs: ReinforceInputs) -> None:
        """Refuses a log from which nothing can be learnt.

        Raises:
          InputError: no action of the log has a reward.
        """
        reward = transformed_name(inputs.reward)
        if not any(
            np.any(batch[reward].numpy()) or np.any(batch[f"history_{reward}"].numpy())
            for batch in train.once()
        ):
            raise InputError(
                "every action of the training log has the reward 0: a policy cannot learn from it"
            )

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

    def lookup(self, model: keras.Model, batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
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

    def dense_loss(
        self, model: keras.Model, looked_up: dict[str, tf.Tensor]
    ) -> tuple[tf.Tensor, tf.Tensor]:
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

    def judged(self, model: keras.Model, batch: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """What an estimate of the policy's value needs of each example's last action, `[batch]`.

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

    def predict(self, model: keras.Model, batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
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

    def metrics(self, outputs: dict[str, np.ndarray]) -> dict[str, float]:
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

    def report(self, model: keras.Model, prepared: Prepared, out: Path) -> None:
        """`weights.json` and `weights.png`: the importance weights of the validation set."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        rows = [self.judged(model, batch) for batch in prepared.validation.once()]
        policy, logged = (
            np.concatenate([r[n].numpy() for r in rows]) for n in ("policy", "logged")
        )
        weights = importance_weights(
            tf.math.log(tf.maximum(policy, 1e-30)), tf.math.log(logged)
        ).numpy()
        cap = self.config.evaluator.cap
        summary = weight_summary(weights, cap)
        atomic_write(out / "weights.json", json.dumps(summary, indent=1) + "\n")
        figure = Figure(figsize=(6, 4), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot(1, 1, 1)
        axes.hist(np.log10(np.maximum(weights, 1e-6)), bins=50)
        if cap is not None:
            axes.axvline(np.log10(cap), color="black", lw=0.8, label=f"cap {cap:.3g}")
            axes.legend()
        axes.set_xlabel("log10 of pi / beta")
        axes.set_ylabel("logged actions")
        picture = io.BytesIO()
        figure.savefig(picture, format="png", dpi=120)
        atomic_write(out / "weights.png", picture.getvalue())

    # What a warm start asks for.

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

    # What the export asks for.

    def outputs(self, model: keras.Model, features: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
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
            "scores": tf.where(shown, scores, tf.fill(tf.shape(scores), -1e9)),
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
    ) -> dict[str, Any]:
        """The signatures of a policy.

        Args:
          model: the trained model.
          transform: raw sparse features to transformed ones.
          spec: the raw features.
          vocabularies: `item_xf` to the raw ids of the actions.

        Returns:
          Names to functions with an input signature. Those of `HistoryTask`, whose answers also
          have `log_probability` `[batch, top_k]`: that each place was filled as it was, given those
          before it, 0 for places filled without chance. `judge_log` takes serialised examples with
          their outcomes and gives what `judged` gives.
        """
        parse_spec = raw_feature_spec(spec, label=False)
        labelled_spec = raw_feature_spec(spec, label=True)
        examples = tf.TensorSpec([None], tf.string, name="examples")
        terms = tf.constant(["", *vocabularies["item_xf"]])
        reward, propensity = self.outcome_names(spec)

        def recommended(raw: dict[str, tf.SparseTensor]) -> dict[str, tf.Tensor]:
            outputs = self.outputs(model, densify(transform(raw)))
            ids = outputs.pop("ids")
            return {"item_ids": tf.gather(terms, ids), **outputs}

        @tf.function(input_signature=[examples])
        def serving_default(examples: tf.Tensor) -> dict[str, tf.Tensor]:
            return recommended(tf.io.parse_example(examples, parse_spec))

        @tf.function(input_signature=[raw_input_signature(spec)])
        def serving_raw(features: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
            return recommended(to_sparse(features, spec.aligned))

        def last(raw: dict[str, tf.SparseTensor], name: str) -> tf.Tensor:
            dense = tf.sparse.to_dense(raw[name], float("nan"))
            return tf.pad(dense, [[0, 0], [0, 1]], constant_values=float("nan"))[:, 0]

        def target_ids(raw: dict[str, tf.SparseTensor]) -> tf.Tensor:
            dense = tf.sparse.to_dense(raw[spec.label], "")
            first = tf.pad(dense, [[0, 0], [0, 1]], constant_values="")[:, :1]
            same = tf.equal(first, terms[None, :])
            known = tf.reduce_any(same[:, 1:], axis=1)
            return tf.where(known, tf.argmax(tf.cast(same, tf.int32), axis=1), model.num_items + 1)

        @tf.function(input_signature=[examples])
        def judge_log(examples: tf.Tensor) -> dict[str, tf.Tensor]:
            raw = tf.io.parse_example(examples, labelled_spec)
            features = densify(transform({f.name: raw[f.name] for f in spec.features}))
            batch = dict(features)
            batch["target_xf"] = tf.cast(target_ids(raw), tf.int64)
            names = [n for n in (reward, propensity) if n is not None]
            for name in names:
                value = last(raw, name)
                batch[transformed_name(name)] = tf.where(
                    tf.math.is_finite(value), value, tf.zeros_like(value)
                )
                # Only the last action is judged.
                past = tf.zeros(tf.shape(features["history_xf"]))
                batch[transformed_name(f"history_{name}")] = past
            return self.judged(model, batch)

        whole = super().signatures(model, transform, spec, vocabularies)["transform_features"]

        @tf.function(input_signature=[examples])
        def transform_features(examples: tf.Tensor) -> dict[str, tf.Tensor]:
            features = dict(whole(examples))
            raw = tf.io.parse_example(examples, labelled_spec)
            dense = tf.sparse.to_dense(raw[spec.label], "")
            target = tf.pad(dense, [[0, 0], [0, 1]], constant_values="")[:, 0]
            # The Evaluator ranks what was rewarded; the rest is left out.
            features["rewarded"] = tf.where(last(raw, reward) > 0, target, "")
            features["catalogue_size"] = tf.fill(tf.shape(examples), model.num_items)
            return features

        return {
            "serving_default": serving_default,
            "serving_raw": serving_raw,
            "recommend": serving_raw,
            "judge_log": judge_log,
            "transform_features": transform_features,
        }

    # What the Evaluator asks for.

    def eval_config(self, spec: HistorySpec, has_baseline: bool) -> Any:
        """TFMA's `EvalConfig`: metrics of rewarded actions, slices, thresholds of a blessing."""
        parameters = metrics_of_lists(self.config, self.entry.metrics)
        return evaluation_config(
            self.config.evaluator, parameters, "item_ids", "rewarded", has_baseline
        )
