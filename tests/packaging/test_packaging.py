"""What is shipped: lists of files, light imports, stored pages."""

from __future__ import annotations

import ast
import configparser
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def _listed(build: Path) -> list[str]:
    """The source files of a BUILD file's targets, and that each call is a rule we load."""
    tree = ast.parse(build.read_text())
    sources = []
    for statement in tree.body:
        assert isinstance(statement, ast.Expr)
        call = statement.value
        assert isinstance(call, ast.Call)
        name = call.func.id
        assert name in ("load", "py_library", "py_binary", "py_test", "exports_files")
        for keyword in call.keywords:
            if keyword.arg == "srcs":
                sources += ast.literal_eval(keyword.value)
    return sources


def test_every_python_file_is_in_one_build_target():
    tracked = subprocess.run(
        ["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    tracked = [t for t in tracked if (ROOT / t).exists()]
    listed = []
    for folder in ("tfrz", "tfx_pipelines", "benchmarks", "tests"):
        listed += [f"{folder}/{source}" for source in _listed(ROOT / folder / "BUILD")]
    listed += _listed(ROOT / "BUILD")
    once = [f for f in listed if not f.endswith("bazel_main.py")]
    assert len(once) == len(set(once))
    assert set(tracked) <= set(listed)


def test_importing_the_package_loads_no_pipeline_library_and_no_tensorflow():
    code = (
        "import sys, tfrz, tfrz.zoo.registry; "
        "print([m for m in ('tensorflow', 'tfx', 'apache_beam', 'tf_agents') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_importing_layers_loads_no_pipeline_library():
    code = (
        "import sys, tfrz.layers, tfrz.models, tfrz.metrics; "
        "print([m for m in ('tfx', 'apache_beam', 'tf_agents') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().splitlines()[-1] == "[]"


_BESIDES = """
import sys
import keras, numpy, tensorflow
before = {name.partition(".")[0] for name in sys.modules}
import tfrz.layers
after = {name.partition(".")[0] for name in sys.modules} - before - set(sys.stdlib_module_names)
print(sorted(after))
"""


def test_importing_layers_loads_nothing_besides_tensorflow_keras_and_numpy():
    done = subprocess.run(
        [sys.executable, "-c", _BESIDES], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip().splitlines()[-1] == "['tfrz']"


def test_one_module_asks_which_keras_is_installed():
    asking = {
        str(path.relative_to(ROOT)): [
            line
            for line in path.read_text().splitlines()
            # A report prints the version, which is not a question.
            if re.search(r"KERAS_3|keras\.__version__[.<>=\[ ]", line)
        ]
        for folder in ("tfrz", "tfx_pipelines", "benchmarks")
        for path in (ROOT / folder).rglob("*.py")
    }
    asking = {name: lines for name, lines in asking.items() if lines}
    assert list(asking) == ["tfrz/keras_versions.py"]
    assert len(asking["tfrz/keras_versions.py"]) <= 10


def test_the_stored_pages_are_those_that_the_code_makes():
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        import build
    finally:
        sys.path.pop(0)
    for place, text in build.pages().items():
        assert place.read_text() == text, f"{place} is stale: run 'make docs'"


def test_the_lock_has_the_versions_of_the_reference_lane():
    lock = (ROOT / "requirements.lock").read_text().splitlines()
    for pin in ("tensorflow==2.15.1", "tfx==1.15.1", "keras==2.15.0", "protobuf==4.25.9"):
        assert pin in lock


def test_the_wheel_has_every_file_that_the_code_reads():
    """Whatever lies in the packages and is no module must be named as package data."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    for package, patterns in setup["options.package_data"].items():
        folder = ROOT / package
        tracked = subprocess.run(
            ["git", "ls-files", "."], cwd=folder, capture_output=True, text=True, check=True
        ).stdout.split()
        others = {f for f in tracked if not f.endswith((".py", "BUILD", ".proto", ".md"))}
        named = {
            str(path.relative_to(folder))
            for pattern in patterns.split()
            for path in folder.glob(pattern)
        }
        assert others <= named, sorted(others - named)
        assert len(named) > 3
