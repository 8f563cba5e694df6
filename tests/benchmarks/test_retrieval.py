"""Suite `retrieval`: its world, its choice of a setting, its steps, and a quick run."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import retrieval, runner, temporal
from benchmarks.report import NOT_JUDGED
from benchmarks.retrieval import Mixture, Setting, Trade, choose, frontier
from tfrz.zoo import registry

ROOT = Path(__file__).resolve().parents[2]
SMALL = Mixture(items=600, dim=8, clusters=10)
BOUNDS = {"density": ["<= 1.1"], "scann": [">= 0.95", "<= 0.25"] * 2, "step": []}


def trade(name: int, recall: float, time: float) -> Trade:
    return Trade(Setting(name), recall, time)


def test_the_world_is_of_unit_vectors_in_clusters_and_its_users_are_in_the_same() -> None:
    items, users = SMALL.item_vectors(3), SMALL.users(50, 3)
    assert items.shape == (600, 8)
    assert users.shape == (50, retrieval.INTERESTS, 8)
    assert len(set(SMALL.ids)) == 600
    for vectors in (items, users):
        assert vectors.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=-1), 1, atol=1e-5)
    np.testing.assert_array_equal(items, SMALL.item_vectors(3))
    assert not np.array_equal(users, SMALL.users(50, 3, draw=1))

    def nearest(mixture: Mixture) -> float:
        scores = mixture.users(50, 3) @ mixture.item_vectors(3).T
        return float(np.sort(scores, axis=-1)[..., -20:].mean())

    tight = Mixture(600, 64, 10, spread=0.5)
    assert nearest(tight) > nearest(Mixture(600, 64, None)) + 0.2


def test_the_chosen_setting_is_the_fastest_that_finds_enough() -> None:
    fast, good, slow = trade(1, 0.9, 0.1), trade(2, 0.96, 0.2), trade(3, 0.99, 0.4)
    assert choose([slow, good, fast]) == good
    # Where none is good enough, the best that is fast; where none is fast, the best.
    assert choose([fast, trade(4, 0.8, 0.05), trade(5, 0.94, 0.5)]) == fast
    assert choose([trade(6, 0.5, 0.6), trade(7, 0.6, 0.7)]).setting == Setting(7)
    assert frontier([slow, trade(8, 0.9, 0.3), good, fast]) == [fast, good, slow]


def test_overlap_is_the_share_of_the_exact_rows() -> None:
    exact = np.array([[1, 2, 3, 4], [5, 6, 7, 8]])
    found = np.array([[4, 3, 2, 1], [5, 9, 10, -1]])
    assert retrieval.overlap(found, exact) == pytest.approx(0.625)


@pytest.mark.needs("scann")
@pytest.mark.slow
def test_scann_that_looks_everywhere_finds_what_brute_force_finds() -> None:
    everywhere, little = Setting(24, 60), Setting(1, 1)
    searches = retrieval.Searches(SMALL, 0, [everywhere, little], k=10)
    recalls = searches.recalls(SMALL.users(30, 0), batch=8)
    assert recalls[retrieval.BRUTE_FORCE] == 1
    assert recalls[str(everywhere)] == pytest.approx(1, abs=0.01)
    assert recalls[str(little)] < 0.9


@pytest.mark.parametrize("negatives", [0, 6])
def test_a_step_of_the_towers_learns(negatives: int) -> None:
    step = retrieval.make_step(4, negatives, batch=8, length=5, dim=8, items=40, seed=0)
    losses = [step() for _ in range(30)]
    assert losses[-1] < losses[0]


@pytest.mark.slow
@pytest.mark.parametrize("xla", [False, True], ids=["plain", "XLA"])
def test_a_step_of_m3_learns(xla: bool) -> None:
    step = temporal.make_step(temporal.MODELS["M3R"], batch=4, length=6, dim=8, xla=xla)
    losses = [step() for _ in range(30)]
    assert losses[-1] < losses[0]


@pytest.mark.slow
def test_quick_run_through_the_command_line(tmp_path: Path) -> None:
    out = tmp_path / "report.json"
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.retrieval", "--quick"]
    command += ["--layer-only", "--json", str(out)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
    )
    assert done.returncode == 0, done.stderr
    parts = json.loads(out.read_text())["parts"]
    assert list(parts) == [name for name, part in retrieval.PARTS.items() if part.layer]
    for name, part in parts.items():
        if "skipped" in part:
            continue
        assert all(math.isfinite(figure["value"]) for figure in part["figures"])
        assert {f["verdict"] for f in part["figures"]} <= {None, NOT_JUDGED}
        bounds = [f["bound"] for f in part["figures"] if f["bound"]]
        if name == "build":
            assert bounds
            assert set(bounds) == {"<= 4"}
        else:
            assert bounds == BOUNDS[name]
            assert part["baseline"] in part["timings"]


def test_the_runner_finds_the_suite_that_the_registry_names() -> None:
    (name,) = registry.get("multi_interest").bench
    assert runner.load_suite(name).TITLE == retrieval.TITLE
