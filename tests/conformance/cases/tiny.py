"""The battery's part of the model in `tests/plugins/tiny.py`; read only when that is loaded."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.conformance.case import LayerCase, ModelCase


def _logits(model: Any, batch: dict[str, np.ndarray]) -> np.ndarray:
    fields = [layer.embeddings.numpy()[batch[n], 0] for n, layer in model.embeddings.items()]
    kernel, bias = model.logit.kernel.numpy(), model.logit.bias.numpy()
    return (np.stack(fields, axis=1).astype(np.float64) @ kernel + bias)[:, 0]


LAYER_CASES: list[LayerCase] = []
MODEL_CASES = [ModelCase("tiny", "plain", (), _logits)]
