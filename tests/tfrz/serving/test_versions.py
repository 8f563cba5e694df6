"""Model directories, versions, policies, labels and configuration files, as they change."""

from __future__ import annotations

import itertools
import json
import shutil
import threading
import time

import grpc
import numpy as np
import pytest

from tests.tfrz.serving.harness import (
    ServerProcess,
    break_version,
    config_text,
    contract,
    failure,
    half_plus,
    publish,
    save,
    until,
)

POLL = "--file_system_poll_wait_seconds=0.1"
_NUMBERS = itertools.count()
NO_RETRY = "--max_num_load_retries=0"
LABELS = "--allow_version_labels_for_unavailable_models"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """One server whose configuration every test of this file sets as it needs it."""
    folder = tmp_path_factory.mktemp("server")
    publish(1.0, folder / "first" / "1")
    config = folder / "models.config"
    config.write_text(config_text(first=folder / "first"))
    flags = (f"--model_config_file={config}", POLL, NO_RETRY)
    with ServerProcess(*flags, log=folder / "log") as process:
        yield process


@pytest.fixture
def client(server):
    return server.client()


@pytest.fixture
def m():
    """A model's name that no other test uses: what a server knows of a version, it keeps."""
    return f"m{next(_NUMBERS)}"


@contract("1", "versions are children whose whole name is a number, leading zeros allowed")
@contract(
    "1", "other names are ignored; a link to a SavedModel counts; the number names the version"
)
def test_which_folders_are_versions(client, tmp_path, m):
    base = tmp_path / "m"
    publish(1.0, base / "00000007")
    publish(2.0, tmp_path / "elsewhere" / "1")
    (base / "9").symlink_to(tmp_path / "elsewhere" / "1")
    (base / "notes.txt").write_text("x")
    for name in ("tmp-export", "v8", "10.5", "99999999999999999999"):
        (base / name).mkdir()
    client.reload(config_text(**{m: f"{base} model_version_policy {{ all {{}} }}"}))
    assert until(lambda: client.available(m) == [9, 7])
    assert client.constant(m) == 2.0
    assert client.constant(m, version=7) == 1.0


@contract("1", "changing the files of a number that is loaded changes nothing")
def test_files_of_a_loaded_version(client, tmp_path, m):
    base = tmp_path / "m"
    publish(1.0, base / "1")
    client.reload(config_text(**{m: base}))
    shutil.rmtree(base / "1" / "variables")
    (base / "1" / "saved_model.pb").write_bytes(b"broken")
    time.sleep(0.5)
    assert client.constant(m) == 1.0
    assert client.states(m) == [(1, "AVAILABLE")]


@contract("1", "a version whose load failed permanently stays failed; a repair needs a new number")
@contract("2.2", "a version that fails to load does not disturb the ones that serve")
@contract("2.3", "a failed version stays listed as END with its error; lists run from the largest")
def test_a_version_that_failed_stays_failed(client, tmp_path, m):
    base = tmp_path / "m"
    publish(1.0, base / "1")
    client.reload(config_text(**{m: base}))
    break_version(base / "2")
    assert until(lambda: client.states(m) == [(2, "END"), (1, "AVAILABLE")])
    rows = json.loads(client.ask("GET", f"/v1/models/{m}")[1])["model_version_status"]
    assert rows[0]["status"]["error_code"] != "OK"
    assert rows[0]["status"]["error_message"]
    shutil.rmtree(base / "2")
    time.sleep(0.4)
    publish(2.0, base / "2")
    time.sleep(0.8)
    assert client.constant(m) == 1.0
    publish(3.0, base / "3")
    assert until(lambda: client.constant(m) == 3.0)
    assert client.states(m)[1][1] == "END"


@contract("2.1", "policies: latest (default 1, 0 counts as 1), all, specific")
def test_policies(client, tmp_path, m):
    base = tmp_path / "m"
    for number in (1, 2, 3):
        publish(float(number), base / str(number))

    def wanted(policy: str) -> list[int]:
        text = f"{base} model_version_policy {{ {policy} }}" if policy else base
        client.reload(config_text(**{m: text}))
        return client.available(m)

    for policy, expected in {
        "": [3],
        "all {}": [3, 2, 1],
        "latest { num_versions: 2 }": [3, 2],
        "latest { num_versions: 0 }": [3],
        "specific { versions: 1 versions: 3 }": [3, 1],
    }.items():
        wanted(policy)
        assert until(lambda policy=policy, expected=expected: wanted(policy) == expected), policy


@contract("2.1", "a missing version of a specific policy is logged as a warning")
def test_a_specific_version_that_is_missing(server, client, tmp_path):
    publish(1.0, tmp_path / "m" / "1")
    policy = "model_version_policy { specific { versions: 1 versions: 77 } }"
    client.reload(config_text(lonely=f"{tmp_path / 'm'} {policy}"))
    assert client.available("lonely") == [1]
    assert until(lambda: "Version 77 of servable lonely" in server.text())


@contract("2.1", "a base path that cannot be read: an error is logged and nothing changes")
@contract("2.1", "a base path without a wanted version: all are unloaded, requests are NOT_FOUND")
def test_a_base_path_that_goes_away_or_is_empty(server, client, tmp_path):
    base = tmp_path / "m"
    publish(1.0, base / "1")
    client.reload(config_text(gone=base))
    base.rename(tmp_path / "away")
    assert until(lambda: f"Could not find base path {base}" in server.text())
    assert client.constant("gone") == 1.0
    base.mkdir()
    assert until(lambda: client.available("gone") == [])
    assert until(lambda: client.states("gone") == [(1, "END")])
    assert failure(client.constant, "gone") == (
        "NOT_FOUND",
        "Servable not found for request: Latest(gone)",
    )


@pytest.mark.slow
@contract("2.2", "a new version takes over without a failed request over gRPC or HTTP")
@contract("2.2", "removing the newest directory rolls back")
@contract("2.3", "a version that was unloaded stays listed as END")
def test_a_version_change_fails_no_request(server, client, tmp_path, m):
    base = tmp_path / "m"
    publish(1.0, base / "1")
    client.reload(config_text(**{m: base}))
    answers: list[float] = []
    failures: list[object] = []
    stop = threading.Event()

    def over_http() -> None:
        mine = server.client()
        while not stop.is_set():
            status, document = mine.rest(m, {"instances": [0.0]})
            (answers if status == 200 else failures).append((document or {}).get("predictions"))

    def over_grpc() -> None:
        mine = server.client()
        while not stop.is_set():
            try:
                answers.append([mine.constant(m)])
            except grpc.RpcError as error:
                failures.append(error)

    threads = [threading.Thread(target=f) for f in (over_http, over_http, over_grpc)]
    for thread in threads:
        thread.start()
    try:
        for number in (2, 3, 4):
            publish(float(number), base / str(number))
            assert until(lambda number=number: client.available(m) == [number])
        shutil.rmtree(base / "4")
        assert until(lambda: client.available(m) == [3])
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert failures == []
    assert {value for (value,) in answers} == {1.0, 2.0, 3.0, 4.0}
    assert client.states(m) == [(4, "END"), (3, "AVAILABLE"), (2, "END"), (1, "END")]


@pytest.mark.slow
@contract("2.2", "a request that is running finishes on the version it started on")
def test_a_running_request_keeps_its_version(client, tmp_path, m):
    import tensorflow as tf

    module = tf.Module()

    @tf.function(input_signature=[tf.TensorSpec([], tf.int32, name="n")])
    def slow(n):
        a, i = tf.ones([300, 300]), tf.constant(0)
        while i < n:
            a = tf.matmul(a, a) * 0.003
            i += 1
        return {"y": tf.reshape(a[0, 0] * 0.0 + 1.0, [1])}

    module.f = slow
    save(module, tmp_path / "making")
    base = tmp_path / "m"
    base.mkdir()
    (tmp_path / "making").rename(base / "1")
    client.reload(config_text(**{m: base}))
    request = client.request(m, {"n": np.int32(3000)})
    running = client.predict_stub.Predict.future(request, timeout=80)
    time.sleep(0.2)
    publish(2.0, base / "2")
    assert until(lambda: client.available(m) == [2])
    if not running.done():
        assert (1, "UNLOADING") in client.states(m)
    assert running.result().model_spec.version.value == 1
    assert until(lambda: client.states(m) == [(2, "AVAILABLE"), (1, "END")])


@contract("2.4", "labels name versions over gRPC and HTTP; several may share one")
@contract("2.4", "a label for a version that is not available is refused")
@contract("2.4", "roll-back by moving a label")
def test_labels(client, tmp_path, m):
    base = tmp_path / "m"
    publish(1.0, base / "1")
    publish(2.0, base / "2")
    policy = "model_version_policy { specific { versions: 1 versions: 2 } }"
    client.reload(config_text(**{m: f"{base} {policy}"}))
    assert until(lambda: client.available(m) == [2, 1])

    def labels(**numbers: int) -> None:
        more = " ".join(
            f'version_labels {{ key: "{key}" value: {value} }}' for key, value in numbers.items()
        )
        client.reload(config_text(**{m: f"{base} {policy} {more}"}))

    labels(stable=1, canary=2, fallback=1)
    assert client.constant(m, label="stable") == 1.0
    assert client.constant(m, label="canary") == 2.0
    assert client.constant(m, label="fallback") == 1.0
    labels(stable=2, canary=2)
    answer = client.predict(m, {"x": np.float32([0])}, label="stable")
    assert (answer.outputs["y"].float_val[0], answer.model_spec.version.value) == (2.0, 2)
    labels(stable=1, canary=2)
    assert client.rest(m, {"instances": [0.0]}, where="/labels/stable") == (
        200,
        {"predictions": [1.0]},
    )
    assert failure(labels, stable=7) == (
        "FAILED_PRECONDITION",
        f"Request to assign label to version 7 of model {m}, which is not currently available for "
        "inference",
    )
    assert client.constant(m, label="stable") == 1.0
    assert failure(client.constant, m, label="fallback") == (
        "INVALID_ARGUMENT",
        "Unrecognized servable version label: fallback",
    )


@contract("2.1", "roll-back by policy: an older specific version, the newer one is unloaded")
def test_roll_back_by_policy(client, tmp_path, m):
    base = tmp_path / "m"
    publish(1.0, base / "1")
    publish(2.0, base / "2")
    client.reload(config_text(**{m: base}))
    assert client.constant(m) == 2.0
    policy = "model_version_policy { specific { versions: 1 } }"
    client.reload(config_text(**{m: f"{base} {policy}"}))
    assert until(lambda: client.available(m) == [1])
    assert client.constant(m) == 1.0
    client.reload(config_text(**{m: base}))
    assert until(lambda: client.available(m) == [2])


@contract("4.1", "the checks of a model configuration, in order")
@pytest.mark.parametrize(
    ("text", "code", "message"),
    [
        (
            'config { name: "a" base_path: "b" } config { name: "a" base_path: "/b" }',
            "INVALID_ARGUMENT",
            "Illegal to list model a multiple times in config list",
        ),
        (
            'config { name: "a" base_path: "b" model_platform: "x" }',
            "INVALID_ARGUMENT",
            "Expected model a to have an absolute path or URI; got base_path()=b",
        ),
        (
            'config { name: "a" base_path: "/b" version_labels { key: "l" value: 3 } }',
            "FAILED_PRECONDITION",
            "Request to assign label to version 3 of model a, which is not currently available "
            "for inference",
        ),
        (
            'config { name: "a" base_path: "/b" }',
            "INVALID_ARGUMENT",
            "Illegal setting neither ModelServerConfig::model_type (deprecated) nor "
            "ModelServerConfig::model_platform, model name is a",
        ),
        (
            'config { name: "a" base_path: "/b" model_platform: "x" }',
            "INVALID_ARGUMENT",
            "Model a requests unsupported platform x",
        ),
    ],
)
def test_refused_configurations(client, text, code, message):
    before = client.ask("GET", "/v1/models/first")
    assert failure(client.reload, f"model_config_list {{ {text} }}") == (code, message)
    assert client.ask("GET", "/v1/models/first") == before


@contract("4.1", "the platform of a running model may not change")
def test_the_platform_of_a_running_model(client, tmp_path, m):
    publish(1.0, tmp_path / "m" / "1")
    client.reload(config_text(**{m: tmp_path / "m"}))
    text = f'config {{ name: "{m}" base_path: "{tmp_path}/m" model_platform: "other" }}'
    assert failure(client.reload, f"model_config_list {{ {text} }}") == (
        "INVALID_ARGUMENT",
        f"Illegal to change a model's platform. For model {m} platform was tensorflow and new "
        "platform requested is other",
    )


@contract("13", "logging_config is refused, since there is no log collector")
def test_request_logging_is_refused(client, tmp_path, m):
    more = "logging_config { sampling_config { sampling_rate: 1 } }"
    assert failure(client.reload, config_text(**{m: f"{tmp_path} {more}"})) == (
        "INVALID_ARGUMENT",
        "No request-logger-creator provided.",
    )


@contract("4.2", "a reload replaces the list of models: others are unloaded; OK is 0")
@contract("4.1", "the base path of a running model may change")
def test_a_reload_is_the_whole_truth(client, tmp_path):
    publish(1.0, tmp_path / "a" / "1")
    publish(2.0, tmp_path / "b" / "2")
    answer = client.reload(config_text(a=tmp_path / "a", b=tmp_path / "b"))
    assert answer.status.error_code == 0
    assert (client.constant("a"), client.constant("b")) == (1.0, 2.0)
    client.reload(config_text(b=tmp_path / "b"))
    assert until(lambda: client.available("a") == [])
    assert failure(client.constant, "a")[0] == "NOT_FOUND"
    assert client.states("a") == [(1, "END")]
    client.reload(config_text(a=tmp_path / "b", b=tmp_path / "b"))
    assert client.constant("a") == 2.0
    client.reload("model_config_list {}")
    assert until(lambda: client.available("b") == [])


@contract("4.2", "without a list: INVALID_ARGUMENT")
def test_a_reload_without_a_list(client):
    assert failure(client.reload, "") == (
        "INVALID_ARGUMENT",
        "ServerModelConfig type not supported by HandleReloadConfigRequest. Only ModelConfigList "
        "is currently supported",
    )


@contract("4.2", "a new model none of whose versions loads: UNKNOWN")
def test_a_reload_with_a_broken_model(client, tmp_path):
    break_version(tmp_path / "m" / "1")
    code, text = failure(client.reload, config_text(broken=tmp_path / "m"))
    assert code == "UNKNOWN"
    assert text.startswith("1 model(s) did not become available: {")


@pytest.mark.slow
@contract("2.2", "a load is tried again; meanwhile the state is LOADING with status OK")
@contract("1", "a version is seen as soon as its directory exists, even half written")
def test_retries_of_a_load(tmp_path):
    base = tmp_path / "m"
    publish(1.0, base / "1")
    save(half_plus(2.0), tmp_path / "whole")
    flags = (
        f"--model_base_path={base}",
        "--model_name=m",
        POLL,
        "--max_num_load_retries=200",
        "--load_retry_interval_micros=300000",
    )
    with ServerProcess(*flags, log=tmp_path / "log") as server:
        client = server.client()
        (base / "2").mkdir()
        assert until(lambda: client.states("m") == [(2, "LOADING"), (1, "AVAILABLE")])
        rows = json.loads(client.ask("GET", "/v1/models/m")[1])["model_version_status"]
        assert rows[0]["status"] == {"error_code": "OK", "error_message": ""}
        assert client.constant("m") == 1.0
        shutil.copytree(tmp_path / "whole", base / "2", dirs_exist_ok=True)
        assert until(lambda: client.available("m") == [2])
        assert client.constant("m") == 2.0


@pytest.mark.slow
@contract("2.1", "file_system_poll_wait_seconds: 0 looks once at the start")
@contract("4.2", "a polled configuration file is applied repeatedly, and overrides a reload call")
@contract("4.2", "an invalid polled file is logged, and the served models stay")
@contract("2.4", "with the flag, a label may name a version that is not loaded; it is NOT_FOUND")
@contract("2.4", "with the flag, a label in use may be moved only to an available version")
def test_a_polled_configuration_file(tmp_path):
    publish(1.0, tmp_path / "a" / "1")
    publish(2.0, tmp_path / "b" / "2")
    config = tmp_path / "models.config"
    label = 'version_labels { key: "later" value: 5 }'
    config.write_text(config_text(a=f"{tmp_path / 'a'} {label}"))
    flags = (
        f"--model_config_file={config}",
        "--model_config_file_poll_wait_seconds=1",
        "--file_system_poll_wait_seconds=0",
        LABELS,
        NO_RETRY,
    )
    with ServerProcess(*flags, log=tmp_path / "log") as server:
        client = server.client()
        assert failure(client.constant, "a", label="later") == (
            "NOT_FOUND",
            "Servable not found for request: Specific(a, 5)",
        )
        moved = label.replace("5", "6")
        code, text = failure(client.reload, config_text(a=f"{tmp_path / 'a'} {moved}"))
        assert (code, text[:42]) == (
            "FAILED_PRECONDITION",
            "Request to assign label to version 6 of mo",
        )
        # What a call sets, the file overrides.
        client.reload(config_text(b=tmp_path / "b"))
        assert client.constant("b") == 2.0
        assert until(lambda: client.available("a") == [1] and client.available("b") == [])
        config.write_text("model_config_list { config { nonsense")
        assert until(lambda: "Error parsing text-format" in server.text())
        assert client.constant("a") == 1.0
        config.write_text(config_text(b=tmp_path / "b"))
        assert until(lambda: client.available("b") == [2])
        publish(3.0, tmp_path / "b" / "3")
        time.sleep(0.5)
        # A configuration that is applied makes the base paths be looked at.
        assert until(lambda: client.available("b") in ([2], [3]))
