"""Suite `reinforce`: the policy's training step with a large catalogue, whole and sampled softmax.

python -m benchmarks.reinforce --json FILE
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from benchmarks import histories
from benchmarks.measure import in_fresh_process, peak_resident_bytes, resident_bytes, time_paired
from benchmarks.report import Figure, Section
from benchmarks.runner import Options, Part

TITLE = "top-K off-policy REINFORCE: steps with a large catalogue, bias of the sampled softmax"
_FULL, _SAMPLED = "whole softmax", "sampled softmax"


def _inputs(items: int, length: int) -> Any:
    from tfrz.zoo.tasks.reinforce import ReinforceInputs

    return ReinforceInputs(items, items + 2, length, {}, (), "left", "reward", None)


def _columns(items: int, batch: int, length: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)

    def clicks(*shape: int) -> np.ndarray:
        return (rng.random(shape) < 0.3).astype(np.float32)

    return {
        "history_xf": rng.integers(1, items + 1, (batch, length)),
        "target_xf": rng.integers(1, items + 1, batch),
        "history_reward_xf": clicks(batch, length),
        "reward_xf": clicks(batch),
    }


def _overrides(loss: str, negatives: int, length: int, units: int) -> list[str]:
    values = {"units": units, "action_dim": units, "k": 16, "num_sampled": negatives}
    values["loss"] = "sampled_softmax" if loss == _SAMPLED else "softmax"
    settings = [f"model.{name}={json.dumps(value)}" for name, value in values.items()]
    return [*settings, f"data.history.length={length}"]


def make_step(
    loss: str, items: int, negatives: int, batch: int, length: int, units: int
) -> Callable[[], float]:
    """A training step on random trajectories; returns the loss before the update."""
    return histories.make_step(
        "topk_reinforce",
        _overrides(loss, negatives, length, units),
        _inputs(items, length),
        _columns(items, batch, length),
    )


def child_memory(loss: str, sizes: Mapping[str, int]) -> dict[str, float]:
    """In a separate process: the memory of three steps above that of the model."""
    step = make_step(loss, **sizes)
    before = resident_bytes()
    for _ in range(3):
        step()
    return {"bytes": peak_resident_bytes() - before}


def measure_step(options: Options) -> Section:
    """A step over 100,000 items with 1,024 negatives against the whole softmax."""
    sizes = {"items": 100_000, "negatives": 1024, "batch": 32, "length": 10, "units": 64}
    if options.quick:
        sizes = {"items": 2000, "negatives": 64, "batch": 4, "length": 4, "units": 8}
    rounds = 2 if options.quick else 7
    names = (_FULL, _SAMPLED)
    times = time_paired({name: make_step(name, **sizes) for name in names}, rounds, 1)
    memory = {
        name: in_fresh_process("benchmarks.reinforce:child_memory", loss=name, sizes=sizes)["bytes"]
        for name in names
    }
    medians = {name: timing.median for name, timing in times.timings.items()}
    return Section(
        title="training step over {items:,} items, {negatives:,} negatives".format(**sizes),
        baseline=_FULL,
        setup={**sizes, "rounds": rounds},
        timings=times.summary(_FULL),
        figures=(
            *(Figure(f"{name}, step", 1e3 * medians[name], "ms") for name in names),
            Figure("sampled / whole, time", medians[_SAMPLED] / medians[_FULL]),
            *(Figure(f"{name}, memory of a step", memory[name] / 2**20, "MiB") for name in names),
            Figure("sampled / whole, memory", memory[_SAMPLED] / memory[_FULL]),
        ),
        notes=("Memory is the peak of a fresh process above what it had with the model built",),
    )


def _gradient(model: Any, task: Any, batch: Mapping[str, Any]) -> np.ndarray:
    """The gradient of the policy's parameters, flat."""
    import tensorflow as tf

    variables = [*model.rnn.trainable_variables, model.policy_head.embeddings]
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(task.dense_loss(model, task.lookup(model, batch))[0])
    gradients = tape.gradient(loss, variables)
    return np.concatenate([tf.convert_to_tensor(g).numpy().ravel() for g in gradients])


def measure_bias(options: Options) -> Section:
    """How far the mean gradient of the sampled softmax is from that of the whole one."""
    import keras
    import tensorflow as tf

    from tfrz.zoo import registry
    from tfrz.zoo.run_config import load_run_config

    items, batch, length, units = (500, 8, 4, 8) if options.quick else (10_000, 64, 10, 32)
    draws = 4 if options.quick else 100
    columns = _columns(items, batch, length)
    tensors = {name: tf.constant(value) for name, value in columns.items()}
    counts = (16, 64) if options.quick else (64, 256, 1024, 4096)
    entry = registry.get("topk_reinforce")

    def built(loss: str, negatives: int) -> tuple[Any, Any]:
        config = load_run_config(
            "topk_reinforce", "default", _overrides(loss, negatives, length, units)
        )
        task = entry.new_task(config)
        keras.utils.set_random_seed(0)
        return task.build(_inputs(items, length)), task

    model, task = built(_FULL, 1)
    # Of a policy that prefers some items: at the start all logits are near zero.
    rng = np.random.default_rng(1)
    values = [w.numpy() + 0.5 * rng.standard_normal(w.shape) for w in model.trainable_weights]
    for weight, value in zip(model.trainable_weights, values, strict=True):
        weight.assign(value)
    whole = _gradient(model, task, tensors)
    figures = []
    for negatives in counts:
        sampled, task = built(_SAMPLED, negatives)
        for weight, value in zip(sampled.trainable_weights, values, strict=True):
            weight.assign(value)
        found = np.stack([_gradient(sampled, task, tensors) for _ in range(draws)])
        mean = found.mean(axis=0)
        bias = np.linalg.norm(mean - whole) / np.linalg.norm(whole)
        noise = np.sqrt(np.mean(np.sum((found - mean) ** 2, axis=1))) / np.linalg.norm(whole)
        cosine = mean @ whole / np.linalg.norm(mean) / np.linalg.norm(whole)
        figures += [
            Figure(f"{negatives:,} negatives: |mean - whole| / |whole|", float(bias)),
            Figure(f"{negatives:,} negatives: cosine with the whole", float(cosine)),
            Figure(f"{negatives:,} negatives: noise of one draw / |whole|", float(noise)),
        ]
    return Section(
        title=f"gradient of the policy by negatives, {items:,} items, mean of {draws} draws",
        baseline=_FULL,
        setup={"items": items, "batch": batch, "length": length, "units": units, "draws": draws},
        figures=tuple(figures),
        notes=(
            "Few negatives over-estimate pi: weight and multiplier are then off, and so is the "
            "size of the gradient; the noise of the mean is that of one draw over the root of the "
            "draws",
        ),
    )


def measure_recommendation(options: Options) -> Section:
    """One user's slate through the server against a bare call."""
    return histories.measure_recommendation("topk_reinforce", options)


PARTS: Mapping[str, Part] = {
    "step": Part(measure_step, "100,000 items: sampled softmax against the whole one"),
    "bias": Part(measure_bias, "bias of the sampled gradient by the number of negatives"),
    "recommend": Part(
        measure_recommendation,
        "p50 of one user's slate through the server",
        layer=False,
        needs=("grpc", "tensorflow_serving"),
    ),
}

if __name__ == "__main__":
    from benchmarks.runner import main

    raise SystemExit(main("reinforce"))
