"""A small DCN-V2 taught by a large one, trained on more rows or on the same rows."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfrz import metrics
from tfrz.data.simulators.clicks import FIELDS, ClickSimulator
from tfrz.losses.distillation import binary_distillation_loss
from tfrz.models.dcn_v2 import DCNv2, DCNv2Config
from tfrz.reproduce.distillation.training import fit_together
from tfrz.reproduce.experiment import Check, Context, Experiment, Outcome
from tfrz.reproduce.runs import Row

STUDENT_ROWS, TEACHER_ROWS, TEST_ROWS = 20_000, 200_000, 40_000
STUDENT_STEPS, TEACHER_STEPS, BATCH = 1_200, 2_500, 512
WEIGHTS = (0.0, 0.5, 1.0)
FRESH, SAME = "200,000 fresh rows", "the student's rows"
# From the specification's own run, section (g) G2; the paper has no such table.
_SPECIFICATION = {
    "the true probabilities": (0.4883, 0.7891),
    f"teacher of {FRESH}": (0.4963, 0.7805),
    "no teacher": (0.5612, 0.686),
    f"{FRESH}, 0.5": (0.5426, 0.717),
    f"{FRESH}, 1": (0.5303, 0.735),
}


def _columns(sample: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    columns = {f"{name}_xf": sample[name] + 1 for name in FIELDS}
    return {**columns, "label": sample["click"]}


def _network(seed: int, **values: Any) -> keras.Model:
    keras.utils.set_random_seed(seed)
    sizes = {f"{name}_xf": size + 2 for name, size in FIELDS.items()}
    return DCNv2(DCNv2Config(**values), sizes)


def _logits(model: keras.Model, columns: dict[str, np.ndarray]) -> np.ndarray:
    return model({name: tf.constant(values) for name, values in columns.items()}).numpy()


def _quality(labels: np.ndarray, logits: np.ndarray) -> dict[str, float]:
    return {
        "log_loss": metrics.log_loss(labels, logits),
        "auc": metrics.auc(labels, logits),
        "calibration": metrics.calibration(labels, logits),
    }


def train_one(key: dict[str, Any]) -> Row:
    """Trains two teachers and their students for one seed.

    Args:
      key: `seed`; `world` is the simulator's.
    """
    world, seed = ClickSimulator(key["world"]), key["seed"]
    train = _columns(world.sample(STUDENT_ROWS, 10 * seed + 1))
    test = _columns(world.sample(TEST_ROWS, 10 * seed + 2))
    fresh = _columns(world.sample(TEACHER_ROWS, 10 * seed + 3))
    found: dict[str, dict[str, float]] = {}
    taught: dict[str, np.ndarray] = {}
    for name, rows in ((FRESH, fresh), (SAME, train)):
        teacher = _network(
            seed + 50, cross="full", num_cross_layers=2, hidden_units=(64,), embedding_dim=8
        )
        fit_together(
            [teacher],
            lambda _, s, batch: tf.nn.sigmoid_cross_entropy_with_logits(batch["label"], s),
            rows,
            TEACHER_STEPS,
            BATCH,
            seed,
        )
        taught[name] = _logits(teacher, train)
        found[f"teacher of {name}"] = _quality(test["label"], _logits(teacher, test))
    arms = {"no teacher": (FRESH, 0.0)} | {
        f"{name}, {weight:g}": (name, weight) for name in taught for weight in WEIGHTS[1:]
    }
    weights = list(arms.values())
    students = [
        _network(
            seed, cross="low_rank", rank=4, num_cross_layers=1, hidden_units=(), embedding_dim=4
        )
        for _ in arms
    ]
    fit_together(
        students,
        lambda i, s, batch: binary_distillation_loss(
            s, batch["label"], batch[weights[i][0]], weights[i][1]
        ),
        {**train, **taught},
        STUDENT_STEPS,
        BATCH,
        seed,
    )
    for name, student in zip(arms, students, strict=True):
        found[name] = _quality(test["label"], _logits(student, test))
    p = world.sample(TEST_ROWS, 10 * seed + 2)["probability"]
    best = _quality(test["label"], np.log(p) - np.log1p(-p))
    return {
        "found": {"the true probabilities": best, **found},
        "parameters": {"teacher": teacher.count_params(), "student": students[0].count_params()},
        "says": f"seed {seed}: log loss "
        + ", ".join(f"{n} {v['log_loss']:.4f}" for n, v in found.items()),
    }


def _run(context: Context) -> Outcome:
    keys = [{"world": context.seed, "seed": seed} for seed in context.seeds]
    rows = context.trained("clicks.jsonl", train_one, keys)
    found = {
        name: {m: np.array([row["found"][name][m] for row in rows]) for m in values}
        for name, values in rows[0]["found"].items()
    }
    alone = found["no teacher"]["log_loss"]
    table = []
    for name, values in found.items():
        student = not name.startswith(("the true", "teacher", "no teacher"))
        gains = alone - values["log_loss"]
        old = _SPECIFICATION.get(name)
        table.append(
            (
                f"student of {name}" if student else name,
                f"{values['log_loss'].mean():.4f}",
                " ".join(f"{g:+.4f}" for g in gains) if student else "",
                f"{values['auc'].mean():.4f}",
                f"{values['calibration'].mean():.3f}",
                *([f"{old[0]:.4f}", f"{old[1]:.4f}"] if old else ["", ""]),
            )
        )
    steps = [found[name] for name in ("no teacher", f"{FRESH}, 0.5", f"{FRESH}, 1")]
    loss, auc = ([step[m] for step in steps] for m in ("log_loss", "auc"))

    def shown(values: list[np.ndarray]) -> str:
        return ", ".join(f"{v.mean():.4f}" for v in values)

    fresh, same = (float((alone - found[f"{n}, 1"]["log_loss"]).mean()) for n in (FRESH, SAME))
    return Outcome(
        (
            "model",
            "test log loss",
            "gain by seed",
            "AUC",
            "calibration",
            "specification's log loss",
            "specification's AUC",
        ),
        table,
        [
            Check(
                "with a teacher that saw more, log loss falls with lambda in every seed",
                bool((loss[0] > loss[1]).all() and (loss[1] > loss[2]).all()),
                shown(loss),
            ),
            Check(
                "and AUC rises",
                bool((auc[0] < auc[1]).all() and (auc[1] < auc[2]).all()),
                shown(auc),
            ),
            Check(
                "a teacher of the student's own rows helps less",
                same < fresh,
                f"{same:+.4f} against {fresh:+.4f}",
            ),
        ],
        {
            "seeds": context.seeds,
            "temperature": 1.0,
            "parameters": rows[0]["parameters"],
            "runs": rows,
        },
    )


EXPERIMENT = Experiment(
    "distillation/clicks",
    "a small DCN-V2 taught by a large one, on clicks of known probability",
    "a task of the specification of arXiv 2002.03532 (G2)",
    _run,
    {"seeds": 3},
    {"seeds": 1},
)
