"""Warm-up requests, which TF Serving runs before a version receives traffic."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import tensorflow as tf

WARMUP_FILE = "tf_serving_warmup_requests"


def write_warmup(
    version_directory: Path, serialized_examples: Sequence[bytes], model_name: str
) -> None:
    """Writes `assets.extra/tf_serving_warmup_requests`.

    Args:
      version_directory: the SavedModel.
      serialized_examples: raw `tf.Example`s; batches of 1, 2, 4, ... of them become requests to
        `serving_default`, so that graphs of the usual batch sizes are traced and allocated.
      model_name: recorded in the requests; TF Serving does not check it.
    """
    from tensorflow_serving.apis import model_pb2, predict_pb2, prediction_log_pb2

    if not serialized_examples:
        return
    folder = version_directory / "assets.extra"
    folder.mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(folder / WARMUP_FILE)) as writer:
        size = 1
        while size <= len(serialized_examples):
            request = predict_pb2.PredictRequest(
                model_spec=model_pb2.ModelSpec(name=model_name, signature_name="serving_default"),
                inputs={"examples": tf.make_tensor_proto(list(serialized_examples[:size]))},
            )
            log = prediction_log_pb2.PredictionLog(
                predict_log=prediction_log_pb2.PredictLog(request=request)
            )
            writer.write(log.SerializeToString())
            size *= 2
