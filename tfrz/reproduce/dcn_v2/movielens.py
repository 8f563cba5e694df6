"""Table 6 on MovieLens-1M: four models at the paper's sizes, with equal tuning and five seeds."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from tfrz.reproduce.experiment import Check, Context, Experiment, Outcome
from tfrz.reproduce.movielens_1m import parameters
from tfrz.reproduce.runs import Row, grid, where
from tfrz.reproduce.training import permuted, settings, task_of, train
from tfrz.training.fit import evaluate

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

# The same grid for every model; the paper does not print its own for this data.
SEARCH = {"embedding_l2": (0.03, 0.06), "learning_rate": (0.002, 0.004)}
_TRAINER = {
    "batch_size": 1024,
    "learning_rate_schedule": "constant",
    "ema_decay": 0.999,
    "early_stopping_patience": 2,
    "tensorboard": False,
    "steps_per_call": 100,
}


def _task(key: dict[str, Any]) -> Any:
    trainer = {**_TRAINER, **key["values"], **key["limits"], "seed": key["seed"]}
    model = {**MODELS[key["model"]][0], "structure": "parallel", "embedding_dim": 30}
    overrides = [*settings(model, "model."), *settings(trainer, "trainer.")]
    return task_of("dcn_v2", "default", [*overrides, f"data.seed={key['split']}"])


@functools.lru_cache(maxsize=1)
def _prepared(path: str, split: int) -> Any:
    task = _task({"model": "DNN", "values": {}, "limits": {}, "seed": 0, "split": split})
    return permuted(task, f"movielens-1m:{path}", genres=False)


def train_one(key: dict[str, Any]) -> Row:
    """One run: the metrics of the weights that validation chose."""
    sets, task = _prepared(key["data"], key["split"]), _task(key)
    network, best = train(task, sets.inputs, sets.train.columns(), sets.validation)
    return {
        "validation": best,
        "dense_parameters": parameters(network)["dense"],
        **({"test": evaluate(network, task, sets.test)} if key["test"] else {}),
        "says": f"{key['model']} {key['values']} seed {key['seed']}: "
        f"validation log loss {best['log_loss']:.4f}",
    }


def _run(context: Context) -> Outcome:
    size = context.size
    base = {
        "data": context.path("../shared/data/ml-1m/ml-1m.zip"),
        "split": context.seed,
        "limits": {name: size[name] for name in ("epochs", "max_steps")},
    }

    def key(model: str, values: dict[str, Any], seed: int, test: bool) -> dict[str, Any]:
        return {**base, "model": model, "values": values, "seed": seed, "test": test}

    def rows_of(keys: list[dict[str, Any]]) -> list[Row]:
        return context.trained("movielens_1m.jsonl", train_one, keys)

    points, seeds = grid(SEARCH)[: size["points"]], range(size["seeds"])
    trials = rows_of([key(m, v, 1000, False) for m in MODELS for v in points])
    tuned = {
        model: min(where(trials, model=model), key=lambda t: t["validation"]["log_loss"])["key"][
            "values"
        ]
        for model in MODELS
    }
    finished = rows_of([key(m, tuned[m], seed, True) for m in MODELS for seed in seeds])
    rows, figures = [], {}
    for model, (_, paper_loss, paper_auc, paper_size) in MODELS.items():
        done = where(finished, model=model)
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
    best_loss, best_auc = figures[best_name]
    dnn_loss, dnn_auc = figures["DNN"]
    checks = [
        Check(
            "the better of DCN-V2 and DCN-Mix beats the DNN in mean log loss and AUC",
            best_loss < dnn_loss and best_auc > dnn_auc,
            f"{best_name} {best_loss:.4f} / {best_auc:.4f}, DNN {dnn_loss:.4f} / {dnn_auc:.4f}",
        ),
        Check(
            "its mean test log loss is at most 0.322 and its AUC at least 0.890",
            best_loss <= 0.322 and best_auc >= 0.890,
            f"{best_name} {best_loss:.4f} / {best_auc:.4f}",
            ("epochs", "max_steps"),
        ),
    ]
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
        details={
            "tuned": tuned,
            "search": SEARCH,
            "trainer": {"epochs": size["epochs"], **_TRAINER},
            "seeds": list(seeds),
        },
    )


EXPERIMENTS = (
    Experiment(
        "dcn_v2/movielens_1m",
        "MovieLens-1M: DNN, CrossNet, DCN-V2 and DCN-Mix at the paper's sizes",
        "Table 6",
        _run,
        {"epochs": 10, "max_steps": None, "points": 4, "seeds": 5},
        {"epochs": 1, "max_steps": 150, "points": 1, "seeds": 2},
    ),
)
