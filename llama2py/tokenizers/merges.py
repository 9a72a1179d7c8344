"""Byte pair encoding by a list of merges, as Hugging Face's tokenizers and GPT-2 do it.

From single characters, join the two neighbours that stand first in the list, the leftmost of
equals, until no two neighbours are in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from .bpe import CACHED_CHUNKS, CACHED_LENGTH, join, tokens_of


class MergeEncoder:
    """A vocabulary and its merges, ready to encode words.

    Parameters
    ----------
    ids : mapping of str to int
        Piece to token id.
    merges : iterable of (str, str)
        What joins with what, the best first. Each part, and the two together, must be pieces.
    fallback : callable
        The ids of a character that is no piece.
    whole_first : bool
        Whether a word that is a piece is taken as it is, whatever the merges make of it.

    Raises
    ------
    ValueError
        If a merge is not of pieces.
    """

    def __init__(
        self,
        ids: Mapping[str, int],
        merges: Iterable[tuple[str, str]],
        fallback: Callable[[str], list[int]],
        whole_first: bool,
    ) -> None:
        self._ids = ids
        self._ranks: dict[tuple[str, str], int] = {}
        for rank, (left, right) in enumerate(merges):
            if left not in ids or right not in ids or left + right not in ids:
                raise ValueError(
                    f"merge {rank} joins {left[:40]!r} and {right[:40]!r},"
                    " expected pieces of the vocabulary that make a third"
                )
            self._ranks[left, right] = rank
        self._fallback = fallback
        self._whole_first = whole_first
        self._cache: dict[str, list[int]] = {}

    @property
    def merges(self) -> list[tuple[str, str]]:
        """What joins with what, the best first."""
        return sorted(self._ranks, key=self._ranks.__getitem__)

    def encode(self, word: str) -> list[int]:
        """The ids of a word, which is not empty."""
        tokens = self._cache.get(word)
        if tokens is None:
            tokens = self._merge(word)
            if len(word) <= CACHED_LENGTH:
                if len(self._cache) >= CACHED_CHUNKS:
                    self._cache.clear()
                self._cache[word] = tokens
        return tokens

    def _merge(self, word: str) -> list[int]:
        ids, ranks = self._ids, self._ranks
        if self._whole_first and word in ids:
            return [ids[word]]
        ends = join(
            len(word),
            lambda start, middle, end: ranks.get((word[start:middle], word[middle:end]), -1),
        )
        return tokens_of(word, ends, ids, self._fallback)
