"""Encodes the sketches of users to packed vectors, with the signatures of an exported model.

Users are encoded one at a time, and chunks are summed in a fixed order, so the result has the same
bits in every process, whatever other users are encoded.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from tfrz.config import from_mapping, read_yaml
from tfrz.data.timelines.slicing import Sketch, SliceSpecification
from tfrz.data.timelines.spec import TimelineConfig
from tfrz.errors import InputError
from tfrz.layers.quantize import pack4

_NEEDED = ("pool", "summarize")
# Number of rows of an embedding table in memory at once.
_TERMS_AT_ONCE = 1024


@dataclasses.dataclass(frozen=True)
class ModelFacts:
    """Facts about an exported model that are known without loading it.

    Attributes:
      fingerprint: Hash of its weights and vocabularies.
      timeline: Configuration of its examples, with the slices.
    """

    fingerprint: str
    timeline: TimelineConfig


def model_facts(directory: str | Path) -> ModelFacts:
    """Reads the facts about an exported model.

    Raises:
      InputError: The folder is not a model of timelines exported by tfrz.
    """
    root = Path(directory)
    digest = hashlib.sha256()
    try:
        config = read_yaml(root / "assets" / "run_config.yaml")
        stored = (config.get("data") or {}).get("timeline")
        timeline = None if stored is None else from_mapping(TimelineConfig, stored, "data.timeline")
        files = sorted((root / "variables").glob("variables.data*"))
        for path in [*files, root / "assets" / "vocabularies.json"]:
            digest.update(path.read_bytes())
    except (OSError, InputError) as error:
        raise InputError(f"{root} is not a model exported by tfrz: {error}") from error
    if timeline is None:
        raise InputError(
            f"{root} holds {config.get('name')}, which has no embeddings of long histories"
        )
    return ModelFacts(digest.hexdigest(), timeline)


class Encoder:
    """The additive part of an exported model (`pool`) and the rest (`summarize`).

    Args:
      directory: Folder of the SavedModel.

    Raises:
      InputError: A signature is missing.
    """

    def __init__(self, directory: str | Path) -> None:
        self.slices: SliceSpecification = model_facts(directory).timeline.slices
        self._loaded = tf.saved_model.load(str(directory))
        for name in _NEEDED:
            if name not in self._loaded.signatures:
                raise InputError(f"{directory} has no signature {name!r}: export it with dv365")
        self._pool = self._loaded.signatures["pool"]
        self._summarize = self._loaded.signatures["summarize"]
        shape = self._summarize.structured_outputs["embedding"].shape
        self.num_vectors, self.dim = int(shape[1]), int(shape[2])
        empty = np.zeros(0, object)
        self._nothing = {
            table: Sketch(empty, np.zeros((len(places), 0), np.int64))
            for table, places in self.slices.tables.items()
        }

    def pool(self, sketches: Mapping[str, Sketch]) -> tuple[NDArray[Any], NDArray[Any]]:
        """Returns sums of weighted vectors, float64 `[slices, dim]`, and of weights, `[slices]`.

        The weights are multiples of 2^-24, int64.
        """
        sums = np.zeros((len(self.slices.slices), self.dim))
        totals = np.zeros(len(self.slices.slices), np.int64)
        for table, one in sketches.items():
            totals[list(self.slices.tables[table])] = one.weights.sum(axis=1)
        terms = max((len(one.terms) for one in sketches.values()), default=0)
        for start in range(0, terms, _TERMS_AT_ONCE):
            some = slice(start, start + _TERMS_AT_ONCE)
            inputs: dict[str, tf.Tensor] = {}
            for table, nothing in self._nothing.items():
                one = sketches.get(table, nothing)
                part = Sketch(one.terms[some], one.weights[:, some])
                inputs[f"terms_{table}"] = tf.constant(part.terms, tf.string)
                inputs[f"weights_{table}"] = tf.constant(part.floats, tf.float32)
            outputs = self._pool(**inputs)
            for table, places in self.slices.tables.items():
                sums[list(places)] += outputs[f"sums_{table}"].numpy()
        return sums, totals

    def vectors(
        self, parts: Iterable[tuple[NDArray[Any], NDArray[Any]]]
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        """Returns a user's vectors from the sums of its chunks, in order.

        Returns:
          Vectors, float32 `[vectors, dim]`, zero without events, and the sums of weights, float64
          `[slices]`.
        """
        sums = np.zeros((len(self.slices.slices), self.dim))
        totals = np.zeros(len(self.slices.slices), np.int64)
        for some, weights in parts:
            sums += some
            totals += weights
        weight = Sketch(np.zeros(0), totals).floats
        if not totals.any():
            return np.zeros((self.num_vectors, self.dim), np.float32), weight
        safe = np.where(weight > 0, weight, 1.0)[:, None]
        pooled = (sums / safe).astype(np.float32)
        answer = self._summarize(pooled=tf.constant(pooled[None]))
        return answer["embedding"].numpy()[0], weight

    @staticmethod
    def packed(vectors: NDArray[Any]) -> bytes:
        """Packs the vectors with 4 bits per value."""
        return bytes(pack4(vectors).tobytes())
