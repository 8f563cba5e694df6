"""Metrics in Prometheus' text format, with the names and buckets of section 11 of the contract.

The standard Prometheus client renames counters, adds HELP lines and does not allow leading colons,
so dashboards made for TF Serving could not read its output.
"""

from __future__ import annotations

import bisect
import dataclasses
import threading


def _exponential(first: float, factor: float, count: int) -> tuple[float, ...]:
    return tuple(first * factor**i for i in range(count))


_TIME = _exponential(10, 1.8, 33)
_QUEUE_TIME = _exponential(100, 1.2, 52)
_EXAMPLES = _exponential(1, 2, 20)


@dataclasses.dataclass(frozen=True)
class Metric:
    """A counter, or a histogram if it has limits.

    Attributes:
      name: in the output.
      labels: names of its labels, in the order of their values.
      limits: upper ends of a histogram's buckets, ascending.
    """

    name: str
    labels: tuple[str, ...] = ()
    limits: tuple[float, ...] = ()


_SERVING = ":tensorflow:serving:"
REQUEST_COUNT = Metric(_SERVING + "request_count", ("model_name", "status"))
REQUEST_LATENCY = Metric(_SERVING + "request_latency", ("model_name", "API", "entrypoint"), _TIME)
RUNTIME_LATENCY = Metric(_SERVING + "runtime_latency", ("model_name", "API", "runtime"), _TIME)
EXAMPLE_COUNTS = Metric(_SERVING + "request_example_counts", ("model",), _EXAMPLES)
EXAMPLE_COUNT_TOTAL = Metric(_SERVING + "request_example_count_total", ("model",))
WARMUP_LATENCY = Metric(_SERVING + "model_warmup_latency", ("model_path", "status"), _TIME)
QUEUING_LATENCY = Metric(
    _SERVING + "batching_session:queuing_latency", ("thread_pool_name",), _QUEUE_TIME
)
WRAPPED_RUN_COUNT = Metric(_SERVING + "batching_session:wrapped_run_count")
LOAD_ATTEMPT_COUNT = Metric(
    ":tensorflow:cc:saved_model:load_attempt_count", ("model_path", "status")
)
LOAD_LATENCY = Metric(":tensorflow:cc:saved_model:load_latency", ("model_path",))


class _Histogram:
    def __init__(self, limits: tuple[float, ...]) -> None:
        self.limits, self.counts, self.sum = limits, [0] * (len(limits) + 1), 0.0

    def add(self, value: float) -> None:
        # A bucket holds the values below its limit, as in TensorFlow.
        self.counts[bisect.bisect_right(self.limits, value)] += 1
        self.sum += value


# Clients can send any model name; this bounds how many of them are counted.
_MAX_SERIES = 10_000


class Metrics:
    """The metrics of a server; thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._values: dict[Metric, dict[tuple[str, ...], float | _Histogram]] = {}

    def count(self, metric: Metric, *labels: str, by: float = 1) -> None:
        """Adds to a counter."""
        with self._lock:
            series = self._values.setdefault(metric, {})
            if labels in series or len(series) < _MAX_SERIES:
                series[labels] = series.get(labels, 0) + by  # type: ignore[operator]

    def observe(self, metric: Metric, *labels: str, value: float) -> None:
        """Adds a value to a histogram; times are in microseconds."""
        with self._lock:
            series = self._values.setdefault(metric, {})
            if labels not in series:
                if len(series) >= _MAX_SERIES:
                    return
                series[labels] = _Histogram(metric.limits)
            series[labels].add(value)  # type: ignore[union-attr]

    def render(self) -> bytes:
        """Returns all series that have a value, as text."""
        lines = []
        with self._lock:
            for metric in sorted(self._values, key=lambda metric: metric.name):
                kind = "histogram" if metric.limits else "counter"
                lines.append(f"# TYPE {metric.name} {kind}")
                for labels, value in self._values[metric].items():
                    pairs = [
                        f'{key}="{_escaped(text)}"'
                        for key, text in zip(metric.labels, labels, strict=True)
                    ]
                    if isinstance(value, _Histogram):
                        lines += _histogram_lines(metric.name, pairs, value)
                    else:
                        lines.append(f"{metric.name}{_braces(pairs)} {value:.15g}")
        return "".join(line + "\n" for line in lines).encode("utf-8", "replace")


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _braces(pairs: list[str]) -> str:
    return "{" + ",".join(pairs) + "}"


def _histogram_lines(name: str, pairs: list[str], histogram: _Histogram) -> list[str]:
    lines, total = [], 0
    limits = [f"{limit:g}" for limit in histogram.limits] + ["+Inf"]
    for limit, count in zip(limits, histogram.counts, strict=True):
        total += count
        bucket = _braces([*pairs, f'le="{limit}"'])
        lines.append(f"{name}_bucket{bucket} {total}")
    lines.append(f"{name}_sum{_braces(pairs)} {histogram.sum:.15g}")
    lines.append(f"{name}_count{_braces(pairs)} {total}")
    return lines
