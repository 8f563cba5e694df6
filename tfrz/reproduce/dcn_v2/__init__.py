"""DCN-V2: the experiments of sections 6 and 7 that run on a small machine."""

from tfrz.reproduce.dcn_v2 import movielens, polynomials, synthetic_ctr

EXPERIMENTS = (
    *polynomials.EXPERIMENTS,
    *synthetic_ctr.EXPERIMENTS,
    *movielens.EXPERIMENTS,
)
