"""`tfrz bench`: speed and memory relative to named baselines of the same run."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import logging
import os
import sys
from pathlib import Path
from types import ModuleType

from tfrz.config import did_you_mean
from tfrz.errors import InputError
from tfrz.zoo import registry

HELP = "measure speed and memory against named baselines; without SUITE, list the suites"


def _runner() -> ModuleType:
    """The runner, which lies beside the package in a checkout and in an installation."""
    root = Path(__file__).resolve().parents[2]
    if not (root / "benchmarks" / "runner.py").exists():
        raise InputError("the benchmarks are not installed: install the whole wheel of tfrz")
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))
    return importlib.import_module("benchmarks.runner")


# Suites that belong to no model's row of the registry, and what they belong to.
_SHARED = {"data": ["your own files"], "distill": ["recipe"]}


def suites() -> dict[str, list[str]]:
    """The names of all suites, with the models whose registry rows name them."""
    found: dict[str, list[str]] = {}
    for model in registry.names():
        for suite in registry.get(model).bench:
            found.setdefault(suite, []).append(model)
    return {**found, **_SHARED}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds SUITE and the options that all suites share."""
    parser.add_argument("suite", nargs="?", metavar="SUITE", help="one of: " + ", ".join(suites()))
    parser.add_argument(
        "--json", metavar="FILE", help="also write the report to FILE (- for stdout)"
    )
    parser.add_argument("--quick", action="store_true", help="small sizes; bounds are not judged")
    parser.add_argument(
        "--part", action="append", metavar="NAME", help="run only this part (can be repeated)"
    )
    parser.add_argument(
        "--layer-only", action="store_true", help="only the parts that need nothing but TensorFlow"
    )
    parser.add_argument("--data", help="data of the end-to-end part, which is skipped without them")
    parser.add_argument("--seed", type=int, default=0, help="seed of inputs and weights (0)")
    parser.add_argument(
        "--store",
        action="store_true",
        help="keep the result in benchmarks/results/<suite>/<machine>.json",
    )


def _print_suites(runner: ModuleType, known: dict[str, list[str]]) -> None:
    for name, models in known.items():
        suite = runner.load_suite(name)
        print(f"{name}: {suite.TITLE} ({', '.join(models)})")
        for part, description in suite.PARTS.items():
            print(f"  {part:<12} {description.title}")


def run(args: argparse.Namespace) -> int:
    """Runs a suite.

    Returns:
      0, or 1 if a figure is out of its bound.

    Raises:
      InputError: an unknown suite or part, or no benchmarks.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    runner = _runner()
    known = suites()
    if args.suite is None:
        _print_suites(runner, known)
        return 0
    if args.suite not in known:
        raise InputError(f"unknown suite {args.suite!r}{did_you_mean(args.suite, known)}")
    return int(runner.run_suite(args.suite, runner.load_suite(args.suite), args))
