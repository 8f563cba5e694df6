"""Batches in an order that depends on (seed, epoch) alone, from any step on.

This makes a resumed run equal to one that was never interrupted: the loop asks for epoch e from
step s, and reads the batches that the interrupted run would have read next.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import tensorflow as tf

from tfrz.errors import InputError

_SHUFFLE_BUFFER = 131_072


class Batches(Protocol):
    """A set of examples, cut into batches."""

    batch_size: int
    num_examples: int

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in one epoch."""

    def epoch(self, epoch: int, skip: int = 0) -> tf.data.Dataset:
        """The whole batches of `epoch` in its order, without the first `skip`."""

    def once(self) -> tf.data.Dataset:
        """All examples in stored order, the last batch possibly smaller."""


def _whole_batches(num_examples: int, batch_size: int, what: str) -> int:
    steps = num_examples // batch_size
    if steps == 0:
        raise InputError(
            f"{what} has {num_examples} examples, fewer than one batch of {batch_size}: "
            "set trainer.batch_size lower"
        )
    return steps


class ArrayBatches:
    """Batches of arrays that are in memory.

    Args:
      columns: names to arrays of equal length `[examples, ...]`, or ragged tensors, whose batches
        are ragged.
      batch_size: examples per batch.
      seed: of the order; epoch e has the permutation of `default_rng([seed, e])`.
      shuffle: keep the stored order if off.
    """

    def __init__(
        self,
        columns: Mapping[str, Any],
        batch_size: int,
        seed: int = 0,
        shuffle: bool = True,
    ) -> None:
        self.num_examples = int(next(iter(columns.values())).shape[0])
        self.batch_size = batch_size
        self._seed, self._shuffle = seed, shuffle
        with tf.device("CPU:0"):
            self._columns = {
                name: v if isinstance(v, tf.RaggedTensor) else tf.convert_to_tensor(v)
                for name, v in columns.items()
            }

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in one epoch."""
        return _whole_batches(self.num_examples, self.batch_size, "the training set")

    def columns(self) -> dict[str, Any]:
        """The arrays; ragged tensors as they are."""
        return {
            name: column if isinstance(column, tf.RaggedTensor) else column.numpy()
            for name, column in self._columns.items()
        }

    def recut(self, batch_size: int, seed: int) -> ArrayBatches:
        """The same examples in batches of another size or order; the arrays are shared."""
        other = copy.copy(self)
        other.batch_size, other._seed = batch_size, seed
        return other

    def _gather(self, rows: tf.Tensor) -> dict[str, tf.Tensor]:
        return {name: tf.gather(column, rows) for name, column in self._columns.items()}

    def epoch(self, epoch: int, skip: int = 0) -> tf.data.Dataset:
        """The whole batches of `epoch` in its order, without the first `skip`."""
        used = self.steps_per_epoch * self.batch_size
        rows = np.arange(self.num_examples, dtype=np.int64)
        if self._shuffle:
            rows = np.random.default_rng([self._seed, epoch]).permutation(rows)
        rows = rows[:used].reshape(-1, self.batch_size)[skip:]
        return (
            tf.data.Dataset.from_tensor_slices(rows)
            .map(self._gather, num_parallel_calls=2, deterministic=True)
            .prefetch(8)
        )

    def once(self) -> tf.data.Dataset:
        """All examples in stored order, the last batch possibly smaller."""
        return (
            tf.data.Dataset.range(self.num_examples)
            .batch(self.batch_size)
            .map(self._gather, num_parallel_calls=2, deterministic=True)
            .prefetch(2)
        )


def count_records(paths: Sequence[str], compression: str = "GZIP") -> int:
    """The number of records in TFRecord files."""
    dataset = tf.data.TFRecordDataset(list(paths), compression_type=compression)
    return int(dataset.batch(4096).reduce(np.int64(0), lambda n, b: n + tf.size(b, tf.int64)))


class ExampleBatches:
    """Batches of serialised `tf.Example`s in TFRecord files, streamed.

    Args:
      paths: the files.
      parse_spec: what `tf.io.parse_example` takes; sparse features come out dense, padded with 0.
      batch_size: examples per batch.
      num_examples: how many there are; counted if not given.
      seed: of the order. Records are shuffled within a buffer of 131,072.
      shuffle: keep the stored order if off.
      compression: of the files.
    """

    def __init__(
        self,
        paths: Sequence[str],
        parse_spec: Mapping[str, Any],
        batch_size: int,
        num_examples: int | None = None,
        seed: int = 0,
        shuffle: bool = True,
        compression: str = "GZIP",
    ) -> None:
        if not paths:
            raise InputError("no files of examples were given: check the split's path")
        self._paths, self._parse_spec = sorted(paths), dict(parse_spec)
        self._compression, self._seed, self._shuffle = compression, seed, shuffle
        self.batch_size = batch_size
        self.num_examples = (
            count_records(self._paths, compression) if num_examples is None else num_examples
        )

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in one epoch."""
        return _whole_batches(self.num_examples, self.batch_size, "the training set")

    def _parse(self, serialized: tf.Tensor) -> dict[str, tf.Tensor]:
        parsed = tf.io.parse_example(serialized, self._parse_spec)
        return {
            name: tf.sparse.to_dense(value) if isinstance(value, tf.SparseTensor) else value
            for name, value in parsed.items()
        }

    def _records(self) -> tf.data.Dataset:
        return tf.data.TFRecordDataset(self._paths, compression_type=self._compression)

    def epoch(self, epoch: int, skip: int = 0) -> tf.data.Dataset:
        """The whole batches of `epoch` in its order, without the first `skip`."""
        records = self._records()
        if self._shuffle:
            seed = int(np.random.default_rng([self._seed, epoch]).integers(2**31))
            records = records.shuffle(_SHUFFLE_BUFFER, seed=seed, reshuffle_each_iteration=False)
        return (
            records.batch(self.batch_size, drop_remainder=True)
            .skip(skip)
            .map(self._parse, num_parallel_calls=2, deterministic=True)
            .prefetch(8)
        )

    def once(self) -> tf.data.Dataset:
        """All examples in stored order, the last batch possibly smaller."""
        return (
            self._records()
            .batch(self.batch_size)
            .map(self._parse, num_parallel_calls=2, deterministic=True)
            .prefetch(2)
        )
