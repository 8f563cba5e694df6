"""What a task makes of a source of records before it trains in this process."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import tensorflow as tf

if TYPE_CHECKING:
    from tfrz.data.spec import Spec
    from tfrz.training.batches import Batches


@dataclasses.dataclass(frozen=True)
class Prepared:
    """Sets of examples, and what the model and its export need to know of them.

    Attributes:
      train: the training set.
      validation: chooses the weights and the end of training.
      test: reported once, at the end; may be empty.
      inputs: what the task's `build` takes.
      transform: raw sparse features to transformed ones.
      vocabularies: transformed name to terms in the order of their ids from 1.
      spec: the raw features.
      examples: serialised raw examples, for warm-up requests.
      corrupt_lines: lines of the source that were left out.
    """

    train: Batches
    validation: Batches
    test: Batches
    inputs: Any
    transform: tf.Module
    vocabularies: dict[str, list[str]]
    spec: Spec
    examples: list[bytes]
    corrupt_lines: int
