"""The page of one model, made from its row: `tfrz describe` prints it, the docs store it."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Iterator
from typing import Any

from tfrz.config import write_yaml
from tfrz.zoo.registry import ModelEntry, resolve
from tfrz.zoo.run_config import load_run_config


def _first_line(path: str) -> str:
    return (inspect.getdoc(resolve(path)) or "").partition("\n")[0]


def model_page(entry: ModelEntry, dataset: str = "simulated") -> str:
    """The model's page as Markdown: paper, parts, commands, configuration and results.

    Args:
      entry: the model's row.
      dataset: whose configuration to show.
    """
    config = load_run_config(entry.name, dataset)
    lines = [
        f"# {entry.name}",
        "",
        f"{entry.title}.",
        "",
        f"{entry.paper.authors}: «{entry.paper.title}», {entry.paper.venue}, <{entry.paper.url}>.",
        "",
        f"Learns from *{entry.record_type}* records. Data with a configuration of its own: "
        f"{', '.join(entry.datasets)}.",
        "",
        "```",
        f"tfrz train {entry.name} --data {dataset} --out runs/{entry.name}",
        f"tfrz pipeline run {entry.name} --data {dataset} --root runs/{entry.name}-pipeline",
        f"tfrz serve runs/{entry.name}/model --name {entry.name}",
        "```",
        "",
        "## Parts",
        "",
        f"- `{entry.model.replace(':', '.')}`: {_first_line(entry.model)}",
    ]
    lines += [
        f"- `{p.replace(':', '.')}`: {_first_line(p)}" for p in (*entry.layers, *entry.losses)
    ]
    if entry.notes:
        lines += ["", "## What is certain", "", entry.notes]
    lines += ["", "## Signatures and metrics", ""]
    lines.append(f"Signatures: {', '.join(f'`{s}`' for s in entry.signatures)}.")
    lines.append(f"Metrics: {', '.join(entry.metrics)}.")
    lines += ["", f"## Configuration for `{dataset}`", "", "```yaml"]
    lines += [write_yaml(config).rstrip(), "```", ""]
    if entry.bench:
        lines.append(f"Benchmarks: {', '.join(f'`tfrz bench {b}`' for b in entry.bench)}.")
    if entry.reproduce:
        lines.append(f"The paper's experiments: `tfrz reproduce '{entry.name}/*'`.")
    return "\n".join(lines) + "\n"


def _described(cls: type) -> dict[str, str]:
    """The `Attributes:` of a configuration class and its bases: key to description."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        _, _, attributes = (inspect.getdoc(base) or "").partition("Attributes:\n")
        name = ""
        for line in attributes.splitlines():
            key, colon, text = line.strip().partition(": ")
            if colon and re.fullmatch(r" {2}\w+: .*", line):
                name, found[key] = key, text
            elif name and line.startswith("    "):
                found[name] += f" {line.strip()}"
            elif line.strip() == "":
                name = ""
    return found


def configuration_keys(value: Any, prefix: str = "") -> Iterator[tuple[str, Any, str]]:
    """The keys of a configuration, those of its sections included.

    Args:
      value: a configuration dataclass.
      prefix: dotted name of the section that it is.

    Yields:
      Dotted name, value and description; the description is "" if the class has none.
    """
    described = _described(type(value))
    for field in dataclasses.fields(value):
        inner, name = getattr(value, field.name), f"{prefix}{field.name}"
        if dataclasses.is_dataclass(inner) and not isinstance(inner, type):
            yield from configuration_keys(inner, f"{name}.")
        else:
            yield name, inner, described.get(field.name, "")
