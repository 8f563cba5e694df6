"""`tfrz predict TARGET REQUEST`: sends a request to a server, or to a SavedModel on disk."""

from __future__ import annotations

import argparse
import base64
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

HELP = "get predictions from a server that speaks TF Serving's protocols, or from a SavedModel"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's arguments."""
    parser.add_argument(
        "target",
        metavar="TARGET",
        help="http://HOST:PORT/v1/models/NAME[/versions/N|/labels/L], "
        "grpc://HOST:PORT/NAME[/versions/N|/labels/L], or the folder of a SavedModel or of its "
        "versions",
    )
    parser.add_argument(
        "request",
        metavar="REQUEST",
        help='JSON in TF Serving\'s format, e.g. \'{"instances": [{"user": "u1"}]}\', or a list of '
        "instances; @FILE reads a file: JSON, .jsonl (an instance per line) or .parquet (an "
        "instance per row); - reads standard input",
    )
    parser.add_argument("--signature", help="name of the signature (serving_default)")
    parser.add_argument("--timeout", type=float, default=30.0, help="in seconds (30)")
    parser.add_argument(
        "--repeat",
        type=int,
        default=1,
        metavar="N",
        help="send it N times and report the latencies (1)",
    )


def _json_value(value: Any, where: str) -> Any:
    """A Parquet value as a JSON value."""
    if isinstance(value, bytes):
        return {"b64": base64.b64encode(value).decode()}
    if isinstance(value, list):
        return [_json_value(item, where) for item in value]
    if not isinstance(value, bool | int | float | str):
        from tfrz.errors import InputError

        raise InputError(f"{where}: a request cannot contain {value!r}: leave the column out")
    return value


def _parquet(path: str) -> list[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from tfrz.errors import InputError

    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(f"cannot read {path}: {error}") from error
    # How the raw signatures encode missing values.
    absent: dict[str, Any] = {}
    for field in table.schema:
        if pa.types.is_string(field.type) or pa.types.is_binary(field.type):
            absent[field.name] = ""
        elif pa.types.is_floating(field.type):
            absent[field.name] = float("nan")
    return [
        {
            name: _json_value(
                absent.get(name) if value is None else value, f"{path}, row {i}, column {name}"
            )
            for name, value in row.items()
        }
        for i, row in enumerate(table.to_pylist())
    ]


def _parse(text: str, where: str) -> Any:
    from tfrz.errors import InputError

    try:
        return json.loads(text)
    except ValueError as error:
        raise InputError(f"{where} is not JSON: {error}") from error


def _read(word: str) -> dict[str, Any]:
    from tfrz.errors import InputError

    where, request = "REQUEST", None
    if word == "-":
        where = "standard input"
        request = _parse(sys.stdin.read(), where)
    elif word.startswith("@"):
        where = word[1:]
        if where.endswith(".parquet"):
            request = _parquet(where)
        else:
            try:
                text = Path(where).read_text()
            except (OSError, UnicodeDecodeError) as error:
                raise InputError(f"cannot read {where}: {error}") from error
            if where.endswith((".jsonl", ".ndjson")):
                request = [
                    _parse(line, f"{where}, line {number}")
                    for number, line in enumerate(text.splitlines(), 1)
                    if line.strip()
                ]
            else:
                request = _parse(text, where)
    else:
        request = _parse(word, where)
    if isinstance(request, list):
        return {"instances": request}
    if not isinstance(request, dict):
        raise InputError(f"{where}: a request is an object or a list of instances")
    return request


def run(args: argparse.Namespace) -> int:
    """Prints the response as JSON, and the latencies on standard error."""
    from tfrz.errors import InputError
    from tfrz.serving.client import connect

    if args.repeat < 1:
        raise InputError(f"--repeat {args.repeat}: must be at least 1")
    document = _read(args.request)
    if args.signature is not None:
        document["signature_name"] = args.signature
    begin = time.perf_counter()
    times = []
    with connect(args.target, args.timeout) as client:
        opened = time.perf_counter() - begin
        for _ in range(args.repeat):
            start = time.perf_counter()
            answer = client.predict(document)
            times.append(1e3 * (time.perf_counter() - start))
    print(json.dumps(answer, indent=1))
    line = f"opened in {1e3 * opened:.1f} ms, first response after {times[0]:.1f} ms"
    if args.repeat > 1:
        rest = sorted(times[1:])
        line += (
            f", {len(rest)} more: p50 {statistics.median(rest):.2f} ms, "
            f"p99 {rest[min(len(rest) - 1, int(0.99 * len(rest)))]:.2f} ms"
        )
    print(line, file=sys.stderr)
    return 0
