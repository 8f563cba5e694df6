"""Beam transforms that split impressions of any size."""

from __future__ import annotations

from collections.abc import Iterator

import apache_beam as beam
import pyarrow as pa
from apache_beam.pvalue import TaggedOutput

from tfrz.data.beam import split_batches
from tfrz.data.spec import USER_EMBEDDING, USER_EMBEDDING_VERSION
from tfrz.data.splits import SPLITS, split_rows


class _Split(beam.DoFn):
    """Splits the rows of a batch; each split has an output of its name."""

    def __init__(self, held_out: tuple[float, float], seed: int) -> None:
        super().__init__()
        self._held_out, self._seed = held_out, seed

    def process(self, batch: pa.RecordBatch) -> Iterator[TaggedOutput]:
        """Yields the rows of each split."""
        table = pa.Table.from_batches([batch])
        # An embedding that was joined must not change the split of its example.
        own = [n for n in table.column_names if n not in (USER_EMBEDDING, USER_EMBEDDING_VERSION)]
        rows = split_rows(table.select(own), self._held_out, self._seed)
        yield from split_batches({name: table.take(pa.array(some)) for name, some in rows.items()})


class SplitImpressions(beam.PTransform):
    """Splits batches of impressions as `tfrz train` does: each row by its own values.

    Args:
      held_out: Shares of validation and test.
      seed: Seed of the split.

    Returns:
      Split to Arrow `RecordBatch`es.
    """

    def __init__(self, held_out: tuple[float, float], seed: int) -> None:
        super().__init__()
        self._split = _Split(held_out, seed)

    def expand(self, records: beam.PCollection) -> dict[str, beam.PCollection]:
        """Builds the transform."""
        outputs = records | "SplitRows" >> beam.ParDo(self._split).with_outputs(*SPLITS)
        return {split: outputs[split] for split in SPLITS}
