"""Detect a file's format by its first bytes, never by its name or extension.

`kind_of` is the only place that knows magic numbers. Every reader uses it, both to choose a format
and to say in an error what kind of file it is.
"""

from __future__ import annotations

import re

HEAD = 512
"""Bytes from the start of a file that `kind_of` needs."""

# Supported formats. Each constant reads as part of a sentence: "this is a GGUF model".
LLAMA2C = "a llama2.c checkpoint"
GGUF = "a GGUF model"
ZIP = "a zip archive"
SAFETENSORS = "a safetensors file"
SENTENCEPIECE = "a sentencepiece tokenizer"
RANKS = "a Llama 3 tokenizer.model"
TOKENIZER_BIN = "a llama2.c tokenizer"
JSON = "a JSON text"

# Unsupported formats, which only error messages name.
_ZEROS = "a file of zeros (a download that did not finish?)"
_PICKLE = "a Python pickle"
_TEXT = "a text file"

_PREFIXES = (
    (b"24ka", LLAMA2C),
    (b"GGUF", GGUF),
    (b"PK\x03\x04", ZIP),
    (b"ak42", "a llama2.c checkpoint in big-endian byte order"),
    (b"tjgg", "an old llama.cpp model (GGJT)"),
    (b"lmgg", "an old llama.cpp model (GGML)"),
    (b"fmgg", "an old llama.cpp model (GGMF)"),
    (b"PK\x05\x06", "an empty zip archive"),
    (b"\x80\x02\x8a\x0a", "an old PyTorch file (a pickle)"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"\x89HDF", "an HDF5 file"),
    (
        b"version https://git-lfs",
        "a git-lfs pointer to a file, not the file itself (git lfs pull gets it)",
    ),
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"%PDF", "a PDF document"),
    (b"\x7fELF", "a program"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"BZh", "a bzip2 archive"),
    (b"\xfd7zXZ", "an xz archive"),
    (b"\x28\xb5\x2f\xfd", "a zstd archive"),
)
_MAX_SAFETENSORS_HEADER = 100 << 20  # bytes, as the format's own reader has it
_RANK_LINE = re.compile(rb"[A-Za-z0-9+/]+={0,2} [0-9]{1,8}\r?")


def kind_of(head: bytes) -> str | None:
    """Name the kind of file that begins with these bytes.

    Two formats have no magic number: llama2.c's checkpoint v0, and ``tokenizer.bin`` unless its
    first token is ``<unk>``. Their readers try whatever no other reader accepts. So a name from
    here that is not one of the public constants above is a hint for an error, not proof: 80 02, the
    first bytes of a pickle, are also the dim of a v0 checkpoint of width 640.

    Parameters
    ----------
    head : bytes
        The first `HEAD` bytes of the file, or all of a shorter file.

    Returns
    -------
    str or None
        With its article: ``'a GGUF model'``. None for an unknown kind.
    """
    for prefix, kind in _PREFIXES:
        if head.startswith(prefix):
            return kind
    # An eight-byte length, then a JSON object. The length may look like any format below.
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < _MAX_SAFETENSORS_HEADER:
        return SAFETENSORS
    if head and not head.strip(b"\0"):
        return _ZEROS
    # int32 length of the longest token, float32 score, int32 length, then the first token.
    if head[12:17] == b"<unk>":
        return TOKENIZER_BIN
    if head[1:4] == b"\0\0\0":
        return None  # a small int32: not one of the formats below
    # A protocol buffer: field 1 (a piece), and inside it a shorter field 1 (the piece's text).
    if len(head) > 4 and head[0] == head[2] == 0x0A and head[1] < 128 and head[3] < head[1]:
        return SENTENCEPIECE
    line, newline, _ = head.partition(b"\n")
    if newline and _RANK_LINE.fullmatch(line):
        return RANKS
    # Pickles of protocol 2 to 5 begin with 80 and the protocol, then an opcode or a frame.
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return _PICKLE
    return _kind_of_text(head)


def _kind_of_text(head: bytes) -> str | None:
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    lowered = text.lower()
    if lowered.startswith((b"<!doctype html", b"<html")):
        return "an HTML page, not the file it links to"
    if lowered.startswith(b"<?xml"):
        return "an XML document"
    if text.startswith((b"{", b"[")) and b"\0" not in head:
        return JSON
    if head and all(byte in b"\t\n\r" or 32 <= byte < 127 for byte in head):
        return _TEXT
    return None
