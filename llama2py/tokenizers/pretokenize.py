"""Cut a text into the words that byte-level BPE encodes one by one.

Every byte-level vocabulary has its pattern. The patterns use Unicode classes that Python's ``re``
lacks; they are spelled out here from ``unicodedata``. Only the patterns listed here are ever run,
so that no file can bring in one that takes exponential time.

Source: the ``tokenizer.json`` of GPT-2, Llama 3, Qwen2, Mistral Nemo, GPT-4o and DeepSeek, and
``llama-vocab.cpp`` of llama.cpp for its default.
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
_WORD = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]UPPER[\p{Ll}\p{Lm}\p{Lo}\p{M}]LOWEREND|"
_CASES = (
    _WORD.replace("UPPER", "*").replace("LOWER", "+")
    + _WORD.replace("UPPER", "+").replace("LOWER", "*")
    + r"\p{N}NUMBERS| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEKKEN = _CASES.replace("END", "").replace("NUMBERS", "")  # Mistral since Nemo
GPT4O = _CASES.replace("END", "(?i:'s|'t|'re|'ve|'m|'ll|'d)?").replace("NUMBERS", "{1,3}")
DIGITS = r"\p{N}"
_BREAKS, _NUMBERS = r"[\r\n]", r"\p{N}+"
_CJK = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
# The letters with case, as of an older Unicode.
_CASED = (
    "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-"
    "\u02af\u0370-\u0373\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1"
    "\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-"
    "\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77\u1d79-\u1d9a\u1e00-\u1f15"
    "\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d"
    "\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb"
    "\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d"
    "\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139\u213c-\u213f\u2145-\u2149\u214e\u2183"
    "\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b"
    "\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17\uff21-"
    "\uff3a\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb"
    "\U00010c80-\U00010cb2\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943"
)
# The models of DeepSeek whose architecture is llama.
DEEPSEEK_LLM = (
    _BREAKS,
    rf"\s?[{_CASED}]+",
    "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+",
    r"\s+$",
    _CJK,
    DIGITS,
)
DEEPSEEK_CODER = (_BREAKS, r"\s?\p{L}+", r"\s?\p{P}+", _CJK, DIGITS)
# What llama.cpp applies, one after another, where a GGUF file names no pattern.
LLAMACPP_DEFAULT = (
    r"[\p{P}\$\+<=>\^~\|]+",
    GPT2.removesuffix(r"|\s+"),
    _NUMBERS,
    "[0-9][0-9][0-9]",
)
# Each matches every character of a text, so that no text is left between two matches.
WHOLE_PATTERNS = frozenset([LLAMA3, QWEN2, TEKKEN, GPT4O])
KNOWN_PATTERNS = WHOLE_PATTERNS.union(
    [GPT2, DIGITS], LLAMACPP_DEFAULT, DEEPSEEK_LLM, DEEPSEEK_CODER
)

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
