"""Cutting a text into the words that byte-level BPE looks at one by one.

Every such vocabulary comes with a pattern. The patterns need classes of Unicode that Python's
``re`` lacks; they are spelled out here from ``unicodedata``. Only patterns that are known by heart
are run, so that no file can bring one that never ends.

Source: the ``tokenizer.json`` of GPT-2, Llama 3, Qwen2 and Mistral Nemo, and ``llama-vocab.cpp`` of
llama.cpp for what it does where nothing is said.
"""

from __future__ import annotations

import re
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from itertools import groupby

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_MODERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}NUMBERS"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3 = _MODERN.replace("NUMBERS", "{1,3}")
QWEN2 = _MODERN.replace("NUMBERS", "")
_WORD = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]UPPER[\p{Ll}\p{Lm}\p{Lo}\p{M}]LOWER|"
TEKKEN = (  # Mistral's from Nemo on
    _WORD.replace("UPPER", "*").replace("LOWER", "+")
    + _WORD.replace("UPPER", "+").replace("LOWER", "*")
    + r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
DIGITS = r"\p{N}"
# What llama.cpp does with vocabularies that do not say, one after another.
UNTOLD = (
    r"[\p{P}\$\+<=>\^~\|]+",
    GPT2.removesuffix(r"|\s+"),
    r"\p{N}+",
    "[0-9][0-9][0-9]",
)
KNOWN_PATTERNS = frozenset([GPT2, LLAMA3, QWEN2, TEKKEN, DIGITS, *UNTOLD])

# White_Space of Unicode; Python's \s has four control characters more.
_SPACE = r"\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"


@cache
def _ranges(category: str) -> str:
    """The inside of a character class: all characters whose category begins so."""
    every = range(sys.maxunicode + 1)
    codes = (c for c in every if unicodedata.category(chr(c)).startswith(category))
    # In a run of neighbours, code minus place is the same.
    runs = (list(run) for _, run in groupby(enumerate(codes), lambda pair: pair[1] - pair[0]))
    return "".join(rf"\U{run[0][1]:08x}-\U{run[-1][1]:08x}" for run in runs)


@cache
def _compiled(pattern: str) -> re.Pattern[str]:
    parts: list[str] = []
    inside = False  # of a character class
    for token in re.findall(r"\\p\{\w+\}|\\.|.", pattern):
        inside = token == "[" or (inside and token != "]")
        if token in (r"\s", r"\S") or token.startswith(r"\p"):
            ranges = _ranges(token[3:-1]) if token.startswith(r"\p") else _SPACE
            negation = "^" if token == r"\S" else ""
            token = ranges if inside else f"[{negation}{ranges}]"
        parts.append(token)
    return re.compile("".join(parts))


def words(text: str, patterns: Sequence[str]) -> Iterable[str]:
    """Cut a text by the first pattern, what comes of it by the second, and so on.

    Parameters
    ----------
    text : str
        Any text.
    patterns : sequence of str
        Of `KNOWN_PATTERNS`. A match is a word, and so is what lies between two matches.

    Returns
    -------
    iterable of str
        Together, the text; none is empty.
    """
    pieces: Iterable[str] = [text] if text else []
    for pattern in patterns:
        pieces = _isolate(pieces, _compiled(pattern))
    return pieces


def _isolate(pieces: Iterable[str], pattern: re.Pattern[str]) -> Iterator[str]:
    for piece in pieces:
        start = 0
        for match in pattern.finditer(piece):
            if start < match.start():
                yield piece[start : match.start()]
            start = match.end()
            yield match[0]
        if start < len(piece):
            yield piece[start:]
