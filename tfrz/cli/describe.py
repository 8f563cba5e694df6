"""`tfrz describe MODEL`: the page of a model."""

from __future__ import annotations

import argparse
import json

HELP = "describe a model: paper, layers, data, signatures, configuration, results"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's arguments."""
    parser.add_argument("model", help="a name from 'tfrz list'")
    parser.add_argument(
        "--data", default="simulated", help="data set whose configuration to show (simulated)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of Markdown")


def run(args: argparse.Namespace) -> int:
    """Prints the page of one model."""
    from tfrz.zoo import registry
    from tfrz.zoo.pages import model_page
    from tfrz.zoo.run_config import load_run_config, run_config_to_mapping

    entry = registry.get(args.model)
    if args.json:
        import dataclasses

        config = run_config_to_mapping(load_run_config(args.model, args.data))
        print(json.dumps({**dataclasses.asdict(entry), "configuration": config}, indent=1))
        return 0
    print(model_page(entry, args.data))
    return 0
