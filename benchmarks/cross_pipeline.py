"""The end-to-end parts of suite `cross`: `tfrz train`, and the Beam + TFT stage."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.measure import in_fresh_process, peak_resident_bytes
from benchmarks.report import Figure, Section
from benchmarks.runner import Options, Skip

MODEL = "dcn_v2"


def _present(data: str) -> bool:
    _, colon, path = data.partition(":")
    return not colon or Path(path).exists()


def measure_train(options: Options) -> Section:
    """One epoch of `tfrz train` as a user runs it, in a separate process."""
    if not _present(options.data):
        raise Skip(f"{options.data} is not there: name the data with --data")
    with tempfile.TemporaryDirectory(prefix="tfrz-bench-") as folder:
        command = [sys.executable, "-m", "tfrz", "train", MODEL, "--data", options.data]
        command += ["--out", str(Path(folder) / "run"), "--json", "--quiet"]
        command += ["--set", "trainer.epochs=1", "--seed", str(options.seed)]
        begin = time.perf_counter()
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
        )
        wall = time.perf_counter() - begin
    if done.returncode:
        raise RuntimeError(f"tfrz train failed: {done.stderr.strip()[-1500:]}")
    result: dict[str, Any] = json.loads(done.stdout)
    seconds = result["seconds"]
    loop = result["examples_per_second"]
    command_rate = loop * seconds["fit"] / wall
    return Section(
        title=f"one epoch of tfrz train {MODEL} --data {options.data}",
        baseline="training loop",
        setup={"model": MODEL, "data": options.data, "epochs": 1, "steps": result["steps"]},
        figures=(
            Figure("whole command", command_rate, "examples/s"),
            Figure("training loop with its validation", loop, "examples/s"),
            Figure("whole command / training loop", command_rate / loop),
            Figure("whole command", wall, "s"),
            *(Figure(f"of which {stage}", value, "s") for stage, value in seconds.items()),
            Figure("validation AUC", result["metrics"]["validation"]["auc"], ""),
        ),
        notes=("whole command: interpreter and imports, reading, transforming, training, export",),
    )


def child_transform(rows: int, seed: int) -> dict[str, float]:
    """In a separate process: simulated records through Beam and TFT to transformed TFRecords.

    Returns:
      `seconds` of the pipeline, `bytes` that the process held at most, `rows` written.
    """
    import apache_beam as beam
    import tensorflow as tf
    import tensorflow_transform.beam as tft_beam
    from tensorflow_transform.tf_metadata import schema_utils
    from tfx_bsl.public import tfxio

    from tfrz.data.beam import ReadRecords, RecordsToExamples
    from tfrz.data.impressions.transform import preprocess
    from tfrz.data.records import open_source
    from tfrz.data.spec import raw_feature_spec
    from tfrz.data.tft_analyzers import TransformAnalyzers

    reader = open_source("simulated", rows=rows, seed=seed)
    spec = reader.feature_spec()
    schema = schema_utils.schema_from_feature_spec(raw_feature_spec(spec, label=True))
    source = tfxio.TFExampleBeamRecord(
        physical_format="inmem", telemetry_descriptors=["tfrz"], schema=schema
    )
    with tempfile.TemporaryDirectory(prefix="tfrz-bench-") as folder:
        begin = time.perf_counter()
        with beam.Pipeline() as pipeline, tft_beam.Context(temp_dir=str(Path(folder) / "tmp")):
            read = pipeline | "Read" >> ReadRecords(reader)
            batches = (
                read["records"] | "Encode" >> RecordsToExamples() | "Decode" >> source.BeamSource()
            )
            dataset, _ = (
                batches,
                source.TensorAdapterConfig(),
            ) | "Transform" >> tft_beam.AnalyzeAndTransformDataset(
                lambda inputs: preprocess(inputs, spec, TransformAnalyzers()),
                output_record_batches=True,
            )
            (
                dataset
                | "EncodeTransformed" >> tft_beam.EncodeTransformedDataset()
                | "Write"
                >> beam.io.WriteToTFRecord(str(Path(folder) / "out"), file_name_suffix=".gz")
            )
        seconds = time.perf_counter() - begin
        files = tf.io.gfile.glob(str(Path(folder) / "out*"))
        dataset = tf.data.TFRecordDataset(files, "GZIP").batch(4096)
        written = sum(int(batch.shape[0]) for batch in dataset)
    return {"seconds": seconds, "bytes": float(peak_resident_bytes()), "rows": float(written)}


def measure_transform(options: Options) -> Section:
    """How the cost of the Beam + TFT stage grows with the number of rows."""
    sizes = (1_000, 2_000) if options.quick else (10_000, 100_000, 1_000_000)
    runs = {
        rows: in_fresh_process(
            "benchmarks.cross_pipeline:child_transform", rows=rows, seed=options.seed
        )
        for rows in sizes
    }
    first = sizes[0]
    figures = []
    for rows, run in runs.items():
        figures.append(Figure(f"{rows:,} rows", rows / run["seconds"], "rows/s"))
        figures.append(Figure(f"{rows:,} rows, peak memory", run["bytes"] / 2**20, "MiB"))
    for before, after in itertools.pairwise(sizes):
        growth = runs[after]["seconds"] / runs[before]["seconds"]
        figures.append(Figure(f"time at {after:,} / time at {before:,} rows", growth))
    return Section(
        title="Beam + TFT stage on simulated clicks (read, encode, analyse, transform, write)",
        baseline=f"{first:,} rows",
        setup={"rows": list(sizes), "runner": "DirectRunner"},
        figures=tuple(figures),
        notes=("under 10 at ten times the rows: the fixed cost of a pipeline is spread out",),
        details={"runs": {str(rows): run for rows, run in runs.items()}},
    )
