"""`tfrz tune` as a user types it: the table, the best configuration, resuming, refusals."""

from __future__ import annotations

import json
import shutil

import pytest

from tests.tfrz.cli.cases import cases
from tfrz.cli.main import main
from tfrz.config import read_yaml
from tfrz.training import fit as loop
from tfrz.zoo.run import Run
from tfrz.zoo.run_config import load_run_config, run_config_from_mapping, run_config_to_mapping

SMALL = ("--set", "data.options={rows: 2000}", "--set", "trainer.epochs=2")
SMALL += ("--set", "trainer.batch_size=256", "--quiet")
SPACE = (
    "tuner.search_space={trainer.learning_rate: [0.003, 0.03], model.hidden_units: [[8], [8, 4]]}"
)
TUNE = ("tune", "dcn_v2", *SMALL, "--trials", "3", "--set", SPACE)


def _settled(result: dict) -> list[dict]:
    """The trials without what differs from run to run."""
    return [{k: v for k, v in trial.items() if k != "seconds"} for trial in result["trials"]]


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """The folder of a finished search."""
    out = tmp_path_factory.mktemp("tune") / "out"
    assert main([*TUNE, "--out", str(out)]) == 0
    return out


def _result(out) -> dict:
    return json.loads((out / "trials.json").read_text())


def test_trials_are_different_values_of_the_space_and_the_best_is_first(searched):
    result = _result(searched)
    assert (result["objective"], result["direction"]) == ("log_loss", "min")
    assert result["combinations"] == 4
    trials = result["trials"]
    assert sorted(trial["trial"] for trial in trials) == [1, 2, 3]
    tried = {json.dumps(trial["values"]) for trial in trials}
    assert len(tried) == 3
    for trial in trials:
        assert trial["values"]["trainer.learning_rate"] in (0.003, 0.03)
        assert trial["values"]["model.hidden_units"] in ([8], [8, 4])
        assert set(trial["metrics"]) == {"auc", "calibration"}
        assert trial["steps"] == 2 * (1600 // 256)
        assert trial["seconds"] > 0
    objectives = [trial["objective"] for trial in trials]
    assert objectives == sorted(objectives)
    assert len(set(objectives)) == 3


def test_the_best_configuration_is_whole_and_differs_by_its_values_alone(searched):
    best = _result(searched)["trials"][0]["values"]
    found = read_yaml(searched / "best.yaml")
    assert run_config_to_mapping(run_config_from_mapping(found)) == found
    assert found["trainer"]["learning_rate"] == best["trainer.learning_rate"]
    assert found["model"]["hidden_units"] == best["model.hidden_units"]
    stored = read_yaml(searched / "config.yaml")
    assert stored.pop("command") == "tune"
    assert stored.pop("data_source") == "simulated"
    for mapping in (stored, found):
        del mapping["trainer"]["learning_rate"], mapping["model"]["hidden_units"]
    assert found == stored


@pytest.mark.slow
def test_training_with_the_best_configuration_gives_the_objective_of_its_trial(
    searched, tmp_path, capsys
):
    arguments = ["train", "dcn_v2", "--config", str(searched / "best.yaml"), "--quiet", "--json"]
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 0
    best = _result(searched)["trials"][0]
    reached = json.loads(capsys.readouterr().out)["metrics"]["validation"]
    assert reached == {"log_loss": best["objective"], **best["metrics"]}


@pytest.mark.slow
def test_json_prints_what_the_file_holds_and_a_seed_decides_everything(searched, tmp_path, capsys):
    out = tmp_path / "out"
    assert main([*TUNE, "--json", "--out", str(out)]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == _result(out)
    assert _settled(printed) == _settled(_result(searched))
    other = ["--json", "--seed", "3", "--trials", "1", "--out", str(tmp_path / "other")]
    assert main([*TUNE, *other]) == 0
    (trial,) = _settled(json.loads(capsys.readouterr().out))
    assert trial not in _settled(printed)
    config = read_yaml(tmp_path / "other" / "config.yaml")
    assert (config["data"]["seed"], config["trainer"]["seed"]) == (3, 3)


@pytest.mark.slow
def test_an_interrupted_search_is_resumed_to_the_same_table(
    searched, tmp_path, capsys, monkeypatch
):
    out, whole, trained = tmp_path / "out", loop.fit, []

    def interrupted(*arguments):
        if trained:
            raise KeyboardInterrupt
        trained.append(1)
        return whole(*arguments)

    monkeypatch.setattr(loop, "fit", interrupted)
    assert main([*TUNE, "--out", str(out)]) == 130
    assert capsys.readouterr().err == "tfrz: interrupted\n"
    left = {path.relative_to(out).as_posix() for path in out.rglob("*")}
    assert left == {"config.yaml", "trials", "trials/1.json"}
    first = (out / "trials" / "1.json").read_bytes()

    monkeypatch.setattr(loop, "fit", lambda *arguments: trained.append(1) or whole(*arguments))
    assert main([*TUNE, "--out", str(out)]) == 0
    assert len(trained) == 3
    assert (out / "trials" / "1.json").read_bytes() == first
    assert _settled(_result(out)) == _settled(_result(searched))
    assert (out / "best.yaml").read_bytes() == (searched / "best.yaml").read_bytes()


def test_another_search_is_not_mixed_in_and_a_finished_one_is_kept(searched, tmp_path, capsys):
    before = {path: path.read_bytes() for path in searched.rglob("*") if path.is_file()}
    assert main([*TUNE, "--out", str(searched)]) == 2
    assert "holds a finished run" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in before} == before
    out = tmp_path / "out"
    out.mkdir()
    shutil.copy(searched / "config.yaml", out)
    assert main([*TUNE, "--set", "model.rank=3", "--out", str(out)]) == 2
    assert "holds a run with another model.rank" in capsys.readouterr().err
    assert main(["train", "dcn_v2", "--out", str(out), *SMALL]) == 2
    assert "holds a run with another command" in capsys.readouterr().err


@pytest.mark.slow
def test_data_are_prepared_once_unless_a_value_changes_them(tmp_path, capsys, monkeypatch):
    prepare, prepared = Run.prepare, []
    monkeypatch.setattr(
        Run, "prepare", lambda *arguments: prepared.append(1) or prepare(*arguments)
    )
    tune = ["tune", "dcn_v2", *SMALL, "--json"]
    space = "tuner.search_space={trainer.batch_size: [128, 256]}"
    assert main([*tune, "--set", space, "--out", str(tmp_path / "a")]) == 0
    assert len(prepared) == 1
    for trial in json.loads(capsys.readouterr().out)["trials"]:
        assert trial["steps"] == 2 * (1600 // trial["values"]["trainer.batch_size"])
    prepared.clear()
    space = "tuner.search_space={data.options: [{rows: 1000}, {rows: 2000}]}"
    assert main([*tune, "--set", space, "--out", str(tmp_path / "b")]) == 0
    assert len(prepared) == 2
    for trial in json.loads(capsys.readouterr().out)["trials"]:
        assert trial["steps"] == 2 * (trial["values"]["data.options"]["rows"] * 8 // 10 // 256)


@pytest.mark.slow
def test_a_trial_that_cannot_be_trained_is_last_and_all_combinations_are_tried(tmp_path, capsys):
    space = "tuner.search_space={trainer.learning_rate: [1.0e+30, 0.003]}"
    arguments = ["tune", "dcn_v2", *SMALL, "--set", space]
    assert main([*arguments, "--trials", "9", "--out", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    assert "all 2 combinations were tried" in shown
    good, bad = _result(tmp_path / "out")["trials"]
    assert (good["error"], good["values"]) == (None, {"trainer.learning_rate": 0.003})
    assert bad["objective"] is None
    assert f"trial {bad['trial']} failed: {bad['error']}" in shown
    assert read_yaml(tmp_path / "out" / "best.yaml")["trainer"]["learning_rate"] == 0.003
    arguments[-1] = "tuner.search_space={trainer.learning_rate: [1.0e+30]}"
    assert main([*arguments, "--out", str(tmp_path / "bad")]) == 2
    assert "every trial failed, the first because the loss is" in capsys.readouterr().err
    assert not (tmp_path / "bad" / "best.yaml").exists()


def test_an_error_of_the_program_is_no_failed_trial(tmp_path, monkeypatch):
    class BrokenError(Exception):
        pass

    def broken(*_):
        raise BrokenError

    monkeypatch.setattr(loop, "fit", broken)
    with pytest.raises(BrokenError):
        main([*TUNE, "--out", str(tmp_path / "out")])
    assert not list((tmp_path / "out").glob("trials/*"))


def test_it_is_no_worker_of_another_search(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("KERASTUNER_ORACLE_IP", "127.0.0.1")
    assert main([*TUNE, "--out", str(tmp_path / "out")]) == 2
    assert "KERASTUNER_ORACLE_IP is set" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


OUT = ("--out", "{tmp}/out", "--quiet")
CASES = {
    "unknown model": (["tune", "dcn", *OUT], "unknown model 'dcn'"),
    "no trials": (["tune", "dcn_v2", *OUT, "--trials", "0"], "--trials: must be at least 1"),
    "empty space": (
        ["tune", "dcn_v2", *OUT, "--set", "tuner.search_space={}"],
        "tuner.search_space: is empty",
    ),
    "unknown name": (
        ["tune", "dcn_v2", *OUT, "--set", "tuner.search_space={model.rnk: [1]}"],
        "tuner.search_space: unknown key model.rnk; did you mean 'rank'?",
    ),
    "a wrong value that is not the first": (
        ["tune", "dcn_v2", *OUT, "--set", "tuner.search_space={model.rank: [8, many]}"],
        "tuner.search_space: model.rank",
    ),
    "a name that trains nothing": (
        ["tune", "dcn_v2", *OUT, "--set", "tuner.search_space={evaluator.min_auc: [0.5]}"],
        "does not change how a model is trained",
    ),
    "values that do not go together": (
        [
            *("tune", "dcn_v2", *OUT, "--set"),
            "tuner.search_space={data.test_fraction: [0.6], data.validation_fraction: [0.6]}",
        ],
        "the values of trial 1 do not go together",
    ),
    "a warm start": (
        ["tune", "dcn_v2", *OUT, "--set", "trainer.warm_start=model"],
        "trials start from nothing",
    ),
    "missing data": (["tune", "dcn_v2", *OUT, "--data", "criteo:{tmp}/none"], "does not exist"),
    "a batch larger than the data": (
        ["tune", "dcn_v2", *OUT, "--set", "data.options={rows: 200}"],
        "fewer than one batch",
    ),
    "missing configuration": (
        ["train", "dcn_v2", *OUT, "--config", "{tmp}/none.yaml"],
        "none.yaml: No such file",
    ),
    "configuration of another model": (
        ["train", "m3", *OUT, "--config", "{tmp}/rank.yaml"],
        "rank.yaml: is of the model 'dcn_v2', not of 'm3'",
    ),
    "unknown key of a configuration": (
        ["train", "dcn_v2", *OUT, "--config", "{tmp}/rnk.yaml"],
        "unknown key model.rnk; did you mean 'rank'? (with --config",
    ),
    "configuration of another model, pipeline": (
        ["pipeline", "run", "m3", "--root", "{tmp}/out", "--config", "{tmp}/rank.yaml"],
        "rank.yaml: is of the model 'dcn_v2', not of 'm3'",
    ),
    "unknown key of a configuration, compiled": (
        ["pipeline", "compile", "dcn_v2", "--out", "{tmp}/out", "--config", "{tmp}/rnk.yaml"],
        "unknown key model.rnk",
    ),
}


@pytest.mark.parametrize("case", cases(CASES))
def test_one_line_and_status_2(case, tmp_path, capsys):
    (tmp_path / "rank.yaml").write_text("name: dcn_v2\nmodel: {rank: 4}\n")
    (tmp_path / "rnk.yaml").write_text("model: {rnk: 4}\n")
    arguments, message = CASES[case]
    assert main([a.replace("{tmp}", str(tmp_path)) for a in arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("tfrz: ")
    assert error.count("\n") == 1, error
    assert not list(tmp_path.glob("out/best.yaml"))


def test_a_configuration_lies_between_that_of_the_data_set_and_the_overrides(tmp_path):
    path = tmp_path / "some.yaml"
    path.write_text("model: {rank: 5, num_experts: 2}\ntrainer: {epochs: 9}\n")
    config = load_run_config("dcn_v2", "simulated", ["trainer.epochs=7"], path)
    assert (config.model.rank, config.model.num_experts, config.trainer.epochs) == (5, 2, 7)
    assert config.model.embedding_dim == 8  # of simulated.yaml
