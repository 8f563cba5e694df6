"""Values of every dtype, unusual signatures, paths and headers, over real sockets."""

from __future__ import annotations

import base64
import json

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import get_model_metadata_pb2, predict_pb2

from tests.tfrz.serving.harness import ServerProcess, contract, failure, save

DTYPES = (
    "float32 float64 float16 int8 int16 int32 int64 uint8 uint16 uint32 uint64 bool string "
    "complex64"
).split()


class _Model(tf.Module):
    def __init__(self):
        super().__init__()
        self.calls = tf.Variable(0, dtype=tf.int32)

    @tf.function(input_signature=[tf.TensorSpec([None], name="x"), tf.TensorSpec([], name="k")])
    def f(self, x, k=tf.constant(3.0)):
        return {"y": x * k}

    @tf.function(input_signature=[])
    def nothing(self):
        return {"y": tf.constant([1, 2])}

    @tf.function(input_signature=[])
    def count(self):
        return {"n": self.calls.assign_add(1)[None]}

    @tf.function(input_signature=[tf.TensorSpec(None, name="a")])
    def product(self, a):
        return {"y": tf.matmul(a, tf.ones([3, 2]))}

    @tf.function(input_signature=[tf.TensorSpec([None], name="x")])
    def scalar(self, x):
        return {"y": tf.reduce_sum(x)}

    @tf.function(input_signature=[tf.TensorSpec([None], name="x")])
    def uneven(self, x):
        return {"y": x, "z": tf.concat([x, x], 0)}

    @tf.function(
        input_signature=[tf.TensorSpec([None], tf.string), tf.TensorSpec([None], tf.string)]
    )
    def texts(self, plain, other):
        return {"plain": tf.identity(plain), "other_bytes": tf.identity(other)}


def _identity(dtype: str):
    @tf.function(input_signature=[tf.TensorSpec(None, tf.dtypes.as_dtype(dtype), name="x")])
    def identity(x):
        return {"y": tf.identity(x)}

    return identity


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    folder = tmp_path_factory.mktemp("values")
    module = _Model()
    # What a signature uses must hang on the module.
    module.identities = {dtype: _identity(dtype) for dtype in DTYPES}
    names = ("nothing", "count", "product", "scalar", "uneven", "texts")
    save(
        module,
        folder / "v" / "7",
        **{name: getattr(module, name) for name in names},
        **module.identities,
    )
    flags = (
        f"--model_base_path={folder / 'v'}",
        "--model_name=v",
        "--rest_api_enable_cors_support",
    )
    with ServerProcess(*flags, log=folder / "log") as server:
        yield server.client()


def _signature(client, name: str, body: dict):
    return client.rest("v", {"signature_name": name, **body})


@contract("6.1", "every dtype passes over gRPC, in tensor_content and in typed fields")
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_over_grpc(client, dtype):
    if dtype == "string":
        value = np.array([b"a", b"\xff\x00", b""], object)
    elif dtype == "bool":
        value = np.array([True, False])
    elif dtype == "complex64":
        value = np.array([1 + 2j, -3.5j], "complex64")
    else:
        value = np.array([0, 1, 100]).astype(dtype)
    answer = client.predict("v", {"x": value}, signature=dtype).outputs["y"]
    assert answer.tensor_content == b""
    assert tf.make_ndarray(answer).tolist() == value.tolist()
    # The typed fields in, as they came out.
    request = client.request("v", {}, signature=dtype)
    request.inputs["x"].CopyFrom(answer)
    again = client.predict_stub.Predict(request).outputs["y"]
    assert again == answer


@contract("6.1", "an empty typed field means zeros")
def test_an_empty_typed_field_is_zeros(client):
    request = client.request("v", {}, signature="int64")
    proto = request.inputs["x"]
    proto.dtype = tf.int64.as_datatype_enum
    proto.tensor_shape.dim.add(size=3)
    assert list(client.predict_stub.Predict(request).outputs["y"].int64_val) == [0, 0, 0]


@contract("6.1", "a TensorProto that cannot be decoded: tensor parsing error: <name>")
@pytest.mark.parametrize("case", ["no dtype", "wrong length"])
def test_tensors_that_do_not_decode(client, case):
    request = client.request("v", {}, signature="float32")
    proto = request.inputs["x"]
    if case == "wrong length":
        proto.dtype = 1
        proto.tensor_content = b"abc"
        proto.tensor_shape.dim.add(size=1)
    else:
        proto.float_val.append(1.0)
    assert failure(client.predict_stub.Predict, request) == (
        "INVALID_ARGUMENT",
        "tensor parsing error: x",
    )


@contract("6.1", "a missing input takes the signature's default; not over HTTP")
def test_defaults_of_a_signature(client):
    answer = client.predict("v", {"x": np.float32([1, 2])})
    assert list(answer.outputs["y"].float_val) == [3.0, 6.0]
    answer = client.predict("v", {"x": np.float32([1]), "k": np.float32(5)})
    assert list(answer.outputs["y"].float_val) == [5.0]
    status, document = client.rest("v", {"inputs": {"x": [1.0]}})
    assert (status, document["error"]) == (400, "Missing named input: k in 'inputs' object.")


@contract("6.1", "missing, extra and misnamed inputs: the messages of steps 1, 2 and 4")
@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"x": [1.0], "k": 1.0, "z": 1.0},
            "input size does not match signature: 3!=2 len({k,x,z}) != len({k,x}). "
            "Sent extra: {z}. Missing but required: {}.",
        ),
        (
            {"k": 1.0},
            "Signature input alias: x(feed name: serving_default_x:0) not found in request and "
            "no default value provided. Inputs expected to be in the request {k,x}, or default "
            "input alias set: k",
        ),
        (
            {"x": [1.0], "z": 1.0},
            "Inputs contains invalid name. Used request inputs: x, request input: x,z",
        ),
    ],
)
def test_inputs_that_do_not_fit(client, values, message):
    values = {key: np.float32(value) for key, value in values.items()}
    assert failure(client.predict, "v", values) == ("INVALID_ARGUMENT", message)


@contract("6.1", "an operation that does not accept a shape fails with its own status and message")
def test_an_operation_that_fails(client):
    code, text = failure(client.predict, "v", {"a": np.ones([1, 2], "f")}, signature="product")
    assert code == "INVALID_ARGUMENT"
    assert text.startswith("Matrix size-incompatible: In[0]: [1,2], In[1]: [3,2]")
    status, document = _signature(client, "product", {"inputs": {"a": [[1.0, 2.0]]}})
    assert status == 400
    assert document["error"].startswith("Matrix size-incompatible: In[0]: [1,2], In[1]: [3,2]")


@contract("6.1", "a signature without inputs runs; variables that it assigns keep their value")
def test_a_signature_without_inputs_and_with_state(client):
    assert list(client.predict("v", {}, signature="nothing").outputs["y"].int_val) == [1, 2]
    first = client.predict("v", {}, signature="count").outputs["n"].int_val[0]
    assert client.predict("v", {}, signature="count").outputs["n"].int_val[0] == first + 1


@contract("7.5", "a signature without inputs cannot be called over HTTP")
def test_a_signature_without_inputs_over_http(client):
    status, document = _signature(client, "nothing", {"inputs": {}})
    assert (status, document["error"]) == (400, "Failed to get input map for signature: nothing")


@contract("7.5", "row form needs the same number of rows in every output; column form does not")
def test_outputs_without_rows(client):
    assert _signature(client, "scalar", {"instances": [1.0, 2.0]}) == (
        400,
        {"error": "Tensor name: y has no shape information "},
    )
    assert _signature(client, "scalar", {"inputs": [1.0, 2.0]}) == (200, {"outputs": 3.0})
    status, document = _signature(client, "uneven", {"instances": [1.0, 2.0]})
    assert status == 400
    assert document["error"] in (
        "Tensor name: z has inconsistent batch size: 4 expecting: 2",
        "Tensor name: y has inconsistent batch size: 2 expecting: 4",
    )
    status, document = _signature(client, "uneven", {"inputs": [1.0]})
    assert document == {"outputs": {"y": [1.0], "z": [1.0, 1.0]}}


@contract("8", "what each dtype accepts and how it is written")
@pytest.mark.parametrize(
    ("dtype", "sent", "answer"),
    [
        ("float32", "[1, 2.5, -3e2]", "[1.0, 2.5, -300.0]"),
        ("float32", "[Inf, -Inf, Infinity, -Infinity, NaN]", None),
        ("float32", "[1e39, -1e39, 1e400]", "[Infinity, -Infinity, Infinity]"),
        ("float32", "[0.1, 0.333333343]", "[0.1, 0.333333343]"),
        ("float64", "[0.1, 1e300]", "[0.1, 1e+300]"),
        ("int32", "[2147483647, -2147483648]", "[2147483647, -2147483648]"),
        ("int8", "[300, -129]", "[44, 127]"),
        ("uint8", "[256]", "[0]"),
        ("int16", "[32768]", "[-32768]"),
        ("int64", "[9223372036854775807]", "[9223372036854775807]"),
        ("uint32", "[4294967295]", "[4294967295]"),
        ("uint64", "[18446744073709551615]", "[18446744073709551615]"),
        ("bool", "[true, false]", "[true, false]"),
        ("string", '["a", {"b64": "aGk="}, {"b64": "aGk"}]', '["a", "hi", "hi"]'),
        ("float32", "[]", "[]"),
        ("float32", "[[[1.0]], [[2.0]]]", "[[[1.0]], [[2.0]]]"),
    ],
)
def test_json_values(client, dtype, sent, answer):
    body = f'{{"signature_name": "{dtype}", "inputs": {sent}}}'.encode()
    status, text = client.ask("POST", "/v1/models/v:predict", body)
    assert status == 200, text
    expected = answer or "[Infinity, -Infinity, Infinity, -Infinity, NaN]"
    assert text == f'{{"outputs": {expected}}}'


@contract("8", "what each dtype refuses")
@pytest.mark.parametrize(
    ("dtype", "sent", "message"),
    [
        ("float32", '["1"]', 'JSON Value: "1" Type: String is not of expected type: float'),
        ("float32", "[null]", "JSON Value: null Type: Null is not of expected type: float"),
        ("float64", "[true]", "JSON Value: true Type: True is not of expected type: double"),
        ("int32", "[1.0]", "JSON Value: 1.0 Type: Number is not of expected type: int32"),
        ("int32", "[2147483648]", "JSON Value: 2147483648 Type: Number is not of expected"),
        ("int64", "[9223372036854775808]", "JSON Value: 9223372036854775808 Type: Number"),
        ("uint32", "[-1]", "JSON Value: -1 Type: Number is not of expected type: uint32"),
        ("bool", "[1]", "JSON Value: 1 Type: Number is not of expected type: bool"),
        ("string", "[1]", "JSON Value: 1 Type: Number is not of expected type: string"),
        ("string", '[{"b64": "%%"}]', "Unable to base64 decode"),
        ("string", '[{"b64": "\u00ba"}]', "Unable to base64 decode"),
        ("string", r'["\ud800"]', "JSON Parse error: The surrogate pair in string is invalid."),
        ("string", '[{"b64": "aGk=", "more": 1}]', "JSON Value: {"),
        ("float32", "[1.0, [2.0]]", "Encountered list at unexpected level: 1 expected < 1"),
        ("float32", "[[1.0], 2.0]", "JSON Value: 2.0 found at incorrect level: 2 in the JSON DOM"),
        ("float32", "[[1.0, 2.0], [3.0]]", "Encountered list at unexpected size: 1 at level: 1"),
    ],
)
def test_json_values_refused(client, dtype, sent, message):
    body = f'{{"signature_name": "{dtype}", "inputs": {sent}}}'.encode()
    status, text = client.ask("POST", "/v1/models/v:predict", body)
    assert status == 400, text
    assert json.loads(text)["error"].startswith(message)


@contract("8", "half and complex: 501 in column form, wrapped and 400 in row form")
def test_dtypes_that_json_cannot_carry(client):
    status, document = _signature(client, "float16", {"inputs": [1.0]})
    assert status == 501
    assert document["error"] == "Conversion of JSON Value: 1.0 to type: half"
    status, document = _signature(client, "complex64", {"instances": [1.0]})
    assert status == 400
    assert document["error"].startswith("Failed to process element: 0 of 'instances' list. Error:")


@contract("8", "strings are bytes: written as they are, or as base64 if the name ends in _bytes")
def test_bytes_in_and_out(client):
    raw = base64.b64encode(b"\xff\xfe").decode()
    row = {"plain": "ü", "other": {"b64": raw}}
    status, document = _signature(client, "texts", {"instances": [row]})
    assert (status, document) == (
        200,
        {"predictions": [{"plain": "ü", "other_bytes": {"b64": raw}}]},
    )


@contract("9", "forms that are neither rows nor columns")
@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            {"instances": [1.0], "inputs": [1.0]},
            " Not formatted correctly expecting only one of 'inputs' or 'instances' keys to exist ",
        ),
        ({"signature_name": 1, "instances": []}, " not formatted correctly. 'signature_name' key"),
        ({"signature_name": "float32", "instances": 1}, " Expecting 'instances' to be an list/arr"),
        ({"signature_name": "float32", "instances": []}, " No values in 'instances' array"),
        (
            {"inputs": [1.0]},
            "inputs is a plain value/list, but expecting an object as multiple input tensors",
        ),
        (
            {"signature_name": "float32", "instances": [{"x": 1.0}, 2.0]},
            "Expecting object but got list at item 1 of input list",
        ),
        (
            {"signature_name": "float32", "instances": [2.0, {"x": 1.0}]},
            "Expecting value/list but got object at item 1 of input list",
        ),
        (
            {"signature_name": "float32", "instances": [[1.0, 2.0, 3.0], [[1.0, 2.0, 3.0]]]},
            "Failed to process element: 1 of 'instances' list. Error: INVALID_ARGUMENT: Expecting "
            "shape [3] but got: [1,3]",
        ),
    ],
)
def test_forms_that_are_wrong(client, body, message):
    status, document = client.rest("v", body)
    assert status == 400
    assert message in document["error"]


@contract("9", "the order of checks: JSON, signature_name, model, signature, form")
def test_the_order_of_checks(client):
    wrong = {"signature_name": 1, "instances": 1}
    assert "JSON Parse error" in client.rest("no", b"{")[1]["error"]
    assert "'signature_name' key" in client.rest("no", wrong)[1]["error"]
    assert client.rest("no", {"signature_name": "no"})[0] == 404
    assert "not found in signature def" in client.rest("v", {"signature_name": "no"})[1]["error"]


@contract(
    "14",
    "a document nested deeper than any tensor is refused",
    deviates="NumPy has 32 dimensions, TensorFlow 254: JSON nested deeper than 32 is refused (400)",
)
@pytest.mark.parametrize("depth", [33, 900, 100_000])
def test_deep_nesting(client, depth):
    body = b'{"signature_name": "float32", "inputs": ' + b"[" * depth + b"1" + b"]" * depth + b"}"
    status, text = client.ask("POST", "/v1/models/v:predict", body)
    assert (status, json.loads(text)["error"][:16]) == (400, "JSON Parse error")


@contract(
    "7.1", "percent-decoded names, version numbers beyond 64 bits, missing name, query strings"
)
def test_unusual_paths(client):
    assert client.ask("GET", "/v1/models/%76")[0] == 200
    assert client.ask("GET", f"/v1/models/v/versions/{2**63}") == (400, "")
    assert client.ask("GET", "/v1/models/v/versions/007")[0] == 200
    status, text = client.ask("GET", "/v1/models")
    assert (status, json.loads(text)) == (400, {"error": "Missing model name in request."})
    status, text = client.ask("GET", "/v1/models/v?x=1")
    assert status == 404
    status, text = client.ask("GET", "/v1/models/v/versions/x")
    assert json.loads(text) == {"error": "Malformed request: GET /v1/models/v/versions/x"}


@contract("7.1", "status by label lists all versions; metadata and verbs resolve the label")
def test_labels_in_paths(client):
    status, text = client.ask("GET", "/v1/models/v/labels/none")
    assert status == 200
    assert "AVAILABLE" in text
    status, text = client.ask("GET", "/v1/models/v/labels/none/metadata")
    assert json.loads(text) == {"error": "Unrecognized servable version label: none"}


@contract("7.1", "OPTIONS with and without an Origin; CORS headers if enabled")
def test_cors(client):
    path = "/v1/models/v:predict"
    assert client.ask("OPTIONS", path, None, {"Origin": "https://a.example"}) == (200, "")
    assert client.headers["Access-Control-Allow-Origin"] == "*"
    assert client.headers["Access-Control-Allow-Methods"] == "POST, GET"
    assert client.headers["Access-Control-Allow-Headers"] == "Content-Type"
    assert client.ask("OPTIONS", path)[0] == 400
    client.ask("GET", "/v1/models/v")
    assert client.headers["Access-Control-Allow-Origin"] == "*"


@contract("7.2", "responses are not compressed, have a length and a type, and keep the connection")
def test_headers_of_an_answer(client):
    body = {"signature_name": "float32", "instances": [1.0] * 1000}
    status, text = client.ask(
        "POST", "/v1/models/v:predict", body, {"Accept-Encoding": "gzip", "Content-Type": "x/y"}
    )
    assert status == 200
    assert client.headers["Content-Type"] == "application/json"
    assert int(client.headers["Content-Length"]) == len(text)
    assert client.headers["Content-Encoding"] is None
    assert client.headers.get("Connection", "keep-alive").lower() == "keep-alive"


@contract("6.5", "GetModelMetadata needs signature_def and nothing else; init op is listed")
def test_metadata_fields(client):
    request = get_model_metadata_pb2.GetModelMetadataRequest()
    request.model_spec.name = "v"
    call = client.predict_stub.GetModelMetadata
    assert failure(call, request) == (
        "INVALID_ARGUMENT",
        "GetModelMetadataRequest must specify at least one metadata_field",
    )
    request.metadata_field.append("other")
    assert failure(call, request) == (
        "INVALID_ARGUMENT",
        "Metadata field other is not supported",
    )
    _, text = client.ask("GET", "/v1/models/v/metadata")
    signatures = json.loads(text)["metadata"]["signature_def"]["signature_def"]
    assert "__saved_model_init_op" in signatures
    assert signatures["serving_default"]["defaults"]["k"]["float_val"] == [3.0]


@contract("6.7", "messages beyond 1024 bytes are truncated over gRPC, not over HTTP")
def test_long_messages(client):
    name = "n" * 2000
    code, text = failure(client.predict, name, {"x": np.float32([1])})
    assert code == "NOT_FOUND"
    assert len(text) == 1024 + len("...TRUNCATED")
    assert text.endswith("n...TRUNCATED")
    assert client.rest(name, {"instances": [1.0]})[1]["error"].endswith(name + ")")


@contract("5", "Missing ModelSpec, and a ModelSpec without a name")
def test_without_a_model(client):
    call = client.predict_stub.Predict
    assert failure(call, predict_pb2.PredictRequest()) == ("INVALID_ARGUMENT", "Missing ModelSpec")
    request = predict_pb2.PredictRequest()
    request.model_spec.signature_name = "x"
    assert failure(call, request) == ("INVALID_ARGUMENT", "ModelSpec has no name specified.")


@contract("6", "plain unary calls without reflection; other methods are UNIMPLEMENTED")
def test_methods_that_do_not_exist(client):
    for method in (
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        "/tensorflow.serving.PredictionService/Other",
        "/grpc.health.v1.Health/Check",
    ):
        with pytest.raises(grpc.RpcError) as error:
            client.channel.unary_unary(method)(b"", timeout=10)
        assert error.value.code().name == "UNIMPLEMENTED"
