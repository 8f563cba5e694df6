"""Shared by the parts of suite `serving`: small models, a trained DCN-V2, server processes."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
QUIET = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}

# The dense part has the size that the DCN-V2 paper works with (hundreds of inputs, cross layers of
# rank 64 and more, hidden layers of about a thousand units); the vocabularies are the simulator's.
DCN_V2 = {
    "model.embedding_dim": "64",
    "model.num_cross_layers": "3",
    "model.rank": "128",
    "model.hidden_units": "[1024,1024,512]",
    "trainer.epochs": "1",
}


def free_port() -> int:
    """A port of the loopback address that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def save_half_plus(constant: float, path: Path) -> None:
    """The trivial model: y = 0.5 x + constant."""
    import tensorflow as tf

    module = tf.Module()
    module.f = tf.function(
        lambda x: {"y": 0.5 * x + constant}, input_signature=[tf.TensorSpec([None], name="x")]
    )
    tf.saved_model.save(module, str(path), signatures={"serving_default": module.f})


def train_dcn_v2(folder: Path, steps: int, seed: int = 0) -> Path:
    """Trains a DCN-V2 for a few steps as a user would; returns the folder of its versions."""
    command = [sys.executable, "-m", "tfrz", "train", "dcn_v2", "--out", str(folder), "--quiet"]
    command += ["--seed", str(seed)]
    for key, value in {**DCN_V2, "trainer.max_steps": str(steps)}.items():
        command += ["--set", f"{key}={value}"]
    done = subprocess.run(command, capture_output=True, text=True, env=QUIET, cwd=ROOT)
    if done.returncode:
        raise RuntimeError(f"tfrz train failed: {done.stderr.strip()[-1500:]}")
    return folder / "model"


def warmup_rows(model: Path, rows: int, name: str) -> Any:
    """Returns a `PredictRequest` of this many rows from the model's warm-up requests."""
    import numpy as np
    import tensorflow as tf
    from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

    from tfrz.serving.client import saved_model_folder
    from tfrz.serving.tensors import from_proto, to_proto

    path = saved_model_folder(model) / "assets.extra" / "tf_serving_warmup_requests"
    logs = [
        prediction_log_pb2.PredictionLog.FromString(record).predict_log.request
        for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator()
    ]
    logs = [log for log in logs if log.model_spec.signature_name == "serving_default"]
    request = predict_pb2.PredictRequest()
    request.model_spec.name = name
    for key in logs[0].inputs:
        values = np.concatenate([from_proto(key, log.inputs[key]) for log in logs])
        to_proto(np.resize(values, (rows, *values.shape[1:])), request.inputs[key])
    return request


class ServerProcess:
    """`python -m tfrz.serving` with these flags."""

    def __init__(self, *flags: str) -> None:
        self.port, self.rest_port = free_port(), free_port()
        command = [sys.executable, "-m", "tfrz.serving", f"--port={self.port}"]
        self.process = subprocess.Popen(
            [*command, f"--rest_api_port={self.rest_port}", *flags],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=QUIET,
            cwd=ROOT,
        )
        end = time.monotonic() + 120
        while time.monotonic() < end:
            if self.process.poll() is not None:
                raise RuntimeError(f"the server ended with {self.process.returncode}")
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.rest_port)) == 0:
                    return
            time.sleep(0.05)
        self.process.kill()
        raise RuntimeError("the server does not come up")

    def grpc(self, name: str) -> str:
        """The target of a model over gRPC."""
        return f"grpc://127.0.0.1:{self.port}/{name}"

    def rest(self, name: str) -> str:
        """The target of a model over HTTP."""
        return f"http://127.0.0.1:{self.rest_port}/v1/models/{name}"

    def resident_bytes(self) -> int:
        """The memory that the server has resident."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return 1024 * int(line.split()[1])
        raise RuntimeError("no VmRSS")

    def stop(self) -> None:
        """Ends the server."""
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()


@contextlib.contextmanager
def serving(*flag_lists: Sequence[str]) -> Iterator[list[ServerProcess]]:
    """Servers with these flags, ended at the end."""
    servers: list[ServerProcess] = []
    try:
        for flags in flag_lists:
            servers.append(ServerProcess(*flags))
        yield servers
    finally:
        for server in servers:
            server.stop()
