"""Which temporal range serves which request: the gates of a trained mixture, as table and plot."""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from tfrz.data.histories.spec import HistorySpec
from tfrz.files import atomic_write
from tfrz.zoo.task import Prepared
from tfrz.zoo.tasks.history import HistoryInputs, HistoryTask

_VALUES_SHOWN = 8
_LENGTHS = (1, 2, 5, 10, 20, 50, 100, 200)


def _groups(
    model: keras.Model, batch: Mapping[str, tf.Tensor], vocabularies: Mapping[str, list[str]]
) -> dict[str, NDArray[Any]]:
    """For each way to group, the group of every event `[batch, time]` as words."""
    history = batch["history_xf"]
    real = tf.not_equal(history, 0)
    lengths = tf.cumsum(tf.cast(real, tf.int32), axis=1).numpy()
    bounds = np.array(_LENGTHS)
    words = [
        f"{low}-{high - 1}" if high - low > 1 else str(low)
        for low, high in itertools.pairwise(_LENGTHS)
    ] + [f"{_LENGTHS[-1]}+"]
    place = np.clip(np.searchsorted(bounds, lengths, side="right") - 1, 0, len(words) - 1)
    groups = {"events so far": np.array(words, object)[place]}
    for name in model.context:
        past, now = batch[f"history_{name}_xf"], batch[f"{name}_xf"]
        ids = model.with_request(past, now, model.request_place(history))[:, 1:].numpy()
        terms = ["missing", *vocabularies.get(f"{name}_xf", map(str, range(model.context[name])))]
        known = np.array([*terms, "other"], object)
        groups[name] = known[np.minimum(ids, len(terms))]
    return groups


def gate_table(
    model: keras.Model, prepared: Prepared[HistorySpec, HistoryInputs]
) -> list[dict[str, Any]]:
    """Mean gate, and mean norm of gate times encoding, of each range by group of requests.

    Args:
      model: a trained mixture.
      prepared: its validation set is used.

    Returns:
      A row per group: `by` (events so far, or a context of the request), `value`, `requests`,
      `gates` and `norms` (range to mean).
    """
    sums: dict[tuple[str, str], list[Any]] = {}
    for batch in prepared.validation.once():
        gates, norms = (v.numpy().astype(np.float64) for v in model.gates(batch))
        real = batch["history_xf"].numpy() != 0
        for by, words in _groups(model, batch, prepared.vocabularies).items():
            for value in np.unique(words[real]):
                chosen = real & (words == value)
                one = np.stack([gates[chosen].sum(0), norms[chosen].sum(0)])
                total = sums.setdefault((by, value), [np.zeros_like(one), np.zeros(())])
                total[0], total[1] = total[0] + one, total[1] + chosen.sum()
    ranges = model.mixture.ranges
    rows = []
    for (by, value), (total, count) in sums.items():
        means = total / count
        rows.append(
            {
                "by": by,
                "value": value,
                "requests": int(count),
                "gates": dict(zip(ranges, map(float, means[0]), strict=True)),
                "norms": dict(zip(ranges, map(float, means[1]), strict=True)),
            }
        )
    lengths = {f"{low}": i for i, low in enumerate(_LENGTHS)}

    def order(row: dict[str, Any]) -> tuple[str, int]:
        first = row["value"].split("-")[0].rstrip("+")
        return row["by"], lengths.get(first, 0) if row["by"] == "events so far" else -row[
            "requests"
        ]

    return sorted(rows, key=order)


def gate_report(
    task: HistoryTask,
    model: keras.Model,
    prepared: Prepared[HistorySpec, HistoryInputs],
    out: Path,
) -> None:
    """Writes `gates.json` and `gates.png` into `out`, of models that are mixtures."""
    del task
    if model.config.encoder != "mixture":
        return
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = gate_table(model, prepared)
    atomic_write(out / "gates.json", json.dumps(rows, indent=1) + "\n")
    if not rows:
        return
    ranges, groups = model.mixture.ranges, list(dict.fromkeys(row["by"] for row in rows))
    figure = Figure(figsize=(4.5 * len(groups), 6), layout="constrained")
    FigureCanvasAgg(figure)
    for column, by in enumerate(groups):
        shown = [row for row in rows if row["by"] == by][: max(_VALUES_SHOWN, len(_LENGTHS))]
        places = np.arange(len(shown))
        for line, (what, title) in enumerate(
            (("gates", "mean gate"), ("norms", "|gate x output|"))
        ):
            axes = figure.add_subplot(2, len(groups), line * len(groups) + column + 1)
            for i, name in enumerate(ranges):
                heights = [row[what][name] for row in shown]
                axes.bar(
                    places + 0.8 * (i / len(ranges) - 0.4), heights, 0.8 / len(ranges), label=name
                )
            axes.set_xticks(places, [row["value"] for row in shown], rotation=45, ha="right")
            axes.set_title(f"{title} by {by}")
            if line == column == 0:
                figure.legend(loc="outside upper right", ncols=len(ranges))
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=120)
    atomic_write(out / "gates.png", picture.getvalue())
