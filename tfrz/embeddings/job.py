"""The export job, from events to sorted timelines to the packed vectors of all users.

A full run reads the whole source. An incremental run reads the events since the last run, and
encodes users with new events and users with events that left the gap or a time bucket; the rows of
the other users are copied. Both write the same bytes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.options.pipeline_options import PipelineOptions

from tfrz.config import require, to_mapping
from tfrz.data.beam import CheckCorrupt, ReadRecords, input_error_in
from tfrz.data.timelines.beam import Clean, by_bucket
from tfrz.data.timelines.examples import in_order
from tfrz.data.timelines.readers import TimelineReader
from tfrz.embeddings.bucket import EncodeBucket, Plan
from tfrz.embeddings.encoder import Encoder, model_facts
from tfrz.embeddings.health import health_report, refuse_empty_slices
from tfrz.embeddings.store import Manifest, Store, bucket_file, fingerprint_of
from tfrz.embeddings.users import writing_stream
from tfrz.errors import InputError
from tfrz.files import atomic_file, atomic_write, require_writable_directory

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class ExportOptions:
    """Options of an export.

    Attributes:
      as_of: Unix seconds; null for the second after the newest event of the source.
      buckets: Number of buckets of users; a worker encodes one at a time. A store keeps the number
        of its first run.
      full: Read the whole source, even if the store has an earlier generation.
      allow_empty: Accept slices without events.
      max_corrupt_fraction: Tolerated share of corrupt lines.
      beam_runner: DirectRunner, or another runner of the Beam installation.
      beam_args: Further Beam options, passed unchanged.
    """

    as_of: int | None = None
    buckets: int = 16
    full: bool = False
    allow_empty: bool = False
    max_corrupt_fraction: float = 0.001
    beam_runner: str = "DirectRunner"
    beam_args: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require(self.buckets >= 1, "buckets", "must be at least 1")
        require(self.as_of is None or self.as_of > 0, "as_of", "must be above 0")


def _without_forgotten(
    table: pa.Table, users: Sequence[bytes], events: Sequence[tuple[bytes, int]]
) -> pa.Table:
    if users:
        table = table.filter(pc.invert(pc.is_in(table["user"], pa.array(users, pa.binary()))))
    for user, time in events:
        gone = pc.and_(pc.equal(table["user"], user), pc.equal(table["time"], time))
        table = table.filter(pc.invert(gone))
    return table


def _forgotten(store: Store) -> tuple[list[bytes], list[tuple[bytes, int]]]:
    known = store.forgotten()
    users = [bytes.fromhex(user) for user in known["users"]]
    return users, [(bytes.fromhex(user), int(time)) for user, time in known["events"]]


class WriteTimelines(beam.DoFn):
    """Writes the events of a bucket by user, time and place in the source, without duplicates.

    Args:
      folder: Folder of the unfinished generation.
      store: Store with the forgotten users and events.
    """

    def __init__(self, folder: Path, store: Store) -> None:
        self._folder, self._store = folder, store

    def process(self, bucket: tuple[int, Iterable[pa.RecordBatch]]) -> None:
        """Writes `events/<bucket>.arrows` and its counts."""
        number, batches = bucket
        table = pa.Table.from_batches(list(batches))
        rows = table.num_rows
        table = _without_forgotten(table, *_forgotten(self._store))
        kept = table.num_rows
        labels = [name for name in table.column_names if name.startswith("label_")]
        table = in_order(table.drop(labels))
        with (
            atomic_file(bucket_file(self._folder, "events", number)) as path,
            writing_stream(path, table.schema) as events,
        ):
            events.add(table)
        counts = {
            "events": table.num_rows,
            "forgotten": rows - kept,
            "duplicates": kept - table.num_rows,
            "newest": int(pc.max(table["time"]).as_py()) if table.num_rows else 0,
        }
        _write_counts(self._folder, f"bucket {number}", counts)


def _sum(counts: Iterable[dict[str, int]]) -> dict[str, int]:
    total: dict[str, int] = {}
    for one in counts:
        for name, value in one.items():
            total[name] = (
                max(total.get(name, 0), value) if name == "newest" else (total.get(name, 0) + value)
            )
    return total


@contextlib.contextmanager
def _run(options: ExportOptions) -> Iterator[beam.Pipeline]:
    """A pipeline that runs when the block ends; bad input is raised as `InputError`."""
    arguments = PipelineOptions(list(options.beam_args))
    try:
        with beam.Pipeline(runner=options.beam_runner, options=arguments) as pipeline:
            yield pipeline
    except Exception as error:
        told = input_error_in(error)
        if told is None:
            raise
        raise told from error


def _ingest(
    reader: TimelineReader,
    since: int | None,
    store: Store,
    folder: Path,
    buckets: int,
    options: ExportOptions,
) -> dict[str, int]:
    """Reads the source, optionally from a time on, into `folder/events`; returns counts."""
    results = folder / "ingested.json"
    if results.exists():
        return dict(json.loads(results.read_text()))
    # In a folder of its own: an interrupted run starts this step again.
    shutil.rmtree(folder / "events", ignore_errors=True)
    parts = folder / "ingested"
    shutil.rmtree(parts, ignore_errors=True)
    parts.mkdir(parents=True)
    with _run(options) as pipeline:
        # Shards also contain earlier rows: the share of corrupt lines refers to all lines read.
        outputs = pipeline | "Read" >> ReadRecords(reader.from_time(since, whole_shards=True))
        _ = outputs | "CheckCorrupt" >> CheckCorrupt(options.max_corrupt_fraction)
        cleaned = outputs["records"] | "Clean" >> beam.ParDo(
            Clean(reader.feature_spec(), options.as_of, since)
        ).with_outputs("left_out", main="events")
        _ = (
            cleaned.events
            | "ByBucket" >> beam.FlatMap(by_bucket, buckets)
            | "Buckets" >> beam.GroupByKey()
            | "Write" >> beam.ParDo(WriteTimelines(folder, store))
        )
        _ = (
            cleaned.left_out
            | "SumLeftOut" >> beam.CombinePerKey(sum)
            | "WriteLeftOut"
            >> beam.MapTuple(lambda reason, count: _write_counts(folder, reason, {reason: count}))
        )
    counts = _sum(json.loads(path.read_text()) for path in sorted(parts.glob("*.json")))
    atomic_write(results, json.dumps(counts))
    return counts


def _write_counts(folder: Path, what: str, counts: dict[str, int]) -> None:
    """Writes counts to a file named by its content, so repeated bundles do not count twice."""
    name = hashlib.sha256(what.encode()).hexdigest()[:16]
    atomic_write(folder / "ingested" / f"{name}.json", json.dumps(counts))


def export_embeddings(
    model: str | Path,
    reader: TimelineReader,
    directory: str | Path,
    options: ExportOptions = ExportOptions(),
    publish: bool = True,
    say: Callable[[str], None] = logger.info,
) -> Manifest:
    """Writes a generation of the embeddings of all users to a store.

    Args:
      model: Path of a SavedModel of DV365.
      reader: Reader of the events.
      directory: Folder of the store; created if it does not exist.
      options: Options of the export.
      publish: Make it the current generation; if False, call `Store.publish` later.
      say: Function that receives lines of progress.

    Returns:
      Manifest of the new generation, or of the newest one if there are no new events.

    Raises:
      InputError: The model or the source does not fit, `as_of` is before the last run, or a slice
        is empty for all users.
    """
    facts = model_facts(model)
    slices = facts.timeline.slices
    facts.timeline.check(reader.feature_spec())
    store = Store(require_writable_directory(directory))
    numbers = store.numbers()
    previous = store.manifest(numbers[-1]) if numbers and not options.full else None
    forgotten = store.forgotten()
    if previous is not None and not store.can_be_added_to(previous, forgotten):
        say("users or events were forgotten since the last run: reading everything")
        previous = None
    if previous is not None and previous.slices != slices.fingerprint:
        raise InputError(
            f"{directory} was written with other slices ({previous.slices}, the model has "
            f"{slices.fingerprint}): run it again with --full, or into another store"
        )
    if previous is not None and options.as_of is not None and options.as_of < previous.as_of:
        raise InputError(
            f"--as-of {options.as_of} is before the last run's {previous.as_of}: name a later "
            "time, or run it with --full"
        )
    number = numbers[-1] + 1 if numbers else 1
    folder = store.partial(number)
    buckets = store.manifest(numbers[-1]).buckets if numbers else options.buckets
    described: dict[str, Any] = {
        "model": facts.fingerprint,
        "slices": slices.fingerprint,
        "source": reader.fingerprint(),
        "as_of": options.as_of,
        "previous": None if previous is None else previous.number,
        "buckets": buckets,
        "forgotten": forgotten,
    }
    _claim(folder, described)
    since = None if previous is None else previous.as_of
    say("reading events")
    counts = _ingest(reader, since, store, folder, buckets, options)
    as_of = options.as_of
    if as_of is None:
        as_of = max(counts.get("newest", 0) + 1, since or 0)
    if not counts.get("events") and previous is None:
        shutil.rmtree(folder)
        raise InputError(f"{reader.name} has no events before {as_of}: nothing to export")
    if (
        previous is not None
        and as_of == previous.as_of
        and (previous.fingerprint == facts.fingerprint)
    ):
        shutil.rmtree(folder)
        say("nothing is new")
        if publish:
            store.publish(previous.number)
        return previous
    plan = Plan(
        number=number,
        as_of=as_of,
        model=str(model),
        fingerprint=facts.fingerprint,
        version=store.version_of(facts.fingerprint),
        previous=None if previous is None else previous.number,
    )
    say(f"encoding users as of {as_of}")
    with _run(options) as pipeline:
        _ = (
            pipeline
            | "Buckets" >> beam.Create(range(buckets), reshuffle=True)
            | "Encode" >> beam.ParDo(EncodeBucket(store, plan, slices))
        )
    encoded = _sum(json.loads(p.read_text()) for p in sorted((folder / "counts").glob("*.json")))
    counts |= encoded
    encoder = Encoder(model)
    manifest = Manifest(
        number=number,
        version=plan.version,
        model=str(model),
        fingerprint=facts.fingerprint,
        slices=slices.fingerprint,
        source=reader.name,
        as_of=as_of,
        num_vectors=encoder.num_vectors,
        dim=encoder.dim,
        buckets=buckets,
        sketches=(*(() if previous is None else previous.sketches), number),
        forgotten=fingerprint_of(forgotten),
        users=encoded.get("users", 0),
        counts={name: value for name, value in sorted(counts.items()) if name != "newest"},
    )
    current = store.current()
    report = health_report(
        folder, manifest, slices, None if current is None else store.generation(current)
    )
    if not options.allow_empty:
        refuse_empty_slices(report)
    atomic_write(folder / "health.json", json.dumps(report, indent=1) + "\n")
    if store.forgotten() != described["forgotten"]:
        raise InputError(
            f"users or events of {directory} were forgotten during the run: run it again"
        )
    # Remove the plan first: a run interrupted after this starts again.
    (folder / "plan.json").unlink()
    for part in ("events", "counts", "ingested"):
        shutil.rmtree(folder / part, ignore_errors=True)
    (folder / "ingested.json").unlink()
    for left in folder.rglob(".*.tmp-*"):
        shutil.rmtree(left, ignore_errors=True)
    store.finish(manifest)
    if publish:
        store.publish(number)
        store.prune()
    return manifest


def _claim(folder: Path, described: dict[str, Any]) -> None:
    """Claims the partial folder: resumes the same run, or starts again."""
    path = folder / "plan.json"
    text = json.dumps(to_mapping(described), sort_keys=True)
    if path.exists() and path.read_text() == text:
        logger.info("resuming %s", folder)
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    atomic_write(path, text)
