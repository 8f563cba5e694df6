"""Suite `data`: quick runs of its parts."""

from __future__ import annotations

import math

import pytest

from benchmarks import data, runner
from benchmarks.report import NOT_JUDGED
from benchmarks.runner import Options
from tfrz.cli.bench import suites


def test_the_suite_belongs_to_no_model_and_is_found() -> None:
    assert "data" in suites()
    assert runner.load_suite("data").TITLE == data.TITLE


@pytest.mark.slow
@pytest.mark.parametrize("part", data.PARTS)
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
