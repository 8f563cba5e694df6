"""Gowalla in the split of LightGCN: sets of places, recall and NDCG of the whole test set."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import tensorflow as tf

from tfrz.data.records import open_source
from tfrz.data.sources.reader import read_table
from tfrz.metrics.coverage import coverage, exposures, gini
from tfrz.reproduce.experiment import Context, Experiment, Outcome
from tfrz.reproduce.runs import Row, mean_and_spread, where
from tfrz.reproduce.training import prepared, settings, staged, task_of
from tfrz.zoo.tasks.retrieval import HEAD_SHARE

RUNS: dict[str, tuple[str, ...]] = {
    "two-tower": ("model.num_interests=1",),
    "MUR": ("weighting.kind=density",),
}
ARMS: dict[str, tuple[str, str]] = {
    "two-tower, one vector": ("two-tower", "train"),
    "MUR, four vectors": ("MUR", "train"),
    "MUR-IDW": ("MUR", "density"),
    "MUR-IDW + calibration": ("MUR", "calibrate"),
}
# README of github gusye1234/LightGCN-PyTorch at 07e2ac6d, by its authors: recall@20, NDCG@20.
_LIGHTGCN = {"LightGCN, 1 layer": (0.1687, 0.1417), "LightGCN, 3 layers": (0.1824, 0.1547)}
_SHOWN = ("recall_at_20", "ndcg_at_20", "recall_at_20_tail", "coverage_at_20", "gini_at_20")
_USERS_AT_ONCE = 512


@functools.lru_cache(maxsize=1)
def _prepared(path: str) -> Any:
    task = task_of("multi_interest", "gowalla", ["data.test_fraction=0"])
    return prepared(task, f"gowalla:{path}")


def _sets(path: str, part: str) -> dict[bytes, list[bytes]]:
    """Returns the places of each user, in the order of the reader's seed."""
    table, _ = read_table(open_source(f"gowalla:{path}", None, "history", part=part))
    users, items = (table[name].to_pylist() for name in ("user", "item"))
    sets: dict[bytes, list[bytes]] = {}
    for row in np.argsort(table["position"].to_numpy(), kind="stable"):
        sets.setdefault(users[row], []).append(items[row])
    return sets


def whole_test(model: Any, items: list[str], path: str) -> dict[str, float]:
    """Returns recall and NDCG over all places of a user's test set, without the training places.

    The history is the newest `length` of the training set in its drawn order. Places that the
    model does not know count as missed.
    """
    ids = {item.encode(): i for i, item in enumerate(items, start=1)}
    train, test = _sets(path, "train"), _sets(path, "test")
    counts = model.target_counts.numpy()[1 : 1 + model.num_items]
    head = np.zeros(1 + model.num_items, bool)
    head[1 + np.argsort(-counts, kind="stable")[: round(HEAD_SHARE * model.num_items)]] = True
    vectors = model.item_vectors()

    @tf.function(autograph=False, reduce_retracing=True)
    def best(history: tf.Tensor, seen: tf.Tensor) -> tf.Tensor:
        scores = model.score(model.encode(model.embed({"history_xf": history})), vectors)
        rows = tf.broadcast_to(tf.range(tf.shape(seen)[0])[:, None], tf.shape(seen))
        where = tf.stack([rows, tf.maximum(seen - 1, 0)], axis=-1)
        where = tf.boolean_mask(where, seen > 0)
        lowest = tf.fill([tf.shape(where)[0]], -np.inf)
        return tf.math.top_k(tf.tensor_scatter_nd_update(scores, where, lowest), 20).indices + 1

    users = [user for user in test if user in train]
    discounts = 1.0 / np.log2(np.arange(2, 22))
    recalls, gains, tails, shown = [], [], [], []
    for start in range(0, len(users), _USERS_AT_ONCE):
        some = users[start : start + _USERS_AT_ONCE]
        known = [[ids[i] for i in train[user] if i in ids] for user in some]
        history = np.zeros((len(some), model.length), np.int64)
        seen = np.zeros((len(some), max(map(len, known))), np.int32)
        for row, places in enumerate(known):
            newest = places[-model.length :]
            history[row, model.length - len(newest) :] = newest
            seen[row, : len(places)] = places
        listed = best(tf.constant(history), tf.constant(seen)).numpy()
        shown.append(listed)
        for user, row in zip(some, listed, strict=True):
            wanted = {ids.get(item, 0) for item in test[user]}
            hits = np.isin(row, list(wanted - {0}))
            recalls.append(hits.sum() / len(test[user]))
            ideal = discounts[: min(len(test[user]), 20)].sum()
            gains.append((hits * discounts).sum() / ideal)
            rare = [i for i in wanted if i and not head[i]]
            if rare:
                tails.append(np.isin(row, rare).sum() / len(rare))
    exposed = exposures(np.concatenate(shown), model.num_items)
    return {
        "recall_at_20": float(np.mean(recalls)),
        "ndcg_at_20": float(np.mean(gains)),
        "recall_at_20_tail": float(np.mean(tails)),
        "coverage_at_20": coverage(exposed),
        "gini_at_20": gini(exposed),
    }


def train_one(key: dict[str, Any]) -> Row:
    """One run: the metrics of the whole test set after each of its stages."""
    sets = _prepared(key["data"])
    trainer = {name: key[name] for name in ("epochs", "max_steps")} | {"steps_per_call": 200}
    stages: dict[str, dict[str, float]] = {}

    def after(stage: str, model: Any, task: Any) -> None:
        stages[stage] = whole_test(model, sets.vocabularies["item_xf"], key["data"])

    overrides = (*RUNS[key["run"]], *settings(trainer, "trainer."))
    staged("multi_interest", "gowalla", sets, overrides, key["seed"], after)
    found = ", ".join(f"{n} {s['recall_at_20']:.4f}" for n, s in stages.items())
    return {"stages": stages, "says": f"{key['run']}, seed {key['seed']}: recall@20 {found}"}


def _run(context: Context) -> Outcome:
    path = context.path("../shared/data/gowalla")
    size = {"data": path, "epochs": 15, "max_steps": context.size["max_steps"]}
    keys = [{"run": run, "seed": s, **size} for s in context.seeds for run in RUNS]
    done = context.trained("gowalla.jsonl", train_one, keys)
    table: list[tuple[str, ...]] = []
    for arm, (run, stage) in ARMS.items():
        own = [row["stages"] for row in where(done, run=run)]
        values = [stages.get(stage, stages["train"]) for stages in own]
        table.append((arm, *(mean_and_spread([v[metric] for v in values]) for metric in _SHOWN)))
    for name, (recall, gain) in _LIGHTGCN.items():
        table.append((f"{name}, as published", f"{recall:.4f}", f"{gain:.4f}", "", "", ""))
    return Outcome(
        columns=("model", "recall@20", "NDCG@20", "tail recall@20", "coverage@20", "Gini@20"),
        rows=table,
        checks=[],
        details={"seeds": context.seeds, **size, "runs": done},
    )


EXPERIMENT = Experiment(
    "multi_interest/gowalla",
    "Gowalla, given split: two towers beside the published figures of LightGCN",
    "not in the paper's abstract; its tables could not be opened",
    _run,
    {"seeds": 3, "max_steps": None},
    {"seeds": 1, "max_steps": 20},
)
