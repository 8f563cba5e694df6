"""Mixed load at half the peak while versions change: counts failures and memory growth."""

from __future__ import annotations

import asyncio
import collections
import json
import random
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import load_test
from benchmarks import serving_processes as processes
from benchmarks.report import Bound, Figure, Section
from benchmarks.runner import Options

_SWAP_SECONDS = 20.0
_MALFORMED = 0.05
# What is wrong on purpose, and must be answered as the interface says.
_BAD_BODIES = (
    b"",
    b"{",
    b'{"instances": ["a"]}',
    b'{"inputs": {"z": 1.0}}',
    b'{"instances": [[1.0], 2.0]}',
    b"[" * 5000,
    b'{"signature_name": "none", "instances": [1.0]}',
)
_BAD_MESSAGES = (b"\xff\xff\xff", b"", b"\x0a\x03\x0a\x01m")


class _Counts:
    def __init__(self) -> None:
        self.good: collections.Counter[str] = collections.Counter()
        self.bad: collections.Counter[str] = collections.Counter()
        self.latencies: list[float] = []


async def _load(server: Any, seconds: float, rate: float | None, seed: int) -> _Counts:
    """Half gRPC, half HTTP, one in twenty malformed; closed loop of 8 clients without a rate."""
    import aiohttp
    import grpc

    from tfrz.serving.client import PREDICT

    counts, generator = _Counts(), random.Random(seed)
    document = {"instances": [0.0] * 8}
    (payload,) = load_test.payloads_of(server.grpc("m"), [document])
    body = json.dumps(document).encode()
    url = f"http://127.0.0.1:{server.rest_port}/v1/models/m:predict"
    channel = grpc.aio.insecure_channel(f"127.0.0.1:{server.port}")
    call = channel.unary_unary(PREDICT)
    session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))

    async def over_grpc(data: bytes) -> str:
        try:
            await call(data, timeout=30)
            return "OK"
        except grpc.aio.AioRpcError as error:
            return str(error.code().name)

    async def over_http(data: bytes) -> str:
        try:
            async with session.post(url, data=data) as answer:
                await answer.read()
                return "OK" if answer.status == 200 else f"HTTP {answer.status}"
        except aiohttp.ClientError as error:
            return type(error).__name__

    async def one(due: float) -> None:
        malformed, http = generator.random() < _MALFORMED, generator.random() < 0.5
        if malformed:
            data = generator.choice(_BAD_BODIES if http else _BAD_MESSAGES)
            counts.bad[await (over_http if http else over_grpc)(data)] += 1
            return
        status = await (over_http(body) if http else over_grpc(payload))
        counts.good[status] += 1
        counts.latencies.append(time.perf_counter() - due)

    end = time.perf_counter() + seconds
    if rate is None:

        async def client() -> None:
            while (now := time.perf_counter()) < end:
                await one(now)

        await asyncio.gather(*(client() for _ in range(8)))
    else:
        start, running, sent = time.perf_counter(), set(), 0
        while (due := start + sent / rate) < end:
            if (left := due - time.perf_counter()) > 0:
                await asyncio.sleep(left)
            task = asyncio.create_task(one(due))
            running.add(task)
            task.add_done_callback(running.discard)
            sent += 1
        await asyncio.gather(*running)
    await session.close()
    await channel.close()
    return counts


async def _swap(base: Path, made: Path, seconds: float) -> int:
    """Publishes a version every 20 s and removes the one before the last; returns their number."""
    end, number = time.perf_counter() + seconds, 1
    while time.perf_counter() + _SWAP_SECONDS < end:
        await asyncio.sleep(_SWAP_SECONDS)
        number += 1
        beside = base.parent / f"making-{number}"
        shutil.copytree(made, beside)
        beside.rename(base / str(number))
        shutil.rmtree(base / str(number - 2), ignore_errors=True)
    return number - 1


async def _watch(server: Any, seconds: float) -> list[tuple[float, int]]:
    start, seen = time.perf_counter(), []
    while (now := time.perf_counter() - start) < seconds:
        seen.append((now, server.resident_bytes()))
        await asyncio.sleep(1)
    return seen


def measure_soak(options: Options) -> Section:
    """The server under a mixed load of half its peak."""
    seconds, settle = (50.0, 10.0) if options.quick else (600.0, 60.0)
    with tempfile.TemporaryDirectory(prefix="tfrz-bench-") as folder:
        base, made = Path(folder) / "m", Path(folder) / "made"
        processes.save_half_plus(2.0, made)
        shutil.copytree(made, base / "1")
        flags = (
            f"--model_base_path={base}",
            "--model_name=m",
            "--enable_batching",
            "--grpc_max_threads=64",
            "--rest_api_num_threads=16",
            "--file_system_poll_wait_seconds=1",
        )
        with processes.serving(flags) as (server,):
            first = asyncio.run(_load(server, 5.0, None, options.seed))
            peak = (first.good["OK"] + sum(first.bad.values())) / 5.0

            async def everything() -> tuple[_Counts, int, list[tuple[float, int]]]:
                return await asyncio.gather(
                    _load(server, seconds, peak / 2, options.seed + 1),
                    _swap(base, made, seconds),
                    _watch(server, seconds),
                )

            counts, swaps, memory = asyncio.run(everything())
    kept = [size for at, size in memory if at >= settle]
    # Memory after the first minute, smoothed over ten seconds, against its own first value.
    smooth = [statistics.fmean(kept[i : i + 10]) for i in range(0, len(kept) - 9, 10)]
    drift = max(abs(size / smooth[0] - 1) for size in smooth)
    failed = sum(n for status, n in counts.good.items() if status != "OK")
    unexpected = sum(
        n
        for status, n in counts.bad.items()
        if status not in ("HTTP 400", "INVALID_ARGUMENT", "INTERNAL")
    )
    ordered = sorted(counts.latencies)
    percentile = load_test.percentile
    return Section(
        title=f"{seconds / 60:.3g} minutes at half of peak, a version every {_SWAP_SECONDS:g} s",
        setup={"seconds": seconds, "malformed": _MALFORMED, "seed": options.seed},
        figures=(
            Figure("peak", peak, "requests/s"),
            Figure("well-formed requests answered", counts.good["OK"], ""),
            Figure("errors on well-formed requests", failed, "", Bound(0, "at most")),
            Figure("malformed requests", sum(counts.bad.values()), ""),
            Figure("of which with an unexpected status", unexpected, "", Bound(0, "at most")),
            Figure("version swaps", swaps, ""),
            Figure("p50", 1e3 * percentile(ordered, 0.5), "ms"),
            Figure("p99", 1e3 * percentile(ordered, 0.99), "ms"),
            Figure("p99.9", 1e3 * percentile(ordered, 0.999), "ms"),
            Figure("memory after the first minute", smooth[0] / 2**20, "MiB"),
            Figure("memory at the end", smooth[-1] / 2**20, "MiB"),
            Figure(
                "largest drift of memory after the first minute",
                100 * drift,
                "%",
                Bound(5, "at most"),
                judged=not options.quick,
            ),
        ),
        notes=("Latencies count from the time at which a request was due.",),
        details={
            "statuses of well-formed requests": dict(counts.good),
            "statuses of malformed requests": dict(counts.bad),
            "resident MiB, every ten seconds": [round(s / 2**20, 1) for s in smooth],
        },
    )
