"""The manager's thread in this process: nothing in a base path, and no model, ends its polling."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from google.protobuf import text_format
from tensorflow_serving.config import model_server_config_pb2

from tests.tfrz.serving.harness import config_text, until
from tfrz.serving.configuration import ServerConfig
from tfrz.serving.manager import ManagerOptions, ModelManager, list_versions
from tfrz.serving.server import Server

_LARGEST = 2**63 - 1


class Loaded:
    """A model that answers nothing."""

    def __init__(self, name: str, number: int) -> None:
        self.name, self.number, self.closed = name, number, False

    def close(self) -> None:
        self.closed = True


def models(**places: Path | str) -> model_server_config_pb2.ModelConfigList:
    config = model_server_config_pb2.ModelServerConfig()
    return text_format.Parse(config_text(**places), config).model_config_list


@pytest.fixture
def manager():
    """Polls every 20 ms and loads anything."""
    made = ModelManager(lambda name, number, path: Loaded(name, number), ManagerOptions(0.02))
    yield made
    made.stop()


def publish(base: Path, number: int) -> None:
    (base / str(number)).mkdir(parents=True)


def test_a_name_that_is_not_utf8(manager, tmp_path):
    base = tmp_path / "m"
    publish(base, 1)
    manager.apply(models(m=base))
    manager.start()
    assert until(lambda: manager.available("m") == [1], 10)
    os.mkdir(os.fsencode(base) + b"/\xff\xfe")
    os.mkdir(os.fsencode(base) + b"/2\xff")
    publish(base, 3)
    assert until(lambda: manager.available("m") == [3], 10)


def test_names_that_are_no_versions(tmp_path):
    publish(tmp_path, 7)
    os.mkdir(os.fsencode(tmp_path) + b"/\xe9t\xe9")
    (tmp_path / "5").symlink_to(tmp_path / "5")
    (tmp_path / "6").symlink_to(tmp_path / "nowhere")
    (tmp_path / "8").write_text("a file")
    for name in ("9" * 20, "9" * 255, str(_LARGEST + 1), "²", "٣", "1 ", "+", "1e3"):
        (tmp_path / name).mkdir()
    expected = {7: str(tmp_path / "7")}
    assert list_versions(str(tmp_path)) == expected
    assert list_versions(f"file://{tmp_path}") == {7: f"file://{tmp_path}/7"}
    publish(tmp_path, _LARGEST)
    (tmp_path / str(-(2**63))).mkdir()
    assert sorted(list_versions(str(tmp_path))) == [-(2**63), 7, _LARGEST]


def test_a_base_path_that_cannot_be_read_keeps_the_others_going(manager, tmp_path, caplog):
    (tmp_path / "file").write_text("no folder")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    publish(tmp_path / "vanishes", 1)
    publish(tmp_path / "good", 1)
    places = {name: tmp_path / name for name in ("file", "loop", "vanishes", "good")}
    # A null byte cannot be in a path: Python refuses it with a ValueError.
    manager.apply(models(null="/a\\000b", missing="weird://x", **places))
    manager.start()
    served = lambda: (manager.available("vanishes"), manager.available("good"))  # noqa: E731
    assert until(lambda: served() == ([1], [1]), 10)
    (tmp_path / "vanishes").rename(tmp_path / "away")
    publish(tmp_path / "good", 2)
    assert until(lambda: served() == ([1], [2]), 10)
    for name in ("file", "loop", "missing", "null", "vanishes"):
        assert until(lambda name=name: f"for servable {name} with error" in caplog.text, 10)


@pytest.mark.parametrize("error", [PermissionError("no"), RuntimeError("odd"), RecursionError()])
def test_any_failure_of_one_scan(manager, tmp_path, monkeypatch, error):
    from tfrz.serving import manager as module

    publish(tmp_path / "bad", 1)
    publish(tmp_path / "good", 1)

    def scan(path: str) -> dict[int, str]:
        if path.endswith("bad"):
            raise error
        return list_versions(path)

    monkeypatch.setattr(module, "list_versions", scan)
    manager.apply(models(bad=tmp_path / "bad", good=tmp_path / "good"))
    manager.start()
    assert until(lambda: manager.available("good") == [1], 10)
    publish(tmp_path / "good", 2)
    assert until(lambda: manager.available("good") == [2], 10)
    assert manager.available("bad") == []


def test_a_failure_between_the_scans(manager, tmp_path, monkeypatch):
    publish(tmp_path, 1)
    manager.apply(models(m=tmp_path))
    manager.start()
    assert until(lambda: manager.available("m") == [1], 10)
    polled, failures = manager.poll, []

    def poll() -> None:
        if not failures:
            failures.append("once")
            raise RuntimeError("once")
        polled()

    monkeypatch.setattr(manager, "poll", poll)
    assert until(lambda: failures, 10)
    publish(tmp_path, 2)
    assert until(lambda: manager.available("m") == [2], 10)


def test_a_version_that_fails_to_close_still_ends(manager, tmp_path, monkeypatch):
    def close(self) -> None:
        raise RuntimeError("cannot be closed")

    monkeypatch.setattr(Loaded, "close", close)
    publish(tmp_path, 1)
    manager.apply(models(m=tmp_path))
    manager.start()
    assert until(lambda: manager.available("m") == [1], 10)
    publish(tmp_path, 2)
    assert until(lambda: [row[:2] for row in manager.status("m")] == [(2, 30), (1, 50)], 10)


def test_any_failure_of_the_configuration_file(tmp_path, monkeypatch):
    from tfrz.serving import configuration

    server = object.__new__(Server)
    server.config = ServerConfig(model_config_file="models.config")
    looks, applied = iter([ValueError("odd"), OSError("gone"), "models"]), []

    class Manager:
        apply = staticmethod(applied.append)

    class Stopping:
        @staticmethod
        def wait(seconds: float) -> bool:
            return bool(applied)

    def read(config: ServerConfig) -> str:
        found = next(looks)
        if isinstance(found, Exception):
            raise found
        return found

    server.manager, server._stopping = Manager(), Stopping()
    monkeypatch.setattr(configuration, "models_of_flags", read)
    server._poll_config()
    assert applied == ["models"]
