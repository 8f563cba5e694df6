"""How much label smoothing, re-weighting and class relations contribute to distillation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tfrz.pictures import picture
from tfrz.reproduce.distillation.classes import NAMES, SHARPNESS, STUDENTS, K, train_one
from tfrz.reproduce.experiment import Check, Context, Experiment, Outcome
from tfrz.reproduce.runs import Row

# From the specification's own run, section (g) G1; the paper has no such table.
_SPECIFICATION = {
    "teacher": (0.2723, 2.338),
    "hard": (0.2360, 2.522),
    "label_smoothing": (0.2358, 2.453),
    "similarity": (0.2371, 2.430),
    "partial": (0.2521, 2.510),
    "partial_similarity": (0.2511, 2.482),
    "topk": (0.2859, 2.265),
    "full": (0.2865, 2.259),
}
# Each target contains the information of the one before it, and more.
CHAIN = {
    "label_smoothing": "label smoothing",
    "partial": "re-weighting",
    "partial_similarity": "relations of classes, the same for all examples",
    "topk": "relations of an example's likeliest classes",
    "full": "relations of its other classes",
}

Found = Mapping[str, np.ndarray]


# The sizes of all experiments on this task, which share their runs.
FULL, QUICK = {"seeds": 4}, {"seeds": 2}


def runs_of(context: Context) -> list[Row]:
    """Returns the runs of all seeds, from the file or newly trained."""
    keys = [{"seed": seed} for seed in context.seeds]
    return context.trained("classes.jsonl", train_one, keys)


def measured(rows: Sequence[Mapping[str, Any]], metric: str) -> dict[str, np.ndarray]:
    """Student to its values, one for each seed."""
    return {s: np.array([row["students"][s][metric] for row in rows]) for s in STUDENTS}


def decomposition(found: Found) -> dict[str, np.ndarray]:
    """Returns what each link of the chain adds to the one before it, `[seeds]`."""
    links = ["hard", *CHAIN]
    return {link: found[link] - found[before] for before, link in zip(links, CHAIN, strict=False)}


def _gaps(lower: np.ndarray, upper: np.ndarray) -> str:
    return " ".join(f"{gap:+.4f}" for gap in upper - lower)


def checks(found: Found) -> list[Check]:
    """Checks the directions that the specification states, on accuracies by seed."""
    whole, parts = ("full", "topk"), ("partial", "partial_similarity")
    checked = []
    for uppers, lowers in ((whole, parts), (parts, ("similarity",))):
        lower = np.max([found[name] for name in lowers], axis=0)
        upper = np.min([found[name] for name in uppers], axis=0)
        names = [" and ".join(NAMES[n] for n in group) for group in (uppers, lowers)]
        checked.append(
            Check(
                f"{names[0]} beat {names[1]} in every seed",
                bool((upper > lower).all()),
                _gaps(lower, upper),
            )
        )
    mean = {name: float(values.mean()) for name, values in found.items()}
    checked.append(
        Check(
            "KD-sim is at least as good as label smoothing",
            mean["similarity"] >= mean["label_smoothing"],
            f"{mean['similarity']:.4f} against {mean['label_smoothing']:.4f}",
        )
    )
    steps = [
        min(mean[n] for n in whole) - max(mean[n] for n in parts),
        min(mean[n] for n in parts) - mean["similarity"],
    ]
    alike = [("full", "topk"), ("partial", "partial_similarity"), ("label_smoothing", "hard")]
    apart = [abs(mean[a] - mean[b]) for a, b in alike]
    checked.append(
        Check(
            "KD and KD-top5, KD-pt and KD-pt+sim, label smoothing and hard labels are nearer to "
            "each other than the groups are",
            max(apart) < min(steps),
            f"{', '.join(f'{a:.4f}' for a in apart)} against {min(steps):.4f}",
        )
    )
    return checked


def _plot(adds: Mapping[str, Found], path: Path) -> None:
    """Plots what each link of the chain adds, with the seeds as points."""
    with picture(path, 10, 3.2) as figure:
        for place, (metric, links) in enumerate(adds.items()):
            axes = figure.add_subplot(1, len(adds), place + 1)
            at = np.arange(len(links))
            axes.barh(at, [v.mean() for v in links.values()], color="tab:blue", alpha=0.6)
            for row, values in zip(at, links.values(), strict=True):
                axes.scatter(values, np.full(len(values), row), s=8, color="black", zorder=3)
            axes.set_yticks(at, [CHAIN[link] for link in links] if place == 0 else [""] * len(at))
            axes.invert_yaxis()
            axes.axvline(0, color="black", lw=0.8)
            axes.set_xlabel(f"added {metric}")


def _run(context: Context) -> Outcome:
    rows = runs_of(context)
    accuracy, log_loss = (measured(rows, metric) for metric in ("accuracy", "log_loss"))
    adds = {"accuracy": decomposition(accuracy), "log loss": decomposition(log_loss)}
    whole = float((accuracy["full"] - accuracy["hard"]).mean())
    table: list[tuple[Any, ...]] = []
    for name in ("best", "teacher"):
        values = [np.mean([row[name][m] for row in rows]) for m in ("accuracy", "log_loss")]
        old = _SPECIFICATION.get(name)
        table.append(
            (
                "the true probabilities" if name == "best" else name,
                f"{values[0]:.4f}",
                "",
                f"{values[1]:.3f}",
                *[""] * 4,
                *([f"{old[0]:.4f}", f"{old[1]:.3f}"] if old else ["", ""]),
            )
        )
    for name in STUDENTS:
        cells = ["", "", "", ""]
        if name in CHAIN:
            added = float(adds["accuracy"][name].mean())
            lost = float(adds["log loss"][name].mean())
            cells = [CHAIN[name], f"{added:+.4f}", f"{added / whole:+.0%}", f"{lost:+.3f}"]
        table.append(
            (
                NAMES[name],
                f"{accuracy[name].mean():.4f}",
                _gaps(accuracy["hard"], accuracy[name]) if name != "hard" else "",
                f"{log_loss[name].mean():.3f}",
                *cells,
                f"{_SPECIFICATION[name][0]:.4f}",
                f"{_SPECIFICATION[name][1]:.3f}",
            )
        )
    plot = context.work / "factors.png"
    _plot(adds, plot)
    context.say(f"what each part adds: {plot}")
    kept = [{k: v for k, v in row.items() if k != "reweighting"} for row in rows]
    return Outcome(
        (
            "target",
            "accuracy",
            "gain over hard labels by seed",
            "log loss",
            "adds",
            "accuracy ",
            "share",
            "log loss ",
            "specification's accuracy",
            "specification's log loss",
        ),
        table,
        checks(accuracy),
        {
            "lambda": {name: weight for name, (_, weight) in STUDENTS.items()},
            "temperature": 1.0,
            "sharpness": SHARPNESS,
            "k": K,
            "added": {m: {k: v.tolist() for k, v in a.items()} for m, a in adds.items()},
            "runs": kept,
        },
    )


EXPERIMENT = Experiment(
    "distillation/factors",
    "20 classes in 5 groups: students of targets that keep a part of the teacher",
    "the question of arXiv 2002.03532, on a task of the specification (G1)",
    _run,
    FULL,
    QUICK,
)
