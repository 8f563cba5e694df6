"""The configuration files that an operator gives to a server, made from their messages."""

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
    """`models.config`, `batching.config` and `monitoring.config` in protocol buffers' text form.

    Args:
      name: what requests call the model.
      base_path: where the server finds its versions.
      keep: so many of the latest versions are served.
      labels: to version numbers; only these versions are served if there are any.
      max_batch_size: rows of joined requests.
      batch_timeout_micros: how long an incomplete batch waits.
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
    # The default of 10 refuses a burst that a few milliseconds would have served.
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
