"""Where the tensors of a GGUF model lie: in one file, or in several parts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ...errors import CheckpointError
from ...formats.gguf_metadata import (
    Allowance,
    GGUFFields,
    GGUFMetadata,
    parse_gguf_metadata,
    parse_gguf_tensors,
)
from ...formats.input_file import InputFile, named
from ..state_dict import to_tensor
from ..tensors import Tensor
from .blocks import FORMATS, BlockFormat, type_name
from .tensors import BlockTensor, Q4Tensor, Q8Tensor

_PART = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf", re.DOTALL)
_DEFAULT_ALIGNMENT = 32
_MAX_ALIGNMENT = 1 << 16
MAX_PARTS = 512


class Place(NamedTuple):
    """A tensor that lies inside a file and overlaps no other."""

    file: InputFile
    offset: int
    """Of the first byte, in the file."""
    format: BlockFormat
    dims: tuple[int, ...]
    """The fastest running dimension first: (columns, rows)."""

    def tensor(self) -> Tensor:
        """Make the tensor; a matrix in Q8_0 or Q4_0 has whole numbers and scales."""
        format, shape = self.format, self.dims[::-1]
        if format.decode is None:
            return to_tensor(self.file.array(self.offset, format.record, shape))
        count = self.nbytes // format.record.itemsize
        blocks = self.file.array(self.offset, format.record, (count,))
        if len(shape) == 2 and format is FORMATS[8]:
            return Q8Tensor(blocks, shape)
        if len(shape) == 2 and format is FORMATS[2]:
            return Q4Tensor(blocks, shape)
        return BlockTensor(blocks, format, shape)

    def rows(self, first: int, n: int) -> Place:
        """The place of n rows of a matrix, or numbers of a vector, from ``first`` on."""
        row = self.nbytes // self.dims[-1]  # a row is whole blocks
        return self._replace(offset=self.offset + first * row, dims=(*self.dims[:-1], n))

    @property
    def nbytes(self) -> int:
        """Size in the file."""
        return _size(self.dims, self.format)


class GGUFModel(NamedTuple):
    """A model's metadata, and the place of each of its tensors."""

    pairs: Mapping[str, Any]
    places: Mapping[str, Place]
    files: list[InputFile]
    """The first one has the metadata."""


def _size(dims: tuple[int, ...], format: BlockFormat) -> int:
    size = format.record.itemsize
    for dim in dims:
        size *= dim
    return size // format.size


def open_model(file: InputFile) -> GGUFModel:
    """Read the list of tensors of a file, and of the other parts if it is one of several.

    Parameters
    ----------
    file : InputFile
        The whole model, or any part of it. If this fails, the caller closes it.

    Raises
    ------
    CheckpointError
        If the file is malformed or cut short, or another part is missing or does not fit.
    """
    allowance = Allowance()
    metadata = parse_gguf_metadata(file, CheckpointError, allowance)
    try:
        count = GGUFFields(metadata.pairs, CheckpointError).integer("split.count", 0)
    except CheckpointError as error:
        raise named(file.path, error) from None
    if count in (0, 1):
        return GGUFModel(metadata.pairs, _places(file, metadata, allowance), [file])
    return _open_parts(file, metadata, count, allowance)


def _open_parts(
    file: InputFile, metadata: GGUFMetadata, count: int, allowance: Allowance
) -> GGUFModel:
    path = file.path
    name = _PART.fullmatch(path.name)
    if not 1 < count <= MAX_PARTS:
        raise CheckpointError(f"{path}: split.count is {count}, expected 1 to {MAX_PARTS}")
    number = metadata.pairs.get("split.no")
    if name is None or int(name[3]) != count or number != int(name[2]) - 1:
        raise CheckpointError(
            f"{path}: this is part {number!r:.80}, counted from 0, of a model in {count} files,"
            f" expected a name that ends in -00001-of-{count:05}.gguf for part 0 and so on"
        )
    own = metadata
    files: list[InputFile] = []
    places: dict[str, Place] = {}
    pairs: Mapping[str, Any] = {}
    try:
        for part in range(count):
            other = path.with_name(f"{name[1]}-{part + 1:05}-of-{count:05}.gguf")
            files.append(file if part == number else _open_part(other, path))
            metadata = own
            if part != number:
                metadata = parse_gguf_metadata(files[-1], CheckpointError, allowance)
            found = (metadata.pairs.get("split.no"), metadata.pairs.get("split.count"))
            if found != (part, count):
                raise CheckpointError(
                    f"{other}: split.no and split.count are {found!r:.80},"
                    f" expected {(part, count)} as in its name"
                )
            pairs = pairs or metadata.pairs
            for key, place in _places(files[-1], metadata, allowance).items():
                if key in places:
                    raise CheckpointError(
                        f"{other}: tensor {key!r} is also in {places[key].file.path.name}"
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


def _open_part(other: Path, path: Path) -> InputFile:
    try:
        return InputFile(other)
    except CheckpointError as error:
        raise CheckpointError(f"{error} ({path.name} is a part of the same model)") from None


def _places(file: InputFile, metadata: GGUFMetadata, allowance: Allowance) -> dict[str, Place]:
    """Check every entry of the list of tensors against the file, in Python's integers."""
    infos, end = parse_gguf_tensors(file, metadata, CheckpointError, allowance)
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
            raise CheckpointError(f"{what} is in the list twice")
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
                f" the file ends at {file.size}: it may be cut short"
            )
        places[info.name] = place
    before = start
    for name, place in sorted(places.items(), key=lambda item: item[1].offset):
        if place.offset < before:
            raise CheckpointError(
                f"{file.path}: tensor {name!r} begins at offset {place.offset}, inside the tensor"
                f" before it, which ends at {before}"
            )
        before = place.offset + place.nbytes
    return places
