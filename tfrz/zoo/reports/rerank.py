"""Re-ranked against the base ranker's order, on the validation set."""

from __future__ import annotations

import json
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from tfrz.data.lists.spec import ListSpec
from tfrz.files import atomic_write
from tfrz.metrics.slates import rank_gain
from tfrz.zoo.task import Prepared
from tfrz.zoo.tasks.slate import ListInputs, SlateTask


def rerank_report(
    task: SlateTask, model: keras.Model, prepared: Prepared[ListSpec, ListInputs], out: Path
) -> None:
    """Writes `rerank.json`: metrics of the base order and of the slates, and the rank gain."""
    base, slates, gains = [], [], []
    predict = tf.function(
        lambda batch: task.predict(model, batch), autograph=False, reduce_retracing=True
    )
    for batch in prepared.validation.once():
        labels = batch["relevance_xf"]
        base.append(task.in_base_order(batch)["ordered"].numpy())
        found = predict(batch)
        slates.append(found["ordered"].numpy())
        gains += [
            rank_gain(own, places)
            for own, places in zip(labels.numpy(), found["positions"].numpy(), strict=True)
        ]
    described = {
        "base_ranker": task.metrics({"ordered": np.concatenate(base)}),
        "model": task.metrics({"ordered": np.concatenate(slates)}),
        "rank_gain": float(np.nanmean(gains)) if np.isfinite(gains).any() else None,
    }
    atomic_write(out / "rerank.json", json.dumps(described, indent=1) + "\n")
