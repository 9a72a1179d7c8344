"""Vocabulary files made by hand, byte by byte, so that tests can also make invalid ones.

Nothing here uses the code under test.
"""

from __future__ import annotations

import base64
import struct
from typing import Any

from tests.support.gguf_files import ARRAY, F32, I32, STRING, U32, array, gguf_file, pair, string

SPECIAL = [b"<unk>", b"\n<s>\n", b"\n</s>\n", *(b"<0x%02X>" % byte for byte in range(256))]

# ---- tokenizer.bin ----

#: A small vocabulary of 262 tokens.
PIECES = [*SPECIAL, b" a", b" ", b"a"]


def record(piece: bytes, score: float = 0.0, length: int | None = None) -> bytes:
    return struct.pack("<fi", score, len(piece) if length is None else length) + piece


def tokenizer_bin(pieces: list[bytes], longest: int = 6, tail: bytes = b"") -> bytes:
    return struct.pack("<i", longest) + b"".join(map(record, pieces)) + tail


#: The small vocabulary as a tokenizer.bin.


TOKENIZER_BIN = tokenizer_bin(PIECES)


# ---- GGUF ----


def gguf_vocabulary(**changes: tuple[int, bytes] | None) -> bytes:
    """A GGUF file of a vocabulary only; ``changes`` replaces, adds or drops (None) pairs."""
    marked = [token.replace(b" ", "\u2581".encode()) for token in PIECES]
    marked[1:3] = [b"<s>", b"</s>"]
    pairs: dict[str, tuple[int, bytes] | None] = {
        "model": (STRING, string(b"llama")),
        "tokens": (ARRAY, array(STRING, [string(token) for token in marked])),
        "scores": (ARRAY, array(F32, [struct.pack("<f", 0.0)] * len(PIECES))),
        "token_type": (ARRAY, array(I32, [struct.pack("<i", 1)] * len(PIECES))),
        "bos_token_id": (U32, struct.pack("<I", 1)),
        "eos_token_id": (U32, struct.pack("<I", 2)),
        **changes,
    }
    parts = [pair(f"tokenizer.ggml.{name}", *typed) for name, typed in pairs.items() if typed]
    return gguf_pairs_file(len(parts), b"".join(parts))


def gguf_pairs_file(n_pairs: int, pairs: bytes, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, 0, n_pairs) + pairs


def gguf_of_json(found: dict[str, Any], **changes: Any) -> bytes:
    """The vocabulary of a tokenizer.json as llama.cpp's converter puts it into a GGUF file."""
    pieces = {token: piece for piece, token in found["model"]["vocab"].items()}
    types = dict.fromkeys(pieces, 1)
    for token in found["added_tokens"]:
        pieces[token["id"]] = token["content"]
        types[token["id"]] = 3 if token["special"] else 4
    merges = [m if isinstance(m, str) else " ".join(m) for m in found["model"]["merges"]]
    values = {
        "model": b"gpt2",
        "tokens": [pieces[token].encode() for token in sorted(pieces)],
        "token_type": [types[token] for token in sorted(pieces)],
        "merges": [merge.encode() for merge in merges],
        "bos_token_id": 0,
        "eos_token_id": 2,
    }
    pairs = {f"tokenizer.ggml.{key}": value for key, value in (values | changes).items()}
    return gguf_file({key: value for key, value in pairs.items() if value is not None})


# ---- Llama 3's tokenizer.model ----


RANKED_PIECES = [bytes([byte]) for byte in range(256)] + [b" t", b"he", b" the", b"\n\n", b"123"]


def ranks_file(pieces: list[bytes]) -> bytes:
    lines = (base64.b64encode(piece) + b" %d\n" % rank for rank, piece in enumerate(pieces))
    return b"".join(lines)
