"""What pytest must not import on its own, which tests need which library, and their order."""

from __future__ import annotations

import gc
import importlib.util
import os

import pytest

# As the command line sets it for its process: where TensorFlow's own default differs, the processes
# that a test starts would round otherwise than the process of the test.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
# Each of a pipeline's many argument parsers would look for translations of its messages.
os.environ.setdefault("LANGUAGE", "C")

# A worker keeps a million objects of TensorFlow, TFX and Beam. Each full collection walks through all
# of them and frees almost nothing, so collect less often.
gc.set_threshold(50_000, 20, 50)

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


def _needs(item: pytest.Item) -> list[str]:
    """The libraries that a test names by `@pytest.mark.needs`, as they are imported."""
    return list(dict.fromkeys(name for mark in item.iter_markers("needs") for name in mark.args))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    missing = [name for name in _needs(item) if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--list-needs",
        action="store_true",
        help="list the tests that need libraries which are not installed here, and run nothing",
    )


def pytest_collection_finish(session: pytest.Session) -> None:
    if not session.config.getoption("--list-needs"):
        return
    lacking: dict[str, list[str]] = {}
    for item in session.items:
        missing = [name for name in _needs(item) if importlib.util.find_spec(name) is None]
        if missing:
            lacking[item.nodeid] = missing
    print(f"{len(session.items)} tests, of which {len(lacking)} need what is not installed here:")
    for nodeid, missing in lacking.items():
        print(f"  {nodeid}: {', '.join(missing)}")
    session.items.clear()
