"""The key-value part at the start of a GGUF file, read without trusting a byte of it.

Layout, little-endian: ``GGUF``, uint32 version, uint64 number of tensors, uint64 number of pairs,
then each pair: a string (the key), uint32 type, the value. A string is a uint64 length and its
bytes; an array is a uint32 element type, a uint64 count and the elements.

Source: the GGUF specification, github.com/ggml-org/ggml, ``docs/gguf.md``.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path
from typing import Any, NamedTuple

from .errors import Llama2pyError

SUPPORTED_VERSIONS = (2, 3)
MAX_ARRAY = 1 << 24  # elements: the largest vocabularies have 2**18
MAX_KEY = 1 << 16  # bytes, as the specification says

# GGUF's number of a type -> its struct letter.
NUMBERS = dict(enumerate("BbHhIif?")) | {10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
SMALLEST_PAIR = 8 + 4 + 1  # bytes: an empty key, a type, one byte of value


class GGUFMetadata(NamedTuple):
    """What stands before the tensor list of a GGUF file."""

    version: int
    n_tensors: int
    pairs: dict[str, Any]
    """Key to value: a number, bool, bytes (a string), or a list of one of these."""
    end: int
    """Offset of the first byte behind the pairs: the tensor list."""


class _Broken(Exception):
    """What is wrong with the file, without its name."""


class _Cursor:
    """A place in the file; every step is checked against the end before it is taken."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data = data
        self.size = len(data)
        self.offset = 0

    def take(self, size: int, what: str) -> int:
        """Step over ``size`` bytes and say where they start."""
        start = self.offset
        if size > self.size - start:
            raise _Broken(
                f"{what} needs {size} bytes at offset {start}, the file ends at {self.size}"
            )
        self.offset = start + size
        return start

    def number(self, letter: str, what: str) -> Any:
        start = self.take(struct.calcsize("<" + letter), what)
        return struct.unpack_from("<" + letter, self.data, start)[0]

    def string(self, what: str) -> bytes:
        length = self.number("Q", what)
        start = self.take(length, what)
        return self.data[start : start + length]

    def value(self, kind: int, what: str) -> Any:
        if kind in NUMBERS:
            return self.number(NUMBERS[kind], what)
        if kind == STRING:
            return self.string(what)
        if kind != ARRAY:
            raise _Broken(f"{what} is of type {kind}, expected 0 to 12")
        element, count = self.number("I", what), self.number("Q", what)
        if count > MAX_ARRAY:
            raise _Broken(f"{what} is an array of {count}, expected at most {MAX_ARRAY}")
        if element in NUMBERS:
            layout = f"<{count}{NUMBERS[element]}"
            start = self.take(struct.calcsize(layout), what)
            return list(struct.unpack_from(layout, self.data, start))
        if element == STRING:
            return [self.string(what) for _ in range(count)]
        raise _Broken(f"{what} is an array of type {element}, expected numbers or strings")


def _read(data: mmap.mmap) -> GGUFMetadata:
    if data[:4] != b"GGUF":
        raise _Broken(f"this is no GGUF file: it starts with {data[:4]!r}, expected b'GGUF'")
    cursor = _Cursor(data)
    cursor.offset = 4
    version = cursor.number("I", "the header")
    if version not in SUPPORTED_VERSIONS:
        raise _Broken(f"GGUF version {version}, expected 2 or 3")
    n_tensors, n_pairs = cursor.number("Q", "the header"), cursor.number("Q", "the header")
    room = (cursor.size - cursor.offset) // SMALLEST_PAIR
    if n_pairs > room:
        raise _Broken(f"the header promises {n_pairs} metadata pairs, the file has room for {room}")
    pairs: dict[str, Any] = {}
    for i in range(n_pairs):
        raw = cursor.string(f"the key of metadata pair {i}")
        if len(raw) > MAX_KEY:
            raise _Broken(f"the key of metadata pair {i} has {len(raw)} bytes, expected {MAX_KEY}")
        key = raw.decode(errors="replace")
        if key in pairs:
            raise _Broken(f"the metadata key {key[:80]!r} stands there twice, expected once")
        what = f"the metadata value {key[:80]!r}"
        pairs[key] = cursor.value(cursor.number("I", what), what)
    return GGUFMetadata(version, n_tensors, pairs, cursor.offset)


def read_gguf_metadata(path: str | Path, error: type[Llama2pyError]) -> GGUFMetadata:
    """Read the metadata of a GGUF file, version 2 or 3.

    Parameters
    ----------
    path : str or Path
        The file. It is mapped, so that the tensors behind the metadata cost nothing.
    error : type of Llama2pyError
        What to raise.

    Raises
    ------
    Llama2pyError
        Of the class ``error``: the file is missing, no GGUF, cut short, or contradicts itself.
    """
    path = Path(path)
    try:
        if not path.is_file():
            problem = "this is no regular file" if path.exists() else "no such file"
            raise _Broken(f"{problem}, expected a GGUF file")
        with path.open("rb") as file:
            if not file.seek(0, 2):
                raise _Broken("the file is empty, expected a GGUF file")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _read(data)
    except _Broken as trouble:
        raise error(f"{path}: {trouble}") from None
    except (OSError, ValueError) as trouble:
        raise error(f"{path}: cannot be read: {trouble}") from None
