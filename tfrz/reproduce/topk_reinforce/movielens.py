"""MovieLens-1M as the log of an unknown logger: what the corrections do to what is recommended."""

from __future__ import annotations

import functools
import time
from pathlib import Path
from typing import Any

import numpy as np

from tfrz.errors import InputError
from tfrz.reproduce.experiment import Context, Experiment, Outcome
from tfrz.reproduce.runs import Runs

MODELS: dict[str, tuple[str, ...]] = {
    "naive (no weights, K = 1)": ("model.weights=none", "model.k=1"),
    "off-policy, K = 1": ("model.k=1",),
    "off-policy, K = 8": ("model.k=8",),
    "off-policy, K = 16": ("model.k=16",),
}
_SHOWN = {
    "recall_at_10": "recall@10",
    "recall_at_20": "recall@20",
    "coverage_at_20": "coverage@20",
    "gini_at_20": "Gini@20",
    "snips": "SNIPS",
    "entropy": "entropy",
    "effective_sample_size": "effective size",
}


@functools.lru_cache(maxsize=1)
def _prepared(path: str) -> Any:
    from tfrz.reproduce.training import prepared

    return prepared("topk_reinforce", "movielens-1m", f"movielens-1m:{path}")


def train_one(key: dict[str, Any]) -> dict[str, Any]:
    """One run: the test metrics of the policy after the last epoch."""
    from tfrz.reproduce.training import device_name, staged
    from tfrz.training.fit import evaluate

    sets = _prepared(key["data"])
    started = time.perf_counter()
    overrides = (
        *MODELS[key["model"]],
        f"trainer.epochs={key['epochs']}",
        f"trainer.max_steps={'null' if key['max_steps'] is None else key['max_steps']}",
        "trainer.early_stopping_patience=null",
    )
    model, task = staged("topk_reinforce", "movielens-1m", sets, overrides, key["seed"])
    metrics = evaluate(model, task, sets.test)
    seconds = round(time.perf_counter() - started, 1)
    says = f"{key['model']}, seed {key['seed']}: recall@10 {metrics['recall_at_10']:.4f}"
    return {
        "test": metrics,
        "seconds": seconds,
        "device": device_name(),
        "says": f"{says} ({seconds} s)",
    }


def _run(context: Context) -> Outcome:
    path = context.data or "../shared/data/ml-1m/ml-1m.zip"
    if not Path(path).exists():
        raise InputError(f"{path} does not exist: name the data set with --data PATH")
    size = {"data": path, "epochs": 3, "max_steps": 10 if context.quick else None}
    seeds = [context.seed]
    runs = Runs(context.work / "movielens_1m.jsonl")
    keys = [{"model": m, "seed": s, **size} for s in seeds for m in MODELS]
    done = runs.all(train_one, keys, context.jobs, context.say)
    table = []
    for name in MODELS:
        own = [row["test"] for row in done if row["key"]["model"] == name]
        cells = []
        for metric in _SHOWN:
            column = np.array([v[metric] for v in own])
            digits = 1 if metric == "effective_sample_size" else 4
            spread = f" ({column.std(ddof=1):.{digits}f})" if len(column) > 1 else ""
            cells.append(f"{column.mean():.{digits}f}{spread}")
        table.append((name, *cells))
    return Outcome(
        columns=("policy", *_SHOWN.values()),
        rows=table,
        checks=[],
        details={"seeds": seeds, **size, "runs": done},
    )


EXPERIMENT = Experiment(
    "topk_reinforce/movielens_1m",
    "MovieLens-1M as logged actions: recall, coverage, Gini and SNIPS of the corrections",
    "not in the paper, which reports no offline results",
    _run,
)
