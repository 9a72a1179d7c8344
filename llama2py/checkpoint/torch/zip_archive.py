"""The entries of a zip archive as PyTorch writes it: stored, not compressed.

Every number is checked against the file's length before anything is read, and no two entries may
overlap. ``zipfile`` of the standard library checks neither.

Source: PKWARE's APPNOTE.TXT, 4.3 and 4.5.3 (zip64).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from ...errors import CheckpointError
from ...formats.input_file import InputFile, named

MAGIC = b"PK\x03\x04"
MAX_ENTRIES = 20_000  # a model of 126 layers with its optimizer has about 5000
MAX_DIRECTORY = 8 << 20  # bytes: an entry takes about 100

_LOCAL = struct.Struct("<4s5H3I2H")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_END = struct.Struct("<4s4H2IH")
_LOCATOR64 = struct.Struct("<4sIQI")
_END64 = struct.Struct("<4sQ2H2I4Q")
_MAX_COMMENT = 0xFFFF
_MAX_NAME = 1000  # bytes
_IN_ZIP64 = 0xFFFFFFFF
_ENCRYPTED = 1


@dataclass(frozen=True, slots=True)
class Entry:
    """Where the bytes of one entry lie in the file."""

    offset: int
    size: int


def read_entries(file: InputFile, max_entries: int = MAX_ENTRIES) -> dict[str, Entry]:
    """List the entries of an archive.

    Parameters
    ----------
    file : InputFile
        The archive.
    max_entries : int
        Number of entries that it may have, up to `MAX_ENTRIES`.

    Returns
    -------
    dict of str to Entry
        By name. Each lies within the file and apart from all others.

    Raises
    ------
    CheckpointError
        If the archive is cut short or damaged, is compressed or encrypted, has two entries of one
        name, or too many.
    """
    max_entries = min(max_entries, MAX_ENTRIES)
    try:
        count, offset, size = _find_directory(file)
        if count > max_entries or size > MAX_DIRECTORY:
            raise CheckpointError(
                f"the archive has {count} entries in a directory of {size} bytes,"
                f" expected at most {max_entries} in {MAX_DIRECTORY}"
            )
        if offset + size > file.size or size < count * _CENTRAL.size:
            raise CheckpointError(
                f"the archive's directory of {size} bytes at {offset} with {count} entries"
                f" does not fit into the file's {file.size} bytes"
            )
        entries: dict[str, Entry] = {}
        spans = []
        for name, start, length in _directory(file.read(offset, size), count):
            entry = _locate(file, name, start, length, offset)
            if name in entries:
                raise CheckpointError(f"two entries are named {name[:80]!r}")
            entries[name] = entry
            spans.append((start, entry.offset + entry.size))
    except CheckpointError as error:
        raise named(file.path, error) from None
    spans.sort()
    for (_, end), (start, _) in pairwise(spans):
        if start < end:
            raise CheckpointError(
                f"{file.path}: two entries of the archive overlap at byte {start}"
            )
    return entries


def _find_directory(file: InputFile) -> tuple[int, int, int]:
    """Number of entries, offset and size of the directory, by the record at the end."""
    tail_size = min(file.size, _END.size + _MAX_COMMENT)
    tail = file.read(file.size - tail_size, tail_size)
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or at + _END.size > len(tail):
        raise CheckpointError("the archive has no directory at its end: it may be cut short")
    _, disk, first_disk, _, count, size, offset, comment = _END.unpack_from(tail, at)
    if at + _END.size + comment != len(tail):
        raise CheckpointError("the archive goes on after its end record")
    at64 = file.size - tail_size + at - _LOCATOR64.size
    if at64 >= 0 and file.read(at64, 4) == b"PK\x06\x07":
        _, _, end64, _ = _LOCATOR64.unpack(file.read(at64, _LOCATOR64.size))
        record = file.read(end64, _END64.size) if end64 + _END64.size <= at64 else b""
        if record[:4] != b"PK\x06\x06":
            raise CheckpointError(f"the archive's zip64 end record is not at byte {end64}")
        _, _, _, _, disk, first_disk, _, count, size, offset = _END64.unpack(record)
    if disk or first_disk:
        raise CheckpointError("the archive is one part of several, which is not supported")
    return count, offset, size


def _directory(data: bytes, count: int) -> Iterator[tuple[str, int, int]]:
    """Name, offset of the local header, and size of the data of each entry."""
    at = 0
    for _ in range(count):
        if at + _CENTRAL.size > len(data) or data[at : at + 4] != b"PK\x01\x02":
            raise CheckpointError(f"the archive's directory is damaged at its byte {at},"
                                  f" expected {count} entries in {len(data)} bytes")  # fmt: skip
        (_, _, _, flags, method, _, _, _, packed, size, name_size, extra_size, comment_size, _, _,
         _, start) = _CENTRAL.unpack_from(data, at)  # fmt: skip
        at += _CENTRAL.size
        end = at + name_size + extra_size + comment_size
        if end > len(data):
            raise CheckpointError("the archive's directory ends inside an entry")
        if name_size > _MAX_NAME:
            raise CheckpointError(f"an entry of the archive has a name of {name_size} bytes")
        name = data[at : at + name_size].decode("utf-8", "replace")
        extra = data[at + name_size : at + name_size + extra_size]
        packed, size, start = _widened(name, extra, [size, packed, start])
        if flags & _ENCRYPTED:
            raise CheckpointError(f"entry {name[:80]!r} is encrypted, which is not supported")
        if method or packed != size:
            raise CheckpointError(f"entry {name[:80]!r} is compressed, which is not supported")
        yield name, start, size
        at = end


def _widened(name: str, extra: bytes, numbers: list[int]) -> tuple[int, int, int]:
    """Packed size, size and offset; numbers that need 64 bits are in the zip64 field."""
    size, packed, start = numbers
    if _IN_ZIP64 in numbers:
        wide: list[int] = []
        at = 0
        while at + 4 <= len(extra):
            kind, length = struct.unpack_from("<2H", extra, at)
            if kind == 1 and at + 4 + length <= len(extra):
                wide = list(struct.unpack_from(f"<{length // 8}Q", extra, at + 4))
                break
            at += 4 + length
        if len(wide) < numbers.count(_IN_ZIP64):
            raise CheckpointError(f"entry {name[:80]!r} lacks the 64-bit sizes that it promises")
        size, packed, start = (wide.pop(0) if n == _IN_ZIP64 else n for n in numbers)
    return packed, size, start


def _locate(file: InputFile, name: str, start: int, size: int, limit: int) -> Entry:
    """Find an entry's data, which follows its local header and ends before byte ``limit``."""
    header = file.read(start, _LOCAL.size) if start + _LOCAL.size <= limit else b""
    if header[:4] != MAGIC:
        raise CheckpointError(f"entry {name[:80]!r} is not at byte {start}")
    name_size, extra_size = _LOCAL.unpack(header)[-2:]
    local_name = file.read(start + _LOCAL.size, min(name_size, _MAX_NAME))
    if name_size > _MAX_NAME or local_name.decode("utf-8", "replace") != name:
        raise CheckpointError(f"entry {name[:80]!r} has another name at byte {start}")
    offset = start + _LOCAL.size + name_size + extra_size
    if offset + size > limit:
        raise CheckpointError(
            f"entry {name[:80]!r} of {size} bytes at {offset} does not fit,"
            f" expected it to end before the directory at {limit}"
        )
    return Entry(offset, size)
