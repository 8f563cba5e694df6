"""Batches in an order that depends on (seed, epoch) alone, from any step on.

This makes a resumed run equal to one that was never interrupted: the loop asks for epoch e from
step s, and reads the batches that the interrupted run would have read next.
"""

from __future__ import annotations

import concurrent.futures
import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
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


class GroupedBatches:
    """Batches of examples that are read by groups, for sets beyond memory.

    An epoch takes the groups in an order of its own, some of them at a time, and shuffles these as
    a whole. The order follows from the seed and the epoch alone, so a resumed run reads what an
    uninterrupted one reads.

    Args:
      sizes: number of examples of each group.
      read: returns the columns of some groups, by their numbers, one after the other.
      batch_size: examples per batch.
      seed: of the order.
      shuffle: keep the stored order if off.
      window: number of groups that are shuffled together.
    """

    _BATCHES_AT_ONCE = 64

    def __init__(
        self,
        sizes: Sequence[int],
        read: Callable[[Sequence[int]], Mapping[str, Any]],
        batch_size: int,
        seed: int = 0,
        shuffle: bool = True,
        window: int = 16,
    ) -> None:
        self.num_examples, self.batch_size = sum(sizes), batch_size
        self._sizes, self._read = list(sizes), read
        self._seed, self._shuffle, self._window = seed, shuffle, window

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in one epoch."""
        return _whole_batches(self.num_examples, self.batch_size, "the training set")

    def _windows(self, epoch: int) -> list[Sequence[int]]:
        order = np.arange(len(self._sizes))
        if self._shuffle:
            order = np.random.default_rng([self._seed, epoch]).permutation(order)
        return [order[i : i + self._window].tolist() for i in range(0, len(order), self._window)]

    def _read_window(self, epoch: int, number: int, groups: Sequence[int]) -> dict[str, Any]:
        columns = self._read(groups)
        if not self._shuffle:
            return dict(columns)
        rows = sum(self._sizes[group] for group in groups)
        order = np.random.default_rng([self._seed, epoch, number]).permutation(rows)
        return {name: column[order] for name, column in columns.items()}

    def _runs(self, epoch: int, skip: int, count: int) -> Iterator[dict[str, Any]]:
        """Yields some of `count` whole batches at a time, `[batches, batch, ...]`."""
        size, left = self.batch_size, count * self.batch_size
        offset = skip * size
        windows: list[tuple[int, Sequence[int]]] = []
        for number, groups in enumerate(self._windows(epoch)):
            rows = sum(self._sizes[group] for group in groups)
            if offset >= rows and not windows:
                offset -= rows
            else:
                windows.append((number, groups))
        carried: dict[str, Any] = {}
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            # The next window is read while the batches of this one are taken.
            waiting = [pool.submit(self._read_window, epoch, *windows[0])] if windows else []
            for place in range(len(windows)):
                columns = waiting.pop().result()
                if place + 1 < len(windows):
                    waiting.append(pool.submit(self._read_window, epoch, *windows[place + 1]))
                columns = {name: column[offset:] for name, column in columns.items()}
                offset = 0
                if carried:
                    columns = {n: np.concatenate([carried[n], c]) for n, c in columns.items()}
                rows = min(len(next(iter(columns.values()))) // size * size, left)
                for start in range(0, rows, size * self._BATCHES_AT_ONCE):
                    end = min(start + size * self._BATCHES_AT_ONCE, rows)
                    yield {
                        name: column[start:end].reshape(-1, size, *column.shape[1:])
                        for name, column in columns.items()
                    }
                left -= rows
                if not left:
                    return
                carried = {name: column[rows:] for name, column in columns.items()}

    def _dataset(self, generator: Callable[[], Iterator[Any]], *leading: int) -> tf.data.Dataset:
        signature = {}
        for name, column in self._read([0]).items():
            dtype = tf.string if column.dtype == object else tf.as_dtype(column.dtype)
            signature[name] = tf.TensorSpec([None, *leading, *column.shape[1:]], dtype)
        return tf.data.Dataset.from_generator(generator, output_signature=signature)

    def epoch(self, epoch: int, skip: int = 0) -> tf.data.Dataset:
        """The whole batches of `epoch` in its order, without the first `skip`."""
        count = self.steps_per_epoch - skip
        runs = self._dataset(lambda: self._runs(epoch, skip, count), self.batch_size)
        return runs.prefetch(1).flat_map(tf.data.Dataset.from_tensor_slices).prefetch(8)

    def once(self) -> tf.data.Dataset:
        """All examples in stored order, the last batch possibly smaller."""

        def batches() -> Iterator[dict[str, Any]]:
            carried: dict[str, Any] = {}
            for group in range(len(self._sizes)):
                columns = dict(self._read([group]))
                if carried:
                    columns = {n: np.concatenate([carried[n], c]) for n, c in columns.items()}
                rows = len(next(iter(columns.values())))
                last = group + 1 == len(self._sizes)
                whole = rows if last else rows // self.batch_size * self.batch_size
                for start in range(0, whole, self.batch_size):
                    end = min(start + self.batch_size, whole)
                    yield {name: column[start:end] for name, column in columns.items()}
                carried = {name: column[whole:] for name, column in columns.items()}

        return self._dataset(batches).prefetch(2)


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
