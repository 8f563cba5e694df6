"""A source whose validation and test sets lie in files of their own."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
from typing_extensions import override

from tfrz.config import require
from tfrz.data.lists.examples import split_of
from tfrz.data.sources.files import CorruptLine, Shard
from tfrz.data.sources.reader import Reader
from tfrz.data.spec import Spec
from tfrz.data.splits import SPLIT_COLUMN, SPLITS, SplitPlan, split_rows


class SplitFiles(Reader):
    """Reads the training, validation and test records from sources of their own.

    Where only one of validation and test has its own, the other is a share of the first source.

    Args:
      train: The source of the training records.
      others: Split to its source, for validation, test or both.
      held_out: Shares of validation and test.
      seed: Seed of the random split.
    """

    def __init__(
        self,
        train: Reader,
        others: dict[str, Reader],
        held_out: tuple[float, float],
        seed: int,
    ) -> None:
        self.name, self.record_type = train.name, train.record_type
        self._readers = {"train": train, **others}
        self._held_out, self._seed = held_out, seed

    @override
    def with_dictionaries(self) -> SplitFiles:
        readers = {split: reader.with_dictionaries() for split, reader in self._readers.items()}
        others = {split: reader for split, reader in readers.items() if split != "train"}
        return SplitFiles(readers["train"], others, self._held_out, self._seed)

    @override
    def feature_spec(self) -> Spec:
        spec = self._readers["train"].feature_spec()
        name = SPLIT_COLUMN if self.record_type == "impression" else "split"
        return dataclasses.replace(spec, split=name)  # type: ignore[type-var]

    @override
    def files(self) -> list[str]:
        return [path for reader in self._readers.values() for path in reader.files()]

    @override
    def fingerprint(self) -> str:
        prints = [f"{split}:{reader.fingerprint()}" for split, reader in self._readers.items()]
        return self._hashed([*prints, str((self._held_out, self._seed))])

    @override
    def shards(self) -> list[Shard]:
        return self._numbered(lambda reader: reader.shards())

    @override
    def parts(self) -> list[Shard]:
        return self._numbered(lambda reader: reader.parts())

    def _numbered(self, shards: Callable[[Reader], list[Shard]]) -> list[Shard]:
        # The number of a shard's file says which reader reads it, too.
        return [
            dataclasses.replace(shard, number=shard.number * len(SPLITS) + SPLITS.index(split))
            for split, reader in self._readers.items()
            for shard in shards(reader)
        ]

    @override
    def read(self, shard: Shard) -> Iterator[pa.RecordBatch | CorruptLine]:
        number, place = divmod(shard.number, len(SPLITS))
        split = SPLITS[place]
        for item in self._readers[split].read(dataclasses.replace(shard, number=number)):
            if isinstance(item, CorruptLine):
                yield item
            else:
                yield self._placed(item, split)

    def _placed(self, batch: pa.RecordBatch, split: str) -> pa.RecordBatch:
        words = np.full(batch.num_rows, split.encode(), object)
        if split == "train" and len(self._readers) < len(SPLITS):
            left = {name for name in SPLITS if name not in self._readers}
            for name, rows in self._random(batch).items():
                if name in left:
                    words[rows] = name.encode()
        column = pa.array(words, pa.binary())
        name = "split" if self.record_type == "list" else SPLIT_COLUMN
        place = batch.schema.get_field_index(name)
        table = pa.Table.from_batches([batch])
        table = (
            table.append_column(name, column)
            if place < 0
            else table.set_column(place, name, column)
        )
        (whole,) = table.combine_chunks().to_batches()
        return whole

    def _random(self, batch: pa.RecordBatch) -> dict[str, Any]:
        if self.record_type == "impression":
            return split_rows(batch, SplitPlan(self._held_out, self._seed))
        coded = batch.column("query").dictionary_encode()
        chosen = [split_of(q, self._held_out, self._seed) for q in coded.dictionary.to_pylist()]
        found = np.array(chosen, object)[coded.indices.to_numpy()]
        return {split: np.flatnonzero(found == split) for split in SPLITS}


def with_split_files(
    train: Reader,
    opened: Callable[[str], Reader],
    validation: str | None,
    test: str | None,
    held_out: tuple[float, float],
    seed: int,
) -> Reader:
    """Returns a reader of all splits.

    Args:
      train: The source of the training records.
      opened: Opens another source.
      validation: As `--validation` of the command line.
      test: As `--test` of the command line.
      held_out: Shares of validation and test.
      seed: Seed of the random split.

    Raises:
      ConfigError: The type of the records has no such splits.
      InputError: A source is missing.
    """
    given = {"validation": validation, "test": test}
    others = {split: opened(path) for split, path in given.items() if path is not None}
    if not others:
        return train
    require(
        train.record_type in ("impression", "list"),
        "--validation and --test",
        f"are for impressions and lists; {train.record_type} records are split by user or time",
    )
    return SplitFiles(train, others, held_out, seed)
