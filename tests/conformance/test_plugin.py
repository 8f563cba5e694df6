"""A model registered from outside joins everything, and no file of the package knows of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

NAME = "tiny"
SMALL = ("--set", "data.options={rows: 4000}")


def _run(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "TFRZ_PLUGINS": "tests.plugins.tiny"},
    )


def test_it_is_listed_and_described():
    listed = _run("tfrz", "list")
    assert NAME in listed.stdout, listed.stderr
    assert "Logistic regression, registered by a test" in listed.stdout
    assert "scale: 0.01" in _run("tfrz", "describe", NAME).stdout


def test_it_passes_the_battery():
    # It brings no layers; the zoo has some with its name in theirs.
    where = ("tests/conformance", "--ignore=tests/conformance/test_layers.py")
    done = _run("pytest", "-q", "-p", "no:cacheprovider", *where, "-k", NAME)
    assert done.returncode == 0, done.stdout[-3000:]
    # 6 tests of a model in float32, one of them in bfloat16 as well, the export, 4 of the row.
    assert "12 passed" in done.stdout, done.stdout[-500:]


def test_it_trains_and_answers(tmp_path):
    out = tmp_path / "run"
    done = _run("tfrz", "train", NAME, "--out", str(out), "--quiet", "--json", *SMALL)
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout)
    assert result["metrics"]["test"]["auc"] > 0.6
    row = dict.fromkeys(("user", "item", "genre", "hour", "country", "device"), "new")
    asked = _run(
        "tfrz", "predict", str(out / "model"), json.dumps([row]), "--signature", "serving_raw"
    )
    assert asked.returncode == 0, asked.stderr
    assert 0 < json.loads(asked.stdout)["predictions"][0] < 1


@pytest.mark.filterwarnings("ignore")
def test_its_pipeline_runs_to_the_push(tmp_path):
    done = _run(
        "tfrz", "pipeline", "run", NAME, "--root", str(tmp_path), "--json", "--quiet", *SMALL
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "serving" / NAME).is_dir()
