"""Knowledge distillation: why a teacher helps."""

from tfrz.reproduce.distillation import clicks, factors, failure_modes, movielens, reweighting

EXPERIMENTS = (
    factors.EXPERIMENT,
    reweighting.EXPERIMENT,
    failure_modes.EXPERIMENT,
    clicks.EXPERIMENT,
    movielens.EXPERIMENT,
)
