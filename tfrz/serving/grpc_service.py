"""The gRPC interface: `PredictionService`, `ModelService`, and gRPC's health service.

The event loop only moves bytes: a thread pool parses, runs and serialises messages.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    model_management_pb2,
    predict_pb2,
    regression_pb2,
)

from tfrz.serving import examples
from tfrz.serving import metrics as names
from tfrz.serving.configuration import model_list
from tfrz.serving.manager import ModelManager
from tfrz.serving.metrics import Metrics
from tfrz.serving.model import Call
from tfrz.serving.status import RequestError, code_name, invalid
from tfrz.serving.tensors import from_proto, to_proto

logger = logging.getLogger(__name__)

# gRPC's own default of 4 MiB would refuse what production takes.
UNLIMITED = [
    ("grpc.max_receive_message_length", 2**31 - 1),
    ("grpc.max_send_message_length", 2**31 - 1),
]
PREDICTION_SERVICE = "tensorflow.serving.PredictionService"
MODEL_SERVICE = "tensorflow.serving.ModelService"

# A parsed request and its call to an answer.
Method = Callable[[Any, Call], Any]


def _wanted(request: Any) -> tuple[str, int | None, str | None]:
    if not request.HasField("model_spec"):
        raise invalid("Missing ModelSpec")
    spec = request.model_spec
    choice = spec.WhichOneof("version_choice")
    version = spec.version.value if choice == "version" else None
    return spec.name, version, spec.version_label if choice == "version_label" else None


def _describe(spec: Any, name: str, signature: str, number: int) -> None:
    """Fills the `ModelSpec` of a response: the requested names, and the version that was used."""
    spec.name, spec.signature_name, spec.version.value = name, signature, number


class PredictionService:
    """`tensorflow.serving.PredictionService`."""

    def __init__(self, manager: ModelManager, metrics: Metrics) -> None:
        self._manager, self._metrics = manager, metrics

    def predict(self, request: Any, call: Call) -> Any:
        """Runs a signature."""
        name, version, label = _wanted(request)
        with self._manager.use(name, version, label) as (number, model):
            signature = request.model_spec.signature_name or "serving_default"
            model.signature(signature)
            inputs = {key: from_proto(key, value) for key, value in request.inputs.items()}
            outputs = model.run(signature, inputs, list(request.output_filter), call)
        answer = predict_pb2.PredictResponse()
        _describe(answer.model_spec, name, signature, number)
        for key, value in outputs.items():
            to_proto(value, answer.outputs[key])
        return answer

    def classify(self, request: Any, call: Call) -> Any:
        """Returns the labels and scores of examples."""
        answer = classification_pb2.ClassificationResponse()
        self._on_examples(request, answer, examples.classify, call)
        return answer

    def regress(self, request: Any, call: Call) -> Any:
        """Returns the values of examples."""
        answer = regression_pb2.RegressionResponse()
        self._on_examples(request, answer, examples.regress, call)
        return answer

    def _on_examples(
        self, request: Any, answer: Any, method: Callable[..., Any], call: Call
    ) -> None:
        name, version, label = _wanted(request)
        signature = request.model_spec.signature_name or "serving_default"
        rows = examples.serialized(request.input)
        with self._manager.use(name, version, label) as (number, model):
            answer.result.CopyFrom(method(model, signature, rows, call))
        _describe(answer.model_spec, name, signature, number)
        self._count_examples(name, len(rows))

    def _count_examples(self, name: str, rows: int) -> None:
        self._metrics.observe(names.EXAMPLE_COUNTS, name, value=rows)
        self._metrics.count(names.EXAMPLE_COUNT_TOTAL, name, by=rows)

    def multi_inference(self, request: Any, call: Call) -> Any:
        """Runs several signatures of one version on the same examples."""
        if not request.tasks:
            raise invalid("ModelSpec has no name specified.")
        name, version, label = _wanted(request.tasks[0])
        with self._manager.use(name, version, label) as (number, model):
            answer = examples.multi_inference(model, request, call)
        for result in answer.results:
            _describe(result.model_spec, name, result.model_spec.signature_name, number)
        rows = request.input.example_list_with_context.examples
        self._count_examples(name, len(rows or request.input.example_list.examples))
        return answer

    def get_model_metadata(self, request: Any, call: Call) -> Any:
        """Returns the signatures of a model."""
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


class ModelService:
    """`tensorflow.serving.ModelService`."""

    def __init__(self, manager: ModelManager) -> None:
        self._manager = manager

    def get_model_status(self, request: Any, call: Call) -> Any:
        """Returns the versions of a model; a label is ignored."""
        name, version, _ = _wanted(request)
        answer = get_model_status_pb2.GetModelStatusResponse()
        for number, state, code, message in self._manager.status(name, version):
            row = answer.model_version_status.add(version=number, state=state)
            row.status.error_code, row.status.error_message = code, message
        return answer

    def handle_reload_config_request(self, request: Any, call: Call) -> Any:
        """Replaces the list of models, and waits for those that are new."""
        new = self._manager.apply(model_list(request.config))
        try:
            self._manager.wait_available(new, deadline=call.deadline)
        except RequestError as error:
            raise RequestError(
                error.code, error.message.replace("servable(s)", "model(s)")
            ) from error
        answer = model_management_pb2.ReloadConfigResponse()
        answer.status.error_code = 0
        return answer


def _methods(
    manager: ModelManager, metrics: Metrics
) -> dict[str, dict[str, tuple[Any, Method, bool]]]:
    """By service and name: the request's message, the method, and whether to count requests."""
    prediction, models = PredictionService(manager, metrics), ModelService(manager)
    return {
        PREDICTION_SERVICE: {
            "Predict": (predict_pb2.PredictRequest, prediction.predict, True),
            "Classify": (classification_pb2.ClassificationRequest, prediction.classify, True),
            "Regress": (regression_pb2.RegressionRequest, prediction.regress, True),
            "MultiInference": (
                inference_pb2.MultiInferenceRequest,
                prediction.multi_inference,
                False,
            ),
            "GetModelMetadata": (
                get_model_metadata_pb2.GetModelMetadataRequest,
                prediction.get_model_metadata,
                False,
            ),
        },
        MODEL_SERVICE: {
            "GetModelStatus": (
                get_model_status_pb2.GetModelStatusRequest,
                models.get_model_status,
                False,
            ),
            "HandleReloadConfigRequest": (
                model_management_pb2.ReloadConfigRequest,
                models.handle_reload_config_request,
                False,
            ),
        },
    }


class GrpcSurface:
    """Both services, from bytes to bytes.

    Args:
      manager: the models.
      metrics: where to count.
      threads: number of parallel calls; more are refused.
    """

    def __init__(self, manager: ModelManager, metrics: Metrics, threads: int) -> None:
        self._metrics, self._threads = metrics, threads
        self._methods = _methods(manager, metrics)
        self._pool = ThreadPoolExecutor(threads, "grpc")
        self._busy = 0

    def close(self) -> None:
        """Stops the threads."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def answer(
        self, service: str, method: str, data: bytes, deadline: float | None = None
    ) -> bytes:
        """Returns the response to one call.

        Args:
          service: full name.
          method: name.
          data: the request's message.
          deadline: by the monotonic clock.

        Raises:
          RequestError: with the codes and messages of the contract.
        """
        message, function, counted = self._methods[service][method]
        start = time.perf_counter()
        request = message()
        try:
            try:
                request.ParseFromString(data)
            except Exception as error:  # DecodeError, whichever protobuf implementation
                raise RequestError(grpc.StatusCode.INTERNAL, "") from error
            answer: bytes = function(request, Call(method, deadline)).SerializeToString()
        except RequestError as error:
            if counted:
                self._metrics.count(
                    names.REQUEST_COUNT, request.model_spec.name, code_name(error.code)
                )
            raise
        if counted:
            name = request.model_spec.name
            microseconds = 1e6 * (time.perf_counter() - start)
            self._metrics.count(names.REQUEST_COUNT, name, "OK")
            self._metrics.observe(names.REQUEST_LATENCY, name, method, "GRPC", value=microseconds)
        return answer

    def _release(self, _: object) -> None:
        self._busy -= 1

    def _handler(self, service: str, method: str) -> Callable[..., Any]:
        async def handler(data: bytes, context: grpc.aio.ServicerContext) -> bytes:
            # A call that its client gave up may still be running: its thread counts.
            if self._busy >= self._threads:
                await context.abort(
                    grpc.StatusCode.RESOURCE_EXHAUSTED, "Concurrent RPC limit exceeded!"
                )
            left = context.time_remaining()
            deadline = None if left is None else time.monotonic() + left
            loop = asyncio.get_running_loop()
            work = self._pool.submit(self.answer, service, method, data, deadline)
            self._busy += 1
            work.add_done_callback(lambda _: loop.call_soon_threadsafe(self._release, None))
            try:
                return await asyncio.wrap_future(work)
            except RequestError as error:
                await context.abort(error.code, error.grpc_message)
            except Exception as error:  # a call must not end the server
                logger.exception("%s failed", method)
                await context.abort(grpc.StatusCode.INTERNAL, str(error)[:1024])
            raise AssertionError("abort raises")

        return handler

    def make_server(self, options: Sequence[tuple[str, Any]] = ()) -> grpc.aio.Server:
        """Returns a server of both services without a port; call it within the event loop."""
        server = grpc.aio.server(
            options=[*UNLIMITED, ("grpc.so_reuseport", 0), *options],
            # For gRPC a call ends slightly after its client has the response. Our own count is
            # exact; this one bounds what is read in the meantime.
            maximum_concurrent_rpcs=2 * self._threads + 16,
        )
        for service, methods in self._methods.items():
            handlers = {
                name: grpc.unary_unary_rpc_method_handler(self._handler(service, name))
                for name in methods
            }
            generic = grpc.method_handlers_generic_handler(service, handlers)
            server.add_generic_rpc_handlers((generic,))
        return server


async def add_health_service(server: grpc.aio.Server) -> Any:
    """Adds the standard health service for `""` and both services; returns its servicer."""
    from grpc_health.v1 import health, health_pb2, health_pb2_grpc

    servicer = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    for name in ("", "ModelService", "PredictionService"):
        await servicer.set(name, health_pb2.HealthCheckResponse.SERVING)
    return servicer
