"""User embeddings: exported by the blessed model, checked, published.

The store outlives a run of the pipeline; each run adds a generation. A generation that the check
refuses is complete but never becomes current.
"""

# TFX reads a component's annotations at run time: `from __future__ import annotations` breaks it.

import json
from pathlib import Path
from typing import Any

from tfx.components.util import model_utils
from tfx.dsl.component.experimental.annotations import InputArtifact, OutputArtifact, Parameter
from tfx.dsl.component.experimental.decorators import component
from tfx.dsl.components.base.base_node import BaseNode
from tfx.types import Artifact, BaseChannel
from tfx.types.standard_artifacts import Model, ModelBlessing
from tfx.utils import path_utils

from tfrz.data.records import open_source
from tfrz.data.timelines.readers import check_timelines
from tfrz.embeddings.health import refusal
from tfrz.embeddings.job import ExportOptions, export_embeddings
from tfrz.embeddings.key_value import open_writer, write_key_values
from tfrz.embeddings.store import Store
from tfx_pipelines.components.blessing import bless
from tfx_pipelines.components.stages import Stages
from tfx_pipelines.configs import config_from_json, config_to_json

_FILE = "generation.json"


class Embeddings(Artifact):
    """A generation in a store of embeddings, named in `generation.json`; none if skipped."""

    TYPE_NAME = "tfrz.Embeddings"  # Kubeflow requires a namespace.


class PublishedEmbeddings(Artifact):
    """A generation that became current, named in `generation.json`; none if refused."""

    TYPE_NAME = "tfrz.PublishedEmbeddings"


def _write(artifact: Artifact, store: str, number: int | None) -> None:
    folder = Path(artifact.uri)
    folder.mkdir(parents=True, exist_ok=True)
    content = {"store": store, "number": number}
    (folder / _FILE).write_text(json.dumps(content, indent=1) + "\n")


def _read(artifact: Artifact) -> tuple[Store, int | None]:
    content = json.loads((Path(artifact.uri) / _FILE).read_text())
    return Store(content["store"]), content["number"]


@component
def EmbeddingExport(
    model: InputArtifact[Model],
    earlier: InputArtifact[ModelBlessing],
    embeddings: OutputArtifact[Embeddings],
    query: Parameter[str],
    run_config: Parameter[str],
) -> None:
    """Exports a generation of embeddings of all users, not yet current.

    Args:
      model: the model, with the signatures `pool` and `summarize`.
      earlier: the blessing so far; a refused model exports nothing.
      embeddings: the output.
      query: JSON of `Stages.source`, and `store`, the folder of generations.
      run_config: the run's configuration as JSON.
    """
    config, source = config_from_json(run_config), json.loads(query)
    if not model_utils.is_model_blessed(earlier):
        return _write(embeddings, source["store"], None)
    reader = open_source(source["data"], source["features"], "timeline", **source["options"])
    wanted = config.export.embeddings
    manifest = export_embeddings(
        path_utils.serving_model_path(model.uri),
        check_timelines(reader),
        source["store"],
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
    return _write(embeddings, source["store"], manifest.number)


@component
def EmbeddingCheck(
    model: InputArtifact[Model],
    embeddings: InputArtifact[Embeddings],
    earlier: InputArtifact[ModelBlessing],
    blessing: OutputArtifact[ModelBlessing],
    run_config: Parameter[str],
) -> None:
    """Blesses a model if the health report of its embeddings keeps the bounds.

    Args:
      model: the model that made the embeddings.
      embeddings: the output of `EmbeddingExport`.
      earlier: the blessing so far.
      blessing: the output.
      run_config: the run's configuration as JSON; its section `evaluator` holds the bounds.
    """
    store, number = _read(embeddings)
    reason, measured = None, dict[str, Any]()
    if number is not None:
        report = json.loads((store.generation(number) / "health.json").read_text())
        reason = refusal(report, config_from_json(run_config).evaluator)
        measured = {name: value for name, value in report.items() if name != "slices"}
    bless(blessing, model, earlier, reason, measured)


@component
def EmbeddingPublisher(
    embeddings: InputArtifact[Embeddings],
    blessing: InputArtifact[ModelBlessing],
    published: OutputArtifact[PublishedEmbeddings],
    to: Parameter[str],
) -> None:
    """Makes a blessed generation current, and writes it to the key-value stores.

    Args:
      embeddings: the output of `EmbeddingExport`.
      blessing: the last blessing.
      published: the output.
      to: JSON list of writers, see `tfrz.embeddings.key_value.open_writer`; SQLite in the store if
        empty.
    """
    store, number = _read(embeddings)
    if number is not None and model_utils.is_model_blessed(blessing):
        for text in json.loads(to) or [f"sqlite={store.directory}/current.sqlite"]:
            write_key_values(store, number, open_writer(text))
        store.publish(number)
        store.prune()
    else:
        number = None
    _write(published, str(store.directory), number)


class EmbeddingStages(Stages):
    """Adds the export of embeddings, its check and the publication."""

    def after_evaluation(
        self, model: BaseChannel, examples: BaseChannel, blessing: BaseChannel
    ) -> tuple[BaseChannel, list[BaseNode]]:
        """See the base class."""
        wanted = self.run.config.export.embeddings
        query = {**self.source(), "store": wanted.store or self.places.embeddings}
        run_config = config_to_json(self.run.config)
        export = EmbeddingExport(
            model=model,
            earlier=blessing,
            query=json.dumps(query, sort_keys=True),
            run_config=run_config,
        )
        embeddings = export.outputs["embeddings"]
        check = EmbeddingCheck(
            model=model, embeddings=embeddings, earlier=blessing, run_config=run_config
        )
        last = check.outputs["blessing"]
        publisher = EmbeddingPublisher(
            embeddings=embeddings, blessing=last, to=json.dumps(wanted.to)
        )
        return last, [export, check, publisher]
