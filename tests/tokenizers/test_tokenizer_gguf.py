"""GGUF's vocabularies, and what hostile files get."""

from __future__ import annotations

import argparse
import struct
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama2py.cli import export_tokenizer
from llama2py.errors import CheckpointError, TokenizerError
from llama2py.formats.gguf_metadata import GGUFArray, read_gguf_metadata
from llama2py.tokenizers.gguf import read_gguf_vocabulary
from llama2py.tokenizers.load import write_tokenizer_bin
from llama2py.tokenizers.tokenizer import Tokenizer
from tests.support.gguf_files import (
    ARRAY,
    BOOL,
    F32,
    I32,
    STRING,
    U32,
    array,
    gguf_file,
    pair,
    string,
)
from tests.tokenizers.test_tokenizer_files import GOOD, NAN, PIECES


def metadata(**changes: tuple[int, bytes] | None) -> bytes:
    """A GGUF file of nothing but a vocabulary; ``changes`` replaces, adds or drops pairs."""
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
    return gguf(len(parts), b"".join(parts))


def gguf(n_pairs: int, pairs: bytes, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, 0, n_pairs) + pairs


def test_a_gguf_vocabulary_becomes_llama2cs(tmp_path: Path) -> None:
    path = tmp_path / "vocabulary.gguf"
    path.write_bytes(metadata())
    write_tokenizer_bin(read_gguf_vocabulary(path), tmp_path / "out.bin")
    assert (tmp_path / "out.bin").read_bytes() == GOOD


def test_the_real_gguf_has_the_real_tokenizer(test_data: Path, tmp_path: Path) -> None:
    source = test_data / "data" / "formats" / "stories260K-f32.gguf"
    args = argparse.ArgumentParser()
    export_tokenizer.add_parser(args.add_subparsers())
    out = tmp_path / "out.bin"
    parsed = args.parse_args(["export-tokenizer", str(source), "-o", str(out)])
    assert parsed.run(parsed) == 0
    assert out.read_bytes() == (test_data / "data" / "tok512.bin").read_bytes()


def test_metadata_of_every_type(tmp_path: Path) -> None:
    values = [(kind, struct.pack("<" + letter, 1)) for kind, letter in enumerate("BbHhIif?")]
    values += [(10, struct.pack("<Q", 2)), (11, struct.pack("<q", -3)), (12, struct.pack("<d", 4))]
    values += [(STRING, string(b"five")), (ARRAY, array(BOOL, [b"\0", b"\1"]))]
    pairs = [pair(str(i), *typed) for i, typed in enumerate(values)]
    path = tmp_path / "types.gguf"
    data = gguf(len(pairs), b"".join(pairs), version=2)
    path.write_bytes(data + b"tensors")
    read = read_gguf_metadata(path, CheckpointError)
    *plain, flags = read.pairs.values()
    assert plain == [1] * 8 + [2, -3, 4, b"five"]
    assert isinstance(flags, GGUFArray)
    assert (flags.kind, len(flags), flags.tolist()) == (BOOL, 2, [False, True])
    assert (read.version, read.n_tensors, read.end) == (2, 0, len(data))


HOSTILE_GGUFS = {
    "empty": (b"", "the file is empty, expected a GGUF file"),
    "another file": (GOOD, "this is no GGUF file: it starts with b'"),
    "header cut": (b"GGUF\3\0\0\0\0", "the header needs 8 bytes at offset 8, the file ends at 9"),
    "version 1": (gguf(0, b"", version=1), "GGUF version 1, expected 2 or 3"),
    "big-endian": (gguf(0, b"", version=3 << 24), "GGUF version 50331648, expected 2 or 3"),
    "too many pairs": (
        gguf(2**64 - 1, bytes(26)),
        "the header promises 18446744073709551615 metadata pairs, expected at most 2 here",
    ),
    "key past the end": (
        gguf(1, struct.pack("<Q", 2**63) + bytes(9)),
        "the key of metadata pair 0 needs 9223372036854775808 bytes at offset 32",
    ),
    "long key": (
        gguf(1, pair("\0" * 65537, 0, b"\0")),
        "the key of metadata pair 0 has 65537 bytes",
    ),
    "same key twice": (
        gguf(2, pair("k", 0, b"\0") * 2),
        "the metadata key 'k' stands there twice, expected once",
    ),
    "unknown type": (
        gguf(1, pair("k", 13, b"\0")),
        "the metadata value 'k' is of type 13, expected 0 to 12",
    ),
    "value past the end": (
        gguf(1, pair("k", STRING, struct.pack("<Q", 2**64 - 1))),
        "the metadata value 'k' needs 18446744073709551615 bytes at offset 45",
    ),
    "huge array": (
        gguf(1, pair("k", ARRAY, struct.pack("<IQ", U32, 2**64 - 1))),
        "the metadata value 'k' is an array of 18446744073709551615, expected at most 16777216",
    ),
    "array past the end": (
        gguf(1, pair("k", ARRAY, struct.pack("<IQ", U32, 2**24))),
        "the metadata value 'k' needs 67108864 bytes at offset 49, the file ends at 49",
    ),
    "strings past the end": (
        gguf(1, pair("k", ARRAY, struct.pack("<IQ", STRING, 2**21) + bytes(80))),
        "the metadata value 'k' needs 8 bytes at offset 129, the file ends at 129",
    ),
    "array of arrays": (
        gguf(1, pair("k", ARRAY, array(ARRAY, [b"\0"]))),
        "the metadata value 'k' is an array of type 9, expected numbers or strings",
    ),
    "no vocabulary": (gguf(0, b""), "tokenizer.ggml.model is None, expected b'llama'"),
    "wordpiece": (
        metadata(model=(STRING, string(b"bert"))),
        "tokenizer.ggml.model is b'bert', expected b'llama' (sentencepiece) or b'gpt2' (byte",
    ),
    "byte level without merges": (
        metadata(model=(STRING, string(b"gpt2"))),
        "tokenizer.ggml.merges is missing or of another type, expected an array of bytes",
    ),
    "byte level cut in an unknown way": (
        metadata(model=(STRING, string(b"gpt2")), pre=(STRING, string(b"falcon"))),
        "tokenizer.ggml.pre is b'falcon', expected default, gpt-2, gpt2, phi-2, mellum,",
    ),
    "an end of nothing": (
        metadata(eos_token_id=(U32, struct.pack("<I", 262))),
        "the id of EOS is 262, expected one of 262 tokens",
    ),
    "no space prefix": (
        metadata(add_space_prefix=(BOOL, b"\0")),
        "tokenizer.ggml.add_space_prefix is not true, expected the space that llama2.c adds",
    ),
    "a bos or not of numbers": (
        metadata(add_bos_token=(U32, struct.pack("<I", 1))),
        "tokenizer.ggml.add_bos_token is 1, expected a bool",
    ),
    "another bos": (
        metadata(bos_token_id=(U32, struct.pack("<I", 7))),
        "tokenizer.ggml.bos_token_id is 7, expected 1",
    ),
    "no tokens": (
        metadata(tokens=None),
        "tokenizer.ggml.tokens is missing or of another type, expected an array of bytes",
    ),
    "scores of integers": (
        metadata(scores=(ARRAY, array(U32, [bytes(4)] * len(PIECES)))),
        "tokenizer.ggml.scores is missing or of another type, expected an array of float",
    ),
    "too few scores": (
        metadata(scores=(ARRAY, array(F32, [bytes(4)]))),
        "262 tokens have 1 scores, expected one each",
    ),
    "too few types": (
        metadata(token_type=(ARRAY, array(I32, [bytes(4)]))),
        "262 tokens have 1 types, expected one each",
    ),
    "nan": (
        metadata(scores=(ARRAY, array(F32, [struct.pack("<f", NAN)] * len(PIECES)))),
        "the score of token 0 is nan, expected a finite float32",
    ),
}


@pytest.mark.parametrize(("data", "message"), HOSTILE_GGUFS.values(), ids=HOSTILE_GGUFS)
def test_hostile_ggufs(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "hostile.gguf"
    path.write_bytes(data)
    with pytest.raises(TokenizerError) as caught:
        read_gguf_vocabulary(path)
    assert str(caught.value).startswith(f"{path}: {message}")


def test_any_bytes_make_a_vocabulary_or_a_tokenizer_error(tmp_path: Path) -> None:
    good = metadata()
    path = tmp_path / "mutated.gguf"

    @settings(deadline=None)
    @given(st.binary(max_size=60), st.integers(0, 400) | st.integers(0, len(good)))
    def check(junk: bytes, at: int) -> None:
        for data in [junk, b"GGUF\3\0\0\0" + junk, good[:at], good[:at] + junk + good[at + 1 :]]:
            path.write_bytes(data)
            with suppress(TokenizerError):
                assert isinstance(read_gguf_vocabulary(path), Tokenizer)

    check()


def test_the_special_tokens_of_a_sentencepiece_gguf(tmp_path: Path) -> None:
    base = [b"<unk>", b"<s>", b"</s>", *(b"<0x%02X>" % byte for byte in range(256))]
    tokens = [*base, "▁".encode(), b"a", b"b", b"ab", b"<|im_end|>", b"ba"]
    types = [2, 3, 3, *[6] * 256, 1, 1, 1, 1, 3, 4]
    scores = [0.0] * 259 + [-1.0, -2.0, -3.0, -4.0, 0.0, 0.0]
    values: dict[str, Any] = {
        "model": b"llama", "tokens": tokens, "scores": scores, "token_type": types,
        "eos_token_id": 263,
    }  # fmt: skip
    path = tmp_path / "chat.gguf"
    path.write_bytes(gguf_file({f"tokenizer.ggml.{k}": v for k, v in values.items()}))
    ours = read_gguf_vocabulary(path)
    assert ours.eos_id == 263
    # The user-defined one is found before any join; the control one only when asked for.
    assert ours.encode("aba") == [1, 259, 260, 264]
    assert ours.encode("ab<|im_end|>", special=True) == [1, 259, 262, 263]
    assert 263 not in ours.encode("ab<|im_end|>")
    assert ours.decode([1, 259, 262, 263]) == "ab"
    with pytest.raises(TokenizerError, match=r"special tokens of its own, expected one that a tok"):
        write_tokenizer_bin(ours, tmp_path / "out.bin")
    assert not (tmp_path / "out.bin").exists()
