"""Sources of records by the word of `--data`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyarrow as pa

from tfrz.config import did_you_mean, require
from tfrz.data.readers.base import Reader, Shard
from tfrz.data.records import CorruptLine, check_corrupt
from tfrz.errors import ConfigError, InputError

# A type of record to the function that opens a path for it.
Source = dict[str, Callable[..., Reader]]

__all__ = ["Reader", "Shard", "open_source", "read_table"]


def _simulated_clicks(path: str, **options: Any) -> Reader:
    from tfrz.data.readers.simulated import SimulatedClicks

    return SimulatedClicks(**options)


def _simulated_interactions(path: str, world: str = "context_switch", **options: Any) -> Reader:
    from tfrz.data.readers.interactions import SimulatedInteractions, SimulatedInterests

    worlds = {"context_switch": SimulatedInteractions, "interests": SimulatedInterests}
    require(world in worlds, "data.options.world", f"must be one of {', '.join(worlds)}")
    return worlds[world](**options)


def _simulated_actions(path: str, **options: Any) -> Reader:
    from tfrz.data.readers.logs import SimulatedActions

    return SimulatedActions(**options)


def _open_bandit(path: str, **options: Any) -> Reader:
    from tfrz.data.readers.logs import OpenBandit

    return OpenBandit(path, **options)


def _simulated_timelines(path: str, **options: Any) -> Reader:
    from tfrz.data.readers.timelines import SimulatedTimelines

    return SimulatedTimelines(**options)


def _simulated_documents(path: str, **options: Any) -> Reader:
    from tfrz.data.readers.documents import SimulatedDocuments

    return SimulatedDocuments(**options)


def _letor(path: str, **options: Any) -> Reader:
    from tfrz.data.readers.documents import Letor

    return Letor(path, **options)


def _movielens(release: str) -> Source:
    def impressions(path: str, **options: Any) -> Reader:
        from tfrz.data.readers.movielens import MovieLens

        return MovieLens(path, release, **options)

    def histories(path: str, **options: Any) -> Reader:
        from tfrz.data.readers.interactions import MovieLensInteractions

        return MovieLensInteractions(path, release, **options)

    def actions(path: str, **options: Any) -> Reader:
        from tfrz.data.readers.logs import MovieLensActions

        return MovieLensActions(path, release, **options)

    def timelines(path: str, **options: Any) -> Reader:
        from tfrz.data.readers.timelines import MovieLensTimelines

        return MovieLensTimelines(path, release, **options)

    return {
        "impression": impressions,
        "history": histories,
        "logged_action": actions,
        "timeline": timelines,
    }


def _click_log(name: str) -> Source:
    def impressions(path: str, **options: Any) -> Reader:
        from tfrz.data.readers.ctr import ClickLog

        return ClickLog(path, name, **options)

    return {"impression": impressions}


def _interactions(name: str) -> Source:
    def histories(path: str, **options: Any) -> Reader:
        from tfrz.data.readers import interactions

        return getattr(interactions, name)(path, **options)

    return {"history": histories}


def _timelines(name: str) -> Source:
    def timelines(path: str, **options: Any) -> Reader:
        from tfrz.data.readers import timelines

        return getattr(timelines, name)(path, **options)

    return {"timeline": timelines}


# A new source is one more line here: its name, and a reader for each type of record it can give.
SOURCES: dict[str, Source] = {
    "simulated": {
        "impression": _simulated_clicks,
        "history": _simulated_interactions,
        "list": _simulated_documents,
        "logged_action": _simulated_actions,
        "timeline": _simulated_timelines,
    },
    "obd": {"logged_action": _open_bandit},
    "movielens-1m": _movielens("1m"),
    "movielens-100k": _movielens("100k"),
    "criteo": _click_log("criteo"),
    "avazu": _click_log("avazu"),
    "sessions": _interactions("sessions"),
    "amazon-seq": _interactions("AmazonSequences"),
    "gowalla": _interactions("Gowalla"),
    "completejourney": _interactions("CompleteJourney") | _timelines("CompleteJourneyTimelines"),
    "vcs-edits": _timelines("VersionControlEdits"),
    "letor": {"list": _letor},
}


def _tabular(path: str, features: str, records: str, **options: Any) -> Reader:
    from tfrz.data.readers.documents import TabularDocuments
    from tfrz.data.readers.interactions import TabularInteractions
    from tfrz.data.readers.logs import TabularActions
    from tfrz.data.readers.tabular import Tabular
    from tfrz.data.readers.timelines import TabularTimelines

    kinds: dict[str, Callable[..., Reader]] = {
        "impression": Tabular,
        "history": TabularInteractions,
        "list": TabularDocuments,
        "logged_action": TabularActions,
        "timeline": TabularTimelines,
    }
    reader = kinds[records](path, features, **options)
    require(
        getattr(reader.feature_spec(), "long_history", None) is None,
        f"{features}: long_history",
        "is no part of a file: give the store with --set features.long_history=DIR",
    )
    return reader


def open_source(
    data: str, features: str | None = None, records: str | None = None, **options: Any
) -> Reader:
    """The reader of `--data`.

    Args:
      data: `simulated`, `NAME:PATH` with a known name, or the path of a CSV, Parquet or TFRecord
        file.
      features: feature spec of such a file.
      records: the type of records wanted; the source's first if not given.
      options: of the reader (`data.options` of the configuration).

    Raises:
      InputError: an unknown name, a missing path or spec, or a source without such records.
      ConfigError: an option that the reader does not have.
    """
    name, colon, path = data.partition(":")
    try:
        if name in SOURCES and (colon or name == "simulated"):
            if not path and name != "simulated":
                raise InputError(f"--data {data} needs a path: write {name}:PATH")
            readers = SOURCES[name]
            wanted = records or next(iter(readers))
            if wanted not in readers:
                raise InputError(
                    f"{data} has {' and '.join(readers)} records, not {wanted} records: "
                    "see 'tfrz list' for what each model learns from"
                )
            return readers[wanted](path, **options)
        if name in SOURCES:
            raise InputError(f"--data {data} needs a path: write {name}:PATH")
        if colon and "/" not in name and "\\" not in name:
            raise InputError(f"unknown data source {name!r}{did_you_mean(name, SOURCES)}")
        if features is None:
            known = ", ".join(n if n == "simulated" else f"{n}:PATH" for n in SOURCES)
            raise InputError(
                f"--data {data}: a file of your own needs --features SPEC.yaml; "
                f"known sources are {known}"
            )
        return _tabular(data, features, records or "impression", **options)
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
