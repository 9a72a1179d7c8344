"""What a file is, by its first bytes: every format that is read, and look-alikes."""

from __future__ import annotations

import struct

import pytest

from llama2py.formats import sniff

READ = {
    "llama2.c v1": (struct.pack("<Ii", 0x616B3432, 1), sniff.LLAMA2C),
    "GGUF": (b"GGUF\x03\0\0\0", sniff.GGUF),
    "zip": (b"PK\x03\x04\0\0\x08\x08", sniff.ZIP),
    "safetensors": (struct.pack("<Q", 64) + b'{"a":{"dtype":"F32"', sniff.SAFETENSORS),
    "sentencepiece": (b"\x0a\x0e\x0a\x05<unk>\x15\0\0\0\0", sniff.SENTENCEPIECE),
    "short first piece": (b"\x0a\x08\x0a\x01a\x15\0\0\0\0", sniff.SENTENCEPIECE),
    "ranks": (b"IQ== 0\nIg== 1\nI", sniff.RANKS),
    "ranks from Windows": (b"IQ== 0\r\nIg== 1\r", sniff.RANKS),
    "tokenizer.bin": (struct.pack("<Ifi", 7, 0.0, 5) + b"<unk>", sniff.TOKENIZER_BIN),
    "JSON object": (b' {"version": "1.0"', sniff.JSON),
    "JSON with a BOM": (b"\xef\xbb\xbf{}", sniff.JSON),
    "JSON cut inside a character": ('{"é'.encode()[:-1], sniff.JSON),
}


@pytest.mark.parametrize("name", READ)
def test_a_format_is_known_by_its_first_bytes(name: str) -> None:
    head, kind = READ[name]
    assert sniff.kind_of(head) == kind


UNKNOWN = {
    "nothing": b"",
    "a v0 checkpoint": struct.pack("<7i", 288, 768, 6, 6, 6, 32000, 256),
    "a v0 checkpoint of dim 64": struct.pack("<7i", 64, 172, 5, 8, 4, 512, 512),
    # Its longest token has 10 bytes, as a protocol buffer's first field has the tag 10.
    "a tokenizer.bin without <unk>": struct.pack("<ififi", 10, 0.0, 1, 0.0, 1),
    "a tokenizer.bin that begins like JSON": struct.pack("<ifi", 123, 0.0, 3) + b"abc",
    "a small number, then a line end": b"\x06\0\0\0\0\0\0\0\n\0\0\0",
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_a_format_without_a_magic_number_stays_unknown(name: str) -> None:
    assert sniff.kind_of(UNKNOWN[name]) is None


@pytest.mark.parametrize("second", [2, 3, 4, 5])
def test_a_safetensors_header_may_be_as_long_as_a_pickles_first_bytes(second: int) -> None:
    assert sniff.kind_of(bytes([0x80, second, 1, 0, 0, 0, 0, 0]) + b"{") == sniff.SAFETENSORS


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (bytes(64), "a file of zeros"),
        (b"\x80\x04\x95\0\0", "a Python pickle"),
        (b"\n<!DOCTYPE html>", "an HTML page"),
        (b"version https://git-lfs.github.com/spec/v1", "a git-lfs pointer"),
        (b"Entry not found", "a text file"),
        (b"ak42\0\0\0\1", "in big-endian byte order"),
    ],
)
def test_a_file_that_is_not_read_has_a_name_for_errors(head: bytes, kind: str) -> None:
    found = sniff.kind_of(head)
    assert found is not None
    assert kind in found
