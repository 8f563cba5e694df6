"""`tfrz reproduce`: runs papers' experiments and compares the results with the paper's."""

from __future__ import annotations

import argparse

HELP = "run papers' experiments and compare the results; without a name, list them"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's arguments."""
    parser.add_argument(
        "names", nargs="*", metavar="GROUP/EXPERIMENT", help="names, groups or globs"
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="use small sizes; statements that these cannot show are not judged",
    )
    parser.add_argument("--seed", type=int, default=0, help="random seed (0)")
    parser.add_argument("--data", help="path of the data set, for experiments that need one")
    parser.add_argument("--json", metavar="FILE", help="write the results to FILE")
    parser.add_argument(
        "--work",
        default="runs/reproduce",
        help="folder of finished trainings, which a repeated command reuses",
    )
    parser.add_argument("--jobs", type=int, default=1, help="number of parallel trainings (1)")
    parser.add_argument(
        "--other-lane",
        metavar="PYTHON",
        help="for lanes/*: the Python of the other lane's environment (.venv-newest/bin/python or "
        ".venv/bin/python in this folder, whichever is not this one)",
    )
    parser.add_argument(
        "--store", action="store_true", help="save the results in the package, for the docs"
    )


def run(args: argparse.Namespace) -> int:
    """Runs the experiments.

    Returns:
      0, or 1 if a statement that was judged does not hold. What a quick run is too small to show is
      not judged.
    """
    import json
    import platform
    import sys
    import time
    from pathlib import Path

    from tfrz.cli.tables import format_table
    from tfrz.config import require
    from tfrz.files import atomic_write
    from tfrz.reproduce.experiment import Context, experiments, result_file, select

    if not args.names:
        rows = [(e.name, e.source, e.title) for e in experiments().values()]
        print(format_table(("experiment", "in the paper", "title"), rows))
        return 0
    require(args.jobs >= 1, "--jobs", "must be at least 1")
    held, results = True, {}
    for experiment in select(args.names):
        print(f"{experiment.name}: {experiment.title} ({experiment.source})", file=sys.stderr)
        started = time.perf_counter()
        outcome = experiment.run(
            Context(
                quick=args.quick,
                seed=args.seed,
                data=args.data,
                work=Path(args.work) / experiment.name.partition("/")[0],
                say=lambda line: print(f"  {line}", file=sys.stderr, flush=True),
                jobs=args.jobs,
                other_lane=args.other_lane,
            )
        )
        held &= outcome.held
        import tensorflow as tf

        result = {
            "experiment": experiment.name,
            "title": experiment.title,
            "source": experiment.source,
            "quick": args.quick,
            "seed": args.seed,
            "seconds": round(time.perf_counter() - started, 1),
            "machine": f"{platform.machine()}, TensorFlow {tf.__version__}",
            **outcome.to_mapping(),
        }
        results[experiment.name] = result
        print(f"\n{experiment.name}: {experiment.title} ({experiment.source})\n")
        print(format_table(outcome.columns, outcome.rows))
        print()
        for check in outcome.checks:
            print(check.line)
        if args.store:
            atomic_write(result_file(experiment.name), json.dumps(result, indent=1) + "\n")
    if args.json:
        atomic_write(args.json, json.dumps(results, indent=1) + "\n")
    return 0 if held else 1
