"""Every row of the registry is whole, and every layer and model it names is in the battery."""

from __future__ import annotations

import inspect

import pytest

from tests.conformance.case import LAYER_CASES, MODEL_CASES
from tfrz.zoo import registry
from tfrz.zoo.run_config import load_run_config, run_config_from_mapping, run_config_to_mapping

ENTRIES = [registry.get(name) for name in registry.names()]


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda e: e.name)
def test_every_layer_and_model_has_a_case(entry):
    assert set(entry.layers) <= {case.layer for case in LAYER_CASES}
    assert entry.name in {case.model for case in MODEL_CASES}


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda e: e.name)
def test_every_dotted_path_leads_somewhere(entry):
    for path in (entry.model, entry.config, entry.task.task, *entry.layers, *entry.losses):
        assert inspect.isclass(registry.resolve(path))
        assert inspect.getdoc(registry.resolve(path))


@pytest.mark.parametrize(
    ("entry", "dataset"),
    [pytest.param(e, d, id=f"{e.name}-{d}") for e in ENTRIES for d in e.datasets],
)
def test_every_configuration_loads_and_round_trips(entry, dataset):
    config = load_run_config(entry.name, dataset)
    assert run_config_from_mapping(run_config_to_mapping(config)) == config
    files = [entry.config_directory / f"{name}.yaml" for name in (dataset, "default")]
    assert any(path.exists() for path in files)


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda e: e.name)
def test_a_config_is_a_frozen_dataclass_that_checks_itself(entry):
    config = entry.load("config")()
    with pytest.raises(AttributeError):
        config.anything = 1
