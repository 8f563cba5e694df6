"""Classify, Regress and MultiInference over real sockets, with the standard stubs."""

from __future__ import annotations

import json
import urllib.error
import urllib.request

import grpc
import pytest
import tensorflow as tf
from tensorflow_serving.apis import (
    classification_pb2,
    inference_pb2,
    prediction_service_pb2_grpc,
    regression_pb2,
)

from tests.tfrz.serving.harness import ServerProcess, contract


class _Model(tf.Module):
    """x and a context c: score x + c; labels `low` and `high`."""

    def _sum(self, inputs):
        parsed = tf.io.parse_example(
            inputs,
            {
                "x": tf.io.FixedLenFeature([], tf.float32),
                "c": tf.io.FixedLenFeature([], tf.float32, 0.0),
            },
        )
        return parsed["x"] + parsed["c"]

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="inputs")])
    def classify(self, inputs):
        score = self._sum(inputs)
        labels = tf.tile(tf.constant([["low", "high"]]), [tf.shape(score)[0], 1])
        return {"classes": labels, "scores": tf.stack([-score, score], axis=1)}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="inputs")])
    def scores_only(self, inputs):
        return {"scores": self._sum(inputs)[:, None]}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="inputs")])
    def regress(self, inputs):
        return {"outputs": self._sum(inputs)}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="inputs")])
    def column(self, inputs):
        return {"outputs": self._sum(inputs)[:, None]}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="inputs")])
    def wide(self, inputs):
        return {"outputs": tf.ones([tf.shape(inputs)[0], 3])}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="inputs")])
    def short(self, inputs):
        return {"outputs": tf.ones([1])}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="examples")])
    def other(self, examples):
        return {"outputs": self._sum(examples)}


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A server on that model; its REST address and a stub."""
    folder = tmp_path_factory.mktemp("examples")
    module = _Model()
    names = ("classify", "scores_only", "regress", "column", "wide", "short", "other")
    signatures = {name: getattr(module, name) for name in names}
    signatures["serving_default"] = module.regress
    tf.saved_model.save(module, str(folder / "m" / "3"), signatures=signatures)
    flags = (f"--model_base_path={folder / 'm'}", "--model_name=m")
    with ServerProcess(*flags, log=folder / "log") as server:
        with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
            yield f"http://127.0.0.1:{server.rest_port}/v1/models/m", stub


def _post(address, verb, document):
    request = urllib.request.Request(f"{address}:{verb}", json.dumps(document).encode())
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())["error"]


@contract(
    "7.6",
    "classify and regress: JSON values determine the kind of feature; context; forms of responses",
)
@pytest.mark.parametrize(
    ("verb", "document", "answer"),
    [
        ("regress", {"examples": [{"x": 1.5}, {"x": 2.0}]}, '{"results": [1.5, 2.0]}'),
        ("regress", {"signature_name": "column", "examples": [{"x": 0.1}]}, '{"results": [0.1]}'),
        (
            "regress",
            {"context": {"c": 10.0}, "examples": [{"x": 1.0}, {"x": [2.0]}]},
            '{"results": [11.0, 12.0]}',
        ),
        (
            "classify",
            {"signature_name": "classify", "examples": [{"x": 0.5}]},
            '{"results": [[["low", -0.5], ["high", 0.5]]]}',
        ),
        (
            "classify",
            {"signature_name": "scores_only", "examples": [{"x": 0.5}, {"x": 1.0}]},
            '{"results": [[["", 0.5]], [["", 1.0]]]}',
        ),
    ],
)
def test_answers_over_http(served, verb, document, answer):
    assert _post(served[0], verb, document) == (200, answer)


@contract("9", "classify and regress: errors of signature, examples and features")
@pytest.mark.parametrize(
    ("verb", "document", "message"),
    [
        ("regress", {}, "JSON Value: {} When method is classify, key 'examples' is expected"),
        ("classify", {"examples": 1}, "Expecting 'examples' value to be an list/array"),
        ("classify", {"examples": []}, "'examples' value is an empty array"),
        ("classify", {"examples": [1]}, "Example must be JSON object but got JSON Number"),
        (
            "regress",
            {"examples": [{"x": None}]},
            "Feature: x has element with unexpected JSON type",
        ),
        ("regress", {"examples": [{"x": [[1.0]]}]}, "unexpected JSON type: Array"),
        (
            "regress",
            {"examples": [{"x": [1.0, "a"]}]},
            "Unexpected element type in feature: x expecting type: float",
        ),
        (
            "regress",
            {"examples": [{"x": 2**63}]},
            "Feature: x has uint64_t element. Only int64_t is supported.",
        ),
        (
            "regress",
            {"signature_name": "none", "examples": [{"x": 1.0}]},
            "No signature was found with the name: none",
        ),
        (
            "regress",
            {"signature_name": "other", "examples": [{"x": 1.0}]},
            "No regression inputs found in SignatureDef: ",
        ),
        (
            "classify",
            {"signature_name": "other", "examples": [{"x": 1.0}]},
            "No classification inputs found in SignatureDef: ",
        ),
        (
            "regress",
            {"signature_name": "classify", "examples": [{}]},
            "Expected one output Tensor.",
        ),
        (
            "regress",
            {"signature_name": "scores_only", "examples": [{"x": 1.0}]},
            "No regression outputs found in SignatureDef: ",
        ),
        (
            "classify",
            {"signature_name": "regress", "examples": [{"x": 1.0}]},
            "Expected classification signature outputs to contain at least one of "
            '"classes" or "scores". Signature was: ',
        ),
        (
            "regress",
            {"signature_name": "wide", "examples": [{"x": 1.0}, {"x": 1.0}]},
            "Expected output Tensor shape to be either [batch_size] or [batch_size, 1] but got "
            "[2,3]",
        ),
        (
            "regress",
            {"signature_name": "short", "examples": [{"x": 1.0}, {"x": 1.0}]},
            "Input batch size did not match output batch size: 2 vs. 1",
        ),
        ("regress", {"examples": [{"y": 1.0}]}, "x"),
        ("regress", {"examples": [{"x": 1}]}, "Data types don't match"),
    ],
)
def test_errors_over_http(served, verb, document, message):
    status, error = _post(served[0], verb, document)
    assert status == 400
    assert message in error


def _input(message, xs, context=None):
    for x in xs:
        kind = message.example_list_with_context if context is not None else message.example_list
        kind.examples.add().features.feature["x"].float_list.value.append(x)
    if context is not None:
        c = message.example_list_with_context.context.features.feature["c"]
        c.float_list.value.append(context)


@contract(
    "6.2",
    "Classify and Regress, with and without a context; a signature for them can be run with Predict",
)
def test_classify_and_regress_over_grpc(served):
    _, stub = served
    request = classification_pb2.ClassificationRequest()
    request.model_spec.name, request.model_spec.signature_name = "m", "classify"
    _input(request.input, [0.25, 4.0])
    answer = stub.Classify(request, timeout=30)
    spec = answer.model_spec
    assert (spec.name, spec.version.value, spec.signature_name) == ("m", 3, "classify")
    rows = [[(c.label, c.score) for c in row.classes] for row in answer.result.classifications]
    assert rows == [[("low", -0.25), ("high", 0.25)], [("low", -4.0), ("high", 4.0)]]

    regression = regression_pb2.RegressionRequest()
    regression.model_spec.name = "m"
    _input(regression.input, [1.0, 2.0], context=0.5)
    values = stub.Regress(regression, timeout=30)
    assert [r.value for r in values.result.regressions] == [1.5, 2.5]
    assert values.model_spec.signature_name == "serving_default"

    with pytest.raises(grpc.RpcError) as caught:
        empty = regression_pb2.RegressionRequest()
        empty.model_spec.name = "m"
        stub.Regress(empty, timeout=30)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.details() == "Input is empty."


def _tasks(*tasks):
    request = inference_pb2.MultiInferenceRequest()
    for model, signature, method in tasks:
        task = request.tasks.add(method_name=f"tensorflow/serving/{method}")
        task.model_spec.name, task.model_spec.signature_name = model, signature
    _input(request.input, [1.0])
    return request


@contract("6.3", "MultiInference: results in the order of the tasks, from one version")
def test_multi_inference(served):
    _, stub = served
    tasks = _tasks(("m", "classify", "classify"), ("m", "regress", "regress"))
    first, second = stub.MultiInference(tasks, timeout=30).results
    assert first.classification_result.classifications[0].classes[1].score == 1.0
    assert second.regression_result.regressions[0].value == 1.0
    assert second.model_spec.version.value == 3


@contract(
    "6.3",
    "MultiInference: no tasks, different models, a signature twice or unknown, no examples, other methods",
)
@pytest.mark.parametrize(
    ("tasks", "code", "message"),
    [
        ([], "INVALID_ARGUMENT", "ModelSpec has no name specified."),
        (
            [("m", "regress", "regress"), ("n", "classify", "classify")],
            "INVALID_ARGUMENT",
            "All ModelSpecs in a MultiInferenceRequest must access the same model name.",
        ),
        (
            [("m", "regress", "regress")] * 2,
            "INVALID_ARGUMENT",
            "Duplicate evaluation of signature: regress",
        ),
        (
            [("m", "none", "regress")],
            "INVALID_ARGUMENT",
            "Requested signature not found in model graph: none",
        ),
        (
            [("m", "regress", "predict")],
            "UNIMPLEMENTED",
            "Unsupported signature method_name: tensorflow/serving/predict",
        ),
    ],
)
def test_errors_of_multi_inference(served, tasks, code, message):
    with pytest.raises(grpc.RpcError) as caught:
        served[1].MultiInference(_tasks(*tasks), timeout=30)
    assert (caught.value.code().name, caught.value.details()) == (code, message)
