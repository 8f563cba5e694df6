"""The import graph: no circles, and no import against the arrows."""

import ast
import importlib.util
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def _structure():
    spec = importlib.util.spec_from_file_location("structure", ROOT / "tools" / "structure.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _graph(structure, sources, annotations=True):
    trees = {name: ast.parse(text) for name, text in sources.items()}
    return {n: set(structure.imports(n, tree, trees, annotations)) for n, tree in trees.items()}


def test_modules_import_each_other_in_no_circle_and_nothing_above_them():
    structure = _structure()
    trees = structure.read()
    graph, runs = (
        {name: set(structure.imports(name, tree, trees, a)) for name, tree in trees.items()}
        for a in (True, False)
    )
    assert len(graph) > 150
    assert sum(len(others) for others in runs.values()) > 500
    assert structure.circles(runs) == []
    assert structure.upward(graph) == []


def test_a_circle_through_a_function_is_found():
    structure = _structure()
    graph = _graph(
        structure,
        {
            "tfrz.data.a": "from tfrz.data import b",
            "tfrz.data.b": "def f():\n    from tfrz.data.c import g",
            "tfrz.data.c": "import tfrz.data.a",
            "tfrz.data.d": "from tfrz.data.a import x",
        },
    )
    assert structure.circles(graph) == [["tfrz.data.a", "tfrz.data.b", "tfrz.data.c"]]


def test_imports_that_go_up_are_found():
    structure = _structure()
    graph = _graph(
        structure,
        {
            "tfrz.data.a": "def f():\n    from tfrz.models import m",
            "tfrz.models": "from tfrz.data.a import f\nfrom tfrz.layers import n",
            "tfrz.layers": "from tfrz.data import a",
            "tfrz.zoo.run": "import tfx_pipelines.pipeline",
            "tfx_pipelines.pipeline": "import tfrz.zoo.run",
        },
    )
    assert structure.upward(graph) == [
        ("tfrz.data.a", "tfrz.models"),
        ("tfrz.layers", "tfrz.data.a"),
        ("tfrz.zoo.run", "tfx_pipelines.pipeline"),
    ]


def test_statements_are_counted_at_every_depth():
    structure = _structure()
    tree = ast.parse("x = 1\n\ndef f():\n    if x:\n        return 2\n")
    assert structure.statements(tree) == 4


def test_imports_for_annotations_go_up_but_make_no_circle():
    structure = _structure()
    sources = {
        "tfrz.data.a": "if TYPE_CHECKING:\n    from tfrz.models.b import M",
        "tfrz.models.b": "from tfrz.data.a import x",
    }
    assert structure.upward(_graph(structure, sources)) == [("tfrz.data.a", "tfrz.models.b")]
    assert structure.circles(_graph(structure, sources, annotations=False)) == []
    assert structure.circles(_graph(structure, sources)) == [["tfrz.data.a", "tfrz.models.b"]]
