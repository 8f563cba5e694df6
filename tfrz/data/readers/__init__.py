"""Sources of records by the word of `--data`."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from tfrz.config import did_you_mean
from tfrz.data.readers.base import Reader, Shard
from tfrz.data.records import CorruptLine, check_corrupt
from tfrz.errors import ConfigError, InputError

__all__ = ["Reader", "Shard", "open_source", "read_table"]


def _movielens_1m(path: str, **options: Any) -> Reader:
    from tfrz.data.readers.movielens import MovieLens

    return MovieLens(path, "1m", **options)


def _movielens_100k(path: str, **options: Any) -> Reader:
    from tfrz.data.readers.movielens import MovieLens

    return MovieLens(path, "100k", **options)


def _criteo(path: str, **options: Any) -> Reader:
    from tfrz.data.readers.ctr import ClickLog

    return ClickLog(path, "criteo", **options)


def _avazu(path: str, **options: Any) -> Reader:
    from tfrz.data.readers.ctr import ClickLog

    return ClickLog(path, "avazu", **options)


# A new reader is one more line here.
SOURCES = {
    "movielens-1m": _movielens_1m,
    "movielens-100k": _movielens_100k,
    "criteo": _criteo,
    "avazu": _avazu,
}


def open_source(data: str, features: str | None = None, **options: Any) -> Reader:
    """The reader of `--data`.

    Args:
      data: `simulated`, `NAME:PATH` with a known name, or the path of a CSV, Parquet or TFRecord
        file.
      features: feature spec of such a file.
      options: of the reader (`data.options` of the configuration).

    Raises:
      InputError: an unknown name, a missing path or spec.
      ConfigError: an option that the reader does not have.
    """
    name, colon, path = data.partition(":")
    try:
        if data == "simulated":
            from tfrz.data.readers.simulated import SimulatedClicks

            return SimulatedClicks(**options)
        if name in SOURCES:
            if not path:
                raise InputError(f"--data {data} needs a path: write {name}:PATH")
            return SOURCES[name](path, **options)
        if colon and "/" not in name and "\\" not in name:
            words = (*SOURCES, "simulated")
            raise InputError(f"unknown data source {name!r}{did_you_mean(name, words)}")
        from tfrz.data.readers.tabular import Tabular

        if features is None:
            known = ", ".join(("simulated", *(f"{s}:PATH" for s in SOURCES)))
            raise InputError(
                f"--data {data}: a file of your own needs --features SPEC.yaml; "
                f"known sources are {known}"
            )
        return Tabular(data, features, **options)
    except TypeError as error:
        unknown = str(error).rpartition("argument ")[2]
        raise ConfigError(f"data.options: {name} has no option {unknown}") from error


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
