"""`tfrz predict TARGET REQUEST`: sends a request to a server, or to a SavedModel on disk.

`tfrz predict RUN --data PATH --out FILE.parquet` answers every row, user or query of a source.
"""

from __future__ import annotations

import argparse
import base64
import datetime
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

# REQUEST may follow options although it can be left out.
INTERMIXED = True
HELP = "get predictions from a server that speaks TF Serving's protocols, or from a SavedModel"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's arguments."""
    parser.add_argument(
        "target",
        metavar="TARGET",
        help="http://HOST:PORT/v1/models/NAME[/versions/N|/labels/L], "
        "grpc://HOST:PORT/NAME[/versions/N|/labels/L], or the folder of a SavedModel or of its "
        "versions; with --data a run of tfrz train",
    )
    parser.add_argument(
        "request",
        metavar="REQUEST",
        nargs="?",
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
    data = parser.add_argument_group("a whole source instead of a request")
    data.add_argument("--data", help="as in tfrz train; labels are not needed")
    data.add_argument("--out", metavar="FILE.parquet", help="file to write")
    data.add_argument(
        "--features", help="feature spec (YAML) of a file of your own (that of the run)"
    )
    data.add_argument(
        "--keep",
        metavar="NAMES",
        help="columns to copy from impressions, with commas between; none for an empty word (the "
        "categorical features with one value)",
    )
    data.add_argument(
        "--context",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a context of the request, for models of histories (missing)",
    )
    data.add_argument(
        "--time",
        metavar="TIME",
        help="when users are asked about: Unix seconds or a UTC date (the second after the newest "
        "event)",
    )
    data.add_argument("--batch-size", type=int, metavar="N", help="requests at once (8192)")
    add_source_arguments(data)


def add_source_arguments(parser: Any) -> None:
    """Adds the arguments of commands that read a whole source."""
    parser.add_argument(
        "--max-corrupt-fraction",
        type=float,
        metavar="X",
        help="tolerated share of corrupt lines (that of the run)",
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("--quiet", action="store_true", help="no progress bar, no log")


def seconds_of(text: str | None, option: str) -> int | None:
    """Unix seconds, or a UTC date, as Unix seconds; None for None.

    Raises:
      InputError: it is neither.
    """
    from tfrz.errors import InputError

    if text is None:
        return None
    try:
        if text.isascii() and text.isdigit():
            return int(text)
        moment = datetime.datetime.fromisoformat(text)
    except ValueError:
        raise InputError(
            f"{option} {text}: write Unix seconds, or a date such as 2026-08-01"
        ) from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=datetime.UTC)
    return int(moment.timestamp())


def _json_value(value: Any) -> Any:
    """A Parquet value as a JSON value."""
    if isinstance(value, bytes):
        return {"b64": base64.b64encode(value).decode()}
    if isinstance(value, list):
        return [_json_value(item) for item in value]
    return value


def _parquet(path: str) -> list[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from tfrz.errors import InputError

    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(f"cannot read {path}: {error}") from error
    return [{name: _json_value(value) for name, value in row.items()} for row in table.to_pylist()]


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


def _fitted(document: dict[str, Any], client: Any, word: str) -> dict[str, Any]:
    """The instances of a file with the types and the padding that the signature needs."""
    if not word.startswith("@") or not isinstance(document.get("instances"), list):
        return document
    from tfrz.serving.instances import fitted

    inputs = client.inputs(document.get("signature_name") or "serving_default")
    return {**document, "instances": fitted(document["instances"], inputs, word[1:])}


def _predict_source(args: argparse.Namespace) -> int:
    from tfrz.cli.train import set_up_logging
    from tfrz.config import require
    from tfrz.errors import InputError
    from tfrz.zoo.predicting import Asked, predict_file

    require(args.request is None, "REQUEST", "give a request or --data, one of them")
    require(args.out is not None, "--out", "name the Parquet file to write")
    if "://" in args.target:
        raise InputError(f"{args.target}: --data takes a run or a SavedModel, not a server")
    context = {}
    for word in args.context:
        name, equals, value = word.partition("=")
        require(bool(equals), f"--context {word}", "write NAME=VALUE")
        context[name] = value
    keep = None
    if args.keep is not None:
        keep = tuple(name.strip() for name in args.keep.split(",") if name.strip())
    given = {} if args.batch_size is None else {"batch_size": args.batch_size}
    asked = Asked(seconds_of(args.time, "--time"), context, keep, **given)
    set_up_logging(args.quiet)
    begin = time.perf_counter()
    result = predict_file(
        args.target,
        args.data,
        args.out,
        args.features,
        asked,
        args.max_corrupt_fraction,
        progress=not args.quiet,
    )
    seconds = time.perf_counter() - begin
    if args.json:
        print(json.dumps({**result, "seconds": seconds}, indent=1))
        return 0
    print(
        f"{result['rows']:,} rows to {result['out']} ({', '.join(result['columns'])}) in "
        f"{seconds:.1f} s"
    )
    if result["corrupt_lines"]:
        print(f"{result['corrupt_lines']:,} corrupt lines left out: {result['first_corrupt']}")
    return 0


def run(args: argparse.Namespace) -> int:
    """Prints the response as JSON, and the latencies on standard error; or writes a file."""
    if args.data is not None:
        return _predict_source(args)
    from tfrz.errors import InputError
    from tfrz.serving.client import connect

    if args.request is None:
        raise InputError("tfrz predict needs a REQUEST, or --data PATH and --out FILE.parquet")
    if args.out is not None:
        raise InputError("--out needs --data: the response to a request is printed")
    if args.repeat < 1:
        raise InputError(f"--repeat {args.repeat}: must be at least 1")
    document = _read(args.request)
    if args.signature is not None:
        document["signature_name"] = args.signature
    begin = time.perf_counter()
    times = []
    with connect(args.target, args.timeout) as client:
        opened = time.perf_counter() - begin
        document = _fitted(document, client, args.request)
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
