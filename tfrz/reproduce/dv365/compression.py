"""Which axis of the slices' vectors to compress: tokens or dimensions, linearly or by a funnel."""

from __future__ import annotations

import functools
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfrz.data.timelines.slicing import Slice, SliceSpecification
from tfrz.layers.history import FunnelSummarizer, LinearCompression
from tfrz.metrics.binary import normalized_entropy
from tfrz.reproduce.dv365.histories import (
    DAYS,
    IMPRESSIONS,
    TEST_DAY,
    TOPICS,
    TRAIN_DAYS,
    Histories,
)
from tfrz.reproduce.experiment import Context, Experiment, Outcome
from tfrz.reproduce.runs import Row

DIM = 16
_VALIDATION_DAY = 122
_HIDDEN = 64
_BATCH = 64
_LEARNING_RATE = 0.001

_RULES: tuple[dict[str, Any], ...] = (
    {"name": "like", "timeline": "explicit", "table": "liked"},
    {"name": "all", "timeline": "implicit", "table": "seen"},
    {"name": "dwell 3 to 15", "timeline": "implicit", "table": "seen", "dwell": (3.0, 15.0)},
    {"name": "dwell >= 15", "timeline": "implicit", "table": "watched", "dwell": (15.0, None)},
    {"name": "ratio > 0.5", "timeline": "implicit", "table": "watched", "ratio": (0.5, None)},
    {
        "name": "score > 0.9",
        "timeline": "implicit",
        "table": "watched",
        "score": (0.9, None),
        "weight": "watch_score",
    },
    {"name": "dwell < 3", "timeline": "implicit", "table": "skipped", "dwell": (None, 3.0)},
    {"name": "ratio < 0.2", "timeline": "implicit", "table": "skipped", "ratio": (None, 0.2)},
)
_WINDOWS = (None, 30.0, 7.0, 3.0)
SLICES = SliceSpecification(
    1,
    tuple(
        Slice(**{**rule, "id": "topic", "name": f"{rule['name']}, {days or 'all'} days"}, days=days)
        for days in _WINDOWS
        for rule in _RULES
    ),
    gap_hours=0.0,
)
_TOKENS = len(SLICES.slices)

TOKEN_WISE, DIM_WISE, FUNNEL, NOTHING = "tokens, linear", "dims, linear", "tokens, funnel", "none"
ENCODERS = (TOKEN_WISE, DIM_WISE, FUNNEL, NOTHING)


def _encoder(name: str) -> Any:
    """Returns a layer that compresses to a quarter of the values; None for no compression."""
    if name == TOKEN_WISE:
        return LinearCompression(_TOKENS // 4, compress="tokens")
    if name == DIM_WISE:
        return LinearCompression(DIM // 4, compress="dims")
    if name == FUNNEL:
        return FunnelSummarizer(num_blocks=2, layers_per_block=1, num_heads=4, stride=2)
    return None


def _model(name: str) -> Any:
    """Returns a model from shares of topics in slices to the log-odds of a like for every topic.

    x_f is the mean of topics' vectors by the shares of slice f, with a table for each group of
    slices; then the encoder; then relu(W vec(Y) + b) . v_topic + b_topic.
    """

    class Model(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            groups = list(SLICES.tables)
            self.group = [groups.index(s.table) for s in SLICES.slices]
            self.tables = self.add_weight(
                name="tables",
                shape=(len(groups), TOPICS, DIM),
                initializer=keras.initializers.RandomNormal(stddev=DIM**-0.5),
            )
            self.encoder = _encoder(name)
            self.hidden = keras.layers.Dense(_HIDDEN, "relu")
            self.topics = keras.layers.Dense(TOPICS)

        def call(self, shares: Any) -> Any:
            tables = tf.gather(tf.convert_to_tensor(self.tables), self.group)
            x = tf.einsum("bst,std->bsd", shares, tables)
            if self.encoder is not None:
                x = self.encoder(x)
            flat = tf.reshape(x, [-1, int(x.shape[1]) * int(x.shape[2])])
            return self.topics(self.hidden(flat))

    return Model()


@functools.lru_cache(maxsize=1)
def _sets(users: int, seed: int) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Returns the shares of slices, and the topics and outcomes of impressions, for each set."""
    days = {"train": TRAIN_DAYS, "validation": (_VALIDATION_DAY,), "test": (TEST_DAY,)}
    every = [day for some in days.values() for day in some]
    histories = Histories(users, seed, [(SLICES, every)], every)

    def shares(day: int) -> np.ndarray:
        weights = histories.weights(SLICES, day)
        total = weights.sum(axis=2, keepdims=True)
        return np.divide(weights, total, out=np.zeros_like(weights), where=total > 0)

    found = {}
    for name, some in days.items():
        parts = [(shares(day), *histories.candidates(day)) for day in some]
        slices, topics, likes = (np.concatenate(part) for part in zip(*parts, strict=True))
        found[name] = (slices, topics, likes.astype(np.float32))
    return found


def _trained(key: dict[str, Any], name: str) -> dict[str, Any]:
    """Trains an encoder; returns the test entropy of the epoch that is best in validation."""
    sets = _sets(key["users"], key["seed"])
    keras.utils.set_random_seed(key["seed"])
    model = _model(name)
    optimizer = keras.optimizers.Adam(_LEARNING_RATE)
    slices, topics, likes = sets["train"]

    @tf.function(autograph=False)
    def step(x: Any, topic: Any, like: Any) -> None:
        with tf.GradientTape() as tape:
            logits = tf.gather(model(x), topic, batch_dims=1)
            loss = tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(like, logits))
        variables = model.trainable_variables
        optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))

    predict = tf.function(model, autograph=False)

    def judged(of: str) -> float:
        x, topic, like = sets[of]
        logits = np.take_along_axis(predict(x).numpy(), topic, axis=1)
        return float(normalized_entropy(like.ravel(), logits.ravel()))

    model(slices[:1])
    rng = np.random.default_rng([key["seed"], 3])
    curve = []
    for _ in range(key["epochs"]):
        order = rng.permutation(len(slices))
        for start in range(0, len(order) - _BATCH + 1, _BATCH):
            rows = order[start : start + _BATCH]
            step(slices[rows], topics[rows], likes[rows])
        curve.append((judged("validation"), judged("test")))
    best = int(np.argmin([validation for validation, _ in curve]))
    weights = model.encoder.weights if model.encoder is not None else []
    return {
        "entropy": curve[best][1],
        "epoch": best + 1,
        "validation": [validation for validation, _ in curve],
        "parameters": int(sum(np.prod(w.shape) for w in weights)),
        "numbers": int(model.hidden.kernel.shape[0]),
    }


def train_once(key: dict[str, Any]) -> Row:
    """Trains every encoder on one world."""
    found = {name: _trained(key, name) for name in ENCODERS}
    entropies = ", ".join(f"{name} {own['entropy']:.4f}" for name, own in found.items())
    return {"encoders": found, "says": f"seed {key['seed']}: {entropies}"}


def _compression(context: Context) -> Outcome:
    size = {name: context.size[name] for name in ("users", "epochs")}
    keys = [{"seed": seed, **size} for seed in context.seeds]
    rows = context.trained("compression.jsonl", train_once, keys)
    found = {
        name: np.array([row["encoders"][name]["entropy"] for row in rows]) for name in ENCODERS
    }
    table = []
    for name, entropy in found.items():
        difference = entropy - found[TOKEN_WISE]
        own = rows[0]["encoders"][name]
        table.append(
            (
                name,
                own["numbers"],
                own["parameters"],
                f"{entropy.mean():.4f}",
                f"{entropy.std(ddof=1):.4f}",
                "" if name == TOKEN_WISE else f"{difference.mean():+.4f}",
                "" if name == TOKEN_WISE else f"{difference.std(ddof=1):.4f}",
            )
        )
    return Outcome(
        columns=(
            "compression",
            "numbers of a user",
            "its parameters",
            "NE",
            "std",
            "to tokens, linear",
            "its std",
        ),
        rows=table,
        # The specification expects tokens to be at least as good as dims, but has not tested it.
        checks=[],
        details={
            "slices": [s.name for s in SLICES.slices],
            "dim": DIM,
            "days": DAYS,
            "impressions_a_day": IMPRESSIONS,
            "train_days": TRAIN_DAYS,
            "validation_day": _VALIDATION_DAY,
            "test_day": TEST_DAY,
            "head": f"relu layer of {_HIDDEN} on all numbers, then a vector and a bias for a topic",
            "learning_rate": _LEARNING_RATE,
            "batch_size": _BATCH,
            "weights": "of the epoch with the lowest NE on the validation day",
            "funnel": "2 blocks of 1 layer, 4 heads, stride 2, attention over the dimensions",
            **size,
            "runs": rows,
        },
    )


EXPERIMENTS = (
    Experiment(
        "dv365/compression",
        "32 slices' vectors in a quarter of the numbers: over tokens, over dimensions, a funnel",
        "not in the paper; its ablation of compression, on a simulator, as found",
        _compression,
        {"users": 4000, "epochs": 20, "seeds": 3},
        {"users": 400, "epochs": 10},
    ),
)
