"""Layers of the zoo's systems. Each is an ordinary Keras layer, usable in a model of your own."""

from tfrz.layers.cross import Cross, LowRankCross, MixtureOfLowRankCross

__all__ = ["Cross", "LowRankCross", "MixtureOfLowRankCross"]
