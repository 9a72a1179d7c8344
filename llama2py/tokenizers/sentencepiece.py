"""SentencePiece's ``tokenizer.model``, and its pieces as llama2.c spells them.

The file is a protocol buffer: fields, each a varint of number * 8 + wire type, then a value. Read
from it are the pieces (field 1: piece 1, score 2, type 3), of the trainer's settings (field 2) the
algorithm (3), whether spaces end words (24) and the ids of unknown, BOS and EOS (40, 41, 42), and
of the normalizer's (field 3) whether a space is put before the text (3). Text is not normalized, as
it is not in llama2.c and llama.cpp: repeated spaces stay. Where sentencepiece would (name 1, table
2, spaces 4), a note says so.

Source: ``sentencepiece_model.proto`` of github.com/google/sentencepiece.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from ..errors import TokenizerError
from .bpe import FIRST_BYTE
from .specials import Specials
from .tokenizer import BOS, EOS, UNK, Tokenizer

MAX_FILE_SIZE = 8 << 20  # bytes: Llama 2's has 0.5 MB, those of 256,000 tokens about 4
MAX_TOKENS = 1 << 18  # Llama 2 has 32000

SPACE_MARK = "\u2581".encode()  # how sentencepiece writes a space inside a piece
# llama2.c's exporter puts these two on lines of their own.
BOS_PIECE, EOS_PIECE = b"\n<s>\n", b"\n</s>\n"

# Types of a piece; GGUF has the same.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
_FIRST_SPECIAL = 3  # unknown, BOS and EOS are never looked for by their text
_BPE = 2  # TrainerSpec.model_type; 1, its default, is the unigram model
_TRAINER, _NORMALIZER = {3, 24, 40, 41, 42}, {1, 2, 3, 4}  # the settings that are looked at
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types


def specials_of(texts: Sequence[str], types: Sequence[int], first: int = 0) -> Specials:
    """Which tokens from id ``first`` on are special, by their types."""
    typed = [(texts[token], token) for token in range(first, len(texts)) if texts[token]]
    return Specials(
        added={text: token for text, token in typed if types[token] == USER_DEFINED},
        control={text: token for text, token in typed if types[token] == CONTROL},
    )


def tokenizer_of_pieces(
    pieces: Sequence[bytes],
    scores: Sequence[float],
    types: Sequence[int] | None = None,
    eos_id: int = EOS,
    adds_bos: bool = True,
    prefix_each: bool = True,
) -> Tokenizer:
    """A tokenizer of sentencepiece's own pieces, as llama2.c's exporter spells them.

    Raises
    ------
    TokenizerError
        If they do not make a vocabulary.
    """
    spelled = [piece.replace(SPACE_MARK, b" ") for piece in pieces]
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


def read_sentencepiece(path: str | Path) -> Tokenizer:
    """Read a tokenizer.model of the kind BPE.

    Raises
    ------
    TokenizerError
        If the file is missing or malformed, or of another kind.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        if size > MAX_FILE_SIZE:
            raise TokenizerError(f"{size} bytes, expected at most {MAX_FILE_SIZE}")
        return _tokenizer(path.read_bytes())
    except TokenizerError as error:
        raise TokenizerError(f"{path}: {error}") from None
    except OSError as error:
        raise TokenizerError(f"{path}: cannot be read: {error}") from None


def looks_like_sentencepiece(head: bytes) -> bool:
    """Whether a file begins with a piece: field 1 of some bytes, and in it field 1 of fewer."""
    return len(head) > 4 and head[0] == head[2] == 0x0A and head[1] < 128 and head[3] < head[1]


def _varint(data: bytes, offset: int) -> tuple[int, int]:
    """A number of seven bits a byte, lowest first, and where it ends."""
    number = 0
    for i, byte in enumerate(data[offset : offset + 10]):
        number |= (byte & 127) << (7 * i)
        if byte < 128:
            return number, offset + i + 1
    raise TokenizerError(f"the number at byte {offset} does not end, expected a tokenizer.model")


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Every field and its value: an integer, or bytes (fixed32 and fixed64, too)."""
    offset = 0
    while offset < len(data):
        start = offset
        tag, offset = _varint(data, offset)
        wire = tag & 7
        if wire == _VARINT:
            value, offset = _varint(data, offset)
            yield tag >> 3, value
            continue
        length = {_FIXED64: 8, _FIXED32: 4}.get(wire, 0)
        if wire == _BYTES:
            length, offset = _varint(data, offset)
        if (not length and wire != _BYTES) or length > len(data) - offset:
            raise TokenizerError(
                f"field {tag >> 3} at byte {start} of {len(data)} is of wire type {wire} and"
                f" length {length}, expected a whole tokenizer.model"
            )
        yield tag >> 3, data[offset : offset + length]
        offset += length


def _message(value: int | bytes, what: str) -> bytes:
    if not isinstance(value, bytes):
        raise TokenizerError(f"{what} is the number {value}, expected bytes")
    return value


def _tokenizer(data: bytes) -> Tokenizer:
    pieces: list[bytes] = []
    scores = array("f")  # plain numbers are several times as large
    types: list[int] = []
    trainer: dict[int, int | bytes] = {}
    normalizer: dict[int, int | bytes] = {}
    for field, value in _fields(data):
        if field == 1:
            what = f"token {len(pieces)}"
            entry = {key: of for key, of in _fields(_message(value, what)) if key <= 3}
            score = _message(entry.get(2, bytes(4)), f"the score of {what}")
            kind = entry.get(3, NORMAL)
            if len(score) != 4 or not isinstance(kind, int):
                raise TokenizerError(f"{what} has no score or no type, expected both")
            if kind == UNUSED or len(pieces) == MAX_TOKENS:
                raise TokenizerError(f"{what} is unused or one too many, expected a Llama's")
            piece = _message(entry.get(1, b""), what)
            if kind in (NORMAL, USER_DEFINED) and b" " in piece:
                piece = b""  # spaces are marks where sentencepiece looks for it: it never finds it
            if kind == USER_DEFINED and UNK < len(pieces) <= EOS:
                raise TokenizerError(f"{what} is found in texts, expected BOS and EOS not to be")
            pieces.append(piece)
            scores.append(struct.unpack("<f", score)[0])
            types.append(kind)
        elif field in (2, 3):
            settings = trainer if field == 2 else normalizer
            known = _TRAINER if field == 2 else _NORMALIZER
            found = _fields(_message(value, "the settings"))
            settings.update((key, of) for key, of in found if key in known)
    if trainer.get(3, 1) != _BPE:
        raise TokenizerError(f"the algorithm is {trainer.get(3, 1)!r}, expected {_BPE} (BPE)")
    if trainer.get(24, 0) != 0:
        raise TokenizerError("treat_whitespace_as_suffix is true, expected spaces before words")
    if normalizer.get(3, 1) != 1:
        raise TokenizerError("add_dummy_prefix is not true, expected the space that llama2.c adds")
    ids = tuple(trainer.get(field, default) for field, default in ((40, UNK), (41, BOS), (42, EOS)))
    if ids != (UNK, BOS, EOS):
        raise TokenizerError(f"unknown, BOS and EOS are {ids!r:.80}, expected {(UNK, BOS, EOS)}")
    tokenizer = tokenizer_of_pieces(pieces, scores, types, prefix_each=False)
    tokenizer.notes = tuple(_what_is_not_done(normalizer))
    return tokenizer


def _what_is_not_done(normalizer: Mapping[int, int | bytes]) -> Iterator[str]:
    done = []
    if normalizer.get(2):
        raw = normalizer.get(1)
        name = raw.decode(errors="replace")[:40] if isinstance(raw, bytes) else "?"
        done.append(f"normalizes texts ({name!r})")
    if normalizer.get(4, 1):
        done.append("drops repeated spaces")
    if done:
        yield f"sentencepiece {' and '.join(done)} for this tokenizer, here they stay as they are"
