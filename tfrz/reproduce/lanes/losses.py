"""The same steps on both lanes: equal batches and initial weights, and the loss of every step."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tfrz.reproduce.experiment import Check, Context, Experiment, Outcome
from tfrz.reproduce.lanes.lane import both_lanes, capped, unfinished
from tfrz.reproduce.runs import Row
from tfrz.zoo import registry

BOUND = 1e-3


def largest_difference(first: Sequence[float], second: Sequence[float]) -> tuple[float, int]:
    """The largest relative difference of two series of losses, and its step from 1.

    Relative to the larger of the two magnitudes. Series of different lengths, and values that are
    not finite, differ by infinity.
    """
    a, b = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if a.shape != b.shape or not a.size:
        return float("inf"), 0
    with np.errstate(all="ignore"):
        size = np.maximum(np.abs(a), np.abs(b))
        differences = np.where(a == b, 0.0, np.abs(a - b) / size)
    differences = np.where(np.isfinite(a) & np.isfinite(b), differences, np.inf)
    step = int(differences.argmax())
    return float(differences[step]), step + 1


def judge(found: Mapping[str, Mapping[str, Row]], steps: int, names: Sequence[str]) -> Outcome:
    """The table and the checks.

    Args:
      found: model to lane to its row.
      steps: of the trainings.
      names: of both lanes.
    """
    rows: list[tuple[Any, ...]] = []
    worst: dict[str, float] = {}
    other_batches = []
    for model, lanes in found.items():
        if any("unfinished" in row for row in lanes.values()):
            worst[model] = float("inf")
            rows.append((model, *[""] * 8))
            continue
        one, two = (lanes[name] for name in names)
        difference, step = largest_difference(one["losses"], two["losses"])
        worst[model] = difference
        same = one["digest"] == two["digest"]
        if not same:
            other_batches.append(model)
        ends = [f"{lane['losses'][at]:.6f}" for at in (0, -1) for lane in (one, two)]
        rows.append(
            (model, *ends, f"{difference:.1e}", step, "equal" if same else "NOT equal", steps)
        )
    where = max(worst, key=lambda model: worst[model])
    cut = unfinished(row for lanes in found.values() for row in lanes.values())
    checks = [
        Check(
            "both lanes read the same batches, bit by bit",
            not other_batches and not cut,
            cut or f"{len(found) - len(other_batches)} of {len(found)} models",
        ),
        Check(
            f"every loss is the same on both lanes, to {BOUND:g} relative",
            all(difference <= BOUND for difference in worst.values()),
            cut or f"at most {worst[where]:.1e}, of {where}",
        ),
    ]
    columns = (
        "model",
        *(f"{which} loss, {name}" for which in ("first", "last") for name in names),
        "largest relative difference",
        "at step",
        "batches",
        "steps",
    )
    return Outcome(columns, rows, checks)


def _run(context: Context) -> Outcome:
    lanes, size = both_lanes(context), context.size
    found: dict[str, dict[str, Row]] = {}
    pythons = {name: lane.python for name, lane in lanes.items()}
    run = functools.partial(capped, pythons, size["cap_s"])
    models = size["models"] or registry.names()
    folder = (context.work / "weights").absolute()
    folder.mkdir(parents=True, exist_ok=True)
    first, second = lanes
    for lane in (first, second):
        keys = []
        for model in models:
            weights = folder / f"{model}.{context.seed}.npz"
            task = {
                "do": "losses",
                "model": model,
                "overrides": [f"trainer.seed={context.seed}"],
                "steps": size["steps"],
                "weights": str(weights),
                "write": lane == first,
            }
            keys.append(lanes[lane].key(task))
        for row in context.trained("losses.jsonl", run, keys):
            found.setdefault(row["key"]["model"], {})[lane] = row
    outcome = judge(found, size["steps"], list(lanes))
    outcome.details.update(
        lanes={name: dict(lane.versions) for name, lane in lanes.items()},
        losses={m: {lane: row.get("losses") for lane, row in r.items()} for m, r in found.items()},
        digests={m: {lane: row.get("digest") for lane, row in r.items()} for m, r in found.items()},
    )
    return outcome


EXPERIMENT = Experiment(
    "lanes/losses",
    "the same initial weights and batches on both lanes: the loss of every step",
    "this package: TensorFlow 2.15 with Keras 2 against the newest with Keras 3",
    _run,
    {"steps": 100, "models": None, "cap_s": 600},
    {"steps": 10, "cap_s": 300},
)
