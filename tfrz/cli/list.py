"""`tfrz list`: the zoo as a table."""

from __future__ import annotations

import argparse
import json

HELP = "list the models of the zoo"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's arguments."""
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


_RECIPES = [
    (
        "distillation",
        "--set distill.teacher=PLACE",
        "Knowledge distillation from a teacher, whole or in part (arXiv 2002.03532)",
    ),
    (
        "low rank",
        "--set low_rank.rank=N",
        "Low-rank layers, from the start or with tfrz compress (arXiv 2202.00834)",
    ),
]


def run(args: argparse.Namespace) -> int:
    """Prints one row per model."""
    from tfrz.cli.tables import format_table
    from tfrz.zoo import registry

    entries = [registry.get(name) for name in registry.names()]
    if args.json:
        rows = [
            {
                "name": e.name,
                "title": e.title,
                "paper": e.paper.url,
                "record_type": e.record_type,
                "datasets": list(e.datasets),
                "signatures": list(e.signatures),
                "metrics": list(e.metrics),
            }
            for e in entries
        ]
        print(json.dumps(rows, indent=1))
        return 0
    header = ("model", "records", "data with a configuration", "title")
    print(
        format_table(
            header, [(e.name, e.record_type, ", ".join(e.datasets), e.title) for e in entries]
        )
    )
    print("\nrecipes for all models:")
    print(format_table(("recipe", "switch", "title"), _RECIPES))
    return 0
