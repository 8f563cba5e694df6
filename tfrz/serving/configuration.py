"""The server's configuration: its flags as a dataclass, and the files that they name."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any, TypeVar

import grpc
from google.protobuf import message, text_format
from tensorflow_serving.config import model_server_config_pb2

from tfrz.serving.batching import BatchingParameters
from tfrz.serving.protos import batching_pb2, monitoring_pb2, ssl_pb2
from tfrz.serving.status import RequestError, invalid

_Message = TypeVar("_Message", bound=message.Message)
_PROMETHEUS_PATH = "/monitoring/prometheus/metrics"
_CORES = os.cpu_count() or 1


def _flag(default: Any, help: str, idle: bool = False) -> Any:
    return dataclasses.field(default=default, metadata={"help": help, "idle": idle})


@dataclasses.dataclass(frozen=True)
class ServerConfig:
    """The flags of a server.

    All are flags of TF Serving except `host` and `drain_seconds`. Flags marked `idle` are accepted
    and have no effect here.
    """

    model_name: str = _flag("default", "name of the model at model_base_path in requests")
    model_base_path: str = _flag("", "folder with a subfolder per version of the model to serve")
    port: int = _flag(8500, "gRPC port, 0 for none")
    rest_api_port: int = _flag(0, "HTTP port, 0 for none; must differ from port")
    host: str = _flag("127.0.0.1", "address to listen on; not a flag of TF Serving")
    drain_seconds: float = _flag(
        10.0, "how long running requests may take after SIGTERM; not a flag of TF Serving"
    )
    grpc_socket_path: str = _flag("", "also serve gRPC on this Unix socket")
    rest_api_num_threads: int = _flag(4 * _CORES, "number of HTTP requests processed in parallel")
    rest_api_timeout_in_ms: int = _flag(30000, "time limit of an HTTP request")
    rest_api_enable_cors_support: bool = _flag(False, "add CORS headers to HTTP responses")
    model_config_file: str = _flag("", "text ModelServerConfig with the models to serve")
    model_config_file_poll_wait_seconds: int = _flag(0, "seconds between reads of it; 0 reads once")
    file_system_poll_wait_seconds: float = _flag(
        1.0, "seconds between looks for versions; 0 looks once at the start, negative never"
    )
    max_num_load_retries: int = _flag(5, "number of retries of a failed load")
    load_retry_interval_micros: int = _flag(60_000_000, "time between these retries")
    num_load_threads: int = _flag(0, "number of parallel loads; 0 loads one after another")
    num_unload_threads: int = _flag(0, "unloads run in parallel to loads", idle=True)
    allow_version_labels_for_unavailable_models: bool = _flag(
        False, "a new label may name a version that is not loaded"
    )
    enable_batching: bool = _flag(False, "join requests that arrive close together")
    batching_parameters_file: str = _flag("", "text BatchingParameters; needs enable_batching")
    enable_per_model_batching_parameters: bool = _flag(
        False, "read sizes and times from batching_params.pbtxt of each version"
    )
    monitoring_config_file: str = _flag("", "text MonitoringConfig")
    enable_model_warmup: bool = _flag(True, "first run the requests stored with a model")
    num_request_iterations_for_warmup: int = _flag(0, "how often each of them runs; 0 means once")
    enable_signature_method_name_check: bool = _flag(
        False, "Classify and Regress only accept signatures marked for them"
    )
    saved_model_tags: str = _flag("serve", "tags of the meta graph, comma separated")
    tensorflow_session_parallelism: int = _flag(0, "threads of both pools; 0 chooses")
    tensorflow_intra_op_parallelism: int = _flag(0, "threads of an operation; 0 chooses")
    tensorflow_inter_op_parallelism: int = _flag(0, "number of parallel operations; 0 chooses")
    tensorflow_session_config_file: str = _flag("", "text tensorflow.ConfigProto")
    platform_config_file: str = _flag("", "refused: not supported here")
    ssl_config_file: str = _flag("", "text SSLConfig: TLS for gRPC")
    grpc_channel_arguments: str = _flag("", "key=value,key=value for the gRPC server")
    grpc_max_threads: int = _flag(4 * _CORES, "number of parallel gRPC calls; more are refused")
    enable_grpc_healthcheck_service: bool = _flag(False, "gRPC's standard health service")
    flush_filesystem_caches: bool = _flag(True, "", idle=True)
    enable_profiler: bool = _flag(True, "", idle=True)
    mixed_precision: str = _flag("", "", idle=True)
    per_process_gpu_memory_fraction: float = _flag(0.0, "", idle=True)
    prefer_tflite_model: bool = _flag(False, "", idle=True)
    num_tflite_pools: int = _flag(1, "", idle=True)
    num_tflite_interpreters_per_pool: int = _flag(0, "", idle=True)
    remove_unused_fields_from_bundle_metagraph: bool = _flag(True, "", idle=True)
    thread_pool_factory_config_file: str = _flag("", "", idle=True)
    use_alts_credentials: bool = _flag(False, "", idle=True)
    xla_cpu_compilation_enabled: bool = _flag(False, "", idle=True)
    skip_initialize_tpu: bool = _flag(False, "", idle=True)

    def check(self) -> None:
        """Refuses combinations that the production server refuses.

        Raises:
          RequestError: INVALID_ARGUMENT.
        """
        if not self.model_base_path and not self.model_config_file:
            raise invalid(
                "Both server_options.model_base_path and server_options.model_config_file are "
                "empty!"
            )
        if self.batching_parameters_file and not self.enable_batching:
            raise invalid(
                "server_options.batching_parameters_file is set without setting "
                "server_options.enable_batching to true."
            )
        if self.enable_per_model_batching_parameters and not self.enable_batching:
            raise invalid(
                "server_options.enable_per_model_batching_parameters is set without setting "
                "server_options.enable_batching to true."
            )
        if (
            self.tensorflow_session_parallelism
            and self.tensorflow_intra_op_parallelism
            and self.tensorflow_inter_op_parallelism
        ):
            raise invalid(
                "tensorflow_session_parallelism cannot be set together with both "
                "tensorflow_intra_op_parallelism and tensorflow_inter_op_parallelism"
            )
        if self.platform_config_file:
            raise invalid(
                "--platform_config_file is not supported by this server: use the flags for "
                "sessions, batching and warm-up"
            )
        for name in ("rest_api_num_threads", "grpc_max_threads", "rest_api_timeout_in_ms"):
            if getattr(self, name) < 1:
                raise invalid(f"--{name} must be positive; was {getattr(self, name)}")
        for name in ("port", "rest_api_port"):
            if not 0 <= getattr(self, name) < 65536:
                raise invalid(f"--{name} must be in 0 .. 65535; was {getattr(self, name)}")


def read_text(path: str, into: _Message) -> _Message:
    """Fills a message from a file in protocol buffers' text format.

    Raises:
      RequestError: NOT_FOUND, or INVALID_ARGUMENT with the position of the error.
    """
    kind = into.DESCRIPTOR.full_name.replace("tfrz.serving.", "tensorflow.serving.")
    try:
        text = Path(path).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(grpc.StatusCode.NOT_FOUND, f"cannot read {path}: {error}") from error
    try:
        return text_format.Parse(text, into)
    except text_format.ParseError as error:
        raise invalid(f"Error parsing text-format {kind}: {path}:{error}") from error


def models_of_flags(config: ServerConfig) -> model_server_config_pb2.ModelConfigList:
    """Returns the models that the flags or their configuration file name.

    Raises:
      RequestError: the file is invalid.
    """
    if config.model_config_file:
        read = read_text(config.model_config_file, model_server_config_pb2.ModelServerConfig())
        return model_list(read)
    models = model_server_config_pb2.ModelConfigList()
    models.config.add(
        name=config.model_name,
        base_path=str(config.model_base_path),
        model_platform="tensorflow",
    )
    return models


def model_list(
    config: model_server_config_pb2.ModelServerConfig,
) -> model_server_config_pb2.ModelConfigList:
    """Returns the model list of a configuration.

    Raises:
      RequestError: INVALID_ARGUMENT, it has none.
    """
    if config.WhichOneof("config") != "model_config_list":
        raise invalid(
            "ServerModelConfig type not supported by HandleReloadConfigRequest. Only "
            "ModelConfigList is currently supported"
        )
    return config.model_config_list


def batching_parameters(path: str) -> BatchingParameters:
    """Returns the parameters in a file; the defaults if `path` is empty.

    Raises:
      RequestError: the file is invalid.
    """
    read = batching_pb2.BatchingParameters()
    if path:
        read_text(path, read)
    values: dict[str, Any] = {
        field.name: getattr(value, "value", value) for field, value in read.ListFields()
    }
    if "allowed_batch_sizes" in values:
        values["allowed_batch_sizes"] = tuple(values["allowed_batch_sizes"])
    return BatchingParameters(**values)


def prometheus_path(path: str) -> str | None:
    """Returns the path of the metrics endpoint in a monitoring file; None if it has none.

    Raises:
      RequestError: the file is invalid.
    """
    if not path:
        return None
    prometheus = read_text(path, monitoring_pb2.MonitoringConfig()).prometheus_config
    return (prometheus.path or _PROMETHEUS_PATH) if prometheus.enable else None


def server_credentials(path: str) -> grpc.ServerCredentials | None:
    """Returns the credentials of an SSL file; None if `path` is empty.

    Raises:
      RequestError: the file is invalid.
    """
    if not path:
        return None
    ssl = read_text(path, ssl_pb2.SSLConfig())
    if not ssl.server_key or not ssl.server_cert:
        raise invalid(f"{path}: server_key and server_cert are needed, as PEM text")
    return grpc.ssl_server_credentials(
        [(ssl.server_key.encode(), ssl.server_cert.encode())],
        root_certificates=ssl.custom_ca.encode() or None,
        require_client_auth=ssl.client_verify,
    )


def channel_arguments(text: str) -> list[tuple[str, str | int]]:
    """Parses `key=value,key=value` as gRPC options; whole numbers become integers.

    Raises:
      RequestError: INVALID_ARGUMENT.
    """
    options: list[tuple[str, str | int]] = []
    for pair in filter(None, text.split(",")):
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise invalid(f"--grpc_channel_arguments: {pair!r} is not key=value")
        options.append((key, int(value) if value.lstrip("-").isdigit() else value))
    return options
