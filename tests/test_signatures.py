"""Functions take few parameters: at most 8 in Python, at most 10 in C.

``self`` and ``cls`` do not count, nor does a ``**options`` whose keys a TypedDict lists.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from tests.conftest import ROOT

IN_PYTHON, IN_C = 8, 10
KEYWORDS = {"if", "for", "while", "switch", "return", "sizeof", "defined", "__attribute__"}


def python_functions(text: str) -> Iterator[tuple[str, int]]:
    """Each function of a module, with the number of its parameters."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            of = node.args
            named = [arg.arg for arg in (*of.posonlyargs, *of.args, *of.kwonlyargs)]
            count = sum(name not in ("self", "cls") for name in named) + (of.vararg is not None)
            yield getattr(node, "name", "lambda"), count


def top_level_commas(text: str) -> int:
    depth = commas = 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        commas += character == "," and depth == 0
    return commas


def c_functions(text: str) -> Iterator[tuple[str, int]]:
    """Each function that a C file defines, also in a macro, and each type of a function pointer."""
    text = re.sub(r"/\*.*?\*/|//[^\n]*", " ", text, flags=re.DOTALL)
    text = re.sub(r'"(\\.|[^"\\\n])*"', '""', text).replace("\\\n", " ")
    parameters = r"\s*\(((?:[^()]|\([^()]*\))*)\)"
    for match in re.finditer(rf"([\w#]+){parameters}\s*\{{|\(\*(\w+)\){parameters}", text):
        name, inside = match[1] or match[3], match[2] if match[1] else match[4]
        if name not in KEYWORDS:
            nothing = inside.strip() in ("", "void")
            yield name, 0 if nothing else 1 + top_level_commas(inside)


def files(*patterns: str) -> list[Path]:
    found = [path for pattern in patterns for path in sorted(ROOT.glob(pattern))]
    assert found
    return found


def test_python_functions_take_at_most_8_parameters() -> None:
    paths = files("llama2py/**/*.py", "tests/**/*.py", "benchmarks/*.py", "docs/**/*.py", "*.py")
    counts = [
        (f"{path.relative_to(ROOT)}: {name}", count)
        for path in paths
        for name, count in python_functions(path.read_text("utf-8"))
    ]
    assert ("llama2py/model.py: load", 8) in counts
    assert [name for name, count in counts if count > IN_PYTHON] == []


def test_c_functions_take_at_most_10_parameters() -> None:
    paths = files("csrc/*.[ch]", "csrc/*.inc", "tests/c/*.[ch]", "tests/adversary/*.c")
    counts = [
        (f"{path.relative_to(ROOT)}: {name}", count)
        for path in paths
        for name, count in c_functions(path.read_text("utf-8"))
    ]
    assert ("csrc/forward.c: l2p_forward", 4) in counts
    assert ("csrc/kernels.inc: weigh_##SUFFIX", 7) in counts
    assert [name for name, count in counts if count > IN_C] == []


def test_parameters_of_python_are_counted() -> None:
    text = "class A:\n  def f(self, a, /, b, *c, d=1, **e): g = lambda x: x\nasync def h(): pass"
    assert sorted(python_functions(text)) == [("f", 4), ("h", 0), ("lambda", 1)]


def test_parameters_of_c_are_counted() -> None:
    text = r"""
    #define F(N) \
        static int f_##N(int a, void (*g)(int, int), /* x, y */ char b[2]) { return s("a, b{"); }
    struct s { void (*h)(int a, float b, int c); };
    static void nothing(void) { for (int i = 0, j = 1; i < 2; i++) { if (i) { call(1, 2); } } }
    int declared(int a);
    """
    assert list(c_functions(text)) == [("f_##N", 3), ("h", 3), ("nothing", 0)]
