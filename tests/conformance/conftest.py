"""What the cases of models with a long history read."""

from __future__ import annotations

import numpy as np
import pytest

from tests.fake_embeddings import FakeEmbeddings, stores


@pytest.fixture(scope="module")
def embeddings():
    """`features.long_history=battery`: of every second of the simulators' users."""
    rng = np.random.default_rng(0)
    users = [f"user_{user}".encode() for user in range(0, 5000, 2)]
    with stores(battery=FakeEmbeddings({user: rng.uniform(-1, 1, (2, 5)) for user in users})):
        yield
