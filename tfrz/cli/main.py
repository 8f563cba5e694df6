"""`tfrz`: runs one of the commands; reports bad input in one line, with exit status 2."""

from __future__ import annotations

import argparse
import errno
import importlib
import os
import re
import sys
from collections.abc import Sequence
from typing import NoReturn

from tfrz.cli.quiet import quiet_libraries
from tfrz.config import did_you_mean
from tfrz.errors import InputError

# Shown in this order; the module of `serving-config` is `tfrz.cli.serving_config`.
_ORDER = (
    "list",
    "describe",
    "train",
    "pipeline",
    "serve",
    "predict",
    "evaluate",
    "embeddings",
    "reproduce",
    "tune",
    "compress",
    "data",
    "serving-config",
    "bench",
    "doctor",
)

_NO_SPACE = re.compile("No space left on device|Disk quota exceeded|File too large")
_FULL_DISK = "no space left on the disk: free some and repeat the command to resume"


class _Parser(argparse.ArgumentParser):
    """Reports an error in one line, as every command does."""

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: {message}; see '{self.prog} --help'", file=sys.stderr)
        raise SystemExit(2)


def _commands() -> dict[str, str]:
    folder = os.path.dirname(__file__)
    files = {name[:-3].replace("_", "-") for name in os.listdir(folder) if name.endswith(".py")}
    return {name: f"tfrz.cli.{name.replace('-', '_')}" for name in _ORDER if name in files}


def _help(commands: dict[str, str]) -> str:
    lines = ["usage: tfrz COMMAND ...", "", "The TensorFlow Recommender Zoo.", "", "commands:"]
    for name, module in commands.items():
        lines.append(f"  {name:<15} {importlib.import_module(module).HELP}")
    return "\n".join([*lines, "", "See 'tfrz COMMAND --help' for the arguments of a command."])


def _run(arguments: Sequence[str]) -> int:
    commands = _commands()
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_help(commands))
        return 0 if arguments else 2
    if arguments[0] == "--version":
        from tfrz.cli.doctor import versions

        print(versions())
        return 0
    name = arguments[0]
    if name not in commands:
        raise InputError(f"unknown command {name!r}{did_you_mean(name, commands)}")
    module = importlib.import_module(commands[name])
    if hasattr(module, "main"):  # parses its own arguments
        return int(module.main(arguments[1:]))
    parser = _Parser(prog=f"tfrz {name}", description=module.HELP)
    module.add_arguments(parser)
    from tfrz.zoo.registry import load_plugins

    load_plugins()
    # Options may stand between positional arguments that can be left out.
    mixed = getattr(module, "INTERMIXED", False)
    parse = parser.parse_intermixed_args if mixed else parser.parse_args
    return int(module.run(parse(list(arguments[1:]))))


def _on_os_error(error: OSError) -> int:
    if isinstance(error, BrokenPipeError):
        # The reader closed the pipe (`tfrz list | head`), which is not an error.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        print(f"tfrz: {_FULL_DISK}", file=sys.stderr)
        return 2
    raise error


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit status: 0, 1 (did not hold) or 2 (bad input)."""
    quiet_libraries()
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        return _run(arguments)
    except InputError as error:
        print(f"tfrz: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        from tfrz.extras import missing, needs

        library = missing(error)
        if library is None:
            raise
        print(needs(f"tfrz {arguments[0]}", library), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("tfrz: interrupted", file=sys.stderr)
        return 130
    except OSError as error:
        return _on_os_error(error)
    except Exception as error:
        # TensorFlow writes checkpoints and SavedModels itself, and reports a full disk its own way.
        if _NO_SPACE.search(str(error)) is None:
            raise
        print(f"tfrz: {_FULL_DISK}", file=sys.stderr)
        return 2
