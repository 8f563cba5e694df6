"""The interface of readers, and helpers to construct and run them."""

from __future__ import annotations

import abc
import dataclasses
import hashlib
import inspect
import json
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import pyarrow as pa

from tfrz.config import did_you_mean, from_mapping, require
from tfrz.data.sources.files import CorruptLine, CorruptLines, Shard
from tfrz.data.sources.locations import version_of
from tfrz.data.spec import Spec


class Reader(abc.ABC):
    """Reads a source of records in shards, as Arrow batches and corrupt lines.

    Columns of impressions are lists (`list<binary>`, `list<int64>`, `list<float>`); an empty list
    is a missing value. Readers can be pickled, because Beam sends them to its workers.
    """

    name: str
    record_type = "impression"

    @abc.abstractmethod
    def feature_spec(self) -> Spec:
        """Returns the spec of the records."""

    @abc.abstractmethod
    def shards(self) -> list[Shard]:
        """Returns parts that cover the source once.

        Raises:
          InputError: The source is missing, empty or has the wrong format.
        """

    def parts(self) -> list[Shard]:
        """Returns shards to be read one after the other, which are found faster."""
        return self.shards()

    @abc.abstractmethod
    def read(self, shard: Shard) -> Iterator[pa.RecordBatch | CorruptLine]:
        """Yields the records of a shard, with the columns of the spec, and its corrupt lines."""

    def files(self) -> list[str]:
        """Returns the files that the records come from; simulated sources have none."""
        return []

    def fingerprint(self) -> str:
        """Returns a hash of the reader's options and the contents of its files.

        It is the same in every process. Each version of a file is read only once per process; of
        files beyond 256 MiB, samples are.
        """
        state = json.dumps([type(self).__name__, vars(self)], default=vars, sort_keys=True)
        return self._hashed([state, *(version_of(path) for path in self.files())])

    @staticmethod
    def _hashed(parts: Iterable[str]) -> str:
        digest = hashlib.sha256()
        for part in parts:
            digest.update(part.encode())
        return digest.hexdigest()[:32]

    def with_dictionaries(self) -> Reader:
        """Returns a reader of the same records whose texts may come as dictionaries.

        They are faster to read and to encode. The columns of impressions are then lists of
        `dictionary<int32, binary>` where the source has them so.
        """
        return self

    def batches(self, corrupt: CorruptLines) -> Iterator[pa.RecordBatch]:
        """Yields the records of all shards, and gathers the corrupt lines."""
        for shard in self.parts():
            for item in self.read(shard):
                if isinstance(item, CorruptLine):
                    corrupt.append(item)
                else:
                    corrupt.rows += item.num_rows
                    yield item


def read_table(
    reader: Reader, max_corrupt_fraction: float = 0.001
) -> tuple[pa.Table, CorruptLines]:
    """Reads all records of a source into memory; also returns the corrupt lines.

    Raises:
      InputError: Too many lines are corrupt, or there are no records.
    """
    corrupt = CorruptLines()
    batches = list(reader.batches(corrupt))
    corrupt.check(reader.name, max_corrupt_fraction)
    return pa.Table.from_batches(batches), corrupt


def construct(
    source: str, factory: Callable[..., Reader], fixed: Mapping[str, str], options: dict[str, Any]
) -> Reader:
    """Constructs a reader after checking the options against its signature.

    Args:
      source: Name of the source, for messages.
      factory: A class of readers, or a function that returns a reader.
      fixed: Arguments that are not options.
      options: Maps names to values, as read from YAML.

    Raises:
      ConfigError: The reader has no such option, or its value has the wrong type.
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
      ConfigError: An option is not.
    """
    for name, value in options.items():
        sound = isinstance(value, int) and value >= least
        require(sound, f"data.options.{name}", f"must be a whole number >= {least}")


def simulated_shards(total: int, step: int) -> list[Shard]:
    """Returns shards of at most `step` of the `total` units of a simulator."""
    return [Shard("simulated", "", s, min(s + step, total)) for s in range(0, total, step)]
