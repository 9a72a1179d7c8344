"""The prose of the code and the docs avoids phrases that stop a native reader.

Read are comments, docstrings, names of tests, texts of the package (error messages, help), and the
pages of docs. Stories are not: ``llama2py/stories``, and texts in quotes inside tests.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

PHRASES = {
    "after": r"\bbehind\b",
    "will, must": r"\bshall\b",
    "available": r"\bto be had\b",
    "there is no": r"\bis none\b|\bnone is\b",
    "the first n, at most n": r"\bso many\b",
    "requested": r"\bwhat is asked for\b|\bis asked for\b",
    "separated": r"\bparted\b",
    "says, reports, prints": r"\btells\b(?! a story| stories)|\btold\b(?! a story| stories)",
    "an error, or nothing": r"\bthat is none\b",
}
SPARED = {"llama2py/stories", "tests/stories", "tests/test_english.py", "tests/support/scripted"}


def python_prose(text: str, strings: bool) -> Iterator[tuple[int, str]]:
    """Comments, docstrings and names of tests, by line; and other strings, where wanted."""
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string
    docstrings = set()
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if ast.get_docstring(node):
                assert isinstance(node.body[0], ast.Expr)
                docstrings.add(node.body[0].value)
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                yield node.lineno, node.name.replace("_", " ")
    for node in ast.walk(tree):
        if not isinstance(node, ast.Constant) or not isinstance(node.value, str):
            continue
        if node in docstrings or strings:
            for offset, line in enumerate(node.value.splitlines()):
                yield node.lineno + offset, line


def c_prose(text: str) -> Iterator[tuple[int, str]]:
    for match in re.finditer(r"/\*.*?\*/|//[^\n]*", text, re.DOTALL):
        first = text.count("\n", 0, match.start()) + 1
        for offset, line in enumerate(match.group().splitlines()):
            yield first + offset, line


def markdown_prose(text: str) -> Iterator[tuple[int, str]]:
    in_code = False
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith("```"):
            in_code = not in_code
        elif not in_code and not line.startswith(">"):  # a story of a model
            yield number, line


def prose(path: Path) -> Iterator[tuple[int, str]]:
    text = path.read_text("utf-8")
    if path.suffix == ".py":
        return python_prose(text, strings="tests" not in path.relative_to(ROOT).parts)
    return markdown_prose(text) if path.suffix == ".md" else c_prose(text)


def pages() -> list[str]:
    patterns = ["*.md", "docs/**/*.md", "docs/**/*.py", "llama2py/**/*.py", "tests/**/*.py"]
    patterns += ["benchmarks/*.py", "csrc/*.[chp]*", "csrc/*.inc", "tests/c/*.[ch]", "setup.py"]
    found = {path.relative_to(ROOT).as_posix() for p in patterns for path in ROOT.glob(p)}
    return sorted(name for name in found if not name.startswith(tuple(SPARED)))


def odd_phrases(path: Path) -> list[str]:
    return [
        f"{path.name}:{number}: {match.group()!r}, better: {better} ({line.strip()[:90]})"
        for number, line in prose(path)
        for better, pattern in PHRASES.items()
        if (match := re.search(pattern, line, re.IGNORECASE))
    ]


@pytest.mark.parametrize("page", pages())
def test_prose_reads_as_english(page: str) -> None:
    assert odd_phrases(ROOT / page) == []


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.py", "x = 1  # the token behind it\n"),
        ("a.py", 'def f():\n    """What is told.\n    """\n'),
        ("a.py", "def test_there_is_none():\n    pass\n"),
        ("a.py", 'raise E(f"{x} is not to be had")\n'),
        ("a.c", "int x; /* so many\n * values */"),
        ("a.md", "It shall work.\n```\nso\n```\n"),
    ],
)
def test_an_odd_phrase_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str
) -> None:
    monkeypatch.setattr("tests.test_english.ROOT", tmp_path)
    (tmp_path / name).write_text(text)
    assert len(odd_phrases(tmp_path / name)) == 1
