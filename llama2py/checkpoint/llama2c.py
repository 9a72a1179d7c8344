"""Reads llama2.c's own checkpoints: v0 (legacy), v1 (float32) and v2 (int8).

Nothing a file says is believed before it is checked, in Python integers: first that the header is
there, then its numbers, then the file's exact length. Only then is an array made.
"""

from __future__ import annotations

from ..config import ModelConfig
from ..errors import CheckpointError, ConfigError
from ..formats.mapped_file import MappedFile
from ..formats.sniff import HEAD, kind_of
from .base import Checkpoint
from .llama2c_layout import (
    HEADER_SIZES,
    V0_HEADER,
    V1_HEADER,
    V2_GROUP_SIZE,
    Section,
    header_config,
    lay_out,
)
from .tensors import DenseTensor, QuantizedTensor, Tensor

# The engine sums a group up in 32 bits: 127 * 127 * 65536 fits, with room for its offsets.
MAX_GROUP_SIZE = 1 << 16
_FORMATS = {0: "llama2.c v0", 1: "llama2.c v1", 2: "llama2.c v2 (int8)"}


def read_versioned(file: MappedFile) -> Checkpoint:
    """Read a v1 or v2 file.

    Parameters
    ----------
    file : MappedFile
        A file that begins with the magic number. The checkpoint closes it.

    Returns
    -------
    Checkpoint
        Float32 tensors for v1; for v2 int8 matrices and float32 norms. With odd sizes v2's scales
        and what follows them are unaligned in the file, and so are their views.

    Raises
    ------
    CheckpointError
        If the header is cut short, of another version or senseless, or the file's length is not
        the one it calls for. Bytes of the header that no version uses are not looked at.
    """
    header_size = HEADER_SIZES[1]
    header = file.read(0, header_size)
    if len(header) < header_size:
        raise CheckpointError(
            f"{file.path}: the file ends after {file.size} bytes, inside its header,"
            f" expected at least {header_size} bytes"
        )
    _, version, *numbers, shared = V1_HEADER.unpack_from(header)
    if version not in (1, 2):
        raise CheckpointError(f"{file.path}: llama2.c version {version}, expected 1 or 2")
    if shared not in (0, 1):
        raise CheckpointError(f"{file.path}: shared_classifier is {shared}, expected 0 or 1")
    try:
        config = header_config(numbers, bool(shared))
    except ConfigError as error:
        raise CheckpointError(f"{file.path}: {error}") from None
    group_size = None
    if version == 2:
        (group_size,) = V2_GROUP_SIZE.unpack_from(header, V1_HEADER.size)
        if not 1 <= group_size <= MAX_GROUP_SIZE or config.dim % group_size:
            raise CheckpointError(
                f"{file.path}: group_size is {group_size},"
                f" expected a positive divisor of dim {config.dim}, up to {MAX_GROUP_SIZE}"
            )
    return _map_tensors(file, config, version, group_size)


def read_legacy(file: MappedFile) -> Checkpoint:
    """Read a v0 file: the format without a magic number, so also the last guess at an unknown file.

    Parameters
    ----------
    file : MappedFile
        Any file. The checkpoint closes it.

    Returns
    -------
    Checkpoint
        Float32 tensors.

    Raises
    ------
    CheckpointError
        If the file is of another kind (the message says which, where its first bytes tell), its
        header is cut short or senseless, or its length is not the one the header calls for.
    """
    # What the file looks like is asked only once it has failed: some prefixes, such as a pickle's
    # 80 02, could be the dim of a good file.
    if file.size < V0_HEADER.size:
        raise _not_a_checkpoint(
            file, f"it has {file.size} bytes, expected at least the {V0_HEADER.size} of a header"
        )
    *numbers, signed_vocab, seq_len = V0_HEADER.unpack(file.read(0, V0_HEADER.size))
    try:
        config = header_config((*numbers, abs(signed_vocab), seq_len), signed_vocab > 0)
    except ConfigError as error:
        raise _not_a_checkpoint(
            file, f"it has no magic number, and read as a v0 header, {error}"
        ) from None
    return _map_tensors(file, config, 0, None)


def _not_a_checkpoint(file: MappedFile, problem: str) -> CheckpointError:
    """Say what the file is instead, or, where nobody knows, what is wrong with it."""
    looks = kind_of(file.read(0, HEAD))
    if looks is not None:
        return CheckpointError(f"{file.path}: this is {looks}, expected a llama2.c checkpoint")
    return CheckpointError(f"{file.path}: not a llama2.c checkpoint: {problem}")


def _map_tensors(
    file: MappedFile, config: ModelConfig, version: int, group_size: int | None
) -> Checkpoint:
    """Check the file's length, then make a view of every tensor."""
    sections, expected_size = lay_out(config, version, group_size)
    if file.size != expected_size:
        trouble = "cut short" if file.size < expected_size else "too long"
        raise CheckpointError(
            f"{file.path}: the file is {trouble}: it has {file.size} bytes,"
            f" expected {expected_size} by its {_FORMATS[version]} header"
        )
    tensors = {
        section.name: tuple(
            _view(file, section, section.offset + layer * section.stride, group_size)
            for layer in range(section.count)
        )
        for section in sections
    }
    return Checkpoint(file.path, _FORMATS[version], config, tensors, [file], group_size)


def _view(file: MappedFile, section: Section, offset: int, group_size: int | None) -> Tensor:
    """Make the tensor of a section that begins at byte ``offset``."""
    if not section.quantized or group_size is None:
        return DenseTensor(file.view(offset, "<f4", section.shape))
    rows, cols = section.shape
    size = rows * cols
    return QuantizedTensor(
        file.view(offset, "i1", section.shape),  # (rows, cols)
        file.view(offset + size, "<f4", (size // group_size,)),
        group_size,
    )
