"""Seq2slate's part of the battery."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.conformance.case import LayerCase, ModelCase
from tests.oracles import pointer

_LIST, _DIM, _UNITS = 5, 3, 4
_PATH = "tfrz.layers.pointer:"

Weights = dict[str, np.ndarray]


def _rows(function: Any) -> Any:
    """A function of one list to one of a batch."""
    return lambda weights, *inputs: np.stack(
        [function(weights, *(values[i] for values in inputs)) for i in range(len(inputs[0]))]
    )


LAYER_CASES = [
    LayerCase(
        _PATH + "ListEncoder",
        "plain",
        {"units": _UNITS},
        ((_LIST, _DIM),),
        _rows(lambda w, x: pointer.encode(x, w)[0]),
    ),
    LayerCase(
        _PATH + "PointerAttention",
        "plain",
        {"units": _UNITS},
        ((_LIST, _UNITS), (_UNITS,)),
        _rows(lambda w, e, d: pointer.attention(e, d, w)),
    ),
    LayerCase(
        _PATH + "PointerDecoder",
        "greedy",
        {"units": _UNITS},
        ((_LIST, _DIM), (_LIST, _UNITS), (_UNITS,), (_UNITS,)),
        _rows(lambda w, x, e, h, c: pointer.greedy_scores(x, e, h, c, w)),
    ),
]


def _named(*layers: Any) -> Weights:
    return {
        getattr(w, "path", w.name).split(":")[0].split("/")[-1]: np.asarray(w.numpy(), "float64")
        for layer in layers
        for w in layer.weights
    }


def _scores(model: Any, batch: dict[str, np.ndarray]) -> np.ndarray:
    """The first step's scores, one list after the other, padding cut off."""
    found = np.zeros(batch["mask_xf"].shape)
    for row, mask in enumerate(batch["mask_xf"]):
        valid = mask != 0
        x = batch["features_xf"][row].astype("float64")
        if model.config.position:
            x = np.concatenate([x, np.eye(model.length)], axis=1)
        for layer in model.dense_layers:
            h = x @ np.asarray(layer.kernel.numpy(), "float64") + layer.bias.numpy()
            x = np.maximum(h, 0.0)
        if model.config.scorer == "mlp":
            kernel = np.asarray(model.output_layer.kernel.numpy(), "float64")
            scores = (x @ kernel + model.output_layer.bias.numpy())[:, 0]
        else:
            encoded, h, c = pointer.encode(x, _named(model.encoder), valid)
            weights = _named(model.decoder)
            d, _ = pointer.lstm_step(weights["go"][0], h, c, weights)
            scores = pointer.attention(encoded, d, weights)
        found[row] = np.where(valid, scores, 0.0)
    return found


_SMALL = ("model.units=8", "data.lists.length=10")

MODEL_CASES = [
    ModelCase("seq2slate", "sequential", _SMALL, _scores),
    ModelCase(
        "seq2slate",
        "one_step_hinge_short",
        ("model.units=8", "model.scorer=one_step", "model.loss=hinge", "data.lists.length=7"),
        _scores,
    ),
    ModelCase(
        "seq2slate",
        "reinforce_dense_position",
        (*_SMALL, "model.loss=reinforce", "model.input_units=[6]", "model.position=true"),
        _scores,
    ),
    ModelCase(
        "seq2slate",
        "sampled_beam_padded",
        (
            "model.units=8",
            "model.trajectory=sample",
            "model.score_term=true",
            "model.beam_width=3",
            "data.lists.length=12",
        ),
        _scores,
    ),
    ModelCase(
        "seq2slate",
        "mlp_softmax",
        (*_SMALL, "model.scorer=mlp", "model.loss=softmax", "model.position=true"),
        _scores,
    ),
]
DENSE_SETTINGS = ("model.input_units=[32]",)
