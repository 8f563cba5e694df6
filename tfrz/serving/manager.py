"""Models and their versions: which are wanted, which are loaded, which one answers.

A new version is loaded before an old one is let go, and an old one is closed only when the last
request on it has ended: no request fails because a version changes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import threading
from collections.abc import Iterator
from pathlib import Path

from tensorflow_serving.apis import get_model_status_pb2

from tfrz.serving.model import LoadedModel
from tfrz.serving.status import RequestError, invalid, not_found
from tfrz.serving.warmup import warm_up

logger = logging.getLogger(__name__)

State = get_model_status_pb2.ModelVersionStatus.State


def list_versions(base_path: Path) -> dict[int, Path]:
    """Versions under a base path: children whose whole name is a number.

    Raises:
      OSError: the base path cannot be read.
    """
    found: dict[int, Path] = {}
    for child in sorted(base_path.iterdir()):
        name = child.name
        if not (name.isascii() and name.isdigit() and child.is_dir()) or int(name) >= 2**63:
            continue
        if int(name) in found:
            logger.warning("%s and %s are the same version", found[int(name)], child)
            continue
        found[int(name)] = child
    return found


@dataclasses.dataclass
class _Version:
    """A version's record; it stays when the version is gone."""

    number: int
    state: int = State.START
    code: int = 0
    message: str = ""
    model: LoadedModel | None = None
    users: int = 0


class ServedModel:
    """One model of the server: the latest version under its base path.

    Args:
      name: what requests call it.
      base_path: holds a folder per version.
      warmup: run the recorded warm-up requests before a version takes traffic.
    """

    def __init__(self, name: str, base_path: Path, warmup: bool = True) -> None:
        self.name, self.base_path, self._warmup = name, base_path, warmup
        self._versions: dict[int, _Version] = {}
        self._lock = threading.Lock()

    def poll(self) -> None:
        """Looks at the base path once, and loads and unloads accordingly."""
        try:
            found = list_versions(self.base_path)
        except OSError:
            logger.error("Could not find base path %s for servable %s", self.base_path, self.name)
            return
        if not found:
            logger.warning(
                "No versions of servable %s found under base path %s", self.name, self.base_path
            )
        wanted = {max(found)} if found else set()
        for number in sorted(wanted, reverse=True):
            record = self._versions.get(number)
            # A version that failed stays failed; one that was let go may come back (roll-back).
            if record is None or (record.state == State.END and not record.code):
                self._load(number, found[number])
        serving = any(
            v.state == State.AVAILABLE and v.number in wanted for v in self._versions.values()
        )
        for record in list(self._versions.values()):
            loaded = record.state == State.AVAILABLE
            if loaded and record.number not in wanted and (serving or not found):
                self._release(record)

    def _load(self, number: int, path: Path) -> None:
        record = _Version(number, State.LOADING)
        with self._lock:
            self._versions[number] = record
        try:
            model = LoadedModel(path)
            if self._warmup:
                warm_up(model)
        except Exception as error:  # whatever is wrong with a model must not end the server
            logger.error("Loading servable {%s %d} failed: %s", self.name, number, error)
            with self._lock:
                record.code, record.message = 2, str(error)
                if isinstance(error, RequestError):
                    record.code = error.code.value[0]
                record.state = State.END
            return
        with self._lock:
            record.model, record.state = model, State.AVAILABLE
        logger.info(
            "Successfully loaded servable version {name: %s version: %d}", self.name, number
        )

    def _release(self, record: _Version) -> None:
        with self._lock:
            record.state = State.UNLOADING
            idle = record.users == 0
        if idle:
            self._close(record)

    def _close(self, record: _Version) -> None:
        if record.model is not None:
            record.model.close()
        with self._lock:
            record.model, record.state = None, State.END
        logger.info("Unloaded servable version {name: %s version: %d}", self.name, record.number)

    @contextlib.contextmanager
    def use(self, version: int | None) -> Iterator[tuple[int, LoadedModel]]:
        """Holds a version for the time of a request.

        Raises:
          RequestError: NOT_FOUND.
        """
        with self._lock:
            available = [v for v in self._versions.values() if v.state == State.AVAILABLE]
            if version is not None:
                available = [v for v in available if v.number == version]
            if not available:
                raise _no_servable(self.name, version)
            record = max(available, key=lambda v: v.number)
            record.users += 1
            model = record.model
        assert model is not None
        try:
            yield record.number, model
        finally:
            with self._lock:
                record.users -= 1
                last = record.users == 0 and record.state == State.UNLOADING
            if last:
                self._close(record)

    def status(self, version: int | None = None) -> list[tuple[int, int, int, str]]:
        """(version, state, error code, error message), the largest version first.

        Raises:
          RequestError: NOT_FOUND.
        """
        with self._lock:
            records = sorted(self._versions.values(), key=lambda v: -v.number)
            rows = [(v.number, v.state, v.code, v.message) for v in records]
        if not rows:
            raise not_found(f"Could not find any versions of model {self.name}")
        if version is not None:
            rows = [row for row in rows if row[0] == version]
            if not rows:
                raise not_found(f"Could not find version {version} of model {self.name}")
        return rows

    @property
    def available(self) -> list[int]:
        """Numbers of the versions that answer."""
        with self._lock:
            return sorted(v.number for v in self._versions.values() if v.state == State.AVAILABLE)

    @property
    def failure(self) -> str | None:
        """Why no version answers, once every one has failed for good."""
        with self._lock:
            records = list(self._versions.values())
        if records and all(v.state == State.END and v.code for v in records):
            return records[-1].message
        return None


def _no_servable(name: str, version: int | None) -> RequestError:
    which = f"Latest({name})" if version is None else f"Specific({name}, {version})"
    return not_found(f"Servable not found for request: {which}")


class ModelManager:
    """The models of a server, polled by a thread.

    Args:
      models: by name.
      poll_seconds: time between looks at the base paths; 0 to look once.
    """

    def __init__(self, models: dict[str, ServedModel], poll_seconds: float = 1.0) -> None:
        self.models = models
        self._poll_seconds = poll_seconds
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def poll(self) -> None:
        """Looks at every base path once."""
        for model in self.models.values():
            model.poll()

    def start(self) -> None:
        """Goes on looking, in the background."""
        if self._poll_seconds > 0:
            self._thread = threading.Thread(target=self._loop, name="poll", daemon=True)
            self._thread.start()

    def _loop(self) -> None:
        while not self._stop.wait(self._poll_seconds):
            self.poll()

    def stop(self) -> None:
        """Ends the thread."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    @contextlib.contextmanager
    def use(
        self, name: str, version: int | None = None, label: str | None = None
    ) -> Iterator[tuple[int, LoadedModel]]:
        """Holds a version for the time of a request.

        Raises:
          RequestError: as section 5 of the contract says.
        """
        if not name:
            raise invalid("ModelSpec has no name specified.")
        if label is not None:
            raise invalid(f"Unrecognized servable version label: {label}")
        if name not in self.models:
            raise _no_servable(name, version)
        with self.models[name].use(version) as held:
            yield held

    def status(self, name: str, version: int | None = None) -> list[tuple[int, int, int, str]]:
        """See `ServedModel.status`."""
        if name not in self.models:
            raise not_found(f"Could not find any versions of model {name}")
        return self.models[name].status(version)
