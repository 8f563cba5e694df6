"""`tfrz predict TARGET REQUEST`: one request to a server, or to a SavedModel on disk."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

HELP = "ask a server of TF Serving's protocol, or a SavedModel on disk, for predictions"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's arguments."""
    parser.add_argument(
        "target",
        metavar="TARGET",
        help="http://HOST:PORT/v1/models/NAME[/versions/N], grpc://HOST:PORT/NAME[/versions/N], "
        "or the folder of a SavedModel or of its versions",
    )
    parser.add_argument(
        "request",
        metavar="REQUEST",
        help='JSON as TF Serving takes it, e.g. \'{"instances": [{"user": "u1"}]}\'; '
        "a list is taken for the instances; @FILE reads a file, - reads standard input",
    )
    parser.add_argument("--signature", help="name of the signature (serving_default)")
    parser.add_argument("--timeout", type=float, default=30.0, help="seconds to wait (30)")


def _read(word: str) -> dict[str, Any]:
    from tfrz.errors import InputError

    where = "REQUEST"
    text = word
    if word == "-":
        where, text = "standard input", sys.stdin.read()
    elif word.startswith("@"):
        where = word[1:]
        try:
            text = Path(where).read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"cannot read {where}: {error}") from error
    try:
        request = json.loads(text)
    except ValueError as error:
        raise InputError(f"{where} is not JSON: {error}") from error
    if isinstance(request, list):
        return {"instances": request}
    if not isinstance(request, dict):
        raise InputError(f"{where}: a request is an object or a list of instances")
    return request


def run(args: argparse.Namespace) -> int:
    """Prints the answer as JSON."""
    from tfrz.serving.client import predict

    request = _read(args.request)
    print(json.dumps(predict(args.target, request, args.signature, args.timeout), indent=1))
    return 0
