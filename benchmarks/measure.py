"""Measuring: paired interleaved timings, ratios, and the peak memory of a fresh process.

A shared machine drifts by tens of percent within a minute. So candidates are never timed one
after the other: every round runs each of them once, in an order that rotates, and what is
reported is the ratio to a named baseline of the same run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Candidate = Callable[[], object]


@dataclasses.dataclass(frozen=True)
class Timing:
    """The times of one candidate, a round each.

    Attributes:
      seconds: in the order of the rounds.
    """

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle time."""
        return statistics.median(self.seconds)

    @property
    def minimum(self) -> float:
        """The shortest time: what the machine can do when nothing disturbs it."""
        return min(self.seconds)

    @property
    def interquartile_range(self) -> float:
        """The width of the middle half; 0 for a single round."""
        if len(self.seconds) < 2:
            return 0.0
        lower, _, upper = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return upper - lower


@dataclasses.dataclass(frozen=True)
class Ratio:
    """One candidate against another of the same run; under 1 the candidate is faster.

    Attributes:
      of_medians: the quotient of the two medians.
      of_pairs: the median over the rounds of the quotient within the round.
    """

    of_medians: float
    of_pairs: float


@dataclasses.dataclass(frozen=True)
class PairedTimings:
    """The timings of candidates that took turns.

    Attributes:
      timings: by the candidate's name.
    """

    timings: Mapping[str, Timing]

    def __getitem__(self, name: str) -> Timing:
        return self.timings[name]

    def ratio(self, name: str, baseline: str) -> Ratio:
        """The time of `name` over the time of `baseline`."""
        ours, theirs = self.timings[name], self.timings[baseline]
        pairs = [a / b for a, b in zip(ours.seconds, theirs.seconds, strict=True)]
        return Ratio(ours.median / theirs.median, statistics.median(pairs))

    def summary(self, baseline: str) -> dict[str, dict[str, float]]:
        """Plain numbers for a report: milliseconds, and the ratios to `baseline`."""
        rows = {}
        for name, timing in self.timings.items():
            ratio = self.ratio(name, baseline)
            rows[name] = {
                "median_ms": 1e3 * timing.median,
                "minimum_ms": 1e3 * timing.minimum,
                "interquartile_range_ms": 1e3 * timing.interquartile_range,
                "rounds": len(timing.seconds),
                "ratio_of_medians": ratio.of_medians,
                "ratio_of_pairs": ratio.of_pairs,
            }
        return rows


def time_paired(
    candidates: Mapping[str, Candidate],
    rounds: int,
    warm_up: int = 2,
    clock: Callable[[], float] = time.perf_counter,
) -> PairedTimings:
    """Times candidates in turns.

    Args:
      candidates: functions of no arguments that return when their work is done, device work
        included.
      rounds: how often each is timed.
      warm_up: rounds before those, not counted (tracing, compilation, caches).
      clock: gives seconds.

    Returns:
      A timing of `rounds` times for each candidate.
    """
    names = list(candidates)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    collecting = gc.isenabled()
    gc.disable()
    try:
        for number in range(-warm_up, rounds):
            # Each round starts with another candidate: none always follows the same neighbour,
            # whose leftovers in the caches and whose heat it would inherit.
            start = number % len(names)
            for name in names[start:] + names[:start]:
                begin = clock()
                candidates[name]()
                elapsed = clock() - begin
                if number >= 0:
                    seconds[name].append(elapsed)
            gc.collect(0)
    finally:
        if collecting:
            gc.enable()
    return PairedTimings({name: Timing(tuple(times)) for name, times in seconds.items()})


# Leaves without the interpreter's shutdown, in which TensorFlow and Beam complain at length.
_CHILD = """
import importlib, json, os, sys, traceback
status = 1
try:
    module, name = sys.argv[1].split(":")
    result = getattr(importlib.import_module(module), name)(**json.loads(sys.argv[2]))
    print("\\n" + json.dumps(result))
    status = 0
except BaseException:
    traceback.print_exc()
sys.stdout.flush()
sys.stderr.flush()
os._exit(status)
"""


def in_fresh_process(target: str, **arguments: Any) -> Any:
    """Calls `module:function` with JSON arguments in a new interpreter and returns its result.

    Raises:
      RuntimeError: the process failed; the message has the end of its standard error.
    """
    root = Path(__file__).resolve().parents[1]
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    environment["PYTHONPATH"] = os.pathsep.join(
        filter(None, (str(root), environment.get("PYTHONPATH")))
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _CHILD, target, json.dumps(arguments)],
        capture_output=True,
        text=True,
        env=environment,
    )
    if done.returncode:
        raise RuntimeError(f"{target} failed in its own process: {done.stderr.strip()[-1500:]}")
    return json.loads(done.stdout.rstrip().rsplit("\n", 1)[-1])


def _resident(field: str) -> int | None:
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(field):
                return 1024 * int(line.split()[1])
    except OSError:
        pass
    return None


def resident_bytes() -> int:
    """The memory that this process has resident now (on Linux; elsewhere at most so far)."""
    return _resident("VmRSS:") or peak_resident_bytes()


def peak_resident_bytes() -> int:
    """The most memory that this process ever had resident."""
    # Not `ru_maxrss` on Linux: a child inherits that of the process which forked it.
    peak = _resident("VmHWM:")
    if peak is not None:
        return peak
    import resource

    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else 1024 * used


def forget_peak_resident_bytes() -> None:
    """Resets `peak_resident_bytes` to the memory resident now, if Linux allows it."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
