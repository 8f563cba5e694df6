"""The tiny models, each loaded once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tfrz.embeddings import hand_made


@pytest.fixture(scope="session")
def model() -> Path:
    """A SavedModel of DV365."""
    return hand_made.trained_model()


@pytest.fixture(scope="session")
def other_model() -> Path:
    """The same network with other weights."""
    return hand_made.other_model()


@pytest.fixture(scope="package", autouse=True)
def models_are_loaded_once():
    with hand_made.loaded_once():
        yield
