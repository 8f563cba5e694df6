"""Readers of graded or clicked documents by query, which become lists.

A batch has the columns `query`, `item` and `split` (binary), `position` (int64, the place in the
source), `score` (float32, the base ranker's; equal if the source is in its order), `relevance`
(float32) and one for each feature of the spec.
"""

from __future__ import annotations

import abc
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from typing_extensions import override

from tfrz.config import from_mapping, read_yaml
from tfrz.data.columns import ARROW, filled, record_batch
from tfrz.data.lists.spec import ListSpec
from tfrz.data.simulators.slates import NUM_FEATURES, SlateSimulator
from tfrz.data.sources.files import CorruptLine, Shard
from tfrz.data.sources.locations import with_partitions
from tfrz.data.sources.raw import Raw, RawBatch, pop_dialect, stored_values
from tfrz.data.sources.reader import Reader, require_counts, simulated_shards
from tfrz.data.sources.tabular import TabularFile
from tfrz.data.sources.values import Rows
from tfrz.data.spec import Feature, numeric

# Bound on the candidates of a record: positions sort by record, then by candidate.
_CANDIDATES_A_RECORD = 1 << 20


class DocumentReader(Reader):
    """A reader of documents by query."""

    record_type = "list"

    @abc.abstractmethod
    def feature_spec(self) -> ListSpec:
        """Returns the spec of the rows."""

    @property
    def schema(self) -> pa.Schema:
        """Schema of the batches."""
        columns = {
            "query": pa.binary(),
            "item": pa.binary(),
            "split": pa.binary(),
            "position": pa.int64(),
            "score": pa.float32(),
            "relevance": pa.float32(),
        }
        spec = self.feature_spec()
        for feature in (*spec.candidate, *spec.context):
            columns[feature.name] = ARROW[feature.dtype]
        return pa.schema(list(columns.items()))

    def batch(self, **columns: Any) -> pa.RecordBatch:
        """Builds a batch of the schema; `split` and `score` are optional."""
        count = len(columns["query"])
        columns.setdefault("split", pa.array([b""] * count, pa.binary()))
        columns.setdefault("score", np.zeros(count, np.float32))
        return record_batch(self.schema, columns)


class TabularDocuments(TabularFile[ListSpec], DocumentReader):
    """Your own files of lists.

    CSV, JSON lines and Parquet files have a row per candidate; a TFRecord file has an
    `ExampleListWithContext` per query, the format of TF-Ranking.

    Args:
      path: A file, a folder, a glob or a list of them: CSV, JSON lines, Parquet or TFRecords.
      features: Path of a YAML file with the fields of `ListSpec`.
    """

    def __init__(self, path: str, features: str) -> None:
        mapping = read_yaml(features)
        dialect = pop_dialect(mapping, features)
        self.spec = from_mapping(ListSpec, mapping, features)
        self._open(path, dialect)

    @property
    @override
    def _columns(self) -> list[Feature]:
        spec = self.spec
        features = {feature.name: feature for feature in (*spec.candidate, *spec.context)}
        graded = spec.relevance if self.labelled else None
        split = spec.split if self.labelled else None
        keys = [n for n in (spec.query, spec.item, graded, spec.score, split) if n is not None]
        return list({**{name: Feature(name) for name in keys}, **features}.values())

    @override
    def _batch(self, rows: Rows) -> pa.RecordBatch:
        spec = self.spec
        columns: dict[str, Any] = {"query": rows.key(spec.query), "position": rows.positions}
        if spec.item is not None:
            columns["item"] = rows.key(spec.item)
        else:
            columns["item"] = pa.array(rows.positions).cast(pa.string()).cast(pa.binary())
        graded = spec.relevance if self.labelled else None
        if graded is None:
            columns["relevance"] = np.zeros(rows.count, np.float32)
        for name, column in (("relevance", graded), ("score", spec.score)):
            if column is not None:
                columns[name] = _required(rows, column, least=0.0 if name == "relevance" else None)
        if self.labelled and spec.split is not None:
            columns["split"] = rows.splits(spec.split)
        with rows.explained(lambda row: f"query {_shown(columns['query'], row)}: "):
            for feature in (*spec.candidate, *spec.context):
                values = columns[feature.name] = rows.first(feature)
                if feature.kind == "numeric":
                    _refuse_infinite(rows, feature.name, values)
        return self.batch(**columns)

    @override
    def _raw_batches(self, shard: Shard) -> Iterator[Raw]:
        if self.format == "tfrecord":
            return self._lists(shard)
        return super()._raw_batches(shard)

    def _lists(self, shard: Shard) -> Iterator[Raw]:
        """Yields the candidates of `ExampleListWithContext`s, a batch for each of them."""
        from google.protobuf.message import DecodeError
        from tensorflow_serving.apis import input_pb2

        names, file = self.raw.names, self.raw.files[shard.number]
        number, seen = 0, {name for name, _ in file.partitions}
        for number, record in enumerate(self.raw.records(shard), start=1):
            try:
                lists = input_pb2.ExampleListWithContext.FromString(record)
            except DecodeError:
                what = "is not an ExampleListWithContext"
                yield CorruptLine(file.path, number, what, "")
                continue
            if not lists.examples:
                continue
            base = (shard.number << 40) + number * _CANDIDATES_A_RECORD
            count = len(lists.examples)
            columns = {name: _of_candidates(lists, name) for name in names}
            seen |= {name for name, column in columns.items() if len(column.values)}
            yield RawBatch(
                with_partitions(self.raw.without_path(file, columns), file, names, count),
                np.full(count, number),
                [f"candidate {place + 1}: " for place in range(count)],
                base + np.arange(count),
            )
        self.raw.check_seen(file, seen, number)


def _of_candidates(lists: Any, name: str) -> pa.Array:
    """The values of a feature of each candidate, or else of the context."""
    shared = stored_values(lists.context, name)
    rows = [stored_values(example, name) or shared for example in lists.examples]
    kinds = {type(value) for row in rows for value in row}
    if len(kinds) > 1:
        rows = [[str(v).encode() if not isinstance(v, bytes) else v for v in row] for row in rows]
    return pa.array(rows, None if kinds else pa.list_(pa.binary()))


def _required(rows: Rows, column: str, least: float | None) -> pa.Array:
    """A column of numbers, one a row, finite and not below `least`."""
    values = rows.number(column)
    missing = values.is_null().to_numpy(zero_copy_only=False)
    rows.refuse(missing, lambda row: f"{column} is not a number: {rows.given(column, row)!r:.40}")
    found = filled(values, "float32").to_numpy(zero_copy_only=False)
    with np.errstate(invalid="ignore"):
        wrong = ~np.isfinite(found) | (found < (-np.inf if least is None else least))
    rows.refuse(wrong, lambda row: f"{column} is {found[row]:g}")
    return values


def _refuse_infinite(rows: Rows, name: str, values: pa.Array) -> None:
    # NaN is a missing value, as wherever numbers are read.
    wrong = pc.is_inf(values).fill_null(False).to_numpy(zero_copy_only=False)
    rows.refuse(wrong, lambda row: f"{name} is not finite: {values[row].as_py()}")


def _shown(values: pa.Array, row: int) -> str:
    text = values[row].as_py()
    return "" if text is None else str(text, "utf-8", "replace")


class SimulatedDocuments(DocumentReader):
    """Graded lists of `SlateSimulator`, in the order of its base ranker.

    Args:
      queries: Number of queries.
      length: Number of documents per query.
      seed: Seed of the world and of the draws.
    """

    name = "simulated"
    _QUERIES_A_SHARD = 2000

    def __init__(self, queries: int = 4000, length: int = 10, seed: int = 0) -> None:
        require_counts(queries=queries, length=length)
        self.queries, self.length, self.seed = queries, length, seed

    @override
    def feature_spec(self) -> ListSpec:
        return ListSpec(candidate=tuple(numeric(f"f{i}") for i in range(1, NUM_FEATURES + 1)))

    @override
    def shards(self) -> list[Shard]:
        return simulated_shards(self.queries, self._QUERIES_A_SHARD)

    @override
    def read(self, shard: Shard) -> Iterator[pa.RecordBatch | CorruptLine]:
        count = shard.end - shard.start
        drawn = SlateSimulator(self.seed).sample(
            count, self.length, seed=self.seed * 1_000_003 + shard.start
        )
        queries = np.repeat(np.arange(shard.start, shard.end), self.length)
        places = np.tile(np.arange(self.length), count)
        matrix = drawn["features"].reshape(-1, NUM_FEATURES).astype(np.float32)
        yield self.batch(
            query=pa.array([f"query_{q}" for q in queries]),
            item=pa.array([f"document_{q}_{i}" for q, i in zip(queries, places, strict=True)]),
            position=queries * self.length + places,
            relevance=drawn["grade"].ravel().astype(np.float32),
            **{f"f{i + 1}": matrix[:, i] for i in range(NUM_FEATURES)},
        )
