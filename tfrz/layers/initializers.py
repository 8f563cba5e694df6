"""Initialisers of several matrices, derived from one."""

from __future__ import annotations

from typing import Any


def independent(initializer: Any, index: int) -> Any:
    """A copy of `initializer` with draws that differ from those of its other copies."""
    config = initializer.get_config()
    if config.get("seed") is not None:
        config["seed"] = config["seed"] + index
    return type(initializer).from_config(config)
