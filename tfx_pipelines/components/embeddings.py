"""Users' embeddings as part of the pipeline: exported by the blessed model, checked, published.

The store outlives a run of the pipeline, so that the next one adds to it. A generation that the
check refuses is finished but never current.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

from tfx import types
from tfx.components.util import model_utils
from tfx.dsl.components.base import base_component, base_executor, executor_spec
from tfx.types import artifact_utils, component_spec, standard_artifacts
from tfx.utils import path_utils

from tfrz.data.records import open_source
from tfrz.data.sources.reader import Reader
from tfrz.data.timelines.readers import check_timelines
from tfrz.embeddings.health import refusal
from tfrz.embeddings.job import ExportOptions, export_embeddings
from tfrz.embeddings.key_value import open_writer, write_key_values
from tfrz.embeddings.store import Store
from tfrz.zoo.run_config import RunConfig, run_config_from_mapping, run_config_to_mapping
from tfx_pipelines.components.blessing import bless
from tfx_pipelines.configs import Places

_FILE = "generation.json"


class Embeddings(types.Artifact):
    """A generation in a store of embeddings: `generation.json` says which, none if skipped."""

    TYPE_NAME = "tfrz.Embeddings"  # Kubeflow wants a namespace.


class PublishedEmbeddings(types.Artifact):
    """A generation that was made current: `generation.json` says which, none if refused."""

    TYPE_NAME = "tfrz.PublishedEmbeddings"


def _write(artifacts: list[Any], content: dict[str, Any]) -> None:
    folder = Path(artifact_utils.get_single_uri(artifacts))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _FILE).write_text(json.dumps(content, indent=1) + "\n")


def _read(artifacts: list[Any]) -> dict[str, Any]:
    return dict(json.loads((Path(artifact_utils.get_single_uri(artifacts)) / _FILE).read_text()))


class EmbeddingExportSpec(component_spec.ComponentSpec):
    """What `EmbeddingExport` takes and gives."""

    PARAMETERS: ClassVar = {
        "query": component_spec.ExecutionParameter(type=str),
        "run_config": component_spec.ExecutionParameter(type=str),
    }
    INPUTS: ClassVar = {
        "model": component_spec.ChannelParameter(type=standard_artifacts.Model),
        "earlier": component_spec.ChannelParameter(type=standard_artifacts.ModelBlessing),
    }
    OUTPUTS: ClassVar = {"embeddings": component_spec.ChannelParameter(type=Embeddings)}


class EmbeddingExportExecutor(base_executor.BaseExecutor):
    """Runs the export job; a model that was not blessed is not worth it."""

    def Do(
        self,
        input_dict: dict[str, list[Any]],
        output_dict: dict[str, list[Any]],
        exec_properties: dict[str, Any],
    ) -> None:
        """See the base class."""
        config = run_config_from_mapping(json.loads(exec_properties["run_config"]))
        query = json.loads(exec_properties["query"])
        earlier = artifact_utils.get_single_instance(input_dict["earlier"])
        if not model_utils.is_model_blessed(earlier):
            _write(output_dict["embeddings"], {"store": query["store"], "number": None})
            return
        (source,) = input_dict["model"]
        reader = open_source(query["data"], query["features"], "timeline", **query["options"])
        wanted = config.export.embeddings
        manifest = export_embeddings(
            path_utils.serving_model_path(source.uri),
            check_timelines(reader),
            query["store"],
            ExportOptions(
                as_of=wanted.as_of,
                buckets=wanted.buckets,
                allow_empty=wanted.allow_empty,
                max_corrupt_fraction=config.data.max_corrupt_fraction,
                beam_runner=config.pipeline.beam_runner,
                beam_args=config.pipeline.beam_args,
            ),
            publish=False,
        )
        _write(output_dict["embeddings"], {"store": query["store"], "number": manifest.number})


class EmbeddingExport(base_component.BaseComponent):
    """A generation of everybody's embeddings, not yet current.

    Args:
      model: with the signatures `pool` and `summarize`.
      earlier: the blessing so far; without it nothing is exported.
      data: as `--data` of the command line.
      features: spec of a file of the user's own.
      reader: what `data` opens.
      config: the run's configuration.
      store: folder of generations.
    """

    SPEC_CLASS = EmbeddingExportSpec
    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(EmbeddingExportExecutor)

    def __init__(
        self,
        model: types.BaseChannel,
        earlier: types.BaseChannel,
        data: str,
        features: str | None,
        reader: Reader,
        config: RunConfig,
        store: str,
    ) -> None:
        query = {
            "data": data,
            "features": features,
            "options": config.data.options,
            "store": store,
            # So that TFX's cache knows a changed file from an unchanged one.
            "fingerprint": reader.fingerprint(),
        }
        super().__init__(
            EmbeddingExportSpec(
                model=model,
                earlier=earlier,
                query=json.dumps(query, sort_keys=True),
                run_config=json.dumps(run_config_to_mapping(config), sort_keys=True),
                embeddings=types.Channel(type=Embeddings),
            )
        )


class EmbeddingCheckSpec(component_spec.ComponentSpec):
    """What `EmbeddingCheck` takes and gives."""

    PARAMETERS: ClassVar = {"run_config": component_spec.ExecutionParameter(type=str)}
    INPUTS: ClassVar = {
        "model": component_spec.ChannelParameter(type=standard_artifacts.Model),
        "embeddings": component_spec.ChannelParameter(type=Embeddings),
        "earlier": component_spec.ChannelParameter(type=standard_artifacts.ModelBlessing),
    }
    OUTPUTS: ClassVar = {
        "blessing": component_spec.ChannelParameter(type=standard_artifacts.ModelBlessing)
    }


class EmbeddingCheckExecutor(base_executor.BaseExecutor):
    """Judges the report that the export wrote."""

    def Do(
        self,
        input_dict: dict[str, list[Any]],
        output_dict: dict[str, list[Any]],
        exec_properties: dict[str, Any],
    ) -> None:
        """See the base class."""
        config = run_config_from_mapping(json.loads(exec_properties["run_config"]))
        (source,) = input_dict["model"]
        made = _read(input_dict["embeddings"])
        reason, measured = None, {}
        if made["number"] is not None:
            folder = Store(made["store"]).generation(made["number"])
            report = json.loads((folder / "health.json").read_text())
            reason = refusal(report, config.evaluator)
            measured = {name: value for name, value in report.items() if name != "slices"}
        bless(output_dict["blessing"], source, input_dict["earlier"], reason, measured)


class EmbeddingCheck(base_component.BaseComponent):
    """Blesses a model that was blessed so far if its embeddings are sound.

    Args:
      model: that made them.
      embeddings: of `EmbeddingExport`.
      earlier: the blessing so far.
      config: says what is wanted (`evaluator`).
    """

    SPEC_CLASS = EmbeddingCheckSpec
    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(EmbeddingCheckExecutor)

    def __init__(
        self,
        model: types.BaseChannel,
        embeddings: types.BaseChannel,
        earlier: types.BaseChannel,
        config: RunConfig,
    ) -> None:
        super().__init__(
            EmbeddingCheckSpec(
                model=model,
                embeddings=embeddings,
                earlier=earlier,
                run_config=json.dumps(run_config_to_mapping(config), sort_keys=True),
                blessing=types.Channel(type=standard_artifacts.ModelBlessing),
            )
        )


class EmbeddingPublisherSpec(component_spec.ComponentSpec):
    """What `EmbeddingPublisher` takes and gives."""

    PARAMETERS: ClassVar = {"to": component_spec.ExecutionParameter(type=str)}
    INPUTS: ClassVar = {
        "embeddings": component_spec.ChannelParameter(type=Embeddings),
        "blessing": component_spec.ChannelParameter(type=standard_artifacts.ModelBlessing),
    }
    OUTPUTS: ClassVar = {"published": component_spec.ChannelParameter(type=PublishedEmbeddings)}


class EmbeddingPublisherExecutor(base_executor.BaseExecutor):
    """Makes a blessed generation current, and writes it to the key-value stores."""

    def Do(
        self,
        input_dict: dict[str, list[Any]],
        output_dict: dict[str, list[Any]],
        exec_properties: dict[str, Any],
    ) -> None:
        """See the base class."""
        made = _read(input_dict["embeddings"])
        blessing = artifact_utils.get_single_instance(input_dict["blessing"])
        if made["number"] is None or not model_utils.is_model_blessed(blessing):
            _write(output_dict["published"], made | {"number": None})
            return
        store = Store(made["store"])
        for text in json.loads(exec_properties["to"]) or [
            f"sqlite={store.directory}/current.sqlite"
        ]:
            write_key_values(store, made["number"], open_writer(text))
        store.publish(made["number"])
        store.prune()
        _write(output_dict["published"], made)


class EmbeddingPublisher(base_component.BaseComponent):
    """Publishes embeddings with every blessing.

    Args:
      embeddings: of `EmbeddingExport`.
      blessing: the last.
      to: writers, see `tfrz.embeddings.key_value.open_writer`; SQLite in the store if none.
    """

    SPEC_CLASS = EmbeddingPublisherSpec
    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(EmbeddingPublisherExecutor)

    def __init__(
        self, embeddings: types.BaseChannel, blessing: types.BaseChannel, to: tuple[str, ...]
    ) -> None:
        super().__init__(
            EmbeddingPublisherSpec(
                embeddings=embeddings,
                blessing=blessing,
                to=json.dumps(list(to)),
                published=types.Channel(type=PublishedEmbeddings),
            )
        )


class EmbeddingStages:
    """What a pipeline of DV365 has beyond the others': the export, its check, the publication.

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
        self._config, self._reader = config, reader
        self._source = (data, features)
        self._store = config.export.embeddings.store or places.embeddings

    def after_training(self, model: Any) -> tuple[Any, list[Any]]:
        """The model as it is."""
        return model, []

    def after_evaluation(self, model: Any, examples: Any, blessing: Any) -> tuple[Any, list[Any]]:
        """The blessing that the Pusher needs, and the components that give it."""
        export = EmbeddingExport(
            model, blessing, *self._source, self._reader, self._config, self._store
        )
        embeddings = export.outputs["embeddings"]
        check = EmbeddingCheck(model, embeddings, blessing, self._config)
        last = check.outputs["blessing"]
        publisher = EmbeddingPublisher(embeddings, last, self._config.export.embeddings.to)
        return last, [export, check, publisher]
