"""Suite `data`: from files of one's own to batches and to predictions.

python -m benchmarks.data --json FILE
"""

from __future__ import annotations

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
from benchmarks.runner import Options, Part

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


def peak_of_training(place: str, steps: int) -> dict[str, float]:
    """Trains on a folder of rows; peak of anonymous memory in MiB and the seconds of each stage."""
    from tfrz.zoo.train import train

    peak, ended = [0], threading.Event()

    def watch() -> None:
        while not ended.wait(0.05):
            for line in Path("/proc/self/status").read_text().splitlines():
                if line.startswith("RssAnon:"):
                    peak[0] = max(peak[0], int(line.split()[1]))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    out = Path(place).parent / f"run-{time.time_ns()}"
    settings = ["trainer.batch_size=4096", f"trainer.max_steps={steps}"]
    spec = str(Path(place).parent / "spec.yaml")
    result = train("dcn_v2", place, out, spec, settings, progress=False)
    ended.set()
    watcher.join()
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


_NEEDS = ("pyarrow",)
PARTS: Mapping[str, Part] = {
    "reading": Part(measure_reading, "a million rows to encoded arrays", False, _NEEDS),
    "growth": Part(measure_growth, "ten times the rows: growth of time", False, _NEEDS),
    "memory": Part(measure_memory, "30,000,000 rows: peak of anonymous memory", False, _NEEDS),
    "feeding": Part(measure_feeding, "steps fed from the cache and from memory", False, _NEEDS),
    "predicting": Part(measure_predicting, "a million rows through a SavedModel", False, _NEEDS),
}

if __name__ == "__main__":
    from benchmarks.runner import main as run_suite

    raise SystemExit(run_suite("data"))
