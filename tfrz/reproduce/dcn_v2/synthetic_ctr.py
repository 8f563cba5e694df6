"""Clicks of known probability: how near each network comes to the best possible log loss."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from tfrz import metrics
from tfrz.data.simulators.clicks import FIELDS, ClickSimulator
from tfrz.reproduce.experiment import Check, Context, Experiment, Outcome

MODELS: dict[str, dict[str, Any]] = {
    "ReLU 64, 64": {"num_cross_layers": 0, "hidden_units": [64, 64]},
    "2 cross layers": {"cross": "full", "hidden_units": []},
    "2 cross layers, rank d/4": {"cross": "low_rank", "rank": 12, "hidden_units": []},
    "2 cross layers, then ReLU 64": {"cross": "full", "hidden_units": [64]},
}


def click_columns(
    world: ClickSimulator, rows: int, seed: int
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Impressions as the model takes them, and the simulator's own columns."""
    sample = world.sample(rows, seed)
    columns = {f"{name}_xf": sample[name] + 1 for name in FIELDS}
    return {**columns, "label_xf": sample["click"]}, sample


def _run(context: Context) -> Outcome:
    from tfrz.training.batches import ArrayBatches
    from tfrz.training.fit import build_model, evaluate, fit
    from tfrz.zoo import registry
    from tfrz.zoo.run_config import load_run_config
    from tfrz.zoo.tasks.click import ModelInputs

    entry = registry.get("dcn_v2")
    world = ClickSimulator(context.seed)
    rows_train = 100_000 if context.quick else 200_000
    train, _ = click_columns(world, rows_train, seed=1)
    held_out, sample = click_columns(world, 40_000, seed=2)
    bayes = world.bayes_log_loss(sample)
    p = sample["probability"]
    bayes_auc = metrics.auc(sample["click"], p)
    inputs = ModelInputs({f"{n}_xf": size + 2 for n, size in FIELDS.items()})
    steps = 1000 if context.quick else 2500
    seeds = range(1 if context.quick else 3)
    rows = [("the true probabilities", f"{bayes:.4f}", "", f"{bayes_auc:.4f}")]
    mean: dict[str, float] = {}
    for name, overrides in MODELS.items():
        losses, aucs = [], []
        for seed in seeds:
            config = load_run_config(
                "dcn_v2",
                "default",
                [
                    "model.structure=stacked",
                    "model.embedding_dim=8",
                    "model.num_cross_layers=2",
                    *[f"model.{k}={json.dumps(v)}" for k, v in overrides.items()],
                    "trainer.batch_size=512",
                    "trainer.learning_rate=0.003",
                    "trainer.learning_rate_schedule=cosine",
                    "trainer.epochs=100",
                    f"trainer.max_steps={steps}",
                    "trainer.ema_decay=null",
                    "trainer.early_stopping_patience=null",
                    "trainer.steps_per_call=100",
                    f"trainer.seed={seed}",
                ],
            )
            task = entry.load("task")(entry, config)
            model = build_model(lambda t=task: t.build(inputs), config.trainer)
            test = ArrayBatches(held_out, 8192)
            # Evaluated once, at the last step: nothing is chosen on the test rows.
            last = ArrayBatches({k: v[:512] for k, v in train.items()}, 512)
            fit(model, task, ArrayBatches(train, 512, seed), last, config.trainer, None, False)
            found = evaluate(model, task, test)
            losses.append(found["log_loss"])
            aucs.append(found["auc"])
        mean[name] = float(np.mean(losses))
        spread = f"{np.std(losses, ddof=1):.4f}" if len(losses) > 1 else ""
        rows.append((name, f"{mean[name]:.4f}", spread, f"{np.mean(aucs):.4f}"))
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
    ),
)
