"""Running a suite: its parts in order, each measured or skipped with the reason.

A suite is a module with `TITLE: str` and `PARTS: Mapping[str, Part]`. `tfrz bench NAME` and
`python -m benchmarks.NAME` both end here.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import importlib.util
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from benchmarks import report as reports
from tfrz.config import did_you_mean
from tfrz.errors import InputError
from tfrz.files import atomic_write

RESULTS = Path(__file__).resolve().parent / "results"
DEFAULT_DATA = "movielens-1m:../shared/data/ml-1m/ml-1m.zip"


@dataclasses.dataclass(frozen=True)
class Options:
    """What the user asked for.

    Attributes:
      quick: small sizes, seconds in all; bounds are then not judged.
      data: DATA of the end-to-end parts.
      seed: of inputs and initial weights.
    """

    quick: bool = False
    data: str = DEFAULT_DATA
    seed: int = 0


class Skip(Exception):
    """A part cannot run here; the message says why."""


@dataclasses.dataclass(frozen=True)
class Part:
    """One measurement of a suite.

    Attributes:
      run: does it. May raise `Skip`.
      title: one line for the help.
      layer: whether it needs nothing but TensorFlow and the package (`--layer-only`).
      needs: modules without which it is skipped.
      in_quick: whether `--quick` runs it too.
    """

    run: Callable[[Options], reports.Section]
    title: str
    layer: bool = True
    needs: tuple[str, ...] = ()
    in_quick: bool = True


def load_suite(name: str) -> ModuleType:
    """The module of the suite called `name`.

    Raises:
      InputError: there is none.
    """
    module = name if "." in name else f"benchmarks.{name}"
    if importlib.util.find_spec(module) is None:
        raise InputError(f"suite {name!r} has no module {module}: add it or correct the registry")
    return importlib.import_module(module)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that every suite shares."""
    parser.add_argument(
        "--json", metavar="FILE", help="also write the report to FILE (- for stdout)"
    )
    parser.add_argument("--quick", action="store_true", help="small sizes; bounds are not judged")
    parser.add_argument(
        "--part", action="append", metavar="NAME", help="run only this part (again)"
    )
    parser.add_argument(
        "--layer-only", action="store_true", help="only the parts that need nothing but TensorFlow"
    )
    parser.add_argument(
        "--data",
        default=DEFAULT_DATA,
        help="DATA of the end-to-end part; skipped if it is not there (default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of inputs and weights (default: 0)")
    parser.add_argument(
        "--store",
        action="store_true",
        help="keep the result in benchmarks/results/<suite>/<machine>.json; parts that were not "
        "run keep what is there",
    )


def _chosen(parts: Mapping[str, Part], arguments: argparse.Namespace) -> list[str]:
    for name in arguments.part or ():
        if name not in parts:
            raise InputError(f"unknown part {name!r}{did_you_mean(name, parts)}")
    return [
        name
        for name, part in parts.items()
        if name in (arguments.part or parts)
        and (part.layer or not arguments.layer_only)
        and (part.in_quick or not arguments.quick or name in (arguments.part or ()))
    ]


def _missing(needs: Sequence[str]) -> list[str]:
    def absent(name: str) -> bool:
        try:
            return importlib.util.find_spec(name) is None
        except ModuleNotFoundError:  # The parent package is absent.
            return True

    return [name for name in needs if absent(name)]


def run_part(part: Part, options: Options) -> dict[str, Any]:
    """Measures one part: plain values, with when and under which load."""
    missing = _missing(part.needs)
    if missing:
        return {"title": part.title, "skipped": f"{', '.join(missing)} not installed"}
    mark, begin = reports.stamp(), time.perf_counter()
    try:
        section = part.run(options).to_mapping()
    except Skip as reason:
        return {"title": part.title, "skipped": str(reason)}
    return {
        **section,
        **mark,
        "load_average_after": [round(x, 2) for x in os.getloadavg()],
        "seconds": round(time.perf_counter() - begin, 1),
        "quick": options.quick,
    }


def run_suite(name: str, suite: ModuleType, arguments: argparse.Namespace) -> int:
    """Runs the chosen parts of a suite, prints and writes their report.

    Returns:
      0, or 1 if a bound was judged and not held.

    Raises:
      InputError: an unknown part, or a place that cannot be written.
    """
    data = arguments.data or DEFAULT_DATA
    options = Options(quick=arguments.quick, data=data, seed=arguments.seed)
    chosen = _chosen(suite.PARTS, arguments)
    out = sys.stderr if arguments.json == "-" else sys.stdout
    machine = reports.describe_machine()
    device = machine["gpus"][0] if machine["gpus"] else "CPU"
    print(f"{suite.TITLE} ({machine['cpu']}, {machine['cores']} cores, on {device})", file=out)
    report: dict[str, Any] = {
        "suite": name,
        "machine": machine,
        "versions": reports.versions(),
        "parts": {},
    }
    if arguments.json not in (None, "-"):
        atomic_write(arguments.json, json.dumps(report))  # Fails now rather than after minutes.
    for part_name in chosen:
        print(f"{name}/{part_name}: measuring", file=sys.stderr, flush=True)
        report["parts"][part_name] = run_part(suite.PARTS[part_name], options)
        print(
            "\n" + reports.part_as_text(part_name, report["parts"][part_name]), file=out, flush=True
        )
    if arguments.json == "-":
        print(json.dumps(report, indent=1))
    elif arguments.json:
        atomic_write(arguments.json, json.dumps(report, indent=1) + "\n")
    if arguments.store:
        path = RESULTS / name / f"{reports.machine_slug(machine)}.json"
        merged = reports.merge_reports(reports.read_report(path), report)
        atomic_write(path, json.dumps(merged, indent=1) + "\n")
        print(f"\nstored in {path}", file=out)
    broken = reports.broken_bounds(report)
    for figure in broken:
        print(f"not held: {figure}", file=sys.stderr)
    return 1 if broken else 0


def main(name: str, argv: Sequence[str] | None = None) -> int:
    """The command line of one suite, for machines without the `tfrz` command's dependencies."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    suite = load_suite(name)
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=suite.TITLE)
    add_arguments(parser)
    try:
        return run_suite(name, suite, parser.parse_args(argv))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
