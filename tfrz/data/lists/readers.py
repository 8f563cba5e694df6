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
from typing_extensions import override

from tfrz.config import from_mapping, read_yaml
from tfrz.data.columns import ARROW, record_batch
from tfrz.data.lists.spec import ListSpec
from tfrz.data.simulators.slates import NUM_FEATURES, SlateSimulator
from tfrz.data.sources.files import CorruptLine, Shard
from tfrz.data.sources.reader import Reader, require_counts, simulated_shards
from tfrz.data.sources.tabular import (
    NumberedRow,
    RawRow,
    RawValues,
    TabularFile,
    UnreadableError,
    first_of,
    key_in,
    stored_values,
)
from tfrz.data.spec import numeric

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
    """Your own file of lists.

    CSV and Parquet files have a row per candidate; a TFRecord file has an `ExampleListWithContext`
    per query, the format of TF-Ranking.

    Args:
      path: Path `*.csv[.gz]`, `*.tsv[.gz]`, `*.parquet` or `*.tfrecord[.gz]`.
      features: Path of a YAML file with the fields of `ListSpec`.
    """

    def __init__(self, path: str, features: str) -> None:
        self._open(path)
        self.spec = from_mapping(ListSpec, read_yaml(features), features)

    @property
    @override
    def _names(self) -> list[str]:
        spec = self.spec
        keys = [n for n in (spec.query, spec.item, spec.relevance, spec.score) if n is not None]
        keys += [feature.name for feature in (*spec.candidate, *spec.context)]
        return list(dict.fromkeys(keys))

    @override
    def _row(self, raw: RawValues) -> dict[str, Any]:
        spec = self.spec
        row: dict[str, Any] = {"query": key_in(raw, spec.query)}
        if spec.item is not None:
            row["item"] = key_in(raw, spec.item)
        for name, column in (("relevance", spec.relevance), ("score", spec.score)):
            if column is None:
                continue
            try:
                (row[name],) = (float(np.float32(float(value))) for value in raw[column])
            except (ValueError, TypeError):
                raise UnreadableError(f"{column} is not a number: {raw[column]!r:.40}") from None
            if not np.isfinite(row[name]) or (name == "relevance" and row[name] < 0):
                raise UnreadableError(f"{column} is {row[name]:g}")
        for feature in (*spec.candidate, *spec.context):
            try:
                value = row[feature.name] = first_of(raw, feature)
                if isinstance(value, float) and not np.isfinite(value):
                    raise UnreadableError(f"{feature.name} is not finite: {value}")
            except UnreadableError as error:
                query = row["query"].decode("utf-8", "replace")
                raise UnreadableError(f"query {query}: {error}") from None
        return row

    @override
    def _batch(self, rows: list[NumberedRow]) -> pa.RecordBatch:
        columns: dict[str, list[Any]] = {"position": [number for number, _ in rows]}
        if self.spec.item is None:
            columns["item"] = [b"%d" % number for number, _ in rows]
        for name in self.schema.names:
            if name in rows[0][1]:
                columns[name] = [row[name] for _, row in rows]
        return self.batch(**columns)

    @override
    def _examples(self, shard: Shard) -> Iterator[RawRow | CorruptLine]:
        from tensorflow_serving.apis import input_pb2

        parse = input_pb2.ExampleListWithContext.FromString
        for number, lists in self._records(shard, parse, "an ExampleListWithContext"):
            if isinstance(lists, CorruptLine):
                yield lists
                continue
            for place, example in enumerate(lists.examples):
                values = {
                    n: stored_values(example, n) or stored_values(lists.context, n)
                    for n in self._names
                }
                position = number * _CANDIDATES_A_RECORD + place
                yield RawRow(number, values, "", f"candidate {place + 1}: ", position)


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
