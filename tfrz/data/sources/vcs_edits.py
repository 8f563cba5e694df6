"""Edits of files in public version histories, as timelines."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from typing_extensions import override

from tfrz.data.columns import whole
from tfrz.data.sources.files import CorruptLine, Shard, parquet_shards, row_group
from tfrz.data.sources.reader import require_counts
from tfrz.data.spec import Feature
from tfrz.data.timelines.readers import TimelineReader
from tfrz.data.timelines.spec import TimelineSpec


class VersionControlEdits(TimelineReader):
    """Edits of files in public version histories: an author added, changed or deleted a file.

    Ids: the `file`, its `directory` (with the project) and `extension`. All edits are explicit.
    Every edit can be a target, with the outcome `edited` 1, so negatives must be drawn.

    Args:
      path: Folder with `events.parquet` and `items.parquet`.
      min_events: Leave out users with fewer events.
    """

    name = "vcs-edits"
    _COLUMNS = ("user", "item", "ts", "action")
    _ACTIONS = ("added", "changed", "deleted")

    def __init__(self, path: str, min_events: int = 1) -> None:
        require_counts(min_events=min_events)
        self.path, self.min_events = path, min_events

    @override
    def feature_spec(self) -> TimelineSpec:
        names = ("file", "directory", "extension")
        return TimelineSpec(
            ids=tuple(Feature(name, min_count=2) for name in names),
            actions=self._ACTIONS,
            binary=("edited",),
            candidate=("directory", "extension"),
        )

    @property
    def _events(self) -> str:
        return str(Path(self.path) / "events.parquet")

    @property
    def _items(self) -> str:
        return str(Path(self.path) / "items.parquet")

    @override
    def files(self) -> list[str]:
        return [self._events, self._items]

    @override
    def shards(self) -> list[Shard]:
        parquet_shards(self._items, ("item", "project", "dir", "ext"))
        return parquet_shards(self._events, self._COLUMNS)

    def _described(self) -> tuple[pa.Array, pa.Array, pa.Array]:
        """Returns the numbers of the items, and the directory and extension of each."""
        table = pq.read_table(self._items, columns=["item", "project", "dir", "ext"])
        text = {name: whole(table[name].cast(pa.string())) for name in ("project", "dir", "ext")}
        directory = pc.binary_join_element_wise(text["project"], text["dir"], ":")
        extension = pc.if_else(pc.equal(text["ext"], ""), "none", text["ext"])
        return whole(table["item"]), directory.cast(pa.binary()), extension.cast(pa.binary())

    @override
    def events(self, shard: Shard) -> Iterator[pa.RecordBatch | CorruptLine]:
        table, before = row_group(shard, self._COLUMNS)
        position = np.arange(before, before + table.num_rows)
        if self.min_events > 1:
            counts = pc.value_counts(pq.read_table(self._events, columns=["user"])["user"])
            enough = pc.greater_equal(counts.field("counts"), self.min_events)
            kept = pc.is_in(table["user"], counts.field("values").filter(enough))
            position = position[np.asarray(kept)]
            table = table.filter(kept)
        items, directory, extension = self._described()
        place = pc.index_in(whole(table["item"]), items)
        action = whole(table["action"]).cast(pa.int64())
        sound = pc.is_valid(place)
        for condition in (
            pc.is_valid(whole(table["user"])),
            pc.greater_equal(whole(table["ts"]), 0),
            pc.greater_equal(action, 0),
            pc.less(action, len(self._ACTIONS)),
        ):
            sound = pc.and_(sound, pc.fill_null(condition, False))
        for row in np.flatnonzero(~np.asarray(sound.to_numpy(zero_copy_only=False), bool)):
            reason = "user, time, a known item or an action of 0 to 2 is missing"
            yield CorruptLine(self._events, int(position[row]) + 1, reason, "")
        table, position = table.filter(sound), position[np.asarray(sound)]
        if not table.num_rows:
            return
        place, action = place.filter(sound), action.filter(sound)
        item = whole(table["item"])
        yield self.batch(
            user=whole(table["user"]).cast(pa.string()),
            time=whole(table["ts"]),
            position=position,
            action=pa.array(self._ACTIONS).take(action).cast(pa.binary()),
            file=item.cast(pa.string()).cast(pa.binary()),
            directory=directory.take(place),
            extension=extension.take(place),
            label_edited=np.ones(table.num_rows, np.float32),
        )
