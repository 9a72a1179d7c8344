"""Checkpoints: from a file to a model's numbers and its tensors.

Needs NumPy and nothing else; the engine is not involved. A new format adds one file with a reader
``(MappedFile) -> Checkpoint``, how to tell it in `sniffing`, and a case in `_read`.
"""

from __future__ import annotations

import os
from pathlib import Path

from ..formats import sniff
from ..formats.mapped_file import MappedFile
from . import llama2c
from .base import Checkpoint
from .conventions import Conventions
from .llama2c_writer import write_checkpoint, write_llama2c
from .quantize import (
    convert_matrix,
    default_group_size,
    int8_group_size,
    own_dtype,
    round_to_bfloat16,
)
from .stored import JoinedTensor, StoredTensor
from .tensors import DenseTensor, QuantizedTensor, Tensor, quantize, tensor_shapes

__all__ = [
    "Checkpoint",
    "Conventions",
    "DenseTensor",
    "JoinedTensor",
    "QuantizedTensor",
    "StoredTensor",
    "Tensor",
    "convert_matrix",
    "default_group_size",
    "int8_group_size",
    "open_checkpoint",
    "own_dtype",
    "quantize",
    "round_to_bfloat16",
    "tensor_shapes",
    "write_checkpoint",
    "write_llama2c",
]


def open_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Open a checkpoint of any format llama2py reads, going by a file's first bytes, not its name.

    Parameters
    ----------
    path : str or path-like
        A llama2.c checkpoint: v0 (``stories15M.bin``), v1, v2 (int8), or its trainer's
        ``ckpt.pt``; a directory of Meta's (``params.json``) or Hugging Face's (``config.json``), or
        a file in one; or a GGUF file of the architecture llama, of a split one any part.

    Returns
    -------
    Checkpoint
        To be closed, best by ``with``. Opening reads the header only; tensors are read on use.

    Raises
    ------
    CheckpointError
        If the file is missing, malformed, cut short, or of a kind that is not read. The message is
        one sentence: the path, what is wrong, what was expected.

    Examples
    --------
    >>> from llama2py._data import builtin_model
    >>> with open_checkpoint(builtin_model()) as checkpoint:
    ...     checkpoint.config.dim, checkpoint.tensors["wq"][0].shape
    (160, (160, 160))
    """
    path = Path(path)
    if _is_description(path) or _is_directory(path):
        from .directory import read_directory

        return read_directory(path.parent if _is_description(path) else path)
    file = MappedFile(path)
    try:
        return _read(file)
    except BaseException:
        file.close()
        raise


def _read(file: MappedFile) -> Checkpoint:
    match sniff.kind_of(file.read(0, sniff.HEAD)):
        case sniff.LLAMA2C:
            return llama2c.read_versioned(file)
        case sniff.GGUF:
            from .gguf.reader import read_gguf

            return read_gguf(file)
        case sniff.ZIP:
            from .directory import read_zip

            return read_zip(file)
        case sniff.SAFETENSORS:
            from .directory import read_safetensors_file

            return read_safetensors_file(file)
        case _:
            return llama2c.read_legacy(file)


def _is_description(path: Path) -> bool:
    """Whether a path stands for its directory: ``config.json``, ``params.json``, or an index."""
    return path.name in ("config.json", "params.json") or path.name.endswith(".index.json")


def _is_directory(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):  # a path with a NUL: opening it says so
        return False
