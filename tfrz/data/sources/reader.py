"""What a reader of a source is."""

from __future__ import annotations

import abc
import dataclasses
import functools
import hashlib
import inspect
import json
import os
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pyarrow as pa

from tfrz.config import did_you_mean, from_mapping, require
from tfrz.data.sources.files import CorruptLine, Shard, check_corrupt
from tfrz.data.spec import Spec
from tfrz.errors import InputError


class Reader(abc.ABC):
    """A source of records: cut into shards, each read into Arrow batches and corrupt lines.

    Readers are small and can be pickled: Beam sends them to its workers.
    """

    name: str
    record_type = "impression"

    @abc.abstractmethod
    def feature_spec(self) -> Spec:
        """The raw features of the records."""

    @abc.abstractmethod
    def shards(self) -> list[Shard]:
        """Parts that cover the source once.

        Raises:
          InputError: the source is missing, empty or of another format.
        """

    @abc.abstractmethod
    def read(self, shard: Shard) -> Iterator[pa.RecordBatch | CorruptLine]:
        """The records of a shard, columns as `feature_spec` names them, and its corrupt lines."""

    def files(self) -> list[str]:
        """The files that the records come from; a generated source has none."""
        return []

    def fingerprint(self) -> str:
        """Changes when the records may have: by the reader's options and its files' contents.

        Equal in every process; a file is read once for each version of it.
        """
        state = json.dumps([type(self).__name__, vars(self)], default=vars, sort_keys=True)
        digest = hashlib.sha256(state.encode())
        for path in self.files():
            found = os.stat(path)
            # A copy may keep the time of modification, not that of change.
            version = (found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
            digest.update(_contents(path, version))
        return digest.hexdigest()[:32]


@functools.lru_cache(maxsize=1024)
def _contents(path: str, version: tuple[int, ...]) -> bytes:
    """The hash of a file, kept for as long as its version stays."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.digest()


def read_table(
    reader: Reader, max_corrupt_fraction: float = 0.001
) -> tuple[pa.Table, list[CorruptLine]]:
    """All records of a source in memory, and the lines that could not be read.

    Raises:
      InputError: more corrupt lines than tolerated (names the first), or no records at all.
    """
    batches: list[pa.RecordBatch] = []
    corrupt: list[CorruptLine] = []
    for shard in reader.shards():
        for item in reader.read(shard):
            (corrupt if isinstance(item, CorruptLine) else batches).append(item)
    rows = sum(batch.num_rows for batch in batches)
    if corrupt:
        check_corrupt(len(corrupt), rows + len(corrupt), corrupt, max_corrupt_fraction)
    if not rows:
        raise InputError(f"{reader.name} has no records: nothing to read")
    return pa.Table.from_batches(batches), corrupt


def construct(
    source: str, factory: Callable[..., Reader], fixed: Mapping[str, str], options: dict[str, Any]
) -> Reader:
    """Calls the factory of a reader, after a check of the options against its signature.

    Args:
      source: name of the source, for messages.
      factory: a class of readers, or a function that returns a reader.
      fixed: arguments that are no options.
      options: names to values, as YAML gives them.

    Raises:
      ConfigError: an option that the reader does not have, or a value of another type.
    """
    parameters = inspect.signature(factory).parameters.values()
    hints = typing.get_type_hints(factory.__init__ if inspect.isclass(factory) else factory)
    known = {p.name: hints[p.name] for p in parameters if p.name not in fixed}
    others = {p.name for p in parameters if p.kind is p.VAR_KEYWORD}
    fields = [(name, known[name]) for name in options if name in known.keys() - others]
    for name in options if not others else ():
        near = did_you_mean(name, known)
        require(name in known, "data.options", f"{source} has no option {name!r}{near}")
    given = {name: options[name] for name, _ in fields}
    options_class: type = dataclasses.make_dataclass("Options", fields)
    checked = vars(from_mapping(options_class, given, "data.options"))
    return factory(**fixed, **options | checked)


def require_counts(least: int = 1, /, **options: int) -> None:
    """Checks that options are whole numbers of at least `least`.

    Raises:
      ConfigError: names the option.
    """
    for name, value in options.items():
        sound = isinstance(value, int) and value >= least
        require(sound, f"data.options.{name}", f"must be a whole number >= {least}")


def simulated_shards(total: int, step: int) -> list[Shard]:
    """Shards of at most `step` of the `total` units that a simulator draws."""
    return [Shard("simulated", "", s, min(s + step, total)) for s in range(0, total, step)]
