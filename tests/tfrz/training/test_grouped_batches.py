"""Batches read by groups: every example once an epoch, in an order that a resumed run repeats."""

from __future__ import annotations

import numpy as np
import pytest

from tfrz.errors import InputError
from tfrz.training.batches import GroupedBatches

SIZES = [50, 50, 50, 50, 50, 23]
STARTS = np.concatenate([[0], np.cumsum(SIZES)])


def _read(groups):
    rows = np.concatenate([np.arange(STARTS[g], STARTS[g + 1]) for g in groups])
    return {
        "row": rows,
        "pair": np.stack([rows, -rows], axis=1).astype(np.float32),
        "text": np.array([b"%d" % row for row in rows], object),
    }


def _rows(dataset) -> list[list[int]]:
    found = []
    for batch in dataset:
        rows = batch["row"].numpy()
        np.testing.assert_array_equal(batch["pair"].numpy(), np.stack([rows, -rows], axis=1))
        assert batch["text"].numpy().tolist() == [b"%d" % row for row in rows]
        found.append(rows.tolist())
    return found


@pytest.mark.parametrize(("size", "window"), [(1, 2), (7, 4), (50, 1), (64, 2), (273, 16)])
def test_an_epoch_has_each_example_at_most_once_and_as_many_as_fit(size, window):
    batches = GroupedBatches(SIZES, _read, size, seed=3, window=window)
    assert batches.num_examples == 273 and batches.steps_per_epoch == 273 // size
    found = _rows(batches.epoch(0))
    assert [len(rows) for rows in found] == [size] * (273 // size)
    rows = sum(found, [])
    assert len(set(rows)) == len(rows) and set(rows) <= set(range(273))


@pytest.mark.parametrize(("size", "window"), [(37, 1), (64, 2), (37, 16)])
def test_an_epoch_goes_on_where_it_was_left(size, window):
    batches = GroupedBatches(SIZES, _read, size, seed=3, window=window)
    whole = _rows(batches.epoch(1))
    for skip in range(batches.steps_per_epoch + 1):
        assert _rows(batches.epoch(1, skip)) == whole[skip:]


def test_epochs_and_seeds_have_orders_of_their_own():
    batches = GroupedBatches(SIZES, _read, 13, seed=3, window=2)
    first, second = _rows(batches.epoch(0)), _rows(batches.epoch(1))
    other = _rows(GroupedBatches(SIZES, _read, 13, seed=4, window=2).epoch(0))
    assert first != second and first != other
    assert _rows(GroupedBatches(SIZES, _read, 13, seed=3, window=2).epoch(0)) == first
    # Groups are mixed, not only the rows within them.
    groups = [row // 50 for row in first[0]]
    assert len(set(groups)) > 1
    stored = GroupedBatches(SIZES, _read, 13, shuffle=False)
    assert sum(_rows(stored.epoch(0)), []) == list(range(273))


@pytest.mark.parametrize("size", [1, 40, 50, 100, 1000])
def test_once_reads_all_in_order(size):
    found = _rows(GroupedBatches(SIZES, _read, size, seed=3).once())
    assert sum(found, []) == list(range(273))
    assert [len(rows) for rows in found[:-1]] == [size] * (len(found) - 1)


def test_fewer_examples_than_a_batch_are_refused():
    with pytest.raises(InputError, match="273 examples, fewer than one batch of 274"):
        GroupedBatches(SIZES, _read, 274).epoch(0)
