"""Checkpoints: from a file to a model's numbers and its tensors.

Needs NumPy and nothing else; the engine is not involved. A new format adds one file with a reader
``(MappedFile) -> Checkpoint`` and one line to `_READERS`.
"""

from __future__ import annotations

import os
from pathlib import Path

from . import directory, gguf, llama2c, safetensors_file, zip_archive
from .base import Checkpoint
from .conventions import Conventions
from .converting import convert_matrix, default_group_size, own_dtype, round_to_bfloat16
from .mapped_file import MappedFile
from .stored import JoinedTensor, StoredTensor
from .tensors import DenseTensor, QuantizedTensor, Tensor, quantize, tensor_shapes
from .writer import quantize_checkpoint, write_checkpoint

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
    "open_checkpoint",
    "own_dtype",
    "quantize",
    "quantize_checkpoint",
    "round_to_bfloat16",
    "tensor_shapes",
    "write_checkpoint",
]

# Is a file that begins with these bytes of this format, and who reads it.
_READERS = (
    (llama2c.has_magic, llama2c.read_versioned),
    (gguf.has_magic, gguf.read_gguf),
    (zip_archive.has_magic, directory.read_zip),
    (safetensors_file.looks_so, directory.read_safetensors_file),
)


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
    >>> from llama2py.builtin import builtin_model
    >>> with open_checkpoint(builtin_model()) as checkpoint:
    ...     checkpoint.config.dim, checkpoint.tensors["wq"][0].shape
    (160, (160, 160))
    """
    path = Path(path)
    if directory.is_description(path):
        return directory.read_directory(path.parent)
    if _is_directory(path):
        return directory.read_directory(path)
    file = MappedFile(path)
    try:
        head = file.read(0, 64)
        for belongs, read in _READERS:
            if belongs(head):
                return read(file)
        return llama2c.read_legacy(file)  # has no magic: whatever nobody else knows
    except BaseException:
        file.close()
        raise


def _is_directory(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):  # a path with a NUL: opening it says so
        return False
