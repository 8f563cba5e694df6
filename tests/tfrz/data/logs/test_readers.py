"""Logged actions: their readers, outcomes that are no features, and the same under Beam."""

from __future__ import annotations

import dataclasses
import gzip
import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf

from tests.lazy import lazy
from tests.tfrz.data import small_sources as sources
from tfrz.config import from_mapping, to_mapping
from tfrz.data.columns import raw_sparse, to_examples
from tfrz.data.histories.examples import SPLITS, build_examples
from tfrz.data.histories.spec import HistoryConfig, HistorySpec
from tfrz.data.histories.transform import HistoryPreprocessor
from tfrz.data.logs.readers import SimulatedActions, wrong_outcome
from tfrz.data.records import open_source
from tfrz.data.sources.reader import read_table
from tfrz.data.spec import Feature, numeric, raw_feature_spec
from tfrz.data.transform import densify, transform_table
from tfrz.errors import ConfigError, InputError
from tfrz.zoo import registry
from tfrz.zoo.run_config import load_run_config

beam = lazy("apache_beam")
data_beam = lazy("tfrz.data.beam")
histories_beam = lazy("tfrz.data.histories.beam")

OBD = Path(__file__).resolve().parents[5] / "shared" / "data" / "obd"
NAN = float("nan")


def _rows(data: str, features: str | None = None, tolerated: float = 0.0, **options):
    table, corrupt = read_table(open_source(data, features, "logged_action", **options), tolerated)
    return table.to_pylist(), corrupt


@pytest.mark.parametrize(
    ("reward", "propensity", "reason"),
    [
        (1.0, 0.5, None),
        (-2.0, 1.0, None),
        (0.0, None, None),
        (0.0, NAN, None),
        (None, 0.5, "the reward is None"),
        (NAN, 0.5, "the reward is nan"),
        (math.inf, None, "the reward is inf"),
        (1.0, 0.0, "the propensity is 0,"),
        (1.0, -0.1, "the propensity is -0.1"),
        (1.0, 1.5, "the propensity is 1.5"),
        (1.0, math.inf, "the propensity is inf"),
    ],
)
def test_what_is_wrong_with_an_outcome_is_said(reward, propensity, reason):
    found = wrong_outcome(reward, propensity)
    assert found is None if reason is None else found.startswith(reason)


# Simulated.

SMALL = {"users": 300, "length": 4, "items": 12, "segments": 3}


def test_simulated_actions_are_draws_of_the_worlds_logger_with_its_propensities():
    rows, corrupt = _rows("simulated", **SMALL, seed=4)
    world = open_source("simulated", None, "logged_action", **SMALL, seed=4).world
    assert not corrupt and len(rows) == 1200
    assert world.logger.shape == (3, 12)
    segment = np.array([int(row["segment"].split(b"_")[1]) for row in rows])
    action = np.array([int(row["item"].split(b"_")[1]) for row in rows])
    reward = np.array([row["reward"] for row in rows])
    propensity = np.array([row["propensity"] for row in rows])
    np.testing.assert_allclose(propensity, world.logger[segment, action], rtol=1e-6)
    assert set(reward) == {0.0, 1.0}
    chance = world.click_probabilities[segment, action]
    spread = np.sqrt((chance * (1 - chance)).sum())
    assert abs(reward.sum() - chance.sum()) < 5 * spread
    shares = np.bincount(action[segment == 1], minlength=12) / (segment == 1).sum()
    assert np.abs(shares - world.logger[1]).max() < 0.15


def test_a_simulated_user_has_one_segment_and_a_few_actions_in_order():
    rows, _ = _rows("simulated", **SMALL)
    users: dict[bytes, list[dict]] = {}
    for row in rows:
        users.setdefault(row["user"], []).append(row)
    lengths = [len(events) for events in users.values()]
    assert max(lengths) == 4 and np.mean(np.array(lengths) == 4) > 0.97
    for events in users.values():
        assert len({event["segment"] for event in events}) == 1
        assert sorted(event["position"] for event in events) == list(range(len(events)))
        assert {event["time"] for event in events} == {0}


def test_simulated_shards_make_different_users_and_a_seed_makes_the_same_log_again():
    reader = SimulatedActions(users=16_000, length=2, items=5, segments=2)
    shards = reader.shards()
    assert [(shard.start, shard.end) for shard in shards] == [(0, 30_000), (30_000, 32_000)]
    parts = [pa.Table.from_batches(reader.read(shard)) for shard in shards]
    assert [part.num_rows for part in parts] == [30_000, 2000]
    assert not set(parts[0]["user"].to_pylist()) & set(parts[1]["user"].to_pylist())
    assert parts[0].slice(0, 2000)["item"].to_pylist() != parts[1]["item"].to_pylist()
    assert _rows("simulated", **SMALL, seed=1) == _rows("simulated", **SMALL, seed=1)
    assert _rows("simulated", **SMALL, seed=1) != _rows("simulated", **SMALL, seed=2)
    prints = {
        SimulatedActions(**{**SMALL, **more}).fingerprint()
        for more in ({}, {"seed": 1}, {"items": 13}, {"segments": 4}, {"length": 5}, {"users": 9})
    }
    assert len(prints) == 6


@pytest.mark.parametrize(
    ("name", "value"), [("users", 0), ("users", "many"), ("length", 0), ("length", 1.5)]
)
def test_bad_options_of_the_simulator_are_named(name, value):
    with pytest.raises(
        ConfigError, match=rf"data.options.{name}: (must be|expected) a whole number"
    ):
        _rows("simulated", **{name: value})


@pytest.mark.parametrize(("name", "value"), [("segments", 0), ("items", 1), ("segments", "many")])
def test_bad_options_of_the_simulated_world_are_named_as_they_were_given(name, value):
    with pytest.raises(ConfigError, match=name):
        _rows("simulated", **{name: value})


# MovieLens.


def test_ratings_of_movielens_are_actions_whose_propensity_nobody_knows(tmp_path):
    folder = sources.movielens_1m(tmp_path, sources.RATINGS_1M + "1::1::9::3\n1::x\n")
    reader = open_source(f"movielens-1m:{folder}", None, "logged_action")
    assert reader.record_type == "logged_action"
    assert reader.feature_spec().outcomes == ("reward",)
    rows, corrupt = _rows(f"movielens-1m:{folder}", tolerated=0.9)
    assert sorted(c.line for c in corrupt) == [5, 6]
    assert rows[0] == {
        "user": b"1",
        "item": b"1",
        "time": 978300760,
        "position": 1,
        "reward": 1.0,
    }
    # Ratings 5, 3, 2, 4.
    assert [row["reward"] for row in rows] == [1.0, 0.0, 0.0, 1.0]
    rows, _ = _rows(f"movielens-1m:{folder}", tolerated=0.9, good=3)
    assert [row["reward"] for row in rows] == [1.0, 1.0, 0.0, 1.0]
    rows, _ = _rows(f"movielens-1m:{folder}", tolerated=0.9, good=0)
    assert [row["reward"] for row in rows] == pytest.approx([1.0, 0.6, 0.4, 0.8])
    small = sources.movielens_100k(tmp_path / "small")
    rows, _ = _rows(f"movielens-100k:{small}")
    assert [row["reward"] for row in rows] == [1.0, 0.0]


def test_another_bound_of_a_good_rating_is_another_source(tmp_path):
    folder = sources.movielens_1m(tmp_path)
    prints = [
        open_source(f"movielens-1m:{folder}", None, "logged_action", good=good).fingerprint()
        for good in (3, 4, 4)
    ]
    assert prints[0] != prints[1] == prints[2]
    with pytest.raises(ConfigError, match=r"data\.options\.good: must be 0 to 5"):
        open_source(f"movielens-1m:{folder}", None, "logged_action", good=6)


# Open Bandit.

HEADER = [
    "",
    "timestamp",
    "item_id",
    "position",
    "click",
    "propensity_score",
    *(f"user_feature_{i}" for i in range(4)),
    "user-item_affinity_0",
]


def _obd(folder: Path, rows: list[tuple[str, str, str, str]], drop: str | None = None) -> Path:
    """A log of rows (item, position, click, propensity)."""
    place = folder / "random" / "men"
    place.mkdir(parents=True, exist_ok=True)
    lines = [HEADER]
    for i, (item, position, click, propensity) in enumerate(rows):
        users = [f"f{i % 2}", "g", "h", ""]
        stamp = "2019-11-24 00:00:34.762830+00:00"
        lines.append([str(i), stamp, item, position, click, propensity, *users, "0.0"])
    kept = [i for i, name in enumerate(HEADER) if name != drop]
    text = "".join(",".join(line[i] for i in kept) + "\n" for line in lines)
    with gzip.open(place / "men.csv.gz", "wt") as file:
        file.write(text)
    return folder


def test_impressions_of_open_bandit_are_users_of_their_own(tmp_path):
    folder = _obd(tmp_path, [("14", "3", "0", "0.0125"), ("7", "1", "1", "0.25")])
    options = {"policy": "random", "campaign": "men"}
    rows, corrupt = _rows(f"obd:{folder}", **options)
    assert not corrupt
    features = {"user_feature_1": b"g", "user_feature_2": b"h", "user_feature_3": b""}
    assert [row.pop("user") for row in rows] == [b"0", b"1"]
    assert [row.pop("position") for row in rows] == [0, 1]
    assert [row.pop("propensity") for row in rows] == pytest.approx([0.0125, 0.25])
    common = {"time": 0, **features}
    first = {"item": b"14", "page_position": b"3", "reward": 0.0, "user_feature_0": b"f0"}
    second = {"item": b"7", "page_position": b"1", "reward": 1.0, "user_feature_0": b"f1"}
    assert rows == [{**common, **first}, {**common, **second}]
    spec = open_source(f"obd:{folder}", None, "logged_action", **options).feature_spec()
    assert spec.outcomes == ("reward", "propensity")
    assert "page_position" in {f.name for f in spec.features}


def test_bad_lines_of_open_bandit_are_named_and_the_others_kept(tmp_path):
    bad = {
        ("1", "1", "0", "0"): "the propensity is 0, not above 0 and at most 1",
        ("1", "1", "0", "1.5"): "the propensity is 1.5, not above 0",
        ("1", "1", "0", "-0.5"): "the propensity is -0.5",
        ("1", "1", "0", ""): "click or propensity is not a number",
        ("1", "1", "nan", "0.5"): "the reward is nan",
        ("1", "1", "", "0.5"): "click or propensity is not a number",
        ("1", "1", "yes", "0.5"): "click or propensity is not a number",
        ("", "1", "0", "0.5"): "item is missing",
    }
    good = ("9", "2", "1", "0.5")
    folder = _obd(tmp_path, [good, *bad, good])
    rows, corrupt = _rows(f"obd:{folder}", tolerated=0.9, policy="random", campaign="men")
    assert [row["item"] for row in rows] == [b"9", b"9"]
    assert [row["user_feature_0"] for row in rows] == [b"f0", b"f1"]
    assert len({row["user"] for row in rows}) == 2
    # The header is line 1, the first row is good.
    assert [c.line for c in corrupt] == list(range(3, 3 + len(bad)))
    for one, reason in zip(corrupt, bad.values(), strict=True):
        assert one.reason.startswith(reason)
    with pytest.raises(InputError, match=r"men\.csv\.gz:3: the propensity is 0"):
        _rows(f"obd:{folder}", tolerated=0.01, policy="random", campaign="men")


def test_what_is_no_open_bandit_log_is_refused(tmp_path):
    options = {"policy": "random", "campaign": "men"}
    with pytest.raises(InputError, match=r"bts/all/all\.csv\.gz does not exist"):
        _rows(f"obd:{tmp_path}", policy="bts")
    for name, value in (("policy", "ucb"), ("campaign", "kids")):
        with pytest.raises(ConfigError, match=f"data.options.{name}: must be one of"):
            _rows(f"obd:{tmp_path}", **{name: value})
    folder = _obd(tmp_path, [("1", "1", "0", "0.5")], drop="propensity_score")
    with pytest.raises(InputError, match="is not a log of the Open Bandit data"):
        _rows(f"obd:{folder}", **options)
    (folder / "random" / "men" / "men.csv.gz").write_bytes(b"not gzip at all")
    with pytest.raises(InputError, match="is not a log of the Open Bandit data"):
        _rows(f"obd:{folder}", **options)
    _obd(tmp_path, [])
    with pytest.raises(InputError, match="has no records"):
        _rows(f"obd:{folder}", **options)


@pytest.mark.skipif(not OBD.exists(), reason="no Open Bandit data here")
@pytest.mark.parametrize(("campaign", "items"), [("all", 80), ("men", 34), ("women", 46)])
def test_the_real_open_bandit_logs(campaign, items):
    for policy in ("random", "bts"):
        rows, corrupt = _rows(f"obd:{OBD}", policy=policy, campaign=campaign)
        assert len(rows) == 10_000 and not corrupt
        assert {row["page_position"] for row in rows} == {b"1", b"2", b"3"}
        assert len({row["user"] for row in rows}) == 10_000
        assert 38 <= sum(row["reward"] for row in rows) <= 69
        assert len({row["item"] for row in rows}) <= items
        if policy == "random":
            chances = {round(row["propensity"], 6) for row in rows}
            assert chances == {round(1 / items, 6)}
        else:
            assert all(0 < row["propensity"] <= 1 for row in rows)


# A file of one's own.

SPEC = """
user: customer
item: banner
time: shown_at
reward: clicked
propensity: p
context:
  - {name: page}
"""
CSV = "customer,banner,shown_at,clicked,p,page\nc1,a,7,1,0.5,home\nc1,b,8,-2.5,,\nc2,a,9,0,1,home\n"


def _own(folder: Path, text: str = CSV, spec: str = SPEC) -> tuple[str, str]:
    (folder / "log.csv").write_text(text)
    (folder / "spec.yaml").write_text(spec)
    return str(folder / "log.csv"), str(folder / "spec.yaml")


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_log_of_ones_own_has_rewards_and_propensities_by_their_names(tmp_path, kind):
    data, spec = _own(tmp_path)
    if kind == "parquet":
        table = pa.table(
            {
                "customer": ["c1", "c1", "c2"],
                "banner": ["a", "b", "a"],
                "shown_at": [7, 8, 9],
                "clicked": [1.0, -2.5, 0.0],
                "p": [0.5, None, 1.0],
                "page": ["home", None, "home"],
            }
        )
        data = str(tmp_path / "log.parquet")
        pq.write_table(table, data)
    reader = open_source(data, spec, "logged_action")
    assert reader.record_type == "logged_action"
    assert reader.feature_spec().outcomes == ("clicked", "p")
    rows, corrupt = _rows(data, spec)
    assert not corrupt
    assert [(r["user"], r["item"], r["time"]) for r in rows] == [
        (b"c1", b"a", 7),
        (b"c1", b"b", 8),
        (b"c2", b"a", 9),
    ]
    assert [row["clicked"] for row in rows] == [1.0, -2.5, 0.0]
    assert [row["p"] for row in rows] == [0.5, None, 1.0]
    assert [row["page"] for row in rows] == [b"home", None, b"home"]


def test_a_log_without_propensities_and_without_times(tmp_path):
    text = "customer,banner,reward\nc1,a,1\nc1,b,0.5\n"
    data, spec = _own(tmp_path, text, "user: customer\nitem: banner\ntime: null\n")
    reader = open_source(data, spec, "logged_action")
    assert reader.feature_spec().outcomes == ("reward",)
    rows, _ = _rows(data, spec)
    assert [row["reward"] for row in rows] == [1.0, 0.5]
    assert rows[0].keys() == {"user", "item", "time", "position", "reward"}


BAD_ROWS = {
    "propensity 0": ("c3,a,9,1,0,home", "the propensity is 0, not above 0 and at most 1"),
    "propensity above 1": ("c3,a,9,1,1.2,home", "the propensity is 1.2, not above 0"),
    "negative propensity": ("c3,a,9,1,-0.2,home", "the propensity is -0.2"),
    "a word for a propensity": ("c3,a,9,1,low,home", "p is not float32"),
    "NaN reward": ("c3,a,9,nan,0.5,home", "the reward is nan, not a number"),
    "infinite reward": ("c3,a,9,inf,0.5,home", "the reward is inf, not a number"),
    "missing reward": ("c3,a,9,,0.5,home", "the reward is None, not a number"),
    "a word for a reward": ("c3,a,9,yes,0.5,home", "clicked is not float32"),
    "no action": ("c3,,9,1,0.5,home", "banner is missing"),
    "no time": ("c3,a,,1,0.5,home", "shown_at is not a time"),
}


def test_bad_rows_of_a_log_are_named_with_their_line_and_the_others_kept(tmp_path):
    header, *good = CSV.splitlines()
    lines = [header, good[0], *(row for row, _ in BAD_ROWS.values()), *good[1:]]
    data, spec = _own(tmp_path, "\n".join(lines) + "\n")
    rows, corrupt = _rows(data, spec, tolerated=0.9)
    assert [row["time"] for row in rows] == [7, 8, 9]
    assert [c.line for c in corrupt] == list(range(3, 3 + len(BAD_ROWS)))
    for one, (_, reason) in zip(corrupt, BAD_ROWS.values(), strict=True):
        assert one.reason.startswith(reason)


@pytest.mark.parametrize("case", ["propensity 0", "propensity above 1", "NaN reward"])
def test_a_bad_row_stops_a_run_that_tolerates_none(tmp_path, case):
    row, reason = BAD_ROWS[case]
    data, spec = _own(tmp_path, CSV + row + "\n")
    with pytest.raises(InputError, match=f"log.csv:5: {reason}"):
        _rows(data, spec, tolerated=0.001)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (SPEC.replace("reward: clicked", "reward: bought"), "has no column 'bought'"),
        (SPEC.replace("reward: clicked", ""), "has no column 'reward'"),
        (SPEC.replace("propensity: p", "propensity: q"), "has no column 'q'"),
        (SPEC.replace("propensity: p", "propensity: clicked"), "clicked"),
        (SPEC.replace("reward: clicked", "reward: page"), "page"),
        (SPEC + "outcome: page\n", "outcome"),
    ],
)
def test_bad_specs_of_a_log_are_named(tmp_path, spec, message):
    data, features = _own(tmp_path, spec=spec)
    with pytest.raises(InputError, match=message):
        _rows(data, features)


def test_a_spec_whose_contexts_were_left_blank_is_told_so_or_read(tmp_path):
    """As of interactions: what is wrong is the spec, not an option of the reader."""
    data, features = _own(tmp_path, spec=SPEC.replace("  - {name: page}\n", ""))
    try:
        rows, _ = _rows(data, features)
        assert "page" not in rows[0]
    except InputError as error:
        assert "has no option" not in str(error) and "context" in str(error)


# Outcomes are known afterwards.

OUTCOMES = HistorySpec(
    context=(Feature("page"), numeric("price"), numeric("reward"), numeric("propensity")),
    outcomes=("reward", "propensity"),
)
SCHEMA = pa.schema(
    [
        ("user", pa.binary()),
        ("item", pa.binary()),
        ("time", pa.int64()),
        ("position", pa.int64()),
        ("page", pa.binary()),
        ("price", pa.float32()),
        ("reward", pa.float32()),
        ("propensity", pa.float32()),
    ]
)


def _config(**values) -> HistoryConfig:
    return from_mapping(HistoryConfig, {"length": 4, "padding": "left", **values}, "data.history")


def _events(users: int = 40, seed: int = 0, longest: int = 9) -> pa.Table:
    """Events in no order, of some users but one; some without a price or a propensity."""
    rng = np.random.default_rng(seed)
    rows = []
    for user in range(users):
        for _ in range(int(rng.integers(1, longest))):
            rows.append(
                {
                    "user": b"u%d" % user,
                    "item": b"i%d" % int(rng.integers(12)),
                    "time": int(rng.integers(50)),
                    "page": [None, b"home", b"detail"][int(rng.integers(3))],
                    "price": [None, 1.5, 7.25][int(rng.integers(3))],
                    "reward": float(rng.integers(-1, 3)),
                    "propensity": [None, 0.5, 0.125][int(rng.integers(3))],
                }
            )
    rows = [rows[i] for i in rng.permutation(len(rows))]
    for position, row in enumerate(rows):
        row["position"] = position
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def _by_user(events: pa.Table) -> dict[bytes, list[dict]]:
    users: dict[bytes, list[dict]] = {}
    for row in events.to_pylist():
        users.setdefault(row["user"], []).append(row)
    for rows in users.values():
        rows.sort(key=lambda row: (row["time"], row["position"]))
    return users


def _or_nan(values: list[float | None]) -> list[float]:
    return [NAN if value is None else value for value in values]


def test_outcomes_are_no_features_of_a_request():
    names = {f.name for f in OUTCOMES.features}
    assert names == {
        "history",
        "history_time",
        "request_time",
        "history_page",
        "page",
        "history_price",
        "price",
    }
    added = ("history_reward", "reward", "history_propensity", "propensity")
    assert OUTCOMES.outcome_features == added
    assert set(raw_feature_spec(OUTCOMES, label=False)) == names
    assert set(raw_feature_spec(OUTCOMES, label=True)) == {*names, "target", *added}
    assert not set(OUTCOMES.aligned) & set(added)
    # What the pipeline's components are told.
    assert from_mapping(HistorySpec, to_mapping(OUTCOMES)) == OUTCOMES


@pytest.mark.parametrize("model", ["m3", "multi_interest", "topk_reinforce"])
def test_outcomes_are_inputs_of_no_model_that_learns_from_histories(model):
    """What is only known afterwards is not there when the model is asked."""
    entry = registry.get(model)
    task = entry.new_task(load_run_config(model, "file", []))
    inputs = task.model_inputs(OUTCOMES, {"item_xf": 14, "page_xf": 4})
    assert inputs.numeric == ("price",)


@pytest.mark.parametrize("name", ["page", "gone", "item"])
def test_an_outcome_must_be_a_number_among_the_contexts(name):
    with pytest.raises(ConfigError, match=f"outcome {name}: is not a numeric context"):
        dataclasses.replace(OUTCOMES, outcomes=(name,))


def test_outcomes_come_with_the_target_and_those_of_the_past_as_aligned_lists():
    events = _events()
    examples = build_examples(events, OUTCOMES, _config(keep=6))
    users = _by_user(events)
    assert examples["test"].num_rows == sum(len(rows) > 2 for rows in users.values())
    for back, split in ((1, "test"), (2, "validation")):
        for example in examples[split].to_pylist():
            rows = users[example["user"][0]]
            target, before = rows[-back], rows[:-back][-6:]
            assert example["target"] == [target["item"]]
            assert example["history"] == [row["item"] for row in before]
            for name in ("reward", "propensity"):
                np.testing.assert_equal(example[name], _or_nan([target[name]]))
                past = _or_nan([row[name] for row in before])
                np.testing.assert_equal(example[f"history_{name}"], past)


@pytest.mark.parametrize("padding", ["left", "right"])
def test_transformed_outcomes_stand_where_their_actions_stand(padding):
    config = _config(keep=6, padding=padding)
    table = build_examples(_events(), OUTCOMES, config)["train"]
    transform = HistoryPreprocessor.fit_examples(table, OUTCOMES, config)
    columns = transform_table(transform, table)
    terms = ["", *transform.vocabularies["item"]]
    for row, example in enumerate(table.to_pylist()):
        ids = columns["history_xf"][row]
        newest = slice(-4, None)
        real = ids != 0
        assert [terms[i].encode() for i in ids[real]] == example["history"][newest]
        for name in ("reward", "propensity"):
            # An unknown propensity is 0, which no known one is.
            expected = np.nan_to_num(example[f"history_{name}"][newest])
            np.testing.assert_array_equal(columns[f"history_{name}_xf"][row][real], expected)
            assert not columns[f"history_{name}_xf"][row][~real].any()
            assert columns[f"{name}_xf"][row] == np.nan_to_num(example[name][0])


def test_a_request_is_transformed_without_outcomes():
    config = _config()
    table = build_examples(_events(), OUTCOMES, config)["train"]
    transform = HistoryPreprocessor.fit_examples(table, OUTCOMES, config)
    serialized = to_examples(table, OUTCOMES, 5)
    stored = tf.train.Example.FromString(serialized[0]).features.feature
    assert set(stored) <= {f.name for f in OUTCOMES.features}
    raw = tf.io.parse_example(serialized, raw_feature_spec(OUTCOMES, label=False))
    asked = densify(transform(raw))
    assert not [name for name in asked if "reward" in name or "propensity" in name]
    told = transform_table(transform, table.slice(0, 5))
    for name, values in asked.items():
        np.testing.assert_array_equal(values.numpy(), told[name])


def test_a_split_by_users_holds_out_users_with_one_action_where_actions_have_outcomes():
    events = _events(300, longest=3)
    config = _config(split="users")
    counts = {user: len(rows) for user, rows in _by_user(events).items()}
    examples = build_examples(events, OUTCOMES, config, held_out=(0.3, 0.2), seed=1)
    owners = {split: [e["user"][0] for e in examples[split].to_pylist()] for split in SPLITS}
    assert sorted(user for split in SPLITS for user in owners[split]) == sorted(counts)
    for split in SPLITS:
        assert {counts[user] for user in owners[split]} == {1, 2}
    single = [e for e in examples["test"].to_pylist() if counts[e["user"][0]] == 1]
    users = _by_user(events)
    for example in single:
        (row,) = users[example["user"][0]]
        assert example["history"] == example["history_reward"] == []
        assert example["reward"] == [row["reward"]] and example["target"] == [row["item"]]
    # Without outcomes there is nothing to judge in what follows nothing.
    plain = dataclasses.replace(OUTCOMES, outcomes=())
    examples = build_examples(events, plain, config, held_out=(0.3, 0.2), seed=1)
    for split in SPLITS[1:]:
        assert {counts[e["user"][0]] for e in examples[split].to_pylist()} == {2}


def test_where_the_last_actions_are_left_out_users_with_one_are_trained_on():
    events = _events(100, longest=4)
    counts = {user: len(rows) for user, rows in _by_user(events).items()}
    examples = build_examples(events, OUTCOMES, _config())
    trained = {e["user"][0]: e for e in examples["train"].to_pylist()}
    assert set(trained) == set(counts)
    assert {counts[e["user"][0]] for e in examples["test"].to_pylist()} == {3}
    assert all(not e["history"] for u, e in trained.items() if counts[u] == 1)


# The same under Beam.

SETTINGS = {
    "leave_last_out": {"keep": 6},
    "users, some with one action": {"split": "users"},
    "several windows of a user": {"train_targets": 3, "train_stride": 2, "length": 2},
    "by time, rare left out, once": {
        "split": "time",
        "validation_start": 25,
        "test_start": 40,
        "min_item_count": 3,
        "drop_duplicates": True,
    },
}


def _examples_of(path: Path) -> list[bytes]:
    return sorted(record.numpy() for record in tf.data.TFRecordDataset(str(path)))


def _canonical(example: dict, spec: HistorySpec) -> bytes:
    """What is told of an example, its lists in order; floats with all their bits."""
    names = [*(f.name for f in spec.features), spec.label, *spec.outcome_features]
    told = []
    for name in names:
        values = example.get(name) or []
        numbers = values and not isinstance(values[0], bytes)
        told.append(np.asarray(values, "<f8").tobytes() if numbers else b"\x00".join(values))
    return b"\x01".join(told)


def _parsed(serialized: bytes) -> dict:
    example = tf.train.Example.FromString(serialized)
    return {
        name: list(getattr(stored, stored.WhichOneof("kind")).value)
        for name, stored in example.features.feature.items()
        if stored.WhichOneof("kind")
    }


def _under_beam(batches, spec, config, schema, folder: Path, **more) -> dict[str, list[bytes]]:
    with beam.Pipeline(runner="DirectRunner") as pipeline:
        outputs = (
            pipeline | batches | histories_beam.InteractionsToExamples(spec, config, schema, **more)
        )
        for split in SPLITS:
            _ = (
                outputs[split]
                | f"Encode{split}" >> data_beam.RecordsToExamples()
                | f"Write{split}"
                >> beam.io.WriteToTFRecord(str(folder / split), shard_name_template="")
            )
    return {split: _examples_of(folder / split) for split in SPLITS}


@pytest.mark.needs("apache_beam")
@pytest.mark.parametrize("setting", SETTINGS)
def test_beam_makes_the_same_examples_with_outcomes_as_memory(setting, tmp_path):
    from tfrz.data.histories.examples import drop_duplicates, drop_rare

    config = _config(**SETTINGS[setting])
    events, more = _events(60, longest=8), {"held_out": (0.3, 0.3), "seed": 3}
    kept = drop_rare(drop_duplicates(events) if config.drop_duplicates else events, config)
    expected = build_examples(kept, OUTCOMES, config, **more)
    batches = beam.Create(events.to_batches(max_chunksize=37), reshuffle=False)
    found = _under_beam(batches, OUTCOMES, config, SCHEMA, tmp_path, **more)
    for split in SPLITS:
        assert found[split]
        told = sorted(_canonical(_parsed(one), OUTCOMES) for one in found[split])
        assert told == sorted(_canonical(e, OUTCOMES) for e in expected[split].to_pylist())


@pytest.mark.needs("apache_beam")
def test_what_the_pipeline_reads_of_a_log_is_what_memory_reads(tmp_path):
    """From the reader to parsed examples, as ExampleGen and Transform see them."""
    reader = open_source("simulated", None, "logged_action", **SMALL)
    spec, config = reader.feature_spec(), _config(split="users")
    more = {"held_out": (0.4, 0.0), "seed": 0, "with_test": False}

    class _Read(beam.PTransform):
        def expand(self, pipeline):
            return (pipeline | data_beam.ReadRecords(reader))["records"]

    found = _under_beam(_Read(), spec, config, reader.schema, tmp_path, **more)
    table = build_examples(read_table(reader)[0], spec, config, **more)
    assert not found["test"]
    for split in SPLITS[:2]:
        expected = sorted(_canonical(e, spec) for e in table[split].to_pylist())
        told = sorted(_canonical(_parsed(one), spec) for one in found[split])
        assert told == expected
        raw = tf.io.parse_example(found[split], raw_feature_spec(spec))
        assert set(raw) == set(raw_sparse(table[split], spec))
        lengths = {
            name: np.bincount(raw[name].indices[:, 0], minlength=len(found[split])).tolist()
            for name in ("history", "history_reward", "history_propensity", "history_segment")
        }
        assert all(counts == lengths["history"] for counts in lengths.values())
        assert (raw["propensity"].values.numpy() > 0).all()
        assert len(raw["reward"].values) == len(raw["target"].values) == len(found[split])
