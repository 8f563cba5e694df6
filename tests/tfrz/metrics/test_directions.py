"""Every metric that the zoo reports declares which of its values are better."""

from __future__ import annotations

import math

import pytest

from tfrz.errors import ConfigError
from tfrz.metrics import direction, distance_to_best
from tfrz.zoo import registry


@pytest.mark.parametrize("model", registry.names())
def test_metrics_of_the_registry_have_a_direction(model):
    for name in registry.get(model).metrics:
        assert direction(name) in ("max", "min", 1.0)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("loss", "min"),
        ("log_loss", "min"),
        ("cross_entropy", "min"),
        ("mse_watch_time", "min"),
        ("normalized_entropy_like", "min"),
        ("gini_at_20", "min"),
        ("coverage_at_20", "max"),
        ("map_at_20", "max"),
        ("map", "max"),
        ("err_at_10", "max"),
        ("precision_at_5_head", "max"),
        ("snips_low", "max"),
        ("effective_sample_size", "max"),
        ("calibration", 1.0),
    ],
)
def test_directions_by_the_names_that_tasks_report(name, wanted):
    assert direction(name) == wanted


@pytest.mark.parametrize("name", ["entropy", "logged_reward", "", "aucs"])
def test_other_names_are_refused(name):
    with pytest.raises(ConfigError):
        direction(name)


def test_the_distance_orders_values_and_puts_undefined_ones_last():
    assert sorted([0.5, 1.1, 2.0], key=lambda v: distance_to_best("calibration", v)) == [
        1.1,
        0.5,
        2.0,
    ]
    assert distance_to_best("auc", 0.9) < distance_to_best("auc", 0.8)
    for undefined in (math.nan, math.inf, -math.inf):
        assert distance_to_best("auc", undefined) == math.inf
