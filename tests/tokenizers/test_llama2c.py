"""tokenizer.bin, read and written, and hostile files."""

from __future__ import annotations

import hashlib
import struct
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama2py._data import bundled_tokenizer
from llama2py.errors import TokenizerError
from llama2py.tokenizers import llama2c
from llama2py.tokenizers.llama2c import parse_tokenizer_bin, write_tokenizer_bin
from llama2py.tokenizers.load import load_tokenizer
from llama2py.tokenizers.tokenizer import Tokenizer
from tests.support.vocabulary_files import PIECES, TOKENIZER_BIN, record, tokenizer_bin

SHA256 = "50a52ef822ee9e83de5ce9d0be0a025a773d019437f58b5ff9dcafb063ece361"


NAN = float("nan")


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


def test_a_written_file_has_the_bytes_of_the_one_read(tmp_path: Path) -> None:
    for source in [TOKENIZER_BIN, bundled_tokenizer().read_bytes()]:
        write_tokenizer_bin(parse_tokenizer_bin(source), tmp_path / "out.bin")
        assert (tmp_path / "out.bin").read_bytes() == source
    assert [path.name for path in tmp_path.iterdir()] == ["out.bin"]


def test_a_failed_write_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = parse_tokenizer_bin(TOKENIZER_BIN)
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


def test_a_tokenizer_bin_has_its_bytes_from_id_3_on(tmp_path: Path) -> None:
    pieces = [*PIECES[:3], b"", *PIECES[3:]]
    tokenizer = Tokenizer(pieces, [0.0] * len(pieces), first_byte=4)
    assert tokenizer.decode(tokenizer.encode("aé")) == "aé"
    with pytest.raises(TokenizerError, match=r"a tokenizer\.bin cannot hold merges or special"):
        write_tokenizer_bin(tokenizer, tmp_path / "out.bin")
    for first, message in ((2, "byte 0 is token 2, expected 3 or higher"), (8, "expected at le")):
        with pytest.raises(TokenizerError, match=message):
            Tokenizer(pieces, [0.0] * len(pieces), first_byte=first)


HOSTILE_BINS = {
    "empty": (b"", "the file is empty, expected a tokenizer.bin, .model, .json or GGUF"),
    "header cut": (TOKENIZER_BIN[:3], "3 bytes are too few for a tokenizer.bin"),
    "header only": (TOKENIZER_BIN[:4], "the vocabulary has 0 tokens, expected at least 259"),
    "too few": (tokenizer_bin(PIECES[:258]), "the vocabulary has 258 tokens, expected at least"),
    "cut in a score": (
        TOKENIZER_BIN[:-7],
        "the file ends at byte 3649 inside the score of token 261",
    ),
    "cut in a piece": (TOKENIZER_BIN[:-1], "token 261 has length 1, expected 0 to 0"),
    "tail": (TOKENIZER_BIN + b"\0", "the file ends at byte 3657 inside the score of token 262"),
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
    "all zeros": (bytes(4 + 8 * 300), "this is a file of zeros (a download that did"),
    "negative": (b"\1\1" + bytes(6) + b"\xff" * 40, "token 0 has length -1, expected 0 to"),
    "a checkpoint": (
        struct.pack("<Ii", 0x616B3432, 1) + bytes(248),
        "this is a llama2.c checkpoint, expected a tokenizer.bin, .model, .json or GGUF",
    ),
}


@pytest.mark.parametrize(("data", "message"), HOSTILE_BINS.values(), ids=HOSTILE_BINS)
def test_a_hostile_tokenizer_bin_is_refused(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "hostile.bin"
    path.write_bytes(data)
    with pytest.raises(TokenizerError) as caught:
        load_tokenizer(path)
    assert str(caught.value).startswith(f"{path}: {message}")


def test_a_huge_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "huge.bin"
    with path.open("wb") as file:
        file.write(TOKENIZER_BIN)
        file.truncate(llama2c.MAX_FILE_SIZE + 1)
    with pytest.raises(
        TokenizerError, match=r"^\S+: 16777217 bytes, expected a tok.* at most 16777"
    ):
        load_tokenizer(path)


@settings(deadline=None)
@given(
    st.binary(max_size=200), st.integers(0, len(TOKENIZER_BIN)), st.integers(0, len(TOKENIZER_BIN))
)
def test_any_bytes_make_a_tokenizer_or_a_tokenizer_error(junk: bytes, at: int, to: int) -> None:
    for data in [
        junk,
        TOKENIZER_BIN[:at],
        TOKENIZER_BIN[:at] + junk + TOKENIZER_BIN[at + len(junk) :],
        TOKENIZER_BIN[:at] + TOKENIZER_BIN[to:],
    ]:
        with suppress(TokenizerError):
            assert isinstance(parse_tokenizer_bin(data), Tokenizer)
