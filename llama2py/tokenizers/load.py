"""Vocabularies on disk: which kind a file is, and llama2.c's own, tokenizer.bin.

It is, little-endian: int32 the length of the longest piece, then for each id: float32
score, int32 length, that many bytes. The number of ids is not in it. Spaces are plain spaces.

Source: karpathy/llama2.c, ``tokenizer.py`` (writes it) and ``run.c`` (reads it).
"""

from __future__ import annotations

import struct
from array import array
from pathlib import Path

from ..errors import TokenizerError
from ..formats.atomic_write import replacing
from ..formats.sniff import HEAD, JSON, TOKENIZER_BIN, kind_of
from .bpe import FIRST_BYTE
from .tokenizer import EOS, Tokenizer

NAME = "tokenizer.bin"
MAX_FILE_SIZE = 16 << 20  # bytes: 32000 tokens are 0.4 MB, 256000 about 4 MB
MAX_PADDING = 16  # at most one of so many ids
HEADER = struct.Struct("<i")
RECORD = struct.Struct("<fi")


def load_tokenizer(
    path: str | Path, vocab_size: int | None = None, padded: bool = False
) -> Tokenizer:
    """Read a tokenizer.bin, .model or .json, or the vocabulary inside a GGUF file.

    Parameters
    ----------
    path : str or Path
        The file. What it is, its first bytes tell.
    vocab_size : int, optional
        The number of ids that the model has; None if any will do.
    padded : bool
        Whether the model may have a few ids more: of a tokenizer that is known to be the model's,
        where the embedding was filled up to a round number of rows. See `Tokenizer.padded`.

    Raises
    ------
    TokenizerError
        If the file is missing, malformed, or of another size than the model's vocabulary.
    """
    path = Path(path)
    tokenizer: Tokenizer
    try:
        if not path.is_file():
            problem = "this is no regular file" if path.exists() else "no such file"
            raise TokenizerError(f"{path}: {problem}, expected a {NAME}")
        with path.open("rb") as file:
            head = file.read(HEAD)
        if head[1:4] == b"\0\0\0":  # pieces are shorter than 256 bytes
            tokenizer = _read_tokenizer_bin(path)
        else:
            tokenizer = _read_other(path, head)
    except (OSError, ValueError) as error:
        raise TokenizerError(f"{path}: cannot be read: {error}") from None
    if vocab_size is None or len(tokenizer) == vocab_size:
        return tokenizer
    if padded and 0 < vocab_size - len(tokenizer) <= vocab_size // MAX_PADDING:
        return tokenizer.padded(vocab_size)
    raise TokenizerError(
        f"{path}: this tokenizer has {len(tokenizer)} tokens, the model has {vocab_size};"
        " pass the model's own with -z FILE or tokenizer=FILE"
    )


def _read_other(path: Path, head: bytes) -> Tokenizer:
    """Of another kind; the readers are loaded only here."""
    from .gguf import read_gguf_vocabulary
    from .huggingface import read_tokenizer_json
    from .sentencepiece import looks_like_sentencepiece, read_sentencepiece
    from .tiktoken import looks_like_ranks, read_ranks

    if looks_like_sentencepiece(head):
        return read_sentencepiece(path)
    if looks_like_ranks(head):
        return read_ranks(path)
    if head.startswith(b"GGUF"):
        return read_gguf_vocabulary(path)
    if head.lstrip().startswith(b"{") and b"\0" not in head:
        # In a tokenizer.bin an opening brace is a longest piece of 123 bytes, and has zeros.
        return read_tokenizer_json(path)
    try:
        return _read_tokenizer_bin(path)
    except TokenizerError:
        kind = kind_of(head)
        if kind is None or kind in (TOKENIZER_BIN, JSON):
            raise
        raise TokenizerError(
            f"{path}: this is {kind}, expected a {NAME}, .model, .json or GGUF"
        ) from None


def _read_tokenizer_bin(path: Path) -> Tokenizer:
    try:
        size = path.stat().st_size
        if size > MAX_FILE_SIZE:
            raise TokenizerError(f"{size} bytes, expected a {NAME} of at most {MAX_FILE_SIZE}")
        return parse_tokenizer_bin(path.read_bytes())
    except TokenizerError as error:
        raise TokenizerError(f"{path}: {error}") from None


def parse_tokenizer_bin(data: bytes) -> Tokenizer:
    """Make a tokenizer of the bytes of a tokenizer.bin.

    Raises
    ------
    TokenizerError
        Without a file name, for the caller to add: what is wrong, what was expected.
    """
    size = len(data)
    if size < HEADER.size:
        raise TokenizerError(f"{size} bytes, expected a {NAME}")
    (longest,) = HEADER.unpack_from(data)
    pieces: list[bytes] = []
    scores = array("f")
    unpack = RECORD.unpack_from
    offset = HEADER.size
    while offset < size:
        start = offset + RECORD.size
        if start > size:
            raise TokenizerError(
                f"the file ends at byte {size} inside the score of token {len(pieces)},"
                f" expected whole tokens (is this a {NAME}?)"
            )
        score, length = unpack(data, offset)
        offset = start + length
        if length < 0 or length > longest or offset > size:
            raise TokenizerError(
                f"token {len(pieces)} has length {length}, expected 0 to"
                f" {max(0, min(longest, size - start))} (is this a whole {NAME}?)"
            )
        pieces.append(data[start:offset])
        scores.append(score)
    return Tokenizer(pieces, scores)


def fits_tokenizer_bin(tokenizer: Tokenizer) -> bool:
    """Whether a tokenizer.bin can hold it: scores, llama2.c's BOS and EOS, no special tokens."""
    plain = type(tokenizer) is Tokenizer and not tokenizer.specials.ids()
    plain = plain and tokenizer.first_byte == FIRST_BYTE
    return plain and tokenizer.eos_id == EOS and tokenizer.adds_bos


def write_tokenizer_bin(tokenizer: Tokenizer, path: str | Path) -> None:
    """Write a tokenizer.bin: all of it, or nothing if anything goes wrong.

    Raises
    ------
    TokenizerError
        If the file cannot be written, or the format cannot hold the vocabulary: it has no merges,
        and no special tokens but its own; and every text begins with BOS.
    """
    path = Path(path)
    if not fits_tokenizer_bin(tokenizer):
        raise TokenizerError(
            f"{path}: the vocabulary has merges or special tokens of its own,"
            f" expected one that a {NAME} can hold"
        )
    pieces = [tokenizer.piece(token) for token in range(len(tokenizer))]
    parts = [HEADER.pack(max(map(len, pieces)))]
    for token, piece in enumerate(pieces):
        parts += (RECORD.pack(tokenizer.score(token), len(piece)), piece)
    with replacing(path, TokenizerError) as file:
        file.writelines(parts)
