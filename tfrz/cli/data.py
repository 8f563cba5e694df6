"""`tfrz data describe DATA`: what is in a source; `tfrz data infer PATH`: a spec for your files."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

HELP = "describe a data source, or infer the feature spec of files: 'tfrz data describe DATA'"

_RECORDS = ("impression", "history", "list", "logged_action", "timeline")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's arguments."""
    commands = parser.add_subparsers(dest="action", required=True, metavar="describe|infer")
    _add_infer(commands.add_parser("infer", help="write a feature spec for files of your own"))
    describe = commands.add_parser("describe", help="rows, corrupt lines, values of each feature")
    describe.add_argument(
        "data",
        metavar="DATA",
        help="simulated, NAME:PATH such as movielens-1m:ml-1m.zip, or a file of your own",
    )
    describe.add_argument(
        "--features", help="feature spec (YAML) of files of your own; inferred if there is none"
    )
    describe.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="an option of the reader, as in data.options, e.g. rows=5000",
    )
    describe.add_argument(
        "--records",
        choices=_RECORDS,
        help="record type, for a source with several (its first), and for files of your own (that "
        "of the spec, or the likeliest)",
    )
    describe.add_argument(
        "--dependence",
        action="store_true",
        help="for histories: also measure the dependence of items on the past, by lag",
    )
    describe.add_argument("--plot", metavar="FILE", help="plot the dependence as a PNG")
    describe.add_argument("--limit", type=int, help="stop after about this many rows")
    describe.add_argument("--json", action="store_true", help="print JSON")


def _add_infer(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "data",
        metavar="PATH",
        help="a file, a folder, a glob or several with commas between: CSV, JSON lines, Parquet or "
        "TFRecords of tf.Examples",
    )
    parser.add_argument("--records", choices=_RECORDS, help="record type (the likeliest)")
    parser.add_argument("--rows", type=int, default=100_000, help="rows to look at (100000)")


def run(args: argparse.Namespace) -> int:
    """Runs one of the actions."""
    return _infer(args) if args.action == "infer" else _describe(args)


def _infer(args: argparse.Namespace) -> int:
    """Prints a spec; says on standard error how many rows fit it."""
    from tfrz.config import require
    from tfrz.data.inference import infer
    from tfrz.data.sources.spans import located

    require(args.rows >= 1, "--rows", "must be at least 1")
    args.data = located(args.data)
    found = infer(args.data, args.rows)
    text = found.yaml(args.records)
    records = args.records or next(iter(found.drafts))
    rows, corrupt, first = _fitting(args.data, text, records, found.table.rows)
    print(text, end="")
    line = f"{records} records: {rows:,} rows fit this spec, {corrupt:,} are corrupt"
    print(line + (f", the first: {first}" if first else ""), file=sys.stderr)
    return 0


def _fitting(data: str, spec: str, records: str, limit: int) -> tuple[int, int, str | None]:
    """Reads rows with a spec: how many fit, how many do not, and the first of these."""
    from tfrz.data.sources.files import CorruptLine

    rows, corrupt, first = 0, 0, None
    reader = _opened(data, spec, records)
    for shard in reader.shards():
        for item in reader.read(shard):
            if isinstance(item, CorruptLine):
                corrupt += 1
                first = first or str(item)
            else:
                rows += item.num_rows
        if rows + corrupt >= limit:
            break
    return rows, corrupt, first


def _opened(data: str, spec: str, records: str, **options: Any) -> Any:
    """Opens files with the text of a spec."""
    from tfrz.data.records import open_source

    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "inferred.yaml"
        place.write_text(spec)
        return open_source(data, str(place), records, **options)


def _reader(args: argparse.Namespace, records: str | None) -> Any:
    """Opens the source; infers what is not given of files of your own."""
    from tfrz.config import apply_overrides, read_yaml
    from tfrz.data.inference import infer, records_of
    from tfrz.data.records import SOURCES, open_source
    from tfrz.data.sources.spans import located

    options = apply_overrides({}, args.option)
    args.data = located(args.data)
    name = args.data.partition(":")[0]
    known = name in SOURCES and (":" in args.data or name == "simulated")
    if args.features is not None and records is None and not known:
        records = records_of(read_yaml(args.features), args.features)
        print(f"{records} records, by the keys of {args.features}", file=sys.stderr)
    if args.features is not None or known or not _is_path(args.data):
        return open_source(args.data, args.features, records, **options)
    found = infer(args.data)
    text = found.yaml(records)
    records = records or next(iter(found.drafts))
    others = [other for other in found.drafts if other != records]
    line = f"no --features: read as {records} records, by the spec of 'tfrz data infer {args.data}'"
    line += f" (--records {' or '.join(others)} is possible too)" if others else ""
    print(line, file=sys.stderr)
    return _opened(args.data, text, records, **options)


def _is_path(data: str) -> bool:
    """Whether files are meant, not a misspelt source."""
    from tfrz.data.sources.locations import is_uri

    return is_uri(data) or ":" not in data or Path(data).exists() or "/" in data.partition(":")[0]


def _describe(args: argparse.Namespace) -> int:
    """Reads the source once and prints a table."""
    from tfrz.cli.tables import format_table
    from tfrz.config import require
    from tfrz.data.summary import summarize

    require(args.limit is None or args.limit >= 1, "--limit", "must be at least 1")
    wanted = args.dependence or args.plot is not None
    records = args.records or ("history" if wanted else None)
    reader = _reader(args, records)
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
        elif feature.kind == "time" and summary.usage.begin is not None:
            content = f"{summary.usage.begin} to {summary.usage.end}"
        else:
            content = f"{feature.minimum:g} to {feature.maximum:g}, mean {feature.mean:.4g}"
        distinct = "" if feature.distinct is None else f"{feature.distinct:,}"
        rows.append((feature.name, feature.kind, f"{feature.missing:,}", distinct, content))
    print(format_table(("feature", "kind", "missing", "distinct", "values"), rows))
    print(f"\n{format_table(('figure', 'value'), _figures(summary))}")
    if summary.advice:
        print("\nadvice:")
        for one in summary.advice:
            print(f"  {one.setting}\n    {one.reason}")
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


def _figures(summary: Any) -> list[tuple[str, str]]:
    """The figures of a source that matter for a recommender, in words."""
    usage, kind = summary.usage, summary.record_type
    one, many = ("query", "queries") if kind == "list" else ("user", "users")
    events = {"list": "candidates", "impression": "impressions"}.get(kind, "events")
    rows = [(events, f"{usage.events:,}")]
    for name, count in ((many, usage.users), ("items", usage.items)):
        if count is not None:
            rows.append((name, f"{count:,}"))
    if usage.length_p50 is not None:
        lengths = f"{usage.length_p50:.0f} / {usage.length_p90:.0f} / {usage.length_max:,}"
        rows.append((f"{events} per {one}: p50 / p90 / max", lengths))
    label = "relevant candidates" if kind == "list" else "label rate"
    shares = (
        ("events that repeat an item of their user", usage.repeated),
        ("users with fewer than 5 events", usage.few_users),
        ("items with fewer than 5 events", usage.few_items),
        (label, usage.label_rate),
        ("queries without a relevant candidate", usage.without),
        ("missing values of features", usage.missing),
    )
    rows += [(name, f"{share:.2%}") for name, share in shares if share is not None]
    if usage.begin is not None:
        rows.append(("time (UTC)", f"{usage.begin} to {usage.end}"))
    return rows


def _dependence(reader: Any, plot: str | None) -> Any:
    from tfrz.data.histories.dependence import measure_dependence, plot_dependence

    found = measure_dependence(reader)
    if plot is not None:
        plot_dependence(found, plot)
    return found
