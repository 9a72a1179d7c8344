"""Vocabulary files as large as the largest real ones, and larger, hostile ones.

Only `LETTERS` uses the code under test.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterable, Sequence
from itertools import count, islice, product
from typing import Any

from llama2py.tokenizers.merge_tokenizer import LETTERS
from tests.support.gguf_files import ARRAY, F32, I32, STRING, U32, array, string
from tests.support.sentencepiece_files import field, model
from tests.support.vocabulary_files import (
    SPECIAL,
    gguf_vocabulary,
    ranks_file,
    record,
    tokenizer_bin,
)

Merge = tuple[str, str]
BYTES = [bytes([byte]) for byte in range(256)]


# ---- as large as real ones ----


def merged_words(
    base: Sequence[str], n_pieces: int, n_merges: int
) -> tuple[list[str], list[Merge]]:
    """Make pieces of letters, and merges that produce them.

    Parameters
    ----------
    base : sequence of str
        Pieces of single characters, at least 22.
    n_pieces, n_merges : int
        How many to make. With more merges than pieces, some pieces have several.
    """
    letters = base[-22:]  # 22**4 words have 3 merges each, as many as Gemma's have
    words = ("".join(word) for length in count(2) for word in product(letters, repeat=length))
    pieces = [*base, *islice(words, n_pieces - len(base))]
    made = pieces[len(base) :]
    merges = [(piece[:1], piece[1:]) for piece in made]
    merges += ((piece[:i], piece[i:]) for piece in made for i in range(2, len(piece)))
    return pieces, merges[:n_merges]


def ranks_of_llama_3() -> bytes:
    """Llama 3's tokenizer.model: 128,000 pieces."""
    to_byte = {letter: byte for byte, letter in enumerate(LETTERS)}
    pieces, _ = merged_words(LETTERS, 128_000, 0)
    return ranks_file([bytes(to_byte[letter] for letter in piece) for piece in pieces])


def json_of(pieces: list[str], merges: Iterable[Merge], as_lists: bool) -> bytes:
    """A byte-level tokenizer.json with 256 special tokens."""
    added = [
        {"id": len(pieces) + i, "content": f"<|special_{i}|>" if i else "<s>", "special": True}
        for i in range(256)
    ]
    about: dict[str, Any] = {
        "added_tokens": added,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False},
        "model": {
            "type": "BPE",
            "vocab": {piece: token for token, piece in enumerate(pieces)},
            "merges": [list(merge) if as_lists else " ".join(merge) for merge in merges],
        },
    }
    return json.dumps(about, ensure_ascii=False, separators=(",", ":")).encode()


def json_of_llama_3() -> bytes:
    """128,000 pieces and 280,147 merges, each a list."""
    return json_of(*merged_words(LETTERS, 128_000, 280_147), as_lists=True)


def json_of_qwen() -> bytes:
    """151,643 pieces and 151,387 merges, each a string."""
    return json_of(*merged_words(LETTERS, 151_643, 151_387), as_lists=False)


def json_of_gemma() -> bytes:
    """262,144 tokens and 580,604 merges, each a list."""
    return json_of(*merged_words(LETTERS, 262_144 - 256, 580_604), as_lists=True)


def gguf_of_llama_3() -> bytes:
    """128,256 tokens and 280,147 merges."""
    pieces, merges = merged_words(LETTERS, 128_000, 280_147)
    tokens = [*pieces, *(f"<|special_{i}|>" for i in range(256))]
    types = [1] * len(pieces) + [3] * 256
    return gguf_vocabulary(
        model=(STRING, string(b"gpt2")),
        pre=(STRING, string(b"llama-bpe")),
        tokens=_strings(token.encode() for token in tokens),
        scores=None,
        token_type=(ARRAY, array(I32, [struct.pack("<i", kind) for kind in types])),
        merges=_strings(" ".join(merge).encode() for merge in merges),
        bos_token_id=(U32, struct.pack("<I", 128_000)),
        eos_token_id=(U32, struct.pack("<I", 128_001)),
    )


def sentencepiece_of_gemma() -> bytes:
    """262,144 tokens with scores."""
    pieces, _ = merged_words([*"▁abcdefghijklmnopqrstuvwxyz"], 262_144 - 261, 0)
    tail = (
        field(1, field(1, piece.encode()) + field(2, -float(i))) for i, piece in enumerate(pieces)
    )
    return model(tail=b"".join(tail))


# ---- hostile ----


def ranks_of_every_split() -> bytes:
    """Every split of every piece makes two others: millions of merges."""
    names = [
        b"a" * i + b"b" * j + b"c" * (length - i - j)
        for length in range(2, 61)
        for i in range(length + 1)
        for j in range(length + 1 - i)
    ]
    return ranks_file([*BYTES, *names])


def json_array(item: str, count: int) -> bytes:
    """An object with an array of equal items."""
    return f'{{"model": [{",".join([item] * count)}]}}'.encode()


def json_vocabulary(count: int) -> bytes:
    """A tokenizer.json of many tokens."""
    names = ",".join(f'"{i:x}":{i}' for i in range(count))
    return f'{{"model":{{"type":"BPE","vocab":{{{names}}},"merges":[]}}}}'.encode()


def bin_of_pieces(piece: bytes, count: int) -> bytes:
    """A tokenizer.bin with many equal pieces."""
    return tokenizer_bin(SPECIAL) + record(piece) * count


def gguf_of_tokens(count: int) -> bytes:
    """A GGUF vocabulary of many tokens with scores."""
    return gguf_vocabulary(
        tokens=_strings(b"%x" % i for i in range(count)),
        scores=(ARRAY, array(F32, [bytes(4)] * count)),
        token_type=(ARRAY, array(I32, [struct.pack("<i", 1)] * count)),
    )


def gguf_of_merges(count: int) -> bytes:
    """A GGUF vocabulary of many merges."""
    merges = _strings(b"a b%d" % i for i in range(count))
    return gguf_vocabulary(model=(STRING, string(b"gpt2")), merges=merges)


def sentencepiece_of_fields(wrap: Callable[[bytes], bytes]) -> bytes:
    """Four million unknown fields of two bytes."""
    return model(tail=wrap(field(9, 0) * 4_000_000))


def sentencepiece_of_symbols(lengths: Iterable[int]) -> bytes:
    """User-defined symbols ``a...ab`` of these lengths."""
    return model(
        tail=b"".join(
            field(1, field(1, b"a" * (length - 1) + b"b") + field(2, 0.0) + field(3, 4))
            for length in lengths
        )
    )


def _strings(items: Iterable[bytes]) -> tuple[int, bytes]:
    return ARRAY, array(STRING, [string(item) for item in items])
