"""LETOR: simulated clicks on LambdaMART's order of real queries, re-ranked."""

from __future__ import annotations

import functools
import time
from pathlib import Path
from typing import Any

import numpy as np

from tfrz.errors import InputError
from tfrz.reproduce.experiment import Context, Experiment, Outcome
from tfrz.reproduce.runs import Runs

_POSITION = ("model.scorer=mlp", "model.position=true")
MODELS: dict[str, tuple[str, ...]] = {
    "pointwise MLP + position": (*_POSITION, "model.loss=sigmoid"),
    "listwise MLP + position": (*_POSITION, "model.loss=softmax"),
    "ApproxNDCG MLP + position": (*_POSITION, "model.loss=approx_ndcg"),
    "LambdaRank MLP + position": (*_POSITION, "model.loss=lambda_rank"),
    "one-step, cross-entropy": ("model.scorer=one_step",),
    "sequential, cross-entropy, greedy": (),
}
# Least grade of what can be clicked, logarithms of the features, share of test queries.
DATA: dict[str, dict[str, Any]] = {
    "MQ2008": {"path": "letor-mq2008", "threshold": 1.0, "logs": False, "test": 0.1},
    "MSLR sample": {"path": "letor-mslr", "threshold": 2.0, "logs": True, "test": 0.3},
}
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
        # The validation queries choose among the weights after each epoch.
        f"trainer.epochs={key['epochs']}",
        *MODELS.get(key["model"], ()),
    ]


@functools.lru_cache(maxsize=2)
def _prepared(path: str, overrides: tuple[str, ...], seed: int) -> Any:
    from tfrz.data.records import open_source
    from tfrz.reproduce.training import configure
    from tfrz.zoo import registry

    entry = registry.get("seq2slate")
    config = configure("seq2slate", "letor", overrides, seed)
    return entry.load("task")(entry, config).prepare(open_source(f"letor:{path}", None, "list"))


def train_one(key: dict[str, Any]) -> dict[str, Any]:
    """One run: trains on the clicks of one draw, judged on those of the test queries."""
    from tfrz.reproduce.training import configure, train
    from tfrz.training.batches import ArrayBatches
    from tfrz.training.fit import evaluate
    from tfrz.zoo.tasks.slate import SlateTask

    started = time.perf_counter()
    overrides = _overrides(key)
    shared = tuple(_overrides({**key, "model": ""}))
    prepared = _prepared(key["path"], shared, key["seed"])
    row: dict[str, Any] = {}
    if key["model"] == "base ranker":
        parts = [SlateTask.in_base_order(batch)["ordered"] for batch in prepared.test.once()]
        from tfrz.zoo import registry

        entry = registry.get("seq2slate")
        task = entry.load("task")(entry, configure("seq2slate", "letor", shared, key["seed"]))
        row = task.metrics({"ordered": np.concatenate(parts)})
    else:
        config = configure("seq2slate", "letor", overrides, key["seed"])
        columns = prepared.train.columns()
        batches = ArrayBatches(columns, config.trainer.batch_size, key["seed"])
        model, task, _ = train(config, prepared.inputs, batches, key["steps"], prepared.validation)
        row = evaluate(model, task, prepared.test)
    row["queries"] = [prepared.train.num_examples, prepared.test.num_examples]
    row["seconds"] = round(time.perf_counter() - started, 1)
    where = f"{key['data']}, {key['clicks']}, {key['model']}, seed {key['seed']}"
    row["says"] = f"{where}: NDCG@10 {row['ndcg_at_10']:.4f} ({row['seconds']} s)"
    return row


def _run(context: Context) -> Outcome:
    root = Path(context.data or "../shared/data")
    seeds = [context.seed] if context.quick else [context.seed + i for i in range(3)]
    keys = []
    for name, given in DATA.items():
        place = root / given["path"]
        if not place.exists():
            raise InputError(f"{place} does not exist: name the folder of data sets with --data")
        path = str(place if name == "MQ2008" else next(place.iterdir()))
        for clicks in ("diverse", "similar"):
            for model in ("base ranker", *MODELS):
                for seed in seeds:
                    size = {"length": 10, "steps": 50, "epochs": 2 if context.quick else 12}
                    key = {"data": name, "clicks": clicks, "model": model, "seed": seed, **size}
                    keys.append({**key, **given, "path": path})
    runs = Runs(context.work / "letor.jsonl")
    rows = runs.all(train_one, keys, context.jobs, context.say)
    table = []
    for name in DATA:
        for clicks in ("diverse", "similar"):
            for model in ("base ranker", *MODELS):
                own = [
                    row
                    for row in rows
                    if (row["key"]["data"], row["key"]["clicks"], row["key"]["model"])
                    == (name, clicks, model)
                ]
                values = {m: np.array([row[m] for row in own]) for m in _METRICS}
                spread = values["ndcg_at_10"].std(ddof=1) if len(own) > 1 else 0.0
                cells = [f"{values[m].mean():.4f}" for m in _METRICS]
                queries = " / ".join(map(str, own[0]["queries"]))
                table.append((name, clicks, model, *cells, f"{spread:.4f}", queries))
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
        details={"seeds": seeds, "eta": _ETA, "runs": rows},
    )


EXPERIMENTS = (
    Experiment(
        "seq2slate/letor",
        "MQ2008 and a sample of MSLR: clicks simulated on LambdaMART's order, re-ranked",
        "the procedure of its experiments; the paper has Yahoo LTRC and MSLR-WEB30K",
        _run,
    ),
)
