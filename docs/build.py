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


def pages() -> dict[Path, str]:
    """Each page and its text."""
    made = {DOCS / "results.md": results_page()}
    for name in registry.names():
        made[DOCS / "models" / f"{name}.md"] = model_page(registry.get(name))
    return made


if __name__ == "__main__":
    for place, text in pages().items():
        atomic_write(place, text)
        print(place)
