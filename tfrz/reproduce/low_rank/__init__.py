"""Low-rank training: what an initialisation gains, in the function, in training, on trained layers.

The paper's own figures were not at hand. What stands beside the results is the toy of
`specs/low_rank_training.md`, section (g).
"""

from tfrz.reproduce.low_rank import compression, functions, training

EXPERIMENTS = (*functions.EXPERIMENTS, *training.EXPERIMENTS, *compression.EXPERIMENTS)
