"""Requests that are malformed, huge, slow, or gone before their answer harm no other."""

from __future__ import annotations

import json
import socket
import threading
import time

import grpc
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.tfrz.serving.harness import ServerProcess, contract, half_plus, save


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("limits")
    module = half_plus(2.0)
    module.text = tf.function(
        lambda s: {"t": tf.identity(s)}, input_signature=[tf.TensorSpec(None, tf.string, name="s")]
    )
    save(module, folder / "m" / "1", text=module.text)
    flags = (f"--model_base_path={folder / 'm'}", "--model_name=m")
    with ServerProcess(*flags, log=folder / "log") as server:
        yield server


def _healthy(server) -> None:
    client = server.client()
    assert client.constant("m") == 2.0
    assert client.rest("m", {"instances": [0.0]}) == (200, {"predictions": [2.0]})
    assert "Traceback" not in server.text()


def _send(server, data: bytes, read: bool = True) -> bytes:
    with socket.create_connection(("127.0.0.1", server.rest_port), timeout=20) as connection:
        connection.sendall(data)
        return connection.recv(65536) if read else b""


BODY = b'{"instances": [0.0]}'
POST = b"POST /v1/models/m:predict HTTP/1.1\r\nHost: x\r\n"


@contract("14", "what is not HTTP gets 400 or is closed, and does not affect others")
@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET\r\n\r\n",
        b"GET /v1/models/m HTTP/9.9\r\n\r\n",
        POST + b"Content-Length: -5\r\n\r\n",
        POST + b"Content-Length: abc\r\n\r\n",
        POST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        POST + b"X: " + b"y" * 100_000 + b"\r\n\r\n",
        POST + b"".join(b"X%d: y\r\n" % i for i in range(1000)) + b"\r\n",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
    ids=[
        "tls",
        "no path",
        "version",
        "negative length",
        "no length",
        "two lengths",
        "chunk",
        "long header",
        "many headers",
        "long path",
    ],
)
def test_what_is_no_http(server, data):
    answer = _send(server, data)
    assert not answer or answer.split()[1][:1] == b"4", answer[:200]
    _healthy(server)


@contract("7.2", "bodies in chunks, Expect: 100-continue, and several requests at once")
def test_unusual_but_right(server):
    chunks = b"".join(b"%x\r\n%s\r\n" % (1, BODY[i : i + 1]) for i in range(len(BODY)))
    answer = _send(server, POST + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200")
    one = POST + b"Content-Length: %d\r\n\r\n%s" % (len(BODY), BODY)
    with socket.create_connection(("127.0.0.1", server.rest_port), timeout=20) as connection:
        connection.sendall(one * 3)
        got = b""
        while got.count(b'{"predictions": [2.0]}') < 3:
            got += connection.recv(65536)
    expecting = POST + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(BODY)
    with socket.create_connection(("127.0.0.1", server.rest_port), timeout=20) as connection:
        connection.sendall(expecting)
        assert connection.recv(100).startswith(b"HTTP/1.1 100")
        connection.sendall(BODY)
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")


@contract("8", "bytes that are not UTF-8 are kept in values, and fail in names as unknown ones do")
@pytest.mark.parametrize(
    ("verb", "body", "status"),
    [
        ("predict", b'{"signature_name": "text", "inputs": ["\xc0"]}', 200),
        ("predict", b'{"instances": [{"\xc0": 1.0}]}', 400),
        ("predict", b'{"inputs": {"\xc0": 1.0}}', 400),
        ("predict", b'{"\xc0": 1.0}', 400),
        ("predict", b'{"signature_name": "\xc0", "inputs": 1.0}', 400),
        ("classify", b'{"examples": [{"\xc0": 1.0}]}', 400),
        ("regress", b'{"context": {"\xc0": 1.0}, "examples": [{}]}', 400),
    ],
)
def test_bytes_that_are_no_utf8(server, verb, body, status):
    client = server.client()
    client.http.request("POST", f"/v1/models/m:{verb}", body)
    answer = client.http.getresponse()
    data = answer.read()
    assert answer.status == status, data
    if status == 200:
        assert data == b'{"outputs": ["\xc0"]}'


@contract(
    "14",
    "HTTP bodies are bounded",
    deviates="a body beyond 64 MiB is refused with 413 before it is read",
)
def test_a_body_that_is_too_large(server):
    answer = _send(server, POST + b"Content-Length: %d\r\n\r\n" % (1 << 40))
    assert answer.startswith(b"HTTP/1.1 413")
    assert b"The body is larger than" in answer
    _healthy(server)


@pytest.mark.slow
@contract("14", "slow, silent and aborted connections do not delay others")
def test_slow_and_lost_connections(server):
    slow = [socket.create_connection(("127.0.0.1", server.rest_port)) for _ in range(200)]
    for i, connection in enumerate(slow):
        connection.sendall((POST if i % 2 else POST + b"Content-Length: 1000\r\n\r\n{")[: 20 + i])
    start = time.monotonic()
    _healthy(server)
    assert time.monotonic() - start < 10
    large = b'{"instances": [' + b"0.0, " * 200_000 + b"0.0]}"
    for _ in range(5):
        # Gone before the answer.
        _send(server, POST + b"Content-Length: %d\r\n\r\n%s" % (len(large), large), read=False)
    _healthy(server)
    for connection in slow:
        connection.close()


@contract("14", "cancelled gRPC calls do not delay others")
def test_cancelled_calls(server):
    client = server.client()
    request = client.request("m", {"x": np.zeros(1_000_000, "f")})
    calls = [client.predict_stub.Predict.future(request, timeout=60) for _ in range(6)]
    for call in calls:
        call.cancel()
    _healthy(server)


@pytest.mark.slow
@contract(
    "14",
    "connections are bounded",
    deviates="HTTP connections beyond about 1,024 at a time are closed",
)
def test_connections_are_bounded(server):
    many = []
    try:
        for _ in range(1300):
            many.append(socket.create_connection(("127.0.0.1", server.rest_port), timeout=5))
        many[-1].sendall(b"GET /v1/models/m HTTP/1.1\r\nHost: x\r\n\r\n")
        try:
            assert many[-1].recv(100) == b""
        except ConnectionError:
            pass
    finally:
        for connection in many:
            connection.close()
    time.sleep(0.5)
    _healthy(server)


@pytest.mark.slow
@contract("14", "many clients in parallel over both protocols get correct responses")
def test_concurrency(server):
    wrong: list[object] = []

    def ask(seed: int) -> None:
        client = server.client()
        random = np.random.default_rng(seed)
        for _ in range(30):
            values = random.normal(size=random.integers(1, 9)).astype("f")
            expected = (0.5 * values + np.float32(2.0)).tolist()
            try:
                if seed % 2:
                    found = list(client.predict("m", {"x": values}).outputs["y"].float_val)
                else:
                    status, document = client.rest("m", {"instances": values.tolist()})
                    found = (
                        np.float32(document["predictions"]).tolist() if status == 200 else status
                    )
            except grpc.RpcError as error:
                # The contract's own answer where there are more calls than threads.
                found = expected if error.code().name == "RESOURCE_EXHAUSTED" else error
            if found != expected:
                wrong.append((values, found))

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["instances", "inputs", "x", "s", "b64", "signature_name", "examples"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)
ALLOWED = {200, 400, 404, 501}


@pytest.mark.slow
@contract("9", "any JSON gets a status of the interface, and an error in JSON")
@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    body=st.dictionaries(
        st.sampled_from(["instances", "inputs", "signature_name", "examples", "context"]), JSON
    )
    | JSON
    | st.binary(max_size=40),
    verb=st.sampled_from(["predict", "classify", "regress"]),
    signature=st.sampled_from([None, "text", "serving_default"]),
)
def test_any_json(server, body, verb, signature):
    if isinstance(body, dict) and signature is not None:
        body["signature_name"] = signature
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    client = server.client()
    status, text = client.ask("POST", f"/v1/models/m:{verb}", data)
    assert status in ALLOWED, (status, text)
    if status != 200:
        assert set(json.loads(text)) == {"error"}
    client.http.close()
    client.channel.close()


@pytest.mark.slow
@contract("9", "any bytes as a message get a status of the interface")
@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.binary(max_size=60), method=st.sampled_from(["Predict", "Classify", "Regress"]))
def test_any_message(server, data, method):
    channel = server.client().channel
    call = channel.unary_unary(f"/tensorflow.serving.PredictionService/{method}")
    with pytest.raises(grpc.RpcError) as error:
        call(data, timeout=20)
    assert error.value.code().name in (
        "INVALID_ARGUMENT",
        "NOT_FOUND",
        "FAILED_PRECONDITION",
        "INTERNAL",
    )
    channel.close()


def test_still_healthy(server):
    _healthy(server)
