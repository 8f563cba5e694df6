"""M3's part of the battery."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.conformance.case import LayerCase, ModelCase
from tests.oracles import next_item, temporal

_TIME, _DIM, _UNITS = 7, 3, 4
_PATH = "tfrz.layers.temporal:"
_SHAPE = ((_TIME, _DIM),)

Weights = dict[str, np.ndarray]


def _tiny(weights: Weights, z: np.ndarray) -> np.ndarray:
    return z @ weights["W_T"] + weights["b_T"] if "W_T" in weights else z


def _short(weights: Weights, z: np.ndarray, kind: str, dilations: tuple = (1,)) -> np.ndarray:
    if kind == "convolution":
        for i, dilation in enumerate(dilations):
            end = f"_{i}" if i else ""
            z = temporal.convolution(z, weights[f"K{end}"], weights[f"b_S{end}"], dilation)
        return z
    cell = temporal.gru if kind == "gru" else temporal.lstm
    return cell(z, weights["kernel"], weights["recurrent_kernel"], weights["bias"])


def _long(weights: Weights, z: np.ndarray) -> np.ndarray:
    return temporal.attention(z, weights.get("W_Q"), weights.get("W_K"), weights.get("W_V"))


def _gate(weights: Weights, u: np.ndarray, gate: str, count: int = 3) -> np.ndarray:
    if gate == "fixed":
        return np.ones((*u.shape[:-1], count))
    scores = u @ weights["W_G"] + weights["b_G"]
    return temporal.sigmoid(scores) if gate == "sigmoid" else temporal.softmax(scores)


def _mixture(
    weights: Weights,
    z: np.ndarray,
    u: np.ndarray,
    short_range: str = "gru",
    gate: str = "sigmoid",
    ranges: tuple[str, ...] = ("tiny", "short", "long"),
) -> np.ndarray:
    encode = {"tiny": _tiny, "short": lambda w, x: _short(w, x, short_range), "long": _long}
    gates = _gate(weights, u, gate, len(ranges))
    return sum(gates[..., k : k + 1] * encode[one](weights, z) for k, one in enumerate(ranges))


def _self_attentive(weights: Weights, z: np.ndarray, prefix: str = "") -> np.ndarray:
    x = z @ weights["W_in"] + weights["positions"][: z.shape[1]]
    # One block: the battery finds weights by the last part of their name.
    h = temporal.normalized(x, weights["scale_1_0"], weights["shift_1_0"])
    x = x + _long(weights, h)
    h = temporal.normalized(x, weights["scale_2_0"], weights["shift_2_0"])
    h = temporal.relu(h @ weights["W_1_0"] + weights["b_1_0"])
    x = x + h @ weights["W_2_0"] + weights["b_2_0"]
    return temporal.normalized(x, weights["scale"], weights["shift"])


_BASELINES = "tfrz.layers.baseline_encoders:"
_PAIR = ((_TIME, _DIM), (_TIME, 2))

LAYER_CASES = [
    LayerCase(_PATH + "TinyRangeEncoder", "affine", {"units": _UNITS}, _SHAPE, _tiny),
    *[
        LayerCase(
            _PATH + "ShortRangeEncoder",
            kind,
            {"units": _UNITS, "kind": kind},
            _SHAPE,
            lambda w, z, kind=kind: _short(w, z, kind),
        )
        for kind in ("gru", "lstm")
    ],
    LayerCase(
        _PATH + "ShortRangeEncoder",
        "convolution",
        {"units": _UNITS, "kind": "convolution", "kernel_size": 3, "dilations": [1, 2]},
        _SHAPE,
        lambda w, z: _short(w, z, "convolution", (1, 2)),
    ),
    LayerCase(
        _PATH + "LongRangeEncoder", "learned", {"units": _UNITS, "key_dim": 2}, _SHAPE, _long
    ),
    LayerCase(_PATH + "LongRangeEncoder", "identity_values", {}, _SHAPE, _long),
    LayerCase(
        _PATH + "LongRangeEncoder", "square", {"units": _DIM, "learn_values": True}, _SHAPE, _long
    ),
    *[
        LayerCase(
            _PATH + "ContextualGate",
            gate,
            {"num_gates": 3, "gate": gate},
            _SHAPE,
            lambda w, u, gate=gate: _gate(w, u, gate),
        )
        for gate in ("sigmoid", "softmax")
    ],
    LayerCase(
        _PATH + "MultiTemporalRangeMixture", "m3r_sigmoid", {"units": _UNITS}, _PAIR, _mixture
    ),
    LayerCase(
        _PATH + "MultiTemporalRangeMixture",
        "m3c_softmax",
        {"units": _UNITS, "short_range": "convolution", "gate": "softmax"},
        _PAIR,
        lambda w, z, u: _mixture(w, z, u, "convolution", "softmax"),
    ),
    LayerCase(
        _PATH + "MultiTemporalRangeMixture",
        "pair_fixed",
        {"units": _UNITS, "ranges": ["tiny", "long"], "gate": "fixed"},
        _PAIR,
        lambda w, z, u: _mixture(w, z, u, gate="fixed", ranges=("tiny", "long")),
    ),
    LayerCase(
        _BASELINES + "CaserEncoder",
        "window_3",
        {"units": _UNITS, "window": 3, "horizontal_filters": 2, "vertical_filters": 2},
        _SHAPE,
        lambda w, z: temporal.caser(z, w, 3),
    ),
    LayerCase(
        _BASELINES + "SelfAttentiveEncoder",
        "one_block",
        {"units": _UNITS, "length": _TIME, "num_blocks": 1},
        _SHAPE,
        _self_attentive,
    ),
]


def _encode(model: Any, z: np.ndarray, past: np.ndarray, request: np.ndarray) -> np.ndarray:
    config, weights = model.config, next_item.named_weights(model.mixture)
    if config.encoder == "caser":
        return temporal.caser(z, weights, 5)
    after = np.concatenate([past[1:], request])
    u = z if config.gate == "bottom" else np.concatenate([past, after], axis=1)[None]
    if u.shape[-1] == 0:
        u = np.zeros((*z.shape[:2], 1))
    gate = "fixed" if config.gate == "fixed" else config.gate_activation
    return _mixture(weights, z, u, config.short_range, gate, config.ranges)


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
_SAMPLED = ("model.loss=sampled_softmax", "model.num_sampled=20", "model.context_dim=4")
_CONVOLUTION = "model.short_range=convolution"

MODEL_CASES = [
    ModelCase("m3", "m3r_contextual", _SMALL, _logits),
    ModelCase(
        "m3",
        "m3c_softmax_left",
        (
            *_SMALL,
            _CONVOLUTION,
            "model.gate_activation=softmax",
            "data.history.padding=left",
            *_SAMPLED,
            "data.history.time_features=[gap, hour]",
        ),
        _logits,
    ),
    ModelCase(
        "m3",
        "tied_bottom_linear",
        (
            *_SMALL,
            "model.tie_embeddings=true",
            "model.gate=bottom",
            "model.linear_output=true",
            "model.context_in_input=false",
        ),
        _logits,
    ),
    ModelCase(
        "m3",
        "lstm_fixed_left",
        (*_SMALL, "model.gate=fixed", "model.short_range=lstm", "data.history.padding=left"),
        _logits,
    ),
    ModelCase(
        "m3",
        "markov",
        (*_SMALL, "model.ranges=[tiny]", "model.input_units=[]", "model.output_units=[]"),
        _logits,
    ),
    ModelCase("m3", "caser", (*_SMALL, "model.encoder=caser", *_SAMPLED), _logits),
    ModelCase("m3", "long_history", (*_SMALL, "features.long_history=battery"), _logits),
    ModelCase("m3", "sasrec", (*_SMALL, "model.encoder=sasrec"), None),
]
