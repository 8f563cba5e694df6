"""The agent: its loss is the Keras model's, its policies run step by step, and it learns."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.lazy import lazy
from tfrz.config import from_mapping
from tfrz.data.simulators.bandits import BiasedLoggerBandit, ContextualSlates
from tfrz.errors import ConfigError, InputError
from tfrz.models.topk_reinforce import TopKReinforce, TopKReinforceConfig
from tfrz.zoo.run_config import load_run_config
from tfrz.zoo.tasks.reinforce import ReinforceTask

pytestmark = pytest.mark.needs("tf_agents")

agents = lazy("tfrz.agents")
array_spec = lazy("tf_agents.specs.array_spec")
bandit_trainer = lazy("tf_agents.bandits.agents.examples.v2.trainer")
common = lazy("tf_agents.utils.common")
dynamic_step_driver = lazy("tf_agents.drivers.dynamic_step_driver")
policy_saver = lazy("tf_agents.policies.policy_saver")
policy_step = lazy("tf_agents.trajectories.policy_step")
py_environment = lazy("tf_agents.environments.py_environment")
tensor_spec = lazy("tf_agents.specs.tensor_spec")
tf_agent = lazy("tf_agents.agents.tf_agent")
tf_py_environment = lazy("tf_agents.environments.tf_py_environment")
tf_uniform_replay_buffer = lazy("tf_agents.replay_buffers.tf_uniform_replay_buffer")
top_k_reinforce_agent = lazy("tfrz.agents.top_k_reinforce_agent")
trajectory = lazy("tf_agents.trajectories.trajectory")
ts = lazy("tf_agents.trajectories.time_step")

ITEMS, PAGES = 7, 3
FIRST, MID, LAST = 0, 1, 2
NAN = float("nan")


def _observation() -> dict:
    page = tensor_spec.BoundedTensorSpec([], tf.int32, 0, PAGES - 1)
    return {"page": page, "hour": tf.TensorSpec([], tf.float32)}


def _action():
    return tensor_spec.BoundedTensorSpec([], tf.int32, 0, ITEMS - 1)


def _model(contexts: bool = True, **values) -> TopKReinforce:
    keras.utils.set_random_seed(3)
    sizes = {"action_dim": 5, "units": 4, "embedding_scale": 0.7, "gamma": 0.8, "num_sampled": 6}
    config = from_mapping(TopKReinforceConfig, {**sizes, **values}, "model")
    context = {"page": PAGES} if contexts else {}
    return TopKReinforce(config, ITEMS, ITEMS + 2, 4, context, ["hour"] if contexts else [])


def _agent(model: TopKReinforce, observation=None, **values) -> agents.TopKReinforceAgent:
    observation = _observation() if observation is None else observation
    values.setdefault("optimizer", keras.optimizers.SGD(0.1))
    values.setdefault("train_step_counter", tf.Variable(0, dtype=tf.int64))
    return agents.TopKReinforceAgent(ts.time_step_spec(observation), _action(), model, **values)


def _log(lengths=(5, 5, 3, 1, 4, 5), time: int = 5, seed: int = 0) -> dict[str, np.ndarray]:
    """Rows of steps at their beginning; what lies after a row's length is to be ignored."""
    rng, shape = np.random.default_rng(seed), (len(lengths), time)
    propensity = rng.uniform(0.02, 1.0, shape)
    propensity[rng.random(shape) < 0.4] = NAN
    return {
        "action": rng.integers(0, ITEMS, shape),
        "reward": rng.choice([0.0, 0.0, 1.0, 3.0], shape),
        "propensity": propensity,
        "page": rng.integers(0, PAGES, shape),
        "hour": rng.normal(size=shape),
        "lengths": np.array(lengths),
    }


def _experience(log, first: int = FIRST, last: int = LAST, **changes) -> trajectory.Trajectory:
    shape = log["action"].shape
    step, following = np.full(shape, MID), np.full(shape, MID)
    step[:, 0] = first
    for row, length in enumerate(log["lengths"]):
        following[row, length - 1] = last
        if last == LAST and length < shape[1]:
            # What drivers put between episodes.
            step[row, length], following[row, length] = LAST, FIRST
    fields = {
        "step_type": tf.constant(step, tf.int32),
        "observation": {
            "page": tf.constant(log["page"], tf.int32),
            "hour": tf.constant(log["hour"], tf.float32),
        },
        "action": tf.constant(log["action"], tf.int32),
        "policy_info": policy_step.PolicyInfo(tf.constant(np.log(log["propensity"]), tf.float32)),
        "next_step_type": tf.constant(following, tf.int32),
        "reward": tf.constant(log["reward"], tf.float32),
        "discount": tf.ones(shape),
    }
    return trajectory.Trajectory(**{**fields, **changes})


def _keras_batch(log) -> dict[str, tf.Tensor]:
    """The same log as the Keras model is trained on it: padded on the left, the last a target."""
    batch, time = {}, log["action"].shape[1]
    names = {"action": "history_xf", **{n: f"history_{n}_xf" for n in ("page", "hour", "reward")}}
    names["propensity"] = "history_propensity_xf"
    for name, key in names.items():
        values = log[name] + 1 if name == "action" else np.nan_to_num(log[name])
        padded = np.zeros(values.shape, values.dtype)
        for row, length in enumerate(log["lengths"]):
            padded[row, time - length :] = values[row, :length]
        kind = tf.int64 if padded.dtype.kind == "i" else tf.float32
        batch[key] = tf.constant(padded[:, :-1], kind)
        last = "target_xf" if name == "action" else f"{name}_xf"
        batch[last] = tf.constant(padded[:, -1], kind)
    return batch


def _keras_loss(model, log) -> tf.Tensor:
    task = ReinforceTask(entry=None, config=load_run_config("topk_reinforce"))
    task._reward, task._propensity = "reward", "propensity"
    losses, extra = task.dense_loss(model, task.lookup(model, _keras_batch(log)))
    return tf.reduce_mean(losses) + extra


def _gradients(model, loss) -> tuple[float, list[np.ndarray]]:
    if model.sampler is not None:
        model.sampler.draws.assign(11)
    with tf.GradientTape() as tape:
        value = loss()
    found = tape.gradient(value, model.trainable_variables, unconnected_gradients="zero")
    return float(value), [tf.convert_to_tensor(g).numpy() for g in found]


def _assert_equal(found, expected) -> None:
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5, atol=1e-5)
    for one, other in zip(found[1], expected[1], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


VARIANTS = [
    {},
    {"k": 1, "cap": None},
    {"k": 4, "cap": 1.5},
    {"multiplier": "alpha", "k": 3},
    {"weights": "normalized"},
    {"weights": "none", "k": 2},
    {"cap_after": True, "cap": 2.0, "k": 5},
    {"propensities": False},
    {"temperature": 2.0, "behavior_weight": 0.3, "gamma": 0.0},
    {"loss": "sampled_softmax", "temperature": 1.5},
    {"loss": "sampled_softmax", "sampling": "log_uniform"},
    {"contexts": False},
]


@pytest.mark.parametrize("values", VARIANTS, ids=str)
def test_loss_and_gradients_are_those_of_the_keras_model(values):
    model, log = _model(**values), _log()
    agent = _agent(model)
    experience = _experience(log)
    assert np.isnan(log["propensity"]).any()
    found = _gradients(model, lambda: agent.loss(experience).loss)
    _assert_equal(found, _gradients(model, lambda: _keras_loss(model, log)))
    assert all(np.abs(g).max() > 0 for g in found[1])


@pytest.mark.parametrize(
    "values", [{"warm_up": 2}, {"look_ahead": 1}, {"warm_up": 1, "look_ahead": 2}]
)
def test_windows_cut_out_of_long_episodes_are_those_of_the_keras_model(values):
    model, log = _model(**values), _log(lengths=(5, 5, 5, 5))
    agent, experience = _agent(model), _experience(log, first=MID, last=MID)
    found = _gradients(model, lambda: agent.loss(experience).loss)
    _assert_equal(found, _gradients(model, lambda: _keras_loss(model, log)))
    # Whole episodes need neither.
    plain = _agent(_model())
    whole = _experience(log)
    assert float(agent.loss(whole).loss) == pytest.approx(float(plain.loss(whole).loss), abs=1e-6)
    assert float(agent.loss(experience).loss) != pytest.approx(float(agent.loss(whole).loss))


def test_it_is_the_sum_of_the_losses_objects_over_the_steps_in_numpy():
    """Without the task: coefficients of the specification (3.6, 3.7) in float64."""
    model, log = _model(k=4, cap=3.0, behavior_weight=0.5), _log()
    info = _agent(model).loss(_experience(log))
    inputs = {
        "history_xf": tf.constant(log["action"] + 1),
        "history_page_xf": tf.constant(log["page"]),
        "page_xf": tf.constant(log["page"][:, 0]),
        "history_hour_xf": tf.constant(log["hour"]),
        "hour_xf": tf.constant(log["hour"][:, 0]),
    }
    hidden = model.encode(model.embed(inputs))[:, :-1]

    def log_probability(logits):
        logits = logits.numpy().astype(np.float64)
        logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        return np.take_along_axis(logs, log["action"][..., None], -1)[..., 0], logs

    (log_pi, all_pi), (log_head, _) = (
        log_probability(head(hidden)) for head in (model.policy_logits, model.behavior_logits)
    )
    pi = np.exp(log_pi)
    real = np.arange(5) < log["lengths"][:, None]
    beta = np.where(np.isnan(log["propensity"]), np.exp(log_head), log["propensity"])
    returns = np.zeros_like(log["reward"])
    for row, length in enumerate(log["lengths"]):
        for t in range(length):
            later = log["reward"][row, t:length]
            returns[row, t] = np.sum(0.8 ** np.arange(len(later)) * later)
    weight = np.minimum(pi / beta, 3.0)
    policy = -(weight * 4 * (1 - pi) ** 3 * returns * log_pi)[real].mean()
    behavior = -log_head[real].mean()
    w = weight[real]
    expected = {
        "policy_loss": policy,
        "behavior_loss": behavior,
        "mean_weight": w.mean(),
        "share_capped": (pi / beta > 3.0)[real].mean(),
        "effective_sample_size": w.sum() ** 2 / (w**2).sum(),
        "entropy": -(np.exp(all_pi) * all_pi).sum(-1)[real].mean(),
    }
    assert 0 < expected["share_capped"] < 1
    for name, value in expected.items():
        assert float(getattr(info.extra, name)) == pytest.approx(value, rel=1e-5), name
    assert float(info.loss) == pytest.approx(policy + 0.5 * behavior, rel=1e-5)


def test_the_loggers_head_moves_neither_state_nor_policy():
    """Invariant 6: with all returns 0 only the head is left."""
    model, log = _model(), _log()
    log["reward"][:] = 0
    agent = _agent(model)
    _, gradients = _gradients(model, lambda: agent.loss(_experience(log)).loss)
    for variable, gradient in zip(model.trainable_variables, gradients, strict=True):
        moved = np.abs(gradient).max() > 0
        assert moved == (variable is model.behavior_head.trainable_variables[0]), variable.name


def test_train_is_a_step_of_the_optimizer_in_eager_mode_and_in_a_graph():
    log = _log()
    for wrap in (lambda f: f, common.function):
        model = _model()
        agent = _agent(model)
        before = [v.numpy() for v in model.trainable_variables]
        loss, gradients = _gradients(model, lambda: agent.loss(_experience(log)).loss)
        info = wrap(agent.train)(_experience(log))
        assert isinstance(info, tf_agent.LossInfo)
        assert float(info.loss) == pytest.approx(loss, rel=1e-5)
        assert int(agent.train_step_counter) == 1
        for variable, old, gradient in zip(
            model.trainable_variables, before, gradients, strict=True
        ):
            np.testing.assert_allclose(variable.numpy(), old - 0.1 * gradient, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_gradients_are_clipped_and_summaries_written(tmp_path):
    model = _model()
    agent = _agent(
        model, gradient_clipping=1e-3, debug_summaries=True, summarize_grads_and_vars=True
    )
    before = [v.numpy() for v in model.trainable_variables]
    with tf.summary.create_file_writer(str(tmp_path)).as_default():
        agent.train(_experience(_log()))
    for variable, old in zip(model.trainable_variables, before, strict=True):
        assert np.linalg.norm(variable.numpy() - old) < 1.01e-4
    assert list(tmp_path.iterdir())


# Masks.


def test_after_a_last_step_nothing_counts():
    model = _model()
    agent, clean, dirty = _agent(model), _log(lengths=(3, 1)), _log(lengths=(3, 1))
    for row, length in enumerate(clean["lengths"]):
        dirty["reward"][row, length:] = NAN
        dirty["action"][row, length:] = 99
        dirty["hour"][row, length:] = NAN
        dirty["propensity"][row, length:] = 2.0
    expected = _gradients(model, lambda: agent.loss(_experience(clean)).loss)
    found = _gradients(model, lambda: agent.loss(_experience(dirty)).loss)
    _assert_equal(found, expected)
    # Steps that go on as if nothing had been, and those of a row padded with zeros.
    experience = _experience(dirty)
    for step, following in ((MID, MID), (MID, LAST), (0, 0)):
        after = tf.range(5)[None, :] >= clean["lengths"][:, None]
        changed = experience._replace(
            step_type=tf.where(after, step, experience.step_type),
            next_step_type=tf.where(after, following, experience.next_step_type),
        )
        _assert_equal(_gradients(model, lambda: agent.loss(changed).loss), expected)
    short = tf.nest.map_structure(lambda t: t[:, :3], _experience(clean))
    _assert_equal(_gradients(model, lambda: agent.loss(short).loss), expected)


def test_episodes_of_one_row_are_as_good_as_rows_of_their_own():
    model = _model()
    agent, log = _agent(model), _log(lengths=(5, 5))
    apart = _experience(log)
    # Both in one row, a step between them, and in a second row one that begins in the middle.
    between = tf.nest.map_structure(lambda t: t[:1, :1], apart)._replace(
        step_type=tf.constant([[LAST]]), next_step_type=tf.constant([[FIRST]])
    )
    parts = [tf.nest.map_structure(lambda t, i=i: t[i : i + 1], apart) for i in range(2)]
    for row in ([parts[0], between, parts[1]], [parts[0], parts[1]], [between, *parts]):
        together = tf.nest.map_structure(lambda *t: tf.concat(t, axis=1), *row)
        expected = _gradients(model, lambda: agent.loss(apart).loss)
        _assert_equal(_gradients(model, lambda: agent.loss(together).loss), expected)


def test_weights_multiply_the_losses_of_rows():
    model = _model()
    agent, log = _agent(model), _log(lengths=(5, 5))
    whole = agent.loss(_experience(log))
    half = agent.loss(_experience(log), weights=tf.constant([1.0, 0.0]))
    other = agent.loss(_experience(log), weights=tf.constant([0.0, 1.0]))
    assert float(half.loss + other.loss) == pytest.approx(float(whole.loss), rel=1e-5)
    # A row's weight is that of all its episodes.
    twice = tf.nest.map_structure(lambda t: tf.concat([t, t], axis=1), _experience(log))
    first = agent.loss(twice, weights=tf.constant([1.0, 0.0]))
    assert float(first.loss) == pytest.approx(float(half.loss), rel=1e-5)
    with pytest.raises(ConfigError, match="weights: must be one number"):
        agent.loss(_experience(log), weights=tf.ones([2, 5]))
    doubled = agent.loss(_experience(log), weights=tf.constant(2.0))
    assert float(doubled.loss) == pytest.approx(2 * float(whole.loss), rel=1e-5)


def test_without_any_step_the_loss_is_nought():
    agent, log = _agent(_model()), _log(lengths=(5,))
    nowhere = _experience(
        log, step_type=tf.zeros([1, 5], tf.int32), next_step_type=tf.zeros([1, 5], tf.int32)
    )
    info = agent.train(nowhere)
    assert float(info.loss) == 0 and float(info.extra.effective_sample_size) == 0


# Propensities.


def test_a_propensity_that_is_not_given_is_the_heads_estimate():
    model, log = _model(), _log()
    agent, headed = _agent(model), _agent(_model(propensities=False))
    expected = float(headed.loss(_experience(log)).loss)
    nothing = tf.fill([6, 5], NAN)
    for info in (
        (),
        {},
        {"logger": nothing},
        policy_step.PolicyInfo(nothing),
        {"log_probability": nothing},
        policy_step.PolicyInfo(tf.zeros([6, 5])),
    ):
        found = agent.loss(_experience(log, policy_info=info))
        assert float(found.loss) == pytest.approx(expected, rel=1e-6), info
    assert float(agent.loss(_experience(log)).loss) != pytest.approx(expected, rel=1e-3)


# Policies.


def _walk(seed: int, extra: bool = False):
    """An environment of TF-Agents' base class, which is imported here."""

    class Walk(py_environment.PyEnvironment):
        """Episodes of three to five steps; an action pays if it is that of the step before plus 1."""

        def __init__(self, seed: int, extra: bool = False):
            self._rng, self._extra = np.random.default_rng(seed), extra
            super().__init__()

        def observation_spec(self):
            return {
                "page": array_spec.BoundedArraySpec((), np.int32, 0, PAGES - 1),
                "hour": array_spec.ArraySpec((), np.float32),
            } | ({"ignored": array_spec.ArraySpec((2,), np.float32)} if self._extra else {})

        def action_spec(self):
            return array_spec.BoundedArraySpec((), np.int32, 0, ITEMS - 1)

        def _observe(self):
            return {
                "page": np.int32(self._rng.integers(PAGES)),
                "hour": np.float32(self._rng.normal()),
            } | ({"ignored": np.zeros(2, np.float32)} if self._extra else {})

        def _reset(self):
            self._left, self._before = int(self._rng.integers(3, 6)), -1
            return ts.restart(self._observe())

        def _step(self, action):
            if self._current_time_step.is_last():
                return self.reset()
            self._left -= 1
            reward = float(action == self._before + 1)
            self._before = int(action)
            step = ts.transition if self._left else ts.termination
            return step(self._observe(), reward)

    return Walk(seed, extra)


def _collector(agent, environment, steps: int):
    """A function that lets the collect policy act and gives what it did, `[B, T]`."""
    buffer = tf_uniform_replay_buffer.TFUniformReplayBuffer(
        agent.collect_data_spec, environment.batch_size, max_length=500
    )
    run = common.function(
        dynamic_step_driver.DynamicStepDriver(
            environment, agent.collect_policy, [buffer.add_batch], num_steps=steps
        ).run
    )

    def collect() -> trajectory.Trajectory:
        buffer.clear()
        run()
        return buffer.gather_all()

    return collect


def test_what_the_collect_policy_said_is_what_training_says_of_it():
    """pi / beta is 1 at every step, whatever came before it in the episode and before that."""
    environment = tf_py_environment.TFPyEnvironment(_walk(0, extra=True))
    model = _model(k=1, cap=None)
    agent = agents.TopKReinforceAgent(
        environment.time_step_spec(),
        environment.action_spec(),
        model,
        keras.optimizers.Adam(0.01),
        train_step_counter=tf.Variable(0, dtype=tf.int64),
    )
    experience = _collector(agent, environment, 40)()
    steps = int(tf.reduce_sum(tf.cast(~experience.is_boundary(), tf.int32)))
    assert steps >= 40 and int(tf.reduce_sum(tf.cast(experience.is_boundary(), tf.int32))) > 5
    assert float(tf.math.reduce_std(experience.policy_info.log_probability)) > 0.1
    info = agent.train(experience)
    assert float(info.extra.mean_weight) == pytest.approx(1, abs=1e-5)
    assert float(info.extra.effective_sample_size) == pytest.approx(steps, rel=1e-5)
    # And after it no longer.
    assert float(agent.loss(experience).extra.mean_weight) != pytest.approx(1, abs=1e-4)


@pytest.mark.slow
def test_trajectories_of_a_driver_teach_the_agent():
    """On-policy: what pays is one action after the other, so the state must be read."""
    environment = tf_py_environment.TFPyEnvironment(_walk(1))
    keras.utils.set_random_seed(0)
    config = TopKReinforceConfig(action_dim=8, units=8, k=1, gamma=0.0, embedding_scale=0.5)
    model = TopKReinforce(config, ITEMS, ITEMS + 1, 5, {"page": PAGES})
    agent = agents.TopKReinforceAgent(
        environment.time_step_spec(),
        environment.action_spec(),
        model,
        keras.optimizers.Adam(0.03),
        train_step_counter=tf.Variable(0, dtype=tf.int64),
    )
    train = common.function(agent.train)
    rng = np.random.default_rng(0)
    log = {"action": rng.integers(0, ITEMS, (500, 5))}
    before = np.concatenate([np.full((500, 1), -1), log["action"][:, :-1]], axis=1)
    log |= {
        "reward": (log["action"] == before + 1).astype(float),
        "propensity": np.full((500, 5), 1 / ITEMS),
        "page": rng.integers(0, PAGES, (500, 5)),
        "hour": np.zeros((500, 5)),
        "lengths": np.full(500, 5),
    }
    teaching = _experience(log)
    for _ in range(100):
        train(teaching)
    experience = _collector(agent, environment, 200)()
    counted = ~experience.is_boundary()
    paid = tf.reduce_sum(tf.where(counted, experience.reward, 0.0))
    # By chance one in seven.
    assert float(paid) / 200 > 0.6
    assert np.isfinite(float(train(experience).loss))


def test_the_state_after_an_action_has_seen_it():
    model = _model()
    agent = _agent(model)
    log = _log(lengths=(5, 5))
    inputs = _keras_batch({**log, "propensity": np.ones((2, 5))})
    inputs["hour_xf"], inputs["page_xf"] = (
        tf.constant(log[n][:, -1], k) for n, k in (("hour", tf.float32), ("page", tf.int64))
    )
    logits = model(inputs)
    for policy in (agent.policy, agent.collect_policy):
        state = policy.get_initial_state(2)
        for t in range(4):
            observation = {
                n: tf.constant(log[n][:, t], _observation()[n].dtype) for n in _observation()
            }
            # The user's doing, not the policy's.
            state = policy.next_state(observation, tf.constant(log["action"][:, t]), state)
        step = ts.TimeStep(
            tf.fill([2], MID),
            tf.zeros([2]),
            tf.ones([2]),
            {n: tf.constant(log[n][:, 4], _observation()[n].dtype) for n in _observation()},
        )
        found = policy.distribution(step, state)
        np.testing.assert_array_equal(found.state, state)
        taken = policy.action(step, state)
        assert taken.action.dtype == tf.int32
        np.testing.assert_allclose(
            taken.state, policy.next_state(step.observation, taken.action, state), rtol=1e-6
        )
        if policy is agent.policy:
            np.testing.assert_array_equal(taken.action, np.argmax(logits, axis=1))
            np.testing.assert_array_equal(taken.info.log_probability, [0, 0])
            # Without a state it is that of a beginning.
            fresh = policy.action(step, tf.zeros([2, 4]))
            np.testing.assert_array_equal(policy.action(step).state, fresh.state)
        else:
            np.testing.assert_allclose(found.action.logits, logits, rtol=1e-5, atol=1e-6)
            expected = tf.gather(tf.nn.log_softmax(logits), taken.action, batch_dims=1)
            np.testing.assert_allclose(taken.info.log_probability, expected, rtol=1e-5)
        # A new episode knows nothing of the old, nor does what drivers of bandits call the last.
        for kind in (FIRST, LAST):
            again = policy.distribution(step._replace(step_type=tf.fill([2], kind)), state)
            np.testing.assert_array_equal(again.state, tf.zeros([2, 4]))


@pytest.mark.slow
def test_draws_are_as_frequent_as_their_probability():
    policy = _agent(_model()).collect_policy
    step = ts.restart({"page": tf.ones([20_000], tf.int32), "hour": tf.ones([20_000])}, 20_000)
    taken = policy.action(step, policy.get_initial_state(20_000), seed=1)
    p = policy.distribution(step, policy.get_initial_state(20_000)).action.probs_parameter()[0]
    counts = np.bincount(taken.action, minlength=ITEMS) / 20_000
    np.testing.assert_allclose(counts, p, atol=0.015)
    assert np.std(p) > 0.02
    np.testing.assert_allclose(
        taken.info.log_probability, tf.math.log(tf.gather(p, taken.action)), rtol=1e-4
    )


@pytest.mark.slow
@pytest.mark.parametrize("which", ["policy", "collect_policy"])
def test_a_saved_policy_is_the_agents_and_keeps_its_state(which, tmp_path):
    agent = _agent(_model())
    policy = getattr(agent, which)
    policy_saver.PolicySaver(policy, batch_size=None).save(str(tmp_path / "saved"))
    saved = tf.saved_model.load(str(tmp_path / "saved"))
    log = _log(lengths=(5, 5, 5))
    state, ours = saved.get_initial_state(batch_size=3), policy.get_initial_state(3)
    np.testing.assert_array_equal(state, ours)
    for t in range(5):
        step = ts.TimeStep(
            tf.fill([3], FIRST if t == 0 else MID),
            tf.zeros([3]),
            tf.ones([3]),
            {n: tf.constant(log[n][:, t], _observation()[n].dtype) for n in _observation()},
        )
        taken = saved.action(step, state)
        expected = policy.distribution(step, ours)
        if which == "policy":
            np.testing.assert_array_equal(taken.action, policy.action(step, ours).action)
        np.testing.assert_allclose(
            taken.info.log_probability, expected.action.log_prob(taken.action), rtol=1e-5, atol=1e-6
        )
        distribution = saved.distribution(step, state).action
        np.testing.assert_allclose(
            distribution.log_prob(taken.action), taken.info.log_probability, rtol=1e-5, atol=1e-6
        )
        ours = policy.next_state(step.observation, taken.action, expected.state)
        state = taken.state
        np.testing.assert_allclose(state, ours, rtol=1e-5, atol=1e-6)
    assert np.abs(state).max() > 0


# Bandits.


def _chances(agent: agents.TopKReinforceAgent, contexts: int) -> np.ndarray:
    step = ts.restart(tf.range(contexts), contexts)
    policy = agent.collect_policy
    return (
        policy.distribution(step, policy.get_initial_state(contexts))
        .action.probs_parameter()
        .numpy()
    )


def _bandit_agent(simulator, seed: int = 0, **values) -> agents.TopKReinforceAgent:
    keras.utils.set_random_seed(seed)
    environment = agents.BanditEnvironment(simulator)
    contexts, items = environment._rewards.shape
    sizes = {"units": 8, "action_dim": 4, "embedding_scale": 0.3, "gamma": 0.0}
    config = from_mapping(TopKReinforceConfig, {**sizes, **values}, "model")
    return agents.TopKReinforceAgent(
        environment.time_step_spec(),
        environment.action_spec(),
        TopKReinforce(config, items, items + 1, 1, {"segment": contexts}),
        keras.optimizers.Adam(0.03),
        train_step_counter=tf.Variable(0, dtype=tf.int64),
    )


def _learned(bandit, **values) -> np.ndarray:
    agent = _bandit_agent(bandit, k=1, cap=None, units=16, embedding_scale=0.05, **values)
    train, experience = (
        common.function(agent.train),
        agents.logged_experience(bandit, n=2000, seed=1),
    )
    for _ in range(120):
        train(experience)
    return _chances(agent, 1)[0]


@pytest.mark.slow
def test_from_a_biased_loggers_log_only_the_corrected_agent_finds_the_best():
    """Worked example 1: the naive fixed point is the product of logger and reward."""
    bandit = BiasedLoggerBandit()
    corrected, naive = _learned(bandit), _learned(bandit, weights="none")
    assert corrected[9] > 0.9 and bandit.value(corrected) > 9.9
    np.testing.assert_allclose(naive, bandit.naive_policy, atol=0.03)
    # With the head's estimate the policy may settle on the second best, while the head learns.
    assert bandit.value(_learned(bandit, propensities=False)) > 8.5


@pytest.mark.slow
def test_a_driver_of_bandits_runs_and_what_it_saw_teaches():
    slates = ContextualSlates(contexts=3, items=5, seed=2)
    agent = _bandit_agent(slates, k=1)
    environment = tf_py_environment.TFPyEnvironment(agents.BanditEnvironment(slates, batch_size=64))
    before = slates.value(_chances(agent, 3))
    train, collect = common.function(agent.train), _collector(agent, environment, 64 * 8)
    for _ in range(30):
        experience = collect()
        info = train(experience)
        # Each step is an episode; no state of the one before is in it.
        assert float(info.extra.effective_sample_size) == pytest.approx(64 * 8, rel=1e-4)
    after = slates.value(_chances(agent, 3))
    best = slates.value(slates.best_policy(draws=1))
    assert after > before + 0.6 * (best - before)


@pytest.mark.slow
def test_the_bandit_trainer_of_tf_agents_takes_the_agent(tmp_path):
    slates = ContextualSlates(contexts=3, items=5, seed=2)
    agent = _bandit_agent(slates)
    before = _chances(agent, 3)
    bandit_trainer.train(
        root_dir=str(tmp_path),
        agent=agent,
        environment=tf_py_environment.TFPyEnvironment(
            agents.BanditEnvironment(slates, batch_size=4)
        ),
        training_loops=1,
        steps_per_loop=3,
    )
    assert np.abs(_chances(agent, 3) - before).max() > 0
    # A checkpoint of the agent has the network and the optimizer.
    other = _bandit_agent(slates, seed=9)
    tf.train.Checkpoint(agent=other).restore(
        tf.train.latest_checkpoint(str(tmp_path))
    ).expect_partial()
    np.testing.assert_allclose(_chances(other, 3), _chances(agent, 3), rtol=1e-6)


# Bad input.


def _spec(**observation) -> ts.TimeStep:
    return ts.time_step_spec({**_observation(), **observation})


BAD_SPECS = {
    "another number of actions": lambda: (
        _spec(),
        tensor_spec.BoundedTensorSpec([], tf.int32, 0, ITEMS),
        "action_spec: must be a scalar .* from 0 to 6",
    ),
    "from 1": lambda: (
        _spec(),
        tensor_spec.BoundedTensorSpec([], tf.int32, 1, ITEMS),
        "action_spec: must be a scalar",
    ),
    "unbounded": lambda: (_spec(), tf.TensorSpec([], tf.int32), "action_spec: must be a scalar"),
    "floats": lambda: (
        _spec(),
        tensor_spec.BoundedTensorSpec([], tf.float32, 0, 6),
        "action_spec: must be a scalar",
    ),
    "slates": lambda: (
        _spec(),
        tensor_spec.BoundedTensorSpec([3], tf.int32, 0, 6),
        "action_spec: must be a scalar",
    ),
    "several": lambda: (_spec(), [_action(), _action()], "action_spec: must be a scalar"),
    "no action": lambda: (_spec(), (), "action_spec: must be a scalar"),
    "none": lambda: (_spec(), None, "action_spec: must be specs, got None"),
    "no context": lambda: (
        ts.time_step_spec({"page": _observation()["page"]}),
        _action(),
        "time_step_spec.observation: lacks the model's contexts hour",
    ),
    "bare": lambda: (
        ts.time_step_spec(_observation()["page"]),
        _action(),
        "time_step_spec.observation: must be a mapping with the model's contexts page, hour",
    ),
    "a vector": lambda: (
        _spec(hour=tf.TensorSpec([2], tf.float32)),
        _action(),
        "context hour must be a scalar floating-point number",
    ),
    "float ids": lambda: (
        _spec(page=tf.TensorSpec([], tf.float32)),
        _action(),
        "context page must be a scalar whole number",
    ),
    "too many ids": lambda: (
        _spec(page=tensor_spec.BoundedTensorSpec([], tf.int32, 0, PAGES)),
        _action(),
        "context page goes to 3, the model's table to 2",
    ),
    "rewards": lambda: (
        ts.time_step_spec(_observation(), tf.TensorSpec([2], tf.float32)),
        _action(),
        "time_step_spec.reward: must be one number",
    ),
    "no time step": lambda: (_observation(), _action(), "time_step_spec: must be a TimeStep"),
}


@pytest.mark.parametrize("case", BAD_SPECS)
def test_specs_that_do_not_fit_are_refused_in_one_line(case):
    time_step_spec, action_spec, line = BAD_SPECS[case]()
    for build in (
        lambda: agents.TopKReinforceAgent(
            time_step_spec, action_spec, _model(), keras.optimizers.SGD()
        ),
        lambda: agents.TopKReinforcePolicy(time_step_spec, action_spec, _model()),
    ):
        with pytest.raises(ConfigError, match=line) as caught:
            build()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"model": keras.Sequential()}, "model: must be a tfrz.models.TopKReinforce"),
        ({"optimizer": "adam"}, "optimizer: must be a Keras optimizer"),
        ({"gradient_clipping": 0.0}, "gradient_clipping: must be above 0"),
    ],
)
def test_other_arguments_are_refused_in_one_line(values, line):
    with pytest.raises(ConfigError, match=line):
        _agent(**{"model": _model(), **values})


def _with(name: str, value: float) -> dict[str, np.ndarray]:
    log = _log()
    log[name][0, 1] = value
    return log


@pytest.mark.parametrize(
    ("name", "value", "line"),
    [
        ("reward", NAN, "experience.reward: NaN or infinite"),
        ("reward", float("inf"), "experience.reward: NaN or infinite"),
        ("propensity", 0.0, "log_probability: a propensity of 0 or above 1"),
        ("propensity", 1.5, "log_probability: a propensity of 0 or above 1"),
        ("action", -1, "experience.action: must be 0 to 6"),
        ("action", ITEMS, "experience.action: must be 0 to 6"),
    ],
)
def test_steps_that_teach_nothing_are_refused(name, value, line):
    agent, experience = _agent(_model()), _experience(_with(name, value))
    before = [v.numpy() for v in agent.model.trainable_variables]
    with pytest.raises(InputError, match=line) as caught:
        agent.train(experience)
    assert "\n" not in str(caught.value)
    if value == 1.5:
        with pytest.raises(tf.errors.InvalidArgumentError, match=line):
            common.function(agent.train)(experience)
    for variable, old in zip(agent.model.trainable_variables, before, strict=True):
        np.testing.assert_array_equal(variable, old)


def test_experience_without_a_time_dimension_and_sequences_for_the_policy_are_refused():
    agent, experience = _agent(_model()), _experience(_log())
    with pytest.raises(ValueError, match="two outer dimensions"):
        agent.train(tf.nest.map_structure(lambda t: t[:, 0], experience))
    sequence = ts.TimeStep(
        experience.step_type, experience.reward, experience.discount, experience.observation
    )
    with pytest.raises(ConfigError, match="must have a batch dimension and no other"):
        agent.collect_policy.action(sequence, agent.collect_policy.get_initial_state(6))


def test_an_agent_of_one_step_episodes_and_no_context_has_a_uniform_policy_for_ever():
    """As documented: s_0 = 0, so the first step's logits are 0 whatever the tables hold."""
    agent = _agent(_model(contexts=False), observation=tf.TensorSpec([], tf.float32))
    step = ts.restart(tf.zeros([2]), 2)
    chances = agent.collect_policy.distribution(step, agent.collect_policy.get_initial_state(2))
    np.testing.assert_allclose(chances.action.probs_parameter(), 1 / ITEMS, rtol=1e-6)
