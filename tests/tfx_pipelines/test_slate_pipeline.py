"""The pipeline on simulated lists: a pushed model that re-ranks, slices, its metrics, refusal."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tfrz.cli.main import main
from tfrz.data.lists import build_lists
from tfrz.data.readers import open_source, read_table
from tfrz.metrics.slates import of_slate
from tfrz.zoo.run_config import SLATE_METRICS, load_run_config

OPTIONS = {"queries": 200, "length": 6}
SETTINGS = (
    f"data.options={json.dumps(OPTIONS)}",
    "data.lists.length=6",
    "data.validation_fraction=0.3",
    "model.units=8",
    "trainer.batch_size=32",
    "trainer.epochs=1",
    "trainer.tensorboard=false",
    "export.warmup_examples=2",
)


def _run(root: Path, capsys, *settings: str) -> tuple[int, dict]:
    overrides = [part for value in (*SETTINGS, *settings) for part in ("--set", value)]
    command = ["pipeline", "run", "seq2slate", "--root", str(root), "--json", "--quiet"]
    status = main([*command, *overrides])
    return status, json.loads(capsys.readouterr().out)


class _Output:
    """`capsys` is not for fixtures of a module."""

    def __init__(self) -> None:
        self.out = ""


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("slate-pipeline") / "root"


def _in_process(root: Path, *settings: str) -> tuple[int, dict]:
    overrides = [part for value in (*SETTINGS, *settings) for part in ("--set", value)]
    command = [sys.executable, "-m", "tfrz", "pipeline", "run", "seq2slate", "--root", str(root)]
    done = subprocess.run(
        [*command, "--json", "--quiet", *overrides], capture_output=True, text=True, check=False
    )
    assert done.returncode in (0, 1), done.stderr[-1500:]
    return done.returncode, json.loads(done.stdout)
