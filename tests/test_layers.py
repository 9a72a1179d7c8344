"""The order in which modules may import each other, for every module of the package."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import llama2py

PACKAGE = Path(llama2py.__file__).parent

# Lowest first. A name imports from the lines above its own, from its own package, and from its own
# line where that makes no circle.
LAYERS = [
    {"errors", "_util"},
    {"config", "_data"},
    {"formats", "hub"},
    {"checkpoint"},
    {"tokenizers", "engine"},
    {"generation", "backend"},
    {"chat"},
    {"model"},
    {"stories", "meta", "conversion", "training"},
    {"bulk"},
    {"ray"},
    {"cli"},
    {"__init__", "__main__"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


def module_name(path: Path) -> str:
    """Dotted, within the package: 'model', 'checkpoint', 'checkpoint.checkpoint', '__init__'."""
    name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
    return name.removesuffix(".__init__")


PATHS = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text("utf-8")) for name, path in PATHS.items()}


def imports(name: str) -> Iterator[str]:
    """The package's own modules that a module imports, anywhere in its file."""
    is_package = PATHS[name].name == "__init__.py"
    parts = [] if name == "__init__" else name.split(".")
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Import):
            bases = [(alias.name, "") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                up = node.level - (1 if is_package else 0)
                base = ".".join(["llama2py", *parts[: len(parts) - up], *filter(None, [base])])
            bases = [(base, alias.name) for alias in node.names]
        else:
            continue
        for base, item in bases:
            if base.split(".")[0] == "llama2py":
                inside = base.removeprefix("llama2py").removeprefix(".")
                full = ".".join(filter(None, [inside, item]))
                is_module = full in PATHS or full == "engine._engine"
                yield full if is_module else inside or "__init__"


GRAPH = {name: set(imports(name)) - {name} for name in PATHS}


def first_part(name: str) -> str:
    return name.split(".")[0]


def test_the_graph_is_read_right() -> None:
    assert {"engine.native", "engine.reference", "checkpoint", "errors"} <= GRAPH["model"]
    assert "config" in GRAPH["checkpoint.checkpoint"]
    assert "checkpoint.checkpoint" in GRAPH["checkpoint"]
    assert "model" in GRAPH["__init__"]


@pytest.mark.parametrize("module", PATHS)
def test_a_module_imports_only_from_lower_layers(module: str) -> None:
    own = first_part(module)
    assert own in LEVEL, f"{own} has no place in LAYERS"
    for needed in GRAPH[module]:
        other = first_part(needed)
        allowed = other == own or LEVEL[other] <= LEVEL[own]
        if module in ("cli", "bulk.identity"):  # the version
            allowed = allowed or needed == "__init__"
        assert allowed, f"{module} imports {needed}"


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Each chain of names in which the last imports the first."""
    found: list[list[str]] = []
    done: set[str] = set()

    def visit(name: str, chain: list[str]) -> None:
        if name in chain:
            found.append(chain[chain.index(name) :])
        elif name not in done:
            for needed in sorted(graph.get(name, ())):
                visit(needed, [*chain, name])
            done.add(name)

    for name in sorted(graph):
        visit(name, [])
    return found


def test_circles_are_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == [["b", "c"]]


def test_no_modules_import_each_other() -> None:
    # A module may import from the __init__ of its own package, which imports the module.
    graph = {
        name: {n for n in needs if not name.startswith(f"{n}.") and n != "__init__"}
        for name, needs in GRAPH.items()
    }
    assert circles(graph) == []


def test_no_packages_import_each_other() -> None:
    graph: dict[str, set[str]] = {}
    for name, needs in GRAPH.items():
        others = {first_part(n) for n in needs} - {first_part(name), "__init__"}
        graph.setdefault(first_part(name), set()).update(others)
    assert circles(graph) == []


def test_only_the_engine_imports_the_extension() -> None:
    users = {name for name, needs in GRAPH.items() if "engine._engine" in needs}
    assert users <= {"engine.extension"}


def test_only_the_command_line_imports_the_trainer() -> None:
    users = {name for name, needs in GRAPH.items() if "training" in map(first_part, needs)}
    assert {first_part(name) for name in users} <= {"training", "cli"}


def test_the_package_has_few_entries() -> None:
    """What a newcomer sees first: at most 22 modules and packages, beside py.typed."""
    assert len({first_part(name) for name in PATHS}) <= 22


def private_names_of_others(tree: ast.Module) -> Iterator[str]:
    """Private names that a module uses and does not define: imported, or attributes."""
    defined = {
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
    }
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=ast.Name(id="self" | "cls"), attr=attribute):
                defined.add(attribute)
            case ast.Assign(targets=targets):
                defined |= {target.id for target in targets if isinstance(target, ast.Name)}
            case ast.AnnAssign(target=ast.Name(id=attribute)):
                defined.add(attribute)
    for node in ast.walk(tree):
        match node:
            case ast.ImportFrom(names=names):
                yield from (a.name for a in names if a.name.startswith("_"))
            case ast.Attribute(attr=attribute) if attribute.startswith("_"):
                if attribute not in defined and not attribute.endswith("__"):
                    yield attribute


def test_private_names_are_found() -> None:
    tree = ast.parse("from .x import _y\nz._w\nclass A:\n  def _v(self): self._u\na._v, a._u")
    assert list(private_names_of_others(tree)) == ["_y", "_w"]


@pytest.mark.parametrize("module", PATHS)
def test_a_module_uses_no_private_names_of_others(module: str) -> None:
    assert set(private_names_of_others(TREES[module])) <= {"_engine"}
