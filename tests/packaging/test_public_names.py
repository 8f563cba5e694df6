"""Every name that a package announces can be imported, and nothing of the zoo is left out."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

import tfrz.layers
import tfrz.losses
import tfrz.models
from tfrz.zoo import registry

ROOT = Path(__file__).resolve().parents[2]
ANNOUNCING = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for package in ("tfrz", "tfx_pipelines")
    for path in (ROOT / package).rglob("*.py")
    if "\n__all__ = [" in path.read_text()
)


@pytest.mark.parametrize("name", ANNOUNCING)
def test_every_announced_name_is_there_once(name):
    if name.startswith("tfrz.agents"):
        pytest.importorskip("tf_agents")
    module = importlib.import_module(name)
    assert [public for public in module.__all__ if not hasattr(module, public)] == []
    assert len(module.__all__) == len(set(module.__all__))


@pytest.mark.parametrize("name", registry.names())
def test_the_models_of_the_registry_and_their_layers_are_public(name):
    entry = registry.get(name)
    for reference, package in (
        (entry.model, tfrz.models),
        (entry.config, tfrz.models),
        *((layer, tfrz.layers) for layer in entry.layers),
        *((loss, tfrz.losses) for loss in entry.losses),
    ):
        module, _, public = reference.partition(":")
        if module.startswith("tfrz."):
            assert public in package.__all__, f"from {package.__name__} import {public}"
