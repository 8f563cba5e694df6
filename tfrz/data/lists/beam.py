"""Beam transforms that build examples of lists from sources of any size."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import apache_beam as beam
import pyarrow as pa
from apache_beam.pvalue import TaggedOutput

from tfrz.data.beam import split_batches
from tfrz.data.lists.examples import build_lists
from tfrz.data.lists.spec import ListConfig, ListSpec
from tfrz.data.splits import SPLITS

_QUERIES_A_BATCH = 64


def _by_query(batch: pa.RecordBatch) -> Iterator[tuple[tuple[bytes, bytes], tuple[Any, ...]]]:
    """Yields ((split, query), values) for each row."""
    rows = zip(*(column.to_pylist() for column in batch.columns), strict=True)
    names = batch.schema.names
    split, query = names.index("split"), names.index("query")
    for row in rows:
        yield (row[split], row[query]), row


class _Build(beam.DoFn):
    """Builds the examples of some queries; each split has an output of its name."""

    def __init__(
        self,
        schema: pa.Schema,
        spec: ListSpec,
        config: ListConfig,
        held_out: tuple[float, float],
        seed: int,
        with_test: bool,
    ) -> None:
        self._schema, self._arguments = schema, (spec, config, held_out, seed, with_test)

    def process(self, queries: list[tuple[Any, list[tuple[Any, ...]]]]) -> Iterator[TaggedOutput]:
        """Yields Arrow batches."""
        rows = [row for _, group in queries for row in group]
        columns = [
            pa.array(values, field.type)
            for values, field in zip(zip(*rows, strict=True), self._schema, strict=True)
        ]
        table = pa.Table.from_arrays(columns, schema=self._schema)
        yield from split_batches(build_lists(table, *self._arguments))


class DocumentsToLists(beam.PTransform):
    """Builds examples of each split from batches of documents.

    Args:
      schema: Schema of the batches.
      spec: Spec of the documents.
      config: Configuration of the examples.
      held_out: Shares of the queries in validation and test, if the source has no splits.
      seed: Seed of these splits.
      with_test: If False, the test examples go to validation.

    Returns:
      A dict from `train`, `validation` and `test` to batches for `RecordsToExamples`.
    """

    def __init__(
        self,
        schema: pa.Schema,
        spec: ListSpec,
        config: ListConfig,
        held_out: tuple[float, float] = (0.0, 0.0),
        seed: int = 0,
        with_test: bool = True,
    ) -> None:
        super().__init__()
        self._build = _Build(schema, spec, config, held_out, seed, with_test)

    def expand(self, batches: beam.PCollection) -> dict[str, beam.PCollection]:
        """Builds the transform."""
        queries = (
            batches
            | "ByQuery" >> beam.FlatMap(_by_query)
            | "Group" >> beam.GroupByKey()
            | "Rows" >> beam.MapTuple(lambda key, rows: (key, list(rows)))
            | "Queries" >> beam.BatchElements(min_batch_size=1, max_batch_size=_QUERIES_A_BATCH)
        )
        outputs = queries | "Build" >> beam.ParDo(self._build).with_outputs(*SPLITS)
        return {split: outputs[split] for split in SPLITS}
