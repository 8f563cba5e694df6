"""DV365: what slices of a long history add, how they age, and how they are compressed."""

from tfrz.reproduce.dv365 import compression, staleness, vcs_edits

EXPERIMENTS = (*staleness.EXPERIMENTS, *compression.EXPERIMENTS, vcs_edits.EXPERIMENT)
