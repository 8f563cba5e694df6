"""Under XLA a run compiles its step once, whatever the model's encoder is."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

_CHILD = """
import sys
from tfrz.zoo.train import train
train("m3", out=sys.argv[1], overrides=sys.argv[2:], progress=False)
"""
_SETTINGS = (
    "data.options={users: 120, length: 9}",
    "data.history.length=8",
    "model.item_dim=8",
    "model.input_units=[8]",
    "model.encoder_dim=8",
    "model.output_units=[8]",
    "trainer.batch_size=16",
    "trainer.epochs=2",
    "trainer.steps_per_call=2",
    "trainer.tensorboard=false",
)


@pytest.mark.slow
@pytest.mark.parametrize("short_range", ["gru", "convolution"])
def test_one_compilation_for_all_steps_of_a_run(tmp_path, short_range):
    dump = tmp_path / "dump"
    settings = [*_SETTINGS, f"model.short_range={short_range}", 'trainer.xla="on"']
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, str(tmp_path / "run"), *settings],
        capture_output=True,
        text=True,
        check=False,
        env={
            **os.environ,
            "XLA_FLAGS": f"--xla_dump_to={dump} --xla_dump_hlo_as_text",
            "TF_CPP_MIN_LOG_LEVEL": "3",
        },
    )
    assert done.returncode == 0, done.stderr[-1500:]
    # XLA writes a module for each compilation, named after the compiled function.
    modules = {p.name.split(".")[0] for p in dump.glob("*before_optimizations.txt")}
    steps = [p.name for p in dump.glob("*inside*before_optimizations.txt")]
    assert len(steps) == 1, sorted(steps)
    assert modules
