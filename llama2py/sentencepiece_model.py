"""Reads sentencepiece's ``tokenizer.model``, without sentencepiece: a protobuf message of pieces.

Source: ``sentencepiece_model.proto`` of google/sentencepiece, and protobuf's encoding guide.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from .errors import TokenizerError

# Fields of ModelProto, of SentencePiece, of TrainerSpec, of NormalizerSpec.
_PIECES, _TRAINER, _NORMALIZER = 1, 2, 3
_PIECE, _SCORE = 1, 2
_MODEL_TYPE, _BYTE_FALLBACK, _IDS = 3, 35, {40: ("unknown", 0), 41: ("BOS", 1), 42: ("EOS", 2)}
_ADD_DUMMY_PREFIX = 3
_BPE = 2


def looks_so(head: bytes) -> bool:
    """Whether a file that begins with these bytes may be one: its first field is a piece."""
    return head[:1] == b"\x0a"


def read_pieces(data: bytes) -> tuple[list[bytes], list[float]]:
    """Take the vocabulary out of a model.

    Parameters
    ----------
    data : bytes
        The file.

    Returns
    -------
    list of bytes, list of float
        The piece of every id, spaces as sentencepiece writes them, and its score.

    Raises
    ------
    TokenizerError
        Without a file's name, for the caller to add: if the message is malformed or cut short, or
        the model is not byte-pair encoding with byte fallback and ids as Llama has them.
    """
    pieces: list[bytes] = []
    scores: list[float] = []
    trainer: dict[int, object] = {}
    normalizer: dict[int, object] = {}
    for field, value in _fields(data):
        if field == _PIECES and isinstance(value, bytes):
            about = dict(_fields(value))
            piece, score = about.get(_PIECE, b""), about.get(_SCORE, 0.0)
            if not isinstance(piece, bytes) or not isinstance(score, float):
                raise TokenizerError(f"piece {len(pieces)} has no text and score, expected both")
            pieces.append(piece)
            scores.append(score)
        elif field == _TRAINER and isinstance(value, bytes):
            trainer = dict(_fields(value))
        elif field == _NORMALIZER and isinstance(value, bytes):
            normalizer = dict(_fields(value))
    if trainer.get(_MODEL_TYPE, 1) != _BPE or not trainer.get(_BYTE_FALLBACK, 0):
        raise TokenizerError(
            "this is no sentencepiece model of byte-pair encoding with byte fallback, expected one"
        )
    for field, (name, expected) in _IDS.items():
        if trainer.get(field, expected) != expected:
            raise TokenizerError(f"the {name} id is {trainer[field]}, expected {expected}")
    if not normalizer.get(_ADD_DUMMY_PREFIX, 1):
        raise TokenizerError("it adds no space in front of a text, expected the one Llama adds")
    return pieces, scores


def _fields(data: bytes) -> Iterator[tuple[int, int | float | bytes]]:
    """Number and value of each field of a message: a varint, a float32, or bytes."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        size = {1: 8, 5: 4}.get(key & 7, 0)
        if key & 7 == 0:
            value, at = _varint(data, at)
            yield key >> 3, value
            continue
        if key & 7 == 2:
            size, at = _varint(data, at)
        elif not size:
            raise TokenizerError(f"byte {at} is of no known type, expected a sentencepiece model")
        content = data[at : at + size]
        if len(content) < size:
            raise TokenizerError(f"it ends inside the {size} bytes from byte {at} on,"
                                 " expected a whole sentencepiece model")  # fmt: skip
        at += size
        yield key >> 3, struct.unpack("<f", content)[0] if key & 7 == 5 else content


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """The number at a byte, and where it ends."""
    value = 0
    for i in range(10):
        if at + i >= len(data):
            break
        value |= (data[at + i] & 0x7F) << 7 * i
        if data[at + i] < 0x80:
            return value, at + i + 1
    raise TokenizerError(f"the number at byte {at} does not end, expected a sentencepiece model")
