"""MovieLens-1M: a trained DCN-V2 whose layers are replaced by factors, then trained further."""

from __future__ import annotations

import functools
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf

from tfrz.data.spec import transformed_name
from tfrz.pictures import picture
from tfrz.reproduce import movielens_1m
from tfrz.reproduce.experiment import Check, Context, Experiment, Outcome
from tfrz.reproduce.runs import Row, where
from tfrz.training.factorization import factorize
from tfrz.training.fit import evaluate
from tfrz.zoo.teacher import TEACHER_SCORE

# Changes to the zoo's configuration for MovieLens-1M.
ORIGINAL: dict[str, Any] = {"model.cross": "full"}
_LIMITS = ("trainer.epochs", "trainer.max_steps")
RANKS = (2, 4, 8, 16, 32, 64)
# Training rows on which the layers' inputs are measured.
_MEASURED = 8192
_INITS: tuple[Literal["spectral", "data"], ...] = ("spectral", "data")
# Further training: one epoch at a quarter of the rate.
_ON: dict[str, Any] = {"trainer.epochs": 1, "trainer.learning_rate": 0.0005}
_WEIGHT, _TEMPERATURE = 0.5, 1.0
_MAX_RATIO, _MAX_LOSS = 0.5, 0.001
_COLUMN = transformed_name(TEACHER_SCORE)
# Further training of the factors and, for comparison, of the original.
_TAUGHT = {
    "distill.teacher": f"scores as {_COLUMN}",
    "distill.weight": _WEIGHT,
    "distill.temperature": _TEMPERATURE,
}
_FURTHER: dict[str, dict[str, Any]] = {"trained on": {}, "trained on, distilled": _TAUGHT}
METHODS = (*_INITS, *(f"data, {name}" for name in _FURTHER))
_BATCH = 1024


def _file(folder: Path, key: Mapping[str, Any]) -> Path:
    """Returns the file with the weights and the training scores of an original."""
    return folder / f"original.{key['split']}.{key['seed']}.npz"


def _original(folder: Path, key: dict[str, Any], sets: Any) -> Row:
    task = movielens_1m.task_of({**key["model"], **key["trainer"], "trainer.seed": key["seed"]})
    columns = sets.train.columns()
    model, best = movielens_1m.train(task, sets, columns)
    scores = tf.sigmoid(movielens_1m.logits(model, columns)).numpy()
    weights = {f"w{i}": value for i, value in enumerate(model.get_weights())}
    np.savez(_file(folder, key), scores=scores, **weights)
    return {
        "epochs": best["epoch"],
        "parameters": movielens_1m.parameters(model),
        "found": {"original": movielens_1m.judged(model, task, sets)},
    }


def _restored(folder: Path, key: Mapping[str, Any], sets: Any) -> tuple[keras.Model, np.ndarray]:
    """Loads a trained original and its probabilities of the training rows."""
    model = movielens_1m.task_of(key["model"]).build(sets.inputs)
    with np.load(_file(folder, key)) as kept:
        model.set_weights([kept[f"w{i}"] for i in range(len(model.weights))])
        return model, kept["scores"]


def _compressed(folder: Path, key: dict[str, Any], sets: Any) -> Row:
    """Compresses to a rank and trains further; without a rank, trains the original further."""
    original, scores = _restored(folder, key, sets)
    columns = {**sets.train.columns(), _COLUMN: scores}
    found, model, prefix = {}, original, "original"
    if key["rank"] is not None:
        # The training set is in random order.
        inputs = {name: values[:_MEASURED] for name, values in columns.items()}
        for init in _INITS:
            model, _ = factorize(original, key["rank"], init, inputs)
            found[init] = movielens_1m.judged(model, movielens_1m.task_of(key["model"]), sets)
        prefix = "data"
    start = model.get_weights()
    for name, changes in _FURTHER.items():
        model.set_weights(start)
        task = movielens_1m.task_of(
            {**key["model"], **key["trainer"], "trainer.seed": key["seed"], **changes}
        )
        before = evaluate(model, task, sets.validation)
        _, after = movielens_1m.train(task, sets, columns, model)
        if after["log_loss"] >= before["log_loss"]:
            model.set_weights(start)
        found[f"{prefix}, {name}"] = movielens_1m.judged(model, task, sets)
    return {"parameters": movielens_1m.parameters(model), "found": found}


def train_one(folder: Path, key: dict[str, Any]) -> Row:
    """Trains an original and saves it in a folder, or compresses a saved one.

    Args:
      folder: for the weights.
      key: `data`, `split`, `seed`, overrides of the `model` and of the `trainer`; to compress, also
        the `rank`, or None.
    """
    sets = movielens_1m.sets(key["data"], key["split"])
    row = (_compressed if "rank" in key else _original)(folder, key, sets)
    losses = ", ".join(f"{n} {v['test']['log_loss']:.4f}" for n, v in row["found"].items())
    return {**row, "says": f"seed {key['seed']}, rank {key.get('rank')}: log loss {losses}"}


def forward_times(key: dict[str, Any]) -> Row:
    """Times forward passes on the CPU by rank; 0 is the original.

    Every round runs each model once, in random order, with initial weights.

    Args:
      key: `data`, `split`, overrides of the `model`, the ranks to time as `forward`, and `rounds`.
    """
    sets = movielens_1m.sets(key["data"], key["split"])
    with tf.device("CPU:0"):
        changes: dict[int, dict[str, Any]] = {0: {}} | {
            rank: {"model.cross": "low_rank", "model.rank": rank, "model.hidden_rank": rank}
            for rank in key["forward"]
        }
        models = {
            rank: movielens_1m.task_of({**key["model"], **changed}).build(sets.inputs)
            for rank, changed in changes.items()
        }
        columns = sets.test.columns()
        batch = {name: tf.constant(columns[name][:_BATCH]) for name in sets.inputs.names}
        passes = {
            rank: tf.function(functools.partial(model, training=False), autograph=False)
            for rank, model in models.items()
        }
        times: dict[int, list[float]] = {rank: [] for rank in passes}
        rng = np.random.default_rng(0)
        for number in range(key["rounds"] + 10):
            for rank in rng.permutation(list(passes)).tolist():
                started = time.perf_counter()
                passes[rank](batch).numpy()
                if number >= 10:
                    times[rank].append(time.perf_counter() - started)
    says = f"{key['rounds']} forward passes of each rank"
    return {"times": {str(rank): values for rank, values in times.items()}, "says": says}


# Rank, method, share of the original's parameters, and what is lost, by seed.
_Point = tuple[int, str, float, np.ndarray]


def _plot(points: Sequence[_Point], path: Path) -> None:
    """Plots the loss of each method against its share of parameters, with the seeds as points."""
    with picture(path, 7, 4) as figure:
        axes = figure.add_subplot()
        for method in METHODS:
            own = [(ratio, lost) for _, name, ratio, lost in points if name == method]
            means = [lost.mean() for _, lost in own]
            (line,) = axes.plot([ratio for ratio, _ in own], means, marker="o", label=method)
            for ratio, lost in own:
                at = np.full(len(lost), ratio)
                axes.scatter(at, lost, s=6, color=line.get_color(), alpha=0.6)
        axes.axhline(0, color="black", lw=0.8)
        axes.axhline(_MAX_LOSS, color="black", lw=0.8, ls=":")
        axes.axvline(_MAX_RATIO, color="black", lw=0.8, ls=":")
        axes.set_xscale("log", base=2)
        axes.set_xlabel("dense parameters, share of the original's")
        axes.set_ylabel("test log loss above the original's")
        axes.legend(frameon=False)


def _test(rows: list[dict[str, Any]], name: str, metric: str) -> np.ndarray:
    return np.array([row["found"][name]["test"][metric] for row in rows])


def _check(points: Sequence[_Point]) -> Check:
    small = [point for point in points if point[2] <= _MAX_RATIO]
    rank, method, ratio, lost = min(small, key=lambda point: float(point[3].mean()))
    shown = f"rank {rank}, {method}: {ratio:.3f} of the parameters, {lost.mean():+.4f}"
    within = [point for point in small if point[3].mean() <= _MAX_LOSS]
    if within:
        least = min(within, key=lambda point: (point[2], float(point[3].mean())))
        shown += f"; fewest: rank {least[0]}, {least[1]}: {least[2]:.3f}, {least[3].mean():+.4f}"
    return Check(
        "at 2 times fewer dense parameters or less the best method loses at most 0.001 log loss",
        bool(within),
        shown,
    )


def _run(context: Context) -> Outcome:
    seeds, ranks, rounds = context.seeds, list(context.size["ranks"]), context.size["rounds"]
    limits = {name: context.size[name] for name in _LIMITS if context.size[name] is not None}
    trainer = {"trainer.steps_per_call": 100, **limits}
    further = {"trainer.steps_per_call": 100, **_ON}
    if context.quick:
        further |= {"trainer.max_steps": 30}
    file = "movielens_1m.quick/runs.jsonl" if context.quick else "movielens_1m/runs.jsonl"
    train = functools.partial(train_one, (context.work / file).parent)
    base: dict[str, Any] = {
        "data": context.path(movielens_1m.DATA),
        "split": context.seed,
        "model": ORIGINAL,
    }
    keys = [{**base, "seed": seed, "trainer": trainer} for seed in seeds]
    originals = context.trained(file, train, keys)
    keys = [
        {**base, "seed": seed, "trainer": further, "rank": rank}
        for rank in (None, *ranks)
        for seed in seeds
    ]
    rows = context.trained(file, train, keys)
    by_rank = {rank: where(rows, rank=rank) for rank in (None, *ranks)}
    # Timed with nothing else running.
    key = {**base, "seed": seeds[0], "forward": ranks, "rounds": rounds}
    (timed,) = context.trained(file, forward_times, [key])
    times = {int(rank): np.array(values) for rank, values in timed["times"].items()}

    whole = originals[0]["parameters"]["dense"]
    dense = _test(originals, "original", "log_loss")

    def cells(rank: int | None, name: str, rows: list[dict[str, Any]]) -> tuple[Any, ...]:
        loss, size = _test(rows, name, "log_loss"), rows[0]["parameters"]["dense"]
        return (
            rank or "",
            name,
            f"{size:,}",
            f"{size / whole:.3f}",
            f"{loss.mean():.4f}",
            "" if name == "original" else " ".join(f"{lost:+.4f}" for lost in loss - dense),
            f"{_test(rows, name, 'auc').mean():.4f}",
            f"{np.median(times[rank or 0] / times[0]):.2f}",
        )

    table = [cells(None, "original", originals)]
    table += [cells(None, f"original, {name}", by_rank[None]) for name in _FURTHER]
    points: list[_Point] = []
    for rank in ranks:
        ratio = by_rank[rank][0]["parameters"]["dense"] / whole
        for method in METHODS:
            table.append(cells(rank, method, by_rank[rank]))
            lost = _test(by_rank[rank], method, "log_loss") - dense
            points.append((rank, method, ratio, lost))
    plot = context.work / "curve.png"
    _plot(points, plot)
    context.say(f"log loss by parameters: {plot}")
    details = {
        "seeds": seeds,
        "original": ORIGINAL,
        "trained on": further,
        "distilled": {"lambda": _WEIGHT, "temperature": _TEMPERATURE},
        "rows measured": _MEASURED,
        "forward pass": {
            "rows": _BATCH,
            "rounds": rounds,
            "median milliseconds": {
                rank or "original": 1e3 * float(np.median(t)) for rank, t in times.items()
            },
        },
        "runs": [{"key": row["key"], "found": row["found"]} for row in (*originals, *rows)],
    }
    columns = ("rank", "method", "dense parameters", "share", "test log loss")
    return Outcome(
        (*columns, "above the original by seed", "AUC", "time of a forward pass, relative"),
        table,
        [_check(points)],
        details,
    )


EXPERIMENT = Experiment(
    "low_rank/movielens_1m",
    "MovieLens-1M: log loss against parameters of a DCN-V2's layers as factors",
    "not in the paper: how to apply it to recommenders, section (g) of the specification",
    _run,
    {"seeds": 3, "ranks": RANKS, "rounds": 300, **dict.fromkeys(_LIMITS)},
    {"seeds": 1, "ranks": (8, 32), "rounds": 30, "trainer.epochs": 1, "trainer.max_steps": 150},
)
