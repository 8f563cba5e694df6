"""NumPy float64 oracle of what a model reads of the embeddings that come with its examples."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.oracles import history
from tfrz.layers.quantize import packed_bytes, unpack4


def read(model: Any, batch: dict[str, np.ndarray]) -> np.ndarray:
    """One example after the other, `[batch, units]`."""
    stored = model.long_history
    length = packed_bytes(stored.num_vectors, stored.dim)
    vectors = np.zeros((len(batch["long_history_xf"]), stored.num_vectors, stored.dim))
    missing = np.ones(len(vectors), bool)
    pairs = zip(batch["long_history_xf"], batch["long_history_version_xf"], strict=True)
    for row, (packed, version) in enumerate(pairs):
        if len(packed) == length and (stored.any_version or version.decode() == stored.version):
            words = np.frombuffer(packed, "<u8").reshape(stored.num_vectors, -1)
            vectors[row], missing[row] = unpack4(words, stored.dim), False
    weights = {
        getattr(w, "path", w.name).split(":")[0].split("/")[-1]: np.asarray(w.numpy(), "float64")
        for w in model.long_history_adapter.weights
    }
    return history.adapter(weights, vectors, missing, model.adapter)
