"""Where the tensors of a GGUF model lie: in one file, or in the parts that it was split into."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ...errors import CheckpointError
from ...formats.gguf_metadata import GGUFMetadata, parse_gguf_metadata, parse_gguf_tensors
from ...formats.mapped_file import MappedFile
from ..stored import stored
from ..tensors import Tensor
from .blocks import FORMATS, BlockFormat, type_name
from .tensors import BlockTensor, Q4Tensor, Q8Tensor

_PART = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf", re.DOTALL)
_DEFAULT_ALIGNMENT = 32
_MAX_ALIGNMENT = 1 << 16
MAX_PARTS = 1000


class Place(NamedTuple):
    """A tensor that lies wholly inside a file, and overlaps no other."""

    file: MappedFile
    offset: int
    """Of its first byte in the file."""
    format: BlockFormat
    dims: tuple[int, ...]
    """The fastest running dimension first: (columns, rows)."""

    def tensor(self) -> Tensor:
        """A view of it; a matrix in Q8_0 or Q4_0 as whole numbers and scales."""
        format, shape = self.format, self.dims[::-1]
        if format.decode is None:
            return stored(self.file.view(self.offset, format.record, shape))
        count = self.nbytes // format.record.itemsize
        blocks = self.file.view(self.offset, format.record, (count,))
        if len(shape) == 2 and format is FORMATS[8]:
            return Q8Tensor(blocks, shape)
        if len(shape) == 2 and format is FORMATS[2]:
            return Q4Tensor(blocks, shape)
        return BlockTensor(blocks, format, shape)

    @property
    def nbytes(self) -> int:
        """Its size in the file."""
        return _size(self.dims, self.format)


class GGUFModel(NamedTuple):
    """A model's metadata, and where each of its tensors is."""

    pairs: Mapping[str, Any]
    places: Mapping[str, Place]
    files: list[MappedFile]
    """The first of them has the metadata."""


def _size(dims: tuple[int, ...], format: BlockFormat) -> int:
    size = format.record.itemsize
    for dim in dims:
        size *= dim
    return size // format.size


def open_model(file: MappedFile) -> GGUFModel:
    """Read the tensor list of a file, and of the other parts if it is one of several.

    Parameters
    ----------
    file : MappedFile
        The one file, or any part. It stays the caller's to close where this fails.

    Raises
    ------
    CheckpointError
        If the file is malformed or cut short, or another part is missing or does not fit.
    """
    metadata = _metadata(file)
    count = metadata.pairs.get("split.count", 0)
    if count in (0, 1):
        return GGUFModel(metadata.pairs, _places(file, metadata), [file])
    return _open_parts(file, metadata, count)


def _metadata(file: MappedFile) -> GGUFMetadata:
    return parse_gguf_metadata(_bytes_of(file), file.path, CheckpointError)


def _bytes_of(file: MappedFile) -> memoryview:
    return file.view(0, "u1", (file.size,)).data


def _open_parts(file: MappedFile, metadata: GGUFMetadata, count: Any) -> GGUFModel:
    path = file.path
    name = _PART.fullmatch(path.name)
    if not isinstance(count, int) or not 1 < count <= MAX_PARTS:
        raise CheckpointError(f"{path}: split.count is {count!r:.80}, expected 1 to {MAX_PARTS}")
    number = metadata.pairs.get("split.no")
    if name is None or int(name[3]) != count or number != int(name[2]) - 1:
        raise CheckpointError(
            f"{path}: this is part {number!r:.80}, counted from 0, of a model in {count} files,"
            f" expected a name that ends in -00001-of-{count:05}.gguf for part 0 and so on"
        )
    files: list[MappedFile] = []
    places: dict[str, Place] = {}
    pairs: Mapping[str, Any] = {}
    try:
        for part in range(count):
            other = path.with_name(f"{name[1]}-{part + 1:05}-of-{count:05}.gguf")
            files.append(file if part == number else _open_part(other, path))
            metadata = _metadata(files[-1])
            found = (metadata.pairs.get("split.no"), metadata.pairs.get("split.count"))
            if found != (part, count):
                raise CheckpointError(
                    f"{other}: split.no and split.count are {found!r:.80},"
                    f" expected {(part, count)} as in its name"
                )
            pairs = pairs or metadata.pairs
            for key, place in _places(files[-1], metadata).items():
                if key in places:
                    raise CheckpointError(
                        f"{other}: tensor {key!r} is in {places[key].file.path.name}, too,"
                        " expected it in one part"
                    )
                places[key] = place
        total = pairs.get("split.tensors.count", len(places))
        if total != len(places):
            raise CheckpointError(
                f"{path}: its {count} parts have {len(places)} tensors together,"
                f" expected {total!r:.80} by split.tensors.count"
            )
    except BaseException:
        for opened in files:
            if opened is not file:
                opened.close()
        raise
    return GGUFModel(pairs, places, files)


def _open_part(other: Path, path: Path) -> MappedFile:
    try:
        return MappedFile(other)
    except CheckpointError as error:
        raise CheckpointError(f"{error} ({path.name} is a part of the same model)") from None


def _places(file: MappedFile, metadata: GGUFMetadata) -> dict[str, Place]:
    """Check every entry of the tensor list against the file, in Python's own integers."""
    infos, end = parse_gguf_tensors(_bytes_of(file), metadata, file.path, CheckpointError)
    alignment = metadata.pairs.get("general.alignment", _DEFAULT_ALIGNMENT)
    # A power of two has one bit.
    if not (
        isinstance(alignment, int)
        and 1 <= alignment <= _MAX_ALIGNMENT
        and alignment & (alignment - 1) == 0
    ):
        raise CheckpointError(
            f"{file.path}: general.alignment is {alignment!r:.80},"
            f" expected a power of two up to {_MAX_ALIGNMENT}"
        )
    start = -(-end // alignment) * alignment
    places: dict[str, Place] = {}
    for info in infos:
        what = f"{file.path}: tensor {info.name!r}"
        if info.name in places:
            raise CheckpointError(f"{what} is in the list twice, expected once")
        format = FORMATS.get(info.kind)
        if format is None:
            names = ", ".join(known.name for known in FORMATS.values())
            raise CheckpointError(
                f"{what} is of type {type_name(info.kind)}, which is not read, expected {names}"
            )
        if 0 in info.dims or info.dims[0] % format.size:
            raise CheckpointError(
                f"{what} is of shape {info.dims}, expected whole blocks of"
                f" {format.size} {format.name} weights"
            )
        if info.offset % alignment:
            raise CheckpointError(
                f"{what} begins at {info.offset} in the data, expected a multiple of {alignment}"
            )
        place = Place(file, start + info.offset, format, info.dims)
        if place.offset + place.nbytes > file.size:
            raise CheckpointError(
                f"{what} needs {place.nbytes} bytes at offset {place.offset},"
                f" the file ends at {file.size}, expected a whole file"
            )
        places[info.name] = place
    before = start
    for name, place in sorted(places.items(), key=lambda item: item[1].offset):
        if place.offset < before:
            raise CheckpointError(
                f"{file.path}: tensor {name!r} begins at offset {place.offset}, inside the one"
                f" before it, expected {before} or more"
            )
        before = place.offset + place.nbytes
    return places
