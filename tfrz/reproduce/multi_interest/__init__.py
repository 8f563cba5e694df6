"""Experiments of multiple user representations with density weighting."""

from tfrz.reproduce.multi_interest.density import EXPERIMENT as DENSITY
from tfrz.reproduce.multi_interest.gowalla import EXPERIMENT as GOWALLA
from tfrz.reproduce.multi_interest.movielens import EXPERIMENT as MOVIELENS

EXPERIMENTS = (DENSITY, MOVIELENS, GOWALLA)
