"""The importance weights of a policy's estimate, as table and plot."""

from __future__ import annotations

import io
import json
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from tfrz.data.histories.spec import HistorySpec
from tfrz.files import atomic_write
from tfrz.losses.reinforce import importance_weights
from tfrz.metrics.off_policy import weight_summary
from tfrz.zoo.task import Prepared
from tfrz.zoo.tasks.reinforce import ReinforceInputs, ReinforceTask


def importance_report(
    task: ReinforceTask,
    model: keras.Model,
    prepared: Prepared[HistorySpec, ReinforceInputs],
    out: Path,
) -> None:
    """Writes `weights.json` and `weights.png`: pi / beta of the validation set's actions."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = [task.judged(model, batch) for batch in prepared.validation.once()]
    policy, logged = (np.concatenate([r[n].numpy() for r in rows]) for n in ("policy", "logged"))
    weights = importance_weights(
        tf.math.log(tf.maximum(policy, 1e-30)), tf.math.log(logged)
    ).numpy()
    cap = task.config.evaluator.cap
    summary = weight_summary(weights, cap)
    atomic_write(out / "weights.json", json.dumps(summary, indent=1) + "\n")
    figure = Figure(figsize=(6, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(1, 1, 1)
    axes.hist(np.log10(np.maximum(weights, 1e-6)), bins=50)
    if cap is not None:
        axes.axvline(np.log10(cap), color="black", lw=0.8, label=f"cap {cap:.3g}")
        axes.legend()
    axes.set_xlabel("log10 of pi / beta")
    axes.set_ylabel("logged actions")
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=120)
    atomic_write(out / "weights.png", picture.getvalue())
