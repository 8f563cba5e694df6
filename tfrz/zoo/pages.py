"""The page of one model, made from its row: `tfrz describe` prints it, the docs store it."""

from __future__ import annotations

import inspect

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
