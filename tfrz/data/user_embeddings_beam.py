"""Beam transforms that join examples with the stored embeddings of their users."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import apache_beam as beam
import pyarrow as pa
from apache_beam.pvalue import TaggedOutput

from tfrz.data.user_embeddings import EmbeddingJoin, Found

FOUND = "found"


def _total(parts: Iterable[Found]) -> Found:
    """Adds the counts of all joins."""
    return sum(parts, Found())


class CheckFound(beam.PTransform):
    """Fails the pipeline with `InputError` if no example found an embedding.

    Args:
      join: The join whose counts are checked.
    """

    def __init__(self, join: EmbeddingJoin) -> None:
        super().__init__()
        self._join = join

    def expand(self, found: beam.PCollection) -> beam.PCollection:
        """Checks the counts of the joins of all batches."""
        return (
            found
            | "Sum" >> beam.CombineGlobally(_total)
            | "Check" >> beam.Map(lambda total, join: join.check(total), self._join)
        )


class _Join(beam.DoFn):
    """Joins batches; the counts go to the output `found`."""

    def __init__(self, join: EmbeddingJoin) -> None:
        self._join = join

    def process(self, batch: pa.RecordBatch) -> Iterator[Any]:
        """Looks up all users of a batch at once."""
        table, found = self._join(pa.Table.from_batches([batch]))
        yield TaggedOutput(FOUND, found)
        yield from table.combine_chunks().to_batches()


class JoinEmbeddings(beam.PTransform):
    """Joins Arrow `RecordBatch`es with the embeddings of their users.

    Args:
      join: The join to apply to each batch.
    """

    def __init__(self, join: EmbeddingJoin) -> None:
        super().__init__()
        self._join = join

    def expand(self, records: beam.PCollection) -> beam.PCollection:
        """Builds the transform."""
        outputs = records | "Join" >> beam.ParDo(_Join(self._join)).with_outputs(
            FOUND, main="records"
        )
        _ = outputs[FOUND] | "CheckFound" >> CheckFound(self._join)
        return outputs.records
