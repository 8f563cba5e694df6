"""DV365's part of the battery."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.conformance.case import LayerCase, ModelCase
from tests.oracles import history

_SLICES, _IDS, _ENTRIES, _DIM, _TOKENS = 3, 7, 9, 4, 5
_PATH = "tfrz.layers.history:"


def _entries(rng: np.random.Generator, batch: int) -> list[np.ndarray]:
    """Ids with padding, slices with one that is out of range on each side, weights with zeros."""
    shape = (batch, _ENTRIES)
    weights = rng.uniform(0, 2, shape) * (rng.random(shape) < 0.8)
    return [rng.integers(0, _IDS, shape), rng.integers(-1, _SLICES + 1, shape), weights]


def _stored(rng: np.random.Generator, batch: int) -> list[np.ndarray]:
    """Vectors, every second of which is missing."""
    return [rng.uniform(-1, 1, (batch, _TOKENS, _DIM)), np.arange(batch) % 2 == 1]


def _funnel(name: str, **arguments: int | str) -> LayerCase:
    shared = {k: v for k, v in arguments.items() if k != "units"}
    return LayerCase(
        _PATH + "FunnelSummarizer",
        name,
        arguments,
        ((_TOKENS, _DIM),),
        lambda w, x: history.funnel(w, x, **shared),  # type: ignore[arg-type]
    )


LAYER_CASES = [
    LayerCase(
        _PATH + "MultiSlicePooling",
        "three_slices",
        {"num_slices": _SLICES, "num_ids": _IDS, "dim": _DIM},
        ((_ENTRIES,),) * 3,
        lambda w, *inputs: history.pooled(w, *inputs, num_slices=_SLICES),
        draw=_entries,
    ),
    _funnel("two_blocks", num_heads=2),
    _funnel(
        "two_layers_a_block_by_threes",
        num_blocks=1,
        layers_per_block=2,
        num_heads=3,
        stride=3,
        units=7,
    ),
    _funnel("over_the_tokens", num_heads=2, attend_over="tokens"),
    LayerCase(
        _PATH + "LinearCompression",
        "tokens",
        {"num_outputs": 2},
        ((_TOKENS, _DIM),),
        history.compression,
    ),
    LayerCase(
        _PATH + "LinearCompression",
        "dims",
        {"num_outputs": 2, "compress": "dims"},
        ((_TOKENS, _DIM),),
        lambda w, x: history.compression(w, x, "dims"),
    ),
    LayerCase(
        _PATH + "LongHistoryAdapter",
        "linear",
        {"units": 6},
        ((_TOKENS, _DIM), ()),
        history.adapter,
        draw=_stored,
    ),
    LayerCase(
        _PATH + "LongHistoryAdapter",
        "gate",
        {"units": 6, "kind": "gate"},
        ((_TOKENS, _DIM), ()),
        lambda w, x, missing: history.adapter(w, x, missing, "gate"),
        draw=_stored,
    ),
]


def _named(layer: Any) -> dict[str, np.ndarray]:
    return {
        getattr(w, "path", w.name).split(":")[0].split("/")[-1]: np.asarray(w.numpy(), "float64")
        for w in layer.weights
    }


def _pooled(layer: Any, batch: dict[str, np.ndarray], row: int) -> tuple[np.ndarray, np.ndarray]:
    """Means and sums of weights of one example's list, entry by entry."""
    table = _named(layer)["embeddings"]
    sums, totals = np.zeros((layer.num_slices, layer.dim)), np.zeros(layer.num_slices)
    parts = (batch[f"{layer.name}_{part}_xf"][row] for part in ("ids", "places", "weights"))
    for one, place, weight in zip(*parts, strict=True):
        if one != 0:
            sums[place] += weight * table[one]
            totals[place] += weight
    return sums / np.where(totals > 0, totals, 1.0)[:, None], totals


def _outputs(model: Any, batch: dict[str, np.ndarray]) -> np.ndarray:
    """The whole model, one example after the other."""
    config, rows = model.config, []
    for row in range(len(batch[next(iter(batch))])):
        x, totals = np.zeros((model.num_slices, config.dim)), np.zeros(model.num_slices)
        for name, layer in model.slice_tables.items():
            places = list(model.tables[name])
            x[places], totals[places] = _pooled(layer, batch, row)
        candidates = np.stack(
            [_pooled(layer, batch, row)[0] for layer in model.candidate_tables.values()], axis=1
        )
        vectors = []
        if model.funnel is not None:
            vectors.append(
                history.funnel(
                    _named(model.funnel),
                    x[None],
                    num_heads=config.num_heads,
                    num_blocks=config.funnel_blocks,
                    layers_per_block=config.layers_per_block,
                    stride=config.stride,
                    attend_over=config.attend_over,
                )[0]
            )
        if model.compression is not None:
            vectors.append(history.compression(_named(model.compression), x[None])[0])
        shared = [np.log1p(totals)]
        if vectors:
            y = np.concatenate(vectors)
            shared.append(y.ravel() @ _named(model.projection)["kernel"])
            shared[-1] = shared[-1] + _named(model.projection)["bias"]
            interests = y @ _named(model.interest)["kernel"]
        recent = [_pooled(layer, batch, row)[0][0] for layer in model.recent_tables.values()]
        outputs = []
        for c in candidates:
            own = [c.ravel(), shared[0]]
            if vectors:
                own += [(c @ interests.T).ravel(), shared[1]]
            if recent:
                own += [np.sum(np.array(recent) * c, axis=1), np.array(recent).ravel()]
            h = np.concatenate(own)
            for layer in model.hidden:
                h = np.maximum(h @ _named(layer)["kernel"] + _named(layer)["bias"], 0.0)
            outputs.append(h @ _named(model.logits)["kernel"] + _named(model.logits)["bias"])
        rows.append(outputs)
    return np.array(rows)


_SMALL = (
    "data.options={users: 80, days: 9, impressions: 12}",
    "data.timeline.targets=6",
    "data.timeline.min_visible=10",
    "model.candidate_dim=4",
    "model.num_heads=2",
)

MODEL_CASES = [
    ModelCase("dv365", "both_encoders_and_recent", (*_SMALL, "model.dim=8"), _outputs),
    ModelCase(
        "dv365",
        "linear_with_negatives",
        (
            *_SMALL,
            "model.dim=6",
            "model.encoder=linear",
            "data.timeline.negatives=2",
            "data.timeline.recent=0",
            "model.hidden_units=[]",
        ),
        _outputs,
    ),
    ModelCase(
        "dv365",
        "funnel_over_tokens",
        (
            *_SMALL,
            "model.dim=8",
            "model.encoder=funnel",
            "model.attend_over=tokens",
            "model.funnel_blocks=1",
            "model.layers_per_block=2",
            "model.stride=3",
        ),
        _outputs,
    ),
]
