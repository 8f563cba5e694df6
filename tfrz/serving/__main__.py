"""`python -m tfrz.serving` and `tfrz serve`: takes the flags of TF Serving, or a folder."""

from __future__ import annotations

import argparse
import logging
import os
import queue
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from tfrz.errors import InputError

_PRODUCTION = ("--model_base_path=", "--model_config_file=")
_FAILED = 255
_CONTRACT = "2.15.1"


def _log_to_stderr() -> None:
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname).1s %(message)s", stream=sys.stderr
    )
    for noisy in ("absl", "tensorflow", "asyncio", "aiohttp"):
        logging.getLogger(noisy).setLevel(logging.ERROR)


def _serve_until_told(server: Any, announcement: str | None = None) -> NoReturn:
    """Prints the announcement, waits for SIGTERM or SIGINT, drains, and ends the process."""
    # A handler runs between any two steps of this thread, and an event's lock may then be its own.
    told: queue.SimpleQueue[int] = queue.SimpleQueue()

    def on_signal(number: int, _: object) -> None:
        if server.config.drain_seconds <= 0 and number == signal.SIGTERM:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        told.put(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, on_signal)
    # Only after the handlers are set: a reader may send a signal at once.
    if announcement is not None:
        print(announcement, flush=True)
    told.get()
    server.stop()
    logging.shutdown()
    sys.stdout.flush()
    # A graph that still runs after the time for draining must not keep the process alive.
    os._exit(0)


def _as_production(arguments: Sequence[str]) -> int:
    from tfrz.serving import flags
    from tfrz.serving.server import Server
    from tfrz.serving.status import RequestError, code_name

    try:
        config, unknown, idle = flags.parse(arguments)
    except flags.UsageError as error:
        print(f"{error}: invalid value", file=sys.stderr)
        print(flags.usage("tfrz serve"), file=sys.stderr)
        return _FAILED
    for argument in unknown:
        print(f"unknown argument: {argument}", file=sys.stderr)
    if unknown:
        print(flags.usage("tfrz serve"), file=sys.stderr, flush=True)
    _log_to_stderr()
    for name in idle:
        logging.warning("--%s has no effect in this server", name)
    try:
        server = Server(config, wait=True)
    except RequestError as error:
        print(
            f"Failed to start server. Error: {code_name(error.code)}: {error.message}",
            file=sys.stderr,
        )
        return _FAILED
    except InputError as error:
        print(f"Failed to start server. Error: UNKNOWN: {error}", file=sys.stderr)
        return _FAILED
    _serve_until_told(server)


def _base_path(directory: str) -> tuple[Path, int | None]:
    """Returns the base path of MODEL_DIR, and the version if MODEL_DIR is that of one version."""
    from tfrz.serving.manager import list_versions
    from tfrz.serving.model import is_saved_model

    path = Path(directory).resolve()
    if not path.is_dir():
        raise InputError(f"{directory} is not a folder: pass a SavedModel or a folder of versions")
    if is_saved_model(path):
        if not path.name.isdecimal():
            raise InputError(
                f"{directory} is a SavedModel, but its name is not a version number: rename it to "
                "a number and pass its parent folder"
            )
        return path.parent, int(path.name)
    versions = list_versions(str(path))
    if not any(is_saved_model(Path(version)) for version in versions.values()):
        raise InputError(
            f"{directory} holds no SavedModel: expected saved_model.pb in it or in a folder "
            "whose name is a version number"
        )
    return path, None


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"serve: {message}; see 'tfrz serve --help'")


def _as_convenience(arguments: Sequence[str]) -> int:
    from tfrz.serving import flags

    parser = _Parser(
        prog="tfrz serve",
        description="Serve the SavedModels of MODEL_DIR over gRPC and REST, as TF Serving does. "
        "MODEL_DIR and the addresses are checked at once. With --model_base_path=DIR or "
        "--model_config_file=FILE instead of MODEL_DIR, the flags, waiting and exit statuses are "
        "those of TF Serving.",
    )
    parser.add_argument(
        "directory",
        metavar="MODEL_DIR",
        help="a folder with at least one version, or the folder of a version",
    )
    flags.add_arguments(parser, {"model_name": "--name"})
    if not arguments:
        raise InputError("nothing to serve: pass MODEL_DIR or --model_base_path=DIR")
    values = vars(parser.parse_args(list(arguments)))
    base, version = _base_path(values.pop("directory"))
    values.pop("model_base_path", None)

    from tensorflow_serving.config import model_server_config_pb2

    from tfrz.serving.configuration import ServerConfig
    from tfrz.serving.server import Server
    from tfrz.serving.status import RequestError

    config = ServerConfig(**{"rest_api_port": 8501, **values, "model_base_path": str(base)})
    models = model_server_config_pb2.ModelConfigList()
    model = models.config.add(
        name=config.model_name, base_path=str(base), model_platform="tensorflow"
    )
    if version is not None:
        model.model_version_policy.specific.versions.append(version)
    _log_to_stderr()
    try:
        server = Server(config, models=models)
    except RequestError as error:
        raise InputError(f"cannot serve {base}: {' '.join(error.message.split())}") from error
    _serve_until_told(
        server,
        f"serving {config.model_name} version {max(server.versions)} from {base}: "
        f"gRPC {config.host}:{config.port}, REST {config.host}:{config.rest_api_port}",
    )


def main(arguments: Sequence[str]) -> int:
    """Serves until the process gets a signal.

    Returns:
      The exit status.

    Raises:
      InputError: the folder of the short form, `MODEL_DIR ...`, cannot be served.
    """
    if "--version" in arguments or "--version=true" in arguments:
        import tfrz

        print(f"tfrz {tfrz.__version__}, with the interface of TensorFlow ModelServer {_CONTRACT}")
        return 0
    if any(argument.startswith(_PRODUCTION) for argument in arguments):
        return _as_production(arguments)
    return _as_convenience(arguments)


if __name__ == "__main__":
    from tfrz.cli.main import main as command_line

    raise SystemExit(command_line(["serve", *sys.argv[1:]]))
