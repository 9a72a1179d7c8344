"""Vocabularies on disk: llama2.c's tokenizer.bin, and the one inside a GGUF file.

tokenizer.bin, little-endian: int32 the length of the longest piece, then for each id: float32
score, int32 length, that many bytes. The number of ids is not in it. Spaces are plain spaces.

Source: karpathy/llama2.c, ``tokenizer.py`` (writes it) and ``run.c`` (reads it).
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .errors import TokenizerError
from .files import replacing
from .gguf_metadata import GGUFArray, read_gguf_metadata
from .tokenizer import BOS, EOS, UNK, Tokenizer

NAME = "tokenizer.bin"
MAX_FILE_SIZE = 16 << 20  # bytes: 32000 tokens are 0.4 MB, 256000 about 4 MB
HEADER = struct.Struct("<i")
RECORD = struct.Struct("<fi")

SPACE_MARK = "\u2581".encode()  # how sentencepiece writes a space inside a piece
# llama2.c's exporter puts these two on lines of their own.
BOS_PIECE, EOS_PIECE = b"\n<s>\n", b"\n</s>\n"


def bundled_tokenizer() -> Path:
    """The path of the 32000-token tokenizer.bin that comes with llama2py.

    Raises
    ------
    TokenizerError
        If this installation has none.
    """
    package = Path(__file__).resolve().parent
    # An installed package carries it inside; in a checkout it lies at the top, as in llama2.c.
    for folder in (package, package.parent):
        if (folder / NAME).is_file():
            return folder / NAME
    raise TokenizerError(f"{package / NAME}: no such file, expected it to come with llama2py")


def load_tokenizer(path: str | Path, vocab_size: int | None = None) -> Tokenizer:
    """Read a tokenizer.bin, or the vocabulary inside a GGUF file.

    Parameters
    ----------
    path : str or Path
        The file. What it is, its first bytes tell.
    vocab_size : int, optional
        The number of ids that the model has; None if any will do.

    Raises
    ------
    TokenizerError
        If the file is missing, malformed, or of another size than the model's vocabulary.
    """
    path = Path(path)
    try:
        if not path.is_file():
            problem = "this is no regular file" if path.exists() else "no such file"
            raise TokenizerError(f"{problem}, expected a {NAME}")
        tokenizer = _read(path)
        if vocab_size is not None and len(tokenizer) != vocab_size:
            raise TokenizerError(
                f"this tokenizer has {len(tokenizer)} tokens, the model has {vocab_size};"
                " pass the model's own with -z FILE or tokenizer=FILE"
            )
    except TokenizerError as error:
        raise TokenizerError(f"{path}: {error}") from None
    except (OSError, ValueError) as error:
        raise TokenizerError(f"{path}: cannot be read: {error}") from None
    return tokenizer


def _read(path: Path) -> Tokenizer:
    with path.open("rb") as file:
        head = file.read(4)
    if head == b"GGUF":
        return _tokenizer_of_gguf(read_gguf_metadata(path, TokenizerError).pairs)
    size = path.stat().st_size
    if size > MAX_FILE_SIZE:
        raise TokenizerError(f"{size} bytes, expected a {NAME} of at most {MAX_FILE_SIZE}")
    return parse_tokenizer_bin(path.read_bytes())


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


def write_tokenizer_bin(tokenizer: Tokenizer, path: str | Path) -> None:
    """Write a tokenizer.bin: all of it, or nothing if anything goes wrong.

    Raises
    ------
    TokenizerError
        If the file cannot be written.
    """
    path = Path(path)
    pieces = [tokenizer.piece(token) for token in range(len(tokenizer))]
    parts = [HEADER.pack(max(map(len, pieces)))]
    for token, piece in enumerate(pieces):
        parts += (RECORD.pack(tokenizer.score(token), len(piece)), piece)
    with replacing(path, TokenizerError) as file:
        file.writelines(parts)


def read_gguf_vocabulary(path: str | Path) -> Tokenizer:
    """Take the sentencepiece vocabulary out of a GGUF file (v2 or v3, with or without tensors).

    Raises
    ------
    TokenizerError
        If the file is missing or malformed, or its vocabulary is not one that llama2.c can hold.
    """
    pairs = read_gguf_metadata(path, TokenizerError).pairs
    try:
        return _tokenizer_of_gguf(pairs)
    except TokenizerError as error:
        raise TokenizerError(f"{path}: {error}") from None


def _tokenizer_of_gguf(pairs: dict[str, Any]) -> Tokenizer:
    def get(name: str, default: Any = None) -> Any:
        return pairs.get("tokenizer.ggml." + name, default)

    model = get("model")
    if model != b"llama":
        raise TokenizerError(
            f"tokenizer.ggml.model is {model!r}, expected b'llama' (sentencepiece)"
        )
    if get("add_space_prefix", True) is not True:
        raise TokenizerError(
            "tokenizer.ggml.add_space_prefix is not true, expected the space that llama2.c adds"
        )
    for name, expected in [("unknown", UNK), ("bos", BOS), ("eos", EOS)]:
        token = get(f"{name}_token_id", expected)
        if token != expected:
            raise TokenizerError(
                f"tokenizer.ggml.{name}_token_id is {token!r}, expected {expected}"
            )
    columns = []
    for name, kind in [("tokens", bytes), ("scores", float), ("token_type", int)]:
        column = get(name)
        column = column.tolist() if isinstance(column, GGUFArray) else None
        if not isinstance(column, list) or not all(isinstance(item, kind) for item in column):
            raise TokenizerError(
                f"tokenizer.ggml.{name} is missing or of another type,"
                f" expected an array of {kind.__name__}"
            )
        columns.append(column)
    tokens, scores, types = columns
    if len(types) != len(tokens):
        raise TokenizerError(f"{len(tokens)} tokens have {len(types)} types, expected one each")
    return tokenizer_of_pieces(tokens, scores)


def tokenizer_of_pieces(pieces: Sequence[bytes], scores: Sequence[float]) -> Tokenizer:
    """A tokenizer of sentencepiece's own pieces, as llama2.c's exporter spells them.

    Raises
    ------
    TokenizerError
        If they do not make a vocabulary.
    """
    spelled = [piece.replace(SPACE_MARK, b" ") for piece in pieces]
    spelled[BOS : EOS + 1] = [BOS_PIECE, EOS_PIECE]
    return Tokenizer(spelled, scores)
