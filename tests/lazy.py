"""Modules that load at their first use: pytest collects without TFX, Beam and TF-Agents.

Each worker imports every test module before it runs the first test. A test module that needs one
of the large libraries, or a module of the product that imports one, names it here:

    beam = lazy("apache_beam")
    local_runner = lazy("tfx_pipelines.local_runner")

and uses `beam.Map` inside its functions. At the top level of a module (the base of a class, the
arguments of `parametrize`) the first use is the import of that module, so keep it out of there.
"""

from __future__ import annotations

import importlib
from typing import Any


class _Lazy:
    """Stands for a module, and imports it when one of its attributes is read."""

    def __init__(self, name: str) -> None:
        object.__setattr__(self, "_name", name)

    def __getattr__(self, attribute: str) -> Any:
        # pytest looks for its own marks, and for mocks, among all that a test module holds.
        if attribute.startswith(("__", "_mock", "_pytest", "pytest")):
            raise AttributeError(attribute)
        return getattr(importlib.import_module(self._name), attribute)

    def __setattr__(self, attribute: str, value: Any) -> None:
        raise TypeError(f"patch the module itself: setattr('{self._name}.{attribute}', value)")

    def __reduce__(self) -> tuple[Any, ...]:
        return lazy, (self._name,)


def lazy(name: str) -> Any:
    """Returns a stand-in for the module `name`."""
    return _Lazy(name)
