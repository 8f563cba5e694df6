"""ExampleGen on the zoo's readers.

Not a file-based ExampleGen: what counts as one source (an archive with three tables, a simulator)
is the reader's business. The source, its options and the fingerprint of its contents are the
"query", so that TFX's cache knows a changed file from an unchanged one.
"""

from __future__ import annotations

import json
from typing import Any

import apache_beam as beam
from tfx.components.example_gen import base_example_gen_executor
from tfx.components.example_gen.component import QueryBasedExampleGen
from tfx.dsl.components.base import executor_spec
from tfx.proto import example_gen_pb2

from tfrz.data.readers import Reader, open_source
from tfrz.data.transforms import CheckCorrupt, ReadRecords, RecordsToExamples

_BUCKETS = 1000


@beam.ptransform_fn
@beam.typehints.with_input_types(beam.Pipeline)
@beam.typehints.with_output_types(bytes)
def _source_to_examples(
    pipeline: beam.Pipeline, exec_properties: dict[str, Any], split_pattern: str
) -> beam.PCollection:
    del exec_properties
    query = json.loads(split_pattern)
    reader = open_source(query["data"], query["features"], **query["options"])
    outputs = pipeline | "ReadRecords" >> ReadRecords(reader)
    _ = outputs | "CheckCorrupt" >> CheckCorrupt(
        query["max_corrupt_fraction"], query["corrupt_lines"]
    )
    return outputs["records"] | "ToExamples" >> RecordsToExamples()


class ReaderExampleGenExecutor(base_example_gen_executor.BaseExampleGenExecutor):
    """Runs a reader under Beam."""

    def GetInputSourceToExamplePTransform(self) -> beam.PTransform:
        """See the base class."""
        return _source_to_examples


class ReaderExampleGen(QueryBasedExampleGen):
    """Examples of a reader, split at random by a hash of the record into `train` and `eval`.

    Args:
      data: as `--data` of the command line.
      features: feature spec of a file of the user's own.
      options: of the reader.
      reader: what `data` opens.
      eval_fraction: share of the `eval` split.
      max_corrupt_fraction: tolerated share of unreadable lines.
      corrupt_lines: the file that takes them.
    """

    EXECUTOR_SPEC = executor_spec.BeamExecutorSpec(ReaderExampleGenExecutor)

    def __init__(
        self,
        data: str,
        features: str | None,
        options: dict[str, Any],
        reader: Reader,
        eval_fraction: float,
        max_corrupt_fraction: float,
        corrupt_lines: str,
    ) -> None:
        query = {
            "data": data,
            "features": features,
            "options": options,
            "max_corrupt_fraction": max_corrupt_fraction,
            "corrupt_lines": corrupt_lines,
            "fingerprint": reader.fingerprint(),
        }
        eval_buckets = min(max(round(eval_fraction * _BUCKETS), 1), _BUCKETS - 1)
        split = example_gen_pb2.SplitConfig.Split
        super().__init__(
            input_config=example_gen_pb2.Input(
                splits=[
                    example_gen_pb2.Input.Split(
                        name="all", pattern=json.dumps(query, sort_keys=True)
                    )
                ]
            ),
            output_config=example_gen_pb2.Output(
                split_config=example_gen_pb2.SplitConfig(
                    splits=[
                        split(name="train", hash_buckets=_BUCKETS - eval_buckets),
                        split(name="eval", hash_buckets=eval_buckets),
                    ]
                )
            ),
        )
