"""Shared by suites of models of *history* records: training steps, and requests to the server."""

from __future__ import annotations

import base64
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks import serving_processes as processes
from benchmarks.measure import PairedTimings, time_paired
from benchmarks.report import Bound, Figure, Section
from benchmarks.runner import Options
from benchmarks.serving import post

if TYPE_CHECKING:
    from tfrz.zoo.tasks.history import HistoryInputs

IN_PROCESS = "signature in process"
GRPC, REST = "Predict over gRPC", "predict over REST"


def movielens(options: Options) -> Path | None:
    """Returns the path of MovieLens-1M if it exists."""
    name, _, path = options.data.partition(":")
    return Path(path) if name == "movielens-1m" and path and Path(path).exists() else None


def make_step(
    name: str,
    overrides: Sequence[str],
    inputs: HistoryInputs,
    columns: Mapping[str, np.ndarray],
    xla: bool = False,
) -> Callable[[], float]:
    """A training step of a model, always of the same batch; returns the loss before the update.

    Args:
      name: of the model in the registry.
      overrides: `key=value` on its default configuration.
      inputs: what the model must know of its data.
      columns: the batch.
      xla: compile the dense part.
    """
    import keras
    import tensorflow as tf

    from tfrz.training.batches import ArrayBatches
    from tfrz.zoo import registry
    from tfrz.zoo.run_config import load_run_config

    config = load_run_config(name, "default", [*overrides, f"trainer.xla={'on' if xla else 'off'}"])
    entry = registry.get(name)
    task = entry.new_task(config)
    keras.utils.set_random_seed(0)
    model = task.build(inputs)
    tensors = {key: tf.constant(value) for key, value in columns.items()}
    if hasattr(task, "start"):
        task.start(model, ArrayBatches(columns, len(columns["target_xf"])))
    return step_of(task, model, tensors, xla)


def step_of(
    task: Any, model: Any, tensors: Mapping[str, Any], xla: bool = False
) -> Callable[[], float]:
    """Returns a training step of an existing model.

    Args:
      task: the model's recipe.
      model: it.
      tensors: the batch.
      xla: compile the dense part.
    """
    import keras
    import tensorflow as tf

    from tfrz.keras_versions import make_optimizer
    from tfrz.training.compilation import compiled_value_and_gradients

    variables = model.trainable_variables
    optimizer = make_optimizer(keras.optimizers.Adam, learning_rate=1e-3)
    optimizer.build(variables)

    def loss_of(looked_up: dict[str, Any]) -> Any:
        return tf.reduce_mean(task.dense_loss(model, looked_up)[0])

    compiled = compiled_value_and_gradients(loss_of, variables) if xla else None

    @tf.function
    def step() -> Any:
        with tf.GradientTape() as tape:
            looked_up = task.lookup(model, tensors)
            loss = loss_of(looked_up) if compiled is None else None
        if compiled is None:
            gradients = tape.gradient(loss, variables)
        else:
            loss, dense, inner = compiled(looked_up)
            names = list(inner)
            outer = tape.gradient(
                [looked_up[n] for n in names], variables, [inner[n] for n in names]
            )
            gradients = [a if b is None else b for a, b in zip(dense, outer, strict=True)]
        optimizer.apply_gradients(zip(gradients, variables, strict=True))
        return loss

    return lambda: float(step())


def export_untrained(
    name: str, folder: Path, data: str, max_steps: int, overrides: Sequence[str] = ()
) -> Path:
    """A model trained for a few steps as a user would; its versions' folder."""
    from tfrz.zoo.train import train

    settings = [f"trainer.max_steps={max_steps}", "trainer.tensorboard=false"]
    settings += ["data.max_corrupt_fraction=0", *overrides]
    train(name, data, folder, overrides=settings, progress=False)
    return folder / "model"


def time_answers(
    base: Path, request: Any, body: bytes, rounds: int, signature: str = "serving_default"
) -> PairedTimings:
    """The same question to a bare signature, and to a server over gRPC and REST.

    Args:
      base: the folder of the model's versions.
      request: a `PredictRequest` to the model `m`.
      body: the same in JSON.
      rounds: how often each is asked.
      signature: whom the request asks.
    """
    import grpc
    import tensorflow as tf

    from tfrz.serving.client import PREDICT

    loaded = tf.saved_model.load(str(base / "1"))
    call = loaded.signatures[signature]
    inputs = {name: tf.constant(tf.make_ndarray(value)) for name, value in request.inputs.items()}
    payload = request.SerializeToString()
    with processes.serving((f"--model_base_path={base}", "--model_name=m")) as (server,):
        channel = grpc.insecure_channel(f"127.0.0.1:{server.port}")
        predict = channel.unary_unary(PREDICT)
        times = time_paired(
            {
                IN_PROCESS: lambda: call(**inputs),
                GRPC: lambda: predict(payload),
                REST: post(server.rest_port, "/v1/models/m:predict", body),
            },
            rounds=rounds,
            warm_up=20,
        )
        channel.close()
    return times


def measure_recommendation(name: str, options: Options, overrides: Sequence[str] = ()) -> Section:
    """One user's recommendations over gRPC and REST against a bare call of the signature."""
    import tensorflow as tf

    data = "simulated" if options.quick or movielens(options) is None else options.data
    rounds = 30 if options.quick else 500
    with tempfile.TemporaryDirectory(prefix="tfrz-bench-") as folder:
        base = export_untrained(name, Path(folder) / "run", data, 3, overrides)
        request = processes.warmup_rows(base, 1, "m")
        items = len(json.loads((base / "1/assets/vocabularies.json").read_text())["item_xf"])
        (example,) = tf.make_ndarray(request.inputs["examples"])
        row = {"b64": base64.b64encode(example).decode()}
        body = json.dumps({"inputs": {"examples": [row]}}).encode()
        times = time_answers(base, request, body, rounds)
    medians = {candidate: timing.median for candidate, timing in times.timings.items()}
    bare = medians[IN_PROCESS]
    bound = Bound(3, "at most")
    return Section(
        title=f"p50 of one user's recommendations of {items:,} items, against a bare call",
        baseline=IN_PROCESS,
        setup={"items": items, "data": data, "rounds": rounds},
        figures=(
            *(Figure(f"{which}, p50", 1e3 * value, "ms") for which, value in medians.items()),
            Figure(
                "gRPC / in process",
                medians[GRPC] / bare,
                bound=bound,
                judged=not options.quick,
            ),
            Figure(
                "REST / in process",
                medians[REST] / bare,
                bound=bound,
                judged=not options.quick,
            ),
        ),
        notes=("Calls take turns; client and server share the machine",),
    )
