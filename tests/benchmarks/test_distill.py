"""Suite `distill`: its batches, its steps, what it counts, and quick runs."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from benchmarks import distill, runner
from benchmarks.report import NOT_JUDGED, Section
from benchmarks.runner import Options
from tfrz.cli.bench import suites

QUICK = Options(quick=True)


def values(section: Section) -> dict[str, float]:
    found = {figure.name: figure.value for figure in section.figures}
    assert len(found) == len(section.figures)
    assert all(math.isfinite(value) for value in found.values())
    assert {figure.verdict for figure in section.figures} <= {None, NOT_JUDGED}
    assert section.baseline in section.timings
    return found


def test_the_suite_belongs_to_no_model_and_is_found() -> None:
    assert "distill" in suites()
    assert runner.load_suite("distill").TITLE == distill.TITLE


def test_a_batch_has_ids_of_every_field_and_what_a_teacher_said() -> None:
    columns = distill.click_columns(50, 3)
    assert set(columns) == {f"{name}_xf" for name in (*distill.FIELDS, "label", "teacher_score")}
    for name, rows in distill.FIELDS.items():
        assert 1 <= columns[f"{name}_xf"].min() <= columns[f"{name}_xf"].max() < rows
    assert set(columns["label_xf"]) == {0.0, 1.0}


def test_steps_learn_and_cached_scores_of_a_teacher_change_the_loss() -> None:
    taught, plain = (distill.make_click_steps(taught, 32, 5, seed=0) for taught in (True, False))
    losses = [plain() for _ in range(8)]
    assert losses[-1] < losses[0]
    assert taught() != pytest.approx(losses[0], abs=1e-4)


@pytest.mark.slow
def test_a_live_teacher_changes_the_loss_of_m3() -> None:
    sizes = {"batch": 4, "length": 6, "dim": 8, "items": 40, "steps": 3, "seed": 0}
    taught, plain = (distill.make_history_steps(taught, **sizes) for taught in (True, False))
    assert taught() != pytest.approx(plain(), abs=1e-4)


def test_without_the_data_clicks_are_simulated_and_a_note_says_so(tmp_path: Path) -> None:
    data, _, notes = distill.data_of(Options(data=f"movielens-1m:{tmp_path}/none.zip"))
    assert data == "simulated"
    assert "left out" in notes[0]
    named = Options(data=f"movielens-1m:{tmp_path}")
    assert distill.data_of(named) == (named.data, [], ())


@pytest.mark.slow
def test_quick_run_of_serving() -> None:
    section = distill.measure_serving(QUICK)
    found = values(section)
    table = section.details["table"]
    assert list(table) == list(section.timings)
    for name, row in table.items():
        for what, value in row.items():
            assert found[f"{what}, {name}"] == value
        assert row["p50 of 500"] <= row["p99 of 500"]
        assert row["parameters"] == section.details["runs"][name]["parameters"]
    teacher, small, student = (
        table[name] for name in (distill.TEACHER, distill.SMALL, distill.STUDENT)
    )
    width = 6 * 30
    layers = 2 * (width * width + width) + width * 256 + 256
    assert teacher["dense parameters"] == layers + width + 256
    for what in ("parameters", "dense parameters"):
        assert student[what] == small[what] < teacher[what]
    assert student["test log loss"] != small["test log loss"]
    for name, source in distill.COMPRESSED.items():
        assert table[name]["dense parameters"] < table[source]["dense parameters"]
        embeddings = {
            table[one]["parameters"] - table[one]["dense parameters"] for one in (name, source)
        }
        assert len(embeddings) == 1


@pytest.mark.slow
def test_quick_run_of_the_curve() -> None:
    section = distill.measure_curve(QUICK)
    found = values(section)
    assert set(section.timings) == {distill.DENSE, "rank 4", distill.REQUEST}
    width = 6 * 30
    saved = 2 * (width * width - 4 * 2 * width) + width * 256 - 4 * (width + 256)
    difference = found["dense, dense parameters"] - found["rank 4, dense parameters"]
    assert difference == saved
    ratio = section.timings["rank 4"]["ratio_of_medians"]
    assert found["rank 4 / dense, p50"] == ratio


@pytest.mark.slow
def test_quick_run_of_the_steps() -> None:
    section = distill.measure_step(QUICK)
    assert all(value > 0 for value in values(section).values())
    assert [str(figure.bound) for figure in section.figures if figure.bound] == ["<= 1.15"]
