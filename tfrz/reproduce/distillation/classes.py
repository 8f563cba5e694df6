"""A task of 20 classes in 5 groups, a teacher that knows more, and students of every target."""

from __future__ import annotations

import dataclasses
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfrz.losses.distillation import distillation_loss, rescaling_factor, soft_targets
from tfrz.reproduce.distillation.training import fit_together

DIM, CLASSES, GROUPS = 50, 20, 5
TEACHER_ROWS, STUDENT_ROWS, TEST_ROWS = 40_000, 4_000, 20_000
TEACHER_STEPS, STUDENT_STEPS, BATCH = 2_500, 1_500, 256
TEACHER_DECAY, STUDENT_DECAY = 1e-3, 1e-4
TEACHER_UNITS, STUDENT_UNITS = 256, 24
SHARPNESS, K = 0.3, 5
# Kind of target, and lambda.
STUDENTS: dict[str, tuple[str, float]] = {
    "hard": ("label_smoothing", 0.0),
    "label_smoothing": ("label_smoothing", 0.1),
    "similarity": ("similarity", 0.7),
    "partial": ("partial", 0.7),
    "partial_similarity": ("partial_similarity", 0.7),
    "topk": ("topk", 0.7),
    "full": ("full", 0.7),
}
NAMES = {
    "hard": "hard labels",
    "label_smoothing": "label smoothing",
    "similarity": "KD-sim",
    "partial": "KD-pt",
    "partial_similarity": "KD-pt+sim",
    "topk": "KD-top5",
    "full": "KD",
}


class GroupedClasses:
    """Labels of known probability: classes in groups with similar vectors.

    With g of its group and w = g + 0.6 e, both normal, w of length 1, and x of 50 normal numbers,

        u = x + sin(2 x M),  P(class | x) = softmax_k(2 <u, w_k>)

    Args:
      seed: of the vectors and of M, whose numbers have the variance 1/50.
    """

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng([seed, 2002, 3532])
        groups = rng.normal(size=(GROUPS, DIM)).repeat(CLASSES // GROUPS, axis=0)
        vectors = groups + 0.6 * rng.normal(size=(CLASSES, DIM))
        self.vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        self.mixing = rng.normal(0, DIM**-0.5, (DIM, DIM))

    def sample(self, rows: int, seed: int) -> dict[str, np.ndarray]:
        """`x` float32 `[rows, 50]`, `label` int32, and the true `probability` `[rows, 20]`."""
        rng = np.random.default_rng([seed, 50])
        x = rng.normal(size=(rows, DIM))
        u = x + np.sin(2 * x @ self.mixing)
        logits = 2 * u @ self.vectors.T
        logits -= logits.max(axis=1, keepdims=True)
        p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        label = (p.cumsum(axis=1) < rng.random((rows, 1))).sum(axis=1)
        label = np.minimum(label, CLASSES - 1).astype(np.int32)
        return {"x": x.astype(np.float32), "label": label, "probability": p}


@dataclasses.dataclass(frozen=True)
class Teaching:
    """How a teacher is trained.

    Attributes:
      own_rows: train on the student's rows instead of fresh ones.
      rows: number of fresh rows.
      smoothing: lambda of label smoothing.
      units: number of hidden units.
      steps: of training.
      decay: weight decay.
    """

    own_rows: bool = False
    rows: int = TEACHER_ROWS
    smoothing: float = 0.0
    units: int = TEACHER_UNITS
    steps: int = TEACHER_STEPS
    decay: float = TEACHER_DECAY


def network(units: int, seed: int) -> keras.Model:
    """50 - units - 20, ReLU between."""
    layers = [
        keras.layers.Dense(
            size,
            activation=activation,
            kernel_initializer=keras.initializers.GlorotUniform(seed=100 * seed + place),
        )
        for place, (size, activation) in enumerate(((units, "relu"), (CLASSES, None)))
    ]
    return keras.Sequential([keras.Input((DIM,)), *layers])


def scores(model: keras.Model, x: np.ndarray) -> np.ndarray:
    """Logits."""
    return model(tf.constant(x), training=False).numpy()


def quality(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Accuracy and log loss."""
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits).numpy()
    return {
        "accuracy": float((logits.argmax(axis=1) == labels).mean()),
        "log_loss": float(losses.mean()),
    }


class Classroom:
    """A world, its student's rows, and its test rows.

    Args:
      seed: of everything random.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.world = GroupedClasses(seed)
        self.train = self.world.sample(STUDENT_ROWS, 10 * seed + 1)
        self.test = self.world.sample(TEST_ROWS, 10 * seed + 2)

    def best(self) -> dict[str, float]:
        """Quality of the true probabilities."""
        return quality(np.log(self.test["probability"]), self.test["label"])

    def teacher(self, teaching: Teaching) -> tuple[keras.Model, dict[str, float]]:
        """A trained teacher and its quality on its own rows."""
        rows = (
            self.train
            if teaching.own_rows
            else self.world.sample(teaching.rows, 10 * self.seed + 3)
        )
        model = network(teaching.units, seed=self.seed + 50)

        def loss(_: int, logits: tf.Tensor, batch: dict[str, tf.Tensor]) -> tf.Tensor:
            rho = soft_targets("label_smoothing", logits, batch["label"])
            return distillation_loss(logits, batch["label"], rho, teaching.smoothing)

        fit_together(
            [model],
            loss,
            {name: rows[name] for name in ("x", "label")},
            teaching.steps,
            BATCH,
            self.seed,
            lambda batch: batch["x"],
            weight_decay=teaching.decay,
        )
        return model, quality(scores(model, rows["x"]), rows["label"])

    def students(self, teacher: keras.Model) -> dict[str, keras.Model]:
        """A trained student of each target."""
        x, labels = self.train["x"], self.train["label"]
        vectors = tf.transpose(teacher.layers[-1].kernel)
        taught = scores(teacher, x)
        columns = {"x": x, "label": labels} | {
            kind: soft_targets(kind, taught, labels, 1.0, K, vectors, SHARPNESS)
            for kind, _ in STUDENTS.values()
        }
        arms = list(STUDENTS.values())

        def loss(arm: int, logits: tf.Tensor, batch: dict[str, tf.Tensor]) -> tf.Tensor:
            kind, weight = arms[arm]
            return distillation_loss(logits, batch["label"], batch[kind], weight)

        models = [network(STUDENT_UNITS, self.seed) for _ in arms]
        fit_together(
            models,
            loss,
            columns,
            STUDENT_STEPS,
            BATCH,
            self.seed,
            lambda batch: batch["x"],
            weight_decay=STUDENT_DECAY,
        )
        return dict(zip(STUDENTS, models, strict=True))

    def test_quality(self, model: keras.Model) -> dict[str, float]:
        """Quality on the test rows."""
        return quality(scores(model, self.test["x"]), self.test["label"])


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's rank correlation; ties are broken by position."""
    ranks = [np.argsort(np.argsort(values, kind="stable")) for values in (a, b)]
    return float(np.corrcoef(*ranks)[0, 1])


def reweighting(
    student: keras.Model, teacher: keras.Model, rows: dict[str, np.ndarray], weight: float
) -> dict[str, Any]:
    """Returns omega by the teacher's confidence in the true class, in tenths and as points."""
    labels = rows["label"]
    rho = soft_targets("full", scores(teacher, rows["x"]), labels)
    omega = rescaling_factor(scores(student, rows["x"]), labels, rho, weight).numpy()
    q = np.take_along_axis(rho.numpy(), labels[:, None], axis=1)[:, 0]
    p = tf.nn.softmax(scores(student, rows["x"])).numpy()
    sure = np.take_along_axis(p, labels[:, None], axis=1)[:, 0]
    alike = [spearman(omega[g], q[g]) for g in np.array_split(np.argsort(sure, kind="stable"), 40)]
    tenths = [
        {
            "q": float(q[part].mean()),
            "omega": float(omega[part].mean()),
            "omega_10": float(np.quantile(omega[part], 0.1)),
            "omega_50": float(np.quantile(omega[part], 0.5)),
            "omega_90": float(np.quantile(omega[part], 0.9)),
            "negative": float((omega[part] < 0).mean()),
        }
        for part in np.array_split(np.argsort(q, kind="stable"), 10)
    ]
    points = np.stack([q, omega], axis=1)[:1000].round(4).tolist()
    return {
        "spearman": spearman(omega, q),
        "spearman_at_equal_p": float(np.mean(alike)),
        "negative": float((omega < 0).mean()),
        "tenths": tenths,
        "points": points,
    }


def train_one(key: dict[str, Any]) -> dict[str, Any]:
    """Trains a teacher and a student of each target for one seed; measures re-weighting for two.

    Args:
      key: `seed`, and `teaching` with values that differ from the defaults of `Teaching`.
    """
    room = Classroom(key["seed"])
    teacher, on_own_rows = room.teacher(Teaching(**key.get("teaching", {})))
    students = room.students(teacher)
    found = {name: room.test_quality(model) for name, model in students.items()}
    weight = STUDENTS["full"][1]
    taught = quality(scores(teacher, room.train["x"]), room.train["label"])
    return {
        "best": room.best(),
        "teacher": room.test_quality(teacher),
        "teacher_on_own_rows": on_own_rows,
        "teacher_on_students_rows": taught,
        "students": found,
        "reweighting": {
            name: reweighting(students[name], teacher, room.train, weight)
            for name in ("full", "hard")
        },
        "says": f"seed {key['seed']}, teacher {key.get('teaching', 'as it is')}: "
        f"hard labels {found['hard']['accuracy']:.4f}, KD {found['full']['accuracy']:.4f}",
    }
