"""Stores of embeddings that are made up, in memory, in the place of those on disk."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from unittest import mock

import numpy as np

from tfrz.errors import InputError
from tfrz.layers.quantize import pack4

VERSION = "1-9c3e12ab"


class FakeEmbeddings:
    """What `open_embeddings` gives, from vectors in memory.

    Args:
      vectors: user to `[vectors, dim]`.
      version: of the model that made them.
      generated_at: Unix seconds.
    """

    def __init__(
        self, vectors: Mapping[bytes, np.ndarray], version: str = VERSION, generated_at: int = 0
    ) -> None:
        self.version, self.generated_at = version, generated_at
        self.num_vectors, self.dim = next(iter(vectors.values())).shape
        self._packed = {user: packed(values) for user, values in vectors.items()}

    def packed(self, users: Sequence[bytes]) -> list[bytes | None]:
        """As stored."""
        return [self._packed.get(user) for user in users]

    def fingerprint(self) -> str:
        """Of all that is in it."""
        stored = (self.version, self.generated_at, sorted(self._packed.items()))
        return hashlib.sha256(repr(stored).encode()).hexdigest()


def packed(vectors: np.ndarray) -> bytes:
    """Vectors as a store has them."""
    return pack4(vectors).astype("<u8").tobytes()


@contextlib.contextmanager
def stores(**opened: FakeEmbeddings) -> Iterator[None]:
    """`--set features.long_history=NAME` opens what is given here."""

    def open_embeddings(directory: str) -> FakeEmbeddings:
        if os.path.basename(directory) not in opened:
            raise InputError(f"{directory} is no store of embeddings")
        return opened[os.path.basename(directory)]

    with mock.patch("tfrz.embeddings.store.open_embeddings", open_embeddings):
        yield
