"""Writing a SavedModel with signatures, assets and warm-up requests, in one atomic step."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import keras
import tensorflow as tf

from tfrz.config import write_yaml
from tfrz.data.spec import Spec
from tfrz.export.index import OPS_OF_KIND, usable
from tfrz.export.warmup import write_warmup
from tfrz.files import atomic_directory
from tfrz.keras_versions import tf_variables
from tfrz.operations import REQUIRED_OPS


def weight_names(model: keras.Model) -> dict[str, tf.Variable]:
    """Weights by `<layer>-<weight>`, which does not depend on other models in the process."""
    named: dict[str, tf.Variable] = {}
    for layer in model.layers:
        for weight, variable in zip(layer.weights, tf_variables(layer.weights), strict=True):
            path = getattr(weight, "path", weight.name).split(":")[0]
            name = f"{layer.name}-{path.rpartition('/')[2]}"
            if name in named:
                raise ValueError(f"two weights are called {name}: give the layers their own names")
            named[name] = variable
    return named


def save_options(run_config: Any) -> tf.saved_model.SaveOptions:
    """The options for writing a SavedModel of a run."""
    return tf.saved_model.SaveOptions(
        # The graph must load on a server with other devices than the trainer's.
        experimental_custom_gradients=False,
        namespace_whitelist=["Scann"] if usable(run_config.export.index).kind == "scann" else None,
    )


def write_required_ops(folder: Path, run_config: Any) -> None:
    """Writes `assets/required_ops.txt` if a stock server lacks operations of the model."""
    needed = OPS_OF_KIND.get(usable(run_config.export.index).kind)
    if needed is not None:
        (folder / REQUIRED_OPS).write_text(f"{needed}.\n")


class Exported(Protocol):
    """The task of a model that is exported (see `tfrz.zoo.task`)."""

    parts: list[Any]

    def signatures(
        self,
        model: keras.Model,
        transform: Any,
        spec: Any,
        vocabularies: Mapping[str, Sequence[str]],
    ) -> Mapping[str, Callable[..., dict[str, tf.Tensor]]]:
        """The signatures; `parts` then holds what they read beyond the model's weights."""


def export_model(
    version_directory: Path,
    model: keras.Model,
    task: Exported,
    transform: tf.Module,
    spec: Spec,
    run_config: Any,
    vocabularies: Mapping[str, Sequence[str]],
    card: str,
    warmup: Sequence[bytes] = (),
    replace: bool = False,
) -> None:
    """Writes a SavedModel that TF Serving runs.

    Args:
      version_directory: where to write; its parent is the base path of TF Serving, its name the
        version.
      model: the trained model.
      task: makes the signatures.
      transform: from raw sparse features to transformed ones; its tables and assets are saved too.
      spec: the raw features.
      run_config: saved as `assets/run_config.yaml`.
      vocabularies: transformed name to terms in the order of their ids from 1; saved as
        `assets/vocabularies.json` for a later warm start.
      card: Markdown, saved as `assets/card.md`.
      warmup: serialised raw examples.
      replace: replace an existing SavedModel instead of refusing.

    Raises:
      InputError: the directory exists or cannot be written.
    """
    module = tf.Module()
    module.weights = weight_names(model)
    module.transform = transform
    signatures = task.signatures(model, transform, spec, vocabularies)
    # Tables and indexes that the signatures read, beyond the model's weights.
    module.parts = list(task.parts)
    with atomic_directory(version_directory, replace) as folder:
        tf.saved_model.save(
            module,
            str(folder),
            signatures=signatures,
            options=save_options(run_config),
        )
        assets = folder / "assets"
        assets.mkdir(exist_ok=True)
        (assets / "run_config.yaml").write_text(write_yaml(run_config))
        (assets / "card.md").write_text(card)
        (assets / "vocabularies.json").write_text(
            json.dumps({name: list(terms) for name, terms in vocabularies.items()})
        )
        write_required_ops(folder, run_config)
        write_warmup(folder, warmup, run_config.name)
