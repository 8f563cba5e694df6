"""What an experiment is: a run that gives a table, and statements that hold or do not."""

from __future__ import annotations

import dataclasses
import fnmatch
import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tfrz.config import did_you_mean
from tfrz.errors import InputError
from tfrz.zoo import registry


@dataclasses.dataclass(frozen=True)
class Check:
    """A direction that the paper states, and whether it held.

    Attributes:
      statement: in words.
      held: whether it did.
      measured: the figures that it was judged by.
    """

    statement: str
    held: bool
    measured: str


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What an experiment found.

    Attributes:
      columns: of the table.
      rows: of the table; the paper's figures stand in columns of their own.
      checks: what was to hold.
      details: settings and single runs, for the stored file.
    """

    columns: tuple[str, ...]
    rows: list[tuple[Any, ...]]
    checks: list[Check]
    details: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def held(self) -> bool:
        """Whether every check held."""
        return all(check.held for check in self.checks)


@dataclasses.dataclass(frozen=True)
class Context:
    """What an experiment is given.

    Attributes:
      quick: the same checks on less, in a minute or two.
      seed: of everything random.
      data: where the experiment's data set is, if the user said so.
      work: a folder for runs that are resumed when the command is repeated.
      jobs: runs to train at the same time, each in a process of its own, where the experiment can.
      say: takes a line of progress.
    """

    quick: bool
    seed: int
    data: str | None
    work: Path
    say: Callable[[str], None]
    jobs: int = 1


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A paper's experiment.

    Attributes:
      name: `group/experiment`.
      title: one line.
      source: table, figure or section of the paper.
      run: does it.
    """

    name: str
    title: str
    source: str
    run: Callable[[Context], Outcome]


# Experiments of recipes, which apply to every model and so have no row of the registry.
RECIPES = ("tfrz.reproduce.distillation", "tfrz.reproduce.low_rank")


def experiments() -> dict[str, Experiment]:
    """All experiments of the zoo by name; each module lists its own in `EXPERIMENTS`."""
    modules = [m for model in registry.names() for m in registry.get(model).reproduce]
    found = {}
    for module in (*modules, *RECIPES):
        for experiment in importlib.import_module(module).EXPERIMENTS:
            found[experiment.name] = experiment
    return found


def select(patterns: Sequence[str]) -> list[Experiment]:
    """The experiments that names or globs pick, in the zoo's order.

    Raises:
      InputError: a pattern picks none.
    """
    known = experiments()
    for pattern in patterns:
        if not fnmatch.filter(known, pattern):
            raise InputError(f"no experiment is called {pattern!r}{did_you_mean(pattern, known)}")
    return [e for n, e in known.items() if any(fnmatch.fnmatch(n, p) for p in patterns)]


RESULTS = Path(__file__).parent / "results"


def result_file(name: str) -> Path:
    """Where the stored result of an experiment is."""
    return RESULTS / f"{name.replace('/', '.')}.json"
