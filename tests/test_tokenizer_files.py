"""Reading and writing vocabularies, and what hostile files get."""

from __future__ import annotations

import argparse
import hashlib
import struct
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama2py import tokenizer_files
from llama2py.cli import export_tokenizer
from llama2py.errors import CheckpointError, TokenizerError
from llama2py.gguf_metadata import GGUFArray, read_gguf_metadata
from llama2py.tokenizer import Tokenizer
from llama2py.tokenizer_files import (
    bundled_tokenizer,
    load_tokenizer,
    parse_tokenizer_bin,
    write_tokenizer_bin,
)
from llama2py.tokenizer_gguf import read_gguf_vocabulary

SHA256 = "50a52ef822ee9e83de5ce9d0be0a025a773d019437f58b5ff9dcafb063ece361"
NAN = float("nan")

PIECES = [b"<unk>", b"\n<s>\n", b"\n</s>\n", *(b"<0x%02X>" % byte for byte in range(256))]
PIECES += [b" a", b" ", b"a"]


def record(piece: bytes, score: float = 0.0, length: int | None = None) -> bytes:
    return struct.pack("<fi", score, len(piece) if length is None else length) + piece


def tokenizer_bin(pieces: list[bytes], longest: int = 6, tail: bytes = b"") -> bytes:
    return struct.pack("<i", longest) + b"".join(map(record, pieces)) + tail


GOOD = tokenizer_bin(PIECES)


# ------------------------------------------------------------------------------ tokenizer.bin


def test_a_longest_piece_of_123_bytes_is_no_json(tmp_path: Path) -> None:
    """Its first byte is that of an opening brace."""
    path = tmp_path / "tokenizer.bin"
    path.write_bytes(tokenizer_bin([*PIECES, b"x" * 123], longest=123))
    assert path.read_bytes()[:1] == b"{"
    assert load_tokenizer(path).piece(262) == b"x" * 123


def test_the_bundled_tokenizer_is_llama2s() -> None:
    assert hashlib.sha256(bundled_tokenizer().read_bytes()).hexdigest() == SHA256
    assert len(load_tokenizer(bundled_tokenizer(), 32000)) == 32000


def test_an_installed_package_finds_its_own_tokenizer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "llama2py"
    package.mkdir()
    monkeypatch.setattr(tokenizer_files, "__file__", str(package / "tokenizer_files.py"))
    with pytest.raises(TokenizerError, match=r"tokenizer\.bin: no such file, expected it to come"):
        bundled_tokenizer()
    (tmp_path / "tokenizer.bin").touch()
    assert bundled_tokenizer() == tmp_path / "tokenizer.bin"
    (package / "tokenizer.bin").touch()
    assert bundled_tokenizer() == package / "tokenizer.bin"


def test_written_is_what_was_read(tmp_path: Path) -> None:
    for source in [GOOD, bundled_tokenizer().read_bytes()]:
        write_tokenizer_bin(parse_tokenizer_bin(source), tmp_path / "out.bin")
        assert (tmp_path / "out.bin").read_bytes() == source
    assert [path.name for path in tmp_path.iterdir()] == ["out.bin"]


def test_a_failed_write_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = parse_tokenizer_bin(GOOD)
    with pytest.raises(TokenizerError, match=r"nowhere/out\.bin: cannot be written \(No such file"):
        write_tokenizer_bin(tokenizer, tmp_path / "nowhere" / "out.bin")
    target = tmp_path / "out.bin"
    target.write_bytes(b"as it was")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(TokenizerError, match=r"out\.bin: cannot be written \(No space left"):
        write_tokenizer_bin(tokenizer, target)
    assert [path.name for path in tmp_path.iterdir()] == ["out.bin"]
    assert target.read_bytes() == b"as it was"


def test_another_models_tokenizer(tmp_path: Path) -> None:
    path = tmp_path / "small.bin"
    path.write_bytes(GOOD)
    assert len(load_tokenizer(path)) == len(load_tokenizer(str(path), 262)) == 262
    with pytest.raises(TokenizerError) as caught:
        load_tokenizer(path, 32000)
    assert str(caught.value) == (
        f"{path}: this tokenizer has 262 tokens, the model has 32000;"
        " pass the model's own with -z FILE or tokenizer=FILE"
    )


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:9e5d\nsize 499723\n",
            "a git-lfs pointer to a file, not the file itself (git lfs pull gets it)",
        ),
        (b"<!DOCTYPE html>\n<html>", "an HTML page, not what it links to"),
        (b"#version: 0.2\nt h\nth e\n", "a text file"),
    ],
)
def test_what_is_no_tokenizer_is_named(tmp_path: Path, content: bytes, kind: str) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(content)
    with pytest.raises(TokenizerError) as caught:
        load_tokenizer(path)
    assert str(caught.value) == (
        f"{path}: this is {kind}, expected a tokenizer.bin, .model, .json or GGUF"
    )


def test_a_tokenizer_bin_has_its_bytes_from_3_on(tmp_path: Path) -> None:
    pieces = [*PIECES[:3], b"", *PIECES[3:]]
    tokenizer = Tokenizer(pieces, [0.0] * len(pieces), first_byte=4)
    assert tokenizer.decode(tokenizer.encode("aé")) == "aé"
    with pytest.raises(TokenizerError, match=r"expected one that a tokenizer\.bin can hold"):
        write_tokenizer_bin(tokenizer, tmp_path / "out.bin")
    for first, message in ((2, "byte 0 is token 2, expected it behind EOS"), (8, "expected at le")):
        with pytest.raises(TokenizerError, match=message):
            Tokenizer(pieces, [0.0] * len(pieces), first_byte=first)


HOSTILE_BINS = {
    "empty": (b"", "0 bytes, expected a tokenizer.bin"),
    "header cut": (GOOD[:3], "3 bytes, expected a tokenizer.bin"),
    "header only": (GOOD[:4], "the vocabulary has 0 tokens, expected at least 259"),
    "too few": (tokenizer_bin(PIECES[:258]), "the vocabulary has 258 tokens, expected at least"),
    "cut in a score": (GOOD[:-7], "the file ends at byte 3649 inside the score of token 261"),
    "cut in a piece": (GOOD[:-1], "token 261 has length 1, expected 0 to 0"),
    "tail": (GOOD + b"\0", "the file ends at byte 3657 inside the score of token 262"),
    "negative length": (
        tokenizer_bin(PIECES, tail=record(b"", length=-1)),
        "token 262 has length -1, expected 0 to 0",
    ),
    "huge length": (
        tokenizer_bin(PIECES, tail=record(b"x" * 50, length=2**31 - 1)),
        "token 262 has length 2147483647, expected 0 to 6",
    ),
    "longer than the header says": (
        tokenizer_bin(PIECES, tail=record(b"x" * 7)),
        "token 262 has length 7, expected 0 to 6",
    ),
    "negative header": (tokenizer_bin(PIECES, longest=-1), "token 0 has length 5, expected 0 to 0"),
    "nan": (
        tokenizer_bin(PIECES, tail=record(b"x", NAN)),
        "the score of token 262 is nan, expected a finite float32",
    ),
    "infinite": (
        tokenizer_bin(PIECES, tail=record(b"x", float("inf"))),
        "the score of token 262 is inf, expected a finite float32",
    ),
    "wrong byte": (
        tokenizer_bin([*PIECES[:258], b"<0xAA>", *PIECES[259:]]),
        "token 258 is b'<0xAA>', expected the byte <0xFF>",
    ),
    "all zeros": (bytes(4 + 8 * 300), "token 3 is b'', expected the byte <0x00>"),
    "negative": (b"\1\1" + bytes(6) + b"\xff" * 40, "token 0 has length -1, expected 0 to"),
    "a checkpoint": (
        struct.pack("<Ii", 0x616B3432, 1) + bytes(248),
        "this is a llama2.c checkpoint, expected a tokenizer.bin, .model, .json or GGUF",
    ),
}


@pytest.mark.parametrize(("data", "message"), HOSTILE_BINS.values(), ids=HOSTILE_BINS)
def test_hostile_tokenizer_bins(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "hostile.bin"
    path.write_bytes(data)
    with pytest.raises(TokenizerError) as caught:
        load_tokenizer(path)
    assert str(caught.value).startswith(f"{path}: {message}")


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "huge.bin"
    with path.open("wb") as file:
        file.truncate(tokenizer_files.MAX_FILE_SIZE + 1)
    with pytest.raises(TokenizerError, match=r"^\S+: 16777217 bytes, expected a t"):
        load_tokenizer(path)


@pytest.mark.parametrize("read", [load_tokenizer, read_gguf_vocabulary])
def test_what_is_no_file(tmp_path: Path, read: Any) -> None:
    with pytest.raises(TokenizerError, match=f"^{tmp_path}/none: no such file, expected a "):
        read(tmp_path / "none")
    with pytest.raises(TokenizerError, match=f"^{tmp_path}: this is no regular file, expected a "):
        read(tmp_path)
    with pytest.raises(TokenizerError, match=r"\0: "):
        read("\0")


@settings(deadline=None)
@given(st.binary(max_size=200), st.integers(0, len(GOOD)), st.integers(0, len(GOOD)))
def test_any_bytes_make_a_tokenizer_or_a_tokenizer_error(junk: bytes, at: int, to: int) -> None:
    for data in [junk, GOOD[:at], GOOD[:at] + junk + GOOD[at + len(junk) :], GOOD[:at] + GOOD[to:]]:
        with suppress(TokenizerError):
            assert isinstance(parse_tokenizer_bin(data), Tokenizer)


# ------------------------------------------------------------------------------ GGUF

U32, I32, F32, BOOL, STRING, ARRAY = 4, 5, 6, 7, 8, 9


def string(raw: bytes) -> bytes:
    return struct.pack("<Q", len(raw)) + raw


def array(kind: int, items: list[bytes]) -> bytes:
    return struct.pack("<IQ", kind, len(items)) + b"".join(items)


def pair(key: bytes, kind: int, value: bytes) -> bytes:
    return string(key) + struct.pack("<I", kind) + value


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
    parts = [
        pair(b"tokenizer.ggml." + name.encode(), *typed) for name, typed in pairs.items() if typed
    ]
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
    pairs = [pair(b"%d" % i, *typed) for i, typed in enumerate(values)]
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
        gguf(1, pair(bytes(65537), 0, b"\0")),
        "the key of metadata pair 0 has 65537 bytes",
    ),
    "same key twice": (
        gguf(2, pair(b"k", 0, b"\0") * 2),
        "the metadata key 'k' stands there twice, expected once",
    ),
    "unknown type": (
        gguf(1, pair(b"k", 13, b"\0")),
        "the metadata value 'k' is of type 13, expected 0 to 12",
    ),
    "value past the end": (
        gguf(1, pair(b"k", STRING, struct.pack("<Q", 2**64 - 1))),
        "the metadata value 'k' needs 18446744073709551615 bytes at offset 45",
    ),
    "huge array": (
        gguf(1, pair(b"k", ARRAY, struct.pack("<IQ", U32, 2**64 - 1))),
        "the metadata value 'k' is an array of 18446744073709551615, expected at most 16777216",
    ),
    "array past the end": (
        gguf(1, pair(b"k", ARRAY, struct.pack("<IQ", U32, 2**24))),
        "the metadata value 'k' needs 67108864 bytes at offset 49, the file ends at 49",
    ),
    "strings past the end": (
        gguf(1, pair(b"k", ARRAY, struct.pack("<IQ", STRING, 2**21) + bytes(80))),
        "the metadata value 'k' needs 8 bytes at offset 129, the file ends at 129",
    ),
    "array of arrays": (
        gguf(1, pair(b"k", ARRAY, array(ARRAY, [b"\0"]))),
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
