"""The gRPC interface: `Predict`, `GetModelMetadata` and `GetModelStatus`."""

from __future__ import annotations

from collections.abc import Callable
from concurrent import futures
from typing import Any

import grpc
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

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


class PredictionService(prediction_service_pb2_grpc.PredictionServiceServicer):
    """`tensorflow.serving.PredictionService`; what is not here answers UNIMPLEMENTED."""

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
        answer.model_spec.name = name
        answer.model_spec.signature_name = signature
        answer.model_spec.version.value = number
        for key, value in outputs.items():
            answer.outputs[key].CopyFrom(to_proto(value))
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
