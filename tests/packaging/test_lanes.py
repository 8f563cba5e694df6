"""The files that set up the lanes agree: locks, Makefile, metadata, images, workflow and docs."""

from __future__ import annotations

import configparser
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tfrz.extras import LIBRARIES

ROOT = Path(__file__).resolve().parents[2]
LANES = {"reference": "requirements.lock", "newest": "requirements-newest.lock"}


def _read(name: str) -> str:
    return (ROOT / name).read_text()


def _metadata() -> configparser.RawConfigParser:
    parsed = configparser.RawConfigParser()
    parsed.read(ROOT / "setup.cfg")
    return parsed


def _lines(value: str) -> list[str]:
    return [line for line in value.splitlines() if line]


def _pinned(lock: str, package: str) -> str:
    return re.search(rf"^{package}==(\S+)", _read(lock), re.MULTILINE).group(1)


def _pythons(lock: str) -> list[str]:
    """The versions that the Makefile hands to tools/setup.sh with this lock, the first wanted first."""
    (words,) = re.findall(rf"tools/setup\.sh \S+ {re.escape(lock)} ([\d. ]+)", _read("Makefile"))
    return words.split()


def _supported() -> list[str]:
    return re.findall(r"Python :: (3\.\d+)", _metadata()["metadata"]["classifiers"])


def test_the_metadata_and_the_makefile_name_the_same_pythons():
    options = _metadata()["options"]
    assert options["python_requires"] == f">={_supported()[0]}"
    assert _pythons(LANES["reference"]) == [_supported()[0]]
    assert sorted(_pythons(LANES["newest"])) == _supported()


def test_the_installation_page_names_the_pythons_and_versions_of_the_locks():
    table = {}
    for line in _read("docs/install.md").split("## Systems")[0].splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 3:
            table[cells[0]] = cells[1:]
    for column, lock in enumerate(LANES.values()):
        assert table["TensorFlow"][column] == _pinned(lock, "tensorflow")
        assert table["Keras"][column] == _pinned(lock, "keras")
        assert table["Python"][column] == ", ".join(sorted(_pythons(lock)))
        assert table["lock"][column] == f"`{lock}`"
    for package in ("tfx", "tf-agents", "scann"):
        assert _pinned(LANES["reference"], package) in " ".join(table)
    assert "docs/install.md" in _read("README.md")


def test_the_requirements_are_met_by_both_locks():
    """Each lower bound is below what the locks hold, for a lane is installed without a resolver."""
    for requirement in _lines(_metadata()["options"]["install_requires"]):
        name, _, bound = requirement.partition(">=")
        for lock in LANES.values():
            held = _pinned(lock, name.replace("_", "-"))
            assert [int(n) for n in held.split(".")] >= [int(n) for n in bound.split(".")], name


def test_no_extra_but_those_of_tensorflow_2_15_holds_tensorflow():
    extras = dict(_metadata()["options.extras_require"])
    held = {name for name, value in extras.items() if re.search(r"^tensorflow\W", value, re.M)}
    assert held == {"agents", "ranking", "scann"}
    for name in held:
        assert all('python_version < "3.12"' in line for line in _lines(extras[name]))
    parts = ("beam", "lambdamart", "serving", "dev")
    together = {line for name in parts for line in _lines(extras[name])}
    assert set(_lines(extras["all"])) == together
    described = set(re.findall(r"^\| `(\w+)` \|", _read("docs/install.md"), re.MULTILINE))
    assert described == set(extras)


@pytest.mark.parametrize("lane", LANES)
def test_an_image_installs_its_lock_on_its_python_and_runs_as_no_root(lane):
    lines = _read(f"docker/{lane}.Dockerfile").splitlines()
    pythons = {m.group(1) for line in lines if (m := re.match(r"FROM python:(\d\.\d+)-", line))}
    assert pythons == {_pythons(LANES[lane])[0]}
    text = "\n".join(lines)
    assert f"COPY {LANES[lane]} /src/" in text
    assert f"-r /src/{LANES[lane]}" in text
    assert text.count("pip install") == text.count("pip install --no-cache-dir")
    assert text.index("USER 1000") < text.index('ENTRYPOINT ["tfrz"]')
    assert f"docker/{lane}.Dockerfile" in _read("docs/install.md")


def test_the_images_get_what_the_package_is_built_from():
    kept = [line[1:] for line in _read(".dockerignore").splitlines() if line.startswith("!")]
    for name in kept:
        assert (ROOT / name).exists(), name
    packages = {"tfrz/", "tfx_pipelines/", "benchmarks/"}
    assert packages | {"setup.cfg", "pyproject.toml", "README.md", *LANES.values()} <= set(kept)


def test_the_workflow_runs_targets_that_exist_on_the_pythons_of_the_lanes():
    jobs = yaml.safe_load(_read(".github/workflows/ci.yml"))["jobs"]
    targets = set(re.findall(r"^([a-z-]+):", _read("Makefile"), re.MULTILINE))
    pythons, made = {}, {}
    for name, job in jobs.items():
        for step in job["steps"]:
            pythons.setdefault(name, step.get("with", {}).get("python-version"))
            pythons[name] = pythons[name] or step.get("with", {}).get("python-version")
            made.setdefault(name, []).extend(re.findall(r"make ([\w-]+)", step.get("run", "")))
            for path in re.findall(r"tests/\S+\.py|requirements\S*\.lock", str(step)):
                assert (ROOT / path).exists(), path
    assert {target for run in made.values() for target in run} <= targets
    assert made["lint"] == ["lint"]
    assert made["reference-lane"] == ["test"]
    assert made["newest-lane"] == ["test-newest"]
    assert pythons["lint"] == pythons["reference-lane"] == _pythons(LANES["reference"])[0]
    assert pythons["newest-lane"] == _pythons(LANES["newest"])[0]
    assert jobs["wheel"]["strategy"]["matrix"]["python"] == _supported()
    assert "test_wheel.py" in jobs["wheel"]["steps"][-1]["run"]


TOOLS = ("bash", "date", "dirname", "env", "grep", "mktemp", "rm", "sed")


@pytest.fixture
def machine(tmp_path):
    """Runs tools/setup.sh where the PATH has a shell's tools, and no Python, uv or pip."""
    folder, scratch = tmp_path / "bin", tmp_path / "scratch"
    folder.mkdir()
    scratch.mkdir()
    for tool in TOOLS:
        (folder / tool).symlink_to(shutil.which(tool))
    venv = tmp_path / "venv"
    venv.mkdir()
    (venv / "kept").write_text("made before")

    def run():
        done = subprocess.run(
            [
                folder / "bash",
                ROOT / "tools" / "setup.sh",
                venv,
                ROOT / "requirements.lock",
                "3.11",
            ],
            cwd=tmp_path,
            env={
                "PATH": str(folder),
                "HOME": str(tmp_path),
                "PYENV_ROOT": str(tmp_path / "pyenv"),
                "TMPDIR": str(scratch),
            },
            capture_output=True,
            text=True,
        )
        assert list(scratch.iterdir()) == []
        assert (venv / "kept").read_text() == "made before"
        assert done.stdout == ""
        return done.returncode, done.stderr.splitlines()

    run.folder = folder
    return run


def _script(path: Path, text: str) -> None:
    path.write_text(f"#!{shutil.which('bash')}\n{text}\n")
    os.chmod(path, 0o755)


def test_set_up_without_uv_and_pip_says_what_to_install(machine):
    status, lines = machine()
    assert status == 2
    assert lines == [
        "set-up: no uv on the PATH, and pip could not bring it: install uv or pip, then run this again"
    ]


def test_set_up_without_a_python_that_uv_can_get_says_what_to_install(machine):
    _script(machine.folder / "uv", '[ "$1" = --version ]')
    _script(machine.folder / "python3", "exit 1")
    status, lines = machine()
    assert status == 2
    (line,) = lines
    assert line.startswith("set-up: no Python 3.11 on the PATH, in pyenv or in uv")
    assert "uv python install 3.11" in line


def test_a_python_of_another_version_is_not_taken(machine):
    _script(machine.folder / "uv", '[ "$1" = --version ]')
    _script(machine.folder / "python3.11", "echo 3.10")
    assert machine()[0] == 2


@pytest.mark.slow
def test_every_installed_library_imports_with_what_it_brings():
    """A lock can hold libraries that do not load beside each other."""
    modules = {name for name in LIBRARIES if importlib.util.find_spec(name) is not None}
    if "grpc_health" in modules:
        modules.add("grpc_health.v1.health_pb2_grpc")
    if "tensorflow_serving" in modules:
        modules.add("tensorflow_serving.apis.prediction_service_pb2_grpc")
    assert {"grpc", "pyarrow", "aiohttp", "scipy"} <= modules
    done = subprocess.run(
        [sys.executable, "-c", "".join(f"import {name}\n" for name in sorted(modules))],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
