"""Files with one user or session per line and its item ids: sessions, Amazon, Gowalla."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow as pa
from typing_extensions import override

from tfrz.config import require
from tfrz.data.columns import record_batch
from tfrz.data.histories.readers import InteractionReader
from tfrz.data.histories.spec import CandidateSpec, HistorySpec
from tfrz.data.sources.files import CorruptLine, Shard, TextSource, corrupt
from tfrz.data.sources.reader import Reader
from tfrz.data.spec import Feature
from tfrz.errors import InputError


class ItemLines(InteractionReader):
    """A text file with one user or session per line: item ids in time order, between spaces.

    Args:
      path: A plain or `.gz` file, or a folder.
      name: Name of the source.
      member: Name of the file within a folder.
      first_is_user: Whether the first field is the user; if not, each line is a user.
    """

    def __init__(self, path: str, name: str, member: str = "", first_is_user: bool = False) -> None:
        self.name, self.first_is_user = name, first_is_user
        self._source = TextSource(path, member if Path(path).is_dir() else "")

    @override
    def feature_spec(self) -> HistorySpec:
        return HistorySpec(time=None)

    @override
    def files(self) -> list[str]:
        return [self._source.file]

    @override
    def shards(self) -> list[Shard]:
        return self._source.shards()

    @override
    def read(self, shard: Shard) -> Iterator[pa.RecordBatch | CorruptLine]:
        least = 2 if self.first_is_user else 1
        users: list[bytes] = []
        items: list[list[bytes]] = []
        for i, line in enumerate(self._source.lines(shard)):
            fields = line.split()
            if len(fields) < least or b"\t" in line:
                wanted = "a user and items" if self.first_is_user else "items"
                yield corrupt(shard, i, f"expected {wanted} separated by spaces", line)
                continue
            users.append(fields[0] if self.first_is_user else b"%d" % (shard.first_line + i))
            items.append(fields[1:] if self.first_is_user else fields)
        if not users:
            return
        lengths = np.array([len(row) for row in items])
        flat = [item for row in items for item in row]
        starts = np.repeat(np.cumsum(lengths) - lengths, lengths)
        yield self.batch(
            user=pa.array(users, pa.binary()).take(
                pa.array(np.repeat(np.arange(len(users)), lengths))
            ),
            item=pa.array(flat, pa.binary()),
            position=np.arange(len(flat)) - starts,
        )


class AmazonSequences(ItemLines):
    """Reviews in time order, without times; items have attributes (categories, brands, tags).

    Args:
      path: `NAME.txt.gz` next to `NAME_item2attributes.json.gz`, or the folder of both.
      part: Which data set of a folder to read.
    """

    def __init__(self, path: str, part: str | None = None) -> None:
        member = _named(path, part, _AMAZON, ".txt.gz")
        super().__init__(path, "amazon-seq", member, first_is_user=True)
        file = self._source.file
        beside = Path(file.removesuffix(".gz").removesuffix(".txt") + "_item2attributes.json.gz")
        self._attributes = str(beside) if beside.exists() else None

    @override
    def feature_spec(self) -> HistorySpec:
        if self._attributes is None:
            return super().feature_spec()
        described = CandidateSpec(features=(Feature("attributes", multivalent=True),))
        return HistorySpec(time=None, candidates=described)

    @override
    def files(self) -> list[str]:
        return [*super().files(), *([self._attributes] if self._attributes else [])]

    @override
    def candidates(self) -> pa.Table | None:
        if self._attributes is None:
            return None
        try:
            with gzip.open(self._attributes) as file:
                known = json.load(file)
        except (OSError, ValueError) as error:
            raise InputError(f"{self._attributes} is not gzipped JSON: {error}") from error
        try:
            lists = [[b"%d" % a for a in attributes] for attributes in known.values()]
        except (AttributeError, TypeError) as error:
            raise InputError(
                f"{self._attributes} does not map items to lists of numbers: {error}"
            ) from error
        return pa.table(
            {
                "item": pa.array([item.encode() for item in known], pa.binary()),
                "attributes": pa.array(lists, pa.list_(pa.binary())),
            }
        )


class Gowalla(InteractionReader):
    """Check-ins in the split of LightGCN: unordered sets, which are shuffled with a seed.

    Args:
      path: Folder with `train.txt.gz` and `test.txt.gz`.
      part: `train`, `test`, or `both` (training places come before test places).
      seed: Seed of the order within a part.
    """

    name = "gowalla"
    _PARTS: ClassVar = {"train": ("train",), "test": ("test",), "both": ("train", "test")}

    def __init__(self, path: str, part: str = "train", seed: int = 0) -> None:
        require(part in self._PARTS, "data.options.part", "must be train, test or both")
        self.path, self.part, self.seed = path, part, seed
        self._lines = [
            ItemLines(path, self.name, f"{one}.txt.gz", first_is_user=True)
            for one in self._PARTS[part]
        ]

    @override
    def feature_spec(self) -> HistorySpec:
        return HistorySpec(time=None)

    @override
    def files(self) -> list[str]:
        return [file for lines in self._lines for file in lines.files()]

    @override
    def shards(self) -> list[Shard]:
        return [shard for lines in self._lines for shard in lines.shards()]

    @override
    def read(self, shard: Shard) -> Iterator[pa.RecordBatch | CorruptLine]:
        name = shard.place.rpartition("/")[2].rpartition("!")[2].partition(".")[0]
        place = self._PARTS[self.part].index(name)
        for batch in self._lines[place].read(shard):
            if isinstance(batch, CorruptLine):
                yield batch
                continue
            # A shard contains whole lines, so a user is never split.
            rng = np.random.default_rng([self.seed, place, shard.start])
            order = rng.random(batch.num_rows).argsort().astype(np.int64)
            columns = {name: batch.column(name) for name in batch.schema.names}
            columns["position"] = pa.array((place << 40) + order)
            yield record_batch(self.schema, columns)


_SESSIONS = ("diginetica", "tmall", "nowplaying")

_AMAZON = ("Beauty", "Sports_and_Outdoors", "Toys_and_Games", "LastFM")


def _named(path: str, part: str | None, known: tuple[str, ...], ending: str) -> str:
    if not Path(path).is_dir():
        return ""
    chosen = known[0] if part is None else part
    require(chosen in known, "data.options.part", f"must be one of {', '.join(known)}")
    return f"{chosen}{ending}"


def sessions(path: str, part: str | None = None) -> Reader:
    """Opens click sessions without times; `part` selects a data set of a folder."""
    return ItemLines(path, "sessions", _named(path, part, _SESSIONS, "_train.txt.gz"))
