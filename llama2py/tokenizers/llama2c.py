"""llama2.c's ``tokenizer.bin``.

Layout, little-endian: int32, the length of the longest piece; then for each id float32 score, int32
length, and the piece of that many bytes. The number of ids is not stored. Spaces are plain spaces.

Source: karpathy/llama2.c, ``tokenizer.py`` (writes it) and ``run.c`` (reads it).
"""

from __future__ import annotations

import struct
from array import array
from pathlib import Path

from ..errors import TokenizerError
from ..formats.atomic_write import replacing
from .bpe import FIRST_BYTE, MAX_TOKENS
from .tokenizer import BOS, EOS, Tokenizer

MAX_FILE_SIZE = 16 << 20  # bytes; 32,000 tokens take 0.4 MB, 256,000 about 4 MB
_NAME = "tokenizer.bin"
_HEADER = struct.Struct("<i")
_RECORD = struct.Struct("<fi")


def parse_tokenizer_bin(data: bytes) -> Tokenizer:
    """Make a tokenizer from the bytes of a tokenizer.bin.

    Raises
    ------
    TokenizerError
        Without a file name: if the bytes are malformed or not a vocabulary.
    """
    size = len(data)
    if size < _HEADER.size:
        raise TokenizerError(f"{size} bytes are too few for a {_NAME}")
    (longest,) = _HEADER.unpack_from(data)
    pieces: list[bytes] = []
    scores = array("f")
    unpack = _RECORD.unpack_from
    offset = _HEADER.size
    for _ in range(MAX_TOKENS):
        if offset >= size:
            break
        start = offset + _RECORD.size
        if start > size:
            raise TokenizerError(
                f"the file ends at byte {size} inside the score of token {len(pieces)}"
                f" (is this a whole {_NAME}?)"
            )
        score, length = unpack(data, offset)
        offset = start + length
        if length < 0 or length > longest or offset > size:
            raise TokenizerError(
                f"token {len(pieces)} has length {length}, expected 0 to"
                f" {max(0, min(longest, size - start))} (is this a whole {_NAME}?)"
            )
        pieces.append(data[start:offset])
        scores.append(score)
    if offset < size:
        raise TokenizerError(f"the vocabulary has more than {MAX_TOKENS} tokens")
    return Tokenizer(pieces, scores)


def fits_tokenizer_bin(tokenizer: Tokenizer) -> bool:
    """Whether a tokenizer.bin can hold a vocabulary.

    It can if the vocabulary has scores, llama2.c's layout, BOS and EOS, and no other special
    tokens, and if its texts begin with BOS and a space.
    """
    if type(tokenizer) is not Tokenizer or tokenizer.specials.ids():
        return False
    layout = (tokenizer.bos_id, tokenizer.eos_id, tokenizer.first_byte)
    has_layout = layout == (BOS, EOS, FIRST_BYTE)
    return has_layout and tokenizer.adds_bos and tokenizer.prefix != "none"


def write_tokenizer_bin(tokenizer: Tokenizer, path: str | Path) -> None:
    """Write a tokenizer.bin, whole or not at all.

    Raises
    ------
    TokenizerError
        If the file cannot be written or the format cannot hold the vocabulary.
    """
    path = Path(path)
    if not fits_tokenizer_bin(tokenizer):
        raise TokenizerError(
            f"{path}: a {_NAME} cannot hold merges or special tokens, which this vocabulary has"
        )
    pieces = [tokenizer.piece(token) for token in range(len(tokenizer))]
    parts = [_HEADER.pack(max(map(len, pieces)))]
    for token, piece in enumerate(pieces):
        parts += (_RECORD.pack(tokenizer.score(token), len(piece)), piece)
    with replacing(path, TokenizerError) as file:
        file.writelines(parts)
