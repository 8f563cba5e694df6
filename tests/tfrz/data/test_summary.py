"""`tfrz data describe` counts what is there."""

from __future__ import annotations

import pytest

from tests.tfrz.data import small_sources as sources
from tfrz.data.records import open_source
from tfrz.data.summary import summarize
from tfrz.errors import InputError


def test_terms_lists_and_the_label(tmp_path):
    folder = sources.movielens_1m(tmp_path, sources.RATINGS_1M + "1::1\n")
    summary = summarize(open_source(f"movielens-1m:{folder}"))
    assert (summary.rows, summary.corrupt) == (3, 1)
    assert summary.first_corrupt.endswith("ratings.dat:5: 2 fields instead of 4")
    by_name = {f.name: f for f in summary.features}
    assert by_name["user_id"].distinct == 2
    assert by_name["user_id"].top == [("2", 2), ("1", 1)]
    assert (by_name["genres"].rows, by_name["genres"].values) == (3, 5)
    assert by_name["genres"].top[0] == ("Comedy", 2)
    label = by_name["label"]
    assert (label.minimum, label.maximum, round(label.mean, 4)) == (0.0, 1.0, 0.6667)


def test_missing_numbers(tmp_path):
    path = tmp_path / "train.txt"
    path.write_text(
        sources.criteo_line(1, ["3"], ["a"])
        + sources.criteo_line(0, [], [])
        + sources.criteo_line(0, ["5"], [])
    )
    by_name = {f.name: f for f in summarize(open_source(f"criteo:{path}")).features}
    one = by_name["I1"]
    assert (one.rows, one.missing, one.minimum, one.mean, one.maximum) == (2, 1, 3.0, 4.0, 5.0)
    assert (by_name["I2"].missing, by_name["I2"].minimum) == (3, None)
    assert (by_name["C1"].missing, by_name["C1"].distinct) == (2, 1)


def test_a_limit_and_a_source_of_nothing_but_corrupt_lines(tmp_path):
    assert summarize(open_source("simulated", None, rows=60_000), limit=100).rows == 25_000
    folder = sources.movielens_1m(tmp_path, "1::9::5::1\n")
    with pytest.raises(InputError, match=r"has no records: .*an unknown movie"):
        summarize(open_source(f"movielens-1m:{folder}"))
