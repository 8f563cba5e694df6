"""Metrics and warm-up, over real sockets."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import prediction_log_pb2, regression_pb2

from tests.tfrz.serving.harness import (
    ServerProcess,
    config_text,
    contract,
    failure,
    publish,
    save,
    until,
)


class _Counting(tf.Module):
    """Counts its runs; also as a regressor of examples."""

    def __init__(self):
        super().__init__()
        self.calls = tf.Variable(0, dtype=tf.int32)

    @tf.function(input_signature=[tf.TensorSpec([None], name="x")])
    def f(self, x):
        self.calls.assign_add(1)
        return {"y": x}

    @tf.function(input_signature=[])
    def count(self):
        return {"n": self.calls[None]}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="inputs")])
    def regress(self, inputs):
        self.calls.assign_add(10)
        return {"outputs": tf.cast(tf.strings.length(inputs), tf.float32)}


def _predict_log(signature: str = "", **inputs) -> prediction_log_pb2.PredictionLog:
    log = prediction_log_pb2.PredictionLog()
    request = log.predict_log.request
    # Neither the name nor the version is checked.
    request.model_spec.name = "another"
    request.model_spec.version.value = 99
    request.model_spec.signature_name = signature
    for key, value in inputs.items():
        request.inputs[key].CopyFrom(tf.make_tensor_proto(value))
    return log


def _regress_log() -> prediction_log_pb2.PredictionLog:
    log = prediction_log_pb2.PredictionLog()
    request = log.regress_log.request
    request.model_spec.signature_name = "regress"
    request.input.example_list.examples.add()
    return log


def _write(path, records: list[bytes]) -> None:
    folder = path / "assets.extra"
    folder.mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(folder / "tf_serving_warmup_requests")) as writer:
        for record in records:
            writer.write(record)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("warm")
    module = _Counting()
    save(module, folder / "m" / "1", count=module.count, regress=module.regress)
    logs = [_predict_log(x=np.float32([1])), _regress_log()]
    multi = prediction_log_pb2.PredictionLog()
    task = multi.multi_inference_log.request.tasks.add(method_name="tensorflow/serving/regress")
    task.model_spec.signature_name = "regress"
    multi.multi_inference_log.request.input.example_list.examples.add()
    logs.append(multi)
    _write(folder / "m" / "1", [log.SerializeToString() for log in logs])
    return folder


@pytest.fixture(scope="module")
def server(folder):
    monitoring = folder / "monitoring"
    monitoring.write_text("prometheus_config { enable: true }")
    config = folder / "models.config"
    config.write_text(config_text(m=folder / "m"))
    flags = (
        f"--model_config_file={config}",
        f"--monitoring_config_file={monitoring}",
        "--num_request_iterations_for_warmup=2",
        "--max_num_load_retries=0",
        "--file_system_poll_wait_seconds=0.1",
    )
    with ServerProcess(*flags, log=folder / "log") as server:
        yield server


PATH = "/monitoring/prometheus/metrics"


def _series(server) -> dict[str, float]:
    status, text = server.client().ask("GET", PATH)
    assert status == 200
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in lines}


@contract("12", "predict, regress and multi-inference records run before the version is available")
@contract("12", "num_request_iterations_for_warmup; the runs are real: they change variables")
def test_warm_up_runs(server):
    answer = server.client().predict("m", {}, signature="count")
    # Twice each: one predict, one regress and one multi-inference record.
    assert answer.outputs["n"].int_val[0] == 2 * (1 + 10 + 10)


@contract("12", "every failure of warm-up fails the load: code and message")
@pytest.mark.parametrize(
    ("records", "code", "message"),
    [
        (
            [_predict_log("none", x=np.float32([1])).SerializeToString()],
            "FAILED_PRECONDITION",
            'Serving signature key "none" not found.',
        ),
        (
            [_predict_log(x=np.float64([1])).SerializeToString()],
            "INVALID_ARGUMENT",
            "Expects arg[0] to be float but double is provided",
        ),
        ([b"\xff\xff"], "INVALID_ARGUMENT", "Failed to parse warmup record: "),
        (
            [
                prediction_log_pb2.PredictionLog(
                    session_run_log=prediction_log_pb2.SessionRunLog()
                ).SerializeToString()
            ],
            "UNIMPLEMENTED",
            "Unsupported log_type for warmup: ",
        ),
        (
            [_predict_log(x=np.float32([1])).SerializeToString()] * 1001,
            "INVALID_ARGUMENT",
            "Number of warmup records exceeds the maximum (1000) at ",
        ),
        (None, "DATA_LOSS", ""),
    ],
)
def test_broken_warm_up(server, tmp_path, records, code, message):
    version = tmp_path / "m" / "1"
    publish(1.0, version)
    if records is None:
        (version / "assets.extra").mkdir()
        (version / "assets.extra" / "tf_serving_warmup_requests").write_bytes(b"no TFRecord" * 9)
    else:
        _write(version, records)
    client = server.client()
    name = f"m{abs(hash(tmp_path))}"
    assert failure(client.reload, config_text(**{name: tmp_path / "m"}))[0] == "UNKNOWN"
    (row,) = json.loads(client.ask("GET", f"/v1/models/{name}")[1])["model_version_status"]
    assert row["state"] == "END"
    assert row["status"]["error_code"] == code
    assert message in row["status"]["error_message"]
    if records is None:
        assert row["status"]["error_message"].endswith(
            "Please verify your warmup data is in TFRecord format."
        )


@pytest.mark.slow
@contract("12", "enable_model_warmup=false skips it")
@contract("11", "without a monitoring file there are no metrics")
@contract("3", "saved_model_tags choose the meta graph")
def test_without_warm_up(folder, tmp_path):
    flags = (
        f"--model_base_path={folder / 'm'}",
        "--enable_model_warmup=false",
        "--saved_model_tags=serve",
    )
    with ServerProcess(*flags, log=tmp_path / "log") as server:
        answer = server.client().predict("default", {}, signature="count")
        assert answer.outputs["n"].int_val[0] == 0
        assert server.client().ask("GET", PATH)[0] == 404


@contract("11", "request_count by requested name and status; also of GET and of unknown names")
@contract("11", "request_latency of successful requests, by API and entrypoint")
@contract("11", "runtime_latency, example counts, warm-up and load metrics")
def test_what_is_counted(server, folder):
    client = server.client()
    client.reload(config_text(m=folder / "m"))
    assert until(lambda: client.available("m") == [1])
    before = _series(server)
    client.predict("m", {"x": np.float32([1])})
    client.rest("m", {"instances": [1.0, 2.0]})
    client.ask("GET", "/v1/models/m")
    client.rest("unknown", {"instances": [1.0]})
    failure(client.predict, "unknown2", {"x": np.float32([1])})
    client.ask("GET", "/v1/nothing")
    request = regression_pb2.RegressionRequest()
    request.model_spec.name, request.model_spec.signature_name = "m", "regress"
    for _ in range(3):
        request.input.example_list.examples.add()
    client.predict_stub.Regress(request)
    after = _series(server)

    def grown(key: str) -> float:
        return after.get(key, 0) - before.get(key, 0)

    count = ":tensorflow:serving:request_count"
    assert grown(f'{count}{{model_name="m",status="OK"}}') == 4
    assert grown(f'{count}{{model_name="unknown",status="NOT_FOUND"}}') == 1
    assert grown(f'{count}{{model_name="unknown2",status="NOT_FOUND"}}') == 1
    assert grown(f'{count}{{model_name="",status="INVALID_ARGUMENT"}}') == 1
    latency = ":tensorflow:serving:request_latency_count"
    for api, entry in (("Predict", "GRPC"), ("predict", "REST"), ("Regress", "GRPC"), ("", "REST")):
        key = f'{latency}{{model_name="m",API="{api}",entrypoint="{entry}"}}'
        assert grown(key) == 1, key
    runtime = ":tensorflow:serving:runtime_latency_count"
    assert grown(f'{runtime}{{model_name="m",API="Predict",runtime="TF1"}}') == 2
    assert grown(':tensorflow:serving:request_example_count_total{model="m"}') == 3
    assert grown(':tensorflow:serving:request_example_counts_count{model="m"}') == 1
    path = folder / "m" / "1"
    assert after[
        f':tensorflow:serving:model_warmup_latency_count{{model_path="{path}",status="success"}}'
    ]
    loads = ":tensorflow:cc:saved_model:load"
    assert after[f'{loads}_attempt_count{{model_path="{path}",status="success"}}'] >= 1
    assert after[f'{loads}_latency{{model_path="{path}"}}'] > 0


@contract(
    "11", "text format: TYPE lines, no HELP, cumulative buckets with limits 10, 18, 32.4, ..."
)
@contract("11", "the path must match exactly; a query string gives 400")
def test_the_text_form(server):
    client = server.client()
    client.predict("m", {"x": np.float32([1])})
    _, text = client.ask("GET", PATH)
    assert client.headers["Content-Type"].startswith("text/plain")
    assert "# HELP" not in text
    assert "# TYPE :tensorflow:serving:request_count counter" in text
    assert "# TYPE :tensorflow:serving:request_latency histogram" in text
    lines = [
        line
        for line in text.splitlines()
        if line.startswith(":tensorflow:serving:request_latency_bucket")
        and 'API="Predict",entrypoint="GRPC"' in line
    ]
    limits = [line.split('le="')[1].split('"')[0] for line in lines]
    assert limits[:4] == ["10", "18", "32.4", "58.32"]
    assert limits[-1] == "+Inf"
    assert len(limits) == 34
    values = [int(line.rsplit(" ", 1)[1]) for line in lines]
    assert values == sorted(values)
    assert client.ask("GET", PATH + "?x=1")[0] == 400
    assert client.ask("GET", PATH + "/")[0] == 404
    # Characters of a name that a client chose are escaped.
    client.ask("GET", "/v1/models/a%22b%5Cc")
    assert r'model_name="a\"b\\c"' in client.ask("GET", PATH)[1]
