"""Training runs of an experiment: each runs once, several in parallel, kept in a file."""

from __future__ import annotations

import functools
import itertools
import json
import multiprocessing
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np

Row = dict[str, Any]


def _plain(key: dict[str, Any]) -> dict[str, Any]:
    return dict(json.loads(json.dumps(key)))


def _timed(train: Callable[[dict[str, Any]], Row], key: dict[str, Any]) -> Row:
    """The row of a run, its seconds and device; a function of the module for other processes."""
    from tfrz.reproduce.training import device_name

    started = time.perf_counter()
    row = train(key)
    seconds = round(time.perf_counter() - started, 1)
    says = f"{row.get('says', key)} ({seconds} s)"
    return {**row, "seconds": seconds, "device": device_name(), "says": says}


class Runs:
    """Finished runs, in a file of JSON lines, so that nothing is computed twice.

    Args:
      path: the file, which is created if it does not exist.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._path.parent.mkdir(parents=True, exist_ok=True)
        lines = path.read_text().splitlines() if path.exists() else []
        self._done = {json.dumps(r["key"], sort_keys=True): r for r in map(json.loads, lines)}

    def _get(self, key: dict[str, Any]) -> Row | None:
        return self._done.get(json.dumps(_plain(key), sort_keys=True))

    def _add(self, key: dict[str, Any], row: Row) -> Row:
        row = {"key": _plain(key), **row}
        self._done[json.dumps(row["key"], sort_keys=True)] = row
        with self._path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        return row

    def all(
        self,
        train: Callable[[dict[str, Any]], Row],
        keys: Sequence[dict[str, Any]],
        jobs: int,
        say: Callable[[str], None],
    ) -> list[Row]:
        """Returns the rows of `keys`; trains those that are missing.

        A row with the key `unfinished` is returned, and tried again by a repeated command.

        Args:
          train: maps a key to its row, whose `says` is the line of progress; a module's function,
            so that other processes can call it.
          keys: plain values.
          jobs: processes; with one, this process trains.
          say: takes a line when a run is done.
        """
        missing = [key for key in keys if "unfinished" in (self._get(key) or {"unfinished": ""})]
        timed = functools.partial(_timed, train)

        def keep(key: dict[str, Any], row: Row) -> None:
            say(self._add(key, row)["says"])

        if jobs == 1 or len(missing) < 2:
            for key in missing:
                keep(key, timed(key))
        else:
            # Not forked: TensorFlow's threads do not survive a fork.
            context = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(jobs, mp_context=context) as pool:
                waiting = {pool.submit(timed, key): key for key in missing}
                for future in as_completed(waiting):
                    keep(waiting[future], future.result())
        found = [self._get(key) for key in keys]
        return [row for row in found if row is not None]


def where(rows: Iterable[Row], **key: Any) -> list[Row]:
    """The rows whose keys have these values."""
    return [r for r in rows if all(r["key"].get(name) == value for name, value in key.items())]


def grid(search: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Every combination of the values that are tried for each name."""
    return [dict(zip(search, v, strict=True)) for v in itertools.product(*search.values())]


def spread(values: Sequence[float] | np.ndarray, digits: int = 4) -> str:
    """The standard deviation of several values, empty for one."""
    return f"{np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""


def mean_and_spread(values: Sequence[float] | np.ndarray, digits: int = 4) -> str:
    """The mean of values and, of several, their standard deviation in parentheses."""
    deviation = spread(values, digits)
    return f"{np.mean(values):.{digits}f}" + (f" ({deviation})" if deviation else "")
