"""A run's configuration: where values come from, and what is refused before anything runs."""

from __future__ import annotations

import pytest

from tfrz.errors import ConfigError, InputError
from tfrz.zoo import registry
from tfrz.zoo.run_config import load_run_config, run_config_to_mapping, with_override


def test_later_sources_win():
    config = load_run_config("dcn_v2", "simulated", ["model.rank=5", "trainer.epochs=9"])
    assert (config.model.rank, config.trainer.epochs) == (5, 9)
    assert config.model.embedding_dim == 8  # of simulated.yaml
    assert config.export.warmup_examples == 8  # of the dataclass


def test_one_value_is_changed_and_the_rest_kept():
    config = load_run_config("dcn_v2")
    changed = with_override(config, "trainer.learning_rate", 0.5)
    assert changed.trainer.learning_rate == 0.5
    before, after = run_config_to_mapping(config), run_config_to_mapping(changed)
    for mapping in (before, after):
        del mapping["trainer"]["learning_rate"], mapping["tuner"]
    assert before == after
    with pytest.raises(ConfigError, match=r"model\.rank"):
        with_override(config, "model.rank", 0)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("tuner.search_space={model.rnk: [1]}", "did you mean 'rank'"),
        ("tuner.search_space={model.rank: []}", "has no values"),
        ("tuner.search_space={model.rank: [0]}", "model.rank"),
        ("data.validation_fraction=0", "between 0 and 1"),
        ("data.validation_fraction=0.95", "must leave something to train on"),
        ("evaluator.min_auc=1", "under 1"),
        ("evaluator.calibration_bounds=[1.2, 0.8]", "the smaller first"),
        ("export.warmup_examples=1001", "0 to 1000"),
        ("pipeline.schema=guessed", "pipeline.schema"),
        ("trainer.optimizer=adamm", "trainer.optimizer"),
    ],
)
def test_bad_values_are_refused(override, message):
    with pytest.raises(ConfigError, match=message):
        load_run_config("dcn_v2", "simulated", [override])


def test_a_name_is_registered_once_and_plugins_must_import(monkeypatch):
    entry = registry.get("dcn_v2")
    with pytest.raises(InputError, match="registered already"):
        registry.register(entry)
    monkeypatch.setenv("TFRZ_PLUGINS", "no.such.module")
    with pytest.raises(InputError, match=r"TFRZ_PLUGINS names no\.such\.module"):
        registry.load_plugins()


@pytest.mark.parametrize("model", registry.names())
def test_every_key_says_what_it_is_for(model):
    from tfrz.zoo.pages import configuration_keys

    keys = {name: text for name, _, text in configuration_keys(load_run_config(model))}
    assert "trainer.batch_size" in keys
    assert any(name.startswith("model.") for name in keys)
    assert not [name for name, text in keys.items() if len(text) < 5 and name != "name"]
