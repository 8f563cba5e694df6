"""Bounds, verdicts and the stored reports."""

from __future__ import annotations

import pytest

from benchmarks.cross import BROADCAST, LOOP, MIXTURE, ratio_figures
from benchmarks.measure import PairedTimings, Timing
from benchmarks.report import (
    Bound,
    Figure,
    Section,
    broken_bounds,
    machine_slug,
    merge_reports,
    part_as_text,
)

AT_MOST = Bound(0.8, "at most")


@pytest.mark.parametrize(
    ("bound", "value", "holds"),
    [
        (AT_MOST, 0.8, True),
        (AT_MOST, 0.8001, False),
        (Bound(55, "at least"), 55.0, True),
        (Bound(55, "at least"), 54.9, False),
        (Bound(1, "below"), 0.99, True),
        (Bound(1, "below"), 1.0, False),
        (AT_MOST, float("nan"), False),
        (Bound(55, "at least"), float("nan"), False),
    ],
)
def test_bound(bound: Bound, value: float, holds: bool) -> None:
    assert bound.holds(value) is holds
    assert Figure("f", value, bound=bound).verdict == ("held" if holds else "not held")


def test_a_figure_without_a_bound_has_no_verdict() -> None:
    assert Figure("f", 1.0).verdict is None


def test_a_bound_that_is_not_meant_for_the_run_is_not_judged() -> None:
    assert Figure("f", 99.0, bound=AT_MOST, judged=False).verdict == "not judged"


def paired(mixture: float) -> PairedTimings:
    return PairedTimings(
        {MIXTURE: Timing((mixture,)), LOOP: Timing((1.0,)), BROADCAST: Timing((2.0,))}
    )


@pytest.mark.parametrize(("mixture", "broken"), [(0.7, []), (0.9, ["loop"]), (1.5, ["loop", "["])])
def test_a_slow_mixture_is_reported_as_not_held(mixture: float, broken: list[str]) -> None:
    bounds = {LOOP: AT_MOST, BROADCAST: Bound(0.5, "at most")}
    figures = ratio_figures(paired(mixture), bounds, judged=True)
    report = {"parts": {"step": Section("t", figures=figures).to_mapping()}}
    names = broken_bounds(report)
    assert len(names) == len(broken)
    for name, part in zip(names, broken, strict=True):
        assert f"/ {part}" in name
    text = part_as_text("step", report["parts"]["step"])
    assert text.count("not held") == len(broken)


def test_a_skipped_part_keeps_its_last_result() -> None:
    old = {"parts": {"step": {"title": "old"}, "train": {"title": "old"}, "xla": {"title": "old"}}}
    new = {"suite": "s", "parts": {"step": {"title": "new"}, "train": {"skipped": "no data"}}}
    merged = merge_reports(old, new)
    assert merged["suite"] == "s"
    assert {name: part.get("title") for name, part in merged["parts"].items()} == {
        "step": "new",
        "train": "old",
        "xla": "old",
    }
    assert merge_reports(None, new)["parts"] == new["parts"]


def test_machine_slug_names_cpu_cores_and_accelerator() -> None:
    cpu = {"cpu": "Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz", "cores": 2, "gpus": []}
    assert machine_slug(cpu) == "intel-xeon-platinum-8481c-2-cores"
    gpu = {"cpu": "AMD EPYC", "cores": 16, "gpus": ["NVIDIA H200"]}
    assert machine_slug(gpu) == "amd-epyc-16-cores-nvidia-h200"
