"""Experiments: a run that fills a table, and statements of the paper that hold or do not."""

from __future__ import annotations

import dataclasses
import fnmatch
import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tfrz.config import did_you_mean
from tfrz.errors import InputError
from tfrz.reproduce.runs import Row, Runs
from tfrz.zoo import registry


@dataclasses.dataclass(frozen=True)
class Check:
    """A statement of the paper, and whether it held.

    Attributes:
      statement: in words.
      held: whether it did; None if the run was too small to tell.
      measured: the figures that it was judged by.
      needs: the sizes of the experiment (`Experiment.full`) that a run must have in full for this
        to be judged.
      reason: why it was not judged.
    """

    statement: str
    held: bool | None
    measured: str
    needs: tuple[str, ...] = ()
    reason: str = ""

    def at(self, size: Mapping[str, Any], full: Mapping[str, Any]) -> Check:
        """This check for a run of some size: not judged where the run lacks what it needs."""
        lacking = [name for name in self.needs if size[name] != full[name]]
        if not lacking:
            return self
        needed, had = (
            ", ".join(f"{name} {_shown(sizes[name])}" for name in lacking) for sizes in (full, size)
        )
        return dataclasses.replace(self, held=None, reason=f"needs {needed}; this run has {had}")

    @property
    def line(self) -> str:
        """The check as a line of text."""
        verdict = {True: "held", False: "NOT held", None: "not judged"}[self.held]
        reason = f"; {self.reason}" if self.reason else ""
        return f"{verdict}: {self.statement} ({self.measured}{reason})"


def _shown(value: Any) -> str:
    if value is None:
        return "unlimited"
    return f"{value:,}" if isinstance(value, int) else str(value)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What an experiment found.

    Attributes:
      columns: of the table.
      rows: of the table; the paper's figures have their own columns.
      checks: the statements that were judged.
      details: settings and single runs, for the stored file.
    """

    columns: tuple[str, ...]
    rows: list[tuple[Any, ...]]
    checks: list[Check]
    details: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def held(self) -> bool:
        """Whether every check that was judged held."""
        return all(check.held is not False for check in self.checks)

    def to_mapping(self) -> dict[str, Any]:
        """Plain values, as they are stored."""
        checks = [
            {"statement": c.statement, "held": c.held, "measured": c.measured}
            | ({"reason": c.reason} if c.reason else {})
            for c in self.checks
        ]
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {**values, "checks": checks}


@dataclasses.dataclass(frozen=True)
class Context:
    """What an experiment gets from the command line.

    Attributes:
      quick: a run of a minute or two, on the sizes of `Experiment.quick`.
      seed: of everything random.
      data: the experiment's data set, if the user named one.
      work: folder of finished runs, which a repeated command reuses.
      say: prints a line of progress.
      jobs: how many runs to train at the same time, each in a separate process.
      size: the sizes of this run by name; set by `Experiment.run`.
      other_lane: the Python of the other lane's environment, if the user named one.
    """

    quick: bool
    seed: int
    data: str | None
    work: Path
    say: Callable[[str], None]
    jobs: int = 1
    size: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    other_lane: str | None = None

    @property
    def seeds(self) -> list[int]:
        """As many seeds as the size `seeds` says, the first of them `seed`."""
        return [self.seed + i for i in range(self.size["seeds"])]

    def path(self, default: str) -> str:
        """Returns the path of the data set.

        Args:
          default: used if the user named none.

        Raises:
          InputError: it does not exist.
        """
        path = self.data or default
        if not Path(path).exists():
            raise InputError(f"{path} does not exist: name the data set with --data PATH")
        return path

    def trained(
        self,
        file: str,
        train: Callable[[dict[str, Any]], Row],
        keys: Sequence[dict[str, Any]],
    ) -> list[Row]:
        """Returns the rows of training runs; those that are done are read from a file.

        Args:
          file: its name in `work`.
          train: maps a key to its row; see `Runs.all`.
          keys: of the runs.
        """
        return Runs(self.work / file).all(train, keys, self.jobs, self.say)


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A paper's experiment.

    Attributes:
      name: `group/experiment`.
      title: one line.
      source: table, figure or section of the paper.
      measure: runs it.
      full: its sizes by name: steps, seeds, rows and the like.
      quick: those that are smaller in a quick run.
    """

    name: str
    title: str
    source: str
    measure: Callable[[Context], Outcome]
    full: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    quick: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def run(self, context: Context) -> Outcome:
        """Runs it at the context's size, and judges what this size can show."""
        size = {**self.full, **(self.quick if context.quick else {})}
        outcome = self.measure(dataclasses.replace(context, size=size))
        checks = [check.at(size, self.full) for check in outcome.checks]
        return dataclasses.replace(outcome, checks=checks)


# Experiments of recipes, which apply to every model and so have no row of the registry.
RECIPES = ("tfrz.reproduce.distillation", "tfrz.reproduce.low_rank")
# Experiments on this package itself.
OWN = ("tfrz.reproduce.lanes",)


def experiments() -> dict[str, Experiment]:
    """All experiments of the zoo by name; each module lists its own in `EXPERIMENTS`."""
    modules = [m for model in registry.names() for m in registry.get(model).reproduce]
    found = {}
    for module in (*modules, *RECIPES, *OWN):
        for experiment in importlib.import_module(module).EXPERIMENTS:
            found[experiment.name] = experiment
    return found


def select(patterns: Sequence[str]) -> list[Experiment]:
    """The experiments that names, groups or globs pick, in the zoo's order.

    Args:
      patterns: `group/experiment`, `group` for all of a group, or globs of them.

    Raises:
      InputError: a pattern picks none.
    """
    known = experiments()
    groups = {name.partition("/")[0] for name in known}
    globs = [f"{pattern}/*" if pattern in groups else pattern for pattern in patterns]
    for glob in globs:
        if not fnmatch.filter(known, glob):
            suggestion = did_you_mean(glob, {*known, *groups})
            raise InputError(f"no experiment is called {glob!r}{suggestion}")
    return [e for n, e in known.items() if any(fnmatch.fnmatch(n, glob) for glob in globs)]


RESULTS = Path(__file__).parent / "results"


def result_file(name: str) -> Path:
    """The file of an experiment's stored result."""
    return RESULTS / f"{name.replace('/', '.')}.json"
