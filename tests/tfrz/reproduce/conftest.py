"""Ratings that are small enough to train on."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tfrz.data.small_sources import many_ratings_1m_zip


@pytest.fixture(scope="session")
def ratings_1m(tmp_path_factory) -> Path:
    """3,600 ratings in the format of MovieLens-1M: two batches, and one for half of them."""
    return many_ratings_1m_zip(tmp_path_factory.mktemp("ml-1m"), 60, 60)
