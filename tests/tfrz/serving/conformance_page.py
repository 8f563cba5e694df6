"""`docs/serving_conformance.md`: every behaviour that the black-box suite shows, and its test."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
PAGE = HERE.parents[2] / "docs" / "serving_conformance.md"
TITLES = {
    "1": "Model directory",
    "2": "Versions, policies, labels",
    "3": "Flags",
    "4": "Configuration files",
    "5": "From request to model, version, signature",
    "6": "gRPC",
    "7": "HTTP",
    "8": "JSON values",
    "9": "Errors",
    "10": "Batching",
    "11": "Metrics",
    "12": "Warm-up",
    "13": "Request logging",
    "14": "Limits, time, concurrency, start and stop",
    "16": "Worked examples",
}
HEAD = """# Serving: what holds and what deviates

Made by `make conformance` from a run of the black-box suite in `tests/tfrz/serving`: server
processes on loopback sockets, clients of the stubs of `tensorflow-serving-api` 2.15.1. The
interface is that of `tensorflow_model_server` 2.15.1; the stock binary itself was not run here.
"""

Row = tuple[str, str, str | None, str]


def _order(row: Row) -> tuple[list[int], str, str]:
    return [int(part) for part in row[0].split(".")], row[3], row[1]


def page(rows: Mapping[Row, Sequence[str]]) -> str:
    """The page of a run: the outcomes of each row's cases."""
    held = sum(1 for row, seen in rows.items() if row[2] is None and set(seen) == {"passed"})
    deviating = sum(1 for row in rows if row[2] is not None)
    lines = [HEAD, f"{len(rows)} behaviours: {held} hold, {deviating} deviate.", ""]
    section = None
    for row in sorted(rows, key=_order):
        if row[0].split(".")[0] != section:
            section = row[0].split(".")[0]
            lines += [
                f"## {section} {TITLES[section]}",
                "",
                "| section | behaviour | test | |",
                "| --- | --- | --- | --- |",
            ]
            lines[-4:-4] = [""] if lines[-5] else []
        outcomes = set(rows[row])
        verdict = "held" if outcomes == {"passed"} else "**" + ", ".join(sorted(outcomes)) + "**"
        if row[2] is not None:
            verdict = f"deviates: {row[2]}"
        behaviour = row[1].replace("|", "\\|")
        lines.append(f"| {row[0]} | {behaviour} | `{row[3]}` | {verdict} |")
    return "\n".join(lines) + "\n"


def declared() -> set[tuple[str, str]]:
    """(behaviour, test) of every mark in the suite."""
    found = set()
    for path in sorted(HERE.glob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.FunctionDef):
                continue
            for mark in node.decorator_list:
                if isinstance(mark, ast.Call) and getattr(mark.func, "id", "") == "contract":
                    behaviour = ast.literal_eval(mark.args[1])
                    found.add((behaviour, f"{path.name}::{node.name}"))
    return found
