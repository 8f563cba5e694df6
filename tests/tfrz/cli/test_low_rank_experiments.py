"""The experiments of low-rank training that take seconds, and the parts of the others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tfrz.reproduce.experiment import Context, experiments
from tfrz.reproduce.low_rank import EXPERIMENTS, training

BY_NAME = {experiment.name.partition("/")[2]: experiment for experiment in EXPERIMENTS}


def test_the_group_is_listed():
    assert set(BY_NAME) == {"rank_sweep", "dimensions", "cross", "training", "compression"}
    assert {f"low_rank/{name}" for name in BY_NAME} <= set(experiments())


# What the specification states and no run shows: the mean of many draws grows on.
NOT_HELD = {"dimensions": ["no steady growth with m fixed beyond d = 64"]}


@pytest.mark.parametrize("name", ["cross", "dimensions"])
def test_quick_runs_hold(name, tmp_path):
    outcome = BY_NAME[name].run(Context(True, 0, None, Path(tmp_path), lambda line: None))
    not_held = [check.statement for check in outcome.checks if not check.held]
    assert not_held == NOT_HELD.get(name, [])
    assert outcome.held == (not not_held)
    assert len(outcome.checks) > len(not_held)
    assert all(type(check.held) is bool for check in outcome.checks)
    assert all(len(row) == len(outcome.columns) for row in outcome.rows)


@pytest.mark.parametrize("name", ["independent He factors", "variance-matched factors"])
def test_random_starts_have_the_variance_that_they_say(name):
    rng = np.random.default_rng(0)
    W = rng.normal(0, np.sqrt(2 / 256), (256, 256))
    found = [training.STARTS[name](W, rng) for _ in range(20)]
    variance = np.mean([np.square(U @ V.T).mean() for U, V in found])
    # He's rule twice, with no ReLU in between: a factor of 2.
    expected = W.var() * (2 if name.startswith("independent") else 1)
    assert variance == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("start", [None, "spectral"])
def test_the_network_learns(batch_norm, start):
    data = training._Data(0)
    made = training.STARTS[start] if start else None
    network = training._Network(made, False, batch_norm, 0, data.x)
    first, second = training._curve(network, data, 0, (50, 150))
    assert second < first < 1.1
    assert data.y[: data.train].std() == pytest.approx(1, abs=1e-3)
