"""Two models from outside the package join everything, and no other file knows of them."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from tests.conformance.cases import factorization_machine
from tfrz.cli.main import main
from tfrz.zoo import registry

ROOT = Path(__file__).parents[2]
MODULES = {"stacked_gru": "gru", "factorization_machine": "fm"}
PLUGINS = ",".join(f"tests.plugins.{module}" for module in MODULES.values())
SMALL = {
    "stacked_gru": ("data.options={users: 400}", "trainer.epochs=3"),
    "factorization_machine": ("data.options={rows: 4000}",),
}
REQUESTS = {
    "stacked_gru": {
        "history": ["item_1", "never seen"],
        "history_page": ["home", "detail"],
        "history_time": [1_600_000_000, 1_600_000_060],
        "page": "home",
        "request_time": 1_600_000_120,
    },
    "factorization_machine": dict.fromkeys(
        ("user", "item", "genre", "hour", "country", "device"), "new"
    ),
}
names = pytest.mark.parametrize("name", MODULES)
slow = pytest.mark.slow


@pytest.fixture(autouse=True, scope="module")
def registered():
    """The plugins are in the registry of this process for as long as this module runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TFRZ_PLUGINS", PLUGINS)
        registry.load_plugins()
    yield
    for name in MODULES:
        registry.unregister(name)


def _in_a_process(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "TFRZ_PLUGINS": PLUGINS},
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    return done.stdout


def _model_lines(name: str) -> int:
    """Lines of a plugin's model: what stands before its registry row."""
    source = (ROOT / "tests" / "plugins" / f"{MODULES[name]}.py").read_text()
    (row,) = [node for node in ast.parse(source).body if isinstance(node, ast.Expr)][1:]
    return len("\n".join(source.splitlines()[: row.lineno - 1]).rstrip().splitlines())


def _steps() -> str:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    (steps,) = re.findall(r"## A new model\n(.*?)\n## ", text, re.DOTALL)
    return steps


@names
def test_a_model_is_small(name):
    assert _model_lines(name) <= 70


@names
def test_its_files_are_those_that_contributing_names(name):
    named = set(re.findall(r"`(tests/[^`]*)`", _steps()))
    module = MODULES[name]
    files = {
        f"tests/plugins/{module}.py",
        f"tests/plugins/configs/{name}/default.yaml",
        f"tests/conformance/cases/{name}.py",
    }
    assert files <= named
    tracked = [*(ROOT / "tests").rglob("*.py"), *(ROOT / "tests").rglob("*.yaml")]
    of_it = {
        str(path.relative_to(ROOT))
        for path in tracked
        if name in str(path) or f'"{name}"' in path.read_text()
    }
    assert of_it - {"tests/conformance/test_plugin.py"} == files


def test_every_file_that_contributing_names_exists():
    named = re.findall(r"`((?:tfrz|tests|tfx_pipelines|docs)/[^`<>]*)`", _steps())
    assert named
    for path in named:
        assert (ROOT / path).exists(), path


@names
def test_it_is_listed_and_described(name, capsys):
    assert main(["list"]) == 0
    listed = capsys.readouterr().out
    assert name in listed and registry.get(name).title in listed
    assert main(["describe", name]) == 0
    assert "model:\n" in capsys.readouterr().out


def test_the_environment_names_plugins():
    assert set(MODULES) <= {
        row["name"] for row in json.loads(_in_a_process("tfrz", "list", "--json"))
    }


def test_numbers_are_fields_of_a_factorization_machine():
    from tests.plugins.fm import FactorizationMachine, FactorizationMachineConfig

    keras.utils.set_random_seed(1)
    config = FactorizationMachineConfig(dim=2, embedding_scale=0.5)
    model = FactorizationMachine(config, {"a_xf": 5}, numeric=("n_xf", "m_xf"))
    batch = {
        "a_xf": np.array([1, 4, 0]),
        "n_xf": np.array([0.5, -1.0, 0.0], "float32"),
        "m_xf": np.array([2.0, 1.0, 0.0], "float32"),
    }
    oracle = factorization_machine.MODEL_CASES[0].oracle
    np.testing.assert_allclose(model(batch), oracle(model, batch), rtol=1e-5, atol=1e-6)


@slow
def test_they_pass_every_suite_that_the_registry_drives():
    here = Path(__file__).relative_to(ROOT)
    suites = [
        str(path.relative_to(ROOT))
        for path in sorted((ROOT / "tests").rglob("test_*.py"))
        if re.search(r"registry\.names\(\)|MODEL_CASES", path.read_text())
        and path.relative_to(ROOT) != here
    ]
    assert "tests/conformance/test_models.py" in suites
    output = _in_a_process(
        "pytest", "-v", "-p", "no:cacheprovider", *suites, "-k", " or ".join(MODULES)
    )
    for name in MODULES:
        passed = re.findall(rf"::(\w+)\[\S*{name}\S*\] PASSED", output)
        assert {"test_the_exported_model_answers_in_a_fresh_process_as_the_trainer_did"} <= set(
            passed
        )
        assert len(set(passed)) >= 12, passed
    assert "SKIPPED" not in output


@slow
@names
def test_it_trains_and_answers(name, tmp_path, capsys):
    settings = [word for setting in SMALL[name] for word in ("--set", setting)]
    out = tmp_path / "run"
    assert main(["train", name, "--out", str(out), "--quiet", "--json", *settings]) == 0
    metrics = json.loads(capsys.readouterr().out)["metrics"]["test"]
    assert metrics.get("auc", 1.0) > 0.6
    # Chance is 0.1, with a standard error of 0.015.
    assert metrics.get("recall_at_20", 1.0) > 0.15
    row = json.dumps([REQUESTS[name]])
    assert main(["predict", str(out / "model"), row, "--signature", "serving_raw"]) == 0
    (answer,) = json.loads(capsys.readouterr().out)["predictions"]
    assert 0 < answer < 1 if isinstance(answer, float) else len(answer["item_ids"]) == 20


@slow
@names
def test_its_pipeline_runs_to_the_push(name, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["tfrz"])  # TFX reads flags there.
    settings = [word for setting in SMALL[name] for word in ("--set", setting)]
    arguments = ["pipeline", "run", name, "--root", str(tmp_path), "--json", "--quiet"]
    assert main([*arguments, *settings]) == 0
    assert (tmp_path / "serving" / name).is_dir()
