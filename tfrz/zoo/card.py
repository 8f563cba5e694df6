"""The model card: the inputs, the training and the quality of a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tfrz.config import write_yaml
from tfrz.data.spec import Spec

if TYPE_CHECKING:
    from tfrz.training.factorization import LayerReport
    from tfrz.zoo.registry import ModelEntry


def render_card(
    entry: ModelEntry,
    run_config: Any,
    spec: Spec,
    data: str,
    metrics: Mapping[str, Mapping[str, float]],
    num_parameters: int,
    layers: Sequence[LayerReport] = (),
) -> str:
    """The card of one trained model, as Markdown.

    Args:
      entry: the model's row in the registry.
      run_config: the resolved configuration.
      spec: the raw features.
      data: the source of the data, as given to `--data`.
      metrics: set name ("validation", "test") to metric names and values.
      num_parameters: trainable parameters, embeddings included.
      layers: the report of each layer, if some are of low rank.
    """
    lines = [
        f"# {entry.name}: {entry.title}",
        "",
        f"Paper: {entry.paper.authors}, «{entry.paper.title}», {entry.paper.venue}, "
        f"{entry.paper.url}",
        "",
        f"Trained on `{data}`; {num_parameters:,} parameters, embeddings included.",
        "",
        "## Inputs (raw)",
        "",
        "| feature | kind | dtype | values |",
        "| --- | --- | --- | --- |",
    ]
    for feature in spec.features:
        values = "many" if feature.multivalent else "one"
        lines.append(f"| {feature.name} | {feature.kind} | {feature.dtype} | {values} |")
    if entry.notes:
        lines += ["", "## What is certain", "", entry.notes]
    lines += ["", "## Metrics", ""]
    names = sorted({name for values in metrics.values() for name in values})
    if names:
        lines += [f"| set | {' | '.join(names)} |", "| --- " * (len(names) + 1) + "|"]
        for set_name, found in metrics.items():
            cells = " | ".join(f"{found[n]:.4f}" if n in found else "" for n in names)
            lines.append(f"| {set_name} | {cells} |")
    else:
        lines.append("Measured by the Evaluator of the pipeline, after this card was written.")
    if layers:
        lines += ["", "## Layers of low rank", ""]
        lines += ["| layer | shape | rank | parameters | as a full matrix | stays full: it |"]
        lines += ["| --- " * 6 + "|"]
        for r in layers:
            counts = f"{r.parameters_after:,} | {r.parameters_before:,}"
            shape = " x ".join(map(str, r.shape))
            lines.append(f"| {r.name} | {shape} | {r.rank or 'full'} | {counts} | {r.skipped} |")
    lines += ["", "## Signatures", ""]
    lines += [f"- `{signature}`" for signature in entry.signatures]
    lines += ["", "## Configuration", "", "```yaml", write_yaml(run_config).rstrip(), "```", ""]
    return "\n".join(lines)
