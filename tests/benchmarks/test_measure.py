"""The measuring module, on a clock that the tests wind themselves."""

from __future__ import annotations

import os
import sys

import pytest

from benchmarks.measure import (
    PairedTimings,
    Timing,
    forget_peak_resident_bytes,
    in_fresh_process,
    peak_resident_bytes,
    resident_bytes,
    time_paired,
)


class Clock:
    """Time that passes only when a candidate works."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def work(self, log: list[str], name: str, *seconds: float):
        """A candidate whose call number i takes seconds[i], and the last ever after."""
        calls = [0]

        def candidate() -> None:
            log.append(name)
            self.now += seconds[min(calls[0], len(seconds) - 1)]
            calls[0] += 1

        return candidate


def test_candidates_take_turns_and_each_round_starts_with_another() -> None:
    clock, log = Clock(), []
    candidates = {name: clock.work(log, name, 1.0) for name in "abc"}
    time_paired(candidates, rounds=3, warm_up=0, clock=clock)
    assert log == list("abcbcacab")


def test_warm_up_rounds_are_run_but_not_counted() -> None:
    clock, log = Clock(), []
    timings = time_paired({"a": clock.work(log, "a", 100.0, 100.0, 1.0)}, 3, 2, clock)
    assert len(log) == 5
    assert timings["a"].seconds == (1.0, 1.0, 1.0)


def test_statistics_of_a_timing() -> None:
    timing = Timing((5.0, 1.0, 2.0, 4.0, 3.0))
    assert timing.median == 3.0
    assert timing.minimum == 1.0
    assert timing.interquartile_range == 2.0
    assert Timing((1.0,)).interquartile_range == 0.0


def test_the_ratio_of_pairs_ignores_a_drift_that_the_ratio_of_medians_sees() -> None:
    """Both get slower by the round; "a" always takes half of "b" but for one disturbed round."""
    timings = PairedTimings(
        {"a": Timing((1.0, 2.0, 40.0, 8.0)), "b": Timing((2.0, 4.0, 8.0, 16.0))}
    )
    ratio = timings.ratio("a", "b")
    assert ratio.of_pairs == 0.5
    assert ratio.of_medians == pytest.approx(5.0 / 6.0)


def test_summary_is_in_milliseconds_against_the_baseline() -> None:
    timings = PairedTimings({"a": Timing((0.001,)), "b": Timing((0.004,))})
    row = timings.summary("b")["a"]
    assert row["median_ms"] == pytest.approx(1.0)
    assert row["ratio_of_medians"] == row["ratio_of_pairs"] == 0.25


def test_the_garbage_collector_is_on_again_afterwards() -> None:
    import gc

    def fail() -> None:
        raise ValueError("broken candidate")

    with pytest.raises(ValueError, match="broken candidate"):
        time_paired({"a": fail}, 1)
    assert gc.isenabled()


def test_a_fresh_process_gives_its_result_back() -> None:
    assert in_fresh_process("os:getpid") != os.getpid()
    assert in_fresh_process("json:loads", s='{"a": [1]}') == {"a": [1]}


def test_a_failing_process_says_why() -> None:
    with pytest.raises(RuntimeError, match="JSONDecodeError"):
        in_fresh_process("json:loads", s="{")


def child_memory(mebibytes: int) -> list[int]:
    """Resident before, at most while so much is held, and after the peak was forgotten."""
    before = resident_bytes()
    held = b"x" * (mebibytes << 20)
    size = len(held)
    del held
    peak = peak_resident_bytes()
    forget_peak_resident_bytes()
    return [before, peak, peak_resident_bytes(), size]


def test_the_peak_of_a_fresh_process_is_its_own() -> None:
    """Not what the parent once held, which Linux hands down in `ru_maxrss`."""
    parents = b"x" * (600 << 20)
    before, peak, forgotten, size = in_fresh_process(
        "tests.benchmarks.test_measure:child_memory", mebibytes=200
    )
    assert size == 200 << 20
    assert 150 << 20 < peak - before < 400 << 20
    assert len(parents) == 600 << 20
    if sys.platform == "linux":
        assert forgotten < peak
