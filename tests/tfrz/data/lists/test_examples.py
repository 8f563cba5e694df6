"""From documents to lists: order, splits by query, simulated clicks, under Beam and not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tests.lazy import lazy
from tfrz.config import from_mapping
from tfrz.data.lists.examples import build_lists, split_of, splits_of
from tfrz.data.lists.spec import ListConfig, ListSpec
from tfrz.data.simulators.slates import ClickModel
from tfrz.data.spec import MISSING_INT, Feature, numeric
from tfrz.data.splits import SPLITS
from tfrz.errors import ConfigError

beam = lazy("apache_beam")
lists_beam = lazy("tfrz.data.lists.beam")

SPEC = ListSpec(
    candidate=(numeric("f1"), numeric("f2"), Feature("brand"), Feature("shop", dtype="int64")),
    context=(Feature("page"), numeric("hour")),
)
SCHEMA = pa.schema(
    [
        ("query", pa.binary()),
        ("item", pa.binary()),
        ("split", pa.binary()),
        ("position", pa.int64()),
        ("score", pa.float32()),
        ("relevance", pa.float32()),
        ("f1", pa.float32()),
        ("f2", pa.float32()),
        ("brand", pa.binary()),
        ("shop", pa.int64()),
        ("page", pa.binary()),
        ("hour", pa.float32()),
    ]
)
CLICKS = {"clicks": {"kind": "diverse", "eta": 0.0, "threshold": 2}}
OBSERVED = {"clicks": {"kind": "similar", "eta": 0.7, "threshold": 1}, "click_seed": 5}


def _config(**values) -> ListConfig:
    return from_mapping(ListConfig, {"length": 6, **values}, "data.lists")


def _table(rows: list[dict]) -> pa.Table:
    plain = {"split": b"", "score": 0.0, "relevance": 0.0}
    for place, row in enumerate(rows):
        row.setdefault("position", place)
        row.setdefault("item", b"%s-%d" % (row["query"], place))
    return pa.table(
        {f.name: pa.array([r.get(f.name, plain.get(f.name)) for r in rows], f.type) for f in SCHEMA}
    )


def _documents(queries: int = 60, seed: int = 0, splits: tuple[bytes, ...] = (b"",)) -> pa.Table:
    """Queries of 1 to 11 candidates whose rows are scattered; many scores are equal."""
    rng, rows = np.random.default_rng(seed), []
    for query in range(queries):
        split, page = splits[query % len(splits)], [None, b"home"][int(rng.integers(2))]
        for _ in range(int(rng.integers(1, 12))):
            values = rng.normal(size=2)
            rows.append(
                {
                    "query": b"q%d" % query,
                    "split": split,
                    "score": float(rng.integers(0, 4)),
                    "relevance": float(max(0, rng.integers(-2, 5))),
                    "f1": None if rng.random() < 0.1 else values[0],
                    "f2": None if rng.random() < 0.1 else 100 * values[1],
                    "brand": [None, b"a", b"b"][int(rng.integers(3))],
                    "shop": [None, 3, 7][int(rng.integers(3))],
                    "page": page,
                    "hour": float(query),
                }
            )
    return _table([rows[i] for i in rng.permutation(len(rows))])


def _by_query(documents: pa.Table) -> dict[bytes, list[dict]]:
    """The rows of each query, best first."""
    queries: dict[bytes, list[dict]] = {}
    for row in documents.to_pylist():
        queries.setdefault(row["query"], []).append(row)
    for rows in queries.values():
        rows.sort(key=lambda row: (-row["score"], row["position"]))
    return queries


def _lists(documents: pa.Table, config: ListConfig, **more) -> dict[str, dict[bytes, dict]]:
    """For each split its examples by query."""
    found = {}
    for split, table in build_lists(documents, SPEC, config, **more).items():
        rows = table.to_pylist()
        found[split] = {row["query"][0]: row for row in rows}
        assert len(found[split]) == len(rows)  # One example a query.
        assert all(len(row["query"]) == 1 for row in rows)
    return found


def _all(documents: pa.Table, config: ListConfig, **more) -> dict[bytes, dict]:
    return {
        q: row for part in _lists(documents, config, **more).values() for q, row in part.items()
    }


def test_scattered_rows_come_together_by_falling_score_then_place():
    documents = _documents()
    lists = _all(documents, _config(drop_empty=False))
    expected = _by_query(documents)
    assert lists.keys() == expected.keys()
    for query, rows in expected.items():
        assert lists[query]["candidates"] == [row["item"] for row in rows]
        assert lists[query]["relevance"] == [row["relevance"] for row in rows]


def test_equal_scores_keep_the_order_of_the_source_wherever_the_rows_lie():
    rows = [
        {"query": b"q", "item": b"c", "position": 30},
        {"query": b"q", "item": b"a", "position": 10},
        {"query": b"q", "item": b"best", "position": 99, "score": 1.0},
        {"query": b"q", "item": b"b", "position": 20},
        {"query": b"q", "item": b"worst", "position": 1, "score": -1.0},
    ]
    config = _config(drop_empty=False)
    for order in ([0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [2, 0, 4, 1, 3]):
        (row,) = _all(_table([dict(rows[i]) for i in order]), config).values()
        assert row["candidates"] == [b"best", b"a", b"b", b"c", b"worst"]


def test_missing_values_stay_beside_their_candidates():
    documents = _documents()
    lists = _all(documents, _config(drop_empty=False))
    seen = 0
    for query, rows in _by_query(documents).items():
        row = lists[query]
        for name, missing in (("brand", b""), ("shop", MISSING_INT)):
            assert row[name] == [missing if r[name] is None else r[name] for r in rows]
        for name in ("f1", "f2"):
            assert len(row[name]) == len(rows)
            expected = [np.nan if r[name] is None else r[name] for r in rows]
            np.testing.assert_array_equal(np.array(row[name]), np.array(expected))
            seen += int(np.isnan(expected).sum())
        # Of the request there is one value, or none.
        assert row["page"] == ([] if rows[0]["page"] is None else [rows[0]["page"]])
        assert row["hour"] == [rows[0]["hour"]]
    assert seen > 10


def test_the_sources_own_splits_are_kept():
    documents = _documents(splits=(b"train", b"validation", b"test"))
    lists = _lists(documents, _config(drop_empty=False), held_out=(0.9, 0.05))
    for place, split in enumerate(SPLITS):
        assert set(lists[split]) == {b"q%d" % q for q in range(60) if q % 3 == place}


def test_a_query_in_two_of_the_sources_files_is_a_list_in_each():
    rows = [
        {"query": b"q", "split": split, "item": split + item, "relevance": 1.0}
        for item in (b"1", b"2")
        for split in (b"train", b"test")
    ]
    lists = _lists(_table(rows), _config())
    assert lists["train"][b"q"]["candidates"] == [b"train1", b"train2"]
    assert lists["test"][b"q"]["candidates"] == [b"test1", b"test2"]


def test_no_query_is_in_two_splits_and_the_shares_are_those_asked_for():
    documents = _documents(400)
    lists = _lists(documents, _config(drop_empty=False), held_out=(0.2, 0.3), seed=1)
    owners = [set(lists[split]) for split in SPLITS]
    assert not (owners[0] & owners[1] or owners[0] & owners[2] or owners[1] & owners[2])
    assert len(set.union(*owners)) == 400
    assert 0.12 < len(owners[1]) / 400 < 0.28 and 0.2 < len(owners[2]) / 400 < 0.4
    assert owners[2] == {q for q in _by_query(documents) if split_of(q, (0.2, 0.3), 1) == "test"}
    other = _lists(documents, _config(drop_empty=False), held_out=(0.2, 0.3), seed=2)
    assert set(other["test"]) != owners[2]


def test_every_row_of_a_query_has_its_split():
    documents = _documents()
    of_rows = splits_of(documents, (0.3, 0.3), 0)
    for query, split in zip(documents["query"].to_pylist(), of_rows, strict=True):
        assert split == split_of(query, (0.3, 0.3), 0)


@pytest.mark.parametrize("splits", [(b"",), (b"train", b"validation", b"test"), (b"", b"test")])
def test_without_a_test_set_validation_takes_it(splits):
    documents, config = _documents(splits=splits), _config(drop_empty=False)
    three = _lists(documents, config, held_out=(0.2, 0.3))
    two = _lists(documents, config, held_out=(0.2, 0.3), with_test=False)
    assert three["validation"] and three["test"]
    assert not two["test"]
    assert repr(two["train"]) == repr(three["train"])
    assert set(two["validation"]) == set(three["validation"]) | set(three["test"])


@pytest.mark.parametrize(
    "settings", [{}, CLICKS, OBSERVED], ids=["grades", "all seen", "some seen"]
)
def test_the_order_of_the_table_changes_nothing(settings):
    documents, config = _documents(), _config(**settings)
    expected = _lists(documents, config, held_out=(0.3, 0.3))
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(documents.num_rows)
        found = _lists(documents.take(pa.array(order)), config, held_out=(0.3, 0.3))
        assert {s: _plain(found[s]) for s in SPLITS} == {s: _plain(expected[s]) for s in SPLITS}


def _plain(lists: dict[bytes, dict]) -> dict[bytes, str]:
    return {query: repr(row) for query, row in lists.items()}


def test_lists_without_anything_relevant_leave_the_training_set_alone():
    rows = [
        {"query": query, "split": split, "relevance": grade}
        for split in (b"train", b"validation", b"test")
        for query, grades in ((b"none", (0, 0)), (b"all", (1, 1)), (b"one", (0, 2)))
        for grade in grades
    ]
    dropped, kept = (_lists(_table(rows), _config(drop_empty=d)) for d in (True, False))
    assert set(dropped["train"]) == {b"all", b"one"}
    assert set(kept["train"]) == {b"none", b"all", b"one"}
    for split in SPLITS[1:]:
        assert set(dropped[split]) == set(kept[split]) == {b"none", b"all", b"one"}


def test_lists_without_a_click_are_dropped_although_they_have_grades():
    rows = [{"query": b"q", "relevance": 1.0, "f1": 0.0}, {"query": b"r", "relevance": 3.0}]
    assert set(_lists(_table(rows), _config())["train"]) == {b"q", b"r"}
    assert set(_lists(_table(rows), _config(**CLICKS))["train"]) == {b"r"}


@pytest.mark.parametrize("settings", [{}, CLICKS], ids=["grades", "clicks"])
def test_one_candidate_all_relevant_and_none(settings):
    rows = [{"query": b"alone", "relevance": 3.0, "f1": 2.0, "f2": None}]
    rows += [{"query": b"all", "relevance": 4.0, "f1": float(i), "f2": 1.0} for i in range(4)]
    rows += [{"query": b"none", "relevance": 0.0, "f1": float(i), "f2": 1.0} for i in range(4)]
    lists = _all(_table(rows), _config(drop_empty=False, **settings))
    assert lists[b"none"]["relevance"] == [0, 0, 0, 0]
    if not settings:
        assert lists[b"alone"]["relevance"] == [3] and lists[b"all"]["relevance"] == [4] * 4
        return
    assert lists[b"alone"]["relevance"] == [1]
    # Distances 1, 2, 3 three, two and one time: the median is 1.5, neighbours are too near.
    assert _config(**settings).clicks.quantile == 0.5
    normalised = 1.0 / np.std(np.arange(4))
    assert np.isclose(np.median([1, 1, 1, 2, 2, 3]) * normalised, 1.5 * normalised)
    assert lists[b"all"]["relevance"] == [1, 0, 1, 0]


def test_a_table_without_rows_has_no_lists():
    for settings in ({}, CLICKS):
        examples = build_lists(_documents().slice(0, 0), SPEC, _config(**settings))
        assert {split: table.num_rows for split, table in examples.items()} == dict.fromkeys(
            SPLITS, 0
        )


def _normalised(values: np.ndarray, how: str, logs: bool) -> np.ndarray:
    """Features of one list, `[candidates, features]`, column by column."""
    found = np.zeros(values.shape)
    for column in range(values.shape[1]):
        known = np.isfinite(values[:, column])
        one = values[known, column].astype(np.float64)
        if not one.size:
            continue
        if logs:
            one = np.sign(one) * np.log1p(np.abs(one))
        if how == "standardize":
            one = (one - one.mean()) / one.std() if one.size > 1 else np.zeros(1)
        elif how == "min_max":
            span = one.max() - one.min()
            one = (one - one.min()) / span if span else np.zeros(one.size)
        found[known, column] = one
    return found


def _has_equal_distances(features: np.ndarray) -> bool:
    gaps = np.sqrt(((features[:, None] - features[None]) ** 2).sum(-1))
    sorted_gaps = np.sort(gaps[np.triu_indices(len(gaps), 1)])
    return bool((np.diff(sorted_gaps) < 1e-5).any())


@pytest.mark.parametrize("kind", ["diverse", "similar", "independent"])
@pytest.mark.parametrize(
    ("how", "logs"), [("standardize", False), ("min_max", True), ("none", False)]
)
def test_clicks_are_the_click_models_on_the_base_order(kind, how, logs):
    settings = {"kind": kind, "threshold": 2}
    config = _config(clicks=settings, normalize=how, log_features=logs, drop_empty=False)
    documents, some = _documents(100), 0
    lists = _all(documents, config)
    for query, rows in _by_query(documents).items():
        seen = rows[:6]
        values = np.array([[r["f1"], r["f2"]] for r in seen], np.float64)
        grades = np.array([r["relevance"] for r in seen])
        features = _normalised(values, how, logs)
        if _has_equal_distances(features):
            continue  # Which of two equal distances is the greater is a matter of rounding.
        clicks = ClickModel(kind, threshold=2).click(features[None], grades[None])[0]
        assert lists[query]["relevance"] == [
            *clicks.astype(float),
            *[0.0] * (len(rows) - len(seen)),
        ]
        some += int(clicks.sum())
    assert some > 50


def test_labels_beyond_the_length_are_0_with_clicks_and_grades_without():
    rows = [{"query": b"q", "relevance": 4.0, "f1": float(i), "f2": 0.0} for i in range(5)]
    clicks = {"clicks": {"kind": "independent"}}
    (row,) = _all(_table(rows), _config(length=3, **clicks)).values()
    assert row["relevance"] == [1, 1, 1, 0, 0]
    assert len(row["candidates"]) == len(row["f1"]) == 5
    (row,) = _all(_table(rows), _config(length=3)).values()
    assert row["relevance"] == [4, 4, 4, 4, 4]


@pytest.mark.parametrize("how", ["standardize", "min_max", "none"])
def test_the_draws_of_a_query_do_not_depend_on_what_else_is_there(how):
    documents = _documents(80)
    config = _config(**OBSERVED, normalize=how, drop_empty=False)
    whole = _all(documents, config)
    every = np.array(documents["query"].to_pylist())
    for query in list(whole)[:40]:
        alone = documents.filter(pa.array(every == query))
        assert _all(alone, config)[query]["relevance"] == whole[query]["relevance"]


def test_observation_decays_and_follows_the_click_seed():
    rows = [
        {"query": b"q%d" % q, "relevance": 4.0, "f1": float(i)}
        for q in range(400)
        for i in range(4)
    ]

    def clicks(seed: int) -> np.ndarray:
        model = {"kind": "independent", "eta": 1.0}
        lists = _all(_table(rows), _config(clicks=model, click_seed=seed, drop_empty=False))
        return np.array([lists[b"q%d" % q]["relevance"] for q in range(400)])

    found = clicks(0)
    np.testing.assert_allclose(found.mean(0), [1, 1 / 2, 1 / 3, 1 / 4], atol=0.08)
    np.testing.assert_array_equal(clicks(0), found)
    assert (clicks(1) != found).any()


def _under_beam(documents: pa.Table, config: ListConfig, folder: Path, size: int, **more):
    """For each split its examples as text."""
    folder.mkdir(exist_ok=True)
    batches = documents.combine_chunks().to_batches(max_chunksize=size)
    with beam.Pipeline(runner="DirectRunner") as pipeline:
        outputs = (
            pipeline
            | beam.Create(batches, reshuffle=False)
            | lists_beam.DocumentsToLists(documents.schema, SPEC, config, **more)
        )
        for split in SPLITS:
            _ = (
                outputs[split]
                | f"Lines{split}" >> beam.FlatMap(lambda part: map(repr, part.to_pylist()))
                | f"Write{split}"
                >> beam.io.WriteToText(str(folder / split), shard_name_template="")
            )
    return {split: sorted((folder / split).read_text().splitlines()) for split in SPLITS}


BEAM = {
    "grades": ({}, {"held_out": (0.3, 0.3), "seed": 3}, 37, (b"",)),
    "clicks, all seen": (CLICKS, {"held_out": (0.3, 0.3)}, 11, (b"",)),
    "clicks, some seen": (OBSERVED, {"held_out": (0.3, 0.0), "with_test": False}, 53, (b"",)),
    "its own splits": ({"drop_empty": False}, {}, 29, (b"train", b"validation", b"test")),
    "no test set": (CLICKS, {"with_test": False}, 101, (b"train", b"validation", b"test")),
}


@pytest.mark.needs("apache_beam")
@pytest.mark.parametrize("case", BEAM)
def test_beam_makes_the_same_lists_as_memory(case, tmp_path):
    settings, more, size, splits = BEAM[case]
    documents, config = _documents(80, splits=splits), _config(**settings)
    expected = build_lists(documents, SPEC, config, **more)
    found = _under_beam(documents, config, tmp_path, size, **more)
    assert expected["train"].num_rows and expected["validation"].num_rows
    for split in SPLITS:
        assert found[split] == sorted(map(repr, expected[split].to_pylist()))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"length": 0}, "data.lists.length: must be at least 1"),
        ({"normalize": "ranks"}, "data.lists.normalize: 'ranks' is none of"),
        ({"clicks": {"kind": "any"}}, r"clicks\.kind"),
        ({"clicks": {"eta": -1}}, r"clicks\.eta: must be at least 0"),
        ({"clicks": {"quantile": 2}}, r"clicks\.quantile: must be 0 to 1"),
        ({"base_ranker": "bm25"}, "data.lists.base_ranker: 'bm25' is none of source, lambda_mart"),
        ({"lenght": 3}, "did you mean 'length'"),
    ],
    ids=str,
)
def test_bad_settings_are_named(values, message):
    with pytest.raises(ConfigError, match=message):
        _config(**values)
