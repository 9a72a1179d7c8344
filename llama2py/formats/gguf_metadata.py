"""The head of a GGUF file: the metadata pairs and the list of tensors. Nothing in it is trusted.

Layout, little-endian: ``GGUF``, uint32 version, uint64 number of tensors, uint64 number of pairs,
then each pair: a string (the key), uint32 type, the value. A string is a uint64 length and its
bytes; an array is a uint32 element type, a uint64 count and the elements. After the pairs comes the
list of tensors, each: a string (its name), uint32 number of dimensions, each a uint64, the fastest
varying first; uint32 type; uint64 offset into the data, which begins at the next multiple of
``general.alignment``.

Source: the GGUF specification, github.com/ggml-org/ggml, ``docs/gguf.md``.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from ..errors import Llama2pyError
from .input_file import InputFile

SUPPORTED_VERSIONS = (2, 3)
MAX_ARRAY = 1 << 24  # elements
MAX_KEY = 1 << 16  # bytes, as the specification says
MAX_NAME = 64  # bytes of a tensor's name, as the specification says
MAX_DIMS = 4

# GGUF's number of a type -> its struct letter.
NUMBERS = dict(enumerate("BbHhIif?")) | {10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
SMALLEST_PAIR = 8 + 4 + 1  # bytes: an empty key, a type, one byte of value
SMALLEST_TENSOR = 8 + 4 + 4 + 8  # bytes: an empty name, no dimensions, a type, an offset

_WINDOW = 1 << 16  # bytes of the file that are held at a time

T = TypeVar("T")


@dataclass(slots=True)
class Allowance:
    """What all files of a model together may have in their heads. Reading a file uses it up.

    A split model has up to 512 files, so limits per file would allow 512 times as much. Each limit
    is far above what any real model has.
    """

    pairs: int = 1 << 14
    tensors: int = 1 << 15
    strings: int = 1 << 21
    """Strings in arrays: a vocabulary of 2**18 tokens has about 2**19 merges."""
    string_bytes: int = 64 << 20
    """Bytes of strings outside of arrays: some files carry a whole tokenizer.json."""


class GGUFArray:
    """An array in the file: checked now, and read only when its elements are used.

    As a list, the elements can be many times the size of the file, and most arrays are never used.

    Attributes
    ----------
    kind : int
        GGUF's number of the elements' type.
    nbytes : int
        Bytes in the file.
    """

    def __init__(self, file: InputFile, offset: int, nbytes: int, kind: int, count: int) -> None:
        self._file, self._offset, self._count = file, offset, count
        self.nbytes, self.kind = nbytes, kind

    def __len__(self) -> int:
        return self._count

    def __repr__(self) -> str:
        return f"<array of {self._count}>"

    def __iter__(self) -> Iterator[Any]:
        """Read the elements in order: numbers, bools, or bytes (strings)."""
        cursor = _Cursor(self._file, self._offset)
        if self.kind == STRING:
            for _ in range(self._count):
                yield cursor.string("an array")
            return
        size = struct.calcsize("<" + NUMBERS[self.kind])
        for first in range(0, self._count, _WINDOW // 8):
            n = min(_WINDOW // 8, self._count - first)
            data = cursor.take(n * size, "an array")
            yield from struct.unpack(f"<{n}{NUMBERS[self.kind]}", data)

    def tolist(self) -> list[Any]:
        """Read all elements: numbers, bools, or bytes (strings)."""
        return list(self)


class GGUFMetadata(NamedTuple):
    """What precedes the list of tensors in a GGUF file."""

    version: int
    n_tensors: int
    pairs: dict[str, Any]
    """Key to value: a number, bool, bytes (a string), or a `GGUFArray` of one of these. The arrays
    can be read while the file is open."""
    end: int
    """Offset of the first byte after the pairs: the list of tensors."""


class GGUFTensorInfo(NamedTuple):
    """One entry of the list of tensors. Only its structure is checked."""

    name: str
    dims: tuple[int, ...]
    """The fastest varying dimension first: (columns, rows)."""
    kind: int
    """GGML's number of the type."""
    offset: int
    """From the start of the tensor data."""


class _Broken(Exception):
    """What is wrong with the file, without its name."""


class _Cursor:
    """A place in the file. Every step is checked against the end before it is taken."""

    def __init__(self, file: InputFile, offset: int) -> None:
        self._file = file
        self.size = file.size
        self.offset = offset
        self._window = b""
        self._begin = 0  # where the window lies in the file

    def skip(self, size: int, what: str) -> None:
        """Step over ``size`` bytes."""
        if size > self.size - self.offset:
            raise _Broken(
                f"the file is cut short: {what} needs {size} bytes at offset {self.offset}, the"
                f" file ends at {self.size}"
            )
        self.offset += size

    def take(self, size: int, what: str) -> bytes:
        """Read ``size`` bytes and step over them."""
        start = self.offset
        self.skip(size, what)
        if size > _WINDOW:
            return self._file.read(start, size)
        at = start - self._begin
        if at < 0 or at + size > len(self._window):
            self._window, self._begin, at = self._file.read(start, _WINDOW), start, 0
        return self._window[at : at + size]

    def number(self, letter: str, what: str) -> Any:
        form = "<" + letter
        return struct.unpack(form, self.take(struct.calcsize(form), what))[0]

    def string(self, what: str, limit: int | None = None) -> bytes:
        length = self.number("Q", what)
        if limit is not None and limit < length <= self.size - self.offset:
            raise _Broken(f"{what} has {length} bytes, expected at most {limit}")
        return self.take(length, what)

    def value(self, kind: int, what: str, allowance: Allowance) -> Any:
        if kind in NUMBERS:
            return self.number(NUMBERS[kind], what)
        if kind == STRING:
            value = self.string(what, allowance.string_bytes)
            allowance.string_bytes -= len(value)
            return value
        if kind != ARRAY:
            raise _Broken(f"{what} is of type {kind}, expected 0 to 12")
        element, count = self.number("I", what), self.number("Q", what)
        limit = allowance.strings if element == STRING else MAX_ARRAY
        if count > limit:
            raise _Broken(f"{what} is an array of {count}, expected at most {limit}")
        start = self.offset
        if element in NUMBERS:
            self.skip(count * struct.calcsize("<" + NUMBERS[element]), what)
        elif element == STRING:
            allowance.strings -= count
            for _ in range(count):
                self.skip(int.from_bytes(self.take(8, what), "little"), what)
        else:
            raise _Broken(f"{what} is an array of type {element}, expected numbers or strings")
        return GGUFArray(self._file, start, self.offset - start, element, count)


def _parse_metadata(file: InputFile, allowance: Allowance) -> GGUFMetadata:
    head = file.read(0, 4)
    if head != b"GGUF":
        raise _Broken(f"this is not a GGUF file: it starts with {head!r}, expected b'GGUF'")
    cursor = _Cursor(file, offset=4)
    version = cursor.number("I", "the header")
    if version not in SUPPORTED_VERSIONS:
        raise _Broken(f"GGUF version {version}, expected 2 or 3")
    n_tensors, n_pairs = cursor.number("Q", "the header"), cursor.number("Q", "the header")
    room = min(allowance.pairs, (cursor.size - cursor.offset) // SMALLEST_PAIR)
    if n_pairs > room:
        raise _Broken(f"the header promises {n_pairs} metadata pairs, expected at most {room} here")
    allowance.pairs -= n_pairs
    pairs: dict[str, Any] = {}
    for i in range(n_pairs):
        key = cursor.string(f"the key of metadata pair {i}", MAX_KEY).decode(errors="replace")
        if key in pairs:
            raise _Broken(f"the metadata has the key {key[:80]!r} twice")
        what = f"the metadata value {key[:80]!r}"
        pairs[key] = cursor.value(cursor.number("I", what), what, allowance)
    return GGUFMetadata(version, n_tensors, pairs, cursor.offset)


def _parse_tensors(
    file: InputFile, metadata: GGUFMetadata, allowance: Allowance
) -> tuple[list[GGUFTensorInfo], int]:
    cursor = _Cursor(file, metadata.end)
    room = min(allowance.tensors, (cursor.size - cursor.offset) // SMALLEST_TENSOR)
    if metadata.n_tensors > room:
        raise _Broken(
            f"the header promises {metadata.n_tensors} tensors, expected at most {room} here"
        )
    allowance.tensors -= metadata.n_tensors
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


def parse_gguf_metadata(
    file: InputFile, error: type[Llama2pyError], allowance: Allowance | None = None
) -> GGUFMetadata:
    """Read the metadata of an open GGUF file, version 2 or 3.

    Parameters
    ----------
    file : InputFile
        The file.
    error : type of Llama2pyError
        What to raise.
    allowance : Allowance, optional
        What is left for this file, if it is one of several.

    Raises
    ------
    Llama2pyError
        Of the class ``error``: the file is not GGUF, is cut short, or contradicts itself.
    """
    try:
        return _parse_metadata(file, allowance or Allowance())
    except _Broken as trouble:
        raise error(f"{file.path}: {trouble}") from None


def parse_gguf_tensors(
    file: InputFile,
    metadata: GGUFMetadata,
    error: type[Llama2pyError],
    allowance: Allowance | None = None,
) -> tuple[list[GGUFTensorInfo], int]:
    """Read the list of tensors, which follows the metadata.

    Returns
    -------
    list of GGUFTensorInfo
        In the file's order.
    int
        Offset of the first byte after the list.

    Raises
    ------
    Llama2pyError
        Of the class ``error``: the list is cut short or malformed.
    """
    try:
        return _parse_tensors(file, metadata, allowance or Allowance())
    except _Broken as trouble:
        raise error(f"{file.path}: {trouble}") from None


def read_gguf_metadata(path: str | Path, error: type[Llama2pyError]) -> GGUFMetadata:
    """Read the metadata of a GGUF file that is not open yet.

    The file stays open for as long as one of the arrays is in use.

    Raises
    ------
    Llama2pyError
        Of the class ``error``: the file is missing, not GGUF, cut short, or contradicts itself.
    """
    return parse_gguf_metadata(InputFile(path, error, "a GGUF file"), error)


class _Missing(Enum):
    VALUE = 0


REQUIRED = _Missing.VALUE
"""The default of a value that is required."""


class GGUFFields:
    """Typed access to the metadata: a value of the expected type, or an error that names the key.

    Parameters
    ----------
    pairs : mapping of str to value
        The metadata.
    error : type of Llama2pyError
        What to raise. The caller adds the file's name to the message.
    prefix : str
        What every name begins with: ``'llama.'``, ``'tokenizer.ggml.'``.
    """

    def __init__(
        self, pairs: Mapping[str, Any], error: type[Llama2pyError], prefix: str = ""
    ) -> None:
        self._pairs, self._error, self._prefix = pairs, error, prefix

    def __contains__(self, name: str) -> bool:
        return self._prefix + name in self._pairs

    def integer(self, name: str, default: int | T | Literal[_Missing.VALUE] = REQUIRED) -> int | T:
        """A whole number."""
        value: int | T = self._get(name, default, int, "a whole number")
        return value

    def number(
        self, name: str, default: float | T | Literal[_Missing.VALUE] = REQUIRED
    ) -> float | T:
        """A number, whole or not."""
        value = self._get(name, default, (float, int), "a number")
        return float(value) if isinstance(value, int) else value

    def flag(self, name: str, default: bool | T | Literal[_Missing.VALUE] = REQUIRED) -> bool | T:
        """True or false."""
        value: bool | T = self._get(name, default, bool, "true or false")
        return value

    def text(self, name: str, default: bytes | T | Literal[_Missing.VALUE] = REQUIRED) -> bytes | T:
        """A string, as its bytes."""
        value: bytes | T = self._get(name, default, bytes, "a string")
        return value

    def list(self, name: str, kind: type[T] | tuple[type[T], ...], max_count: int) -> list[T]:
        """An array of ``int``, ``float``, ``bool`` or ``bytes``, or of one of several, read whole.

        Raises
        ------
        Llama2pyError
            The array is missing, of another type, or longer than ``max_count``.
        """
        kinds = kind if isinstance(kind, tuple) else (kind,)
        what = f"an array of {_PLURALS[kinds[0]]}"
        array: GGUFArray = self._get(name, REQUIRED, GGUFArray, what)
        if _element_type(array.kind) not in kinds:
            raise self.wrong(name, what)
        if len(array) > max_count:
            raise self.wrong(name, f"at most {max_count}")
        return array.tolist()

    def wrong(self, name: str, expected: str) -> Llama2pyError:
        """Make the error for a value that has the wrong type or is not supported."""
        if name not in self:
            return self._error(f"the metadata lacks {self._prefix}{name}")
        value = repr(self._pairs[self._prefix + name])[:80]
        return self._error(f"{self._prefix}{name} is {value}, expected {expected}")

    def _get(self, name: str, default: Any, kind: Any, expected: str) -> Any:
        if name not in self and default is not REQUIRED:
            return default
        value = self._pairs.get(self._prefix + name)
        # bool is an int to Python, not to GGUF.
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise self.wrong(name, expected)
        return value


_PLURALS: dict[type, str] = {int: "whole numbers", float: "numbers", bytes: "strings"}
_PLURALS[bool] = "bools"


def _element_type(kind: int) -> type:
    if kind == STRING:
        return bytes
    return {"f": float, "d": float, "?": bool}.get(NUMBERS[kind], int)
