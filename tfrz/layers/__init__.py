"""Layers of the zoo's systems. Each is an ordinary Keras layer, usable in a model of your own."""

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
from tfrz.layers.temporal import (
    ContextualGate,
    LongRangeEncoder,
    MultiTemporalRangeMixture,
    ShortRangeEncoder,
    TinyRangeEncoder,
)

__all__ = [
    "CaserEncoder",
    "ContextualGate",
    "Cross",
    "LongRangeEncoder",
    "LowRankConversion",
    "LowRankCross",
    "MixtureOfLowRankCross",
    "MultiTemporalRangeMixture",
    "SeededDropout",
    "SelfAttentiveEncoder",
    "ShortRangeEncoder",
    "TinyRangeEncoder",
    "cross_matrix",
    "interaction_norms",
    "numerical_rank",
    "plot_interactions",
    "singular_values",
    "to_low_rank",
]
