"""What pytest must not import on its own, and the order in which workers take the files."""

from __future__ import annotations

import os

import pytest

# As the command line sets it for its process: where TensorFlow's own default differs, the processes
# that a test starts would round otherwise than the process of the test.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

# A plugin registers its model when it is imported.
collect_ignore = ["plugins"]

# Workers take whole files, so the long ones come first and no worker waits for the last of them.
_LONG_FIRST = (
    "tests/tfx_pipelines/",
    "tests/conformance/test_models.py",
    "tests/conformance/",
    "tests/tfrz/reproduce/",
    "tests/tfrz/cli/",
    "tests/tfrz/embeddings/",
    "tests/tfrz/agents/",
    "tests/tfrz/zoo/",
    "tests/benchmarks/",
    "tests/tfrz/serving/",
    "tests/tfrz/export/",
    "tests/tfrz/training/",
)


def _rank(item: pytest.Item) -> int:
    for rank, prefix in enumerate(_LONG_FIRST):
        if item.nodeid.startswith(prefix):
            return rank
    return len(_LONG_FIRST)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=_rank)
