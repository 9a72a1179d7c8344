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
from dataclasses import replace

from ..errors import TokenizerError
from .bpe import FIRST_BYTE, MAX_TOKENS, N_BYTES
from .merge_tokenizer import SPACE_MARK
from .scores_and_merges import texts_of, to_scores
from .tokenizer import BOS, EOS, FIXED, UNK, Matching, Prefix, Specials, Tokenizer
from .tokenizer_config import AddedToken, TokenizerConfig

MAX_FILE_SIZE = 8 << 20  # bytes; Llama 2's has 0.5 MB, those with 256,000 tokens about 4 MB
# Fields of any kind in one file: at most four for each token, and the settings.
_MAX_FIELDS = 4 * MAX_TOKENS + 100_000

# Types of a piece. GGUF has the same.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
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
        control={text: token for text, token in typed if types[token] in (CONTROL, UNKNOWN)},
    )


def types_of(tokenizer: Tokenizer, texts: Sequence[str]) -> list[int]:
    """Return the type of every token of a vocabulary with scores."""
    types = [NORMAL if text else UNUSED for text in texts]
    for text, token in tokenizer.specials.fixed.items():
        types[token] = UNKNOWN if text == "<unk>" else CONTROL
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
    prefix: Prefix = "each",
    bos_id: int = BOS,
    matching: Mapping[str, Matching] | None = None,
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
    eos_id, adds_bos, prefix, bos_id
        As in `Tokenizer`.
    matching : mapping of str to Matching, optional
        As in `Specials`.

    Raises
    ------
    TokenizerError
        Without a file name: if the pieces are not a vocabulary.
    """
    spelled = [piece.replace(_MARK, b" ") for piece in pieces]
    kinds = list(types or [NORMAL] * len(pieces))
    for token, (text, piece) in enumerate(FIXED.items()):
        if spelled[token : token + 1] == [text.encode()]:
            spelled[token], kinds[token] = piece, NORMAL
    texts = [
        piece.decode(errors="replace") if kind in (CONTROL, USER_DEFINED, UNKNOWN) else ""
        for piece, kind in zip(spelled, kinds, strict=True)
    ]
    specials = replace(specials_of(texts, kinds), matching=matching or {})
    first_byte = spelled.index(b"<0x00>") if b"<0x00>" in spelled else FIRST_BYTE
    return Tokenizer(spelled, scores, specials, eos_id, adds_bos, first_byte, prefix, bos_id)


# ---- reading ----


def parse_sentencepiece(data: bytes, config: TokenizerConfig | None = None) -> Tokenizer:
    """Make a tokenizer from the bytes of a tokenizer.model whose algorithm is BPE.

    Parameters
    ----------
    data : bytes
        The file.
    config : TokenizerConfig, optional
        What the files beside it say.

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
    bos, eos, unknown = (
        _id(trainer, field, default, len(pieces))
        for field, default in ((41, BOS), (42, EOS), (40, UNK))
    )
    config = config or TokenizerConfig()
    matching = _add(config.added, pieces, scores, types)
    ids = {piece.decode(errors="replace"): token for token, piece in enumerate(pieces)}
    bos = ids.get(config.names.get("bos", ""), bos)
    eos = ids.get(config.names.get("eos", ""), eos)
    either = eos if bos is None else bos
    if either is None:
        raise TokenizerError("neither BOS nor EOS is a token")
    adds_bos = config.adds_bos is not False and bos is not None
    # transformers splits a text at the tokens that it has added, sentencepiece at none of its own.
    added_prefix: Prefix = "each" if config.is_legacy else "first"
    prefix: Prefix = added_prefix if matching else "control"
    tokenizer = tokenizer_of_pieces(
        pieces,
        scores,
        types,
        either if eos is None else eos,
        adds_bos,
        prefix if normalizer.get(3, 1) else "none",
        either if bos is None else bos,
        matching,
    )
    tokenizer.unk_id = tokenizer.bos_id if unknown is None else unknown
    tokenizer.notes = tuple(_notes(normalizer))
    return tokenizer


def _id(trainer: Mapping[int, int | bytes], field: int, default: int, n_tokens: int) -> int | None:
    """Return the id of unknown, BOS or EOS; None if it is -1, as where there is no such token."""
    found = trainer.get(field, default)
    if not isinstance(found, int):
        raise TokenizerError(f"the id in field {field} is {found!r:.40}, expected a whole number")
    return found if found < n_tokens else None


def _add(
    added: Sequence[AddedToken], pieces: list[bytes], scores: array[float], types: list[int]
) -> dict[str, Matching]:
    """Add tokens to a vocabulary that lacks them; return how each of those is matched."""
    ids = {piece: token for token, piece in enumerate(pieces)}
    matching = {}
    for entry in added:
        piece, kind = (
            entry.text.encode(errors="replace"),
            CONTROL if entry.special else USER_DEFINED,
        )
        token = ids.setdefault(piece, len(pieces))
        if entry.token not in (None, token):
            raise TokenizerError(
                f"the added token {entry.text[:40]!r} has the id {entry.token}, expected {token}"
            )
        if token == len(pieces):
            if token == MAX_TOKENS:
                raise TokenizerError(f"the vocabulary has more than {MAX_TOKENS} tokens")
            pieces.append(piece)
            scores.append(0.0)
            types.append(kind)
            matching[entry.text] = replace(entry.matching, normalized=False)
        elif types[token] in (NORMAL, USER_DEFINED):
            types[token] = kind
    return matching


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
    if len(tokenizer.specials.fixed) != len(FIXED):
        raise TokenizerError("a tokenizer.model begins with <unk>, <s> and </s>: write it as gguf")
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
    has_space = tokenizer.prefix != "none"
    normalizer = _field(1, b"identity") + _field(3, int(has_space)) + _field(4, 0) + _field(5, 1)
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
