"""The types of records, and where records come from: one table for each.

- *impression*: features and a label (was it clicked, was it rated highly).
- *history*: a user's events in time order, and the item that follows.
- *list*: a context, candidates, and their relevance or clicks.
- *logged_action*: a state, an action, its propensity if known, and the reward.
- *timeline*: a user's events over years, reduced to sketches, and candidates with outcomes.

`RECORD_TYPES` has a `RecordType` for each: its spec, its section of `data` in the configuration,
and its readers and examples by dotted path (`module:name`), so that reading the table loads
neither Beam nor TFX. Whatever depends on the type of a record reads this table:
`RECORD_TYPES["list"].section` is `"lists"`, `load(RECORD_TYPES["list"].tabular)` is the class
`TabularDocuments`. `SOURCES` has a row for each name that `--data` knows. `open_source` opens
either; readers yield Arrow `RecordBatch`es of some thousand rows.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tfrz.config import did_you_mean, require
from tfrz.data.histories.spec import HistoryConfig, HistorySpec
from tfrz.data.impressions.spec import FeatureSpec
from tfrz.data.lists.spec import ListConfig, ListSpec
from tfrz.data.sources.locations import is_uri
from tfrz.data.sources.reader import Reader, construct
from tfrz.data.sources.spans import located
from tfrz.data.spec import Spec
from tfrz.data.timelines.spec import TimelineConfig, TimelineSpec
from tfrz.errors import InputError


@dataclasses.dataclass(frozen=True)
class RecordType:
    """Describes one type of records.

    Attributes:
      name: Name, as used by the model registry and `Reader.record_type`.
      spec: Class of the feature spec.
      tabular: Reader of CSV, Parquet and TFRecord files.
      simulated: Reader of `--data simulated`.
      example_gen: Name of the pipeline's ExampleGen.
      splits: Function of the pipeline that builds the examples of each split from records.
      section: Field of the `data` section that configures how rows become examples; None if each
        row is an example.
      config: Class of that section.
    """

    name: str
    spec: type[Spec]
    tabular: str
    simulated: str
    example_gen: str
    splits: str
    section: str | None = None
    config: type | None = None


_EXAMPLE_GEN = "tfx_pipelines.components.example_gen"
RECORD_TYPES = {
    row.name: row
    for row in (
        RecordType(
            "impression",
            FeatureSpec,
            "tfrz.data.sources.tabular:Tabular",
            "tfrz.data.impressions.readers:SimulatedClicks",
            "ReaderExampleGen",
            f"{_EXAMPLE_GEN}:impressions",
        ),
        RecordType(
            "history",
            HistorySpec,
            "tfrz.data.histories.readers:TabularInteractions",
            "tfrz.data.histories.readers:simulated_interactions",
            "HistoryExampleGen",
            f"{_EXAMPLE_GEN}:histories",
            "history",
            HistoryConfig,
        ),
        RecordType(
            "list",
            ListSpec,
            "tfrz.data.lists.readers:TabularDocuments",
            "tfrz.data.lists.readers:SimulatedDocuments",
            "ListExampleGen",
            f"{_EXAMPLE_GEN}:lists",
            "lists",
            ListConfig,
        ),
        RecordType(
            "logged_action",
            HistorySpec,
            "tfrz.data.logs.readers:TabularActions",
            "tfrz.data.logs.readers:SimulatedActions",
            "HistoryExampleGen",
            f"{_EXAMPLE_GEN}:histories",
            "history",
            HistoryConfig,
        ),
        RecordType(
            "timeline",
            TimelineSpec,
            "tfrz.data.timelines.readers:TabularTimelines",
            "tfrz.data.timelines.readers:SimulatedTimelines",
            "TimelineExampleGen",
            f"{_EXAMPLE_GEN}:timelines",
            "timeline",
            TimelineConfig,
        ),
    )
}


def load(path: str) -> Any:
    """Imports the object at a dotted path `module:name`."""
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


@dataclasses.dataclass(frozen=True)
class Source:
    """A known data set.

    Attributes:
      readers: Maps each type of record to its reader's dotted path, the default type first.
      fixed: Arguments of the readers that follow from the name.
    """

    readers: Mapping[str, str]
    fixed: Mapping[str, str] = dataclasses.field(default_factory=dict)


_KNOWN = "tfrz.data.sources"
_MOVIELENS = {
    "impression": f"{_KNOWN}.movielens:MovieLens",
    "history": f"{_KNOWN}.movielens:MovieLensInteractions",
    "logged_action": f"{_KNOWN}.movielens:MovieLensActions",
    "timeline": f"{_KNOWN}.movielens:MovieLensTimelines",
}
_CLICK_LOG = {"impression": f"{_KNOWN}.click_logs:ClickLog"}
# A new source is one more row: its name, and a reader for each type of record that it has.
SOURCES = {
    "simulated": Source({row.name: row.simulated for row in RECORD_TYPES.values()}),
    "obd": Source({"logged_action": f"{_KNOWN}.open_bandit:OpenBandit"}),
    "movielens-1m": Source(_MOVIELENS, {"release": "1m"}),
    "movielens-100k": Source(_MOVIELENS, {"release": "100k"}),
    "criteo": Source(_CLICK_LOG, {"layout": "criteo"}),
    "avazu": Source(_CLICK_LOG, {"layout": "avazu"}),
    "sessions": Source({"history": f"{_KNOWN}.item_sequences:sessions"}),
    "amazon-seq": Source({"history": f"{_KNOWN}.item_sequences:AmazonSequences"}),
    "gowalla": Source({"history": f"{_KNOWN}.item_sequences:Gowalla"}),
    "completejourney": Source(
        {
            "history": f"{_KNOWN}.complete_journey:CompleteJourney",
            "timeline": f"{_KNOWN}.complete_journey:CompleteJourneyTimelines",
        }
    ),
    "vcs-edits": Source({"timeline": f"{_KNOWN}.vcs_edits:VersionControlEdits"}),
    "letor": Source({"list": f"{_KNOWN}.letor:Letor"}),
}


def open_source(
    data: str, features: str | None = None, records: str | None = None, /, **options: Any
) -> Reader:
    """Opens the source that `--data` names.

    Args:
      data: `simulated`, `NAME:PATH` with a known name, or files of your own (CSV, JSON lines,
        Parquet or TFRecord): a path, a folder, a glob or several with commas between, or URIs. Of
        rolling data (`span-{SPAN}/`) the newest span is read.
      features: Path of the feature spec of such a file.
      records: Type of the records; by default the first type that the source has.
      options: Options of the reader (`data.options` in the configuration).

    Raises:
      InputError: The name is unknown, a path or spec is missing, or the source has no such records.
      ConfigError: The reader has no such option, or its value has the wrong type.
    """
    data = located(data)
    name, colon, path = data.partition(":")
    if name in SOURCES and (colon or name == "simulated"):
        if not path and name != "simulated":
            raise InputError(f"--data {data} needs a path: write {name}:PATH")
        source = SOURCES[name]
        wanted = records or next(iter(source.readers))
        if wanted not in source.readers:
            raise InputError(
                f"{data} has {' and '.join(source.readers)} records, not {wanted} records: "
                "see 'tfrz list' for the records that each model learns from"
            )
        place = {} if name == "simulated" else {"path": path}
        return construct(name, load(source.readers[wanted]), {**place, **source.fixed}, options)
    if name in SOURCES:
        raise InputError(f"--data {data} needs a path: write {name}:PATH")
    own = is_uri(data) or Path(data).exists()
    if colon and not own and "/" not in name and "\\" not in name:
        raise InputError(f"unknown data source {name!r}{did_you_mean(name, SOURCES)}")
    if features is None:
        known = ", ".join(n if n == "simulated" else f"{n}:PATH" for n in SOURCES)
        raise InputError(
            f"--data {data}: a file of your own needs --features SPEC.yaml; "
            f"known sources are {known}"
        )
    factory = load(RECORD_TYPES[records or "impression"].tabular)
    reader = construct(name, factory, {"path": data, "features": features}, options)
    require(
        getattr(reader.feature_spec(), "long_history", None) is None,
        f"{features}: long_history",
        "cannot be part of a file: give the store with --set features.long_history=DIR",
    )
    return reader
