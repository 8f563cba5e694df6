"""ExampleGen on the zoo's readers.

It is not a file-based ExampleGen: the reader decides what one source is (an archive with three
tables, a simulator). The source, its options and the fingerprint of its contents are the "query",
so that TFX's cache sees a changed file. The component is a class, because it runs on Beam.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any, cast

import apache_beam as beam
from google.protobuf import json_format
from tfx.components.example_gen.base_example_gen_executor import BaseExampleGenExecutor
from tfx.components.example_gen.component import QueryBasedExampleGen
from tfx.components.example_gen.utils import VERSION_PROPERTY_NAME
from tfx.dsl.components.base.executor_spec import BeamExecutorSpec
from tfx.proto import example_gen_pb2, range_config_pb2
from tfx.types import Artifact, artifact_utils, standard_component_specs

from tfrz.config import from_mapping, require, to_mapping
from tfrz.data.beam import CheckCorrupt, ReadRecords, RecordsToExamples
from tfrz.data.histories.beam import InteractionsToExamples
from tfrz.data.histories.readers import InteractionReader
from tfrz.data.histories.spec import HistoryConfig
from tfrz.data.impressions.beam import SplitImpressions
from tfrz.data.impressions.spec import FeatureSpec
from tfrz.data.lists.beam import DocumentsToLists
from tfrz.data.lists.readers import DocumentReader
from tfrz.data.lists.spec import ListConfig
from tfrz.data.records import RECORD_TYPES, load
from tfrz.data.sources.reader import Reader
from tfrz.data.timelines.beam import EventsToExamples
from tfrz.data.timelines.readers import check_timelines
from tfrz.data.timelines.spec import TimelineConfig
from tfrz.data.user_embeddings import EmbeddingJoin
from tfrz.data.user_embeddings_beam import JoinEmbeddings
from tfrz.errors import InputError
from tfrz.zoo.run import Run, open_reader
from tfrz.zoo.run_config import DataConfig, FeaturesConfig
from tfrz.zoo.user_embeddings import with_user_embeddings
from tfx_pipelines.configs import splits_of

# The fields of a `FeaturesConfig` that decide which embeddings an example gets.
_JOINED = ("long_history", "long_history_version", "any_version", "user")

Splits = dict[str, beam.PCollection]


@dataclasses.dataclass(frozen=True)
class Plan:
    """How the records of a source become examples.

    Attributes:
      reader: the reader of the source.
      settings: the section `data` of the configuration.
      section: its part for the type of the records; None for impressions.
      join: adds user embeddings to examples; None to add none.
    """

    reader: Reader
    settings: DataConfig
    section: HistoryConfig | ListConfig | TimelineConfig | None
    join: EmbeddingJoin | None

    @property
    def held_out(self) -> tuple[float, float]:
        """Shares of validation and test; without the latter there is no test split."""
        return self.settings.held_out

    @property
    def seed(self) -> int:
        """The seed of the splits."""
        return self.settings.seed

    @property
    def with_test(self) -> bool:
        """Whether there is a test split."""
        return self.held_out[1] > 0

    @property
    def splits(self) -> tuple[str, ...]:
        """The pipeline's splits."""
        return splits_of(self.held_out[1])


# The pipeline's splits, and the names that the data layer has for them.
_SPLITS = {"train": "train", "eval": "validation", "test": "test"}


def _encoded(records: Splits, plan: Plan) -> Splits:
    """Serialized examples of the splits that the data layer made."""
    return {
        name: records[_SPLITS[name]] | f"Encode{name.title()}" >> RecordsToExamples()
        for name in plan.splits
    }


def impressions(records: beam.PCollection, plan: Plan) -> Splits:
    """Serialized examples of impressions, split by their own values."""
    if plan.join is not None:
        records = records | "UserEmbedding" >> JoinEmbeddings(plan.join)
    split = plan.settings.split_plan(cast(FeatureSpec, plan.reader.feature_spec()))
    return _encoded(records | "Split" >> SplitImpressions(split), plan)


def histories(records: beam.PCollection, plan: Plan) -> Splits:
    """Serialized examples of histories, in the splits that `data.history` asks for."""
    reader, section = plan.reader, plan.section
    assert isinstance(reader, InteractionReader)
    assert isinstance(section, HistoryConfig)
    spec = reader.feature_spec()
    made = InteractionsToExamples(
        spec, section, reader.schema, plan.held_out, plan.seed, plan.with_test, plan.join
    )
    return _encoded(records | "Histories" >> made, plan)


def lists(records: beam.PCollection, plan: Plan) -> Splits:
    """Serialized examples of lists, in the splits of the source, or split by query."""
    reader, section = plan.reader, plan.section
    assert isinstance(reader, DocumentReader)
    assert isinstance(section, ListConfig)
    made = DocumentsToLists(
        reader.schema,
        reader.feature_spec(),
        section,
        plan.held_out,
        plan.seed,
        plan.with_test,
    )
    return _encoded(records | "Lists" >> made, plan)


def timelines(records: beam.PCollection, plan: Plan) -> Splits:
    """Serialized examples of timelines, in the splits that `data.timeline` asks for."""
    assert isinstance(plan.section, TimelineConfig)
    spec = check_timelines(plan.reader).feature_spec()
    made = EventsToExamples(spec, plan.section, plan.held_out)
    return _encoded(records | "Timelines" >> made, plan)


def _read(
    pipeline: beam.Pipeline, reader: Reader, settings: DataConfig, corrupt_lines: str
) -> beam.PCollection:
    outputs = pipeline | "ReadRecords" >> ReadRecords(reader)
    _ = outputs | "CheckCorrupt" >> CheckCorrupt(settings.max_corrupt_fraction, corrupt_lines)
    return outputs["records"]


def _join(query: dict[str, Any], reader: Reader) -> EmbeddingJoin | None:
    features = from_mapping(FeaturesConfig, query.get("added"), "features")
    _, join = with_user_embeddings(features, reader.feature_spec())
    # The later components know the time of the embeddings from the pipeline's definition.
    if join is not None and join.embeddings.fingerprint() != query["embeddings"]:
        raise InputError(
            f"{join.place} was exported anew since the pipeline was made: make it again, or read a "
            "store that does not change"
        )
    return join


def _query(exec_properties: dict[str, Any]) -> dict[str, Any]:
    """What `ExampleGen` wrote down."""
    inputs = example_gen_pb2.Input()
    json_format.Parse(exec_properties["input_config"], inputs)
    query: dict[str, Any] = json.loads(inputs.splits[0].pattern)
    return query


class ExampleGenExecutor(BaseExampleGenExecutor):
    """Runs a reader on Beam; `RECORD_TYPES` says how its records become examples."""

    def GetInputSourceToExamplePTransform(self) -> beam.PTransform:
        """TFX's hook for one transform of all splits, which `GenerateExamplesByBeam` replaces."""
        raise NotImplementedError

    def Do(
        self,
        input_dict: dict[str, list[Artifact]],
        output_dict: dict[str, list[Artifact]],
        exec_properties: dict[str, Any],
    ) -> None:
        """Writes the examples, and the spans that they are of."""
        super().Do(input_dict, output_dict, exec_properties)
        query = _query(exec_properties)
        if "spans" in query:
            examples = artifact_utils.get_single_instance(
                output_dict[standard_component_specs.EXAMPLES_KEY]
            )
            numbers = ",".join(str(number) for number in query["spans"])
            examples.set_string_custom_property("spans", numbers)
            if query["version"] is not None:
                examples.set_int_custom_property(VERSION_PROPERTY_NAME, query["version"])

    def GenerateExamplesByBeam(
        self, pipeline: beam.Pipeline, exec_properties: dict[str, Any]
    ) -> Splits:
        """Examples of each split."""
        query = _query(exec_properties)
        row = RECORD_TYPES[query["records"]]
        settings = from_mapping(DataConfig, query["settings"], "data")
        reader = open_reader(settings, query["data"], query["features"], row.name)
        section = None if row.section is None else getattr(settings, row.section)
        plan = Plan(reader, settings, section, _join(query, reader))
        records = _read(pipeline, reader, settings, query["corrupt_lines"])
        splits: Splits = load(row.splits)(records, plan)
        return splits


class ExampleGen(QueryBasedExampleGen):
    """Examples in the splits of `tfrz train`: `train`, `eval` and, with a test fraction, `test`.

    Args:
      run: the resolved run.
      corrupt_lines: file for the lines that cannot be read.
    """

    EXECUTOR_SPEC = BeamExecutorSpec(ExampleGenExecutor)

    def __init__(self, run: Run, corrupt_lines: str) -> None:
        row, config = RECORD_TYPES[run.entry.record_type], run.config.data
        query = {
            "data": run.data,
            "features": run.features,
            "records": row.name,
            "settings": to_mapping(config),
            "corrupt_lines": corrupt_lines,
            "fingerprint": run.fingerprint,
        }
        if config.lists is not None:
            require(
                config.lists.base_ranker == "source",
                "data.lists.base_ranker",
                "lambda_mart is fitted by tfrz train alone: bring its scores as a column",
            )
        if run.source.join is not None:
            query["added"] = {name: getattr(run.config.features, name) for name in _JOINED}
            query["embeddings"] = run.source.join.embeddings.fingerprint()
        newest = run.spans[-1] if run.spans else None
        span_range = None
        if newest is not None:
            query["spans"] = [span.number for span in run.spans]
            query["version"] = newest.version
            # TFX makes it the property `span` of the examples.
            static = range_config_pb2.StaticRange(
                start_span_number=newest.number, end_span_number=newest.number
            )
            span_range = range_config_pb2.RangeConfig(static_range=static)
        pattern = json.dumps(query, sort_keys=True)
        # TFX wants the splits by buckets of a hash; the executor reads their names only.
        split = example_gen_pb2.SplitConfig.Split
        splits = [split(name=name, hash_buckets=1) for name in splits_of(config.test_fraction)]
        super().__init__(
            input_config=example_gen_pb2.Input(
                splits=[example_gen_pb2.Input.Split(name="all", pattern=pattern)]
            ),
            output_config=example_gen_pb2.Output(
                split_config=example_gen_pb2.SplitConfig(splits=splits)
            ),
            range_config=span_range,
        )
        self.with_id(row.example_gen)
