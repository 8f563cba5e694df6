"""MovieLens-1M: a small DCN-V2 taught by the zoo's, trained on the same rows."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tfrz import metrics
from tfrz.data.spec import transformed_name
from tfrz.reproduce import movielens_1m
from tfrz.reproduce.experiment import Check, Context, Experiment, Outcome
from tfrz.reproduce.runs import Row, grid, spread, where
from tfrz.training.fit import evaluate
from tfrz.zoo.teacher import TEACHER_SCORE

# The student's changes to the zoo's configuration, which the teacher uses unchanged.
STUDENT: dict[str, Any] = {
    "model.cross": "full",
    "model.num_cross_layers": 2,
    "model.hidden_units": [32],
    "model.embedding_dim": 4,
}
# Each row was scored by a teacher that learned from it, or by one that learned from the other half.
SEEN, UNSEEN = "all rows", "the other half"
# Arm to lambda, and to whose scores the student gets.
ARMS: dict[str, tuple[float, str | None]] = {
    "no teacher": (0.0, None),
    "lambda 0.5": (0.5, SEEN),
    "lambda 1": (1.0, SEEN),
    "lambda 1, cross-fitted": (1.0, UNSEEN),
}
# The same values are tried for every arm.
SEARCH = {"embedding_l2": (0.0, 0.01), "learning_rate": (0.004, 0.008)}
_LIMITS = ("trainer.epochs", "trainer.max_steps")
_TEMPERATURE, _FOLDS, _RATIO = 1.0, 2, 10
_COLUMN = transformed_name(TEACHER_SCORE)


def _folds(rows: int, split: int) -> np.ndarray:
    """Returns the half of each training row, 0 or 1."""
    return np.random.default_rng(split).permutation(rows) % _FOLDS


def _scores(folder: Path, key: dict[str, Any], fold: int | None) -> Path:
    """Returns the file with a teacher's probabilities of the rows that it scores."""
    name = "all" if fold is None else f"fold{fold}"
    return folder / f"teacher.{key['split']}.{key['seed']}.{name}.npy"


def _teacher(folder: Path, key: dict[str, Any], sets: Any) -> tuple[Row, str]:
    columns, fold = sets.train.columns(), key["fold"]
    halves = _folds(len(columns["label_xf"]), key["split"])
    learned = np.full(len(halves), True) if fold is None else halves != fold
    scored = learned if fold is None else ~learned
    task = movielens_1m.task_of({**key["trainer"], "trainer.seed": key["seed"]})
    model, best = movielens_1m.train(task, sets, {n: v[learned] for n, v in columns.items()})
    taught = {name: values[scored] for name, values in columns.items()}
    logits = movielens_1m.logits(model, taught)
    np.save(_scores(folder, key, fold), tf.sigmoid(logits).numpy())
    row = {
        "validation": best,
        "test": evaluate(model, task, sets.test),
        "taught": metrics.log_loss(taught["label_xf"], logits),
        "parameters": movielens_1m.parameters(model),
    }
    which = "all rows" if fold is None else f"the half that is not {fold}"
    return row, f"teacher of {which}"


def _taught(folder: Path, key: dict[str, Any], whose: str, rows: int) -> np.ndarray:
    """Returns the teachers' probabilities of all training rows."""
    if whose == SEEN:
        return np.load(_scores(folder, key, None))
    halves, scores = _folds(rows, key["split"]), np.zeros(rows, np.float32)
    for fold in range(_FOLDS):
        scores[halves == fold] = np.load(_scores(folder, key, fold))
    return scores


def _student(folder: Path, key: dict[str, Any], sets: Any) -> tuple[Row, str]:
    columns = sets.train.columns()
    weight, whose = ARMS[key["arm"]]
    values = {**key["student"], **key["trainer"], "trainer.seed": key["seed"]}
    values |= {f"trainer.{name}": value for name, value in key["values"].items()}
    if whose is not None:
        columns[_COLUMN] = _taught(folder, key, whose, len(columns["label_xf"]))
        values |= {
            "distill.teacher": f"scores as {_COLUMN}",
            "distill.weight": weight,
            "distill.temperature": _TEMPERATURE,
        }
    task = movielens_1m.task_of(values)
    model, best = movielens_1m.train(task, sets, columns)
    row = {
        "validation": best,
        "test": evaluate(model, task, sets.test),
        "parameters": movielens_1m.parameters(model),
    }
    return row, f"{key['arm']}, {key['values']}"


def train_one(folder: Path, key: dict[str, Any]) -> Row:
    """Trains a teacher and saves its scores in a folder, or trains a student on saved scores.

    Args:
      folder: for the scores.
      key: `data`, `split`, `seed` and overrides of the `trainer`; for a teacher the `fold` that it
        scores and does not learn from, or None; for a student its `arm`, the overrides
        `student` and the `values` of the search.
    """
    sets = movielens_1m.sets(key["data"], key["split"])
    row, name = (_student if "arm" in key else _teacher)(folder, key, sets)
    says = (
        f"seed {key['seed']}, {name}: validation log loss {row['validation']['log_loss']:.4f} "
        f"after {row['validation']['epoch']:g} epochs"
    )
    return {**row, "says": says}


def _tuned(trials: list[Row]) -> dict[str, dict[str, Any]]:
    """Returns the values of each arm, chosen by validation."""
    return {
        arm: min(where(trials, arm=arm), key=lambda t: t["validation"]["log_loss"])["key"]["values"]
        for arm in ARMS
    }


def _cells(name: str, rows: list[dict[str, Any]], gains: str = "") -> tuple[Any, ...]:
    size = rows[0]["parameters"]
    loss, auc, calibration = (
        np.array([row["test"][m] for row in rows]) for m in ("log_loss", "auc", "calibration")
    )
    return (
        name,
        f"{size['dense']:,}",
        f"{size['total']:,}",
        f"{loss.mean():.4f}",
        spread(loss),
        gains,
        f"{auc.mean():.4f}",
        f"{calibration.mean():.3f}",
    )


def _run(context: Context) -> Outcome:
    seeds, search = context.seeds, context.seed + 1000
    points = grid(SEARCH)[-context.size["points"] :]
    limits = {name: context.size[name] for name in _LIMITS if context.size[name] is not None}
    file = "movielens_1m.quick/runs.jsonl" if context.quick else "movielens_1m/runs.jsonl"
    train = functools.partial(train_one, (context.work / file).parent)
    base: dict[str, Any] = {
        "data": context.path(movielens_1m.DATA),
        "split": context.seed,
        "trainer": {"trainer.steps_per_call": 100, **limits},
    }
    keys = [
        {**base, "seed": seed, "fold": fold}
        for seed in (*seeds, *([search] if len(points) > 1 else []))
        for fold in (None, *range(_FOLDS))
    ]
    teachers = context.trained(file, train, keys)
    teachers = [row for row in teachers if row["key"]["seed"] in seeds]
    base["student"] = STUDENT
    tuned = dict.fromkeys(ARMS, points[0])
    if len(points) > 1:
        keys = [{**base, "seed": search, "arm": a, "values": v} for a in ARMS for v in points]
        tuned = _tuned(context.trained(file, train, keys))
    keys = [{**base, "seed": s, "arm": a, "values": tuned[a]} for a in ARMS for s in seeds]
    students = context.trained(file, train, keys)

    whole = [row for row in teachers if row["key"]["fold"] is None]
    halves = [row for row in teachers if row["key"]["fold"] is not None]
    table = [_cells("teacher", whole), _cells("teacher of half the rows", halves)]
    losses = {}
    for arm in ARMS:
        rows = where(students, arm=arm)
        losses[arm] = np.array([row["test"]["log_loss"] for row in rows])
        gains = losses["no teacher"] - losses[arm]
        shown = " ".join(f"{gain:+.4f}" for gain in gains) if arm != "no teacher" else ""
        table.append(_cells(f"student, {arm}", rows, shown))
    large, small = whole[0]["parameters"], students[0]["parameters"]
    finished = [row["test"]["log_loss"] for row in (*teachers, *students)]
    wanted = len(seeds) * (1 + _FOLDS + len(ARMS))
    checks = [
        Check(
            f"the teacher has at least {_RATIO} times the student's dense parameters",
            large["dense"] >= _RATIO * small["dense"],
            f"{large['dense'] / small['dense']:.1f} times; "
            f"embeddings included, {large['total'] / small['total']:.1f} times",
        ),
        Check(
            "every run finished, with a finite log loss",
            len(finished) == wanted and bool(np.isfinite(finished).all()),
            f"{len(finished)} of {wanted}",
        ),
    ]
    details = {
        "seeds": seeds,
        "temperature": _TEMPERATURE,
        "student": STUDENT,
        "search": SEARCH,
        "tuned": tuned,
        # Below the test log loss, where a teacher knows the rows that it scores.
        "log loss of the scores that were taught": {
            SEEN: [row["taught"] for row in whole],
            UNSEEN: [row["taught"] for row in halves],
        },
        "runs": [
            {"key": r["key"], "validation": r["validation"], "test": r["test"]}
            for r in (*teachers, *students)
        ],
    }
    columns = ("model", "dense parameters", "parameters", "test log loss", "std")
    return Outcome((*columns, "gain by seed", "AUC", "calibration"), table, checks, details)


EXPERIMENT = Experiment(
    "distillation/movielens_1m",
    "MovieLens-1M: a DCN-V2 with embeddings of 4 taught by one with 30, of the same rows",
    "a task of the specification of arXiv 2002.03532 (G5)",
    _run,
    {"seeds": 5, "points": 4, **dict.fromkeys(_LIMITS)},
    {"seeds": 1, "points": 1, "trainer.epochs": 1, "trainer.max_steps": 60},
)
