"""Bad input: one clear line, exit status 2, nothing half-written."""

from __future__ import annotations

import json
import os
import resource
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tfrz.cli.cases import cases
from tests.tfrz.cli.conftest import SMALL, free_port
from tests.tfrz.data import small_sources as sources
from tfrz.cli.main import main

TRAIN = ["train", "dcn_v2", "--out", "{tmp}/out"]
PIPELINE = ["pipeline", "run", "dcn_v2", "--root", "{tmp}/out"]

CASES = {
    "unknown command": (["trane"], "unknown command 'trane'; did you mean 'train'"),
    "unknown model": (["train", "dcn_v3", "--out", "{tmp}/out"], "did you mean 'dcn_v2'"),
    "unknown model, pipeline": (["pipeline", "run", "dcn", "--root", "{tmp}/out"], "unknown model"),
    "unknown model, described": (["describe", "dcnv2"], "unknown model 'dcnv2'"),
    "missing argument": (["train", "dcn_v2"], "the following arguments are required: --out"),
    "unknown key": ([*TRAIN, "--set", "trainer.epoch=3"], "did you mean 'epochs'"),
    "unknown section": ([*TRAIN, "--set", "trainr.epochs=3"], "did you mean 'trainer'"),
    "wrong type": ([*TRAIN, "--set", "trainer.epochs=many"], "trainer.epochs"),
    "out of range": ([*TRAIN, "--set", "model.rank=0"], "model.rank"),
    "no value": ([*TRAIN, "--set", "model.rank"], "write it as section.key=value"),
    "unknown option of a reader": (
        [*TRAIN, "--set", "data.options={row: 3}"],
        "simulated has no option 'row'",
    ),
    "impressions for a model of histories": (
        ["train", "m3", "--data", "criteo:x", "--out", "{tmp}/out"],
        "criteo:x has impression records, not history records",
    ),
    "a split by time without its times": (
        ["train", "m3", "--out", "{tmp}/out", "--set", "data.history.split=time"],
        "a split by time needs both",
    ),
    "a range that is none": (
        ["train", "m3", "--out", "{tmp}/out", "--set", "model.ranges=[middle]"],
        "model.ranges[0]: 'middle' is none of tiny, short, long",
    ),
    "jobs": (["reproduce", "m3/context_switch", "--jobs", "0"], "--jobs: must be at least 1"),
    "missing file": ([*TRAIN, "--data", "movielens-1m:{tmp}/none.zip"], "none.zip does not exist"),
    "missing file, pipeline": ([*PIPELINE, "--data", "criteo:{tmp}/none.txt"], "does not exist"),
    "missing file, described": (["data", "describe", "avazu:{tmp}/none.gz"], "does not exist"),
    "empty file": ([*TRAIN, "--data", "criteo:{tmp}/empty.txt"], "is empty: nothing to read"),
    "wrong delimiter": (
        [*TRAIN, "--data", "movielens-1m:{tmp}/commas"],
        "ratings.dat:1: expected user::movie::rating::timestamp",
    ),
    "wrong delimiter, pipeline": (
        [*PIPELINE, "--data", "movielens-1m:{tmp}/commas"],
        "ratings.dat:1: expected user::movie::rating::timestamp",
    ),
    "corrupt lines": (
        [*TRAIN, "--data", "movielens-1m:{tmp}/corrupt"],
        "ratings.dat:5: 3 fields instead of 4",
    ),
    "missing column": (
        [*TRAIN, "--data", "{tmp}/rows.csv", "--features", "{tmp}/spec.yaml"],
        "has no column 'user'",
    ),
    "missing spec": (
        [*TRAIN, "--data", "{tmp}/rows.csv", "--features", "{tmp}/none.yaml"],
        "none.yaml",
    ),
    "output is a file": (["train", "dcn_v2", "--out", "{tmp}/rows.csv"], "is a file"),
    "output below a file": (["train", "dcn_v2", "--out", "{tmp}/rows.csv/x"], "cannot write"),
    "output below a file, pipeline": (
        ["pipeline", "run", "dcn_v2", "--root", "{tmp}/rows.csv/x"],
        "cannot write",
    ),
    "no SavedModel": (["serve", "{tmp}/commas"], "holds no SavedModel"),
    "no SavedModel, asked": (["predict", "{tmp}/commas", "[1]"], "holds no SavedModel"),
    "no folder": (["serve", "{tmp}/none"], "is not a folder"),
    "nothing to serve": (["serve"], "pass MODEL_DIR or --model_base_path"),
    "no server": (
        ["predict", "http://127.0.0.1:{port}/v1/models/m", "[1]"],
        "no response from http://127.0.0.1",
    ),
    "no gRPC server": (["predict", "grpc://127.0.0.1:{port}/m", "[1]"], "no response from grpc"),
    "wrong address": (["predict", "http://127.0.0.1:{port}/m", "[1]"], "write http://HOST"),
    "predict what": (["predict", "{tmp}"], "needs a REQUEST"),
    "out without data": (["predict", "{tmp}", "[1]", "--out", "o.parquet"], "--out needs --data"),
    "data through a server": (
        ["predict", "http://127.0.0.1:{port}/v1/models/m", "--data", "d", "--out", "o.parquet"],
        "not a server",
    ),
    "evaluate no run": (["evaluate", "{tmp}/commas", "--data", "simulated"], "no SavedModel"),
    "evaluate a server": (["evaluate", "grpc://x/m", "--data", "simulated"], "--run: name a run"),
    "evaluate a folder by another": (
        ["evaluate", "{tmp}/commas", "--data", "simulated", "--run", "{tmp}"],
        "--run: is for a server's address",
    ),
    "request is no JSON": (["predict", "{tmp}", "[1"], "REQUEST is not JSON"),
    "request is a number": (["predict", "{tmp}", "1"], "an object or a list"),
    "request file missing": (["predict", "{tmp}", "@{tmp}/none.json"], "cannot read"),
    "unknown suite": (["bench", "crss"], "unknown suite 'crss'; did you mean 'cross'"),
    "unknown experiment": (["reproduce", "dcn_v2/polynomial"], "polynomials"),
    "no latest blessed": ([*TRAIN, "--set", "trainer.warm_start=latest_blessed"], "the pipeline"),
    "warm start from nothing": ([*TRAIN, "--set", "trainer.warm_start={tmp}/none"], "none"),
}


@pytest.fixture
def place(tmp_path):
    """Files that are wrong in one way each."""
    (tmp_path / "empty.txt").touch()
    (tmp_path / "rows.csv").write_text("a,label\n1,0\n")
    (tmp_path / "spec.yaml").write_text("label: label\nfeatures: [{name: user}]\n")
    sources.movielens_1m(tmp_path / "commas", sources.RATINGS_1M.replace("::", ","))
    sources.movielens_1m(tmp_path / "corrupt", sources.RATINGS_1M + "1::1::5\n")
    return tmp_path


@pytest.mark.parametrize("case", cases(CASES))
def test_one_line_and_status_2(case, place, capsys):
    arguments, message = CASES[case]
    port = free_port()
    before = {p: p.read_bytes() for p in place.rglob("*") if p.is_file()}
    try:
        status = main(
            [a.replace("{tmp}", str(place)).replace("{port}", str(port)) for a in arguments]
        )
    except SystemExit as stop:
        status = stop.code
    captured = capsys.readouterr()
    assert status == 2, captured
    assert message in captured.err
    assert captured.err.startswith("tfrz"), captured.err
    assert captured.err.count("\n") == 1, captured.err
    after = {p: p.read_bytes() for p in place.rglob("*") if p.is_file()}
    new = {p.relative_to(place / "out").as_posix() for p in after if p not in before}
    assert {p: after.get(p) for p in before} == before
    # At most what the run is, from which it can be repeated, and encoded examples, which the next
    # run reads.
    kept = {name for name in new if not name.startswith("cache/")}
    assert kept <= {"config.yaml", "features.yaml", "data_fingerprint"}, new


@pytest.mark.slow
def test_a_process_says_the_same_without_a_traceback(place):
    done = subprocess.run(
        [sys.executable, "-m", "tfrz", "train", "dcn_v2", "--out", str(place / "out")]
        + ["--data", f"movielens-1m:{place / 'commas'}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1, done.stderr
    assert not (place / "out" / "model").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_unwritable_folder(tmp_path, capsys):
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    assert main(["train", "dcn_v2", "--out", str(locked / "run")]) == 2
    assert "cannot write" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("limit", [500, 20_000, 200_000])
def test_a_full_disk(tmp_path, limit):
    """The operating system refuses to let any file grow beyond the limit."""

    def small_files():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    out = tmp_path / "out"
    command = [sys.executable, "-B", "-m", "tfrz", "train", "dcn_v2", "--out", str(out), *SMALL]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, preexec_fn=small_files
    )
    assert done.returncode == 2, done.stderr[-1500:]
    assert done.stderr.splitlines()[-1].startswith("tfrz: ")
    assert "space" in done.stderr or "File too large" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (out / "metrics.json").exists()
    assert not (out / "model" / "1").exists()
    assert not [p for p in out.rglob("*") if ".tmp-" in p.name]
    # With room again, the same command finishes the run.
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr[-1500:]
    assert (out / "model" / "1" / "saved_model.pb").exists()


@pytest.mark.parametrize("option", ["--rest_api_port", "--port"])
def test_a_port_in_use(trained, option):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        other = "--port" if option == "--rest_api_port" else "--rest_api_port"
        done = subprocess.run(
            [sys.executable, "-m", "tfrz", "serve", str(trained / "model")]
            + [option, port, other, "0"],
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
    assert done.returncode == 2, done.stderr[-1500:]
    last = done.stderr.splitlines()[-1]
    assert last.startswith("tfrz: ")
    assert port in last
    assert "Traceback" not in done.stderr


def test_what_a_model_refuses_is_told_in_one_line(trained, server, capsys):
    rest, grpc = server
    requests = {
        "no such signature": ({"signature_name": "none", "instances": [1]}, "signature"),
        "a missing input": (
            {"signature_name": "serving_raw", "instances": [{"user": "u"}]},
            "user",
        ),
        "neither form": ({"signature_name": "serving_raw"}, "'inputs' or 'instances'"),
    }
    targets = (
        str(trained / "model"),
        f"http://127.0.0.1:{rest}/v1/models/dcn_v2",
        f"grpc://127.0.0.1:{grpc}/dcn_v2",
    )
    for target in targets:
        for request, word in requests.values():
            assert main(["predict", target, json.dumps(request)]) == 2
            error = capsys.readouterr().err
            assert error.count("\n") == 1, error
            assert word in error
    assert main(["predict", f"http://127.0.0.1:{rest}/v1/models/other", "[1]"]) == 2
    assert "refused" in capsys.readouterr().err
    assert main(["predict", f"grpc://127.0.0.1:{grpc}/other", "[1]"]) == 2
    assert "refused" in capsys.readouterr().err


@pytest.mark.slow
def test_an_interrupted_training_resumes(tmp_path):
    import signal
    import time

    out, log = tmp_path / "out", tmp_path / "log"
    command = [sys.executable, "-m", "tfrz", "train", "dcn_v2", "--out", str(out)]
    # So long that it cannot end by itself before the signal comes.
    command += ["--set", "data.options={rows: 20000}", "--set", "trainer.epochs=10000"]
    command += ["--set", "trainer.early_stopping_patience=null"]
    command += ["--set", "trainer.checkpoint_every_steps=50"]
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command,
            stderr=stream,
            stdout=subprocess.DEVNULL,
            # Started in the background, the tests themselves may have been told to ignore it.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
    try:
        deadline = time.monotonic() + 120
        while not list(Path(out).glob("checkpoints/*.index")) and time.monotonic() < deadline:
            time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        status = process.wait(60)
    finally:
        process.kill()
    error = log.read_text(errors="replace")
    assert status == 130, error[-1500:]
    assert error.splitlines()[-1] == "tfrz: interrupted"
    assert list(out.glob("checkpoints/*.index"))
    assert not (out / "metrics.json").exists()
