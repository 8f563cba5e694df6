"""The experiments of low-rank training that take seconds, and the parts of the others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tfrz.reproduce import movielens_1m
from tfrz.reproduce.experiment import Context, experiments
from tfrz.reproduce.low_rank import EXPERIMENTS, movielens, training

BY_NAME = {experiment.name.partition("/")[2]: experiment for experiment in EXPERIMENTS}


def test_the_group_is_listed():
    assert set(BY_NAME) == {
        *("rank_sweep", "dimensions", "cross", "training", "compression", "movielens_1m")
    }
    assert {f"low_rank/{name}" for name in BY_NAME} <= set(experiments())


# What the specification states and no run shows: the mean of many draws grows on.
NOT_HELD = {"dimensions": ["no steady growth with m fixed beyond d = 64"]}


@pytest.mark.slow
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


# MovieLens-1M.


@pytest.mark.slow
def test_a_quick_run_on_ratings_is_whole_and_resumed(ratings_1m, tmp_path, monkeypatch):
    # Break-even of a cross layer is at 36.
    monkeypatch.setattr(movielens, "ORIGINAL", {**movielens.ORIGINAL, "model.embedding_dim": 12})
    context = Context(True, 0, str(ratings_1m), tmp_path, lambda line: None)
    outcome = movielens.EXPERIMENT.run(context)
    # Two steps train nothing that could be held to the statement.
    assert [type(check.held) for check in outcome.checks] == [bool]
    assert all(len(row) == len(outcome.columns) for row in outcome.rows)
    assert [row[:2] for row in outcome.rows[3:]] == [
        (rank, method) for rank in (8, 32) for method in movielens.METHODS
    ]
    assert outcome.rows[0][-1] == "1.00" and all(float(row[-1]) > 0 for row in outcome.rows)
    assert (tmp_path / "curve.png").stat().st_size > 1000
    # Nothing is trained or timed twice.
    monkeypatch.setattr(movielens_1m, "train", None)
    monkeypatch.setattr(movielens, "forward_times", None)
    assert movielens.EXPERIMENT.run(context) == outcome


@pytest.mark.slow
def test_validation_chooses_between_before_and_after(ratings_1m, tmp_path, monkeypatch):
    small = {"model.cross": "full", "model.embedding_dim": 4}
    key = {"data": str(ratings_1m), "split": 0, "seed": 0, "model": small}
    original = movielens.train_one(
        tmp_path, {**key, "trainer": {"trainer.epochs": 1, "trainer.max_steps": 1}}
    )
    seen = []

    def wrecked(log_loss):
        def train(task, sets, columns, model):
            seen.append((task.config, columns))
            model.set_weights([0 * weight for weight in model.get_weights()])
            return model, {"log_loss": log_loss}

        monkeypatch.setattr(movielens_1m, "train", train)
        found = movielens.train_one(tmp_path, {**key, "trainer": movielens._ON, "rank": 8})["found"]
        assert set(found) == set(movielens.METHODS)
        return found

    found = wrecked(log_loss=9.0)
    for method in movielens.METHODS[2:]:
        assert found[method] == found["data"]
    found = wrecked(log_loss=0.0)
    for method in movielens.METHODS[2:]:
        assert found[method]["test"]["log_loss"] == pytest.approx(np.log(2))
    # Alone, and with what the original says of each row.
    (alone, _), (taught, columns) = seen[:2]
    assert not alone.distill.active and taught.distill.weight == 0.5
    assert alone.trainer.learning_rate < movielens_1m.task_of({}).config.trainer.learning_rate
    sets = movielens_1m.sets(key["data"], 0)
    model, scores = movielens._restored(tmp_path, key, sets)
    logits = movielens_1m.logits(model, columns)
    np.testing.assert_allclose(scores, 1 / (1 + np.exp(-logits)), rtol=1e-5)
    np.testing.assert_array_equal(columns["teacher_score_xf"], scores)
    judged = movielens_1m.judged(model, movielens_1m.task_of(small), sets)
    assert judged["test"]["log_loss"] == pytest.approx(
        original["found"]["original"]["test"]["log_loss"], rel=1e-5
    )


def test_the_best_point_at_half_the_parameters_is_judged():
    def point(rank, ratio, *lost):
        return (rank, "data", ratio, np.array(lost))

    large = point(64, 0.7, -0.1)
    check = movielens._check([large, point(32, 0.5, 0.003, 0.001), point(8, 0.1, 0.01)])
    assert not check.held
    assert check.measured == "rank 32, data: 0.500 of the parameters, +0.0020"
    check = movielens._check([large, point(32, 0.5, -0.001), point(8, 0.1, 0.0005, 0.0015)])
    assert check.held
    assert check.measured.startswith("rank 32, data: 0.500 of the parameters, -0.0010; fewest: ")
    assert check.measured.endswith("rank 8, data: 0.100, +0.0010")
