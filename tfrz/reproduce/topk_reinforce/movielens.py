"""MovieLens-1M as the log of an unknown logger: what the corrections do to what is recommended."""

from __future__ import annotations

import functools
from typing import Any

from tfrz.reproduce.experiment import Context, Experiment, Outcome
from tfrz.reproduce.runs import Row, mean_and_spread, where
from tfrz.reproduce.training import prepared, settings, staged, task_of
from tfrz.training.fit import evaluate

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
    return prepared(task_of("topk_reinforce", "movielens-1m"), f"movielens-1m:{path}")


def train_one(key: dict[str, Any]) -> Row:
    """One run: the test metrics of the policy after the last epoch."""
    sets = _prepared(key["data"])
    trainer = {name: key[name] for name in ("epochs", "max_steps")}
    trainer["early_stopping_patience"] = None
    overrides = (*MODELS[key["model"]], *settings(trainer, "trainer."))
    model, task = staged("topk_reinforce", "movielens-1m", sets, overrides, key["seed"])
    metrics = evaluate(model, task, sets.test)
    says = f"{key['model']}, seed {key['seed']}: recall@10 {metrics['recall_at_10']:.4f}"
    return {"test": metrics, "says": says}


def _run(context: Context) -> Outcome:
    path = context.path("../shared/data/ml-1m/ml-1m.zip")
    size = {"data": path, "epochs": 3, "max_steps": context.size["max_steps"]}
    seeds = [context.seed]
    keys = [{"model": m, "seed": s, **size} for s in seeds for m in MODELS]
    done = context.trained("movielens_1m.jsonl", train_one, keys)
    table = []
    for name in MODELS:
        own = [row["test"] for row in where(done, model=name)]
        cells = [
            mean_and_spread([v[m] for v in own], 1 if m == "effective_sample_size" else 4)
            for m in _SHOWN
        ]
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
    {"max_steps": None},
    {"max_steps": 10},
)
