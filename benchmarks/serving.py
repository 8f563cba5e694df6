"""Suite `serving`: the local server against bare calls of the model, and against itself."""

from __future__ import annotations

import asyncio
import dataclasses
import http.client
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks import load_test
from benchmarks import serving_processes as processes
from benchmarks.measure import in_fresh_process, time_paired
from benchmarks.report import Bound, Figure, Section
from benchmarks.runner import Options, Part
from benchmarks.serving_fuzz import measure_fuzz
from benchmarks.serving_soak import measure_soak

TITLE = "the local server: latency, throughput, start, soak, fuzzing"
_ROWS = 64
_IN_PROCESS = "signature in process"


def post(port: int, path: str, body: bytes) -> Callable[[], None]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)

    def call() -> None:
        connection.request("POST", path, body)
        answer = connection.getresponse()
        answer.read()
        if answer.status != 200:
            raise RuntimeError(f"HTTP {answer.status}")

    return call


def measure_latency(options: Options) -> Section:
    """One client, kept-alive connections, the trivial model; bytes prepared beforehand."""
    import grpc
    import numpy as np
    import tensorflow as tf

    from tfrz.serving.client import PREDICT

    rounds = 300 if options.quick else 3000
    with tempfile.TemporaryDirectory(prefix="tfrz-bench-") as folder:
        base = Path(folder) / "m"
        processes.save_half_plus(2.0, base / "1")
        signature = tf.saved_model.load(str(base / "1")).signatures["serving_default"]
        x = tf.constant(np.ones(_ROWS, "float32"))
        document = {"instances": [1.0] * _ROWS}
        with processes.serving((f"--model_base_path={base}", "--model_name=m")) as (server,):
            (payload,) = load_test.payloads_of(server.grpc("m"), [document])
            channel = grpc.insecure_channel(f"127.0.0.1:{server.port}")
            predict = channel.unary_unary(PREDICT)
            times = time_paired(
                {
                    _IN_PROCESS: lambda: signature(x=x),
                    "Predict over gRPC": lambda: predict(payload),
                    "predict over REST": post(
                        server.rest_port, "/v1/models/m:predict", json.dumps(document).encode()
                    ),
                },
                rounds=rounds,
                warm_up=50,
            )
            channel.close()
    medians = {name: timing.median for name, timing in times.timings.items()}
    judged = not options.quick
    return Section(
        title=f"p50 of {_ROWS} rows of y = 0.5 x + 2, one client, against a bare call",
        baseline=_IN_PROCESS,
        setup={"rows": _ROWS, "rounds": rounds},
        figures=(
            *(Figure(f"{name}, p50", 1e3 * value, "ms") for name, value in medians.items()),
            Figure(
                "gRPC / in process",
                medians["Predict over gRPC"] / medians[_IN_PROCESS],
                bound=Bound(6, "at most"),
                judged=judged,
            ),
            Figure(
                "REST / in process",
                medians["predict over REST"] / medians[_IN_PROCESS],
                bound=Bound(8, "at most"),
                judged=judged,
            ),
        ),
        notes=("Calls take turns; client and server share the machine.",),
    )


def child_start(base: str, port: int, rest_port: int) -> dict[str, float]:
    """Seconds from TensorFlow's import to open ports, in this fresh process."""
    begin = time.perf_counter()
    import tensorflow  # noqa: F401

    imported = time.perf_counter()
    from tfrz.serving.server import Server, ServerConfig

    with Server(ServerConfig("m", base, port, rest_port)):
        ready = time.perf_counter()
    return {"import": imported - begin, "ready": ready - imported}


def measure_start(options: Options) -> Section:
    """From TensorFlow's import to open ports: load, warm-up, and what else is imported."""
    starts = 2 if options.quick else 5
    with tempfile.TemporaryDirectory(prefix="tfrz-bench-") as folder:
        base = processes.train_dcn_v2(Path(folder) / "run", 20, options.seed)
        seen = [
            in_fresh_process(
                "benchmarks.serving:child_start",
                base=str(base),
                port=processes.free_port(),
                rest_port=processes.free_port(),
            )
            for _ in range(starts)
        ]
    imported = statistics.median(one["import"] for one in seen)
    return Section(
        title="start to ready for DCN-V2, after TensorFlow's import",
        setup={"starts": starts, "model": processes.DCN_V2},
        figures=(
            Figure(
                "start to ready, median",
                statistics.median(one["ready"] for one in seen),
                "s",
                Bound(2, "at most"),
                judged=not options.quick,
            ),
            Figure("import of TensorFlow, median", imported, "s"),
        ),
    )


def measure_throughput(options: Options) -> Section:
    """Closed loop over gRPC; the servers with and without batching take turns."""
    seconds, rounds, clients, rows = (1.0, 1, 8, 8) if options.quick else (5.0, 3, 32, 8)
    with tempfile.TemporaryDirectory(prefix="tfrz-bench-") as folder:
        base = processes.train_dcn_v2(Path(folder) / "run", 20, options.seed)
        payload = processes.warmup_rows(base, rows, "m").SerializeToString()
        common = (f"--model_base_path={base}", "--model_name=m", "--grpc_max_threads=64")
        seen: dict[tuple[str, int], list[Any]] = {}
        with processes.serving(common, (*common, "--enable_batching")) as servers:
            cases = [
                (name, server, n)
                for name, server in zip(("off", "on"), servers, strict=True)
                for n in (1, clients)
            ]
            for _, server, n in cases:
                asyncio.run(load_test.drive(server.grpc("m"), [payload], n, min(2.0, seconds)))
            for turn in range(rounds):
                for name, server, n in cases[turn % 4 :] + cases[: turn % 4]:
                    report = asyncio.run(load_test.drive(server.grpc("m"), [payload], n, seconds))
                    if report.errors:
                        raise RuntimeError(f"batching {name}, {n} clients: {report.errors}")
                    seen.setdefault((name, n), []).append(report)

    def middle(name: str, n: int, field: str = "per_second") -> float:
        return statistics.median(getattr(report, field) for report in seen[name, n])

    judged = not options.quick
    figures = []
    for name, n in sorted(seen):
        label = f"batching {name}, {n} client{'s' if n > 1 else ''}"
        figures += [
            Figure(label, middle(name, n), "requests/s"),
            Figure(f"{label}, p50", middle(name, n, "p50_ms"), "ms"),
            Figure(f"{label}, p99", middle(name, n, "p99_ms"), "ms"),
        ]
    return Section(
        title=f"throughput of DCN-V2, {rows} rows a request, {clients} clients",
        baseline="batching off",
        setup={
            "rows": rows,
            "clients": clients,
            "seconds": seconds,
            "rounds": rounds,
            "model": processes.DCN_V2,
        },
        figures=(
            *figures,
            Figure(
                f"batching on / off, {clients} clients",
                middle("on", clients) / middle("off", clients),
                bound=Bound(1.5, "at least"),
                judged=judged,
            ),
            Figure(
                f"batching on, {clients} clients / off, 1 client",
                middle("on", clients) / middle("off", 1),
                bound=Bound(2, "at least"),
                judged=judged,
            ),
            Figure(
                "share of the processor that the load generator took",
                100 * middle("on", clients, "generator_share"),
                "%",
            ),
        ),
        notes=("Medians of the rounds; the load generator runs on the same machine.",),
        details={
            f"{name}/{n}": [dataclasses.asdict(report) for report in reports]
            for (name, n), reports in seen.items()
        },
    )


PARTS: Mapping[str, Part] = {
    "latency": Part(measure_latency, "p50 of one client against a bare call of the signature"),
    "start": Part(measure_start, "start to ready for DCN-V2, after TensorFlow's import"),
    "throughput": Part(measure_throughput, "batching on against off, 32 clients, DCN-V2"),
    "soak": Part(measure_soak, "10 minutes of mixed load with version swaps", in_quick=False),
    "fuzz": Part(measure_fuzz, "100,000 inputs to REST and gRPC", needs=("hypothesis",)),
}

if __name__ == "__main__":
    from benchmarks.runner import main

    raise SystemExit(main("serving"))
