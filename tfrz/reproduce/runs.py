"""Training runs of an experiment: each done once, several at a time, kept in a file."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any


def _plain(key: dict[str, Any]) -> dict[str, Any]:
    return dict(json.loads(json.dumps(key)))


class Runs:
    """Runs that are done, kept in a file of JSON lines so that nothing is computed twice.

    Args:
      path: the file; made if it is not there.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._path.parent.mkdir(parents=True, exist_ok=True)
        lines = path.read_text().splitlines() if path.exists() else []
        self._done = {json.dumps(r["key"], sort_keys=True): r for r in map(json.loads, lines)}

    def get(self, key: dict[str, Any]) -> dict[str, Any] | None:
        """The row of a run that was done, or None."""
        return self._done.get(json.dumps(_plain(key), sort_keys=True))

    def add(self, key: dict[str, Any], row: dict[str, Any]) -> dict[str, Any]:
        """Keeps the row of a run."""
        row = {"key": _plain(key), **row}
        self._done[json.dumps(row["key"], sort_keys=True)] = row
        with self._path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        return row

    def all(
        self,
        train: Callable[[dict[str, Any]], dict[str, Any]],
        keys: Sequence[dict[str, Any]],
        jobs: int,
        say: Callable[[str], None],
    ) -> list[dict[str, Any]]:
        """The rows of `keys`, those that are missing trained first.

        Args:
          train: key to row; a module's function, so that other processes can call it.
          keys: plain values.
          jobs: processes; with one, this process trains.
          say: takes a line when a run is done.
        """
        missing = [key for key in keys if self.get(key) is None]

        def keep(key: dict[str, Any], row: dict[str, Any]) -> None:
            self.add(key, row)
            say(f"{row.get('says', key)}")

        if jobs == 1 or len(missing) < 2:
            for key in missing:
                keep(key, train(key))
        else:
            # Not forked: TensorFlow's threads do not survive a fork.
            context = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(jobs, mp_context=context) as pool:
                waiting = {pool.submit(train, key): key for key in missing}
                for future in as_completed(waiting):
                    keep(waiting[future], future.result())
        found = [self.get(key) for key in keys]
        return [row for row in found if row is not None]
