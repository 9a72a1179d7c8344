"""Byte pair encoding: split a text into the pieces of a vocabulary, in O(n log n).

Start from single characters. Merge the two neighbours that rank best, the leftmost of equals, until
no two neighbours can merge. `PairEncoder` ranks by the score of the piece that a merge produces,
as sentencepiece and llama2.c do. `MergeEncoder` ranks by a list of merges, as Hugging Face's
``tokenizers`` and GPT-2 do, or by the id of the piece, as tiktoken does.

Source: karpathy/llama2.c, ``run.c``, which does the same in quadratic time; after sentencepiece.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from heapq import heapify, heappop, heappush
from itertools import pairwise

from ..errors import TokenizerError

N_BYTES = 256
# llama2.c's layout: byte b is token b + 3, and ids from 259 up are text.
FIRST_BYTE = 3
FIRST_PIECE = FIRST_BYTE + N_BYTES
# What a vocabulary may have. The largest known are Gemma's: 262,145 tokens and 580,604 merges.
MAX_TOKENS = 300_000
MAX_MERGES = 700_000

# The ids of short stretches of text are cached. This holds the words of a language.
CACHED_CHUNKS = 1 << 16
CACHED_LENGTH = 32  # characters
# A text up to this length is encoded whole, which is faster than to build the table of borders.
UNCUT_LENGTH = 1024


def merge_neighbours(n: int, rank: Callable[[int, int, int], int]) -> list[int]:
    """Merge neighbouring symbols, the best first, until no two can merge.

    Parameters
    ----------
    n : int
        Characters of the text. At first, each of them is a symbol.
    rank : callable
        ``rank(start, middle, end)`` is the rank of the merge of two symbols, one from start to
        middle and one from middle to end. 0 is the best; a negative rank forbids the merge.

    Returns
    -------
    list of int
        ``ends[i]`` is where the symbol that starts at i ends. Only the entries at the starts of
        symbols have a meaning.

    Notes
    -----
    The text is a linked list of symbols, each known by its start. A heap holds one key, rank * n +
    start, for each symbol that can merge with the next one, so the smallest key is the best merge,
    the leftmost of equals. A merge outdates the keys of its neighbours; outdated keys stay in the
    heap and are skipped when they come up.
    """
    ends = list(range(1, n + 1))  # ends[i]: where symbol i ends and the next one starts
    befores = list(range(-1, n))  # befores[i]: where the symbol before i starts
    keys = [-1] * n  # keys[i]: the current key of symbol i, -1 if it cannot merge
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
        # Rank the new symbol with the symbol after it, and the symbol before it with the new one.
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


def ids_of(
    text: str, ends: Sequence[int], ids: Mapping[str, int], fallback: Callable[[str], list[int]]
) -> list[int]:
    """Return the ids of the symbols of a text.

    Parameters
    ----------
    text : str
        The text.
    ends : sequence of int
        What `merge_neighbours` returned for it.
    ids : mapping of str to int
        Piece to token id.
    fallback : callable
        Returns the ids of one or more adjacent characters that are not pieces.
    """
    tokens: list[int] = []
    start = 0
    while start < len(text):
        end = ends[start]
        token = ids.get(text[start:end])
        if token is not None:
            tokens.append(token)
        else:
            # Longer symbols come from a merge, so only a single character can be unknown.
            while end < len(text) and text[end : ends[end]] not in ids:
                end += 1
            tokens += fallback(text[start:end])
        start = end
    return tokens


class PairEncoder:
    """Encode texts with a vocabulary that has scores.

    Parameters
    ----------
    pieces : sequence of bytes
        The piece of every token id. Only the pieces after the 256 bytes are used.
    scores : sequence of float
        One finite score for each piece, the best the highest.
    first_byte : int
        The id of byte 0, which the other bytes follow.
    """

    def __init__(
        self, pieces: Sequence[bytes], scores: Sequence[float], first_byte: int = FIRST_BYTE
    ) -> None:
        self._first_byte = first_byte
        first_piece = first_byte + N_BYTES
        # Every character of a merged symbol is a piece itself, so a piece with any other character
        # never occurs. Bytes that are not UTF-8 become surrogates, which no text contains.
        texts = [piece.decode(errors="surrogateescape") for piece in pieces[first_piece:]]
        characters = {text for text in texts if len(text) == 1}
        # Downwards, so that the lowest id of equal pieces stays.
        ids = dict(zip(reversed(texts), range(len(pieces) - 1, first_piece - 1, -1), strict=True))
        if not characters.issuperset("".join(texts)):
            ids = {text: token for text, token in ids.items() if characters.issuperset(text)}
        self._ids = ids
        # The rank of each score, the highest 0; equal scores share a rank. fromkeys keeps the order
        # of the file, which is usually sorted already and then quick to sort.
        ordered = sorted(dict.fromkeys(scores), reverse=True)
        ranks = {score: rank for rank, score in enumerate(ordered)}
        self._ranks = {text: ranks[scores[token]] for text, token in ids.items()}
        self._chunk_ids: dict[str, list[int]] = {}

    def character(self, character: str) -> list[int]:
        """Return the id of a single character, or the ids of its bytes if it is not a piece."""
        token = self._ids.get(character)
        return self._bytes(character) if token is None else [token]

    def _bytes(self, characters: str) -> list[int]:
        return [byte + self._first_byte for byte in characters.encode()]

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text without lone surrogates. Nothing is put before or after it."""
        if len(text) <= UNCUT_LENGTH:
            return self._merge(text)
        tokens: list[int] = []
        for chunk in self._chunks(text):
            tokens += self._merge_cached(chunk)
        return tokens

    @cached_property
    def _neighbours(self) -> set[tuple[str, str]]:
        """Every two characters that are neighbours in some piece, and a few more."""
        # One long string is faster than many short ones. It adds pairs with the separator, which
        # only means that a text with that character is cut in fewer places.
        return set(pairwise("\uffff".join(self._ids)))

    def _chunks(self, text: str) -> Iterator[str]:
        """Cut a text wherever no merge can ever cross, in any vocabulary.

        A merge turns neighbouring text into a piece. A merge across the border between characters a
        and b therefore needs a piece in which b follows a. Where the vocabulary has none, the
        border stays, and the two sides are independent: the merges that are possible on one side do
        not depend on the other, and the best of all merges is the best of its own side. In a usual
        vocabulary such borders lie before the space of each word, between many letters and signs,
        and around every character that falls back to bytes.
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
        ranks = self._ranks
        ends = merge_neighbours(len(text), lambda start, _, end: ranks.get(text[start:end], -1))
        return ids_of(text, ends, self._ids, self._bytes)


class MergeEncoder:
    """Encode words with a vocabulary that has merges.

    Parameters
    ----------
    ids : mapping of str to int
        Piece to token id.
    merges : iterable of (str, str), or None
        The pairs of pieces that merge, the best first. Both parts, and the two together, must be
        pieces. None ranks merges by the id of the piece that they produce, the lowest first.
    fallback : callable
        Returns the ids of one or more adjacent characters that are not pieces.
    whole_first : bool
        Whether a word that is a piece becomes that piece, whatever the merges make of it.
    watched : collection of str
        Pieces of interest.

    Attributes
    ----------
    reached : set of str
        The watched pieces that text can become: single characters, and what merges produce.

    Raises
    ------
    ValueError
        If a merge names something that is not a piece.
    """

    def __init__(
        self,
        ids: Mapping[str, int],
        merges: Iterable[tuple[str, str]] | None,
        fallback: Callable[[str], list[int]],
        whole_first: bool,
        watched: Collection[str] = (),
    ) -> None:
        self._ids = ids
        self.reached = {piece for piece in watched if len(piece) == 1 and piece in ids}
        ranks: dict[tuple[str, str], int] = {}
        # A merge keeps the strings of the pieces, not its own: there are several hundred thousand.
        pieces = {} if merges is None else dict(zip(ids, ids, strict=True))
        for rank, (left, right) in enumerate(merges or ()):
            made = left + right
            if left not in pieces or right not in pieces or made not in pieces:
                raise ValueError(
                    f"merge {rank} is {left[:40]!r} and {right[:40]!r}:"
                    " both, and the two together, must be pieces of the vocabulary"
                )
            if made in watched:
                self.reached.add(made)
            ranks[pieces[left], pieces[right]] = rank
        self._ranks = None if merges is None else ranks
        self._fallback = fallback
        self._whole_first = whole_first
        self._cache: dict[str, list[int]] = {}

    @property
    def merges(self) -> list[tuple[str, str]]:
        """The pairs of pieces that merge, the best first."""
        if self._ranks is not None:
            return sorted(self._ranks, key=self._ranks.__getitem__)
        return all_splits(self._ids)

    def __contains__(self, piece: str) -> bool:
        return piece in self._ids

    def encode(self, word: str) -> list[int]:
        """Return the ids of a word that is not empty."""
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
        if ranks is None:
            ends = merge_neighbours(len(word), lambda start, _, end: ids.get(word[start:end], -1))
        else:
            ends = merge_neighbours(
                len(word),
                lambda start, middle, end: ranks.get((word[start:middle], word[middle:end]), -1),
            )
        return ids_of(word, ends, ids, self._fallback)


def all_splits(ids: Mapping[str, int]) -> list[tuple[str, str]]:
    """Return every two pieces that make up a third.

    Parameters
    ----------
    ids : mapping of str to int
        Piece to token id.

    Returns
    -------
    list of (str, str)
        In the order of the third piece's id, then of the first's and the second's.

    Raises
    ------
    TokenizerError
        If there are more than `MAX_MERGES`.
    """
    lengths = sorted({len(text) for text in ids} - {0})
    known = set(lengths)
    result: list[tuple[str, str]] = []
    for text in sorted(ids, key=ids.__getitem__):
        found: list[tuple[str, str]] = []
        for i in lengths:
            if i >= len(text):
                break
            # A long piece would take quadratic time if it were split everywhere.
            if len(text) - i in known and text[:i] in ids and text[i:] in ids:
                found.append((text[:i], text[i:]))
        result += sorted(found, key=lambda pair: (ids[pair[0]], ids[pair[1]]))
        if len(result) > MAX_MERGES:
            raise TokenizerError(f"the vocabulary needs more than {MAX_MERGES} merges")
    return result
