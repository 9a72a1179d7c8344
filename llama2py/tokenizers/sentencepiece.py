"""sentencepiece's ``tokenizer.model``, and its pieces as llama2.c spells them.

The file is a protocol buffer: a sequence of fields, each a varint of number * 8 + wire type and a
value. The reader uses the pieces (field 1: piece 1, score 2, type 3); the algorithm (3), whether
spaces end words (24) and the ids of unknown, BOS and EOS (40, 41, 42) from the trainer's settings
(field 2); and whether a space is put before the text (3) from the normalizer's (field 3). Text is
not normalized, as in llama2.c and llama.cpp: repeated spaces stay. A note says so where
sentencepiece itself would normalize (name 1, table 2, spaces 4).

Source: ``sentencepiece_model.proto`` of github.com/google/sentencepiece.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterator, Mapping, Sequence

from ..errors import TokenizerError
from .bpe import FIRST_BYTE, MAX_TOKENS, N_BYTES
from .merge_tokenizer import SPACE_MARK
from .scores_and_merges import texts_of, to_scores
from .tokenizer import BOS, BOS_PIECE, EOS, EOS_PIECE, UNK, Specials, Tokenizer

MAX_FILE_SIZE = 8 << 20  # bytes; Llama 2's has 0.5 MB, those with 256,000 tokens about 4 MB
# Fields of any kind in one file: at most four for each token, and the settings.
_MAX_FIELDS = 4 * MAX_TOKENS + 100_000

# Types of a piece. GGUF has the same.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
_FIRST_SPECIAL = 3  # unknown, BOS and EOS are never matched in a text
_BPE = 2  # TrainerSpec.model_type; its default, 1, is the unigram model
_TRAINER, _NORMALIZER = {3, 24, 40, 41, 42}, {1, 2, 3, 4}  # the settings that are used
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types
_FIXED_LENGTHS = {_FIXED64: 8, _FIXED32: 4}  # bytes
_MARK = SPACE_MARK.encode()


# ---- pieces and their types, which GGUF has, too ----


def specials_of(texts: Sequence[str], types: Sequence[int], first: int = 0) -> Specials:
    """Return the special tokens from id ``first`` on, by their types."""
    typed = [(texts[token], token) for token in range(first, len(texts)) if texts[token]]
    return Specials(
        added={text: token for text, token in typed if types[token] == USER_DEFINED},
        control={text: token for text, token in typed if types[token] == CONTROL},
    )


def types_of(tokenizer: Tokenizer, texts: Sequence[str]) -> list[int]:
    """Return the type of every token of a vocabulary with scores."""
    types = [NORMAL if text else UNUSED for text in texts]
    types[: EOS + 1] = [UNKNOWN, CONTROL, CONTROL]
    types[tokenizer.first_byte : tokenizer.first_byte + N_BYTES] = [BYTE] * N_BYTES
    set_special_types(types, tokenizer.specials)
    return types


def set_special_types(types: list[int], specials: Specials) -> None:
    """Set the types of the special tokens in a list of all types."""
    for token in specials.added.values():
        types[token] = USER_DEFINED
    for token in specials.control.values():
        types[token] = CONTROL


def tokenizer_of_pieces(
    pieces: Sequence[bytes],
    scores: Sequence[float],
    types: Sequence[int] | None = None,
    eos_id: int = EOS,
    adds_bos: bool = True,
    prefix_each: bool = True,
) -> Tokenizer:
    """Make a tokenizer from sentencepiece's pieces, spelled as llama2.c's exporter spells them.

    Parameters
    ----------
    pieces : sequence of bytes
        The piece of every token id, with ``▁`` for a space.
    scores : sequence of float
        One for each piece.
    types : sequence of int, optional
        sentencepiece's type of each piece. Without them there are no special tokens.
    eos_id, adds_bos, prefix_each
        As in `Tokenizer`.

    Raises
    ------
    TokenizerError
        Without a file name: if the pieces are not a vocabulary.
    """
    spelled = [piece.replace(_MARK, b" ") for piece in pieces]
    specials = None
    if types is not None:
        texts = [
            piece.decode(errors="replace") if kind in (CONTROL, USER_DEFINED) else ""
            for piece, kind in zip(spelled, types, strict=True)
        ]
        specials = specials_of(texts, types, _FIRST_SPECIAL)
    spelled[BOS : EOS + 1] = [BOS_PIECE, EOS_PIECE]
    first_byte = spelled.index(b"<0x00>") if b"<0x00>" in spelled else FIRST_BYTE
    return Tokenizer(spelled, scores, specials, eos_id, adds_bos, first_byte, prefix_each)


# ---- reading ----


def parse_sentencepiece(data: bytes) -> Tokenizer:
    """Make a tokenizer from the bytes of a tokenizer.model whose algorithm is BPE.

    Raises
    ------
    TokenizerError
        Without a file name: if the bytes are malformed, or the model needs what is not done here.
    """
    pieces: list[bytes] = []
    scores = array("f")  # a list of floats is several times as large
    types: list[int] = []
    trainer: dict[int, int | bytes] = {}
    normalizer: dict[int, int | bytes] = {}
    reader = _FieldReader()
    for field, value in reader.fields(data):
        if field == 1:
            what = f"token {len(pieces)}"
            entry = {key: of for key, of in reader.fields(_message(value, what)) if key <= 3}
            score = _message(entry.get(2, bytes(4)), f"the score of {what}")
            kind = entry.get(3, NORMAL)
            if len(score) != 4 or not isinstance(kind, int):
                raise TokenizerError(f"{what} has a malformed score or type")
            if kind == UNUSED:
                raise TokenizerError(f"{what} is of type UNUSED, which is not supported")
            if len(pieces) == MAX_TOKENS:
                raise TokenizerError(f"the vocabulary has more than {MAX_TOKENS} tokens")
            piece = _message(entry.get(1, b""), what)
            if kind in (NORMAL, USER_DEFINED) and b" " in piece:
                piece = b""  # sentencepiece matches where spaces are marks: it never finds this one
            piece = piece.replace(_MARK, b" ")
            if kind == USER_DEFINED and UNK < len(pieces) <= EOS:
                raise TokenizerError(f"{what} is user-defined: BOS and EOS must not match a text")
            pieces.append(piece)
            scores.append(struct.unpack("<f", score)[0])
            types.append(kind)
        elif field in (2, 3):
            settings = trainer if field == 2 else normalizer
            known = _TRAINER if field == 2 else _NORMALIZER
            found = reader.fields(_message(value, "a block of settings"))
            settings.update((key, of) for key, of in found if key in known)
    if trainer.get(3, 1) != _BPE:
        raise TokenizerError(f"the algorithm is {trainer.get(3, 1)!r}, expected {_BPE} (BPE)")
    if trainer.get(24, 0) != 0:
        raise TokenizerError("treat_whitespace_as_suffix is true, expected false")
    if normalizer.get(3, 1) != 1:
        raise TokenizerError("add_dummy_prefix is not true: llama2.c always adds that space")
    ids = tuple(trainer.get(field, default) for field, default in ((40, UNK), (41, BOS), (42, EOS)))
    if ids != (UNK, BOS, EOS):
        raise TokenizerError(f"unknown, BOS and EOS are {ids!r:.80}, expected {(UNK, BOS, EOS)}")
    tokenizer = tokenizer_of_pieces(pieces, scores, types, prefix_each=False)
    tokenizer.notes = tuple(_notes(normalizer))
    return tokenizer


def _notes(normalizer: Mapping[int, int | bytes]) -> Iterator[str]:
    """Yield what sentencepiece does to a text and this package does not."""
    skipped = []
    if normalizer.get(2):
        raw = normalizer.get(1)
        name = raw.decode(errors="replace")[:40] if isinstance(raw, bytes) else "?"
        skipped.append(f"normalizes texts ({name!r})")
    if normalizer.get(4, 1):
        skipped.append("drops repeated spaces")
    if skipped:
        yield (
            f"with this tokenizer, sentencepiece {' and '.join(skipped)};"
            " llama2py keeps texts as they are"
        )


class _FieldReader:
    """Reads the fields of messages, and counts all of them: a field may have only two bytes."""

    def __init__(self) -> None:
        self._left = _MAX_FIELDS

    def fields(self, data: bytes) -> Iterator[tuple[int, int | bytes]]:
        """Yield the number and value of each field: an integer, or bytes (of fixed32, too)."""
        offset, size = 0, len(data)
        while offset < size:
            self._left -= 1
            if self._left < 0:
                raise TokenizerError(f"the file has more than {_MAX_FIELDS} fields")
            start = offset
            tag, offset = _read_varint(data, offset)
            wire = tag & 7
            if wire == _VARINT:
                value, offset = _read_varint(data, offset)
                yield tag >> 3, value
                continue
            if wire == _BYTES:
                length, offset = _read_varint(data, offset)
            else:
                length = _FIXED_LENGTHS.get(wire, size)  # more than is left: an error
            if length > size - offset:
                raise TokenizerError(
                    f"field {tag >> 3} at byte {start} of {size} has wire type {wire} and"
                    f" length {length} (is this a whole tokenizer.model?)"
                )
            yield tag >> 3, data[offset : offset + length]
            offset += length


def _read_varint(data: bytes, offset: int) -> tuple[int, int]:
    """Return a number (seven bits in each byte, lowest first) and the offset after it."""
    if offset < len(data) and (byte := data[offset]) < 128:  # as most are
        return byte, offset + 1
    number = 0
    for i, byte in enumerate(data[offset : offset + 10]):
        number |= (byte & 127) << (7 * i)
        if byte < 128:
            return number, offset + i + 1
    raise TokenizerError(
        f"the number at byte {offset} does not end (is this a whole tokenizer.model?)"
    )


def _message(value: int | bytes, what: str) -> bytes:
    if not isinstance(value, bytes):
        raise TokenizerError(f"{what} is the number {value}, expected bytes")
    return value


# ---- writing ----


def sentencepiece_model(tokenizer: Tokenizer) -> bytes:
    """Return the bytes of a tokenizer.model.

    Raises
    ------
    TokenizerError
        Without a file name: if the vocabulary has no equivalent scores, or the format cannot hold
        one of its pieces.
    """
    tokenizer = to_scores(tokenizer)
    texts = texts_of(tokenizer)
    if "" in texts:
        raise TokenizerError(f"token {texts.index('')} is empty: a tokenizer.model cannot hold it")
    parts = []
    for token, (text, kind) in enumerate(zip(texts, types_of(tokenizer, texts), strict=True)):
        if kind == USER_DEFINED:  # sentencepiece matches it where spaces are marks already
            text = text.replace(" ", SPACE_MARK)
        piece = _field(1, text.encode()) + _field(2, tokenizer.score(token))
        parts.append(_field(1, piece if kind == NORMAL else piece + _field(3, kind)))
    trainer = _field(3, 2) + _field(4, len(texts)) + _field(35, 1)  # BPE, size, byte_fallback
    trainer += _field(40, 0) + _field(41, 1) + _field(42, 2) + _field(43, -1)  # no padding token
    # "identity"; a space before the text; repeated spaces stay; spaces become marks.
    normalizer = _field(1, b"identity") + _field(3, 1) + _field(4, 0) + _field(5, 1)
    return b"".join(parts) + _field(2, trainer) + _field(3, normalizer)


def _field(number: int, value: int | float | bytes) -> bytes:
    if isinstance(value, bytes):
        return _varint(number << 3 | _BYTES) + _varint(len(value)) + value
    if isinstance(value, float):
        return _varint(number << 3 | _FIXED32) + struct.pack("<f", value)
    return _varint(number << 3 | _VARINT) + _varint(value)


def _varint(number: int) -> bytes:
    number &= (1 << 64) - 1
    parts = []
    while number > 127:
        parts.append(number & 127 | 128)
        number >>= 7
    return bytes([*parts, number])
