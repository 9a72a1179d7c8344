"""llama2.c's own checkpoints, read and written: v0 (legacy), v1 (float32) and v2 (int8).

All little-endian. Source: ``export.py`` and ``run.c`` / ``runq.c`` of karpathy/llama2.c.

v0      Seven int32, then the tensors in the order of `_V0_ORDER`. No magic number. A negative
        vocab_size means that the classifier is a tensor of its own, at the end.
v1, v2  Magic, version, seven int32, a byte that says whether the classifier is the token
        embedding, in v2 the group size (right after it, unaligned); zeros up to byte 256; then the
        tensors in the order of `_V1_ORDER`. In v2 a matrix is int8 values, then their float32
        scales.

The tensors of one name lie one after the other, layer by layer.

Nothing in a file is believed before it is checked, in Python integers: first that the header is
there, then its numbers, then the file's exact length. Only then is a tensor made.
"""

from __future__ import annotations

import math
import os
import struct
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..config import ModelConfig
from ..errors import CheckpointError, ConfigError, ParameterError
from ..formats.atomic_write import replacing
from ..formats.input_file import InputFile
from ..formats.sniff import HEAD, kind_of
from .checkpoint import Checkpoint
from .tensors import (
    DenseTensor,
    QuantizedTensor,
    Tensor,
    check_tensors,
    quantize,
    tensor_shapes,
)

MAGIC = struct.pack("<I", 0x616B3432)  # "ak42" in big-endian order

# The engine adds up a group in 32 bits: 127 * 127 * 65536 fits, with room for its offsets.
MAX_GROUP_SIZE = 1 << 16

_FORMATS = {0: "llama2.c v0", 1: "llama2.c v1", 2: "llama2.c v2 (int8)"}

_V0_HEADER = struct.Struct("<7i")
_V1_HEADER = struct.Struct("<4si7iB")  # magic, version, seven numbers, shared_classifier
_V2_GROUP_SIZE = struct.Struct("<i")  # at byte _V1_HEADER.size of a v2 file

# Bytes before the first tensor, by version.
_HEADER_SIZES = {0: _V0_HEADER.size, 1: 256, 2: 256}

# Two tables of seq_len * head_dim / 2 floats that nothing reads any more.
_ROPE_TABLES = "rope_tables"

# fmt: off
_V0_ORDER = (
    "token_embedding_table", "rms_att_weight", "wq", "wk", "wv", "wo",
    "rms_ffn_weight", "w1", "w2", "w3", "rms_final_weight", _ROPE_TABLES, "wcls",
)
_V1_ORDER = (
    "rms_att_weight", "rms_ffn_weight", "rms_final_weight", "token_embedding_table",
    "wq", "wk", "wv", "wo", "w1", "w2", "w3", "wcls",
)
# fmt: on


# ---- layout ----


@dataclass(frozen=True, slots=True)
class Section:
    """The tensors of one name.

    Attributes
    ----------
    name : str
        llama2.c's name.
    count : int
        Number of tensors.
    shape : tuple of int
        Shape of each.
    offset, stride : int
        Where the first one begins in the file and how far it is to the next, in bytes.
    quantized : bool
        Whether each is int8 values followed by float32 scales, or plain float32.
    """

    name: str
    count: int
    shape: tuple[int, ...]
    offset: int
    stride: int
    quantized: bool


def lay_out(config: ModelConfig, version: int, group_size: int | None) -> tuple[list[Section], int]:
    """Compute where each tensor lies, without looking at a file.

    Parameters
    ----------
    config : ModelConfig
        The numbers of the model.
    version : {0, 1, 2}
        Version of the file.
    group_size : int or None
        Values per scale in v2, a divisor of ``dim``; None in v0 and v1. Every matrix has ``dim``
        as one of its sides, so whole groups fill it, even where ``hidden_dim`` is not divisible.

    Returns
    -------
    sections : list of Section
        In the order of the file.
    file_size : int
        Length of the whole file, in bytes.
    """
    shapes = tensor_shapes(config)
    sections = []
    offset = _HEADER_SIZES[version]
    for name in _V1_ORDER if version else _V0_ORDER:
        if name == _ROPE_TABLES:
            offset += 4 * config.seq_len * config.head_dim
        elif name in shapes:  # wcls is missing where the classifier is shared
            count, shape = shapes[name]
            size = math.prod(shape)
            stride, quantized = 4 * size, False
            if group_size is not None and len(shape) == 2:
                stride, quantized = size + 4 * (size // group_size), True
            sections.append(Section(name, count, shape, offset, stride, quantized))
            offset += count * stride
    return sections, offset


def _header_numbers(config: ModelConfig) -> tuple[int, int, int, int, int, int, int]:
    """The seven numbers of a header in their order (vocab_size positive)."""
    return (
        config.dim,
        config.hidden_dim,
        config.n_layers,
        config.n_heads,
        config.n_kv_heads,
        config.vocab_size,
        config.seq_len,
    )


def _header_config(numbers: Sequence[int], shared_classifier: bool) -> ModelConfig:
    """The config that a header means: the inverse of `_header_numbers`."""
    dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size, seq_len = numbers
    return ModelConfig(
        dim=dim,
        hidden_dim=hidden_dim,
        n_layers=n_layers,
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        vocab_size=vocab_size,
        seq_len=seq_len,
        shared_classifier=shared_classifier,
    )


def _header(config: ModelConfig, version: int, group_size: int | None) -> bytes:
    """The bytes before the first tensor."""
    numbers = _header_numbers(config)
    if version == 0:
        *shape, vocab_size, seq_len = numbers
        sign = 1 if config.shared_classifier else -1
        return _V0_HEADER.pack(*shape, sign * vocab_size, seq_len)
    header = _V1_HEADER.pack(MAGIC, version, *numbers, config.shared_classifier)
    if group_size is not None:
        header += _V2_GROUP_SIZE.pack(group_size)
    return header.ljust(_HEADER_SIZES[version], b"\0")


# ---- reading ----


def read_versioned(file: InputFile) -> Checkpoint:
    """Read a v1 or v2 file.

    Parameters
    ----------
    file : InputFile
        A file that begins with the magic number. The checkpoint closes it.

    Returns
    -------
    Checkpoint
        Float32 tensors for v1; int8 matrices and float32 norms for v2.

    Raises
    ------
    CheckpointError
        If the header is cut short, of another version or impossible, or the file's length is not
        the one that the header calls for. Bytes of the header that no version uses are ignored.
    """
    header_size = _HEADER_SIZES[1]
    header = file.read(0, header_size)
    if len(header) < header_size:
        raise CheckpointError(
            f"{file.path}: the file ends after {file.size} bytes, inside its header,"
            f" expected at least {header_size} bytes"
        )
    _, version, *numbers, shared = _V1_HEADER.unpack_from(header)
    if version not in (1, 2):
        raise CheckpointError(f"{file.path}: llama2.c version {version}, expected 1 or 2")
    if shared not in (0, 1):
        raise CheckpointError(f"{file.path}: shared_classifier is {shared}, expected 0 or 1")
    try:
        config = _header_config(numbers, bool(shared))
    except ConfigError as error:
        raise CheckpointError(f"{file.path}: {error}") from None
    group_size = None
    if version == 2:
        (group_size,) = _V2_GROUP_SIZE.unpack_from(header, _V1_HEADER.size)
        if not 1 <= group_size <= MAX_GROUP_SIZE or config.dim % group_size:
            raise CheckpointError(
                f"{file.path}: group_size is {group_size},"
                f" expected a positive divisor of dim {config.dim}, up to {MAX_GROUP_SIZE}"
            )
    return _checkpoint(file, config, version, group_size)


def read_legacy(file: InputFile) -> Checkpoint:
    """Read a v0 file. It has no magic number, so this is also the reader of unknown files.

    Parameters
    ----------
    file : InputFile
        Any file. The checkpoint closes it.

    Returns
    -------
    Checkpoint
        Float32 tensors.

    Raises
    ------
    CheckpointError
        If the file is of another kind (the message names the kind if it is known), its header is
        cut short or impossible, or its length is not the one that the header calls for.
    """
    # What the file looks like is asked only after it has failed: some magic numbers, such as a
    # pickle's 80 02, may be the dim of a good file.
    if file.size < _V0_HEADER.size:
        raise _not_a_checkpoint(
            file, f"it has {file.size} bytes, expected at least the {_V0_HEADER.size} of a header"
        )
    *numbers, signed_vocab, seq_len = _V0_HEADER.unpack(file.read(0, _V0_HEADER.size))
    try:
        config = _header_config((*numbers, abs(signed_vocab), seq_len), signed_vocab > 0)
    except ConfigError as error:
        raise _not_a_checkpoint(
            file, f"it has no magic number, and read as a v0 header, {error}"
        ) from None
    return _checkpoint(file, config, 0, None)


def _not_a_checkpoint(file: InputFile, problem: str) -> CheckpointError:
    """Name what the file is instead, or, for an unknown kind, what is wrong with it."""
    kind = kind_of(file.read(0, HEAD))
    if kind is not None:
        return CheckpointError(f"{file.path}: this is {kind}, expected a llama2.c checkpoint")
    return CheckpointError(f"{file.path}: not a llama2.c checkpoint: {problem}")


def _checkpoint(
    file: InputFile, config: ModelConfig, version: int, group_size: int | None
) -> Checkpoint:
    """Check the file's length, then make every tensor."""
    sections, expected_size = lay_out(config, version, group_size)
    if file.size != expected_size:
        trouble = "cut short" if file.size < expected_size else "too long"
        raise CheckpointError(
            f"{file.path}: the file is {trouble}: it has {file.size} bytes,"
            f" expected {expected_size} by its {_FORMATS[version]} header"
        )
    tensors = {
        section.name: tuple(
            _tensor(file, section, section.offset + layer * section.stride, group_size)
            for layer in range(section.count)
        )
        for section in sections
    }
    return Checkpoint(file.path, _FORMATS[version], config, tensors, [file], group_size)


def _tensor(file: InputFile, section: Section, offset: int, group_size: int | None) -> Tensor:
    """The tensor of a section that begins at byte ``offset``."""
    if not section.quantized or group_size is None:
        return DenseTensor(file.array(offset, "<f4", section.shape))
    rows, cols = section.shape
    size = rows * cols
    return QuantizedTensor(
        file.array(offset, "i1", section.shape),  # (rows, cols)
        file.array(offset + size, "<f4", (size // group_size,)),
        group_size,
    )


# ---- writing ----

_Place: TypeAlias = tuple[Section, int]  # a section and a layer


def write_checkpoint(
    path: str | os.PathLike[str], config: ModelConfig, tensors: Mapping[str, tuple[Tensor, ...]]
) -> None:
    """Write tensors as a llama2.c checkpoint of version 0; see `write_llama2c`.

    Parameters
    ----------
    path : str or path-like
        The output file.
    config : ModelConfig
        The numbers of the model.
    tensors : mapping of str to tuple of Tensor
        Tensors of any kind, with names, counts and shapes as in `tensor_shapes`. They are written
        as float32.

    Raises
    ------
    ParameterError
        If the tensors are not those of the model.
    CheckpointError
        If the format has no place for one of the model's numbers, or the file cannot be written.
    """
    path = Path(path)
    check_tensors(config, tensors)
    write_llama2c(path, Checkpoint(path, "in memory", config, tensors, ()), version=0)


def write_llama2c(
    path: Path,
    checkpoint: Checkpoint,
    version: int,
    group_size: int | None = None,
    threads: int = 1,
    progress: Callable[[int], object] = lambda weights: None,
) -> None:
    """Write any checkpoint as llama2.c's, with one tensor per thread in memory.

    The file appears, or replaces an older one, only after it is complete and on disk. If anything
    goes wrong the older one stays. The output may be the checkpoint's own file.

    Parameters
    ----------
    path : Path
        The output file. A symbolic link is followed.
    checkpoint : Checkpoint
        The model, of any format.
    version : {0, 1, 2}
        Version of the file. v0's two unused RoPE tables are written as zeros.
    group_size : int, optional
        For v2, and only for it: values per scale. int8 matrices with groups of this size are kept
        as they are, all others are quantized.
    threads : int
        How many matrices are quantized at once.
    progress : callable
        Called after each tensor with its number of weights.

    Raises
    ------
    ParameterError
        If ``group_size`` does not divide ``dim``.
    CheckpointError
        If the format has no place for one of the model's numbers, a weight that is to be quantized
        is not finite, the source cannot be read, or the file cannot be written.
    """
    config = checkpoint.config
    check_config(path, config)
    if group_size is not None and (group_size < 1 or config.dim % group_size):
        raise ParameterError(
            f"group_size is {group_size}, expected a positive divisor of dim {config.dim}"
        )

    def prepare(place: _Place) -> Tensor:
        section, layer = place
        tensor = checkpoint.tensors[section.name][layer]
        if not section.quantized or getattr(tensor, "group_size", None) == group_size:
            return tensor
        assert group_size is not None, "only v2 has quantized sections"
        weights = tensor.dequantize()
        try:
            return quantize(weights, group_size)
        except ParameterError as error:
            raise CheckpointError(f"{path}: {section.name}: {error}") from None

    def in_order(places: list[_Place]) -> Iterator[Tensor]:
        with ThreadPoolExecutor(threads) as pool:
            ahead: deque[Future[Tensor]] = deque()
            left = iter(places)
            for section, _ in places:
                ahead += [
                    pool.submit(prepare, place) for place in islice(left, threads - len(ahead))
                ]
                yield ahead.popleft().result()
                progress(math.prod(section.shape))

    sections, file_size = lay_out(config, version, group_size)
    places = [(section, layer) for section in sections for layer in range(section.count)]
    with replacing(path, CheckpointError) as out:
        out.write(_header(config, version, group_size))
        for (section, layer), tensor in zip(places, in_order(places), strict=True):
            # Zeros where v0 has its RoPE tables.
            out.write(bytes(section.offset + layer * section.stride - out.tell()))
            for array in _arrays(section, tensor):
                out.write(np.ascontiguousarray(array).data)
        out.write(bytes(file_size - out.tell()))  # the RoPE tables, if no classifier follows them


def _arrays(section: Section, tensor: Tensor) -> Iterator[NDArray[Any]]:
    if section.quantized and isinstance(tensor, QuantizedTensor):
        values, scales = tensor.parts()
        yield values
        yield scales.astype("<f4", copy=False)
    else:
        yield tensor.dequantize().astype("<f4", copy=False)


def check_config(path: Path, config: ModelConfig) -> None:
    """Refuse a model that the header cannot describe, such as one with another RoPE base.

    Raises
    ------
    CheckpointError
        With the number, and formats that can hold it.
    """
    if config.head_size is not None:
        raise CheckpointError(
            f"{path}: a llama2.c file cannot say that the head size is {config.head_dim},"
            f" only dim {config.dim} / n_heads {config.n_heads}: use the format gguf or hf"
        )
    implied = _header_config(_header_numbers(config), config.shared_classifier)
    for name in (field.name for field in fields(config)):
        value, expected = getattr(config, name), getattr(implied, name)
        if value != expected:
            raise CheckpointError(
                f"{path}: a llama2.c file cannot say that {name} is {value},"
                f" llama2.c always uses {expected}: use the format gguf or hf"
            )
