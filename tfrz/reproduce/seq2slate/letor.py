"""LETOR: simulated clicks on LambdaMART's order of real queries, re-ranked."""

from __future__ import annotations

import functools
import itertools
from pathlib import Path
from typing import Any

import numpy as np

from tfrz.errors import InputError
from tfrz.reproduce.experiment import Context, Experiment, Outcome
from tfrz.reproduce.runs import Row, spread, where
from tfrz.reproduce.training import last_step, prepared, task_of, train
from tfrz.training.fit import evaluate

_POSITION = ("model.scorer=mlp", "model.position=true")
MODELS: dict[str, tuple[str, ...]] = {
    "pointwise MLP + position": (*_POSITION, "model.loss=sigmoid"),
    "listwise MLP + position": (*_POSITION, "model.loss=softmax"),
    "ApproxNDCG MLP + position": (*_POSITION, "model.loss=approx_ndcg"),
    "LambdaRank MLP + position": (*_POSITION, "model.loss=lambda_rank"),
    "one-step, cross-entropy": ("model.scorer=one_step",),
    "sequential, cross-entropy, greedy": (),
}
# Minimum grade for a click, whether to take logarithms of features, share of test queries.
DATA: dict[str, dict[str, Any]] = {
    "MQ2008": {"path": "letor-mq2008", "threshold": 1.0, "logs": False, "test": 0.1},
    "MSLR sample": {"path": "letor-mslr", "threshold": 2.0, "logs": True, "test": 0.3},
}
_CLICKS = ("diverse", "similar")
_ARMS = ("base ranker", *MODELS)
_ETA = 0.3
_METRICS = ("ndcg_at_5", "ndcg_at_10", "map")


def _overrides(key: dict[str, Any]) -> list[str]:
    return [
        f"data.lists.length={key['length']}",
        f"data.lists.log_features={str(key['logs']).lower()}",
        "data.lists.normalize=standardize",
        "data.lists.base_ranker=lambda_mart",
        f"data.lists.clicks={{kind: {key['clicks']}, eta: {_ETA}, threshold: {key['threshold']}}}",
        f"data.lists.click_seed={key['seed']}",
        "data.validation_fraction=0.1",
        f"data.test_fraction={key['test']}",
        "model.units=64",
        "model.dropout=0.1",
        "trainer.batch_size=16",
        "trainer.learning_rate=0.001",
        "trainer.clip_norm=1.0",
        # The weights after each epoch are chosen by the validation queries.
        f"trainer.epochs={key['epochs']}",
        *MODELS.get(key["model"], ()),
    ]


@functools.lru_cache(maxsize=2)
def _prepared(path: str, overrides: tuple[str, ...], seed: int) -> tuple[Any, Any]:
    """A task without a model's settings, and its sets."""
    task = task_of("seq2slate", "letor", last_step(overrides, seed))
    return task, prepared(task, f"letor:{path}", order_by=None)


def train_one(key: dict[str, Any]) -> Row:
    """One run: trains on the clicks of one draw, judged on those of the test queries."""
    shared = tuple(_overrides({**key, "model": ""}))
    task, sets = _prepared(key["path"], shared, key["seed"])
    if key["model"] == "base ranker":
        parts = [task.in_base_order(batch)["ordered"] for batch in sets.test.once()]
        row = task.metrics({"ordered": np.concatenate(parts)})
    else:
        task = task_of("seq2slate", "letor", last_step(_overrides(key), key["seed"]))
        columns = sets.train.columns()
        model, _ = train(task, sets.inputs, columns, sets.validation, steps=key["steps"])
        row = evaluate(model, task, sets.test)
    about = f"{key['data']}, {key['clicks']}, {key['model']}, seed {key['seed']}"
    return {
        **row,
        "queries": [sets.train.num_examples, sets.test.num_examples],
        "says": f"{about}: NDCG@10 {row['ndcg_at_10']:.4f}",
    }


def _run(context: Context) -> Outcome:
    root = Path(context.data or "../shared/data")
    keys = []
    for name, given in DATA.items():
        place = root / given["path"]
        if not place.exists():
            raise InputError(f"{place} does not exist: name the folder of data sets with --data")
        path = str(place if name == "MQ2008" else next(place.iterdir()))
        size = {"length": 10, "steps": 50, "epochs": context.size["epochs"]}
        for clicks, model, seed in itertools.product(_CLICKS, _ARMS, context.seeds):
            key = {"data": name, "clicks": clicks, "model": model, "seed": seed, **size}
            keys.append({**key, **given, "path": path})
    rows = context.trained("letor.jsonl", train_one, keys)
    table = []
    for name, clicks, model in itertools.product(DATA, _CLICKS, _ARMS):
        own = where(rows, data=name, clicks=clicks, model=model)
        cells = [f"{np.mean([row[m] for row in own]):.4f}" for m in _METRICS]
        deviation = spread([row["ndcg_at_10"] for row in own]) or "0.0000"
        queries = " / ".join(map(str, own[0]["queries"]))
        table.append((name, clicks, model, *cells, deviation, queries))
    return Outcome(
        columns=(
            "data",
            "clicks",
            "model",
            "NDCG@5",
            "NDCG@10",
            "MAP",
            "std of NDCG@10",
            "training / test queries",
        ),
        rows=table,
        checks=[],
        details={"seeds": context.seeds, "eta": _ETA, "runs": rows},
    )


EXPERIMENTS = (
    Experiment(
        "seq2slate/letor",
        "MQ2008 and a sample of MSLR: clicks simulated on LambdaMART's order, re-ranked",
        "the procedure of its experiments; the paper has Yahoo LTRC and MSLR-WEB30K",
        _run,
        {"seeds": 3, "epochs": 12},
        {"seeds": 1, "epochs": 2},
    ),
)
