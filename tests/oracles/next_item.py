"""Next-item models in float64, one history after the other, with the padding cut off."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tests.oracles import long_history

Encode = Callable[[Any, np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def named_weights(layer: Any) -> dict[str, np.ndarray]:
    """The weights of a layer by the last part of their path."""
    return {
        getattr(w, "path", w.name).split(":")[0].split("/")[-1]: np.asarray(w.numpy(), "float64")
        for w in layer.weights
    }


def dense(layers: list[Any], h: np.ndarray, linear: bool) -> np.ndarray:
    """Dense layers with ReLUs; the last one is linear if that is asked for."""
    for i, layer in enumerate(layers):
        h = h @ np.asarray(layer.kernel.numpy(), "float64") + layer.bias.numpy()
        if not (linear and i == len(layers) - 1):
            h = np.maximum(h, 0)
    return h


def logits(model: Any, batch: dict[str, np.ndarray], encode: Encode) -> np.ndarray:
    """The logits `[batch, V]` of the served requests.

    Args:
      model: a `NextItemModel`.
      batch: its inputs.
      encode: from the model, its projected events `[1, time, width]` and the contexts of events
        `[time, context]` and of the request `[1, context]` to encodings `[1, time, encoder_dim]`.
    """
    config = model.config
    tables = {n: t.embeddings.numpy() for n, t in model.context_tables.items()}
    read = long_history.read(model, batch) if model.long_history is not None else None
    rows = []
    for row, history in enumerate(batch["history_xf"]):
        real = history != 0

        def context(prefix: str, which: Any, row: int = row) -> np.ndarray:
            parts = [np.zeros((*np.shape(batch["history_xf"][row][which]), 0))]
            for name, size in model.context.items():
                ids = batch[f"{prefix}{name}_xf"][row]
                ids = ids[which] if prefix else np.full(np.shape(parts[0])[:1], ids)
                parts.append(tables[name][ids] if name in tables else np.eye(size)[ids])
            return np.concatenate(parts, axis=-1).astype("float64")

        past, request = context("history_", real), context("", slice(0, 1))
        x = model.items.embeddings.numpy()[history[real]].astype("float64")
        z = np.concatenate([x, past], axis=1) if config.context_in_input else x
        z = dense(model.input_layers, z, False)[None]
        h = np.zeros((1, config.encoder_dim))
        if real.any():
            h = encode(model, z, past, request)[0, -1:]
        if config.context_in_output and model.output_layers:
            h = np.concatenate([h, request], axis=1)
        h = dense(model.output_layers, h, config.linear_output)
        end = 1 + model.num_items
        Q = model.output_items.embeddings.numpy()[1:end].astype("float64")
        if read is not None:
            h = h + read[row]
        rows.append(h @ Q.T + model.output_bias.embeddings.numpy()[1:end, 0])
    return np.concatenate(rows)
