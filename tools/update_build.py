"""Writes the BUILD files: every Python file of a top-level folder in exactly one target.

`python tools/update_build.py` writes them, `--check` exits 1 if they are not up to date. Bazel
itself is not needed.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOAD = 'load("@rules_python//python:defs.bzl", {})\n'

# What each folder's library imports: other folders and locked packages.
LIBRARIES = {
    "tfrz": [
        '"@pip//aiohttp"',
        '"@pip//grpcio"',
        '"@pip//grpcio_health_checking"',
        '"@pip//keras_tuner"',
        '"@pip//matplotlib"',
        '"@pip//pyyaml"',
        '"@pip//tensorflow"',
        '"@pip//tensorflow_serving_api"',
        '"@pip//tfx"',
        '"@pip//tqdm"',
    ],
    "tfx_pipelines": ['"//tfrz"', '"@pip//tfx"'],
    "benchmarks": ['"//tfrz"', '"@pip//tensorflow_recommenders"'],
}


def _files(folder: str) -> list[str]:
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", f"{folder}/**.py", f"{folder}/*.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    return sorted({str(Path(p).relative_to(folder)) for p in listed if (ROOT / p).exists()})


def _list(name: str, values: list[str]) -> str:
    if not values:
        return f"    {name} = [],\n"
    return f"    {name} = [\n" + "".join(f"        {v},\n" for v in values) + "    ],\n"


def _target(rule: str, name: str, **lists: list[str]) -> str:
    body = "".join(_list(key, values) for key, values in lists.items() if values)
    return f'\n{rule}(\n    name = "{name}",\n{body}    visibility = ["//visibility:public"],\n)\n'


def _quoted(files: list[str]) -> list[str]:
    return [f'"{f}"' for f in files]


def build_files() -> dict[str, str]:
    """Path of each BUILD file to its text."""
    texts = {}
    for folder, deps in LIBRARIES.items():
        files = _files(folder)
        mains = [f for f in files if f in ("__main__.py", "demo.py")]
        rules = '"py_library"' if not mains else '"py_binary", "py_library"'
        text = LOAD.format(rules)
        text += _target(
            "py_library", folder, srcs=_quoted([f for f in files if f not in mains]), deps=deps
        )
        for main in mains:
            name = main.removesuffix(".py").strip("_")
            text += _target("py_binary", name, srcs=[f'"{main}"'], deps=[f'":{folder}"'])
        texts[f"{folder}/BUILD"] = text
    tests = _files("tests")
    cases = [f for f in tests if Path(f).name.startswith("test_")]
    text = LOAD.format('"py_library", "py_test"')
    text += _target(
        "py_library",
        "support",
        srcs=_quoted([f for f in tests if f not in cases]),
        deps=[
            '"//benchmarks"',
            '"//tfrz"',
            '"//tfx_pipelines"',
            '"@pip//hypothesis"',
            '"@pip//pytest"',
            '"@pip//scipy"',
        ],
    )
    for case in cases:
        name = case.removesuffix(".py").replace("/", "_")
        text += _target("py_test", name, srcs=[f'"{case}"'], deps=['":support"'])
    texts["tests/BUILD"] = text
    scripts = [
        f for folder in ("docs", "tools") for f in (f"{folder}/{name}" for name in _files(folder))
    ]
    text = LOAD.format('"py_binary"')
    for script in scripts:
        text += _target(
            "py_binary",
            script.removesuffix(".py").replace("/", "_"),
            srcs=[f'"{script}"'],
            deps=['"//tfrz"'],
        )
    texts["BUILD"] = text
    return texts


def main() -> int:
    """Writes or checks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    stale = []
    for name, text in build_files().items():
        path = ROOT / name
        if not path.exists() or path.read_text() != text:
            stale.append(name)
            if not check:
                path.write_text(text)
    if check and stale:
        print(f"not up to date: {', '.join(stale)}; run 'make build-files'", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
