"""Convert a vocabulary with scores into one with merges, and back.

Both say which pieces merge first: scores in sentencepiece and llama2.c, merges in Hugging Face's
formats. A list of merges that contains every two pieces that make up a third is equivalent to
scores.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from operator import itemgetter

from ..errors import TokenizerError
from .bpe import N_BYTES, all_splits
from .merge_tokenizer import SPACE_MARK, Characters, MergeTokenizer
from .tokenizer import EOS, FIXED, UNK, Specials, Tokenizer

_USE_MERGES = "write it as hf, gguf or tokenizer.json, which have merges"


def texts_of(tokenizer: Tokenizer) -> list[str]:
    """Return the text of every id as Hugging Face and sentencepiece spell it, without padding.

    Raises
    ------
    TokenizerError
        Without a file name: if the pieces cannot be spelled so (see `spelled`).
    """
    if isinstance(tokenizer, MergeTokenizer):
        texts = [tokenizer.piece(token).decode() for token in range(len(tokenizer))]
    else:
        texts = spelled(tokenizer)
    while texts and not texts[-1]:
        texts.pop()
    return texts


def spelled(tokenizer: Tokenizer) -> list[str]:
    """Return the pieces as sentencepiece spells them: ``▁`` for a space, ``<s>`` and ``</s>``.

    Special tokens stay as they are, and so do the empty pieces of padding.

    Raises
    ------
    TokenizerError
        Without a file name: if a piece is not UTF-8 or contains a ``▁``, or two pieces are equal.
    """
    special = set(tokenizer.specials.ids())
    fixed = {token: text for text, token in tokenizer.specials.fixed.items()}
    texts: list[str] = []
    known: dict[str, int] = {}
    for token in range(len(tokenizer)):
        raw = tokenizer.piece(token)
        try:
            text = raw.decode()
        except UnicodeDecodeError:
            raise TokenizerError(f"token {token} is {raw!r:.60}, which is not UTF-8") from None
        if token in fixed:
            text = fixed[token]
        elif token not in special:
            if SPACE_MARK in text:
                raise TokenizerError(
                    f"token {token} is {text!r:.60}: in other formats U+2581 is a space"
                )
            text = text.replace(" ", SPACE_MARK)
        if text and known.setdefault(text, token) != token:
            raise TokenizerError(f"tokens {known[text]} and {token} are both {text!r:.60}")
        texts.append(text)
    return texts


def to_merges(tokenizer: Tokenizer, texts: list[str]) -> list[tuple[str, str]]:
    """Return the merges that are equivalent to a vocabulary's scores, the best first.

    Parameters
    ----------
    tokenizer : Tokenizer
        A vocabulary with scores.
    texts : list of str
        Its pieces, as `spelled` returns them.
    """
    special = set(tokenizer.specials.ids())
    ids = {
        texts[token]: token
        for token in range(tokenizer.first_byte + N_BYTES, len(texts))
        if texts[token] and token not in special
    }
    # Of equal scores sentencepiece takes the leftmost; merges need an order, here transformers'.
    found = [
        (-tokenizer.score(ids[left + right]), -len(left), -len(right), (left, right))
        for left, right in all_splits(ids)
    ]
    return [pair for *_, pair in sorted(found, key=itemgetter(slice(0, 3)))]


def to_scores(tokenizer: Tokenizer, any_prefix: bool = False) -> Tokenizer:
    """Return the vocabulary with scores that is equivalent to one with merges.

    Parameters
    ----------
    tokenizer : Tokenizer
        Any vocabulary. One that has scores is returned as it is.
    any_prefix : bool
        Whether the result may put a space before each stretch of text where the source puts one
        before the first only, or none before a text that begins with one.

    Raises
    ------
    TokenizerError
        Without a file name: if the vocabulary is byte-level, has other pieces before its bytes, or
        treats spaces in another way, or if no scores are equivalent to its merges.
    """
    if not isinstance(tokenizer, MergeTokenizer):
        return tokenizer
    kind = tokenizer.kind
    if not isinstance(kind, Characters):
        raise TokenizerError(f"a byte-level vocabulary has no scores: {_USE_MERGES}")
    is_usual = kind.prefix == "each" and not kind.prefix_once
    if not (is_usual or any_prefix or kind.prefix == "none") or kind.whole_first:
        raise TokenizerError(
            "the vocabulary does not put a space before every text:"
            " write it as hf or tokenizer.json, which can say so"
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
    merges, marked = _without_specials(tokenizer, pieces)
    ranks = _ranks(merges, ids)
    in_order = all(ids[a] < ids[b] and ranks[a] < ranks[b] for a, b in pairwise(ranks))
    scores = [0.0] * first_piece
    for token in range(first_piece, len(pieces)):
        rank = token - first_piece if in_order else ranks.get(pieces[token], len(ranks))
        scores.append(-float(rank))
    raw = [
        piece.encode() if token in special - marked else piece.replace(SPACE_MARK, " ").encode()
        for token, piece in enumerate(pieces)
    ]
    # Unknown, BOS and EOS of llama2.c's layout have places of their own, and so do bytes.
    fixed = set(range(first_byte, first_piece))
    for token, (text, piece) in enumerate(FIXED.items()):
        if pieces[token] == text:
            raw[token] = piece
            fixed.add(token)
    result = Tokenizer(
        raw,
        scores,
        Specials(
            {raw[id].decode(): id for id in tokenizer.specials.added.values() if id not in fixed},
            {text: id for text, id in tokenizer.specials.control.items() if id not in fixed},
        ),
        tokenizer.eos_id,
        tokenizer.adds_bos,
        first_byte,
        "none" if kind.prefix == "none" else "each",
        tokenizer.bos_id,
    )
    result.unk_id = tokenizer.unk_id if tokenizer.has_unknown else UNK
    return result


def _without_specials(
    tokenizer: MergeTokenizer, pieces: list[str]
) -> tuple[list[tuple[str, str]], set[int]]:
    """Return the merges without those of special tokens, which are found before any merge.

    Also return the added tokens that only merges find, because their texts have marks in place of
    spaces (Gemma's "▁▁"). A vocabulary with scores finds them where a text has the spaces. That is
    the same if their merges come first.
    """
    texts = {pieces[token] for token in tokenizer.specials.ids()}
    added = set(tokenizer.specials.added.values()) & tokenizer.specials.pieces
    marked = {token for token in added if SPACE_MARK in pieces[token]}
    names = {pieces[token] for token in marked}
    kept, is_first = [], True
    for pair in tokenizer.merges:
        made = "".join(pair)
        if texts.isdisjoint((*pair, made)):
            kept.append(pair)
            is_first = False
        elif made in names and not is_first:
            raise TokenizerError(
                f"the added token {made!r:.60} is found by merges that come late, which scores"
                f" cannot say: {_USE_MERGES}"
            )
    return kept, marked


def _first_byte(tokenizer: MergeTokenizer, pieces: list[str]) -> int:
    """Return the id of byte 0 in a vocabulary that has only special tokens before its bytes."""
    expected = [f"<0x{byte:02X}>" for byte in range(N_BYTES)]
    first = pieces.index(expected[0]) if expected[0] in pieces else 0
    before = {token for token in range(first) if pieces[token]} - set(tokenizer.specials.ids())
    before -= {token for token, text in enumerate(FIXED) if pieces[token] == text}
    if first <= EOS or before or pieces[first : first + N_BYTES] != expected:
        raise TokenizerError(
            "the vocabulary does not begin with unknown, BOS, EOS, other special tokens if any,"
            f" and the 256 bytes: {_USE_MERGES}"
        )
    return first


def _ranks(merges: list[tuple[str, str]], ids: Mapping[str, int]) -> dict[str, int]:
    """Return the rank of each piece that merges produce; pieces of equal rank share one."""
    spans: dict[str, tuple[int, int]] = {}
    made: dict[str, list[tuple[str, str]]] = {}
    for place, merge in enumerate(merges):
        text = merge[0] + merge[1]
        spans[text] = (spans.get(text, (place, place))[0], place)
        made.setdefault(text, []).append(merge)
    wanted: dict[str, list[tuple[str, str]]] = {}  # no merge produces a byte token
    for pair in all_splits(ids):
        wanted.setdefault(pair[0] + pair[1], []).append(pair)
    for text in {**ids, **made}:
        if sorted(made.get(text, [])) != sorted(wanted.get(text, [])):
            raise TokenizerError(
                f"{text!r:.60} is missing some of the merges that can produce it, so no scores are"
                f" equivalent: {_USE_MERGES}"
            )
    # The merges of a piece are consecutive, except that pieces of equal score share a stretch.
    ranks: dict[str, int] = {}
    rank, end = -1, -1
    for text, (first, last) in spans.items():
        rank, end = (rank + 1, last) if first > end else (rank, max(end, last))
        ranks[text] = rank
    return ranks
