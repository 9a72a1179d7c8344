"""Reading and writing tokenizer.bin, and what hostile files get."""

from __future__ import annotations

import hashlib
import struct
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama2py._data import bundled_tokenizer
from llama2py.errors import TokenizerError
from llama2py.tokenizers import load as tokenizer_files
from llama2py.tokenizers.gguf import read_gguf_vocabulary
from llama2py.tokenizers.load import load_tokenizer, parse_tokenizer_bin, write_tokenizer_bin
from llama2py.tokenizers.tokenizer import Tokenizer

SHA256 = "50a52ef822ee9e83de5ce9d0be0a025a773d019437f58b5ff9dcafb063ece361"
NAN = float("nan")

PIECES = [b"<unk>", b"\n<s>\n", b"\n</s>\n", *(b"<0x%02X>" % byte for byte in range(256))]
PIECES += [b" a", b" ", b"a"]


def record(piece: bytes, score: float = 0.0, length: int | None = None) -> bytes:
    return struct.pack("<fi", score, len(piece) if length is None else length) + piece


def tokenizer_bin(pieces: list[bytes], longest: int = 6, tail: bytes = b"") -> bytes:
    return struct.pack("<i", longest) + b"".join(map(record, pieces)) + tail


GOOD = tokenizer_bin(PIECES)


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
    inside = tmp_path / "llama2py" / "_data"
    inside.mkdir(parents=True)
    monkeypatch.setattr("llama2py._data._FOLDER", inside)
    with pytest.raises(TokenizerError, match=r"tokenizer\.bin: no such file; reinstall"):
        bundled_tokenizer()
    (tmp_path / "tokenizer.bin").touch()
    assert bundled_tokenizer() == tmp_path / "tokenizer.bin"
    (inside / "tokenizer.bin").touch()
    assert bundled_tokenizer() == inside / "tokenizer.bin"


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
        (b"<!DOCTYPE html>\n<html>", "an HTML page, not the file it links to"),
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
