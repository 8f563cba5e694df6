"""Malformed and extreme inputs: only valid statuses, no hang, no crash.

Three generators: atheris mutates requests and follows which code they reach, in a process of its
own, against the interfaces without their sockets; hypothesis makes well-formed JSON and messages
of wrong content; and both kinds, cut and joined at random, go over real sockets to a server.
"""

from __future__ import annotations

import collections
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import serving_processes as processes
from benchmarks.report import Bound, Figure, Section
from benchmarks.runner import Options

_HTTP = {200, 400, 404, 501}
_GRPC = {"INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION", "UNIMPLEMENTED"}
_SERVICE = "tensorflow.serving.PredictionService"
_METHODS = ("Predict", "Classify", "Regress", "MultiInference", "GetModelMetadata")
_SLOW_SECONDS = 5.0


def _save_model(path: Path) -> None:
    """A model with inputs of several dtypes, and signatures for every method."""
    import tensorflow as tf

    class Model(tf.Module):
        @tf.function(
            input_signature=[
                tf.TensorSpec([None, 2], name="x"),
                tf.TensorSpec([None], tf.int64, name="id"),
                tf.TensorSpec([None], tf.string, name="s"),
                tf.TensorSpec([None], tf.bool, name="b"),
            ]
        )
        def several(self, x, id, s, b):
            return {"y": tf.matmul(x, tf.ones([2, 3])), "id": id + 1, "s_bytes": s, "b": ~b}

        @tf.function(input_signature=[tf.TensorSpec([None], name="x")])
        def one(self, x):
            return {"y": 0.5 * x + 2.0}

        def _x(self, inputs):
            spec = {"x": tf.io.FixedLenFeature([], tf.float32)}
            return tf.io.parse_example(inputs, spec)["x"]

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="inputs")])
        def classify(self, inputs):
            x = self._x(inputs)
            return {"scores": tf.stack([x, -x], 1)}

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="inputs")])
        def regress(self, inputs):
            return {"outputs": self._x(inputs)}

    module = Model()
    names = ("several", "classify", "regress")
    signatures = {name: getattr(module, name) for name in names}
    tf.saved_model.save(module, str(path), signatures={"serving_default": module.one, **signatures})


_DOCUMENTS: tuple[tuple[str, Any], ...] = (
    ("predict", {"instances": [1.0, 2.5]}),
    ("predict", {"inputs": {"x": [1.0, float("inf")]}}),
    (
        "predict",
        {
            "signature_name": "several",
            "instances": [{"x": [1.0, 2.0], "id": 7, "s": {"b64": "aGk="}, "b": True}],
        },
    ),
    (
        "predict",
        {
            "signature_name": "several",
            "inputs": {"x": [[1.0, 2.0]], "id": [2**53], "s": ["ü"], "b": [False]},
        },
    ),
    ("classify", {"signature_name": "classify", "examples": [{"x": 1.5}]}),
    ("regress", {"signature_name": "regress", "context": {"x": 0.5}, "examples": [{}, {}]}),
)


def _seed_requests() -> list[tuple[str, bytes]]:
    """(method, message) of right requests over gRPC."""
    import numpy as np
    from tensorflow_serving.apis import (
        classification_pb2,
        get_model_metadata_pb2,
        inference_pb2,
        predict_pb2,
    )

    from tfrz.serving.tensors import to_proto

    predict = predict_pb2.PredictRequest()
    predict.model_spec.name = "m"
    to_proto(np.float32([1, 2]), predict.inputs["x"])
    several = predict_pb2.PredictRequest()
    several.model_spec.name, several.model_spec.signature_name = "m", "several"
    several.model_spec.version.value = 1
    to_proto(np.float32([[1, 2]]), several.inputs["x"])
    to_proto(np.int64([3]), several.inputs["id"])
    to_proto(np.array([b"a"], object), several.inputs["s"])
    to_proto(np.array([True]), several.inputs["b"])
    several.output_filter.append("y")
    classify = classification_pb2.ClassificationRequest()
    classify.model_spec.name, classify.model_spec.signature_name = "m", "classify"
    example = classify.input.example_list.examples.add()
    example.features.feature["x"].float_list.value.append(1.0)
    multi = inference_pb2.MultiInferenceRequest()
    for name in ("classify", "regress"):
        task = multi.tasks.add(method_name=f"tensorflow/serving/{name}")
        task.model_spec.name, task.model_spec.signature_name = "m", name
    multi.input.CopyFrom(classify.input)
    metadata = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    metadata.model_spec.name = "m"
    return [
        ("Predict", predict.SerializeToString()),
        ("Predict", several.SerializeToString()),
        ("Classify", classify.SerializeToString()),
        ("Regress", classify.SerializeToString()),
        ("MultiInference", multi.SerializeToString()),
        ("GetModelMetadata", metadata.SerializeToString()),
    ]


class _Judge:
    """Sends inputs to both interfaces and keeps what should not be."""

    def __init__(self, base: str) -> None:
        from tfrz.serving.configuration import ServerConfig, models_of_flags
        from tfrz.serving.grpc_service import GrpcSurface
        from tfrz.serving.manager import ModelManager
        from tfrz.serving.metrics import Metrics
        from tfrz.serving.rest import RestSurface
        from tfrz.serving.server import VersionLoader

        config, metrics = ServerConfig("m", base), Metrics()
        self._manager = ModelManager(VersionLoader(config, metrics))
        new = self._manager.apply(models_of_flags(config))
        self._manager.start()
        self._manager.wait_available(new, first_try=True)
        self._rest = RestSurface(self._manager, metrics)
        self._grpc = GrpcSurface(self._manager, metrics, 1)
        self.seen: collections.Counter[str] = collections.Counter()
        self.wrong: list[str] = []
        self.slowest = 0.0

    def _note(self, what: str, fine: bool, seconds: float, data: object) -> None:
        self.seen[what] += 1
        self.slowest = max(self.slowest, seconds)
        if (not fine or seconds > _SLOW_SECONDS) and len(self.wrong) < 20:
            self.wrong.append(f"{what} after {seconds:.3f} s: {str(data)[:300]}")

    def http(self, method: str, path: str, headers: dict[str, str], body: bytes) -> None:
        start = time.perf_counter()
        answer = self._rest.answer(method, path, headers, body)
        fine = answer.status in _HTTP
        if answer.status != 200 and answer.body and answer.content_type == "application/json":
            fine = fine and set(json.loads(answer.body.decode("utf-8", "replace"))) == {"error"}
        seconds = time.perf_counter() - start
        self._note(f"HTTP {answer.status}", fine, seconds, (method, path, headers, body))

    def grpc(self, method: str, data: bytes) -> None:
        from tfrz.serving.status import RequestError

        start = time.perf_counter()
        try:
            self._grpc.answer(_SERVICE, method, data)
            what, fine = "gRPC OK", True
        except RequestError as error:
            what = f"gRPC {error.code.name}"
            # INTERNAL is what gRPC itself says of a message that does not parse.
            fine = error.code.name in _GRPC or (error.code.name == "INTERNAL" and not error.message)
        except Exception as error:
            what, fine = f"gRPC {type(error).__name__}", False
        self._note(what, fine, time.perf_counter() - start, (method, data))

    def bytes(self, data: bytes) -> None:
        """An input of atheris: the first byte chooses the interface and the method."""
        if not data:
            return
        kind, rest = data[0] % 10, data[1:]
        if kind < len(_METHODS):
            self.grpc(_METHODS[kind], rest)
            return
        head, _, body = rest.partition(b"\n")
        verb = ("predict", "classify", "regress", "", "")[kind - len(_METHODS)]
        if verb:
            self.http("POST", f"/v1/models/m:{verb}", {}, rest)
        else:
            method = ("GET", "POST", "PUT", "OPTIONS")[len(head) % 4]
            path = "/" + head.decode("latin-1")
            headers = {"Content-Encoding": "gzip"} if kind == 9 else {}
            self.http(method, path, headers, body)

    def report(self) -> dict[str, Any]:
        self._manager.stop()
        return {"seen": dict(self.seen), "wrong": self.wrong, "slowest": self.slowest}


def child_atheris(base: str, corpus: str, runs: int, seed: int, out: str) -> None:
    """Mutates requests, led by coverage; writes its report to `out`. Ends the process."""
    import atheris

    with atheris.instrument_imports(include=["tfrz.serving"], enable_loader_override=False):
        pass
    judge = _Judge(base)
    left = runs

    def one(data: bytes) -> None:
        nonlocal left
        judge.bytes(data)
        left -= 1
        if left <= 0:
            Path(out).write_text(json.dumps(judge.report()))
            sys.stdout.flush()
            os._exit(0)

    arguments = [f"-seed={seed + 1}", "-max_len=2048", "-verbosity=0", "-print_final_stats=0"]
    atheris.Setup(["fuzz", *arguments, corpus], one)
    atheris.Fuzz()


def _corpus(folder: Path) -> None:
    folder.mkdir()
    verbs = {"predict": 5, "classify": 6, "regress": 7}
    seeds = [bytes([verbs[verb]]) + json.dumps(document).encode() for verb, document in _DOCUMENTS]
    seeds += [bytes([_METHODS.index(method)]) + data for method, data in _seed_requests()]
    seeds += [b"\x08v1/models/m\n", b"\x08v1/models/m/versions/1/metadata\n", b"\x09v1/models\n{}"]
    for i, seed in enumerate(seeds):
        (folder / str(i)).write_bytes(seed)


def _atheris(folder: Path, runs: int, seed: int) -> dict[str, Any]:
    _corpus(folder / "corpus")
    out = folder / "atheris.json"
    code = (
        "from benchmarks.serving_fuzz import child_atheris as run; "
        f"run({str(folder / 'm')!r}, {str(folder / 'corpus')!r}, {runs}, {seed}, {str(out)!r})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=processes.ROOT,
        env=processes.QUIET,
        capture_output=True,
        text=True,
        timeout=1800,
    )
    if not out.exists():
        raise RuntimeError(f"the fuzzed process crashed: {done.stderr.strip()[-1500:]}")
    return json.loads(out.read_text())


def _hypothesis(judge: _Judge, examples: int, seed: int) -> None:
    """JSON documents and protocol messages that are well-formed and of any content."""
    import hypothesis
    import numpy as np
    from hypothesis import strategies as st
    from tensorflow_serving.apis import predict_pb2

    from tfrz.serving.tensors import to_proto

    keys = st.sampled_from(
        ["instances", "inputs", "signature_name", "examples", "context", "x", "id", "s", "b", "b64"]
    )
    # Any code point, lone surrogates too.
    text = st.text(st.characters(), max_size=6)
    leaves = (
        st.none() | st.booleans() | st.integers() | st.floats() | text
    ) | st.fixed_dictionaries({"b64": text})
    value = st.recursive(
        leaves,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4),
        max_leaves=10,
    )
    document = st.dictionaries(keys, value, max_size=4)
    name = st.sampled_from(["serving_default", "several", "classify", "regress", "none", ""])
    verb = st.sampled_from(["predict", "classify", "regress"])

    @hypothesis.seed(seed)
    @hypothesis.settings(max_examples=examples, deadline=None, database=None)
    @hypothesis.given(document, name, verb)
    def json_documents(content: dict[str, Any], signature: str, verb: str) -> None:
        content = {"signature_name": signature, **content}
        judge.http("POST", f"/v1/models/m:{verb}", {}, json.dumps(content).encode())

    dtype = st.sampled_from(["f4", "f8", "f2", "i4", "i8", "u1", "?", "O"])
    shape = st.lists(st.integers(0, 3), max_size=3)

    @hypothesis.seed(seed)
    @hypothesis.settings(max_examples=examples // 2, deadline=None, database=None)
    @hypothesis.given(name, st.dictionaries(keys, st.tuples(dtype, shape), max_size=5))
    def messages(signature: str, inputs: dict[str, tuple[str, list[int]]]) -> None:
        request = predict_pb2.PredictRequest()
        request.model_spec.name, request.model_spec.signature_name = "m", signature
        for key, (kind, sizes) in inputs.items():
            array = np.full(sizes, b"a", object) if kind == "O" else np.ones(sizes, kind)
            to_proto(array, request.inputs[key])
        judge.grpc("Predict", request.SerializeToString())

    json_documents()
    messages()


def _cut_and_joined(generator: random.Random, seeds: list[bytes]) -> bytes:
    """Parts of requests, with bytes changed."""
    data = bytearray(generator.choice(seeds))
    for _ in range(generator.randrange(4)):
        other = generator.choice(seeds)
        at, start = generator.randrange(len(data) + 1), generator.randrange(len(other))
        data[at:at] = other[start : start + generator.randrange(1, 20)]
    for _ in range(generator.randrange(6)):
        data[generator.randrange(len(data))] = generator.randrange(256)
    return bytes(data)


def _http_bytes(generator: random.Random) -> tuple[bytes, float]:
    """A request, and how long its answer is waited for: a broken head may want more bytes."""
    verb, document = generator.choice(_DOCUMENTS)
    body = json.dumps(document).encode()
    head = b"POST /v1/models/m:%s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
    if generator.random() < 0.2:
        whole = head % (verb.encode(), len(body)) + body
        return _cut_and_joined(generator, [whole]), 0.05
    body = _cut_and_joined(generator, [json.dumps(one).encode() for _, one in _DOCUMENTS])
    return head % (verb.encode(), len(body)) + body, 10.0


def _ask_http(port: int, data: bytes, seconds: float) -> str:
    """The status of an answer; `closed`, or `waiting` where more was expected by the server."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as link:
        try:
            link.sendall(data)
            link.settimeout(seconds)
            answer = link.recv(65536)
            return answer.split(b" ", 2)[1].decode() if answer else "closed"
        except TimeoutError:
            return "waiting" if seconds < 1 else "no answer"
        except OSError:
            return "closed"


def _over_sockets(
    server: Any, inputs: int, seed: int
) -> tuple[collections.Counter[str], list[str]]:
    """Bytes to the HTTP port and messages to the gRPC port of a server."""
    import grpc

    generator, seen, wrong = random.Random(seed), collections.Counter(), []
    messages = _seed_requests()
    channel = grpc.insecure_channel(f"127.0.0.1:{server.port}")
    for i in range(inputs):
        if i % 2:
            data, seconds = _http_bytes(generator)
            status = _ask_http(server.rest_port, data, seconds)
            seen[f"HTTP {status}"] += 1
            if status[:1] not in "24cw" and status != "501":
                wrong.append(f"HTTP {status}: {data[:200]!r}")
        else:
            method, message = generator.choice(messages)
            data = _cut_and_joined(generator, [message])
            try:
                channel.unary_unary(f"/{_SERVICE}/{method}")(data, timeout=10)
                status, detail = "OK", ""
            except grpc.RpcError as error:
                status, detail = error.code().name, error.details()
            seen[f"gRPC {status}"] += 1
            if status not in _GRPC | {"OK"} and not (status == "INTERNAL" and not detail):
                wrong.append(f"gRPC {status} {detail}: {data[:200]!r}")
    channel.close()
    return seen, wrong


def measure_fuzz(options: Options) -> Section:
    """All three generators; an answer of a wrong status is counted and shown."""
    mutated, made, sent = (3000, 300, 400) if options.quick else (70_000, 20_000, 10_000)
    with tempfile.TemporaryDirectory(prefix="tfrz-bench-") as name:
        folder = Path(name)
        _save_model(folder / "m" / "1")
        try:
            import atheris  # noqa: F401

            mutation = _atheris(folder, mutated, options.seed)
        except ImportError:
            mutation = {"seen": {}, "wrong": [], "slowest": 0.0}
        judge = _Judge(str(folder / "m"))
        _hypothesis(judge, made, options.seed)
        well_formed = judge.report()
        flags = (f"--model_base_path={folder / 'm'}", "--model_name=m")
        with processes.serving(flags) as (server,):
            seen, wrong = _over_sockets(server, sent, options.seed)
            alive = server.process.poll() is None
    counts = {
        "mutated by atheris": mutation["seen"],
        "made by hypothesis": well_formed["seen"],
        "over sockets": dict(seen),
    }
    wrong = mutation["wrong"] + well_formed["wrong"] + wrong
    total = sum(sum(values.values()) for values in counts.values())
    slowest = max(mutation["slowest"], well_formed["slowest"])
    return Section(
        title="inputs that nobody would send, to REST and gRPC",
        setup={"seed": options.seed},
        figures=(
            Figure("inputs", total, "", Bound(100_000, "at least"), judged=not options.quick),
            *(Figure(name, sum(values.values()), "") for name, values in counts.items()),
            Figure("answers that the interface does not name", len(wrong), "", Bound(0, "at most")),
            Figure("server ended", int(not alive), "", Bound(0, "at most")),
            Figure("slowest answer", 1e3 * slowest, "ms", Bound(1e3 * _SLOW_SECONDS, "at most")),
        ),
        details={"statuses": counts, "wrong": wrong[:20]},
    )
