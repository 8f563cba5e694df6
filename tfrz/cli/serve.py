"""`tfrz serve`: the local server that speaks TF Serving's protocols."""

from __future__ import annotations

import argparse
import logging
import signal
import sys
import threading
from pathlib import Path

HELP = "serve a SavedModel over gRPC and REST, as TF Serving would"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's arguments."""
    parser.add_argument(
        "directory",
        nargs="?",
        metavar="MODEL_DIR",
        help="a folder of versions, or one version; must hold a model now",
    )
    parser.add_argument("--port", type=int, default=8500, help="gRPC port, 0 for none (8500)")
    parser.add_argument(
        "--rest_api_port", type=int, help="HTTP port, 0 for none (8501 with MODEL_DIR, else 0)"
    )
    parser.add_argument(
        "--model_name", "--name", default="default", help="what requests call the model (default)"
    )
    parser.add_argument("--model_base_path", help="as TF Serving: waits for a first version")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (127.0.0.1)")
    parser.add_argument(
        "--file_system_poll_wait_seconds",
        type=float,
        default=1.0,
        help="time between looks for new versions (1)",
    )
    parser.add_argument(
        "--enable_model_warmup", default="true", choices=("true", "false"), help="(true)"
    )


def _base_path(directory: str) -> Path:
    """The base path of MODEL_DIR, which may be one version's folder."""
    from tfrz.errors import InputError
    from tfrz.serving.manager import list_versions
    from tfrz.serving.model import is_saved_model

    path = Path(directory).resolve()
    if not path.is_dir():
        raise InputError(f"{directory} is not a folder: name a SavedModel or a folder of versions")
    if is_saved_model(path):
        if not path.name.isdigit():
            raise InputError(
                f"{directory} is a SavedModel, but its name is no version number: rename it to "
                "a number and name the folder above it"
            )
        return path.parent
    versions = list_versions(path)
    if not any(is_saved_model(version) for version in versions.values()):
        raise InputError(
            f"{directory} holds no SavedModel: expected saved_model.pb in it or in a folder "
            "whose name is a version number"
        )
    return path


def run(args: argparse.Namespace) -> int:
    """Serves until it is told to stop."""
    from tfrz.errors import InputError

    if (args.directory is None) == (args.model_base_path is None):
        raise InputError("name either MODEL_DIR or --model_base_path: what shall be served?")
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for noisy in ("absl", "tensorflow"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    base = _base_path(args.directory) if args.directory else Path(args.model_base_path)
    rest_port = args.rest_api_port
    if rest_port is None:
        rest_port = 8501 if args.directory else 0
    from tfrz.serving.server import Server, ServerConfig

    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    config = ServerConfig(
        model_name=args.model_name,
        model_base_path=base,
        port=args.port,
        rest_api_port=rest_port,
        host=args.host,
        poll_seconds=args.file_system_poll_wait_seconds,
        enable_model_warmup=args.enable_model_warmup == "true",
    )
    with Server(config, wait=args.directory is None) as server:
        print(
            f"serving {args.model_name} version {max(server.versions)} from {base}: "
            f"gRPC {args.host}:{args.port}, REST {args.host}:{rest_port}",
            flush=True,
        )
        stop.wait()
    return 0
