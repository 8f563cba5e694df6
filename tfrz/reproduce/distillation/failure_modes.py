"""Teachers without information: with smoothed labels, and with memorised rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tfrz.reproduce.distillation.classes import NAMES, STUDENTS, train_one
from tfrz.reproduce.distillation.factors import FULL, QUICK, measured
from tfrz.reproduce.experiment import Check, Context, Experiment, Outcome

_MEMORY = {"units": 1024, "decay": 0.0, "steps": 2500}
TEACHERS: dict[str, dict[str, Any]] = {
    "as in distillation/factors": {},
    "label smoothing 0.1": {"smoothing": 0.1},
    "label smoothing 0.3": {"smoothing": 0.3},
    "learned the student's rows by heart": {"own_rows": True, **_MEMORY},
    "learned 4,000 other rows by heart": {"rows": 4000, **_MEMORY},
}
# Shown only: no check depends on it.
_LONGER_ONLY = "learned 4,000 other rows by heart"
_REFERENCE, _SMOOTHED = "as in distillation/factors", ("label smoothing 0.1", "label smoothing 0.3")
_SURE = ("learned the student's rows by heart",)
_GAINS = {
    "KD over KD-pt": ("full", "partial"),
    "KD-sim over KD-pt": ("similarity", "partial"),
    "KD-pt over label smoothing": ("partial", "label_smoothing"),
}


def _gains(found: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: found[a] - found[b] for name, (a, b) in _GAINS.items()}


def _run(context: Context) -> Outcome:
    seeds = context.seeds
    teachers = {n: t for n, t in TEACHERS.items() if not (context.quick and n == _LONGER_ONLY)}
    # The runs of the first teacher are shared with distillation/factors.
    keys = [
        {"seed": seed} | ({"teaching": teaching} if teaching else {})
        for teaching in teachers.values()
        for seed in seeds
    ]
    done = context.trained("classes.jsonl", train_one, keys)
    rows = {t: done[i * len(seeds) : (i + 1) * len(seeds)] for i, t in enumerate(teachers)}
    accuracy, log_loss = (
        {teacher: measured(of, metric) for teacher, of in rows.items()}
        for metric in ("accuracy", "log_loss")
    )
    gains = {teacher: _gains(found) for teacher, found in accuracy.items()}
    shown = [s for s in STUDENTS if s not in ("topk", "partial_similarity")]
    table = []
    for teacher, of in rows.items():
        about = [
            float(np.mean([row[where][metric] for row in of]))
            for where, metric in (
                ("teacher", "accuracy"),
                ("teacher_on_own_rows", "log_loss"),
                ("teacher_on_students_rows", "log_loss"),
            )
        ]
        table.append(
            (
                teacher,
                f"{about[0]:.4f}",
                *(f"{loss:.3f}" for loss in about[1:]),
                *(f"{accuracy[teacher][s].mean():.4f}" for s in shown),
                *(f"{gain.mean():+.4f}" for gain in gains[teacher].values()),
            )
        )

    def shrinks(name: str, with_or_that: str, teachers: tuple[str, ...]) -> list[Check]:
        before = gains[_REFERENCE][name].mean()
        return [
            Check(
                f"{name} gains less from a teacher {with_or_that} {teacher}",
                bool(gains[teacher][name].mean() < before),
                f"{gains[teacher][name].mean():+.4f} against {before:+.4f}",
            )
            for teacher in teachers
        ]

    return Outcome(
        (
            "teacher",
            "its accuracy",
            "log loss on its rows",
            "on the student's",
            *(NAMES[s] for s in shown),
            *_GAINS,
        ),
        table,
        [
            *shrinks("KD over KD-pt", "with", _SMOOTHED),
            *shrinks("KD-pt over label smoothing", "that", _SURE),
        ],
        {
            "seeds": seeds,
            "teachers": teachers,
            "gains": {t: {n: g.tolist() for n, g in found.items()} for t, found in gains.items()},
            "log_loss": {
                t: {n: v.tolist() for n, v in found.items()} for t, found in log_loss.items()
            },
            "omega": {
                t: [
                    {k: row["reweighting"]["full"][k] for k in ("spearman", "negative")}
                    for row in of
                ]
                for t, of in rows.items()
            },
        },
    )


EXPERIMENT = Experiment(
    "distillation/failure_modes",
    "teachers with smoothed labels, and teachers that learned their rows by heart",
    "the diagnosis reported of arXiv 2002.03532's later version, on a task of the specification "
    "(G4)",
    _run,
    FULL,
    QUICK,
)
