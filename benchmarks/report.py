"""Reports: figures with their bounds, as plain values for JSON and as text."""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import platform
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

HELD, NOT_HELD, NOT_JUDGED = "held", "not held", "not judged"


@dataclasses.dataclass(frozen=True)
class Bound:
    """What a figure must reach.

    Attributes:
      limit: the number.
      direction: on which side of it the figure must be.
    """

    limit: float
    direction: Literal["at most", "at least", "below"]

    def holds(self, value: float) -> bool:
        """Whether `value` is within the bound; NaN never is."""
        if self.direction == "at most":
            return value <= self.limit
        if self.direction == "at least":
            return value >= self.limit
        return value < self.limit

    def __str__(self) -> str:
        sign = {"at most": "<=", "at least": ">=", "below": "<"}[self.direction]
        return f"{sign} {self.limit:g}"


@dataclasses.dataclass(frozen=True)
class Figure:
    """One number of a report.

    Attributes:
      name: what was measured, and against what.
      value: the number.
      unit: "x" for a ratio, "%", or a unit.
      bound: what it must reach, if anything.
      judged: whether the bound is meant for this run (machine and sizes).
    """

    name: str
    value: float
    unit: str = "x"
    bound: Bound | None = None
    judged: bool = True

    @property
    def verdict(self) -> str | None:
        """ "held", "not held", "not judged", or None where there is no bound."""
        if self.bound is None:
            return None
        if not self.judged:
            return NOT_JUDGED
        return HELD if self.bound.holds(self.value) else NOT_HELD

    def to_mapping(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "name": self.name,
            "value": self.value,
            "unit": self.unit,
            "bound": None if self.bound is None else str(self.bound),
            "verdict": self.verdict,
        }


@dataclasses.dataclass(frozen=True)
class Section:
    """The outcome of one part of a suite.

    Attributes:
      title: what was measured, in one line.
      baseline: the candidate that ratios of `timings` refer to.
      setup: sizes and settings.
      timings: `PairedTimings.summary`, by candidate.
      figures: the numbers to read, with their bounds.
      notes: context for readers.
      details: further plain values (curves, say).
    """

    title: str
    baseline: str = ""
    setup: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    timings: Mapping[str, Mapping[str, float]] = dataclasses.field(default_factory=dict)
    figures: tuple[Figure, ...] = ()
    notes: tuple[str, ...] = ()
    details: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def to_mapping(self) -> dict[str, Any]:
        """Plain values."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {**values, "figures": [f.to_mapping() for f in self.figures]}


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return " ".join(line.partition(":")[2].split())
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _cpu_features() -> list[str]:
    """Instruction sets that determine the speed of matrix products."""
    try:
        flags = re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        return []
    wanted = {"avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_tile"}
    return sorted(wanted & set(flags.group(1).split())) if flags else []


def describe_machine() -> dict[str, Any]:
    """CPU, cores and accelerator of this machine; no host name."""
    import tensorflow as tf

    gpus = [
        tf.config.experimental.get_device_details(gpu).get("device_name", "GPU")
        for gpu in tf.config.list_physical_devices("GPU")
    ]
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "cpu_features": _cpu_features(),
        "gpus": gpus,
    }


def machine_slug(machine: Mapping[str, Any]) -> str:
    """A file name for a machine: `amd-epyc-2-cores`."""
    words = [machine["cpu"], f"{machine['cores']} cores", *machine["gpus"]]
    text = re.sub(r"\((r|tm|c)\)|\bcpu\b|@.*?ghz", " ", " ".join(words).lower())
    return re.sub(r"[^a-z0-9]+", "-", text).strip("-")


def _commit() -> str | None:
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
        )
    except OSError:
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def stamp() -> dict[str, Any]:
    """Time, code version and load of a part, since parts can be re-run separately."""
    return {
        "measured_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "load_average_before": [round(x, 2) for x in os.getloadavg()],
    }


def versions() -> dict[str, str]:
    """Versions of the libraries that determine the speed."""
    import keras
    import numpy as np
    import tensorflow as tf

    return {
        "python": platform.python_version(),
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "numpy": np.__version__,
    }


def merge_reports(old: Mapping[str, Any] | None, new: Mapping[str, Any]) -> dict[str, Any]:
    """`new`, with the parts that only `old` has: a part that was skipped keeps its last result."""
    parts = dict(old.get("parts", {})) if old else {}
    for name, part in new["parts"].items():
        if "skipped" not in part or name not in parts:
            parts[name] = part
    return {**new, "parts": parts}


def read_report(path: Path) -> dict[str, Any] | None:
    """Reads the report in a file; None if there is none."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def broken_bounds(report: Mapping[str, Any]) -> list[str]:
    """The names of all figures whose bound was judged and not held."""
    return [
        figure["name"]
        for part in report["parts"].values()
        for figure in part.get("figures", ())
        if figure["verdict"] == NOT_HELD
    ]


def _table(rows: list[tuple[str, ...]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for number, row in enumerate(rows):
        # Words to the left, numbers to the right.
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  " + "  ".join(cells).rstrip())
        if number == 0:
            lines.append("  " + "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def _number(value: float) -> str:
    if value != value:
        return "nan"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"


def part_as_text(name: str, part: Mapping[str, Any]) -> str:
    """Formats a part of a report as text."""
    if "skipped" in part:
        return f"{name}: skipped: {part['skipped']}"
    lines = [f"{name}: {part['title']}"]
    if part["timings"]:
        head = ("", "median ms", "min ms", "IQR ms", f"x {part['baseline']}", "x pairs")
        rows = [
            (
                candidate,
                f"{t['median_ms']:.2f}",
                f"{t['minimum_ms']:.2f}",
                f"{t['interquartile_range_ms']:.2f}",
                f"{t['ratio_of_medians']:.3f}",
                f"{t['ratio_of_pairs']:.3f}",
            )
            for candidate, t in part["timings"].items()
        ]
        lines.append(_table([head, *rows]))
    if part["figures"]:
        rows = [
            (f["name"], f"{_number(f['value'])} {f['unit']}", f["bound"] or "", f["verdict"] or "")
            for f in part["figures"]
        ]
        lines.append(_table([("", "value", "bound", "verdict"), *rows]))
    lines += [f"  {note}" for note in part["notes"]]
    return "\n".join(lines)
