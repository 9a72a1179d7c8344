"""The input of a batch: JSONL, CSV, Parquet, or a number of stories, as a stream of shards."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal, TypeAlias, get_args

from .._util import amount
from ..errors import BatchError
from ..formats.input_file import InputFile
from .parquet import iter_rows
from .rows import BAD_ROW, MAX_ROW

InputFormat: TypeAlias = Literal["jsonl", "csv", "parquet"]
_COMPRESSED = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bzip2", b"\xfd7zXZ": "xz"}
_BLOCK = 1 << 20  # bytes of one read


@dataclass(frozen=True, slots=True)
class ShardInput:
    """The rows of one shard.

    Attributes
    ----------
    number : int
        The number of the shard, from 0.
    first_row : int
        The number of its first row.
    n_rows : int
        How many rows it has.
    lines : list of bytes
        Each row as `parse_row` takes it; empty for stories from nothing.
    """

    number: int
    first_row: int
    n_rows: int
    lines: list[bytes]


@dataclass(frozen=True, slots=True)
class Source:
    """A checked input, and how it is cut into shards. Made by `open_source` and `stories`.

    Attributes
    ----------
    path : Path or None
        The file; None for stories from nothing.
    format : str
        ``jsonl``, ``csv``, ``parquet`` or ``stories``.
    shard_rows : int
        Rows of each shard but the last.
    n_rows : int
        Rows of the input.
    sha256 : str
        Over all rows, each as one line.
    digests : tuple of bytes
        Of each shard's rows.
    """

    path: Path | None
    format: str
    shard_rows: int
    n_rows: int
    sha256: str
    digests: tuple[bytes, ...] = ()

    @property
    def n_shards(self) -> int:
        """How many shards there are."""
        return -(-self.n_rows // self.shard_rows)

    def rows_of(self, number: int) -> int:
        """Return how many rows a shard has."""
        return min(self.shard_rows, self.n_rows - number * self.shard_rows)

    def shards(self, wanted: Iterable[int]) -> Iterator[ShardInput]:
        """Read some shards, in ascending order, with one of them in memory at a time.

        Raises
        ------
        BatchError
            If the file is not what it was when it was checked.
        """
        if self.path is None:
            for number in wanted:
                yield ShardInput(number, number * self.shard_rows, self.rows_of(number), [])
            return
        rows = _rows(self.path, self.format)
        number = 0
        for next_wanted in wanted:
            while True:
                lines = list(islice(rows, self.shard_rows))
                if _digest(lines) != self.digests[number]:
                    raise BatchError(
                        f"{self.path}: the rows from number {number * self.shard_rows} on have"
                        " changed while the batch ran; run it again with the original file"
                    )
                number += 1
                if number > next_wanted:
                    break
            first = next_wanted * self.shard_rows
            yield ShardInput(next_wanted, first, len(lines), lines)


def stories(count: int, shard_rows: int) -> Source:
    """Return the source of stories from nothing: rows without a prompt."""
    about = hashlib.sha256(b"%d stories" % count).hexdigest()
    return Source(None, "stories", shard_rows, count, about)


def open_source(path: Path, format: InputFormat | None, shard_rows: int) -> Source:
    """Read a file once, to count and to hash its rows.

    Parameters
    ----------
    path : Path
        A regular file.
    format : {'jsonl', 'csv', 'parquet'}, optional
        Default: by the file's extension, and JSONL for an unknown one.
    shard_rows : int
        Rows of each shard.

    Raises
    ------
    BatchError
        If the file cannot be read, has no rows, or is broken as a whole. A row that is wrong is no
        error here.
    """
    suffix = path.suffix.lower().removeprefix(".")
    kind = format or (suffix if suffix in get_args(InputFormat) else "jsonl")
    file = InputFile(path, BatchError, "a file of rows", may_be_empty=True)
    head = file.read(0, 6)
    file.close()
    for magic, name in _COMPRESSED.items():
        if head.startswith(magic):
            raise BatchError(f"{path}: the file is compressed with {name}; decompress it first")
    rows = _rows(path, kind)
    whole, digests, n_rows = hashlib.sha256(), [], 0
    while lines := list(islice(rows, shard_rows)):
        n_rows += len(lines)
        digests.append(_digest(lines))
        for line in lines:
            whole.update(line)
            whole.update(b"\n")
    if not n_rows:
        raise BatchError(f"{path}: the file has no rows")
    return Source(path, kind, shard_rows, n_rows, whole.hexdigest(), tuple(digests))


def _digest(lines: list[bytes]) -> bytes:
    return hashlib.blake2b(b"\n".join(lines), digest_size=16).digest()


def _rows(path: Path, format: str) -> Iterator[bytes]:
    try:
        if format == "jsonl":
            yield from _jsonl(path)
        elif format == "csv":
            yield from _csv(path)
        else:
            yield from iter_rows(path)
    except OSError as error:
        raise BatchError(f"{path}: cannot be read ({error.strerror or error})") from error


def _jsonl(path: Path) -> Iterator[bytes]:
    """Yield the lines that are not blank, without white space at their ends."""
    with open(path, "rb", buffering=_BLOCK) as file:
        for line in iter(lambda: file.readline(MAX_ROW + 2), b""):
            if len(line) > MAX_ROW + 1 and not line.endswith(b"\n"):
                while (rest := file.readline(_BLOCK)) and not rest.endswith(b"\n"):
                    pass
                yield BAD_ROW + f"the row is longer than {amount(MAX_ROW)}".encode()
            elif line := line.strip():
                yield line


def _csv(path: Path) -> Iterator[bytes]:
    """Yield each record as a JSON object, with the header's names."""
    csv.field_size_limit(MAX_ROW)
    # A byte that is not UTF-8 makes an error of its own row: the tokenizer names the byte.
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.reader(_without_nul(file))
        try:
            names = next(reader, [])
            if len(set(names)) != len(names):
                raise BatchError(f"{path}: the header has a name twice")
            for record in reader:
                if not record:
                    continue
                if len(record) != len(names):
                    yield BAD_ROW + f"{len(record)} columns, expected {len(names)}".encode()
                    continue
                yield json.dumps(dict(zip(names, record, strict=True))).encode()
        except csv.Error as error:
            raise BatchError(f"{path}: line {reader.line_num} is not CSV ({error})") from None


def _without_nul(file: io.TextIOBase) -> Iterator[str]:
    """Python 3.10's csv refuses a NUL with an error for the whole file."""
    for line in file:
        yield line.replace("\0", "\ufffd")
