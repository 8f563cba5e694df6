"""Writes `docs/serving_conformance.md` from a run, where CONFORMANCE_PAGE names the file."""

from __future__ import annotations

import os
from pathlib import Path

_rows: dict[tuple, list[str]] = {}


def pytest_configure(config):
    config.addinivalue_line("markers", "contract(section, behaviour, deviates): what a test shows")


def pytest_collection_modifyitems(items):
    for item in items:
        for mark in item.iter_markers("contract"):
            key = tuple(mark.kwargs[k] for k in ("section", "behaviour", "deviates"))
            name = f"{item.path.name}::{item.originalname or item.name}"
            item.user_properties.append(("contract", (*key, name)))


def pytest_runtest_logreport(report):
    if report.when == "call" or report.failed:
        for kind, row in report.user_properties:
            if kind == "contract":
                _rows.setdefault(tuple(row), []).append(report.outcome)


def pytest_sessionfinish(session):
    target = os.environ.get("CONFORMANCE_PAGE")
    if target and not hasattr(session.config, "workerinput"):
        from tests.tfrz.serving.conformance_page import page

        Path(target).write_text(page(_rows))
