"""Byte pair encoding: which pieces a text is made of, in O(n log n).

From single characters, join the two neighbours whose union is the best scored piece, the leftmost
of equals, until no two neighbours make a piece. A character that is no piece becomes its UTF-8
bytes and joins nothing.

Source: karpathy/llama2.c, ``run.c``, which does the same in quadratic time; after sentencepiece.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from heapq import heapify, heappop, heappush
from itertools import pairwise

N_BYTES = 256
# llama2.c's: byte b is token b + 3, and ids from 259 on are text.
FIRST_BYTE = 3
FIRST_PIECE = FIRST_BYTE + N_BYTES

# The short stretches of text whose encoding is kept: enough for the words of a language.
CACHED_CHUNKS = 1 << 16
CACHED_LENGTH = 32  # characters
# A text of so many characters is encoded in one go, sooner than the table that cuts it is built.
UNCUT_LENGTH = 1024


def join(n: int, rank: Callable[[int, int, int], int]) -> list[int]:
    """Join neighbours, the best first, until nothing is left to join.

    Parameters
    ----------
    n : int
        Characters of the text; at first each of them is a symbol.
    rank : callable
        Of ``(start, middle, end)``: how good it is to join the symbol from start to middle and the
        one from middle to end, 0 the best; negative if they do not join.

    Returns
    -------
    list of int
        ``ends[i]`` is where the symbol that starts at i ends. What stands at other places has no
        meaning.

    Notes
    -----
    The text is a linked list of symbols, each known by the position where it starts. A heap holds a
    key, rank * n + position, for each symbol that can be joined with the next one: the smallest is
    the best join, the leftmost of equals. A join outdates the keys around it; those stay in the
    heap and are skipped when they come up.
    """
    ends = list(range(1, n + 1))  # ends[i]: where symbol i ends, and the next one starts
    befores = list(range(-1, n))  # befores[i]: where the symbol before i starts
    keys = [-1] * n  # keys[i]: the key that counts for symbol i, -1: it joins nothing
    for i in range(n - 1):
        place = rank(i, i + 1, i + 2)
        if place >= 0:
            keys[i] = place * n + i
    heap = [key for key in keys if key >= 0]
    heapify(heap)
    while heap:
        key = heappop(heap)
        left = key % n
        if keys[left] != key:
            continue
        right = ends[left]
        end = ends[left] = ends[right]
        befores[end] = left
        keys[right] = -1
        # The new symbol has another one on its right, and is another one to the one before it.
        for start, following in ((left, end), (befores[left], left)):
            if start < 0:
                continue
            place = rank(start, following, ends[following]) if following < n else -1
            if place < 0:
                keys[start] = -1
            else:
                keys[start] = place * n + start
                heappush(heap, keys[start])
    return ends


def tokens_of(
    text: str, ends: Sequence[int], ids: Mapping[str, int], fallback: Callable[[str], list[int]]
) -> list[int]:
    """The ids of the symbols that `join` left of a text; ``fallback`` has those of no piece."""
    tokens: list[int] = []
    start = 0
    while start < len(text):
        symbol = text[start : ends[start]]
        token = ids.get(symbol)
        # Only a single character can be no piece.
        tokens += fallback(symbol) if token is None else (token,)
        start = ends[start]
    return tokens


class PairEncoder:
    """The text pieces of a vocabulary, ready to be found in texts.

    Parameters
    ----------
    pieces : sequence of bytes
        The piece of every token id. Only those behind the bytes' are looked at.
    scores : sequence of float
        One finite score a piece, the best the highest.
    first_byte : int
        The id of byte 0; the other bytes' follow.
    """

    def __init__(
        self, pieces: Sequence[bytes], scores: Sequence[float], first_byte: int = FIRST_BYTE
    ) -> None:
        self._first_byte = first_byte
        first_piece = first_byte + N_BYTES
        # A join only ever sees characters that are pieces themselves, so a piece that holds another
        # one can never come about. Bytes that are no UTF-8 become surrogates, which no text holds.
        texts = [piece.decode(errors="surrogateescape") for piece in pieces[first_piece:]]
        characters = {text for text in texts if len(text) == 1}
        # Downwards, so that of equal pieces the lowest id stays.
        ids = dict(zip(reversed(texts), range(len(pieces) - 1, first_piece - 1, -1), strict=True))
        if not characters.issuperset("".join(texts)):
            ids = {text: token for text, token in ids.items() if characters.issuperset(text)}
        self._ids = ids
        # The place of each id's score from the highest down, equals sharing one. fromkeys keeps
        # their order, which in most files is the sorted one: quick to sort again.
        ordered = sorted(dict.fromkeys(scores), reverse=True)
        places = {score: place for place, score in enumerate(ordered)}
        self._places = {text: places[scores[token]] for text, token in ids.items()}
        self._chunk_ids: dict[str, list[int]] = {}

    def character(self, character: str) -> list[int]:
        """The ids of a single character: one, or those of its bytes."""
        token = self._ids.get(character)
        if token is not None:
            return [token]
        return [byte + self._first_byte for byte in character.encode()]

    def encode(self, text: str) -> list[int]:
        """The ids of a text that UTF-8 can hold; nothing is put before or behind it."""
        if len(text) <= UNCUT_LENGTH:
            return self._merge(text)
        tokens: list[int] = []
        for chunk in self._chunks(text):
            tokens += self._merge_cached(chunk)
        return tokens

    @cached_property
    def _neighbours(self) -> set[tuple[str, str]]:
        """Every two characters that stand side by side in some piece, and a few more."""
        # One long string is quicker than many short ones. The pairs made with the mark between the
        # pieces are too many, which only means that a text is not cut there.
        return set(pairwise("\uffff".join(self._ids)))

    def _chunks(self, text: str) -> Iterator[str]:
        """Cut a text wherever no join can ever cross, for any vocabulary.

        A join turns neighbouring text into a piece. So a join across the border between characters
        a and b needs a piece with b right behind a: where the vocabulary has none, it stays.
        Then each side goes its own way: which joins a side offers does not depend on the other, and
        the best of all, when it lies on this side, is the best of this side.
        In a usual vocabulary such borders lie before the space of each word, between many letters
        and signs, and around every character that falls back to bytes.
        """
        neighbours = self._neighbours
        start = 0
        for end, pair in enumerate(pairwise(text), 1):
            if pair not in neighbours:
                yield text[start:end]
                start = end
        yield text[start:]

    def _merge_cached(self, chunk: str) -> list[int]:
        if len(chunk) > CACHED_LENGTH:
            return self._merge(chunk)
        tokens = self._chunk_ids.get(chunk)
        if tokens is None:
            tokens = self._merge(chunk)
            if len(self._chunk_ids) >= CACHED_CHUNKS:
                self._chunk_ids.clear()
            self._chunk_ids[chunk] = tokens
        return tokens

    def _merge(self, text: str) -> list[int]:
        places = self._places
        ends = join(len(text), lambda start, _, end: places.get(text[start:end], -1))
        return tokens_of(text, ends, self._ids, self.character)
