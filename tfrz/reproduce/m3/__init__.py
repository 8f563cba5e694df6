"""M3: the experiments of its specification that fit a small machine."""

EXPERIMENTS: tuple = ()
