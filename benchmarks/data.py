"""Suite `data`: from files of one's own to batches and to predictions.

python -m benchmarks.data --json FILE
"""

from __future__ import annotations

import collections
import gzip
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure import in_fresh_process, time_paired
from benchmarks.report import Bound, Figure, Section
from benchmarks.runner import Options, Part, Skip

TITLE = "Files of one's own: reading, encoding, memory, predicting"

SPEC = """
features:
  - {name: user}
  - {name: item}
  - {name: category}
  - {name: device}
  - {name: price, kind: numeric, dtype: float32}
"""
TEXTS = ("user", "item", "category", "device")
_ARROW = "pyarrow: read and dictionary-encode"
_ROWS_A_FILE = 1_000_000


def write_rows(folder: Path, rows: int, seed: int, kind: str = "parquet") -> Path:
    """Writes impressions of 100,000 users and 50,000 items.

    Args:
      folder: to write to.
      rows: number of rows, 1,000,000 a file.
      seed: of the draws.
      kind: parquet, csv or csv.gz.

    Returns:
      The folder with the files, beside `spec.yaml`.
    """
    import pyarrow as pa
    import pyarrow.csv as pcsv
    import pyarrow.parquet as pq

    rng = np.random.default_rng(seed)
    words = {
        "user": pa.array([f"u{i}" for i in range(100_000)]),
        "item": pa.array([f"i{i}" for i in range(50_000)]),
        "category": pa.array([f"c{i}" for i in range(300)]),
        "device": pa.array(["ios", "android", "web"]),
    }
    place = folder / kind
    place.mkdir(parents=True)
    (folder / "spec.yaml").write_text(SPEC)
    for number, start in enumerate(range(0, rows, _ROWS_A_FILE)):
        count = min(_ROWS_A_FILE, rows - start)
        user, item = rng.integers(0, 100_000, count), rng.zipf(1.2, count) % 50_000
        chosen = {
            "user": user,
            "item": item,
            "category": item % 300,
            "device": rng.integers(0, 3, count),
        }
        chance = 1 / (1 + np.exp(-np.sin(user) - np.cos(item)))
        table = pa.table(
            {
                **{name: words[name].take(pa.array(codes)) for name, codes in chosen.items()},
                "price": np.round(rng.lognormal(2, 1, count), 2),
                "label": (rng.random(count) < chance).astype(np.int64),
            }
        )
        path = place / f"part-{number:03d}.{kind}"
        if kind == "parquet":
            pq.write_table(table, path)
        elif kind == "csv":
            pcsv.write_csv(table, path)
        else:
            with gzip.open(path, "wb", compresslevel=1) as file:
                pcsv.write_csv(table, file)
    return place


@contextmanager
def _folder() -> Iterator[Path]:
    place = Path(tempfile.mkdtemp(prefix="tfrz-bench-data-"))
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _arrow(place: Path) -> None:
    """What Arrow alone takes for the same columns."""
    import pyarrow as pa
    import pyarrow.csv as pcsv
    import pyarrow.parquet as pq

    for path in sorted(place.iterdir()):
        if path.suffix == ".parquet":
            table = pq.read_table(path)
        else:
            types = {name: pa.string() for name in TEXTS}
            table = pcsv.read_csv(path, convert_options=pcsv.ConvertOptions(column_types=types))
        for name in TEXTS:
            table[name].dictionary_encode()


def _prepare(place: Path, cache: Path | None = None) -> Any:
    """What `tfrz train dcn_v2` does before it trains."""
    from tfrz.zoo.run import open_run
    from tfrz.zoo.run_config import load_run_config

    config = load_run_config("dcn_v2", "rows", ["trainer.batch_size=4096"])
    return open_run(config, str(place), str(place.parent / "spec.yaml"), cache).prepare()


def measure_reading(options: Options) -> Section:
    """A million rows to encoded arrays, against Arrow's reading and encoding."""
    rows, rounds = (20_000, 2) if options.quick else (1_000_000, 9)
    figures, timings = [], {}
    with _folder() as folder:
        for kind in ("parquet", "csv"):
            place = write_rows(folder / kind, rows, options.seed, kind)
            ours = f"tfrz, {kind}"
            times = time_paired(
                {ours: lambda p=place: _prepare(p), _ARROW: lambda p=place: _arrow(p)}, rounds, 1
            )
            timings |= {
                f"{_ARROW}, {kind}" if n == _ARROW else n: row
                for n, row in times.summary(_ARROW).items()
            }
            ratio = times.ratio(ours, _ARROW).of_pairs
            bound = Bound(3.0, "at most")
            figures += [
                Figure(
                    f"{kind}: file to encoded arrays / {_ARROW}",
                    ratio,
                    "x",
                    bound,
                    not options.quick,
                ),
                Figure(f"{kind}: file to encoded arrays", times[ours].median, "s"),
            ]
    return Section(
        title=f"{rows:,} rows of six columns, file to encoded arrays",
        baseline=f"{_ARROW}, csv",
        setup={"rows": rows, "rounds": rounds},
        timings=timings,
        figures=tuple(figures),
        notes=("With the split, the vocabularies and the ids of all rows; Arrow has two threads",),
    )


def measure_growth(options: Options) -> Section:
    """Ten times the rows."""
    few, rounds = (3_000, 2) if options.quick else (300_000, 3)
    figures = []
    with _folder() as folder:
        for kind in ("parquet", "csv", "csv.gz"):
            places = {
                count: write_rows(folder / f"{kind}-{count}", count, options.seed, kind)
                for count in (few, 10 * few)
            }
            times = time_paired(
                {str(count): lambda p=place: _prepare(p) for count, place in places.items()},
                rounds,
                1,
            )
            ratio = times.ratio(str(10 * few), str(few)).of_pairs
            figures.append(
                Figure(
                    f"{kind}: {10 * few:,} rows / {few:,}",
                    ratio,
                    "x",
                    Bound(11.0, "at most"),
                    not options.quick,
                )
            )
    return Section(
        title="time of ten times the rows",
        setup={"rows": few, "rounds": rounds},
        figures=tuple(figures),
    )


@contextmanager
def _peak() -> Iterator[list[int]]:
    """Watches the anonymous memory of the process; the list holds its peak in KiB."""
    peak, ended = [0], threading.Event()

    def watch() -> None:
        while not ended.wait(0.05):
            for line in Path("/proc/self/status").read_text().splitlines():
                if line.startswith("RssAnon:"):
                    peak[0] = max(peak[0], int(line.split()[1]))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield peak
    finally:
        ended.set()
        watcher.join()


def peak_of_training(place: str, steps: int) -> dict[str, float]:
    """Trains on a folder of rows; peak of anonymous memory in MiB and the seconds of each stage."""
    from tfrz.zoo.train import train

    out = Path(place).parent / f"run-{time.time_ns()}"
    settings = ["trainer.batch_size=4096", f"trainer.max_steps={steps}"]
    spec = str(Path(place).parent / "spec.yaml")
    with _peak() as peak:
        result = train("dcn_v2", place, out, spec, settings, progress=False)
    return {"peak": peak[0] / 1024, **result["seconds"]}


def measure_memory(options: Options) -> Section:
    """Peak anonymous memory of training on 30,000,000 rows and on a tenth of them."""
    sizes = (20_000, 200_000) if options.quick else (3_000_000, 30_000_000)
    steps = 3 if options.quick else 200
    found = {}
    with _folder() as folder:
        for rows in sizes:
            place = write_rows(folder / str(rows), rows, options.seed)
            found[rows] = in_fresh_process(
                "benchmarks.data:peak_of_training", place=str(place), steps=steps
            )
            shutil.rmtree(place.parent)
    few, many = sizes
    judged = not options.quick
    return Section(
        title=f"tfrz train dcn_v2 on {many:,} rows: peak of anonymous memory",
        setup={"rows": many, "steps": steps},
        figures=(
            Figure(f"{many:,} rows", found[many]["peak"], "MiB", Bound(2048, "at most"), judged),
            Figure(f"{few:,} rows", found[few]["peak"], "MiB"),
            Figure(
                f"{many:,} rows / {few:,}",
                found[many]["peak"] / found[few]["peak"],
                "x",
                Bound(1.2, "at most"),
                judged,
            ),
            Figure(f"{many:,} rows, read and encoded", found[many]["data"], "s"),
        ),
        notes=("RssAnon of the process, sampled 20 times a second",),
        details={str(rows): values for rows, values in found.items()},
    )


def measure_feeding(options: Options) -> Section:
    """Training steps fed from the cache, against the same from memory."""
    from tfrz.training.batches import ArrayBatches, GroupedBatches
    from tfrz.training.fit import step_losses
    from tfrz.zoo import registry
    from tfrz.zoo.run import open_run
    from tfrz.zoo.run_config import load_run_config
    from tfrz.zoo.tasks import click

    rows, steps, rounds = (20_000, 4, 2) if options.quick else (3_000_000, 400, 5)
    with _folder() as folder:
        place = write_rows(folder / "rows", rows, options.seed)
        config = load_run_config("dcn_v2", "rows", ["trainer.batch_size=4096"])
        run = open_run(config, str(place), str(place.parent / "spec.yaml"), folder / "cache")
        limit = click._IN_MEMORY
        try:
            click._IN_MEMORY = 0
            cached = run.prepare()
            click._IN_MEMORY = 10 * rows
            memory = run.prepare()
        finally:
            click._IN_MEMORY = limit
        assert isinstance(cached.train, GroupedBatches)
        assert isinstance(memory.train, ArrayBatches)
        task = registry.get("dcn_v2").new_task(config)
        model = task.build(cached.inputs)
        names = {"from the cache": cached.train, "from memory": memory.train}
        times = time_paired(
            {
                name: lambda batches=batches: step_losses(
                    model, task, batches, config.trainer, steps
                )
                for name, batches in names.items()
            },
            rounds,
            1,
        )
    ratio = times.ratio("from the cache", "from memory").of_pairs
    return Section(
        title=f"{steps} training steps of dcn_v2, batch 4,096, of {rows:,} rows",
        baseline="from memory",
        setup={"rows": rows, "steps": steps, "rounds": rounds},
        timings=times.summary("from memory"),
        figures=(
            Figure(
                "from the cache / from memory", ratio, "x", Bound(1.1, "at most"), not options.quick
            ),
        ),
    )


def measure_predicting(options: Options) -> Section:
    """A million rows through the SavedModel of dcn_v2."""
    from tfrz.cli.main import main
    from tfrz.zoo.train import train

    rows = 20_000 if options.quick else 1_000_000
    with _folder() as folder:
        place = write_rows(folder / "rows", rows, options.seed)
        spec = str(place.parent / "spec.yaml")
        settings = ["trainer.batch_size=4096", "trainer.max_steps=20"]
        train("dcn_v2", str(place), folder / "run", spec, settings, progress=False)
        out = folder / "predictions.parquet"
        started = time.perf_counter()
        status = main(
            ["predict", str(folder / "run"), "--data", str(place), "--out", str(out), "--quiet"]
        )
        seconds = time.perf_counter() - started
        assert status == 0
    return Section(
        title=f"tfrz predict dcn_v2 --data, {rows:,} rows",
        setup={"rows": rows},
        figures=(
            Figure(
                "rows of a second",
                rows / seconds,
                "rows/s",
                Bound(50_000, "at least"),
                not options.quick,
            ),
            Figure("in all", seconds, "s"),
        ),
        notes=("With opening the model and writing the file",),
    )


EVENTS_SPEC = "user: user\nitem: item\ntime: time\n"
_ROWS_A_BATCH = 8192


def write_events(folder: Path, rows: int, seed: int) -> Path:
    """Writes events of a user each 60 and 20,000 items.

    Args:
      folder: to write to.
      rows: number of events, 1,000,000 a file.
      seed: of the draws.

    Returns:
      The folder with the Parquet files, beside `spec.yaml`.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    rng = np.random.default_rng(seed)
    users = pa.array([f"u{i}" for i in range(max(1, rows // 60))])
    items = pa.array([f"i{i}" for i in range(20_000)])
    place = folder / "events"
    place.mkdir(parents=True)
    (folder / "spec.yaml").write_text(EVENTS_SPEC)
    for number, start in enumerate(range(0, rows, _ROWS_A_FILE)):
        count = min(_ROWS_A_FILE, rows - start)
        table = pa.table(
            {
                "user": users.take(pa.array(rng.integers(0, len(users), count))),
                "item": items.take(pa.array(rng.zipf(1.3, count) % 20_000)),
                "time": 1_600_000_000 + rng.integers(0, 30_000_000, count),
            }
        )
        pq.write_table(table, place / f"part-{number:03d}.parquet")
    return place


def _examples(data: str, spec: str | None) -> Any:
    """The histories of a source, as `tfrz train m3` makes them."""
    from tfrz.zoo.run import open_run
    from tfrz.zoo.run_config import load_run_config

    run = open_run(load_run_config("m3", data.partition(":")[0]), data, spec)
    return run.task.examples(run.source)[0]


def row_at_a_time(path: Path) -> Any:
    """Histories of events by a reader in the way of earlier releases: each value by itself.

    Args:
      path: CSV or Parquet with the columns `user`, `item` and `time`.
    """
    import csv

    import pyarrow as pa
    import pyarrow.parquet as pq

    from tfrz.data.histories.examples import build_examples
    from tfrz.data.histories.spec import HistorySpec
    from tfrz.zoo.run_config import load_run_config

    def rows() -> Iterator[dict[str, Any]]:
        if path.suffix == ".csv":
            with path.open(newline="") as file:
                yield from csv.DictReader(file)
        else:
            for batch in pq.ParquetFile(path).iter_batches():
                yield from batch.to_pylist()

    schema = pa.schema(
        [
            ("user", pa.binary()),
            ("item", pa.binary()),
            ("time", pa.int64()),
            ("position", pa.int64()),
        ]
    )
    batches, held = [], []
    for position, row in enumerate(rows()):
        user, item = str(row["user"]).encode(), str(row["item"]).encode()
        held.append({"user": user, "item": item, "time": int(row["time"]), "position": position})
        if len(held) == _ROWS_A_BATCH:
            batches.append(pa.RecordBatch.from_pylist(held, schema=schema))
            held = []
    batches.append(pa.RecordBatch.from_pylist(held, schema=schema))
    data = load_run_config("m3", "own").data
    assert data.history is not None
    events = pa.Table.from_batches(batches)
    return build_examples(events, HistorySpec(), data.history, data.held_out, data.seed)


def measure_histories(options: Options) -> Section:
    """Events of MovieLens-1M to histories, against reading them a row at a time."""
    import pyarrow as pa
    import pyarrow.csv as pcsv
    import pyarrow.parquet as pq

    from tfrz.data.records import open_source
    from tfrz.data.sources.reader import read_table

    _, colon, archive = options.data.partition(":")
    if not options.quick and colon and not Path(archive).exists():
        raise Skip(f"{options.data} is not there: name the data with --data")
    rounds = 2 if options.quick else 5
    figures: list[Figure] = []
    timings: Mapping[str, Any] = {}
    with _folder() as folder:
        if options.quick:
            events = pq.read_table(write_events(folder / "few", 20_000, options.seed))
        else:
            found, _ = read_table(open_source(options.data, None, "history"))
            texts = {name: found[name].cast(pa.string()) for name in ("user", "item")}
            events = pa.table({**texts, "time": found["time"]})
        (folder / "spec.yaml").write_text(EVENTS_SPEC)
        for kind, write in (("parquet", pq.write_table), ("csv", pcsv.write_csv)):
            path = folder / f"events.{kind}"
            write(events, path)
            ours, theirs = f"tfrz, {kind}", f"a row at a time, {kind}"
            spec = str(folder / "spec.yaml")
            times = time_paired(
                {
                    ours: lambda p=path, s=spec: _examples(str(p), s),
                    theirs: lambda p=path: row_at_a_time(p),
                },
                rounds,
                1,
            )
            if kind == "csv":
                timings = times.summary(theirs)
            ratio = times.ratio(theirs, ours).of_pairs
            bound = Bound(3.0, "at least")
            figures += [
                Figure(f"{kind}: a row at a time / tfrz", ratio, "x", bound, not options.quick),
                Figure(f"{kind}: tfrz", events.num_rows / times[ours].median, "events/s"),
            ]
    return Section(
        title=f"{events.num_rows:,} events to histories",
        baseline="a row at a time, csv",
        setup={"events": events.num_rows, "rounds": rounds},
        timings=timings,
        figures=tuple(figures),
        notes=(
            "Read, sorted, split; not yet transformed. A row at a time: csv.DictReader or "
            "to_pylist, each value converted alone, as earlier releases did",
        ),
    )


def peak_of_histories(place: str, cache: str) -> dict[str, float]:
    """Prepares histories; peak of anonymous memory in MiB, and the seconds."""
    from tfrz.training.batches import GroupedBatches
    from tfrz.zoo.run import open_run
    from tfrz.zoo.run_config import load_run_config

    with _peak() as peak:
        spec = str(Path(place).parent / "spec.yaml")
        started = time.perf_counter()
        prepared = open_run(load_run_config("m3", "own"), place, spec, Path(cache)).prepare()
        prepared_in = time.perf_counter() - started
        started = time.perf_counter()
        for _ in prepared.train.epoch(0):
            pass
    return {
        "peak": peak[0] / 1024,
        "seconds": prepared_in,
        "epoch": time.perf_counter() - started,
        "grouped": float(isinstance(prepared.train, GroupedBatches)),
    }


def measure_many_histories(options: Options) -> Section:
    """Peak anonymous memory of 30,000,000 events to histories and an epoch of their batches."""
    sizes = (20_000, 200_000) if options.quick else (3_000_000, 30_000_000)
    found = {}
    with _folder() as folder:
        for rows in sizes:
            place = write_events(folder / str(rows), rows, options.seed)
            found[rows] = in_fresh_process(
                "benchmarks.data:peak_of_histories", place=str(place), cache=str(folder / "cache")
            )
    few, many = sizes
    judged = not options.quick
    return Section(
        title=f"{many:,} events to histories of m3, and an epoch: peak of anonymous memory",
        setup={"events": many},
        figures=(
            Figure(f"{many:,} events", found[many]["peak"], "MiB", Bound(2048, "at most"), judged),
            Figure(f"{few:,} events, held in memory", found[few]["peak"], "MiB"),
            Figure(f"{many:,} events, read and transformed", found[many]["seconds"], "s"),
            Figure(f"{many:,} events, an epoch of batches", found[many]["epoch"], "s"),
        ),
        notes=("RssAnon of the process, sampled 20 times a second",),
        details={str(rows): values for rows, values in found.items()},
    )


def measure_fuzz(options: Options) -> Section:
    """Random tables in every dialect and type, read back through every type of records."""
    from benchmarks.data_fuzz import fuzz

    rounds, count = (1, 40) if options.quick else (20, 1000)
    outcomes: collections.Counter[str] = collections.Counter()
    wrong: list[str] = []
    for number in range(rounds):
        try:
            outcomes += fuzz(count, options.seed + number)
        except AssertionError as error:
            wrong.append(str(error))
    by_outcome: collections.Counter[str] = collections.Counter()
    for name, times in outcomes.items():
        by_outcome[name.rpartition(": ")[2]] += times
    bound = Bound(0, "at most")
    return Section(
        title=f"{rounds * count:,} random tables, read back",
        setup={"cases": rounds * count},
        figures=(
            Figure("thousands of cases read wrongly", len(wrong), "", bound, not options.quick),
            Figure("all rows right", by_outcome["right"], "cases"),
            Figure("the rows that fit right, the others counted", by_outcome["corrupt"], "cases"),
            Figure("refused in one line", by_outcome["refused"], "cases"),
            Figure("not written by the library", by_outcome["not written"], "cases"),
        ),
        notes=(
            "Written by Arrow, pandas, Polars, DuckDB and Python's csv and json; what is right is "
            "decided value by value in Python",
        ),
        details={"outcomes": dict(sorted(outcomes.items())), "wrong": wrong},
    )


_NEEDS = ("pyarrow",)
PARTS: Mapping[str, Part] = {
    "reading": Part(measure_reading, "a million rows to encoded arrays", False, _NEEDS),
    "growth": Part(measure_growth, "ten times the rows: growth of time", False, _NEEDS),
    "memory": Part(measure_memory, "30,000,000 rows: peak of anonymous memory", False, _NEEDS),
    "feeding": Part(measure_feeding, "steps fed from the cache and from memory", False, _NEEDS),
    "histories": Part(measure_histories, "MovieLens-1M events to histories", False, _NEEDS),
    "many_histories": Part(
        measure_many_histories, "30,000,000 events: peak of anonymous memory", False, _NEEDS
    ),
    "fuzz": Part(
        measure_fuzz,
        "random tables of every dialect, read back",
        False,
        ("hypothesis", "pandas", "polars", "duckdb"),
    ),
    "predicting": Part(measure_predicting, "a million rows through a SavedModel", False, _NEEDS),
}

if __name__ == "__main__":
    from benchmarks.runner import main as run_suite

    raise SystemExit(run_suite("data"))
