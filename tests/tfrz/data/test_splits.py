"""The split of a row depends on the row and the seed alone."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from tfrz.data.splits import (
    SPLIT_COLUMN,
    SPLITS,
    TIME_COLUMN,
    SplitPlan,
    shares_of_rows,
    split_rows,
    split_word,
)

COUNT = 20_000


def _table(count: int = COUNT) -> pa.Table:
    rng = np.random.default_rng(0)
    words = [f"word_{i}" for i in rng.integers(0, 40, 2 * count)]
    return pa.table(
        {
            "user": pa.array([f"user_{i}" for i in range(count)]),
            "price": rng.normal(size=count),
            "hour": rng.integers(0, 24, count),
            "tags": pa.ListArray.from_arrays(2 * np.arange(count + 1, dtype=np.int32), words),
        }
    )


def test_shares_are_uniform_and_differ_by_seed():
    table = _table()
    shares = shares_of_rows(table, 0)
    counts, _ = np.histogram(shares, 20, (0, 1))
    assert abs(counts - COUNT / 20).max() < 5 * np.sqrt(COUNT / 20)
    assert len(np.unique(shares)) == COUNT
    others = np.corrcoef([shares, shares_of_rows(table, 1), np.arange(COUNT)])
    assert abs(others - np.eye(3)).max() < 0.04


def test_neighbouring_rows_slices_and_the_order_of_columns_do_not_matter():
    table = _table(500)
    shares = shares_of_rows(table, 3)
    batches = table.to_batches(max_chunksize=7)
    np.testing.assert_array_equal(np.concatenate([shares_of_rows(b, 3) for b in batches]), shares)
    np.testing.assert_array_equal(shares_of_rows(table.slice(11, 50), 3), shares[11:61])
    turned = table.select(["tags", "hour", "price", "user"]).take(pa.array(range(499, -1, -1)))
    np.testing.assert_array_equal(shares_of_rows(turned, 3), shares[::-1])


def test_every_value_matters():
    table = pa.table(
        {"a": ["x", "x", "y", None, ""], "b": pa.array([[1, 2], [2, 1], [1, 2], [], [0]])}
    )
    assert len(np.unique(shares_of_rows(table, 0))) == 5
    swapped = pa.table({"a": ["x"], "b": ["y"]}), pa.table({"a": ["y"], "b": ["x"]})
    assert shares_of_rows(swapped[0], 0) != shares_of_rows(swapped[1], 0)
    lists = [["ab", "c"], ["a", "bc"], ["abc"], ["abc", ""], []]
    assert len(np.unique(shares_of_rows(pa.table({"a": lists}), 0))) == 5
    zeros = pa.table({"a": [0.0, -0.0, float("nan"), None]})
    shares = shares_of_rows(zeros, 0)
    assert shares[0] == shares[1]
    assert len(np.unique(shares)) == 3


def test_rows_fall_into_the_held_out_shares():
    rows = split_rows(_table(), SplitPlan((0.2, 0.1), 0))
    assert sorted(np.concatenate([rows[s] for s in SPLITS])) == list(range(COUNT))
    for split, share in zip(SPLITS, (0.7, 0.2, 0.1), strict=True):
        assert abs(len(rows[split]) / COUNT - share) < 0.015
        assert (np.diff(rows[split]) > 0).all()
    assert not len(split_rows(_table(50), SplitPlan((0.2, 0.0), 0))["test"])


def test_a_split_is_the_same_for_ever():
    table = pa.table({"user": ["ann", "bob"], "price": [1.5, 2.5]})
    np.testing.assert_array_equal(
        shares_of_rows(table, 0), [0.014334182316386057, 0.2422941782070952]
    )


def _placed(words: list[str], times: list[int], plan: SplitPlan) -> list[str]:
    table = pa.table(
        {
            "user": pa.array([[f"user_{i}"] for i in range(len(words))]),
            SPLIT_COLUMN: pa.array([word.encode() for word in words], pa.binary()),
            TIME_COLUMN: pa.array(times, pa.int64()),
        }
    )
    found = split_rows(table, plan)
    names = [""] * len(words)
    for split, rows in found.items():
        for row in rows:
            names[row] = split
    return names


def test_a_column_places_rows_and_the_hash_the_rest():
    words = ["train", "validation", "test"] * 200 + [""] * 400
    shares = (0.3, 0.3)
    placed = _placed(words, [0] * 1000, SplitPlan(shares, 0, "column"))
    assert placed[:600] == words[:600]
    hashed = _placed(words, [0] * 1000, SplitPlan(shares, 0))
    assert placed[600:] == hashed[600:] and set(hashed[600:]) == set(SPLITS)
    assert hashed[:600] != words[:600]
    without = _placed(words, [0] * 1000, SplitPlan((0.3, 0.0), 0, "column"))
    assert without[:3] == ["train", "validation", "validation"] and "test" not in without


def test_times_place_rows():
    plan = SplitPlan((0.1, 0.1), 0, "time", (100, 200))
    times = [0, 99, 100, 199, 200, 10**9]
    wanted = ["train", "train", "validation", "validation", "test", "test"]
    assert _placed([""] * 6, times, plan) == wanted


def test_what_places_a_row_and_what_is_added_to_it_do_not_change_the_hash():
    table = _table(300)
    plan = SplitPlan((0.3, 0.3), 0)
    more = table.append_column(SPLIT_COLUMN, pa.array([b"test"] * 300))
    more = more.append_column("long_history", pa.array([b"x"] * 300))
    for split, rows in split_rows(table, plan).items():
        np.testing.assert_array_equal(split_rows(more, plan)[split], rows)


def test_words_of_splits():
    assert [split_word(word) for word in ("Train", " valid ", "dev", "TEST")] == [
        "train",
        "validation",
        "validation",
        "test",
    ]
    assert split_word("other") is None
