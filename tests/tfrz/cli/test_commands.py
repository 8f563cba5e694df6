"""The commands as a user types them."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import tfrz
from tests.tfrz.data import small_sources as sources
from tfrz.cli.main import main
from tfrz.zoo import registry

ROW = dict.fromkeys(("user", "item", "genre", "hour", "country", "device"), "user_1")


def _tfrz(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "tfrz", *arguments], capture_output=True, text=True, check=False
    )


def test_help_names_every_command_and_each_explains_itself(capsys):
    assert main(["--help"]) == 0
    overview = capsys.readouterr().out
    commands = [
        "list",
        "describe",
        "train",
        "tune",
        "pipeline",
        "serve",
        "predict",
        "evaluate",
        "reproduce",
        "data",
    ]
    commands += ["serving-config", "bench"]
    for command in [*commands, "bench"]:
        assert f"\n  {command} " in overview
        with pytest.raises(SystemExit) as stop:
            main([command, "--help"])
        assert stop.value.code == 0
        assert f"tfrz {command}" in capsys.readouterr().out


def test_without_a_command_it_shows_the_help_and_fails():
    done = _tfrz()
    assert done.returncode == 2
    assert "commands:" in done.stdout


def test_version_list_and_describe(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith(f"tfrz {tfrz.__version__} (Python ")
    assert main(["list"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in registry.names())
    assert main(["describe", "dcn_v2", "--json"]) == 0
    described = json.loads(capsys.readouterr().out)
    assert described["paper"]["url"] == "https://arxiv.org/abs/2008.13535"
    assert described["configuration"]["model"]["rank"] == 8


def test_list_into_a_closed_pipe_is_no_error():
    done = subprocess.run(
        f"{sys.executable} -m tfrz list | true",
        shell=True,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""


def test_train_leaves_what_it_says(trained):
    result = json.loads((trained / "metrics.json").read_text())
    assert set(result["metrics"]) == {"validation", "test"}
    found = {p.name for p in trained.iterdir()}
    assert found >= {"config.yaml", "metrics.json", "curves.png", "card.md", "history.json"}
    assert (trained / "model" / "1" / "saved_model.pb").exists()
    assert (trained / "model" / "1" / "assets.extra" / "tf_serving_warmup_requests").exists()
    assert not [p for p in trained.rglob(".*") if ".tmp-" in p.name]


def test_training_again_into_a_finished_run_is_refused(trained, capsys):
    before = (trained / "metrics.json").read_bytes()
    assert main(["train", "dcn_v2", "--out", str(trained)]) == 2
    assert "holds a finished run" in capsys.readouterr().err
    assert (trained / "metrics.json").read_bytes() == before


def test_disk_rest_and_grpc_give_one_answer(trained, server, capsys):
    rest, grpc = server
    targets = (
        str(trained / "model"),
        str(trained / "model" / "1"),
        f"http://127.0.0.1:{rest}/v1/models/dcn_v2",
        f"http://127.0.0.1:{rest}/v1/models/dcn_v2/versions/1",
        f"grpc://127.0.0.1:{grpc}/dcn_v2",
        f"grpc://127.0.0.1:{grpc}/dcn_v2/versions/1",
    )
    answers = []
    for target in targets:
        assert main(["predict", target, json.dumps([ROW, ROW]), "--signature", "serving_raw"]) == 0
        answers.append(json.loads(capsys.readouterr().out)["predictions"])
    assert 0 < answers[0][0] < 1
    for answer in answers:
        assert answer == pytest.approx(answers[0], rel=1e-6)


def test_predict_reads_files_and_standard_input(trained, tmp_path, capsys, monkeypatch):
    columns = {"signature_name": "serving_raw", "inputs": {n: [v] for n, v in ROW.items()}}
    path = tmp_path / "request.json"
    path.write_text(json.dumps(columns))
    assert main(["predict", str(trained / "model"), f"@{path}"]) == 0
    first = json.loads(capsys.readouterr().out)["outputs"]
    with path.open() as file:
        monkeypatch.setattr(sys, "stdin", file)
        assert main(["predict", str(trained / "model"), "-"]) == 0
    assert json.loads(capsys.readouterr().out)["outputs"] == first


def test_data_describe(tmp_path, capsys):
    folder = sources.movielens_1m(tmp_path, sources.RATINGS_1M + "1::1\n")
    assert main(["data", "describe", f"movielens-1m:{folder}"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("movielens-1m: 3 impression records\n1 corrupt lines, the first: ")
    assert "Comedy (2), Romance (2), Crime (1)" in shown
    assert main(["data", "describe", "simulated", "--option", "rows=50", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == 50


def test_reproduce_runs_one_experiment_and_says_what_held(tmp_path, capsys):
    path = tmp_path / "result.json"
    assert main(["reproduce", "dcn_v2/polynomials", "--quick", "--json", str(path)]) == 0
    assert "held: " in capsys.readouterr().out
    (result,) = json.loads(path.read_text()).values()
    assert result["quick"]
    assert all(check["held"] for check in result["checks"])
