"""Tokens that stand for a text of their own, and where a text has them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property


@dataclass(frozen=True)
class Specials:
    """The tokens of a vocabulary that stand for a text of their own, which no join makes.

    Parameters
    ----------
    added : mapping of str to int
        Found in every text: sentencepiece's user-defined symbols.
    control : mapping of str to int
        Found where the caller trusts the text, and printing nothing: ``<|eot_id|>``.
    """

    added: Mapping[str, int] = field(default_factory=dict)
    control: Mapping[str, int] = field(default_factory=dict)

    def ids(self) -> list[int]:
        """All of their ids."""
        return [*self.added.values(), *self.control.values()]

    def split(self, text: str, trusted: bool = False) -> Iterator[str | int]:
        """The text between these tokens, never empty, and their ids; control ones if trusted."""
        return _split(text, self._find_all if trusted else self._find_added, self._all)

    def split_at_control(self, text: str) -> Iterator[str | int]:
        """The text between control tokens, never empty, and their ids."""
        return _split(text, self._find_control, self.control)

    @cached_property
    def _all(self) -> dict[str, int]:
        return {**self.control, **self.added}

    @cached_property
    def _find_added(self) -> re.Pattern[str] | None:
        return _finder(self.added)

    @cached_property
    def _find_control(self) -> re.Pattern[str] | None:
        return _finder(self.control)

    @cached_property
    def _find_all(self) -> re.Pattern[str] | None:
        return _finder(self._all)


def _finder(texts: Iterable[str]) -> re.Pattern[str] | None:
    """Finds the first of these in a text, of several that begin there the longest."""
    ordered = sorted(filter(None, texts), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, ordered))) if ordered else None


def _split(
    text: str, finder: re.Pattern[str] | None, ids: Mapping[str, int]
) -> Iterator[str | int]:
    start = 0
    for match in finder.finditer(text) if finder else ():
        if start < match.start():
            yield text[start : match.start()]
        start = match.end()
        yield ids[match[0]]
    if start < len(text):
        yield text[start:]
