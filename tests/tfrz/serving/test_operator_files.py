"""What an operator deploys: files that parse, name what exists, and start a server."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import yaml
from google.protobuf import text_format
from tensorflow_serving.config import model_server_config_pb2

from tests.tfrz.serving.harness import ServerProcess, publish, until
from tfrz.cli.main import main
from tfrz.serving import metrics
from tfrz.serving.configuration import ServerConfig, batching_parameters, prometheus_path
from tfrz.serving.flags import parse
from tfrz.serving.operator_files import operator_files
from tfrz.serving.protos import batching_pb2, monitoring_pb2, ssl_pb2

ROOT = Path(__file__).resolve().parents[3]
SERVING = ROOT / "serving"


@pytest.fixture
def base(tmp_path) -> Path:
    for number in (1, 2, 3):
        publish(float(number), tmp_path / "m" / str(number))
    return tmp_path / "m"


def test_serving_config_writes_files_that_a_server_takes(base, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["serving-config", str(base), "--name", "m", "--keep", "2", "--out", str(out)]) == 0
    shown = capsys.readouterr()
    assert len(shown.out.splitlines()) == 3
    (line,) = [row for row in shown.err.splitlines() if "tfrz serve" in row]
    flags = [word for word in line.split() if word.startswith("--") and "port" not in word]
    with ServerProcess(*flags, log=tmp_path / "log") as server:
        client = server.client()
        # Ports answer once one version is there; the other loads after it.
        assert until(lambda: client.available("m") == [3, 2])
        assert client.constant("m") == 3.0
        assert client.ask("GET", "/monitoring/prometheus/metrics")[0] == 200


def test_serving_config_with_labels(base, tmp_path, capsys):
    command = ["serving-config", str(base), "--name", "m", "--out", str(tmp_path / "o")]
    assert main([*command, "--label", "stable=1", "--label", "canary=3"]) == 0
    assert "--allow_version_labels_for_unavailable_models" in capsys.readouterr().err
    read = text_format.Parse(
        (tmp_path / "o" / "models.config").read_text(), model_server_config_pb2.ModelServerConfig()
    )
    (model,) = read.model_config_list.config
    assert list(model.model_version_policy.specific.versions) == [1, 3]
    assert dict(model.version_labels) == {"stable": 1, "canary": 3}


@pytest.mark.parametrize(
    ("more", "word"),
    [
        (["--label", "stable"], "NAME=VERSION"),
        (["--label", "stable=9"], "has no version 9"),
        (["--base-path", "models/m"], "absolute path"),
        (["--keep", "0"], "--keep"),
    ],
)
def test_serving_config_refuses(base, tmp_path, capsys, more, word):
    out = tmp_path / "o"
    assert main(["serving-config", str(base), "--name", "m", "--out", str(out), *more]) == 2
    error = capsys.readouterr().err
    assert word in error
    assert error.count("\n") == 1
    assert not out.exists()


def test_serving_config_needs_a_name_for_other_models(base, tmp_path, capsys):
    assert main(["serving-config", str(base), "--out", str(tmp_path / "o")]) == 2
    assert "--name" in capsys.readouterr().err


def test_the_stored_configuration_is_what_the_command_makes():
    for name, text in operator_files("dcn_v2", "/models/dcn_v2", keep=2).items():
        assert (SERVING / name).read_text() == text
        assert (SERVING / "kubernetes" / name).resolve() == SERVING / name
    assert batching_parameters(str(SERVING / "batching.config")).max_batch_size == 256
    assert prometheus_path(str(SERVING / "monitoring.config")) == "/monitoring/prometheus/metrics"


def test_every_flag_of_the_deployments_exists():
    deployment = yaml.safe_load((SERVING / "kubernetes" / "deployment.yaml").read_text())
    container = deployment["spec"]["template"]["spec"]["containers"][0]
    docker = json.loads(
        re.search(r"CMD (\[.*?\])", (SERVING / "Dockerfile").read_text().replace("\\\n", ""))[1]
    )
    for arguments in (container["args"], docker):
        config, unknown, idle = parse(arguments)
        assert not unknown
        assert not idle
        config.check()
        assert isinstance(config, ServerConfig)
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert probe in container
    assert container["resources"]["limits"]["memory"]
    assert deployment["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0


def test_the_other_manifests_fit_together():
    kustomization = yaml.safe_load((SERVING / "kubernetes" / "kustomization.yaml").read_text())
    for file in kustomization["resources"]:
        assert yaml.safe_load((SERVING / "kubernetes" / file).read_text())["kind"]
    service = yaml.safe_load((SERVING / "kubernetes" / "service.yaml").read_text())
    assert service["spec"]["selector"] == {"app": "tfrz-serving"}
    compose = yaml.safe_load((SERVING / "compose.yaml").read_text())
    for one in compose["services"].values():
        for volume in one.get("volumes", []):
            if volume.startswith("./"):
                assert (SERVING / volume.split(":")[0]).exists()


def test_the_dashboard_asks_for_metrics_that_exist():
    known = {value.name for value in vars(metrics).values() if isinstance(value, metrics.Metric)}
    board = json.loads((SERVING / "dashboard.json").read_text())
    for panel in board["panels"]:
        for target in panel["targets"]:
            names = re.findall(r":tensorflow[:a-z_]+", target["expr"])
            assert names
            for name in names:
                assert name.removesuffix("_bucket") in known, name


@pytest.mark.parametrize("module", [batching_pb2, monitoring_pb2, ssl_pb2])
def test_the_compiled_messages_are_those_of_the_proto_files(module):
    text = (ROOT / module.DESCRIPTOR.name).read_text()
    for name, message in module.DESCRIPTOR.message_types_by_name.items():
        body = re.search(rf"message {name} {{(.*?)\n}}", text, re.DOTALL)[1]
        fields = dict(re.findall(r"^\s+(?:repeated )?[\w.]+ (\w+) = (\d+);", body, re.MULTILINE))
        assert fields == {field.name: str(field.number) for field in message.fields}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("load")
    publish(2.0, folder / "m" / "1")
    flags = (f"--model_base_path={folder / 'm'}", "--model_name=m")
    with ServerProcess(*flags, log=folder / "log") as server:
        yield server


@pytest.mark.slow
def test_the_load_test_drives_both_protocols(server, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"instances": [1.0]}\n{"instances": [2.0, 3.0]}\n')
    for target, more in (
        (f"grpc://127.0.0.1:{server.port}/m", ["--clients", "2"]),
        (f"http://127.0.0.1:{server.rest_port}/v1/models/m", ["--rate", "50"]),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.load_test", "--target", target]
            + ["--request", f"@{rows}", "--seconds", "1", "--json", *more],
            capture_output=True,
            text=True,
            check=False,
            cwd=ROOT,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        report = json.loads(done.stdout)
        assert report["requests"] > 10
        assert report["errors"] == {}
        assert 0 < report["p50_ms"] <= report["p99_ms"] <= report["p999_ms"] <= report["max_ms"]


@pytest.mark.slow
def test_the_load_test_reports_failures(server):
    target = f"http://127.0.0.1:{server.rest_port}/v1/models/none"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.load_test", "--target", target]
        + ["--request", '{"instances": [1.0]}', "--seconds", "0.5"],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 1
    assert "HTTP 404" in done.stdout


def test_predict_takes_lines_and_tables_and_reports_times(server, tmp_path, capsys):
    import pyarrow as pa
    import pyarrow.parquet as pq

    lines = tmp_path / "rows.jsonl"
    lines.write_text('{"x": 1.0}\n\n{"x": 4.0}\n')
    table = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"x": pa.array([1.0, None, 4.0], pa.float32())}), table)
    for target in (
        f"grpc://127.0.0.1:{server.port}/m",
        f"http://127.0.0.1:{server.rest_port}/v1/models/m/versions/1",
    ):
        assert main(["predict", target, f"@{lines}", "--repeat", "5"]) == 0
        shown = capsys.readouterr()
        assert json.loads(shown.out) == {"predictions": [2.5, 4.0]}
        assert re.search(r"opened in .* ms, first response after .* ms, 4 more: p50 ", shown.err)
        assert main(["predict", target, f"@{table}"]) == 0
        first, missing, last = json.loads(capsys.readouterr().out)["predictions"]
        assert (first, last) == (2.5, 4.0)
        assert np.isnan(missing)


def test_predict_names_the_line_that_is_wrong(server, tmp_path, capsys):
    lines = tmp_path / "rows.jsonl"
    lines.write_text('{"x": 1.0}\n{"x": \n')
    target = f"grpc://127.0.0.1:{server.port}/m"
    assert main(["predict", target, f"@{lines}"]) == 2
    assert "line 2 is not JSON" in capsys.readouterr().err
    (tmp_path / "no.parquet").write_bytes(b"no parquet")
    assert main(["predict", target, f"@{tmp_path / 'no.parquet'}"]) == 2
    assert "cannot read" in capsys.readouterr().err


def test_a_served_float_is_the_one_that_was_computed(server):
    x = np.float32([0.1, 1 / 3, 1e-7, 123456.789])
    over_grpc = server.client().predict("m", {"x": tf.constant(x)}).outputs["y"].float_val
    status, document = server.client().rest("m", {"instances": x.tolist()})
    assert status == 200
    assert np.float32(document["predictions"]).tolist() == list(over_grpc)
