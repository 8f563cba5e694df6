"""`tfrz reproduce`: a paper's experiments, its figures beside the paper's."""

from __future__ import annotations

import argparse

HELP = "run a paper's experiments and compare; without a name, list them"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's arguments."""
    parser.add_argument("names", nargs="*", metavar="GROUP/EXPERIMENT", help="names or globs")
    parser.add_argument("--quick", action="store_true", help="smaller sizes, which judge less")
    parser.add_argument("--seed", type=int, default=0, help="of everything random (0)")
    parser.add_argument("--data", help="the experiment's data set, where it needs one")
    parser.add_argument("--json", metavar="FILE", help="write the results here")
    parser.add_argument(
        "--work", default="runs/reproduce", help="folder of runs that a repeated command resumes"
    )
    parser.add_argument(
        "--jobs", type=int, default=1, help="runs to train at the same time, where there are many"
    )
    parser.add_argument(
        "--store", action="store_true", help="write them into the package's stored results"
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
        print(format_table(("experiment", "in the paper", "what"), rows))
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
