"""ExampleGen on the zoo's readers.

Not a file-based ExampleGen: what counts as one source (an archive with three tables, a simulator)
is the reader's business. The source, its options and the fingerprint of its contents are the
"query", so that TFX's cache knows a changed file from an unchanged one.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import apache_beam as beam
import tensorflow as tf
from tfx.components.example_gen import base_example_gen_executor
from tfx.components.example_gen.component import QueryBasedExampleGen
from tfx.dsl.components.base import executor_spec
from tfx.proto import example_gen_pb2

from tfrz.config import from_mapping, require, to_mapping
from tfrz.data.beam import CheckCorrupt, ReadRecords, RecordsToExamples
from tfrz.data.histories.beam import InteractionsToExamples
from tfrz.data.histories.readers import InteractionReader
from tfrz.data.histories.spec import HistoryConfig
from tfrz.data.lists.beam import DocumentsToLists
from tfrz.data.lists.readers import DocumentReader
from tfrz.data.lists.spec import ListConfig
from tfrz.data.records import open_source
from tfrz.data.sources.reader import Reader
from tfrz.data.spec import USER_EMBEDDING, USER_EMBEDDING_VERSION
from tfrz.data.timelines.beam import EventsToExamples
from tfrz.data.timelines.readers import check_timelines
from tfrz.data.timelines.spec import TimelineConfig
from tfrz.data.user_embeddings import EmbeddingJoin
from tfrz.data.user_embeddings_beam import JoinEmbeddings
from tfrz.errors import InputError
from tfrz.zoo.long_history import open_store, with_long_history
from tfrz.zoo.run_config import DataConfig, FeaturesConfig

_BUCKETS = 1000
# What of a `FeaturesConfig` decides which embeddings an example gets.
_JOINED = ("long_history", "long_history_version", "any_version", "user")


def _opened(query: dict[str, Any]) -> Reader:
    return open_source(query["data"], query["features"], query["records"], **query["options"])


def _read(pipeline: beam.Pipeline, query: dict[str, Any], reader: Reader) -> beam.PCollection:
    outputs = pipeline | "ReadRecords" >> ReadRecords(reader)
    _ = outputs | "CheckCorrupt" >> CheckCorrupt(
        query["max_corrupt_fraction"], query["corrupt_lines"]
    )
    return outputs["records"]


def _query(exec_properties: dict[str, Any]) -> dict[str, Any]:
    from google.protobuf import json_format

    inputs = example_gen_pb2.Input()
    json_format.Parse(exec_properties["input_config"], inputs)
    return dict(json.loads(inputs.splits[0].pattern))


def _join(query: dict[str, Any], reader: Reader) -> EmbeddingJoin | None:
    features = from_mapping(FeaturesConfig, query.get("added"), "features")
    _, join = with_long_history(features, reader.feature_spec())
    # The components that follow were told as of when the embeddings are.
    if join is not None and join.embeddings.fingerprint() != query["embeddings"]:
        raise InputError(
            f"{join.place} was exported anew since the pipeline was made: make it again, or read a "
            "store that stays as it is"
        )
    return join


def _is_eval(example: bytes, count: int, eval_buckets: int) -> int:
    """The split of an impression, by a hash of its features.

    Not of its bytes, as TFX does it: they have the features in another order every time, and an
    example would change its split with every run, or with its user's embedding.
    """
    del count
    parsed = tf.train.Example.FromString(example)
    for name in (USER_EMBEDDING, USER_EMBEDDING_VERSION):
        if name in parsed.features.feature:
            del parsed.features.feature[name]
    digest = hashlib.sha256(parsed.SerializeToString(deterministic=True))
    return int(int(digest.hexdigest(), 16) % _BUCKETS >= _BUCKETS - eval_buckets)


def _encoded(records: dict[str, beam.PCollection]) -> dict[str, beam.PCollection]:
    """The pipeline's splits from the data plane's."""
    return {
        name: records[split] | f"Encode{name.title()}" >> RecordsToExamples()
        for name, split in (("train", "train"), ("eval", "validation"))
    }


@beam.ptransform_fn
@beam.typehints.with_input_types(beam.Pipeline)
@beam.typehints.with_output_types(bytes)
def _source_to_examples(
    pipeline: beam.Pipeline, exec_properties: dict[str, Any], split_pattern: str
) -> beam.PCollection:
    del exec_properties
    query = json.loads(split_pattern)
    records = _read(pipeline, query, _opened(query))
    return records | "ToExamples" >> RecordsToExamples()


class ReaderExampleGenExecutor(base_example_gen_executor.BaseExampleGenExecutor):
    """Runs a reader of impressions under Beam."""

    def GetInputSourceToExamplePTransform(self) -> beam.PTransform:
        """See the base class; `GenerateExamplesByBeam` does without it."""
        return _source_to_examples

    def GenerateExamplesByBeam(
        self, pipeline: beam.Pipeline, exec_properties: dict[str, Any]
    ) -> dict[str, beam.PCollection]:
        """Examples of the splits `train` and `eval`."""
        query = _query(exec_properties)
        reader = _opened(query)
        records, join = _read(pipeline, query, reader), _join(query, reader)
        if join is not None:
            records = records | "UserEmbedding" >> JoinEmbeddings(join)
        parts = (
            records
            | "ToExamples" >> RecordsToExamples()
            | "Split" >> beam.Partition(_is_eval, 2, query["eval_buckets"])
        )
        return {"train": parts[0], "eval": parts[1]}


class HistoryExampleGenExecutor(base_example_gen_executor.BaseExampleGenExecutor):
    """Runs a reader of interactions under Beam, and makes histories of them.

    The splits follow from the histories, not from a hash of the example.
    """

    def GetInputSourceToExamplePTransform(self) -> beam.PTransform:
        """See the base class; `GenerateExamplesByBeam` does without it."""
        return _source_to_examples

    def GenerateExamplesByBeam(
        self, pipeline: beam.Pipeline, exec_properties: dict[str, Any]
    ) -> dict[str, beam.PCollection]:
        """Examples of the splits `train` and `eval`."""
        query = _query(exec_properties)
        reader = _opened(query)
        assert isinstance(reader, InteractionReader)
        examples = _read(pipeline, query, reader) | "Histories" >> InteractionsToExamples(
            reader.feature_spec(),
            from_mapping(HistoryConfig, query["history"]),
            reader.schema,
            (query["validation_fraction"], 0.0),
            query["seed"],
            with_test=False,
            join=_join(query, reader),
        )
        return _encoded(examples)


class ListExampleGenExecutor(base_example_gen_executor.BaseExampleGenExecutor):
    """Runs a reader of documents under Beam, and makes lists of them, split by query."""

    def GetInputSourceToExamplePTransform(self) -> beam.PTransform:
        """See the base class; `GenerateExamplesByBeam` does without it."""
        return _source_to_examples

    def GenerateExamplesByBeam(
        self, pipeline: beam.Pipeline, exec_properties: dict[str, Any]
    ) -> dict[str, beam.PCollection]:
        """Examples of the splits `train` and `eval`."""
        query = _query(exec_properties)
        reader = _opened(query)
        assert isinstance(reader, DocumentReader)
        lists = _read(pipeline, query, reader) | "Lists" >> DocumentsToLists(
            reader.schema,
            reader.feature_spec(),
            from_mapping(ListConfig, query["lists"]),
            (query["validation_fraction"], 0.0),
            query["seed"],
            with_test=False,
        )
        return _encoded(lists)


class TimelineExampleGenExecutor(base_example_gen_executor.BaseExampleGenExecutor):
    """Runs a reader of events under Beam, and makes sketches of timelines of them."""

    def GetInputSourceToExamplePTransform(self) -> beam.PTransform:
        """See the base class; `GenerateExamplesByBeam` does without it."""
        return _source_to_examples

    def GenerateExamplesByBeam(
        self, pipeline: beam.Pipeline, exec_properties: dict[str, Any]
    ) -> dict[str, beam.PCollection]:
        """Examples of the splits `train` and `eval`."""
        query = _query(exec_properties)
        reader = check_timelines(_opened(query))
        examples = _read(pipeline, query, reader) | "Timelines" >> EventsToExamples(
            reader.feature_spec(),
            from_mapping(TimelineConfig, query["timeline"]),
            (query["validation_fraction"], 0.0),
        )
        return _encoded(examples)


def _split(name: str, buckets: int) -> Any:
    return example_gen_pb2.SplitConfig.Split(name=name, hash_buckets=buckets)


class _ExampleGen(QueryBasedExampleGen):
    """What both have: the query of a reader as TFX's input configuration."""

    def __init__(
        self,
        data: str,
        features: str | None,
        reader: Reader,
        config: DataConfig,
        corrupt_lines: str,
        added: FeaturesConfig | None = None,
    ) -> None:
        query = {
            "data": data,
            "features": features,
            "records": reader.record_type,
            "options": config.options,
            "max_corrupt_fraction": config.max_corrupt_fraction,
            "corrupt_lines": corrupt_lines,
            "fingerprint": reader.fingerprint(),
        }
        if config.history is not None:
            query["history"] = to_mapping(config.history)
        if config.lists is not None:
            require(
                config.lists.base_ranker == "source",
                "data.lists.base_ranker",
                "lambda_mart is fitted by tfrz train alone: bring its scores as a column",
            )
            query["lists"] = to_mapping(config.lists)
        if config.timeline is not None:
            query["timeline"] = to_mapping(config.timeline)
        if any(part is not None for part in (config.history, config.lists, config.timeline)):
            query["validation_fraction"], query["seed"] = config.validation_fraction, config.seed
        eval_buckets = min(max(round(config.validation_fraction * _BUCKETS), 1), _BUCKETS - 1)
        if added is not None and added.long_history is not None:
            query["added"] = {name: getattr(added, name) for name in _JOINED}
            query["embeddings"] = open_store(added).fingerprint()
        if reader.record_type == "impression":
            query["eval_buckets"] = eval_buckets
        splits = [_split("train", _BUCKETS - eval_buckets), _split("eval", eval_buckets)]
        super().__init__(
            input_config=example_gen_pb2.Input(
                splits=[
                    example_gen_pb2.Input.Split(
                        name="all", pattern=json.dumps(query, sort_keys=True)
                    )
                ]
            ),
            output_config=example_gen_pb2.Output(
                split_config=example_gen_pb2.SplitConfig(splits=splits)
            ),
        )


class ReaderExampleGen(_ExampleGen):
    """Examples of impressions, split at random by a hash of the record into `train` and `eval`.

    Args:
      data: as `--data` of the command line.
      features: feature spec of a file of the user's own.
      reader: what `data` opens.
      config: options, share of the `eval` split, tolerated share of unreadable lines.
      corrupt_lines: the file that takes those lines.
      added: embeddings that every example gets; none by default.
    """

    EXECUTOR_SPEC = executor_spec.BeamExecutorSpec(ReaderExampleGenExecutor)


class HistoryExampleGen(_ExampleGen):
    """Examples of histories, in the splits `train` and `eval` that `config.history` asks for.

    What validation and test would be together is `eval`: the pipeline chooses nothing by it but
    whether to push.

    Args:
      data: as `--data` of the command line.
      features: spec of a file of the user's own.
      reader: what `data` opens.
      config: options, how histories are made, tolerated share of unreadable lines.
      corrupt_lines: the file that takes those lines.
      added: embeddings that every example gets; none by default.
    """

    EXECUTOR_SPEC = executor_spec.BeamExecutorSpec(HistoryExampleGenExecutor)


class ListExampleGen(_ExampleGen):
    """Examples of lists, in the splits `train` and `eval`: the source's own, or by query.

    What validation and test would be together is `eval`.

    Args:
      data: as `--data` of the command line.
      features: spec of a file of the user's own.
      reader: what `data` opens.
      config: options, how lists are made, tolerated share of unreadable lines.
      corrupt_lines: the file that takes those lines.
    """

    EXECUTOR_SPEC = executor_spec.BeamExecutorSpec(ListExampleGenExecutor)


class TimelineExampleGen(_ExampleGen):
    """Examples of timelines, in the splits `train` and `eval` that `config.timeline` asks for.

    What validation and test would be together is `eval`.

    Args:
      data: as `--data` of the command line.
      features: spec of a file of the user's own.
      reader: what `data` opens.
      config: options, slices and targets, tolerated share of unreadable lines.
      corrupt_lines: the file that takes those lines.
    """

    EXECUTOR_SPEC = executor_spec.BeamExecutorSpec(TimelineExampleGenExecutor)
