"""A lane: an environment's Python, in whose processes tasks run."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import tfrz
from tfrz.errors import InputError
from tfrz.reproduce.experiment import Context
from tfrz.reproduce.runs import Row

NAMES = ("reference", "newest")
# Where `make` puts the environment of each.
_PYTHON = {"reference": ".venv/bin/python", "newest": ".venv-newest/bin/python"}
_LANE_KEYS = ("lane", "versions", "source")
_WORKER = "tfrz.reproduce.lanes.worker"
# Importing TensorFlow on a busy machine.
_ABOUT_CAP_S = 120


class TaskError(Exception):
    """A task failed in its process; the message is the last line that it wrote."""


class TimedOut(Exception):
    """A task was stopped at its cap of time."""


@dataclasses.dataclass(frozen=True)
class Lane:
    """An environment that tasks run in.

    Attributes:
      name: `reference` or `newest`.
      python: its interpreter.
      versions: of Python, TensorFlow and Keras.
      source: digest of the source of tfrz that it imports.
    """

    name: str
    python: str
    versions: Mapping[str, str]
    source: str

    def key(self, task: Mapping[str, Any]) -> dict[str, Any]:
        """The key of a task's run in this lane: another source or other versions run it anew."""
        about = {"lane": self.name, "versions": dict(self.versions), "source": self.source}
        return {**about, **task}

    @property
    def described(self) -> str:
        """The lane with its versions."""
        return f"{self.name}: " + ", ".join(f"{k} {v}" for k, v in self.versions.items())


def _environment() -> dict[str, str]:
    """The variables of a worker: it imports the same source of tfrz as this process."""
    found = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    folder = Path(tfrz.__file__).resolve().parent.parent
    installed = {Path(sysconfig.get_path(kind)).resolve() for kind in ("purelib", "platlib")}
    if folder not in installed:  # An installed package brings its environment's libraries along.
        found["PYTHONPATH"] = str(folder)
    found.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    found.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    return found


def run_task(python: str, task: Mapping[str, Any], cap_s: float) -> dict[str, Any]:
    """Runs a task in a process of an interpreter.

    Args:
      python: the interpreter.
      task: plain values; `do` is a name of `worker.TASKS`.
      cap_s: seconds after which it is stopped.

    Returns:
      What the task returns.

    Raises:
      TaskError: the task failed.
      TimedOut: it was stopped.
    """
    with tempfile.TemporaryDirectory() as folder:
        asked, answered = Path(folder, "task.json"), Path(folder, "out.json")
        asked.write_text(json.dumps(dict(task)))
        command = [python, "-W", "ignore", "-m", _WORKER, str(asked), str(answered)]
        try:
            # In an empty folder: a module of the user's must not take the place of a library's.
            done = subprocess.run(
                command,
                cwd=folder,
                env=_environment(),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=cap_s,
            )
        except subprocess.TimeoutExpired as error:
            raise TimedOut(f"stopped after {cap_s:g} s") from error
        except OSError as error:
            raise TaskError(f"cannot run {python}: {error.strerror or error}") from error
        if done.returncode or not answered.exists():
            lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
            says = lines[-1] if lines else f"exit status {done.returncode}"
            raise TaskError(says)
        return dict(json.loads(answered.read_text()))


def lane_of(python: str) -> Lane:
    """The lane that an interpreter belongs to.

    Raises:
      InputError: it does not run, or cannot import tfrz.
    """
    try:
        found = run_task(python, {"do": "about"}, _ABOUT_CAP_S)
    except (TaskError, TimedOut) as error:
        raise InputError(f"{python} cannot run tfrz: {error}") from error
    return Lane(found["lane"], python, found["versions"], found["source"])


def other_python(given: str | None, this: str, folder: Path, prefix: str) -> str:
    """The interpreter of the other lane.

    Args:
      given: by the user; None for the environment that `make` made.
      this: name of the lane of this process.
      folder: in which `make` was run.
      prefix: of the environment of this process.

    Returns:
      An absolute path.

    Raises:
      InputError: there is none.
    """
    if given is not None:
        path = Path(given).absolute()
        if not path.is_file():
            raise InputError(f"--other-lane {given}: no such file; name a Python interpreter")
        return str(path)
    own = Path(prefix).resolve()
    for name in sorted(NAMES, key=lambda name: name == this):
        path = folder / _PYTHON[name]
        if path.is_file() and path.parent.parent.resolve() != own:
            return str(path.absolute())
    raise InputError(
        f"{folder} has no environment of the other lane ({' or '.join(_PYTHON.values())}): "
        "name its Python with --other-lane PYTHON"
    )


def checked(this: Lane, other: Lane) -> dict[str, Lane]:
    """Both lanes by name, the reference lane first.

    Raises:
      InputError: they are the same one, or import different versions of tfrz.
    """
    if this.name == other.name:
        raise InputError(
            f"{other.python} has Keras {other.versions['keras']}, and this Python Keras "
            f"{this.versions['keras']}: name a Python of the other lane with --other-lane"
        )
    if this.source != other.source:
        raise InputError(
            f"{other.python} imports another tfrz than this one: install the same version there"
        )
    both = {lane.name: lane for lane in (this, other)}
    return {name: both[name] for name in NAMES}


def both_lanes(context: Context) -> dict[str, Lane]:
    """The lane of this process and the other one, by name, the reference lane first.

    Raises:
      InputError: there is no other lane.
    """
    from tfrz.keras_versions import LANE

    python = other_python(context.other_lane, LANE, Path.cwd(), sys.prefix)
    lanes = checked(lane_of(sys.executable), lane_of(python))
    for lane in lanes.values():
        context.say(lane.described)
    return lanes


def capped(pythons: Mapping[str, str], cap_s: float, key: Mapping[str, Any]) -> Row:
    """Runs the task of a key in its lane; a function of the module, for `Context.trained`.

    Args:
      pythons: lanes' names to interpreters.
      cap_s: seconds after which it is stopped.
      key: of `Lane.key`.

    Returns:
      What the task returns; or `unfinished`, why it failed or was stopped.
    """
    task = {name: value for name, value in key.items() if name not in _LANE_KEYS}
    what = f"{task['do']} of {task.get('model', 'layers')} on the {key['lane']} lane"
    try:
        return {**run_task(pythons[key["lane"]], task, cap_s), "says": what}
    except (TaskError, TimedOut) as error:
        return {"unfinished": str(error), "says": f"{what}: {error}"}


def unfinished(rows: Iterable[Row]) -> str:
    """Which of the rows are not finished, and why; empty for none."""
    return "; ".join(
        f"{r['key']['do']} of {r['key'].get('model', 'layers')} on the {r['key']['lane']} lane: "
        f"{r['unfinished']}"
        for r in rows
        if "unfinished" in r
    )
