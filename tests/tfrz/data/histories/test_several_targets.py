"""Several training examples of a user: which events are targets, in memory and under Beam."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tests.lazy import lazy
from tfrz.config import from_mapping
from tfrz.data.histories.examples import SPLITS, build_examples, drop_duplicates, drop_rare
from tfrz.data.histories.spec import HistoryConfig, HistorySpec
from tfrz.data.spec import Feature
from tfrz.errors import ConfigError

beam = lazy("apache_beam")
histories_beam = lazy("tfrz.data.histories.beam")

SPEC = HistorySpec(context=(Feature("page"),))
SCHEMA = pa.schema(
    [
        ("user", pa.binary()),
        ("item", pa.binary()),
        ("time", pa.int64()),
        ("position", pa.int64()),
        ("page", pa.binary()),
    ]
)
TIME_SPLIT = {"split": "time", "validation_start": 60, "test_start": 80}
SETTINGS = {
    "one": {"train_targets": 1, "train_stride": 3},
    "two": {"train_targets": 2},
    "every second": {"train_targets": 4, "train_stride": 2},
    "far apart": {"train_targets": 3, "train_stride": 7},
    "all there are": {"train_targets": 100},
    "by time": {"train_targets": 4, "train_stride": 2, **TIME_SPLIT},
    "by time, all": {"train_targets": 100, **TIME_SPLIT},
    "by users": {"train_targets": 3, "train_stride": 2, "split": "users"},
    "kept more than seen": {"train_targets": 3, "train_stride": 2, "keep": 9},
    "short": {"train_targets": 5, "train_stride": 3, "length": 1},
    "rare left out": {"train_targets": 3, "min_item_count": 4, "min_user_count": 3},
    "rare left out until nothing changes": {
        "train_targets": 3,
        "train_stride": 2,
        "min_item_count": 5,
        "min_user_count": 5,
        "min_count_passes": "fixed_point",
    },
    "duplicates once": {"train_targets": 3, "drop_duplicates": True},
}
settings = pytest.mark.parametrize("setting", SETTINGS)


def _config(**values) -> HistoryConfig:
    return from_mapping(HistoryConfig, {"length": 5, **values}, "data.history")


def _table(rows: list[tuple]) -> pa.Table:
    columns = list(zip(*rows, strict=True))
    return pa.Table.from_arrays(
        [pa.array(list(c), f.type) for c, f in zip(columns, SCHEMA, strict=True)], schema=SCHEMA
    )


def _events(users: int = 40, seed: int = 0, most: int = 25) -> pa.Table:
    """Events in no order, many of them at the same second."""
    rng, rows = np.random.default_rng(seed), []
    for user in range(users):
        for _ in range(int(rng.integers(1, most))):
            page = [None, b"home", b"detail"][int(rng.integers(3))]
            item = b"i%d" % min(int(rng.exponential(8)), 40)
            rows.append((b"u%d" % user, item, int(rng.integers(100)), page))
    order = rng.permutation(len(rows))
    return _table([(*rows[i][:3], place, rows[i][3]) for place, i in enumerate(order.tolist())])


def _one_user(count: int) -> pa.Table:
    """Items i0, i1, ... in order, one a second."""
    return _table([(b"u", b"i%d" % i, i, i, None) for i in range(count)])


def _prepared(events: pa.Table, config: HistoryConfig) -> pa.Table:
    return drop_rare(drop_duplicates(events) if config.drop_duplicates else events, config)


def _in_memory(events: pa.Table, config: HistoryConfig, **more) -> dict[str, list[dict]]:
    examples = build_examples(_prepared(events, config), SPEC, config, **more)
    return {split: table.to_pylist() for split, table in examples.items()}


def _by_user(events: pa.Table) -> dict[bytes, list[dict]]:
    users: dict[bytes, list[dict]] = {}
    for row in events.to_pylist():
        users.setdefault(row["user"], []).append(row)
    for rows in users.values():
        rows.sort(key=lambda row: (row["time"], row["position"]))
    return users


def _example(rows: list[dict], place: int, held: int) -> dict:
    before = rows[max(0, place - held) : place]
    return {
        "user": [rows[place]["user"]],
        "history": [row["item"] for row in before],
        "history_time": [row["time"] for row in before],
        "history_page": [row["page"] or b"" for row in before],
        "request_time": [rows[place]["time"]],
        "page": [rows[place]["page"] or b""],
        "target": [rows[place]["item"]],
    }


def _last_of_training(rows: list[dict], config: HistoryConfig) -> int:
    """The place of a user's last training event, -1 for none."""
    if config.split == "time":
        return sum(row["time"] < config.validation_start for row in rows) - 1
    if config.split == "users":
        return len(rows) - 1
    return len(rows) - 3 if len(rows) >= 3 else len(rows) - 1


def _expected(events: pa.Table, config: HistoryConfig, trained: set[bytes]) -> list[str]:
    lines = []
    for user, rows in _by_user(_prepared(events, config)).items():
        last = _last_of_training(rows, config)
        if user not in trained or last < 0:
            continue
        places = [last - k * config.train_stride for k in range(config.train_targets)]
        places = [p for k, p in enumerate(places) if k == 0 or p >= 1]
        # What lies beyond the model's sight only counts as seen, which is for judging.
        held = [config.kept, *[config.length] * (len(places) - 1)]
        lines += [_line(_example(rows, *pair)) for pair in zip(places, held, strict=True)]
    return sorted(lines)


def _line(row: dict) -> str:
    plain = {k: [v.decode() if isinstance(v, bytes) else v for v in row[k]] for k in row}
    plain.pop("user", None)
    return json.dumps(plain, sort_keys=True)


def _lines(rows: list[dict]) -> list[str]:
    return sorted(map(_line, rows))


@settings
def test_training_targets_are_the_last_and_those_a_stride_apart_before_it(setting):
    config, events = _config(**SETTINGS[setting]), _events()
    examples = _in_memory(events, config, held_out=(0.3, 0.3), seed=3)
    everyone = set(_by_user(_prepared(events, config)))
    if config.split == "users":
        held_out = {e["user"][0] for s in ("validation", "test") for e in examples[s]}
        assert held_out
        everyone -= held_out
    found = _lines(examples["train"])
    assert found == _expected(events, config, everyone)
    assert len(found) > len({e["user"][0] for e in examples["train"]}) or config.train_targets == 1


@settings
def test_what_is_judged_does_not_depend_on_the_training_targets(setting):
    values = dict(SETTINGS[setting])
    events, more = _events(), {"held_out": (0.3, 0.3), "seed": 3}
    several = _in_memory(events, _config(**values), **more)
    values.update(train_targets=1, train_stride=1)
    one = _in_memory(events, _config(**values), **more)
    for split in ("validation", "test"):
        assert several[split]
        assert _lines(several[split]) == _lines(one[split])
    assert set(_lines(one["train"])) <= set(_lines(several["train"]))


def test_the_examples_of_one_user_by_hand():
    config = _config(length=3, train_targets=3, train_stride=2)
    train = _in_memory(_one_user(9), config)["train"]
    found = {(tuple(e["history"]), e["target"][0]) for e in train}
    assert found == {
        ((b"i3", b"i4", b"i5"), b"i6"),
        ((b"i1", b"i2", b"i3"), b"i4"),
        ((b"i0", b"i1"), b"i2"),
    }
    # With a stride of 3 the next target would be i0, which has no history.
    train = _in_memory(_one_user(9), _config(length=3, train_targets=5, train_stride=3))["train"]
    assert sorted(e["target"][0] for e in train) == [b"i3", b"i6"]


@pytest.mark.parametrize("count", range(1, 6))
def test_users_with_few_events_have_few_examples(count):
    examples = _in_memory(_one_user(count), _config(train_targets=10))
    last = count - 3 if count >= 3 else count - 1
    targets = sorted(e["target"][0] for e in examples["train"])
    assert targets == sorted({b"i%d" % last} | {b"i%d" % p for p in range(1, last + 1)})
    assert len(examples["validation"]) == len(examples["test"]) == (count >= 3)


@pytest.mark.parametrize("split", [{}, TIME_SPLIT])
@pytest.mark.parametrize("stride", [1, 5])
def test_no_training_example_holds_an_event_that_is_judged(split, stride):
    rng = np.random.default_rng(1)
    rows = []
    for user in range(30):
        for step in range(int(rng.integers(3, 40))):
            rows.append((b"u%d" % user, b"u%d-%d" % (user, step), int(rng.integers(100)), 0, None))
    rows = [(*row[:3], place, row[4]) for place, row in enumerate(rows)]
    config = _config(train_targets=50, train_stride=stride, **split)
    examples = _in_memory(_table(rows), config)
    judged = {e["target"][0] for s in ("validation", "test") for e in examples[s]}
    assert judged and len(examples["train"]) > 60
    for example in examples["train"]:
        assert not judged & {*example["history"], *example["target"]}
        if split:
            assert max(*example["history_time"], *example["request_time"], 0) < 60


def _run(events: pa.Table, config: HistoryConfig, folder: Path, chunk: int, **more):
    batches = beam.Create(events.to_batches(max_chunksize=chunk), reshuffle=False)
    with beam.Pipeline(runner="DirectRunner") as pipeline:
        outputs = (
            pipeline | batches | histories_beam.InteractionsToExamples(SPEC, config, SCHEMA, **more)
        )
        for split in SPLITS:
            _ = (
                outputs[split]
                | f"Lines{split}" >> beam.FlatMap(lambda part: map(_line, part.to_pylist()))
                | f"Write{split}"
                >> beam.io.WriteToText(str(folder / split), shard_name_template="")
            )
    return {split: sorted((folder / split).read_text().splitlines()) for split in SPLITS}


@pytest.mark.needs("apache_beam")
@settings
def test_beam_makes_the_same_examples_as_memory(setting, tmp_path):
    config, events = _config(**SETTINGS[setting]), _events()
    more = {"held_out": (0.3, 0.3), "seed": 3}
    expected = _in_memory(events, config, **more)
    found = _run(events, config, tmp_path, 37, **more)
    for split in SPLITS:
        assert found[split] == _lines(expected[split])


@pytest.mark.slow
@pytest.mark.parametrize("values", [{}, {"keep": 9}, TIME_SPLIT, {"split": "users"}], ids=str)
@pytest.mark.parametrize("with_test", [True, False])
def test_beam_holds_enough_of_long_histories(values, with_test, tmp_path):
    config = _config(length=2, train_targets=4, train_stride=3, **values)
    events = _events(users=12, seed=5, most=200)
    more = {"held_out": (0.3, 0.3), "seed": 4, "with_test": with_test}
    expected = _in_memory(events, config, **more)
    found = _run(events, config, tmp_path, 101, **more)
    for split in SPLITS:
        assert found[split] == _lines(expected[split])


@pytest.mark.slow
@pytest.mark.parametrize("values", [{}, {"keep": 9}, TIME_SPLIT, {"split": "users"}], ids=str)
def test_memory_does_not_grow_with_the_history(values):
    from tfrz.data.histories.beam import _Kept

    config = _config(length=4, train_targets=6, train_stride=5, **values)
    kept = _Kept(config)
    accumulator, longest = kept.create_accumulator(), 0
    for i, stamp in enumerate(np.random.default_rng(0).permutation(20_000).tolist()):
        accumulator = kept.add_input(accumulator, (stamp % 100, i, b"x"))
        longest = max(longest, sum(map(len, accumulator)))
    regions = 3 if "validation_start" in values else 1
    assert longest <= regions * 4 * (config.kept + config.length + 5 * 5 + 3)


@pytest.mark.parametrize("name", ["train_targets", "train_stride"])
@pytest.mark.parametrize("value", [0, -1])
def test_bad_settings_are_named(name, value):
    with pytest.raises(ConfigError, match=rf"data\.history\.{name}"):
        _config(**{name: value})
