"""The wheel and the sdist: built, installed in a clean environment, and used outside the checkout."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tarfile
import time
import urllib.request
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LOCK = ROOT / "requirements-newest.lock"
ROW = {
    "user": "user_7",
    "item": "item_3",
    "genre": "genre_12",
    "hour": "hour_20",
    "country": "country_1",
    "device": "device_2",
}
_BUILD = "import sys; from setuptools import build_meta as b; b.{}(sys.argv[1])"

pytestmark = pytest.mark.slow


def _run(*command, cwd, **options):
    done = subprocess.run(
        [str(word) for word in command], cwd=cwd, capture_output=True, text=True, **options
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def _tracked() -> list[str]:
    listed = _run("git", "ls-files", "-co", "--exclude-standard", cwd=ROOT).splitlines()
    return [name for name in listed if (ROOT / name).is_file()]


def _built(source: Path, kind: str, into: Path) -> Path:
    """Builds what a build tool would, with the setuptools that are installed here."""
    into.mkdir(parents=True)
    _run(sys.executable, "-W", "ignore", "-c", _BUILD.format(kind), into, cwd=source)
    (built,) = (path for path in into.iterdir() if path.suffix in (".whl", ".gz"))
    return built


def _files(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        return sorted(archive.namelist())


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A copy of the checkout, for setuptools write into the folder that they build."""
    copy = tmp_path_factory.mktemp("source")
    for name in _tracked():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, copy / name)
    return copy


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory):
    return _built(source, "build_wheel", tmp_path_factory.mktemp("dist") / "wheel")


@pytest.fixture(scope="module")
def sdist(source, tmp_path_factory):
    return _built(source, "build_sdist", tmp_path_factory.mktemp("dist") / "sdist")


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory):
    """A new virtual environment with the wheel, and what pip installs for it."""
    if os.name == "nt":
        pytest.skip("the paths of an environment are those of Unix here")
    home = tmp_path_factory.mktemp("environment") / "venv"
    _run(sys.executable, "-m", "venv", home, cwd=home.parent)
    python = home / "bin" / "python"
    uv = shutil.which("uv", path=f"{Path(sys.executable).parent}:{ROOT / '.venv/bin'}")
    uv = uv or shutil.which("uv")
    if uv is not None:
        install = [uv, "pip", "install", "-q", "--python", str(python)]
    else:
        install = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    (tensorflow,) = (
        line for line in LOCK.read_text().splitlines() if line.startswith("tensorflow==")
    )
    probe = subprocess.run(
        [*install, "--dry-run", "--no-deps", tensorflow], capture_output=True, text=True
    )
    if probe.returncode != 0:
        pytest.skip(f"no {tensorflow} from the network or a cache: {probe.stderr.strip()[-200:]}")
    _run(*install, "-c", LOCK, wheel, cwd=home.parent)
    return home


@pytest.fixture(scope="module")
def tfrz(environment, tmp_path_factory):
    """Runs `tfrz` of the clean environment, in a folder that holds nothing of the checkout."""
    work = tmp_path_factory.mktemp("work")
    variables = {
        name: value
        for name, value in os.environ.items()
        if name not in ("PYTHONPATH", "VIRTUAL_ENV", "TFRZ_PLUGINS")
    }
    variables["TF_CPP_MIN_LOG_LEVEL"] = "3"

    def run(*arguments, program=environment / "bin" / "tfrz"):
        return _run(program, *arguments, cwd=work, env=variables)

    run.folder, run.variables, run.program = work, variables, environment / "bin" / "tfrz"
    run.python = environment / "bin" / "python"
    return run


def test_the_wheel_has_every_file_of_its_packages(wheel):
    inside = set(_files(wheel))
    packages = ("tfrz/", "tfx_pipelines/", "benchmarks/")
    needless = ("BUILD", ".proto", ".md")
    wanted = {
        name for name in _tracked() if name.startswith(packages) and not name.endswith(needless)
    }
    assert wanted - inside == set()
    others = {name for name in inside if not name.startswith(packages)}
    assert all(".dist-info/" in name for name in others), sorted(others)


def test_a_wheel_built_from_the_sdist_has_the_same_files(wheel, sdist, tmp_path):
    with tarfile.open(sdist) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
        archive.extractall(tmp_path, filter="data")
    for name in ("README.md", "LICENSE", "CHANGELOG.md", "requirements.lock", "docs/install.md"):
        assert name in inside
    assert {name for name in _tracked() if name.endswith(".proto")} <= inside
    (unpacked,) = tmp_path.iterdir()
    again = _built(unpacked, "build_wheel", tmp_path / "dist")
    assert _files(again) == _files(wheel)


def test_the_package_is_the_wheels(tfrz, environment):
    where = tfrz(
        "-c", "import tfrz, sys; print(tfrz.__file__, sys.version_info[:2])", program=tfrz.python
    )
    place, _, version = where.strip().partition(" ")
    assert Path(place).is_relative_to(environment)
    assert version == str(sys.version_info[:2])


def test_the_installed_requirements_agree_with_each_other(tfrz):
    tfrz("-m", "pip", "check", program=tfrz.python)


def test_lists_come_from_the_installed_files(tfrz):
    assert "dcn_v2" in tfrz("list")
    assert "cross" in tfrz("describe", "dcn_v2")
    assert "dcn_v2/polynomials" in tfrz("reproduce")
    assert "serving" in tfrz("bench")
    tfrz("data", "describe", "simulated", "--option", "rows=50")
    assert "--target" in tfrz("-m", "benchmarks.load_test", "--help", program=tfrz.python)


def test_a_pipeline_without_tfx_ends_in_one_line(tfrz):
    done = subprocess.run(
        [tfrz.program, "pipeline", "run", "dcn_v2", "--root", "runs/pipeline"],
        cwd=tfrz.folder,
        env=tfrz.variables,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "tfrz pipeline needs TFX: docs/install.md says how it is installed"
    ]


def test_a_model_is_trained_served_and_asked(tfrz):
    settings = ("--set", "trainer.epochs=1", "--set", "data.options.rows=2000")
    tfrz("train", "dcn_v2", "--out", "runs/dcn", *settings)
    request = json.dumps([ROW])
    offline = tfrz("predict", "runs/dcn/model", "--signature", "serving_raw", request)
    with socket.socket() as taken, socket.socket() as taken_too:
        taken.bind(("127.0.0.1", 0))
        taken_too.bind(("127.0.0.1", 0))
        grpc, rest = taken.getsockname()[1], taken_too.getsockname()[1]
    log = (tfrz.folder / "server.log").open("w")
    server = subprocess.Popen(
        [tfrz.program, "serve", "runs/dcn/model", "--name", "dcn_v2"]
        + ["--port", str(grpc), "--rest_api_port", str(rest)],
        cwd=tfrz.folder,
        env=tfrz.variables,
        stdout=log,
        stderr=log,
    )
    try:
        model = f"http://127.0.0.1:{rest}/v1/models/dcn_v2"
        _wait_for(model, server)
        answers = [
            tfrz("predict", address, "--signature", "serving_raw", request)
            for address in (model, f"grpc://127.0.0.1:{grpc}/dcn_v2")
        ]
    finally:
        server.terminate()
        server.wait(30)
        log.close()
    (value,) = _numbers(json.loads(offline))
    assert 0 < value < 1
    for answer in answers:
        assert _numbers(json.loads(answer)) == pytest.approx([value], rel=1e-5)


def _numbers(value) -> list[float]:
    """All numbers within a JSON value."""
    if isinstance(value, dict):
        value = list(value.values())
    return [n for part in value for n in _numbers(part)] if isinstance(value, list) else [value]


def _wait_for(model: str, server: subprocess.Popen) -> None:
    until = time.monotonic() + 180
    while time.monotonic() < until and server.poll() is None:
        try:
            with urllib.request.urlopen(model, timeout=5) as answer:
                if b"AVAILABLE" in answer.read():
                    return
        except OSError:
            time.sleep(0.5)
    raise AssertionError(f"the server was not ready; exit status {server.poll()}")
