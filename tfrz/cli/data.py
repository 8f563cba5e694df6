"""`tfrz data describe DATA`: what is in a source."""

from __future__ import annotations

import argparse
import dataclasses
import json
from typing import Any

HELP = "describe a data source: 'tfrz data describe DATA'"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's arguments."""
    commands = parser.add_subparsers(dest="action", required=True, metavar="describe")
    describe = commands.add_parser("describe", help="rows, corrupt lines, values of each feature")
    describe.add_argument(
        "data",
        metavar="DATA",
        help="simulated, NAME:PATH such as movielens-1m:ml-1m.zip, or a file of your own",
    )
    describe.add_argument("--features", help="feature spec (YAML) of a file of your own")
    describe.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="an option of the reader, as in data.options, e.g. rows=5000",
    )
    describe.add_argument(
        "--records",
        choices=("impression", "history", "list", "logged_action", "timeline"),
        help="record type, for a source with several (its first)",
    )
    describe.add_argument(
        "--dependence",
        action="store_true",
        help="for histories: also measure the dependence of items on the past, by lag",
    )
    describe.add_argument("--plot", metavar="FILE", help="plot the dependence as a PNG")
    describe.add_argument("--limit", type=int, help="stop after about this many rows")
    describe.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Reads the source once and prints a table."""
    from tfrz.cli.tables import format_table
    from tfrz.config import apply_overrides, require
    from tfrz.data.records import open_source
    from tfrz.data.summary import summarize

    require(args.limit is None or args.limit >= 1, "--limit", "must be at least 1")
    wanted = args.dependence or args.plot is not None
    records = args.records or ("history" if wanted else None)
    options = apply_overrides({}, args.option)
    reader = open_source(args.data, args.features, records, **options)
    require(not wanted or reader.record_type == "history", "--dependence", "needs history records")
    summary = summarize(reader, args.limit)
    found = _dependence(reader, args.plot) if wanted else None
    if args.json:
        described = dataclasses.asdict(summary)
        if found is not None:
            described["dependence"] = {**dataclasses.asdict(found), "slope": found.slope}
        print(json.dumps(described, indent=1))
        return 0
    print(f"{summary.name}: {summary.rows:,} {summary.record_type} records")
    if summary.corrupt:
        print(f"{summary.corrupt:,} corrupt lines, the first: {summary.first_corrupt}")
    print()
    rows = []
    for feature in summary.features:
        if feature.minimum is None:
            content = ", ".join(f"{term} ({count:,})" for term, count in feature.top)
        else:
            content = f"{feature.minimum:g} to {feature.maximum:g}, mean {feature.mean:.4g}"
        distinct = "" if feature.distinct is None else f"{feature.distinct:,}"
        rows.append((feature.name, feature.kind, f"{feature.missing:,}", distinct, content))
    print(format_table(("feature", "kind", "missing", "distinct", "values"), rows))
    if found is not None:
        print(
            f"\nlong-range dependence of {found.users:,} users with more than {found.lags[-1]} "
            f"events (item vectors from {found.learned_on:,} others);\nstandard error of zero "
            f"{found.standard_error:.4f}, slope of log D over log L above the shuffled curve "
            f"{found.slope:.2f}\n"
        )
        curve = zip(found.lags, found.ordered, found.shuffled, strict=True)
        header = ("lag", "D in order", "D with histories shuffled")
        print(format_table(header, [(lag, f"{a:.4f}", f"{b:.4f}") for lag, a, b in curve]))
    return 0


def _dependence(reader: Any, plot: str | None) -> Any:
    from tfrz.data.histories.dependence import measure_dependence, plot_dependence

    found = measure_dependence(reader)
    if plot is not None:
        plot_dependence(found, plot)
    return found
