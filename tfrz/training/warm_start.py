"""Starting from a trained model whose vocabularies may have grown or shrunk."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from tfrz.errors import InputError
from tfrz.keras_versions import tf_variables

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class WarmStartReport:
    """The weights that a warm start took over.

    Attributes:
      copied: names of weights that were copied.
      remapped: names of weights to (rows found by their term, rows of new terms).
      fresh: names of weights that are missing from the old model or have another shape there; they
        keep their initial values.
    """

    copied: tuple[str, ...]
    remapped: dict[str, tuple[int, int]]
    fresh: tuple[str, ...]


class VocabularyTask(Protocol):
    """A task that says which weights belong to which vocabulary."""

    def vocabulary_weights(self, model: keras.Model) -> Mapping[str, Sequence[tf.Variable]]:
        """Transformed feature names to the tables whose rows are the ids of their vocabulary."""


def remap_rows(
    old: NDArray[Any], old_terms: Sequence[str], new_terms: Sequence[str], new_rows: int
) -> tuple[NDArray[Any], int]:
    """Rearranges the rows of an embedding for another vocabulary.

    Row 0 is padding, rows 1..V are the vocabulary, the rest out-of-vocabulary buckets. A term that
    is missing from the old vocabulary starts from the mean of the old out-of-vocabulary rows, which
    the old model used for it. Additional buckets start from that mean as well.

    Args:
      old: `[1 + len(old_terms) + buckets, ...]`.
      old_terms: terms in the order of their ids, from 1.
      new_terms: terms of the new vocabulary in the order of their ids, from 1.
      new_rows: `1 + len(new_terms) + new buckets`.

    Returns:
      `[new_rows, ...]`, and how many of the new terms were found.
    """
    buckets = old[1 + len(old_terms) :]
    unseen = buckets.mean(axis=0) if len(buckets) else np.zeros_like(old[0])
    new = np.full((new_rows, *old.shape[1:]), unseen).astype(old.dtype)
    new[0] = old[0]
    ids = {term: i for i, term in enumerate(old_terms, start=1)}
    found = 0
    for i, term in enumerate(new_terms, start=1):
        if term in ids:
            new[i] = old[ids[term]]
            found += 1
    for i, row in enumerate(buckets[: new_rows - 1 - len(new_terms)]):
        new[1 + len(new_terms) + i] = row
    return new, found


def warm_start(
    model: keras.Model,
    task: VocabularyTask,
    vocabularies: Mapping[str, Sequence[str]],
    saved_model_directory: str | Path,
) -> WarmStartReport:
    """Copies the weights of a zoo SavedModel into `model`.

    Args:
      model: newly built.
      task: the task of `model`.
      vocabularies: of `model`: transformed name to terms in the order of their ids from 1.
      saved_model_directory: written by `tfrz.export.saved_model.export_model`.

    Raises:
      InputError: the directory is not a SavedModel of the zoo.
    """
    from tfrz.export.saved_model import weight_names

    root = Path(saved_model_directory)
    try:
        reader = tf.train.load_checkpoint(str(root / "variables" / "variables"))
        old_terms = json.loads((root / "assets" / "vocabularies.json").read_text())
    except (tf.errors.OpError, ValueError, OSError) as error:
        raise InputError(
            f"{root} is not a SavedModel that tfrz exported: cannot start from it"
        ) from error
    embeddings = {
        id(variable): name
        for name, weights in task.vocabulary_weights(model).items()
        for variable in tf_variables(weights)
    }
    copied, fresh, remapped = [], [], {}
    for name, weight in weight_names(model).items():
        key = f"weights/{name}/.ATTRIBUTES/VARIABLE_VALUE"
        old = reader.get_tensor(key) if reader.has_tensor(key) else None
        feature = embeddings.get(id(weight))
        if old is not None and feature is not None and feature in old_terms:
            if old.shape[1:] == tuple(weight.shape[1:]):
                terms = vocabularies[feature]
                rows, found = remap_rows(old, old_terms[feature], terms, int(weight.shape[0]))
                weight.assign(rows)
                remapped[name] = (found, len(terms) - found)
                continue
        if old is not None and feature is None and old.shape == tuple(weight.shape):
            weight.assign(old)
            copied.append(name)
            continue
        fresh.append(name)
    if not copied and not remapped:
        raise InputError(f"{root} has no weight in common with this model: cannot start from it")
    report = WarmStartReport(tuple(copied), remapped, tuple(fresh))
    logger.info("warm start from %s: %s", root, report)
    return report
