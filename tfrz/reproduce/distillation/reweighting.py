"""Whether a more confident teacher gives an example more weight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tfrz.pictures import picture
from tfrz.reproduce.distillation.classes import NAMES, STUDENTS
from tfrz.reproduce.distillation.factors import FULL, QUICK, runs_of
from tfrz.reproduce.experiment import Check, Context, Experiment, Outcome

_AGAINST = ("full", "hard")
# Six standard errors of a correlation of 4,000 independent rows.
_CLEARLY = 0.1


def _plot(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Plots a thousand rows of the first seed, and the means by tenth of all seeds."""
    with picture(path, 9, 3.8) as figure:
        for place, name in enumerate(_AGAINST):
            axes = figure.add_subplot(1, 2, place + 1)
            found = [row["reweighting"][name] for row in rows]
            q, omega = np.array(found[0]["points"]).T
            axes.scatter(q, omega, s=4, alpha=0.4, color="tab:blue")
            mean = np.mean([[(t["q"], t["omega"]) for t in f["tenths"]] for f in found], axis=0)
            axes.plot(*mean.T, color="black", marker="o", ms=4, label="means of tenths")
            axes.axhline(0, color="black", lw=0.6)
            axes.set_ylim(-1.5, 1.05)
            axes.set_xlabel("teacher's probability of the true class")
            axes.set_ylabel("omega")
            axes.set_title(f"student of {NAMES[name]}")
            axes.legend()


def _run(context: Context) -> Outcome:
    rows = runs_of(context)
    found = {name: [row["reweighting"][name] for row in rows] for name in _AGAINST}
    table = []
    for name, seeds in found.items():
        for number in range(10):
            tenths = [seed["tenths"][number] for seed in seeds]
            values = [
                float(np.mean([t[v] for t in tenths]))
                for v in ("q", "omega", "omega_10", "omega_50", "omega_90", "negative")
            ]
            cells = [*(f"{v:.3f}" for v in values[:-1]), f"{values[-1]:.1%}"]
            table.append((NAMES[name], f"{number + 1}", *cells))
    plot = context.work / "reweighting.png"
    _plot(rows, plot)
    context.say(f"omega against the teacher's confidence: {plot}")

    def by_seed(name: str, which: str) -> list[float]:
        return [seed[which] for seed in found[name]]

    whole, equal = by_seed("full", "spearman"), by_seed("full", "spearman_at_equal_p")
    return Outcome(
        ("student", "tenth", "q", "omega", "10 %", "median", "90 %", "negative"),
        table,
        [
            Check(
                f"omega rises with the teacher's confidence: Spearman's rho above {_CLEARLY} in "
                "every seed",
                min(whole) > _CLEARLY,
                " ".join(f"{r:.3f}" for r in whole),
            ),
            Check(
                "the more so among examples that the student is equally sure of",
                all(a > b for a, b in zip(equal, whole, strict=True)),
                " ".join(f"{r:.3f}" for r in equal),
            ),
        ],
        {
            "lambda": STUDENTS["full"][1],
            "spearman": {
                name: {
                    "all rows": by_seed(name, "spearman"),
                    "rows of equal p (40 groups)": by_seed(name, "spearman_at_equal_p"),
                    "share of negative omega": by_seed(name, "negative"),
                }
                for name in _AGAINST
            },
            "tenths": {n: [seed["tenths"] for seed in seeds] for n, seeds in found.items()},
        },
    )


EXPERIMENT = Experiment(
    "distillation/reweighting",
    "omega of each training example against the teacher's confidence in it",
    "the re-weighting of arXiv 2002.03532, on a task of the specification (G3)",
    _run,
    FULL,
    QUICK,
)
