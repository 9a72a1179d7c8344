"""Checkpoint: what every format's reader returns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from .._util import Closing
from ..config import ModelConfig
from ..errors import ClosedError
from ..formats.mapped_file import MappedFile
from .conventions import Conventions
from .tensors import Tensor


class Checkpoint(Closing):
    """An open checkpoint: the model's numbers, and its tensors where the file has them.

    Made by `open_checkpoint`; a context manager.

    Parameters
    ----------
    path : Path
        What was opened.
    format : str
        For people: ``'llama2.c v2 (int8)'``, ``'Hugging Face (safetensors)'``.
    config : ModelConfig
        The numbers of the model.
    tensors : mapping of str to tuple of Tensor
        As in the property `tensors`.
    files : sequence of MappedFile
        What the tensors are views of; closed with the checkpoint.
    group_size : int, optional
        Values per scale where matrices, all or some, are int8 or int4; others that become int8 get
        groups of this size, too.
    tokenizer_path : Path, optional
        The tokenizer that belongs to the checkpoint, where the format says which.
    dtype : str, optional
        What the file's matrices are made of: ``'float32'``, ``'float16'``, ``'bfloat16'``,
        ``'int8'``, ``'int4'``; GGUF's other blocks count as the float32 that they are widened to.
        By default, int8 where there is a group size and float32 elsewhere.
    notes : sequence of str, optional
        What a user should know about the files although they could be read, for ``info``.
    conventions : Conventions, optional
        How texts begin, end and take turns, where the metadata says so.

    Attributes
    ----------
    path, format, config, group_size, tokenizer_path, dtype, notes, conventions
        As above.
    file_size : int
        Bytes of all the files together.
    """

    def __init__(
        self,
        path: Path,
        format: str,
        config: ModelConfig,
        tensors: Mapping[str, tuple[Tensor, ...]],
        files: Sequence[MappedFile],
        group_size: int | None = None,
        tokenizer_path: Path | None = None,
        dtype: str | None = None,
        notes: Sequence[str] = (),
        conventions: Conventions | None = None,
    ) -> None:
        self.path = path
        self.format = format
        self.config = config
        self.group_size = group_size
        self.tokenizer_path = tokenizer_path
        self.dtype = dtype or ("float32" if group_size is None else "int8")
        self.notes = tuple(notes)
        self.conventions = conventions or Conventions()
        self.file_size = sum(file.size for file in files)
        self._tensors: Mapping[str, tuple[Tensor, ...]] | None = MappingProxyType(dict(tensors))
        self._files = tuple(files)

    @property
    def chat_template(self) -> str | None:
        """The Jinja program that writes a dialogue for this model, where the metadata has one."""
        return self.conventions.chat_template

    @property
    def tensors(self) -> Mapping[str, tuple[Tensor, ...]]:
        """The tensors by llama2.c's names: one per layer, or a tuple of one.

        Names, counts and shapes are those of `tensor_shapes`; in llama2.c's files the order is the
        file's, so that going through them reads it from front to back. Read-only views, not copies.

        Raises
        ------
        ClosedError
            After `close`.
        """
        if self._tensors is None:
            raise ClosedError(f"{self.path}: the checkpoint is closed, expected an open one")
        return self._tensors

    def release(self, tensor: Tensor) -> None:
        """Tell the system that the pages of a tensor may be dropped from memory.

        For one who copies a checkpoint tensor by tensor and wants to hold one at a time. The tensor
        stays valid, its next use reads the file again. Never raises; does nothing for a tensor from
        elsewhere.
        """
        for file in self._files:
            for array in tensor.arrays:
                file.release(array)

    def close(self) -> None:
        """Give up the tensors and unmap the files. Never raises, and twice does no harm.

        Tensors that somebody still holds stay valid and keep their file mapped.
        """
        self._tensors = None  # they hold the mapping
        for file in self._files:
            file.close()

    def __repr__(self) -> str:
        state = " (closed)" if self._tensors is None else ""
        return f"<Checkpoint {str(self.path)!r}: {self.format}, {self.file_size} bytes{state}>"
