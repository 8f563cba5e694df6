"""The index as part of the pipeline: built from the catalogue, evaluated like any model, checked.

The trained model brings three signatures, `encode`, `encode_examples` and `encode_items`; an index
of any catalogue can be made from them without training anew. What is evaluated and pushed is the
model with its index.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tensorflow as tf
from tfx import types
from tfx.dsl.components.base import base_component, base_executor, executor_spec
from tfx.types import artifact_utils, component_spec, standard_artifacts
from tfx.utils import path_utils

from tfrz.data.histories.catalogue import Catalogue
from tfrz.data.histories.readers import InteractionReader
from tfrz.data.records import open_source
from tfrz.data.sources.reader import Reader
from tfrz.export.indexed_model import IndexedModel, exact_answers, export_indexed
from tfrz.zoo.run_config import RunConfig, run_config_from_mapping, run_config_to_mapping
from tfx_pipelines.components.blessing import bless
from tfx_pipelines.configs import Places

_FILE = "catalogue.parquet"


class Candidates(types.Artifact):
    """A catalogue: Parquet with a row per item; see `tfrz.data.histories.catalogue.Catalogue`."""

    TYPE_NAME = "tfrz.Candidates"  # Kubeflow wants a namespace.


class CandidateGenSpec(component_spec.ComponentSpec):
    """What `CandidateGen` takes and gives."""

    PARAMETERS: ClassVar = {"query": component_spec.ExecutionParameter(type=str)}
    INPUTS: ClassVar = {}
    OUTPUTS: ClassVar = {"candidates": component_spec.ChannelParameter(type=Candidates)}


class CandidateGenExecutor(base_executor.BaseExecutor):
    """Reads the catalogue of a source, and refuses one with an item twice."""

    def Do(
        self,
        input_dict: dict[str, list[Any]],
        output_dict: dict[str, list[Any]],
        exec_properties: dict[str, Any],
    ) -> None:
        """See the base class."""
        query = json.loads(exec_properties["query"])
        reader = open_source(query["data"], query["features"], "history", **query["options"])
        assert isinstance(reader, InteractionReader)
        spec, table = reader.feature_spec().candidates, reader.candidates()
        assert spec is not None
        assert table is not None
        (output,) = output_dict["candidates"]
        Path(output.uri).mkdir(parents=True, exist_ok=True)
        Catalogue(spec, table).write(Path(output.uri) / _FILE)


class CandidateGen(base_component.BaseComponent):
    """The catalogue of a source as an artifact of its own.

    Args:
      data: as `--data` of the command line.
      features: spec of a file of the user's own.
      reader: what `data` opens.
      options: of the reader.
    """

    SPEC_CLASS = CandidateGenSpec
    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(CandidateGenExecutor)

    def __init__(
        self, data: str, features: str | None, reader: Reader, options: dict[str, Any]
    ) -> None:
        query = {
            "data": data,
            "features": features,
            "options": options,
            # So that TFX's cache knows a changed file from an unchanged one.
            "fingerprint": reader.fingerprint(),
        }
        super().__init__(
            CandidateGenSpec(
                query=json.dumps(query, sort_keys=True),
                candidates=types.Channel(type=Candidates),
            )
        )


def _catalogue(input_dict: dict[str, list[Any]], trained: IndexedModel) -> Catalogue:
    """The catalogue that was given, or the vocabulary of the model."""
    if input_dict.get("candidates"):
        uri = artifact_utils.get_single_uri(input_dict["candidates"])
        return Catalogue.read(Path(uri) / _FILE)
    return Catalogue.of_items([item.encode() for item in trained.vocabulary])


class IndexBuilderSpec(component_spec.ComponentSpec):
    """What `IndexBuilder` takes and gives."""

    PARAMETERS: ClassVar = {"run_config": component_spec.ExecutionParameter(type=str)}
    INPUTS: ClassVar = {
        "trained": component_spec.ChannelParameter(type=standard_artifacts.Model),
        "candidates": component_spec.ChannelParameter(type=Candidates, optional=True),
    }
    OUTPUTS: ClassVar = {"model": component_spec.ChannelParameter(type=standard_artifacts.Model)}


class IndexBuilderExecutor(base_executor.BaseExecutor):
    """Encodes the items of the catalogue and writes the model with their index."""

    def Do(
        self,
        input_dict: dict[str, list[Any]],
        output_dict: dict[str, list[Any]],
        exec_properties: dict[str, Any],
    ) -> None:
        """See the base class."""
        config = run_config_from_mapping(json.loads(exec_properties["run_config"]))
        (source,), (target,) = input_dict["trained"], output_dict["model"]
        trained = IndexedModel(path_utils.serving_model_path(source.uri))
        catalogue = _catalogue(input_dict, trained)
        export_indexed(trained, catalogue, config, path_utils.serving_model_dir(target.uri))


class IndexBuilder(base_component.BaseComponent):
    """A model that recommends from an index of a catalogue.

    Args:
      trained: the Trainer's model.
      config: says which index, and how many items an answer lists.
      candidates: the catalogue; the model's vocabulary if left out.
    """

    SPEC_CLASS = IndexBuilderSpec
    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(IndexBuilderExecutor)

    def __init__(
        self,
        trained: types.BaseChannel,
        config: RunConfig,
        candidates: types.BaseChannel | None = None,
    ) -> None:
        super().__init__(
            IndexBuilderSpec(
                trained=trained,
                candidates=candidates,
                run_config=json.dumps(run_config_to_mapping(config), sort_keys=True),
                model=types.Channel(type=standard_artifacts.Model),
            )
        )


class IndexCheckSpec(component_spec.ComponentSpec):
    """What `IndexCheck` takes and gives."""

    PARAMETERS: ClassVar = {"run_config": component_spec.ExecutionParameter(type=str)}
    INPUTS: ClassVar = {
        "model": component_spec.ChannelParameter(type=standard_artifacts.Model),
        "examples": component_spec.ChannelParameter(type=standard_artifacts.Examples),
        "earlier": component_spec.ChannelParameter(type=standard_artifacts.ModelBlessing),
        "candidates": component_spec.ChannelParameter(type=Candidates, optional=True),
    }
    OUTPUTS: ClassVar = {
        "blessing": component_spec.ChannelParameter(type=standard_artifacts.ModelBlessing)
    }


class IndexCheckExecutor(base_executor.BaseExecutor):
    """Measures what share of the exact answers the index finds."""

    def Do(
        self,
        input_dict: dict[str, list[Any]],
        output_dict: dict[str, list[Any]],
        exec_properties: dict[str, Any],
    ) -> None:
        """See the base class."""
        config = run_config_from_mapping(json.loads(exec_properties["run_config"]))
        wanted = config.export.index
        (source,) = input_dict["model"]
        model = IndexedModel(path_utils.serving_model_path(source.uri))
        catalogue = _catalogue(input_dict, model)
        folder = artifact_utils.get_split_uri(input_dict["examples"], "eval")
        files = sorted(str(path) for path in Path(folder).glob("*"))
        records = tf.data.TFRecordDataset(files, compression_type="GZIP")
        examples = [r.numpy() for r in records.take(wanted.check_queries)]
        found, exact = exact_answers(model, catalogue, config, examples)
        # Where everything was seen there is nothing to find.
        asked = [(a, b) for a, b in zip(found, exact, strict=True) if b]
        shares = [len(set(a) & set(b)) / len(b) for a, b in asked]
        recall = float(np.mean(shares)) if shares else 1.0
        reason = None
        if recall < wanted.min_recall:
            reason = (
                f"the index finds {recall:.4f} of the exact answers, "
                f"export.index.min_recall is {wanted.min_recall}"
            )
        bless(
            output_dict["blessing"],
            source,
            input_dict["earlier"],
            reason,
            {"recall": recall, "queries": len(asked), "kind": wanted.kind},
        )


class IndexCheck(base_component.BaseComponent):
    """Blesses a model that was blessed so far if its index finds what an exact search finds.

    Args:
      model: with its index.
      examples: raw examples; those of the split `eval` are asked.
      earlier: the blessing so far.
      config: says how much must be found.
      candidates: the catalogue that is indexed; the model's vocabulary if left out.
    """

    SPEC_CLASS = IndexCheckSpec
    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(IndexCheckExecutor)

    def __init__(
        self,
        model: types.BaseChannel,
        examples: types.BaseChannel,
        earlier: types.BaseChannel,
        config: RunConfig,
        candidates: types.BaseChannel | None = None,
    ) -> None:
        super().__init__(
            IndexCheckSpec(
                model=model,
                examples=examples,
                earlier=earlier,
                candidates=candidates,
                run_config=json.dumps(run_config_to_mapping(config), sort_keys=True),
                blessing=types.Channel(type=standard_artifacts.ModelBlessing),
            )
        )


class IndexStages:
    """What a pipeline of retrieval has beyond the others': the catalogue, the index, its check.

    Args:
      config: the run's configuration.
      data: as `--data` of the command line.
      features: spec of a file of the user's own.
      reader: what `data` opens.
      places: where things go.
    """

    def __init__(
        self, config: RunConfig, data: str, features: str | None, reader: Any, places: Places
    ) -> None:
        del places
        self._config = config
        self._candidates: Any = None
        if reader.feature_spec().candidates is not None:
            self._generator = CandidateGen(data, features, reader, config.data.options)
            self._candidates = self._generator.outputs["candidates"]

    def after_training(self, model: Any) -> tuple[Any, list[Any]]:
        """The model to evaluate and push, and the components that make it."""
        builder = IndexBuilder(model, self._config, self._candidates)
        first = [] if self._candidates is None else [self._generator]
        return builder.outputs["model"], [*first, builder]

    def after_evaluation(self, model: Any, examples: Any, blessing: Any) -> tuple[Any, list[Any]]:
        """The blessing that the Pusher needs, and the components that give it."""
        check = IndexCheck(model, examples, blessing, self._config, self._candidates)
        return check.outputs["blessing"], [check]
