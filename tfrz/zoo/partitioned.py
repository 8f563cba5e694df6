"""Prepares records that memory does not hold: in parts on disk, by a hash of their key.

Records are written to parts by the hash of the user (or of what else `Task.partition_key` names).
The examples of a part are built by the same functions that build those of a table in memory, so
the examples of each split, the vocabularies and the ids are the same; only the order of the
examples differs. The transformed examples are kept in the cache, from where they are trained on.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import tensorflow as tf

from tfrz.config import to_mapping
from tfrz.data.arrow_files import Partitions
from tfrz.data.columns import to_examples
from tfrz.data.sources.files import CorruptLines
from tfrz.data.splits import SPLITS
from tfrz.data.transform import Preprocessor
from tfrz.data.transformed import TransformedSet, TransformedSink, transformed_set
from tfrz.data.user_embeddings import Found
from tfrz.files import atomic_write
from tfrz.training.batches import ArrayBatches, Batches, GroupedBatches
from tfrz.zoo.task import ExampleSource, Prepared, Task, refuse_empty_training

logger = logging.getLogger(__name__)

# Changes with the layout of the files.
_VERSION = 1
# Up to so many records are held in memory, with all examples.
IN_MEMORY_RECORDS = 1 << 22
# Sets of more bytes are read from the cache while training.
IN_MEMORY_BYTES = 1 << 28
# Examples that are transformed at once.
_AT_ONCE = 1 << 14
_DONE = "examples.json"


@dataclasses.dataclass(frozen=True)
class _Stored:
    """Examples in the cache.

    Attributes:
      transform: Fitted to the training examples.
      sets: Split to its transformed examples.
      examples: Some raw examples of the validation set, serialised.
      left_out: Number of records that were left out.
    """

    transform: Preprocessor[Any, Any]
    sets: Mapping[str, TransformedSet]
    examples: list[bytes]
    left_out: int


def prepared_in(
    task: Task[Any, Any], source: ExampleSource[Any], cache: Path
) -> Prepared[Any, Any]:
    """Reads, splits and transforms a source; with a cache where memory may not hold it.

    Args:
      task: Of the run; it has a `partition_key`.
      source: As `Task.resolve` returns it.
      cache: Folder for the examples of sources beyond memory.

    Raises:
      InputError: As of `Task.examples`.
    """
    task.open_catalogue(lambda: source.reader)
    directory = cache / _key(task, source)
    stored = _stored_in(directory, task, source)
    if stored is None:
        unfinished = directory.with_name(f"{directory.name}.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        try:
            records, corrupt = _read(task, source, unfinished / "records")
            if isinstance(records, pa.Table):
                return task.prepared(source.spec, *task.examples_of(records, source, corrupt))
            _store(task, source, records, corrupt, unfinished)
            shutil.rmtree(directory, ignore_errors=True)
            unfinished.rename(directory)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
        stored = _stored_in(directory, task, source)
        assert stored is not None
    else:
        logger.info("examples of %s: %s", source.reader.name, directory)
    sets = {split: _batches(task, split, some) for split, some in stored.sets.items()}
    return task.of_sets(source.spec, stored.transform, sets, stored.examples, stored.left_out)


def _key(task: Task[Any, Any], source: ExampleSource[Any]) -> str:
    """A name that changes with whatever decides what the examples are."""
    join = source.join
    state = [
        _VERSION,
        task.entry.record_type,
        f"{type(task).__module__}.{type(task).__qualname__}",
        source.reader.fingerprint(),
        to_mapping(source.spec),
        to_mapping(task.config.data),
        None if join is None else [join.place, join.embeddings.version],
    ]
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()[:20]


def _read(
    task: Task[Any, Any], source: ExampleSource[Any], folder: Path
) -> tuple[pa.Table | Partitions, int]:
    """Reads a source: a table if it is small, else parts on disk; and the corrupt lines."""
    reader, corrupt = source.reader, CorruptLines()
    held: list[pa.RecordBatch] = []
    parts: Partitions | None = None
    for batch in reader.batches(corrupt):
        held.append(batch)
        if parts is None and corrupt.rows > IN_MEMORY_RECORDS:
            assert task.partition_key is not None
            parts = Partitions(folder, batch.schema, task.partition_key)
        if parts is not None:
            for one in held:
                parts.write(one)
            held.clear()
    if parts is not None:
        parts.close()
    corrupt.check(reader.name, task.config.data.max_corrupt_fraction)
    return parts or pa.Table.from_batches(held), len(corrupt)


def _store(
    task: Task[Any, Any],
    source: ExampleSource[Any],
    records: Partitions,
    left_out: int,
    folder: Path,
) -> None:
    """Writes the transformed examples of all splits to a folder."""
    raw = folder / "raw"
    raw.mkdir()
    counts, found, number = dict.fromkeys(SPLITS, 0), Found(), 0
    records = task.settled(records, source.spec)
    for number, part in enumerate(records):
        examples, left = task.examples_of_part(part, source)
        left_out += left
        for split, table in examples.items():
            if source.join is not None:
                table, some = source.join(table)
                found += some
            counts[split] += table.num_rows
            path = str(raw / f"{split}-{number}.arrow")
            with pa.ipc.new_file(path, table.schema) as writer:
                writer.write_table(table, _AT_ONCE)
    shutil.rmtree(records.folder)
    task.check_examples(counts, source)
    refuse_empty_training(counts["train"])
    if source.join is not None:
        source.join.check(found)
    tables = {split: _mapped(raw, split, number + 1) for split in SPLITS}
    transform = task.fit_transform(tables["train"], source.spec)
    shapes = {}
    for split, table in tables.items():
        sink = TransformedSink(folder / f"{split}.arrow")
        transformed = task.transformer(transform, source.spec, split)
        for some in _slices(table):
            sink.write(transformed(some))
        shapes[split] = sink.close().shapes
    with tf.io.TFRecordWriter(str(folder / "examples.tfrecord")) as writer:
        for example in to_examples(tables["validation"], source.spec, limit=1000):
            writer.write(example)
    del tables, table, some
    shutil.rmtree(raw)
    terms = {
        name: [base64.b64encode(term).decode() for term in values]
        for name, values in transform.terms.items()
    }
    described = {
        "shapes": shapes,
        "vocabularies": terms,
        "moments": transform.fitted_moments,
        "left_out": left_out,
    }
    atomic_write(folder / _DONE, json.dumps(described) + "\n")


def _mapped(folder: Path, split: str, count: int) -> pa.Table:
    paths = [folder / f"{split}-{number}.arrow" for number in range(count)]
    return pa.concat_tables(pa.ipc.open_file(pa.memory_map(str(p))).read_all() for p in paths)


def _slices(table: pa.Table) -> Iterator[pa.Table]:
    """Yields the rows, some at a time; a table without rows once."""
    for start in range(0, max(table.num_rows, 1), _AT_ONCE):
        yield table.slice(start, _AT_ONCE)


def _stored_in(directory: Path, task: Task[Any, Any], source: ExampleSource[Any]) -> _Stored | None:
    """Returns what `_store` wrote to a folder; None if there is nothing whole."""
    if not (directory / _DONE).exists():
        return None
    described = json.loads((directory / _DONE).read_text())
    vocabularies = {
        name: [base64.b64decode(term) for term in terms]
        for name, terms in described["vocabularies"].items()
    }
    moments = {name: (mean, variance) for name, (mean, variance) in described["moments"].items()}
    records = tf.data.TFRecordDataset(str(directory / "examples.tfrecord"))
    return _Stored(
        task.transform_of(source.spec, vocabularies, moments),
        {s: transformed_set(directory / f"{s}.arrow", described["shapes"][s]) for s in SPLITS},
        [record.numpy() for record in records],
        described["left_out"],
    )


def _batches(task: Task[Any, Any], split: str, some: TransformedSet) -> Batches:
    """The examples in memory if they are few, else read by groups."""
    trainer = task.config.trainer
    size, seed = task.evaluation_batch, 0
    if split == "train":
        size, seed = trainer.batch_size, trainer.seed
    if some.num_bytes <= IN_MEMORY_BYTES:
        return ArrayBatches(some.columns(), size, seed)
    sizes = [batch.num_rows for batch in some.rows.batches]
    return GroupedBatches(sizes, some.columns, size, seed)
