"""Seq2slate: simulated clicks with known truth, and LETOR."""

from tfrz.reproduce.seq2slate import clicks, letor

EXPERIMENTS = (*clicks.EXPERIMENTS, *letor.EXPERIMENTS)
