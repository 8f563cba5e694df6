"""`tfrz tune MODEL --data DATA --out DIR`: searches for the best configuration."""

from __future__ import annotations

import argparse
import json
from typing import Any

HELP = "search for the best configuration of a model"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's arguments."""
    from tfrz.cli.train import add_run_arguments

    add_run_arguments(parser, "folder to write to; an unfinished search in it is resumed")
    parser.add_argument("--trials", type=int, help="sets tuner.max_trials")


def _shown(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else ""


def _table(result: dict[str, Any]) -> str:
    from tfrz.cli.tables import format_table

    trials = result["trials"]
    names, metrics = list(trials[0]["values"]), list(trials[0]["metrics"])
    rows = [
        (
            trial["trial"],
            *(trial["values"][name] for name in names),
            _shown(trial["objective"]) or "failed",
            *(_shown(trial["metrics"].get(name)) for name in metrics),
            trial["steps"],
            f"{trial['seconds']:.1f}",
        )
        for trial in trials
    ]
    return format_table(("trial", *names, result["objective"], *metrics, "steps", "seconds"), rows)


def run(args: argparse.Namespace) -> int:
    """Searches and prints the trials, the best first."""
    from tfrz.cli.configuration import overrides_of
    from tfrz.cli.train import set_up_logging
    from tfrz.config import require
    from tfrz.zoo.tune import tune

    require(args.trials is None or args.trials >= 1, "--trials", "must be at least 1")
    set_up_logging(args.quiet)
    overrides = overrides_of(args)
    if args.trials is not None:
        overrides.append(f"tuner.max_trials={args.trials}")
    result = tune(
        args.model,
        data=args.data,
        features=args.features,
        out=args.out,
        overrides=overrides,
        progress=not args.quiet,
        config_file=args.config,
    )
    if args.json:
        print(json.dumps(result, indent=1))
        return 0
    print(_table(result))
    tried, all_of_them = len(result["trials"]), result["combinations"]
    kind = "smallest" if result["direction"] == "min" else "largest"
    extent = f"all {tried}" if tried == all_of_them else f"{tried} of {all_of_them}"
    print(f"\n{extent} combinations were tried; the {kind} {result['objective']} is best")
    for trial in result["trials"]:
        if trial["error"] is not None:
            print(f"trial {trial['trial']} failed: {trial['error']}")
    print(f"best: {result['best']}")
    spec = f" --features {args.features}" if args.features else ""
    again = f"{args.model} --data {args.data}{spec}"
    print(f"next: tfrz train {again} --config {result['best']} --out DIR")
    return 0
