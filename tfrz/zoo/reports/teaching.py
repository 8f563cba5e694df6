"""What a teacher adds to the labels: smoothing, weights of examples, class relations."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from scipy.stats import spearmanr

from tfrz.files import atomic_write
from tfrz.losses.distillation import rescaling_factor, split_divergence
from tfrz.training.batches import Batches
from tfrz.training.distiller import DistillConfig
from tfrz.zoo.task import Task

_TENTHS = 10
_POINTS = 2000


def examined(
    distill: DistillConfig, logits: tf.Tensor, taught: tf.Tensor, labels: tf.Tensor
) -> dict[str, NDArray[Any]]:
    """Returns statistics of each example, `[rows]`.

    With q the teacher's distribution (at its temperature) and t the true class: `confidence` q_t,
    `omega` of the student with the whole of q, `relations` the squared distance of q's wrong
    classes from equal shares, and the two parts of KL(q || p).
    """
    q = tf.nn.softmax(tf.cast(taught, tf.float32) / distill.temperature)
    classes = int(q.shape[-1])
    own = tf.one_hot(labels, classes)
    confidence = tf.reduce_sum(own * q, axis=-1)
    equal = (1 - confidence)[:, None] / (classes - 1)
    omega = rescaling_factor(logits, labels, q, distill.weight, distill.temperature, distill.scale)
    parts = split_divergence(logits, labels, q)
    return {
        "confidence": confidence.numpy(),
        "omega": omega.numpy(),
        "relations": tf.reduce_sum(tf.square((1 - own) * (q - equal)), axis=-1).numpy(),
        "about the true class": parts.confidence.numpy(),
        "about the others": parts.relations.numpy(),
    }


def decompose(rows: Mapping[str, NDArray[Any]], classes: int) -> dict[str, float]:
    """Shares of `E |q - y|^2`, y being the labels, one-hot.

    Formula: q - y is orthogonally the sum of label smoothing by the mean doubt m = E[1 - q_t], of
    what an example's doubt differs from m, both in equal shares over the wrong classes, and of the
    wrong classes' differences from equal shares:

        E |q - y|^2 = K / (K - 1) (m^2 + Var(1 - q_t)) + E sum_{k != t} (q_k - (1 - q_t)/(K - 1))^2

    Args:
      rows: as of `examined`.
      classes: K.

    Returns:
      `label smoothing`, `re-weighting` and `class relations`, which sum to 1.
    """
    doubt = 1 - np.asarray(rows["confidence"], np.float64)
    wide = classes / (classes - 1)
    parts = {
        "label smoothing": wide * doubt.mean() ** 2,
        "re-weighting": wide * doubt.var(),
        "class relations": float(np.mean(rows["relations"], dtype=np.float64)),
    }
    total = sum(parts.values())
    return {name: float(part / total) if total else 0.0 for name, part in parts.items()}


def teaching_report(
    task: Task[Any, Any], model: keras.Model, batches: Batches, out: Path
) -> dict[str, Any]:
    """Writes `teaching.json` and `teaching.png`; nothing without a teacher or without classes.

    Args:
      task: of a run with a teacher.
      model: the student, trained.
      batches: a set that neither learned from.
      out: folder of the run.

    Returns:
      What `teaching.json` holds: `shares` (see `decompose`), the mean of both parts of KL(q || p),
      Spearman's correlation of omega and the teacher's confidence, and tenths of the examples by
      that confidence; empty where there are no classes.
    """
    if task.config.distill.teacher is None:
        return {}
    found, classes = [], 2
    for batch in batches.once():
        both = task.class_logits(model, batch)
        if both is None:
            return {}
        logits, said, labels = both
        if int(labels.shape[0]):
            classes = int(logits.shape[-1])
            found.append(examined(task.config.distill, logits, said, labels))
    if not found:
        return {}
    rows = {name: np.concatenate([one[name] for one in found]) for name in found[0]}
    order = np.argsort(rows["confidence"], kind="stable")
    tenths = []
    for part in np.array_split(order, min(_TENTHS, len(order))):
        omega = rows["omega"][part]
        tenths.append(
            {
                "confidence": float(rows["confidence"][part].mean()),
                "omega": float(omega.mean()),
                **{f"omega_{n}": float(np.percentile(omega, n)) for n in (10, 50, 90)},
                "negative": float((omega < 0).mean()),
            }
        )
    correlation = float(spearmanr(rows["confidence"], rows["omega"]).statistic)
    report = {
        "examples": len(order),
        "classes": classes,
        "shares": decompose(rows, classes),
        "divergence": {
            name: float(rows[name].mean()) for name in ("about the true class", "about the others")
        },
        "spearman": correlation if np.isfinite(correlation) else 0.0,
        "tenths": tenths,
    }
    atomic_write(out / "teaching.json", json.dumps(report, indent=1) + "\n")
    _plot(rows, report, out / "teaching.png")
    return report


def _plot(rows: Mapping[str, NDArray[Any]], report: Mapping[str, Any], path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.add_subplot(1, 2, 1), figure.add_subplot(1, 2, 2)
    shares = report["shares"]
    bars = left.barh(list(shares)[::-1], list(shares.values())[::-1], color="tab:blue")
    left.bar_label(bars, fmt="{:.1%}", padding=3)
    left.set_xlim(0, 1.15)
    left.set_xlabel("share of what the teacher adds to the labels")
    some = np.random.default_rng(0).permutation(len(rows["omega"]))[:_POINTS]
    right.scatter(rows["confidence"][some], rows["omega"][some], s=4, alpha=0.4)
    means = [(tenth["confidence"], tenth["omega"]) for tenth in report["tenths"]]
    right.plot(*zip(*means, strict=True), color="black", marker="o", ms=4, label="means of tenths")
    right.axhline(0, color="black", lw=0.6)
    right.set_ylim(*np.percentile(rows["omega"], (1, 99.9)) + np.array([-0.1, 0.1]))
    right.set_xlabel("teacher's probability of the true class")
    right.set_ylabel("omega")
    right.legend()
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=120)
    atomic_write(path, picture.getvalue())
