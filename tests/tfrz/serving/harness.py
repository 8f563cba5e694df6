"""Servers as processes, clients of the standard stubs, small models, and the mark that says which
behaviour of TF Serving's interface a test shows."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import grpc
import pytest
import tensorflow as tf
from tensorflow_serving.apis import (
    get_model_status_pb2,
    model_management_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

UNLIMITED = [
    ("grpc.max_receive_message_length", 2**31 - 1),
    ("grpc.max_send_message_length", 2**31 - 1),
]
WAIT = 90.0


def contract(section: str, behaviour: str, deviates: str | None = None):
    """Marks a test as the one that shows a behaviour; `make conformance` lists them."""
    return pytest.mark.contract(section=section, behaviour=behaviour, deviates=deviates)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def until(condition, seconds: float = WAIT):
    """Waits until `condition()` is true; returns its last result."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = condition()
        if found:
            return found
        time.sleep(0.05)
    return condition()


class ServerProcess:
    """`python -m tfrz.serving` with these flags; a context manager.

    `program` names another program that serves, as Python's own arguments.
    """

    def __init__(
        self,
        *flags: str,
        log: Path,
        ready: bool = True,
        program: Sequence[str] = ("-m", "tfrz.serving"),
    ) -> None:
        self.port, self.rest_port, self.log = free_port(), free_port(), log
        given = " ".join(flags)
        command = [sys.executable, *program]
        if "--port=" not in given:
            command.append(f"--port={self.port}")
        if "--rest_api_port=" not in given:
            command.append(f"--rest_api_port={self.rest_port}")
        with log.open("wb") as stream:
            self.process = subprocess.Popen(
                [*command, *flags], stdout=stream, stderr=subprocess.STDOUT
            )
        if ready:
            try:
                self.wait_ready()
            except BaseException:
                self.process.kill()
                raise

    def wait_ready(self) -> None:
        def answers() -> bool:
            if self.process.poll() is not None:
                raise AssertionError(f"ended with {self.process.returncode}: {self.text()[-3000:]}")
            return any(map(self.listens, (self.port, self.rest_port)))

        assert until(answers), self.text()[-3000:]

    @staticmethod
    def listens(port: int) -> bool:
        with socket.socket() as probe:
            probe.settimeout(1)
            return probe.connect_ex(("127.0.0.1", port)) == 0

    def text(self) -> str:
        """What the process has printed."""
        return self.log.read_text(errors="replace")

    def client(self) -> Client:
        return Client(self.port, self.rest_port)

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.terminate()
        try:
            return self.process.wait(30)
        finally:
            self.process.kill()

    def __enter__(self) -> ServerProcess:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.stop()


class Client:
    """One kept-alive HTTP connection and a gRPC channel."""

    def __init__(self, port: int, rest_port: int) -> None:
        self.http = http.client.HTTPConnection("127.0.0.1", rest_port, timeout=60)
        self.channel = grpc.insecure_channel(f"127.0.0.1:{port}", options=UNLIMITED)
        self.predict_stub = prediction_service_pb2_grpc.PredictionServiceStub(self.channel)
        self.model_stub = model_service_pb2_grpc.ModelServiceStub(self.channel)

    def ask(self, method: str, path: str, body: object = None, headers=()) -> tuple[int, str]:
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        self.http.request(method, path, data, dict(headers))
        answer = self.http.getresponse()
        self.headers = answer.headers
        return answer.status, answer.read().decode()

    def rest(self, model: str, body: object, verb: str = "predict", where: str = ""):
        """Status and JSON of a request to a model; `where` is `/versions/N` or `/labels/L`."""
        status, text = self.ask("POST", f"/v1/models/{model}{where}:{verb}", body)
        return status, json.loads(text) if text else None

    def request(self, name: str, values: dict, **spec) -> predict_pb2.PredictRequest:
        request = predict_pb2.PredictRequest()
        request.model_spec.name = name
        if "version" in spec:
            request.model_spec.version.value = spec["version"]
        request.model_spec.signature_name = spec.get("signature", "")
        if "label" in spec:
            request.model_spec.version_label = spec["label"]
        request.output_filter.extend(spec.get("outputs", ()))
        for key, value in values.items():
            request.inputs[key].CopyFrom(tf.make_tensor_proto(value))
        return request

    def predict(self, name: str, values: dict, **spec) -> predict_pb2.PredictResponse:
        return self.predict_stub.Predict(self.request(name, values, **spec), timeout=60)

    def constant(self, name: str, **spec) -> float:
        """The constant that a `half_plus` model adds."""
        return self.predict(name, {"x": tf.zeros([1])}, **spec).outputs["y"].float_val[0]

    def states(self, name: str) -> list[tuple[int, str]]:
        """(version, state) of a model."""
        request = get_model_status_pb2.GetModelStatusRequest()
        request.model_spec.name = name
        state = get_model_status_pb2.ModelVersionStatus.State
        return [
            (row.version, state.Name(row.state))
            for row in self.model_stub.GetModelStatus(request).model_version_status
        ]

    def available(self, name: str) -> list[int]:
        try:
            return [version for version, state in self.states(name) if state == "AVAILABLE"]
        except grpc.RpcError:
            return []

    def reload(self, text: str, timeout: float = 60.0):
        """Sends a configuration in text form."""
        from google.protobuf import text_format

        request = model_management_pb2.ReloadConfigRequest()
        text_format.Parse(text, request.config)
        return self.model_stub.HandleReloadConfigRequest(request, timeout=timeout)


def failure(function, *args, **kwargs) -> tuple[str, str]:
    """Status and text of the gRPC error that a call ends with."""
    with pytest.raises(grpc.RpcError) as error:
        function(*args, **kwargs)
    return error.value.code().name, error.value.details()


def half_plus(constant: float) -> tf.Module:
    """y = 0.5 x + constant."""
    module = tf.Module()
    module.f = tf.function(
        lambda x: {"y": 0.5 * x + constant}, input_signature=[tf.TensorSpec([None], name="x")]
    )
    return module


def save(module: tf.Module, path, **more) -> None:
    tf.saved_model.save(module, str(path), signatures={"serving_default": module.f, **more})


def publish(constant: float, path: Path) -> None:
    """Writes `half_plus(constant)` beside its place and renames it into it."""
    made = path.parent.parent / f"making-{path.parent.name}-{path.name}"
    save(half_plus(constant), made)
    path.parent.mkdir(parents=True, exist_ok=True)
    made.rename(path)


def break_version(path: Path) -> None:
    """A version that cannot be loaded."""
    path.mkdir(parents=True)
    (path / "saved_model.pb").write_bytes(b"broken")


def config_text(**models: str | Path) -> str:
    """A ModelServerConfig; a value is a base path, or more fields after it."""
    parts = []
    for name, place in models.items():
        base, _, more = str(place).partition(" ")
        parts.append(
            f'config {{ name: "{name}" base_path: "{base}" model_platform: "tensorflow" {more} }}'
        )
    return f"model_config_list {{ {' '.join(parts)} }}"
