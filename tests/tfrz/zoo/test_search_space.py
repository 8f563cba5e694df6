"""Search spaces: what models declare, what is drawn, what data a trial can share."""

from __future__ import annotations

import json
import math

import pytest

from tests.conformance.test_models import SIZES
from tfrz.config import to_mapping
from tfrz.data.records import open_source
from tfrz.errors import ConfigError
from tfrz.zoo import registry
from tfrz.zoo.run_config import load_run_config, run_config_to_mapping, with_values
from tfrz.zoo.search_space import (
    check_search,
    chosen_values,
    combinations,
    draw,
    stand_in,
    trial_config,
)
from tfrz.zoo.tune import best_first

SPACE = "tuner.search_space={model.rank: [2, 4, 8], model.hidden_units: [[8], [8, 4]]}"


def _config(*overrides: str):
    return load_run_config("dcn_v2", "simulated", [SPACE, *overrides])


@pytest.mark.parametrize("dataset", ["simulated", "file"])
@pytest.mark.parametrize("model", registry.names())
def test_every_model_declares_a_space_around_its_own_configuration(model, dataset):
    timelines = registry.get(model).record_type == "timeline"
    slices = ["data.timeline.slices=simulated"] if timelines else []
    config = load_run_config(model, dataset, slices)
    assert not config.tuner.enabled
    assert "trainer.learning_rate" in config.tuner.search_space
    assert any(name.startswith("model.") for name in config.tuner.search_space)
    check_search(config)
    for dotted, values in config.tuner.search_space.items():
        section, _, name = dotted.partition(".")
        assert to_mapping(getattr(getattr(config, section), name)) in values, dotted
        assert len(values) > 1


def test_a_later_space_takes_the_place_of_an_earlier_one(tmp_path):
    assert set(_config().tuner.search_space) == {"model.rank", "model.hidden_units"}
    path = tmp_path / "space.yaml"
    path.write_text("tuner: {search_space: {model.dropout: [0.0, 0.1]}}\n")
    config = load_run_config("dcn_v2", "simulated", [], path)
    assert config.tuner.search_space == {"model.dropout": [0.0, 0.1]}
    # Other values of the section are merged as everywhere.
    config = load_run_config("dcn_v2", "simulated", ["tuner.max_trials=3"], path)
    assert config.tuner.search_space == {"model.dropout": [0.0, 0.1]}
    assert config.tuner.max_trials == 3


def test_draws_are_different_begin_alike_and_exhaust_a_small_space():
    few, more = draw(_config("tuner.max_trials=3")), draw(_config("tuner.max_trials=5"))
    assert more[:3] == few
    everything = draw(_config("tuner.max_trials=100"))
    assert len(everything) == combinations(_config()) == 6
    assert len({json.dumps(values) for values in everything}) == 6
    assert everything[:5] == more
    # Seed 0 is one like the others, which it is not to keras-tuner.
    assert draw(_config("trainer.seed=0")) == everything
    assert draw(_config("trainer.seed=1")) != everything


@pytest.mark.parametrize(
    "values", [[8, 16], [0.1, 0.2], ["a", "b"], [True, False], [None, 2], [[8], [8, 4]], [0, 0.5]]
)
def test_what_keras_tuner_draws_stands_for_one_value(values):
    import keras_tuner

    drawn = [stand_in(value, values) for value in values]
    choice = keras_tuner.HyperParameters()
    choice.Choice("x", drawn)  # One type, no lists, no nulls: it would refuse them.
    config = _config()
    object.__setattr__(config.tuner, "search_space", {"x": values})
    for value, stand in zip(values, drawn, strict=True):
        assert chosen_values(config, {"x": stand, "y": 0}) == {"x": value}


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ("{model.rank: [8, 0]}", r"tuner\.search_space: model\.rank"),
        ("{model.rank: [8, 8]}", "has a value twice"),
        ("{tuner.max_trials: [1, 2]}", "does not change how a model is trained"),
        ("{name: [dcn_v2, m3]}", "does not change how a model is trained"),
        ("{model.rank: 8}", "expected a list"),
    ],
)
def test_a_bad_space_is_refused_when_it_is_read(space, message):
    with pytest.raises(ConfigError, match=message):
        load_run_config("dcn_v2", "simulated", [f"tuner.search_space={space}"])


@pytest.mark.slow
def test_a_trial_trains_its_values_and_the_best_keeps_the_epochs():
    config = _config("tuner.epochs_per_trial=1", "trainer.epochs=4", "evaluator.min_auc=0.7")
    values = {"model.rank": 2, "model.hidden_units": [8, 4]}
    trial = trial_config(config, values)
    assert (trial.model.rank, trial.model.hidden_units) == (2, (8, 4))
    assert (trial.trainer.epochs, trial.trainer.tensorboard) == (1, False)
    best = with_values(config, values)
    assert best.trainer == config.trainer
    before, after = run_config_to_mapping(config), run_config_to_mapping(best)
    before["model"] |= {"rank": 2, "hidden_units": [8, 4]}
    assert after == before
    searched = trial_config(config, {"trainer.epochs": 3})
    assert searched.trainer.epochs == 3
    assert trial_config(_config("trainer.epochs=4"), values).trainer.epochs == 4


class _Recorded:
    """A configuration that notes which names are read."""

    def __init__(self, config, noted: set[str], where: str = "") -> None:
        self.__dict__.update(_config=config, _noted=noted, _where=where)

    def __getattr__(self, name):
        value, where = getattr(self._config, name), f"{self._where}{name}"
        if self._where:
            self._noted.add(where)
            return value
        return _Recorded(value, self._noted, f"{where}.")


@pytest.mark.parametrize("model", registry.names())
def test_tasks_say_which_values_decide_what_they_prepare(model):
    entry = registry.get(model)
    config = load_run_config(model, "simulated", [SIZES[entry.record_type]])
    task, noted = entry.new_task(config), set()
    task.config = _Recorded(config, noted)
    task.prepare(open_source("simulated", None, entry.record_type, **config.data.options))
    shared = {"trainer.batch_size", "trainer.seed"}  # Batches are cut anew.
    checked = {"export.top_k"}  # Refuses, and changes nothing.
    read = {name for name in noted if name.split(".")[0] not in ("data", "features")}
    assert {name for name in noted if name.startswith("data.")}
    assert read - shared - checked <= set(getattr(task, "prepare_reads", ())), read


@pytest.mark.parametrize(("direction", "order"), [("min", [3, 1, 4, 2]), ("max", [1, 4, 3, 2])])
def test_the_best_is_first_and_what_failed_last(direction, order):
    from tfrz.zoo.tuning import TrialResult

    objectives = [0.5, None, 0.25, 0.5]
    results = [TrialResult(n, {}, value, {}, 1, 1.0) for n, value in enumerate(objectives, 1)]
    assert [result.trial for result in best_first(results, direction)] == order


def test_combinations_multiply():
    config = load_run_config("dcn_v2", "criteo")
    assert combinations(config) == math.prod(map(len, config.tuner.search_space.values()))
