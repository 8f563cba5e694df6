"""Encodes a bucket of users, in full or on top of the previous generation."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tfrz.data.columns import whole
from tfrz.data.timelines.slicing import (
    CHUNK_EVENTS,
    Events,
    Sketch,
    SliceSpecification,
    merge,
    sketch,
)
from tfrz.embeddings.encoder import Encoder
from tfrz.embeddings.store import EMBEDDINGS, Store, bucket_file
from tfrz.embeddings.users import (
    SKETCHES,
    Chunk,
    ChunkGrid,
    Grouped,
    StoredSketches,
    added,
    events_by_user,
    row_groups,
    runs_of_users,
    sketch_rows,
    stream_batches,
    stream_schema,
    writing_stream,
)
from tfrz.files import atomic_file, atomic_write

_USERS_A_GROUP = 256


@dataclasses.dataclass(frozen=True)
class Plan:
    """Plan of a run, sent to the workers.

    Attributes:
      number: Number of the new generation.
      as_of: Unix seconds.
      model: Path of the SavedModel.
      fingerprint: Fingerprint of the model.
      version: Version of the embeddings.
      previous: Number of the previous generation; None for a full run.
    """

    number: int
    as_of: int
    model: str
    fingerprint: str
    version: str
    previous: int | None


class _Rows:
    """Collects rows of embeddings."""

    def __init__(self, plan: Plan, encoder: Encoder) -> None:
        self._plan, self._encoder = plan, encoder
        self._columns: dict[str, list[Any]] = {name: [] for name in EMBEDDINGS.names}
        self.not_finite = 0

    def __len__(self) -> int:
        return len(self._columns["user"])

    def add(
        self,
        user: bytes,
        parts: Iterable[tuple[NDArray[Any], NDArray[Any]]],
        counts: dict[bool, int],
        newest: int | None,
        changes_at: int | None,
    ) -> None:
        vectors, totals = self._encoder.vectors(parts)
        finite = bool(np.isfinite(vectors).all())
        if not finite:
            self.not_finite += 1
            vectors = np.zeros_like(vectors)
        row = {
            "user": user,
            "present": finite and bool(totals.any()),
            "packed": self._encoder.packed(vectors),
            "version": self._plan.version,
            "generated_at": self._plan.as_of,
            "newest_event": newest,
            "changes_at": changes_at,
            "explicit_events": counts[True],
            "implicit_events": counts[False],
            "totals": totals.astype(np.float32),
        }
        for name, value in row.items():
            self._columns[name].append(value)

    def take(self) -> pa.Table:
        """Returns the collected rows, and clears them."""
        columns = {}
        for field in EMBEDDINGS:
            values = self._columns[field.name]
            if pa.types.is_dictionary(field.type):
                columns[field.name] = pa.array(values, pa.string()).dictionary_encode()
            else:
                columns[field.name] = pa.array(values, field.type)
            self._columns[field.name] = []
        return pa.table(columns).cast(EMBEDDINGS)


class EncodeBucket(beam.DoFn):
    """Encodes the users of a bucket and writes its files, unless they exist.

    Args:
      store: Store of the generation.
      plan: Plan of the run.
      specification: The slices.
    """

    def __init__(self, store: Store, plan: Plan, specification: SliceSpecification) -> None:
        self._store, self._plan, self._specification = store, plan, specification

    def setup(self) -> None:
        """Loads the model once per worker."""
        # Arrow's own memory pools do not return freed memory to the rest of the process.
        pa.set_memory_pool(pa.system_memory_pool())
        self._encoder = Encoder(self._plan.model)

    def process(self, bucket: int) -> Iterator[dict[str, int]]:
        """Encodes a bucket; yields counts."""
        folder = self._store.partial(self._plan.number)
        done = folder / "counts" / f"{bucket:05d}.json"
        if not done.exists():
            counts = self._encode(folder, bucket)
            # Written last: a bucket with counts is complete.
            atomic_write(done, json.dumps(counts))
        yield json.loads(done.read_text())

    def _encode(self, folder: Path, bucket: int) -> dict[str, int]:
        events = bucket_file(folder, "events", bucket)
        schema = stream_schema(events) if events.exists() else None
        tail_schema = self._tail_schema(schema, bucket)
        with (
            atomic_file(bucket_file(folder, "embeddings", bucket)) as rows_path,
            atomic_file(bucket_file(folder, "sketches", bucket)) as sketches_path,
            atomic_file(bucket_file(folder, "tail", bucket)) as tail_path,
            pq.ParquetWriter(rows_path, EMBEDDINGS) as writer,
            Grouped(writer, EMBEDDINGS, _USERS_A_GROUP) as rows,
            writing_stream(sketches_path, SKETCHES) as sketches,
            writing_stream(tail_path, tail_schema) as tail,
        ):
            made = _Rows(self._plan, self._encoder)
            if self._plan.previous is None:
                counts = self._full(events, made, rows, sketches, tail)
            else:
                counts = self._incremental(bucket, events, made, rows, sketches, tail)
            rows.add(made.take())
        counts["not finite"] = made.not_finite
        return counts

    def _tail_schema(self, schema: pa.Schema | None, bucket: int) -> pa.Schema:
        if schema is None and self._plan.previous is not None:
            previous = self._store.generation(self._plan.previous)
            return stream_schema(bucket_file(previous, "tail", bucket))
        fields = [("user", pa.binary())] if schema is None else list(schema)
        return pa.schema([*fields, ("rank", pa.int64())])

    @property
    def _visible_before(self) -> int:
        """The first second that is not visible, from t < as_of - gap."""
        return math.ceil(self._plan.as_of - self._specification.gap)

    @property
    def _kept_from(self) -> int:
        """Events from this time on are in the tail: in a time bucket, or not visible yet."""
        longest = max([self._specification.gap, *self._specification.buckets])
        return math.floor(self._plan.as_of - longest)

    def _sketched(self, table: pa.Table, bucketed: bool | None = None) -> dict[str, Sketch]:
        """Returns the sketch of a chunk: all slices, or those with or without a time bucket.

        Time buckets are skipped if all events are too old for them.
        """
        buckets = self._specification.buckets
        oldest = math.floor(self._plan.as_of - max(buckets, default=0))
        if not buckets or pc.max(table["time"]).as_py() < oldest:
            if bucketed:
                return {}
            bucketed = False
        events = Events(table, self._specification.gamma, once=True)
        return sketch(self._specification, events, self._plan.as_of, bucketed)

    def _full(
        self, events: Path, made: _Rows, rows: Grouped, sketches: Grouped, tail: Grouped
    ) -> dict[str, int]:
        counts = {"events_read": 0, "users": 0, "users_encoded": 0}
        for user, pieces in events_by_user(events):
            counts["users"] += 1
            counts["users_encoded"] += 1
            counts["events_read"] += self._encode_user(user, pieces, made, sketches, tail)
            if len(made) >= _USERS_A_GROUP:
                rows.add(made.take())
        return counts

    def _encode_user(
        self,
        user: bytes,
        pieces: Iterator[pa.Table],
        made: _Rows,
        sketches: Grouped,
        tail: Grouped,
    ) -> int:
        """Encodes a user from all of its events; returns their number."""
        read = 0
        grid = ChunkGrid()
        # Keep only as many chunks of each timeline as can count at the end.
        held: dict[bool, list[tuple[int, Any]]] = {True: [], False: []}
        kept: list[pa.Table] = []
        newest: int | None = None
        for table in pieces:
            read += table.num_rows
            time = whole(table["time"]).to_numpy()
            visible = int(np.searchsorted(time, self._visible_before))
            seen = table.slice(0, visible)
            if visible:
                newest = int(time[visible - 1])
            if time[-1] >= self._kept_from:
                hidden = np.full(len(time) - visible, -1)
                self._keep(kept, table, pa.array(np.concatenate([grid.ranks(seen), hidden])))
            # Incomplete chunks hold only the columns that slices use.
            chunks = grid.add(seen.drop(["user", "position"]))
            self._encode_chunks(user, chunks, held, sketches)
        self._encode_chunks(user, grid.rest(), held, sketches)
        parts = [part for timeline in (True, False) for _, part in held[timeline]]
        made.add(user, parts, grid.counts, newest, self._changes_at(kept))
        tail.add(_by_time(kept))
        return read

    def _encode_chunks(
        self,
        user: bytes,
        chunks: Iterator[tuple[Chunk, pa.Table]],
        held: dict[bool, list[tuple[int, Any]]],
        sketches: Grouped,
    ) -> None:
        """Appends the sums of a user's next chunks to `held`."""
        for chunk, table in chunks:
            timeline, number = chunk
            if (part := self._pooled(user, chunk, table, sketches)) is not None:
                held[timeline].append((number, part))
            first = self._specification.first_chunk(number * CHUNK_EVENTS + table.num_rows)
            held[timeline] = [pair for pair in held[timeline] if pair[0] >= first]

    def _pooled(
        self, user: bytes, chunk: Chunk, table: pa.Table, sketches: Grouped
    ) -> tuple[NDArray[Any], NDArray[Any]] | None:
        """Returns the sums of a chunk and writes its sketch; None if no slice has its events."""
        found = self._sketched(table)
        sketches.add(sketch_rows(self._specification, user, chunk, found))
        return self._encoder.pool(found) if found else None

    def _keep(self, rows: list[pa.Table], table: pa.Table, ranks: pa.Array) -> None:
        """Adds events to the tail that later runs still need."""
        table = table.append_column("rank", ranks)
        kept = table.filter(pc.greater_equal(table["time"], self._kept_from))
        if kept.num_rows:
            rows.append(kept)

    def _incremental(
        self,
        bucket: int,
        events: Path,
        made: _Rows,
        rows: Grouped,
        sketches: Grouped,
        tail: Grouped,
    ) -> dict[str, int]:
        plan, specification = self._plan, self._specification
        assert plan.previous is not None
        before = self._store.manifest(plan.previous)
        folder = self._store.generation(plan.previous)
        others = before.fingerprint != plan.fingerprint
        stored = StoredSketches(
            specification,
            [
                bucket_file(self._store.generation(number), "sketches", bucket)
                for number in before.sketches
            ],
        )
        known = _merged_users(
            runs_of_users(row_groups(bucket_file(folder, "embeddings", bucket))),
            runs_of_users(stream_batches(bucket_file(folder, "tail", bucket))),
            runs_of_users(stream_batches(events)),
        )
        counts = {"events_read": 0, "users": 0, "users_encoded": 0}
        for user, (row, old, new) in known:
            counts["users"] += 1
            if row is not None and new is None and not others and not self._changed(row):
                # Rows keep their order: write the collected rows first.
                rows.add(made.take())
                rows.add(self._carried_over(row))
                # None of the user's events has left the gap or a time bucket.
                tail.add(pa.table({}) if old is None else old)
                continue
            recent = self._together(old, new, counts)
            counts["users_encoded"] += 1
            so_far = (0, 0)
            newest: int | None = None
            if row is not None:
                so_far = (row["explicit_events"][0].as_py(), row["implicit_events"][0].as_py())
                newest = row["newest_event"][0].as_py()
            fresh: dict[Chunk, dict[str, Sketch]] = {}
            grid = ChunkGrid(so_far)
            kept: list[pa.Table] = []
            timed: dict[Chunk, list[pa.Table]] = {}
            if recent is not None:
                visible = pc.less(recent["time"], self._visible_before)
                seen = recent.filter(pc.and_(visible, pc.less(recent["rank"], 0)))
                if seen.num_rows:
                    newest = int(seen["time"][-1].as_py())
                self._keep(kept, seen.drop(["rank"]), pa.array(grid.ranks(seen)))
                for chunk, table in [*grid.add(seen), *grid.rest()]:
                    plain = self._sketched(table, False)
                    fresh[chunk] = plain
                    sketches.add(sketch_rows(specification, user, chunk, plain))
                ranked = recent.filter(pc.greater_equal(recent["rank"], 0))
                hidden = recent.filter(pc.invert(visible))
                for part in (ranked, hidden):
                    self._keep(kept, part.drop(["rank"]), whole(part["rank"]))
                for table in kept:
                    for chunk, some in _by_chunk(table):
                        timed.setdefault(chunk, []).append(some)
            plain_of = added([stored.of(user), fresh])
            first = {t: specification.first_chunk(grid.counts[t]) for t in (True, False)}
            chunks = sorted({*plain_of, *timed}, key=lambda chunk: (not chunk[0], chunk[1]))
            parts = []
            for chunk in chunks:
                if chunk[1] < first[chunk[0]]:
                    continue
                both = [plain_of.get(chunk, {})]
                if chunk in timed:
                    both.append(self._sketched(pa.concat_tables(timed[chunk]), True))
                # One sketch of all slices, as in a full run, for the same bits.
                if together := merge(both):
                    parts.append(self._encoder.pool(together))
            made.add(user, parts, grid.counts, newest, self._changes_at(kept))
            tail.add(_by_time(kept))
            if len(made) >= _USERS_A_GROUP:
                rows.add(made.take())
        return counts

    def _together(
        self, old: pa.Table | None, new: pa.Table | None, counts: dict[str, int]
    ) -> pa.Table | None:
        """Merges events of the tail and new events, in order; new events have no rank yet."""
        tables = []
        if old is not None:
            tables.append(old)
        if new is not None:
            tables.append(new.append_column("rank", pa.array(np.full(new.num_rows, -1))))
        counts["events_read"] += sum(table.num_rows for table in tables)
        if not tables:
            return None
        return pa.concat_tables([table.select(tables[0].column_names) for table in tables])

    def _changed(self, row: pa.Table) -> bool:
        """Returns whether an event of a user left the gap or a time bucket since the last row."""
        changes_at = row["changes_at"][0].as_py()
        return changes_at is not None and changes_at <= self._plan.as_of

    def _changes_at(self, kept: list[pa.Table]) -> int | None:
        """Returns when the first event of the tail leaves the gap or a time bucket."""
        if not kept:
            return None
        time = np.concatenate([whole(table["time"]).to_numpy() for table in kept])
        spans = (self._specification.gap, *self._specification.buckets)
        leaves = np.concatenate([np.floor(time + span) + 1 for span in spans])
        later = leaves[leaves > self._plan.as_of]
        return int(later.min()) if len(later) else None

    def _carried_over(self, row: pa.Table) -> pa.Table:
        place = EMBEDDINGS.get_field_index("generated_at")
        again = pa.array([self._plan.as_of], pa.int64())
        return row.set_column(place, "generated_at", again)


def _by_time(tables: list[pa.Table]) -> pa.Table:
    """Sorts the events of one user by time and place in the source."""
    if not tables:
        return pa.table({})
    table = pa.concat_tables(tables)
    return table.sort_by([("time", "ascending"), ("position", "ascending")])


def _by_chunk(table: pa.Table) -> Iterator[tuple[Chunk, pa.Table]]:
    """Groups the ranked events of one user by chunk."""
    table = table.filter(pc.greater_equal(table["rank"], 0))
    explicit = whole(table["explicit"]).to_numpy(zero_copy_only=False)
    number = whole(table["rank"]).to_numpy() // CHUNK_EVENTS
    for timeline in (True, False):
        for one in np.unique(number[explicit == timeline]):
            some = (explicit == timeline) & (number == one)
            yield (timeline, int(one)), table.filter(pa.array(some))


def _merged_users(
    *sorted_pieces: Iterator[tuple[bytes, pa.Table]],
) -> Iterator[tuple[bytes, list[pa.Table | None]]]:
    """Merges sorted sources: yields each user with its table in each source, or None."""
    nexts = [next(pieces, None) for pieces in sorted_pieces]
    while any(one is not None for one in nexts):
        user = min(one[0] for one in nexts if one is not None)
        found: list[pa.Table | None] = []
        for i, pieces in enumerate(sorted_pieces):
            mine = []
            while (one := nexts[i]) is not None and one[0] == user:
                mine.append(one[1])
                nexts[i] = next(pieces, None)
            found.append(pa.concat_tables(mine) if mine else None)
        yield user, found
