"""The gRPC interface: `PredictionService` and `ModelService`."""

from __future__ import annotations

from collections.abc import Callable
from concurrent import futures
from typing import Any

import grpc
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
    regression_pb2,
)

from tfrz.serving import examples
from tfrz.serving.manager import ModelManager
from tfrz.serving.status import RequestError, invalid
from tfrz.serving.tensors import from_proto, to_proto

# gRPC's own default of 4 MiB would refuse what production takes.
UNLIMITED = [
    ("grpc.max_receive_message_length", 2**31 - 1),
    ("grpc.max_send_message_length", 2**31 - 1),
]


def _wanted(request: Any) -> tuple[str, int | None, str | None]:
    if not request.HasField("model_spec"):
        raise invalid("Missing ModelSpec")
    spec = request.model_spec
    choice = spec.WhichOneof("version_choice")
    version = spec.version.value if choice == "version" else None
    return spec.name, version, spec.version_label if choice == "version_label" else None


def _answering(function: Callable[[Any, Any], Any]) -> Callable[[Any, Any, Any], Any]:
    """A handler whose `RequestError`s become statuses."""

    def handler(self: Any, request: Any, context: grpc.ServicerContext) -> Any:
        try:
            return function(self, request)
        except RequestError as error:
            context.abort(error.code, error.grpc_message)

    return handler


def _describe(spec: Any, name: str, signature: str, number: int) -> None:
    """Fills the `ModelSpec` of an answer: what was asked, and the version that answered."""
    spec.name, spec.signature_name, spec.version.value = name, signature, number


class PredictionService(prediction_service_pb2_grpc.PredictionServiceServicer):
    """`tensorflow.serving.PredictionService`."""

    def __init__(self, manager: ModelManager) -> None:
        self._manager = manager

    @_answering
    def Predict(self, request: Any) -> Any:
        """Runs a signature."""
        name, version, label = _wanted(request)
        with self._manager.use(name, version, label) as (number, model):
            signature = request.model_spec.signature_name or "serving_default"
            model.signature(signature)
            inputs = {key: from_proto(key, value) for key, value in request.inputs.items()}
            outputs = model.run(signature, inputs, list(request.output_filter))
        answer = predict_pb2.PredictResponse()
        _describe(answer.model_spec, name, signature, number)
        for key, value in outputs.items():
            answer.outputs[key].CopyFrom(to_proto(value))
        return answer

    @_answering
    def Classify(self, request: Any) -> Any:
        """Labels and scores of examples."""
        answer = classification_pb2.ClassificationResponse()
        self._on_examples(request, answer, examples.classify)
        return answer

    @_answering
    def Regress(self, request: Any) -> Any:
        """Values of examples."""
        answer = regression_pb2.RegressionResponse()
        self._on_examples(request, answer, examples.regress)
        return answer

    def _on_examples(self, request: Any, answer: Any, method: Callable[..., Any]) -> None:
        name, version, label = _wanted(request)
        signature = request.model_spec.signature_name or "serving_default"
        rows = examples.serialized(request.input)
        with self._manager.use(name, version, label) as (number, model):
            answer.result.CopyFrom(method(model, signature, rows))
        _describe(answer.model_spec, name, signature, number)

    @_answering
    def MultiInference(self, request: Any) -> Any:
        """Several signatures of one version on the same examples."""
        if not request.tasks:
            raise invalid("ModelSpec has no name specified.")
        name, version, label = _wanted(request.tasks[0])
        rows = examples.serialized(request.input)
        answer = inference_pb2.MultiInferenceResponse()
        seen: set[str] = set()
        with self._manager.use(name, version, label) as (number, model):
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
                    found = examples.classify(model, signature, rows)
                    result.classification_result.CopyFrom(found)
                elif task.method_name == "tensorflow/serving/regress":
                    result.regression_result.CopyFrom(examples.regress(model, signature, rows))
                else:
                    raise RequestError(
                        grpc.StatusCode.UNIMPLEMENTED,
                        f"Unsupported signature method_name: {task.method_name}",
                    )
                _describe(result.model_spec, name, signature, number)
        return answer

    @_answering
    def GetModelMetadata(self, request: Any) -> Any:
        """The signatures of a model."""
        if not request.metadata_field:
            raise invalid("GetModelMetadataRequest must specify at least one metadata_field")
        for field in request.metadata_field:
            if field != "signature_def":
                raise invalid(f"Metadata field {field} is not supported")
        name, version, label = _wanted(request)
        signatures = get_model_metadata_pb2.SignatureDefMap()
        with self._manager.use(name, version, label) as (number, model):
            for key, signature in model.signatures.items():
                signatures.signature_def[key].CopyFrom(signature)
        answer = get_model_metadata_pb2.GetModelMetadataResponse()
        answer.model_spec.name = name
        answer.model_spec.version.value = number
        answer.metadata["signature_def"].Pack(signatures)
        return answer


class ModelService(model_service_pb2_grpc.ModelServiceServicer):
    """`tensorflow.serving.ModelService`; what is not here answers UNIMPLEMENTED."""

    def __init__(self, manager: ModelManager) -> None:
        self._manager = manager

    @_answering
    def GetModelStatus(self, request: Any) -> Any:
        """The versions of a model."""
        name, version, _ = _wanted(request)
        answer = get_model_status_pb2.GetModelStatusResponse()
        for number, state, code, message in self._manager.status(name, version):
            row = answer.model_version_status.add(version=number, state=state)
            row.status.error_code, row.status.error_message = code, message
        return answer


def make_grpc_server(manager: ModelManager, threads: int) -> grpc.Server:
    """A gRPC server with both services; not yet bound to a port."""
    server = grpc.server(
        futures.ThreadPoolExecutor(threads, "grpc"),
        options=[*UNLIMITED, ("grpc.so_reuseport", 0)],
        maximum_concurrent_rpcs=threads,
    )
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(
        PredictionService(manager), server
    )
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(ModelService(manager), server)
    return server
