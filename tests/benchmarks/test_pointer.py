"""Suite `pointer`: its decoders choose alike, its bounds are judged, and it runs from the shell."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from benchmarks import pointer, runner
from benchmarks.report import NOT_JUDGED, broken_bounds
from benchmarks.runner import Options

ROOT = Path(__file__).resolve().parents[2]
SIZES = pointer.Sizes(batch=5, length=6, units=8, features=3, scale=1.0, rounds=2)
BOUNDS = {
    "decode": {
        "compile, loop / unrolled": "<= 0.15",
        "run, loop / unrolled": "<= 0.6",
        "run, loop / prefix again": "<= 0.3",
        "run, encode + one step / encode + decode": "<= 0.35",
    },
    "gradient": {},
    "beam": {"log-probability, best of beam 4 and greedy less greedy": ">= 0"},
    "serving": {},
}


def ragged(counts: tuple[int, ...]) -> dict[str, tf.Tensor]:
    """Lists of so many candidates, padded."""
    lists = pointer.make_lists(dataclasses.replace(SIZES, batch=len(counts)), 1)
    valid = np.arange(SIZES.length) < np.array(counts)[:, None]
    return {**lists, "mask_xf": tf.constant(valid, tf.int64)}


@pytest.fixture(scope="module")
def model() -> keras.Model:
    return pointer.make_model(SIZES, 3)


@pytest.mark.slow
@pytest.mark.parametrize("xla", [False, True], ids=["no XLA", "XLA"])
def test_all_decoders_make_the_same_slates(model: keras.Model, xla: bool) -> None:
    inputs = pointer.encoded_lists(model, ragged((6, 6, 4, 1, 0)))
    slates = {
        name: tf.function(form, jit_compile=xla)(*inputs)
        for name, form in pointer.decoders(model.decoder).items()
    }
    expected = slates[pointer.LOOP]
    # Not the order of the list, which decoders would agree on that do nothing.
    assert not np.array_equal(expected.positions[0], np.arange(6))
    for name in (pointer.UNROLLED, pointer.PREFIX):
        np.testing.assert_array_equal(slates[name].positions, expected.positions)
        np.testing.assert_array_equal(slates[name].available, expected.available)
        np.testing.assert_allclose(slates[name].scores, expected.scores, atol=1e-5)
        np.testing.assert_allclose(
            slates[name].log_probabilities, expected.log_probabilities, atol=1e-5
        )


@pytest.mark.parametrize(
    ("name", "steps"), [(pointer.LOOP, 6), (pointer.UNROLLED, 6), (pointer.PREFIX, 21)]
)
def test_only_the_prefix_decoder_reads_again_what_it_has_chosen(
    model: keras.Model, monkeypatch: pytest.MonkeyPatch, name: str, steps: int
) -> None:
    inputs = pointer.encoded_lists(model, pointer.make_lists(SIZES, 0))
    calls, original = [], keras.layers.LSTMCell.call

    def counted(self, *arguments, **keywords):
        calls.append(1)
        return original(self, *arguments, **keywords)

    monkeypatch.setattr(model.decoder.cell, "call", counted.__get__(model.decoder.cell))
    pointer.decoders(model.decoder)[name](*inputs)
    assert len(calls) == steps


def test_decoders_that_choose_otherwise_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    def backwards(decoder, *lists):
        slate = decoder.decode(*lists)
        return slate._replace(positions=slate.positions[:, ::-1])

    monkeypatch.setattr(pointer, "unrolled", backwards)
    with pytest.raises(AssertionError, match="unrolled against loop"):
        pointer.measure_decode(Options(quick=True))


def test_the_scorers_of_a_comparison_share_their_weights(model: keras.Model) -> None:
    one_step = pointer.make_model(SIZES, 3, scorer="one_step")
    for ours, theirs in zip(model.weights, one_step.weights, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.slow
def test_compiled_and_plain_steps_give_the_same_loss_and_gradients() -> None:
    (plain, expected), (compiled, found) = (pointer.make_step(SIZES, 0, x)() for x in (False, True))
    assert plain > 0
    np.testing.assert_allclose(compiled, plain, rtol=1e-5)
    assert any(np.any(gradient) for gradient in expected)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_the_exported_signature_gives_the_slate_to_show(model: keras.Model, tmp_path: Path) -> None:
    lists = ragged((6, 2))
    positions = pointer.export_best(model, str(tmp_path))(**lists)["positions"]
    np.testing.assert_array_equal(positions, model.best(lists).positions)


def test_the_best_of_beams_and_greedy_keeps_its_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pointer.Sizes, "of", lambda options: SIZES)
    part = runner.run_part(pointer.PARTS["beam"], Options())
    figures = {figure["name"]: figure for figure in part["figures"]}
    (name,) = BOUNDS["beam"]
    assert figures[name]["verdict"] == "held"
    assert figures["log-probability, greedy"]["value"] < 0


def test_a_full_run_judges_its_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """At sizes so small that the bounds on speed cannot hold."""
    monkeypatch.setattr(pointer.Sizes, "of", lambda options: SIZES)
    part = runner.run_part(pointer.PARTS["decode"], Options())
    verdicts = {f["name"]: f["verdict"] for f in part["figures"] if f["bound"]}
    assert set(verdicts) == set(BOUNDS["decode"])
    assert NOT_JUDGED not in verdicts.values()
    assert "run, loop / prefix again" in broken_bounds({"parts": {"decode": part}})


@pytest.mark.slow
def test_quick_run_through_the_command_line(tmp_path: Path) -> None:
    out = tmp_path / "report.json"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "benchmarks.pointer", "--quick", "--json", str(out)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(out.read_text())
    assert report["suite"] == "pointer"
    assert list(report["parts"]) == list(pointer.PARTS) == list(BOUNDS)
    for name, part in report["parts"].items():
        assert part["baseline"] in part["timings"]
        assert all(math.isfinite(figure["value"]) for figure in part["figures"])
        bounds = {f["name"]: f["bound"] for f in part["figures"] if f["bound"]}
        assert bounds == BOUNDS[name]
        assert {f["verdict"] for f in part["figures"]} <= {None, NOT_JUDGED}
    assert "jit_compile=True" in report["parts"]["decode"]["title"]


def test_the_runner_finds_the_suite() -> None:
    assert runner.load_suite("pointer").TITLE == pointer.TITLE
    assert all(part.layer for part in pointer.PARTS.values())
