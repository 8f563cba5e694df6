"""Clicks of known probability: how close each network comes to the best possible log loss."""

from __future__ import annotations

from typing import Any

import numpy as np

from tfrz import metrics
from tfrz.data.simulators.clicks import FIELDS, ClickSimulator
from tfrz.reproduce.experiment import Check, Context, Experiment, Outcome
from tfrz.reproduce.runs import spread
from tfrz.reproduce.training import settings, task_of, train
from tfrz.training.batches import ArrayBatches
from tfrz.training.fit import evaluate
from tfrz.zoo.tasks.click import ModelInputs

MODELS: dict[str, dict[str, Any]] = {
    "ReLU 64, 64": {"num_cross_layers": 0, "hidden_units": [64, 64]},
    "2 cross layers": {"num_cross_layers": 2, "cross": "full", "hidden_units": []},
    "2 cross layers, rank d/4": {
        "num_cross_layers": 2,
        "cross": "low_rank",
        "rank": 12,
        "hidden_units": [],
    },
    "2 cross layers, then ReLU 64": {
        "num_cross_layers": 2,
        "cross": "full",
        "hidden_units": [64],
    },
}


_SHARED = (
    "model.structure=stacked",
    "model.embedding_dim=8",
    "trainer.batch_size=512",
    "trainer.learning_rate=0.003",
    "trainer.learning_rate_schedule=cosine",
    "trainer.epochs=100",
    "trainer.ema_decay=null",
    "trainer.early_stopping_patience=null",
    "trainer.steps_per_call=100",
)


def click_columns(
    world: ClickSimulator, rows: int, seed: int
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Returns transformed impressions, and the columns of the simulator."""
    sample = world.sample(rows, seed)
    columns = {f"{name}_xf": sample[name] + 1 for name in FIELDS}
    return {**columns, "label_xf": sample["click"]}, sample


def _run(context: Context) -> Outcome:
    world = ClickSimulator(context.seed)
    training, _ = click_columns(world, context.size["rows"], seed=1)
    held_out, sample = click_columns(world, 40_000, seed=2)
    bayes = world.bayes_log_loss(sample)
    bayes_auc = metrics.auc(sample["click"], sample["probability"])
    inputs = ModelInputs({f"{n}_xf": size + 2 for n, size in FIELDS.items()})
    steps, seeds = context.size["steps"], range(context.size["seeds"])
    # Evaluated once, at the last step: nothing is chosen on the test rows.
    last = ArrayBatches({k: v[:512] for k, v in training.items()}, 512)
    rows = [("the true probabilities", f"{bayes:.4f}", "", f"{bayes_auc:.4f}")]
    mean: dict[str, float] = {}
    for name, values in MODELS.items():
        found = []
        for seed in seeds:
            trainer = {"max_steps": steps, "seed": seed}
            overrides = (*_SHARED, *settings(trainer, "trainer."), *settings(values, "model."))
            task = task_of("dcn_v2", "default", overrides)
            model, _ = train(task, inputs, training, last)
            found.append(evaluate(model, task, ArrayBatches(held_out, 8192)))
        losses = [one["log_loss"] for one in found]
        mean[name] = float(np.mean(losses))
        auc = np.mean([one["auc"] for one in found])
        rows.append((name, f"{mean[name]:.4f}", spread(losses), f"{auc:.4f}"))
        context.say(f"{name}: {mean[name]:.4f}")
    relu, full, low = (mean[n] for n in list(MODELS)[:3])
    return Outcome(
        ("model", "test log loss", "std", "AUC"),
        rows,
        [
            Check(
                "two cross layers beat two ReLU layers",
                full < relu,
                f"{full:.4f} against {relu:.4f}",
            ),
            Check(
                "rank d/4 lies between them",
                full <= low <= relu,
                f"{full:.4f} <= {low:.4f} <= {relu:.4f}",
            ),
            Check(
                "no model beats the true probabilities",
                min(mean.values()) > bayes,
                f"{min(mean.values()):.4f} against {bayes:.4f}",
            ),
        ],
        {"bayes_log_loss": bayes, "bayes_auc": bayes_auc, "steps": steps, "seeds": list(seeds)},
    )


EXPERIMENTS = (
    Experiment(
        "dcn_v2/synthetic_ctr",
        "clicks of known probability",
        "the same question as Table 5, on simulated clicks",
        _run,
        {"rows": 200_000, "steps": 2500, "seeds": 3},
        {"rows": 100_000, "steps": 1000, "seeds": 1},
    ),
)
