"""The server against the contract: worked examples, errors, versions, types."""

from __future__ import annotations

import base64
import gzip
import json
import socket

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    predict_pb2,
)

from tests.tfrz.serving.harness import (
    ServerProcess,
    config_text,
    contract,
    free_port,
    half_plus,
    save,
)
from tfrz.errors import InputError
from tfrz.serving.server import Server, ServerConfig
from tfrz.serving.status import RequestError


def _ranker() -> tf.Module:
    module = tf.Module()

    @tf.function(
        input_signature=[
            tf.TensorSpec([None], tf.int64, name="user_id"),
            tf.TensorSpec([None, 3], tf.int64, name="item_ids"),
        ]
    )
    def rank(user_id, item_ids):
        return {
            "scores": tf.cast(item_ids, tf.float32) / 8.0,
            "user": tf.identity(user_id),
            "item_bytes": tf.fill(tf.shape(user_id), b"hi\xff"),
        }

    module.f = rank
    return module


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A client of a server of `half_plus_two` version 123 and `ranker` version 1."""
    folder = tmp_path_factory.mktemp("models")
    save(half_plus(2.0), folder / "half_plus_two" / "00000123")
    (folder / "half_plus_two" / "notes.txt").write_text("ignored")
    (folder / "half_plus_two" / "tmp-export").mkdir()
    module = _ranker()
    save(module, folder / "ranker" / "1", rank=module.f)
    config = folder / "models.config"
    config.write_text(config_text(half_plus_two=folder / "half_plus_two", ranker=folder / "ranker"))
    with ServerProcess(f"--model_config_file={config}", log=folder / "log") as server:
        yield server.client()


HALF = "/v1/models/half_plus_two"


@contract("7.5", "row and column form of predict: responses and error messages")
@contract("16", "the worked examples over HTTP")
@pytest.mark.parametrize(
    ("path", "body", "status", "answer"),
    [
        (f"{HALF}:predict", {"instances": [1.0, 2.0, 5.0]}, 200, {"predictions": [2.5, 3.0, 4.5]}),
        (
            f"{HALF}/versions/123:predict",
            {"inputs": {"x": [1.0, 2.0]}},
            200,
            {"outputs": [2.5, 3.0]},
        ),
        (
            f"{HALF}:predict",
            {"signature_name": "serving_default", "instances": [{"x": 2}]},
            200,
            {"predictions": [3.0]},
        ),
        (
            "/v1/models/half:predict",
            {"instances": [1.0]},
            404,
            {"error": "Servable not found for request: Latest(half)"},
        ),
        (
            f"{HALF}/versions/7:predict",
            {"instances": [1.0]},
            404,
            {"error": "Servable not found for request: Specific(half_plus_two, 7)"},
        ),
        (
            f"{HALF}/labels/stable:predict",
            {"instances": [1.0]},
            400,
            {"error": "Unrecognized servable version label: stable"},
        ),
        (
            f"{HALF}:predict",
            {"signature_name": "no", "instances": [1.0]},
            400,
            {"error": 'Serving signature name: "no" not found in signature def'},
        ),
        (
            f"{HALF}:predict",
            {"inputs": {"z": 1.0}},
            400,
            {"error": "Missing named input: x in 'inputs' object."},
        ),
        (f"{HALF}:predict", {"inputs": 4.0}, 200, {"outputs": 4.0}),
        (f"{HALF}:predict", {"inputs": []}, 200, {"outputs": []}),
        (
            f"{HALF}:predict",
            {"instances": [{"x": 1.0, "z": 2}]},
            400,
            {
                "error": "Failed to process element: 0 key: z of 'instances' list. Error: "
                "INVALID_ARGUMENT: JSON object: does not have named input: z"
            },
        ),
        (
            f"{HALF}:predict",
            {"instances": ["a"]},
            400,
            {
                "error": "Failed to process element: 0 of 'instances' list. Error: INVALID_ARGUMENT: "
                'JSON Value: "a" Type: String is not of expected type: float'
            },
        ),
        (
            f"{HALF}:predict",
            {"inputs": ["a"]},
            400,
            {"error": 'JSON Value: "a" Type: String is not of expected type: float'},
        ),
        (
            f"{HALF}:predict",
            {"inputs": [True]},
            400,
            {"error": "JSON Value: true Type: True is not of expected type: float"},
        ),
        (f"{HALF}:predict", {}, 400, {"error": "Missing 'inputs' or 'instances' key"}),
        (
            f"{HALF}:predict",
            {"instances": [[1.0, 2.0], [1.0]]},
            400,
            {
                "error": "Failed to process element: 1 of 'instances' list. Error: INVALID_ARGUMENT: "
                "Expecting tensor size: 2 but got: 1"
            },
        ),
        (
            f"{HALF}:predict",
            {"inputs": [[1.0, 2.0], [1.0]]},
            400,
            {"error": "Encountered list at unexpected size: 1 at level: 1 expected size: 2"},
        ),
    ],
)
def test_predict_over_http(served, path, body, status, answer):
    got, text = served.ask("POST", path, body)
    assert (got, json.loads(text)) == (status, answer)


@contract("9", "bodies that are empty, not JSON, not an object, or have trailing content")
@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "JSON Parse error: The document is empty"),
        (b"[1]", "JSON Value: [\n    1\n] Is not object"),
        (b"{", "JSON Parse error: "),
        (b'{"instances": [1.0]} x', "JSON Parse error: "),
    ],
)
def test_bodies_that_are_no_request(served, body, message):
    status, text = served.ask("POST", f"{HALF}:predict", body)
    assert status == 400
    assert json.loads(text)["error"].startswith(message)


@contract(
    "7.1",
    "other paths and methods: 404 outside /v1/, Malformed request inside; model paths in any case, verbs in lower case",
)
@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", f"{HALF}:predict", 400),
        ("POST", HALF, 400),
        ("GET", f"{HALF}/", 400),
        ("PUT", f"{HALF}:predict", 400),
        ("DELETE", HALF, 400),
        ("POST", f"{HALF}:Predict", 400),
        ("GET", "/v1/MODELS/half_plus_two", 400),
        ("GET", "/metrics", 404),
    ],
)
def test_other_paths_and_methods(served, method, path, status):
    got, text = served.ask(method, path)
    if path == "/v1/MODELS/half_plus_two":
        assert got == 200
        return
    assert got == status
    if status == 400:
        assert json.loads(text)["error"] == f"Malformed request: {method} {path}"


@contract("7.2", "gzip bodies are decompressed; an invalid one counts as empty")
def test_gzip_bodies_are_unpacked_and_broken_ones_are_empty(served):
    body = gzip.compress(json.dumps({"instances": [2.0]}).encode())
    headers = {"Content-Encoding": "gzip"}
    client = served
    assert client.ask("POST", f"{HALF}:predict", body, headers)[0] == 200
    status, text = client.ask("POST", f"{HALF}:predict", b"no gzip", headers)
    assert (status, json.loads(text)["error"]) == (400, "JSON Parse error: The document is empty")


@contract(
    "8",
    "floats: six digits if they give the same value, else all; .0 on whole numbers; bare NaN and Infinity",
)
def test_numbers_are_written_as_the_contract_has_them(served):
    values = [2.0, -3.8, 1111111.0, -3.99994, 17999996.0, float("inf"), float("nan")]
    _, text = served.ask("POST", f"{HALF}:predict", {"inputs": values})
    assert text.startswith('{"outputs": [3.0, ')
    assert text.endswith(", 555557.5, 3.0040741e-05, 9e+06, Infinity, NaN]}")
    written = text.removeprefix('{"outputs": [').split(", ")
    exact = (0.5 * np.array(values[:5], "float32") + 2.0).astype("float32")
    for token, value in zip(written, exact, strict=False):
        assert np.float32(token) == value
        assert "." in token or "e" in token


@contract(
    "7.5",
    "several outputs are named, a single one is not; 64-bit integers keep all digits; ..._bytes outputs are base64; extra columns are ignored",
)
def test_several_outputs_large_integers_and_bytes(served):
    row = {"user_id": 9007199254740993, "item_ids": [2, 1, 4]}
    encoded = {"b64": base64.b64encode(b"hi\xff").decode()}
    client = served
    _, text = client.ask(
        "POST", "/v1/models/ranker:predict", {"signature_name": "rank", "instances": [row]}
    )
    assert json.loads(text) == {
        "predictions": [
            {"scores": [0.25, 0.125, 0.5], "user": 9007199254740993, "item_bytes": encoded}
        ]
    }
    _, text = client.ask(
        "POST",
        "/v1/models/ranker:predict",
        {"inputs": {"user_id": [1], "item_ids": [[2, 1, 4]], "surplus": 1}},
    )
    assert json.loads(text)["outputs"]["scores"] == [[0.25, 0.125, 0.5]]


@contract("9", "row form: the keys that a row must have; plain values need a single input")
def test_row_form_names_what_is_missing(served):
    status, text = served.ask("POST", "/v1/models/ranker:predict", {"instances": [{"user_id": 1}]})
    assert status == 400
    assert json.loads(text)["error"].endswith("keys must be equal to: item_ids,user_id")
    status, text = served.ask("POST", "/v1/models/ranker:predict", {"instances": [1]})
    assert "instances is a plain list" in json.loads(text)["error"]


@contract("8", "of duplicate keys the first counts")
def test_for_a_key_given_twice_the_first_counts(served):
    body = b'{"instances": [1.0], "instances": [2.0]}'
    _, text = served.ask("POST", f"{HALF}:predict", body)
    assert json.loads(text) == {"predictions": [2.5]}


@contract("7.4", "bodies of status and metadata, and the errors of unknown models and versions")
def test_status_and_metadata_over_http(served):
    client = served
    status, text = client.ask("GET", HALF)
    assert (status, json.loads(text)) == (
        200,
        {
            "model_version_status": [
                {
                    "version": "123",
                    "state": "AVAILABLE",
                    "status": {"error_code": "OK", "error_message": ""},
                }
            ]
        },
    )
    assert client.ask("GET", f"{HALF}/versions/9")[0] == 404
    assert json.loads(client.ask("GET", "/v1/models/no")[1])["error"] == (
        "Could not find any versions of model no"
    )
    metadata = json.loads(client.ask("GET", f"{HALF}/metadata")[1])
    assert metadata["model_spec"] == {
        "name": "half_plus_two",
        "signature_name": "",
        "version": "123",
    }
    default = metadata["metadata"]["signature_def"]["signature_def"]["serving_default"]
    assert default["inputs"]["x"] == {
        "dtype": "DT_FLOAT",
        "tensor_shape": {"dim": [{"size": "-1", "name": ""}], "unknown_rank": False},
        "name": "serving_default_x:0",
    }
    assert default["method_name"] == "tensorflow/serving/predict"


@contract(
    "6.1",
    "responses fill the typed field and leave tensor_content empty; model_spec has the signature and the version",
)
@contract("16", "the worked example over gRPC")
def test_predict_over_grpc_answers_in_typed_fields(served):
    answer = served.predict("half_plus_two", {"x": np.float32([1.0, 2.0])})
    assert list(answer.outputs["y"].float_val) == [2.5, 3.0]
    assert answer.outputs["y"].tensor_content == b""
    assert answer.model_spec.signature_name == "serving_default"
    assert answer.model_spec.version.value == 123
    again = served.predict("half_plus_two", {"x": np.float32([1.0])}, version=123)
    assert again.outputs["y"].float_val == [2.5]


@contract(
    "6.1", "shapes are not compared with the signature; a short typed field repeats its last value"
)
def test_grpc_takes_other_shapes_and_repeats_short_fields(served):
    client = served
    answer = client.predict("half_plus_two", {"x": np.float32([[1.0], [2.0]])})
    assert [d.size for d in answer.outputs["y"].tensor_shape.dim] == [2, 1]
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "half_plus_two"
    proto = request.inputs["x"]
    proto.dtype = 1
    proto.float_val.append(1.0)
    proto.tensor_shape.dim.add(size=3)
    assert list(client.predict_stub.Predict(request).outputs["y"].float_val) == [2.5] * 3


@contract(
    "9",
    "unknown model, version, label, signature, input, output; wrong dtype; number of inputs: codes and messages over gRPC",
)
@pytest.mark.parametrize(
    ("model", "values", "spec", "code", "message"),
    [
        ("no", {"x": [1.0]}, {}, "NOT_FOUND", "Servable not found for request: Latest(no)"),
        (
            "half_plus_two",
            {"x": [1.0]},
            {"version": 0},
            "NOT_FOUND",
            "Servable not found for request: Specific(half_plus_two, 0)",
        ),
        (
            "half_plus_two",
            {"x": [1.0]},
            {"label": "stable"},
            "INVALID_ARGUMENT",
            "Unrecognized servable version label: stable",
        ),
        (
            "half_plus_two",
            {"x": [1.0]},
            {"signature": "no"},
            "FAILED_PRECONDITION",
            'Serving signature key "no" not found.',
        ),
        (
            "half_plus_two",
            {"x": ["a"]},
            {},
            "INVALID_ARGUMENT",
            "Expects arg[0] to be float but string is provided",
        ),
        (
            "half_plus_two",
            {"x": np.float64([1.0])},
            {},
            "INVALID_ARGUMENT",
            "Expects arg[0] to be float but double is provided",
        ),
        (
            "half_plus_two",
            {},
            {},
            "INVALID_ARGUMENT",
            "input size does not match signature: 0!=1 len({}) != len({x}). Sent extra: {}. "
            "Missing but required: {x}.",
        ),
        (
            "half_plus_two",
            {"z": [1.0]},
            {},
            "INVALID_ARGUMENT",
            "Signature input alias: x(feed name: serving_default_x:0) not found in request and no "
            "default value provided. Inputs expected to be in the request {x}",
        ),
        (
            "half_plus_two",
            {"x": [1.0]},
            {"outputs": ["q"]},
            "INVALID_ARGUMENT",
            "output tensor alias not found in signature: q Outputs expected to be in the set {y}.",
        ),
        (
            "half_plus_two",
            {"x": [1.0]},
            {"outputs": ["y", "y"]},
            "INVALID_ARGUMENT",
            "duplicate output tensor alias: y",
        ),
        ("", {"x": [1.0]}, {}, "INVALID_ARGUMENT", "ModelSpec has no name specified."),
    ],
)
def test_errors_over_grpc(served, model, values, spec, code, message):
    values = {
        k: np.float32(v) if isinstance(v, list) and v and isinstance(v[0], float) else v
        for k, v in values.items()
    }
    with pytest.raises(grpc.RpcError) as error:
        served.predict(model, values, **spec)
    assert error.value.code().name == code
    assert error.value.details().startswith(message)


@contract("6.1", "output_filter: only the requested outputs")
def test_an_output_filter_leaves_the_others_out(served):
    values = {"user_id": np.int64([1]), "item_ids": np.int64([[1, 2, 3]])}
    answer = served.predict("ranker", values, outputs=["user"])
    assert list(answer.outputs) == ["user"]


@contract("6.5", "GetModelMetadata returns a SignatureDefMap in an Any")
@contract("6.6", "GetModelStatus: rows, and Missing ModelSpec")
def test_status_and_metadata_over_grpc(served):
    client = served
    request = get_model_status_pb2.GetModelStatusRequest()
    with pytest.raises(grpc.RpcError, match="Missing ModelSpec"):
        client.model_stub.GetModelStatus(request)
    request.model_spec.name = "half_plus_two"
    (row,) = client.model_stub.GetModelStatus(request).model_version_status
    assert (row.version, row.state) == (123, 30)
    wanted = get_model_metadata_pb2.GetModelMetadataRequest()
    wanted.model_spec.name = "half_plus_two"
    wanted.metadata_field.append("signature_def")
    answer = client.predict_stub.GetModelMetadata(wanted)
    signatures = get_model_metadata_pb2.SignatureDefMap()
    assert answer.metadata["signature_def"].Unpack(signatures)
    assert "serving_default" in signatures.signature_def


@contract("14", "gRPC messages beyond gRPC's default of 4 MiB, in both directions")
def test_messages_beyond_four_mebibytes_pass(served):
    many = np.ones(2_000_000, "float32")
    answer = served.predict("half_plus_two", {"x": many})
    assert len(answer.outputs["y"].float_val) == 2_000_000


def test_what_cannot_be_served_is_told_in_one_line(tmp_path):
    base = tmp_path / "m"
    base.mkdir()
    with pytest.raises(RequestError, match="No versions of servable m found"):
        Server(ServerConfig("m", str(base), 0, free_port()))
    save(half_plus(2.0), base / "1")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"cannot listen on .*{port}"):
            Server(ServerConfig("m", str(base), 0, port))
        with pytest.raises(InputError, match=f"cannot listen on .*{port}"):
            Server(ServerConfig("m", str(base), port, 0))
