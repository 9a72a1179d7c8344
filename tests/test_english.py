"""The prose of the code and the docs avoids phrases that stop a native reader.

The test reads comments, docstrings, names of tests, strings (error messages, help), the pages of
docs, and files of settings. It does not read stories: ``llama2py/stories`` and the tests of it.
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
    "there is no": r"\bis (?-i:none)\b|\bnone is\b",
    "the first n, at most n": r"\bso many\b",
    "requested": r"\bwhat is asked for\b|\bis asked for\b",
    "separated": r"\bparted\b",
    "says, reports, prints": r"\btells\b(?! a story| stories)|\btold\b(?! a story| stories)",
    "an error, or nothing": r"\bthat is none\b",
}
SPARED = {"llama2py/stories", "tests/stories", "tests/test_english.py", "tests/support/scripted"}


def python_prose(text: str) -> Iterator[tuple[int, str]]:
    """Comments, strings and names of tests, by line."""
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string
    for node in ast.walk(ast.parse(text)):
        match node:
            case ast.FunctionDef(name=name) if name.startswith("test_"):
                yield node.lineno, name.replace("_", " ")
            case ast.Constant(value=str(value)):
                for offset, line in enumerate(value.splitlines()):
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
    match path.suffix:
        case ".py" | ".pyi":
            return python_prose(text)
        case ".md":
            return markdown_prose(text)
        case ".c" | ".h" | ".inc":
            return c_prose(text)
    return enumerate(text.splitlines(), 1)


def pages() -> list[str]:
    patterns = ["*.md", "*.py", "*.toml", "*.yml", "*.in", "Makefile", ".ci/run", ".clang-format"]
    patterns += [".gitignore", "csrc/*", "benchmarks/*.py", "tests/c/*.[ch]", "tests/adversary/*.c"]
    patterns += [f"{folder}/**/*.{end}" for folder in ("docs", "tests") for end in ("py", "md")]
    patterns += ["docs/*.toml", "docs/*.css", "llama2py/**/*.py", "llama2py/**/*.pyi"]
    files = {path for p in patterns for path in ROOT.glob(p) if path.is_file()}
    found = {path.relative_to(ROOT).as_posix() for path in files}
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
        ("Makefile", "all: # what is behind it\n"),
    ],
)
def test_an_odd_phrase_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str
) -> None:
    monkeypatch.setattr("tests.test_english.ROOT", tmp_path)
    (tmp_path / name).write_text(text)
    assert len(odd_phrases(tmp_path / name)) == 1
