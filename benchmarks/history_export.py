"""The parts of suite `history` that run the export job: memory, throughput, incremental days.

Loaded when one of them is run: it needs Beam.
"""

from __future__ import annotations

import atexit
import dataclasses
import functools
import gc
import hashlib
import os
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from apache_beam.options.pipeline_options import PipelineOptions

from benchmarks.history_world import DAY, SLICES, World, event_spec, folder_bytes
from benchmarks.measure import (
    forget_peak_resident_bytes,
    in_fresh_process,
    peak_resident_bytes,
    resident_bytes,
    time_paired,
)
from benchmarks.report import Bound, Figure, Section
from benchmarks.runner import Options
from tfrz.config import to_mapping, write_yaml
from tfrz.data.records import open_source
from tfrz.data.sources.files import Shard
from tfrz.data.timelines.readers import TimelineReader, check_timelines
from tfrz.data.timelines.slicing import (
    CHUNK_EVENTS,
    Events,
    SliceSpecification,
    sketch,
    slice_user,
)
from tfrz.data.timelines.spec import TimelineSpec
from tfrz.embeddings.bucket import EncodeBucket, Plan
from tfrz.embeddings.encoder import Encoder, model_facts
from tfrz.embeddings.job import ExportOptions, export_embeddings
from tfrz.embeddings.store import Manifest, Store, bucket_file
from tfrz.embeddings.users import ChunkGrid, stream_batches

MIB = 2**20
_BUCKETS = 16
# Makes the job's figures comparable: the same user before everything that is measured.
_FIRST_USER = World(users=1, events=7000, seed=1)


# The model and the plan of a run.


def with_outcome(table: pa.Table) -> pa.Table:
    """A world's events and, of views, whether half of it was watched."""
    half = pc.multiply(table["duration"], pa.scalar(0.5, pa.float32()))
    finished = pc.greater_equal(table["dwell"], half).cast(pa.float32())
    return table.append_column("finished", finished)


def train_on(world: World, folder: Path, overrides: Iterable[str] = ()) -> Path:
    """A model trained for a few steps on a file of a world's events, as a user would; its folder.

    Args:
      world: whose; its ids are the vocabularies.
      folder: gets everything.
      overrides: of the configuration.

    Returns:
      The folder of the model's versions.
    """
    from tfrz.zoo.train import train

    folder.mkdir(parents=True, exist_ok=True)
    events = with_outcome(pa.concat_tables([world.table(i) for i in range(world.users)]))
    pq.write_table(events.drop(["position", "explicit", "value"]), folder / "events.parquet")
    (folder / "features.yaml").write_text(write_yaml(to_mapping(event_spec())))
    (folder / "slices.yaml").write_text(SLICES)
    settings = {
        "data.timeline.slices": f"{folder}/slices.yaml",
        "data.timeline.targets": 2,
        "data.timeline.recent": 0,
        "model.dim": 64,
        "trainer.max_steps": 3,
        "trainer.batch_size": 16,
        "trainer.tensorboard": "false",
        "data.max_corrupt_fraction": 0,
    }
    train(
        "dv365",
        str(folder / "events.parquet"),
        folder / "run",
        features=str(folder / "features.yaml"),
        overrides=[*(f"{key}={value}" for key, value in settings.items()), *overrides],
        progress=False,
    )
    return folder / "run" / "model"


@functools.cache
def trained(quick: bool) -> Path:
    """The model of all parts, trained once in this process and removed at its end."""
    folder = Path(tempfile.mkdtemp(prefix="tfrz-bench-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    world = World(users=60, events=120) if quick else World(users=150, events=800)
    overrides = ["model.dim=8"] if quick else []
    return train_on(dataclasses.replace(world, seed=2, spread=0.7), folder, overrides) / "1"


def plan_of(model: Path, as_of: int) -> tuple[Plan, SliceSpecification]:
    """A full run, and its slices."""
    facts = model_facts(model)
    slices = facts.timeline.slices
    plan = Plan(
        number=1,
        as_of=as_of,
        model=str(model),
        fingerprint=facts.fingerprint,
        version=f"1-{facts.fingerprint[:8]}",
        previous=None,
    )
    return plan, slices


def store_of(world: World, folder: Path, buckets: int) -> dict[str, int]:
    """A store with the events of a world in it, ready to be encoded: their number and bytes."""
    return world.write(Store(folder).partial(1), buckets)


def encoded_again(folder: Path) -> None:
    """Lets the next run encode everything."""
    for part in ("counts", "embeddings", "sketches", "tail"):
        shutil.rmtree(Store(folder).partial(1) / part, ignore_errors=True)


# Memory.


def child_encode(folder: str, model: str, as_of: int, buckets: int) -> dict[str, float]:
    """In a separate process: encodes all buckets; one more, the first user's, before that."""
    plan, slices = plan_of(Path(model), as_of)
    encode = EncodeBucket(Store(folder), plan, slices)
    encode.setup()
    gc.collect()
    loaded = resident_bytes()
    list(encode.process(buckets))
    gc.collect()
    start = resident_bytes()
    forget_peak_resident_bytes()
    begin, begin_cpu = time.perf_counter(), time.process_time()
    counts = [count for bucket in range(buckets) for count in encode.process(bucket)]
    seconds, cpu = time.perf_counter() - begin, time.process_time() - begin_cpu
    return {
        "seconds": seconds,
        "cpu_seconds": cpu,
        "loaded": float(loaded),
        "start": float(start),
        "peak": float(peak_resident_bytes()),
        "events": float(sum(count["events_read"] for count in counts)),
        "users": float(sum(count["users_encoded"] for count in counts)),
    }


def _pooled(encoder: Encoder, parts: Iterable[Mapping[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """Weighted means `[slices, dim]` and sums of weights of sketches that are pooled one by one."""
    sums, totals = 0.0, np.zeros(len(encoder.slices.slices), np.int64)
    for part in parts:
        some, weights = encoder.pool(part)
        sums, totals = sums + some, totals + weights
    return sums / np.where(totals > 0, totals / 2**24, 1.0)[:, None], totals


def chunked_difference(encoder: Encoder, table: pa.Table, as_of: int) -> tuple[float, float]:
    """A user's pooled vectors by chunks against those of one sketch of all events.

    Returns:
      The greatest difference of a value, and the greatest as a share of the largest value of its
      slice's vector.
    """
    slices = encoder.slices
    seen = table.filter(pc.less(table["time"], as_of - int(slices.gap)))
    grid, chunks = ChunkGrid(), []
    for start in range(0, seen.num_rows, CHUNK_EVENTS):
        chunks += grid.add(seen.slice(start, CHUNK_EVENTS))
    chunks += grid.rest()
    first = {timeline: slices.first_chunk(count) for timeline, count in grid.counts.items()}
    parts = [
        sketch(slices, Events(events, slices.gamma), as_of)
        for (timeline, number), events in chunks
        if number >= first[timeline]
    ]
    found, weights = _pooled(encoder, parts)
    expected, all_weights = _pooled(encoder, [slice_user(slices, table, as_of)])
    np.testing.assert_array_equal(weights, all_weights)
    difference, size = np.abs(found - expected), np.abs(expected).max(axis=1)
    shares = difference.max(axis=1) / np.where(size > 0, size, 1.0)
    return float(difference.max()), float(shares.max())


def measure_memory(options: Options) -> Section:
    """Histories of 7,000 and of 70,000 events through the encoding half, in processes apart."""
    users, lengths, rounds, compared = (
        (4, (100, 1000), 1, 1) if options.quick else (100, (7000, 70_000), 3, 5)
    )
    model = trained(options.quick)
    runs: dict[int, list[dict[str, float]]] = {length: [] for length in lengths}
    with tempfile.TemporaryDirectory(prefix="tfrz-bench-") as root:
        folders = {length: Path(root) / str(length) for length in lengths}
        worlds = {n: World(users=users, events=n, seed=options.seed) for n in lengths}
        _FIRST_USER.write(Path(root), 1)
        for length, folder in folders.items():
            store_of(worlds[length], folder, _BUCKETS)
            one_more = bucket_file(Store(folder).partial(1), "events", _BUCKETS)
            shutil.copy(bucket_file(Path(root), "events", 0), one_more)
        for _ in range(rounds):
            for length, folder in folders.items():
                encoded_again(folder)
                run = in_fresh_process(
                    "benchmarks.history_export:child_encode",
                    folder=str(folder),
                    model=str(model),
                    as_of=worlds[length].end,
                    buckets=_BUCKETS,
                )
                assert run["users"] == users
                assert run["events"] == users * length
                runs[length].append(run)
    longest = worlds[lengths[-1]]
    encoder = Encoder(model)
    differences = [
        chunked_difference(encoder, longest.table(i), longest.end) for i in range(compared)
    ]
    short, long = lengths

    def median(length: int, value: str, less: str | None = None) -> float:
        values = [run[value] - (run[less] if less else 0) for run in runs[length]]
        return statistics.median(values)

    def growth(value: str) -> float:
        pairs = zip(runs[short], runs[long], strict=True)
        return statistics.median(b[value] / a[value] for a, b in pairs) * short / long

    judged = not options.quick
    figures = []
    for length in lengths:
        name = f"{length:,} events"
        figures += [
            Figure(f"{name}, encoding", median(length, "seconds"), "s"),
            Figure(f"{name}, peak above one user", median(length, "peak", "start") / MIB, "MiB"),
            Figure(f"{name}, peak above the model", median(length, "peak", "loaded") / MIB, "MiB"),
        ]

    def ratio(less: str | None) -> float:
        return median(long, "peak", less) / median(short, "peak", less)

    word = f"{long:,} / {short:,} events"
    return Section(
        title=f"{users:,} users of {short:,} and of {long:,} events through the encoding half of "
        "the export",
        setup={
            "users": users,
            "events": list(lengths),
            "buckets": _BUCKETS,
            "rounds": rounds,
            "compared_users": compared,
        },
        figures=(
            *figures,
            Figure(
                f"{word}, peak above one user", ratio("start"), "x", Bound(1.1, "at most"), judged
            ),
            Figure(f"{word}, peak above the model", ratio("loaded")),
            Figure(f"{word}, peak of the whole process", ratio(None)),
            Figure(
                f"{word}, time / {long / short:g}",
                growth("seconds"),
                "x",
                Bound(1.15, "at most"),
                judged,
            ),
            Figure(f"{word}, CPU time / {long / short:g}", growth("cpu_seconds")),
            Figure(
                "chunked against unchunked, greatest difference / largest value of the slice",
                max(share for _, share in differences) * 1e6,
                "1e-6",
                Bound(1, "at most"),
                judged,
            ),
            Figure(
                "chunked against unchunked, greatest difference",
                max(value for value, _ in differences) * 1e6,
                "1e-6",
            ),
        ),
        notes=(
            f"Medians of {rounds} runs of each, in turns, each in a separate process",
            "Above one user: above what the process held with the model loaded and one user of "
            f"{_FIRST_USER.events:,} events encoded; above the model: before that user",
            f"Pooled vectors of {compared} users of {long:,} events, sums of each chunk against "
            "those of all events",
        ),
        details={"runs": {str(length): found for length, found in runs.items()}},
    )


# Throughput.


class Watched:
    """Looks every tenth of a second at the memory of this process and all below it.

    Attributes:
      largest: the most that one process had resident, bytes.
      together: the most that all had at a time.
    """

    def __init__(self) -> None:
        self.largest, self.together = 0, 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Watched:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._thread.join()
        self.largest = max(self.largest, peak_resident_bytes())
        self.together = max(self.together, self.largest)

    def _watch(self) -> None:
        while not self._done.wait(0.1):
            sizes = list(_resident_of_family())
            self.largest = max(self.largest, *sizes)
            self.together = max(self.together, sum(sizes))


def _resident_of_family() -> Iterator[int]:
    """The resident bytes of this process and of all its descendants."""
    pages, parents = os.sysconf("SC_PAGE_SIZE"), {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            fields = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents[int(name)] = (int(fields[1]), int(fields[21]) * pages)
    family = {os.getpid()}
    yield resident_bytes()
    grown = True
    while grown:
        grown = False
        for process, (parent, size) in parents.items():
            if parent in family and process not in family:
                family.add(process)
                grown = True
                yield size


def child_pipeline(
    folder: str, model: str, as_of: int, buckets: int, processes: int
) -> dict[str, float]:
    """In a separate process: the job's second pipeline on the DirectRunner."""
    plan, slices = plan_of(Path(model), as_of)
    arguments = ["--runner=DirectRunner"]
    if processes > 1:
        arguments += ["--direct_running_mode=multi_processing"]
        arguments += [f"--direct_num_workers={processes}"]
    begin = time.perf_counter()
    with Watched() as watched, beam.Pipeline(options=PipelineOptions(arguments)) as pipeline:
        _ = (
            pipeline
            | "Buckets" >> beam.Create(range(buckets), reshuffle=True)
            | "Encode" >> beam.ParDo(EncodeBucket(Store(folder), plan, slices))
        )
    return {
        "seconds": time.perf_counter() - begin,
        "largest": float(watched.largest),
        "together": float(watched.together),
    }


def digest(folder: Path) -> str:
    """Of all files below a folder, names and bytes."""
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*.parquet")):
        found.update(str(path.relative_to(folder)).encode())
        found.update(path.read_bytes())
    return found.hexdigest()


def measure_throughput(options: Options) -> Section:
    """Users of 70,000 events, encoded by one process and by two."""
    users, events = (8, 500) if options.quick else (1000, 70_000)
    world = World(users=users, events=events, seed=options.seed)
    model = trained(options.quick)
    runs, digests = {}, {}
    with tempfile.TemporaryDirectory(prefix="tfrz-bench-") as root:
        folder = Path(root)
        begin = time.perf_counter()
        written = store_of(world, folder, _BUCKETS)
        writing = time.perf_counter() - begin
        for processes in (1, 2):
            encoded_again(folder)
            runs[processes] = in_fresh_process(
                "benchmarks.history_export:child_pipeline",
                folder=root,
                model=str(model),
                as_of=world.end,
                buckets=_BUCKETS,
                processes=processes,
            )
            partial = Store(folder).partial(1)
            digests[processes] = digest(partial / "embeddings")
        sizes = {part: folder_bytes(partial / part) for part in ("embeddings", "sketches", "tail")}
        rows = sum(
            batch.num_rows
            for bucket in range(_BUCKETS)
            for batch in stream_batches(bucket_file(partial, "sketches", bucket))
        )
    figures = []
    for processes, run in runs.items():
        name = f"{processes} process{'es' if processes > 1 else ''}"
        figures += [
            Figure(name, written["events"] / run["seconds"], "events/s"),
            Figure(name, users / run["seconds"], "users/s"),
            Figure(f"{name}, time", run["seconds"], "s"),
            Figure(f"{name}, peak memory of the largest", run["largest"] / MIB, "MiB"),
            Figure(f"{name}, peak memory together", run["together"] / MIB, "MiB"),
        ]
    vectors, dim = Encoder(model).num_vectors, Encoder(model).dim
    return Section(
        title=f"{users:,} users of {events:,} events through the encoding half of the export, "
        "DirectRunner",
        setup={
            "users": users,
            "events": events,
            "buckets": _BUCKETS,
            "slices": len(model_facts(model).timeline.slices.slices),
            "vectors": vectors,
            "dim": dim,
        },
        figures=(
            *figures,
            Figure("2 processes / 1 process, time", runs[2]["seconds"] / runs[1]["seconds"]),
            Figure("2 processes write the bytes of 1", float(digests[1] == digests[2]), "(1/0)"),
            Figure("events read, on disk", written["bytes"] / MIB, "MiB"),
            Figure("sketches, on disk", sizes["sketches"] / MIB, "MiB"),
            Figure("sketches, rows / events", rows / written["events"]),
            Figure("tails, on disk", sizes["tail"] / MIB, "MiB"),
            Figure("embeddings, on disk", sizes["embeddings"] / MIB, "MiB"),
            Figure("embeddings, on disk, a user", sizes["embeddings"] / users, "bytes"),
        ),
        notes=(
            "One run of each. Time is that of the pipeline: workers, their imports and the loading "
            "of the model are in it, the first half of the job (reading and grouping) is not",
        ),
        details={"runs": {str(n): run for n, run in runs.items()}, "writing_events": writing},
    )


# Incremental days.


class WorldTimelines(TimelineReader):
    """The events of a world as a source of the whole job.

    Args:
      world: whose.
    """

    name = "made-up"
    _USERS_A_SHARD = 50

    def __init__(self, world: World) -> None:
        self.world = world

    def feature_spec(self) -> TimelineSpec:
        """See `Reader`."""
        return event_spec()

    def shards(self) -> list[Shard]:
        """See `Reader`."""
        users, step = self.world.users, self._USERS_A_SHARD
        return [Shard("made-up", "", s, min(s + step, users)) for s in range(0, users, step)]

    def events(self, shard: Shard) -> Iterator[pa.RecordBatch]:
        """See `TimelineReader`."""
        for number in range(shard.start, shard.end):
            table = with_outcome(self.world.table(number)).combine_chunks()
            columns = {name: table[name].combine_chunks() for name in table.column_names}
            columns["label_finished"] = columns.pop("finished")
            yield self.batch(**columns)


@dataclasses.dataclass(frozen=True)
class Days:
    """An incremental day against a full run.

    Attributes:
      identical: whether both wrote the same embeddings.
      full: what the full run counted.
      day: what the incremental one counted.
      times: of both, as `PairedTimings.summary`.
      ratio: the time of the incremental run over that of the full one.
    """

    identical: bool
    full: Manifest
    day: Manifest
    times: dict[str, dict[str, float]]
    ratio: float

    @property
    def affected(self) -> float:
        """The share of the users that the incremental run encoded."""
        return self.day.counts["users_encoded"] / self.day.counts["users"]

    @property
    def read(self) -> float:
        """The events that the incremental run read, as a share of the full run's."""
        return self.day.counts["events_read"] / self.full.counts["events_read"]


DAY_RUN, FULL_RUN = "incremental day", "full run"


def compare_day(
    model: Path, reader: TimelineReader, as_of: int, rounds: int, buckets: int = _BUCKETS
) -> Days:
    """Exports as of a day before `as_of`; then exports `as_of`, incrementally and in full."""
    made: dict[str, Manifest] = {}
    found: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="tfrz-bench-") as root:
        before = Path(root) / "before"

        def export(store: Path, at: int) -> Manifest:
            chosen = ExportOptions(as_of=at, buckets=buckets, allow_empty=True)
            return export_embeddings(model, reader, store, chosen, say=lambda line: None)

        def again(name: str, start: Path | None) -> None:
            with tempfile.TemporaryDirectory(prefix="run-", dir=root) as folder:
                store = Path(folder) / "store"
                if start is not None:
                    # Links: the job never writes into a file that is there.
                    shutil.copytree(start, store, copy_function=os.link)
                made[name] = export(store, as_of)
                generation = Store(store).generation(made[name].number)
                found[name] = digest(generation / "embeddings")

        export(before, as_of - DAY)
        times = time_paired(
            {DAY_RUN: lambda: again(DAY_RUN, before), FULL_RUN: lambda: again(FULL_RUN, None)},
            rounds,
            warm_up=0,
        )
    return Days(
        identical=found[DAY_RUN] == found[FULL_RUN],
        full=made[FULL_RUN],
        day=made[DAY_RUN],
        times=times.summary(FULL_RUN),
        ratio=times.ratio(DAY_RUN, FULL_RUN).of_pairs,
    )


def version_histories(options: Options) -> Path | None:
    """Where `vcs-edits` is, if it is there: as `--data`, or in the folder of its data set."""
    name, _, path = options.data.partition(":")
    place = Path(path) if name == "vcs-edits" else Path(path).parent.parent / "vcs-edits"
    return place if path and (place / "events.parquet").exists() else None


def train_on_edits(place: Path, folder: Path) -> Path:
    """A model of file edits, trained for a few steps."""
    from benchmarks.histories import export_untrained

    overrides = ("data.options.min_events=1000", "data.timeline.targets=4", "trainer.batch_size=32")
    return export_untrained("dv365", folder, f"vcs-edits:{place}", 3, overrides) / "1"


def measure_incremental(options: Options) -> Section:
    """Compares adding a day with a full export: bytes, events read, time."""
    rounds = 1 if options.quick else 3
    world = (
        World(users=60, events=40, days=90, active=0.1, seed=options.seed)
        if options.quick
        else World(users=2000, events=500, active=0.1, seed=options.seed)
    )
    source = f"made up, {world.users:,} users of {world.events:,} events"
    days = {source: compare_day(trained(options.quick), WorldTimelines(world), world.end, rounds)}
    notes = [
        "Time is that of the whole job, reading included: neither source is in order of time, so "
        "that both runs scan all of it. Events read are those that reach the encoding",
        f"Medians of {rounds} paired runs",
    ]
    place = version_histories(options)
    if options.quick:
        notes.append("vcs-edits: left out of quick runs")
    elif place is None:
        notes.append("vcs-edits: left out, the data are not there")
    else:
        reader = check_timelines(open_source(f"vcs-edits:{place}", None, "timeline"))
        newest = pc.max(pq.read_table(place / "events.parquet", columns=["ts"])["ts"]).as_py()
        with tempfile.TemporaryDirectory(prefix="tfrz-bench-") as folder:
            model = train_on_edits(place, Path(folder) / "run")
            days["vcs-edits"] = compare_day(model, reader, newest + 1, rounds)
    figures = []
    for name, one in days.items():
        most = Bound(2 * one.affected + 0.05, "at most")
        judged = not options.quick
        figures += [
            Figure(
                f"{name}: identical bytes",
                float(one.identical),
                "(1/0)",
                Bound(1, "at least"),
                judged,
            ),
            Figure(f"{name}: users affected / all", one.affected),
            Figure(f"{name}: events read / all", one.read, "x", most, judged),
            Figure(f"{name}: {DAY_RUN} / {FULL_RUN}, time", one.ratio),
        ]
    return Section(
        title="an incremental day against a full run of the export",
        baseline=FULL_RUN,
        setup={"rounds": rounds, "buckets": _BUCKETS, "world": dataclasses.asdict(world)},
        timings=days[source].times,
        figures=tuple(figures),
        notes=(*notes, "The bound on events read is 2 x the share of affected users + 0.05"),
        details={
            name: {"times": one.times, "full": one.full.counts, "day": one.day.counts}
            for name, one in days.items()
        },
    )
