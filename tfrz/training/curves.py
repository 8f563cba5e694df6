"""A plot of a run: loss and validation metrics by step."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from tfrz.files import atomic_write


def save_curves(history: Sequence[Mapping[str, float]], path: Path) -> None:
    """Draws one panel for each metric of `history` (as `fit` returns it) into a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = [n for n in (history[0] if history else {}) if n not in ("step", "epoch", "loss")]
    panels = max(len(names), 1)
    figure = Figure(figsize=(4.2 * panels, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    steps = [row["step"] for row in history]
    for panel, name in enumerate(names):
        axes = figure.add_subplot(1, panels, panel + 1)
        axes.plot(steps, [row[name] for row in history], marker="o", label="validation")
        if name == "log_loss":
            axes.plot(steps, [row["loss"] for row in history], marker=".", label="training loss")
        axes.set_xlabel("step")
        axes.set_title(name)
        axes.grid(alpha=0.3)
        axes.legend()
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=120)
    atomic_write(path, picture.getvalue())
