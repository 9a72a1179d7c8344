"""Meta's ``tokenizer.model`` of Llama 3: byte-level pieces and their ranks, one a line.

A line is a piece in base64, a space, and its rank, which is also its id: of all joins that are
possible, that of the lowest ranked piece comes first. The pattern that cuts a text into words and
the 256 special tokens are not in the file; they are those of Meta's code.

Source: ``tokenizer.py`` of meta-llama/llama3 and llama-models; github.com/openai/tiktoken.
"""

from __future__ import annotations

import base64
import re
from pathlib import Path

from ..errors import TokenizerError
from .merge_tokenizer import LETTERS, ByteLevel, MergeTokenizer
from .pretokenize import LLAMA3
from .specials import Specials

MAX_FILE_SIZE = 4 << 20  # bytes: Llama 3's has 2.2 MB
MAX_PIECE = 128  # bytes: Llama 3's longest
MAX_PIECES = 128_000  # Llama 3's: Llama 4 has more, and cuts texts by another pattern
N_SPECIALS = 256
# Those of Llama 3.1, which gave names to three of Llama 3's reserved ones.
_NAMED = {
    0: "<|begin_of_text|>",
    1: "<|end_of_text|>",
    4: "<|finetune_right_pad_id|>",
    6: "<|start_header_id|>",
    7: "<|end_header_id|>",
    8: "<|eom_id|>",
    9: "<|eot_id|>",
    10: "<|python_tag|>",
}
_LINE = re.compile(rb"[A-Za-z0-9+/]+={0,2} [0-9]{1,8}")


def looks_like_ranks(head: bytes) -> bool:
    """Whether a file begins with a line of this format."""
    line, newline, _ = head.partition(b"\n")
    return bool(newline) and _LINE.fullmatch(line.removesuffix(b"\r")) is not None


def read_ranks(path: str | Path) -> MergeTokenizer:
    """Read a Llama 3's tokenizer.model.

    Raises
    ------
    TokenizerError
        If the file is missing or malformed.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        if size > MAX_FILE_SIZE:
            raise TokenizerError(f"{size} bytes, expected at most {MAX_FILE_SIZE}")
        return _tokenizer(_pieces(path.read_bytes()))
    except TokenizerError as error:
        raise TokenizerError(f"{path}: {error}") from None
    except OSError as error:
        raise TokenizerError(f"{path}: cannot be read: {error}") from None


def _pieces(data: bytes) -> list[bytes]:
    pieces: list[bytes] = []
    known = set()
    for line in data.splitlines():
        if _LINE.fullmatch(line) is None:
            raise TokenizerError(
                f"line {len(pieces) + 1} is {line!r:.60}, expected a piece and a rank"
            )
        coded, rank = line.split(b" ")
        try:
            piece = base64.b64decode(coded, validate=True)
        except ValueError as error:
            raise TokenizerError(f"line {len(pieces) + 1}: {error}, expected base64") from None
        if int(rank) != len(pieces):
            raise TokenizerError(
                f"line {len(pieces) + 1} has rank {int(rank)}, expected {len(pieces)}"
            )
        if piece in known or not 1 <= len(piece) <= MAX_PIECE:
            raise TokenizerError(
                f"piece {len(pieces)} is {piece!r:.60}, expected another of 1 to {MAX_PIECE} bytes"
            )
        known.add(piece)
        pieces.append(piece)
    if len(pieces) > MAX_PIECES:
        raise TokenizerError(f"{len(pieces)} pieces, expected Llama 3's, at most {MAX_PIECES}")
    missing = [byte for byte in range(256) if bytes([byte]) not in known]
    if missing:
        raise TokenizerError(f"the byte 0x{missing[0]:02X} is no piece, expected all 256")
    return pieces


def _specials() -> list[str]:
    reserved = (f"<|reserved_special_token_{i}|>" for i in range(N_SPECIALS))
    return [_NAMED.get(place) or next(reserved) for place in range(N_SPECIALS)]


def _tokenizer(pieces: list[bytes]) -> MergeTokenizer:
    letters = dict(enumerate(LETTERS))
    texts = [piece.decode("latin-1").translate(letters) for piece in pieces]
    ranks = {text: rank for rank, text in enumerate(texts)}
    merges = []
    for text in texts:
        # Every two pieces that make this one; of several, those that came about first.
        parts = ((text[:i], text[i:]) for i in range(1, len(text)))
        ways = [part for part in parts if part[0] in ranks and part[1] in ranks]
        merges += sorted(ways, key=lambda part: (ranks[part[0]], ranks[part[1]]))
    begin = len(texts)
    specials = {text: begin + place for place, text in enumerate(_specials())}
    return MergeTokenizer(
        [*texts, *specials],
        merges,
        ByteLevel((LLAMA3,)),
        bos_id=begin,
        eos_id=begin + 1,
        specials=Specials(control=specials),
        whole_first=True,
    )
