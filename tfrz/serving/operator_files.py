"""The configuration files of a server, written from their protocol buffer messages."""

from __future__ import annotations

from collections.abc import Mapping

from google.protobuf import message, text_format
from tensorflow_serving.config import model_server_config_pb2

from tfrz.serving.protos import batching_pb2, monitoring_pb2


def operator_files(
    name: str,
    base_path: str,
    keep: int = 1,
    labels: Mapping[str, int] | None = None,
    max_batch_size: int = 256,
    batch_timeout_micros: int = 0,
) -> dict[str, str]:
    """Returns `models.config`, `batching.config` and `monitoring.config` in text format.

    Args:
      name: of the model in requests.
      base_path: folder of the versions on the server.
      keep: number of the latest versions to serve.
      labels: label to version number; if there are any, only these versions are served.
      max_batch_size: rows of a batch.
      batch_timeout_micros: how long an incomplete batch waits for more requests.

    Returns:
      The text of each file by its name.
    """
    models = model_server_config_pb2.ModelServerConfig()
    model = models.model_config_list.config.add(
        name=name, base_path=base_path, model_platform="tensorflow"
    )
    if labels:
        model.model_version_policy.specific.versions.extend(sorted(set(labels.values())))
        for label, version in labels.items():
            model.version_labels[label] = version
    else:
        model.model_version_policy.latest.num_versions = keep
    batching = batching_pb2.BatchingParameters()
    batching.max_batch_size.value = max_batch_size
    batching.batch_timeout_micros.value = batch_timeout_micros
    # The default of 10 refuses bursts that could be served in a few milliseconds.
    batching.max_enqueued_batches.value = 100
    monitoring = monitoring_pb2.MonitoringConfig()
    monitoring.prometheus_config.enable = True
    monitoring.prometheus_config.path = "/monitoring/prometheus/metrics"
    made: dict[str, message.Message] = {
        "models.config": models,
        "batching.config": batching,
        "monitoring.config": monitoring,
    }
    return {file: text_format.MessageToString(one) for file, one in made.items()}
