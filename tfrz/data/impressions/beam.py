"""Beam transforms that split impressions of any size."""

from __future__ import annotations

from collections.abc import Iterator

import apache_beam as beam
import pyarrow as pa
from apache_beam.pvalue import TaggedOutput

from tfrz.data.beam import split_batches
from tfrz.data.splits import SPLIT_COLUMN, SPLITS, TIME_COLUMN, SplitPlan, split_rows


class _Split(beam.DoFn):
    """Splits the rows of a batch; each split has an output of its name."""

    def __init__(self, plan: SplitPlan) -> None:
        super().__init__()
        self._plan = plan

    def process(self, batch: pa.RecordBatch) -> Iterator[TaggedOutput]:
        """Yields the rows of each split."""
        table = pa.Table.from_batches([batch])
        rows = split_rows(table, self._plan)
        # What placed the rows is none of their features.
        table = table.drop([n for n in (SPLIT_COLUMN, TIME_COLUMN) if n in table.column_names])
        yield from split_batches({name: table.take(pa.array(some)) for name, some in rows.items()})


class SplitImpressions(beam.PTransform):
    """Splits batches of impressions as `tfrz train` does: each row by its own values.

    Args:
      plan: How they are split.

    Returns:
      Split to Arrow `RecordBatch`es.
    """

    def __init__(self, plan: SplitPlan) -> None:
        super().__init__()
        self._split = _Split(plan)

    def expand(self, records: beam.PCollection) -> dict[str, beam.PCollection]:
        """Builds the transform."""
        outputs = records | "SplitRows" >> beam.ParDo(self._split).with_outputs(*SPLITS)
        return {split: outputs[split] for split in SPLITS}
