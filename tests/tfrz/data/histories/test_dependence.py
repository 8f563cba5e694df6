"""Long-range dependence: the worked example, and series whose curve is known."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from tfrz.cli.main import main
from tfrz.data.histories.dependence import (
    Dependence,
    co_occurrence_vectors,
    cross_covariance_trace,
    lag_dependence,
    measure_dependence,
    plot_dependence,
)
from tfrz.data.records import open_source
from tfrz.errors import InputError

LAGS = (1, 2, 5, 10, 20, 50, 100, 200)
USERS, DIM = 5000, 8


def test_5_3_the_worked_example():
    a = np.array([[1, 0], [0, 1], [1, 1]])
    b = np.array([[1, 1], [0, 2], [2, 0]])
    assert cross_covariance_trace(a, b) == pytest.approx(0.5)
    gram = a @ b.T
    different = (gram.sum() - np.trace(gram)) / 6
    assert np.trace(gram) / 3 - different == pytest.approx(0.5)
    covariance = (a - a.mean(0)).T @ (b - b.mean(0)) / 2
    assert np.trace(covariance) == pytest.approx(0.5)


def test_5_1_11_constants_change_nothing_and_strangers_give_zero():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 4000, DIM))
    trace = cross_covariance_trace(a, b)
    assert cross_covariance_trace(a + 3.0, b - 7.0) == pytest.approx(trace, abs=1e-9)
    # Unit variance: the standard error is sqrt(d / M).
    assert abs(trace) < 4 * math.sqrt(DIM / 4000)


def _autoregressive(phi: float = 0.8) -> np.ndarray:
    rng = np.random.default_rng(1)
    x = np.empty((USERS, LAGS[-1] + 1, DIM))
    x[:, 0] = rng.normal(size=(USERS, DIM))
    for t in range(1, x.shape[1]):
        x[:, t] = phi * x[:, t - 1] + math.sqrt(1 - phi**2) * rng.normal(size=(USERS, DIM))
    return x


def test_5_3_a_markov_series_falls_exponentially():
    found = lag_dependence(_autoregressive(), LAGS)
    np.testing.assert_allclose(found, DIM * 0.8 ** np.array(LAGS), atol=0.2)


def test_5_3_independent_events_have_no_dependence():
    series = np.random.default_rng(2).normal(size=(USERS, LAGS[-1] + 1, DIM))
    np.testing.assert_allclose(lag_dependence(series, LAGS), 0.0, atol=0.2)


def test_5_3_fractional_noise_falls_like_a_power():
    hurst, length = 0.9, LAGS[-1] + 1
    lag = np.arange(length)
    covariance = 0.5 * (
        np.abs(lag + 1.0) ** (2 * hurst)
        - 2 * np.abs(lag) ** (2 * hurst)
        + np.abs(lag - 1.0) ** (2 * hurst)
    )
    matrix = covariance[np.abs(lag[:, None] - lag[None, :])]
    draws = np.random.default_rng(3).normal(size=(USERS, DIM, length))
    series = np.swapaxes(draws @ np.linalg.cholesky(matrix).T, 1, 2)
    found = lag_dependence(series, LAGS)
    np.testing.assert_allclose(found, DIM * covariance[list(LAGS)], atol=0.25)
    slope = np.polyfit(np.log(LAGS), np.log(found), 1)[0]
    assert slope == pytest.approx(2 * hurst - 2, abs=0.04)


def test_5_3_a_constant_taste_is_a_floor():
    taste = np.random.default_rng(4).normal(size=(USERS, 1, DIM))
    found = lag_dependence(_autoregressive() + taste, LAGS)
    np.testing.assert_allclose(found[-3:], DIM, atol=0.5)


def test_vectors_of_items_that_go_together_are_near():
    rng = np.random.default_rng(5)
    histories = [rng.integers(0, 5, 40) + 5 * (u % 2) for u in range(60)]
    vectors = co_occurrence_vectors(histories, 11, dim=2)
    np.testing.assert_allclose(np.linalg.norm(vectors[:10], axis=1), 1.0)
    assert not vectors[10].any()  # Never taken.
    near = vectors[:10] @ vectors[:10].T
    assert near[:5, :5].min() > near[:5, 5:].max()


def test_the_simulated_source_has_a_taste_and_a_succession():
    found = measure_dependence(open_source("simulated", None, "history", users=1500))
    assert found.lags == (1, 2, 5, 10, 20, 50)
    # The item before is telling beyond the taste; what is far back tells the taste alone.
    assert found.ordered[0] - found.shuffled[0] > 3 * found.standard_error
    assert abs(found.ordered[-1] - found.shuffled[-1]) < 4 * found.standard_error
    assert found.shuffled[-1] > 3 * found.standard_error


def test_the_slope_is_that_above_the_floor():
    lags = (1, 2, 4, 8)
    ordered = tuple(0.1 + lag**-0.5 for lag in lags)
    found = Dependence(9, 9, lags, ordered, (0.1,) * 4, 0.01)
    assert found.slope == pytest.approx(-0.5)
    assert math.isnan(Dependence(9, 9, lags, (0.1,) * 4, (0.1,) * 4, 0.01).slope)


def test_a_source_of_short_histories_is_refused(tmp_path):
    (tmp_path / "few.txt").write_text("1 2\n3\n")
    with pytest.raises(InputError, match="too few users"):
        measure_dependence(open_source(f"sessions:{tmp_path}/few.txt"))


def test_the_command_prints_and_draws_it(tmp_path, capsys):
    plot = tmp_path / "curve.png"
    arguments = ["data", "describe", "simulated", "--option", "users=400", "--plot", str(plot)]
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert "20,400 history records" in text and "D with histories shuffled" in text
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert main([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["record_type"] == "history" and len(found["dependence"]["ordered"]) >= 5
    plot_dependence(Dependence(9, 9, (1, 2), (0.5, -0.1), (0.1, 0.1), 0.01), plot)


def test_dependence_of_impressions_is_refused(capsys):
    arguments = ["data", "describe", "simulated", "--records", "impression", "--dependence"]
    assert main(arguments) == 2
    assert "--dependence: needs history records" in capsys.readouterr().err
