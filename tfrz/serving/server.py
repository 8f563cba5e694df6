"""Starting and stopping: models first, ports when they answer."""

from __future__ import annotations

import dataclasses
import logging
import os
import threading
import time
from pathlib import Path

from tfrz.errors import InputError
from tfrz.serving.grpc_service import make_grpc_server
from tfrz.serving.manager import ModelManager, ServedModel
from tfrz.serving.rest import RestServer

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class ServerConfig:
    """What to serve, and where.

    Attributes:
      model_name: what requests call the model.
      model_base_path: holds a folder per version.
      port: of gRPC; 0 for none.
      rest_api_port: of HTTP; 0 for none.
      host: the address to listen on.
      poll_seconds: time between looks at the base path; 0 to look once.
      grpc_max_threads: calls beyond so many at a time are refused.
      enable_model_warmup: run the stored warm-up requests.
    """

    model_name: str
    model_base_path: Path
    port: int = 8500
    rest_api_port: int = 0
    host: str = "127.0.0.1"
    poll_seconds: float = 1.0
    grpc_max_threads: int = 4 * (os.cpu_count() or 1)
    enable_model_warmup: bool = True


class Server:
    """A running server; a context manager.

    Args:
      config: what to serve.
      wait: wait for a first version to appear, as the production server does; otherwise fail.

    Raises:
      InputError: no version answers, or a port is in use.
    """

    def __init__(self, config: ServerConfig, wait: bool = False) -> None:
        self.config = config
        model = ServedModel(config.model_name, config.model_base_path, config.enable_model_warmup)
        self.manager = ModelManager({config.model_name: model}, config.poll_seconds)
        self.manager.poll()
        while not model.available:
            if model.failure is not None or not wait:
                reason = model.failure or "it has no version (a folder whose name is a number)"
                raise InputError(
                    f"cannot serve {config.model_base_path}: {' '.join(reason.split())}"
                )
            time.sleep(1)
            self.manager.poll()
        self._rest: RestServer | None = None
        self._grpc = None
        if config.rest_api_port:
            try:
                self._rest = RestServer((config.host, config.rest_api_port), self.manager)
            except OSError as error:
                raise _port_error(config.host, config.rest_api_port, "--rest_api_port") from error
        if config.port:
            self._grpc = make_grpc_server(self.manager, config.grpc_max_threads)
            try:
                bound = self._grpc.add_insecure_port(f"{config.host}:{config.port}")
            except RuntimeError:
                bound = 0
            if not bound:
                if self._rest is not None:
                    self._rest.server_close()
                raise _port_error(config.host, config.port, "--port")
            self._grpc.start()
        if self._rest is not None:
            threading.Thread(
                target=self._rest.serve_forever,
                name="rest",
                kwargs={"poll_interval": 0.1},
                daemon=True,
            ).start()
        self.manager.start()

    @property
    def versions(self) -> list[int]:
        """The versions that answer."""
        return self.manager.models[self.config.model_name].available

    def stop(self) -> None:
        """Closes the ports."""
        if self._rest is not None:
            self._rest.shutdown()
            self._rest.server_close()
        if self._grpc is not None:
            self._grpc.stop(grace=None).wait()
        self.manager.stop()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def _port_error(host: str, port: int, flag: str) -> InputError:
    return InputError(
        f"{host}:{port} cannot be listened on, it may be in use: choose another {flag}"
    )
