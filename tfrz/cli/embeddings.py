"""`tfrz embeddings export | report | show | publish | forget`: user embeddings, made offline."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

HELP = "export user embeddings of whole histories, inspect and publish them, forget users"


def _add_export(commands: Any) -> None:
    export = commands.add_parser("export", help="encode the histories of all users into a store")
    export.add_argument(
        "model", metavar="MODEL_DIR", help="a SavedModel of dv365, or the folder of its versions"
    )
    export.add_argument("--data", required=True, help="the events, as in 'tfrz train dv365'")
    export.add_argument(
        "--features",
        help="feature spec (YAML) of a file of your own (that of the run around MODEL_DIR)",
    )
    export.add_argument(
        "--option", action="append", default=[], metavar="KEY=VALUE", help="an option of the reader"
    )
    export.add_argument("--store", required=True, help="folder of the store, created if needed")
    export.add_argument(
        "--as-of",
        metavar="TIME",
        help="Unix seconds or a UTC date, e.g. 2026-08-01 (the second after the newest event)",
    )
    export.add_argument("--full", action="store_true", help="read the whole source again")
    export.add_argument(
        "--buckets", type=int, default=16, help="buckets of users in a new store (16)"
    )
    export.add_argument(
        "--allow-empty", action="store_true", help="accept slices that are empty for all users"
    )
    export.add_argument(
        "--no-publish", action="store_true", help="do not change the current generation"
    )
    export.add_argument(
        "--to",
        action="append",
        metavar="WRITER=PLACE",
        help="also write users to sqlite=FILE, tfrecord=FILE or module:Class=PLACE "
        "(sqlite=STORE/current.sqlite)",
    )
    export.add_argument("--runner", default="DirectRunner", help="Beam runner (DirectRunner)")
    export.add_argument(
        "--beam-arg", action="append", default=[], metavar="ARG", help="a Beam option"
    )
    export.add_argument("--json", action="store_true", help="print JSON")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's arguments."""
    commands = parser.add_subparsers(
        dest="action", required=True, metavar="export|report|show|publish|forget"
    )
    _add_export(commands)
    report = commands.add_parser("report", help="coverage, norms, ages, slices, drift")
    report.add_argument("store", metavar="STORE")
    report.add_argument("--generation", type=int, help="number of the generation (the current one)")
    report.add_argument("--json", action="store_true", help="print JSON")
    show = commands.add_parser("show", help="one user's vectors")
    show.add_argument("store", metavar="STORE")
    show.add_argument("user", metavar="USER")
    show.add_argument("--json", action="store_true", help="print JSON")
    publish = commands.add_parser("publish", help="make a generation the current one")
    publish.add_argument("store", metavar="STORE")
    publish.add_argument("generation", type=int, metavar="NUMBER")
    publish.add_argument("--to", action="append", metavar="WRITER=PLACE", help="as in 'export'")
    forget = commands.add_parser("forget", help="remove users or events for good")
    forget.add_argument("store", metavar="STORE")
    forget.add_argument("--user", action="append", default=[], metavar="USER")
    forget.add_argument("--users", metavar="FILE", help="a user per line")
    forget.add_argument(
        "--event", action="append", default=[], metavar="USER@TIME", help="TIME in Unix seconds"
    )


def _latest(directory: str) -> Path:
    """The SavedModel itself, or the newest version in a folder of versions."""
    root = Path(directory)
    versions = [p for p in root.glob("*") if p.name.isdecimal()] if root.is_dir() else []
    return max(versions, key=lambda p: int(p.name)) if versions else root


def _write(store: Any, number: int, writers: list[str] | None) -> None:
    from tfrz.embeddings.key_value import open_writer, write_key_values

    for text in writers or [f"sqlite={store.directory}/current.sqlite"]:
        written = write_key_values(store, number, open_writer(text))
        print(f"  {written:,} users to {text}", file=sys.stderr)


def _export(args: argparse.Namespace) -> int:
    from tfrz.cli.predict import seconds_of
    from tfrz.cli.tables import format_table
    from tfrz.config import apply_overrides, to_mapping
    from tfrz.data.records import open_source
    from tfrz.data.timelines.readers import check_timelines
    from tfrz.embeddings.job import ExportOptions, export_embeddings
    from tfrz.embeddings.key_value import open_writer
    from tfrz.embeddings.store import Store
    from tfrz.zoo.run_folder import features_of

    for text in args.to or ():
        open_writer(text)  # A wrong name fails before the job, not after it.
    options = ExportOptions(
        as_of=seconds_of(args.as_of, "--as-of"),
        buckets=args.buckets,
        full=args.full,
        allow_empty=args.allow_empty,
        beam_runner=args.runner,
        beam_args=tuple(args.beam_arg),
    )
    model = _latest(args.model)
    features = features_of(model, args.features)
    reader = open_source(args.data, features, "timeline", **apply_overrides({}, args.option))
    manifest = export_embeddings(
        model,
        check_timelines(reader),
        args.store,
        options,
        publish=not args.no_publish,
        say=lambda line: print(f"  {line} ...", file=sys.stderr, flush=True),
    )
    if not args.no_publish:
        _write(Store(args.store), manifest.number, args.to)
    if args.json:
        print(json.dumps(to_mapping(manifest), indent=1))
        return 0
    rows = [(name, f"{value:,}") for name, value in manifest.counts.items()]
    print(format_table(("count", ""), rows))
    print(
        f"\nversion {manifest.version} as of {manifest.as_of}: {manifest.users:,} users, "
        f"{manifest.num_vectors} vectors of {manifest.dim} each"
    )
    print(f"generation {manifest.number} of {args.store}; 'tfrz embeddings report {args.store}'")
    return 0


def _report(args: argparse.Namespace) -> int:
    from tfrz.cli.tables import format_table
    from tfrz.embeddings.store import Store, open_embeddings

    store = Store(args.store)
    if args.generation is None:
        folder = open_embeddings(args.store).folder
    else:
        store.manifest(args.generation)
        folder = store.generation(args.generation)
    report = json.loads((folder / "health.json").read_text())
    if args.json:
        print(json.dumps(report, indent=1))
        return 0
    print(
        f"version {report['version']} as of {report['as_of']}: {report['users']:,} users, "
        f"{report['coverage']:.1%} with vectors, {report['not_finite']:,} not finite\n"
    )
    tables = {
        "norm of a vector": {k: f"{v:.4f}" for k, v in report["norm"].items()},
        "days since the newest event": {
            k: f"{v:,}" for k, v in report["days_since_newest_event"].items()
        },
    }
    drift = report.get("drift")
    if drift is not None and drift.get("comparable") and drift["users"]:
        title = f"cosine to version {drift['version']} as of {drift['as_of']}"
        tables[title] = {k: f"{v:.4f}" for k, v in drift["cosine"].items()}
    for title, values in tables.items():
        print(f"{title}\n{format_table(tuple(values), [tuple(values.values())])}\n")
    rows = [(n, f"{v['users']:,}", f"{v['weight']:,.0f}") for n, v in report["slices"].items()]
    print(format_table(("slice", "users", "weight"), rows))
    return 0


def _show(args: argparse.Namespace) -> int:
    import numpy as np

    from tfrz.embeddings.store import open_embeddings
    from tfrz.errors import InputError
    from tfrz.layers.quantize import unpack4

    embeddings = open_embeddings(args.store)
    (packed,) = embeddings.packed([args.user.encode()])
    if packed is None:
        raise InputError(f"{args.store} has no vectors for user {args.user!r}")
    words = np.frombuffer(packed, "<u8").reshape(embeddings.num_vectors, -1)
    vectors = unpack4(words, embeddings.dim)
    if args.json:
        described = {
            "user": args.user,
            "version": embeddings.version,
            "generated_at": embeddings.generated_at,
            "vectors": vectors.tolist(),
        }
        print(json.dumps(described))
        return 0
    print(
        f"user {args.user}, version {embeddings.version} as of {embeddings.generated_at}: "
        f"{len(vectors)} vectors of {embeddings.dim}, {len(packed):,} bytes"
    )
    for vector in vectors:
        print(" ".join(f"{value:8.4f}" for value in vector))
    return 0


def _publish(args: argparse.Namespace) -> int:
    from tfrz.embeddings.store import Store

    store = Store(args.store)
    store.publish(args.generation)
    _write(store, args.generation, args.to)
    print(f"generation {args.generation} of {args.store} is current")
    return 0


def _forget(args: argparse.Namespace) -> int:
    from tfrz.embeddings.store import Store
    from tfrz.errors import InputError

    users = [user.encode() for user in args.user]
    if args.users is not None:
        try:
            users += [line for line in Path(args.users).read_bytes().splitlines() if line]
        except OSError as error:
            raise InputError(f"cannot read {args.users}: {error.strerror}") from error
    events = []
    for text in args.event:
        user, _, time = text.rpartition("@")
        if not user or not (time.isascii() and time.isdigit()):
            raise InputError(f"--event {text}: write it as USER@TIME, TIME in Unix seconds")
        events.append((user.encode(), int(time)))
    if not users and not events:
        raise InputError("nothing to forget: set --user, --users or --event")
    store = Store(args.store)
    if not store.numbers():
        raise InputError(f"{args.store} is not a store of embeddings")
    removed = store.forget(users, events)
    current = store.current()
    if current is not None and (store.directory / "current.sqlite").exists():
        _write(store, current, None)
    print(
        f"{removed:,} rows removed; the next export reads the whole source, without "
        f"{len(users):,} users and {len(events):,} events"
    )
    return 0


def run(args: argparse.Namespace) -> int:
    """Runs one of the actions."""
    actions = {
        "export": _export,
        "report": _report,
        "show": _show,
        "publish": _publish,
        "forget": _forget,
    }
    return actions[args.action](args)
