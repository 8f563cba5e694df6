"""Command lines that are refused, as the arguments of `pytest.mark.parametrize`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest


def cases(commands: Mapping[str, tuple[list[str], Any]]) -> list[Any]:
    """The names of the cases; those of `tfrz pipeline` need TFX."""
    return [
        pytest.param(
            name,
            id=name.replace(" ", "_"),
            marks=[pytest.mark.needs("tfx")] if arguments[0] == "pipeline" else [],
        )
        for name, (arguments, _) in commands.items()
    ]
