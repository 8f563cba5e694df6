"""Beam transforms: a reader's shards to records, corrupt lines aside, records to `tf.Example`s."""

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
    """Reads one shard: batches to the main output, corrupt lines to `corrupt`."""

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
    """Records of a reader.

    Args:
      reader: it is sent to the workers.

    Returns:
      A dict: `records`, Arrow `RecordBatch`es of at most 4,096 rows, and `corrupt`,
      `CorruptLine`s. Both are counted by Beam, in the namespace `tfrz`.
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
    """How many corrupt lines there are in all, and the first of them."""
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
      max_fraction: what is tolerated.
      sink: write the corrupt lines here, as JSON lines; None for nowhere.
    """

    def __init__(self, max_fraction: float, sink: str | None = None) -> None:
        super().__init__()
        self._max_fraction, self._sink = max_fraction, sink

    def expand(self, outputs: dict[str, beam.PCollection]) -> beam.PCollection:
        """Takes what `ReadRecords` returns."""
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
    """The bad input that a pipeline failed of, if it was that.

    Beam wraps what a worker raises in an error of its own, as text.
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
        """Arrow to protocol buffers in C++."""
        # The encoder reads whole arrays: a slice must become one of its own.
        whole = pa.Table.from_batches([batch]).take(pa.array(range(batch.num_rows)))
        for part in whole.combine_chunks().to_batches():
            yield from self._encoder.encode(part)


class RecordsToExamples(beam.PTransform):
    """Arrow `RecordBatch`es to serialised `tf.Example`s, one a record."""

    def expand(self, records: beam.PCollection) -> beam.PCollection:
        """Builds the transform."""
        return records | "Encode" >> beam.ParDo(_Encode()).with_output_types(bytes)


def split_batches(examples: Mapping[str, pa.Table], *rows: int) -> Iterator[TaggedOutput]:
    """The tables of some splits as Arrow batches, each to the output of its split.

    Args:
      examples: split to its rows.
      rows: of a batch at most, if given.
    """
    for split, table in examples.items():
        for batch in table.combine_chunks().to_batches(*rows):
            if batch.num_rows:
                yield TaggedOutput(split, batch)
