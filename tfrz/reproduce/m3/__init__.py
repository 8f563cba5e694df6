"""M3: experiments on whether a mixture of ranges is better than one of them."""

from tfrz.reproduce.m3 import context_switch, movielens

EXPERIMENTS = (*context_switch.EXPERIMENTS, *movielens.EXPERIMENTS)
