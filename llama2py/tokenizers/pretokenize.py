"""Cut a text into the words that byte-level BPE encodes one by one.

Every byte-level vocabulary has its pattern. The patterns use Unicode classes that Python's ``re``
lacks; they are spelled out here from ``unicodedata``. Only the patterns listed here are ever run,
so that no file can bring in one that takes exponential time.

Source: the ``tokenizer.json`` of GPT-2, Llama 3, Qwen2 and Mistral Nemo, and ``llama-vocab.cpp`` of
llama.cpp for its default.
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
TEKKEN = (  # Mistral since Nemo
    _WORD.replace("UPPER", "*").replace("LOWER", "+")
    + _WORD.replace("UPPER", "+").replace("LOWER", "*")
    + r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
DIGITS = r"\p{N}"
# What llama.cpp applies, one after another, where a GGUF file names no pattern.
LLAMACPP_DEFAULT = (
    r"[\p{P}\$\+<=>\^~\|]+",
    GPT2.removesuffix(r"|\s+"),
    r"\p{N}+",
    "[0-9][0-9][0-9]",
)
KNOWN_PATTERNS = frozenset([GPT2, LLAMA3, QWEN2, TEKKEN, DIGITS, *LLAMACPP_DEFAULT])

# Unicode's White_Space. Python's \s has four control characters more.
_SPACE = r"\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"


@cache
def _ranges(category: str) -> str:
    """Return the inside of a character class of all characters in a Unicode category."""
    every = range(sys.maxunicode + 1)
    codes = (c for c in every if unicodedata.category(chr(c)).startswith(category))
    # Code minus place is constant within a run of consecutive codes.
    runs = (list(run) for _, run in groupby(enumerate(codes), lambda pair: pair[1] - pair[0]))
    return "".join(rf"\U{run[0][1]:08x}-\U{run[-1][1]:08x}" for run in runs)


@cache
def _compiled(pattern: str) -> re.Pattern[str]:
    parts: list[str] = []
    inside = False  # whether the token is in a character class
    for token in re.findall(r"\\p\{\w+\}|\\.|.", pattern):
        inside = token == "[" or (inside and token != "]")
        if token in (r"\s", r"\S") or token.startswith(r"\p"):
            ranges = _ranges(token[3:-1]) if token.startswith(r"\p") else _SPACE
            negation = "^" if token == r"\S" else ""
            token = ranges if inside else f"[{negation}{ranges}]"
        parts.append(token)
    return re.compile("".join(parts))


def words(text: str, patterns: Sequence[str]) -> Iterable[str]:
    """Cut a text by the first pattern, the results by the second, and so on.

    Parameters
    ----------
    text : str
        Any text.
    patterns : sequence of str
        Members of `KNOWN_PATTERNS`. A match is a word, and so is the text between two matches.

    Returns
    -------
    iterable of str
        The words, which add up to the text. No word is empty.
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
