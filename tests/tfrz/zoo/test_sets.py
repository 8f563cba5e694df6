"""Sets from which nothing can be learned, chosen or reported are told before training."""

from __future__ import annotations

import logging

import pytest

from tfrz.cli.main import main
from tfrz.errors import InputError
from tfrz.zoo.run import open_run
from tfrz.zoo.run_config import load_run_config

DAY = 86_400
LOG = "user: user\nitem: item\ntime: time\nreward: reward\npropensity: propensity\n"
TIMELINE = """
user: user
time: time
ids: [{name: topic}]
action: action
actions: [view]
binary: [good, fair]
"""
SLICES = """
version: 4
slices:
  - {name: topics, timeline: explicit, id: topic, table: topic}
"""


def _prepare(folder, model, lines, spec, *settings):
    (folder / "rows.csv").write_text("\n".join(lines) + "\n")
    (folder / "spec.yaml").write_text(spec)
    config = load_run_config(model, "rows", settings)
    return open_run(config, str(folder / "rows.csv"), str(folder / "spec.yaml")).prepare()


def _clicks(validation: list[int], test: list[int] | None = None) -> list[str]:
    rows = [("train", i, i % 2) for i in range(40)]
    rows += [("validation", i, label) for i, label in enumerate(validation)]
    rows += [("test", i, label) for i, label in enumerate([0, 1] if test is None else test)]
    return ["split,user,label", *(f"{split},u{user},{label}" for split, user, label in rows)]


CLICKS = "split: split\nfeatures:\n  - {name: user}\n"
COLUMN = ("data.split=column",)


def _events(users: dict[str, str]) -> list[str]:
    """A line for each letter of a user, a day apart."""
    lines = ["user,item,time"]
    return lines + [
        f"{user},{item},{DAY * i}" for user, items in users.items() for i, item in enumerate(items)
    ]


EVENTS = "user: user\nitem: item\ntime: time\n"


def _actions(rewards: str) -> list[str]:
    """Logs of some users with these rewards; the last one is test, the one before validation."""
    lines = ["user,item,time,reward,propensity"]
    return lines + [
        f"u{u},b{(u + i) % 5},{DAY * i},{reward},0.2"
        for u in range(20)
        for i, reward in enumerate(rewards)
    ]


def _documents(lists: dict[str, list[str]]) -> list[str]:
    """Lists of grades for each split."""
    lines = ["query,item,split,grade,x"]
    for split, some in lists.items():
        for number, grades in enumerate(some):
            lines += [f"{split}{number},d{i},{split},{g},{i}" for i, g in enumerate(grades)]
    return lines


DOCUMENTS = """
query: query
item: item
relevance: grade
split: split
candidate:
  - {name: x, kind: numeric, dtype: float32}
"""


@pytest.mark.parametrize(
    ("model", "lines", "spec", "settings", "message"),
    [
        (
            "dcn_v2",
            _clicks([1] * 7),
            CLICKS,
            (*COLUMN, "trainer.early_stopping_metric=auc"),
            "label is 1 in all 7 validation examples: auc is undefined there, and it is to choose",
        ),
        ("dcn_v2", _clicks([]), CLICKS, COLUMN, "none of 42 impressions falls into validation"),
        (
            "m3",
            _events({f"u{i}": "aaaa" for i in range(9)}),
            EVENTS,
            (),
            "the training set has 1 item: there is nothing to choose from; check item",
        ),
        (
            "m3",
            _events({f"u{i}": "abcxyzv"[i % 3 :][:3] + "no" for i in range(9)}),
            EVENTS,
            (),
            "none of 9 validation targets is an item of the training set",
        ),
        (
            "m3",
            _events({f"u{i}": "abcd"[i % 4] for i in range(9)}),
            EVENTS,
            (),
            "no user has an event to hold out for validation",
        ),
        (
            "m3",
            _events({f"u{i}": "abcd" for i in range(9)}),
            EVENTS,
            ("data.history.split=time", "data.history.validation_start=0")
            + ("data.history.test_start=1",),
            "the training set is empty: bring more data|no user has an event to hold out",
        ),
        (
            "topk_reinforce",
            _actions("0111"),
            LOG,
            (),
            "the reward is 1 for all 20 validation actions: every policy is worth the same there",
        ),
        (
            "topk_reinforce",
            _actions("0100"),
            LOG,
            (),
            "the reward is 0 for all 20 validation actions",
        ),
        (
            "seq2slate",
            _documents({"train": ["012", "10"], "validation": ["11", "0"], "test": ["01"]}),
            DOCUMENTS,
            (),
            "none of 2 validation lists has both relevant and irrelevant candidates among its",
        ),
        (
            "seq2slate",
            _documents({"train": ["22", "1"], "validation": ["10", "01"], "test": ["01"]}),
            DOCUMENTS,
            (),
            "none of 2 training lists has both relevant and irrelevant candidates",
        ),
        (
            "seq2slate",
            _documents({"train": ["21", "01"], "test": ["01"]}),
            DOCUMENTS,
            (),
            "the validation set is empty: bring more data",
        ),
    ],
)
def test_what_cannot_be_learned_or_chosen_is_refused(
    tmp_path, model, lines, spec, settings, message
):
    with pytest.raises(InputError, match=message) as told:
        _prepare(tmp_path, model, lines, spec, *settings)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("model", "lines", "spec", "settings", "message"),
    [
        (
            "dcn_v2",
            _clicks([1] * 7),
            CLICKS,
            COLUMN,
            "label is 1 in all 7 validation examples: auc is undefined there",
        ),
        (
            "dcn_v2",
            _clicks([0, 1], [0]),
            CLICKS,
            COLUMN,
            "label is 0 in all 1 test examples: auc is undefined there",
        ),
        ("dcn_v2", _clicks([0, 1], []), CLICKS, COLUMN, "the test set is empty, so no test"),
        (
            "m3",
            _events({f"u{i}": "abcdabcd"[i % 4 :][:3] + "bx" for i in range(9)}),
            EVENTS,
            (),
            "none of 9 test targets is an item of the training set",
        ),
        (
            "topk_reinforce",
            _actions("0111"),
            LOG,
            ("trainer.early_stopping_metric=recall_at_10",),
            "the reward is 1 for all 20 validation actions",
        ),
        (
            "topk_reinforce",
            [
                "user,item,time,reward,propensity",
                *(
                    f"u{u},{'new' if i == 3 else f'b{(u + i) % 5}'},{DAY * i},{(u + i) % 2},0.2"
                    for u in range(20)
                    for i in range(4)
                ),
            ],
            LOG,
            (),
            "none of 20 test targets is an item of the training set",
        ),
        (
            "seq2slate",
            _documents({"train": ["012", "10"], "validation": ["11", "01"], "test": ["1"]}),
            DOCUMENTS,
            (),
            "only one of 2 validation lists has both relevant and irrelevant candidates",
        ),
        (
            "seq2slate",
            _documents({"train": ["012", "10"], "validation": ["10", "01"], "test": ["1"]}),
            DOCUMENTS,
            (),
            "none of 1 test lists has both relevant and irrelevant candidates",
        ),
    ],
)
def test_what_training_does_not_need_is_a_warning(
    tmp_path, caplog, model, lines, spec, settings, message
):
    with caplog.at_level(logging.WARNING):
        assert _prepare(tmp_path, model, lines, spec, *settings).train.num_examples
    assert message in caplog.text


def _timelines(folder, outcomes, *settings):
    """Users with an event a day; `outcomes` of (good, fair), the last is test, then validation."""
    lines = ["user,time,topic,action,good,fair"]
    for user in range(6):
        for i, (good, fair) in enumerate(outcomes):
            lines.append(f"u{user},{DAY * 3 * i},t{(user + i) % 3},view,{good},{fair}")
    (folder / "slices.yaml").write_text(SLICES)
    slices = f"data.timeline.slices={folder}/slices.yaml"
    held_out = ("data.validation_fraction=0.2", "data.test_fraction=0.2")
    small = ("data.timeline.min_visible=1", *held_out, slices)
    return _prepare(folder, "dv365", lines, TIMELINE, *small, *settings)


MIXED = [(0, 0), (1, 1), (0, 1), (1, 0), (0, 0)]


@pytest.mark.parametrize(
    ("outcomes", "message"),
    [
        ([(1, 0)] * 8, "good is 1 in all .* training examples: there is nothing to learn"),
        (
            [*MIXED, *[(1, 0)] * 3],
            "good is 1 in all .* validation examples: auc and normalized_entropy of good are "
            "undefined there, and normalized_entropy is to choose",
        ),
        (
            [(g, "") for g, _ in MIXED] + [(0, "")] * 3,
            "no validation example has an outcome fair|good is 0 in all .* validation examples",
        ),
    ],
)
def test_outcomes_of_one_class_are_refused(tmp_path, outcomes, message):
    with pytest.raises(InputError, match=message):
        _timelines(tmp_path, outcomes)


def test_a_task_of_one_class_among_others_is_a_warning(tmp_path, caplog):
    chosen = "trainer.early_stopping_metric=mse"
    with caplog.at_level(logging.WARNING):
        _timelines(tmp_path, [(good, 1) for good, _ in MIXED] + [(1, 1)] * 3, chosen)
    assert "fair is 1 in all" in caplog.text and "this task teaches nothing" in caplog.text
    assert "validation examples: auc and normalized_entropy of good are undefined" in caplog.text


def test_sound_sets_are_not_warned_of(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        _prepare(tmp_path, "dcn_v2", _clicks([0, 1]), CLICKS, *COLUMN)
        documents = _documents({s: ["012", "10"] for s in ("train", "validation", "test")})
        _prepare(tmp_path, "seq2slate", documents, DOCUMENTS)
        _prepare(tmp_path, "m3", _events({f"u{i}": "abcdabc" for i in range(9)}), EVENTS)
    assert not [r for r in caplog.records if r.name.startswith("tfrz")]


def test_a_command_says_it_in_one_line(tmp_path, capsys):
    (tmp_path / "rows.csv").write_text("\n".join(_events({"u": "aaaa", "v": "aaa"})) + "\n")
    (tmp_path / "spec.yaml").write_text(EVENTS)
    command = ["train", "m3", "--data", f"{tmp_path}/rows.csv", "--out", f"{tmp_path}/out"]
    assert main([*command, "--features", f"{tmp_path}/spec.yaml", "--quiet"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "the training set has 1 item" in error
    assert not (tmp_path / "out" / "model").exists()
