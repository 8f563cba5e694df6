"""The battery's part of the model in `tests/plugins/fm.py`; read only when that is loaded."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from tests.conformance.case import LayerCase, ModelCase


def _logits(model: Any, batch: dict[str, np.ndarray]) -> np.ndarray:
    fields = [layer.embeddings.numpy()[batch[n]] for n, layer in model.embeddings.items()]
    values = [np.asarray(field, "float64") for field in fields]
    for place, name in enumerate(model.numeric):
        values.append(
            batch[name][:, None] * np.asarray(model.numbers.embeddings.numpy(), "float64")[place]
        )
    pairs = [(a[:, :-1] * b[:, :-1]).sum(axis=1) for a, b in itertools.combinations(values, 2)]
    return model.bias.embeddings.numpy()[0] + sum(v[:, -1] for v in values) + sum(pairs)


LAYER_CASES: list[LayerCase] = []
MODEL_CASES = [ModelCase("factorization_machine", "plain", (), _logits)]
# Embedding tables only.
DENSE_SETTINGS = None
