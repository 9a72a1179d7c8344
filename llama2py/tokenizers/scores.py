"""From scores to merges and back: two ways to say which pieces join first.

Scores are sentencepiece's and llama2.c's, merges Hugging Face's. A list of merges that holds every
two pieces that make a third says what scores say.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from operator import itemgetter

from ..errors import TokenizerError
from .bpe import N_BYTES
from .merge_tokenizer import SPACE_MARK, Characters, MergeTokenizer
from .sentencepiece import BOS_PIECE, EOS_PIECE
from .specials import Specials
from .tokenizer import BOS, EOS, UNK, Tokenizer

_CANNOT = "expected a format that holds merges: hf, gguf or tokenizer.json"


def spelled(tokenizer: Tokenizer) -> list[str]:
    """The pieces as sentencepiece spells them: ``▁`` for a space, ``<s>`` and ``</s>``.

    Special tokens stay as they are, and so do the empty pieces of padding.

    Raises
    ------
    TokenizerError
        Without a file's name: if a piece is not UTF-8 or has a ``▁`` of its own, or two are equal.
    """
    special = set(tokenizer.specials.ids())
    texts: list[str] = []
    known: dict[str, int] = {}
    for token in range(len(tokenizer)):
        raw = tokenizer.piece(token)
        try:
            text = raw.decode()
        except UnicodeDecodeError:
            raise TokenizerError(f"token {token} is {raw!r:.60}, expected UTF-8") from None
        if token in (BOS, EOS):
            text = "<s>" if token == BOS else "</s>"
        elif token not in special:
            if SPACE_MARK in text:
                raise TokenizerError(f"token {token} is {text!r:.60}, expected no U+2581 in it")
            text = text.replace(" ", SPACE_MARK)
        if text and known.setdefault(text, token) != token:
            raise TokenizerError(f"tokens {known[text]} and {token} are both {text!r:.60}")
        texts.append(text)
    return texts


def to_merges(tokenizer: Tokenizer, texts: list[str]) -> list[tuple[str, str]]:
    """The merges that do what a vocabulary's scores do, the best first.

    Parameters
    ----------
    tokenizer : Tokenizer
        With scores.
    texts : list of str
        What `spelled` makes of its pieces.
    """
    special = set(tokenizer.specials.ids())
    ids = {
        texts[token]: token
        for token in range(tokenizer.first_byte + N_BYTES, len(texts))
        if texts[token] and token not in special
    }
    # Sentencepiece takes the leftmost of equal scores; merges have an order. It is transformers'.
    found = [
        (-tokenizer.score(token), -len(way[0]), -len(way[1]), way)
        for text, token in ids.items()
        for way in ways(text, ids)
    ]
    return [way for *_, way in sorted(found, key=itemgetter(slice(0, 3)))]


def ways(text: str, ids: Mapping[str, int]) -> list[tuple[str, str]]:
    """Every two pieces that make a third, those of the lower ids first."""
    parts = ((text[:i], text[i:]) for i in range(1, len(text)))
    found = [(left, right) for left, right in parts if left in ids and right in ids]
    return sorted(found, key=lambda way: (ids[way[0]], ids[way[1]]))


def to_scores(tokenizer: Tokenizer, any_prefix: bool = False) -> Tokenizer:
    """The vocabulary with scores that does what one with merges does.

    Parameters
    ----------
    tokenizer : Tokenizer
        One that has scores comes back as it is.
    any_prefix : bool
        Whether a space before each stretch of text may stand for one before the first only, or for
        none where the text begins with one.

    Raises
    ------
    TokenizerError
        Without a file's name: if it is at byte level, is not laid out as Llama's, treats spaces in
        another way, or its merges do what no scores do.
    """
    if not isinstance(tokenizer, MergeTokenizer):
        return tokenizer
    kind = tokenizer.kind
    if not isinstance(kind, Characters):
        raise TokenizerError(f"the vocabulary is at byte level, {_CANNOT}")
    known = kind == Characters("each") or (any_prefix and kind.prefix != "none")
    if not known or tokenizer.whole_first:
        raise TokenizerError(
            "the vocabulary puts no space, or not always one, before a text,"
            " expected a format that can say so: hf or tokenizer.json"
        )
    pieces = [tokenizer.piece(token).decode() for token in range(len(tokenizer))]
    special = set(tokenizer.specials.ids())
    first_byte = _first_byte(tokenizer, pieces)
    first_piece = first_byte + N_BYTES
    ids = {
        pieces[token]: token
        for token in range(len(pieces) - 1, first_piece - 1, -1)
        if token not in special and pieces[token]
    }
    ranks = _ranks(tokenizer.merges, ids)
    in_order = all(ids[a] < ids[b] and ranks[a] < ranks[b] for a, b in pairwise(ranks))
    scores = [0.0] * first_piece
    for token in range(first_piece, len(pieces)):
        place = token - first_piece if in_order else ranks.get(pieces[token], len(ranks))
        scores.append(-float(place))
    raw = [
        piece.encode() if token in special else piece.replace(SPACE_MARK, " ").encode()
        for token, piece in enumerate(pieces)
    ]
    raw[BOS], raw[EOS] = BOS_PIECE, EOS_PIECE
    specials = Specials(
        added=_others(tokenizer.specials.added, first_byte),
        control=_others(tokenizer.specials.control, first_byte),
    )
    return Tokenizer(
        raw, scores, specials, tokenizer.eos_id, tokenizer.adds_bos, first_byte=first_byte
    )


def _others(tokens: Mapping[str, int], first_byte: int) -> dict[str, int]:
    """Those but unknown, BOS, EOS and bytes, which are never looked for by their text."""
    known = {*range(EOS + 1), *range(first_byte, first_byte + N_BYTES)}
    return {text: token for text, token in tokens.items() if token not in known}


def _first_byte(tokenizer: MergeTokenizer, pieces: list[str]) -> int:
    """Where the bytes begin in a vocabulary that is laid out as Llama's."""
    expected = [f"<0x{byte:02X}>" for byte in range(N_BYTES)]
    begin = pieces.index(expected[0]) if expected[0] in pieces else 0
    found = pieces[: EOS + 1] + pieces[begin : begin + N_BYTES]
    odd = found != ["<unk>", "<s>", "</s>", *expected]  # what is between, Tokenizer looks at
    if odd or tokenizer.bos_id != BOS or tokenizer.unk_id not in (UNK, BOS):
        raise TokenizerError(
            "the vocabulary does not begin with <unk>, <s>, </s>, special tokens if any,"
            f" and the 256 bytes, {_CANNOT}"
        )
    return begin


def _ranks(merges: list[tuple[str, str]], ids: Mapping[str, int]) -> dict[str, int]:
    """The place of each piece among those that merges make, equal ones sharing one."""
    spans: dict[str, tuple[int, int]] = {}
    made: dict[str, list[tuple[str, str]]] = {}
    for place, merge in enumerate(merges):
        text = merge[0] + merge[1]
        spans[text] = (spans.get(text, (place, place))[0], place)
        made.setdefault(text, []).append(merge)
    for text in {**ids, **made}:
        wanted = ways(text, ids) if text in ids else []  # no text is joined to a byte's token
        if sorted(made.get(text, [])) != sorted(wanted):
            raise TokenizerError(
                f"the merges that make {text!r:.60} are not all those of two pieces, {_CANNOT}"
            )
    # Pieces of equal scores have merges among each other's; all others have theirs in one stretch.
    ranks: dict[str, int] = {}
    rank, end = -1, -1
    for text, (first, last) in spans.items():
        rank, end = (rank + 1, last) if first > end else (rank, max(end, last))
        ranks[text] = rank
    return ranks
