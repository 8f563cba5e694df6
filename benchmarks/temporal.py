"""Suite `temporal`: M3's mixture against its encoders, its data plane, and its answers.

A training step is a whole step of the model: lookups, encoders, sampled softmax, gradients, Adam.

    python -m benchmarks.temporal --json FILE
"""

from __future__ import annotations

import functools
import json
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import histories
from benchmarks.measure import in_fresh_process, peak_resident_bytes, time_paired
from benchmarks.report import Bound, Figure, Section
from benchmarks.runner import Options, Part, Skip

TITLE = "mixture of temporal ranges (M3): steps, data, recommendations"
MODELS = {
    "M3R": {},
    "M3C": {"short_range": "convolution"},
    "tiny alone": {"ranges": ["tiny"], "gate": "fixed"},
    "GRU alone": {"ranges": ["short"], "gate": "fixed"},
    "convolution alone": {"ranges": ["short"], "gate": "fixed", "short_range": "convolution"},
    "long alone": {"ranges": ["long"], "gate": "fixed"},
}
_ITEMS, _PAGES = 3706, 6


def make_step(
    model_values: Mapping[str, Any], batch: int, length: int, dim: int, xla: bool = False
) -> Callable[[], float]:
    """A training step of M3 on random histories; returns the loss before the update."""
    from tfrz.zoo.tasks.history import HistoryInputs

    sizes = {"item_dim": dim, "input_units": [dim], "encoder_dim": dim, "output_units": [dim]}
    sizes |= {"loss": "sampled_softmax", "context_dim": 8, **model_values}
    overrides = [f"model.{name}={json.dumps(value)}" for name, value in sizes.items()]
    overrides.append(f"data.history.length={length}")
    rng = np.random.default_rng(0)
    columns = {
        "history_xf": rng.integers(1, _ITEMS, (batch, length)),
        "history_page_xf": rng.integers(1, _PAGES, (batch, length)),
        "target_xf": rng.integers(1, _ITEMS, batch),
        "page_xf": rng.integers(1, _PAGES, batch),
    }
    inputs = HistoryInputs(_ITEMS, _ITEMS + 2, length, {"page": _PAGES}, (), "right")
    return histories.make_step("m3", overrides, inputs, columns, xla)


def measure_step(options: Options) -> Section:
    """Compares M3R and M3C with each of their encoders alone."""
    batch, length, dim, rounds = (8, 20, 8, 2) if options.quick else (256, 200, 64, 7)
    times = time_paired(
        {name: make_step(values, batch, length, dim) for name, values in MODELS.items()},
        rounds=rounds,
        warm_up=1,
    )
    medians = {name: timing.median for name, timing in times.timings.items()}
    rest = medians["tiny alone"] + medians["long alone"]
    return Section(
        title=f"training step, batch {batch}, time {length}, dim {dim}",
        baseline="M3R",
        setup={"batch": batch, "length": length, "dim": dim, "rounds": rounds},
        timings=times.summary("M3R"),
        figures=(
            *(Figure(name, 1e3 * value, "ms") for name, value in medians.items()),
            Figure(
                "M3R / sum of its encoders alone",
                medians["M3R"] / (rest + medians["GRU alone"]),
                bound=Bound(0.9, "at most"),
                judged=not options.quick,
            ),
            Figure(
                "M3C / sum of its encoders alone",
                medians["M3C"] / (rest + medians["convolution alone"]),
            ),
        ),
        notes=("The single encoders share nothing: each has its lookups, its F_in and its loss",),
    )


def measure_length(options: Options) -> Section:
    """How the cost of a step grows with the history."""
    batch, dim, rounds = (4, 8, 2) if options.quick else (64, 64, 3)
    lengths = (10, 20) if options.quick else (50, 100, 200, 400, 800)
    names = ("M3R", "M3C", "GRU alone", "long alone")
    figures, seen = [], {}
    for length in lengths:
        times = time_paired(
            {name: make_step(MODELS[name], batch, length, dim) for name in names}, rounds, 1
        )
        for name in names:
            seen[name, length] = times[name].median
    for name in names:
        for length in lengths:
            figures.append(Figure(f"{name}, time {length}", 1e3 * seen[name, length], "ms"))
        growth = seen[name, lengths[-1]] / seen[name, lengths[0]]
        times_longer = lengths[-1] // lengths[0]
        figures.append(Figure(f"{name}, cost at {times_longer} times the length", growth))
    return Section(
        title=f"training step by length of the history, batch {batch}, dim {dim}",
        baseline=f"time {lengths[0]}",
        setup={"batch": batch, "dim": dim, "lengths": list(lengths), "rounds": rounds},
        figures=tuple(figures),
    )


def measure_xla(options: Options) -> Section:
    """The same step compiled by XLA; the first call compiles, no later one may."""
    batch, length, dim, rounds = (4, 10, 8, 2) if options.quick else (64, 100, 64, 5)
    figures = []
    for name in ("M3R", "M3C"):
        plain = make_step(MODELS[name], batch, length, dim)
        compiled = make_step(MODELS[name], batch, length, dim, xla=True)
        begin = time.perf_counter()
        compiled()
        figures.append(Figure(f"{name}, first compiled step", time.perf_counter() - begin, "s"))
        times = time_paired({"plain": plain, "compiled": compiled}, rounds, 1)
        ratio = times.ratio("compiled", "plain").of_medians
        figures.append(Figure(f"{name}, compiled / plain step", ratio))
    return Section(
        title=f"XLA, batch {batch}, time {length}, dim {dim}",
        baseline="plain",
        setup={"batch": batch, "length": length, "dim": dim},
        figures=tuple(figures),
    )


def child_histories(data: str, length: int) -> dict[str, float]:
    """In a separate process: interactions through Beam and TFT to transformed TFRecords."""
    import apache_beam as beam
    import tensorflow_transform.beam as tft_beam
    from tensorflow_transform.tf_metadata import schema_utils
    from tfx_bsl.public import tfxio

    from tfrz.data.beam import ReadRecords, RecordsToExamples
    from tfrz.data.histories.beam import InteractionsToExamples
    from tfrz.data.histories.spec import HistoryConfig
    from tfrz.data.histories.transform import preprocess_history
    from tfrz.data.records import open_source
    from tfrz.data.spec import raw_feature_spec
    from tfrz.data.tft_analyzers import TransformAnalyzers

    reader: Any = open_source(data, None, "history")
    spec, config = reader.feature_spec(), HistoryConfig(length=length)
    schema = schema_utils.schema_from_feature_spec(raw_feature_spec(spec))
    source = tfxio.TFExampleBeamRecord(
        physical_format="inmem", telemetry_descriptors=["tfrz"], schema=schema
    )
    with tempfile.TemporaryDirectory(prefix="tfrz-bench-") as folder:
        begin = time.perf_counter()
        with beam.Pipeline() as pipeline, tft_beam.Context(temp_dir=f"{folder}/tmp"):
            records = (pipeline | "Read" >> ReadRecords(reader))["records"]
            examples = records | "Histories" >> InteractionsToExamples(
                spec, config, reader.schema, with_test=False
            )
            batches = examples["train"] | RecordsToExamples() | "Decode" >> source.BeamSource()
            dataset, _ = (
                batches,
                source.TensorAdapterConfig(),
            ) | "Transform" >> tft_beam.AnalyzeAndTransformDataset(
                lambda inputs: preprocess_history(inputs, spec, config, TransformAnalyzers()),
                output_record_batches=True,
            )
            _ = (
                dataset
                | "EncodeTransformed" >> tft_beam.EncodeTransformedDataset()
                | "Write" >> beam.io.WriteToTFRecord(f"{folder}/out", file_name_suffix=".gz")
            )
        seconds = time.perf_counter() - begin
    return {"seconds": seconds, "bytes": float(peak_resident_bytes())}


def measure_transform(options: Options) -> Section:
    """Beam and TFT on the first rows of MovieLens-1M and on all of it."""
    path = histories.movielens(options)
    if path is None:
        raise Skip(f"{options.data} is not there: name it with --data movielens-1m:PATH")
    from tfrz.data.sources.files import TextSource

    with TextSource(str(path), "ratings.dat").open() as file:
        lines = file.readlines()
    sizes = (2_000, 4_000) if options.quick else (100_000, len(lines))
    found = {}
    with tempfile.TemporaryDirectory(prefix="tfrz-bench-") as folder:
        for member in ("users.dat", "movies.dat"):
            with TextSource(str(path), member).open() as file:
                (Path(folder) / member).write_bytes(file.read())
        for size in sizes:
            (Path(folder) / "ratings.dat").write_bytes(b"".join(lines[:size]))
            found[size] = in_fresh_process(
                "benchmarks.temporal:child_histories", data=f"movielens-1m:{folder}", length=200
            )
    figures = []
    for size, run in found.items():
        figures.append(Figure(f"{size:,} events", size / run["seconds"], "events/s"))
        figures.append(Figure(f"{size:,} events, peak memory", run["bytes"] / 2**20, "MiB"))
    first, last = sizes
    growth = found[last]["seconds"] / found[first]["seconds"] / (last / first)
    bound = Bound(1.2, "at most")
    figures.append(Figure("growth / linear growth", growth, "x", bound, not options.quick))
    return Section(
        title="Beam + TFT on MovieLens-1M: read, group, encode, analyse, transform, write",
        baseline=f"{first:,} events",
        setup={"sizes": list(sizes), "length": 200, "runner": "DirectRunner"},
        figures=tuple(figures),
        notes=("Under 1: the fixed cost of a pipeline is spread over more events",),
    )


PARTS: Mapping[str, Part] = {
    "step": Part(measure_step, "M3R and M3C against the sum of their encoders run alone"),
    "length": Part(measure_length, "how a step's cost grows with the length of the history"),
    "xla": Part(measure_xla, "the step compiled by XLA against the plain one"),
    "transform": Part(
        measure_transform,
        "Beam + TFT on MovieLens-1M",
        layer=False,
        needs=("apache_beam", "tensorflow_transform"),
    ),
    "recommend": Part(
        functools.partial(histories.measure_recommendation, "m3"),
        "p50 of one user's recommendations through the server",
        layer=False,
        needs=("grpc", "tensorflow_serving"),
    ),
}

if __name__ == "__main__":
    from benchmarks.runner import main

    raise SystemExit(main("temporal"))
