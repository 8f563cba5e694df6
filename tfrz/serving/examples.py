"""Classify and Regress: from `tf.Example`s to labels, scores or values (contract 6.2, 7.6)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import grpc
import numpy as np
import tensorflow as tf
from google.protobuf import text_format
from tensorflow_serving.apis import (
    classification_pb2,
    inference_pb2,
    input_pb2,
    regression_pb2,
)

from tfrz.serving import json_tensors
from tfrz.serving.model import Call, LoadedModel, dtype_word
from tfrz.serving.status import RequestError, invalid

_INT64 = range(-(2**63), 2**63)
_UINT64_END = 2**64


def serialized(request: input_pb2.Input) -> np.ndarray:
    """Returns the examples of an `Input` as serialised strings, prefixed with the context, if any.

    Raises:
      RequestError: INVALID_ARGUMENT, there is no example.
    """
    prefix, examples = b"", request.example_list.examples
    if request.WhichOneof("kind") == "example_list_with_context":
        prefix = request.example_list_with_context.context.SerializeToString()
        examples = request.example_list_with_context.examples
    if not examples:
        raise invalid("Input is empty.")
    array = np.empty(len(examples), object)
    # Concatenated messages are merged when they are parsed: both sets of features are present.
    array[:] = [prefix + example.SerializeToString() for example in examples]
    return array


def _signature(model: LoadedModel, name: str, kind: str) -> tuple[str, Any]:
    """Returns the signature after checking its input."""
    name = name or "serving_default"
    if name not in model.signatures:
        raise invalid(f"No signature was found with the name: {name}")
    signature = model.signatures[name]
    method = f"tensorflow/serving/{'classify' if kind == 'classification' else 'regress'}"
    if model.check_method_names and signature.method_name != method:
        raise invalid(
            f"Expected {kind} signature method_name to be {method}. Was: {signature.method_name}"
        )
    if len(signature.inputs) != 1:
        raise invalid("Expected one input Tensor.")
    if "inputs" not in signature.inputs:
        raise invalid(f"No {kind} inputs found in SignatureDef: {_show(signature)}")
    return name, signature


def _show(signature: Any) -> str:
    return str(text_format.MessageToString(signature, as_one_line=True))


def _shape(array: np.ndarray) -> str:
    return "[" + ",".join(map(str, array.shape)) + "]"


def classify(
    model: LoadedModel,
    name: str,
    examples: np.ndarray,
    call: Call = Call("Classify"),  # noqa: B008  (it cannot change)
) -> classification_pb2.ClassificationResult:
    """Returns the labels and scores of every example.

    Args:
      model: a loaded version.
      name: of a signature with the input `inputs` and the outputs `classes` (string,
        `[batch, n]`), `scores` (float, `[batch, n]`) or both; the empty name is `serving_default`.
      examples: of `serialized`.
      call: the request.

    Raises:
      RequestError: with the messages of the contract.
    """
    name, signature = _signature(model, name, "classification")
    if len(signature.outputs) not in (1, 2):
        raise invalid(f"Expected one or two output Tensors, found {len(signature.outputs)}")
    wanted = [key for key in ("classes", "scores") if key in signature.outputs]
    if not wanted:
        raise invalid(
            "Expected classification signature outputs to contain at least one of "
            f'"classes" or "scores". Signature was: {_show(signature)}'
        )
    outputs = model.run(name, {"inputs": examples}, wanted, call)
    kinds = {"classes": (object, "DT_STRING"), "scores": (np.dtype(np.float32), "DT_FLOAT")}
    for key, array in outputs.items():
        if array.ndim != 2:
            raise invalid(
                f"Expected Tensor shape: [batch_size num_classes] but got {_shape(array)}"
            )
        expected, word = kinds[key]
        if array.dtype != expected:
            got = "string" if array.dtype == object else dtype_word(tf.as_dtype(array.dtype))
            raise invalid(f"Expected {key} Tensor of {word}. Got: DT_{got.upper()}")
        if len(array) != len(examples):
            raise invalid(f"Expected {key} output batch size of {len(examples)}. Got: {len(array)}")
    labels, scores = outputs.get("classes"), outputs.get("scores")
    if labels is not None and scores is not None and labels.shape != scores.shape:
        raise invalid(
            f"Tensors class and score should match in dim_size(1). Got {labels.shape[1]} vs. "
            f"{scores.shape[1]}"
        )
    answer = classification_pb2.ClassificationResult()
    width = next(iter(outputs.values())).shape[1]
    for row in range(len(examples)):
        classes = answer.classifications.add().classes
        for column in range(width):
            one = classes.add()
            if labels is not None:
                one.label = labels[row, column]
            if scores is not None:
                one.score = scores[row, column]
    return answer


def regress(
    model: LoadedModel,
    name: str,
    examples: np.ndarray,
    call: Call = Call("Regress"),  # noqa: B008  (it cannot change)
) -> regression_pb2.RegressionResult:
    """Returns the value of every example.

    Args:
      model: a loaded version.
      name: of a signature with the input `inputs` and the output `outputs` (float, `[batch]` or
        `[batch, 1]`); the empty name is `serving_default`.
      examples: of `serialized`.
      call: the request.

    Raises:
      RequestError: with the messages of the contract.
    """
    name, signature = _signature(model, name, "regression")
    if len(signature.outputs) != 1:
        raise invalid("Expected one output Tensor.")
    if "outputs" not in signature.outputs:
        raise invalid(f"No regression outputs found in SignatureDef: {_show(signature)}")
    values = model.run(name, {"inputs": examples}, call=call)["outputs"]
    if values.ndim != 1 and not (values.ndim == 2 and values.shape[1] == 1):
        raise invalid(
            "Expected output Tensor shape to be either [batch_size] or [batch_size, 1] but got "
            f"{_shape(values)}"
        )
    if values.dtype != np.float32:
        got = "string" if values.dtype == object else dtype_word(tf.as_dtype(values.dtype))
        raise invalid(f"Expected output Tensor of DT_FLOAT. Got: DT_{got.upper()}")
    if len(values) != len(examples):
        raise invalid(
            f"Input batch size did not match output batch size: {len(examples)} vs. {len(values)}"
        )
    answer = regression_pb2.RegressionResult()
    for value in values.reshape(-1):
        answer.regressions.add(value=value)
    return answer


def multi_inference(
    model: LoadedModel, request: inference_pb2.MultiInferenceRequest, call: Call
) -> inference_pb2.MultiInferenceResponse:
    """Runs several signatures of one version on the same examples.

    Returns:
      The results in the order of the tasks; their `model_spec`s have the signature only.

    Raises:
      RequestError: with the messages of the contract.
    """
    name = request.tasks[0].model_spec.name
    rows = serialized(request.input)
    answer = inference_pb2.MultiInferenceResponse()
    seen: set[str] = set()
    for task in request.tasks:
        if task.model_spec.name != name:
            raise invalid(
                "All ModelSpecs in a MultiInferenceRequest must access the same model name."
            )
        signature = task.model_spec.signature_name or "serving_default"
        if signature in seen:
            raise invalid(f"Duplicate evaluation of signature: {signature}")
        seen.add(signature)
        if signature not in model.signatures:
            raise invalid(f"Requested signature not found in model graph: {signature}")
        result = answer.results.add()
        if task.method_name == "tensorflow/serving/classify":
            found = classify(model, signature, rows, call)
            result.classification_result.CopyFrom(found)
        elif task.method_name == "tensorflow/serving/regress":
            result.regression_result.CopyFrom(regress(model, signature, rows, call))
        else:
            raise RequestError(
                grpc.StatusCode.UNIMPLEMENTED,
                f"Unsupported signature method_name: {task.method_name}",
            )
        result.model_spec.signature_name = signature
    return answer


# JSON.


def _feature(name: str, value: Any, feature: tf.train.Feature) -> None:
    """One JSON value, or a list of one kind, as a feature; the value decides the kind."""
    kind = ""
    for element in value if isinstance(value, list) else [value]:
        converted: Any
        if isinstance(element, str) or (isinstance(element, dict) and "b64" in element):
            found, converted = "string", json_tensors.to_array(element, tf.string)[()]
        elif isinstance(element, int):
            found, converted = "int64", int(element)
            if element not in _INT64:
                if 0 < element < _UINT64_END:
                    raise invalid(
                        f"Feature: {name} has uint64_t element. Only int64_t is supported."
                    )
                found, converted = "float", float(np.float32(float(element)))
        elif isinstance(element, float):
            with np.errstate(over="ignore"):
                found, converted = "float", float(np.float32(element))
        else:
            raise invalid(
                f"Feature: {name} has element with unexpected JSON type: "
                f"{json_tensors.type_name(element)}"
            )
        if kind and found != kind:
            raise invalid(f"Unexpected element type in feature: {name} expecting type: {kind}")
        kind = found
        stored = {
            "string": feature.bytes_list,
            "int64": feature.int64_list,
            "float": feature.float_list,
        }[kind]
        stored.value.append(converted)


def _fill(value: Any, example: tf.train.Example) -> None:
    if not isinstance(value, dict):
        raise invalid(f"Example must be JSON object but got JSON {json_tensors.type_name(value)}")
    # The message exists even without features, so that an empty example counts.
    example.features.SetInParent()
    for name, content in value.items():
        try:
            name.encode()
        except UnicodeEncodeError as error:
            raise invalid(f"Feature: {name} has a name that is not UTF-8") from error
        _feature(name, content, example.features.feature[name])


def input_from_json(document: Mapping[str, Any]) -> input_pb2.Input:
    """The `Input` of a REST request with `examples` and perhaps `context`.

    Raises:
      RequestError: INVALID_ARGUMENT; the text names classify for regress too, as in production.
    """
    if "examples" not in document:
        raise invalid(
            f"JSON Value: {json_tensors.show(document)} When method is classify, key 'examples' is "
            "expected and was not found"
        )
    rows = document["examples"]
    if not isinstance(rows, list):
        raise invalid(
            f"JSON Value: {json_tensors.show(document)} Expecting 'examples' value to be an "
            "list/array"
        )
    if not rows:
        raise invalid(
            f"JSON Value: {json_tensors.show(document)} 'examples' value is an empty array"
        )
    made = input_pb2.Input()
    if "context" in document:
        _fill(document["context"], made.example_list_with_context.context)
        examples = made.example_list_with_context.examples
    else:
        examples = made.example_list.examples
    for row in rows:
        _fill(row, examples.add())
    return made


def _answer(texts: list[str]) -> bytes:
    return f'{{"results": [{", ".join(texts)}]}}'.encode("utf-8", "surrogateescape")


def classify_answer(result: classification_pb2.ClassificationResult) -> bytes:
    """`{"results": [[["label", score], ...], ...]}`."""
    classes = [one for row in result.classifications for one in row.classes]
    scores = iter(json_tensors.numbers(np.array([one.score for one in classes], np.float32)))
    return _answer(
        [
            "["
            + ", ".join(
                f"[{json.dumps(one.label, ensure_ascii=False)}, {next(scores)}]"
                for one in row.classes
            )
            + "]"
            for row in result.classifications
        ]
    )


def regress_answer(result: regression_pb2.RegressionResult) -> bytes:
    """`{"results": [value, ...]}`."""
    values = np.array([one.value for one in result.regressions], np.float32)
    return _answer(json_tensors.numbers(values))
