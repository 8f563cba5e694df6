"""A small trained model, and a server on it, for the commands that need one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.tfrz.serving.harness import free_port
from tfrz.cli.main import main

SMALL = ("--set", "data.options={rows: 3000}", "--set", "trainer.epochs=1", "--quiet")


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> Path:
    """The folder that `tfrz train` filled."""
    out = tmp_path_factory.mktemp("trained") / "run"
    assert main(["train", "dcn_v2", "--out", str(out), *SMALL]) == 0
    return out


@pytest.fixture(scope="session")
def server(trained):
    """REST and gRPC ports of a server on that model, called `dcn_v2`."""
    rest, grpc = free_port(), free_port()
    command = [sys.executable, "-m", "tfrz", "serve", str(trained / "model"), "--name", "dcn_v2"]
    command += ["--rest_api_port", str(rest), "--port", str(grpc)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith(b"serving dcn_v2 version 1")
        yield rest, grpc
        process.terminate()
        assert process.wait(30) == 0
