"""Models and their versions: which are wanted, which are loaded, and which serves a request.

A new version is loaded before an old one is released, and an old one is closed only after its last
request: no request fails because a version changes. A function passed to the manager loads the
versions.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import tensorflow as tf
from tensorflow_serving.apis import get_model_status_pb2
from tensorflow_serving.config import model_server_config_pb2

from tfrz.serving.model import LoadedModel
from tfrz.serving.status import RequestError, code_name, invalid, not_found

logger = logging.getLogger(__name__)

State = get_model_status_pb2.ModelVersionStatus.State
_VERSION = re.compile(r"[+-]?[0-9]{1,20}", re.ASCII)
_URI = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*://")
_PLATFORM = "tensorflow"

# Loads version `number` of the model `name` from a folder.
Loader = Callable[[str, int, str], LoadedModel]


def list_versions(base_path: str) -> dict[int, str]:
    """Returns the versions under a base path: children whose whole name is a 64-bit number.

    Args:
      base_path: an absolute path, or a URI of a file system that TensorFlow knows.

    Returns:
      The folder of each version.

    Raises:
      OSError: a local base path cannot be read.
      tf.errors.OpError: a base path of another file system cannot be read.
    """
    local = base_path.removeprefix("file://")
    # TensorFlow refuses a whole folder for one name that is not UTF-8; such a name is no version.
    children = tf.io.gfile.listdir(base_path) if _URI.match(local) else os.listdir(local)
    found: dict[int, str] = {}
    for child in sorted(children):
        name = child.rstrip("/")
        if not _VERSION.fullmatch(name) or not -(2**63) <= int(name) < 2**63:
            continue
        path = tf.io.gfile.join(base_path, name)
        if not tf.io.gfile.isdir(path):
            continue
        if int(name) in found:
            logger.warning("%s and %s are the same version", found[int(name)], path)
            continue
        found[int(name)] = path
    return found


def _wanted(policy: Any, found: Mapping[int, str]) -> list[int]:
    """Returns the versions that a `ServableVersionPolicy` selects, the largest first."""
    numbers = sorted(found, reverse=True)
    choice = policy.WhichOneof("policy_choice")
    if choice == "all":
        return numbers
    if choice == "specific":
        return [number for number in numbers if number in set(policy.specific.versions)]
    return numbers[: max(1, policy.latest.num_versions)]


@dataclasses.dataclass
class _Version:
    """The record of a version, which is kept after the version is unloaded."""

    number: int
    path: str
    state: int = State.START
    error: RequestError | None = None
    tries: int = 0
    retry_at: float = 0.0
    busy: bool = False  # a thread loads it now
    wanted: bool = True
    model: LoadedModel | None = None
    users: int = 0

    @property
    def failed(self) -> bool:
        """Whether it failed permanently."""
        return self.state == State.END and self.error is not None


@dataclasses.dataclass
class _Model:
    """A model that is or was configured."""

    config: model_server_config_pb2.ModelConfig
    versions: dict[int, _Version] = dataclasses.field(default_factory=dict)

    @property
    def available(self) -> list[_Version]:
        return [v for v in self.versions.values() if v.state == State.AVAILABLE]


@dataclasses.dataclass(frozen=True)
class ManagerOptions:
    """Polling and retries of a manager.

    Attributes:
      poll_seconds: time between scans of the base paths; 0 scans once, a negative value never.
      max_num_load_retries: number of retries of a failed load.
      retry_seconds: time between retries.
      num_load_threads: number of parallel loads; 0 loads one after another.
      allow_unavailable_labels: whether a new label may name a version that is not loaded.
    """

    poll_seconds: float = 1.0
    max_num_load_retries: int = 5
    retry_seconds: float = 60.0
    num_load_threads: int = 0
    allow_unavailable_labels: bool = False


class ModelManager:
    """The models of a server.

    Args:
      loader: loads a version; an exception that it raises is the error of the version.
      options: polling and retries.
    """

    def __init__(self, loader: Loader, options: ManagerOptions | None = None) -> None:
        self._loader, self._options = loader, options or ManagerOptions()
        self._models: dict[str, _Model] = {}
        self._configured: set[str] = set()
        self._labels: dict[str, dict[str, int]] = {}
        self._changed = threading.Condition(threading.RLock())
        self._pool = ThreadPoolExecutor(max(1, self._options.num_load_threads), "load")
        self._stopped = False
        self._next_poll = 0.0
        self._thread: threading.Thread | None = None

    # Configuration.

    def apply(self, models: model_server_config_pb2.ModelConfigList) -> set[str]:
        """Replaces the configured models with this list.

        Returns:
          The names of the new models.

        Raises:
          RequestError: the list is invalid, and nothing has changed.
        """
        with self._changed:
            self._check(models)
            new = {config.name for config in models.config} - self._configured
            self._configured = {config.name for config in models.config}
            self._labels = {config.name: dict(config.version_labels) for config in models.config}
            for config in models.config:
                kept = model_server_config_pb2.ModelConfig()
                kept.CopyFrom(config)
                if config.name in self._models:
                    self._models[config.name].config = kept
                else:
                    self._models[config.name] = _Model(kept)
            self._next_poll = 0.0
            self._changed.notify_all()
            return new

    def _check(self, models: model_server_config_pb2.ModelConfigList) -> None:
        names: set[str] = set()
        for config in models.config:
            if config.name in names:
                raise invalid(f"Illegal to list model {config.name} multiple times in config list")
            names.add(config.name)
        for config in models.config:
            if not config.base_path.startswith("/") and not _URI.match(config.base_path):
                raise invalid(
                    f"Expected model {config.name} to have an absolute path or URI; got "
                    f"base_path()={config.base_path}"
                )
        for config in models.config:
            running = self._models[config.name] if config.name in self._configured else None
            platform = _platform(config)
            if running is not None and platform and platform != _platform(running.config):
                raise invalid(
                    f"Illegal to change a model's platform. For model {config.name} platform was "
                    f"{_platform(running.config)} and new platform requested is {platform}"
                )
        for config in models.config:
            for label, version in config.version_labels.items():
                self._check_label(config.name, label, version)
        for config in models.config:
            if not _platform(config):
                raise invalid(
                    "Illegal setting neither ModelServerConfig::model_type (deprecated) nor "
                    f"ModelServerConfig::model_platform, model name is {config.name}"
                )
            if _platform(config) != _PLATFORM:
                raise invalid(
                    f"Model {config.name} requests unsupported platform {_platform(config)}"
                )
            if config.HasField("logging_config"):
                raise invalid("No request-logger-creator provided.")

    def _check_label(self, name: str, label: str, version: int) -> None:
        model = self._models.get(name)
        if model is not None and any(v.number == version for v in model.available):
            return
        if self._options.allow_unavailable_labels:
            if self._labels.get(name, {}).get(label, version) == version:
                return
        raise RequestError(
            grpc.StatusCode.FAILED_PRECONDITION,
            f"Request to assign label to version {version} of model {name}, which is not "
            "currently available for inference",
        )

    # Versions.

    def poll(self) -> None:
        """Scans every base path once, and starts the necessary loads and unloads."""
        with self._changed:
            models = {name: self._models[name] for name in self._configured}
            places = {name: model.config.base_path for name, model in models.items()}
        for name, base_path in places.items():
            try:
                self._aspire(name, list_versions(base_path))
            except Exception as error:  # one model must not end the polling of the others
                logger.error(
                    "Could not find base path %s for servable %s with error %s: %s",
                    base_path,
                    name,
                    type(error).__name__,
                    error,
                )
        with self._changed:
            for name in set(self._models) - self._configured:
                for record in self._models[name].versions.values():
                    record.wanted = False
            self._reconcile()

    def _aspire(self, name: str, found: Mapping[int, str]) -> None:
        with self._changed:
            if name not in self._configured:
                return
            model = self._models[name]
            policy = model.config.model_version_policy
            wanted = _wanted(policy, found)
            if not found:
                logger.warning(
                    "No versions of servable %s found under base path %s",
                    name,
                    model.config.base_path,
                )
            for number in policy.specific.versions:
                if number not in found:
                    logger.warning(
                        "Version %d of servable %s, which was requested to be served as a "
                        "specific version in the servable's config, was not found in the file "
                        "system",
                        number,
                        name,
                    )
            for record in model.versions.values():
                record.wanted = record.number in wanted
            for number in wanted:
                known = model.versions.get(number)
                # A permanent failure stays; a version that was unloaded may return (roll-back).
                if known is None or (known.state == State.END and not known.failed):
                    model.versions[number] = _Version(number, found[number])

    def _reconcile(self) -> None:
        """Starts the loads and unloads that are due. The lock is held."""
        now = time.monotonic()
        for name, model in self._models.items():
            serving = any(record.wanted for record in model.available)
            none_wanted = not any(record.wanted for record in model.versions.values())
            for record in sorted(model.versions.values(), key=lambda v: -v.number):
                loading = record.state in (State.START, State.LOADING) and not record.busy
                if loading and not record.wanted:
                    # Its folder was removed, or the policy changed, between two tries.
                    record.state, record.error = State.END, None
                elif loading and record.retry_at <= now and not self._stopped:
                    record.busy = True
                    self._pool.submit(self._load, name, record)
                elif record.state == State.AVAILABLE and not record.wanted:
                    if serving or none_wanted:
                        self._release(name, record)
        self._changed.notify_all()

    def _load(self, name: str, record: _Version) -> None:
        with self._changed:
            record.state = State.LOADING
            record.tries += 1
        try:
            model = self._loader(name, record.number, record.path)
        except Exception as error:  # a broken model must not end the server
            logger.error(
                "Loading servable: {name: %s version: %d} failed: %s", name, record.number, error
            )
            if not isinstance(error, RequestError):
                error = RequestError(grpc.StatusCode.UNKNOWN, str(error))
            with self._changed:
                record.busy, record.error = False, error
                record.retry_at = time.monotonic() + self._options.retry_seconds
                if record.tries > self._options.max_num_load_retries:
                    record.state = State.END
                self._reconcile()
            return
        with self._changed:
            record.model, record.busy, record.error = model, False, None
            record.state = State.AVAILABLE
            logger.info(
                "Successfully loaded servable version {name: %s version: %d}", name, record.number
            )
            self._reconcile()

    def _release(self, name: str, record: _Version) -> None:
        record.state = State.UNLOADING
        if record.users == 0:
            self._pool.submit(self._close, name, record)

    def _close(self, name: str, record: _Version) -> None:
        try:
            if record.model is not None:
                record.model.close()
        except Exception:  # it no longer serves requests, whether or not its memory was freed
            logger.exception("Unloading {name: %s version: %d} failed", name, record.number)
        with self._changed:
            record.model, record.state = None, State.END
            self._changed.notify_all()
        logger.info("Unloaded servable version {name: %s version: %d}", name, record.number)

    # The thread.

    def start(self) -> None:
        """Polls once, then continues in the background."""
        if self._options.poll_seconds >= 0:
            self.poll()
        self._next_poll = time.monotonic() + max(0.0, self._options.poll_seconds)
        self._thread = threading.Thread(target=self._loop, name="manager", daemon=True)
        self._thread.start()

    def _loop(self) -> None:
        while not self._stopped:
            try:
                self._step()
            except Exception:  # without this thread no version would ever change again
                logger.exception("Polling the base paths failed; it continues")
                with self._changed:
                    self._changed.wait(1.0)

    def _step(self) -> None:
        """Waits for the next poll or retry, and runs it."""
        with self._changed:
            now = time.monotonic()
            wakes = [
                record.retry_at
                for model in self._models.values()
                for record in model.versions.values()
                if record.state == State.LOADING and not record.busy
            ]
            # A new configuration is polled at once, whatever the period is.
            if self._options.poll_seconds > 0 or self._next_poll == 0.0:
                wakes.append(self._next_poll)
            wake = min(wakes, default=None)
            if wake is None or wake > now:
                self._changed.wait(None if wake is None else wake - now)
            if self._stopped:
                return
            now = time.monotonic()
            due = self._next_poll == 0.0 or (
                self._options.poll_seconds > 0 and self._next_poll <= now
            )
            if due:
                self._next_poll = now + max(0.001, self._options.poll_seconds)
            else:
                self._reconcile()
        if due:
            self.poll()

    def stop(self) -> None:
        """Stops the thread; nothing is loaded afterwards."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def wait_available(
        self, names: set[str], first_try: bool = False, deadline: float | None = None
    ) -> None:
        """Waits until each of these models has an available version.

        Args:
          names: the models.
          first_try: do not wait for versions to appear, nor for retries.
          deadline: by the monotonic clock.

        Raises:
          RequestError: UNKNOWN, a model cannot become available, with the reasons; or
            DEADLINE_EXCEEDED.
        """
        with self._changed:
            while not self._stopped:
                waiting, broken = 0, {}
                for name in sorted(names & self._configured):
                    model = self._models[name]
                    if model.available:
                        continue
                    records = [v for v in model.versions.values() if v.wanted]
                    failures = [v for v in records if v.failed or (first_try and v.error)]
                    if records and len(failures) == len(records):
                        worst = max(failures, key=lambda v: v.number)
                        broken[f"{name} version: {worst.number}"] = worst.error
                    elif first_try and not records:
                        broken[name] = not_found(
                            f"No versions of servable {name} found under base path "
                            f"{model.config.base_path}"
                        )
                    else:
                        waiting += 1
                if broken:
                    reasons = ", ".join(
                        f"{{name: {name}}} due to error: {code_name(error.code)}: {error.message}"
                        for name, error in broken.items()
                        if error is not None
                    )
                    raise RequestError(
                        grpc.StatusCode.UNKNOWN,
                        f"{len(broken)} servable(s) did not become available: {{{reasons}}}",
                    )
                if not waiting:
                    return
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    raise RequestError(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded")
                self._changed.wait(left)

    # Requests.

    @contextlib.contextmanager
    def use(
        self, name: str, version: int | None = None, label: str | None = None
    ) -> Iterator[tuple[int, LoadedModel]]:
        """Holds a version for the time of a request; yields its number and the model.

        Raises:
          RequestError: there is no such model, version or label (section 5 of the contract).
        """
        if not name:
            raise invalid("ModelSpec has no name specified.")
        with self._changed:
            if label is not None:
                if label not in self._labels.get(name, {}):
                    raise invalid(f"Unrecognized servable version label: {label}")
                version = self._labels[name][label]
            available = self._models[name].available if name in self._models else []
            if version is not None:
                available = [record for record in available if record.number == version]
            if not available:
                which = f"Latest({name})" if version is None else f"Specific({name}, {version})"
                raise not_found(f"Servable not found for request: {which}")
            record = max(available, key=lambda v: v.number)
            record.users += 1
            model = record.model
        assert model is not None
        try:
            yield record.number, model
        finally:
            with self._changed:
                record.users -= 1
                if record.users == 0 and record.state == State.UNLOADING and not self._stopped:
                    self._pool.submit(self._close, name, record)

    def status(self, name: str, version: int | None = None) -> list[tuple[int, int, int, str]]:
        """Returns (version, state, error code, error message), the largest version first.

        Raises:
          RequestError: NOT_FOUND.
        """
        rows = []
        with self._changed:
            versions = self._models[name].versions.values() if name in self._models else []
            for record in sorted(versions, key=lambda v: -v.number):
                error = record.error if record.failed else None
                code, message = (error.code.value[0], error.message) if error else (0, "")
                rows.append((record.number, record.state, code, message))
        if not rows:
            raise not_found(f"Could not find any versions of model {name}")
        if version is not None:
            rows = [row for row in rows if row[0] == version]
            if not rows:
                raise not_found(f"Could not find version {version} of model {name}")
        return rows

    def available(self, name: str) -> list[int]:
        """Returns the numbers of the available versions of a model, ascending."""
        with self._changed:
            records = self._models[name].available if name in self._models else []
            return sorted(record.number for record in records)


def _platform(config: model_server_config_pb2.ModelConfig) -> str:
    if config.model_platform:
        return str(config.model_platform)
    return _PLATFORM if config.model_type == model_server_config_pb2.TENSORFLOW else ""
