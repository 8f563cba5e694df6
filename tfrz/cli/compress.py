"""`tfrz compress DIR --rank N --out OUT`: replaces a trained model's layers by low-rank ones."""

from __future__ import annotations

import argparse
import json
from typing import Any

HELP = "make a trained model smaller with low-rank layers, and fine-tune it"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's arguments."""
    parser.add_argument(
        "directory", metavar="DIR", help="a run of tfrz train, or a SavedModel that tfrz exported"
    )
    parser.add_argument("--out", required=True, help="folder to write the result to")
    parser.add_argument("--rank", type=int, help="rank of every layer that it makes smaller")
    parser.add_argument(
        "--target-parameters",
        type=int,
        metavar="N",
        help="instead of --rank: number of weights of all factorisable matrices together",
    )
    parser.add_argument("--data", help="as in tfrz train (the data that DIR was trained on)")
    parser.add_argument(
        "--features", help="feature spec (YAML) of a file of your own (that of the run in DIR)"
    )
    parser.add_argument(
        "--init",
        choices=("data", "spectral", "function"),
        default="data",
        help="factors to start from: optimal for the layers' inputs on the data (default), nearest "
        "to the matrix, or nearest to a ReLU layer's function",
    )
    parser.add_argument(
        "--repair-scale", action="store_true", help="keep the scale of each layer's output"
    )
    parser.add_argument(
        "--fine-tune-steps", type=int, default=0, metavar="N", help="then train N more steps (0)"
    )
    parser.add_argument(
        "--learning-rate", type=float, metavar="X", help="of fine-tuning (that of the run in DIR)"
    )
    parser.add_argument(
        "--distill",
        type=float,
        default=0.0,
        metavar="WEIGHT",
        help="weight in 0 .. 1 of the original model as a teacher in fine-tuning (0)",
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("--quiet", action="store_true", help="no progress bar, no log")


def _layers(result: dict[str, Any]) -> str:
    from tfrz.cli.tables import format_table

    header = (
        "layer",
        "kind",
        "shape",
        "rank",
        "before",
        "after",
        "output error",
        "full because it",
    )
    rows = [
        (
            layer["name"],
            layer["kind"],
            " x ".join(map(str, layer["shape"])),
            layer["rank"] or "full",
            f"{layer['parameters_before']:,}",
            f"{layer['parameters_after']:,}",
            "" if layer["output_error"] is None else f"{layer['output_error']:.4f}",
            layer["skipped"],
        )
        for layer in result["layers"]
    ]
    return format_table(header, rows)


def _quality(result: dict[str, Any]) -> str:
    from tfrz.cli.tables import format_table

    names = list(result["quality"][0]["metrics"]["validation"])
    rows = [
        (
            stage["stage"],
            set_name,
            f"{stage['parameters']:,}",
            f"{stage['dense_parameters']:,}",
            *(f"{values[name]:.4f}" for name in names),
        )
        for stage in result["quality"]
        for set_name, values in stage["metrics"].items()
    ]
    return format_table(("model", "set", "parameters", "without embeddings", *names), rows)


def run(args: argparse.Namespace) -> int:
    """Compresses a model, and prints its layers and its metrics before and after."""
    from tfrz.cli.train import set_up_logging
    from tfrz.zoo.compress import compress

    set_up_logging(args.quiet)
    result = compress(
        args.directory,
        args.out,
        rank=args.rank,
        target_parameters=args.target_parameters,
        data=args.data,
        features=args.features,
        init=args.init,
        repair_scale=args.repair_scale,
        fine_tune_steps=args.fine_tune_steps,
        learning_rate=args.learning_rate,
        distill=args.distill,
        progress=not args.quiet,
    )
    if args.json:
        print(json.dumps(result, indent=1))
        return 0
    print(_layers(result))
    print(f"\n{_quality(result)}")
    print(f"\nkept: {result['kept']}\nmodel: {result['model']}\ncard:  {args.out}/card.md")
    return 0
