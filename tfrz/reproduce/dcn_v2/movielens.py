"""Table 6 on MovieLens-1M: four models at the paper's sizes, tuned alike, five seeds each."""

from __future__ import annotations

import itertools
import json
import time
from typing import Any

import numpy as np

from tfrz.reproduce.experiment import Check, Context, Experiment, Outcome
from tfrz.reproduce.runs import Runs

# Model to its overrides, the paper's log loss and AUC (Table 6), and its parameters there.
MODELS: dict[str, tuple[dict[str, Any], float, float, str]] = {
    "DNN": ({"num_cross_layers": 0, "hidden_units": [256]}, 0.3201, 0.8929, "46K"),
    "CrossNet": (
        {"cross": "full", "num_cross_layers": 2, "hidden_units": []},
        0.3185,
        0.8937,
        "65K",
    ),
    "DCN-V2": (
        {"cross": "full", "num_cross_layers": 2, "hidden_units": [256]},
        0.3170,
        0.8950,
        "110K",
    ),
    "DCN-Mix": (
        {"cross": "mixture", "num_cross_layers": 2, "rank": 20, "hidden_units": [256]},
        0.3160,
        0.8964,
        "110K",
    ),
}

# The same values are tried for every model; what the paper searched on this data is not printed.
SEARCH = {"embedding_l2": (0.03, 0.06), "learning_rate": (0.002, 0.004)}
_TRAINER = {
    "epochs": 10,
    "batch_size": 1024,
    "learning_rate_schedule": "constant",
    "ema_decay": 0.999,
    "early_stopping_patience": 2,
    "tensorboard": False,
    "steps_per_call": 100,
}


def _run(context: Context) -> Outcome:
    from tfrz.data.records import open_source
    from tfrz.reproduce.movielens_1m import data_path, parameters
    from tfrz.training.batches import ArrayBatches
    from tfrz.training.fit import build_model, evaluate, fit
    from tfrz.zoo import registry
    from tfrz.zoo.run_config import load_run_config

    reader = open_source(f"movielens-1m:{data_path(context)}", genres=False)
    entry = registry.get("dcn_v2")

    def configure(model: str, values: dict[str, Any], seed: int) -> Any:
        settings = {**_TRAINER, **values, "seed": seed}
        if context.quick:
            settings |= {"epochs": 1, "max_steps": 150}
        overrides = [f"model.{k}={json.dumps(v)}" for k, v in MODELS[model][0].items()]
        overrides += [f"trainer.{k}={json.dumps(v)}" for k, v in settings.items()]
        overrides += ["model.structure=parallel", "model.embedding_dim=30"]
        overrides += [f"data.seed={context.seed}"]
        return load_run_config("dcn_v2", "default", overrides)

    prepared = entry.load("task")(entry, configure("DNN", {}, 0)).prepare(reader)
    columns = prepared.train.columns()
    runs = Runs(
        context.work / ("movielens_1m.quick.jsonl" if context.quick else "movielens_1m.jsonl")
    )

    def train(model: str, values: dict[str, Any], seed: int, test: bool) -> dict[str, Any]:
        config = configure(model, values, seed)
        key = {"model": model, "values": values, "seed": seed, "split": context.seed, "test": test}
        key["settings"] = [_TRAINER, MODELS[model][0]]
        done = runs.get(key)
        if done is not None:
            return done
        started = time.perf_counter()
        task = entry.load("task")(entry, config)
        network = build_model(lambda: task.build(prepared.inputs), config.trainer)
        batches = ArrayBatches(columns, config.trainer.batch_size, seed)
        best = fit(network, task, batches, prepared.validation, config.trainer, None, False).best
        row = {"validation": best, "dense_parameters": parameters(network)["dense"]}
        if test:
            row["test"] = evaluate(network, task, prepared.test)
        row["seconds"] = round(time.perf_counter() - started, 1)
        context.say(
            f"{model} {values} seed {seed}: validation log loss {best['log_loss']:.4f} "
            f"({row['seconds']} s)"
        )
        return runs.add(key, row)

    grid = [dict(zip(SEARCH, v, strict=True)) for v in itertools.product(*SEARCH.values())]
    seeds = range(2) if context.quick else range(5)
    rows, figures, tuned = [], {}, {}
    for model, (_, paper_loss, paper_auc, paper_size) in MODELS.items():
        trials = [train(model, v, 1000, False) for v in (grid[:1] if context.quick else grid)]
        best = min(trials, key=lambda t: t["validation"]["log_loss"])
        tuned[model] = best["key"]["values"]
        done = [train(model, tuned[model], seed, True) for seed in seeds]
        loss = np.array([d["test"]["log_loss"] for d in done])
        auc = np.array([d["test"]["auc"] for d in done])
        figures[model] = (float(loss.mean()), float(auc.mean()))
        rows.append(
            (
                model,
                f"{done[0]['dense_parameters'] / 1000:.1f}K",
                f"{loss.mean():.4f}",
                f"{loss.std(ddof=1):.4f}",
                f"{auc.mean():.4f}",
                f"{auc.std(ddof=1):.4f}",
                f"{paper_loss:.4f}",
                f"{paper_auc:.4f}",
                paper_size,
            )
        )
    best_name = min(("DCN-V2", "DCN-Mix"), key=lambda m: figures[m][0])
    loss, auc = figures[best_name]
    dnn_loss, dnn_auc = figures["DNN"]
    checks = [
        Check(
            "the better of DCN-V2 and DCN-Mix beats the DNN in mean log loss and AUC",
            loss < dnn_loss and auc > dnn_auc,
            f"{best_name} {loss:.4f} / {auc:.4f}, DNN {dnn_loss:.4f} / {dnn_auc:.4f}",
        )
    ]
    if not context.quick:
        checks.append(
            Check(
                "its mean test log loss is at most 0.322 and its AUC at least 0.890",
                loss <= 0.322 and auc >= 0.890,
                f"{best_name} {loss:.4f} / {auc:.4f}",
            )
        )
    return Outcome(
        columns=(
            "model",
            "dense parameters",
            "log loss",
            "std",
            "AUC",
            "std",
            "paper log loss",
            "paper AUC",
            "paper parameters",
        ),
        rows=rows,
        checks=checks,
        details={"tuned": tuned, "search": SEARCH, "trainer": _TRAINER, "seeds": list(seeds)},
    )


EXPERIMENTS = (
    Experiment(
        "dcn_v2/movielens_1m",
        "MovieLens-1M: DNN, CrossNet, DCN-V2 and DCN-Mix at the paper's sizes",
        "Table 6",
        _run,
    ),
)
