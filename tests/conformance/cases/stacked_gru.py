"""The battery's part of the model in `tests/plugins/gru.py`; read only when that is loaded."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.conformance.case import LayerCase, ModelCase
from tests.oracles import next_item, temporal


def _encode(model: Any, z: np.ndarray, past: np.ndarray, request: np.ndarray) -> np.ndarray:
    del past, request
    for gru in model.grus:
        weights = next_item.named_weights(gru)
        z = temporal.gru(z, weights["kernel"], weights["recurrent_kernel"], weights["bias"])
    return z


def _logits(model: Any, batch: dict[str, np.ndarray]) -> np.ndarray:
    return next_item.logits(model, batch, _encode)


_SMALL = (
    "data.options={users: 300, length: 12}",
    "data.history.length=8",
    "model.item_dim=8",
    "model.input_units=[8]",
    "model.encoder_dim=8",
    "model.output_units=[8]",
)
LAYER_CASES: list[LayerCase] = []
MODEL_CASES = [
    ModelCase("stacked_gru", "two_layers", _SMALL, _logits),
    ModelCase("stacked_gru", "left", (*_SMALL, "data.history.padding=left"), _logits),
]
