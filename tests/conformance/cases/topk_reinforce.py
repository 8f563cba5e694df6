"""The part of the battery of the top-K policy."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.conformance.case import LayerCase, ModelCase
from tests.oracles.temporal import sigmoid

_TIME, _DIM, _UNITS = 6, 3, 4


def _states(weights: dict[str, np.ndarray], u: np.ndarray) -> np.ndarray:
    """s_0 ... s_T of the chaos-free network, step by step."""
    s = np.zeros((len(u), weights["U_z"].shape[0]))
    states = [s]
    for t in range(u.shape[1]):
        x = u[:, t]
        z = sigmoid(s @ weights["U_z"] + x @ weights["W_z"] + weights["b_z"])
        i = sigmoid(s @ weights["U_i"] + x @ weights["W_i"] + weights["b_i"])
        s = z * np.tanh(s) + i * np.tanh(x @ weights["W_a"])
        states.append(s)
    return np.stack(states, axis=1)


LAYER_CASES = [
    LayerCase(
        "tfrz.layers.recurrent:ChaosFreeRNN",
        "states",
        {"units": _UNITS},
        ((_TIME, _DIM),),
        _states,
    ),
]


def _table(layer: Any) -> np.ndarray:
    return layer.embeddings.numpy().astype("float64")


def _logits(model: Any, batch: dict[str, np.ndarray]) -> np.ndarray:
    """The whole policy, one history after the other, padding cut off."""
    weights = {
        getattr(w, "path", w.name).split(":")[0].split("/")[-1]: w.numpy().astype("float64")
        for w in model.rnn.weights
    }
    rows = []
    for row, history in enumerate(batch["history_xf"]):
        real = history != 0
        u = _table(model.actions)[history[real]]
        for name, table in model.past_contexts.items():
            u = u + _table(table)[batch[f"history_{name}_xf"][row][real]]
        h = _states(weights, u[None])[0, -1]
        for name, table in model.request_contexts.items():
            h = h + _table(table)[batch[f"{name}_xf"][row]]
        v = _table(model.policy_head)[1 : 1 + model.num_items]
        rows.append(v @ h / model.config.temperature)
    return np.array(rows)


_SMALL = (
    "data.options={users: 600, length: 4, items: 30, segments: 5}",
    "data.history.length=4",
    "model.units=8",
    "model.action_dim=6",
)

MODEL_CASES = [
    ModelCase("topk_reinforce", "full_softmax", _SMALL, _logits),
    ModelCase(
        "topk_reinforce",
        "sampled_softmax_warm",
        (
            *_SMALL,
            "model.loss=sampled_softmax",
            "model.num_sampled=16",
            "model.temperature=2.0",
            "model.weights=normalized",
            "model.gamma=0.9",
            "model.warm_up=1",
            "model.look_ahead=1",
        ),
        _logits,
    ),
]
# Recurrent cells and embedding tables only.
DENSE_SETTINGS = None
