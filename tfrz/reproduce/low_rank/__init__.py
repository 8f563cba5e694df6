"""Low-rank training: what an initialisation gains, in the function, in training, on trained layers.

The paper's own figures were not at hand. What stands beside the results is the toy of the
specification that this was written from.
"""

from tfrz.reproduce.low_rank import compression, functions, movielens, training

EXPERIMENTS = (
    *functions.EXPERIMENTS,
    *training.EXPERIMENTS,
    *compression.EXPERIMENTS,
    movielens.EXPERIMENT,
)
