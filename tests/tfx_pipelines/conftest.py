"""Pipelines at their quickest."""

from __future__ import annotations

import importlib.util
import types
import zlib

import pytest


@pytest.fixture(scope="package", autouse=True)
def quick_pickles():
    """Beam's pickles with a compression that is quicker for small ones; a pipeline has thousands."""
    if importlib.util.find_spec("apache_beam") is None:
        yield
        return
    from apache_beam.internal import dill_pickler

    quick = types.SimpleNamespace(
        compress=lambda data, compresslevel: zlib.compress(data, 1), decompress=zlib.decompress
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dill_pickler, "bz2", quick)
        yield
