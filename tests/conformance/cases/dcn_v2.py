"""DCN-V2's part of the battery."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.conformance.case import LayerCase, ModelCase
from tests.oracles import cross, long_history, low_rank

_DIM = 12
_PATH = "tfrz.layers.cross:"


def _full(weights: dict[str, np.ndarray], x0: np.ndarray, x: Any = None) -> np.ndarray:
    return cross.full(x0, x0 if x is None else x, weights["W"], weights.get("b", 0.0))


def _low_rank(weights: dict[str, np.ndarray], x0: np.ndarray, x: np.ndarray) -> np.ndarray:
    return cross.low_rank(x0, x, weights["U"], weights["V"], weights.get("b", 0.0))


def _mixture(arguments: dict[str, Any]) -> Any:
    experts = arguments["num_experts"]

    def oracle(weights: dict[str, np.ndarray], x0: np.ndarray, x: np.ndarray) -> np.ndarray:
        return cross.mixture(
            x0,
            x,
            cross.split_experts(weights["U"], experts),
            cross.split_experts(weights["V"], experts),
            weights.get("b", 0.0),
            C=weights.get("C"),
            A=weights.get("A"),
            activation=arguments.get("expert_activation") or "linear",
            gate=arguments.get("gate", "softmax"),
            constant=arguments.get("gate_constant", 1.0),
        )

    return oracle


_MIXTURES = {
    "equation_3_softmax": {"use_inner_map": False},
    "equation_3_constant": {"use_inner_map": False, "gate": "constant", "gate_constant": 0.5},
    "equation_4_tanh": {"expert_activation": "tanh"},
    "equation_4_sigmoid": {"expert_activation": "tanh", "gate": "sigmoid"},
    "activation_without_map": {"expert_activation": "relu", "use_inner_map": False},
    "one_expert": {"num_experts": 1, "expert_activation": "tanh"},
}
_SHAPES = ((_DIM,), (_DIM,))

LAYER_CASES = [
    LayerCase(_PATH + "Cross", "plain", {}, _SHAPES, _full),
    LayerCase(_PATH + "Cross", "x0_alone", {}, ((_DIM,),), _full),
    LayerCase(_PATH + "Cross", "no_bias", {"use_bias": False}, _SHAPES, _full),
    LayerCase(_PATH + "LowRankCross", "plain", {"rank": 3}, _SHAPES, _low_rank),
    *[
        LayerCase(
            _PATH + "MixtureOfLowRankCross",
            name,
            {"num_experts": 3, "rank": 4, **arguments},
            _SHAPES,
            _mixture({"num_experts": 3, **arguments}),
        )
        for name, arguments in _MIXTURES.items()
    ],
]


def _logits(model: Any, batch: dict[str, np.ndarray]) -> np.ndarray:
    """The whole model, from its weights by name."""
    config = model.config

    def value(variable: Any) -> np.ndarray:
        return np.asarray(variable.numpy(), "float64")

    fields = []
    for name, layer in model.embeddings.items():
        vectors = value(layer.embeddings)[batch[name]]
        if name in model.multivalent:
            real = (batch[name] != 0)[:, :, None]
            vectors = (vectors * real).sum(1) / np.maximum(real.sum(1), 1)
        fields.append(vectors)
    fields += [batch[name][:, None].astype("float64") for name in model.numeric]
    if model.long_history is not None:
        fields.append(long_history.read(model, batch))
    x0 = x = np.concatenate(fields, axis=1)
    for layer in model.cross_layers:
        weights = {w.name.split(":")[0].split("/")[-1]: value(w) for w in layer.weights}
        if config.cross == "full":
            x = _full(weights, x0, x)
        elif config.cross == "low_rank":
            x = _low_rank(weights, x0, x)
        else:
            arguments = {
                "num_experts": config.num_experts,
                "expert_activation": config.expert_activation,
                "gate": config.gate,
                "gate_constant": config.gate_constant,
            }
            x = _mixture(arguments)(weights, x0, x)
    h = x0 if config.structure == "parallel" else x
    for layer in model.hidden_layers:
        if hasattr(layer, "rank"):
            h = low_rank.dense(h, value(layer.U), value(layer.V), value(layer.b), "relu")
        else:
            h = np.maximum(h @ value(layer.kernel) + value(layer.bias), 0.0)
    if not model.hidden_layers:
        h = x
    elif config.structure == "parallel" and model.cross_layers:
        h = np.concatenate([x, h], axis=1)
    logit = h @ value(model.logit.kernel)
    if config.logit_bias:
        logit = logit + value(model.logit.bias)
    return logit[:, 0]


MODEL_CASES = [
    ModelCase("dcn_v2", "stacked_mixture", (), _logits),
    ModelCase(
        "dcn_v2",
        "parallel_full",
        ("model.structure=parallel", "model.cross=full", "model.logit_bias=true"),
        _logits,
    ),
    ModelCase(
        "dcn_v2", "low_rank_alone", ("model.cross=low_rank", "model.hidden_units=[]"), _logits
    ),
    ModelCase(
        "dcn_v2",
        "low_rank_tower",
        ("model.hidden_units=[24, 16]", "model.hidden_rank=[6, 0]", "model.deep_decay=0.001"),
        _logits,
    ),
    ModelCase("dcn_v2", "relu_alone", ("model.num_cross_layers=0",), _logits),
    ModelCase(
        "dcn_v2",
        "sigmoid_gates_paper_width",
        ("model.gate=sigmoid", "model.embedding_dim=null", "model.dropout=0.5"),
        _logits,
    ),
    ModelCase(
        "dcn_v2",
        "long_history_gate",
        ("features.long_history=battery", "features.adapter=gate", "features.adapter_units=6"),
        _logits,
    ),
]
DENSE_SETTINGS = ("model.cross=full",)
