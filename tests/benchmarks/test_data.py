"""Suite `data`: quick runs of its parts."""

from __future__ import annotations

import math

import pyarrow.csv as pcsv
import pyarrow.parquet as pq
import pytest

from benchmarks import data, runner
from benchmarks.report import NOT_JUDGED
from benchmarks.runner import Options
from tfrz.cli.bench import suites


def test_the_suite_belongs_to_no_model_and_is_found() -> None:
    assert "data" in suites()
    assert runner.load_suite("data").TITLE == data.TITLE


@pytest.mark.slow
@pytest.mark.parametrize("part", sorted(data.PARTS.keys() - {"fuzz"}))
def test_a_quick_run_measures_and_judges_nothing(part: str) -> None:
    section = data.PARTS[part].run(Options(quick=True))
    assert section.figures
    assert all(math.isfinite(figure.value) and figure.value > 0 for figure in section.figures)
    assert {figure.verdict for figure in section.figures} <= {None, NOT_JUDGED}
    assert not section.timings or section.baseline in section.timings


def test_rows_are_written_whole(tmp_path) -> None:
    for kind in ("parquet", "csv", "csv.gz"):
        place = data.write_rows(tmp_path / kind, 300, 1, kind)
        prepared = data._prepare(place) if kind == "csv" else None
        if prepared is not None:
            sets = (prepared.train, prepared.validation, prepared.test)
            assert sum(some.num_examples for some in sets) == 300
            assert prepared.corrupt_lines == 0


@pytest.mark.parametrize("kind", ["parquet", "csv"])
def test_histories_of_a_row_at_a_time_are_the_same(tmp_path, kind: str) -> None:
    place = data.write_events(tmp_path, 2_000, 1)
    events = pq.read_table(place)
    path = tmp_path / f"events.{kind}"
    (pq.write_table if kind == "parquet" else pcsv.write_csv)(events, path)
    ours = data._examples(str(path), str(tmp_path / "spec.yaml"))
    theirs = data.row_at_a_time(path)
    assert ours.keys() == theirs.keys()
    for split, table in ours.items():
        assert table.num_rows
        assert table.to_pydict() == theirs[split].to_pydict()
