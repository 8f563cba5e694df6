"""`tfrz evaluate RUN --data PATH`: metrics of a trained model on any source with labels."""

from __future__ import annotations

import argparse
import json
from typing import Any

from tfrz.cli.predict import add_source_arguments

HELP = "measure a trained model on any data with labels"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's arguments."""
    parser.add_argument(
        "target",
        metavar="RUN",
        help="a run of tfrz train, a SavedModel that tfrz exported, the folder of its versions, "
        "http://HOST:PORT/v1/models/NAME[/versions/N|/labels/L] or grpc://HOST:PORT/NAME[...]",
    )
    parser.add_argument(
        "--run",
        dest="run_of",
        metavar="RUN",
        help="of a server: a run or SavedModel of the same model; its configuration and feature "
        "spec say how the data become requests",
    )
    parser.add_argument("--data", required=True, help="as in tfrz train; every row is used")
    parser.add_argument(
        "--features", help="feature spec (YAML) of a file of your own (that of the run)"
    )
    parser.add_argument(
        "--slice",
        action="append",
        default=[],
        dest="slices",
        metavar="NAME",
        help="also for each value of this categorical feature; may be repeated",
    )
    add_source_arguments(parser)


def _table(result: dict[str, Any]) -> str:
    from tfrz.cli.tables import format_table

    names = list(result["metrics"])

    def row(title: str, examples: int, values: dict[str, float]) -> tuple[str, ...]:
        shown = (f"{values[name]:.4f}" if name in values else "" for name in names)
        return title, f"{examples:,}", *shown

    rows = [row("all", result["examples"], result["metrics"])]
    if result["baseline"] is not None:
        baseline = result["baseline"]
        rows.append(row(baseline["name"], result["examples"], baseline["metrics"]))
    for feature, values in result["slices"].items():
        for value, found in values.items():
            rows.append(row(f"{feature}={value}", found["examples"], found))
    return format_table(("", "examples", *names), rows)


def run(args: argparse.Namespace) -> int:
    """Prints the metrics."""
    from tfrz.cli.train import set_up_logging
    from tfrz.zoo.evaluating import evaluate_file

    set_up_logging(args.quiet)
    result = evaluate_file(
        args.target, args.data, args.features, args.slices, args.max_corrupt_fraction, args.run_of
    )
    if args.json:
        print(json.dumps(result, indent=1))
        return 0
    print(_table(result))
    if result["corrupt_lines"]:
        print(f"\n{result['corrupt_lines']:,} corrupt lines left out: {result['first_corrupt']}")
    return 0
