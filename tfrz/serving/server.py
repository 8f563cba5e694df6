"""Starting and stopping a server: loads the models first, then opens the ports."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Coroutine
from typing import Any

import grpc
import tensorflow as tf
from tensorflow.core.protobuf import config_pb2
from tensorflow_serving.config import model_server_config_pb2

from tfrz.errors import InputError
from tfrz.serving import configuration
from tfrz.serving import metrics as names
from tfrz.serving.batching import BatchingParameters, BatchingRunner, Scheduler
from tfrz.serving.configuration import ServerConfig
from tfrz.serving.grpc_service import GrpcSurface, add_health_service
from tfrz.serving.manager import ManagerOptions, ModelManager
from tfrz.serving.metrics import Metrics
from tfrz.serving.model import Call, LoadedModel
from tfrz.serving.rest import RestServer, RestSurface
from tfrz.serving.warmup import warm_up

logger = logging.getLogger(__name__)

_PER_VERSION_BATCHING = "batching_params.pbtxt"


class VersionLoader:
    """Loads and warms up versions.

    Args:
      config: of the server.
      metrics: of the server.

    Raises:
      RequestError: a file that the configuration names is invalid.
    """

    def __init__(self, config: ServerConfig, metrics: Metrics) -> None:
        self._config, self._metrics = config, metrics
        self._session_config = _session_config(config)
        self._parameters: BatchingParameters | None = None
        self.scheduler: Scheduler | None = None
        if config.enable_batching:
            self._parameters = configuration.batching_parameters(config.batching_parameters_file)
            self.scheduler = Scheduler(
                self._parameters.num_batch_threads, self._parameters.thread_pool_name, metrics
            )

    def __call__(self, name: str, number: int, path: str) -> LoadedModel:
        """Loads a version.

        Raises:
          Exception: the version cannot be loaded or warmed up.
        """
        start = time.perf_counter()
        outcome = "fail"
        try:
            model = LoadedModel(
                path,
                self._config.saved_model_tags.split(","),
                self._session_config,
                self._batching(path),
                lambda call, seconds: self._on_run(name, call, seconds),
                self._config.enable_signature_method_name_check,
            )
            outcome = "success"
        finally:
            self._metrics.count(names.LOAD_ATTEMPT_COUNT, path, outcome)
            self._metrics.count(
                names.LOAD_LATENCY, path, by=round(1e6 * (time.perf_counter() - start))
            )
        try:
            self._warm(model)
        except BaseException:
            model.close()
            raise
        return model

    def _warm(self, model: LoadedModel) -> None:
        if not self._config.enable_model_warmup:
            return
        start = time.perf_counter()
        status = "fail"
        try:
            count = warm_up(model, max(1, self._config.num_request_iterations_for_warmup))
            status = "success"
        finally:
            microseconds = 1e6 * (time.perf_counter() - start)
            self._metrics.observe(names.WARMUP_LATENCY, model.path, status, value=microseconds)
        logger.info("%d warm-up requests of %s took %.3f s", count, model.path, microseconds / 1e6)

    def _batching(self, path: str) -> BatchingRunner | None:
        if self.scheduler is None or self._parameters is None:
            return None
        parameters = self._parameters
        if self._config.enable_per_model_batching_parameters:
            file = tf.io.gfile.join(path, _PER_VERSION_BATCHING)
            if not tf.io.gfile.exists(file):
                return None
            parameters = configuration.batching_parameters(file)
        return BatchingRunner(self.scheduler, parameters)

    def _on_run(self, name: str, call: Call, seconds: float) -> None:
        self._metrics.observe(names.RUNTIME_LATENCY, name, call.api, "TF1", value=1e6 * seconds)


def _session_config(config: ServerConfig) -> config_pb2.ConfigProto:
    session = config_pb2.ConfigProto()
    if config.tensorflow_session_config_file:
        return configuration.read_text(config.tensorflow_session_config_file, session)
    both = config.tensorflow_session_parallelism
    session.intra_op_parallelism_threads = both or config.tensorflow_intra_op_parallelism
    session.inter_op_parallelism_threads = both or config.tensorflow_inter_op_parallelism
    return session


class _EventLoop:
    """An event loop on its own thread."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="loop", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Runs a coroutine on the loop, and returns its result."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()


class Server:
    """A running server; a context manager.

    Args:
      config: of the server.
      wait: whether to wait for versions to appear and to retry failed loads, as TF Serving does;
        otherwise the first failure is an error.
      models: served instead of those that the configuration names.

    Raises:
      RequestError: the configuration is invalid, or a model cannot become available.
      InputError: a port is in use.
    """

    def __init__(
        self,
        config: ServerConfig,
        wait: bool = False,
        models: model_server_config_pb2.ModelConfigList | None = None,
    ) -> None:
        config.check()
        self.config, self.metrics = config, Metrics()
        metrics_path = configuration.prometheus_path(config.monitoring_config_file)
        credentials = configuration.server_credentials(config.ssl_config_file)
        options = configuration.channel_arguments(config.grpc_channel_arguments)
        models = models or configuration.models_of_flags(config)
        self._loader = VersionLoader(config, self.metrics)
        self.manager = ModelManager(
            self._loader,
            ManagerOptions(
                poll_seconds=config.file_system_poll_wait_seconds,
                max_num_load_retries=config.max_num_load_retries,
                retry_seconds=config.load_retry_interval_micros / 1e6,
                num_load_threads=config.num_load_threads,
                allow_unavailable_labels=config.allow_version_labels_for_unavailable_models,
            ),
        )
        self._stopping = threading.Event()
        self._config_poller: threading.Thread | None = None
        self._rest: RestServer | None = None
        self._grpc: grpc.aio.Server | None = None
        self._grpc_surface: GrpcSurface | None = None
        self._health: Any = None
        self._loop = _EventLoop()
        try:
            new = self.manager.apply(models)
            self.manager.start()
            self.manager.wait_available(new, first_try=not wait)
            self._loop.run(self._open(metrics_path, credentials, options))
        except BaseException:
            self.stop(0)
            raise
        if config.model_config_file and config.model_config_file_poll_wait_seconds > 0:
            self._config_poller = threading.Thread(
                target=self._poll_config, name="config", daemon=True
            )
            self._config_poller.start()

    async def _open(
        self,
        metrics_path: str | None,
        credentials: grpc.ServerCredentials | None,
        options: list[tuple[str, str | int]],
    ) -> None:
        config = self.config
        if config.port or config.grpc_socket_path:
            surface = GrpcSurface(self.manager, self.metrics, config.grpc_max_threads)
            self._grpc_surface = surface
            self._grpc = surface.make_server(options)
            if config.enable_grpc_healthcheck_service:
                self._health = await add_health_service(self._grpc)
            if config.port:
                address = f"{config.host}:{config.port}"
                self._bind(address, credentials, "--port")
            if config.grpc_socket_path:
                self._bind(f"unix:{config.grpc_socket_path}", None, "--grpc_socket_path")
            await self._grpc.start()
            logger.info("Running gRPC ModelServer at %s:%d ...", config.host, config.port)
        if config.rest_api_port and config.rest_api_port == config.port:
            logger.error("--rest_api_port=%d is the gRPC port too: no HTTP", config.port)
        elif config.rest_api_port:
            self._rest = RestServer(
                RestSurface(self.manager, self.metrics, metrics_path),
                config.rest_api_num_threads,
                config.rest_api_timeout_in_ms / 1000,
                config.rest_api_enable_cors_support,
            )
            address = f"{config.host}:{config.rest_api_port}"
            try:
                await self._rest.start(config.host, config.rest_api_port)
            except OSError as error:
                raise _port_error(address, "--rest_api_port") from error
            logger.info("Exporting HTTP/REST API at:%s ...", address)

    def _bind(self, address: str, credentials: grpc.ServerCredentials | None, flag: str) -> None:
        assert self._grpc is not None
        try:
            if credentials is None:
                bound = self._grpc.add_insecure_port(address)
            else:
                bound = self._grpc.add_secure_port(address, credentials)
        except RuntimeError:
            bound = 0
        if not bound:
            raise _port_error(address, flag)

    def _poll_config(self) -> None:
        while not self._stopping.wait(self.config.model_config_file_poll_wait_seconds):
            try:
                self.manager.apply(configuration.models_of_flags(self.config))
            except Exception as error:  # the file may be corrected
                logger.error("%s is not applied: %s", self.config.model_config_file, error)

    @property
    def versions(self) -> list[int]:
        """The available versions of the model `model_name`."""
        return self.manager.available(self.config.model_name)

    def stop(self, drain_seconds: float | None = None) -> None:
        """Closes the ports, and waits for running requests.

        Args:
          drain_seconds: how long they may take; defaults to `drain_seconds` of the configuration.
        """
        drain = self.config.drain_seconds if drain_seconds is None else drain_seconds
        self._stopping.set()
        self._loop.run(self._close(drain))
        self.manager.stop()
        if self._grpc_surface is not None:
            self._grpc_surface.close()
        if self._loader.scheduler is not None:
            self._loader.scheduler.stop()
        self._loop.stop()

    async def _close(self, drain: float) -> None:
        work: list[Coroutine[Any, Any, Any]] = []
        if self._health is not None:
            await self._health.enter_graceful_shutdown()
        if self._grpc is not None:
            work.append(self._grpc.stop(drain))
        if self._rest is not None:
            work.append(self._rest.stop(drain))
        await asyncio.gather(*work)

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def _port_error(address: str, flag: str) -> InputError:
    return InputError(f"cannot listen on {address}, it may be in use: choose another {flag}")
