"""M3: whether a mixture of ranges is better than each of them alone."""

from tfrz.reproduce.m3 import context_switch, movielens

EXPERIMENTS = (*context_switch.EXPERIMENTS, *movielens.EXPERIMENTS)
