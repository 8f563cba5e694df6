"""`tfrz evaluate` of a server measures what the same model on disk measures."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.tfrz.serving.harness import ServerProcess, config_text, free_port
from tests.tfrz.zoo.test_predicting import CLICK_SPEC, EVENT_SPEC, FEW, clicks, events
from tfrz.cli.main import main
from tfrz.zoo.train import train

SIZES = ["model.item_dim=8", "model.input_units=[8]", "model.encoder_dim=8"]
SIZES += ["model.output_units=[8]", "data.history.length=6", "model.num_sampled=10"]


class Served:
    """Runs on a server that runs."""

    def __init__(self, folder: Path, server: ServerProcess) -> None:
        self.folder, self.server = folder, server

    def address(self, protocol: str, name: str, more: str = "") -> str:
        if protocol == "http":
            return f"http://127.0.0.1:{self.server.rest_port}/v1/models/{name}{more}"
        return f"grpc://127.0.0.1:{self.server.port}/{name}{more}"


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    pq.write_table(clicks(600), folder / "clicks.parquet")
    pq.write_table(events(), folder / "events.parquet")
    (folder / "clicks.yaml").write_text(CLICK_SPEC)
    (folder / "events.yaml").write_text(EVENT_SPEC)
    models = {}
    for model, data, settings in (("dcn_v2", "clicks", ()), ("m3", "events", SIZES)):
        source, spec = str(folder / f"{data}.parquet"), str(folder / f"{data}.yaml")
        train(model, source, folder / model, spec, [*FEW, *settings], progress=False)
        models[model] = str(folder / model / "model")
    (folder / "models.txt").write_text(config_text(**models))
    with ServerProcess(f"--model_config_file={folder}/models.txt", log=folder / "log") as server:
        yield Served(folder, server)


def _result(capsys, *command: str) -> dict:
    assert main(["evaluate", *command, "--json", "--quiet"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("protocol", ["http", "grpc"])
@pytest.mark.parametrize(
    ("model", "data", "slices"),
    [("dcn_v2", "clicks", ["--slice", "hour"]), ("m3", "events", ["--slice", "page"])],
)
def test_a_server_is_worth_what_its_model_is(served, capsys, protocol, model, data, slices):
    run, source = str(served.folder / model), str(served.folder / f"{data}.parquet")
    expected = _result(capsys, run, "--data", source, *slices)
    address = served.address(protocol, model, "/versions/1")
    found = _result(capsys, address, "--run", run, "--data", source, *slices)
    assert found["model"] == address
    assert found["examples"] == expected["examples"] == {"clicks": 600, "events": 50}[data]
    assert found["metrics"] == pytest.approx(expected["metrics"], abs=1e-6)
    assert found["slices"].keys() == expected["slices"].keys()
    for feature, values in expected["slices"].items():
        for value, metrics in values.items():
            assert found["slices"][feature][value] == pytest.approx(metrics, abs=1e-6, nan_ok=True)


def test_lists_without_any_value_are_sent(served, capsys, tmp_path):
    table = clicks(40, seed=3)
    empty = table.set_column(2, "tags", [[[]] * 40]).cast(table.schema)
    pq.write_table(empty, tmp_path / "empty.parquet")
    run, source = str(served.folder / "dcn_v2"), str(tmp_path / "empty.parquet")
    expected = _result(capsys, run, "--data", source)
    for protocol in ("http", "grpc"):
        address = served.address(protocol, "dcn_v2")
        found = _result(capsys, address, "--run", run, "--data", source)
        assert found["metrics"] == pytest.approx(expected["metrics"], abs=1e-6)


@pytest.mark.parametrize("protocol", ["http", "grpc"])
@pytest.mark.parametrize(
    ("name", "more", "message"),
    [
        ("nobody", "", "refused"),
        ("dcn_v2", "/versions/7", "refused"),
        ("m3", "", "reads the feature 'history"),
    ],
)
def test_what_does_not_fit_is_one_line(served, capsys, protocol, name, more, message):
    run, source = str(served.folder / "dcn_v2"), str(served.folder / "clicks.parquet")
    address = served.address(protocol, name, more)
    assert main(["evaluate", address, "--run", run, "--data", source, "--quiet"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("address", ["http://127.0.0.1:{}/v1/models/m", "grpc://127.0.0.1:{}/m"])
def test_nobody_answers(served, capsys, address):
    run, source = str(served.folder / "dcn_v2"), str(served.folder / "clicks.parquet")
    command = ["evaluate", address.format(free_port()), "--run", run, "--data", source, "--quiet"]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert "is the server running?" in error
    assert error.count("\n") == 1


def test_a_server_needs_a_run(served, capsys):
    address, source = served.address("http", "m3"), str(served.folder / "events.parquet")
    assert main(["evaluate", address, "--data", source]) == 2
    assert "--run: name a run or a SavedModel" in capsys.readouterr().err
