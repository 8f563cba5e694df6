"""Batching: equal answers, joined runs, limits and errors, over real sockets."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tensorflow as tf

from tests.tfrz.serving.harness import ServerProcess, config_text, contract, failure, save


class _Model(tf.Module):
    def __init__(self):
        super().__init__()
        self.w = tf.Variable(tf.random.stateless_normal([4, 3], [1, 2]))

    @tf.function(
        input_signature=[
            tf.TensorSpec([None, None], name="x"),
            tf.TensorSpec([None], tf.int64, name="id"),
            tf.TensorSpec([None], tf.string, name="s"),
        ]
    )
    def f(self, x, id, s):
        return {
            "y": tf.tanh(tf.matmul(x[:, :4], self.w)),
            "id": id + 2**53,
            "s": tf.strings.join([s, s]),
            "rows": tf.fill([tf.shape(x)[0]], tf.shape(x)[0]),
            "width": tf.fill([tf.shape(x)[0]], tf.shape(x)[1]),
        }

    @tf.function(input_signature=[tf.TensorSpec([None], name="x")])
    def scalar(self, x):
        return {"y": tf.reduce_sum(x)}

    @tf.function(input_signature=[tf.TensorSpec([None], name="x")])
    def uneven(self, x):
        return {"y": tf.concat([x, x], 0)}

    @tf.function(input_signature=[])
    def nothing(self):
        return {"y": tf.constant([1])}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("batching")
    module = _Model()
    names = ("scalar", "uneven", "nothing")
    save(module, folder / "m" / "1", **{name: getattr(module, name) for name in names})
    return folder


def _serve(folder, parameters: str, *more: str, models: str | None = None) -> ServerProcess:
    key = abs(hash((parameters, more)))
    file = folder / f"batching-{key}"
    file.write_text(parameters)
    monitoring = folder / "monitoring"
    monitoring.write_text('prometheus_config { enable: true path: "/m" }')
    config = folder / f"models-{key}"
    config.write_text(models or config_text(m=folder / "m"))
    return ServerProcess(
        f"--model_config_file={config}",
        "--enable_batching",
        f"--batching_parameters_file={file}",
        f"--monitoring_config_file={monitoring}",
        "--grpc_max_threads=64",
        *more,
        log=folder / f"log-{key}",
    )


@pytest.fixture(scope="module")
def server(folder):
    parameters = (
        "max_batch_size { value: 16 } batch_timeout_micros { value: 200000 } "
        "max_enqueued_batches { value: 100 } num_batch_threads { value: 2 } "
        'thread_pool_name { value: "pool" }'
    )
    with _serve(folder, parameters) as server:
        yield server


def _values(rows: int, seed: int = 0, width: int = 4) -> dict:
    random = np.random.default_rng(seed)
    return {
        "x": random.normal(size=[rows, width]).astype("f"),
        "id": random.integers(0, 99, rows),
        "s": np.array([b"\xff%d" % i for i in range(rows)], object),
    }


def _together(server, requests: list[dict], **spec) -> list[dict]:
    """The answers to requests that are sent at the same time."""
    client = server.client()

    def ask(values: dict) -> dict:
        outputs = client.predict("m", values, **spec).outputs
        return {key: tf.make_ndarray(value) for key, value in outputs.items()}

    with ThreadPoolExecutor(len(requests)) as pool:
        return list(pool.map(ask, requests))


def _runs(server) -> int:
    text = server.client().ask("GET", "/m")[1]
    found = re.search(r"batching_session:wrapped_run_count\{\} (\d+)", text)
    return int(found[1]) if found else 0


def _by_hand(values: dict, folder) -> dict:
    from tfrz.serving.model import LoadedModel

    model = LoadedModel(folder / "m" / "1")
    found = model.run("", {k: np.asarray(v) for k, v in values.items()})
    model.close()
    return found


@contract("10", "requests that arrive together are joined, run once and split again")
@contract("10", "a batched response equals the single one (floats to 1e-5, others exactly)")
def test_joined_answers_equal_single_ones(server, folder):
    requests = [_values(rows, seed) for seed, rows in enumerate([1, 2, 1, 3, 1, 2])]
    before = _runs(server)
    answers = _together(server, requests)
    assert _runs(server) - before < len(requests)
    assert max(answer["rows"].max() for answer in answers) > 3
    for values, answer in zip(requests, answers, strict=True):
        alone = _by_hand(values, folder)
        np.testing.assert_allclose(answer["y"], alone["y"], atol=1e-5)
        assert answer["id"].tolist() == alone["id"].tolist()
        assert answer["s"].tolist() == alone["s"].tolist()


@contract("10", "HTTP requests are joined with gRPC ones of the same tensors")
def test_http_is_batched_too(server):
    body = {"instances": [{"x": [1.0, 2.0, 3.0, 4.0], "id": 1, "s": "a"}]}

    def ask(_):
        status, document = server.client().rest("m", body)
        assert status == 200, document
        return document["predictions"][0]["rows"]

    with ThreadPoolExecutor(6) as pool:
        assert max(pool.map(ask, range(6))) > 1


@contract("10", "only requests for the same outputs are joined")
def test_other_outputs_are_not_joined(server):
    client = server.client()
    futures = [
        client.predict_stub.Predict.future(
            client.request("m", _values(1), outputs=["rows", other]), timeout=30
        )
        for other in ("id", "s", "y")
    ]
    assert [future.result().outputs["rows"].int_val[0] for future in futures] == [1, 1, 1]


@contract("10", "requests that cannot be batched: codes and messages")
@pytest.mark.parametrize(
    ("values", "spec", "code", "message"),
    [
        (
            _values(17),
            {},
            "INVALID_ARGUMENT",
            "Task size 17 is larger than maximum input batch size 16",
        ),
        (
            {**_values(2), "id": np.int64([1])},
            {},
            "INVALID_ARGUMENT",
            "Batching Run() input tensors must have equal 0th-dimension size",
        ),
        (
            {**_values(2), "id": np.int64(1)},
            {},
            "INVALID_ARGUMENT",
            "Batching Run() input tensors must have at least one dimension",
        ),
        (
            {},
            {"signature": "nothing"},
            "INVALID_ARGUMENT",
            "Batching Run() must have at least one input tensor",
        ),
        (
            {"x": np.float32([1])},
            {"signature": "scalar"},
            "FAILED_PRECONDITION",
            "Batched output tensor has 0 dimensions",
        ),
        (
            {"x": np.float32([1])},
            {"signature": "uneven"},
            "FAILED_PRECONDITION",
            "Batched output tensor's 0th dimension does not equal the sum of the 0th dimension "
            "sizes of the input tensors",
        ),
    ],
)
def test_what_a_batch_cannot_take(server, values, spec, code, message):
    assert failure(server.client().predict, "m", values, **spec) == (code, message)


@contract("10", "requests that differ in other dimensions all fail")
def test_shapes_that_differ(server):
    client = server.client()
    futures = [
        client.predict_stub.Predict.future(client.request("m", _values(1, width=width)), timeout=30)
        for width in (4, 5, 4)
    ]
    assert {future.code().name for future in futures} == {"FAILED_PRECONDITION"}


@contract("10", "an error of the joined run reaches every request of the batch")
def test_an_error_of_the_joined_run(server):
    client = server.client()
    futures = [
        client.predict_stub.Predict.future(client.request("m", _values(1, width=3)), timeout=30)
        for _ in range(3)
    ]
    assert {future.code().name for future in futures} == {"INVALID_ARGUMENT"}


@pytest.mark.slow
@contract("10", "allowed_batch_sizes: padded with copies of a row, which are dropped afterwards")
@contract("10", "pad_variable_length_inputs pads to the largest")
@contract(
    "10",
    "a request with zero rows if allowed_batch_sizes is set",
    deviates="refused with INVALID_ARGUMENT; the real server aborts",
)
@contract("11", "metrics of batching: joined runs and the time in the queue")
def test_allowed_sizes_and_padding(folder):
    parameters = (
        "max_batch_size { value: 8 } batch_timeout_micros { value: 200000 } "
        "allowed_batch_sizes: 4 allowed_batch_sizes: 8 pad_variable_length_inputs: true "
        'thread_pool_name { value: "pool" }'
    )
    with _serve(folder, parameters) as server:
        (answer,) = _together(server, [_values(3)])
        assert answer["rows"].tolist() == [4, 4, 4]
        answers = _together(server, [_values(1, width=4), _values(1, width=6)])
        assert {int(answer["width"][0]) for answer in answers} == {6}
        assert failure(server.client().predict, "m", _values(0))[0] == "INVALID_ARGUMENT"
        text = server.client().ask("GET", "/m")[1]
        count = (
            ':tensorflow:serving:batching_session:queuing_latency_count{thread_pool_name="pool"}'
        )
        assert f"{count} 3" in text
        assert 'queuing_latency_bucket{thread_pool_name="pool",le="100"}' in text
        assert 'queuing_latency_bucket{thread_pool_name="pool",le="120"}' in text


@pytest.mark.slow
@contract("10", "a full queue: UNAVAILABLE")
@contract("10", "a deadline that passes in the queue: RESOURCE_EXHAUSTED")
def test_a_full_queue(folder):
    parameters = (
        "max_batch_size { value: 3 } batch_timeout_micros { value: 3000000 } "
        "max_enqueued_batches { value: 1 } num_batch_threads { value: 1 }"
    )
    with _serve(folder, parameters, "--rest_api_timeout_in_ms=500") as server:
        client = server.client()
        first = client.predict_stub.Predict.future(client.request("m", _values(1)), timeout=30)
        body = {"instances": [{"x": [1.0, 2.0, 3.0, 4.0], "id": 1, "s": "a"}]}
        status, document = client.rest("m", body)
        assert (status, document["error"]) == (
            429,
            "Run() timeout exceeded while waiting in batching queue",
        )
        code, _ = failure(client.predict, "m", _values(2))
        assert code == "UNAVAILABLE"
        assert first.result().outputs["rows"].int_val[0] == 1


@pytest.mark.slow
@contract("10", "enable_large_batch_splitting: at most max_execution_batch_size rows per run")
@contract(
    "10", "per-model parameters: batching_params.pbtxt of the version, none means no batching"
)
def test_splitting_and_parameters_of_a_version(folder):
    save(_Model(), folder / "split" / "1")
    (folder / "split" / "1" / "batching_params.pbtxt").write_text(
        "max_batch_size { value: 10 } enable_large_batch_splitting { value: true } "
        "max_execution_batch_size { value: 4 }"
    )
    models = config_text(m=folder / "m", split=folder / "split")
    parameters = "max_batch_size { value: 2 } num_batch_threads { value: 2 }"
    with _serve(
        folder, parameters, "--enable_per_model_batching_parameters", models=models
    ) as server:
        client = server.client()
        rows = client.predict("split", _values(10)).outputs["rows"]
        assert list(rows.int_val) == [4] * 8 + [2] * 2
        assert client.predict("m", _values(30)).outputs["rows"].int_val[0] == 30
        assert failure(client.predict, "split", _values(11))[0] == "INVALID_ARGUMENT"


@contract("10", "the last of allowed_batch_sizes must be max_batch_size, else the start fails")
def test_allowed_sizes_that_do_not_fit():
    from tfrz.serving.batching import BatchingParameters
    from tfrz.serving.status import RequestError

    with pytest.raises(RequestError) as error:
        BatchingParameters(max_batch_size=8, allowed_batch_sizes=(2, 4))
    assert error.value.message == (
        "Last entry in allowed_batch_sizes must match max_batch_size; last entry was 4; expected 8"
    )
