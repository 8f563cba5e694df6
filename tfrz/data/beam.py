"""Beam transforms that read the records of a source and encode them as `tf.Example`s."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import apache_beam as beam
import pyarrow as pa
from apache_beam.metrics import Metrics
from apache_beam.pvalue import AsSingleton, TaggedOutput

from tfrz.data.sources.files import CorruptLine, Shard, check_corrupt
from tfrz.data.sources.reader import Reader
from tfrz.errors import InputError

_ROWS_AN_ELEMENT = 4096

_COUNTERS = "tfrz"


class _ReadShard(beam.DoFn):
    """Reads one shard: batches go to the main output, corrupt lines to `corrupt`."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._rows = Metrics.counter(_COUNTERS, "records")
        self._corrupt = Metrics.counter(_COUNTERS, "corrupt_lines")

    def process(self, shard: Shard) -> Iterator[Any]:
        """Yields batches of a bounded size, so that no element is a whole shard."""
        for item in self._reader.read(shard):
            if isinstance(item, CorruptLine):
                self._corrupt.inc()
                yield TaggedOutput("corrupt", item)
                continue
            self._rows.inc(item.num_rows)
            for start in range(0, item.num_rows, _ROWS_AN_ELEMENT):
                yield item.slice(start, _ROWS_AN_ELEMENT)


class ReadRecords(beam.PTransform):
    """Reads the records of a source.

    Args:
      reader: Reader of the source; it is sent to the workers.

    Returns:
      A dict: `records`, Arrow `RecordBatch`es of at most 4,096 rows, and `corrupt`,
      `CorruptLine`s. Beam counts both, in the namespace `tfrz`.
    """

    def __init__(self, reader: Reader) -> None:
        super().__init__()
        self._reader = reader

    def expand(self, pipeline: Any) -> dict[str, beam.PCollection]:
        """Builds the transform."""
        outputs = (
            pipeline
            | "Shards" >> beam.Create(self._reader.shards(), reshuffle=True)
            | "Read" >> beam.ParDo(_ReadShard(self._reader)).with_outputs("corrupt", main="records")
        )
        return {"records": outputs.records, "corrupt": outputs.corrupt}


@dataclasses.dataclass
class _Summary:
    count: int = 0
    first: CorruptLine | None = None


def _summarized(parts: Iterable[_Summary]) -> _Summary:
    """Returns the number of corrupt lines, and the first of them."""
    parts = list(parts)
    lines = [part.first for part in parts if part.first is not None]
    first = min(lines, key=lambda line: (line.file, line.line), default=None)
    return _Summary(sum(part.count for part in parts), first)


def _check(_: None, rows: int, summary: _Summary, max_fraction: float) -> None:
    if summary.first is not None:
        check_corrupt(summary.count, rows + summary.count, [summary.first], max_fraction)


class CheckCorrupt(beam.PTransform):
    """Fails the pipeline with `InputError` if too many lines are corrupt.

    Args:
      max_fraction: Tolerated share of corrupt lines.
      sink: File for the corrupt lines, as JSON lines; None writes no file.
    """

    def __init__(self, max_fraction: float, sink: str | None = None) -> None:
        super().__init__()
        self._max_fraction, self._sink = max_fraction, sink

    def expand(self, outputs: dict[str, beam.PCollection]) -> beam.PCollection:
        """Checks the output of `ReadRecords`."""
        rows = (
            outputs["records"]
            | "RowsOfBatches" >> beam.Map(lambda batch: batch.num_rows)
            | "Rows" >> beam.CombineGlobally(sum)
        )
        summary = (
            outputs["corrupt"]
            | "Count" >> beam.Map(lambda line: _Summary(1, line))
            | "Summary" >> beam.CombineGlobally(_summarized)
        )
        if self._sink is not None:
            _ = (
                outputs["corrupt"]
                | "AsJson" >> beam.Map(lambda line: json.dumps(dataclasses.asdict(line)))
                | "WriteCorrupt"
                >> beam.io.WriteToText(self._sink, num_shards=1, shard_name_template="")
            )
        return (
            outputs["records"].pipeline
            | "Once" >> beam.Create([None])
            | "Check"
            >> beam.Map(_check, AsSingleton(rows), AsSingleton(summary), self._max_fraction)
        )


_BAD_INPUT = re.compile(r"tfrz\.errors\.(?:InputError|ConfigError): (?P<line>[^\n]*)")


def input_error_in(error: BaseException) -> InputError | None:
    """Returns the `InputError` that made a pipeline fail, or None for any other failure.

    Beam wraps the errors of a worker in an error of its own, as text.
    """
    match = _BAD_INPUT.search(f"{type(error).__module__}.{type(error).__qualname__}: {error}")
    if match is None:
        return None
    line = re.split(r" \[while running| \[\[?while", match["line"])[0]
    return InputError(line.replace("\\n", " ").rstrip("'\""))


class _Encode(beam.DoFn):
    def setup(self) -> None:
        from tfx_bsl.coders.example_coder import RecordBatchToExamplesEncoder

        self._encoder = RecordBatchToExamplesEncoder()

    def process(self, batch: pa.RecordBatch) -> Iterable[bytes]:
        """Encodes the rows of a batch; the encoder is written in C++."""
        # The encoder ignores the offset of a sliced array, so copy the rows.
        whole = pa.Table.from_batches([batch]).take(pa.array(range(batch.num_rows)))
        for part in whole.combine_chunks().to_batches():
            yield from self._encoder.encode(part)


class RecordsToExamples(beam.PTransform):
    """Encodes Arrow `RecordBatch`es as serialised `tf.Example`s, one per record."""

    def expand(self, records: beam.PCollection) -> beam.PCollection:
        """Builds the transform."""
        return records | "Encode" >> beam.ParDo(_Encode()).with_output_types(bytes)


def split_batches(examples: Mapping[str, pa.Table], *rows: int) -> Iterator[TaggedOutput]:
    """Yields the tables of the splits as Arrow batches, tagged with the name of the split.

    Args:
      examples: Maps each split to its rows.
      rows: Maximum number of rows of a batch, if given.
    """
    for split, table in examples.items():
        for batch in table.combine_chunks().to_batches(*rows):
            if batch.num_rows:
                yield TaggedOutput(split, batch)
