"""What an experiment's size can show: what is judged, what is not, and what the command says."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from tfrz.cli.main import main
from tfrz.reproduce import experiment as framework
from tfrz.reproduce.experiment import Check, Context, Experiment, Outcome, experiments
from tfrz.reproduce.m3 import context_switch
from tfrz.reproduce.m3 import movielens as m3_movielens
from tfrz.reproduce.runs import Runs, grid, mean_and_spread, where
from tfrz.reproduce.seq2slate import clicks


def made(held: bool, *needs: str) -> Experiment:
    """An experiment with one check, which holds or does not and needs some sizes in full."""

    def measure(context: Context) -> Outcome:
        check = Check("the statement", held, f"{context.size['steps']} steps", needs)
        return Outcome(("steps",), [(context.size["steps"],)], [check])

    full = {"steps": 2000, "seeds": 3, "limit": None}
    return Experiment("a/b", "title", "Table 1", measure, full, {"steps": 100, "limit": 5})


def context(quick: bool, work: Path = Path()) -> Context:
    return Context(quick, 7, None, work, lambda line: None)


@pytest.mark.parametrize("held", [True, False])
def test_a_check_is_judged_where_the_run_has_what_it_needs(held):
    for experiment, quick in (
        (made(held), True),
        (made(held, "seeds"), True),
        (made(held), False),
        (made(held, "steps", "limit"), False),
    ):
        outcome = experiment.run(context(quick))
        assert [check.held for check in outcome.checks] == [held]
        assert outcome.held is held
        assert outcome.checks[0].reason == ""
        assert "reason" not in outcome.to_mapping()["checks"][0]
        assert outcome.checks[0].line.startswith("held: " if held else "NOT held: ")


@pytest.mark.parametrize("held", [True, False])
def test_a_check_is_not_judged_where_the_run_is_too_small(held):
    outcome = made(held, "steps", "seeds", "limit").run(context(True))
    (check,) = outcome.checks
    assert check.held is None and outcome.held
    assert check.line == (
        "not judged: the statement (100 steps; needs steps 2,000, limit unlimited; this run has "
        "steps 100, limit 5)"
    )
    assert outcome.to_mapping()["checks"] == [
        {
            "statement": "the statement",
            "held": None,
            "measured": "100 steps",
            "reason": "needs steps 2,000, limit unlimited; this run has steps 100, limit 5",
        }
    ]


def test_seeds_and_sizes_of_a_context():
    seen = []
    experiment = Experiment(
        "a/b", "t", "s", lambda c: seen.append(c) or Outcome((), [], []), {"seeds": 3, "rows": 9}
    )
    experiment.run(context(False))
    assert seen[0].seeds == [7, 8, 9]
    assert seen[0].size == {"seeds": 3, "rows": 9}


def test_every_quick_size_is_a_size_of_the_experiment():
    for name, experiment in experiments().items():
        assert set(experiment.quick) <= set(experiment.full), name
        for size, value in experiment.quick.items():
            assert value != experiment.full[size], (name, size)


@pytest.mark.parametrize(
    ("check", "quick", "status", "verdict"),
    [
        (made(False, "steps"), True, 0, "not judged: the statement"),
        (made(False, "steps"), False, 1, "NOT held: the statement"),
        (made(False), True, 1, "NOT held: the statement"),
        (made(True, "seeds"), True, 0, "held: the statement"),
    ],
)
def test_exit_status_of_the_command(check, quick, status, verdict, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(framework, "experiments", lambda: {"a/b": check})
    out = tmp_path / "out.json"
    arguments = ["reproduce", "a/b", "--json", str(out), "--work", str(tmp_path)]
    assert main([*arguments, *["--quick"] * quick]) == status
    assert f"\n{verdict} (" in capsys.readouterr().out
    (found,) = json.loads(out.read_text())["a/b"]["checks"]
    assert found["held"] is {"h": True, "N": False, "n": None}[verdict[0]]


# The figures that quick runs of these experiments gave.
HOME = {
    "tiny only": 0.270,
    "short only, GRU": 0.261,
    "short only, convolution": 0.354,
    "long only": 0.295,
    "M3R contextual, sigmoid": 0.576,
    "M3R fixed": 0.595,
    "M3C contextual, sigmoid": 0.529,
    "M3C fixed": 0.542,
    "no c_out in F_out: M3R contextual, sigmoid": 0.543,
    "no c_out in F_out: M3R fixed": 0.483,
    "no c_out in F_out: M3C contextual, sigmoid": 0.506,
    "no c_out in F_out: M3C fixed": 0.423,
}
MAP = {
    "tiny": 0.0268,
    "GRU": 0.0252,
    "convolution 5": 0.0234,
    "attention": 0.0272,
    "M3R fixed": 0.0274,
    "M3C fixed": 0.0255,
}


def judged(module, train, name, quick, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "train_one", train)
    (experiment,) = (e for e in module.EXPERIMENTS if e.name == name)
    outcome = experiment.run(context(quick, tmp_path / str(quick)))
    assert all(len(row) == len(outcome.columns) for row in outcome.rows)
    return outcome


def by_page(key):
    gates = {"home": {"tiny": 0.1, "long": 0.8}, "detail": {"tiny": 0.8, "long": 0.2}}
    home = HOME.get(key["model"], 0.5)
    return {"home": home, "detail": 0.8, "map_at_20": 0.4, "gates": gates}


@pytest.mark.slow
def test_m3_on_pages_judges_what_a_quick_run_shows(tmp_path, monkeypatch):
    arguments = context_switch, by_page, "m3/context_switch"
    quick = judged(*arguments, True, tmp_path, monkeypatch)
    assert quick.held
    assert {check.held for check in quick.checks} == {True, None}
    full = judged(*arguments, False, tmp_path, monkeypatch)
    assert None not in {check.held for check in full.checks}
    assert not full.held


@pytest.mark.slow
@pytest.mark.parametrize(("release", "part"), [("100k", "validation"), ("1m", "test")])
def test_m3_on_movielens_judges_what_a_quick_run_shows(release, part, tmp_path, monkeypatch):
    data = tmp_path / "data"
    data.mkdir()
    values = {"recall_at_20": 0.1, "ndcg_at_20": 0.05}
    sets = SimpleNamespace(inputs=SimpleNamespace(num_items=1682))
    monkeypatch.setattr(m3_movielens, "_prepared", lambda *arguments: sets)
    monkeypatch.setattr(m3_movielens, "_popularity", lambda *_: {**values, "map_at_20": 0.03})
    monkeypatch.setattr(Context, "path", lambda self, default: str(data))

    def train(scale):
        def train_one(key):
            found = {**values, "map_at_20": scale * MAP.get(key["model"], 0.02)}
            return {"validation": found, part: found, "parameters": 1000}

        return train_one

    arguments = f"m3/movielens_{release}", True, tmp_path / "good", monkeypatch
    quick = judged(m3_movielens, train(1.0), *arguments)
    assert quick.held
    assert [check.held for check in quick.checks] == [True, None]
    full = judged(m3_movielens, train(1.0), arguments[0], False, tmp_path / "good", monkeypatch)
    assert [check.held for check in full.checks] == [True, False]
    # A model that has learned nothing is seen at any size.
    broken = judged(m3_movielens, train(0.1), arguments[0], True, tmp_path / "bad", monkeypatch)
    assert not broken.held


@pytest.mark.slow
def test_clicks_judge_what_a_quick_run_shows(tmp_path, monkeypatch):
    at = {"base ranker": 0.89, clicks._BLIND: 0.70, clicks._POINTWISE: 0.9, clicks._LISTWISE: 0.9}

    def train(sequential, blind):
        def train_one(key):
            values = {**at, clicks._SEQUENTIAL: sequential, clicks._BLIND: blind}
            ndcg = values.get(key["model"], 0.915)
            return {"ndcg_at_5": ndcg, "ndcg_at_10": ndcg, "map": ndcg, "fresh_clicks_at_5": 1.0}

        return train_one

    arguments = "seq2slate/clicks", True, tmp_path / "good", monkeypatch
    quick = judged(clicks, train(0.905, 0.7), *arguments)
    assert quick.held
    assert {check.held for check in quick.checks} == {True, None}
    full = judged(clicks, train(0.905, 0.7), arguments[0], False, tmp_path / "good", monkeypatch)
    assert not full.held
    wrong = judged(clicks, train(0.905, 0.95), arguments[0], True, tmp_path / "bad", monkeypatch)
    assert not wrong.held


def test_runs_are_timed_kept_and_found(tmp_path):
    says, trained = [], []

    def train(key):
        trained.append(key)
        return {"value": key["x"], "says": f"x {key['x']}"}

    keys = [{"x": x, "y": y} for x in (1, 2) for y in ("a", "b")]
    rows = Runs(tmp_path / "runs.jsonl").all(train, keys[:2], 1, says.append)
    assert [row["value"] for row in rows] == [1, 1] and says[0].startswith("x 1 (")
    rows = Runs(tmp_path / "runs.jsonl").all(train, keys, 1, says.append)
    assert len(trained) == 4 and len(says) == 4
    assert all(row["seconds"] >= 0 and row["device"] for row in rows)
    assert [row["key"] for row in where(rows, y="b")] == [keys[1], keys[3]]
    assert where(rows, x=1, y="c") == []


def test_grids_and_cells():
    assert grid({"a": (1, 2), "b": (3,)}) == [{"a": 1, "b": 3}, {"a": 2, "b": 3}]
    assert mean_and_spread([1.0]) == "1.0000"
    assert mean_and_spread([1.0, 2.0], 2) == "1.50 (0.71)"
