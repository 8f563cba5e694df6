"""`tfrz train MODEL --data DATA --out DIR`: trains a model in this process."""

from __future__ import annotations

import argparse
import json
import logging
import sys

from tfrz.cli.configuration import add_configuration_arguments, overrides_of

HELP = "train a model in this process, and export it"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's arguments."""
    add_run_arguments(parser, "folder to write to; an unfinished run in it is resumed")
    parser.add_argument(
        "--cache",
        metavar="DIR",
        help="folder for encoded examples, which later runs on the same data share (OUT/cache)",
    )


def add_run_arguments(parser: argparse.ArgumentParser, out: str) -> None:
    """Adds the arguments of commands that train in this process; `out` is the help of `--out`."""
    add_configuration_arguments(parser)
    parser.add_argument("--out", required=True, help=out)
    parser.add_argument("--seed", type=int, help="sets data.seed and trainer.seed")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("--quiet", action="store_true", help="no progress bar, no log")


def set_up_logging(quiet: bool) -> None:
    """Logs to standard error, without the messages of libraries."""
    logging.basicConfig(
        level=logging.WARNING if quiet else logging.INFO,
        format="%(message)s",
        stream=sys.stderr,
    )
    for noisy in ("absl", "tensorflow", "matplotlib"):
        logging.getLogger(noisy).setLevel(logging.ERROR)


def run(args: argparse.Namespace) -> int:
    """Trains and prints the metrics."""
    from tfrz.cli.tables import format_table
    from tfrz.zoo.train import train

    set_up_logging(args.quiet)
    result = train(
        args.model,
        data=args.data,
        features=args.features,
        out=args.out,
        overrides=overrides_of(args),
        progress=not args.quiet,
        config_file=args.config,
        cache=args.cache,
    )
    if args.json:
        print(json.dumps(result, indent=1))
        return 0
    names = list(result["metrics"]["validation"])
    rows = [
        (set_name, *(f"{values[n]:.4f}" for n in names))
        for set_name, values in result["metrics"].items()
    ]
    print(format_table(("set", *names), rows))
    print(
        f"\n{result['parameters']:,} parameters, {result['steps']} steps, "
        f"{result['seconds']['fit']:.1f} s of training at "
        f"{result['examples_per_second']:,.0f} examples per second"
    )
    if "teaching" in result:
        shares = ", ".join(f"{name} {share:.1%}" for name, share in result["teaching"].items())
        print(f"what the teacher adds to the labels: {shares} ({args.out}/teaching.png)")
    print(f"model: {result['model']}\ncard:  {args.out}/card.md")
    return 0
