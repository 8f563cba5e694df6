"""Keeps the start-up chatter of libraries, which nobody can act on, off standard error."""

from __future__ import annotations

import contextlib
import importlib.abc
import importlib.machinery
import logging
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterator
from types import ModuleType
from typing import Any


@contextlib.contextmanager
def held_stderr() -> Iterator[None]:
    """Holds back what is written to descriptor 2, and writes it after all if the block fails."""
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.flush()
    with tempfile.TemporaryFile() as held:
        own = os.dup(2)
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:
            os.dup2(own, 2)
            held.seek(0)
            with os.fdopen(os.dup(2), "wb") as stderr:
                shutil.copyfileobj(held, stderr)
            raise
        finally:
            os.dup2(own, 2)
            os.close(own)


class _QuietTensorFlow(importlib.abc.MetaPathFinder):
    """Imports TensorFlow in silence.

    The libraries of TensorFlow 2.21 log before they read `TF_CPP_MIN_LOG_LEVEL`.
    """

    def find_spec(
        self, fullname: str, path: Any, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """The usual one, for `tensorflow` alone."""
        if fullname != "tensorflow":
            return None
        sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                with held_stderr():
                    execute(module)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def quiet_libraries() -> None:
    """Silences TensorFlow's start-up, unless the user asked for it by `TF_CPP_MIN_LOG_LEVEL`."""
    if os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3") >= "2":
        if "tensorflow" not in sys.modules:
            if not any(isinstance(finder, _QuietTensorFlow) for finder in sys.meta_path):
                sys.meta_path.insert(0, _QuietTensorFlow())
        logging.getLogger("tensorflow").setLevel(logging.ERROR)
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    # Google's libraries announce on import what Python they will need one day.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"google\.")
