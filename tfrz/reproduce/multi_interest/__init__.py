"""Experiments of multiple user representations with density weighting."""

from tfrz.reproduce.multi_interest.density import EXPERIMENT as DENSITY

EXPERIMENTS = (DENSITY,)
