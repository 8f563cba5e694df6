"""From interactions to examples: order, splits without leakage, rare items, under Beam and not."""

from __future__ import annotations

import dataclasses
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
from tfrz.errors import ConfigError, InputError

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
SPLIT_SETTINGS = {
    "leave_last_out": {},
    "time": TIME_SPLIT,
    "users": {"split": "users"},
    "kept more than seen": {"keep": 12},
    "rare left out once": {"min_item_count": 4, "min_user_count": 3},
    "rare left out until nothing changes": {
        "min_item_count": 5,
        "min_user_count": 5,
        "min_count_passes": "fixed_point",
    },
    "duplicates once": {"drop_duplicates": True},
}


def _config(**values) -> HistoryConfig:
    return from_mapping(HistoryConfig, {"length": 5, **values}, "data.history")


def _events(users: int = 40, seed: int = 0, times: int = 100) -> pa.Table:
    """Events in no order at all, many of them at the same second."""
    rng = np.random.default_rng(seed)
    rows = []
    for user in range(users):
        for _ in range(int(rng.integers(1, 20))):
            page = [None, b"home", b"detail"][int(rng.integers(3))]
            item = b"i%d" % min(int(rng.exponential(8)), 40)
            rows.append((b"u%d" % user, item, int(rng.integers(times)), page))
    order = rng.permutation(len(rows))
    columns = list(zip(*(rows[i] for i in order), strict=True))
    arrays = [columns[0], columns[1], columns[2], range(len(rows)), columns[3]]
    return pa.Table.from_arrays(
        [pa.array(list(a), f.type) for a, f in zip(arrays, SCHEMA, strict=True)], schema=SCHEMA
    )


def _by_user(events: pa.Table) -> dict[bytes, list[dict]]:
    users: dict[bytes, list[dict]] = {}
    for row in events.to_pylist():
        users.setdefault(row["user"], []).append(row)
    for rows in users.values():
        rows.sort(key=lambda row: (row["time"], row["position"]))
    return users


def _prepared(events: pa.Table, config: HistoryConfig) -> pa.Table:
    return drop_rare(drop_duplicates(events) if config.drop_duplicates else events, config)


def _in_memory(events: pa.Table, config: HistoryConfig, **more) -> dict[str, list[dict]]:
    examples = build_examples(_prepared(events, config), SPEC, config, **more)
    return {split: table.to_pylist() for split, table in examples.items()}


@pytest.mark.parametrize("setting", SPLIT_SETTINGS)
def test_no_example_sees_its_target_or_anything_after_it(setting):
    config = _config(**SPLIT_SETTINGS[setting])
    events = _events()
    users = _by_user(_prepared(events, config))
    examples = _in_memory(events, config, held_out=(0.3, 0.3))
    assert all(examples[split] for split in SPLITS)
    for split in SPLITS:
        for example in examples[split]:
            rows = users[example["user"][0]]
            # Find the target by what an example tells of it, then what may precede it.
            place = next(
                i
                for i, row in enumerate(rows)
                if [row["item"]] == example["target"]
                and [row["time"]] == example["request_time"]
                and [r["item"] for r in rows[:i]][-config.kept :] == example["history"]
            )
            before = rows[max(0, place - config.kept) : place]
            assert example["history_time"] == [row["time"] for row in before]
            assert example["history_page"] == [row["page"] or b"" for row in before]
            assert example["page"] == [rows[place]["page"] or b""]


def test_leave_last_out_takes_the_last_three_events_as_targets():
    events = _events()
    examples = _in_memory(events, _config())
    for user, rows in _by_user(events).items():
        found = {s: [e for e in examples[s] if e["user"] == [user]] for s in SPLITS}
        assert len(found["train"]) == 1
        if len(rows) < 3:  # Too few to leave out: trained on, never judged.
            assert found["train"][0]["target"] == [rows[-1]["item"]]
            assert not found["validation"] and not found["test"]
            continue
        for split, back in (("train", 3), ("validation", 2), ("test", 1)):
            assert found[split][0]["target"] == [rows[-back]["item"]]
            assert found[split][0]["history"] == [r["item"] for r in rows[:-back]][-5:]


def test_without_a_test_set_validation_takes_the_last_event():
    examples = _in_memory(_events(), _config(), with_test=False)
    rows = _by_user(_events())
    assert not examples["test"]
    for example in examples["validation"]:
        assert example["target"] == [rows[example["user"][0]][-1]["item"]]


def test_with_a_split_by_time_no_training_event_is_at_or_after_it():
    examples = _in_memory(_events(), _config(**TIME_SPLIT))
    for example in examples["train"]:
        assert max([*example["history_time"], *example["request_time"]]) < 60
    for split, low, high in (("validation", 60, 80), ("test", 80, 100)):
        for example in examples[split]:
            assert low <= example["request_time"][0] < high
            assert max(example["history_time"]) < low


def test_a_split_by_users_keeps_each_user_in_one_part():
    config = _config(split="users")
    examples = _in_memory(_events(200), config, held_out=(0.2, 0.3), seed=1)
    owners = [{e["user"][0] for e in examples[s]} for s in SPLITS]
    assert not (owners[0] & owners[1] or owners[0] & owners[2] or owners[1] & owners[2])
    assert 0.1 < len(owners[1]) / 200 < 0.3 and 0.2 < len(owners[2]) / 200 < 0.4
    other = _in_memory(_events(200), config, held_out=(0.2, 0.3), seed=2)
    assert {e["user"][0] for e in other["test"]} != owners[2]


def test_events_of_one_second_keep_the_order_of_the_source():
    table = pa.table(
        {
            "user": pa.array([b"u"] * 4, pa.binary()),
            "item": pa.array([b"c", b"a", b"b", b"d"], pa.binary()),
            "time": pa.array([7, 7, 7, 7], pa.int64()),
            "position": pa.array([3, 1, 2, 4], pa.int64()),
            "page": pa.array([None] * 4, pa.binary()),
        }
    )
    (example,) = _in_memory(table, _config())["test"]
    assert example["history"] == [b"a", b"b", b"c"]
    assert example["target"] == [b"d"]


def test_rare_items_then_rare_users_once_or_until_nothing_changes():
    pairs = [("a", "x"), ("a", "y"), ("b", "x"), ("b", "y"), ("c", "x"), ("c", "z"), ("d", "z")]
    table = pa.table(
        {
            "user": pa.array([u.encode() for u, _ in pairs], pa.binary()),
            "item": pa.array([i.encode() for _, i in pairs], pa.binary()),
        }
    )

    def left(**settings):
        kept = drop_rare(table, _config(min_item_count=2, min_user_count=2, **settings))
        return sorted(
            (u.decode(), i.decode())
            for u, i in zip(kept["user"].to_pylist(), kept["item"].to_pylist(), strict=True)
        )

    # d has one event; once d is gone, z has one; once z is gone, c has one.
    assert left() == [p for p in pairs if p[0] != "d"]
    assert left(min_count_passes="fixed_point") == pairs[:4]
    with pytest.raises(InputError, match=r"did not settle in 2 passes: raise data\.history\.max"):
        left(min_count_passes="fixed_point", max_passes=2)
    with pytest.raises(InputError, match="no user has 9 events"):
        drop_rare(table, _config(min_user_count=9))


def _run(batches, config: HistoryConfig, folder: Path, **more) -> dict[str, list[str]]:
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


def _under_beam(events: pa.Table, config: HistoryConfig, folder: Path, **more):
    batches = beam.Create(events.to_batches(max_chunksize=37), reshuffle=False)
    return _run(batches, config, folder, **more)


def _line(row: dict) -> str:
    plain = {k: [v.decode() if isinstance(v, bytes) else v for v in row[k]] for k in row}
    plain.pop("user", None)
    return json.dumps(plain, sort_keys=True)


@pytest.mark.needs("apache_beam")
@pytest.mark.parametrize("setting", SPLIT_SETTINGS)
def test_beam_makes_the_same_examples_as_memory(setting, tmp_path):
    config = _config(**SPLIT_SETTINGS[setting])
    events, more = _events(), {"held_out": (0.3, 0.3), "seed": 3}
    expected = _in_memory(events, config, **more)
    found = _under_beam(events, config, tmp_path, **more)
    for split in SPLITS:
        assert found[split] == sorted(map(_line, expected[split]))


@pytest.mark.needs("apache_beam")
def test_beam_refuses_a_fixed_point_that_it_did_not_reach(tmp_path):
    config = _config(
        min_item_count=5, min_user_count=5, min_count_passes="fixed_point", max_passes=1
    )
    with pytest.raises(Exception, match="did not settle in 1 passes"):
        _under_beam(_events(), config, tmp_path)


@pytest.mark.slow
def test_a_user_with_a_million_events_is_held_in_little_memory():
    from tfrz.data.histories.beam import _Kept

    kept = _Kept(_config())
    accumulators = [kept.create_accumulator() for _ in range(3)]
    longest = 0
    order = np.random.default_rng(0).permutation(1_000_000)
    for i, stamp in enumerate(order.tolist()):
        accumulator = kept.add_input(accumulators[i % 3], (stamp, i, b"x"))
        longest = max(longest, sum(map(len, accumulator)))
    events = kept.extract_output(kept.merge_accumulators(accumulators))
    assert longest <= 4 * (5 + 3) + 1
    assert [event[0] for event in events] == list(range(1_000_000 - 8, 1_000_000))


@pytest.mark.slow
def test_a_million_events_of_one_user_go_through_the_pipeline(tmp_path):
    count = 1_000_000
    rng = np.random.default_rng(1)
    table = pa.Table.from_arrays(
        [
            pa.array([b"heavy"], pa.binary()).take(pa.array(np.zeros(count, np.int64))),
            pa.array(rng.integers(0, 50, count)).cast(pa.string()).cast(pa.binary()),
            pa.array(rng.integers(0, 10_000, count)),
            pa.array(np.arange(count)),
            pa.nulls(count, pa.binary()),
        ],
        schema=SCHEMA,
    )
    starts = beam.Create([4096 * i for i in range(-(-count // 4096))])
    batches = starts | beam.FlatMap(lambda start: table.slice(start, 4096).to_batches())
    (line,) = _run(batches, _config(), tmp_path)["test"]
    row = json.loads(line)
    newest = np.lexsort((np.arange(count), table["time"].to_numpy()))[-6:]
    items = table["item"].to_pylist()
    assert [*row["history"], *row["target"]] == [items[i].decode() for i in newest]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"length": 0}, "data.history.length: must be at least 1"),
        ({"keep": 3}, "data.history.keep: must be at least data.history.length, 5"),
        ({"split": "time"}, "a split by time needs both"),
        ({"split": "time", "validation_start": 9, "test_start": 9}, "the first below the second"),
        ({"padding": "both"}, "is none of right, left"),
        ({"min_count_passes": 2}, "is none of fixed_point, 1"),
    ],
)
def test_bad_settings_are_named(values, message):
    with pytest.raises(ConfigError, match=message):
        _config(**values)


@pytest.mark.parametrize(
    "values", [TIME_SPLIT, {"time_features": ["hour"]}, {"drop_duplicates": True}], ids=str
)
def test_what_needs_times_is_refused_where_there_are_none(values):
    spec = dataclasses.replace(SPEC, time=None)
    with pytest.raises(ConfigError, match="the source has no times, only an order"):
        _config(**values).check(spec)
