"""Low-rank layers' part of the battery.

They belong to no row of the registry: tests/tfrz/layers/test_low_rank_dense.py runs these.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.conformance.case import LayerCase
from tests.oracles import low_rank

_PATH = "tfrz.layers.low_rank_dense:LowRankDense"


def _oracle(activation: str) -> Any:
    def oracle(weights: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
        return low_rank.dense(x, weights["U"], weights["V"], weights.get("b", 0.0), activation)

    return oracle


LAYER_CASES = [
    LayerCase(_PATH, "linear", {"units": 9, "rank": 3}, ((12,),), _oracle("linear")),
    LayerCase(
        _PATH, "relu", {"units": 7, "rank": 7, "activation": "relu"}, ((12,),), _oracle("relu")
    ),
    LayerCase(
        _PATH,
        "tanh_no_bias_decayed",
        {
            "units": 9,
            "rank": 1,
            "activation": "tanh",
            "use_bias": False,
            "frobenius_decay": 0.1,
            "kernel_initializer": "he_normal",
        },
        ((5,),),
        _oracle("tanh"),
    ),
    LayerCase(_PATH, "of_a_sequence", {"units": 4, "rank": 2}, ((3, 6),), _oracle("linear")),
]
