"""Layers of the zoo's systems. Each is an ordinary Keras layer, usable in a model of your own."""

import tfrz.keras_versions  # noqa: F401  (refuses other backends)
from tfrz.layers.baseline_encoders import CaserEncoder, SelfAttentiveEncoder
from tfrz.layers.cross import Cross, LowRankCross, MixtureOfLowRankCross
from tfrz.layers.cross_analysis import (
    LowRankConversion,
    cross_matrix,
    interaction_norms,
    numerical_rank,
    plot_interactions,
    singular_values,
    to_low_rank,
)
from tfrz.layers.dropout import SeededDropout
from tfrz.layers.history import (
    FunnelSummarizer,
    LinearCompression,
    LongHistoryAdapter,
    MultiSlicePooling,
    pooled_mean,
)
from tfrz.layers.interests import (
    DeepInterestEncoder,
    MultiInterestAttention,
    ShallowInterestEncoder,
    interest_scores,
)
from tfrz.layers.low_rank_dense import LowRankDense, spectral_factors
from tfrz.layers.pointer import (
    Beams,
    ListEncoder,
    PointerAttention,
    PointerDecoder,
    Slate,
    SlateConstraints,
)
from tfrz.layers.recurrent import ChaosFreeCell, ChaosFreeRNN
from tfrz.layers.slates import boltzmann_slate
from tfrz.layers.temporal import (
    ContextualGate,
    LongRangeEncoder,
    MultiTemporalRangeMixture,
    ShortRangeEncoder,
    TinyRangeEncoder,
)

__all__ = [
    "Beams",
    "CaserEncoder",
    "ChaosFreeCell",
    "ChaosFreeRNN",
    "ContextualGate",
    "Cross",
    "DeepInterestEncoder",
    "FunnelSummarizer",
    "LinearCompression",
    "ListEncoder",
    "LongHistoryAdapter",
    "LongRangeEncoder",
    "LowRankConversion",
    "LowRankCross",
    "LowRankDense",
    "MixtureOfLowRankCross",
    "MultiInterestAttention",
    "MultiSlicePooling",
    "MultiTemporalRangeMixture",
    "PointerAttention",
    "PointerDecoder",
    "SeededDropout",
    "SelfAttentiveEncoder",
    "ShallowInterestEncoder",
    "ShortRangeEncoder",
    "Slate",
    "SlateConstraints",
    "TinyRangeEncoder",
    "boltzmann_slate",
    "cross_matrix",
    "interaction_norms",
    "interest_scores",
    "numerical_rank",
    "plot_interactions",
    "pooled_mean",
    "singular_values",
    "spectral_factors",
    "to_low_rank",
]
