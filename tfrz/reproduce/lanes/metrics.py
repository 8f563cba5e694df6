"""Trainings on both lanes from each lane's own initial weights: the mean test metric by lane."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tfrz.reproduce.experiment import Check, Context, Experiment, Outcome
from tfrz.reproduce.lanes.lane import NAMES, both_lanes, capped, unfinished
from tfrz.reproduce.runs import Row
from tfrz.zoo import registry

BOUND = 3.0
_STORED = ("metrics", "steps", "test_examples", "unfinished")
# The option of each simulator that says how much data there is, and its value here.
SIZES: dict[str, int] = {
    "dcn_v2 rows": 20_000,
    "m3 users": 1000,
    "seq2slate queries": 2000,
    "multi_interest users": 1500,
    "topk_reinforce users": 6000,
    "dv365 users": 200,
}


def overrides(model: str, size: Mapping[str, Any]) -> list[str]:
    """Overrides of a model's configuration on simulated data: less data and fewer steps.

    Args:
      model: a name of the registry.
      size: with `steps`, and the model's own name of `SIZES` if it has one there.
    """
    found = [f"trainer.max_steps={size['steps']}"]
    for name in SIZES:
        of, option = name.split()
        if of == model:
            found.append(f"data.options.{option}={size[name]}")
    return found


@dataclasses.dataclass(frozen=True)
class Difference:
    """Two samples of a metric, as the check compares them.

    Attributes:
      means: of each.
      errors: standard error of each mean.
    """

    means: tuple[float, float]
    errors: tuple[float, float]

    @property
    def value(self) -> float:
        """The second mean minus the first."""
        return self.means[1] - self.means[0]

    @property
    def errors_apart(self) -> float:
        """The size of the difference in its standard errors; 0 for equal means."""
        error = math.hypot(*self.errors)
        return 0.0 if not self.value else abs(self.value) / error if error else math.inf


def difference(first: Sequence[float], second: Sequence[float]) -> Difference:
    """The difference of two samples' means, of at least two values each.

    A value that is not finite makes them infinitely many standard errors apart.
    """
    means, errors = [], []
    for values in (first, second):
        whole = bool(np.isfinite(values).all())
        means.append(float(np.mean(values)) if whole else math.nan)
        errors.append(float(np.std(values, ddof=1)) / math.sqrt(len(values)) if whole else 0.0)
    return Difference((means[0], means[1]), (errors[0], errors[1]))


def judge(rows: Sequence[Row], lanes: Sequence[str]) -> Outcome:
    """The table and the check.

    Args:
      rows: of all trainings.
      lanes: names of both.
    """
    table: list[tuple[Any, ...]] = []
    apart: dict[str, float] = {}
    for model in dict.fromkeys(row["key"]["model"] for row in rows):
        own = [row for row in rows if row["key"]["model"] == model]
        done = [row for row in own if "unfinished" not in row]
        values = {
            lane: [r["metrics"][r["objective"]] for r in done if r["key"]["lane"] == lane]
            for lane in lanes
        }
        if len(done) < len(own):
            apart[model] = math.inf
            table.append((model, *[""] * 6))
            continue
        found = difference(*values.values())
        apart[model] = found.errors_apart
        shown = [f"{m:.4f} ± {e:.4f}" for m, e in zip(found.means, found.errors, strict=True)]
        seeds = len(values[lanes[0]])
        table.append(
            (
                model,
                done[0]["objective"],
                *shown,
                f"{found.value:+.4f}",
                f"{found.errors_apart:.2f}",
                seeds,
            )
        )
    # Not below the bound: a metric that is no number has no distance.
    wide = [model for model, errors in apart.items() if not errors <= BOUND]
    where = max(apart, key=lambda model: (math.isnan(apart[model]), apart[model]))
    measured = unfinished(rows) or f"at most {apart[where]:.2f}, of {where}"
    check = Check(
        f"the means of the test metric are within {BOUND:g} standard errors of their difference",
        not wide,
        measured,
        ("seeds", "steps"),
    )
    columns = (
        "model",
        "test metric",
        *(f"{name}: mean ± standard error" for name in lanes),
        "difference",
        "in standard errors",
        "seeds",
    )
    return Outcome(columns, table, [check])


def _run(context: Context) -> Outcome:
    lanes, size = both_lanes(context), context.size
    keys = [
        lane.key(
            {
                "do": "metrics",
                "model": model,
                "overrides": [*overrides(model, size), f"trainer.seed={seed}"],
            }
        )
        for model in registry.names()
        for seed in context.seeds
        for lane in lanes.values()
    ]
    pythons = {name: lane.python for name, lane in lanes.items()}
    run = functools.partial(capped, pythons, size["cap_s"])
    rows = context.trained("metrics.jsonl", run, keys)
    outcome = judge(rows, NAMES)
    outcome.details.update(
        lanes={name: dict(lane.versions) for name, lane in lanes.items()},
        sizes=dict(size),
        runs=[
            {
                "model": row["key"]["model"],
                "lane": row["key"]["lane"],
                "overrides": row["key"]["overrides"],
                **{
                    k: row[k]
                    for k in ("metrics", "steps", "test_examples", "unfinished")
                    if k in row
                },
            }
            for row in rows
        ],
    )
    return outcome


EXPERIMENT = Experiment(
    "lanes/metrics",
    "trainings from each lane's own initial weights: the mean test metric by lane",
    "this package: TensorFlow 2.15 with Keras 2 against the newest with Keras 3",
    _run,
    {"seeds": 5, "steps": 200, "cap_s": 300, **SIZES},
    {"seeds": 2, "steps": 20},
)
