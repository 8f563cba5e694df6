"""The index: built from the catalogue, evaluated with its model, checked.

The trained model has three signatures, `encode`, `encode_examples` and `encode_items`; they allow
an index of any catalogue without another training. The model with its index is evaluated and
pushed.
"""

# TFX reads a component's annotations at run time: `from __future__ import annotations` breaks it.

import functools
import json
from pathlib import Path

import numpy as np
from tfx.dsl.component.experimental.annotations import InputArtifact, OutputArtifact, Parameter
from tfx.dsl.component.experimental.decorators import component
from tfx.dsl.components.base.base_node import BaseNode
from tfx.types import Artifact, BaseChannel
from tfx.types.standard_artifacts import Examples, Model, ModelBlessing
from tfx.utils import path_utils

from tfrz.data.histories.catalogue import Catalogue
from tfrz.data.histories.readers import InteractionReader
from tfrz.data.records import open_source
from tfrz.export.indexed_model import IndexedModel, exact_answers, export_indexed
from tfx_pipelines.components.blessing import bless, judged_records
from tfx_pipelines.components.stages import Stages
from tfx_pipelines.configs import config_from_json, config_to_json

_FILE = "catalogue.parquet"


class Candidates(Artifact):
    """A catalogue: Parquet with one row per item; see `tfrz.data.histories.catalogue`."""

    TYPE_NAME = "tfrz.Candidates"  # Kubeflow requires a namespace.


@component
def CandidateGen(query: Parameter[str], candidates: OutputArtifact[Candidates]) -> None:
    """Reads the catalogue of a source, and refuses a catalogue that lists an item twice.

    Args:
      query: JSON of `Stages.source`.
      candidates: the output.
    """
    source = json.loads(query)
    reader = open_source(source["data"], source["features"], "history", **source["options"])
    assert isinstance(reader, InteractionReader)
    spec, table = reader.feature_spec().candidates, reader.candidates()
    assert spec is not None
    assert table is not None
    Path(candidates.uri).mkdir(parents=True, exist_ok=True)
    Catalogue(spec, table).write(Path(candidates.uri) / _FILE)


def _catalogue(candidates: Candidates | None, trained: IndexedModel) -> Catalogue:
    """The given catalogue, or the model's vocabulary."""
    if candidates is not None:
        return Catalogue.read(Path(candidates.uri) / _FILE)
    return Catalogue.of_items([item.encode() for item in trained.vocabulary])


@component
def IndexBuilder(
    trained: InputArtifact[Model],
    model: OutputArtifact[Model],
    run_config: Parameter[str],
    candidates: InputArtifact[Candidates] = None,
) -> None:
    """Encodes the items of the catalogue and writes the model with their index.

    Args:
      trained: the Trainer's model.
      model: the output.
      run_config: the run's configuration as JSON; it names the index and the length of an answer.
      candidates: the catalogue; the model's vocabulary if omitted.
    """
    indexed = IndexedModel(path_utils.serving_model_path(trained.uri))
    catalogue, config = _catalogue(candidates, indexed), config_from_json(run_config)
    export_indexed(indexed, catalogue, config, path_utils.serving_model_dir(model.uri))


@component
def IndexCheck(
    model: InputArtifact[Model],
    examples: InputArtifact[Examples],
    earlier: InputArtifact[ModelBlessing],
    blessing: OutputArtifact[ModelBlessing],
    run_config: Parameter[str],
    candidates: InputArtifact[Candidates] = None,
) -> None:
    """Blesses a model if its index finds a large enough share of the exact answers.

    Args:
      model: the model with its index.
      examples: raw examples; those of the split that judges are the requests.
      earlier: the blessing so far.
      blessing: the output.
      run_config: the run's configuration as JSON; its `export.index.min_recall` is the bound.
      candidates: the indexed catalogue; the model's vocabulary if omitted.
    """
    config = config_from_json(run_config)
    wanted = config.export.index
    indexed = IndexedModel(path_utils.serving_model_path(model.uri))
    requests = [r.numpy() for r in judged_records(examples).take(wanted.check_queries)]
    found, exact = exact_answers(indexed, _catalogue(candidates, indexed), config, requests)
    # A request has no exact answer if its user has seen every item.
    asked = [(a, b) for a, b in zip(found, exact, strict=True) if b]
    shares = [len(set(a) & set(b)) / len(b) for a, b in asked]
    recall = float(np.mean(shares)) if shares else 1.0
    reason = None
    if recall < wanted.min_recall:
        reason = (
            f"the index finds {recall:.4f} of the exact answers, "
            f"export.index.min_recall is {wanted.min_recall}"
        )
    measured = {"recall": recall, "queries": len(asked), "kind": wanted.kind}
    bless(blessing, model, earlier, reason, measured)


class IndexStages(Stages):
    """Adds the catalogue, the index and its check."""

    @functools.cached_property
    def _generator(self) -> BaseNode | None:
        assert isinstance(self.run.source.reader, InteractionReader)
        if self.run.source.reader.feature_spec().candidates is None:
            return None
        return CandidateGen(query=json.dumps(self.source(), sort_keys=True))

    def _given(self) -> dict[str, BaseChannel | str]:
        """Arguments of both the builder and the check."""
        given: dict[str, BaseChannel | str] = {"run_config": config_to_json(self.run.config)}
        if self._generator is not None:
            given["candidates"] = self._generator.outputs["candidates"]
        return given

    def after_training(self, model: BaseChannel) -> tuple[BaseChannel, list[BaseNode]]:
        """See the base class."""
        builder = IndexBuilder(trained=model, **self._given())
        first = [] if self._generator is None else [self._generator]
        return builder.outputs["model"], [*first, builder]

    def after_evaluation(
        self, model: BaseChannel, examples: BaseChannel, blessing: BaseChannel
    ) -> tuple[BaseChannel, list[BaseNode]]:
        """See the base class."""
        check = IndexCheck(model=model, examples=examples, earlier=blessing, **self._given())
        return check.outputs["blessing"], [check]
