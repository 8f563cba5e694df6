"""Batches: the order depends on (seed, epoch) alone, and can be entered at any step."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tfrz.errors import InputError
from tfrz.training.batches import ArrayBatches, ExampleBatches


def _rows(dataset) -> list[list[int]]:
    return [batch["row"].numpy().tolist() for batch in dataset]


@pytest.fixture(scope="module")
def example_batches(tmp_path_factory):
    folder = tmp_path_factory.mktemp("records")
    paths = []
    for part in range(2):
        path = str(folder / f"part-{part}.gz")
        with tf.io.TFRecordWriter(path, tf.io.TFRecordOptions(compression_type="GZIP")) as writer:
            for row in range(part * 10, part * 10 + 10):
                feature = {
                    "row": tf.train.Feature(int64_list=tf.train.Int64List(value=[row])),
                    "bag": tf.train.Feature(int64_list=tf.train.Int64List(value=range(row % 3))),
                }
                example = tf.train.Example(features=tf.train.Features(feature=feature))
                writer.write(example.SerializeToString())
        paths.append(path)
    spec = {
        "row": tf.io.FixedLenFeature([], tf.int64),
        "bag": tf.io.VarLenFeature(tf.int64),
    }
    return lambda **options: ExampleBatches(paths, spec, 6, **options)


@settings(max_examples=20, deadline=None)
@given(rows=st.integers(6, 40), epoch=st.integers(0, 3), seed=st.integers(0, 5))
def test_an_epoch_has_each_row_at_most_once_and_the_same_order_each_time(rows, epoch, seed):
    batches = ArrayBatches({"row": np.arange(rows)}, 6, seed)
    order = _rows(batches.epoch(epoch))
    assert len(order) == batches.steps_per_epoch == rows // 6
    flat = sum(order, [])
    assert len(set(flat)) == len(flat)
    assert order == _rows(batches.epoch(epoch))
    for skip in range(len(order)):
        assert _rows(batches.epoch(epoch, skip)) == order[skip:]


def test_epochs_and_seeds_differ():
    columns = {"row": np.arange(60)}
    first = ArrayBatches(columns, 6, 0)
    assert _rows(first.epoch(0)) != _rows(first.epoch(1))
    assert _rows(first.epoch(0)) != _rows(ArrayBatches(columns, 6, 1).epoch(0))


def test_once_gives_every_row_in_order():
    batches = ArrayBatches({"row": np.arange(20)}, 6)
    assert _rows(batches.once()) == [list(range(i, min(i + 6, 20))) for i in (0, 6, 12, 18)]


def test_streamed_examples_have_the_same_contract(example_batches):
    batches = example_batches(seed=1)
    assert (batches.num_examples, batches.steps_per_epoch) == (20, 3)
    order = _rows(batches.epoch(2))
    assert order == _rows(batches.epoch(2))
    assert order != _rows(batches.epoch(3))
    assert _rows(batches.epoch(2, 1)) == order[1:]
    assert sorted(sum(_rows(batches.once()), [])) == list(range(20))
    bag = next(iter(example_batches(shuffle=False).once()))["bag"]
    np.testing.assert_array_equal(bag, [[0, 0], [0, 0], [0, 1], [0, 0], [0, 0], [0, 1]])


def test_fewer_rows_than_a_batch_is_told():
    with pytest.raises(InputError, match=r"5 examples, fewer than one batch of 6.*batch_size"):
        ArrayBatches({"row": np.arange(5)}, 6).epoch(0)
