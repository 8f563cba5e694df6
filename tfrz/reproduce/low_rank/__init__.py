"""Low-rank training: initialisations compared on functions, in training and on trained layers.

The paper's figures were not available. The results are compared with the toy of the
specification.
"""

from tfrz.reproduce.low_rank import compression, functions, movielens, training

EXPERIMENTS = (
    *functions.EXPERIMENTS,
    *training.EXPERIMENTS,
    *compression.EXPERIMENTS,
    movielens.EXPERIMENT,
)
