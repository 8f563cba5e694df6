"""Flags, start, waiting, exit statuses, signals, TLS and health: processes from outside."""

from __future__ import annotations

import datetime
import json
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import grpc
import numpy as np
import pytest
import tensorflow as tf

from tests.tfrz.serving.harness import (
    ServerProcess,
    break_version,
    config_text,
    contract,
    failure,
    free_port,
    publish,
    save,
    until,
)
from tfrz.cli.main import main as command_line
from tfrz.serving.__main__ import main


class _Slow(tf.Module):
    """Takes as long as it is told."""

    @tf.function(input_signature=[tf.TensorSpec([], tf.int32, name="n")])
    def f(self, n):
        a, i = tf.ones([300, 300]), tf.constant(0)
        while i < n:
            a = tf.matmul(a, a) * 0.003
            i += 1
        return {"y": tf.reshape(a[0, 0] * 0.0 + 1.0, [1])}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """`half` version 1 and `slow` version 1."""
    folder = tmp_path_factory.mktemp("models")
    publish(1.0, folder / "half" / "1")
    save(_Slow(), folder / "slow" / "1")
    return folder


BAD = {
    "unparsable configuration": "--model_config_file={tmp}/unparsable",
    "empty configuration": "--model_config_file={tmp}/empty",
    "labels": "--model_config_file={tmp}/labels",
    "relative": "--model_base_path=relative/path",
    "batching file alone": "--model_base_path=/b --batching_parameters_file=/x",
    "parallelism": "--model_base_path=/b --tensorflow_session_parallelism=1 "
    "--tensorflow_intra_op_parallelism=1 --tensorflow_inter_op_parallelism=1",
    "boolean": "--model_base_path=/b --enable_batching=yes",
    "never loads": "--model_base_path={tmp}/broken --max_num_load_retries=1 "
    "--load_retry_interval_micros=100000",
    "platform file": "--model_base_path=/b --platform_config_file=/x",
}


@pytest.fixture(scope="module")
def bad(tmp_path_factory) -> Path:
    """The files that `BAD` names."""
    tmp = tmp_path_factory.mktemp("bad")
    (tmp / "unparsable").write_text("model_config_list { nonsense }")
    (tmp / "empty").write_text("")
    publish(1.0, tmp / "m" / "1")
    more = 'version_labels { key: "stable" value: 1 }'
    (tmp / "labels").write_text(config_text(m=f"{tmp / 'm'} {more}"))
    break_version(tmp / "broken" / "1")
    return tmp


def _ended(case: str, tmp: Path, capsys) -> tuple[int, str]:
    """Exit status and output of a server that cannot start, in this process."""
    ports = (f"--port={free_port()}", f"--rest_api_port={free_port()}")
    status = main([*ports, *BAD[case].format(tmp=tmp).split()])
    printed = capsys.readouterr()
    return status, printed.out + printed.err


def test_the_exit_status_is_that_of_the_process(bad, tmp_path):
    flags = BAD["empty configuration"].format(tmp=bad).split()
    server = ServerProcess(*flags, log=tmp_path / "log", ready=False)
    assert server.process.wait(90) == 255
    assert "Failed to start server. Error: INVALID_ARGUMENT: " in server.text()
    assert "Traceback" not in server.text()


@contract("4", "an unreadable or empty model configuration file ends the start")
@contract("2.4", "labels in the start configuration end the process")
@contract(
    "3", "invalid combinations of flags end the process; other values of a boolean print the usage"
)
@contract("14", "a model whose first version fails permanently: status 255 and the reason")
@pytest.mark.parametrize(
    ("case", "text"),
    [
        (
            "unparsable configuration",
            "Failed to start server. Error: INVALID_ARGUMENT: Error parsing text-format "
            "tensorflow.serving.ModelServerConfig: ",
        ),
        ("empty configuration", "Failed to start server. Error: INVALID_ARGUMENT: "),
        (
            "labels",
            "Failed to start server. Error: FAILED_PRECONDITION: Request to assign label to "
            "version 1 of model m, which is not currently available for inference",
        ),
        (
            "relative",
            "Failed to start server. Error: INVALID_ARGUMENT: Expected model default to have an "
            "absolute path or URI; got base_path()=relative/path",
        ),
        ("batching file alone", "Failed to start server. Error: INVALID_ARGUMENT: "),
        ("parallelism", "Failed to start server. Error: INVALID_ARGUMENT: "),
        ("boolean", "usage: "),
        (
            "never loads",
            "Failed to start server. Error: UNKNOWN: 1 servable(s) did not become available: {",
        ),
    ],
)
def test_starts_that_end(bad, capsys, case, text):
    status, output = _ended(case, bad, capsys)
    assert status == 255, output
    assert text in output
    assert "Traceback" not in output


@contract(
    "3",
    "platform_config_file",
    deviates="refused at the start: its messages are not part of the stubs; use the flags",
)
def test_a_platform_file_is_refused(bad, capsys):
    status, output = _ended("platform file", bad, capsys)
    assert status == 255
    assert "--platform_config_file is not supported by this server" in output


@contract("3", "--version prints the version and exits 0")
@contract("3", "--model_base_path or --model_config_file is needed")
def test_version_and_nothing_to_serve(capsys):
    assert command_line(["serve", "--version"]) == 0
    assert "2.15.1" in capsys.readouterr().out
    assert command_line(["serve"]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("tfrz: nothing to serve")


@pytest.mark.slow
@contract("3", "unknown arguments are printed with the usage, and the server still runs")
@contract("3", "--name value with a space is not recognised")
@contract("3", "flags without effect are accepted")
@contract("3", "rest_api_port equal to port: an error is logged, and HTTP is not served")
@contract("3", "grpc_socket_path serves gRPC on a Unix socket; grpc_channel_arguments are applied")
@contract("14", "a missing or empty base path is logged and waited for, with closed ports")
def test_waiting_and_unusual_flags(tmp_path):
    base, port = tmp_path / "m", free_port()
    socket_path = tmp_path / "s"
    flags = (
        f"--model_base_path={base}",
        f"--port={port}",
        f"--rest_api_port={port}",
        f"--grpc_socket_path={socket_path}",
        "--grpc_channel_arguments=grpc.max_connection_age_ms=100000,grpc.x=y",
        "--enable_profiler=false",
        "--skip_initialize_tpu",
        "--frobnicate=1",
        "--model_name",
        "other",
        "--load_retry_interval_micros=100000",
    )
    with ServerProcess(*flags, log=tmp_path / "log", ready=False) as server:
        assert until(lambda: f"Could not find base path {base}" in server.text())
        base.mkdir()
        assert until(lambda: "No versions of servable default found under" in server.text())
        assert not server.listens(port)
        publish(4.0, base / "1")
        assert until(lambda: server.listens(port))
        server.port = port
        assert server.client().constant("default") == 4.0
        text = server.text()
        for word in ("--frobnicate=1", "--model_name", "other"):
            assert f"unknown argument: {word}\n" in text
        assert "usage: " in text
        assert "is the gRPC port too: no HTTP" in text
        assert "--enable_profiler has no effect" in text
        with grpc.insecure_channel(f"unix:{socket_path}") as channel:
            call = channel.unary_unary("/tensorflow.serving.PredictionService/Predict")
            request = server.client().request("default", {"x": np.float32([0])})
            assert call(request.SerializeToString(), timeout=10)


@contract("3", "booleans without a value are true")
@contract("6.4", "with the method name check, Classify and Regress need signatures marked for them")
@contract("3", "session parallelism and a session configuration file are applied")
@contract("3", 'the health service answers for "", ModelService and PredictionService')
@contract("14", "the usual readiness probes work")
def test_a_server_with_many_flags(folder, tmp_path):
    from grpc_health.v1 import health_pb2, health_pb2_grpc
    from tensorflow_serving.apis import classification_pb2

    session = tmp_path / "session"
    session.write_text("intra_op_parallelism_threads: 1 inter_op_parallelism_threads: 2")
    flags = (
        f"--model_base_path={folder / 'half'}",
        "--enable_grpc_healthcheck_service",
        "--enable_signature_method_name_check=true",
        f"--tensorflow_session_config_file={session}",
    )
    with ServerProcess(*flags, log=tmp_path / "log") as server:
        client = server.client()
        health = health_pb2_grpc.HealthStub(client.channel)
        for name in ("", "ModelService", "PredictionService"):
            request = health_pb2.HealthCheckRequest(service=name)
            assert (
                health.Check(request, timeout=10).status == health_pb2.HealthCheckResponse.SERVING
            )
        with pytest.raises(grpc.RpcError) as error:
            health.Check(health_pb2.HealthCheckRequest(service="x"), timeout=10)
        assert error.value.code().name == "NOT_FOUND"
        assert "Servable" in failure(client.constant, "no_such_model")[1]
        assert "AVAILABLE" in client.ask("GET", "/v1/models/default")[1]
        request = classification_pb2.ClassificationRequest()
        request.model_spec.name = "default"
        request.input.example_list.examples.add()
        code, text = failure(client.predict_stub.Classify, request)
        assert (code, text) == (
            "INVALID_ARGUMENT",
            "Expected classification signature method_name to be tensorflow/serving/classify. "
            "Was: tensorflow/serving/predict",
        )
        assert client.constant("default") == 1.0


def _certificates(tmp: Path) -> dict[str, str]:
    """A private authority and a key and certificate for 127.0.0.1, as PEM text."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    now = datetime.datetime(2020, 1, 1)
    later = datetime.datetime(2120, 1, 1)

    def name(text: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

    def make(subject, issuer, key, signer, authority):
        return (
            x509.CertificateBuilder()
            .subject_name(name(subject))
            .issuer_name(name(issuer))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now)
            .not_valid_after(later)
            .add_extension(x509.BasicConstraints(authority, None), critical=True)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), False)
            .sign(signer, hashes.SHA256())
        )

    keys = {who: ec.generate_private_key(ec.SECP256R1()) for who in ("ca", "server", "client")}
    found = {}
    for who, key in keys.items():
        certificate = make(who, "ca", key, keys["ca"], who == "ca")
        found[f"{who}_cert"] = certificate.public_bytes(serialization.Encoding.PEM).decode()
        found[f"{who}_key"] = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ).decode()
    return found


@pytest.mark.slow
@contract(
    "3", "ssl_config_file: TLS for gRPC, with client certificates if required; HTTP stays plain"
)
def test_tls(folder, tmp_path):
    pem = _certificates(tmp_path)
    fields = {
        "server_key": pem["server_key"],
        "server_cert": pem["server_cert"],
        "custom_ca": pem["ca_cert"],
    }
    text = "".join(f"{key}: {json.dumps(value)}\n" for key, value in fields.items())
    config = tmp_path / "ssl"
    config.write_text(text + "client_verify: true\n")
    flags = (f"--model_base_path={folder / 'half'}", f"--ssl_config_file={config}")
    with ServerProcess(*flags, log=tmp_path / "log") as server:
        request = server.client().request("default", {"x": np.float32([0])}).SerializeToString()

        def call(credentials) -> bytes:
            with grpc.secure_channel(f"localhost:{server.port}", credentials) as channel:
                method = channel.unary_unary("/tensorflow.serving.PredictionService/Predict")
                return method(request, timeout=10)

        assert call(
            grpc.ssl_channel_credentials(
                pem["ca_cert"].encode(), pem["client_key"].encode(), pem["client_cert"].encode()
            )
        )
        with pytest.raises(grpc.RpcError):
            call(grpc.ssl_channel_credentials(pem["ca_cert"].encode()))
        with pytest.raises(grpc.RpcError):
            server.client().constant("default")
        assert server.client().rest("default", {"instances": [0.0]})[0] == 200


@pytest.fixture(scope="module")
def limited(folder, tmp_path_factory):
    """A server of both models with short times and few threads."""
    tmp = tmp_path_factory.mktemp("limited")
    config = tmp / "models.config"
    config.write_text(config_text(half=folder / "half", slow=folder / "slow"))
    flags = (
        f"--model_config_file={config}",
        "--rest_api_timeout_in_ms=1000",
        "--grpc_max_threads=2",
        "--rest_api_num_threads=2",
    )
    with ServerProcess(*flags, log=tmp / "log") as server:
        yield server


def _n(client, seconds: float) -> int:
    """The argument of `slow` that takes about so long here."""
    client.predict("slow", {"n": np.int32(10)})
    start = time.perf_counter()
    client.predict("slow", {"n": np.int32(100)})
    return int(100 * seconds / (time.perf_counter() - start))


@pytest.mark.slow
@contract("14", "rest_api_timeout_in_ms bounds a request: 504; a client's deadline over gRPC too")
def test_deadlines(limited):
    client = limited.client()
    n = _n(client, 6.0)
    status, document = client.rest("slow", {"inputs": n})
    assert status == 504
    assert document["error"]
    request = client.request("slow", {"n": np.int32(n)})
    with pytest.raises(grpc.RpcError) as error:
        client.predict_stub.Predict(request, timeout=0.3)
    assert error.value.code().name == "DEADLINE_EXCEEDED"
    # Others are served meanwhile and afterwards.
    assert client.rest("half", {"instances": [0.0]}) == (200, {"predictions": [1.0]})


@pytest.mark.slow
@contract("14", "gRPC calls beyond grpc_max_threads are refused with RESOURCE_EXHAUSTED")
def test_more_calls_than_threads(limited):
    client = limited.client()
    n = _n(client, 1.5)
    assert until(lambda: _codes(client, n // 4, 2) == ["OK"] * 2)
    assert sorted(_codes(client, n, 6)) == ["OK"] * 2 + ["RESOURCE_EXHAUSTED"] * 4


def _codes(client, n: int, calls: int) -> list[str]:
    """The statuses of so many calls at the same time."""
    request = client.request("slow", {"n": np.int32(n)})
    futures = [client.predict_stub.Predict.future(request, timeout=60) for _ in range(calls)]
    return [future.code().name for future in futures]


@pytest.mark.slow
@contract(
    "14",
    "SIGTERM",
    deviates="running requests may take --drain_seconds (10); 0 ends the process at once",
)
@pytest.mark.parametrize("drain", [10, 0])
def test_sigterm_during_load(folder, tmp_path, drain):
    config = tmp_path / "models.config"
    config.write_text(config_text(half=folder / "half", slow=folder / "slow"))
    flags = (f"--model_config_file={config}", f"--drain_seconds={drain}")
    with ServerProcess(*flags, log=tmp_path / "log") as server:
        client = server.client()
        n = _n(client, 2.0)
        request = client.request("slow", {"n": np.int32(n)})
        over_grpc = client.predict_stub.Predict.future(request, timeout=60)
        over_http: list[object] = []

        def ask() -> None:
            try:
                over_http.append(server.client().rest("slow", {"inputs": n})[0])
            except OSError as error:
                over_http.append(type(error).__name__)

        thread = threading.Thread(target=ask)
        thread.start()
        time.sleep(0.5)
        start = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        status = server.process.wait(30)
        took = time.monotonic() - start
        thread.join()
        if drain:
            assert status == 0
            assert over_grpc.code().name == "OK"
            assert over_http == [200]
            assert took < drain + 5
        else:
            assert status == -signal.SIGTERM
            assert over_grpc.code().name == "UNAVAILABLE"
            assert over_http != [200]


@contract("14", "nothing outside the base path is read: names with dots and slashes are unknown")
def test_names_that_climb(limited):
    client = limited.client()
    for name in ("..", "..%2f..%2fetc", "%2e%2e", "half%2f1"):
        status, text = client.ask("GET", f"/v1/models/{name}")
        assert status == 404
        assert "Could not find any versions of model" in json.loads(text)["error"]


@pytest.mark.slow
def test_the_convenient_form_takes_one_version_or_a_folder(folder, tmp_path):
    both = tmp_path / "half"
    shutil.copytree(folder / "half", both)
    publish(2.0, both / "2")
    command = [sys.executable, "-m", "tfrz.serving", str(both / "1"), "--name", "h"]
    port, rest = free_port(), free_port()
    with subprocess.Popen(
        [*command, "--port", str(port), f"--rest_api_port={rest}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout.readline().startswith("serving h version 1 from ")
        process.terminate()
        assert process.wait(30) == 0


_SIGNAL_WITHIN_WAIT = """
import linecache, os, signal, sys, threading, types
from tfrz.serving.__main__ import _serve_until_told

def told(*_):
    os.kill(os.getpid(), signal.SIGTERM)

def within(frame, event, _):
    line = linecache.getline(threading.__file__, frame.f_lineno)
    # The event's lock is held.
    if event == "line" and "signaled = self._flag" in line:
        sys.settrace(None)
        told()
    return within

threading.Timer(1.0, told).start()
server = types.SimpleNamespace(config=types.SimpleNamespace(drain_seconds=1), stop=lambda: None)
sys.settrace(lambda frame, *_: within if frame.f_code.co_filename == threading.__file__ else None)
_serve_until_told(server)
"""


def test_a_signal_at_the_moment_of_waiting_ends_the_server():
    """A handler that sets a `threading.Event` deadlocks if this thread is just about to wait."""
    done = subprocess.run([sys.executable, "-c", _SIGNAL_WITHIN_WAIT], timeout=60)
    assert done.returncode == 0
