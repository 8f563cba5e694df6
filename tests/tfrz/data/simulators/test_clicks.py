"""The simulator's promise: seeded draws from known probabilities."""

from __future__ import annotations

import numpy as np

from tfrz.data.records import open_source
from tfrz.data.simulators.clicks import FIELDS, ClickSimulator
from tfrz.data.sources.reader import read_table


def test_the_same_seed_draws_the_same_and_another_does_not():
    first, again = (ClickSimulator(4).sample(500, seed=9) for _ in range(2))
    for name, value in first.items():
        np.testing.assert_array_equal(again[name], value)
    assert (ClickSimulator(4).sample(500, seed=10)["click"] != first["click"]).any()


def test_clicks_follow_their_probabilities():
    rows = ClickSimulator(0).sample(200_000, seed=1)
    bayes = ClickSimulator.bayes_log_loss(rows)
    simulator = ClickSimulator(0)
    categories = np.stack([rows[name] for name in FIELDS], axis=1)
    p = 1 / (1 + np.exp(-simulator.logits(categories)))
    y = rows["click"]
    realised = -(y * np.log(p) + (1 - y) * np.log1p(-p))
    # What was drawn agrees with what was promised, up to the draw's own error.
    assert abs(realised.mean() - bayes) < 4 * realised.std() / np.sqrt(len(y))
    assert abs((y - p).mean()) < 4 * np.sqrt((p * (1 - p)).mean() / len(y))


def test_the_reader_gives_the_rows_asked_for():
    table, corrupt = read_table(open_source("simulated", None, rows=26_000, seed=3))
    assert (table.num_rows, len(corrupt)) == (26_000, 0)
    assert table.column_names == [*FIELDS, "label"]
