"""DV365: what slices of a long history add, how they age, and how to compress them."""

from tfrz.reproduce.dv365 import compression, staleness, vcs_edits

EXPERIMENTS = (*staleness.EXPERIMENTS, *compression.EXPERIMENTS, vcs_edits.EXPERIMENT)
