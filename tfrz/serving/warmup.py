"""Warm-up: the requests stored beside a SavedModel are run before it takes traffic."""

from __future__ import annotations

import grpc
import tensorflow as tf
from tensorflow_serving.apis import prediction_log_pb2

from tfrz.serving.model import LoadedModel
from tfrz.serving.status import RequestError
from tfrz.serving.tensors import from_proto

_MAX_RECORDS = 1000


def warm_up(model: LoadedModel) -> int:
    """Runs the stored `Predict` requests; returns how many there were.

    Raises:
      RequestError: a request failed, or the file is not what it should be. The version must then
        not be served.
    """
    path = model.path / "assets.extra" / "tf_serving_warmup_requests"
    if not path.is_file():
        return 0
    count = 0
    try:
        for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
            count += 1
            if count > _MAX_RECORDS:
                raise RequestError(
                    grpc.StatusCode.INVALID_ARGUMENT,
                    f"Number of warmup records exceeds the maximum ({_MAX_RECORDS}) at {path}",
                )
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
    if kind != "predict_log":
        number = log.DESCRIPTOR.fields_by_name[kind].number if kind else 0
        raise RequestError(
            grpc.StatusCode.UNIMPLEMENTED, f"Unsupported log_type for warmup: {number}"
        )
    request = log.predict_log.request
    inputs = {name: from_proto(name, proto) for name, proto in request.inputs.items()}
    model.run(request.model_spec.signature_name, inputs, list(request.output_filter))
