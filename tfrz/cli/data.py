"""`tfrz data describe DATA`: what is in a source."""

from __future__ import annotations

import argparse
import dataclasses
import json

HELP = "look into a source of records: 'tfrz data describe DATA'"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's arguments."""
    commands = parser.add_subparsers(dest="action", required=True, metavar="describe")
    describe = commands.add_parser("describe", help="rows, corrupt lines, each feature's values")
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
        help="of the reader, as data.options of a configuration, e.g. rows=5000",
    )
    describe.add_argument("--limit", type=int, help="stop after about this many rows")
    describe.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Reads the source once and prints a table."""
    from tfrz.cli.tables import format_table
    from tfrz.config import apply_overrides, require
    from tfrz.data.readers import open_source
    from tfrz.data.summary import summarize

    require(args.limit is None or args.limit >= 1, "--limit", "must be at least 1")
    options = apply_overrides({}, args.option)
    summary = summarize(open_source(args.data, args.features, **options), args.limit)
    if args.json:
        print(json.dumps(dataclasses.asdict(summary), indent=1))
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
    return 0
