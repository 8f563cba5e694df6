"""Reports the size and the import graph of `tfrz` and `tfx_pipelines` from their syntax trees.

`python tools/structure.py` prints the number of statements of each package, circles between
modules, and imports that go up. A package may import packages of lower levels:

    0  tfrz.config, errors, files, operations
    1  tfrz.layers, losses, metrics, data, serving
    2  tfrz.models
    3  tfrz.training, export, agents, embeddings
    4  tfrz.zoo
    5  tfrz.reproduce, tfx_pipelines
    6  tfrz.cli

Entry points (`__main__` modules and `tfx_pipelines.demo`) may import everything.

Packages of one level may import each other, except that `data` and `layers`, `losses`, `metrics`,
`serving` must not. Imports within functions count like those of modules. Imports that only serve
annotations (`if TYPE_CHECKING`) never run: they can go up, but do not make a circle. Exits 1 if
there is a circle or an import that goes up.
"""

from __future__ import annotations

import ast
import collections
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("tfrz", "tfx_pipelines")
LEVELS = {
    **dict.fromkeys(("config", "errors", "files", "operations"), 0),
    **dict.fromkeys(("layers", "losses", "metrics", "data", "serving"), 1),
    "models": 2,
    **dict.fromkeys(("training", "export", "agents", "embeddings"), 3),
    "zoo": 4,
    "reproduce": 5,
    "cli": 6,
}
# Packages of one level that must not import each other.
APART = {("data", name) for name in ("layers", "losses", "metrics", "serving")} | {
    (name, "data") for name in ("layers", "losses", "metrics", "serving")
}


def read(root: Path = ROOT) -> dict[str, ast.Module]:
    """Parses all modules except generated ones."""
    trees = {}
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            if not path.stem.endswith(("_pb2", "_pb2_grpc")):
                name = ".".join(path.relative_to(root).with_suffix("").parts)
                trees[name.removesuffix(".__init__")] = ast.parse(path.read_text())
    return trees


def statements(tree: ast.Module) -> int:
    """Counts the statements of a module at every depth."""
    return sum(isinstance(node, ast.stmt) for node in ast.walk(tree))


def _nodes(tree: ast.AST, annotations: bool) -> Iterator[ast.AST]:
    """Yields all nodes of a tree, optionally without those that only serve annotations."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test) and not annotations:
            continue
        yield node
        yield from _nodes(node, annotations)


def imports(
    name: str, tree: ast.Module, known: Mapping[str, ast.Module], annotations: bool = True
) -> Iterator[str]:
    """Yields the known modules that a module imports anywhere."""
    for node in _nodes(tree, annotations):
        if isinstance(node, ast.ImportFrom) and node.module:
            found = [
                one if (one := f"{node.module}.{alias.name}") in known else node.module
                for alias in node.names
            ]
        elif isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        else:
            continue
        yield from (one for one in found if one in known and one != name)


def circles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """Returns groups of modules that import each other, directly or through others."""

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        stack = [start]
        while stack:
            for one in graph[stack.pop()] - seen:
                seen.add(one)
                stack.append(one)
        return seen

    reach = {name: reached(name) for name in graph}
    groups = {
        tuple(sorted(other for other in reach[name] if name in reach[other]))
        for name in graph
        if name in reach[name]
    }
    return [list(group) for group in sorted(groups)]


def level(module: str) -> int:
    """Returns the level of a module's package."""
    first, _, rest = module.partition(".")
    return 5 if first == "tfx_pipelines" else LEVELS.get(rest.partition(".")[0], 0)


def upward(graph: Mapping[str, set[str]]) -> list[tuple[str, str]]:
    """Returns imports of a higher level, and between packages that must not import each other."""

    def against(module: str, other: str) -> bool:
        packages = tuple(name.split(".")[1] for name in (module, other) if "." in name)
        starts = module.endswith("__main__") or module == "tfx_pipelines.demo"
        return (level(other) > level(module) and not starts) or packages in APART

    return sorted(
        (m, other) for m, others in graph.items() for other in others if against(m, other)
    )


def main() -> int:
    """Prints sizes, circles and imports that go up."""
    trees = read()
    graph, runs = (
        {name: set(imports(name, tree, trees, annotations)) for name, tree in trees.items()}
        for annotations in (True, False)
    )
    counts: collections.Counter[str] = collections.Counter()
    for name, tree in trees.items():
        counts[".".join(name.split(".")[:2])] += statements(tree)
    for package, count in sorted(counts.items()):
        print(f"{count:7,} {package}")
    print(f"{sum(counts.values()):7,} statements in all")
    found, up = circles(runs), upward(graph)
    print(f"{len(found)} circles")
    for circle in found:
        print("  " + ", ".join(circle))
    print(f"{len(up)} imports that go up")
    for module, other in up:
        print(f"  {module} imports {other}")
    return 1 if found or up else 0


if __name__ == "__main__":
    sys.exit(main())
