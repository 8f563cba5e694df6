"""`tfrz --version`, `tfrz doctor`, and the line of a command that lacks a library."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys

import keras
import pytest
import tensorflow as tf

import tfrz
from tfrz import extras
from tfrz.cli.main import main
from tfrz.keras_versions import lane


def _forget(monkeypatch, name: str) -> None:
    """Unloads a module until the test ends, in its package as well."""
    package, _, child = name.rpartition(".")
    if package in sys.modules:
        monkeypatch.delattr(sys.modules[package], child, raising=False)
    monkeypatch.delitem(sys.modules, name)


def _without(monkeypatch, *names: str) -> None:
    """Hides libraries, as if they were not installed."""
    for name in sorted(sys.modules, reverse=True):
        if name.partition(".")[0] in names:
            _forget(monkeypatch, name)
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, package=None: None if name.partition(".")[0] in names else find(name, package),
    )

    class Hidden:
        def find_spec(self, name, path=None, target=None):
            if name.partition(".")[0] in names:
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(sys, "meta_path", [Hidden(), *sys.meta_path])


def test_the_version_names_what_tfrz_stands_on(capsys):
    assert main(["--version"]) == 0
    line = capsys.readouterr().out
    assert line.count("\n") == 1
    assert line.startswith(f"tfrz {tfrz.__version__} (Python {sys.version.split()[0]}, ")
    assert f"tensorflow {tf.__version__}" in line
    assert f"keras {keras.__version__}" in line
    found = importlib.util.find_spec("tfx") is not None
    assert ("tfx not installed" in line) is not found


def test_the_doctor_tells_lane_devices_xla_and_libraries(capsys):
    assert main(["doctor"]) == 0
    shown = capsys.readouterr().out
    assert f"lane:    {lane()}" in shown
    assert "devices: CPU:0" in shown
    assert "XLA:     compiles on CPU" in shown
    for module, library in extras.LIBRARIES.items():
        row = next(line for line in shown.splitlines() if line.startswith(library.title + " "))
        if importlib.util.find_spec(module) is None:
            assert "not installed" in row
            assert row.endswith(library.install)
        else:
            assert importlib.metadata.version(library.package) in row
        assert library.use in row


def test_the_doctor_as_json(capsys, monkeypatch):
    monkeypatch.setattr(extras, "version_of", lambda package: None)
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {row["version"] for row in found["libraries"]} == {"not installed"}
    assert all(row["how to get it"] for row in found["libraries"])
    assert found["lane"] == lane()


@pytest.mark.parametrize(
    ("arguments", "hidden", "line"),
    [
        (["pipeline", "run", "dcn_v2", "--root", "{}"], ["tfx"], "tfrz pipeline needs TFX: docs"),
        (
            ["pipeline", "compile", "dcn_v2", "--out", "{}/x.json"],
            ["tfx", "apache_beam", "kfp"],
            "tfrz pipeline needs TFX: docs",
        ),
        (["tune", "dcn_v2", "--out", "{}"], ["keras_tuner"], "tfrz tune needs Keras Tuner: pip in"),
        (
            ["embeddings", "export", "{}", "--data", "simulated", "--store", "{}/s"],
            ["apache_beam"],
            "tfrz embeddings needs Apache Beam: docs",
        ),
        (
            ["serve", "{}", "--name", "m"],
            ["grpc"],
            "tfrz serve needs gRPC: pip install grpcio",
        ),
    ],
)
def test_a_command_says_what_it_needs(arguments, hidden, line, tmp_path, capsys, monkeypatch):
    # Modules that are loaded already do not import the library again.
    loaded = ("tfx_pipelines", "tfrz.zoo.tuning", "tfrz.serving", "tfrz.embeddings")
    for name in sorted((name for name in sys.modules if name.startswith(loaded)), reverse=True):
        _forget(monkeypatch, name)
    _without(monkeypatch, *hidden)
    assert main([argument.format(tmp_path) for argument in arguments]) == 2
    told = capsys.readouterr().err.splitlines()
    assert told[-1].startswith(line)
    assert not list(tmp_path.iterdir())


def test_a_library_that_is_broken_is_no_missing_one(monkeypatch):
    error = ModuleNotFoundError("No module named 'numpy.gone'", name="numpy.gone")
    assert extras.missing(error) is None
    installed = next(m for m in extras.LIBRARIES if importlib.util.find_spec(m) is not None)
    assert extras.missing(ModuleNotFoundError("x", name=f"{installed}.gone")) is None


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_another_backend_is_refused_in_one_line(backend):
    line = f"tfrz needs TensorFlow as the backend of Keras, not {backend}: unset KERAS_BACKEND, or "
    environment = {**os.environ, "KERAS_BACKEND": backend}
    for package in ("layers", "training"):
        done = subprocess.run(
            [sys.executable, "-c", f"import tfrz.{package}"],
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 1
        assert done.stderr.splitlines()[-1].startswith(f"tfrz.errors.BackendError: {line}")
    done = subprocess.run(
        [sys.executable, "-m", "tfrz", "train", "dcn_v2", "--out", "/nowhere/at/all"],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"tfrz: {line}")
    assert done.stderr.count("\n") == 1


_CHATTER = """
import sys
from tfrz.cli.main import main
sys.exit(main(["doctor"]))
"""


@pytest.mark.slow
def test_a_command_writes_nothing_that_nobody_asked_for():
    done = subprocess.run(
        [sys.executable, "-c", _CHATTER],
        env={k: v for k, v in os.environ.items() if k != "TF_CPP_MIN_LOG_LEVEL"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_what_an_import_wrote_is_shown_if_it_fails(capfd):
    from tfrz.cli.quiet import held_stderr

    with held_stderr():
        os.write(2, b"chatter\n")
    assert capfd.readouterr().err == ""
    with pytest.raises(ImportError):
        with held_stderr():
            os.write(2, b"the reason\n")
            raise ImportError
    assert capfd.readouterr().err == "the reason\n"
