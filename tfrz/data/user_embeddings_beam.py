"""Beam transforms: the embeddings of users' long histories joined with examples."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import apache_beam as beam
import pyarrow as pa
from apache_beam.pvalue import TaggedOutput

from tfrz.data.user_embeddings import EmbeddingJoin, Found

FOUND = "found"


def _total(parts: Iterable[Found]) -> Found:
    """What all joins found together."""
    return sum(parts, Found())


class CheckFound(beam.PTransform):
    """Fails the pipeline with `InputError` if no example found an embedding.

    Args:
      join: that was made.
    """

    def __init__(self, join: EmbeddingJoin) -> None:
        super().__init__()
        self._join = join

    def expand(self, found: beam.PCollection) -> beam.PCollection:
        """Takes what joins of batches found."""
        return (
            found
            | "Sum" >> beam.CombineGlobally(_total)
            | "Check" >> beam.Map(lambda total, join: join.check(total), self._join)
        )


class _Join(beam.DoFn):
    """Batches with the embeddings of their users; what was found goes to `found`."""

    def __init__(self, join: EmbeddingJoin) -> None:
        self._join = join

    def process(self, batch: pa.RecordBatch) -> Iterator[Any]:
        """Looks all users of the batch up at once."""
        table, found = self._join(pa.Table.from_batches([batch]))
        yield TaggedOutput(FOUND, found)
        yield from table.combine_chunks().to_batches()


class JoinEmbeddings(beam.PTransform):
    """Arrow `RecordBatch`es with the embeddings of their users.

    Args:
      join: that is made of each batch.
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
