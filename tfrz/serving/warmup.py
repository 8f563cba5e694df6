"""Warm-up: runs the requests stored with a SavedModel before it serves traffic."""

from __future__ import annotations

import grpc
import tensorflow as tf
from tensorflow_serving.apis import prediction_log_pb2

from tfrz.serving import examples
from tfrz.serving.model import Call, LoadedModel
from tfrz.serving.status import RequestError
from tfrz.serving.tensors import from_proto

_MAX_RECORDS = 1000


def warm_up(model: LoadedModel, iterations: int = 1) -> int:
    """Runs the stored requests.

    Args:
      model: loaded, without traffic yet.
      iterations: how often each request runs.

    Returns:
      The number of stored requests.

    Raises:
      RequestError: a request failed, or the file is invalid. The version must then not be served.
    """
    path = tf.io.gfile.join(model.path, "assets.extra", "tf_serving_warmup_requests")
    if not tf.io.gfile.exists(path):
        return 0
    count = 0
    try:
        for record in tf.data.TFRecordDataset(path).as_numpy_iterator():
            count += 1
            if count > _MAX_RECORDS:
                raise RequestError(
                    grpc.StatusCode.INVALID_ARGUMENT,
                    f"Number of warmup records exceeds the maximum ({_MAX_RECORDS}) at {path}",
                )
            for _ in range(iterations):
                _run(model, record)
    except tf.errors.DataLossError as error:
        raise RequestError(
            grpc.StatusCode.DATA_LOSS,
            f"{error.message}, Please verify your warmup data is in TFRecord format.",
        ) from error
    return count


def _run(model: LoadedModel, record: bytes) -> None:
    log = prediction_log_pb2.PredictionLog()
    try:
        log.ParseFromString(record)
    except Exception as error:  # DecodeError, whichever protobuf implementation
        raise RequestError(
            grpc.StatusCode.INVALID_ARGUMENT, f"Failed to parse warmup record: {error}"
        ) from error
    kind = log.WhichOneof("log_type")
    if kind == "predict_log":
        predict = log.predict_log.request
        inputs = {name: from_proto(name, proto) for name, proto in predict.inputs.items()}
        model.run(predict.model_spec.signature_name, inputs, list(predict.output_filter))
    elif kind == "classify_log":
        request = log.classify_log.request
        rows = examples.serialized(request.input)
        examples.classify(model, request.model_spec.signature_name, rows)
    elif kind == "regress_log":
        request = log.regress_log.request
        rows = examples.serialized(request.input)
        examples.regress(model, request.model_spec.signature_name, rows)
    elif kind == "multi_inference_log" and log.multi_inference_log.request.tasks:
        examples.multi_inference(model, log.multi_inference_log.request, Call("MultiInference"))
    else:
        number = log.DESCRIPTOR.fields_by_name[kind].number if kind else 0
        raise RequestError(
            grpc.StatusCode.UNIMPLEMENTED, f"Unsupported log_type for warmup: {number}"
        )
