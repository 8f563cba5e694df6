"""The runner, on a suite of the tests' own."""

from __future__ import annotations

import argparse
import json
import types
from pathlib import Path

import pytest

from benchmarks import runner
from benchmarks.report import Bound, Figure, Section
from benchmarks.runner import Options, Part, Skip
from tfrz.errors import InputError


def good(options: Options) -> Section:
    return Section("good", figures=(Figure("fine", 0.5, bound=Bound(1.0, "at most")),))


def slow(options: Options) -> Section:
    return Section(
        "slow",
        figures=(Figure("late", 2.0, bound=Bound(1.0, "at most"), judged=not options.quick),),
    )


def absent(options: Options) -> Section:
    raise Skip("the data is not there")


def suite(**parts: Part) -> types.SimpleNamespace:
    return types.SimpleNamespace(TITLE="a suite", PARTS=parts)


def run(tested: types.SimpleNamespace, *argv: str) -> int:
    parser = argparse.ArgumentParser()
    runner.add_arguments(parser)
    return runner.run_suite("mine", tested, parser.parse_args(argv))


def test_a_bound_that_is_not_held_decides_the_exit_status(tmp_path: Path) -> None:
    parts = {"good": Part(good, "g"), "slow": Part(slow, "s")}
    out = tmp_path / "report.json"
    assert run(suite(**parts), "--json", str(out)) == 1
    report = json.loads(out.read_text())
    assert [p["figures"][0]["verdict"] for p in report["parts"].values()] == ["held", "not held"]
    assert run(suite(**parts), "--part", "good") == 0
    assert run(suite(**parts), "--quick") == 0


def test_each_part_notes_load_and_time(tmp_path: Path) -> None:
    out = tmp_path / "report.json"
    run(suite(good=Part(good, "g")), "--json", str(out))
    part = json.loads(out.read_text())["parts"]["good"]
    assert len(part["load_average_before"]) == len(part["load_average_after"]) == 3
    assert part["measured_at"].endswith("+00:00")
    assert part["quick"] is False


def test_a_part_is_skipped_with_a_line_that_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    needy = Part(good, "n", needs=("tfrz_no_such_module.inner", "json"))
    assert run(suite(absent=Part(absent, "a"), needy=needy)) == 0
    printed = capsys.readouterr().out
    assert "absent: skipped: the data is not there" in printed
    assert "needy: skipped: tfrz_no_such_module.inner not installed" in printed


def test_layer_only_and_quick_choose_parts(capsys: pytest.CaptureFixture[str]) -> None:
    parts = {
        "layer": Part(good, "l"),
        "pipeline": Part(good, "p", layer=False),
        "long": Part(good, "x", in_quick=False),
    }

    def measured(*argv: str) -> list[str]:
        run(suite(**parts), *argv)
        return [
            line.removeprefix("mine/").removesuffix(": measuring")
            for line in capsys.readouterr().err.splitlines()
            if line.endswith(": measuring")
        ]

    assert measured() == ["layer", "pipeline", "long"]
    assert measured("--layer-only") == ["layer", "long"]
    assert measured("--quick") == ["layer", "pipeline"]
    assert measured("--quick", "--part", "long") == ["long"]


def test_an_unknown_part_is_bad_input() -> None:
    with pytest.raises(InputError, match="did you mean 'layer'"):
        run(suite(layer=Part(good, "l")), "--part", "layr")


def test_json_to_standard_output_is_nothing_but_json(capsys: pytest.CaptureFixture[str]) -> None:
    run(suite(good=Part(good, "g")), "--json", "-")
    assert json.loads(capsys.readouterr().out)["suite"] == "mine"


def test_a_place_that_cannot_be_written_fails_before_anything_is_measured(tmp_path: Path) -> None:
    measured = []

    def note(options: Options) -> Section:
        measured.append(1)
        return Section("n")

    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(InputError, match="cannot write"):
        run(suite(note=Part(note, "n")), "--json", str(blocked / "report.json"))
    assert not measured


def test_store_merges_with_the_last_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "RESULTS", tmp_path)
    parts = {"good": Part(good, "g"), "slow": Part(slow, "s")}
    run(suite(**parts), "--store", "--part", "good")
    run(suite(**parts), "--store", "--part", "slow")
    (stored,) = (tmp_path / "mine").iterdir()
    assert stored.suffix == ".json"
    assert set(json.loads(stored.read_text())["parts"]) == {"good", "slow"}


def test_every_suite_of_the_registry_can_be_loaded() -> None:
    from tfrz.cli.bench import suites

    known = suites()
    assert "dcn_v2" in known["cross"]
    for name in known:
        module = runner.load_suite(name)
        assert module.TITLE and all(isinstance(part, Part) for part in module.PARTS.values())


def test_a_suite_without_a_module_is_bad_input() -> None:
    with pytest.raises(InputError, match=r"no module benchmarks\.nothing"):
        runner.load_suite("nothing")
