"""The part of the battery of several vectors a user."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.conformance.case import LayerCase, ModelCase
from tests.oracles import interests, long_history

_TIME, _DIM = 6, 4
_PATH = "tfrz.layers.interests:"
_SHAPE = ((_TIME, _DIM),)

LAYER_CASES = [
    LayerCase(
        _PATH + "MultiInterestAttention",
        "three",
        {"num_interests": 3},
        _SHAPE,
        interests.attention,
    ),
    LayerCase(
        _PATH + "ShallowInterestEncoder",
        "three",
        {"num_interests": 3},
        _SHAPE,
        interests.shallow,
    ),
    LayerCase(
        _PATH + "DeepInterestEncoder",
        "two_layers_two_heads",
        {"num_interests": 3, "units": 4, "num_layers": 2, "num_heads": 2},
        _SHAPE,
        lambda w, x: interests.deep(w, x, num_layers=2, num_heads=2),
    ),
    LayerCase(
        _PATH + "DeepInterestEncoder",
        "positions_and_one_interest",
        {"num_interests": 1, "units": 6, "positions": True},
        _SHAPE,
        lambda w, x: interests.deep(w, x, positions=True),
    ),
]


def _named(layer: Any) -> dict[str, np.ndarray]:
    return {
        getattr(w, "path", w.name).split(":")[0].split("/")[-1]: np.asarray(w.numpy(), "float64")
        for w in layer.weights
    }


def _table(layer: Any) -> np.ndarray:
    return layer.embeddings.numpy().astype("float64")


def _items(model: Any) -> np.ndarray:
    """v of the vocabulary, one item after the other."""
    vectors = []
    for item in range(1, 1 + model.num_items):
        v = _table(model.items)[item].copy()
        for name, table in model.feature_tables.items():
            ids = np.atleast_1d(model.statistics.columns[name].numpy()[item])
            rows = _table(table)[ids[ids != 0]]
            v += rows.mean(axis=0) if len(rows) else 0.0
        v *= model.config.dim**0.5
        for i, layer in enumerate(model.item_mlp):
            v = v @ layer.kernel.numpy() + layer.bias.numpy()
            if i < len(model.item_mlp) - 1:
                v = np.where(v > 0, v, np.expm1(np.minimum(v, 0)))
        vectors.append(v)
    return np.array(vectors)


def _logits(model: Any, batch: dict[str, np.ndarray]) -> np.ndarray:
    """The whole model, one history after the other, padding cut off."""
    config, weights = model.config, _named(model.user_tower)
    items, rows = _items(model), []
    read = long_history.read(model, batch) if model.long_history is not None else None
    for row, history in enumerate(batch["history_xf"]):
        real = history != 0
        if config.user_tower == "popularity":
            users = weights["embeddings"][None]
        else:
            x = _table(model.events)[history[real]]
            for name, table in model.context_tables.items():
                x = x + _table(table)[batch[f"history_{name}_xf"][row][real]]
            if model.context_tables:
                request = sum(
                    _table(t)[batch[f"{n}_xf"][row]] for n, t in model.context_tables.items()
                )
                x = np.concatenate([x, request[None]])
            x = config.dim**0.5 * x[None]
            if not x.shape[1]:
                users = np.zeros((1, config.num_interests, config.dim))
            elif config.user_tower == "shallow":
                users = interests.shallow(weights, x)
            else:
                users = interests.deep(
                    weights,
                    x,
                    num_layers=config.num_layers,
                    num_heads=config.num_heads,
                    positions=config.positions,
                )
        if read is not None:
            users = users + read[row]
        v = items
        if config.normalize:
            users, v = (
                a / np.maximum(np.linalg.norm(a, axis=-1, keepdims=True), 1e-6) for a in (users, v)
            )
        rows.append(interests.scores(users, v)[0] / config.temperature)
    return np.array(rows)


_SMALL = (
    "data.options={users: 300, length: 12}",
    "data.history.length=8",
    "data.history.train_targets=3",
    "model.dim=8",
)

MODEL_CASES = [
    ModelCase("multi_interest", "deep_with_features", _SMALL, _logits),
    ModelCase(
        "multi_interest",
        "plain_two_tower",
        (
            *_SMALL,
            "model.num_interests=1",
            "model.num_layers=2",
            "model.num_heads=2",
            "model.num_negatives=16",
            "model.item_layers=2",
            "model.normalize=false",
            "model.temperature=1.0",
        ),
        _logits,
    ),
    ModelCase(
        "multi_interest",
        "shallow_right_padded",
        (
            *_SMALL,
            "model.user_tower=shallow",
            "model.positions=false",
            "data.history.padding=right",
            "model.normalize=false",
            "model.disagreement=0.1",
            "model.focal_gamma=2",
        ),
        _logits,
    ),
    ModelCase(
        "multi_interest", "long_history", (*_SMALL, "features.long_history=battery"), _logits
    ),
    ModelCase("multi_interest", "popularity", (*_SMALL, "model.user_tower=popularity"), _logits),
]
DENSE_SETTINGS = ("model.item_layers=2",)
