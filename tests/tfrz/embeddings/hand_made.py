"""A tiny model of long histories, and sources and stores whose every event a test controls."""

from __future__ import annotations

import atexit
import contextlib
import functools
import hashlib
import itertools
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf

from tests.lazy import lazy
from tfrz.data.sources.files import CorruptLine, Shard
from tfrz.data.spec import Feature
from tfrz.data.timelines.readers import TimelineReader
from tfrz.data.timelines.slicing import SliceSpecification
from tfrz.data.timelines.spec import TimelineSpec
from tfrz.embeddings.encoder import model_facts
from tfrz.embeddings.store import Manifest, Store
from tfrz.layers.quantize import packed_bytes

job = lazy("tfrz.embeddings.job")

HOUR, DAY = 3600, 86_400
D0 = 1_600_000_000 // DAY * DAY + 3 * HOUR

# Small enough a cap for whole chunks to fall out.
MAX_EVENTS = 5000
_SLICES = f"""
version: 1
max_events: {MAX_EVENTS}
slices:
  - {{name: liked_topics, timeline: explicit, id: topic, table: liked_topic}}
  - {{name: liked_topics_3d, timeline: explicit, id: topic, table: liked_topic, days: 3}}
  - {{name: liked_topics_7d, timeline: explicit, id: topic, table: liked_topic, days: 7}}
  - {{name: liked_items, timeline: explicit, id: item, table: liked_item}}
  - {{name: seen_topics_7d, timeline: implicit, id: topic, table: seen_topic, days: 7}}
  - {{name: watched, timeline: implicit, id: topic, table: watched_topic, dwell: [15, null]}}
  - {{name: scored, timeline: implicit, id: topic, table: watched_topic, score: [0.9, null],
     weight: watch_score}}
  - {{name: skipped, timeline: implicit, id: item, table: skipped_item, dwell: [null, 3]}}
"""

# User, time, action, item, topic, duration, dwell time.
Event = tuple[str, int, str, str, str, float | None, float | None]


@functools.cache
def trained_model() -> Path:
    """A DV365 after two steps; of this process, removed when it ends."""
    from tfrz.zoo.train import train

    out = Path(tempfile.mkdtemp(prefix="tfrz-tiny-dv365-"))
    atexit.register(shutil.rmtree, out, ignore_errors=True)
    (out / "slices.yaml").write_text(_SLICES)
    train(
        "dv365",
        out=out / "run",
        overrides=[
            "data.options={users: 40, days: 12, impressions: 6}",
            f"data.timeline.slices={out}/slices.yaml",
            "data.timeline.min_visible=5",
            "data.timeline.targets=2",
            "data.timeline.recent=0",
            "data.validation_fraction=0.4",
            "trainer.max_steps=2",
            "trainer.epochs=1",
            "trainer.batch_size=16",
            # Far from 0, so that a wrong event is seen in four bits.
            "model.embedding_scale=2.0",
        ],
        progress=False,
    )
    return out / "run" / "model" / "1"


@functools.cache
def other_model() -> Path:
    """The same network with other weights."""
    first = trained_model()
    out = first.parent.parent / "other"
    shutil.copytree(first, out)
    for path in (out / "variables").iterdir():
        path.unlink()
    checkpoint = tf.train.load_checkpoint(str(first / "variables" / "variables"))
    names = sorted(checkpoint.get_variable_to_shape_map())
    values = []
    for name in names:
        value = checkpoint.get_tensor(name)
        if isinstance(value, np.ndarray) and value.dtype == np.float32:
            value = value * 1.5 + 0.01
        values.append(tf.constant(value))
    tf.raw_ops.SaveV2(
        prefix=str(out / "variables" / "variables"),
        tensor_names=names,
        shape_and_slices=[""] * len(names),
        tensors=values,
    )
    return out


@contextlib.contextmanager
def loaded_once() -> Iterator[None]:
    """A model takes a second to load, and tens of exports do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tf.saved_model, "load", functools.cache(tf.saved_model.load))
        yield


def slices() -> SliceSpecification:
    """The specification of the model."""
    return model_facts(trained_model()).timeline.slices


class HandMade(TimelineReader):
    """Events one by one, in the order given.

    Args:
      events: see `Event`, or a table of them.
      parts: shards.
      corrupt: lines that cannot be read.
    """

    name = "hand-made"

    def __init__(
        self, events: Iterable[Event] | pa.Table, parts: int = 1, corrupt: int = 0
    ) -> None:
        self.table = events if isinstance(events, pa.Table) else _as_table(events)
        self.parts, self.corrupt = parts, corrupt

    def feature_spec(self) -> TimelineSpec:
        return TimelineSpec(
            ids=(Feature("item"), Feature("topic")),
            actions=("view", "like"),
            implicit=("view",),
            duration="duration",
            dwell="dwell",
            binary=("like",),
        )

    def fingerprint(self) -> str:
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, self.table.schema) as stream:
            stream.write_table(self.table)
        return hashlib.sha256(sink.getvalue()).hexdigest()[:32]

    def shards(self) -> list[Shard]:
        ends = np.linspace(0, self.table.num_rows, self.parts + 1).astype(int).tolist()
        return [Shard("hand", "", a, b) for a, b in itertools.pairwise(ends)]

    def events(self, shard: Shard) -> Iterator[pa.RecordBatch | CorruptLine]:
        if shard.start == 0:
            for line in range(self.corrupt):
                yield CorruptLine("hand", line + 1, "is nonsense", "?")
        table = self.table.slice(shard.start, shard.end - shard.start).combine_chunks()
        columns = {name: table[name].combine_chunks() for name in table.column_names}
        yield self.batch(position=np.arange(shard.start, shard.end), **columns)


_NAMES = ("user", "time", "action", "item", "topic", "duration", "dwell")
_TYPES = (pa.binary(), pa.int64(), *[pa.binary()] * 3, pa.float32(), pa.float32())


def _as_table(events: Iterable[Event]) -> pa.Table:
    columns = list(zip(*events, strict=True)) or [[] for _ in _NAMES]
    arrays = [pa.array(c).cast(t) if len(c) else pa.array([], t) for c, t in zip(columns, _TYPES)]
    return pa.table(dict(zip(_NAMES, arrays, strict=True)))


def view(user: str, time: float, n: int = 0, duration: float | None = 20.0, dwell: float = 16.0):
    """An impression; `n` says of what."""
    return (user, int(time), "view", f"item_{n % 40}", f"topic_{n % 7}", duration, dwell)


def like(user: str, time: float, n: int = 0, action: str = "like"):
    """A like; `n` says of what."""
    return (user, int(time), action, f"item_{n % 40}", f"topic_{n % 7}", None, None)


def many(user: str, action: str, times: np.ndarray) -> list[Event]:
    """An event at each time, of changing ids and numbers."""
    made: list[Event] = []
    for n, time in enumerate(times.tolist()):
        seen = action == "view"
        made.append(
            (
                user,
                int(time),
                action,
                f"item_{n * n % 61}",
                f"topic_{n % 11}",
                float(5 + n % 60) if seen else None,
                float(n % 31) if seen else None,
            )
        )
    return made


def by_user(events: Iterable[Event]) -> list[Event]:
    """Sorted by the users' bytes and by time."""
    return sorted(events, key=lambda event: (event[0].encode(), event[1]))


def export(
    reader: TimelineReader,
    store: Path | Store,
    as_of: int | None = None,
    model: Path | None = None,
    publish: bool = True,
    **options: Any,
) -> Manifest:
    """Runs the job with few buckets; slices may be empty unless said otherwise."""
    chosen = {"buckets": 2, "allow_empty": True, **options}
    directory = store.directory if isinstance(store, Store) else store
    return job.export_embeddings(
        model or trained_model(),
        reader,
        directory,
        job.ExportOptions(as_of=as_of, **chosen),
        publish=publish,
        say=lambda line: None,
    )


def embedding_files(store: Path, number: int | None = None) -> dict[str, bytes]:
    """The bytes of each part of a generation, the current one if not said otherwise."""
    known = Store(store)
    number = known.current() if number is None else number
    assert number is not None
    files = sorted((known.generation(number) / "embeddings").iterdir())
    return {path.name: path.read_bytes() for path in files}


def rows_of(store: Path, number: int | None = None) -> dict[bytes, dict[str, Any]]:
    """Users to their rows."""
    known = Store(store)
    number = known.current() if number is None else number
    assert number is not None
    found: dict[bytes, dict[str, Any]] = {}
    for path in sorted((known.generation(number) / "embeddings").iterdir()):
        for row in pq.read_table(path).to_pylist():
            assert row["user"] not in found, f"{row['user']} has two rows"
            found[row["user"]] = row
    return found


def everything(folder: Path) -> dict[str, tuple[bytes, int]]:
    """All files below, hidden ones too: bytes and time of change."""
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def manifest(number: int = 1, **values: Any) -> Manifest:
    """A manifest for a generation that a test writes itself."""
    known: dict[str, Any] = {
        "number": number,
        "version": "1-abcdef01",
        "model": "/models/1",
        "fingerprint": "abcdef0123",
        "slices": slices_fingerprint(),
        "source": "hand-made",
        "as_of": D0,
        "num_vectors": 3,
        "dim": 20,
        "buckets": 2,
        "forgotten": "",
        "sketches": (number,),
        "users": 0,
        "counts": {},
    }
    return Manifest(**{**known, **values})


def slices_fingerprint() -> str:
    """Any."""
    return "0" * 16


def packed(seed: int, num_vectors: int = 3, dim: int = 20) -> bytes:
    """Some bytes of the right length that are packed vectors."""
    from tfrz.layers.quantize import pack4

    vectors = np.random.default_rng(seed).normal(size=(num_vectors, dim))
    data = pack4(vectors).astype("<u8").tobytes()
    assert len(data) == packed_bytes(num_vectors, dim)
    return data


def write_generation(store: Store, one: Manifest, rows: Iterable[dict[str, Any]]) -> None:
    """Writes rows, each at least with a `user`, into their buckets, and finishes."""
    from tfrz.data.timelines.examples import buckets_of
    from tfrz.embeddings.store import EMBEDDINGS, bucket_file
    from tfrz.embeddings.users import SKETCHES, writing_stream

    folder = store.partial(one.number)
    full = [
        {
            "present": True,
            "packed": packed(i, one.num_vectors, one.dim),
            "version": one.version,
            "generated_at": one.as_of,
            "newest_event": one.as_of - 2 * DAY,
            "changes_at": None,
            "explicit_events": 1,
            "implicit_events": 1,
            "totals": [1.0] * 8,
            **row,
        }
        for i, row in enumerate(rows)
    ]
    full.sort(key=lambda row: row["user"])
    buckets = buckets_of(pa.array([r["user"] for r in full], pa.binary()), one.buckets)
    for bucket in range(one.buckets):
        mine = [row for row, place in zip(full, buckets, strict=True) if place == bucket]
        arrays = {
            field.name: pa.array([row[field.name] for row in mine], pa.string()).dictionary_encode()
            if pa.types.is_dictionary(field.type)
            else pa.array([row[field.name] for row in mine], field.type)
            for field in EMBEDDINGS
        }
        for part, table in (
            ("embeddings", pa.table(arrays).cast(EMBEDDINGS)),
            ("sketches", SKETCHES.empty_table()),
            ("tail", pa.table({"user": pa.array([], pa.binary()), "rank": pa.array([], "int64")})),
        ):
            path = bucket_file(folder, part, bucket)
            path.parent.mkdir(parents=True, exist_ok=True)
            if part == "embeddings":
                pq.write_table(table, path)
            else:
                with writing_stream(path, table.schema) as stream:
                    stream.add(table)
    store.finish(one)
