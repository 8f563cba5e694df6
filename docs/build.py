"""Writes the pages that are made from the registry and from stored results."""

from __future__ import annotations

import json
from pathlib import Path

from tfrz.cli.tables import format_markdown
from tfrz.files import atomic_write
from tfrz.reproduce.experiment import RESULTS
from tfrz.zoo import registry
from tfrz.zoo.pages import model_page

DOCS = Path(__file__).resolve().parent


def results_page() -> str:
    """The stored results of `tfrz reproduce`."""
    lines = [
        "# Results",
        "",
        "Made by `make docs` from the files that `tfrz reproduce NAME --store` wrote.",
        "",
    ]
    for path in sorted(RESULTS.glob("*.json")):
        result = json.loads(path.read_text())
        lines += [f"## {result['experiment']}", "", f"{result['title']} ({result['source']})", ""]
        lines += [format_markdown(result["columns"], result["rows"]), ""]
        for check in result["checks"]:
            word = "held" if check["held"] else "**NOT held**"
            lines.append(f"- {word}: {check['statement']} ({check['measured']})")
        lines.append("")
    return "\n".join(lines)


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"


def benchmarks_page() -> str:
    """The stored results of `tfrz bench`."""
    lines = [
        "# Benchmarks",
        "",
        "Made by `make docs` from the files that `tfrz bench SUITE --store` wrote, one a machine.",
        "Ratios are of medians of one paired run; absolute times hold for the machine alone.",
        "",
    ]
    for path in sorted((DOCS.parent / "benchmarks" / "results").glob("*/*.json")):
        report = json.loads(path.read_text())
        machine, versions = report["machine"], report["versions"]
        devices = ", ".join([f"{machine['cores']} cores of {machine['cpu']}", *machine["gpus"]])
        lines += [
            f"## {report['suite']}, {devices}, TensorFlow {versions['tensorflow']}",
            "",
        ]
        for name, part in report["parts"].items():
            lines += [f"### {name}: {part['title']}", ""]
            rows = [
                (
                    figure["name"],
                    f"{_number(figure['value'])} {figure['unit']}",
                    figure["bound"] or "",
                    figure["verdict"] or "",
                )
                for figure in part["figures"]
            ]
            lines += [format_markdown(("what", "value", "bound", "verdict"), rows), ""]
            lines += [f"{note[0].upper()}{note[1:].rstrip('.')}." for note in part["notes"]]
            lines += [""] if part["notes"] else []
    return "\n".join(lines).rstrip() + "\n"


def pages() -> dict[Path, str]:
    """Each page and its text."""
    made = {
        DOCS / "results.md": results_page(),
        DOCS / "benchmarks.md": benchmarks_page(),
    }
    for name in registry.names():
        made[DOCS / "models" / f"{name}.md"] = model_page(registry.get(name))
    return made


if __name__ == "__main__":
    for place, text in pages().items():
        atomic_write(place, text)
        print(place)
