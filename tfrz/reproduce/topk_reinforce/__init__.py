"""Top-K off-policy-corrected REINFORCE: simulations with known truth, and the Open Bandit logs."""

from tfrz.reproduce.topk_reinforce import bandits, estimators, movielens, slates

EXPERIMENTS = (
    *bandits.EXPERIMENTS,
    *slates.EXPERIMENTS,
    *estimators.EXPERIMENTS,
    movielens.EXPERIMENT,
)
