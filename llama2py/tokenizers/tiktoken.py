"""Meta's ``tokenizer.model`` of Llama 3, in tiktoken's format: byte-level pieces and their ranks.

Each line is a piece in base64, a space, and its rank, which is also its id. Of all merges that are
possible, the one that makes the lowest-ranked piece comes first. The file has neither the pattern
that cuts a text into words nor the 256 special tokens; both come from Meta's code.

Source: ``tokenizer.py`` of meta-llama/llama3 and llama-models; github.com/openai/tiktoken.
"""

from __future__ import annotations

import base64
import re

from ..errors import TokenizerError
from .merge_tokenizer import LETTERS, ByteLevel, MergeTokenizer
from .pretokenize import LLAMA3
from .tokenizer import Specials

MAX_FILE_SIZE = 4 << 20  # bytes; Llama 3's has 2.2 MB
MAX_PIECE = 128  # bytes; Llama 3's longest
MAX_PIECES = 128_000  # Llama 3's; Llama 4 has more, and cuts texts by another pattern
N_SPECIALS = 256
# Llama 3.1's, which names three of the tokens that Llama 3 reserves.
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


def parse_ranks(data: bytes) -> MergeTokenizer:
    """Make a tokenizer from the bytes of Llama 3's tokenizer.model.

    Raises
    ------
    TokenizerError
        Without a file name: if the bytes are malformed or not a vocabulary.
    """
    letters = dict(enumerate(LETTERS))
    texts = [piece.decode("latin-1").translate(letters) for piece in _pieces(data)]
    bos_id = len(texts)
    specials = {text: bos_id + place for place, text in enumerate(_specials())}
    return MergeTokenizer(
        [*texts, *specials],
        None,
        ByteLevel((LLAMA3,), whole_first=True),
        bos_id=bos_id,
        eos_id=bos_id + 1,
        specials=Specials(control=specials),
    )


def _pieces(data: bytes) -> list[bytes]:
    pieces: list[bytes] = []
    known = set()
    for line in data.splitlines():
        number = len(pieces) + 1
        if _LINE.fullmatch(line) is None:
            raise TokenizerError(f"line {number} is {line!r:.60}, expected a piece and a rank")
        coded, rank = line.split(b" ")
        try:
            piece = base64.b64decode(coded, validate=True)
        except ValueError as error:
            raise TokenizerError(f"line {number} is not base64 ({error})") from None
        if int(rank) != len(pieces):
            raise TokenizerError(f"line {number} has rank {int(rank)}, expected {len(pieces)}")
        if piece in known:
            raise TokenizerError(f"line {number} repeats the piece {piece!r:.60}")
        if not 1 <= len(piece) <= MAX_PIECE:
            raise TokenizerError(
                f"the piece of line {number} has {len(piece)} bytes, expected 1 to {MAX_PIECE}"
            )
        known.add(piece)
        pieces.append(piece)
    if len(pieces) > MAX_PIECES:
        raise TokenizerError(
            f"the file has {len(pieces)} pieces, expected Llama 3's, at most {MAX_PIECES}"
        )
    missing = [byte for byte in range(256) if bytes([byte]) not in known]
    if missing:
        raise TokenizerError(f"the byte 0x{missing[0]:02X} is missing from the pieces")
    return pieces


def _specials() -> list[str]:
    reserved = (f"<|reserved_special_token_{i}|>" for i in range(N_SPECIALS))
    return [_NAMED.get(place) or next(reserved) for place in range(N_SPECIALS)]
