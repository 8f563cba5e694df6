"""Which of a user's vectors find what the user takes."""

from __future__ import annotations

import json
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from tfrz.data.histories.spec import HistorySpec
from tfrz.files import atomic_write
from tfrz.zoo.task import Prepared
from tfrz.zoo.tasks.history import HistoryInputs, HistoryTask


def interest_report(
    task: HistoryTask,
    model: keras.Model,
    prepared: Prepared[HistorySpec, HistoryInputs],
    out: Path,
) -> None:
    """Writes `interests.json`: how often each vector is the nearest to a validation target."""
    del task
    wins = np.zeros(model.config.num_interests, np.int64)
    items = model.item_vectors()
    for batch in prepared.validation.once():
        targets = batch["target_xf"]
        known = (targets >= 1) & (targets <= model.num_items)
        users = tf.boolean_mask(model.encode(model.embed(batch)), known)
        vectors = tf.gather(items, tf.boolean_mask(targets, known) - 1)
        best = tf.argmax(tf.einsum("bhd,bd->bh", users, vectors), axis=1).numpy()
        wins += np.bincount(best, minlength=len(wins))
    share = wins / max(wins.sum(), 1)
    described = {"share_of_targets": share.tolist(), "targets": int(wins.sum())}
    atomic_write(out / "interests.json", json.dumps(described, indent=1) + "\n")
