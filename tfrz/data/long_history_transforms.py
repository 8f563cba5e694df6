"""Beam transforms: the embeddings of users' long histories joined with examples."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import apache_beam as beam
import pyarrow as pa
from apache_beam.pvalue import TaggedOutput

from tfrz.data.long_history import Found, LongHistoryJoin
from tfrz.data.transforms import Encode

FOUND = "found"


class _Sum(beam.CombineFn):
    """What all joins found together."""

    def create_accumulator(self) -> Found:
        return Found()

    def add_input(self, accumulator: Found, found: Found) -> Found:
        return accumulator + found

    def merge_accumulators(self, accumulators: Iterable[Found]) -> Found:
        return sum(accumulators, Found())

    def extract_output(self, accumulator: Found) -> Found:
        return accumulator


class CheckFound(beam.PTransform):
    """Fails the pipeline with `InputError` if no example found an embedding.

    Args:
      join: that was made.
    """

    def __init__(self, join: LongHistoryJoin) -> None:
        super().__init__()
        self._join = join

    def expand(self, found: beam.PCollection) -> beam.PCollection:
        """Takes what joins of batches found."""
        return (
            found
            | "Sum" >> beam.CombineGlobally(_Sum())
            | "Check" >> beam.Map(lambda total, join: join.check(total), self._join)
        )


class _JoinAndEncode(Encode):
    """Batches to pairs of serialised examples, without and with their embedding."""

    def __init__(self, join: LongHistoryJoin) -> None:
        self._join = join

    def process(self, batch: pa.RecordBatch) -> Iterator[Any]:
        """Looks all users of the batch up at once; what was found goes to `found`."""
        table, found = self._join(pa.Table.from_batches([batch]))
        yield TaggedOutput(FOUND, found)
        for whole in table.combine_chunks().to_batches():
            yield from zip(super().process(batch), super().process(whole), strict=True)


class RecordsToJoinedExamples(beam.PTransform):
    """Arrow `RecordBatch`es to pairs of serialised `tf.Example`s: without and with the embedding.

    The first is what a record is known by: a hash of it does not change with the embeddings.

    Args:
      join: of examples and embeddings.
    """

    def __init__(self, join: LongHistoryJoin) -> None:
        super().__init__()
        self._join = join

    def expand(self, records: beam.PCollection) -> beam.PCollection:
        """Builds the transform."""
        outputs = records | "JoinAndEncode" >> beam.ParDo(_JoinAndEncode(self._join)).with_outputs(
            FOUND, main="examples"
        )
        _ = outputs[FOUND] | "CheckFound" >> CheckFound(self._join)
        return outputs.examples
