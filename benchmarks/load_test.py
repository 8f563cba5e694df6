"""Load test of a server that speaks TF Serving's protocols: throughput, latencies and errors.

    python -m benchmarks.load_test --target grpc://127.0.0.1:8500/dcn_v2 --request @rows.json
    python -m benchmarks.load_test --target http://127.0.0.1:8501/v1/models/dcn_v2 --clients 32

By default the loop is closed: each of `--clients` sends its next request after the response to the
last one. With `--rate` the loop is open: requests are sent at this rate whatever the server does,
and latencies are measured from the scheduled time of the request.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import dataclasses
import json
import os
import resource
import sys
import time
import urllib.parse
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

# Sends one payload; returns "OK" or the status of the failure.
Send = Callable[[bytes], Awaitable[str]]


@dataclasses.dataclass(frozen=True)
class Report:
    """The result of a run.

    Attributes:
      requests: number of responses, with any status.
      errors: number of responses by status, without OK.
      seconds: wall time.
      per_second: responses with status OK.
      p50_ms, p99_ms, p999_ms, max_ms: latencies of the responses with status OK.
      generator_share: processor time of this process, as a share of all cores.
    """

    requests: int
    errors: dict[str, int]
    seconds: float
    per_second: float
    p50_ms: float
    p99_ms: float
    p999_ms: float
    max_ms: float
    generator_share: float

    def __str__(self) -> str:
        failed = ", ".join(f"{n} {status}" for status, n in sorted(self.errors.items())) or "none"
        return (
            f"{self.requests} requests in {self.seconds:.1f} s: {self.per_second:,.0f} per second, "
            f"p50 {self.p50_ms:.2f} ms, p99 {self.p99_ms:.2f} ms, p99.9 {self.p999_ms:.2f} ms, "
            f"largest {self.max_ms:.2f} ms\nerrors: {failed}\n"
            f"this program took {self.generator_share:.0%} of the processor"
        )


def percentile(values: Sequence[float], share: float) -> float:
    """Returns the smallest of the ascending `values` that a `share` of them do not exceed."""
    if not values:
        return float("nan")
    return values[min(len(values) - 1, max(0, -int(-share * len(values) // 1) - 1))]


def _processor_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


class _Run:
    """Latencies and failures of one run."""

    def __init__(self, send: Send, payloads: Sequence[bytes]) -> None:
        self.send, self.payloads = send, payloads
        self.latencies: list[float] = []
        self.errors: collections.Counter[str] = collections.Counter()
        self._sent = 0

    async def one(self, start: float) -> None:
        payload = self.payloads[self._sent % len(self.payloads)]
        self._sent += 1
        status = await self.send(payload)
        if status == "OK":
            self.latencies.append(time.perf_counter() - start)
        else:
            self.errors[status] += 1

    async def closed(self, clients: int, end: float) -> None:
        async def client() -> None:
            while (now := time.perf_counter()) < end:
                await self.one(now)

        await asyncio.gather(*(client() for _ in range(clients)))

    async def open(self, rate: float, end: float) -> None:
        start, running = time.perf_counter(), set()
        for i in range(int(rate * (end - start))):
            due = start + i / rate
            if (left := due - time.perf_counter()) > 0:
                await asyncio.sleep(left)
            task = asyncio.create_task(self.one(due))
            running.add(task)
            task.add_done_callback(running.discard)
        await asyncio.gather(*running)


async def drive(
    target: str,
    payloads: Sequence[bytes],
    clients: int = 1,
    seconds: float = 10.0,
    rate: float | None = None,
    timeout: float = 30.0,
) -> Report:
    """Sends payloads in turn and measures.

    Args:
      target: `grpc://HOST:PORT/...` or `http://HOST:PORT/v1/models/NAME...`.
      payloads: serialised `PredictRequest`s, or bodies of `:predict`.
      clients: how many at a time, in a closed loop.
      seconds: how long.
      rate: requests a second, in an open loop.
      timeout: seconds that a request may take.
    """
    opened = _grpc if target.startswith("grpc://") else _http
    send, close = await opened(target, clients, timeout)
    run = _Run(send, payloads)
    start, used = time.perf_counter(), _processor_seconds()
    if rate:
        await run.open(rate, start + seconds)
    else:
        await run.closed(clients, start + seconds)
    wall, used = time.perf_counter() - start, _processor_seconds() - used
    await close()
    ordered = sorted(run.latencies)
    p50, p99, p999 = (1e3 * percentile(ordered, share) for share in (0.5, 0.99, 0.999))
    return Report(
        requests=len(ordered) + sum(run.errors.values()),
        errors=dict(run.errors),
        seconds=wall,
        per_second=len(ordered) / wall,
        p50_ms=p50,
        p99_ms=p99,
        p999_ms=p999,
        max_ms=1e3 * ordered[-1] if ordered else float("nan"),
        generator_share=used / wall / (os.cpu_count() or 1),
    )


Opened = tuple[Send, Callable[[], Awaitable[None]]]


async def _grpc(target: str, clients: int, timeout: float) -> Opened:
    import grpc

    limit = [
        ("grpc.max_receive_message_length", 2**31 - 1),
        ("grpc.max_send_message_length", 2**31 - 1),
    ]
    channel = grpc.aio.insecure_channel(urllib.parse.urlsplit(target).netloc, options=limit)
    # Bytes in, bytes out: keeps the cost of this program low.
    call = channel.unary_unary("/tensorflow.serving.PredictionService/Predict")

    async def send(payload: bytes) -> str:
        try:
            await call(payload, timeout=timeout)
        except grpc.aio.AioRpcError as error:
            return str(error.code().name)
        return "OK"

    async def close() -> None:
        await channel.close()

    return send, close


async def _http(target: str, clients: int, timeout: float) -> Opened:
    import aiohttp

    session = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0),
        timeout=aiohttp.ClientTimeout(total=timeout),
    )
    url = f"{target}:predict"

    async def send(payload: bytes) -> str:
        try:
            async with session.post(url, data=payload) as answer:
                await answer.read()
                return "OK" if answer.status == 200 else f"HTTP {answer.status}"
        except (TimeoutError, aiohttp.ClientError) as error:
            return type(error).__name__

    return send, session.close


def payloads_of(target: str, documents: Sequence[dict]) -> list[bytes]:
    """Encodes requests of the REST API as the bytes that are sent to `target`."""
    if not target.startswith("grpc://"):
        return [json.dumps(document).encode() for document in documents]
    from tfrz.serving.client import GrpcClient

    with GrpcClient(target) as client:
        return [client.encode(document)[0].SerializeToString() for document in documents]


def main() -> int:
    """Runs from the command line; exit status 1 if a request failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--target",
        required=True,
        help="grpc://HOST:PORT/NAME[/versions/N] or http://HOST:PORT/v1/models/NAME[/versions/N]",
    )
    parser.add_argument(
        "--request",
        required=True,
        help="JSON in the format of TF Serving's REST API, or @FILE with one per line",
    )
    parser.add_argument("--clients", type=int, default=1, help="number of parallel requests (1)")
    parser.add_argument("--rate", type=float, help="open loop with this many requests per second")
    parser.add_argument("--seconds", type=float, default=10.0, help="duration (10)")
    parser.add_argument("--timeout", type=float, default=30.0, help="seconds per request (30)")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    args = parser.parse_args()
    from tfrz.errors import InputError

    try:
        documents = _documents(args.request)
        payloads = payloads_of(args.target, documents)
    except InputError as error:
        print(f"load_test: {error}", file=sys.stderr)
        return 2
    report = asyncio.run(
        drive(args.target, payloads, args.clients, args.seconds, args.rate, args.timeout)
    )
    print(json.dumps(dataclasses.asdict(report), indent=1) if args.json else report)
    return 1 if report.errors else 0


def _documents(word: str) -> list[dict]:
    from tfrz.errors import InputError

    try:
        text = Path(word[1:]).read_text() if word.startswith("@") else word
        try:
            return [json.loads(text)]
        except ValueError:
            return [json.loads(line) for line in text.splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise InputError(f"--request {word}: {error}") from error


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    raise SystemExit(main())
