"""Tells what a file is that is no checkpoint and no tokenizer, so that an error can say so."""

from __future__ import annotations

HEAD = 512  # bytes that are plenty to tell
TOKENIZER_BIN = "a llama2.c tokenizer"
JSON = "a JSON text"

_PREFIXES = (
    (b"GGUF", "a GGUF model"),
    (b"tjgg", "an old llama.cpp model (GGJT)"),
    (b"lmgg", "an old llama.cpp model (GGML)"),
    (b"fmgg", "an old llama.cpp model (GGMF)"),
    (b"PK\x05\x06", "an empty zip archive"),
    (b"\x80\x02\x8a\x0a", "an old PyTorch file (a pickle)"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"\x89HDF", "an HDF5 file"),
    (b"\x0a\x0e\x0a\x05<unk>", "a sentencepiece tokenizer"),
    (b"24ka", "a llama2.c checkpoint"),
    (b"ak42", "a llama2.c checkpoint in big-endian byte order"),
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


def describe(head: bytes) -> str | None:
    """Name the kind of file that begins so.

    Parameters
    ----------
    head : bytes
        The first `HEAD` bytes of the file, or fewer.

    Returns
    -------
    str or None
        With its article: ``'a GGUF model'``. None if it looks like nothing in particular.
    """
    for prefix, kind in _PREFIXES:
        if head.startswith(prefix):
            return kind
    # int32 max_token_length, float32 score, int32 length, then the first token.
    if head[12:17] == b"<unk>":
        return TOKENIZER_BIN
    # Pickles of protocol 2 to 5 begin with 80 and the protocol, then an opcode or a frame.
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return "a Python pickle"
    if head and not head.strip(b"\0"):
        return "a file of zeros (a download that did not finish?)"
    return _describe_text(head)


def _describe_text(head: bytes) -> str | None:
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith((b"<!doctype html", b"<html")):
        return "an HTML page, not what it links to"
    if text.startswith(b"<?xml"):
        return "an XML document"
    if text.startswith((b"{", b"[")) and text.isascii():
        return JSON
    if head and all(byte in b"\t\n\r" or 32 <= byte < 127 for byte in head):
        return "a text file"
    return None
