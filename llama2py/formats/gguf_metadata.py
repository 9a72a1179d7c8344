"""The parts of a GGUF file that say what is in it, read without trusting a byte of them.

Layout, little-endian: ``GGUF``, uint32 version, uint64 number of tensors, uint64 number of pairs,
then each pair: a string (the key), uint32 type, the value. A string is a uint64 length and its
bytes; an array is a uint32 element type, a uint64 count and the elements. Behind the pairs the
tensor list, each: a string (its name), uint32 number of dimensions, each a uint64, the fastest
running first; uint32 type; uint64 offset into the data, which begins at the next multiple of
``general.alignment``.

Source: the GGUF specification, github.com/ggml-org/ggml, ``docs/gguf.md``.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import Llama2pyError

SUPPORTED_VERSIONS = (2, 3)
# Each limit lies far above any real model's, and bounds what a small file can make us allocate.
MAX_PAIRS = 1 << 14
MAX_TENSORS = 1 << 15
MAX_ARRAY = 1 << 24  # elements
MAX_STRINGS = 1 << 21  # in one array: a vocabulary of 2**18 has about 2**19 merges
MAX_KEY = 1 << 16  # bytes, as the specification says
MAX_NAME = 64  # bytes of a tensor's name, as the specification says
MAX_DIMS = 4

# GGUF's number of a type -> its struct letter.
NUMBERS = dict(enumerate("BbHhIif?")) | {10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
SMALLEST_PAIR = 8 + 4 + 1  # bytes: an empty key, a type, one byte of value
SMALLEST_TENSOR = 8 + 4 + 4 + 8  # bytes: an empty name, no dimensions, a type, an offset


class GGUFArray:
    """An array in the file, checked, but not yet turned into Python objects.

    A list of them can be many times the size of the file; most arrays are never looked at.
    """

    def __init__(self, data: memoryview, kind: int, count: int) -> None:
        self._data = data
        self.kind = kind
        """GGUF's number of the elements' type."""
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __repr__(self) -> str:
        return f"<array of {self._count}>"

    def tolist(self) -> list[Any]:
        """The elements: numbers, bools, or bytes (strings)."""
        if self.kind != STRING:
            return list(struct.unpack(f"<{self._count}{NUMBERS[self.kind]}", self._data))
        items, offset = [], 0
        for _ in range(self._count):
            start = offset + 8
            offset = start + int.from_bytes(self._data[offset:start], "little")
            items.append(bytes(self._data[start:offset]))
        return items


class GGUFMetadata(NamedTuple):
    """What stands before the tensor list of a GGUF file."""

    version: int
    n_tensors: int
    pairs: dict[str, Any]
    """Key to value: a number, bool, bytes (a string), or a `GGUFArray` of one of these."""
    end: int
    """Offset of the first byte behind the pairs: the tensor list."""


class GGUFTensorInfo(NamedTuple):
    """One entry of the tensor list, as it stands there: nothing but its structure is checked."""

    name: str
    dims: tuple[int, ...]
    """The fastest running dimension first: (columns, rows)."""
    kind: int
    """GGML's number of the type."""
    offset: int
    """From where the tensor data begins."""


class _Broken(Exception):
    """What is wrong with the file, without its name."""


class _Cursor:
    """A place in the file; every step is checked against the end before it is taken."""

    def __init__(self, data: memoryview, offset: int) -> None:
        self.data = data
        self.size = len(data)
        self.offset = offset

    def take(self, size: int, what: str) -> int:
        """Step over ``size`` bytes and say where they start."""
        start = self.offset
        if size > self.size - start:
            raise _Broken(
                f"{what} needs {size} bytes at offset {start}, the file ends at {self.size},"
                " expected a whole file"
            )
        self.offset = start + size
        return start

    def number(self, letter: str, what: str) -> Any:
        start = self.take(struct.calcsize("<" + letter), what)
        return struct.unpack_from("<" + letter, self.data, start)[0]

    def string(self, what: str, limit: int | None = None) -> bytes:
        length = self.number("Q", what)
        start = self.take(length, what)
        if limit is not None and length > limit:
            raise _Broken(f"{what} has {length} bytes, expected at most {limit}")
        return bytes(self.data[start : start + length])

    def value(self, kind: int, what: str) -> Any:
        if kind in NUMBERS:
            return self.number(NUMBERS[kind], what)
        if kind == STRING:
            return self.string(what)
        if kind != ARRAY:
            raise _Broken(f"{what} is of type {kind}, expected 0 to 12")
        element, count = self.number("I", what), self.number("Q", what)
        limit = MAX_STRINGS if element == STRING else MAX_ARRAY
        if count > limit:
            raise _Broken(f"{what} is an array of {count}, expected at most {limit}")
        start = self.offset
        if element in NUMBERS:
            self.take(count * struct.calcsize("<" + NUMBERS[element]), what)
        elif element == STRING:
            for _ in range(count):
                self.take(self.number("Q", what), what)
        else:
            raise _Broken(f"{what} is an array of type {element}, expected numbers or strings")
        return GGUFArray(self.data[start : self.offset], element, count)


def _parse_metadata(data: memoryview) -> GGUFMetadata:
    head = bytes(data[:4])
    if head != b"GGUF":
        raise _Broken(f"this is no GGUF file: it starts with {head!r}, expected b'GGUF'")
    cursor = _Cursor(data, offset=4)
    version = cursor.number("I", "the header")
    if version not in SUPPORTED_VERSIONS:
        raise _Broken(f"GGUF version {version}, expected 2 or 3")
    n_tensors, n_pairs = cursor.number("Q", "the header"), cursor.number("Q", "the header")
    room = min(MAX_PAIRS, (cursor.size - cursor.offset) // SMALLEST_PAIR)
    if n_pairs > room:
        raise _Broken(f"the header promises {n_pairs} metadata pairs, expected at most {room} here")
    pairs: dict[str, Any] = {}
    for i in range(n_pairs):
        key = cursor.string(f"the key of metadata pair {i}", MAX_KEY).decode(errors="replace")
        if key in pairs:
            raise _Broken(f"the metadata key {key[:80]!r} stands there twice, expected once")
        what = f"the metadata value {key[:80]!r}"
        pairs[key] = cursor.value(cursor.number("I", what), what)
    return GGUFMetadata(version, n_tensors, pairs, cursor.offset)


def _parse_tensors(data: memoryview, metadata: GGUFMetadata) -> tuple[list[GGUFTensorInfo], int]:
    cursor = _Cursor(data, metadata.end)
    room = min(MAX_TENSORS, (cursor.size - cursor.offset) // SMALLEST_TENSOR)
    if metadata.n_tensors > room:
        raise _Broken(
            f"the header promises {metadata.n_tensors} tensors, expected at most {room} here"
        )
    infos: list[GGUFTensorInfo] = []
    for i in range(metadata.n_tensors):
        what = f"the entry of tensor {i}"
        name = cursor.string(what, MAX_NAME).decode(errors="replace")
        n_dims = cursor.number("I", what)
        if not 1 <= n_dims <= MAX_DIMS:
            raise _Broken(f"tensor {name!r} has {n_dims} dimensions, expected 1 to {MAX_DIMS}")
        dims = tuple(cursor.number("Q", what) for _ in range(n_dims))
        infos.append(GGUFTensorInfo(name, dims, cursor.number("I", what), cursor.number("Q", what)))
    return infos, cursor.offset


def parse_gguf_metadata(data: memoryview, path: Path, error: type[Llama2pyError]) -> GGUFMetadata:
    """Read the metadata of a GGUF file that is mapped already.

    Parameters
    ----------
    data : memoryview of bytes
        The whole file. The arrays among the pairs keep it alive.
    path : Path
        For the message.
    error : type of Llama2pyError
        What to raise.

    Raises
    ------
    Llama2pyError
        Of the class ``error``: the file is no GGUF, cut short, or contradicts itself.
    """
    try:
        return _parse_metadata(data)
    except _Broken as trouble:
        raise error(f"{path}: {trouble}") from None


def parse_gguf_tensors(
    data: memoryview, metadata: GGUFMetadata, path: Path, error: type[Llama2pyError]
) -> tuple[list[GGUFTensorInfo], int]:
    """Read the tensor list behind the metadata.

    Returns
    -------
    list of GGUFTensorInfo
        In the file's order.
    int
        Offset of the first byte behind the list.

    Raises
    ------
    Llama2pyError
        Of the class ``error``: the list is cut short or malformed.
    """
    try:
        return _parse_tensors(data, metadata)
    except _Broken as trouble:
        raise error(f"{path}: {trouble}") from None


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
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        # Not closed here: the arrays are views of it, and it goes with the last of them.
        return _parse_metadata(memoryview(data))
    except _Broken as trouble:
        raise error(f"{path}: {trouble}") from None
    except (OSError, ValueError) as trouble:
        raise error(f"{path}: cannot be read: {trouble}") from None
