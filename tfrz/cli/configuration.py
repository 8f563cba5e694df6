"""Arguments shared by commands that run a model's configuration on data."""

from __future__ import annotations

import argparse
import json


def add_configuration_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the model, its data and overrides of its configuration."""
    parser.add_argument("model", help="a name from 'tfrz list'")
    parser.add_argument(
        "--data",
        default="simulated",
        help="simulated (default), NAME:PATH such as movielens-1m:ml-1m.zip, or files of your own: "
        "a path, folder, glob or URI",
    )
    parser.add_argument("--features", help="feature spec (YAML) of a file of your own")
    for split in ("validation", "test"):
        parser.add_argument(
            f"--{split}",
            metavar="DATA",
            help=f"files of your own for the {split} set, of impressions or lists "
            f"(sets data.{split})",
        )
    parser.add_argument(
        "--config", metavar="FILE", help="YAML that overrides the configuration, before --set"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="overrides",
        metavar="KEY=VALUE",
        help="a configuration value, e.g. trainer.epochs=5",
    )


def overrides_of(args: argparse.Namespace) -> list[str]:
    """The overrides of `--set` and, for commands that have it, of `--seed`."""
    overrides = list(args.overrides)
    for split in ("validation", "test"):
        if getattr(args, split, None) is not None:
            overrides.append(f"data.{split}={json.dumps(getattr(args, split))}")
    seed = getattr(args, "seed", None)
    if seed is not None:
        overrides += [f"data.seed={seed}", f"trainer.seed={seed}"]
    return overrides
